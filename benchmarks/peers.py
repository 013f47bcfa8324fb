"""The other tools: eclipse-nn as published, and LipSDP-Neuron written in cvxpy for CLARABEL and SCS.

None of their values is a certificate: they are what the tool prints, at its own tolerance, rounding not accounted for.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Outcome = dict[str, Any]


def chain_weights(model: nn.Module) -> list[np.ndarray]:
    """Weights of a sequential ReLU network, input first, float64; ValueError for any other model."""
    modules = [m for m in model if not isinstance(m, nn.Flatten)]
    linear, relus = modules[::2], modules[1::2]
    if not all(isinstance(m, nn.Linear) for m in linear) or not all(isinstance(m, nn.ReLU) for m in relus):
        raise ValueError("peers handle sequential ReLU networks only")
    return [m.weight.detach().double().numpy() for m in linear]


def eclipse_nn(model: nn.Module, variant: str) -> Outcome:
    """eclipse-nn's ``ECLipsE`` or ``ECLipsE_Fast`` on the weights.

    ``ECLipsE`` (0.1.7) falls back to Fast on the networks here: it solves a layer by SCS at ``eps=1e-6`` and then
    refuses a solution whose least eigenvalue is below −1e-8; SCS leaves −5.6e-7 on recipe-2x20, −1.2e-6 on recipe-5x20.
    """
    from eclipse_nn.LipConstEstimator import LipConstEstimator

    weights = [torch.from_numpy(w) for w in chain_weights(model)]
    estimator = LipConstEstimator(weights=weights)
    said = io.StringIO()
    started, began = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(said):
        value = float(estimator.estimate(variant))
    seconds, cpu = time.perf_counter() - started, time.process_time() - began
    remark = "fell back to ECLipsE-Fast" if "Falling back" in said.getvalue() else ""
    return {"value": value, "seconds": seconds, "cpu_seconds": cpu, "guarantee": "none", "remark": remark}


def lipsdp_cvxpy(weights: Sequence[np.ndarray], solver: str, **options: Any) -> Outcome:
    """Minimise ρ over t ≥ 0 with P(ρ, t) ⪰ 0 (DESIGN §3, (1), slopes in [0, 1]).

    Weights are scaled to unit norm first, as a careful user would: recipe networks contract by 1e4.

    Args:
        weights: W_1 … W_L, input first.
        solver: ``CLARABEL`` or ``SCS``.
        options: passed to the solver.
    """
    import cvxpy as cp

    norms = [np.linalg.norm(w, 2) for w in weights]
    maps = [w / s for w, s in zip(weights, norms, strict=True)]
    sizes = [w.shape[1] for w in maps]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    rho = cp.Variable()
    multipliers = [cp.Variable(n, nonneg=True) for n in sizes[1:]]

    blocks: list[list[Any]] = [[np.zeros((m, n)) for n in sizes] for m in sizes]
    blocks[0][0] = rho * np.eye(sizes[0])
    for k, t in enumerate(multipliers, start=1):
        corner = 2 * cp.diag(t)
        blocks[k][k] = corner
        blocks[k][k - 1] = -cp.diag(t) @ maps[k - 1]
        blocks[k - 1][k] = blocks[k][k - 1].T
    blocks[-1][-1] = blocks[-1][-1] - maps[-1].T @ maps[-1]
    problem = cp.Problem(cp.Minimize(rho), [cp.bmat(blocks) >> 0])
    started, began = time.perf_counter(), time.process_time()
    problem.solve(solver=solver, **options)
    seconds, cpu = time.perf_counter() - started, time.process_time() - began
    value = math.sqrt(float(rho.value)) * math.prod(norms) if rho.value is not None else None
    return {
        "value": value,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "solver_seconds": problem.solver_stats.solve_time,
        "guarantee": "none",
        "remark": f"{problem.status}, N = {total}, {problem.solver_stats.num_iters} iterations",
    }


def run(name: str, model: nn.Module, limit: float) -> Outcome:
    """One row of a peer: ``eclipse-nn …`` or ``cvxpy …``."""
    tool, variant = name.split()
    if tool == "eclipse-nn":
        return eclipse_nn(model, "ECLipsE_Fast" if variant == "Fast" else "ECLipsE")
    options = {"SCS": {"eps": 1e-6, "max_iters": 100_000, "time_limit_secs": 0.9 * limit}}.get(variant, {})
    lipsdp_cvxpy([np.array([[0.5], [0.25]]), np.array([[1.0, 1.0]])], variant)  # imports and first-use costs
    return lipsdp_cvxpy(chain_weights(model), variant, **options)
