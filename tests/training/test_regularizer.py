"""Penalties follow the model: values below the methods' bounds, gradients of the converged value, exact resumption."""

from __future__ import annotations

import copy
import gc
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.training import LipschitzRegularizer
from tests.network.test_source import MODELS, case
from tests.zoo import Apply

D = torch.float64
METHODS = ("autolip", "liplt", "lipsdp")
#: Models that are Lipschitz on the whole space, and one with a max-pool and a residual sum.
FOLLOWED = [name for name in MODELS if name != "computed weights"]


class Block(nn.Module):
    """A convolution, a max-pool, a residual sum and a linear layer on 2×6×6 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(torch.relu(self.first(x)), 2)
        return self.last((z + self.norm(F.elu(self.inner(z)))).flatten(1))


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )


IMAGE = torch.zeros(1, 1, 7, 7)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(16, 1, 7, 7, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def train(model: nn.Module, reg: LipschitzRegularizer, optimiser: torch.optim.Optimizer, steps: range) -> list[float]:
    found = []
    for k in steps:
        x, y = batch(k)
        loss = F.cross_entropy(model(x), y) + 0.1 * reg()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(reg.estimate.value)
    return found


def apart(model: nn.Module) -> None:
    """Singular values that initialisation makes equal are no more: at a tie a norm has no derivative."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p *= 1.0 + 0.4 * torch.rand(p.shape, generator=generator, dtype=p.dtype)


def follower(model: nn.Module, example: Tensor, method: str) -> LipschitzRegularizer:
    return LipschitzRegularizer(model, example, method=method, columns=12, penalty="value", passes=400)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, method) for name in FOLLOWED for method in METHODS), ("block", "autolip"), ("block", "liplt")],
)
def test_gradients_are_those_of_the_converged_value(name: str, method: str) -> None:
    if name == "block":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, example = Block().double().eval(), torch.zeros(1, 2, 6, 6, dtype=D)
    else:
        model, example = case(name)
        model, example = copy.deepcopy(model).double(), example.double()
    apart(model)
    if not any(p.requires_grad for p in model.parameters()):
        with pytest.raises(lipcert.InputError, match="no parameters"):
            follower(model, example, method)
        return
    reg = follower(model, example, method)
    reg()
    value = reg()
    value.backward()
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=D) for p in model.parameters()]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None
    )
    ends, h = [], 1e-5
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for p, d in zip(model.parameters(), directions, strict=True):
                p += sign * h * d
            ends.append(reg().item())
        for p, d in zip(model.parameters(), directions, strict=True):
            p += h * d
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-3, abs=1e-5)
    if method != "liplt" and name not in ("layer norm", "group norm"):  # certificates know more there
        certified = reg.certify(method=method).value
        assert certified * (1 - 2e-2) <= value.item() <= certified * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_has_a_smaller_certified_constant(method: str) -> None:
    bounds = []
    for penalty in (0.0, 1.0):
        model = small().train()
        reg = LipschitzRegularizer(model, IMAGE, method=method, penalty="log")
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for k in range(20):
            x, y = batch(k)
            loss = F.cross_entropy(model(x), y) + penalty * reg()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        bounds.append(reg.certify(method="autolip").value)
        assert reg.estimate.value <= reg.certify().value * (1 + 1e-5)
        assert model.training
        assert model[1].training
    assert bounds[1] < 0.8 * bounds[0]


@pytest.mark.slow
def test_running_statistics_count_in_training_mode() -> None:
    model = small().train()
    reg = LipschitzRegularizer(model, IMAGE, penalty="value")
    before = reg().item()
    with torch.no_grad():
        model[1].running_var *= 4.0
    assert reg().item() < 0.6 * before


def test_a_resumed_run_goes_on_exactly() -> None:
    whole = small().train()
    reg = LipschitzRegularizer(whole, IMAGE, penalty="log")
    optimiser = torch.optim.Adam(whole.parameters())
    expected = train(whole, reg, optimiser, range(6))

    model = small().train()
    first = LipschitzRegularizer(model, IMAGE, penalty="log")
    optimiser = torch.optim.Adam(model.parameters())
    found = train(model, first, optimiser, range(3))
    saved = copy.deepcopy((model.state_dict(), first.state_dict(), optimiser.state_dict()))
    again = small(seed=5).train()
    second = LipschitzRegularizer(again, IMAGE, penalty="log", seed=7)
    other = torch.optim.Adam(again.parameters())
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    assert second.estimate.value == found[-1]
    assert found + train(again, second, other, range(3, 6)) == expected
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(lipcert.InputError, match="another model, method"):
        LipschitzRegularizer(again, IMAGE, "lipsdp", 4, penalty="value").load_state_dict(saved[1])


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        model = small().train()
        reg = LipschitzRegularizer(model, IMAGE, penalty="log", seed=3)
        runs.append(train(model, reg, torch.optim.Adam(model.parameters()), range(3)))
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_autocast_and_no_grad_change_nothing() -> None:
    model = small()
    values, gradients = [], []
    for kind in ("plain", "autocast", "half"):
        own = copy.deepcopy(model)
        reg = LipschitzRegularizer(own, IMAGE, penalty="value", passes=3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            value = reg()
        value.backward()
        values.append(value.item())
        gradients.append(own[0].weight.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])
    with torch.no_grad():
        assert not reg().requires_grad
    with torch.inference_mode():
        assert reg().item() == pytest.approx(values[0], rel=1e-2)
    reg().backward()


