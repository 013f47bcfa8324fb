"""Normalisations written by hand: x / max(‖x‖, ε), x · rsqrt(mean x² + ε), (Σ m x^p)^(1/p)."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import UnresolvedNode, Var
from lipcert.network.graph import ActivationNode, AffineNode, GainNode
from lipcert.network.linear import Identity, LinearMap
from lipcert.network.nonlinearity import GainFunction
from lipcert.ops.context import Context
from lipcert.ops.norm_reading import (
    affine_of,
    before_expand,
    clamp_floor,
    even_power,
    exponent_of,
    group_weight,
    nonnegative,
    norm_group,
    reduced_axes,
)
from lipcert.ops.radial import RootFunction, radial_gains

#: Largest matrix that is written out to read its entries.
_ENTRIES = 1 << 22
#: (n, c, map): w Σ x² + c over groups of n entries.
Radicand = tuple[int, float, LinearMap]


def _radicand(ctx: Context, base: int, linear: LinearMap, offset: Tensor | None) -> Radicand | None:
    """The radicand ``linear · base² + offset`` if it is one number c > 0 plus w times group sums."""
    if offset is None or ctx.builder.nodes[base].shape != linear.in_shape or not nonnegative(linear):
        return None
    group, floor = group_weight(linear), float(offset.min())
    if group is None or floor <= 0 or float(offset.max()) != floor:
        return None
    return group[0], floor, linear


def _under_root(ctx: Context, place: int, ops: tuple[str, ...], power: float, x: Var) -> Radicand | None:
    """The radicand if the value at ``place`` is that power of ``w Σ x² + c``."""
    node = ctx.builder.nodes[place]
    if isinstance(node, GainNode) and isinstance(node.function, RootFunction) and power == 0.5:
        linear, known = node.function.linear, node.function.power == 2 and node.parents == (x.position,)
        return _radicand(ctx, x.position, linear, node.function.parameters[0]) if known and linear else None
    if not isinstance(node, UnresolvedNode) or len(node.parents) != 1:
        return None
    if node.op not in ops and not (node.op == "pow" and exponent_of(node.settings) == power):
        return None
    inner = Var(node.parents[0], ctx.builder.nodes[node.parents[0]].shape)
    source, linear, offset = affine_of(ctx, inner)
    return _radicand(ctx, x.position, linear, offset) if even_power(ctx, source) == (x.position, 2) else None


# -- patterns -----------------------------------------------------------------------------------------------


def match_rms_product(ctx: Context, a: Var, b: Var) -> Var | None:
    """RMS norm by hand, x · rsqrt(w Σ x² + c), of gain 1/√c; and sign(s)·relu(|s|), which is s; else None."""
    for x, factor in ((a, b), (b, a)):
        if not _fits(factor, x):
            continue
        found = _under_root(ctx, before_expand(ctx, factor).position, ("rsqrt",), -0.5, x)
        if found is not None:
            return _root_quotient(ctx, x, found)
    return _signed_magnitude(ctx, a, b) or _signed_magnitude(ctx, b, a)


def match_normalised(ctx: Context, a: Any, b: Var) -> Var | None:
    """x / max(‖x‖₂, ε), x / (‖x‖₂ + ε), x / √(w Σ x² + c): gain 1/ε, 1/ε, 1/√c in l2; else None."""
    if not isinstance(a, Var) or not _fits(b, a):
        return None
    b = before_expand(ctx, b)
    found = _under_root(ctx, b.position, ("sqrt",), 0.5, a)
    if found is not None:
        return _root_quotient(ctx, a, found)
    node = ctx.builder.nodes[b.position]
    if isinstance(node, ActivationNode):
        eps = clamp_floor(node)
        n = None if eps is None else norm_group(ctx, node.parents[0], a)
        if n is not None and eps is not None:
            axes = reduced_axes(a.shape, b.shape)

            def clamped(v: Tensor) -> Tensor:
                return v / torch.linalg.vector_norm(v, 2.0, axes, True).clamp_min(eps)

            return _radial(ctx, a, n, eps, "clamp", f"floor {eps} axes {axes}", clamped)
    if isinstance(node, AffineNode) and len(node.maps) == 1 and isinstance(node.maps[0], Identity):
        n = norm_group(ctx, node.parents[0], a) if node.maps[0].scale == 1.0 else None
        if n is not None and node.offset is not None and node.offset.numel() == 1 and node.offset.item() > 0:
            shift, axes = float(node.offset.item()), reduced_axes(a.shape, b.shape)

            def shifted(v: Tensor) -> Tensor:
                return v / (torch.linalg.vector_norm(v, 2.0, axes, True) + shift)

            return _radial(ctx, a, n, shift, "sum", f"plus {shift} axes {axes}", shifted)
    return None


def _fits(narrow: Var, wide: Var) -> bool:
    """Whether broadcasting ``narrow`` against ``wide`` gives the shape of ``wide``, axis by axis."""
    if len(narrow.shape) != len(wide.shape):
        return False
    return all(n in (1, w) for n, w in zip(narrow.shape, wide.shape, strict=True))


def match_window_root(ctx: Context, x: Var, order: int) -> Var | None:
    """(Σ m z^p + c)^(1/p) with m, c ≥ 0 and an even p (lp-pool, √(a² + b²), a norm by hand); else None.

    Gains: l2 √(greatest column sum of m^(2/p)), l∞ (greatest row sum of m)^(1/p), l1 greatest column sum of
    m^(1/p). Why: each output is a p-norm of (m^(1/p) z, c^(1/p)), so its increment is at most ‖m^(1/p) δ‖_p,
    and ‖·‖_p ≤ ‖·‖₂ ≤ ‖·‖₁.
    """
    place, linear, offset = affine_of(ctx, x)
    power = even_power(ctx, place)
    if power is None or power[1] != order or not nonnegative(linear):
        return None
    if offset is not None and float(offset.min()) < 0:
        return None
    base, p = power
    gains = _root_gains(linear, p)
    if not gains:
        return None
    shift = torch.zeros(()) if offset is None else offset

    def function(v: Tensor, c: Tensor) -> Tensor:
        total = linear.to(v.dtype, v.device).apply((v**p)[None])[0] + c
        return torch.sqrt(total) if p == 2 else total ** (1.0 / p)

    name, source = "root", f"{p}-norm of weighted windows (triangle inequality)"
    settings = f"power {p} {_key(linear)}"
    block = RootFunction(name, function, gains, source, (shift.double(),), settings, linear, p)
    return ctx.gain(Var(base, ctx.builder.nodes[base].shape), block)


def _root_gains(linear: LinearMap, p: int) -> dict[float, float]:
    slack = 1.0 + 1e-12 * (1.0 + (linear.rounding if math.isfinite(linear.rounding) else math.inf) * 1e-3)
    if not math.isfinite(slack):
        return {}
    rows = linear.apply(torch.ones(1, *linear.in_shape, dtype=torch.float64))
    gains = {math.inf: float(rows.max()) ** (1.0 / p) * slack}
    if p == 2:
        columns = linear.transpose(torch.ones(1, *linear.out_shape, dtype=torch.float64))
        gains[2.0] = math.sqrt(float(columns.max())) * slack
    if linear.in_size * linear.out_size <= _ENTRIES:
        matrix = linear.matrix()
        gains[2.0] = math.sqrt(float((matrix ** (2.0 / p)).sum(0).max())) * slack
        gains[1.0] = float((matrix ** (1.0 / p)).sum(0).max()) * slack
    return gains


def _radial(ctx: Context, x: Var, n: int, eps: float, kind: str, settings: str, function: Any) -> Var:
    gains = radial_gains(n, eps, kind)
    source = f"x/r(‖x‖) over {n} entries: Jacobian (I − t uuᵀ)/r, r ≥ {eps:.3g}; loose away from 0"
    return ctx.gain(x, GainFunction(f"normalize ({kind})", function, gains, source, (), settings))


def _root_quotient(ctx: Context, x: Var, found: Radicand) -> Var:
    n, floor, linear = found

    def function(v: Tensor) -> Tensor:
        return v / torch.sqrt(linear.to(v.dtype, v.device).apply((v * v)[None])[0] + floor)

    return _radial(ctx, x, n, math.sqrt(floor), "root", f"c {floor} {_key(linear)}", function)


def _key(linear: LinearMap) -> str:
    digest = hashlib.sha256()
    linear.update_hash(digest)
    return digest.hexdigest()


def _signed_magnitude(ctx: Context, sign: Var, magnitude: Var) -> Var | None:
    """sign(s) · relu(|s|) = s, the way lp-pool is exported."""
    left, right = ctx.builder.nodes[sign.position], ctx.builder.nodes[magnitude.position]
    if not isinstance(left, UnresolvedNode) or left.op != "sign" or len(left.parents) != 1:
        return None
    functions = []
    place = magnitude.position
    while isinstance(right, ActivationNode):
        functions.append(right.function)
        place = right.parents[0]
        right = ctx.builder.nodes[place]
        if place == left.parents[0]:
            break
    if not functions or place != left.parents[0] or any(f.parameters for f in functions):
        return None
    if any(f.name not in ("abs", "relu") for f in functions) or functions[-1].name != "abs":
        return None
    return ctx.scaled(Var(place, sign.shape), 1.0)
