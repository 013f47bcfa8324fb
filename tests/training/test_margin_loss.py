"""Margins against constants of pairs: what they are, what is differentiated, what a resumed run does."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lipcert
from lipcert.training import LipschitzRegularizer, MarginLoss, certified_accuracy, margin_loss
from lipcert.training.live import Live
from lipcert.training.margin_loss import Kind
from lipcert.training.pairs import PairMethod, Pairs
from tests.training.test_regularizer import IMAGE, Block, batch, small

METHODS = pytest.mark.parametrize("method", get_args(PairMethod))


def converged(model: nn.Module, example: torch.Tensor, method: PairMethod = "autolip") -> torch.Tensor:
    return Pairs(Live.of(model, example), method=method, columns=4).matrix(300).detach()


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("convolution", [False, True])
def test_constants_are_those_of_differences(convolution: bool, method: PairMethod) -> None:
    """Each is the method's value for the row e_i − e_j, where the last map is only one."""
    model, example = small().eval().double(), IMAGE.double()
    if convolution:
        model = nn.Sequential(*model[:3], nn.Conv2d(4, 3, 3), nn.Flatten()).eval().double()
    found = converged(model, example, method)
    assert not bool(found.diagonal().any())
    assert torch.equal(found, found.T)
    for i, j in itertools.combinations(range(3), 2):
        row = torch.zeros(1, 3, dtype=torch.float64)
        row[0, i], row[0, j] = 1.0, -1.0
        expected = lipcert.bound(model, example, method=method, select=row).value
        assert float(found[i, j]) == pytest.approx(expected, rel=1e-4 if method == "autolip" else 2e-2)
        assert float(found[i, j]) <= expected * (1.0 + 1e-9)


def test_lipsdp_sees_what_products_do_not() -> None:
    """Of (x₁⁺, x₂⁺) by way of 10 x₁, with or without the last linear map, which products need."""
    outer, inner = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False).double()
    inner.weight.data = torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64))
    outer.weight.data = torch.diag(torch.tensor([0.1, 1.0], dtype=torch.float64))
    example, front = torch.zeros(1, 2, dtype=torch.float64), nn.Sequential(inner, nn.ReLU())
    whole = nn.Sequential(*front, outer)
    assert float(converged(whole, example, "lipsdp")[0, 1]) == pytest.approx(math.sqrt(2.0), rel=1e-6)
    assert float(converged(whole, example)[0, 1]) == pytest.approx(math.sqrt(101.0), rel=1e-6)
    assert float(converged(front, example, "lipsdp")[0, 1]) == pytest.approx(math.sqrt(101.0), rel=1e-6)
    with pytest.raises(lipcert.MethodError, match="lipsdp"):
        MarginLoss(front, example, radius=1.0)


@pytest.mark.slow
@METHODS
def test_gradients_of_constants(method: PairMethod) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = Block().double().eval(), torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    pairs = Pairs(Live.of(model, example), method=method)
    value = pairs.matrix(300)[0, 1]
    value.backward()
    directions = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype) for p in model.parameters()
    ]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None
    )
    ends = []
    with torch.no_grad():
        for h in (1e-5, -2e-5):
            for p, d in zip(model.parameters(), directions, strict=True):
                p += h * d
            ends.append(float(pairs.matrix(100)[0, 1]))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("kind", "method"), [("mixed", "lipsdp"), ("mixed", "autolip"), ("gloro", "autolip"), ("crm", "autolip")]
)
def test_losses_and_resumption(kind: Kind, method: PairMethod) -> None:
    def run(model: nn.Module, loss: MarginLoss, steps: range) -> list[float]:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        found = []
        for k in steps:
            value = loss(*batch(k))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            found.append(value.item())
        return found

    model = small().train()
    expected = run(model, MarginLoss(model, IMAGE, kind, method=method, radius=0.3, warm_up=4), range(6))
    first = small().train()
    loss = MarginLoss(first, IMAGE, kind, method=method, radius=0.3, warm_up=4)
    found = run(first, loss, range(3))
    saved = copy.deepcopy((first.state_dict(), loss.state_dict()))
    second = small(seed=3).train()
    second.load_state_dict(saved[0])
    again = MarginLoss(second, IMAGE, kind, method=method, radius=0.3, warm_up=4, seed=5)
    again.load_state_dict(saved[1])
    assert found + run(second, again, range(3, 6)) == expected
    assert second.training
    assert second[1].training