def test_shared_weights_count_once() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(3, 3).double()
    model = nn.Sequential(layer, nn.ReLU(), layer)
    value = LipschitzRegularizer(model, torch.zeros(1, 3), lipcert.AutoLip(), penalty="value", passes=300)()
    assert value.item() == pytest.approx(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) ** 2)
    value.backward()
    u, s, v = torch.linalg.svd(layer.weight.detach())
    assert torch.allclose(layer.weight.grad, 2 * s[0] * torch.outer(u[:, 0], v[0]), rtol=1e-6)


def test_penalties() -> None:
    model = small()
    value = LipschitzRegularizer(model, IMAGE, "autolip", penalty="value")().item()
    assert LipschitzRegularizer(model, IMAGE, "autolip", penalty="log")().item() == pytest.approx(math.log(value))
    assert LipschitzRegularizer(model, IMAGE, "autolip", target=value / 2)().item() == pytest.approx(value / 2)
    inactive = LipschitzRegularizer(model, IMAGE, "autolip", target=2 * value)()
    assert inactive.item() == 0.0
    inactive.backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf, None, "5"])
def test_targets_that_are_none(target: object) -> None:
    with pytest.raises(lipcert.InputError, match="target > 0"):
        LipschitzRegularizer(small(), IMAGE, target=target)


def test_bad_models_are_named_at_construction() -> None:
    frozen = small().requires_grad_(False)
    with pytest.raises(lipcert.InputError, match="frozen"):
        LipschitzRegularizer(frozen, IMAGE, penalty="value")
    with pytest.raises(lipcert.InputError, match="no parameters"):
        LipschitzRegularizer(nn.ReLU(), IMAGE, penalty="value")
    exploding = Apply(lambda s, x: torch.exp(s.inner(x)), inner=nn.Linear(3, 3))
    with pytest.raises(lipcert.NotLipschitzError):
        LipschitzRegularizer(exploding, torch.zeros(1, 3), penalty="value")
    unknown = Apply(lambda s, x: torch.cumprod(s.inner(x), 1), inner=nn.Linear(3, 3))
    with pytest.raises(lipcert.CaptureError, match="cumprod"):
        LipschitzRegularizer(unknown, torch.zeros(1, 3), penalty="value")
    recurrent = Apply(lambda s, x: s.inner(x)[0], inner=nn.GRU(3, 2, batch_first=True))
    with pytest.raises(lipcert.MethodError, match="known ranges"):
        LipschitzRegularizer(recurrent, torch.zeros(1, 2, 3), penalty="value")
    with pytest.raises(lipcert.UnsupportedNormError):
        LipschitzRegularizer(small(), IMAGE, norm=1, penalty="value")
    numbers = Apply(lambda s, x: s.inner(x) * s.inner.bias[0].item(), inner=nn.Linear(3, 3))
    with pytest.raises(lipcert.CaptureError, match=r"inner\.bias.* plain number"):
        LipschitzRegularizer(numbers, torch.zeros(1, 3), penalty="value")


def test_the_logarithm_of_a_constant_function_is_refused() -> None:
    model = small()
    with torch.no_grad():
        model[6].weight.zero_()
    assert LipschitzRegularizer(model, IMAGE, "autolip", penalty="value")().item() == 0.0
    with pytest.raises(lipcert.NumericsError, match="estimate is 0"):
        LipschitzRegularizer(model, IMAGE, "autolip", penalty="log")()


