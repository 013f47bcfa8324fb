"""Branch and bound: what it decides is decided, and with the bounds of a few steps it decides what they leave open."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.counter_example import CounterExample
from lipcert.errors import CertificateError
from lipcert.robustness import forest, outputs
from lipcert.robustness.branching import Branching
from lipcert.robustness.checks import Claim, Facts, Part, breaks, margins, read_proof, recheck, write_proof
from lipcert.robustness.provers import Asked, CostToGo, Proof
from lipcert.robustness.threat import Threat

FAR = math.inf
INNER, OUTER = 0.92, 1.08
STEPS = 40


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    act = nn.ReLU if kind == "relu" else nn.Tanh
    model = nn.Sequential(nn.Linear(2, 10), act(), nn.Linear(10, 8), act(), nn.Linear(8, 3)).eval()
    for p in model.parameters():
        p.data *= 2.0
    return model


def grid(x: Tensor, radius: float, norm: float, count: int = 301) -> Tensor:
    """Of a ball in two dimensions."""
    line = torch.linspace(-radius, radius, count, dtype=torch.float64)
    offsets = torch.cartesian_prod(line, line)
    return x + offsets[offsets.norm(p=norm, dim=1) <= radius]


class Example:
    """A point, and the largest radius of a grid at which its class is kept."""

    def __init__(self, kind: str, norm: float) -> None:
        self.model = network(kind).double()
        threat = Threat.of(norm, None, (0.1,), None, None)
        self.facts = Facts(capture(network(kind), torch.zeros(1, 2)), threat)
        self.norm = norm
        self.x = torch.tensor([0.7, -0.6], dtype=torch.float64)
        self.label = int(self.model(self.x[None]).argmax())
        points = grid(self.x, 4.0, norm)
        changed = self.model(points).argmax(1) != self.label
        self.radius = float((points - self.x).norm(p=norm, dim=1)[changed].min())

    def asked(self, radius: float) -> Asked:
        claim = Claim(self.x.reshape(1, 2), self.label, radius)
        return Asked(claim, self.x.reshape(1, 1, 2).expand(2, 1, 2))

    def decide(self, radius: float, **settings: object) -> Proof | CounterExample | None:
        prover = Branching(steps=STEPS, **settings)  # type: ignore[arg-type]
        return prover.prove(self.facts, [self.asked(radius)], time.perf_counter() + 60.0)[0]


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("norm", [2.0, FAR])
def test_just_below_the_distance_it_proves_and_beyond_it_breaks(kind: str, norm: float) -> None:
    example = Example(kind, norm)
    inner, outer = INNER * example.radius, OUTER * example.radius
    asked = example.asked(inner)
    found = example.decide(inner)
    assert isinstance(found, Proof)
    recheck(found.method, example.facts, asked.claim, found.content, found.margin, found.margins.guarantee)
    points = grid(example.x, inner, norm)
    scores = example.model(points)
    own = scores[:, [example.label]] - scores
    others = [k for k in range(3) if k != example.label]
    assert bool((found.margins.least <= own[:, others].amin(0)).all())
    if kind == "relu":
        before = CostToGo(linear=True, steps=STEPS).prove(example.facts, [asked], time.perf_counter() + 60.0)
        assert before == [None]  # or the test would say nothing
        assert found.method == "branched_cost_to_go"
    broken = example.decide(outer)
    assert isinstance(broken, CounterExample)
    assert breaks(example.facts, example.asked(outer).claim, broken.point)


@pytest.mark.parametrize("linear", [False, True])
def test_branching_goes_on_where_the_search_before_it_ended(linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same ranges or on others: no start is searched for anew, and what it finds is proved."""
    example = Example("relu", 2.0)
    asked, end = example.asked(INNER * example.radius), time.perf_counter() + 120.0
    assert CostToGo(linear=linear, steps=STEPS).prove(example.facts, [asked], end) == [None]
    assert asked.begun

    def never(*_: object) -> None:
        raise AssertionError("a start was made anew")

    monkeypatch.setattr(forest, "first_variables", never)
    (found,) = Branching(steps=STEPS, linear=True).prove(example.facts, [asked], end)
    assert isinstance(found, Proof)
    recheck(found.method, example.facts, asked.claim, found.content, found.margin, found.margins.guarantee)
    asked.begun.popitem()  # one is missing: all start anew
    with pytest.raises(AssertionError, match="anew"):
        Branching(steps=STEPS, linear=True).prove(example.facts, [asked], end)


