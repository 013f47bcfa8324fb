"""The kinds of number: Bound (L ≤ value), OutputBound, LowerBound (L ≥ value), Estimate. Nothing converts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lipcert.digits import at_least, at_most
from lipcert.markup import Shown, table, tag

if TYPE_CHECKING:
    from lipcert.domain import Domain
    from lipcert.guarantee import BreakdownRow, Guarantee
    from lipcert.problem import Norm


def _input(shape: tuple[int, ...]) -> str:
    """The shape of one example for a report: a batch dimension that was forgotten shows here."""
    return f"; input {'×'.join(map(str, shape))}" if shape else ""


def place(domain: Domain) -> str:
    """Where a claim holds, for a report."""
    return "everywhere" if domain is None else f"on the {domain.describe()}"


def _between(domain: Domain) -> str:
    return f"between an anchor and points {place(domain)}"


class Saveable(Protocol):
    """What a Bound carries as its certificate."""

    @property
    def kind(self) -> str:
        """The kind of certificate."""

    @property
    def witness(self) -> Any:
        """What the method found: data."""

    def save(self, path: str | Path) -> None:
        """Write the certificate file."""


@dataclass(frozen=True)
class Attempt:
    """What one method gave: the rows of ``Bound.tried`` and of ``lipcert.compare``.

    ``value`` is None when the method gave no bound; ``remark`` then says why.
    """

    method: str
    value: float | None
    guarantee: Guarantee | None
    seconds: float
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Bound:
    """L ≤ ``value``, made by a certificate check only.

    Attributes:
        value: upper bound on the Lipschitz constant, in output units per input unit; may be ``inf`` only on overflow.
        guarantee: ``rigorous`` (rounding of the check included), ``probabilistic`` (true with probability
            ≥ 1 − ``delta`` over the check's own random starts, rounding not included) or ``numerical`` (true in exact
            arithmetic at the computed witness, checked in float64).
        method: name of the method that found the witness.
        norm: (p, q), input norm first.
        domain: where the bound holds (None: everywhere), in the shape of a batch of one example.
        seconds: wall time of search and check.
        certificate: what ``save`` writes and ``lipcert.verify`` re-checks.
        breakdown: rows that explain the value.
        log10: decimal logarithm of the value, for values that overflow or underflow a float.
        tried: what ``method="auto"`` tried, this bound's method included.
        delta: probability of error, at most 1e-9: the sum over all random starts behind this number, those of failed
            attempts and of the other methods that were tried included; 0 for a rigorous bound.
        select: the (k, m) matrix of the selection of outputs that the bound is about; None: all outputs.
        anchor: None, or the point x̂ for which ‖f(x) − f(x̂)‖_q ≤ value · ‖x − x̂‖_p is claimed, for x of the domain;
            pairs without x̂ are then not covered.
        state: where the search ended, for a later one to start from; not saved.
        input_shape: shape of one example, as it was understood.
        via: the norms between which the method bounded the constant, where ``value`` is that bound times what passing
            from them to ``norm`` costs; None where it bounded it in ``norm``.
    """

    value: float
    guarantee: Guarantee
    method: str
    norm: Norm
    domain: Domain = None
    seconds: float = 0.0
    certificate: Saveable | None = None
    breakdown: tuple[BreakdownRow, ...] = ()
    log10: float | None = None
    tried: tuple[Attempt, ...] = ()
    delta: float = 0.0
    select: Tensor | None = field(default=None, repr=False)
    anchor: Tensor | None = field(default=None, repr=False)
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    input_shape: tuple[int, ...] = ()
    via: Norm | None = None

    def save(self, path: str | Path) -> None:
        """Write the certificate to ``path`` (atomically); raises CertificateError if it cannot be written."""
        if self.certificate is None:
            from lipcert.errors import CertificateError

            raise CertificateError("this Bound carries no certificate to save.")
        self.certificate.save(path)

    def __str__(self) -> str:
        where = place(self.domain)
        if self.anchor is not None:
            where = _between(self.domain)
        of = "" if self.select is None else f" of {self.select.shape[0]} selected combinations of outputs"
        sure = f"{self.guarantee} with δ = {at_most(self.delta, 2)}" if self.delta else self.guarantee
        via = "" if self.via is None else f" by l{self.via[0]:g} → l{self.via[1]:g}"
        return (
            f"Lipschitz constant{of} ≤ {at_most(self.value)}  (l{self.norm[0]:g} → l{self.norm[1]:g}{via}, {where}; "
            f"{sure}, {self.method}, {self.seconds:.2f} s{_input(self.input_shape)})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (r.label, r.kind, at_most(r.constant, 6), at_most(r.cumulative, 6), r.guarantee, r.remark)
            for r in self.breakdown
        ]
        head = ("step", "kind", "constant", "so far", "guarantee", "")
        return tag("div", table(tag("b", str(self)), head, rows))

    def report(self, path: str | Path, model: Any = None, example_input: Any = None, **more: Any) -> None:
        """Write one HTML file that explains this bound and loads nothing from elsewhere; whole or not at all.

        Args:
            path: of the file.
            model, example_input: what the bound is of, for the lower bound, the layers and the graph; without them the
                page has the bound, what was tried, the proof's steps and the certificate.
            more: ``lower=`` and ``comparison=`` that were run already, ``certification=`` of a data set,
                ``certificate=``, the path that this bound was saved to, ``model_name=`` for the command that verifies
                it; with the model ``wrt=`` and ``output=`` of the bound, ``budget=`` and ``lower_budget=`` in seconds,
                ``methods=True`` to run every method, ``radii=`` with ``centre=`` and ``p=`` for a curve of bounds on
                balls, ``seed=``, ``progress=``.

        Raises:
            InputError: the file cannot be written there, or what else is given does not go together.
        """
        # by name: what writes pages stands above all that a check imports, and no check may import it
        import_module("lipcert.report").report_of(self, path, model, example_input, **more)


@dataclass(frozen=True, eq=False)
class OutputBound(Shown):
    """``lower`` ≤ select·f(x) ≤ ``upper`` for every x of a domain, entry by entry; made by a certificate check only.

    Attributes:
        lower, upper: (k,) float64, in output units; infinite where nothing was asked for or is known.
        guarantee: as of a ``Bound``.
        method: name of what found the witness.
        domain: where it holds, in the shape of a batch of one example.
        seconds: wall time of search and check.
        certificate: what ``save`` writes and ``lipcert.verify`` re-checks.
        select: the (k, m) matrix of the combinations of outputs; None: the outputs themselves, flattened.
        delta: probability of error; 0 for a rigorous bound.
        input_shape: shape of one example, as it was understood.
    """

    lower: Tensor
    upper: Tensor
    guarantee: Guarantee
    method: str
    domain: Domain
    seconds: float = 0.0
    certificate: Saveable | None = None
    select: Tensor | None = field(default=None, repr=False)
    delta: float = 0.0
    input_shape: tuple[int, ...] = ()

    def _repr_html_(self) -> str:
        ends = zip(self.lower[:40].tolist(), self.upper[:40].tolist(), strict=True)
        rows = [(k, at_least(low), at_most(high)) for k, (low, high) in enumerate(ends)]
        return tag("div", table(tag("b", str(self)), ("no.", "at least", "at most"), rows))

    @property
    def value(self) -> float:
        """The least of the lower bounds: for a margin, positive where no class can overtake the label's."""
        return float(self.lower.min()) if self.lower.numel() else 0.0

    def save(self, path: str | Path) -> None:
        """Write the certificate to ``path`` (atomically); raises CertificateError if it cannot be written."""
        if self.certificate is None:
            from lipcert.errors import CertificateError

            raise CertificateError("this OutputBound carries no certificate to save.")
        self.certificate.save(path)

    def __str__(self) -> str:
        what = "outputs" if self.select is None else "selected combinations of outputs"
        sure = f"{self.guarantee} with δ = {at_most(self.delta, 2)}" if self.delta else self.guarantee
        shown = [_interval(*ends) for ends in zip(self.lower[:8].tolist(), self.upper[:8].tolist(), strict=True)]
        more = ", …" if len(self.lower) > 8 else ""
        return (
            f"{len(self.lower)} {what}: {', '.join(shown)}{more}  ({place(self.domain)}; "
            f"{sure}, {self.method}, {self.seconds:.2f} s{_input(self.input_shape)})"
        )


