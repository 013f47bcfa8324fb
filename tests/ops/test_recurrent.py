"""Recurrent layers: the model's values, constants on the whole space and near a point, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.errors import LipcertError, TrainModeError
from lipcert.methods.base import Run, registered
from lipcert.network.graph import Network
from lipcert.network.parts import split
from lipcert.numerics.chance import Chance
from lipcert.ops.registry import supported_ops
from lipcert.problem import Problem
from lipcert.ranges.build import boxes_of
from lipcert.ranges.collapse import collapse

D = torch.float64
IN, H = 2, 3


def run() -> Run:
    return Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=20.0)


class Outputs(nn.Module):
    """All that a layer gives, in one vector."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.layer(x)
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([outputs.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1)


class Last(nn.Module):
    """The last output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Loop(nn.Module):
    """A cell in a loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return torch.cat(state, 1) if isinstance(state, tuple) else state


class Given(nn.Module):
    """An LSTM whose first states are a parameter and a function of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.first = nn.LSTM(IN, H, batch_first=True), nn.Parameter(torch.ones(1, 1, H))

    def forward(self, x: Tensor) -> Tensor:
        own = torch.tanh(x[:, 0, :1]).expand(-1, H)[None]
        return self.layer(x, (self.first.expand(1, len(x), H), own))[0][:, -1]


class TimeFirst(nn.Module):
    """A layer that wants time before batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(IN, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1))[0][-1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Last(nn.LSTM(IN, H, batch_first=True)),
    "gru": lambda: Last(nn.GRU(IN, H, batch_first=True)),
    "rnn": lambda: Last(nn.RNN(IN, H, batch_first=True)),
    "relu rnn": lambda: Last(nn.RNN(IN, H, batch_first=True, nonlinearity="relu")),
    "lstm of two layers, both ways": lambda: Outputs(nn.LSTM(IN, 2, 2, batch_first=True, bidirectional=True)),
    "gru of two layers, both ways, no biases": lambda: Outputs(
        nn.GRU(IN, 2, 2, batch_first=True, bidirectional=True, bias=False)
    ),
    "projected lstm": lambda: Outputs(nn.LSTM(IN, H, proj_size=2, batch_first=True)),
    "lstm cell": lambda: Loop(nn.LSTMCell(IN, H)),
    "gru cell": lambda: Loop(nn.GRUCell(IN, H)),
    "rnn cell": lambda: Loop(nn.RNNCell(IN, H)),
    "relu rnn cell": lambda: Loop(nn.RNNCell(IN, H, nonlinearity="relu")),
    "given states": Given,
    "time first": TimeFirst,
}
COVERED = {"lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"} | {
    f"{name}_cell" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}


def case(name: str, length: int = 3, spread: float = 0.8) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(11)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=generator, dtype=D))
    return model, torch.randn(2, length, IN, generator=generator, dtype=D)


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    rows = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x)
    return float(torch.linalg.matrix_norm(rows.reshape(len(rows), -1), 2))


def test_every_rule_has_a_model() -> None:
    assert {info.name for info in supported_ops() if info.family == "recurrent"} == COVERED


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
def test_values_constants_and_jacobians(name: str) -> None:
    model, x = case(name, length=2 if "both" in name else 3)
    network = capture(model, x)
    inputs = 2 * torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(1), dtype=D)
    for each in (network, split(collapse(network))):
        assert torch.allclose(
            each.forward(inputs[:, None]).flatten(1), model(inputs).flatten(1), rtol=1e-12, atol=1e-13
        )
    everywhere = registered()["autolip"]().bound(Problem(network), run(), Chance()).value
    for z in inputs:
        assert jacobian_norm(model, z) <= everywhere
    problem = Problem(network, domain=lipcert.Ball(x[0], 1e-5, p=2))
    near = registered()["lipsdp"]().bound(problem, run(), Chance()).value
    assert jacobian_norm(model, x[0]) <= near <= 1.01 * jacobian_norm(model, x[0])


