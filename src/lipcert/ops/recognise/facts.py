"""What patterns need to know of an activation or a block: the one place that looks at names and settings."""

from __future__ import annotations

from lipcert.network.graph import ActivationNode, GainNode, Node
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops import nonlinearities as known
from lipcert.ops.radial import VectorNorm

#: Activations without settings, recognised by the name that only they bear.
_PLAIN = frozenset(("sigmoid", "tanh", "erf", "erfc", "abs", "relu", "hardsigmoid"))


def kind(function: Nonlinearity) -> str:
    """Name of a plain activation (``softplus`` only with β = 1), ``clamp`` for one with number ends, else ``""``."""
    if function.parameters:
        return ""
    if function.name == "softplus":
        return "softplus" if function.attributes == known.SOFTPLUS.attributes else ""
    if function.name in _PLAIN:
        return function.name
    return "clamp" if known.clamp_ends(function) else ""


def ends(function: Nonlinearity) -> tuple[float | None, float | None] | None:
    """(low, high) of min(max(x, low), high), None for an open end; None for any other activation.

    ReLU is the clamp (0, None). The ends are stored numbers, exact, with low < high.
    """
    return known.clamp_ends(function)


def floor(node: Node) -> float | None:
    """ε if the node is max(v, ε) with one stored number ε > 0."""
    found = ends(node.function) if isinstance(node, ActivationNode) else None
    if found is None or found[0] is None or found[1] is not None or not found[0] > 0.0:
        return None
    return found[0]


def vector_norm(node: Node) -> VectorNorm | None:
    """The block if the node is a vector norm over axes."""
    return node.function if isinstance(node, GainNode) and isinstance(node.function, VectorNorm) else None
