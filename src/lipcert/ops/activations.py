"""Elementwise activations with their exact slope ranges [α, β]."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import TrainModeError
from lipcert.network.activations.clamp import RELU
from lipcert.network.builder import Var
from lipcert.network.linear import Identity
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.network.source import derived
from lipcert.ops import nonlinearities as known
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context, is_number, number
from lipcert.ops.enclosure import exact, minus
from lipcert.ops.rational import exactly
from lipcert.ops.registry import rule

#: torch's softplus is x itself beyond a threshold: the least one that is accepted, the one from which on no double
#: notices (log1p(exp(−40)) is below the last bit of 40), and the largest jump that counts as rounding in float64.
_LEAST_THRESHOLD, _NO_JUMP, _LARGEST_JUMP = 20.0, 40.0, 1e-6


def _fixed(*names: str, function: Nonlinearity, summary: str) -> None:
    """Register ops that are one activation without settings."""

    @rule(*names, kind="activation")
    def activation(ctx: Context, x: Any) -> Var:
        return ctx.activation(ctx.variable(x), function)

    activation.__doc__ = summary


_fixed("relu", function=RELU, summary="ReLU: slopes [0, 1].")
_fixed("tanh", function=known.TANH, summary="tanh: slopes [0, 1].")
_fixed("sigmoid", function=known.SIGMOID, summary="Sigmoid: slopes [0, 1/4], at 0.")
_fixed("log_sigmoid", function=known.LOG_SIGMOID, summary="log(sigmoid(x)): slopes [0, 1].")
_fixed("abs", function=known.ABS, summary="|x|: slopes [−1, 1].")
_fixed("sin", function=known.SIN, summary="sin: slopes [−1, 1].")
_fixed("cos", function=known.COS, summary="cos: slopes [−1, 1].")
_fixed("atan", "arctan", function=known.ATAN, summary="atan: slopes [0, 1].")
_fixed("asinh", "arcsinh", function=known.ASINH, summary="asinh: slopes [0, 1].")
_fixed("erf", "special_erf", function=known.ERF, summary="erf: slopes [0, 2/√π], at 0.")
_fixed("erfc", "special_erfc", function=known.ERFC, summary="erfc: slopes [−2/√π, 0], at 0.")
_fixed(
    "silu",
    function=known.SILU,
    summary="SiLU: slopes [−0.099839320128867, 1.099839320128867], where x tanh(x/2) = ±2.",
)
_fixed("mish", function=known.MISH, summary="Mish: slopes [−0.112526122389463, 1.088498161251728].")
_fixed("hardswish", function=known.HARDSWISH, summary="Hardswish: slopes [−1/2, 3/2], next to ±3.")
_fixed("hardsigmoid", function=known.HARDSIGMOID, summary="Hardsigmoid: slopes [0, 1/6].")
_fixed(
    "selu",
    function=known.SELU,
    summary="SELU: slopes [0, αλ = 1.758099340847377], just below 0 (Klambauer et al. 2017).",
)


@rule("log_sigmoid_forward", kind="activation")
def log_sigmoid_forward(ctx: Context, x: Any) -> tuple[Var, Constant]:
    """log(sigmoid(x)): slopes [0, 1]."""
    return ctx.activation(ctx.variable(x), known.LOG_SIGMOID), Constant.exactly(torch.zeros(0, dtype=torch.float64))


@rule("gelu", kind="activation")
def gelu(ctx: Context, x: Any, approximate: str = "none") -> Var:
    """GELU: slopes [−0.128904145185155, 1.128904145185155], at ∓√2; tanh form 1.128993068658772.

    The tanh form's range is [−0.128993068658772, 1.128993068658772], at ∓1.41850408: wider than erf's.
    """
    forms = {"none": known.GELU, "tanh": known.GELU_TANH}
    if approximate not in forms:
        raise ctx.unsupported(f"approximate={approximate!r} is not a known form of GELU.")
    return ctx.activation(ctx.variable(x), forms[approximate])


@rule("leaky_relu", kind="activation")
def leaky_relu(ctx: Context, x: Any, negative_slope: Any = 0.01) -> Var:
    """LeakyReLU with slope a left of 0, any a: slopes [min(1, a), max(1, a)]."""
    return ctx.activation(ctx.variable(x), known.leaky_relu(_finite(ctx, negative_slope)))


@rule("prelu", "_prelu_kernel", kind="activation")
def prelu(ctx: Context, x: Any, weight: Any) -> Var:
    """PReLU: slopes [min(1, a), max(1, a)] per channel."""
    x, weight = ctx.variable(x), ctx.constant(weight, "slope")
    ctx.require_finite(weight)
    ball = weight.readings  # an interval of slopes costs nothing
    if ball.middle.numel() == 1:
        ball = ball.map(lambda s: s.reshape([1] * len(x.shape)))
    elif ball.middle.dim() == 1:
        ball = ball.map(lambda s: s.reshape([-1 if axis == 1 else 1 for axis in range(max(2, len(x.shape)))]))
    slopes = ball.middle
    if tuple(torch.broadcast_shapes(tuple(slopes.shape), x.shape)) != x.shape:
        raise ctx.unsupported(f"slopes of shape {weight.shape} do not fit values of shape {x.shape}.")
    if not bool(ball.spread.isfinite().all()):
        raise ctx.unsupported("its slopes are computed with unknown rounding error; store their values.")
    lower, upper = slopes, slopes
    if ball.radius is not None:
        lower = torch.nextafter(slopes - ball.radius, torch.tensor(-math.inf, dtype=torch.float64))
        upper = torch.nextafter(slopes + ball.radius, torch.tensor(math.inf, dtype=torch.float64))
    source = derived(lambda s: s.reshape(slopes.shape), weight.source)
    return ctx.activation(x, replace(known.prelu(slopes, lower, upper, ball.radius), sources=(source,)))


@rule("rrelu", kind="activation")
def rrelu(
    ctx: Context,
    x: Any,
    lower: Any = 1 / 8,
    upper: Any = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Var:
    """RReLU in eval mode: LeakyReLU with a = (lower + upper)/2."""
    if training:
        raise TrainModeError(f"rrelu at {ctx.where} is in training mode; call model.eval() first.")
    low, high = exactly(_finite(ctx, lower)), exactly(_finite(ctx, upper))
    zero, one = exactly(0), exactly(1)
    slope = (low + high) * exactly(0.5)
    return ctx.activation(ctx.variable(x), known.two_slopes((slope, zero), (one, zero), slope.low * 0, "leaky_relu"))


@rule("rrelu_with_noise", kind="activation")
def rrelu_with_noise(ctx: Context, x: Any, noise: Any, *settings: Any, **named: Any) -> Var:
    """RReLU in eval mode: LeakyReLU with a = (lower + upper)/2."""
    return rrelu(ctx, x, *settings, **named)


@rule("rrelu_with_noise_functional", kind="activation")
def rrelu_with_noise_functional(ctx: Context, x: Any, noise: Any, *settings: Any, **named: Any) -> tuple[Var, Any]:
    """RReLU in eval mode: LeakyReLU with a = (lower + upper)/2."""
    return rrelu(ctx, x, *settings, **named), noise


@rule("elu", kind="activation")
def elu(ctx: Context, x: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Var:
    """ELU: slopes [min(0, α), max(1, α)], times its scale; just below 0."""
    a, s, r = (exactly(_finite(ctx, value)) for value in (alpha, scale, input_scale))
    if r.sign < 0 and not (a * s).is_(0):
        raise ctx.not_lipschitz(f"with input_scale {r.middle} its left branch grows exponentially.")
    return ctx.activation(ctx.variable(x), known.elu(s, a * s, r))


@rule("celu", kind="activation")
def celu(ctx: Context, x: Any, alpha: Any = 1.0) -> Var:
    """CELU, α > 0: slopes [0, 1]."""
    alpha = _finite(ctx, alpha)
    if alpha <= 0.0:
        raise ctx.not_lipschitz(f"with alpha {alpha} it grows exponentially; alpha must be positive.")
    return ctx.activation(ctx.variable(x), known.celu(alpha))


@rule("softplus", kind="activation")
def softplus(ctx: Context, x: Any, beta: Any = 1, threshold: Any = 20) -> Var:
    """Softplus, any β ≠ 0: slopes [0, 1].

    Bounds are for the function (1/β) log(1 + exp(βx)). torch returns x itself where βx exceeds ``threshold``,
    "for numerical stability", a jump of log1p(exp(−threshold))/β. From threshold 20 on (the default) the jump is at
    most 1.1e-10 of the value there, whatever β: less than float32 and the lower precisions resolve, so rounding. In
    float64 it is rounding only while it is small: where it exceeds 1e-6 (β below 2e-3 at threshold 20) the function
    that runs is discontinuous for anyone who looks, and is refused, as is every smaller threshold. With a threshold
    of 40 or more there is no jump in float64 either.
    """
    beta, threshold = _finite(ctx, beta), float(number(threshold))
    if beta == 0.0:
        raise ctx.not_lipschitz("beta is 0.")
    jump = _jump(threshold) / abs(beta)
    resolved = ctx.dtype not in (torch.float32, torch.float16, torch.bfloat16) and threshold < _NO_JUMP
    if not threshold >= _LEAST_THRESHOLD or (resolved and jump > _LARGEST_JUMP):
        advice = f"{_LEAST_THRESHOLD:g} (the default)" if not threshold >= _LEAST_THRESHOLD else f"{_NO_JUMP:g}"
        raise ctx.not_lipschitz(
            f"with beta {beta:g} and threshold {threshold:g} the function jumps by {jump:.3g} where it switches to the "
            f"identity; use a threshold of {advice} or more."
        )
    return ctx.activation(ctx.variable(x), known.softplus(beta))


def _jump(threshold: float) -> float:
    return max(0.0, -threshold) + math.log1p(math.exp(-abs(threshold)))


@rule("hardtanh", kind="activation")
def hardtanh(ctx: Context, x: Any, min_val: Any = -1, max_val: Any = 1) -> Var:
    """Hardtanh and ReLU6: slopes [0, 1]."""
    return _clamp(ctx, x, min_val, max_val, "hardtanh")


@rule("relu6", kind="activation")
def relu6(ctx: Context, x: Any) -> Var:
    """ReLU6: slopes [0, 1]."""
    return _clamp(ctx, x, 0.0, 6.0, "relu6")


@rule("clamp", "clip", kind="activation")
def clamp(ctx: Context, x: Any, min: Any = None, max: Any = None) -> Var:
    """Clamp between constants (numbers or tensors): slopes [0, 1]."""
    return _clamp(ctx, x, min, max, "clamp")


@rule("clamp_min", kind="activation")
def clamp_min(ctx: Context, x: Any, min: Any) -> Var:
    """max(x, constant): slopes [0, 1]."""
    return _clamp(ctx, x, min, None, "clamp")


@rule("clamp_max", kind="activation")
def clamp_max(ctx: Context, x: Any, max: Any) -> Var:
    """min(x, constant): slopes [0, 1]."""
    return _clamp(ctx, x, None, max, "clamp")


def _clamp(ctx: Context, x: Any, low: Any, high: Any, name: str) -> Var:
    x = ctx.variable(x)
    numbers = all(end is None or (is_number(end) and not getattr(end, "rounding", 0.0)) for end in (low, high))
    if numbers and _shapes_fit(x, low, high):
        a, b = (None if end is None else number(end) for end in (low, high))
        if any(end is not None and math.isnan(end) for end in (a, b)) or a == math.inf or b == -math.inf:
            raise ctx.unsupported(f"its ends {a} and {b} leave no finite value.")
        if name == "hardtanh" and (a, b) == (0.0, 6.0):
            name = "relu6"
        return ctx.activation(x, known.clamp(a, b, name))
    ends: list[Tensor] = []
    spreads: list[Tensor | None] = []
    for end, default in ((low, -math.inf), (high, math.inf)):
        constant = Constant.exactly(torch.tensor(default)) if end is None else ctx.constant(end, "end")
        value = constant.value
        if bool(torch.isnan(value).any()) or bool((value == -default).any()):
            raise ctx.unsupported("its ends leave no finite value.")
        ends.append(value.double())
        spreads.append(constant.readings.radius)
    shape = tuple(torch.broadcast_shapes(x.shape, *(tuple(end.shape) for end in ends)))
    if shape != x.shape:
        raise ctx.unsupported(f"its ends would broadcast {x.shape} to {shape}; expand the input first.")
    return ctx.activation(x, known.clamp_between(ends[0], ends[1], spreads[0], spreads[1]))


def _shapes_fit(x: Var, *constants: Any) -> bool:
    return all(len(c.shape) <= len(x.shape) for c in constants if isinstance(c, Constant))


@rule("softshrink", kind="activation")
def softshrink(ctx: Context, x: Any, lambd: Any = 0.5) -> Var:
    """Softshrink, λ ≥ 0: slopes [0, 1]."""
    threshold = _finite(ctx, lambd)
    if threshold < 0.0:
        raise ctx.not_lipschitz(f"with lambda {threshold} it is discontinuous.")
    return ctx.activation(ctx.variable(x), known.softshrink(threshold))


@rule("tanhshrink", kind="activation")
def tanhshrink(ctx: Context, x: Any) -> Var:
    """x − tanh(x): slopes [0, 1]."""
    return ctx.activation(ctx.variable(x), known.TANHSHRINK)


@rule("softsign", kind="activation")
def softsign(ctx: Context, x: Any) -> Var:
    """x/(1 + |x|): slopes [0, 1]."""
    return ctx.activation(ctx.variable(x), known.SOFTSIGN)


@rule("threshold", kind="activation")
def threshold(ctx: Context, x: Any, threshold: Any, value: Any) -> Var:
    """Threshold, x above t and a value below: slopes [0, 1] when the value is t, else discontinuous."""
    t, below = _finite(ctx, threshold), _finite(ctx, value)
    if t != below:
        raise ctx.not_lipschitz(
            f"threshold {t} with value {below} jumps at {t}; it is continuous only when the two are equal."
        )
    return ctx.activation(ctx.variable(x), known.clamp(t, None))


@rule("logaddexp", kind="activation")
def logaddexp(ctx: Context, a: Any, b: Any) -> Var:
    """log(exp(x) + exp(c)) with a constant number c: softplus(x − c) + c, slopes [0, 1]."""
    x, c = (a, b) if isinstance(a, Var) else (b, a)
    if isinstance(x, Var) and isinstance(c, Var):
        raise ctx.unsupported("both operands depend on the input; write torch.logsumexp of the two stacked.")
    x, c = ctx.variable(x), ctx.constant(c)
    if tuple(torch.broadcast_shapes(x.shape, c.shape)) != x.shape:
        raise ctx.unsupported("the constant would broadcast the input; expand the input first.")
    offset = Constant.within(c.floating, c.source)
    opposite = derived(lambda v: -v.double(), c.source)
    below = Constant.within(minus(exact(torch.zeros_like(offset.value)), offset.ball), opposite)
    same = Identity(x.shape)
    moved = ctx.affine([(x, same)], x.shape, below)
    return ctx.affine([(ctx.activation(moved, known.SOFTPLUS), same)], x.shape, offset)


def _finite(ctx: Context, x: Any) -> float:
    if not is_number(x):
        raise ctx.unsupported("a setting of it is not a number.")
    if isinstance(x, Constant) and x.error is not None:
        raise ctx.unsupported("a setting of it is computed with rounding; store its value.")
    value = number(x)
    if not math.isfinite(value):
        raise ctx.unsupported(f"a setting of it is {value}.")
    return value