def test_each_loss_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin_loss, "_PART", math.inf)  # at full strength, on a model that has learnt nothing
    model = small().eval()
    x, y = batch(0)
    constants = Pairs(Live.of(model, IMAGE)).matrix().detach()
    logits = model(x)
    radius, rows = 0.2, torch.arange(len(x))
    with torch.no_grad():
        reach = logits + radius * constants[logits.argmax(1)]
        reach[rows, logits.argmax(1)] = -math.inf
        gloro = F.cross_entropy(torch.cat([logits, reach.amax(1, keepdim=True)], 1), y)
        assert float(MarginLoss(model, IMAGE, "gloro", radius=radius, warm_up=0)(x, y)) == pytest.approx(
            float(gloro), rel=1e-5
        )
        radii = (logits[rows, y][:, None] - logits) / constants[y]
        radii[rows, y] = math.inf
        soft = torch.logsumexp(-50.0 * radii, 1) / 50.0
        crm = F.cross_entropy(logits, y) + 0.5 * (soft * (radii.amin(1) < radius)).mean()
        own = MarginLoss(model, IMAGE, "crm", radius=radius, strength=0.5, sharpness=50.0, warm_up=0)
        assert float(own(x, y)) == pytest.approx(float(crm), rel=1e-5)
        mixed = MarginLoss(model, IMAGE, radius=radius, clip=(0.0, 1.0), warm_up=0)
        mixed.calls = 1
        points = mixed._attacked(x, y)
        assert float((points - x).flatten(1).norm(dim=1).max()) <= radius * (1 + 1e-5)
        assert 0.0 <= float(points.min()) <= float(points.max()) <= 1.0
        assert float(F.cross_entropy(model(points), y)) > float(F.cross_entropy(logits, y))


def clusters(rare: int = 3) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Three clusters of points that are easily told apart, and a model that has not been trained.

    Of every ``rare`` points two are of the classes 1 and 2, all others of class 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        y = torch.arange(20 * rare) % rare
        y = torch.where(y < 3, y, 0)
        x = 2.0 * torch.eye(4)[y] + 0.1 * torch.randn(len(y), 4)
    return model, x, y


