"""Look through scalings and offsets: a value as a polynomial, or as a diagonal scaling, of an earlier value.

Pattern rules compare coefficients as exact rationals: a match is a proof, never a coincidence of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, UnresolvedNode, Var
from lipcert.network.graph import ActivationNode, AffineNode, Node
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Sum
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops.context import Constant
from lipcert.ops.rational import Real, exactly

Polynomial = Mapping[int, Real]
#: Degrees beyond this are never part of a pattern.
_MAX_DEGREE = 6
#: Depth of expression that is looked through.
_MAX_DEPTH = 40


def times(x: Tensor, constant: Tensor) -> Tensor:
    """The function of the maps that multiply by a constant, by which they are recognised."""
    return x * constant


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
        if linear.function is times and linear.constants[0].numel() == 1:
            return Real.of(float(linear.constants[0].reshape(()).item()), linear.rounding)
        return None
    if isinstance(linear, (Composition, Sum)):
        parts = [scalar_of(part) for part in linear.maps]
        total = exactly(0 if isinstance(linear, Sum) else 1)
        for part in parts:
            if part is None:
                return None
            total = total + part if isinstance(linear, Sum) else total * part
        return total
    return None


def diagonal_of(linear: LinearMap) -> float | Tensor | None:
    """The factor of an elementwise scaling x ↦ d ⊙ x, as doubles; None for any other map."""
    scalar = scalar_of(linear)
    if scalar is not None:
        return scalar.middle
    if linear.in_shape != linear.out_shape:
        return None
    if isinstance(linear, OpMap) and linear.function is times:
        return linear.constants[0].double()
    if isinstance(linear, Composition):
        total: float | Tensor = 1.0
        for part in linear.maps:
            factor = diagonal_of(part)
            if factor is None:
                return None
            total = total * factor
        return total
    return None


@dataclass(frozen=True, eq=False)
class Scaled:
    """``var`` times the elementwise scalings ``maps`` (first one applied first)."""

    var: Var
    maps: tuple[LinearMap, ...] = ()

    def factor(self) -> float | Tensor:
        """The product of the scalings."""
        total: float | Tensor = 1.0
        for linear in self.maps:
            factor = diagonal_of(linear)
            assert factor is not None
            total = total * factor
        return total


def scalings(builder: NetworkBuilder, var: Var) -> list[Scaled]:
    """``var`` itself, then what remains when one elementwise scaling after the other is taken off."""
    chain = [Scaled(var)]
    while len(chain) < _MAX_DEPTH:
        here = chain[-1]
        node = builder.node(here.var)
        if not isinstance(node, AffineNode) or node.offset is not None or len(node.parents) != 1:
            break
        if diagonal_of(node.maps[0]) is None:
            break
        chain.append(Scaled(parent(builder, node), (node.maps[0], *here.maps)))
    return chain


def core(builder: NetworkBuilder, var: Var) -> Var:
    """``var`` without the exact identities around it."""
    for here in scalings(builder, var):
        if all((scalar_of(linear) or exactly(0)).is_(1) for linear in here.maps):
            var = here.var
    return var


def activation_of(builder: NetworkBuilder, var: Var) -> tuple[Nonlinearity, Var] | None:
    """(φ, v) if ``var`` is φ(v), seen through identities."""
    node = builder.node(core(builder, var))
    return (node.function, parent(builder, node)) if isinstance(node, ActivationNode) else None


def open_op(builder: NetworkBuilder, var: Any, *ops: str) -> UnresolvedNode | None:
    """The unresolved node behind ``var`` if its op is one of ``ops``, seen through identities."""
    if not isinstance(var, Var):
        return None
    node = builder.node(core(builder, var))
    return node if isinstance(node, UnresolvedNode) and node.op in ops else None


def uniform(x: Any) -> Real | None:
    """The number behind a Python number, or a constant whose entries are all the same."""
    if isinstance(x, Constant):
        if not x.value.numel() or not bool((x.value == x.value.reshape(-1)[0]).all()):
            return None
        return Real.of(float(x.value.reshape(-1)[0].item()), x.rounding)
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return Real.of(float(x)) if float(x) == x else None
    return None


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
    offset: Real | None = exactly(0)
    if node.offset is not None:
        # The sums of ``arithmetic`` keep an offset 0-dimensional only if it is a number without rounding.
        exact = node.offset.dim() == 0 and node.name in ("add", "sub", "rsub")
        offset = Real.of(float(node.offset.item())) if exact else None
    return None if offset is None else (coefficients, offset)


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


def tensor_rate(scaled: Scaled, like: Var) -> Tensor | None:
    """A per-entry factor as a tensor that broadcasts against the node's shape, or None."""
    factor = scaled.factor()
    if not isinstance(factor, Tensor):
        return None
    if tuple(torch.broadcast_shapes(tuple(factor.shape), like.shape)) != like.shape:
        return None
    return factor
