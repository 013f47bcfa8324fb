"""The watch over rules: wrong constants are found at capture and called a bug of lipcert; right ones never are."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.quotients import check_quotients
from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError
from lipcert.network.graph import ActivationNode, GainNode, Network
from lipcert.network.nonlinearity import GainFunction, Nonlinearity
from lipcert.ops import nonlinearities as known
from lipcert.ops import registry
from lipcert.ops.softmax import Softmax

ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ELU(2.0), nn.CELU(),
    nn.SELU(), nn.Mish(), nn.Softplus(beta=20), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.ReLU6(),
    nn.LeakyReLU(0.1), nn.LogSigmoid(), nn.Softshrink(), nn.Tanhshrink(), nn.Softsign(), nn.PReLU(3),
]  # fmt: skip
BLOCKS = [nn.LayerNorm(3), nn.RMSNorm(3, eps=1e-5), nn.Softmax(-1), nn.GroupNorm(1, 3)]


def with_function(network: Network, kind: type, change: Callable[[Any], Any]) -> Network:
    nodes = (replace(n, function=change(n.function)) if isinstance(n, kind) else n for n in network.nodes)
    return Network(tuple(nodes))


@pytest.mark.few(14)
@pytest.mark.parametrize("module", ACTIVATIONS, ids=lambda m: str(m))
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_slopes_that_are_wrong_by_half_a_percent(module: nn.Module, side: str) -> None:
    network = capture(module.eval(), torch.zeros(1, 3))

    def shrink(function: Nonlinearity) -> Nonlinearity:
        low, high = (torch.as_tensor(s, dtype=torch.float64) for s in (function.lower, function.upper))
        margin = 0.005 * (high - low)
        return replace(function, **{side: high - margin if side == "upper" else low + margin})

    check_quotients(network, torch.zeros(1, 3))
    with pytest.raises(CaptureError, match="a bug in lipcert and not in your model"):
        check_quotients(with_function(network, ActivationNode, shrink), torch.zeros(1, 3))


@pytest.mark.few(6)
@pytest.mark.parametrize("module", BLOCKS, ids=lambda m: str(m))
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_gains_that_are_wrong_by_a_tenth(module: nn.Module, p: float) -> None:
    network = capture(module.eval(), torch.zeros(1, 3))

    def shrink(function: GainFunction) -> GainFunction:
        return replace(function, gains={**function.gains, p: 0.9 * function.gains[p]})

    check_quotients(network, torch.zeros(1, 3))
    with pytest.raises(CaptureError, match=rf"in l{p:g}, but its rule states gain"):
        check_quotients(with_function(network, GainNode, shrink), torch.zeros(1, 3))


def test_a_rule_with_a_wrong_slope_is_caught_at_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is right, so the self-check is silent: GELU with the slopes of ReLU, deep in a network."""

    def wrong(ctx: Any, x: Any, approximate: str = "none") -> Any:
        return ctx.activation(x, replace(known.GELU, lower=0.0, upper=1.0))

    monkeypatch.setitem(registry._RULES, "gelu", wrong)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2), nn.GELU()).eval()
    with pytest.raises(CaptureError, match=r"gelu at .*bug in lipcert and not in your model; please report it"):
        lipcert.bound(model, torch.zeros(1, 3), method="autolip")


def test_a_rule_with_a_wrong_gain_is_caught_at_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(ctx: Any, x: Any, dim: int, half_to_float: bool = False) -> Any:
        gains = {1.0: 0.25, 2.0: 0.25, math.inf: 0.25}
        return ctx.gain(x, Softmax("softmax", gains, "wrong", dim))

    for name in [n for n in registry._RULES if n.split(".")[0] in ("softmax", "_softmax")]:
        monkeypatch.setitem(registry._RULES, name, wrong)
    with pytest.raises(CaptureError, match="bug in lipcert"):
        lipcert.bound(nn.Softmax(-1).eval(), torch.zeros(1, 5), method="autolip")


def test_only_the_callers_data_reach_a_steep_place() -> None:
    """A steep place at 12345 that nothing random meets: the example itself does."""

    class Steep(Nonlinearity):
        def value(self, x: Tensor) -> Tensor:
            return x + 50.0 * torch.clamp(x - 12345.0, 0.0, 1.0)

    network = capture(nn.Linear(1, 1).eval(), torch.zeros(1, 1))
    function = Steep("steep", 0.0, 1.0)
    nodes = (*network.nodes, ActivationNode(parents=(1,), shape=(1, 1), name="steep", function=function))
    affine = network.nodes[1]
    place = (12345.2 - float(affine.offset.reshape(-1)[0])) / float(affine.maps[0].matrix()[0, 0])  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="bug in lipcert"):
        check_quotients(Network(nodes), torch.full((1, 1), place, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_right_rules_pass_on_inputs_of_any_size(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6, eps=1e-12), nn.Linear(6, 6), nn.SiLU(), nn.Softmax(-1),
        nn.Tanhshrink(),
    ).double().eval()  # fmt: skip
    example = scale * torch.randn(3, 4, dtype=torch.float64)
    check_quotients(capture(model, example), example)
