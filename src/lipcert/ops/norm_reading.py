"""Reading an expression back from the nodes: even powers, affine images, group sums, clamps."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.network.builder import UnresolvedNode, Var
from lipcert.network.graph import ActivationNode, AffineNode, GainNode
from lipcert.network.linear import Dense, Identity, LinearMap, OpMap, Shape, compose, size
from lipcert.ops.context import Context

_PROBE = (0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e3, 1e6)


def exponent_of(settings: tuple[object, ...]) -> float | None:
    """The one number among an op's settings (the exponent of a power), else None."""
    numbers = [float(s) for s in settings if isinstance(s, (int, float)) and not isinstance(s, bool)]
    return numbers[0] if len(numbers) == 1 else None


def even_power(ctx: Context, place: int) -> tuple[int, int] | None:
    """(base, p) if the value at ``place`` is base^p with an even p ≥ 2."""
    node = ctx.builder.nodes[place]
    if not isinstance(node, UnresolvedNode):
        return None
    if node.op == "square" and len(node.parents) == 1:
        return node.parents[0], 2
    if node.op == "mul" and len(node.parents) == 2 and node.parents[0] == node.parents[1]:
        return node.parents[0], 2
    if node.op == "pow" and len(node.parents) == 1:
        power = exponent_of(node.settings)
        if power is not None and power >= 2 and power % 2 == 0:
            return node.parents[0], int(power)
    return None


def affine_of(ctx: Context, var: Var) -> tuple[int, LinearMap, Tensor | None]:
    """(source, map, offset): ``var`` as an affine image of the last value that is not itself one."""
    place, linear, offset = var.position, None, None
    while True:
        node = ctx.builder.nodes[place]
        if not isinstance(node, AffineNode) or len(node.maps) != 1:
            return place, linear or Identity(var.shape), offset
        if node.offset is not None:
            own = node.offset.expand(node.shape)
            moved = own if linear is None else linear.apply(own[None].contiguous())[0]
            offset = moved if offset is None else offset + moved
        linear = node.maps[0] if linear is None else compose(node.maps[0], linear)
        place = node.parents[0]


def nonnegative(linear: LinearMap) -> bool:
    """True if every entry is certainly ≥ 0."""
    for leaf in linear.leaves():
        if isinstance(leaf, Identity):
            if leaf.scale < 0:
                return False
        elif isinstance(leaf, (OpMap, Dense)):
            if any(bool((c < 0).any()) for c in leaf.constants):
                return False
        else:
            return False
    return True


def group_weight(linear: LinearMap) -> tuple[int, float] | None:
    """(n, w) if the map is w · (sum over some axes, kept with length 1), each group of n by itself."""
    wide, narrow = linear.in_shape, linear.out_shape
    if len(wide) != len(narrow) or any(m not in (1, n) for n, m in zip(wide, narrow, strict=True)):
        return None
    axes = [d for d, (n, m) in enumerate(zip(wide, narrow, strict=True)) if m != n]
    n = size(wide) // max(1, size(narrow))
    generator = torch.Generator().manual_seed(7)
    probe = torch.rand(3, *wide, generator=generator, dtype=torch.float64) + 0.5
    expected = probe.sum([d + 1 for d in axes], keepdim=True) if axes else probe
    ratio = linear.apply(probe) / expected
    weight = float(ratio.mean())
    if weight <= 0 or not bool(((ratio - weight).abs() <= 1e-13 * n * weight).all()):
        return None
    return n, weight


def before_expand(ctx: Context, var: Var) -> Var:
    """``var`` before it was broadcast by expand."""
    node = ctx.builder.nodes[var.position]
    while isinstance(node, AffineNode) and len(node.maps) == 1 and node.offset is None:
        linear = node.maps[0]
        if not isinstance(linear, OpMap) or linear.label not in ("expand", "expand_as"):
            break
        if len(ctx.builder.nodes[node.parents[0]].shape) != len(var.shape):
            break
        var = Var(node.parents[0], ctx.builder.nodes[node.parents[0]].shape)
        node = ctx.builder.nodes[var.position]
    return var


def reduced_axes(wide: Shape, narrow: Shape) -> tuple[int, ...]:
    """Axes on which two shapes of equal rank differ."""
    return tuple(d for d, (n, m) in enumerate(zip(wide, narrow, strict=True)) if n != m)


def norm_group(ctx: Context, place: int, x: Var) -> int | None:
    """Entries per group if the value at ``place`` is the 2-norm of ``x`` over axes kept with length 1."""
    node = ctx.builder.nodes[place]
    if not isinstance(node, GainNode) or node.name != "vector_norm" or node.parents != (x.position,):
        return None
    if "order 2.0 " not in node.function.attributes or "keepdim True" not in node.function.attributes:
        return None
    return size(x.shape) // max(1, size(node.shape))


def clamp_floor(node: ActivationNode) -> float | None:
    """ε > 0 if the activation is t ↦ max(t, ε) with one ε for all entries, found by evaluating it."""
    if node.function.parameters or not node.name.startswith("clamp"):
        return None
    points = torch.tensor([-1.0, *_PROBE], dtype=torch.float64)
    try:
        values = node.function(points)
    except RuntimeError:
        return None
    eps = float(values[0])
    near = torch.tensor([0.5 * eps, 0.999 * eps, eps, 1.001 * eps, 2 * eps], dtype=torch.float64)
    alike = torch.equal(values, points.clamp_min(eps)) and torch.equal(node.function(near), near.clamp_min(eps))
    return eps if eps > 0 and alike else None
