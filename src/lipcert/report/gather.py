"""Run what a report shows: the bound, the other side, every method, the layers, a curve of radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipcert.api.common import Anchor, problem_of, reporter
from lipcert.api.constants import bound as bound_of
from lipcert.api.constants import compare, lower_bound
from lipcert.arguments import budget_of, device_of, generator_of
from lipcert.capture.adapter import Example, Wrt
from lipcert.capture.load import Model, prepared
from lipcert.capture.model import Output
from lipcert.capture.varied import fixed_in, varied_in
from lipcert.certificates.bound import Certificate
from lipcert.domain import Ball, Domain
from lipcert.errors import InputError, LipcertError
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import Report, Run
from lipcert.methods.lipsdp import LipSDP
from lipcert.network.linear import size
from lipcert.network.origin import module_paths
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.ops.registry import supported_ops
from lipcert.ranges.build import Ranges
from lipcert.report.findings import Findings, LayerTable, Part
from lipcert.report.layers import layer_table
from lipcert.result import Bound, Comparison, LowerBound

if TYPE_CHECKING:
    from lipcert.problem import Problem

#: A method's own bound is the headline where it is below this share of what ``auto`` found.
CLEARLY = 0.999
#: Entries of all nodes above which ranges are intervals alone.
WIDE = 20_000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a report is to hold.

    Attributes:
        budget: seconds for the bound, for each method, for each radius, and for the layers.
        lower_budget: seconds for the lower bound.
        methods: run every method; else only what ``method="auto"`` tries is shown.
        centre, radii, p: balls of which the curve is; no radii, no curve.
        seed: of the searches.
        progress: show progress bars.
        wrt, output: which inputs vary and which output is meant, as for ``lipcert.bound``.
    """

    budget: float = 20.0
    lower_budget: float = 10.0
    methods: bool = True
    centre: Tensor | None = None
    radii: Sequence[float] = ()
    p: float = math.inf
    seed: int = 0
    progress: bool = False
    wrt: Wrt = None
    output: Output = None


def gather(
    model: Model, example_input: Example, wanted: Wanted, norm: tuple[float, float] = (2, 2), domain: Domain = None,
    anchor: Anchor = None, bound: Bound | None = None, lower: LowerBound | None = None,
    comparison: Comparison | None = None,
) -> Findings:  # fmt: skip
    """Everything that ``wanted`` asks for, of one model; what is given already is not run again.

    Args:
        model, example_input, norm, domain, anchor: as for ``lipcert.bound``.
        wanted: what to run.
        bound, lower, comparison: of this model, norms and domain.

    Raises:
        LipcertError: as ``lipcert.bound``; what fails beside it becomes a remark of the report.
    """
    common: dict[str, Any] = {
        "norm": norm, "domain": domain, "anchor": anchor, "seed": wanted.seed, "progress": wanted.progress,
        "select": None if bound is None else bound.select,
    }  # fmt: skip
    model, example_input = prepared(model, example_input, wanted.wrt, wanted.output)
    remarks: list[str] = []
    given = bound is not None
    if bound is None:
        bound = bound_of(model, example_input, budget=wanted.budget, **common)
    if comparison is None and wanted.methods:
        comparison = compare(model, example_input, budget=wanted.budget, lower_budget=wanted.lower_budget, **common)
    if lower is None and comparison is not None:
        lower = comparison.lower
    if lower is None:
        try:
            lower = lower_bound(model, example_input, budget=wanted.lower_budget, **common)
        except LipcertError as reason:
            remarks.append(f"No lower bound: {reason}")
    best = None if comparison is None or given else next((row for row in comparison.rows if row.value), None)
    if best is not None and best.value is not None and best.value < CLEARLY * bound.value:
        again = bound_of(model, example_input, method=best.method, budget=wanted.budget, **common)
        bound = _better(bound, again)  # one method had more time than ``auto`` gave it
    findings = Findings(
        bound, lower=lower, comparison=comparison, varied=varied_in(model), fixed=fixed_in(model),
        output="" if wanted.output is None else str(wanted.output),
    )  # fmt: skip
    problem = problem_of(model, example_input, norm, domain, bound.select, anchor)
    if isinstance(bound.certificate, Certificate) and bound.certificate.fingerprint != problem.model.fingerprint:
        raise InputError(
            f"the bound is of network {bound.certificate.fingerprint[:12]}…, the model given is "
            f"{problem.model.fingerprint[:12]}…: give the model that the bound is of, as it was."
        )
    with ordinary(), reporter(wanted.progress, "layers") as report, torch.random.fork_rng(devices=[]):
        findings = _explained(findings, problem, wanted, remarks, given, report)
    curve: list[tuple[float, Bound]] = []
    if wanted.radii and wanted.centre is not None:
        balls = [Ball(wanted.centre, radius, wanted.p) for radius in wanted.radii]
        bounds = bound_of(
            model, example_input, norm=norm, domain=balls, budget=wanted.budget, seed=wanted.seed,
            progress=wanted.progress, select=bound.select,
        )  # fmt: skip
        curve = list(zip(wanted.radii, bounds, strict=True))
    return replace(findings, curve=curve, remarks=tuple(remarks))


