"""Bounds of a model's Lipschitz constant from above and below, and what there is to choose from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

import lipcert.methods.all  # noqa: F401  (registers every method)
from lipcert.api.common import Anchor, network_of, problem_of, problems_of, reporter, require_data
from lipcert.arguments import budget_of, device_of, generator_of, seed_of
from lipcert.capture.adapter import Example, Wrt
from lipcert.capture.load import Model
from lipcert.capture.model import Output
from lipcert.certificates import kinds  # noqa: F401  (registers every check)
from lipcert.certificates.verify_file import verify_file
from lipcert.domain import Domain
from lipcert.errors import InputError, NumericsError, named
from lipcert.methods import estimates
from lipcert.methods.auto import Trials
from lipcert.methods.base import Method, MethodInfo, Run, describe, make, registered
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.ops.registry import OpInfo
from lipcert.ops.registry import supported_ops as registered_ops
from lipcert.result import Attempt, Bound, Comparison, Estimate, LowerBound, OutputBound


@overload
def bound(
    model: Model,
    example_input: Example,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> Bound: ...


@overload
def bound(
    model: Model,
    example_input: Example,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    *,
    domain: Sequence[Domain],
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> list[Bound]: ...


def bound(
    model: Model,
    example_input: Example,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    domain: Domain | Sequence[Domain] = None,
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> Bound | list[Bound]:
    """A certified upper bound of the Lipschitz constant of ``model``.

    Args:
        model: an ``nn.Module`` in eval mode, a function of tensors, an ExportedProgram, or the path of a ``.pt2`` or
            ``.onnx`` file. Never changed.
        example_input: floating tensor or array with a leading batch dimension of any size; only its shape matters. For
            a model of several inputs the arguments of one call, each with a batch dimension of 1: a tuple of positional
            ones, a dict of keyword ones, or a dict that ``forward`` takes as it is.
        method: a name from ``lipcert.methods()`` or a method object such as ``lipcert.AutoLip()``.
        norm: (p, q), input norm first, each 1, 2 or inf.
        domain: None (everywhere), a ``Ball``, a ``Box`` or an ``Intersection`` of both; or a list of such, of which
            each gets a Bound of its own and the model is captured once.
        select: optional (k, m) matrix applied to the flattened output, e.g. a row e_y − e_c for a margin.
        seed: seed of searches. The random starts of probabilistic checks come from the operating system's entropy.
        device: where searches may run; checks run on the CPU in float64.
        progress: show a progress bar for anything that takes over 2 s.
        budget: seconds of search, for each domain. ``auto`` counts the checks in and returns in about this time, with
            whatever bound is the best by then (on a small domain of a transformer in up to ten times as much, where
            nothing else says anything); a method asked for by name may need more, its check comes on top.
        guarantee: ``rigorous`` returns only bounds whose check accounts for its own rounding and needs no random start;
            ``any`` returns the smallest bound, of whatever kind, and says which.
        anchor: None, a point x̂ of the domain (one example's shape), or ``center`` for that of each ball: what is
            bounded is then ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain alone, all that a certified radius around x̂
            needs, and smaller than the constant for all pairs.
        wrt: the inputs in which the model is bounded; the others are fixed at the values given. A name or a list of
            names: of a parameter of ``forward`` (``"y"``), of an entry of an argument (``"pos"`` or ``"obs.pos"``), or
            the path of a submodule (``"encoder.embed"``), whose output is then the input: so a model of token ids is
            bounded in their embedding. None: all floating-point tensors but those without dimensions. Several inputs
            are one vector, flattened and joined in the order named, in which norms, domains and witnesses are.
        output: name or number of the output that is meant (``"logits"``, 0), where the model returns several.

    Returns:
        A ``Bound``; ``print`` it, read ``.value``, or ``.save`` its certificate. For a list of domains a list of Bounds
        in the same order, each true with the probability that it states.

    Raises:
        CaptureError: the model cannot be captured faithfully (subclasses name unsupported and non-Lipschitz ops).
        InputError: an unusable argument; UnsupportedNormError: the method cannot do this pair of norms.
    """
    started = time.perf_counter()
    chosen = make(method)
    several = isinstance(domain, (list, tuple))
    domains: list[Any] = list(domain) if isinstance(domain, (list, tuple)) else [domain]
    problems = problems_of(model, example_input, norm, domains, select, several, anchor, wrt, output)
    found: list[Bound] = []
    while problems:
        problem = problems.pop(0)  # what it works out for itself goes with it
        chosen.require_norm(problem.norm)
        with ordinary(), reporter(progress, _title(chosen.name, len(found), len(domains))) as report:
            run = Run(generator_of(seed), device_of(device), budget_of(budget), report, rigorous=_rigorous(guarantee))
            with torch.random.fork_rng(devices=[]):
                one = chosen.bound(problem, run, Chance())
        found.append(replace(one, seconds=time.perf_counter() - started))
        started = time.perf_counter()
    return found if several else found[0]


def compare(
    model: Model,
    example_input: Example,
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    select: Tensor | None = None,
    methods: Sequence[str | Method] | None = None,
    budget: float = 60.0,
    lower_budget: float = 10.0,
    inputs: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> Comparison:
    """Every applicable method side by side, with the attack's lower bound.

    Args:
        model, example_input, norm, domain, select, seed, device, progress, anchor, wrt, output: as for ``bound``.
        methods: names or method objects; None takes every registered one that can do the norms.
        budget: seconds for each method.
        lower_budget: seconds for the lower bound.
        inputs: data for the lower bound's starts.

    Returns:
        A ``Comparison``: rows (method, value, guarantee, seconds, remark), the lower bound, and ``print``-able text.
    """
    problem = problem_of(model, example_input, norm, domain, select, anchor, wrt, output)
    require_data(inputs, problem)
    if methods is None:
        chosen = [kind() for name, kind in registered().items() if name != "auto" and problem.norm in kind.norms]
    else:
        chosen = [make(one) for one in methods]
        for one in chosen:
            one.require_norm(problem.norm)
    from lipcert.attack import attack

    rows: list[Attempt] = []
    chance = Chance()  # one for all rows: whoever quotes the best of them may
    with ordinary(), reporter(progress, "compare") as report, torch.random.fork_rng(devices=[]):
        for one in chosen:
            run = Run(generator_of(seed), device_of(device), budget_of(budget), report)
            trials = Trials(problem, run, chance)
            trials.attempt(one, run.budget)
            rows += trials.attempts
        found = attack(problem, inputs, budget_of(lower_budget), seed_of(seed), device_of(device), report)
    lower = replace(found, input_shape=problem.model.in_shape[1:])
    return Comparison(tuple(sorted(rows, key=lambda r: math.inf if r.value is None else r.value)), lower)


def lower_bound(
    model: Model,
    example_input: Example,
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    inputs: Tensor | None = None,
    budget: float = 20.0,
    seed: int = 0,
    select: Tensor | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> LowerBound:
    """A lower bound of the Lipschitz constant with a witness: a point and a direction of steepest change.

    With an anchor x̂ it is one of sup ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain, and the witness a pair (x̂, x).

    Args:
        model, example_input, norm, domain, select, device, progress, anchor, wrt, output: as for ``bound``; the
            witness lies in ``domain``.
        inputs: (B, *shape) data to start from; random points are used as well.
        budget: seconds of search.
        seed: seed of the search.

    Returns:
        A ``LowerBound`` whose value re-evaluates from its witness in float64.
    """
    problem = problem_of(model, example_input, norm, domain, select, anchor, wrt, output)
    seed = seed_of(seed)
    require_data(inputs, problem)
    from lipcert.attack import attack

    with ordinary(), reporter(progress, "attack") as report, torch.random.fork_rng(devices=[]):
        found = attack(problem, inputs, budget_of(budget), seed, device_of(device), report)
    return replace(found, input_shape=problem.model.in_shape[1:])


def estimate(
    model: Model,
    example_input: Example,
    method: str = "seqlip_greedy",
    norm: tuple[float, float] = (2, 2),
    select: Tensor | None = None,
    k: int | None = None,
    steps: int = 100,
    seed: int = 0,
    pools: Literal["factor", "through"] = "factor",
    device: str | torch.device | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> Estimate:
    """A number of the 2018 paper that is neither an upper nor a lower bound; kept for comparison.

    Args:
        model, example_input, norm, select, wrt, output: as for ``bound``; the norms must be (2, 2).
        method: ``seqlip_greedy``, ``seqlip_lbfgs``, ``seqlip_rank_k`` or ``power_iteration`` (AutoLip as in 2018).
        k: singular triplets per layer for ``seqlip_rank_k``.
        steps: power iterations per layer.
        seed: seed of the random starts.
        pools: ``through`` puts max-pools and sorts inside the pairs (greedy and rank k); ``factor`` ends chains there.
        device: where powers are iterated; the CPU unless told.
    """
    problem, place = problem_of(model, example_input, norm, None, select, None, wrt, output), device_of(device)
    with named(NumericsError, "the estimate"), ordinary(), torch.random.fork_rng(devices=[]):
        return estimates.estimate(problem, method, k, steps, generator_of(seed), pools, place)


def verify(
    path: str | Path, model: Model, example_input: Example, wrt: Wrt = None, output: Output = None
) -> Bound | OutputBound:
    """Re-check a saved certificate: recapture the model, compare its hash, run the check alone.

    Args:
        path: what ``.save`` wrote.
        model, example_input, wrt, output: as for ``bound``; inputs that were fixed have the same values.

    Raises:
        CertificateError: missing, damaged, tampered with, of another model, or it does not prove its claim.
        InputError: ``path`` is no path.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(
            f"verify takes the path of a certificate, not {type(path).__name__}; a bound writes one with .save(path)."
        )
    return verify_file(path, network_of(model, example_input, wrt, output))


def methods() -> tuple[MethodInfo, ...]:
    """Every method with its norms and options."""
    return describe()


def supported_ops() -> tuple[OpInfo, ...]:
    """Every op with a rule, its family, kind and constants."""
    return registered_ops()


def _title(method: str, number: int, count: int) -> str:
    return method if count == 1 else f"{method}, domain {number + 1} of {count}"


def _rigorous(guarantee: str) -> bool:
    if guarantee not in ("any", "rigorous"):
        raise InputError(f"guarantee must be 'any' or 'rigorous', not {guarantee!r}.")
    return guarantee == "rigorous"
