"""Bases of windows: least costs against brute force and against single entries, gains, forgeries, whole networks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.bases import classes_of
from lipcert.certificates.cost_to_go.windows import WindowCell
from lipcert.certificates.cost_to_go.windows import least as least_of_entries
from lipcert.certificates.cost_to_go.windows_in_bases import BasisCell, convex, least, least_points
from lipcert.certificates.outputs import Subject, check_outputs, prove_outputs
from lipcert.domain import Ball
from lipcert.errors import CertificateError, NotProved
from lipcert.ranges.build import maximum
from lipcert.robustness import bounding
from lipcert.robustness.outputs import look_for_bases
from lipcert.search.cost_to_go import windows_in_bases as search
from lipcert.search.cost_to_go.bases import find_bases


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _some(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _basis(generator: torch.Generator, windows: int, entries: int, kind: str) -> Tensor:
    one = torch.eye(entries, dtype=torch.float64)
    if kind == "none":
        return one.expand(windows, entries, entries).clone()
    rows = one + (0.6 if kind == "mild" else 3.0) * _random(generator, windows, entries, entries)
    return torch.linalg.inv(rows / rows.norm(dim=-1, keepdim=True))


def _cell(seed: int, entries: int, kind: str = "mild", firm: bool = False, windows: int = 100) -> BasisCell:
    """Costs of all signs; some weights, curvatures and widths are 0, some entries repetitions."""
    g = torch.Generator().manual_seed(seed)
    cost, anchor = 2.0 * _random(g, 2, windows), _random(g, 2, windows)
    weight = 10.0 ** (2.0 * _some(g, 2, windows) - 1.0) * (_some(g, 2, windows) < 0.9)
    slope, curvature = _random(g, 2, windows, entries), 2.0 * _some(g, 2, windows, entries) * weight[..., None]
    curvature = torch.where(_some(g, 2, windows, entries) < 0.1, 0.0, curvature + 1e-3)
    low = _random(g, windows, entries)
    high = low + 10.0 ** (2.0 * _some(g, windows, 1) - 1.0) * (_some(g, windows, entries) < 0.9)
    matrix = _basis(g, windows, entries, kind)
    counts = torch.ones(windows, entries, dtype=torch.bool)
    if kind != "none" and entries > 1:
        counts[: windows // 5, 1:] = _some(g, windows // 5, entries - 1) < 0.6
    full = counts.all(1)[:, None, None]
    low, high = (torch.where(counts, end, end[:, :1]) for end in (low, high))
    matrix = torch.where(full, matrix, torch.diag_embed(counts.double()))
    inverse = torch.where(full, torch.linalg.inv(torch.where(full, matrix, torch.eye(entries).double())), matrix)
    centre = (matrix * (low + (high - low) * _some(g, 2, windows, entries)).unsqueeze(-2)).sum(-1)
    centre = centre + 1e-3 * _random(g, 2, windows, entries) * full.squeeze(-1)
    cell = BasisCell(cost, weight, anchor, slope, curvature, centre, low, high, counts, matrix, inverse)
    return _firm(replace(cell, curvature=curvature + 1e-2)) if firm else cell


def _firm(cell: BasisCell) -> BasisCell:
    """With curvatures of every window so large that its cost is convex, whichever entry is the greatest."""
    share = torch.where(cell.counts, cell.weight[..., None] / cell.firmness.clamp(min=1e-30), 0.0)
    return replace(cell, curvature=cell.curvature * (1.001 * share.amax(-1, keepdim=True)).clamp(min=1.0))


def _at(cell: BasisCell, v: Tensor) -> Tensor:
    m = torch.where(cell.counts, v, -math.inf).amax(-1)
    u = (cell.matrix * v.unsqueeze(-2)).sum(-1)
    shares = 0.5 * cell.curvature * (u - cell.centre).square() - torch.where(cell.counts, cell.slope, 0.0) * v
    return cell.cost * m - 0.5 * cell.weight * (m - cell.anchor).square() + shares.sum(-1)


def _lowest(cell: BasisCell, tries: int = 60) -> Tensor:
    """By points and corners at random, then by smaller and smaller steps from the best of them."""
    g = torch.Generator().manual_seed(5)
    width = cell.high - cell.low
    best_v, best = cell.low.expand_as(cell.slope).clone(), torch.full_like(cell.cost, math.inf)
    for step in range(4 * tries):
        if step < tries:
            share = _some(g, *cell.slope.shape)
            share = share if step % 2 else share.round()
            v = cell.low + width * share
        else:
            v = best_v + width * _random(g, *cell.slope.shape) * 0.3 * 0.96 ** (step - tries)
        v = v.clamp(cell.low, cell.high)
        v = torch.where(cell.counts, v, v[..., :1])
        value = _at(cell, v)
        better = value < best
        best, best_v = torch.where(better, value, best), torch.where(better[..., None], v, best_v)
    return best


@pytest.mark.few(6)
@pytest.mark.parametrize("kind", ["none", "mild", "wild"])
@pytest.mark.parametrize("entries", [1, 2, 3, 4, 9])
def test_least_is_below_every_point(entries: int, kind: str) -> None:
    for seed, firm in ((1, False), (2, True)):
        cell = _cell(seed, entries, kind, firm)
        assert bool((least(cell) <= _lowest(cell)).all())


@pytest.mark.parametrize("entries", [2, 4])
def test_least_is_attained_where_costs_are_convex(entries: int) -> None:
    cell = _cell(3, entries, firm=True)
    points = least_points(cell, 12, 3)
    points = torch.minimum(torch.maximum(points, cell.low.unsqueeze(-2)), cell.high.unsqueeze(-2))
    points = torch.where(cell.counts.unsqueeze(-2), points, cell.low.unsqueeze(-2))
    attained = torch.stack([_at(cell, points[..., i, :]) for i in range(entries)]).amin(0)
    assert float((attained - least(cell)).quantile(0.98)) < 1e-6
    assert bool((attained >= least(cell)).all())


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_the_trivial_basis_is_that_of_single_entries(entries: int) -> None:
    cell = _cell(4, entries, "none", firm=True)
    plain = WindowCell(
        cell.cost, cell.weight, cell.anchor, cell.slope, cell.curvature, cell.centre, cell.low, cell.high, cell.counts
    )
    torch.testing.assert_close(least(cell), least_of_entries(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_what_is_too_concave_is_replaced_by_its_chord(entries: int) -> None:
    """Nowhere above F, equal to it at the ends of m, convex in every entry's case, and no change where F is that."""
    g = torch.Generator().manual_seed(11)
    cell = _cell(5, entries)
    own, number = convex(cell)
    assert bool((own.weight <= cell.weight).all())
    assert int((own.weight < cell.weight).sum()) > 20
    moving = (cell.counts & (cell.high > cell.low)).expand_as(cell.slope)
    assert bool((~moving | (own.weight[..., None] <= cell.firmness)).all())
    for _ in range(50):
        share = _some(g, *cell.slope.shape)
        v = torch.where(cell.counts, cell.low + (cell.high - cell.low) * share, cell.low[:, :1])
        assert bool((_at(own, v) + number <= _at(cell, v) + 1e-9 * (1.0 + _at(cell, v).abs())).all())
    ends = [cell.low.amax(-1), torch.maximum(cell.high.amax(-1), cell.low.amax(-1))]
    for m in ends:
        one, two = (c.cost * m - 0.5 * c.weight * (m - c.anchor).square() for c in (own, cell))
        torch.testing.assert_close(one + number, two, rtol=1e-9, atol=1e-9)
    again, nothing = convex(_cell(5, entries, firm=True))
    assert torch.equal(again.cost, _cell(5, entries, firm=True).cost)
    assert not bool(nothing.any())


