"""Square roots and higher ones: √(q v² + b v + c) entry by entry, (Σ m z^p + c)^(1/p) over windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import OpenNode
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum, add, compose, size
from lipcert.network.nonlinearity import GainFunction
from lipcert.ops import nonlinearities as known
from lipcert.ops.context import Context
from lipcert.ops.rational import OutOfRange, Real, above, exactly, root_above
from lipcert.ops.recognise.expression import ancestors, coefficients, polynomial
from lipcert.ops.recognise.registry import pattern
from lipcert.ops.recognise.scalings import core, handle, scalar_of, times, uniform
from lipcert.ops.recognise.sums import ENTRIES, WEIGHTED, affine_image, nonnegative, partition, steps

#: What underflow can take from one entry of a product of maps of moderate size.
_LOST = 2.0**-900
#: Constants of a map that is not known to be linear in each of them stay within 2^±this.
_MODERATE = 200
#: Largest factor by which later maps may amplify what an earlier one loses.
_AMPLIFIED = 2.0**100


@dataclass(frozen=True, eq=False, repr=False)
class RootFunction(GainFunction):
    """(linear · z^power + offset)^(1/power); ``level`` is the number that every entry of the offset is, or None."""

    image = (0.0, math.inf)
    linear: LinearMap
    power: int
    offset: Tensor
    level: Real | None

    def value(self, x: Tensor) -> Tensor:
        """The roots."""
        total = self.linear.apply((x**self.power)[None])[0] + self.offset
        return torch.sqrt(total) if self.power == 2 else total ** (1.0 / self.power)

    @property
    def evaluation_error(self) -> float:
        """The root of what 2^-1022 lost in each number on the way through the map grows to."""
        with torch.no_grad():
            lost = _lost(self.linear, torch.full((1, *self.linear.in_shape), 2.0**-1022, dtype=torch.float64))
        return float(lost.max()) ** (1.0 / self.power) if lost.numel() else 0.0


def _lost(linear: LinearMap, lost: Tensor) -> Tensor:
    """What ``lost`` in each entry of the input, and 2^-1022 in each after every step, become in the image."""
    if isinstance(linear, Composition):
        for part in linear.maps:
            lost = _lost(part, lost)
        return lost
    if isinstance(linear, Sum):
        return sum((_lost(part, lost) for part in linear.maps), torch.zeros(1, *linear.out_shape, dtype=lost.dtype))
    return linear.absolute().apply(lost) + 2.0**-1022


def even_power(builder: NetworkBuilder, place: int) -> tuple[Var, int] | None:
    """(v, p) if the value at ``place`` is v^p with an even p ≥ 2."""
    node = builder.nodes[core(builder, handle(builder, place)).position]
    if not isinstance(node, OpenNode) or not node.parents:
        return None
    bases = {core(builder, handle(builder, p)) for p in node.parents}
    if len(bases) != 1:
        return None
    base = bases.pop()
    if base.shape != node.shape:
        return None
    if (node.op == "square" and len(node.parents) == 1) or (node.op == "mul" and len(node.parents) == 2):
        return base, 2
    if node.op == "pow" and len(node.parents) == 1 and len(node.settings) == 1:
        power = uniform(node.settings[0])
        if power and power.exact and power.low in (2, 4, 6, 8):
            return base, int(power.low)
    return None


@pattern("root of a quadratic", "sqrt", 10, "√(q x² + b x + c) with q > 0 and 4qc > b²")
def root_of_quadratic(ctx: Context, x: Var) -> Var | None:
    """√(q v² + b v + c), q > 0 and 4qc > b², is smooth with slopes ±√q."""
    for base in ancestors(ctx.builder, x):
        found = coefficients(polynomial(ctx.builder, x, base), 0, 1, 2)
        if not found:
            continue
        constant, linear, square = found
        discriminant = exactly(4) * square * constant - linear * linear
        if square.sign > 0 and discriminant.sign > 0:
            return ctx.activation(base, known.root(square, linear, constant))
    return None


@pattern("root of a sum of squares", "sqrt", 20, "√(Σ m x² + c) with m, c ≥ 0")
def root_of_squares(ctx: Context, x: Var) -> Var | None:
    """The p-norm of weighted windows, p = 2."""
    return window_root(ctx, x, 2)


@pattern("fourth root", "fourth root", 10, "(Σ m x⁴ + c)^(1/4)")
def fourth_root(ctx: Context, x: Var) -> Var | None:
    """The p-norm of weighted windows, p = 4."""
    return window_root(ctx, x, 4)


@pattern("eighth root", "eighth root", 10, "(Σ m x⁸ + c)^(1/8)")
def eighth_root(ctx: Context, x: Var) -> Var | None:
    """The p-norm of weighted windows, p = 8."""
    return window_root(ctx, x, 8)


def window_root(ctx: Context, x: Var, p: int) -> Var | None:
    """(Σ m z^p + c)^(1/p) with m, c ≥ 0 and an even p (lp-pool, √(a² + b²), a norm by hand); else None.

    Gains: l2 √(greatest column sum of m^(2/p)), l∞ (greatest row sum of m)^(1/p), l1 greatest column sum of
    m^(1/p). Why: each output is a p-norm of (m^(1/p) z, c^(1/p)), so its increment is at most ‖m^(1/p) δ‖_p,
    and ‖·‖_p ≤ ‖·‖₂ ≤ ‖·‖₁. Powers of several values are those of one z that holds them all.
    """
    image = affine_image(ctx.builder, x)
    if image is None or not image.nonnegative or not all(nonnegative(linear) for _, linear in image.terms):
        return None
    maps: dict[Var, LinearMap] = {}
    for place, linear in image.terms:
        power = even_power(ctx.builder, place)
        if power is None or power[1] != p:
            return None
        maps[power[0]] = add(maps[power[0]], linear) if power[0] in maps else linear
    if not maps:
        return None
    base, linear = joined(ctx, maps)
    gains = root_gains(linear, p)
    if not gains:
        return None
    shift = torch.zeros(()) if image.offset is None else image.offset
    source = f"{p}-norm of weighted windows (triangle inequality)"
    return ctx.gain(base, RootFunction("root", gains, source, linear, p, shift.double(), image.level))


def joined(ctx: Context, maps: Mapping[Var, LinearMap]) -> tuple[Var, LinearMap]:
    """(z, L) with L z = Σ L_v v over the values of ``maps``: z is the one value, or all of them one after the other."""
    if len(maps) == 1:
        return next(iter(maps.items()))
    z = ctx.jointly_linear(lambda parts: torch.cat([part.reshape(-1) for part in parts]), list(maps), 0.0)
    parts, start = [], 0
    for var, linear in maps.items():
        end = start + size(var.shape)
        piece = ctx.map(z.shape, lambda v, a=start, b=end, shape=var.shape: v[a:b].reshape(shape), (), 0.0)
        parts.append(compose(piece, linear))
        start = end
    return z, add(*parts)


# -- gains -------------------------------------------------------------------------------------------------


def root_gains(linear: LinearMap, p: int) -> dict[float, float]:
    """q → the gain of (linear · z^p + c)^(1/p) in l_q, rounded up; empty if none can be given.

    A map that gives every input to one output, all with one weight, has exact gains. Any other is first bounded by a
    number times a map of moderate size, whose sums are then taken in doubles with their rounding and underflow added.
    """
    if not linear.in_size or not linear.out_size:
        return dict.fromkeys((1.0, 2.0, math.inf), 0.0)
    owned = partition(linear)
    if owned is not None and owned.high <= owned.low * Fraction(1.0 + 1e-13):
        one = root_above(owned.high, p)
        return {1.0: one, 2.0: one, math.inf: root_above(owned.high * owned.largest, p)}
    scale, rest = bounded(linear)
    if _amplification(rest) > _AMPLIFIED or not math.isfinite(rest.rounding):
        return {}
    root, sums = Fraction(root_above(scale, p)), {}
    for q, total in _greatest_sums(rest, p).items():
        sums[q] = above(root * Fraction(total))
    return sums


def _greatest_sums(rest: LinearMap, p: int) -> dict[float, float]:
    n, m = rest.in_size, rest.out_size
    slack = 1.0 + 2.0**-51 * (rest.rounding + n + m + 64.0)  # the map's own, those of a sum, powers and roots
    if n * m <= ENTRIES:
        matrix = torch.where(_pattern(rest).matrix() > 0, rest.matrix() + _LOST, 0.0)
        gains = {math.inf: float(matrix.sum(1).max() * slack) ** (1.0 / p) * slack}
        for q in (2.0, 1.0):
            gains[q] = (float((matrix ** (q / p)).sum(0).max()) * slack) ** (1.0 / q) * slack
        return gains
    ones = [torch.ones(1, *shape, dtype=torch.float64) for shape in (rest.in_shape, rest.out_shape)]
    gains = {math.inf: (float(rest.apply(ones[0]).max()) * slack + n * _LOST) ** (1.0 / p) * slack}
    if p == 2:
        gains[2.0] = math.sqrt(float(rest.transpose(ones[1]).max()) * slack + m * _LOST) * slack
    return gains


def _pattern(linear: LinearMap) -> LinearMap:
    """A map of moderate entries that are 0 just where those of ``linear`` (all ≥ 0) are: constants 0 or 1."""
    if isinstance(linear, Composition):
        return Composition(tuple(_pattern(part) for part in linear.maps))
    if isinstance(linear, Sum):
        return Sum(tuple(_pattern(part) for part in linear.maps))
    if isinstance(linear, Identity):
        return Identity(linear.in_shape, float(linear.scale > 0))
    constants = tuple((c > 0).double() for c in getattr(linear, "constants", ()))
    return replace(linear, constants=constants, sources=()) if constants else linear  # type: ignore[type-var]


def bounded(linear: LinearMap) -> tuple[Fraction, LinearMap]:
    """(s, R) with linear ≤ s·R entry by entry, all constants of R at most 2; for a map with entries ≥ 0."""
    if isinstance(linear, Sum):
        parts = [bounded(part) for part in linear.maps]
        most = max(scale for scale, _ in parts)
        if not most:
            return Fraction(0), parts[0][1]
        shares = [compose(rest, Identity(rest.out_shape, above(scale / most))) for scale, rest in parts]
        return most, add(*shares)
    total = Fraction(1)
    kept: list[LinearMap] = [Identity(linear.in_shape)]
    for step in steps(linear):
        scale, rest = bounded(step) if isinstance(step, Sum) else _unit(step)
        total *= scale
        kept.append(rest)
    return total, compose(*kept)


def _unit(step: LinearMap) -> tuple[Fraction, LinearMap]:
    """(s, R) for one step; the constants of R are those of the step over powers of two, at least.

    Raises:
        OutOfRange: a map whose constants may not be rescaled one by one has some of extreme size.
    """
    scalar = scalar_of(step)
    if scalar is not None:
        return scalar.high, Identity(step.in_shape)
    if not isinstance(step, (OpMap, Dense)) or not step.constants:
        return Fraction(1), step
    homogeneous = isinstance(step, Dense) or step.function is times or step.label in WEIGHTED
    scale, constants = Fraction(1), []
    for constant in step.constants:
        top = float(constant.max()) if constant.numel() else 0.0
        exponent = math.frexp(top)[1]
        if not homogeneous:
            if abs(exponent) > _MODERATE or bool(((constant > 0) & (constant < 2.0**-_MODERATE)).any()):
                raise OutOfRange("the weights under its root are of extreme size; rescale them.")
            exponent = 0
        # In two halves, each a normal double: the quotient is exact, or below the least normal and rounded up.
        half = -exponent // 2
        shrunk = constant.double() * 2.0**half * 2.0 ** (-exponent - half)
        constants.append(torch.where((constant > 0) & (shrunk < 2.0**-1022), 2.0**-1022, shrunk))
        scale *= Fraction(2) ** exponent
    return scale, replace(step, constants=tuple(constants), sources=())  # type: ignore[arg-type]


def _amplification(linear: LinearMap) -> float:
    """A bound on what a unit in an intermediate value becomes in the image or its transpose, by row and column sums."""
    total = 1.0
    for step in steps(linear):
        if isinstance(step, Sum):
            total *= len(step.maps) * max(_amplification(part) for part in step.maps)
            continue
        for image in (
            step.apply(torch.ones(1, *step.in_shape, dtype=torch.float64)),
            step.transpose(torch.ones(1, *step.out_shape, dtype=torch.float64)),
        ):
            total *= max(1.0, 2.0 * float(image.max()))
    return total
