"""One example and its batch: the bound is of f of one example, shown by its shape; what couples is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.errors import CaptureError, LipcertError
from tests.zoo import Apply


def bound(model: nn.Module, *shape: int) -> lipcert.Bound:
    return lipcert.bound(model.eval(), torch.zeros(*shape), method="autolip")


class Normalise(nn.Module):
    """Per-channel mean and deviation of images: broadcasts whatever it gets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.4, 0.5, channels).view(1, channels, 1, 1))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def opponent(channels: int) -> nn.Module:
    """Filters that see differences of channels only: on equal channels they are constant."""
    conv = nn.Conv2d(channels, 2, 3, bias=False)
    with torch.no_grad():
        conv.weight -= conv.weight.mean(1, keepdim=True)
    return nn.Sequential(Normalise(channels), conv)


@pytest.mark.parametrize("channels", [2, 3, 5, 7])
def test_a_forgotten_batch_dimension_is_found(channels: int) -> None:
    """Read as examples (6, 6), each would be broadcast to all channels, where the filters give nothing but rounding."""
    model = opponent(channels)
    right = bound(model, 1, channels, 6, 6)
    weight = model[1].weight.detach().double() / 0.25  # type: ignore[index, union-attr, operator]
    jacobian = torch.autograd.functional.jacobian(
        lambda z: F.conv2d(z, weight).flatten(), torch.zeros(1, channels, 6, 6, dtype=torch.float64)
    ).reshape(-1, channels * 36)
    assert right.value == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-6)
    assert right.input_shape == (channels, 6, 6)
    with pytest.raises(CaptureError, match=rf"\({channels}, 6, 6\).*examples? of shape|unsqueeze\(0\)|batch"):
        bound(model, channels, 6, 6)


@pytest.mark.parametrize("shape", [(1, 6, 6), (6, 6)])
def test_a_forgotten_batch_dimension_of_another_shape_than_the_channels(shape: tuple[int, ...]) -> None:
    """No batch of two or three runs; a batch of five does, and gives one row."""
    with pytest.raises(LipcertError, match="batch"):
        bound(opponent(5), *shape)


@pytest.mark.few(17)
@pytest.mark.parametrize(
    "couple",
    [
        lambda x: x - 1e-3 * x.mean(0),
        lambda x: x + 1e-3 * x.roll(1, 0),
        lambda x: x + 1e-3 * x.flip(0),
        lambda x: x / len(x),
        lambda x: x if len(x) == 1 else 2 * x,
        lambda x: x if len(x) != 3 else 2 * x,
        lambda x: x.reshape(1, -1)[:, :3].expand(len(x), 3),
        lambda x: x[:1].expand(len(x), 3),
        lambda x: x[-1:] + 0 * x,
        lambda x: x.t().reshape(len(x), 3),
        lambda x: x.reshape(-1, 3, 1).sum(2)[:1],
        lambda x: F.avg_pool1d(x.t().unsqueeze(0), 3, 1, 1)[0].t(),
        lambda x: torch.cat([x[:1], x[:-1]]),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_coupled_examples_are_refused(couple: Callable[[Tensor], Tensor], rows: int) -> None:
    with pytest.raises(LipcertError, match="batch"):
        bound(Apply(lambda _, x: couple(x)), rows, 3)


def test_coupling_that_only_the_data_show() -> None:
    """Two of the caller's examples are equal; nothing random is."""

    def twins(x: Tensor) -> Tensor:
        return x + (x[:1] == x[-1:]).all().to(x.dtype) * (1.0 if len(x) == 2 else 0.0)

    with pytest.raises(LipcertError):
        lipcert.bound(Apply(lambda _, x: twins(x)).eval(), torch.ones(3, 3), method="autolip")


class OnlyOne(nn.Module):
    """Written for one example at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return self.layer(x)


def test_honest_models_of_every_kind_are_bounded() -> None:
    only, plain = OnlyOne(), nn.Linear(3, 2)
    plain.load_state_dict(only.layer.state_dict())
    for rows in (1, 2, 5):
        assert bound(only, rows, 3).value == bound(plain, rows, 3).value
    program = torch.export.export(plain.eval(), (torch.zeros(1, 3),))
    assert lipcert.bound(program, torch.zeros(4, 3), method="autolip").value == bound(plain, 1, 3).value
    normed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    assert bound(normed, 3, 1, 4, 4).input_shape == (1, 4, 4)
    loop = Apply(lambda s, x: torch.stack([s.layer(row) for row in x]), layer=plain)
    assert bound(loop, 2, 3).value == bound(plain, 1, 3).value


def test_the_shape_of_one_example_is_shown(tmp_path: object) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    example = torch.zeros(2, 1, 4, 4)
    found = lipcert.bound(model, example, method="autolip")
    lower = lipcert.lower_bound(model, example, budget=0.1)
    table = lipcert.compare(model, example, methods=["autolip"], lower_budget=0.1)
    for text in (str(found), str(lower), str(table)):
        assert "input 1×4×4" in text
    assert found.input_shape == lower.input_shape == (1, 4, 4)
    found.save(f"{tmp_path}/m.lipcert")
    assert lipcert.verify(f"{tmp_path}/m.lipcert", model, example).input_shape == (1, 4, 4)
    with pytest.raises(lipcert.InputError, match=r"one example is read as \(4, 4\)"):
        lipcert.bound(copy.deepcopy(model), torch.zeros(3, 4, 4), method="autolip")