def fitted(strength: float, kind: Kind, rare: int = 3, steps: int = 150) -> tuple[nn.Module, MarginLoss, float]:
    """A model after so many steps at once at the full radius, its loss, and its accuracy."""
    model, x, y = clusters(rare)
    loss = MarginLoss(model, x[:1], kind, radius=0.3, strength=strength, warm_up=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x, y).backward()
        optimiser.step()
    return model, loss, float((model(x).argmax(1) == y).float().mean())


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["mixed", "gloro"])
@pytest.mark.parametrize("rare", [3, 20])
def test_constants_do_not_make_a_model_a_constant(kind: Kind, rare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a hundred times the strength that the clusters allow, which without a share it would; classes alike or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, loss, accuracy = fitted(100.0, kind, rare)
        assert accuracy == 1.0
        assert 0.0 < loss.share < 0.1
        monkeypatch.setattr(margin_loss, "_PART", math.inf)  # all of it at once
        _, loss, accuracy = fitted(100.0, kind, rare)
        assert loss.share == 1.0
        assert accuracy == pytest.approx(1.0 - 2.0 / rare)


def test_constants_of_any_size_are_held_down() -> None:
    """Where K is 1e5 and more the share is tiny, and not 0."""
    _, x, y = clusters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(4, 32)]
        for _ in range(9):
            layers += [nn.ReLU(), nn.Linear(32, 32)]
        model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 3))
        for part in model:
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight)
    loss = MarginLoss(model, x[:1], "gloro", radius=0.3, warm_up=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    shares, before = [], float(loss._pairs.matrix(50).detach().max())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            optimiser.zero_grad()
            loss(x, y).backward()
            shares.append(loss.share)
            optimiser.step()
    assert before > 1e4
    assert all(0.0 < share < 0.1 for share in shares[20:])
    assert float(loss._pairs.matrix(50).detach().max()) < 0.9 * before


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["mixed", "gloro"])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_the_share_is_the_largest_that_leaves_a_constant_farther(kind: Kind, scale: float) -> None:
    """By the formulas of the losses; and logits that grow with their constants then lower the loss."""
    model, _, _ = fitted(0.0, kind)
    _, x, y = clusters()
    with torch.no_grad():
        for p in (model[2].weight, model[2].bias):
            p *= scale

    for strength in (0.01, 1.0, 30.0):
        loss = MarginLoss(model, x[:1], kind, radius=0.3, strength=strength, warm_up=0, seed=1)
        loss._pairs.matrix(100)
        model.zero_grad()
        value = loss(x, y)
        value.backward()
        loss.load_state_dict({**loss.state_dict(), "generator": torch.Generator().manual_seed(1).get_state()})
        points = loss._attacked(x, y) if kind == "mixed" else x
        logits, rise = model(points).detach(), 0.3 * strength * loss._pairs.matrix().detach()

        def at(share: float, logits: torch.Tensor = logits, rise: torch.Tensor = rise) -> float:
            if kind == "mixed":
                return float(F.cross_entropy(logits + share * rise[y], y))
            top = logits.argmax(1)
            others = (logits + share * rise[top]).scatter(1, top[:, None], -math.inf).amax(1, keepdim=True)
            return float(F.cross_entropy(torch.cat([logits, others], 1), y))

        most = at(0.0) + 0.75 * max(0.0, math.log(3) - at(0.0))  # three classes alike
        assert float(value.detach()) == pytest.approx(at(loss.share), rel=1e-3)
        assert at(loss.share) <= most * (1 + 1e-5)
        assert loss.share == 1.0 or most == at(0.0) or at(1.05 * loss.share) > most
        outward = sum(
            float((p.grad * p.detach()).sum()) for p in (model[2].weight, model[2].bias) if p.grad is not None
        )
        assert outward < 0.0 or scale == 1.0  # near a constant more of the same is better


