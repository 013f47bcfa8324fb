"""Lipschitz constants that all examples share: of the body, and by LipSDP of all outputs."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.methods import lipsdp_finish
from lipcert.network.graph import Network
from lipcert.robustness.checks import Claim, Facts
from lipcert.robustness.constants import shared_constants
from lipcert.robustness.pair_constants import BODY, OUTPUTS, PairConstants, body, without_shared
from lipcert.robustness.threat import Threat
from lipcert.robustness.verification import restored
from tests.robustness.cases import mlp, points, right_labels

PLENTY = 10_000


def unbalanced() -> nn.Module:
    """x ↦ x⁺ of two numbers by layers whose norms are 100, 1 and 1."""
    model = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)
    )
    for layer, scale in ((0, [100.0, 1.0]), (2, [2.0**-7, 1.0]), (4, [1.28, 1.0])):
        model[layer].weight.data = torch.diag(torch.tensor(scale))
    return model.eval()


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_differences_of_rows_are_exact(count: int) -> None:
    rows = without_shared(count)
    for i, j in itertools.combinations(range(count), 2):
        expected = torch.zeros(count, dtype=torch.float64)
        expected[i], expected[j] = count, -count
        assert torch.equal(rows[i] - rows[j], expected)


def test_lipsdp_certifies_what_products_do_not(tmp_path: Path) -> None:
    """Up to the distance to the nearest point of another class, which is |x₁ − x₂|/√2."""
    model, x = unbalanced(), torch.tensor([[1.0, 0.25], [0.25, 1.0], [0.5, 0.75]])
    labels, distance = right_labels(model, x), 0.25 / math.sqrt(2.0)
    found = lipcert.certify(model, x, labels, radius=0.98 * distance, budget=100.0)
    assert [(r.status, r.method, r.guarantee) for r in found] == [("certified", "pair_constants", "rigorous")] * 3
    beyond = lipcert.certify(model, x, labels, radius=1.01 * distance, budget=100.0)
    assert [r.status for r in beyond] == ["certified", "certified", "attacked"]  # the others are 3 times as far
    found.save(tmp_path / "rows.robust")
    lipcert.Certification.load(tmp_path / "rows.robust").verify(model, x, labels)
    network = capture(model, x[:1])

    def kept(count: int, norm: float = 2.0, radii: tuple[float, ...] | None = (0.9 * distance,)) -> bool:
        """Whether a constant of all outputs was worth it."""
        threat = Threat.of(norm, None, radii, None, None)
        shared = shared_constants(
            network, threat, x.double().reshape(3, *network.in_shape), labels.tolist(), count, 60.0
        )
        first = restored({BODY: shared.certificates[BODY]}, network, norm)
        assert first[0].constant > 20.0
        assert len(shared.constants) == 1 + bool(shared.certificates[OUTPUTS])
        return len(shared.constants) == 2

    assert kept(PLENTY)
    assert kept(PLENTY, radii=None)
    assert not kept(0)  # no time for it
    assert not kept(PLENTY, norm=math.inf)
    assert not kept(PLENTY, radii=(1e-4,))  # the body's decides all
    assert not kept(PLENTY, radii=(10.0,))  # and nothing this one


@pytest.mark.parametrize("seed", range(3))
def test_no_difference_of_outputs_grows_faster(seed: int) -> None:
    """Each true of all pairs: gradients anywhere, and what all outputs share counts for nothing."""
    model, shared = mlp(seed).double(), torch.full((4, 8), 3.0, dtype=torch.float64)
    model[4].weight.data += shared
    network = capture(model, torch.zeros(1, 6, dtype=torch.float64))
    bound = lipcert.bound(model, torch.zeros(1, 6, dtype=torch.float64), method="lipsdp", select=without_shared(4))
    constants = PairConstants.of_outputs(network, 2.0, bound.value, bound.guarantee)
    x = 3.0 * torch.randn(200, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slopes = torch.vmap(torch.func.jacrev(lambda one: model(one[None])[0]))(x).detach()
    for i, j in itertools.combinations(range(4), 2):
        largest, known = float((slopes[:, i] - slopes[:, j]).norm(dim=1).max()), constants.between(i, j)[0]
        assert largest <= known < 10.0 * largest


def test_of_two_constants_the_better_counts_pair_by_pair() -> None:
    model = mlp(1)
    network = capture(model, torch.zeros(1, 6))
    threat = Threat.of(2.0, None, (0.1,), None, None)
    one, other = (PairConstants.of(network, 2.0, c, "rigorous") for c in (3.0, 2.0))
    outputs = PairConstants.of_outputs(network, 2.0, 9.0, "rigorous")
    x = points(1, size=(6,)).double()[0].reshape(network.in_shape)
    label = int(network.forward(x[None][0]).argmax())
    claim = Claim(x, label, 0.1)
    apart = [Facts(network, threat, (c,)).by_constants(claim).least for c in (one, other, outputs)]
    together = Facts(network, threat, (one, other, outputs))
    assert torch.equal(together.by_constants(claim).least, torch.stack(apart).amax(0))
    margins = together.at_centre(claim).least
    radii = [c.radius(label, margins) for c in (one, other, outputs)]
    assert together.radius_by_constants(label, margins) == max(radii)


def certificate(model: nn.Module, x: Tensor, folder: Path, select: Tensor | None) -> bytes:
    bound = lipcert.bound(model, x, method="lipsdp", select=select)
    bound.save(folder / "one.lipcert")
    return (folder / "one.lipcert").read_bytes()


def test_certificates_of_other_questions_prove_nothing(tmp_path: Path) -> None:
    """Another selection, all outputs where the body is meant, another network, no certificate at all."""
    model, x = mlp(), torch.zeros(1, 6)
    network, rows = capture(model, x), without_shared(4)
    front = nn.Sequential(*list(model)[:-1])
    assert restored({BODY: b"", OUTPUTS: b""}, network, 2.0) == ()
    assert len(restored({OUTPUTS: certificate(model, x, tmp_path, rows)}, network, 2.0)) == 1
    assert len(restored({BODY: certificate(front, x, tmp_path, None)}, network, 2.0)) == 1
    forged = [
        (OUTPUTS, certificate(model, x, tmp_path, 0.5 * rows)),
        (OUTPUTS, certificate(model, x, tmp_path, rows[:3])),
        (OUTPUTS, certificate(model, x, tmp_path, None)),
        (OUTPUTS, certificate(front, x, tmp_path, None)),
        (OUTPUTS, certificate(mlp(seed=1), x, tmp_path, rows)),
        (BODY, certificate(front, x, tmp_path, 0.5 * torch.eye(8, dtype=torch.float64))),
        (BODY, certificate(model, x, tmp_path, None)),
        (BODY, b"none"),
    ]
    for name, content in forged:
        with pytest.raises(lipcert.CertificateError):
            restored({name: content}, network, 2.0)


@pytest.mark.parametrize("constant", [True, False])
def test_models_without_differences(constant: bool) -> None:
    """A constant model, and one whose outputs are all alike."""
    model = mlp()
    weight = model[4].weight
    weight.data = torch.zeros_like(weight) if constant else weight.data[:1].expand_as(weight).clone()
    model[4].bias.data = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = lipcert.certify(model, points(3, size=(6,)), torch.ones(3, dtype=torch.int64), radius=100.0, budget=50.0)
    assert found.certified_accuracy(100.0) == 1.0


def test_a_body_without_a_constant_still_has_outputs() -> None:
    """A network that does not end in a linear map: LipSDP's constant of its outputs is all there is."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval()
    model[0].weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    network = capture(model, torch.zeros(1, 2))
    assert body(network) is None
    x = points(4, size=(2,)).double()
    labels = network.forward(x[:, None]).reshape(4, -1).argmax(1).tolist()
    found = shared_constants(network, Threat.of(2.0, None, None, None, None), x[:, None], labels, PLENTY, 60.0)
    assert [c.p for c in found.constants] == [2.0]
    assert restored(found.certificates, network, 2.0)[0].constant == found.constants[0].constant


