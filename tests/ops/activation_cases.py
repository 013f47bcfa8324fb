"""One row per activation: how to write it, its exact slope range, and where the two ends are attained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import torch
import torch.nn.functional as F
from cases import call
from torch import nn

aten = torch.ops.aten
FAR = 60.0  # where a limit of the slope is reached to the last bit

mp.mp.dps = 50


def phi(x):
    return (1 + mp.erf(x / mp.sqrt(2))) / 2


def gelu_slope(x):
    return phi(x) + x * mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def gelu_tanh_slope(x):
    k, a = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    u = k * (x + a * x**3)
    return (1 + mp.tanh(u)) / 2 + x * mp.sech(u) ** 2 * k * (1 + 3 * a * x * x) / 2


def silu_slope(x):
    s = 1 / (1 + mp.exp(-x))
    return s + x * s * (1 - s)


def mish_slope(x):
    s = 1 / (1 + mp.exp(-x))
    t = mp.log(1 + mp.exp(x))
    return mp.tanh(t) + x * mp.sech(t) ** 2 * s


def extreme(slope: Callable, start: float) -> tuple[mp.mpf, mp.mpf]:
    """(x, slope(x)) at the stationary point of the slope nearest to ``start``, to 50 digits."""
    x = mp.findroot(lambda t: mp.diff(slope, t), start)
    return x, slope(x)


SMOOTH = {  # name in lipcert.ops.nonlinearities: slope, start of the search for the least and the greatest
    "GELU": (gelu_slope, -1.4, 1.4),
    "GELU_TANH": (gelu_tanh_slope, -1.4, 1.4),
    "SILU": (silu_slope, -2.4, 2.4),
    "MISH": (mish_slope, -2.3, 1.5),
}
ENDS = {name: (extreme(s, a), extreme(s, b)) for name, (s, a, b) in SMOOTH.items()}
G, GT, SW, MI = (ENDS[name] for name in ("GELU", "GELU_TANH", "SILU", "MISH"))
TWO_BY_ROOT_PI = 2 / mp.sqrt(mp.pi)
SELU = mp.mpf("1.0507009873554804934193349852946") * mp.mpf("1.6732632423543772848170429916717")


@dataclass(frozen=True)
class Row:
    """``covers``: registered names the row answers for; ``at``: where least and greatest slope are taken."""

    name: str
    make: Callable[[], nn.Module]
    low: float
    high: float
    at: tuple[float, float]
    covers: str = ""


def row(name, make, ends, at, covers=""):
    return Row(name, make, float(ends[0]), float(ends[1]), tuple(map(float, at)), covers)


def optimum(name, make, ends, covers="", scale=1.0):
    """A row whose ends are a pair of (x, slope), the activation being evaluated at scale·x."""
    (a, low), (b, high) = ends
    return row(name, make, (low, high), (a / scale, b / scale), covers)


def prelu(slopes):
    layer = nn.PReLU(len(slopes))
    layer.weight.data = torch.tensor(slopes)
    return layer


UNIT, LEFT, RIGHT, NEAR = (0.0, 1.0), (-FAR, FAR), (FAR, 0.0), 1e-13
ROWS = [
    row("relu", nn.ReLU, UNIT, (-1, 1), "relu"),
    row("relu inplace", lambda: nn.ReLU(inplace=True), UNIT, (-1, 1)),
    row("leaky", nn.LeakyReLU, (0.01, 1), (-1, 1), "leaky_relu"),
    row("leaky -1.5", lambda: nn.LeakyReLU(-1.5), (-1.5, 1), (-1, 1)),
    row("leaky 3", call(lambda x: F.leaky_relu(x, 3.0)), (1, 3), (1, -1)),
    row("prelu", lambda: prelu([0.5]), (0.5, 1), (-1, 1), "prelu"),
    row("prelu -2", lambda: prelu([-2.0]), (-2, 1), (-1, 1)),
    row(
        "prelu kernel",
        call(lambda x: aten._prelu_kernel(x, torch.tensor([[0.25]]).double())),
        (0.25, 1),
        (-1, 1),
        "_prelu_kernel",
    ),
    row("rrelu", nn.RReLU, ((1 / 8 + 1 / 3) / 2, 1), (-1, 1), "rrelu"),
    row(
        "rrelu inplace",
        lambda: nn.RReLU(0.2, 0.4, inplace=True),
        (0.3, 1),
        (-1, 1),
        "rrelu_with_noise_functional rrelu_with_noise",
    ),
    row("elu", nn.ELU, UNIT, LEFT, "elu"),
    row("elu 3", lambda: nn.ELU(3.0), (0, 3), (-FAR, -NEAR)),
    row("elu -0.5", call(lambda x: F.elu(x, -0.5)), (-0.5, 1), (-NEAR, 1)),
    row("elu scaled", call(lambda x: aten.elu(x, 1.5, 2.0, 3.0)), (0, 9), (-FAR, -NEAR)),
    row("celu", nn.CELU, UNIT, LEFT, "celu"),
    row("celu 0.3", lambda: nn.CELU(0.3), UNIT, LEFT),
    row("selu", nn.SELU, (0, SELU), (-FAR, -NEAR), "selu"),
    row("selu inplace", lambda: nn.SELU(inplace=True), (0, SELU), (-FAR, -NEAR)),
    optimum("gelu", nn.GELU, G, "gelu"),
    optimum("gelu tanh", lambda: nn.GELU("tanh"), GT),
    optimum("silu", nn.SiLU, SW, "silu"),
    optimum("mish", nn.Mish, MI, "mish"),
    row("softplus", nn.Softplus, UNIT, LEFT, "softplus"),
    row("softplus 5 30", lambda: nn.Softplus(5.0, 30.0), UNIT, LEFT),
    row("tanh", nn.Tanh, UNIT, RIGHT, "tanh"),
    row("sigmoid", nn.Sigmoid, (0, 0.25), RIGHT, "sigmoid"),
    row("logsigmoid", nn.LogSigmoid, UNIT, (FAR, -FAR), "log_sigmoid"),
    row(
        "logsigmoid forward",
        call(lambda x: aten.log_sigmoid_forward(x)[0]),
        UNIT,
        (FAR, -FAR),
        "log_sigmoid_forward",
    ),
    row("hardtanh", nn.Hardtanh, UNIT, (2, 0), "hardtanh"),
    row("relu6", nn.ReLU6, UNIT, (-1, 1)),
    row("aten relu6", call(lambda x: aten.relu6(x)), UNIT, (-1, 1), "relu6"),
    row("clamp", call(lambda x: x.clamp(-0.5, 2)), UNIT, (-1, 1), "clamp"),
    row("clip", call(lambda x: torch.clip(x, -0.5, 2)), UNIT, (-1, 1), "clip"),
    row(
        "clamp tensors",
        call(lambda x, a, b: torch.clamp(x, a, b), torch.tensor([-1.0]), torch.tensor([1.0])),
        UNIT,
        (-3, 0),
    ),
    row("clamp min", call(lambda x: torch.clamp_min(x, 0.25)), UNIT, (0, 1), "clamp_min"),
    row("clamp max", call(lambda x: torch.clamp_max(x, 0.25)), UNIT, (1, 0), "clamp_max"),
    row("hardswish", nn.Hardswish, (-0.5, 1.5), (-3 + NEAR, 3 - NEAR), "hardswish"),
    row("hardsigmoid", nn.Hardsigmoid, (0, 1 / 6), (9, 0), "hardsigmoid"),
    row("softshrink", lambda: nn.Softshrink(0.7), UNIT, (0, 3)),
    row("aten softshrink", call(lambda x: aten.softshrink(x, 0.3)), UNIT, (0, 3), "softshrink"),
    row("tanhshrink", nn.Tanhshrink, UNIT, (0, FAR), "tanhshrink"),
    row("softsign", nn.Softsign, UNIT, (1e13, 0), "softsign"),
    row("abs", call(torch.abs), (-1, 1), (-1, 1), "abs"),
    row("sin", call(torch.sin), (-1, 1), (mp.pi, 0), "sin"),
    row("cos", call(torch.cos), (-1, 1), (mp.pi / 2, -mp.pi / 2), "cos"),
    row("atan", call(torch.atan), UNIT, (1e13, 0), "atan arctan"),
    row("asinh", call(torch.asinh), UNIT, (1e13, 0), "asinh arcsinh"),
    row("erf", call(torch.erf), (0, TWO_BY_ROOT_PI), RIGHT, "erf special_erf"),
    row("erfc", call(torch.erfc), (-TWO_BY_ROOT_PI, 0), (0, FAR), "erfc special_erfc"),
    row("hypot", call(lambda x: torch.hypot(x, torch.full_like(x, 0.5))), (-1, 1), (-1e13, 1e13), "hypot"),
    row("nan_to_num", call(lambda x: torch.nan_to_num(torch.tanh(x))), UNIT, RIGHT, "nan_to_num"),
    row(
        "smooth_l1_loss",
        call(lambda x: F.smooth_l1_loss(x, torch.ones_like(x), reduction="none", beta=0.3)),
        (-1, 1),
        (-1, 3),
        "smooth_l1_loss",
    ),
    row(
        "huber_loss",
        call(lambda x: F.huber_loss(x, torch.ones_like(x), reduction="none", delta=0.3)),
        (-0.3, 0.3),
        (-1, 3),
        "huber_loss",
    ),
    row("threshold", lambda: nn.Threshold(0.5, 0.5), UNIT, (0, 1), "threshold"),
    row(
        "logaddexp",
        call(lambda x: torch.logaddexp(x, torch.tensor(0.5, dtype=x.dtype))),
        UNIT,
        LEFT,
        "logaddexp",
    ),
]

# -- written by hand: (name, function of x, ends, points) ---------------------------------------------------

ERF_K, TANH_K = 0.7071067811865476, 0.7978845608028654


def scaled(ends, factor):
    (a, low), (b, high) = ends
    return ((a, factor * low), (b, factor * high))


HAND = [
    optimum("x*sigmoid(x)", call(lambda x: x * torch.sigmoid(x)), SW),
    optimum("sigmoid(x).mul(x)", call(lambda x: x.clone().mul_(x.sigmoid())), SW),
    optimum("swish 1.702", call(lambda x: x * torch.sigmoid(1.702 * x)), SW, scale=1.702),
    optimum("swish bx", call(lambda x: (3 * x) * torch.sigmoid(-2 * x) / 4), scaled(SW, 0.75), scale=-2),
    optimum("swish twice", call(lambda x: (x + 1) * torch.sigmoid(x + 1)), tuple((a - 1, v) for a, v in SW)),
    optimum("swish parameter", call(lambda x, b: x * torch.sigmoid(b * x), torch.tensor(1.5)), SW, scale=1.5),
    optimum("swish channel", call(lambda x, b: x * torch.sigmoid(b * x), torch.full((3, 1), 0.5)), SW, scale=0.5),
    optimum("x/(1+exp(-x))", call(lambda x: x / (1 + torch.exp(-x))), SW),
    optimum("x*(1/(1+exp(-x)))", call(lambda x: x * (1 / (1 + torch.exp(-x)))), SW),
    optimum("swish tanh", call(lambda x: x * (1 + torch.tanh(x / 2)) / 2), SW),
    optimum("x*(1-sigmoid(x))", call(lambda x: x * (1 - torch.sigmoid(x))), SW, scale=-1),
    row("1/(1+exp(-x))", call(lambda x: 1 / (1 + torch.exp(-x))), (0, 0.25), RIGHT, "reciprocal exp"),
    row(
        "2/(1+exp(-x))",
        call(lambda x: torch.full_like(x, 2) / (1 + torch.exp(-x))),
        (0, 0.5),
        RIGHT,
        "full_like",
    ),
    optimum("mish", call(lambda x: x * torch.tanh(F.softplus(x))), MI),
    optimum("mish log", call(lambda x: x * torch.tanh(torch.log(1 + torch.exp(x)))), MI, "log"),
    optimum("mish log1p", call(lambda x: torch.log1p(x.exp()).tanh() * x), MI, "log1p"),
    optimum("mish 2x", call(lambda x: x * torch.tanh(F.softplus(2 * x))), MI, scale=2),
    optimum("gelu erf", call(lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))), G),
    optimum("gelu erf 2", call(lambda x: x * 0.5 * (1.0 + torch.erf(x * ERF_K))), G),
    optimum("gelu erf 3", call(lambda x: x * (0.5 + 0.5 * torch.erf(x * ERF_K))), G),
    optimum("gelu erf k", call(lambda x: 3 * x * (1 - torch.erf(2 * x))), scaled(G, 6.0), scale=-2 * mp.sqrt(2)),
    optimum("gelu erfc", call(lambda x: 0.5 * x * torch.erfc(-x * ERF_K)), G),
    optimum(
        "gelu tanh pow",
        call(lambda x: 0.5 * x * (1 + torch.tanh(TANH_K * (x + 0.044715 * torch.pow(x, 3))))),
        GT,
    ),
    optimum("gelu tanh xxx", call(lambda x: 0.5 * x * (1 + torch.tanh(TANH_K * (x + 0.044715 * x * x * x)))), GT),
    optimum(
        "gelu tanh x(1+x²)",
        call(lambda x: 0.5 * x * (1 + torch.tanh(x * TANH_K * (1 + 0.044715 * x * x)))),
        GT,
    ),
    optimum(
        "gelu tanh square",
        call(lambda x: 0.5 * x * (1 + torch.tanh(x * TANH_K * (1 + 0.044715 * x.square())))),
        GT,
    ),
    optimum("gelu sigmoid", call(lambda x: x * torch.sigmoid(2 * TANH_K * (x + 0.044715 * x**3))), GT),
    row("hardswish relu6", call(lambda x: x * F.relu6(x + 3) / 6), (-0.5, 1.5), (-3 + NEAR, 3 - NEAR)),
    row(
        "hardswish clamp",
        call(lambda x: x * torch.clamp(x + 3, 0, 6) / 6),
        (-0.5, 1.5),
        (-3 + NEAR, 3 - NEAR),
    ),
    row("hardswish hardsigmoid", call(lambda x: x * F.hardsigmoid(x)), (-0.5, 1.5), (-3 + NEAR, 3 - NEAR)),
    row("hardswish inner", call(lambda x: ((x + 3) / 6).clamp(0, 1) * x), (-0.5, 1.5), (-3 + NEAR, 3 - NEAR)),
    row("x*clamp(1-2x)", call(lambda x: x * torch.clamp(1 - 2 * x, -1, 1)), (-3, 1), (1 - NEAR, -1)),
    row("softsign", call(lambda x: x / (1 + torch.abs(x))), UNIT, (1e13, 0)),
    row("softsign 2", call(lambda x: x / (2 + 3 * x.abs())), (0, 0.5), (1e13, 0)),
    row("log(1+exp)", call(lambda x: torch.log(1 + torch.exp(x))), UNIT, (-FAR, 30)),
    row("log1p(exp)", call(lambda x: torch.log1p(torch.exp(x))), UNIT, (-FAR, 30)),
    row("log(sigmoid)", call(lambda x: torch.log(torch.sigmoid(x))), UNIT, (FAR, -FAR)),
    row("where leaky", call(lambda x: torch.where(x > 0, x, 0.1 * x)), (0.1, 1), (-1, 1), "where.self gt"),
    row("where le", call(lambda x: torch.where(x <= 0, -2 * x, x)), (-2, 1), (-1, 1), "le"),
    row("where relu", call(lambda x: torch.where(x >= 0, x, 0.0)), UNIT, (-1, 1), "where.ScalarOther ge"),
    row("where relu 2", call(lambda x: torch.where(x < 0, 0.0, x)), UNIT, (-1, 1), "where.ScalarSelf lt"),
    row("where zeros", call(lambda x: torch.where(x > 0, x, torch.zeros_like(x))), UNIT, (-1, 1), "zeros_like"),
    row("where new", call(lambda x: torch.where(x > 0, x, x.new_zeros(()))), UNIT, (-1, 1), "new_zeros"),
    row("where shifted", call(lambda x: torch.where(x > 1, 2 * x - 1, x)), (1, 2), (0, 2)),
    row("where elu", call(lambda x: torch.where(x > 0, x, torch.exp(x) - 1)), UNIT, LEFT),
    row(
        "where elu 1.3",
        call(lambda x: torch.where(x > 0, x, 1.3 * torch.expm1(x))),
        (0, 1.3),
        (-FAR, -NEAR),
        "expm1",
    ),
    row("where elu third", call(lambda x: torch.where(x > 0, x, (torch.exp(x) - 1) / 3)), UNIT, LEFT),
    row("where elu safe", call(lambda x: torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)), UNIT, LEFT),
    row("where elu relu", call(lambda x: torch.where(x > 0, x, torch.exp(-F.relu(-x)) - 1)), UNIT, LEFT),
    row("where selu", call(lambda x: 1.5 * torch.where(x < 0, 2 * (x.exp() - 1), x)), (0, 3), (-FAR, -NEAR)),
    row("masked fill", call(lambda x: x.masked_fill(x < 0, 0)), UNIT, (-1, 1), "masked_fill"),
    row("mask", call(lambda x: x * (x > 0)), UNIT, (-1, 1)),
    row("mask float", call(lambda x: (x < 0).to(x.dtype) * x), UNIT, (1, -1)),
    row(
        "softshrink",
        call(lambda x: torch.where(x.abs() > 0.5, x - 0.5 * torch.sign(x), 0 * x)),
        UNIT,
        (0, 3),
        "sign sgn",
    ),
    row("sqrt(x²+c)", call(lambda x: torch.sqrt(x * x + 0.1)), (-1, 1), (-1e13, 1e13), "sqrt"),
    row("sqrt shifted", call(lambda x: torch.sqrt((x - 1) ** 2 + 4)), (-1, 1), (-1e13, 1e13), "pow"),
    row("sqrt 4x²", call(lambda x: (4 * x.square() + 1) ** 0.5), (-2, 2), (-1e13, 1e13), "square"),
    row("gaussian", call(lambda x: torch.exp(-x * x / 2)), (-mp.exp(-0.5), mp.exp(-0.5)), (1, -1)),
    row("x - tanh(x)", call(lambda x: x - torch.tanh(x)), UNIT, (0, FAR)),
    row("power 1", call(lambda x: torch.relu(x**1)), UNIT, (-1, 1)),
    row(
        "ones",
        call(lambda x: torch.relu(x + torch.ones_like(x) + x.new_ones(1) + x.new_full((1,), 2.0))),
        UNIT,
        (-9, 1),
        "ones_like new_ones new_full",
    ),
]