def test_a_strength_that_is_cut_for_long_is_told() -> None:
    model, x, y = clusters()
    loss = MarginLoss(model, x[:1], "gloro", radius=0.3, strength=1000.0, warm_up=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while loss._cut < 99:
            loss(x, y)
    with pytest.warns(UserWarning, match="for 100 calls less than half of the strength has counted"):
        loss(x, y)


def test_the_radius_grows_as_the_schedule_says() -> None:
    x, y = batch(0)
    default = MarginLoss(small(), IMAGE, radius=2.0)
    assert default.warm_up == 1000
    for _ in range(2):
        default(x, y)
    assert default.reach == pytest.approx(2.0 * 2 / 1000)
    own = MarginLoss(small(), IMAGE, radius=2.0, schedule=lambda call: 0.25 * (call - 1))
    found = []
    for _ in range(3):
        assert bool(torch.isfinite(own(x, y)))
        found.append(own.reach)
    assert found == [0.0, 0.5, 1.0]
    own(x, y)
    own(x, y)
    with pytest.raises(lipcert.InputError, match=r"schedule\(6\) must be a share"):
        own(x, y)
    with pytest.raises(lipcert.InputError, match="takes the place of warm_up"):
        MarginLoss(small(), IMAGE, radius=2.0, warm_up=5, schedule=lambda call: 1.0)
    with pytest.raises(lipcert.InputError, match="warm_up"):
        MarginLoss(small(), IMAGE, radius=2.0, warm_up=-1)


@pytest.mark.slow
def test_accuracy_is_what_the_constants_say_and_not_more_than_certify() -> None:
    model = small().eval()
    x, y = batch(0)
    y = torch.where(torch.arange(len(y)) < 12, model(x).argmax(1), y)
    radius = 0.02
    found = certified_accuracy(model.requires_grad_(False), x, y, radius)
    assert found.clean == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    certified = lipcert.certify(model, x, y, radius=radius)
    assert found.value <= sum(row.certified_radius >= radius for row in certified) / len(x) + 1e-9
    assert found.value <= found.clean
    assert "not certified" in str(found)
    assert certified_accuracy(model, x, y, 0.0).value == found.clean


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "gloro", "crm"])
def test_autocast_and_compilation_leave_the_loss_as_it_is(kind: Kind) -> None:
    x, y = batch(0)
    values, gradients = [], []
    for way in ("plain", "autocast", "compiled"):
        model = small().train()
        run = torch.compile(model, backend="aot_eager") if way == "compiled" else model
        loss = MarginLoss(run, IMAGE, kind, radius=0.3, warm_up=0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
            value = loss(x, y)
        value.backward()
        values.append(value.item())
        gradients.append(model[4].weight.grad)
        if way == "compiled":
            with torch.compiler.set_stance("fail_on_recompile"):
                loss(x, y).backward()
        assert model.training
    assert values[1:] == pytest.approx([values[0]] * 2, rel=0.05)
    assert values[2] == pytest.approx(values[0], rel=1e-4)
    for g in gradients[1:]:
        assert torch.nn.functional.cosine_similarity(g.flatten(), gradients[0].flatten(), dim=0) > 0.97


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["mixed", "gloro", "crm", "penalty"])
def test_on_a_gpu_it_is_the_same(kind: str) -> None:
    values = []
    for device in ("cpu", "cuda"):
        model = small().to(device)
        x, y = (t.to(device) for t in batch(0))
        if kind == "penalty":
            value = LipschitzRegularizer(model, IMAGE.to(device), penalty="value", passes=200)()
        else:
            value = MarginLoss(model, IMAGE.to(device), kind, radius=0.3, warm_up=0)(x, y)  # type: ignore[arg-type]
        value.backward()
        assert value.device.type == device
        assert model[4].weight.grad is not None
        values.append(value.item())
    assert values[1] == pytest.approx(values[0], rel=2e-2)  # the noise of the attack is another


def test_bad_models_and_steps_are_named() -> None:
    with pytest.raises(lipcert.InputError, match="frozen"):
        MarginLoss(small().requires_grad_(False), IMAGE, radius=1.0)
    model = small()
    loss, (x, y) = MarginLoss(model, IMAGE, radius=1.0), batch(0)
    loss(x, y)
    model.requires_grad_(False)
    with pytest.raises(lipcert.InputError, match="frozen"):
        loss(x, y)
    model.requires_grad_(True)
    model[6] = nn.Linear(8, 4)
    with pytest.raises(lipcert.InputError, match=r"6\.bias"):
        loss(x, y)


@METHODS
def test_a_single_linear_layer(method: PairMethod) -> None:
    model = nn.Linear(3, 2)
    loss = MarginLoss(model, torch.zeros(1, 3), "gloro", method=method, radius=0.1)
    loss(torch.ones(4, 3), torch.tensor([0, 1, 0, 1])).backward()
    difference = (model.weight[0] - model.weight[1]).detach().norm()
    assert float(loss._pairs.matrix()[0, 1].detach()) == pytest.approx(float(difference), rel=1e-5)