def _explained(
    findings: Findings, problem: Problem, wanted: Wanted, remarks: list[str], given: bool, report: Report
) -> Findings:
    """With the layers and the graph."""
    table = None
    if problem.norm[0] != problem.norm[1]:
        remarks.append("No table of layers: a product of layer constants needs equal norms on both sides.")
    else:
        try:
            sdp = _with_multipliers(findings.bound, problem, _run(wanted, report))
            if sdp is not None and not given:
                findings = replace(findings, bound=_better(findings.bound, sdp))
            table = layer_table(problem, findings.lower, sdp, _run(wanted, report))
        except LipcertError as reason:
            remarks.append(f"No table of layers: {reason}")
    constants = {} if table is None else {layer.position: layer.constant for layer in table.layers}
    return replace(findings, table=table, nodes=_parts(problem, constants))


def layers(
    model: Model, example_input: Example, norm: tuple[float, float] = (2, 2), domain: Domain = None,
    lower: LowerBound | None = None, budget: float = 20.0, seed: int = 0, wrt: Wrt = None, output: Output = None,
) -> LayerTable:  # fmt: skip
    """Where the looseness of a bound comes from, layer by layer: the table of a report, to print or to plot.

    Args:
        model, example_input, domain, seed, wrt, output: as for ``lipcert.bound``.
        norm: (p, p).
        lower: what shares are measured against; None: found here.
        budget: seconds for the layers' norms, for LipSDP's multipliers, and for the lower bound.

    Raises:
        LipcertError: as ``lipcert.bound``; norms that differ, which no product of layer constants has.
    """
    model, example_input = prepared(model, example_input, wrt, output)
    problem, wanted = problem_of(model, example_input, norm, domain, None), Wanted(budget=budget, seed=seed)
    if lower is None:
        lower = lower_bound(model, example_input, norm, domain, budget=budget, seed=seed)
    AutoLip().require_norm(problem.norm)
    with ordinary(), torch.random.fork_rng(devices=[]):
        return layer_table(problem, lower, _with_multipliers(None, problem, _run(wanted)), _run(wanted))


def _run(wanted: Wanted, report: Report = lambda fraction, text: None) -> Run:
    """Circumstances that start now."""
    return Run(generator_of(wanted.seed), device_of(None), budget_of(wanted.budget), report)


def _better(bound: Bound, other: Bound) -> Bound:
    """The smaller one; it was chosen among both, so its probability of error is that of both."""
    best, delta = min(bound, other, key=lambda one: one.value), bound.delta + other.delta
    return best if best.guarantee == "rigorous" or best is bound is other else replace(best, delta=delta)


def _with_multipliers(bound: Bound | None, problem: Problem, run: Run) -> Bound | None:
    """A Bound of LipSDP: the one that is shown, or one for the table alone."""
    if bound is not None and bound.certificate is not None and bound.certificate.kind == "quadratic":
        return bound
    if problem.norm != (2.0, 2.0):
        return None
    try:
        return LipSDP().own_bound(problem, run, Chance())
    except LipcertError:
        return None


def _parts(problem: Problem, constants: dict[int, float]) -> tuple[Part, ...]:
    """The graph's nodes with what their values lie in."""
    network = problem.network
    rules = {info.name.split(".")[0]: info.summary for info in supported_ops()}
    wide = sum(size(node.shape) for node in network.nodes) > WIDE
    try:
        boxes = Ranges.of(network, problem.domain, tighten="none" if wide or problem.domain is None else "all").boxes
        ends = [(float(b.low.min()), float(b.high.max())) if b.low.numel() else (0.0, 0.0) for b in boxes]
    except LipcertError:
        ends = [(-math.inf, math.inf)] * len(network.nodes)
    parts = []
    for position, node in enumerate(network.nodes):
        module = module_paths(node.origin)
        names = [name for name in node.name.split("+") if rules.get(name)]
        line = next((origin.line for origin in node.origin if origin.line), "")
        kind = type(node).__name__.removesuffix("Node").lower()
        parts.append(Part(
            f"{module}: {node.name}" if module else node.name, kind, line, node.shape, node.parents,
            "; ".join(f"{name}: {rules[name]}" for name in dict.fromkeys(names)), constants.get(position),
            *ends[position],
        ))  # fmt: skip
    return tuple(parts)