def test_bad_steps_are_named() -> None:
    model = small()
    reg = LipschitzRegularizer(model, IMAGE, penalty="value")
    with pytest.raises(lipcert.InputError, match="before the first call"):
        _ = reg.estimate
    reg()
    with torch.no_grad():
        kept = model[4].weight.clone()
        model[4].weight[0, 0] = math.nan
    with pytest.raises(lipcert.NumericsError, match=r"4\.weight.*NaN"):
        reg()
    with torch.no_grad():
        model[4].weight.copy_(kept)
    reg()
    model.requires_grad_(False)
    with pytest.raises(lipcert.InputError, match="frozen"):
        reg()
    model.requires_grad_(True)
    model[4] = nn.Linear(36, 9)
    with pytest.raises(lipcert.InputError, match=r"4\.bias"):
        reg()
    model[4] = nn.Identity()
    with pytest.raises(lipcert.InputError, match="other layers"):
        reg()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Gradients are those of the plain module, whose parameters the wrapper averages."""
    alone, model = small(), small()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for own, module in ((alone, alone), (wrapped, model)):
            reg = LipschitzRegularizer(own, IMAGE, penalty="log")
            train(own, reg, torch.optim.SGD(module.parameters(), lr=0.01), range(3))
    finally:
        torch.distributed.destroy_process_group()
    for p, q in zip(alone.parameters(), model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    model = small().train()
    reg = LipschitzRegularizer(model, IMAGE, penalty="log")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, Tensor) for o in gc.get_objects())

    train(model, reg, optimiser, range(5))
    before = tensors()
    train(model, reg, optimiser, range(1000))
    assert tensors() <= before + 5


@pytest.mark.slow
def test_a_compiled_step_stays_compiled() -> None:
    model = small().train()
    compiled = torch.compile(model, backend="aot_eager")
    reg = LipschitzRegularizer(compiled, IMAGE, penalty="log")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    train(compiled, reg, optimiser, range(2))
    with torch.compiler.set_stance("fail_on_recompile"):
        train(compiled, reg, optimiser, range(2, 5))
    assert reg.certify(method="autolip").value > 0


@pytest.mark.few(1)
@pytest.mark.parametrize("norm", [(math.inf, 2), (2, 1), (math.inf, 1)])
def test_lipsdp_between_other_norms(norm: tuple[float, float]) -> None:
    """The value is the method's own, and the gradient that of the converged value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    apart(model)
    x = torch.zeros(1, 4, dtype=D)
    reg = LipschitzRegularizer(model, x, "lipsdp", 12, norm=norm, penalty="value", passes=400)
    reg()
    value = reg()
    certified = reg.certify()
    assert certified.norm == reg.estimate.norm == norm
    assert certified.value * (1 - 2e-2) <= value.item() <= certified.value * (1 + 1e-9)
    assert lipcert.lower_bound(model, x, norm=norm, budget=0.5).value <= certified.value
    value.backward()
    weight, h = model[2].weight, 1e-5
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=D)
    ends = []
    with torch.no_grad():
        for step in (h, -2 * h):
            weight += step * direction
            ends.append(reg().item())
    assert float((weight.grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("method", METHODS)
def test_a_selection_is_followed_and_certified(method: str) -> None:
    model = small()
    row = torch.tensor([[1.0, -1.0, 0.0]])
    reg = LipschitzRegularizer(model, IMAGE, method, 8, penalty="value", passes=200, select=row)
    difference = copy.deepcopy(model)
    with torch.no_grad():
        difference[6] = nn.Linear(8, 1)
        difference[6].weight.copy_(row @ model[6].weight)
    expected = LipschitzRegularizer(difference, IMAGE, method, 8, penalty="value", passes=200)()
    value = reg()
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert torch.equal(model[6].weight.grad[0], -model[6].weight.grad[1])
    assert not bool(model[6].weight.grad[2].any())
    if method == "autolip":
        assert reg.certify().value == pytest.approx(value.item(), rel=1e-3)


def test_norms_and_selections_that_cannot_be() -> None:
    for norm in (1, (1, 2), (2, math.inf), 3):
        with pytest.raises(lipcert.UnsupportedNormError):
            LipschitzRegularizer(small(), IMAGE, norm=norm, penalty="value")  # type: ignore[arg-type]
    with pytest.raises(lipcert.UnsupportedNormError, match="method='lipsdp'"):
        LipschitzRegularizer(small(), IMAGE, "autolip", norm=math.inf, penalty="value")
    with pytest.raises(lipcert.InputError, match=r"select must be a \(k, 3\) matrix"):
        LipschitzRegularizer(small(), IMAGE, select=torch.ones(1, 4), penalty="value")
    one = torch.tensor([[1.0, 0.0, 0.0]])
    assert LipschitzRegularizer(small(), IMAGE, norm=(2, math.inf), select=one, penalty="value")().item() > 0
