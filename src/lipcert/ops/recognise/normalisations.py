"""Normalisations written by hand: x / max(‖x‖, ε), x / (‖x‖ + ε), x / √(mean x² + ε) and its product with rsqrt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from lipcert.network.activations.rationals import ends, ends_of, quotient
from lipcert.network.builder import Var
from lipcert.network.graph import AffineNode, GainNode, OpenNode
from lipcert.network.linear import LinearMap, OpMap, size
from lipcert.network.nonlinearity import Slope
from lipcert.network.radial import Radial, along
from lipcert.numerics.midrad import Range
from lipcert.ops.context import Context
from lipcert.ops.radial import radial_gains
from lipcert.ops.rational import OutOfRange, Real, above, below, exactly, root_above
from lipcert.ops.recognise.expression import activation_of, one_term, open_op
from lipcert.ops.recognise.facts import floor, kind, vector_norm
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.roots import RootFunction, even_power
from lipcert.ops.recognise.scalings import core, handle, parent, uniform
from lipcert.ops.recognise.sums import affine_image, nonnegative, partition

#: A relative error of ε or of the weights that ``radial_gains`` covers, and what is certain of such an ε.
_ABSORBED, _CERTAIN = 1e-13, 1.0 - 1e-12
#: Where the gains of quotients without an ε come from, and what is said where there are none.
_OPEN = "x/‖x‖: 1/‖x‖ where that is least"
_AT_ZERO = (
    "a value divided by its own norm has no Lipschitz constant near 0. Add an ε (torch.nn.functional.normalize does), "
    "or give a domain on which it stays away from 0."
)


@dataclass(frozen=True, eq=False, repr=False)
class OverClampedNorm(Radial):
    """x / max(scale·‖x‖₂, floor), norms over ``axes``; the factor meant is at least ``factor``."""

    stated: ClassVar[tuple[str, ...]] = (*Radial.stated, "factor")

    axes: tuple[int, ...]
    scale: float
    floor: float
    factor: float

    def grouped(self, x: Tensor) -> Tensor:
        """The axes of the norm."""
        return along(x, self.axes)

    def divisor(self, length: Tensor) -> Tensor:
        """max(k‖x‖, ε)."""
        return (self.factor * length).clamp(min=self.floor * _CERTAIN)

    def root_form(self, least: float) -> tuple[Range, Range, float] | None:
        """k² and 0 where k‖x‖ is above ε."""
        return _square(self.scale, self.factor) if self.factor * least > self.floor / _CERTAIN else None

    def value(self, x: Tensor) -> Tensor:
        """The quotient."""
        return x / (self.scale * torch.linalg.vector_norm(x, 2.0, self.axes, True)).clamp_min(self.floor)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """|x| ≤ ‖x‖."""
        return _over(self.scale)


@dataclass(frozen=True, eq=False, repr=False)
class OverShiftedNorm(Radial):
    """x / (scale·‖x‖₂ + shift), norms over ``axes``; the factor meant is at least ``factor``."""

    stated: ClassVar[tuple[str, ...]] = (*Radial.stated, "factor")

    axes: tuple[int, ...]
    scale: float
    shift: float
    factor: float

    def grouped(self, x: Tensor) -> Tensor:
        """The axes of the norm."""
        return along(x, self.axes)

    def divisor(self, length: Tensor) -> Tensor:
        """k‖x‖ + ε, ε ≥ 0 left out where it is not known well."""
        return self.factor * length + self.shift * _CERTAIN

    def root_form(self, least: float) -> tuple[Range, Range, float] | None:
        """k² and 0 without a shift."""
        return _square(self.scale, self.factor) if self.shift == 0.0 else None

    def value(self, x: Tensor) -> Tensor:
        """The quotient."""
        return x / (self.scale * torch.linalg.vector_norm(x, 2.0, self.axes, True) + self.shift)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """|x| ≤ ‖x‖."""
        return _over(self.scale)


def _square(scale: float, factor: float) -> tuple[Range, Range, float] | None:
    """(k², 0, 1), where k is the double itself."""
    if factor != scale:
        return None
    own = torch.tensor(scale, dtype=torch.float64)
    return Range.exact(own).square(), Range.exact(torch.zeros_like(own)), 1.0


def _over(scale: float) -> tuple[Slope, Slope]:
    """±1/scale."""
    one = quotient((Fraction(1), Fraction(1)), ends(scale))
    return ends_of(-one, one)


@dataclass(frozen=True, eq=False, repr=False)
class OverRoot(Radial):
    """x / √(linear · x² + level), of absolute value at most ``greatest``, which is 1/√(least weight) rounded up.

    √(greatest weight / least) is at most ``spread``, and the level meant between ``least`` and ``most``.
    """

    stated: ClassVar[tuple[str, ...]] = (*Radial.stated, "greatest", "spread", "least", "most")

    linear: LinearMap
    level: float
    greatest: float
    spread: float
    least: float
    most: float

    @property
    def distortion(self) -> float:
        """That of the weights."""
        return self.spread

    def grouped(self, x: Tensor) -> Tensor:
        """The axes along which the map adds up."""
        ends = zip(self.linear.in_shape, self.linear.out_shape, strict=True)
        axes = tuple(axis for axis, (n, m) in enumerate(ends) if n != m)
        return along(x, axes) if axes else x.reshape(-1, 1)

    def divisor(self, length: Tensor) -> Tensor:
        """√(w‖x‖² + c), w the least weight."""
        return ((length / self.greatest).square() + self.least).sqrt()

    def root_form(self, least: float) -> tuple[Range, Range, float] | None:
        """The weights and the level, where those differ by rounding only."""
        if not (self.spread < 1.0 + 1e-9 and self.greatest < math.inf and self.most - self.least <= 1e-9 * self.most):
            return None
        ends = [torch.tensor(x, dtype=torch.float64) for x in (1.0, self.spread, self.greatest, self.least, self.most)]
        one, spread, greatest = (Range.exact(x) for x in ends[:3])
        low, high = ((x * greatest.reciprocal()).square() for x in (one, spread))
        wide = 1.0 + 1e-14  # both roots are rounded up, by less than a relative 2^-50
        weights = Range.between(low.low, high.high * wide)
        return weights, Range.between(ends[3], ends[4]), self.spread * self.spread

    def value(self, x: Tensor) -> Tensor:
        """The quotient."""
        return x / torch.sqrt(self.linear.apply((x * x)[None])[0] + self.level)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """x² is at most 1/w of its own term in the sum."""
        return -self.greatest, self.greatest


@dataclass(frozen=True, eq=False)
class Radicand:
    """Σ w_j x_j² + c over groups of ``n`` entries, √(greatest w / least w) ≤ ``spread``, given by ``linear`` and c.

    ``greatest`` is 1/√(least w), rounded up.
    """

    n: int
    spread: float
    greatest: float
    linear: LinearMap
    level: Real


# -- patterns ----------------------------------------------------------------------------------------------


@pattern("product with a reciprocal root", "mul", 10, "x·rsqrt(w Σ x² + c)")
def root_mean_square_product(ctx: Context, a: Var, b: Var) -> Var | None:
    """RMS norm by hand, x · rsqrt(w Σ x² + c), of gain 1/√c."""
    for x, factor in ((a, b), (b, a)):
        if not _fits(factor, x):
            continue
        found = _under_root(ctx, before_expand(ctx, factor), ("rsqrt",), Fraction(-1, 2), x)
        if found is not None:
            return _root_quotient(ctx, x, found)
    return None


@pattern("sign times size", "mul", 20, "sign(x)·|x|")
def signed_magnitude(ctx: Context, a: Var, b: Var) -> Var | None:
    """sign(s)·|s| = s, also with relu(|s|), the way lp-pool is exported."""
    for sign, magnitude in ((a, b), (b, a)):
        left = open_op(ctx.builder, sign, "sign", "sgn")
        if left is None or sign.shape != magnitude.shape:
            continue
        source = core(ctx.builder, parent(ctx.builder, left))
        found = activation_of(ctx.builder, magnitude, "relu", "abs")
        while found is not None:
            if core(ctx.builder, found[1]) == source:
                return ctx.scaled(source, 1.0) if kind(found[0]) == "abs" else None
            found = activation_of(ctx.builder, found[1], "relu", "abs")
    return None


@pattern("quotient by a root", "div", 10, "x/√(w Σ x² + c)")
def over_root(ctx: Context, a: Any, b: Var) -> Var | None:
    """x / √(w Σ x² + c): gain 1/√c in l2."""
    if not isinstance(a, Var) or not _fits(b, a):
        return None
    found = _under_root(ctx, before_expand(ctx, b), ("sqrt",), Fraction(1, 2), a)
    return None if found is None else _root_quotient(ctx, a, found)


@pattern("quotient by a clamped norm", "div", 20, "x/max(k‖x‖, ε)")
def over_clamped_norm(ctx: Context, a: Any, b: Var) -> Var | None:
    """x / max(k‖x‖₂, ε), k, ε > 0: gain 1/ε in l2."""
    if not isinstance(a, Var) or not _fits(b, a):
        return None
    found = _clamped(ctx, before_expand(ctx, b))
    if found is None:
        return None
    eps, scale, inner = found
    norm = _norm_of(ctx, inner, a)
    if norm is None or scale.sign <= 0:
        return None
    n, axes = norm
    return _radial(ctx, a, n, eps, "clamp", OverClampedNorm, (axes, scale.middle, eps, below(scale.low)))


def _clamped(ctx: Context, b: Var) -> tuple[float, Real, Var] | None:
    """(ε, k, v) with b = max(k·v, ε), ε > 0: a clamp, or ε + relu(k·v − ε) as ``maximum`` with a constant gives it."""
    node = ctx.builder.node(core(ctx.builder, b))
    eps = floor(node)
    if eps is not None:
        inner = parent(ctx.builder, node)
        scale, inner, shift = one_term(ctx.builder, inner) or (exactly(1), inner, exactly(0))
        return (eps, scale, inner) if shift.is_(0) else None
    outer = one_term(ctx.builder, b)
    excess = activation_of(ctx.builder, outer[1], "relu") if outer and outer[0].is_(1) else None
    line = one_term(ctx.builder, excess[1]) if excess else None
    if not outer or not line or not outer[2].exact or outer[2].sign <= 0 or not (outer[2] + line[2]).is_(0):
        return None
    return below(outer[2].low), line[0], line[1]


@pattern("quotient by a shifted norm", "div", 30, "x/(k‖x‖ + ε)")
def over_shifted_norm(ctx: Context, a: Any, b: Var) -> Var | None:
    """x / (k‖x‖₂ + ε), k > 0: gain 1/ε in l2; without ε only where ‖x‖ is away from 0."""
    if not isinstance(a, Var) or not _fits(b, a):
        return None
    narrow = before_expand(ctx, b)
    scale, inner, shift = one_term(ctx.builder, narrow) or (exactly(1), narrow, exactly(0))
    norm = _norm_of(ctx, inner, a)
    if norm is None or scale.sign <= 0 or not (shift.sign > 0 or shift.is_(0)):
        return None
    n, axes = norm
    settings = (axes, scale.middle, shift.middle, below(scale.low))
    if shift.is_(0):
        return _away_from_zero(ctx, a, OverShiftedNorm("div", {}, _OPEN, *settings))
    return _radial(ctx, a, n, below(shift.low), "sum", OverShiftedNorm, settings)


# -- reading -----------------------------------------------------------------------------------------------


def _fits(narrow: Var, wide: Var) -> bool:
    """Whether broadcasting ``narrow`` against ``wide`` gives the shape of ``wide``, axis by axis."""
    if len(narrow.shape) != len(wide.shape):
        return False
    return all(n in (1, w) for n, w in zip(narrow.shape, wide.shape, strict=True))


def before_expand(ctx: Context, var: Var) -> Var:
    """``var`` before it was broadcast by expand along axes of length 1."""
    node = ctx.builder.node(var)
    while isinstance(node, AffineNode) and len(node.maps) == 1 and node.offset is None:
        linear, inner = node.maps[0], parent(ctx.builder, node)
        if not isinstance(linear, OpMap) or linear.label != "expand" or len(inner.shape) != len(var.shape):
            break
        var, node = inner, ctx.builder.node(inner)
    return var


def _norm_of(ctx: Context, norm: Var, x: Var) -> tuple[int, tuple[int, ...]] | None:
    """(entries per group, axes) if ``norm`` is the 2-norm of ``x`` over axes kept with length 1."""
    node = ctx.builder.node(core(ctx.builder, norm))
    block = vector_norm(node)
    if block is None or block.order != 2.0 or not block.keepdim:
        return None
    if core(ctx.builder, parent(ctx.builder, node)) != core(ctx.builder, x):
        return None
    return size(x.shape) // max(1, size(node.shape)), block.axes


def _under_root(ctx: Context, root: Var, ops: tuple[str, ...], power: Fraction, x: Var) -> Radicand | None:
    """The radicand if ``root`` is that power of ``w Σ x² + c``."""
    root = core(ctx.builder, root)
    node = ctx.builder.node(root)
    base = core(ctx.builder, x)
    if isinstance(node, GainNode) and isinstance(node.function, RootFunction) and power > 0:
        same = node.function.power == 2 and core(ctx.builder, parent(ctx.builder, node)) == base
        return _radicand(node.function.linear, node.function.level, x, root) if same else None
    if not isinstance(node, OpenNode) or len(node.parents) != 1:
        return None
    exponent = uniform(node.settings[0]) if node.op == "pow" and len(node.settings) == 1 else None
    if node.op not in ops and not (exponent and exponent.is_(power)):
        return None
    image = affine_image(ctx.builder, handle(ctx.builder, node.parents[0]))
    if image is None or len(image.terms) != 1:
        return None
    ((source, linear),) = image.terms
    squared = even_power(ctx.builder, source)
    if squared is None or squared[1] != 2 or squared[0] != base:
        return None
    return _radicand(linear, image.level, x, root)


def _radicand(linear: LinearMap | None, level: Real | None, x: Var, narrow: Var) -> Radicand | None:
    """The radicand if the map adds up, with weights > 0, just the entries that share one entry of ``narrow``."""
    if linear is None or (level is not None and level.sign <= 0 and not level.is_(0)) or not _fits(narrow, x):
        return None
    if linear.in_shape != x.shape or linear.out_shape != narrow.shape or not nonnegative(linear):
        return None
    owned = partition(linear)
    expected = torch.arange(size(narrow.shape)).reshape(narrow.shape).expand(x.shape)
    if owned is None or not torch.equal(owned.owner, expected):
        return None
    if level is None:
        raise OutOfRange("the constant under its root differs by entry or has an unknown rounding error; store one.")
    spread = root_above(owned.high / owned.low, 2)
    greatest = root_above(1 / owned.low, 2) if owned.low > Fraction(1, 2**1000) else math.inf
    return Radicand(size(x.shape) // size(narrow.shape), spread, greatest, linear, level)


# -- nodes -------------------------------------------------------------------------------------------------


def _radial(
    ctx: Context,
    x: Var,
    n: int,
    eps: float,
    kind: str,
    block: type[Radial],
    settings: tuple[Any, ...],
    spread: float = 1.0,
) -> Var:
    gains = radial_gains(n, eps, kind)
    if spread > 1.0 + _ABSORBED:
        gains = {p: above(Fraction(gain) * Fraction(spread)) for p, gain in gains.items()}
    source = f"x/r(‖x‖) over {n} entries: Jacobian (I − t uuᵀ)/r, r ≥ {eps:.3g}; loose away from 0"
    return ctx.gain(x, block(f"normalize ({kind})", gains, source, *settings))


def _root_quotient(ctx: Context, x: Var, found: Radicand) -> Var:
    """x / √(Σ w x² + c); with unequal weights D⁻¹ g(D x), D = diag(√w), so √(greatest w / least w) times the gain."""
    linear, c = found.linear, found.level.middle
    settings = (linear, c, found.greatest, found.spread, below(found.level.low), above(found.level.high))
    if found.level.is_(0):
        return _away_from_zero(ctx, x, OverRoot("div", {}, _OPEN, *settings))
    known = Fraction(c) - found.level.low <= found.level.low * Fraction(_ABSORBED)
    eps = math.sqrt(c) if known else math.sqrt(below(found.level.low))
    return _radial(ctx, x, found.n, eps, "root", OverRoot, settings, found.spread)


def _away_from_zero(ctx: Context, x: Var, block: Radial) -> Var:
    """A value of which gains are known on domains on which no group of entries comes to 0."""
    return ctx.unresolved((x,), x.shape, ctx.not_lipschitz(_AT_ZERO), function=block.value, block=block)
