"""Functions of one entry: the error moves with the steepest slope nearby, and the kernel adds its own.

|φ̂(x̂) − φ(x)| ≤ |φ̂(x̂) − φ(x̂)| + L|x̂ − x| with L the largest slope of φ on the box of x widened by the error. The
first term is a count of roundings, of the result's size or of the argument's, that holds for the vectorised kernels
of PyTorch (SLEEF and MKL's VML, within 1 to 2 units in the last place, and glibc's at the ends of rows): each function
of a mathematical library is granted ``LIBRARY`` = 4 units in the last place, 8 u, and what is computed from it one u
for each operation. ``tests/execution/test_functions.py`` compares with float64 on a dense grid of float32 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, LIBRARY, UNIT, up
from lipcert.execution.outcome import Outcome, Slopes
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed
from lipcert.network.activations.steep import Exp, Log, Log1p, power, steep
from lipcert.network.slopes import slopes

#: (call, argument, largest result) → the kernel's own error over u, entry by entry.
Own = Callable[[Call, Executed, Tensor], Tensor]


def _of_result(count: float) -> Own:
    return lambda call, x, y: count * y


def _of_argument(count: float) -> Own:
    """Where a factor near 1 ± 1 is computed and multiplied with x: relative to x, not to the result."""
    return lambda call, x, y: count * x.reach


def _softplus(call: Call, x: Executed, y: Tensor) -> Tensor:
    """log(1 + e^{βx})/β: βx, up to the threshold t, is rounded before exp; beyond it log(1 + e^{−t})/β lacks."""
    beta, threshold = float(call.get("beta", 1.0)), float(call.get("threshold", 20.0))
    if not (beta > 0.0 and 0.0 < threshold <= 80.0):
        raise call.unsupported("its beta or threshold is unusual")
    left = math.exp(-threshold) / beta / UNIT * (1.0 + 2.0**-20)
    return (3.0 * LIBRARY + 2.0 * threshold) * y + torch.where(x.high * beta * (1 + 2.0**-20) > threshold, left, 0.0)


def _exponential(call: Call, x: Executed, y: Tensor) -> Tensor:
    """α(eˣ − 1), by expm1 or by exp and a difference: of the size of α where x < 0."""
    factors = {"elu": ("alpha", "scale"), "celu": ("alpha",), "selu": ()}[call.op]
    size = 1.7581 if call.op == "selu" else 1.0
    for name in factors:
        size *= abs(float(call.get(name, 1.0)))
    inner = abs(float(call.get("input_scale", 1.0)))
    if inner != 1.0:
        raise call.unsupported("it scales its argument")
    if call.op == "celu":  # the argument is divided by α before exp
        return (LIBRARY + 8.0) * (y + size) + 4.0 * x.reach
    return (LIBRARY + 8.0) * y + torch.where(x.low < 0, (LIBRARY + 8.0) * size, 0.0)


def _gelu(call: Call, x: Executed, y: Tensor) -> Tensor:
    """x(1 + erf(x/√2))/2: the parenthesis is within 16 u of its value, not of its size."""
    if float(x.reach.max()) > 1e9:
        raise call.unsupported("its argument may exceed 1e9")
    return (LIBRARY + 8.0) * x.reach


def _bounds(call: Call, x: Executed, y: Tensor) -> Tensor:
    """The two ends, rounded to float32."""
    ends = [call.get(name) for name in ("min", "max", "min_val", "max_val")]
    known = [Executed.number(e) if isinstance(e, (int, float)) else e for e in ends if e is not None]
    if not all(isinstance(e, Executed) for e in known):
        raise call.unsupported("its ends are no floats")
    return torch.full_like(y, max((float(e.error.max()) for e in known), default=0.0) / UNIT)


def _power(call: Call, x: Executed, y: Tensor) -> Tensor:
    exponent = call.get("exponent")
    if exponent not in (2, 3, 0.5, -0.5, -1, -2, 1):
        raise call.unsupported("its exponent is none of those that PyTorch computes by products and roots")
    return (LIBRARY + 4.0) * y


_OWN: dict[str, Own] = {
    "abs": _of_result(0.0),
    "relu": _of_result(0.0),
    "relu6": _of_result(0.0),
    "hardtanh": _bounds,
    "clamp": _bounds,
    "clip": _bounds,
    "softshrink": lambda call, x, y: 2.0 * y + 2.0 * abs(float(call.get("lambd", 0.5))),
    "threshold": lambda call, x, y: torch.full_like(
        y, 2.0 * (abs(float(call.get("threshold"))) + abs(float(call.get("value"))))
    ),
    "clamp_min": _bounds,
    "clamp_max": _bounds,
    "leaky_relu": _of_result(3.0),
    "prelu": _of_result(2.0),
    "_prelu_kernel": _of_result(2.0),
    "rrelu": _of_result(4.0),
    "tanh": _of_result(LIBRARY),
    "sigmoid": _of_result(LIBRARY + 4.0),
    "silu": _of_result(LIBRARY + 6.0),
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _exponential,
    "selu": _exponential,
    "celu": _exponential,
    "mish": _of_result(3.0 * LIBRARY + 4.0),
    "log_sigmoid": _of_result(2.0 * LIBRARY + 4.0),
    "hardswish": _of_argument(8.0),
    "hardsigmoid": lambda call, x, y: torch.full_like(y, 6.0),
    "erf": _of_result(LIBRARY),
    "erfc": lambda call, x, y: torch.full_like(y, 2.0 * LIBRARY),
    "exp": _of_result(LIBRARY),
    "expm1": _of_result(LIBRARY),
    "log": _of_result(LIBRARY),
    "log1p": _of_result(LIBRARY),
    "sin": lambda call, x, y: torch.full_like(y, LIBRARY),
    "cos": lambda call, x, y: torch.full_like(y, LIBRARY),
    "atan": _of_result(LIBRARY),
    "sqrt": _of_result(LIBRARY),  # by MKL, and so not always rounded correctly
    "rsqrt": _of_result(LIBRARY + 4.0),
    "reciprocal": _of_result(2.0),
    "square": _of_result(1.0),
    "pow": _power,
}

#: What an op computes where a pattern has taken its node: sqrt inside x/√(1 + ‖x‖²).
_BY_NAME = {
    "sqrt": power(0.5), "rsqrt": power(-0.5), "reciprocal": power(-1.0), "square": power(2.0),
    "exp": steep(Exp, "exp"), "log": steep(Log, "log"), "log1p": steep(Log1p, "log1p"),
}  # fmt: skip


@executed(*_OWN)
def _function(call: Call) -> Outcome:
    """The slope nearby times the error, the kernel's own error, and what flushing may take of argument and result."""
    x = call.varying[0]
    function = call.function or _BY_NAME.get(call.op)
    if function is None or (call.function is None and len(call.varying) > 1):
        raise call.unsupported("what it computes is no function of each entry that is known here")
    shape = call.box.low.shape
    alpha, beta = slopes(function, x.low.expand(shape), x.high.expand(shape))
    if x.error.shape == shape:
        # where it is the error alone that makes a kink possible, a better one may exclude it
        inner = slopes(function, x.box.low, x.box.high)
        wanted = ((beta - alpha) > 2.0 * (inner[1] - inner[0]) + 1e-3) & (x.error > 0)
        if bool(wanted.any()):
            x = call.refine(x, wanted)
            alpha, beta = slopes(function, x.low, x.high)
    part = Slopes(x, alpha.expand(shape), beta.expand(shape))
    moved = part.forwards(x.error)
    if not bool(moved.isfinite().all()):
        raise call.unsupported(
            "what reaches it, rounding included, may leave the interval on which it has a bounded slope"
        )
    reach = call.bounded(up(call.box.greatest + moved))
    own = _OWN[call.op](call, x, reach) * (UNIT * (1.0 + 2.0**-9))
    steepest = torch.maximum(alpha.abs(), beta.abs())
    own = up(own) + 4.0 * FLUSH * (1.0 + steepest.clamp(max=1e30) + x.reach)
    silent = (call.box.greatest == 0) & (steepest == 0)  # a ReLU that stays below zero
    return Outcome(torch.where(silent, 0.0, own), (part,))


__all__: list[str] = []
