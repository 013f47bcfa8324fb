"""Every op and every activation can be enclosed: the proof of lower bounds knows all torch functions that occur."""

from __future__ import annotations

import pytest
import torch
from activation_cases import HAND, ROWS
from common import BY_NAME, captured
from torch import Tensor, nn

from lipcert.capture.torch_export import capture
from lipcert.errors import LipcertError
from lipcert.network.graph import Network
from lipcert.ranges.enclosed_run import derivative

ACTIVATIONS = {row.name: row for row in [*ROWS, *HAND]}
#: torch's own derivative is at fault: its celu inverts alpha in float32, 1 − tanh² cancels.
COARSE = {"celu 0.3": 1e-6, "tanh": 1e-12, "gelu": 1e-12}


def check(module: nn.Module, net: Network, x: Tensor, v: Tensor, tolerance: float = 1e-13) -> None:
    found = derivative(net, x[None], v[None])
    try:
        _, plain = torch.autograd.functional.jvp(lambda t: module(t.clone()), x, v)
    except NotImplementedError:  # no second derivative, as of cdist
        plain = torch.autograd.functional.jacobian(module, x).reshape(-1, x.numel()) @ v.reshape(-1)
    mid, rad, plain = found.mid.reshape(-1), found.rad.reshape(-1), plain.reshape(-1)
    if not plain.numel():
        return
    size = float(plain.abs().max())
    assert bool(((plain - mid).abs() <= rad + tolerance * size).all())
    assert float(rad.max()) <= 1e-9 * max(size, 1e-5)


@pytest.mark.few(26)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_op_is_enclosed(name):
    case, module, net = captured(name)
    generator = torch.Generator().manual_seed(1)
    for scale in (1.0, 10.0):
        x, v = (torch.randn(1, *case.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        check(module, net, scale * x, v)


@pytest.mark.few(15)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_enclosed(name):
    torch.manual_seed(0)
    module = ACTIVATIONS[name].make().eval().double().requires_grad_(False)
    for shape in ((4,), (3,), (4, 5), (3, 5)):
        try:
            net = capture(module, torch.randn(2, *shape, dtype=torch.float64))
            break
        except LipcertError as problem:
            reason = problem
    else:
        pytest.fail(f"no input shape fits: {reason}")
    generator = torch.Generator().manual_seed(1)
    for scale in (1.0, 6.0, 30.0):
        x, v = (torch.randn(1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
        if "hardsigmoid" in name:
            continue  # torch has no derivative of its own to compare with
        check(module, net, scale * x, v, COARSE.get(name, 1e-13))
