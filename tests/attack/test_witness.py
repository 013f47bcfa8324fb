"""The trusted end: what it proves, what it refuses."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipcert.attack import evaluate
from lipcert.attack.norms import best_directions
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box
from lipcert.errors import InputError, NumericsError
from lipcert.problem import Problem
from lipcert.result import LowerWitness


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(*rows: tuple[float, ...], bias: tuple[float, ...] | None = None) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None).double()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    if bias is not None:
        layer.bias.data = tensor(*bias)
    return layer


def problem(model: nn.Module, n: int, norm=(2.0, 2.0), domain=None) -> Problem:
    return Problem(capture(model.eval(), torch.zeros(1, n, dtype=torch.float64)), norm, domain)


GREEDY = nn.Sequential(
    linear((-2, -2, 0), (1, 2, 2), (2, 1, -1)), nn.ReLU(), linear((1, 1, 0), (1, 0, 1))
)  # x ↦ W1 relu(W0 x): greedy SeqLip lies below the truth, 4 at (−1, ½, −½)


def test_known_witness():
    J = GREEDY[2].weight @ torch.diag(tensor(1, 0, 0)) @ GREEDY[0].weight
    assert float(torch.linalg.matrix_norm(J.detach(), 2)) == pytest.approx(4.0)
    v = torch.linalg.svd(J.detach()).Vh[0]
    value = evaluate(problem(GREEDY, 3), LowerWitness(tensor(-1, 0.5, -0.5), v))
    assert 4.0 * (1 - 1e-10) < value <= 4.0


def test_linear_map_is_never_above_and_barely_below():
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        model = nn.Linear(7, 5).double()
        model.weight.data = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        sigma, v = (
            torch.linalg.matrix_norm(model.weight.data, 2).item(),
            torch.linalg.svd(model.weight.data).Vh[0],
        )
        value = evaluate(problem(model, 7), LowerWitness(torch.randn(7, generator=generator), v))
        assert sigma * (1 - 1e-11) <= value <= sigma


@pytest.mark.parametrize("at", [0.0, 1e-17, -1e-300])
def test_at_a_kink_only_what_both_sides_have_is_proved(at):
    relu = nn.Sequential(linear((1.0, 1.0)), nn.ReLU())
    assert evaluate(problem(relu, 2), LowerWitness(tensor(1.0 + at, -1.0), tensor(1.0, 1.0))) == 0.0
    leaky = nn.Sequential(linear((1.0, 1.0)), nn.LeakyReLU(0.25))
    value = evaluate(problem(leaky, 2), LowerWitness(tensor(1.0 + at, -1.0), tensor(1.0, 1.0)))
    assert 0.25 * math.sqrt(2.0) * (1 - 1e-12) <= value <= 0.25 * math.sqrt(2.0)


def test_the_side_of_a_kink_is_that_of_the_reals():
    """Pre-activations that cancel to within rounding: float64 often has the wrong sign, or 0."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(60):
        w, x = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))
        x[2] = -(w[0] * x[0] + w[1] * x[1]) / w[2]
        exact = sum(Fraction(a) * Fraction(b) for a, b in zip(w.tolist(), x.tolist(), strict=True))
        model = nn.Sequential(linear(tuple(w.tolist())), nn.ReLU())
        value = evaluate(problem(model, 3), LowerWitness(x, w))
        assert value <= (float(w.norm()) if exact > 0 else 0.0)
        assert value >= (float(w.norm()) * (1 - 1e-12) if exact > 0 else 0.0)
        wrong += (float(w @ x) > 0) != (exact > 0)
    assert wrong > 0


def test_dead_neurons_at_their_kink_are_harmless():
    dead = nn.Sequential(linear((0.0, 0.0), (1.0, 0.0)), nn.ReLU(), linear((5.0, 1.0)))
    assert evaluate(problem(dead, 2), LowerWitness(tensor(1, 1), tensor(1, 0))) == pytest.approx(1.0)
    twice = nn.Sequential(linear((1.0, 0.0), (0.0, 1.0)), nn.ReLU(), nn.ReLU(), linear((1.0, 1.0)))
    assert evaluate(problem(twice, 2), LowerWitness(tensor(1, -1), tensor(1, 0))) == pytest.approx(1.0)