@pytest.mark.slow
def test_the_bound_of_an_lstm_is_below_the_recursion_of_norms() -> None:
    """‖δa_k‖ ≤ ‖W_k‖‖δx‖ + ‖U_k‖‖δh‖ of every gate's argument, gates in [0, 1], |c_t| ≤ t."""
    model, x = case("lstm", length=4)
    layer = model.layer
    norms = [
        [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in m.chunk(4)]
        for m in (layer.weight_ih_l0, layer.weight_hh_l0)
    ]
    h = c = 0.0
    for step in range(x.shape[1]):
        i, f, g, o = (w + u * h for w, u in zip(*norms, strict=True))
        c = c + step * f / 4 + i / 4 + g
        h = c + o / 4
    found = lipcert.bound(model, x, method="autolip").value
    assert found <= h * (1 + 1e-9)
    assert lipcert.lower_bound(model, x, budget=0.3).value <= lipcert.bound(model, x, method="lipsdp").value <= found


def test_the_bound_of_a_gru_is_below_the_recursion_of_norms() -> None:
    """δh' = z δh + (1 − z) δn + (h − n) δz with gates in [0, 1], states in [−1, 1]; δn by r (U h + d) likewise."""
    model, x = case("gru", length=4)
    layer = model.layer
    enter, again = (
        [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in m.chunk(3)]
        for m in (layer.weight_ih_l0, layer.weight_hh_l0)
    )
    inner = layer.weight_hh_l0.detach().chunk(3)[2].abs().sum(1) + layer.bias_hh_l0.detach().chunk(3)[2].abs()
    most = float(inner.max())
    h = 0.0
    for step in range(x.shape[1]):
        r, z = (w + u * h for w, u in zip(enter[:2], again[:2], strict=True))
        n = enter[2] + again[2] * h + most * r / 4
        h = h + n + (2.0 if step else 1.0) * z / 4
    assert lipcert.bound(model, x, method="autolip").value <= h * (1 + 1e-9)


def test_a_gru_keeps_to_the_unit_box_and_a_cell_state_to_its_steps() -> None:
    for name, length, most in (("gru", 6, 1.0), ("lstm cell", 4, 4.0)):
        model, x = case(name, length)
        network = split(collapse(capture(model, x)))
        last = boxes_of(network, None, "none")[-1]
        assert float(last.greatest.max()) <= most * (1 + 1e-12)


def test_one_step_and_none() -> None:
    for name in ("lstm", "gru", "rnn"):
        model, x = case(name, length=1)
        assert jacobian_norm(model, x[0]) <= lipcert.bound(model, x, method="autolip").value
        with pytest.raises(LipcertError):
            capture(model, x[:, :0])


def test_dropout_between_layers_needs_eval_mode() -> None:
    model = Last(nn.LSTM(IN, H, 2, dropout=0.5, batch_first=True)).train()
    with pytest.raises(TrainModeError):
        capture(model, torch.zeros(1, 2, IN))
    assert isinstance(capture(model.eval(), torch.zeros(1, 2, IN)), Network)


@pytest.mark.slow
def test_outputs_of_a_classifier() -> None:
    model, x = case("lstm", length=2)
    classifier = nn.Sequential(model, nn.Linear(H, 3).double()).eval()
    domain = lipcert.Ball(x[0], 0.05, p=2)
    found = lipcert.output_bounds(classifier, x[:1], domain=domain, budget=1)
    steps = torch.randn(500, *x[0].shape, generator=torch.Generator().manual_seed(2), dtype=D)
    values = classifier(x[0] + 0.05 * steps / steps.flatten(1).norm(dim=1)[:, None, None]).detach()
    assert bool(((found.lower <= values) & (values <= found.upper)).all())
    assert bool((found.upper - found.lower < 3 * (values.max(0).values - values.min(0).values)).all())


def test_slopes_of_gates_are_those_of_their_ranges() -> None:
    """No cell of an LSTM over a domain is wider than over the space."""
    model, x = case("lstm")
    network = capture(model, x)
    wide, narrow = (
        Problem(network).unfused_increments,
        Problem(network, domain=lipcert.Ball(x[0], 0.1)).unfused_increments,
    )
    for a, b in zip(wide.cells, narrow.cells, strict=True):
        assert bool((b.d <= a.d * (1 + 1e-12)).all())
