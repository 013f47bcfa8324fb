"""What no rule foresaw still ends in an error with a name, or in the best that was found."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import CertificateError, LipcertError


def deep(scale: float) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layer = nn.Linear(4, 4, dtype=torch.float64)
        layer.weight.data.mul_(scale)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers).eval()


X = torch.zeros(1, 4, dtype=torch.float64)


def test_layers_beyond_any_float_have_a_lower_bound_or_a_named_error() -> None:
    """‖f(x) − f(y)‖ overflows: the search meets infinities in every precision."""
    lower = lipcert.lower_bound(deep(1e25), X, budget=0.2)
    assert lower.value >= 0.0
    for method in ("seqlip_greedy", "power_iteration"):
        with suppress(LipcertError):
            assert lipcert.estimate(deep(1e25), X, method=method).value >= 0.0


class OnMeta(nn.Module):
    """Leaves another default device behind."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_device("meta")
        return 2 * x


def test_a_forward_that_sets_the_default_device() -> None:
    try:
        value = lipcert.bound(OnMeta().eval(), X, method="autolip").value
        assert value >= 2.0
    except LipcertError:
        pass
    finally:
        torch.set_default_device("cpu")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/"])
def test_places_that_are_no_files_hold_no_certificate(place: str) -> None:
    if not Path(place).exists():
        pytest.skip("no such place here")
    with pytest.raises(CertificateError):
        lipcert.verify(place, nn.Linear(2, 2).eval(), torch.zeros(1, 2))
