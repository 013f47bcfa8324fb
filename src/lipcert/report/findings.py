"""What a report shows: numbers that were found elsewhere, none of them worked out anew by the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lipcert.digits import at_most
from lipcert.markup import table, tag
from lipcert.result import Bound, Comparison, LowerBound
from lipcert.robustness.certification import Certification


@dataclass(frozen=True)
class Layer:
    """One step of the product of layer constants, and what becomes of it.

    Attributes:
        position: of its node in ``Findings.nodes``.
        label: module path and operations.
        kind: ``linear``, ``activation``, ``gain`` or ``selection``.
        constant: the step's own factor in the product.
        stretch: by how much the step stretches the increment that the lower bound's witness sends through it; None
            inside a branch, where there is no such number, and without a witness.
        share: its part of log(product / lower bound); None as above. What a branch loses is told where it ends.
        multipliers: least, median and greatest multiplier of LipSDP; None where there is none.
        slack: its part of LipSDP's ρ − (lower bound)², the squares of bound and lower bound; None where not known.
        spectrum: leading singular values of a linear map, estimates; empty where it has none or several.
        complete: whether these are all of them.
    """

    position: int
    label: str
    kind: str
    constant: float
    stretch: float | None = None
    share: float | None = None
    multipliers: tuple[float, float, float] | None = None
    slack: float | None = None
    spectrum: tuple[float, ...] = ()
    complete: bool = False


@dataclass(frozen=True)
class Part:
    """A node of the graph: its place, its rule, and what its value lies in.

    Attributes:
        label: module path and operations.
        kind: of the node.
        line: file, line and function in the user's code, empty if unknown.
        shape: of one example's value.
        parents: positions of what it reads.
        rule: of the op registry: what the op is and where its constants come from.
        constant: its own factor in the product; None for the input.
        low, high: least and greatest entry of its value on the domain, proved; infinite where nothing is known.
    """

    label: str
    kind: str
    line: str
    shape: tuple[int, ...]
    parents: tuple[int, ...]
    rule: str = ""
    constant: float | None = None
    low: float = float("-inf")
    high: float = float("inf")


@dataclass(frozen=True)
class LayerTable:
    """Where the looseness comes from.

    Attributes:
        layers: in topological order.
        product: the product of layer constants (AutoLip).
        lower: what shares are measured against; None without a witness.
        sdp: LipSDP's bound, of which ``multipliers`` and ``slack`` are; None where there is none.
        form: part of ρ − (lower bound)² that no layer loses: the witness is not the form's worst direction.
    """

    layers: tuple[Layer, ...]
    product: float
    lower: float | None = None
    sdp: float | None = None
    form: float | None = None

    def _repr_html_(self) -> str:
        head = ("layer", "kind", "factor", "stretch", "lost, %")
        rows = [
            (v.label, v.kind, at_most(v.constant, 6), "" if v.stretch is None else f"{v.stretch:.6g}",
             "" if v.share is None else f"{100 * v.share:.1f}")
            for v in self.layers
        ]  # fmt: skip
        return tag("div", table(tag("b", f"product of layer constants {at_most(self.product)}"), head, rows))


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a report is made of; what is None or empty was not run, and its section is left out.

    Attributes:
        bound: the headline.
        model: how the command line names the model.
        lower: the other side.
        comparison: every method.
        table: layer by layer.
        nodes: the graph.
        curve: (radius, Bound) of balls around one point.
        certification: of a data set.
        certificate: path of the saved certificate.
        input_shape: one example's, where the command line needs it.
        options: of the command line beside that, which say what of the model is bounded.
        varied: the inputs that vary, in the order in which they are joined, and the shapes of one example.
        fixed: names of the inputs that have fixed values.
        output: which one is meant, where there are several.
        remarks: what could not be shown, and why.
    """

    bound: Bound
    model: str = ""
    lower: LowerBound | None = None
    comparison: Comparison | None = None
    table: LayerTable | None = None
    nodes: Sequence[Part] = ()
    curve: Sequence[tuple[float, Bound]] = ()
    certification: Certification | None = None
    certificate: str = ""
    input_shape: str = ""
    options: tuple[str, ...] = ()
    varied: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: Sequence[str] = ()
    output: str = ""
    remarks: tuple[str, ...] = field(default=())