def test_a_box_without_end_proves_nothing_of_a_falling_cost() -> None:
    cell = _cell(6, 4, firm=True)
    cell = replace(cell, weight=cell.weight + 1e3, high=torch.full_like(cell.high, math.inf))
    assert bool((least(cell) == -math.inf).all())


@pytest.mark.slow
def test_the_search_values_firm_costs_as_the_check_does() -> None:
    cell = _cell(7, 4, firm=True)
    found = torch.cat([search.least(_window(cell, o), 6) for o in range(cell.cost.shape[1])], 1)
    torch.testing.assert_close(found, least(cell), rtol=1e-6, atol=1e-6)
    coarse = torch.cat([search.least(_window(cell, o), 1) for o in range(cell.cost.shape[1])], 1)
    assert bool((coarse >= found - 1e-9).all())


def _window(cell: BasisCell, o: int) -> BasisCell:
    one = slice(o, o + 1)
    return BasisCell(*(t[:, one] if k < 6 else t[one] for k, t in enumerate(vars(cell).values())))


@pytest.mark.parametrize("name", ["cost", "weight", "anchor", "slope", "curvature", "centre"])
def test_gradient_of_the_search_is_that_of_the_least_cost(name: str) -> None:
    cell = _cell(8, 3, firm=True)
    cell = replace(cell, curvature=1.1 * cell.curvature)  # convex on either side of the difference
    at = getattr(cell, name).requires_grad_(True)
    (gradient,) = torch.autograd.grad(search.least(cell, 8).sum(), at)
    way = _random(torch.Generator().manual_seed(9), *at.shape) * (at.detach() != 0)
    step = 1e-7
    ends = [float(search.least(replace(cell, **{name: at.detach() + s * way}), 8).sum()) for s in (step, -step)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * way).sum()), rel=1e-4)


