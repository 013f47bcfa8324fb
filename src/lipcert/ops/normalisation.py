"""Batch norm in eval mode (an affine map) and layer, group, instance and RMS norm by their global gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lipcert.errors import TrainModeError
from lipcert.network.builder import Var
from lipcert.network.nonlinearity import GainFunction, Slope
from lipcert.network.radial import Radial, along
from lipcert.network.source import Fixed, derived
from lipcert.numerics.midrad import Range, known
from lipcert.ops.arithmetic import add, multiply_by
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import exact, minus, over, plus, root, times
from lipcert.ops.radial import radial_gains
from lipcert.ops.registry import rule
from lipcert.ops.softmax import root_up


def _batch_norm(ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Var:
    x = ctx.variable(x)
    if mean is None or var is None:
        raise TrainModeError(f"batch norm at {ctx.where} has no running statistics: it would couple the batch.")
    mean, var = ctx.constant(mean), ctx.constant(var)
    channel = (-1, *([1] * (len(x.shape) - 2)))
    one = torch.ones_like(var.value)
    weight = Constant.within(exact(one), Fixed(one)) if weight is None else ctx.constant(weight)
    bias = Constant.within(exact(0 * one), Fixed(0 * one)) if bias is None else ctx.constant(bias)
    spread = plus(var.floating, exact(eps))
    if not bool((spread.middle > spread.spread).all()):
        raise ctx.not_lipschitz("a running variance plus eps is not certainly positive.")
    scale_source = derived(lambda g, v: g / torch.sqrt(v + eps), weight.source, var.source)
    scale = Constant.within(over(weight.floating, root(spread)), scale_source)
    ctx.require_finite(scale)
    shift_source = derived(lambda b, m, s: b - m * s, bias.source, mean.source, scale_source)
    shift = Constant.within(minus(bias.floating, times(mean.floating, scale.ball)), shift_source)
    scale, shift = (c.map(lambda s: s.reshape(channel)) for c in (scale, shift))
    return ctx.linear(x, lambda v, s: v * s, (scale,), 1.0, shift, "times")


@rule("batch_norm", kind="linear")
def batch_norm(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Var:
    """Batch norm in eval mode: max |γ|/√(var + ε) in every norm."""
    if training:
        raise TrainModeError(f"batch norm at {ctx.where} is in training mode; call model.eval() first.")
    return _batch_norm(ctx, x, weight, bias, mean, var, eps)


@rule("_native_batch_norm_legit_no_training", kind="linear")
def batch_norm_eval(
    ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Var, None, None]:
    """Batch norm in eval mode: max |γ|/√(var + ε) in every norm."""
    return _batch_norm(ctx, x, weight, bias, mean, var, eps), None, None


# -- norms over the entries of one example ------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class LayerNorm(Radial):
    """(x − mean)/√(var + ε) over the last axes, of lengths ``shape``."""

    centred: ClassVar[bool] = True

    shape: tuple[int, ...]
    eps: float

    def grouped(self, x: Tensor) -> Tensor:
        """The last axes."""
        return x.reshape(-1, math.prod(self.shape))

    def divisor(self, length: Tensor) -> Tensor:
        """√(‖x − mean‖²/n + ε)."""
        return _deviation(length, math.prod(self.shape), self.eps)

    def root_form(self, least: float) -> tuple[Range, Range, float]:
        """1/n and ε."""
        return _mean_form(math.prod(self.shape), self.eps)

    def value(self, x: Tensor) -> Tensor:
        """The normal values."""
        return torch.nn.functional.layer_norm(x, list(self.shape), None, None, self.eps)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """Of n entries one is off their mean by at most √(n − 1) deviations (Samuelson 1968)."""
        return _around_zero(math.prod(self.shape) - 1)


@dataclass(frozen=True, eq=False, repr=False)
class GroupNorm(Radial):
    """(x − mean)/√(var + ε) over each of ``groups`` groups of channels, of ``entries`` entries."""

    stated: ClassVar[tuple[str, ...]] = (*GainFunction.stated, "entries")
    centred: ClassVar[bool] = True

    groups: int
    eps: float
    entries: int

    def grouped(self, x: Tensor) -> Tensor:
        """Channels of a group, example by example of the captured graph."""
        return x.reshape(-1, self.entries)

    def divisor(self, length: Tensor) -> Tensor:
        """√(‖x − mean‖²/n + ε)."""
        return _deviation(length, self.entries, self.eps)

    def root_form(self, least: float) -> tuple[Range, Range, float]:
        """1/n and ε."""
        return _mean_form(self.entries, self.eps)

    def value(self, x: Tensor) -> Tensor:
        """The normal values."""
        n = math.prod(x.shape[1:]) // self.groups
        grouped = x.reshape(x.shape[0], self.groups, n)
        return torch.nn.functional.layer_norm(grouped, [n], None, None, self.eps).reshape(x.shape)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """As of layer norm."""
        return _around_zero(self.entries - 1)


@dataclass(frozen=True, eq=False, repr=False)
class RMSNorm(Radial):
    """x/√(mean x² + ε) over the last ``count`` axes, of ``entries`` entries."""

    stated: ClassVar[tuple[str, ...]] = (*GainFunction.stated, "entries")

    count: int
    eps: float
    entries: int

    def grouped(self, x: Tensor) -> Tensor:
        """The last axes."""
        return along(x, tuple(range(-self.count, 0)))

    def divisor(self, length: Tensor) -> Tensor:
        """√(‖x‖²/n + ε)."""
        return _deviation(length, self.entries, self.eps)

    def root_form(self, least: float) -> tuple[Range, Range, float]:
        """1/n and ε."""
        return _mean_form(self.entries, self.eps)

    def value(self, x: Tensor) -> Tensor:
        """The values of size 1."""
        axes = tuple(range(-self.count, 0))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + self.eps)

    @property
    def image(self) -> tuple[Slope, Slope]:
        """x² is at most n times the mean of the squares."""
        return _around_zero(self.entries)


def _deviation(length: Tensor, n: int, eps: float) -> Tensor:
    return (length * length / n + eps).sqrt()


def _mean_form(n: int, eps: float) -> tuple[Range, Range, float]:
    one, count = (torch.tensor(float(v), dtype=torch.float64) for v in (1.0, n))
    return Range.exact(one) * Range.exact(count).reciprocal(), known(eps), 1.0


def _around_zero(square: int) -> tuple[Slope, Slope]:
    """±√square."""
    root = root_up(max(0, square))
    return -root, root


def _gain(ctx: Context, x: Var, kind: Callable[..., GainFunction], name: str, n: int, eps: Any, setting: Any) -> Var:
    """x ↦ (x − mean)/√(var + ε) over independent groups of n entries, or x/√(mean x² + ε) for the RMS norm."""
    centred = kind is not RMSNorm
    if eps is None or not eps >= 0:
        raise ctx.not_lipschitz(f"{name} with eps = {eps} is not Lipschitz at constant inputs; set eps > 0.")
    entries = () if kind is LayerNorm else (n,)
    if eps == 0:
        block = kind(name, {}, f"{name} over {n} entries: 1/deviation where that is least", setting, 0.0, *entries)
        assert isinstance(block, Radial)
        error = ctx.not_lipschitz(
            f"{name} with eps = 0 is not Lipschitz near {'constant inputs' if centred else 'the origin'}. Set eps > 0, "
            "or give a domain that stays away from there."
        )
        return ctx.unresolved((x,), x.shape, error, function=block.value, block=block)
    if centred and n == 1:
        gains = dict.fromkeys((1.0, 2.0, math.inf), 0.0)
    else:
        gains = radial_gains(n, math.sqrt(eps), "root", 2.0 * (n - 1) / n if centred else 1.0)
    where = "a constant input" if centred else "the origin"
    source = f"{name} over {n} entries: 1/√ε in l2, attained at {where} only; loose elsewhere"
    return ctx.gain(x, kind(name, gains, source, setting, eps, *entries))


def _rescaled(ctx: Context, x: Var, weight: Any, bias: Any, shape: tuple[int, ...] | None = None) -> Var:
    """γ x + β as linear maps of their own (max |γ| in every norm)."""
    for constant, combine in ((weight, multiply_by), (bias, add)):
        if constant is None:
            continue
        value = ctx.constant(constant)
        ctx.require_finite(value)
        if shape is not None:
            value = value.map(lambda v: v.reshape(shape))
        x = combine(ctx, x, value)
    return x


@rule("layer_norm", kind="gain")
def layer_norm(
    ctx: Context,
    x: Any,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Var:
    """Layer norm: max |γ|/√ε in l2, attained at a constant input; l1 and l∞ by ``radial_gains``."""
    x = ctx.variable(x)
    normal = _gain(ctx, x, LayerNorm, "layer_norm", math.prod(shape), eps, tuple(shape))
    return _rescaled(ctx, normal, weight, bias)


@rule("native_layer_norm", kind="gain")
def native_layer_norm(ctx: Context, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Var, Var, Var]:
    """Layer norm: max |γ|/√ε in l2, attained at a constant input; its statistics outputs are refused."""
    normal = layer_norm(ctx, x, shape, weight, bias, eps)
    error = ctx.unsupported("the mean and deviation it also returns have no rule.")
    other = ctx.unresolved((normal,), normal.shape, error)
    return normal, other, other


@rule("group_norm", kind="gain")
def group_norm(
    ctx: Context,
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Var:
    """Group norm: max |γ|/√ε in l2, attained at a constant group; l1 and l∞ by ``radial_gains``."""
    x = ctx.variable(x)
    n = math.prod(x.shape[1:]) // groups
    normal = _gain(ctx, x, GroupNorm, "group_norm", n, eps, groups)
    return _rescaled(ctx, normal, weight, bias, (-1, *([1] * (len(x.shape) - 2))))


@rule("instance_norm", kind="gain")
def instance_norm(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Var:
    """Instance norm: max |γ|/√ε in l2; with running statistics in eval mode the affine map of batch norm."""
    x = ctx.variable(x)
    if not use_input_stats:
        return _batch_norm(ctx, x, weight, bias, mean, var, eps)
    if mean is not None or var is not None:
        raise TrainModeError(f"instance norm at {ctx.where} updates running statistics; call model.eval() first.")
    n = math.prod(x.shape[2:])
    normal = _gain(ctx, x, LayerNorm, "instance_norm", n, eps, tuple(x.shape[2:]))
    return _rescaled(ctx, normal, weight, bias, (-1, *([1] * (len(x.shape) - 2))))


@rule("rms_norm", kind="gain")
def rms_norm(ctx: Context, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Var:
    """RMS norm: max |γ|/√ε in l2, attained at the origin; l1 and l∞ by ``radial_gains`` (about 0.19 √n).

    ``eps=None`` means the machine epsilon of the dtype the model runs in, as in PyTorch.
    """
    x = ctx.variable(x)
    if eps is None:
        if ctx.dtype is None:
            raise ctx.unsupported("eps=None means the machine epsilon of a dtype that is not known; set eps.")
        eps = torch.finfo(ctx.dtype).eps
    normal = _gain(ctx, x, RMSNorm, "rms_norm", math.prod(shape), eps, len(shape))
    return _rescaled(ctx, normal, weight, None)
