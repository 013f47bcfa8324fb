"""The reader of expressions: a value as a line in, or a polynomial of, an earlier value, entry by entry.

Coefficients are exact rationals, or enclosed between two where a constant was computed with a known rounding count:
what holds for them is a proof, never a coincidence of rounding, and nothing under- or overflows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import ActivationNode, AffineNode, OpenNode
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops.constant import Constant
from lipcert.ops.enclosure import Ball
from lipcert.ops.rational import Real, exactly
from lipcert.ops.recognise.facts import kind
from lipcert.ops.recognise.scalings import core, handle, parent, scalar_of, uniform

Polynomial = Mapping[int, Real]
#: Degrees beyond this are never part of a pattern.
_MAX_DEGREE = 6
#: Depth of expression that is looked through.
_MAX_DEPTH = 40


def activation_of(builder: NetworkBuilder, var: Var, *kinds: str) -> tuple[Nonlinearity, Var] | None:
    """(φ, v) if ``var`` is φ(v) with φ of one of the ``kinds`` (of any without them), seen through identities."""
    node = builder.node(core(builder, var))
    if not isinstance(node, ActivationNode) or (kinds and kind(node.function) not in kinds):
        return None
    return node.function, parent(builder, node)


def open_op(builder: NetworkBuilder, var: Any, *ops: str) -> OpenNode | None:
    """The open node behind ``var`` if its op is one of ``ops``, seen through identities."""
    if not isinstance(var, Var):
        return None
    node = builder.node(core(builder, var))
    return node if isinstance(node, OpenNode) and node.op in ops else None


def offset_of(node: AffineNode) -> Real | None:
    """The offset of an affine node if all its entries are one number, exact or enclosed."""
    if node.offset is None:
        return exactly(0)
    if node.offset_error is None:
        return None
    error = node.offset_error.expand(node.offset.shape)
    return uniform(Constant.within(Ball(node.offset.double(), error if bool(error.any()) else None)))


def affine_in(builder: NetworkBuilder, var: Var) -> tuple[dict[int, Real], Real] | None:
    """({position: coefficient}, offset) of an affine node with scalar coefficients, or None."""
    node = builder.node(var)
    if not isinstance(node, AffineNode):
        return None
    coefficients: dict[int, Real] = {}
    for position, linear in zip(node.parents, node.maps, strict=True):
        scalar = scalar_of(linear)
        if scalar is None:
            return None
        coefficients[position] = scalar
    offset = offset_of(node)
    return None if offset is None else (coefficients, offset)


def one_term(builder: NetworkBuilder, var: Var) -> tuple[Real, Var, Real] | None:
    """(c, v, o) with var = c·v + o and v no such expression itself; None if var is not affine in one value.

    The way back ends before an offset that is not one number.
    """
    scale, offset = exactly(1), exactly(0)
    here: Var = var
    while True:
        affine = affine_in(builder, here)
        if not affine or len(affine[0]) != 1:
            return None if here is var else (scale, here, offset)
        ((position, factor),) = affine[0].items()
        scale, offset, here = scale * factor, offset + scale * affine[1], handle(builder, position)


def polynomial(builder: NetworkBuilder, x: Any, base: Var) -> Polynomial | None:
    """``x`` as a polynomial with scalar coefficients in ``base``, entry by entry; None if it is not one."""
    if not isinstance(x, Var):
        number = uniform(x)
        return None if number is None else _tidy({0: number})
    return _expand(builder, x, base, {}, _MAX_DEPTH)


def _expand(
    builder: NetworkBuilder, x: Var, base: Var, known: dict[int, Polynomial | None], depth: int
) -> Polynomial | None:
    if x.position == base.position:
        return {1: exactly(1)}
    if depth == 0 or x.shape != base.shape or x.position < base.position:
        return None
    if x.position not in known:
        known[x.position] = _expand_node(builder, x, base, known, depth - 1)
    return known[x.position]


def _expand_node(
    builder: NetworkBuilder, x: Var, base: Var, known: dict[int, Polynomial | None], depth: int
) -> Polynomial | None:
    affine = affine_in(builder, x)
    if affine is not None:
        total: dict[int, Real] = {0: affine[1]}
        for position, scale in affine[0].items():
            part = _expand(builder, handle(builder, position), base, known, depth)
            if part is None:
                return None
            for degree, coefficient in part.items():
                total[degree] = total.get(degree, exactly(0)) + coefficient * scale
        return _tidy(total)
    node = builder.node(x)
    if not isinstance(node, OpenNode):
        return None
    if node.op == "mul" and len(node.parents) == 2:
        factors = [_expand(builder, handle(builder, p), base, known, depth) for p in node.parents]
    elif node.op in ("square", "pow") and len(node.parents) == 1:
        exponent = exactly(2) if node.op == "square" else uniform(node.settings[0])
        if exponent is None or not any(exponent.is_(n) for n in (2, 3, 4)):
            return None
        factors = [_expand(builder, parent(builder, node), base, known, depth)] * int(exponent.low)
    else:
        return None
    product: Polynomial | None = {0: exactly(1)}
    for factor in factors:
        product = _product(product, factor)
    return product


def _product(a: Polynomial | None, b: Polynomial | None) -> Polynomial | None:
    if a is None or b is None:
        return None
    total: dict[int, Real] = {}
    for i, p in a.items():
        for j, q in b.items():
            total[i + j] = total.get(i + j, exactly(0)) + p * q
    total = _tidy(total)
    return None if max(total, default=0) > _MAX_DEGREE else total


def _tidy(coefficients: dict[int, Real]) -> dict[int, Real]:
    return {degree: c for degree, c in coefficients.items() if not c.is_(0)}


def coefficients(p: Polynomial | None, *degrees: int) -> tuple[Real, ...] | None:
    """The coefficients of the given degrees, or None if ``p`` has any other."""
    if p is None or not set(p) <= set(degrees):
        return None
    return tuple(p.get(degree, exactly(0)) for degree in degrees)


def proportional(builder: NetworkBuilder, x: Any, base: Var) -> Real | None:
    """k if ``x`` is k·base, else None; also if both are one line in an earlier value, written twice."""
    found = coefficients(polynomial(builder, x, base), 1)
    if found:
        return found[0]
    for earlier in ancestors(builder, base):
        line = coefficients(polynomial(builder, base, earlier), 0, 1)
        other = coefficients(polynomial(builder, x, earlier), 0, 1)
        if line and other:
            (offset, slope), (other_offset, other_slope) = line, other
            exact = offset.exact and slope.exact and other_offset.exact and other_slope.exact
            if exact and slope.sign and other_slope * offset == other_offset * slope:
                return exactly(other_slope.low / slope.low)
    return None


def ancestors(builder: NetworkBuilder, x: Any) -> Iterator[Var]:
    """``x`` and the values it is an elementwise function of, as far as rules look, nearest first."""
    seen: set[int] = set()
    waiting = [x] if isinstance(x, Var) else []
    while waiting and len(seen) < _MAX_DEPTH:
        waiting.sort(key=lambda v: v.position)
        var = waiting.pop()
        if var.position in seen:
            continue
        seen.add(var.position)
        yield var
        node = builder.node(var)
        open_ = affine_in(builder, var) is not None or isinstance(node, (ActivationNode, OpenNode))
        if open_:
            waiting += [handle(builder, p) for p in node.parents if builder.nodes[p].shape == var.shape]
