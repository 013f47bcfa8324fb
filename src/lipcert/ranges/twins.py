"""Pairs of activations of one value: [relu(x), relu(−x)], [sin x, cos x]."""

from __future__ import annotations

from fractions import Fraction

from lipcert.network.activations.rationals import is_double
from lipcert.network.activations.smooth import Cos, Sin
from lipcert.network.graph import ActivationNode, AffineNode, Network
from lipcert.network.linear import Identity
from lipcert.network.twins import Circle, Mirrored, Twins
from lipcert.ranges.mirror import mirror_of
from lipcert.ranges.normal_form import same

#: Where an argument comes from: the value at a position, times a number.
Source = tuple[int, float]


def twins_of(network: Network) -> tuple[Twins, ...]:
    """Pairs, in order, no activation in two of them."""
    found: list[Twins] = []
    taken: set[int] = set()
    by_base: dict[int, list[tuple[int, float]]] = {}
    for place, node in enumerate(network.nodes):
        if isinstance(node, ActivationNode) and network.nodes[node.parents[0]].shape == node.shape:
            base, factor = _source(network, node.parents[0])
            by_base.setdefault(base, []).append((place, factor))
    for members in by_base.values():
        for number, (second, factor) in enumerate(members):
            for first, other in members[:number]:
                pair = _pair(network, first, other, second, factor)
                if pair is not None and not {first, second} & taken:
                    taken |= {first, second}
                    found.append(pair)
    return tuple(sorted(found, key=lambda pair: pair.second))


def _source(network: Network, place: int) -> Source:
    """The value that an argument is a multiple of, and the exact number."""
    factor = Fraction(1)
    while True:
        node = network.nodes[place]
        (linear,) = node.maps if isinstance(node, AffineNode) and len(node.maps) == 1 else (None,)
        if not isinstance(node, AffineNode) or node.offset is not None or not isinstance(linear, Identity):
            return place, float(factor)
        product = factor * Fraction(linear.scale)
        if getattr(linear.scale, "radius", 0.0) or linear.scale == 0.0 or not is_double(product):
            return place, float(factor)
        place, factor = node.parents[0], product


def _pair(network: Network, first: int, other: float, second: int, factor: float) -> Twins | None:
    one, two = network.nodes[first], network.nodes[second]
    assert isinstance(one, ActivationNode)
    assert isinstance(two, ActivationNode)
    f, g = one.function, two.function
    if factor == other and {type(f), type(g)} == {Sin, Cos}:
        return Circle(first, second)
    mirror = mirror_of(f) if factor == -other and same(f, g) else None
    if mirror is None:
        return None
    return Mirrored(first, second, float(mirror.sign), float(mirror.slope))
