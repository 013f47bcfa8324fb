"""The adversarial attack: exactly known minima, brute force, and that nothing is claimed which does not hold."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lipcert.attack.adversarial import attack, lowest
from lipcert.capture.torch_export import capture
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import InputError

NORMS = (1.0, 2.0, math.inf)


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def affine(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data = weight.double().clone()
    layer.bias.data = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double().clone()
    return layer


def captured(model: nn.Module, n: int):
    return capture(model.eval(), torch.zeros(1, n, dtype=torch.float64))


def random_net(seed: int, n: int = 2, width: int = 8, m: int = 3, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(n, width), act(), nn.Linear(width, width), act(), nn.Linear(width, m)
        ).double()  # fmt: skip


def least_linear(c: Tensor, center: Tensor, radius: float, p: float, clip: tuple[Tensor, Tensor] | None) -> float:
    """min c·x on the ball within the box, in closed form (p = 1, ∞) or by halving its multiplier (p = 2)."""
    if clip is None:
        dual = {1.0: c.abs().max(), 2.0: c.norm(), math.inf: c.abs().sum()}[p]
        return float(c @ center - radius * dual)
    room = torch.where(c > 0, center - clip[0], clip[1] - center)
    if p == math.inf:
        return float(c @ center - (c.abs() * room.clamp(max=radius)).sum())
    if p == 1.0:
        left, total = radius, 0.0
        for j in c.abs().argsort(descending=True).tolist():
            taken = min(left, float(room[j]))
            left, total = left - taken, total + taken * float(c[j].abs())
        return float(c @ center) - total
    low, high = 0.0, 1e12
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if float((c.abs() * t).clamp(max=room).norm()) <= radius else (low, t)
    return float(c @ center - c.abs() @ (c.abs() * low).clamp(max=room))


@pytest.mark.few(2)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_linear_rows_reach_their_exact_least_value_and_never_less(p: float, clipped: bool, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(5, n, generator=generator, dtype=torch.float64)
    centers = torch.rand(4, n, generator=generator, dtype=torch.float64)
    box = Box(torch.zeros(n), torch.ones(n))
    radii = (0.05, 0.4, 1.0, 3.0)
    balls = [Ball(x, r, p) for x, r in zip(centers, radii, strict=True)]
    domains = [Intersection(b, box) for b in balls] if clipped else balls
    found = lowest(captured(affine(weight), n), domains, torch.eye(5))
    clip = (box.lower, box.upper) if clipped else None
    for i, (x, r) in enumerate(zip(centers, radii, strict=True)):
        for k, c in enumerate(weight):
            exact = least_linear(c, x, r, p, clip)
            size = float(c.abs().sum()) * (1.0 + r)
            assert exact - 1e-12 * size <= float(found.values[i, k]) <= exact + 1e-4 * size
            assert domains[i].contains(found.points[i, k])


def test_boxes_reach_the_corner_also_with_flat_and_open_sides() -> None:
    weight = tensor([1.0, -2.0, 3.0, 0.0])
    box = Box(tensor(-1.0, 0.5, 2.0, -math.inf), tensor(1.0, 1.5, 2.0, math.inf))
    found = lowest(captured(affine(weight), 4), [box], torch.ones(1, 1))
    assert float(found.values[0, 0]) == pytest.approx(-1.0 - 3.0 + 6.0, abs=1e-9)
    assert float(found.values[0, 0]) >= 2.0


@pytest.mark.few(1)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("clipped", [False, True])
def test_brute_force_in_the_plane(p: float, clipped: bool) -> None:
    """What a fine grid breaks is broken with proof, and what is broken does break."""
    axis = torch.linspace(-1, 1, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    grid = grid[grid.norm(p=p, dim=1) <= 1]
    for seed in range(6):
        model = random_net(seed, act=(nn.ReLU, nn.Tanh, nn.SiLU)[seed % 3])
        centers = torch.rand(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            labels = model(centers).argmax(1)
        radius = 0.3 + 0.2 * seed
        domains = [Ball(x, radius, p) for x in centers]
        if clipped:
            domains = [Intersection(d, Box(0, 1)) for d in domains]
        network = captured(model, 2)
        found = attack(network, [d.fitted((2,)) for d in domains], labels, thorough=True)
        for i, x in enumerate(centers):
            points = x + radius * grid
            points = points[((points >= 0) & (points <= 1)).all(1)] if clipped else points
            with torch.no_grad():
                out = model(points)
            least = out[:, labels[i], None] - out
            for k, margin in zip(found.other[found.example == i], found.margins[found.example == i], strict=True):
                assert float(margin) <= float(least[:, k].min()) + 1e-3
            least[:, labels[i]] = math.inf
            broken = found.broken[i]
            if float(least.min()) < 0:
                assert broken is not None
            if broken is not None:
                check(model, domains[i].fitted((2,)), int(labels[i]), broken)
                where = (points[least.amin(1) < 0] - x).norm(p=p, dim=1)
                assert broken.distance <= float(where.min()) * 1.3 if len(where) else True


def check(model: nn.Module, domain, label: int, broken) -> None:
    """A counter-example is what it says, by plain evaluation."""
    assert domain.contains(broken.point)
    with torch.no_grad():
        out = model(broken.point[None])[0].reshape(-1).double()
    assert broken.label == label != broken.other
    gap = float(out[label] - out[broken.other])
    assert gap <= broken.margin + 1e-12 * float(out.abs().max())
    assert broken.margin <= 0
    ball = domain.ball if isinstance(domain, Intersection) else domain
    if isinstance(ball, Ball):
        true = float((broken.point - ball.center).reshape(-1).norm(p=ball.p))
        assert true * (1 - 1e-13) <= broken.distance <= ball.radius
    else:
        assert broken.distance is None


def two_classes(w: Tensor, b: float = 0.0) -> nn.Module:
    """f = (w·x + b, 0): class 0 where w·x + b > 0."""
    return affine(torch.stack([w, torch.zeros_like(w)]), tensor(b, 0.0))


@pytest.mark.few(3)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e25])
@pytest.mark.parametrize("height", [1e-25, 1.0, 1e30])
def test_the_line_between_broken_and_not_is_found_at_every_scale(p: float, scale: float, height: float) -> None:
    """The margin of w·x is w·x̂ − r‖w‖_dual: a thousandth to either side decides."""
    w = tensor(3.0, -4.0, 1.0)
    dual = {1.0: 4.0, 2.0: math.sqrt(26.0), math.inf: 8.0}[p]
    center = tensor(2.0, -1.0, 0.5) * scale
    edge = float(w @ center) / dual
    network = captured(two_classes(w * height / scale), 3)
    domains = [Ball(center, edge * share, p) for share in (0.5, 0.999, 1.001, 2.0)]
    found = attack(network, domains, torch.zeros(4))
    assert [b is not None for b in found.broken] == [False, False, True, True]
    assert bool(found.margins.isfinite().all())
    for b in found.broken[2:]:
        assert edge * (1 - 1e-12) <= b.distance <= edge * 1.001


@pytest.mark.parametrize("p", NORMS)
def test_just_outside_is_not_claimed_and_just_inside_is(p: float) -> None:
    w = tensor(1.0, -2.0, 0.5, 3.0)
    dual = {1.0: 3.0, 2.0: float(w.norm()), math.inf: 6.5}[p]
    network = captured(two_classes(w), 4)
    x = w / float(w @ w)  # w·x = 1
    outside, inside = (1 / dual) * (1 - 1e-12), (1 / dual) * (1 + 1e-9)
    found = attack(network, [Ball(x, outside, p), Ball(x, inside, p)], tensor(0, 0))
    assert found.broken[0] is None
    assert found.broken[1] is not None


def test_a_tie_changes_the_class() -> None:
    """f = (x₁, x₂) at (1, 0): on the l∞ ball of radius ½ both are ½ at one point, and only there."""
    network = captured(affine(torch.eye(2)), 2)
    found = attack(network, [Ball(tensor(1.0, 0.0), 0.5, math.inf)], tensor(0))
    assert found.broken[0] is not None
    assert found.broken[0].margin == 0.0
    assert found.broken[0].point.tolist() == [0.5, 0.5]
    constant = captured(affine(torch.zeros(3, 2), tensor(1.0, 1.0, 0.0)), 2)
    found = attack(constant, [Ball(tensor(0.0, 0.0), 1.0, 2)] * 3, tensor(0, 1, 2))
    assert [b is not None and b.other for b in found.broken] == [1, 0, found.broken[2].other]
    assert all(b.distance == 0.0 for b in found.broken)
    assert found.broken[2].margin == pytest.approx(-1.0)


def test_a_wrong_example_is_broken_at_its_centre() -> None:
    network = captured(random_net(3), 2)
    x = torch.zeros(1, 2, dtype=torch.float64)
    wrong = network.forward(x[None]).reshape(1, -1).argmin(1)
    for p in NORMS:
        for domain in (Ball(x[0], 0.3, p), Intersection(Ball(x[0], 0.3, p), Box(0, 1).fitted((2,))), Ball(x[0], 0, p)):
            (broken,) = attack(network, [domain], wrong).broken
            assert broken is not None
            assert broken.distance == 0.0


def test_a_clip_that_leaves_out_the_centre() -> None:
    """x̂ = (−½, ½) is no image; the nearest one is (0, ½), where f = (x₁ + x₂, ¼) has class 0 and near which not."""
    network = captured(affine(tensor([1.0, 1.0], [0.0, 0.0]), tensor(0.0, 0.25)), 2)
    for p, nearest in ((1.0, 0.75), (2.0, math.hypot(0.5, 0.25)), (math.inf, 0.5)):
        ball = Ball(tensor(-0.5, 0.5), 0.9, p)
        (broken,) = attack(network, [Intersection(ball, Box(0, 1).fitted((2,)))], tensor(0)).broken
        assert broken is not None
        assert nearest * (1 - 1e-12) <= broken.distance <= nearest * 1.02


def test_radius_zero_and_no_examples() -> None:
    network = captured(random_net(1), 2)
    x = tensor(0.2, 0.3)
    label = network.forward(x.reshape(1, 1, 2)).reshape(-1).argmax()
    for p in NORMS:
        found = attack(network, [Ball(x, 0.0, p)], label[None])
        out = network.forward(x.reshape(1, 1, 2)).reshape(-1)
        assert found.broken == (None,)
        assert torch.allclose(found.margins, (out[label] - out[found.other]).double(), atol=1e-5)
    assert attack(network, [], torch.zeros(0)).broken == ()
    assert lowest(network, [], torch.eye(3)).values.shape == (0, 3)
    assert lowest(network, [Ball(x, 1.0)], torch.zeros(0, 3)).values.shape == (1, 0)


def test_values_beyond_float32_are_searched_in_float64() -> None:
    w = tensor(1e30, -1e30)
    network = captured(nn.Sequential(two_classes(w, 1e32), affine(1e30 * torch.eye(2))), 2)
    found = attack(
        network, [Ball(tensor(0.0, 0.0), 49.0, math.inf), Ball(tensor(0.0, 0.0), 51.0, math.inf)], tensor(0, 0)
    )
    assert [b is not None for b in found.broken] == [False, True]
    assert bool(found.margins.isfinite().all())


def test_values_beyond_float64_are_not_claimed() -> None:
    """f = (−10³⁰⁰ · 10³⁰⁰ x, 0) overflows: a point may be found, but nothing is proved there."""
    model = nn.Sequential(affine(tensor([1e300])), affine(tensor([-1e300], [0.0])))
    network = captured(model, 1)
    found = attack(network, [Ball(tensor(1.0), 0.5)], tensor(0))
    assert found.broken == (None,)
    assert not bool(found.margins.isnan().any())
    assert not bool(lowest(network, [Ball(tensor(1.0), 0.5)], torch.eye(2)).values.isnan().any())


def test_repeats_under_its_seed_and_module_or_network_agree() -> None:
    model = random_net(5, n=6, m=4)
    centers = torch.rand(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = model(centers).argmax(1)
    network, domains = captured(model, 6), [Ball(x, 0.5, 2) for x in centers]
    first, second = (attack(network, domains, labels, seed=3) for _ in range(2))
    assert torch.equal(first.margins, second.margins)
    assert torch.equal(first.points, second.points)
    assert [b and b.point.tolist() for b in first.broken] == [b and b.point.tolist() for b in second.broken]
    other = attack(network, domains, labels, seed=3, module=model)
    assert [b is None for b in other.broken] == [b is None for b in first.broken]
    assert next(model.parameters()).dtype == torch.float64
    assert all(p.requires_grad for p in model.parameters())


def test_only_wanted_pairs_are_attacked() -> None:
    network = captured(affine(torch.eye(3)), 3)
    domain, classes = Ball(tensor(1.0, 0.9, 0.0), 0.2, math.inf), torch.tensor([[True, False, True]])
    found = attack(network, [domain], tensor(0), classes)
    assert found.other.tolist() == [2]
    assert found.broken == (None,)
    assert found.undecided.tolist() == [0]
    assert attack(network, [domain], tensor(0)).undecided.tolist() == []


def test_bad_input_is_named() -> None:
    network = captured(random_net(0), 2)
    ball = Ball(tensor(0.0, 0.0), 1.0, 2)
    for labels in (tensor(3), tensor(-1), tensor(0.5), tensor(math.nan), tensor(0, 1), torch.tensor([True])):
        with pytest.raises(InputError, match="labels"):
            attack(network, [ball], labels)
    with pytest.raises(InputError, match="no other class"):
        attack(captured(random_net(0, m=1), 2), [ball], tensor(0))
    with pytest.raises(InputError, match="one kind"):
        attack(network, [ball, Ball(tensor(0.0, 0.0), 1.0, 1)], tensor(0, 0))
    with pytest.raises(InputError, match="classes"):
        attack(network, [ball], tensor(0), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="rows"):
        lowest(network, [ball], torch.ones(1, 2))
    with pytest.raises(InputError, match="shape"):
        attack(network, [Ball(tensor(0.0, 0.0, 0.0), 1.0, 2)], tensor(0))


def test_proved_margins_hold_in_exact_rational_arithmetic() -> None:
    """ReLU networks evaluated in fractions at the points that are claimed."""
    for seed in range(4):
        model = random_net(seed, n=3, width=5)
        centers = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        labels = model(centers).argmax(1)
        for p in NORMS:
            domains = [Ball(x, 1.5, p) for x in centers]
            for domain, broken in zip(domains, attack(captured(model, 3), domains, labels).broken, strict=True):
                if broken is None:
                    continue
                out = exactly(model, broken.point)
                assert out[broken.label] - out[broken.other] <= Fraction(broken.margin) <= 0
                gaps = [
                    abs(Fraction(a) - Fraction(b))
                    for a, b in zip(broken.point.tolist(), domain.center.tolist(), strict=True)
                ]
                far = Fraction(broken.distance)
                assert {1.0: sum(gaps) <= far, 2.0: sum(g * g for g in gaps) <= far**2, math.inf: max(gaps) <= far}[p]


def exactly(model: nn.Module, point: Tensor) -> list[Fraction]:
    values = [Fraction(v) for v in point.tolist()]
    for layer in model:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            values = [sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b)) for row, b in rows]
        else:
            values = [max(v, Fraction(0)) for v in values]
    return values
