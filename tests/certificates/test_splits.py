"""Trees of splits: whatever multipliers and trees say, no point of the domain is below what they prove."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.splits import LEAF, Split, branched_bounds, parts, write_trees
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.outputs import OutputCertificate, Subject, check_outputs, verify_outputs
from lipcert.errors import CertificateError, NotProved
from lipcert.network.linear import size
from tests.certificates.test_cost_to_go import captured, points_of, some_multipliers
from tests.zoo import Residual

DOMAINS = {
    "l2": lipcert.Ball(torch.tensor([0.2, -0.4]), 0.9, p=2),
    "linf": lipcert.Ball(torch.tensor([0.2, -0.4]), 0.7, p=float("inf")),
    "box": lipcert.Box(torch.tensor([-0.5, -1.0]), torch.tensor([0.5, 0.3])),
}
MODELS = {
    "relu": lambda: nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
    "tanh": lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)),
    "skip": lambda: nn.Sequential(
        nn.Linear(2, 4), Residual(nn.Sequential(nn.ReLU(), nn.Linear(4, 4))), nn.ReLU(), nn.Linear(4, 3)
    ),
    "block": lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 3)),
}


class Case:
    """A network in two dimensions, on a domain."""

    def __init__(self, name: str, domain: str, seed: int, linear: bool = True) -> None:
        torch.manual_seed(seed)
        self.subject = Subject(captured(MODELS[name](), 2))
        self.network = self.subject.network
        self.domain = DOMAINS[domain].fitted((1, 2))
        self.setting = Setting(self.subject.facts, self.domain, linear)
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(2, 3, generator=self.generator, dtype=torch.float64)
        self.points = points_of(DOMAINS[domain], 3000)
        values = dict(self.network.values(self.points.reshape(-1, 1, 2)))
        self.values = {k: v.reshape(len(self.points), -1) for k, v in values.items()}
        self.least = (self.rows @ self.values[len(self.network.nodes) - 1].T).amin(dim=1)

    def tree(self, depth: int) -> list[Split | None]:
        """Random splits at any node, the input included, at values that occur."""
        if depth == 0 or float(torch.rand((), generator=self.generator)) < 0.15:
            return [None]
        position = int(torch.randint(len(self.network.nodes), (), generator=self.generator))
        entry = int(torch.randint(size(self.network.nodes[position].shape), (), generator=self.generator))
        values = self.values[position][:, entry]
        threshold = float(values[int(torch.randint(len(values), (), generator=self.generator))])
        return [Split(position, entry, threshold), *self.tree(depth - 1), *self.tree(depth - 1)]

    def multipliers(self, count: int, seed: int, scale: float = 0.3) -> Multipliers:
        return some_multipliers(self.network, count, seed, scale)


def leaves(trees: list[Split | None]) -> int:
    return sum(split is None for split in trees)


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", MODELS)
def test_any_tree_with_any_multipliers_proves_a_truth(name: str, domain: str, seed: int) -> None:
    case = Case(name, domain, seed, linear=seed % 2 == 0)
    for depth, scale in ((1, 0.3), (4, 0.3), (3, 1.0)):
        trees = [*case.tree(depth), *case.tree(depth)]
        found, _ = branched_bounds(case.setting, case.rows, trees, case.multipliers(leaves(trees), seed, scale))
        assert bool((found <= case.least).all())


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_in_a_leaf_and_within_its_ranges(seed: int) -> None:
    """A leaf's boxes hold at every point that its path allows; a leaf without points has none."""
    case = Case("skip", "l2", seed)
    trees = case.tree(5)

    def paths(rest: list[Split | None], allowed: Tensor) -> list[Tensor]:
        split = rest.pop(0)
        if split is None:
            return [allowed]
        v = case.values[split.position][:, split.entry]
        return [p for side in (v <= split.threshold, v >= split.threshold) for p in paths(rest, allowed & side)]

    allowed = paths(list(trees), torch.ones(len(case.points), dtype=torch.bool))
    assert bool(torch.stack(allowed).any(dim=0).all())
    for (_, part), mine in zip(parts(case.setting, trees, 1), allowed, strict=True):
        if part is None:
            assert not bool(mine.any())
            continue
        for k, box in enumerate(part.boxes):
            values = case.values[k][mine]
            slack = 1e-12 * (1.0 + values.abs())
            assert bool(((values >= box.low.reshape(-1) - slack) & (values <= box.high.reshape(-1) + slack)).all())


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_a_deeper_tree_with_the_same_multipliers_proves_no_less(name: str) -> None:
    case = Case(name, "l2", 3, linear=False)
    rows = case.rows[:1]
    own = case.multipliers(1, 5)
    best, _ = lower_bounds(case.setting, rows, own)
    activation = min(own.slope)
    parent = case.network.nodes[activation].parents[0]
    trees: list[Split | None] = [None]
    for entry in range(3):
        split = Split(parent, entry, 0.0)
        trees = [s for old in trees for s in ([split, None, None] if old is None else [old])]
        repeated = own.map(lambda t: t.repeat(leaves(trees), *[1] * (t.dim() - 1)))  # noqa: B023
        found, _ = branched_bounds(case.setting, rows, trees, repeated)
        assert float(found) >= float(best) - 1e-9
        best = found