def test_cancelling_neurons_are_harmless():
    """x + relu(−x) is 0 at every x < 0, exactly on the kink of the next relu."""

    class Cancel(nn.Module):
        def forward(self, x):
            return torch.relu(x + torch.relu(-x)) + 2 * x

    assert evaluate(problem(Cancel(), 2), LowerWitness(tensor(1, -1), tensor(1, 0))) == pytest.approx(3.0)


def test_zero_network_and_zero_direction():
    model = nn.Sequential(linear((0.0, 0.0)), nn.ReLU())
    assert evaluate(problem(model, 2), LowerWitness(tensor(0, 0), tensor(1, 2))) == 0.0
    assert evaluate(problem(GREEDY, 3), LowerWitness(tensor(0, 0, 0), tensor(0, 0, 0))) == 0.0


def test_domain_is_enforced():
    flat = Box(tensor(0, 0, 1), tensor(1, 1, 1))
    v = tensor(1, 0, 0)
    assert evaluate(problem(GREEDY, 3, domain=flat), LowerWitness(tensor(0.5, 0.2, 1), v)) > 0
    with pytest.raises(InputError, match="flat"):
        evaluate(problem(GREEDY, 3, domain=flat), LowerWitness(tensor(0.5, 0.2, 1), tensor(0, 0, 1)))
    with pytest.raises(InputError, match="outside"):
        evaluate(problem(GREEDY, 3, domain=flat), LowerWitness(tensor(0.5, 1.2, 1), v))
    with pytest.raises(InputError, match="flat"):
        evaluate(problem(GREEDY, 3, domain=Ball(tensor(1, 2, 3), 0.0)), LowerWitness(tensor(1, 2, 3), v))


def test_bad_witnesses():
    with pytest.raises(InputError, match="shape"):
        evaluate(problem(GREEDY, 3), LowerWitness(tensor(1, 2), tensor(1, 2)))
    with pytest.raises(InputError, match="NaN"):
        evaluate(problem(GREEDY, 3), LowerWitness(tensor(1, 2, math.nan), tensor(1, 2, 3)))
    huge = nn.Sequential(linear((1e200,)), linear((1e200,)))
    with pytest.raises(NumericsError):
        evaluate(problem(huge, 1), LowerWitness(tensor(1), tensor(1)))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("q", [1.0, 2.0, math.inf])
def test_best_directions_against_enumeration(p, q):
    generator = torch.Generator().manual_seed(3)
    J = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    values, v = best_directions(J, p, q)
    reached = torch.einsum("bmn,bn->bm", J, v).norm(p=q, dim=1) / v.norm(p=p, dim=1)
    assert torch.allclose(values, reached)
    signs = torch.cartesian_prod(*[tensor(-1, 1)] * 5)
    out = torch.cartesian_prod(*[tensor(-1, 1)] * 4)
    if p == 1:
        exact = J.norm(p=q, dim=1).amax(1)
    elif q == math.inf:
        exact = J.norm(p={2.0: 2.0, math.inf: 1.0}[p], dim=2).amax(1)
    elif p == math.inf:
        exact = torch.einsum("bmn,kn->bkm", J, signs).norm(p=q, dim=2).amax(1)
    elif q == 1:
        exact = torch.einsum("bmn,km->bkn", J, out).norm(dim=2).amax(1)
    else:
        exact = torch.linalg.matrix_norm(J, 2)
    assert bool((values <= exact * (1 + 1e-12)).all())
    tolerance = 1e-9 if p == 1 or q == math.inf or (p == 2 and q == 2) else 0.1
    assert torch.allclose(values, exact, rtol=tolerance)
