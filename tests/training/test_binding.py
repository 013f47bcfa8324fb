"""Networks with other parameters put in equal new captures, and their constants have the right gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, InputError
from lipcert.training.binding import bind, names
from tests.network.test_source import MODELS, case, constants, values
from tests.zoo import ZOO

D = torch.float64


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    model, example = case(name)
    return copy.deepcopy(model).double(), torch.randn(1, *example.shape[1:], generator=seeded(), dtype=D)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(model: nn.Module, x: Tensor) -> None:
    """One of an optimiser, and statistics that have moved on."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4) if list(model.parameters()) else None
    if optimiser is not None:
        model(x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.mul_(1.1).add_(0.01)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [*MODELS, *(name for name, _, _ in ZOO)])
def test_after_a_step_it_is_what_a_new_capture_gives(name: str) -> None:
    model, x = prepared(name)
    network = capture(model, x)
    assert names(network) <= set(values(model))
    step(model, x)
    with torch.no_grad():
        bound = bind(network, values(model))
    again = capture(model, x)
    for (own, _), (expected, _) in zip(constants(bound), constants(again), strict=False):
        assert float((own - expected).detach().abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
    with torch.no_grad():
        assert torch.allclose(bound.forward(x[None])[0], again.forward(x[None])[0], rtol=1e-11, atol=1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", list(MODELS))
def test_gradients_are_those_of_the_model(name: str) -> None:
    """Of a random function of the value, against a quotient in a random direction of all parameters."""
    model, x = prepared(name)
    network = capture(model, x)
    parameters = {n: p.detach().clone().requires_grad_(p.is_floating_point()) for n, p in values(model).items()}
    moving = {n for n, _ in model.named_parameters()} | {n for n in parameters if "running" in n}
    used = [n for n in sorted(names(network)) if n in moving]
    weights = torch.randn(network.out_shape, generator=seeded(1), dtype=D)

    def value(given: dict[str, Tensor]) -> Tensor:
        return (bind(network, given).forward(x[None])[0] * weights).sum()

    gradients = torch.autograd.grad(value(parameters), [parameters[n] for n in used], allow_unused=True)
    directions = {n: torch.randn(parameters[n].shape, generator=seeded(2), dtype=D) for n in used}
    slope = sum(float((g * directions[n]).sum()) for n, g in zip(used, gradients, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for h in (1e-6, -1e-6):
            moved = {n: p + h * directions[n] if n in directions else p for n, p in parameters.items()}
            ends.append(float(value(moved)))
            if name == "spectral norm":  # forward of a module takes u and v as they are
                assert float((functional_call(model, moved, (x,)) * weights).sum()) == pytest.approx(
                    ends[-1], rel=1e-10
                )
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_precision_is_as_asked() -> None:
    model, x = prepared("batch norm of planes")
    bound = bind(capture(model, x), values(model), torch.float32)
    assert bound.forward(x[None].float()).dtype == torch.float32


def test_parameters_that_do_not_fit_are_named() -> None:
    model, x = prepared("batch norm")
    network, given = capture(model, x), values(model)
    with pytest.raises(InputError, match=r"1\.running_var"):
        bind(network, {n: p for n, p in given.items() if n != "1.running_var"})
    with pytest.raises(InputError, match=r"0\.weight"):
        bind(network, {**given, "0.weight": torch.zeros(4, 6, dtype=D)})


def test_a_constant_of_unknown_origin_is_named() -> None:
    model, x = prepared("weight norm")
    network = capture(model, x)
    nodes = [replace(n, source=None) if getattr(n, "source", None) is not None else n for n in network.nodes]
    with pytest.raises(CaptureError, match=r"linear at .*shape \(1, 4\)|linear at .*shape \(4,\)"):
        bind(replace(network, nodes=tuple(nodes)), values(model))
