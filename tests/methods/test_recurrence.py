"""Unrolled recurrences: every step reads the input, so no single node separates two steps; cuts cross several."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.forms.elimination import MAX_SIDE, Segment, cheapest_segments, live
from lipcert.certificates.forms.quadratic_form import DenseForm, Weights
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.problem import Problem


class Recurrent(nn.Module):
    """h ← φ(W h + U x_t + b), the last state to 3 outputs."""

    def __init__(self, steps: int, width: int, gain: float, activation: nn.Module) -> None:
        super().__init__()
        self.steps, self.activation = steps, activation
        self.enter, self.go, self.out = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)
        nn.init.orthogonal_(self.go.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.enter(x[:, 0]))
        for t in range(1, self.steps):
            h = self.activation(self.enter(x[:, t]) + self.go(h))
        return self.out(h)


def recurrent(steps: int, width: int = 16, gain: float = 0.7, activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(steps)
    return Recurrent(steps, width, gain, activation or nn.Tanh()).eval()


@pytest.mark.few(3)
@pytest.mark.parametrize("gain", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("steps", [2, 16, pytest.param(50, marks=pytest.mark.slow)])
def test_lipsdp_lies_between_the_attack_and_liplt(steps: int, gain: float) -> None:
    model, x = recurrent(steps, width=8, gain=gain), torch.zeros(1, steps, 4)
    tight = lipcert.bound(model, x, method="lipsdp", budget=1.0)
    assert tight.guarantee == "rigorous"
    assert lipcert.lower_bound(model, x, budget=0.2).value <= tight.value
    assert tight.value <= lipcert.bound(model, x, method="liplt").value * (1.0 + 1e-9)


def straight(model: nn.Module) -> float:
    """‖V U‖, what one step's input does to the output with every slope 1 and W = I."""
    return float(torch.linalg.matrix_norm((model.out.weight @ model.enter.weight).detach().double(), 2))


@pytest.mark.slow
def test_the_identity_recurrence_is_a_sum_of_its_inputs() -> None:
    """φ = id, W = I: y = V Σ U x_t, of norm √T ‖V U‖; no multiplier has any effect."""
    model = recurrent(30, activation=nn.Identity())
    with torch.no_grad():
        model.go.weight.copy_(torch.eye(16))
    exact = math.sqrt(30) * float(
        torch.linalg.matrix_norm((model.out.weight @ model.enter.weight).detach().double(), 2)
    )
    assert lipcert.bound(model, torch.zeros(1, 30, 4), method="lipsdp").value == pytest.approx(exact, rel=1e-6)


def test_long_relu_recurrence_reaches_the_value_of_its_linear_part() -> None:
    """ReLU with W = I and non-negative U, V: at x ≥ 0 every neuron is on, so the sum above is a lower bound too."""
    model = recurrent(25, activation=nn.ReLU())
    with torch.no_grad():
        model.go.weight.copy_(torch.eye(16))
        model.enter.weight.abs_()
        model.out.weight.abs_()
    exact = math.sqrt(25) * float(
        torch.linalg.matrix_norm((model.out.weight @ model.enter.weight).detach().double(), 2)
    )
    value = lipcert.bound(model, torch.zeros(1, 25, 4), method="lipsdp").value
    assert exact <= value <= 1.01 * exact


def transformed_of(model: nn.Module, shape: tuple[int, ...]) -> ScaledIncrements:
    increments = Problem(capture(model, torch.zeros(1, *shape))).expanded_increments
    return ScaledIncrements(increments, natural_exponents(increments))


def test_cuts_follow_the_steps_and_cover_every_neuron_once() -> None:
    transformed = transformed_of(recurrent(12, width=64), (12, 4))
    segments = cheapest_segments(transformed)
    assert segments is not None
    assert len(segments) > 6
    assert [c.node for s in segments for c in s.cells] == [c.node for c in transformed.cells]
    assert segments[0].entering == (0,)
    assert segments[-1].leaving == (len(transformed.increments.relations) - 1,)
    for before, after in pairwise(segments):
        assert (before.stop, before.leaving) == (after.start, after.entering)
    crossing = live(transformed.increments)
    assert max(len(cut) for cut in crossing) > 1
    assert sum(sum(c.size for c in s.cells) for s in segments) <= MAX_SIDE


def test_one_segment_and_many_give_the_same_least_rho(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eliminating a network step by step, and all at once, is the same Schur complement."""
    model = recurrent(6, width=8, gain=1.0)
    transformed = transformed_of(model, (6, 4))
    last = len(transformed.increments.relations) - 1
    whole = [Segment(0, last, (0,), (last,), transformed.cells)]
    weights = Weights(torch.ones(24, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    arrays = lipcert.bound(model, torch.zeros(1, 6, 4), method="lipsdp").certificate.witness.arrays
    chosen = {c.node: arrays[f"multipliers.{c.node}"][0] * 1.01 ** (6 - i) for i, c in enumerate(transformed.cells)}
    by_steps = DenseForm(transformed).least_rho(chosen, 0.0, weights)
    monkeypatch.setattr("lipcert.certificates.forms.quadratic_form.cheapest_segments", lambda _: whole)
    at_once = DenseForm(transformed).least_rho(chosen, 0.0, weights)
    assert by_steps == pytest.approx(at_once, rel=1e-7)


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", [(2.0, 2.0), (math.inf, math.inf)])
@pytest.mark.parametrize(("steps", "gain"), [(3, 0.5), (8, 3.0), pytest.param(30, 2.0, marks=pytest.mark.slow)])
def test_a_starved_search_is_not_above_what_is_cheap(steps: int, gain: float, norm: tuple[float, float]) -> None:
    model, x = recurrent(steps, width=8, gain=gain), torch.zeros(1, steps, 4)
    cheap = min(lipcert.bound(model, x, method=name, norm=norm).value for name in ("liplt", "autolip"))
    for method in ("lipsdp", "lipsdp_layer", lipcert.LipSDP(max_passes=1)):
        starved = lipcert.bound(model, x, method=method, norm=norm, budget=0.01)
        assert starved.value <= cheap * (1.0 + 1e-3)
        assert not starved.tried or starved.value == min(row.value for row in starved.tried if row.value is not None)


def test_a_handed_over_bound_says_so_and_still_starts_another_search() -> None:
    """One pass finds multipliers of no use; LipLT's bound is then what there is, and no worse a start for it."""
    model, x = recurrent(8, width=8, gain=2.0), torch.zeros(1, 8, 4)
    starved = lipcert.bound(model, x, method=lipcert.LipSDP(max_passes=1))
    assert starved.method == "liplt"
    assert starved.tried[0].method == "lipsdp"
    assert starved.tried[-1].value == starved.value
    assert starved.guarantee == "rigorous"
    assert starved.delta == 0.0
    more = lipcert.bound(model, x, method=lipcert.LipSDP(start=starved) if starved.state else "lipsdp")
    assert more.method == "lipsdp"
    assert more.value < starved.value
    assert not more.tried


def test_a_search_whose_gap_is_closed_looks_at_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("LipLT was run")

    monkeypatch.setattr(lipcert.LipLT, "own_bound", never)
    assert lipcert.bound(recurrent(4, width=8), torch.zeros(1, 4, 4), method="lipsdp").method == "lipsdp"
