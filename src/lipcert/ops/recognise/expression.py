"""The reader of expressions: a value as a polynomial, or as a diagonal scaling, of an earlier value.

Coefficients are exact rationals, or enclosed between two where a constant was computed with a known rounding count:
what holds for them is a proof, never a coincidence of rounding, and nothing under- or overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, UnresolvedNode, Var
from lipcert.network.graph import ActivationNode, AffineNode, Node
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Shape, Sum
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops.context import Constant
from lipcert.ops.rational import OutOfRange, Real, exactly
from lipcert.ops.recognise.facts import kind

Polynomial = Mapping[int, Real]
#: Degrees beyond this are never part of a pattern.
_MAX_DEGREE = 6
#: Depth of expression that is looked through.
_MAX_DEPTH = 40


def times(x: Tensor, constant: Tensor) -> Tensor:
    """The function of the maps that multiply by a constant, by which they are recognised."""
    return x * constant


def constant_of(linear: OpMap) -> Constant:
    """The constant of a map made with ``times``; one unit of the map's count is its own product."""
    return Constant(linear.constants[0], max(0.0, linear.rounding - 1.0))


def handle(builder: NetworkBuilder, position: int) -> Var:
    """The handle of the node at ``position``."""
    return Var(position, builder.nodes[position].shape)


def parent(builder: NetworkBuilder, node: Node) -> Var:
    """Handle of a node's first parent."""
    return handle(builder, node.parents[0])


def scalar_of(linear: LinearMap) -> Real | None:
    """c if the map is x ↦ c·x with one number c, else None."""
    if linear.in_shape != linear.out_shape:
        return None
    if isinstance(linear, Identity):
        return Real.of(linear.scale)
    if isinstance(linear, OpMap):
        return uniform(constant_of(linear)) if linear.function is times else None
    if isinstance(linear, (Composition, Sum)):
        parts = [scalar_of(part) for part in linear.maps]
        total = exactly(0 if isinstance(linear, Sum) else 1)
        for part in parts:
            if part is None:
                return None
            total = total + part if isinstance(linear, Sum) else total * part
        return total
    return None


def multiple(shape: Shape, factor: Real) -> LinearMap:
    """x ↦ c·x as a map: exact if c is a double, else with the rounding count that covers what is known of c."""
    c = factor.middle
    if factor.is_(Fraction(c)):
        return Identity(shape, c)
    error = max(abs(factor.high - Fraction(c)), abs(factor.low - Fraction(c)))
    if not c or error > abs(Fraction(c)) / 2**20:
        raise OutOfRange("one of its factors is not known well enough.")
    units = math.ceil(error / abs(Fraction(c)) * 2**53)
    constant = torch.tensor(c, dtype=torch.float64)
    return OpMap("times", times, shape, shape, (constant,), "multiple", units + 1.0)


def is_diagonal(linear: LinearMap) -> bool:
    """Whether the map is an elementwise scaling x ↦ d ⊙ x."""
    if linear.in_shape != linear.out_shape:
        return False
    if isinstance(linear, Composition):
        return all(is_diagonal(part) for part in linear.maps)
    return scalar_of(linear) is not None or (isinstance(linear, OpMap) and linear.function is times)


def _diagonal(linear: LinearMap) -> Tensor:
    """The factors d of an elementwise scaling, as doubles."""
    if isinstance(linear, Composition):
        return _product_of([_diagonal(part) for part in linear.maps])
    if isinstance(linear, OpMap):
        return linear.constants[0].double()
    scalar = scalar_of(linear)
    assert scalar is not None
    return torch.tensor(scalar.middle, dtype=torch.float64)


def _product_of(factors: list[Tensor]) -> Tensor:
    """Their product entry by entry; ``OutOfRange`` where it leaves the normal doubles."""
    total = torch.ones((), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.bool)
    for factor in factors:
        total, zero = total * factor, zero | (factor == 0)
    if bool((~zero & ((total.abs() < 2.0**-1022) | ~torch.isfinite(total))).any()):
        raise OutOfRange("the product of its factors leaves the range of doubles; rescale them.")
    return total


@dataclass(frozen=True, eq=False)
class Scaled:
    """``var`` times the elementwise scalings ``maps`` (first one applied first)."""

    var: Var
    maps: tuple[LinearMap, ...] = ()

    def rates(self, like: Var) -> Tensor | None:
        """The product of the scalings as a tensor that broadcasts to the shape of ``like``; None if it does not."""
        factor = _product_of([_diagonal(linear) for linear in self.maps])
        fits = tuple(torch.broadcast_shapes(tuple(factor.shape), like.shape)) == like.shape
        return factor if fits else None


def scalings(builder: NetworkBuilder, var: Var) -> list[Scaled]:
    """``var`` itself, then what remains when one elementwise scaling after the other is taken off."""
    chain = [Scaled(var)]
    while len(chain) < _MAX_DEPTH:
        here = chain[-1]
        node = builder.node(here.var)
        if not isinstance(node, AffineNode) or node.offset is not None or len(node.parents) != 1:
            break
        if not is_diagonal(node.maps[0]):
            break
        chain.append(Scaled(parent(builder, node), (node.maps[0], *here.maps)))
    return chain


def core(builder: NetworkBuilder, var: Var) -> Var:
    """``var`` without the exact identities around it."""
    for here in scalings(builder, var):
        if all((scalar_of(linear) or exactly(0)).is_(1) for linear in here.maps):
            var = here.var
    return var


def activation_of(builder: NetworkBuilder, var: Var, *kinds: str) -> tuple[Nonlinearity, Var] | None:
    """(φ, v) if ``var`` is φ(v) with φ of one of the ``kinds`` (of any without them), seen through identities."""
    node = builder.node(core(builder, var))
    if not isinstance(node, ActivationNode) or (kinds and kind(node.function) not in kinds):
        return None
    return node.function, parent(builder, node)


def open_op(builder: NetworkBuilder, var: Any, *ops: str) -> UnresolvedNode | None:
    """The unresolved node behind ``var`` if its op is one of ``ops``, seen through identities."""
    if not isinstance(var, Var):
        return None
    node = builder.node(core(builder, var))
    return node if isinstance(node, UnresolvedNode) and node.op in ops else None


def uniform(x: Any) -> Real | None:
    """The number behind a Python number, or a constant whose entries are all the same."""
    if isinstance(x, Constant):
        value = x.value.reshape(-1)
        if not value.numel() or value.is_complex() or not bool((value == value[0]).all()):
            return None
        if not value.is_floating_point():
            return exactly(int(value[0].item())) if not x.rounding else None
        return Real.of(float(value[0].item()), x.rounding)
    if isinstance(x, int) and not isinstance(x, bool):
        return exactly(x)
    return Real.of(x) if isinstance(x, float) else None


def offset_of(node: AffineNode) -> Real | None:
    """The offset of an affine node if all its entries are one number, exact or enclosed."""
    if node.offset is None:
        return exactly(0)
    return uniform(Constant(node.offset, node.offset_rounding))


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
    if not isinstance(node, UnresolvedNode):
        return None
    if node.op == "mul" and len(node.parents) == 2:
        factors = [_expand(builder, handle(builder, p), base, known, depth) for p in node.parents]
    elif node.op in ("square", "pow") and len(node.parents) == 1:
        exponent = uniform(node.settings[0]) if node.settings else exactly(2)
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
        open_ = affine_in(builder, var) is not None or isinstance(node, (ActivationNode, UnresolvedNode))
        if open_:
            waiting += [handle(builder, p) for p in node.parents if builder.nodes[p].shape == var.shape]
