"""How ops act on enclosures: ``function(target, *arguments)`` with Balls for floating operands.

Here those that act entry by entry; sums, products and norms are in ``folding_sums``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipcert.ops import enclosure as on
from lipcert.ops.enclosure import Ball

#: Ops that move, copy, drop or choose entries, or fill with zeros, without arithmetic.
MOVES = frozenset(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze permute transpose t mT numpy_T "  # noqa: SIM905
    "clone alias contiguous detach slice select index_select index expand expand_as view_as reshape_as repeat cat "
    "concat stack split lift_fresh_copy lift_fresh split_with_sizes chunk flip roll unbind diagonal tril triu narrow "
    "gather take "
    "slice_scatter select_scatter copy diag_embed diag movedim swapaxes rot90 tile repeat_interleave "
    "pixel_shuffle pixel_unshuffle unfold broadcast_to as_strided".split()
)
RULES: dict[str, Callable[..., Any]] = {}


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register how the ops of these names act; None from a rule says that it does not know this form."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            RULES[name] = function
        return function

    return register


def as_ball(x: Any) -> Ball:
    """An operand as a ball: numbers and whole tensors are exact."""
    if isinstance(x, Ball):
        if x.middle.is_floating_point():
            return x
        return Ball(x.middle.double(), None if x.radius is None else x.radius.expand(x.middle.shape))
    if isinstance(x, float):
        return on.exact(x)
    value = torch.as_tensor(x)
    if not value.is_floating_point() and not value.dtype == torch.bool and bool((value.abs() > 2**53).any()):
        raise ValueError("whole numbers beyond 2^53 are no doubles")
    return on.exact(value.double())


@rule("add")
def _add(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    b = as_ball(b) if alpha == 1 else on.times(as_ball(b), as_ball(alpha))
    return on.plus(as_ball(a), b)


@rule("sub")
def _sub(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    return _add(target, a, b, -alpha)


@rule("rsub")
def _rsub(target: Any, a: Any, b: Any, alpha: Any = 1) -> Ball:
    return _add(target, b, a, -alpha)


@rule("mul", "multiply")
def _mul(target: Any, a: Any, b: Any) -> Ball:
    return on.times(as_ball(a), as_ball(b))


@rule("div", "true_divide", "divide")
def _div(target: Any, a: Any, b: Any, rounding_mode: str | None = None) -> Ball:
    quotient = on.over(as_ball(a), as_ball(b))
    if rounding_mode is None:
        return quotient
    return on.monotone(torch.floor if rounding_mode == "floor" else torch.trunc, quotient, 0.0)


@rule("square")
def _square(target: Any, a: Any) -> Ball:
    return on.times(as_ball(a), as_ball(a))


@rule("reciprocal")
def _reciprocal(target: Any, a: Any) -> Ball:
    return on.over(on.exact(1.0), as_ball(a))


@rule("sqrt")
def _sqrt(target: Any, a: Any) -> Ball:
    return on.root(as_ball(a))


@rule("rsqrt")
def _rsqrt(target: Any, a: Any) -> Ball:
    return on.over(on.exact(1.0), on.root(as_ball(a)))


@rule("pow")
def _pow(target: Any, a: Any, exponent: Any) -> Ball | None:
    power = exponent.item() if isinstance(exponent, Tensor) and exponent.numel() == 1 else exponent
    if isinstance(power, Ball) and power.middle.numel() == 1 and power.radius is None:
        power = power.middle.item()
    if not isinstance(power, (int, float)) or power == 0 or abs(power) > 16 or 2 * power != int(2 * power):
        return None
    base = as_ball(a) if power == int(power) else on.root(as_ball(a))
    result = base
    for _ in range(abs(int(power if power == int(power) else 2 * power)) - 1):
        result = on.times(result, base)
    return result if power > 0 else on.over(on.exact(1.0), result)


@rule("abs", "neg", "relu")
def _contraction(target: Any, a: Any) -> Ball:
    return on.contraction(target, as_ball(a))


@rule("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum")
def _choose(target: Any, a: Any, *ends: Any, **named: Any) -> Ball:
    balls = [as_ball(x) for x in (a, *ends, *named.values()) if isinstance(x, (Ball, Tensor))]
    if len(balls) == 1:
        return on.contraction(lambda m: target(m, *ends, **named), balls[0])
    ends = tuple(as_ball(e).middle if e is not None else None for e in ends)
    named = {k: as_ball(e).middle if e is not None else None for k, e in named.items()}
    middle = target(as_ball(a).middle, *ends, **named)
    return on.chosen(lambda *_: middle, *balls)


@rule("amax", "amin")
def _extreme(target: Any, a: Any, dim: Any = (), keepdim: bool = False) -> Ball:
    ball = as_ball(a)
    radius = None if ball.radius is None else torch.amax(ball.radius, dim, keepdim)
    return Ball(target(ball.middle, dim, keepdim), radius)


@rule("max", "min")
def _largest(target: Any, a: Any, *rest: Any) -> Any:
    ball = as_ball(a)
    if not rest:
        return Ball(target(ball.middle), None if ball.radius is None else ball.radius.max())
    if ball.radius is not None or isinstance(rest[0], (Ball, Tensor)):
        return None
    values, places = target(ball.middle, *rest)
    return Ball(values, None), places


@rule(
    "exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "tanh", "sigmoid", "atan", "asinh", "sinh", "erf",
    "erfc", "acos", "asin", "log_sigmoid", "hardsigmoid",
)  # fmt: skip
def _monotone(target: Any, a: Any) -> Ball:
    return on.monotone(target, as_ball(a))


@rule("elu", "leaky_relu")
def _bent(target: Any, a: Any, slope: float = 1.0) -> Ball | None:
    return on.monotone(lambda m: target(m, slope), as_ball(a)) if slope >= 0 else None


@rule("softplus")
def _softplus(target: Any, a: Any, beta: float = 1, threshold: float = 20) -> Ball | None:
    """As in ``activations.softplus``: the curve itself, also beyond the threshold where torch leaves it."""
    return on.monotone(lambda m: target(m, 1, 40.0), as_ball(a)) if beta == 1 and threshold >= 20 else None


@rule("floor", "ceil", "round", "trunc", "sign", "sgn")
def _step(target: Any, a: Any, **named: Any) -> Ball | None:
    return None if named.get("decimals") else on.monotone(target, as_ball(a), 0.0)


@rule("sin", "cos")
def _wave(target: Any, a: Any) -> Ball:
    return on.gentle(target, as_ball(a))


@rule("to", "_to_copy")
def _to(target: Any, a: Any, *args: Any, **named: Any) -> Any:
    """Between floating dtypes the identity; towards whole numbers a step, known if the whole ball agrees."""
    dtype = next((v for v in (*args, *named.values()) if isinstance(v, torch.dtype)), None)
    ball = as_ball(a)
    if dtype is None or dtype.is_floating_point:
        return ball if isinstance(a, Ball) or dtype is not None else None
    if dtype.is_complex or not isinstance(a, Ball):
        return None
    if dtype == torch.bool:
        zero = ball.middle == 0
        certain = ball.radius is None or bool((ball.middle.abs() > ball.radius).all())
        return ~zero if certain else None
    stepped = on.monotone(torch.trunc, ball, 0.0)
    return stepped.middle.to(dtype) if stepped.radius is None else None