def _pooled(smooth: bool, padding: int = 0, seed: int = 0) -> nn.Module:
    """Two convolutions, each pooled; of the first neighbouring values are nearly the same, or not alike at all."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, padding=padding),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    model(torch.zeros(1, 1, 12, 12))
    with torch.no_grad():
        if smooth:
            bump = torch.tensor([1.0, 3.0, 4.0, 3.0, 1.0])
            model[0].weight.copy_(
                torch.outer(bump, bump)[None, None] / 40.0 * torch.tensor([1.0, -1.0, 0.5])[:, None, None, None]
            )
        else:
            model[0].weight.zero_()
            model[0].weight[:, 0, 2, 2] = 1.0
    return model.eval()


def test_bases_are_found_where_neighbours_go_together() -> None:
    subject = Subject(capture(_pooled(True), torch.zeros(1, 1, 12, 12)))
    bases = find_bases(subject.plain)
    first = min(k for k, node in enumerate(subject.plain.nodes) if maximum(node) is not None)
    assert first in bases
    assert bases[first].shape == (3, 4, 4) == (classes_of(maximum(subject.plain.nodes[first])), 4, 4)
    lengths = torch.linalg.inv(bases[first]).norm(dim=-1)
    assert float(lengths.max()) < 1.01
    before = subject.facts.norms(subject.plain.nodes[first].parents[0])[0].value
    subject.adopt(bases)
    basis = min(subject.facts.bases.values(), key=lambda b: b.position)
    assert subject.facts.norms(basis.position)[0].value < 0.8 * before
    assert first not in find_bases(Subject(capture(_pooled(False), torch.zeros(1, 1, 12, 12))).plain)


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", [0, 1])
def test_bounds_in_bases_are_true_and_tighter(padding: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _pooled(True, padding)
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    domain = Ball(x, 0.3, 2.0)
    found = lipcert.output_bounds(model, x, domain, budget=2.0)
    assert any(name.startswith("basis.") for name in found.certificate.witness.arrays)
    g = torch.Generator().manual_seed(2)
    way = torch.randn(4000, 1, 12, 12, generator=g)
    way = way / way.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        values = model.double()(x.double() + 0.3 * way)
    assert bool(((found.lower <= values) & (values <= found.upper)).all())
    found.save(tmp_path / "bounds.lipcert")
    again = lipcert.verify(tmp_path / "bounds.lipcert", model.float(), x)
    assert torch.equal(again.lower, found.lower)
    monkeypatch.setattr(bounding, "look_for_bases", lambda subject: None)
    plain = lipcert.output_bounds(model, x, domain, budget=2.0)
    assert float((found.upper - found.lower).sum()) < float((plain.upper - plain.lower).sum())


def _witnessed() -> tuple[Subject, Ball, Witness]:
    model, x = _pooled(True), torch.full((1, 1, 12, 12), 0.5, dtype=torch.float64)
    subject = Subject(capture(model, x.float()))
    found = lipcert.output_bounds(model, x.float(), Ball(x, 0.5, 2.0), budget=1.0)
    return subject, Ball(x, 0.5, 2.0), found.certificate.witness


def test_forged_bases_are_refused() -> None:
    subject, domain, witness = _witnessed()
    name = next(n for n in witness.arrays if n.startswith("basis."))
    good = witness.arrays[name]
    assert check_outputs(subject, domain, None, witness, "cost_to_go").guarantee == "rigorous"
    changes: list[dict[str, Tensor]] = [
        {name: good.float()}, {name: good[:1]}, {name: good[0]}, {name: good * math.nan}, {name: good * 1e7},
        {name: torch.zeros_like(good)}, {name: torch.ones_like(good)}, {"basis.0": good}, {"basis.99": good},
        {"basis.-1": good}, {"basis.x": good}, {"basis.": good}, {"basis.1": good}, {f"basis.0{name[6:]}": good},
    ]  # fmt: skip
    for change in changes:
        forged = Witness(witness.kind, {**witness.arrays, **change}, witness.settings)
        with pytest.raises(CertificateError):
            prove_outputs(subject, domain, None, forged)
    without = {k: t for k, t in witness.arrays.items() if k != name}
    with pytest.raises(CertificateError):  # norms of nodes that are not there
        prove_outputs(subject, domain, None, Witness(witness.kind, without, witness.settings))


@pytest.mark.slow
def test_other_bases_prove_less_or_nothing_but_no_falsehood() -> None:
    subject, domain, witness = _witnessed()
    name = next(n for n in witness.arrays if n.startswith("basis."))
    honest = prove_outputs(subject, domain, None, witness)
    g = torch.Generator().manual_seed(3)
    points = domain.center + 0.5 * torch.nn.functional.normalize(_random(g, 3000, 144), dim=1).reshape(-1, 1, 12, 12)
    values = subject.model.forward(points.reshape(-1, *subject.model.in_shape)).reshape(len(points), -1)
    for scale in (0.5, 0.97, 1.03, 2.0):
        arrays = {**witness.arrays, name: scale * witness.arrays[name]}
        try:
            found = prove_outputs(subject, domain, None, Witness(witness.kind, arrays, witness.settings))
        except (NotProved, CertificateError):
            continue
        assert bool(((found.lower <= values) & (values <= found.upper)).all())
        assert float(found.lower.sum()) <= float(honest.lower.sum()) + 1e-9 or scale < 1.0


@pytest.mark.slow
def test_adopting_bases_forgets_ranges_of_before() -> None:
    subject, domain, _ = _witnessed()
    before = subject.setting(subject.facts, domain, False)
    look_for_bases(subject)
    assert subject.setting(subject.facts, domain, False) is not before
    assert len(subject.network.nodes) > len(subject.plain.nodes)
    kept = subject.facts
    look_for_bases(subject)
    assert subject.facts is kept


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [1e25, 1e200, 1e-200])
def test_numbers_beyond_float32_have_no_bases(size: float) -> None:
    model = _pooled(True).double()
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[0].bias.mul_(size)
    x = torch.full((1, 1, 12, 12), 0.5, dtype=torch.float64)
    subject = Subject(capture(model, x))
    look_for_bases(subject)
    assert 2 not in subject.facts.bases
    found = lipcert.output_bounds(model, x, Ball(x, 1e-3, 2.0), budget=0.5)
    value = model(x).detach().reshape(-1)
    assert bool(((found.lower <= value) & (value <= found.upper)).all())


def test_one_name_per_place() -> None:
    subject, domain, witness = _witnessed()
    name = next(n for n in witness.arrays if n.startswith("slope."))
    arrays = {**witness.arrays, f"slope.0{name[6:]}": witness.arrays[name]}
    with pytest.raises(CertificateError, match="no array"):
        prove_outputs(subject, domain, None, Witness(witness.kind, arrays, witness.settings))