def test_certificates_are_saved_read_and_proved_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    case = Case("relu", "l2", 1)
    trees = [*case.tree(4), *case.tree(4)]
    arrays = {**case.multipliers(leaves(trees), 1).arrays(), **write_trees(trees)}
    witness = Witness("branched_cost_to_go", {**arrays, "norms": case.subject.facts.claims}, {"linear": True})
    bound = check_outputs(case.subject, case.domain, case.rows, witness, "branched_cost_to_go")
    assert bool((bound.lower <= case.least).all())
    bound.save(tmp_path / "a.lipcert")
    torch.manual_seed(1)
    again = lipcert.verify(tmp_path / "a.lipcert", MODELS["relu"]().eval(), torch.zeros(1, 2))
    assert torch.equal(again.lower, bound.lower)


FORGERIES = {
    "a leaf is missing": lambda t, h: (t[:-1], h[:-1]),
    "a leaf too many": lambda t, h: (torch.cat([t, t[-1:]]), torch.cat([h, h[-1:]])),
    "no tree": lambda t, h: (t[:0], h[:0]),
    "an inner node is a leaf": lambda t, h: (torch.cat([torch.tensor([LEAF]), t[1:]]), h),
    "a node that is not there": lambda t, h: (torch.where(t >= 0, t + 100, t), h),
    "an entry that is not there": lambda t, h: (torch.where(t >= 0, t + torch.tensor([0, 10**6]), t), h),
    "a half mark": lambda t, h: (torch.where(t == -1, torch.tensor([-1, 0]), t), h),
    "no number": lambda t, h: (t, torch.full_like(h, float("nan"))),
    "thresholds too few": lambda t, h: (t, h[:-1]),
    "other types": lambda t, h: (t.double(), h),
    "no thresholds": lambda t, h: (t, None),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_trees_that_are_none_are_refused(forgery: str) -> None:
    case = Case("relu", "l2", 2)
    split = Split(case.network.nodes[2].parents[0], 0, 0.1)
    trees = [split, None, split, None, None]
    arrays = write_trees(trees)
    tree, threshold = FORGERIES[forgery](arrays["tree"], arrays["threshold"])
    forged = {**case.multipliers(3, 1).arrays(), "tree": tree, "threshold": threshold}
    forged = {k: t for k, t in forged.items() if t is not None}
    witness = Witness("branched_cost_to_go", forged, {"linear": True})
    with pytest.raises((CertificateError, NotProved)):
        check_outputs(case.subject, case.domain, case.rows[:1], witness, "branched_cost_to_go")


def test_another_threshold_or_leaf_proves_a_truth_or_nothing() -> None:
    """What a leaf may assume is read from the tree: no number in a file widens it."""
    case = Case("relu", "l2", 4)
    parent = case.network.nodes[2].parents[0]
    own = case.multipliers(3, 1)
    trees = [Split(parent, 0, 0.0), None, Split(parent, 1, 0.0), None, None]
    witness = Witness("branched_cost_to_go", {**own.arrays(), **write_trees(trees)}, {"linear": True})
    bound = check_outputs(case.subject, case.domain, case.rows[:1], witness, "branched_cost_to_go")
    for threshold in (-1e300, -0.5, 0.5, 1e300):
        forged = {**witness.arrays, "threshold": torch.full_like(witness.arrays["threshold"], threshold)}
        other = Witness(witness.kind, forged, witness.settings)
        found = check_outputs(case.subject, case.domain, case.rows[:1], other, "branched_cost_to_go")
        assert bool((found.lower <= case.least[:1]).all())
        record = bound.certificate
        assert isinstance(record, OutputCertificate)
        claim = record.__class__(**{**vars(record), "witness": other, "lower": case.least[:1] + 1e-3})
        with pytest.raises(CertificateError):
            verify_outputs(claim, case.subject)


def test_a_plain_certificate_holds_no_tree() -> None:
    case = Case("relu", "l2", 2)
    witness = Witness("cost_to_go", {**case.multipliers(1, 1).arrays(), **write_trees([None])}, {"linear": True})
    with pytest.raises(CertificateError):
        check_outputs(case.subject, case.domain, case.rows[:1], witness, "cost_to_go")
