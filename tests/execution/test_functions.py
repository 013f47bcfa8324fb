"""The roundings granted to functions, on a grid of float32 numbers of all sizes, contiguous and strided."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lipcert
from tests.zoo import Apply

Function = Callable[[Tensor], Tensor]

#: name → function, sign of its arguments (0: both), largest argument.
FUNCTIONS: dict[str, tuple[Function, int, float]] = {
    "tanh": (torch.tanh, 0, 20.0), "sigmoid": (torch.sigmoid, 0, 80.0), "silu": (F.silu, 0, 80.0),
    "gelu": (F.gelu, 0, 100.0), "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), 0, 100.0),
    "softplus": (F.softplus, 0, 100.0), "softplus β": (lambda x: F.softplus(x, 3.0), 0, 30.0),
    "elu": (F.elu, 0, 100.0), "elu α": (lambda x: F.elu(x, 0.3), 0, 100.0), "selu": (F.selu, 0, 100.0),
    "celu": (lambda x: F.celu(x, 0.3), 0, 100.0), "mish": (F.mish, 0, 80.0), "logsigmoid": (F.logsigmoid, 0, 80.0),
    "hardswish": (F.hardswish, 0, 100.0), "hardsigmoid": (F.hardsigmoid, 0, 100.0), "erf": (torch.erf, 0, 20.0),
    "exp": (torch.exp, 0, 80.0), "expm1": (torch.expm1, 0, 80.0), "log": (torch.log, 1, 3e38),
    "log1p": (torch.log1p, 1, 3e38), "sin": (torch.sin, 0, 1e6), "cos": (torch.cos, 0, 1e6),
    "atan": (torch.atan, 0, 3e38), "sqrt": (torch.sqrt, 1, 3e38), "rsqrt": (torch.rsqrt, 1, 3e38),
    "reciprocal": (torch.reciprocal, 1, 1e37), "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), 0, 3e38),
    "cube": (lambda x: x**3, 0, 1e12), "root": (lambda x: x**0.5, 1, 3e38),
    "inverse square": (lambda x: x**-2, 1, 1e18),
    "relu6": (F.relu6, 0, 1e30), "hardtanh": (lambda x: F.hardtanh(x, -0.1, 0.3), 0, 1e30),
    "clamp": (lambda x: x.clamp(-0.1, 0.3), 0, 1e30), "softshrink": (lambda x: F.softshrink(x, 0.3), 0, 1e30),
    "softsign": (F.softsign, 0, 1e30), "abs": (torch.abs, 0, 3e38),
}  # fmt: skip


def grid(sign: int, most: float, count: int) -> Tensor:
    """Float32 numbers with bits evenly spread, from 1e-20 to the largest."""
    first, last = (int(torch.tensor(v, dtype=torch.float32).view(torch.int32)) for v in (1e-15, most))
    bits = torch.linspace(first, last, count, dtype=torch.float64).to(torch.int32)
    positive = bits.view(torch.float32)
    return positive if sign > 0 else torch.cat([positive, -positive])


@pytest.mark.few(3)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_keep_to_what_they_are_granted(name: str) -> None:
    function, sign, most = FUNCTIONS[name]
    x = grid(sign, most, 901)
    model = Apply(lambda s, x: function(x)).eval()
    bounds = lipcert.execution_error(model, x[None], lipcert.Ball(x, 0.0)).bounds
    real = function(x.double())
    strided = torch.stack([x, x], 1)[:, 0]
    for run in (function(x), function(strided), torch.cat([function(part) for part in x.split(5)])):
        assert bool(((run.double() - real).abs() <= bounds).all())
    assert bool((bounds <= 2.0**-19 * (real.abs() + x.double().abs() + 1.0)).all())
