"""The closed form of attention heads against dense Jacobians and increments, and where it is found and used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.joint_recursion import CLOSED_FORM, JointRecursion
from lipcert.certificates.merged_recursion import MergedRecursion
from lipcert.certificates.recursions import Recursion
from lipcert.certificates.wide_recursion import WideRecursion
from lipcert.network.attention_bound import Logits, attention_at, attention_factors
from lipcert.network.graph import HeadNode
from lipcert.numerics.chance import Chance
from lipcert.numerics.interval import Around, Interval
from lipcert.numerics.many_norms import two_norms
from lipcert.numerics.midrad import Range
from lipcert.problem import Problem
from tests.test_attention import KINDS, Attention, steepest

D = torch.float64
#: (queries, keys, width, width of values); the last has one token only.
SIZES = [(3, 3, 4, 4), (2, 5, 3, 2), (4, 1, 2, 3), (1, 4, 2, 2)]
MASKS = ["none", "causal", "rows", "offset"]


def heads(seed: int, sizes: tuple[int, int, int, int], mask: str) -> tuple[list[Tensor], Logits]:
    """Q, Kᵀ and V of two heads, and what the softmax is of."""
    generator = torch.Generator().manual_seed(seed)
    n, m, d, e = sizes
    scale = 2.0 ** float(torch.randint(-2, 3, (), generator=generator))
    q, k, v = (scale * torch.randn(1, 2, *s, generator=generator, dtype=D) for s in ((n, d), (d, m), (m, e)))
    v = q if seed % 3 == 0 and sizes[0] == sizes[1] and d == e else v  # keys = values, too
    k = v.transpose(-1, -2) if seed % 3 == 0 and d == e else k
    kept = {"causal": torch.ones(n, m).tril() > 0, "rows": torch.rand(n, m, generator=generator) > 0.5}.get(mask)
    offset = Range.exact(torch.randn(2, n, m, generator=generator, dtype=D)) if mask == "offset" else None
    factor = Range(torch.tensor([0.5, -1.0], dtype=D), torch.tensor([0.0, 1e-12], dtype=D))
    return [q, k, v], Logits(factor, offset, None if kept is None else kept.expand(2, n, m))


def attention(parts: list[Tensor], logits: Logits) -> Tensor:
    """As torch computes it."""
    q, k, v = parts
    scores = q @ k * logits.scale.mid[:, None, None]
    scores = scores if logits.offset is None else scores + logits.offset.mid
    if logits.kept is None:
        return scores.softmax(-1) @ v
    row = logits.kept.any(-1, keepdim=True)
    weights = torch.where(logits.kept | ~row, scores, -math.inf).softmax(-1)
    return torch.where(row, weights, 0.0) @ v


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in range(30) if k != 3)])
def test_derivatives_in_a_set_are_within_the_factors(seed: int, sizes: tuple[int, int, int, int], mask: str) -> None:
    """Of each argument apart, and increments of all three together."""
    centres, logits = heads(seed, sizes, mask)
    generator = torch.Generator().manual_seed(seed)
    for reach in (1e-4, 0.1, 1.0, 10.0):
        box = seed % 2  # of what reaches beyond the ball there is a part
        around = [Around(c - reach / (1 + box), c + reach, c, reach) for c in centres]
        factors = attention_factors((around[0], around[1], around[2]), logits)
        assert factors is not None

        def point(reach: float, around: list[Around]) -> list[Tensor]:
            steps = [torch.randn(a.low.shape, generator=generator, dtype=D) for a in around]
            if torch.rand((), generator=generator) < 0.5:  # one token goes alone
                steps = [s * (torch.rand(s.shape[:-1], generator=generator) < 0.3)[..., None] for s in steps]
            moved = [a.centre + s / s.norm().clamp(min=1e-9) * reach for a, s in zip(around, steps, strict=True)]
            return [torch.minimum(torch.maximum(x, a.low), a.high) for x, a in zip(moved, around, strict=True)]

        for _ in range(2):
            one, two = point(reach, around), point(reach, around)
            jacobians = torch.func.jacrev(lambda parts: attention(parts, logits))(one)
            for jacobian, factor in zip(jacobians, factors, strict=True):
                whole = jacobian.reshape(-1, factor.numel()) / factor.reshape(-1)
                assert float(torch.linalg.matrix_norm(whole, 2)) <= 1.0 + 1e-9
            gap = float((attention(one, logits) - attention(two, logits)).norm())
            allowed = sum(float((f * (a - b)).norm()) for f, a, b in zip(factors, one, two, strict=True))
            assert gap <= allowed * (1.0 + 1e-9) + 1e-13
        at = attention_at(*one, logits)
        assert bool(((attention(one, logits) - at.mid).abs() <= at.rad + 1e-12).all())


def test_it_is_bounded_by_balls_around_tokens() -> None:
    """However far queries go; nothing where a box is not finite, and no row of its own is 0."""
    (q, k, v), logits = heads(1, (3, 5, 4, 4), "none")
    size = 1e3
    wide = Interval(torch.full_like(q, -size), torch.full_like(q, size))
    factors = attention_factors((wide, Interval.point(k), Interval.point(v)), logits)
    assert factors is not None
    radius_k, radius_v = ((t - t.mean(1, keepdim=True)).norm(dim=-1).max() for t in (k[0].mT, v[0]))
    assert float(factors[0].max()) <= 4.0 * float(radius_k * radius_v)
    assert float(factors[2].max()) <= math.sqrt(3.0) * (1.0 + 1e-9)
    assert attention_factors((Interval.whole(q.shape), Interval.point(k), Interval.point(v)), logits) is None


class Unlike(nn.Module):
    """Keys with much in common, of which scales that are not quite alike make different logits."""

    def __init__(self, common: float, unlike: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(1.0 + unlike * torch.tensor([-1.0, 1.0, -1.0], dtype=D).expand(3, 3))
        self.common, self.values = common, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ (1e-9 * x + self.common).transpose(-1, -2)
        return (scores * self.scale).softmax(-1) @ (1e-9 * x + self.values)


@pytest.mark.parametrize(
    ("common", "unlike"),
    [(1e7, 4.9e-7), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((1e14, 1e-14), (1e7, 0.0)))],
)
def test_scales_that_differ_within_a_head_do_not_cancel_what_keys_share(common: float, unlike: float) -> None:
    """Taken for one number they would leave nothing of the slope, as all keys are as good as equal."""
    model, x = Unlike(common, unlike).eval(), torch.zeros(1, 3, 2, dtype=D)
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z).reshape(-1), x).reshape(6, 6)
    value = lipcert.bound(model, x, "liplt", domain=lipcert.Ball(x[0], 1e-3, p=2)).value
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= value * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3))])
def test_factors_hold_for_scales_that_differ(seed: int) -> None:
    """Whatever the scales within the range, entry by entry, on sets far from 0 and of any width."""
    generator = torch.Generator().manual_seed(seed)
    shapes, spread = ((2, 3, 3), (2, 3, 4), (2, 4, 2)), (1e-7, 0.1)[seed % 2]
    common = (0.0, 1e5, 0.0) if seed < 2 else (0.0, 0.0, 0.0)
    centres = [torch.randn(s, generator=generator, dtype=D) + c for s, c in zip(shapes, common, strict=True)]
    scale = torch.tensor([0.5, -1.0], dtype=D)
    factors = attention_factors(
        tuple(Around(c - 0.1, c + 0.1, c, 0.1) for c in centres),  # type: ignore[arg-type]
        Logits(Range(scale, spread * scale.abs())),
    )
    assert factors is not None
    for _ in range(4):
        signs = torch.randint(-1, 2, (2, 3, 4), generator=generator).to(D)
        own = scale[:, None, None] * (1.0 + spread * signs)
        steps = [torch.randn(c.shape, generator=generator, dtype=D) for c in centres]
        point = [c + 0.1 * s / s.norm() for c, s in zip(centres, steps, strict=True)]
        found = torch.func.jacrev(lambda q, k, v, own=own: (q @ k * own).softmax(-1) @ v, (0, 1, 2))(*point)
        for jacobian, factor in zip(found, factors, strict=True):
            whole = jacobian.reshape(-1, factor.numel()) / factor.reshape(-1)
            assert float(torch.linalg.matrix_norm(whole, 2)) <= 1.0 + 1e-6


def test_norms_of_many_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((7, 3, 5), (4, 6, 6), (3, 1, 4), (2, 9, 2)):
        blocks = torch.randn(shape, generator=generator, dtype=D) * 10.0 ** torch.arange(shape[0]).reshape(-1, 1, 1)
        blocks[0] = 0.0
        exact, found = torch.linalg.matrix_norm(blocks, 2), two_norms(blocks)
        assert bool((exact <= found).all())
        assert bool((found <= 1.05 * exact + 1e-60).all())


def whole(kind: str, radius: float, seed: int = 0) -> tuple[nn.Module, Tensor, Problem]:
    """A layer of attention, a point and what is asked."""
    torch.manual_seed(seed)
    model = Attention(kind, 2).to(D).eval()
    x = torch.randn(1, 3, 4, dtype=D)
    return model, x, Problem(capture(model, x), (2.0, 2.0), lipcert.Ball(x[0], radius, p=2))


@pytest.mark.parametrize(
    "kind", [k if k in ("causal", "by hand") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_heads_are_recognised_and_are_what_they_are_taken_for(kind: str) -> None:
    """Where logits are more than one product there is none; between moves of entries none is looked for."""
    _, x, problem = whole(kind, 0.1)
    nodes, found = problem.headed.nodes, []
    values: list[Tensor] = []
    for node in nodes:
        values.append(node.value([values[p][None] for p in node.parents], x[None])[0])
        if isinstance(node, HeadNode):
            found.append(node)
            own = node.at([Interval.point(values[p]) for p in node.parents[1:]])
            assert bool(((own.mid - values[-1]).abs() <= own.rad + 1e-12).all())
    assert len(found) == (kind not in ("l2", "einsum"))
    assert torch.allclose(values[-1], problem.model.forward(x[None])[0])


@pytest.mark.parametrize("recursion_of", [JointRecursion, MergedRecursion, WideRecursion])
@pytest.mark.parametrize("radius", [10.0, *(pytest.param(r, marks=pytest.mark.slow) for r in (1e-4, 0.1, 1.0, 3.0))])
def test_heads_do_no_more_than_the_closed_form(radius: float, recursion_of: type[Recursion]) -> None:
    """And no less than their Jacobians."""
    for kind in ("module, masked", "fused") if radius < 10.0 else ("fused",):
        _, x, problem = whole(kind, radius)
        recursion = recursion_of(problem, Chance())  # type: ignore[call-arg, arg-type]
        steps = recursion.run()
        nodes = problem.headed.nodes
        k = next(k for k, node in enumerate(nodes) if isinstance(node, HeadNode))
        closed = recursion.course.closed(k)  # type: ignore[attr-defined]
        assert closed is not None
        parts = zip(closed[0], nodes[k].parents[1:], strict=True)
        most = sum(float(f.max()) * float(steps[p].constant) for f, p in parts) + closed[1]
        assert float(steps[k].constant) <= most * (1.0 + 1e-9) + recursion_error(recursion, k)

        def run(z: Tensor, nodes: tuple[lipcert.network.nodes.Node, ...] = nodes, k: int = k) -> Tensor:
            values: list[Tensor] = []
            for node in nodes[: k + 1]:
                values.append(node.value([values[p][None] for p in node.parents], z[None])[0])
            return values[k]

        for step in torch.randn(5, *x.shape, dtype=D):
            z = x + step / step.norm() * radius
            jacobian = torch.func.jacfwd(run)(z).reshape(-1, x.numel())
            assert float(torch.linalg.matrix_norm(jacobian, 2)) <= float(steps[k].constant) * (1.0 + 1e-9)


def recursion_error(recursion: Recursion, k: int) -> float:
    """What a centred course adds for the node's rounding."""
    errors = getattr(recursion.course, "errors", None)  # type: ignore[attr-defined]
    return 0.0 if errors is None else 2.0 * errors[k]


@pytest.mark.slow
def test_on_a_large_ball_the_closed_form_counts_and_is_proved_again(tmp_path: Path) -> None:
    model, x, _ = whole("fused", 1.0)
    balls = [lipcert.Ball(x[0], radius, p=2) for radius in (0.1, 10.0)]
    near, bound = lipcert.bound(model, x, domain=balls)
    assert not any(row.remark == CLOSED_FORM for row in near.breakdown)
    assert any(row.remark == CLOSED_FORM for row in bound.breakdown)
    assert steepest(model, balls[1], 2.0, 0) <= bound.value
    assert bound.certificate is not None
    bound.certificate.save(tmp_path / "head.lipcert")
    assert lipcert.verify(tmp_path / "head.lipcert", model, x).value == pytest.approx(bound.value, rel=1e-9)