def test_what_one_prover_proved_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipliers hold on any ranges that prove them: what is left is searched, what is put together is proved."""
    example = Example("relu", 2.0)
    asked, end = example.asked(INNER * example.radius), time.perf_counter() + 120.0
    assert CostToGo(linear=False, steps=STEPS).prove(example.facts, [asked], end) == [None]
    assert asked.known
    assert not {*asked.known} & {*asked.begun}
    searched, ascend = [], outputs.ascend

    def seen(*args: object, **options: object) -> object:
        searched.append(len(args[4]))  # type: ignore[arg-type]
        return ascend(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(outputs, "ascend", seen)
    before = [*asked.known]
    CostToGo(linear=True, steps=STEPS).prove(example.facts, [asked], end)
    assert searched == [2 - len(before)]  # on tighter ranges it holds as well
    grown = []
    of = forest.Forest.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        forest.Forest, "of", classmethod(lambda cls, *args: grown.append(len(args[3])) or of(cls, *args))
    )
    (found,) = Branching(steps=STEPS, linear=True).prove(example.facts, [asked], end)
    assert isinstance(found, Proof)
    assert grown == [2 - len(before)]
    recheck(found.method, example.facts, asked.claim, found.content, found.margin, found.margins.guarantee)
    asked.known.update({k: own.map(lambda t: 1e3 * t) for k, own in asked.known.items()})  # of no use
    (anew,) = Branching(steps=STEPS, linear=True).prove(example.facts, [asked], end)
    assert isinstance(anew, Proof)
    recheck(anew.method, example.facts, asked.claim, anew.content, anew.margin, anew.margins.guarantee)


def test_forged_trees_prove_nothing() -> None:
    example = Example("relu", 2.0)
    claim = example.asked(INNER * example.radius).claim
    found = example.decide(claim.radius)
    assert isinstance(found, Proof)
    parts, linear = read_proof(found.content)
    place = next(n for n, part in enumerate(parts) if "tree" in part.multipliers)
    tree = parts[place].multipliers

    def forged(**arrays: Tensor) -> bytes:
        other = [*parts]
        other[place] = Part(parts[place].classes, {**tree, **arrays})
        return write_proof(other, linear)

    for arrays in (
        {"tree": tree["tree"][:-1], "threshold": tree["threshold"][:-1]},
        {"tree": tree["tree"][:1] * 0 - 1, "threshold": tree["threshold"][:1]},
        {"tree": tree["tree"] * 0 - 1},
        {k: t[:1] for k, t in tree.items() if k.startswith("slope")},
    ):
        with pytest.raises(CertificateError):
            margins(found.method, example.facts, claim, forged(**arrays))
    with pytest.raises(CertificateError):
        margins("cost_to_go", example.facts, claim, found.content)
    larger = Claim(claim.x, claim.label, OUTER * example.radius)
    with pytest.raises(CertificateError):
        recheck(found.method, example.facts, larger, found.content, found.margin, found.margins.guarantee)


def test_no_time_and_radii_between_are_left() -> None:
    example = Example("relu", 2.0)
    asked = example.asked(0.9 * example.radius)
    assert Branching().prove(example.facts, [asked, asked], time.perf_counter() - 1.0) == [None, None]
    between = Asked(asked.claim, asked.starts, (0.1, 0.2))
    assert Branching().prove(example.facts, [between], time.perf_counter() + 9.0) == [None]


def test_rows_of_certify_by_branching_are_saved_and_proved_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """At an effort at which the bounds alone leave examples open."""
    example = Example("relu", 2.0)
    inputs = example.x.float()[None]
    labels = torch.tensor([example.label])
    found = lipcert.certify(network("relu"), inputs, labels, norm=2, radius=INNER * example.radius, effort=0.1)
    assert found[0].status == "certified"
    assert found[0].method == "branched_cost_to_go"
    found.save(tmp_path / "a.robust")
    assert lipcert.Certification.load(tmp_path / "a.robust").verify(network("relu"))
