"""Losses, maxima and single probabilities against closed forms, attacks, and constants of what they are means of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.verify import verify
from lipcert.domain import Ball
from lipcert.errors import CertificateError, MethodError
from lipcert.network.linear import Identity
from lipcert.problem import Problem
from lipcert.ranges.hull import _tame, _written_exactly, hull
from tests.zoo import Apply

D = torch.float64
K = 6
X = torch.zeros(1, K, dtype=D)
Y = torch.tensor([2])
ROOT = math.sqrt(2.0)

#: name: (function of K logits, its constants in l2 and from l_inf).
LOSSES = {
    "cross_entropy": (lambda x: F.cross_entropy(x, Y.expand(len(x)), reduction="none")[:, None], ROOT, 2.0),
    "weighted": (lambda x: 0.7 * F.cross_entropy(x, Y.expand(len(x)), reduction="none")[:, None], 0.7 * ROOT, 1.4),
    "-log_softmax[i]": (lambda x: -F.log_softmax(x, 1)[:, 2:3], ROOT, 2.0),
    "log_softmax[i] - log_softmax[j]": (lambda x: F.log_softmax(x, 1)[:, :1] - F.log_softmax(x, 1)[:, 1:2], ROOT, 2.0),
    "logsumexp": (lambda x: torch.logsumexp(x, 1, keepdim=True), 1.0, 1.0),
    "logsumexp - x_i": (lambda x: torch.logsumexp(x, 1, keepdim=True) - x[:, 2:3], ROOT, 2.0),
    "margin": (lambda x: torch.cat([x[:, :2], x[:, 3:]], 1).amax(1, keepdim=True) - x[:, 2:3], ROOT, 2.0),
    "max - min": (lambda x: x.amax(1, keepdim=True) - x.amin(1, keepdim=True), ROOT, 2.0),
    "softmax[i]": (lambda x: F.softmax(x, 1)[:, 2:3], ROOT / 4, 0.5),
    "greatest probability": (lambda x: F.softmax(x, 1).amax(1, keepdim=True), ROOT / 4, 0.5),
    "hinge of a margin": (lambda x: F.relu(1 + x[:, 1:].amax(1, keepdim=True) - x[:, :1]), ROOT, 2.0),
    "softplus of a loss": (lambda x: F.softplus(3 * torch.logsumexp(x, 1, keepdim=True)), 3.0, 3.0),
}


def problem(model: nn.Module, example: torch.Tensor, norm: tuple[float, float] = (2.0, 2.0)) -> Problem:
    return Problem(capture(model.eval(), example), norm)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_closed_forms(name: str, p: float) -> None:
    function, *truths = LOSSES[name]
    truth = truths[p == math.inf]
    model = Apply(lambda _, x: function(x))
    bound = lipcert.bound(model.eval(), X, method="hull", norm=(p, p), budget=2)
    assert truth * (1 - 1e-9) <= bound.value <= truth * 1.001
    assert bound.method == "hull"


@pytest.mark.few(4)
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_claimed_of_increments(name: str) -> None:
    """|δf| ≤ max_k |δg_k| for pairs of points near and far."""
    function = LOSSES[name][0]
    network = capture(Apply(lambda _, x: function(x)).eval(), X)
    found = hull(network)
    assert found is not None
    inner, q = found
    assert q == math.inf
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 30.0):
        x, y = (scale * torch.randn(500, 1, K, generator=generator, dtype=D) for _ in range(2))
        change = (network.forward(x) - network.forward(y)).abs().reshape(500, -1).amax(1)
        inside = (inner.forward(x) - inner.forward(y)).abs().reshape(500, -1).amax(1)
        assert bool((change <= inside * (1 + 1e-9) + 1e-12).all())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, K)).double()


@pytest.mark.slow
def test_the_loss_of_a_network_has_the_largest_pair_constant(tmp_path: Path) -> None:
    net, x = network(), torch.zeros(1, 4, dtype=D)
    pairs = -torch.eye(K, dtype=D)[2].expand(K - 1, K) + torch.eye(K, dtype=D)[[0, 1, 3, 4, 5]]
    pair = lipcert.bound(net.eval(), x, select=pairs, norm=(2, math.inf), budget=2).value
    for name in ("cross_entropy", "margin"):
        model = nn.Sequential(net, Apply(lambda _, z, name=name: LOSSES[name][0](z))).eval()
        bound = lipcert.bound(model, x, budget=1)
        assert pair * (1 - 1e-6) <= bound.value <= pair * 1.001, name
        assert lipcert.lower_bound(model, x, budget=0.1).value <= bound.value
        local = lipcert.bound(model, x, budget=0.5, domain=Ball(torch.zeros(4, dtype=D), 0.3)).value
        assert local <= bound.value * (1 + 1e-9)
        bound.save(tmp_path / "c.lipcert")
        assert lipcert.verify(tmp_path / "c.lipcert", model, x).value == bound.value
        with pytest.raises(CertificateError):
            lipcert.verify(tmp_path / "c.lipcert", nn.Sequential(net, Apply(lambda _, z: z[:, :1])).eval(), x)


def test_several_outputs_and_q_inf() -> None:
    """In l_p → l_∞ each output is a mean of its own."""
    model = Apply(lambda _, x: F.softmax(x, 1)[:, 1:4]).eval()
    assert lipcert.bound(model, X, norm=(2, math.inf), method="hull").value == pytest.approx(ROOT / 4, rel=1e-3)
    rows = torch.tensor([[0, 1.0, 0, 0, 0, 0], [0, 0, 0, -2.0, 0, 0]], dtype=D)
    whole = Apply(lambda _, x: F.softmax(x, 1)).eval()
    value = lipcert.bound(whole, X, norm=(2, math.inf), select=rows, method="hull").value
    assert value == pytest.approx(2 * ROOT / 4, rel=1e-3)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: F.softmax(x, 1),
        lambda x: F.softmax(x, 1)[:, :1] + F.softmax(x, 1)[:, 1:2],
        lambda x: (F.softmax(x, 1) * torch.arange(K)).sum(1, keepdim=True),
        lambda x: torch.logsumexp(x.view(-1, 2, 3), 2).mean(1, keepdim=True),
        lambda x: torch.tanh(x[:, :1]),
    ],
)
def test_other_ends_are_left_alone(function: object) -> None:
    model = Apply(lambda _, x: function(x)).eval()  # type: ignore[operator]
    assert problem(model, X).inner is None
    with pytest.raises(MethodError, match=r"end in a maximum"):
        lipcert.bound(model, X, method="hull")
    assert lipcert.bound(model, X, budget=1).value >= lipcert.lower_bound(model, X, budget=0.2).value


@pytest.mark.slow
def test_distances_to_centres() -> None:
    centres = torch.randn(5, K, dtype=D, generator=torch.Generator().manual_seed(0))
    model = Apply(lambda _, x: 2.0 * (x[:, None] - centres).norm(dim=2)).eval()
    bound = lipcert.bound(model, X, norm=(2, math.inf), budget=1)
    assert 2.0 * (1 - 1e-9) <= bound.value <= 2.002
    assert lipcert.bound(model, X, norm=(2, 2), budget=1).value >= 2.0 * math.sqrt(5) * (1 - 1e-9)
    scaled = Apply(lambda _, x: ((x[:, None] - centres) * torch.arange(1, 6)[:, None]).norm(dim=2)).eval()
    value = lipcert.bound(scaled, X, norm=(2, math.inf), budget=1).value
    assert lipcert.lower_bound(scaled, X, norm=(2, math.inf), budget=0.3).value <= value
    one = Apply(lambda _, x: x.norm(dim=1, keepdim=True)).eval()
    assert lipcert.bound(one, X, method="hull").value == pytest.approx(1.0, rel=1e-3)
    net = nn.Sequential(network(), model).eval()
    x = torch.zeros(1, 4, dtype=D)
    value = lipcert.bound(net, x, norm=(2, math.inf), budget=1).value
    assert value <= 2.0 * lipcert.bound(network().eval(), x, budget=1).value * 1.001
    assert lipcert.lower_bound(net, x, norm=(2, math.inf), budget=0.3).value <= value


def test_a_forged_kind_is_refused() -> None:
    model = nn.Sequential(network(), Apply(lambda _, z: LOSSES["cross_entropy"][0](z))).eval()
    x = torch.zeros(1, 4, dtype=D)
    record = lipcert.bound(model, x, method="hull", budget=2).certificate
    assert record is not None
    net = capture(model, x)
    settings = dict(record.witness.settings)
    for forged in (
        {**settings, "kind": "hull"}, {**settings, "kind": 3}, {**settings, "settings": None}, {},
        {**settings, "kind": "layer_product"},
    ):  # fmt: skip
        with pytest.raises(CertificateError):
            verify(replace(record, witness=replace(record.witness, settings=forged)), net)
    with pytest.raises(CertificateError):
        verify(replace(record, value=record.value * 0.99), net)
    with pytest.raises(CertificateError):
        verify(replace(record, witness=replace(record.witness, kind="quadratic", settings=settings["settings"])), net)


def test_scales_are_looked_at_as_they_are_and_not_in_float32() -> None:
    shape = (1, 2)
    for scale in (1e-110, 1e110, -1e-46):
        assert not _tame(Identity(shape, scale))
    for scale in (1.0 + 2.0**-40, 1.0 - 2.0**-30, 1e-60):
        assert not _written_exactly(Identity(shape, scale))
    assert _tame(Identity(shape, -0.3))
    assert _written_exactly(Identity(shape, 1.0 + 2.0**-8))
