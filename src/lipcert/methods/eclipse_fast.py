"""ECLipsE-Fast (Xu & Sivaranjani 2024): closed-form multipliers for chains, one factorisation per layer, no search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.forms.elimination import MAX_SIDE
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.errors import InputError, MethodError, NotProved
from lipcert.increments import Cell, EntryCell, ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.base import Found, Method, Run, method
from lipcert.network.linear import size
from lipcert.problem import Norm, Problem
from lipcert.search.float_form import float_rho

#: Relative lifts of the multipliers tried, smallest first: the closed form lies on the boundary of the feasible set,
#: where ρ as a function of the multipliers is steep; a few per cent inside it is often much smaller.
LIFTS = (0.0, 1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
#: Least eigenvalue that counts: layers behind a zero map get multipliers of this order.
LEAST = 1e-200
#: Lift of the intermediate forms.
SLACK = 1e-10


@method
@dataclass(frozen=True, kw_only=True)
class EclipseFast(Method):
    """Closed-form LipSDP multipliers for chains of layers, t_k = λ_max(S)·I: a few matrix products, no iteration.

    The closed form is then lifted geometrically by the amount that gives the least ρ, so the value is at most the
    published one (kept in the witness' settings as ``closed_form_input``). Slopes may lie in any interval. Source: Xu &
    Sivaranjani, *ECLipsE: Efficient compositional Lipschitz constant estimation for deep neural networks* (2024).

    Attributes:
        direction: ``input``, as published; ``output``, the same recursion from the other end; ``best`` of both.
    """

    name: ClassVar[str] = "eclipse_fast"
    norms: ClassVar[tuple[Norm, ...]] = ((2.0, 2.0),)
    summary: ClassVar[str] = "closed-form LipSDP multipliers on chains; instant, between autolip and lipsdp"

    direction: Literal["best", "input", "output"] = "best"

    def __post_init__(self) -> None:
        if self.direction not in ("best", "input", "output"):
            raise InputError(f"direction is best, input or output, not {self.direction!r}.")

    def solve(self, problem: Problem, run: Run) -> Found:
        """Multipliers from one or both ends; the better ones are returned."""
        self.require_norm(problem.norm)
        network = problem.expanded_increments
        transformed = ScaledIncrements(network, natural_exponents(network))
        maps = _chain(transformed)
        form = DenseForm(transformed)
        weights = Weights(*(torch.ones(size(s), dtype=torch.float64) for s in (network.in_shape, network.out_shape)))
        recursions = {"input": _from_input, "output": _from_output}
        best: _Feasible | None = None
        settings: dict[str, Any] = {"route": "dense", "layerwise": False}
        for direction, recursion in recursions.items():
            if self.direction not in ("best", direction):
                continue
            multipliers, closed_form = recursion(transformed.cells, maps)
            settings[f"closed_form_{direction}"] = _root(closed_form, transformed)
            found = _feasible(transformed, form, weights, multipliers)
            if found is not None and (best is None or found.rho < best.rho):
                best = found
                settings["direction"] = direction
        if best is None:
            raise NotProved("the closed-form multipliers are not feasible in floats; try method 'lipsdp'.")
        arrays = {f"multipliers.{k}": m.reshape(1, -1) for k, m in best.multipliers.items()}
        arrays["exponents"] = torch.tensor(transformed.exponents, dtype=torch.int64)
        settings |= {"rho": best.rho * (1.0 + 1e-12), "slack": best.slack}
        return Found(Witness("quadratic", arrays, settings))


def _root(rho: float, transformed: ScaledIncrements) -> float:
    """√ρ in the output's true units, for the record; 0 or inf outside the range of floats."""
    try:
        return math.ldexp(math.sqrt(rho), transformed.exponents[-1])
    except OverflowError:
        return math.inf


@dataclass(frozen=True, eq=False)
class _Feasible:
    rho: float
    slack: float
    multipliers: dict[int, Tensor]


def _feasible(
    transformed: ScaledIncrements, form: DenseForm, weights: Weights, multipliers: list[Tensor]
) -> _Feasible | None:
    """The best of the lifts that the check accepts; None if there is none."""
    nodes = [cell.node for cell in transformed.cells]
    values: dict[float, float] = {}
    for p in LIFTS:
        try:
            values[p] = float_rho(form, _lifted(nodes, multipliers, p), SLACK, weights)
        except NotProved:
            continue
        if len(values) > 1 and values[p] > 1.05 * min(values.values()):
            break
    for p in sorted(values, key=lambda p: values[p]):
        chosen = _lifted(nodes, multipliers, p)
        for slack in (SLACK, 1e3 * SLACK):
            try:
                rho = form.least_rho(chosen, slack, weights, values[p] * (1.0 + 1e-8))
            except NotProved:
                continue
            return _Feasible(rho, slack, chosen)
    return None


def _lifted(nodes: Sequence[int], multipliers: Sequence[Tensor], p: float) -> dict[int, Tensor]:
    """λ_k (1 + p)^{steps from k to the output}."""
    count = len(nodes)
    return {k: m * (1.0 + p) ** (count - i) for i, (k, m) in enumerate(zip(nodes, multipliers, strict=True))}


def _chain(transformed: ScaledIncrements) -> list[Tensor]:
    """The matrices from the input to the first v, from each z to the next v, and from the last z to the output.

    Raises:
        MethodError: not a chain of activations, or a layer is too wide to factor.
    """
    places = set(transformed.increments.cuts)
    for cell in transformed.cells:
        if not isinstance(cell, EntryCell):
            problem = "is a gain block"
        elif cell.node not in places:
            problem = "lies on a branch"
        elif cell.size > MAX_SIDE:
            problem = f"has {cell.size} neurons, more than {MAX_SIDE}"
        else:
            continue
        raise MethodError(
            "method 'eclipse_fast' needs a chain of activations whose layers can be factored; "
            f"{cell.name} at {cell.where or f'node {cell.node}'} {problem}. "
            "Methods that can: lipsdp, lipsdp_layer, lipsdp_ipm (small networks), liplt, autolip."
        )
    starts = [0, *(cell.node for cell in transformed.cells)]
    stops = [*(cell.parent for cell in transformed.cells), len(transformed.increments.relations) - 1]
    return [_between(transformed, a, b) for a, b in zip(starts, stops, strict=True)]


def _between(transformed: ScaledIncrements, start: int, stop: int) -> Tensor:
    """The matrix of the affine nodes between two nodes, in the network's units."""
    nodes = transformed.increments.relations
    maps = transformed.matrices
    known = {start: torch.eye(size(nodes[start].shape), dtype=torch.float64)}
    for k in range(start + 1, stop + 1):
        total = torch.zeros(size(nodes[k].shape), known[start].shape[1], dtype=torch.float64)
        for linear, parent in zip(maps[k], nodes[k].parents, strict=True):
            image = linear.apply(known[parent].T.reshape(known[parent].shape[1], *linear.in_shape))
            total = total + image.reshape(len(image), linear.out_size).T
        known[k] = total
    return known[stop].detach()


def _from_output(cells: Sequence[Cell], maps: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """λ_j = d_j (d_j + |c_j|) λ_max(M) with M the form that the layers behind put on z.

    With M replaced by m·I the neuron's share of m(cv + dw)² ≤ λ(v² − …) is least at this λ, and leaves m (|c| + d)² v²
    (the product bound); the true M leaves no more.
    """
    result: list[Tensor] = []
    # Forms are kept near 1; multipliers take the factor back.
    form, scale = _near_one(maps[-1].T @ maps[-1])
    for cell, w in zip(reversed(cells), reversed(maps[:-1]), strict=True):
        c, d = cell.c.reshape(-1), cell.d.reshape(-1)
        greatest = max(_greatest(form), LEAST)
        lam = d * (d + c.abs()) * greatest * (1.0 + 1e-9 * (c == 0).double())
        result.append(lam * scale)
        inner = torch.diag(torch.where(d > 0, lam, torch.ones_like(d))) - d[:, None] * form * d
        coupling = (c[:, None] * form) * d
        middle = c[:, None] * form * c + torch.diag(lam) + _quotient(inner, coupling.T)
        form = w.T @ middle @ w
        form, factor = _near_one((form + form.T) / 2)
        scale *= factor
    return result[::-1], _greatest(form) * scale


def _from_input(cells: Sequence[Cell], maps: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """λ_j = d_j / ((|c_j| + d_j) λ_max(Q)) · ρ with Q the inverse of the form the layers before leave on v.

    For slopes in [0, 1] this is the published 2t_k = 1/λ_max. Q after the layer is C(Q⁻¹ − Λ)⁻¹C + DΛ⁻¹D, and ρ is
    λ_max of the last one.
    """
    shares: list[Tensor] = []
    scales: list[float] = []
    covariance, scale = _near_one(maps[0] @ maps[0].T)
    for cell, w in zip(cells, maps[1:], strict=True):
        c, d = cell.c.reshape(-1), cell.d.reshape(-1)
        greatest = max(_greatest(covariance), LEAST)
        share = d / (d + c.abs()).clamp(min=1e-300) / greatest * (1.0 - 1e-9 * (c == 0).double())
        shares.append(share)
        scales.append(scale)
        root = share.sqrt()
        inner = torch.eye(len(share), dtype=torch.float64) - root[:, None] * covariance * root
        grown = covariance + _quotient(inner, root[:, None] * covariance)
        spread = torch.where(
            d > 0, d * (d + c.abs()) * greatest / (1.0 - 1e-9 * (c == 0).double()), torch.zeros_like(d)
        )
        covariance, factor = _near_one(w @ (c[:, None] * grown * c + torch.diag(spread)) @ w.T)
        scale *= factor
    rho = max(_greatest(covariance), LEAST)
    multipliers = [share * (rho * (scale / before)) for share, before in zip(shares, scales, strict=True)]
    return multipliers, rho * scale


def _quotient(inner: Tensor, right: Tensor) -> Tensor:
    """rightᵀ inner⁻¹ right for a positive definite matrix; the pseudo-inverse where it is singular."""
    factor, info = torch.linalg.cholesky_ex(inner)
    if int(info):
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        safe = values.clamp(min=1e-12 * float(values.max().clamp(min=1e-300)))
        half = (vectors.T @ right) / safe.sqrt()[:, None]
    else:
        half = torch.linalg.solve_triangular(factor, right, upper=False)
    return half.T @ half


def _near_one(form: Tensor) -> tuple[Tensor, float]:
    """A symmetric matrix divided by a power of two near its size, and that power."""
    greatest = float(form.abs().max()) if form.numel() else 0.0
    if not 0.0 < greatest < math.inf:
        return form, 1.0
    factor = 2.0 ** math.frexp(greatest)[1]
    return form / factor, factor


def _greatest(form: Tensor) -> float:
    if not bool(torch.isfinite(form).all()):
        raise NotProved("the recursion overflows; rescale the network's weights.")
    return max(float(torch.linalg.eigvalsh((form + form.T) / 2)[-1]), 0.0) if form.numel() else 0.0
