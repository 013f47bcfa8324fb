"""Products and quotients of two values: what parts obey, and that bounds from them hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.errors import NotLipschitzError
from lipcert.network.graph import Network, OpenNode, PartNode
from lipcert.network.joint import Blend, Product
from lipcert.network.parts import joined, split
from lipcert.network.relations import EntryCell, LocalSlopes
from lipcert.numerics.interval import Interval
from lipcert.problem import Problem
from lipcert.ranges.collapse import collapse
from tests.zoo import Apply

D = torch.float64


def boxes(generator: torch.Generator, count: int = 200) -> list[Interval]:
    """Two boxes of all signs and sizes, some of one point."""
    result = []
    for _ in range(2):
        ends = torch.randn(2, count, generator=generator, dtype=D) * 10.0 ** torch.randint(-3, 3, (count,)).double()
        ends[1, ::7] = ends[0, ::7]
        ends[0, ::11] = 0.0
        low, high = ends.sort(0).values
        result.append(Interval(low, high))
    return result


def inside(box: Interval, generator: torch.Generator, rows: int = 50) -> Tensor:
    share = torch.rand(rows, *box.low.shape, generator=generator, dtype=D)
    share[: rows // 4] = share[: rows // 4].round()
    return (box.low + share * (box.high - box.low)).clamp(box.low, box.high)


@pytest.mark.parametrize("seed", range(5))
def test_images_and_planes_enclose_products(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_box, y_box = boxes(generator)
    x, y = inside(x_box, generator), inside(y_box, generator)
    image, planes = Product().image([x_box, y_box]), Product().planes([x_box, y_box])
    assert bool(((image.low <= x * y) & (x * y <= image.high)).all())
    rest = x * y - planes.slopes[0] * x - planes.slopes[1] * y
    slack = 1e-12 * (x.abs() * y.abs() + (planes.slopes[0] * x).abs() + (planes.slopes[1] * y).abs())
    assert bool(((planes.least <= rest + slack) & (rest - slack <= planes.greatest)).all())
    width = (x_box.high - x_box.low) * (y_box.high - y_box.low) / 4  # ± r_x r_y, as near as any plane comes
    gap = planes.greatest - planes.least
    assert bool((gap <= 2 * width * (1 + 1e-9) + 1e-9 * (1 + image.greatest)).all())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("anchored", [False, True])
def test_parts_add_up_to_increments_of_products(seed: int, anchored: bool) -> None:
    """Slopes s, t in the stated ranges with xy − x'y' = s(x − x') + t(y − y')."""
    generator = torch.Generator().manual_seed(seed)
    own = boxes(generator)
    (x, y), (a, b) = ([inside(box, generator, 1)[0] for box in own] for _ in range(2))
    at = [Interval.point(a), Interval.point(b)] if anchored else None
    first, second = Product().obeyed(own, at)
    assert isinstance(first, LocalSlopes)
    assert isinstance(second, LocalSlopes)
    ends = [[s * (x - a) for s in (first.lower, first.upper)], [t * (y - b) for t in (second.lower, second.upper)]]
    low, high = (sum(f(*pair) for pair in ends) for f in (torch.minimum, torch.maximum))
    slack = 1e-12 * (x.abs() + a.abs()) * (y.abs() + b.abs())
    assert bool(((low - slack <= x * y - a * b) & (x * y - a * b <= high + slack)).all())


@pytest.mark.parametrize("anchored", [False, True])
def test_blends_lie_between_and_their_parts_add_up(anchored: bool) -> None:
    generator = torch.Generator().manual_seed(9)
    n_box, h_box = boxes(generator)
    ends = torch.rand(2, 200, generator=generator, dtype=D).sort(0).values * torch.tensor([[1.0], [1.2]])
    z_box = Interval(ends[0], ends[1])
    d_box = Interval(h_box.low - n_box.high, h_box.high - n_box.low)
    own = [z_box, d_box, n_box, h_box]
    z, n, h = (inside(box, generator, 2) for box in (z_box, n_box, h_box))
    values, at = [z, h - n, n, h], None
    if anchored:
        at = [Interval.point(v[1]) for v in values]
    image = Blend().image(own)
    blend, slack = n + z * (h - n), 1e-12 * (n.abs() + h.abs())
    assert bool(((image.low <= blend + slack) & (blend - slack <= image.high)).all())
    certain = z_box.high <= 1
    assert bool((image.high <= torch.maximum(n_box.high, h_box.high))[certain].all())
    low = high = torch.zeros(200, dtype=D)
    for place, local in zip(Blend.reads, Blend().obeyed(own, at), strict=True):
        assert isinstance(local, LocalSlopes)
        moved = [s * (values[place][0] - values[place][1]) for s in (local.lower, local.upper)]
        low, high = low + torch.minimum(*moved), high + torch.maximum(*moved)
    slack = 1e-12 * (values[1].abs().sum(0) + n.abs().sum(0))
    rise = blend[0] - blend[1]
    assert bool(((low - slack <= rise) & (rise <= high + slack)).all())
    planes = Blend().planes(own)
    rest = blend - sum(s * v for s, v in zip(planes.slopes, values, strict=True))
    slack = 1e-11 * (d_box.greatest + n_box.greatest)
    assert bool(((planes.least - slack <= rest) & (rest <= planes.greatest + slack)).all())


def test_an_infinite_factor_times_zero_is_zero() -> None:
    zero, whole = Interval.point(torch.zeros(1, dtype=D)), Interval.whole((1,))
    image = Product().image([zero, whole])
    assert (float(image.low), float(image.high)) == (0.0, 0.0)
    positive = Interval(torch.zeros(1, dtype=D), torch.full((1,), math.inf, dtype=D))
    unit = Interval(torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    image = Product().image([positive, unit])
    assert float(image.low) == 0.0
    assert float(image.high) == math.inf


class Gates(nn.Module):
    """Products and quotients of values of two variables, broadcast and not."""

    def __init__(self, form: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.form = form
        self.maps = nn.ModuleList(nn.Linear(4, 5).double() for _ in range(3))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=D) * 0.6)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (m(x) for m in self.maps)
        if self.form == "bounded":
            return torch.tanh(a) * torch.sigmoid(b)
        if self.form == "bounded quotient":
            return torch.tanh(a) / (1.2 + torch.sin(b)) - torch.ones(5, dtype=D).cumsum(0) / (2 + torch.cos(c))
        if self.form == "broadcast":
            return torch.sigmoid(a).mean(1, keepdim=True) * torch.tanh(b)
        if self.form == "three":
            return torch.sin(a) * torch.cos(b) * torch.tanh(c)
        if self.form == "free":
            return a * torch.relu(b) + c
        assert self.form == "free quotient"
        return a / (1 + b.abs() + c.abs())


BOUNDED, FREE = ("bounded", "bounded quotient", "broadcast", "three"), ("free", "free quotient")
EXAMPLE = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=D)


def network(form: str) -> Network:
    return capture(Gates(form).eval(), EXAMPLE)


@pytest.mark.few(3)
@pytest.mark.parametrize("form", BOUNDED + FREE)
def test_split_and_joined_networks_are_the_network(form: str) -> None:
    whole = collapse(network(form))
    for other in (split(whole), joined(whole)):
        assert not any(isinstance(n, OpenNode) and n.combines for n in other.nodes)
        x = 2 * torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(2), dtype=D)
        assert torch.allclose(other.forward(x), whole.forward(x), rtol=1e-13, atol=1e-13)
    numbers = [n.which for n in split(whole).nodes if isinstance(n, PartNode)]
    assert len(numbers) == 2 * numbers.count(0)
    relations = Problem(network(form), domain=lipcert.Ball(EXAMPLE[0], 0.1)).unfused_increments.relations
    assert sum(isinstance(r, EntryCell) for r in relations) >= len(numbers)


def greatest_jacobian(model: nn.Module, centre: Tensor, radius: float, count: int = 300) -> float:
    generator = torch.Generator().manual_seed(7)
    steps = torch.randn(count, 4, generator=generator, dtype=D)
    steps = steps / steps.norm(dim=1, keepdim=True) * radius * torch.rand(count, 1, generator=generator, dtype=D)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(centre + steps)
    return float(torch.linalg.matrix_norm(jacobians.detach(), 2).max())


@pytest.mark.few(2)
@pytest.mark.parametrize("form", BOUNDED)
def test_bounded_factors_have_a_constant_everywhere(form: str, tmp_path: Path) -> None:
    model = Gates(form).eval()
    found = lipcert.bound(model, EXAMPLE, method="lipsdp")
    assert greatest_jacobian(model, torch.zeros(4, dtype=D), 4.0) <= found.value < math.inf
    assert lipcert.lower_bound(model, EXAMPLE, budget=0.3).value <= found.value
    found.save(tmp_path / "c.lipcert")
    assert lipcert.verify(tmp_path / "c.lipcert", model, EXAMPLE).value == found.value


@pytest.mark.few(2)
@pytest.mark.parametrize("form", BOUNDED + FREE)
def test_near_a_point_the_bound_is_the_jacobian(form: str) -> None:
    model, centre = Gates(form).eval(), EXAMPLE[0]
    jacobian = greatest_jacobian(model, centre, 0.0, 1)
    for radius, most in ((1e-5, 1.01), (0.1, 2.0)):
        found = lipcert.bound(model, EXAMPLE, domain=lipcert.Ball(centre, radius), method="lipsdp")
        attained = greatest_jacobian(model, centre, radius)
        assert attained <= found.value <= most * jacobian
        near = lipcert.bound(model, EXAMPLE, domain=lipcert.Ball(centre, radius), anchor=centre, method="lipsdp")
        assert jacobian * (1 - 1e-9) <= near.value <= found.value * (1 + 1e-6)


@pytest.mark.parametrize("form", FREE)
def test_unbounded_factors_have_none(form: str) -> None:
    with pytest.raises(NotLipschitzError, match="finite range"):
        lipcert.bound(Gates(form).eval(), EXAMPLE)


def test_a_denominator_that_may_vanish_is_named() -> None:
    model = Apply(lambda _, x: x / (x.flip(1) + 0.5)).eval()
    with pytest.raises(NotLipschitzError, match=r"in forward.*denominator may.*vanish.*\[-0\.5, 1\.5\]"):
        lipcert.bound(model, EXAMPLE, domain=lipcert.Ball(torch.zeros(4), 1.0))


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize("form", BOUNDED + FREE)
def test_outputs_lie_in_their_bounds(form: str) -> None:
    model, centre = Gates(form).eval(), EXAMPLE[0]
    for radius in (0.01, 0.5):
        found = lipcert.output_bounds(model, EXAMPLE[:1], domain=lipcert.Ball(centre, radius, p=2))
        steps = torch.randn(2000, 4, generator=torch.Generator().manual_seed(5), dtype=D)
        values = model(centre + radius * steps / steps.norm(dim=1, keepdim=True)).detach()
        assert bool(((found.lower <= values) & (values <= found.upper)).all())
        width = (found.upper - found.lower) / (values.max(0).values - values.min(0).values)
        assert bool((width < (1.2 if radius == 0.01 else 3.0)).all())  # by planes; products of ranges are wider