def _interval(low: float, high: float) -> str:
    """What is known of a number: both ends, one, or nothing."""
    if low == -math.inf:
        return "no bound" if high == math.inf else f"≤ {at_most(high, 6)}"
    least = at_least(low, 6)
    return f"≥ {least}" if high == math.inf else f"[{least}, {at_most(high, 6)}]"


@dataclass(frozen=True, eq=False)
class LowerWitness:
    """Why L ≥ value: ‖J(point) direction‖_q = value · ‖direction‖_p, the network being differentiable at ``point``.

    Shapes are those of one example (no batch dimension), float64.
    """

    point: Tensor
    direction: Tensor


@dataclass(frozen=True, eq=False)
class PairWitness:
    """Why an anchored constant is ≥ value: ‖f(point) − f(anchor)‖_q = value · ‖point − anchor‖_p, point in the domain.

    Shapes are those of one example (no batch dimension), float64. Where both points are the same, nothing is claimed:
    the value is 0.
    """

    anchor: Tensor
    point: Tensor


@dataclass(frozen=True, eq=False)
class LowerBound(Shown):
    """L ≥ ``value``, with a ``witness`` that anyone can evaluate.

    Attributes:
        value: lower bound, in output units per input unit.
        witness: a point and a direction; with an anchor a pair of points.
        norm: (p, q), input norm first.
        domain: what the witness lies in.
        seconds: of the search.
        history: (seconds, value) of the search.
        input_shape: shape of one example.
        anchor: None, or the point x̂ for which sup ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p ≥ value is claimed, x in the domain.
    """

    value: float
    witness: LowerWitness | PairWitness
    norm: Norm
    domain: Domain = None
    seconds: float = 0.0
    history: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    input_shape: tuple[int, ...] = ()
    anchor: Tensor | None = field(default=None, repr=False)

    def __str__(self) -> str:
        where = "" if self.domain is None else f", {place(self.domain)}"
        how = "derivative at a point"
        if self.anchor is not None:
            where, how = f", {_between(self.domain)}", "a pair of points"
        return (
            f"Lipschitz constant ≥ {at_least(self.value)}  (l{self.norm[0]:g} → l{self.norm[1]:g}{where}; "
            f"{how}, {self.seconds:.2f} s{_input(self.input_shape)})"
        )