def test_the_same_seed_gives_the_same_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says: nothing of LipSDP's search is timed."""
    model, x = unbalanced_at_random(), torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    labels = right_labels(model, x)
    margins = []
    for _ in range(3):
        found = lipcert.certify(model, x, labels, radius=1e-3, budget=30.0, effort=0.1)
        margins.append([(r.method, r.certified_radius, r.margin) for r in found])
    assert margins[1:] == margins[:1] * 2
    network = capture(model, x[:1])
    threat, examples = Threat.of(2.0, None, None, None, None), x.double()[:, None]
    values = []
    for strides in ([1.0], [1.0, 50.0], [50.0, 1.0]):  # now looks seem to be dear, now passes
        ticks = itertools.accumulate(itertools.cycle(strides))
        monkeypatch.setattr(lipsdp_finish, "time", SimpleNamespace(perf_counter=partial(next, ticks)))
        found = shared_constants(network, threat, examples, labels.tolist(), 100, 1.0)
        values.append([c.constant for c in found.constants])
    assert len(values[0]) == 2
    assert values[1:] == values[:1] * 2


def unbalanced_at_random() -> nn.Module:
    """Neurons of very different scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5))
        scale = torch.exp(2.0 * torch.randn(60))
    model[0].weight.data *= scale[:, None]
    model[2].weight.data /= scale
    return model.eval()


def test_the_sample_is_no_larger_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a batch is what fits in the memory; and where no constant of outputs comes into question nothing is run."""
    sizes = []
    forward = Network.forward

    def counted(self: Network, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(self, x)

    model = unbalanced()
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("lipcert.robustness.certify._warn_of_units", lambda *_: None)
    monkeypatch.setattr(Network, "forward", counted)
    lipcert.certify(model, x, right_labels(model, x), radius=1e-3, budget=50.0, memory=1e-5, effort=0.1)
    assert max(sizes) < 16


def test_a_model_whose_output_is_its_input() -> None:
    """Checks write into no tensor of a caller: the distance to the other class is known, and proved again."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(22), dtype=torch.float64)
    for model in (nn.Identity().eval(), nn.Flatten().eval()):
        found = lipcert.certify(model, x, x.argmax(1), radius=0.5)
        apart = (x[:, 0] - x[:, 1]).abs() / math.sqrt(2.0)
        assert [r.status for r in found] == ["certified" if d > 0.5 else "attacked" for d in apart]
        found.verify(model, x, x.argmax(1))
