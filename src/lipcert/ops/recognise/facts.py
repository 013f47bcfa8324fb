"""What patterns need to know of an activation or a block: its kind and its settings."""

from __future__ import annotations

from lipcert.network.activations.clamp import Clamp
from lipcert.network.activations.piecewise import Abs, HardSigmoid
from lipcert.network.activations.smooth import Erf, Erfc, Sigmoid, Softplus, Tanh
from lipcert.network.graph import ActivationNode, GainNode, Node
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops.radial import VectorNorm

#: Activations without settings.
_PLAIN: dict[type[Nonlinearity], str] = {
    Sigmoid: "sigmoid",
    Tanh: "tanh",
    Erf: "erf",
    Erfc: "erfc",
    Abs: "abs",
    HardSigmoid: "hardsigmoid",
}


def kind(function: Nonlinearity) -> str:
    """Name of a plain activation (``softplus`` only with β = 1), ``clamp`` for one with number ends, else ``""``."""
    if isinstance(function, Softplus):
        return "softplus" if function.beta == 1.0 else ""
    if isinstance(function, Clamp):
        between = ends(function)
        return "" if between is None else "relu" if between == (0.0, None) else "clamp"
    return _PLAIN.get(type(function), "")


def ends(function: Nonlinearity) -> tuple[float | None, float | None] | None:
    """(low, high) of min(max(x, low), high), None for an open end; None for any other activation, or a constant.

    ReLU is the clamp (0, None). The ends are stored numbers, exact, with low < high.
    """
    if not isinstance(function, Clamp) or function.constant:
        return None
    return function.low, function.high


def floor(node: Node) -> float | None:
    """ε if the node is max(v, ε) with one stored number ε > 0."""
    found = ends(node.function) if isinstance(node, ActivationNode) else None
    if found is None or found[0] is None or found[1] is not None or not found[0] > 0.0:
        return None
    return found[0]


def vector_norm(node: Node) -> VectorNorm | None:
    """The block if the node is a vector norm over axes."""
    return node.function if isinstance(node, GainNode) and isinstance(node.function, VectorNorm) else None
