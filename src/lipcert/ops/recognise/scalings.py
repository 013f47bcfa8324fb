"""The reader of scalings: which number a map multiplies by, and a value without the scalings around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import AffineNode, Node
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Shape, Sum
from lipcert.network.moves import times as times
from lipcert.numerics.rounding import gamma
from lipcert.ops.constant import Constant
from lipcert.ops.enclosure import Ball
from lipcert.ops.rational import OutOfRange, Real, exactly

#: Depth of scalings that is looked through.
_MAX_DEPTH = 40


def constant_of(linear: OpMap) -> Constant:
    """The constant of a map made with ``times``; one unit of the map's count is its own product."""
    value = linear.constants[0].double()
    count = max(0.0, linear.rounding - 1.0)
    if not count:
        return Constant.exactly(value)
    size = value.abs() if not linear.majorants or linear.majorants[0] is None else linear.majorants[0]
    error = size * (gamma(count) * (1.0 + 2.0**-40)) if math.isfinite(count) else torch.full_like(value, math.inf)
    return Constant.within(Ball(value, error))


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
    return OpMap("times", times, shape, shape, (constant,), "times", units + 1.0)


def majorised(leaf: LinearMap) -> bool:
    """Whether the errors of some constants are relative to something larger than these."""
    sizes = leaf.majorants if isinstance(leaf, OpMap) else (leaf.majorant,) if isinstance(leaf, Dense) else ()
    return any(size is not None for size in sizes)


def is_diagonal(linear: LinearMap) -> bool:
    """Whether the map is an elementwise scaling x ↦ d ⊙ x."""
    if linear.in_shape != linear.out_shape:
        return False
    if isinstance(linear, Composition):
        return all(is_diagonal(part) for part in linear.maps)
    known = isinstance(linear, OpMap) and linear.function is times and not majorised(linear)
    return known or scalar_of(linear) is not None


def _diagonal(linear: LinearMap) -> Tensor:
    """The factors d of an elementwise scaling, as doubles."""
    if isinstance(linear, Composition):
        return _product_of([_diagonal(part) for part in linear.maps])
    if isinstance(linear, OpMap):
        return linear.constants[0].double()
    scalar = scalar_of(linear)
    assert scalar is not None
    return torch.tensor(scalar.middle, dtype=torch.float64)


def _relative_error(linear: LinearMap) -> float:
    """A bound on the relative error of ``_diagonal``, with room for second-order terms while it is small."""
    if isinstance(linear, Composition):
        return sum(_relative_error(part) for part in linear.maps)
    if isinstance(linear, OpMap) and not majorised(linear):
        return 2.0**-52 * (2.0 + linear.rounding)
    scalar = scalar_of(linear)
    if scalar is None or (not scalar.sign and not scalar.is_(0)):
        return math.inf
    spread = 0.0 if scalar.exact else float((scalar.high - scalar.low) / min(abs(scalar.low), abs(scalar.high)))
    return 2.0 * spread + 2.0**-51


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

    @property
    def error(self) -> float:
        """A bound on the relative error of ``rates``; infinite where none is known."""
        total = sum(_relative_error(linear) for linear in self.maps)
        return total if total < 2.0**-12 else math.inf

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


def number_of(x: Any) -> float | None:
    """The double that ``uniform`` gives, if it is the number itself and not the nearest to it."""
    found = uniform(x)
    if found is None or not found.exact or not abs(found.low) < 2**1000:
        return None
    value = float(found.low)
    return value if Fraction(value) == found.low else None


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