@dataclass(frozen=True, eq=False)
class Estimate(Shown):
    """A number that is neither an upper nor a lower bound; kept for comparison and labelled so."""

    value: float
    method: str
    norm: Norm
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"Lipschitz constant ≈ {self.value:.7g}  (estimate, not a bound; {self.method}, {self.seconds:.2f} s)"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``lipcert.compare`` found: one row per method, best first, and the lower bound they are measured against."""

    rows: tuple[Attempt, ...]
    lower: LowerBound

    def ratio(self, row: Attempt) -> float | None:
        """value / lower bound; None where there is no value or the lower bound is 0."""
        if row.value is None or not self.lower.value > 0:
            return None
        return row.value / self.lower.value

    def _repr_html_(self) -> str:
        rows = []
        for row in self.rows:
            ratio, value = self.ratio(row), "" if row.value is None else at_most(row.value)
            times = "" if ratio is None else f"{ratio:.4g}"
            rows.append((row.method, value, times, f"{row.seconds:.2f}", row.guarantee or "", row.remark))
        head = ("method", "bound", "/ lower", "seconds", "guarantee", "remark")
        return tag("div", table(tag("b", str(self.lower)), head, rows))

    def __str__(self) -> str:
        lines = [f"{'method':<18}{'bound':>14}{'/ lower':>10}{'seconds':>9}  guarantee"]
        for row in self.rows:
            ratio = self.ratio(row)
            value = "-" if row.value is None else at_most(row.value)
            times = "-" if ratio is None else f"{ratio:.4g}"
            lines.append(f"{row.method:<18}{value:>14}{times:>10}{row.seconds:>9.2f}  {row.guarantee or row.remark}")
        lines.append(f"{'lower bound':<18}{at_least(self.lower.value):>14}{1:>10}{self.lower.seconds:>9.2f}  witness")
        if self.lower.anchor is not None:
            lines.append(_between(self.lower.domain))
        elif self.lower.domain is not None:
            lines.append(place(self.lower.domain))
        if self.lower.input_shape:
            lines.append(f"input {'×'.join(map(str, self.lower.input_shape))}")
        return "\n".join(lines)
