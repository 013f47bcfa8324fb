"""The ascent over Jacobians of a stage: every step to its best, nothing above the maximum over all of them."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import InputError
from lipcert.methods.pair_ascent import Maxima, Orders, Slopes, Stage, maximise_greedily, maximise_lbfgs
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from tests.zoo import mlp

WINDOWS = MaxSelection("max", torch.tensor([[0, 1, 2], [2, 3, 4], [4, 5, 5]]), (6,), (3,))
GROUPS = SortSelection("sort", torch.tensor([[0, 3, 4], [5, 2, 1]]), (6,))


def slopes(n: int) -> Slopes:
    return Slopes(torch.linspace(-0.5, 0.2, n).double(), torch.linspace(0.6, 1.3, n).double())


def every_slope(part: Slopes) -> list[Tensor]:
    corners = itertools.product(*zip(part.low.tolist(), part.high.tolist(), strict=True))
    return [torch.diag(torch.tensor(c, dtype=torch.float64)) for c in corners]


def every_choice() -> list[Tensor]:
    eye = torch.eye(6, dtype=torch.float64)
    return [eye[list(c)] for c in itertools.product(*WINDOWS.index.tolist())]


def every_order() -> list[Tensor]:
    found = []
    for first, second in itertools.product(*(itertools.permutations(g) for g in GROUPS.index.tolist())):
        matrix = torch.zeros(6, 6, dtype=torch.float64)
        matrix[GROUPS.index.reshape(-1), list(first + second)] = 1.0
        found.append(matrix)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_each_part_finds_its_best(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, generator=generator).double()
    for part, every in ((slopes(6), every_slope(slopes(6))), (Maxima(WINDOWS), every_choice()),
                        (Orders(GROUPS), every_order())):  # fmt: skip
        y = torch.randn(len(every[0]), generator=generator).double()
        part.improve(y, x)
        assert float(y @ part.forward(x)) == pytest.approx(max(float(y @ t @ x) for t in every))
        assert torch.allclose(part.backward(y), part.forward(torch.eye(6).double()).T @ y)


@pytest.mark.parametrize("seed", range(10))
def test_the_ascent_stays_below_the_maximum_and_reaches_much_of_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(6, 4, generator=generator).double(), torch.randn(2, 3, generator=generator).double()
    stage = Stage([slopes(6), Maxima(WINDOWS)])
    every = torch.stack([c @ s for c in every_choice() for s in every_slope(slopes(6))])
    norms = torch.linalg.matrix_norm(b @ every @ a, 2)
    truth = float(norms.max())
    found = maximise_greedily(b, a, stage)
    assert 0.8 * truth <= found <= truth * (1 + 1e-12)
    assert float((norms - found).abs().min()) < 1e-12


def test_each_improvement_raises_the_form() -> None:
    generator = torch.Generator().manual_seed(1)
    stage = Stage([slopes(6), Orders(GROUPS), slopes(6), Maxima(WINDOWS)])
    for _ in range(50):
        x, y = torch.randn(6, generator=generator).double(), torch.randn(3, generator=generator).double()
        before = float(y @ stage.forward(x))
        stage.improve(y, x)
        assert float(y @ stage.forward(x)) >= before - 1e-12


def test_lbfgs_refuses_selections() -> None:
    with pytest.raises(ValueError, match="slopes"):
        maximise_lbfgs(torch.ones(2, 3).double(), torch.ones(6, 2).double(), Stage([Maxima(WINDOWS)]))


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3)
    )  # fmt: skip


@pytest.mark.slow
def test_pools_inside_pairs() -> None:
    """With the pool inside, the estimate of a network of one pair lies between attack and certified pair."""
    model, x = pooled(), torch.zeros(1, 1, 7, 7)
    below = lipcert.lower_bound(model, x, budget=2.0).value
    through = lipcert.estimate(model, x, pools="through").value
    certified = lipcert.bound(model, x, lipcert.SeqLip(pools="through")).value
    assert 0.9 * below <= through <= certified * (1 + 1e-9)
    assert through < lipcert.estimate(model, x).value
    ranks = [lipcert.estimate(model, x, "seqlip_rank_k", k=k, pools="through").value for k in (1, 4, 8)]
    assert ranks[0] < ranks[1] < ranks[2] <= certified * (1 + 1e-9)


def test_a_sort_inside_a_pair() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = mlp((4, 6), 0), mlp((6, 3), 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).sort(-1).values)  # type: ignore[no-any-return]

    model, x = Sorted(), torch.zeros(1, 4)
    through = lipcert.estimate(model, x, pools="through").value
    assert 0.9 * lipcert.lower_bound(model, x, budget=2.0).value <= through
    assert through <= lipcert.bound(model, x, lipcert.SeqLip(pools="through")).value * (1 + 1e-9)


def test_bad_pools() -> None:
    model, x = pooled(), torch.zeros(1, 1, 7, 7)
    with pytest.raises(InputError, match="pools is factor or through, not 'no'"):
        lipcert.estimate(model, x, pools="no")  # type: ignore[arg-type]
    for method in ("seqlip_lbfgs", "power_iteration"):
        with pytest.raises(InputError, match="pools='through' belongs to seqlip_greedy and seqlip_rank_k"):
            lipcert.estimate(model, x, method, pools="through")