@METHODS
def test_equal_outputs_leave_gradients_finite(method: PairMethod) -> None:
    """Their constants are 0, and radii margins over these."""
    for part in (0, 2):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
        nn.init.zeros_(model[part].weight)
        loss = MarginLoss(model, torch.zeros(1, 3), "crm", method=method, radius=0.1, warm_up=0)
        loss(torch.ones(4, 3), torch.tensor([0, 1, 2, 0])).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_inference_mode_is_named() -> None:
    loss = MarginLoss(small(), IMAGE, radius=0.3)
    with torch.inference_mode(), pytest.raises(lipcert.InputError, match="inference_mode"):
        loss(*batch(0))


def test_bad_input() -> None:
    with pytest.raises(lipcert.InputError, match="method"):
        MarginLoss(small(), IMAGE, method="liplt", radius=1.0)  # type: ignore[arg-type]
    with pytest.raises(lipcert.InputError, match="columns"):
        MarginLoss(small(), IMAGE, method="lipsdp", columns=0, radius=1.0)
    with pytest.raises(lipcert.MethodError, match="1035 pairs"):
        MarginLoss(nn.Linear(3, 46), torch.zeros(1, 3), method="lipsdp", radius=1.0)
    with pytest.raises(lipcert.MethodError, match="one output"):
        MarginLoss(nn.Linear(3, 1), torch.zeros(1, 3), method="lipsdp", radius=1.0)
    state = MarginLoss(small(), IMAGE, method="lipsdp", radius=1.0).state_dict()
    with pytest.raises(lipcert.InputError, match="another model, method"):
        MarginLoss(small(), IMAGE, radius=1.0).load_state_dict(state)
    model = small()
    for radius in (0.0, math.nan, -1.0, "1"):
        with pytest.raises(lipcert.InputError, match="radius"):
            MarginLoss(model, IMAGE, radius=radius)
    with pytest.raises(lipcert.InputError, match="kind"):
        MarginLoss(model, IMAGE, "trades", radius=1.0)
    with pytest.raises(lipcert.MethodError, match="logits"):
        MarginLoss(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.zeros(1, 3), radius=1.0)
    with pytest.raises(lipcert.MethodError, match="one output"):
        MarginLoss(nn.Linear(3, 1), torch.zeros(1, 3), radius=1.0)
    loss = MarginLoss(model, IMAGE, radius=1.0)
    x, y = batch(0)
    with pytest.raises(lipcert.InputError, match="labels must lie"):
        loss(x, y + 2)
    with pytest.raises(lipcert.InputError, match="int64"):
        loss(x, y.float())
    with pytest.raises(lipcert.NumericsError, match="inputs hold NaN"):
        loss(x * math.nan, y)
    assert bool(model[1].running_mean.isfinite().all())
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with pytest.raises(lipcert.NumericsError, match=r"0\.bias.*NaN"):
        loss(x, y)


@pytest.mark.parametrize(
    ("dead", "shift", "alike"), [(1, 0, 0), (1, 1e4, 0), (0, 0, 0), (0, 1e4, 0), (0, 0, 1), (1, 0, 1)]
)
def test_a_model_that_has_become_a_constant_is_named(
    dead: bool, shift: float, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its neurons are dead for all inputs, and not where they are alive, whatever all classes share.

    Equal examples, or one alone, say nothing.
    """
    monkeypatch.setattr(margin_loss, "_LOOKED", 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    if dead:
        nn.init.constant_(model[0].bias, -100.0)
    with torch.no_grad():
        model[2].bias += shift
    x, y = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    x = x[:1].expand(5, 4) if alike else x
    loss = MarginLoss(model, x, "gloro", radius=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(x, y)
        loss(x[:1], y[:1])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss(x, y)
        loss(x, y)
    assert [("constant" in str(w.message), "at call 4" in str(w.message)) for w in seen] == [(True, True)] * (
        dead and not alike
    )
