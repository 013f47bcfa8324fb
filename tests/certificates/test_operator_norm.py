"""Certified norms of linear maps against the dense matrix: never below, and not far above."""

import math
from collections.abc import Callable
from hashlib import sha256

import pytest
import torch
from torch import Tensor, nn

from examples import models
from lipcert.capture.torch_export import capture
from lipcert.certificates.norms import operator_norm as module
from lipcert.certificates.norms.operator_norm import NormBound, map_norm
from lipcert.certificates.norms.scaling import scaled
from lipcert.errors import NumericsError
from lipcert.network.builder import NetworkBuilder
from lipcert.network.graph import AffineNode
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum, compose
from lipcert.network.stacked import Stacked
from lipcert.numerics.chance import Chance, Share
from lipcert.ops.context import Constant, Context
from lipcert.ops.registry import find_rule
from lipcert.search.proposed_norms import propose_norm

INF = math.inf


def dense(matrix: Tensor, rounding: float | None = None) -> Dense:
    matrix = matrix.double()
    m, n = matrix.shape
    return Dense((matrix,), (1, n), (1, m), float(max(m, n)) if rounding is None else rounding)


def convolution(seed: int) -> tuple[LinearMap, str]:
    """A random convolution, plain or transposed, in one or two dimensions, through lipcert's own rule."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options: int) -> int:
        return options[int(torch.randint(len(options), (1,), generator=g))]

    dims, transposed = pick(1, 2), pick(0, 1)
    groups = pick(1, 1, 2)
    inside, outside = groups * pick(1, 2), groups * pick(1, 2)
    kernel, stride, dilation = pick(1, 2, 3), pick(1, 2, 3), pick(1, 1, 2)
    padding = pick(0, 1, 2) if transposed == 0 else pick(0, min(1, dilation * (kernel - 1)))
    side = pick(5, 6, 8) if dims == 1 else pick(5, 6)
    weight = torch.randn(
        *((inside, outside // groups) if transposed else (outside, inside // groups)),
        *([kernel] * dims),
        generator=g,
    )
    shape = (1, inside, *([side] * dims))
    settings = (stride, padding, 0, groups, dilation) if transposed else (stride, padding, dilation, groups)
    op = f"conv{'_transpose' if transposed else ''}{dims}d"
    return by_rule(op, shape, weight, *settings), f"{op} {tuple(weight.shape)} {settings} on {shape}"


def by_rule(op: str, shape: tuple[int, ...], weight: Tensor, *settings: int) -> LinearMap:
    rule = find_rule(op, "")
    assert rule is not None
    ctx = Context(NetworkBuilder())
    ctx.op = op
    node = ctx.builder.node(rule(ctx, ctx.builder.input(shape), Constant.exactly(weight.double()), None, *settings))
    assert isinstance(node, AffineNode)
    return node.maps[0]


def share(seed: int) -> Share:
    return Chance(generator=torch.Generator().manual_seed(seed)).group(2)


def close(bound: float, truth: float, relative: float = 1e-6) -> bool:
    return truth <= bound <= truth * (1 + relative)


@pytest.mark.few(2)
@pytest.mark.parametrize("first", range(0, 200, 25))
def test_convolutions_against_the_dense_svd(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 of them: rigorous within 1e-6 and never below; the matrix-free bound never below and within its inflation."""
    for seed in range(first, first + 25):
        linear, text = convolution(seed)
        matrix = linear.matrix()
        truth = float(torch.linalg.matrix_norm(matrix, 2))
        found = map_norm(linear, 2)
        assert found.guarantee == "rigorous"
        assert close(found.value, truth), (text, found.value, truth)
        assert map_norm(linear, 2, claim=truth * 0.999).value >= truth, text
        assert close(map_norm(linear, 1).value, float(matrix.abs().sum(0).max()), 1e-12), text
        assert close(map_norm(linear, INF).value, float(matrix.abs().sum(1).max()), 1e-12), text
        with monkeypatch.context() as patch:
            if seed % 10:
                continue
            patch.setattr(module, "MAX_ENTRIES", 0)
            free = map_norm(linear, 2, share=share(seed))
            assert free.value >= truth * (1 - 1e-13), text
            assert free.value <= truth * 1.02, text
            claimed = map_norm(linear, 2, truth * 1.001, share(seed))
            assert claimed.value >= truth * (1 - 1e-13), text


@pytest.mark.few(1)
@pytest.mark.parametrize("build", [models.lenet5, models.paper_cnn])
def test_demo_convolutions_against_the_dense_svd(build: Callable[[], nn.Module]) -> None:
    network = capture(build(), torch.zeros(1, 1, 28, 28))
    compared = 0
    for node in network.nodes:
        if node.name == "conv2d" and isinstance(node, AffineNode) and node.maps[0].in_size <= 1600:
            found = map_norm(node.maps[0], 2)
            gram = node.maps[0].matrix()
            gram = gram @ gram.T if gram.shape[0] <= gram.shape[1] else gram.T @ gram
            truth = math.sqrt(float(torch.linalg.eigvalsh(gram)[-1]))
            assert truth * (1 - 1e-13) <= found.value <= truth * (1 + 1e-6)
            assert found.guarantee == "rigorous"
            compared += 1
    assert compared >= 2


@pytest.mark.slow
@pytest.mark.parametrize("build", [models.load_lenet5, models.load_paper_cnn])
def test_every_demo_convolution_against_the_dense_svd(build: Callable[[], nn.Module]) -> None:
    network = capture(build(), torch.zeros(1, 1, 28, 28))
    for node in network.nodes:
        if node.name == "conv2d" and isinstance(node, AffineNode):
            truth = float(torch.linalg.svdvals(node.maps[0].matrix())[0])
            assert truth * (1 - 1e-12) <= map_norm(node.maps[0], 2).value <= truth * (1 + 1e-6)


def test_circular_surrogate_below_the_truth() -> None:
    """A zero-padded convolution whose FFT norm at the input size is too small: ours is that of the real operator."""
    below = 0
    for seed in range(40):
        weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        circular = float(torch.linalg.svdvals(torch.fft.fft2(weight, (5, 5)).permute(2, 3, 0, 1)).max())
        reshaped = float(torch.linalg.matrix_norm(weight.reshape(2, -1), 2))
        linear = by_rule("conv2d", (1, 2, 5, 5), weight, 1, 1)
        truth = float(torch.linalg.matrix_norm(linear.matrix(), 2))
        found = map_norm(linear, 2).value
        assert close(found, truth)
        assert reshaped < found
        below += circular < truth * (1 - 1e-6)
    assert below >= 1  # the surrogate is no upper bound, and the case is in this test


@pytest.mark.parametrize("scale", [1e150, 1e-150, 1e100, 1e-60, 2.0**600])
@pytest.mark.parametrize("p", [1, 2, INF])
def test_scales(scale: float, p: float) -> None:
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(matrix, p))
    assert close(map_norm(dense(matrix * scale), p).value / scale, truth, 1e-9)
    conv = compose(dense(matrix * scale), dense(torch.ones(3, 5, dtype=torch.float64) / scale))
    truth = float(torch.linalg.matrix_norm(torch.ones(3, 5, dtype=torch.float64) @ matrix, p))
    assert close(map_norm(conv, p).value, truth, 1e-9)


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("order", ["small first", "large first", "alternating"])
def test_long_compositions_neither_overflow_nor_vanish(p: float, order: str) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    small, large = dense(2.0**-20 * eye), dense(2.0**20 * eye)
    maps = {
        "small first": [small] * 80 + [large] * 80,
        "large first": [large] * 80 + [small] * 80,
        "alternating": [small, large] * 80,
    }[order]
    assert close(map_norm(Composition(tuple(maps)), p).value, 1.0)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_values_outside_the_range_of_floats(p: float) -> None:
    for scale, exponent in ((1e6, 600), (1e-6, -600)):
        found = map_norm(Composition((dense(scale * torch.eye(3, dtype=torch.float64)),) * 100), p)
        assert found.magnitude.log10 == pytest.approx(exponent, abs=1e-4)
        assert found.value == (INF if exponent > 0 else 5e-324)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_tiny_summand_beside_a_cancelled_one_is_not_lost(p: float) -> None:
    """W − W + tiny·I: what underflow could hide must still be covered."""
    big = dense(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    minus = compose(big, Identity((1, 3), -1.0))
    tiny = compose(
        dense(1e-200 * torch.eye(3, dtype=torch.float64)),
        dense(1e-200 * torch.eye(3, dtype=torch.float64)),
        dense(1e200 * torch.eye(3, dtype=torch.float64)),
    )
    total = Sum((big, minus, tiny))
    assert 1e-200 <= map_norm(total, p).value <= 1e-13
    assert close(map_norm(Sum((minus, big, compose(tiny, Identity((1, 3), 1e200)))), p).value, 1.0, 1e-9)


def test_factors_beyond_reach_are_refused() -> None:
    with pytest.raises(NumericsError, match="rescale the weights"):
        map_norm(
            compose(
                dense(1e-250 * torch.eye(2, dtype=torch.float64)),
                dense(1e200 * torch.eye(2, dtype=torch.float64)),
            ),
            2,
        )
    small = torch.full((2,), 1e-200, dtype=torch.float64)
    huge = OpMap("bilinear", lambda x, a, b: x * a * b, (1, 2), (1, 2), (small, small), "", 3.0)
    with pytest.raises(NumericsError, match="too far from 1"):
        map_norm(huge, 2)


def test_scaled_is_the_same_map() -> None:
    generator = torch.Generator().manual_seed(3)

    def some(n: int, m: int, scale: float) -> Dense:
        return dense(torch.randn(m, n, generator=generator, dtype=torch.float64) * scale)

    inner = Sum((compose(some(3, 4, 1e40), some(4, 4, 1e-70)), some(3, 4, 1e-30)))
    for linear in (
        inner,
        compose(inner, some(4, 2, 1e120), Identity((1, 2), -1e-50)),
        Stacked((inner, some(5, 4, 1e-33))),
    ):
        unit = scaled(linear)
        again = unit.map.matrix() * 2.0**unit.exponent
        assert torch.allclose(again, linear.matrix(), rtol=1e-12, atol=1e-12 * float(linear.matrix().abs().max()))
        assert unit.map.in_shape == linear.in_shape
        assert unit.map.out_shape == linear.out_shape


@pytest.mark.parametrize("p", [1, 2, INF])
def test_zero_and_empty_maps(p: float) -> None:
    zero = dense(torch.zeros(3, 4))
    for linear in (zero, compose(zero, dense(torch.ones(2, 3))), Identity((1, 3), 0.0), dense(torch.zeros(0, 4)),
                   Sum((zero, zero)), Stacked((zero, zero))):  # fmt: skip
        assert map_norm(linear, p).value == 0.0
    assert map_norm(Sum((zero, dense(torch.ones(3, 4)))), p).value > 0.0


def test_identity_slices_and_permutations_cost_nothing() -> None:
    for linear in (Identity((1, 9)), dense(torch.eye(5)[[3, 1, 4, 0, 2]]), dense(torch.eye(6)[:2])):
        for p in (1, 2, INF):
            assert close(map_norm(linear, p).value, 1.0, 1e-12)


@pytest.mark.parametrize("claim", [math.nan, -1.0, 0.0, 1e-300, 0.5, 5e-324, INF, 1e300])
@pytest.mark.parametrize("free", [False, True])
def test_absurd_claims_prove_nothing(claim: float, free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if free:
        monkeypatch.setattr(module, "MAX_ENTRIES", 0)
    matrix = torch.randn(20, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    found = map_norm(dense(matrix), 2, claim, share(0))
    assert truth * (1 - 1e-13) <= found.value
    assert math.isfinite(found.value)


def test_a_matrix_that_hides_its_leading_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny overlap with the random start must not pull the matrix-free bound below the truth."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 0)
    n = 150
    diagonal = torch.ones(n, dtype=torch.float64)
    diagonal[0] = 1.01
    for seed in range(8):
        found = map_norm(dense(torch.diag(diagonal)), 2, share=share(seed))
        assert found.value >= 1.01


def test_error_radius_of_the_constants_counts() -> None:
    """With constants known to 2^20 roundings the bound leaves room for all of them; without a count it is no proof."""
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    loose = map_norm(dense(matrix, rounding=2.0**20), 2)
    assert loose.value >= truth * (1 + 2.0**-34)
    assert loose.guarantee == "rigorous"
    for rounding in (INF, 2.0**60):
        for p in (1, 2, INF):
            assert map_norm(dense(matrix, rounding=rounding), p).guarantee == "numerical"


def test_a_bound_is_a_magnitude() -> None:
    found = map_norm(dense(torch.eye(2) * 3), INF)
    assert isinstance(found, NormBound)
    assert close(found.value, 3.0, 1e-12)


def large_maps() -> dict[str, LinearMap]:
    """Maps of more than 400 rows and columns with many kinds of spectra."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn = torch.linalg.qr(randn(450, 450)).Q
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)).double()
    (node,) = (n for n in capture(conv, torch.zeros(1, 3, 14, 14)).nodes if isinstance(n, AffineNode))
    return {
        "gaussian": dense(randn(450, 500)),
        "tall": dense(randn(900, 420)),
        "wide": dense(randn(420, 900) * 1e80),
        "orthogonal": dense(turn),
        "two close values": dense(turn * torch.tensor([1.0, 1.0 - 1e-7, *[0.5] * 448])),
        "flat top": dense(turn * torch.linspace(1.0, 1.0 - 1e-4, 450, dtype=torch.float64)),
        "rank one": dense(torch.outer(randn(450), randn(500)) * 1e-90),
        "one entry": dense(torch.nn.functional.pad(torch.ones(1, 1, dtype=torch.float64), (0, 449, 449, 0))),
        "positive": dense(randn(450, 450).abs()),
        "convolution": node.maps[0],
        "composition": compose(dense(randn(450, 500)), dense(randn(420, 450))),
        "stacked": Stacked((dense(randn(300, 450)), dense(randn(300, 450)))),
    }


@pytest.mark.few(6)
@pytest.mark.parametrize("name", list(large_maps()))
def test_proposals_from_passes_can_be_proved_and_are_tight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = large_maps()[name]
    claim = propose_norm(linear, 2.0)
    truth = float(torch.linalg.matrix_norm(linear.matrix(), 2))
    assert truth * (1 - 1e-12) <= claim <= truth * (1 + 1e-8)
    monkeypatch.setattr(module, "sigma_max_upper", lambda *arguments: pytest.fail("the claim was not proved"))
    assert map_norm(linear, 2.0, claim).value <= claim * (1 + 1e-12)


def with_norm(norm: float, seed: int = 0) -> Tensor:
    """A matrix of more rows than need be for its norm to be remembered, of this 2-norm up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(600, 520, generator=generator).double())[0] for _ in range(2))
    return norm * (left * torch.linspace(0.2, 1.0, 520, dtype=torch.float64)) @ right.T


def test_what_is_remembered_changes_no_value_and_proves_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_norm(3.0)
    fresh: list[float] = []
    for claim in (None, 3.1, 3.0 * (1 - 1e-6), None):
        monkeypatch.setattr(module, "_KNOWN", {})
        fresh.append(map_norm(dense(matrix), 2.0, claim).value)
    assert fresh[1] == 3.1
    assert all(3.0 * (1 - 1e-12) <= value < 3.0 * (1 + 1e-6) for k, value in enumerate(fresh) if k != 1)
    for order in ((None, 3.1, 3.0 * (1 - 1e-6)), (3.1, None, 3.05), (3.0 * (1 - 1e-6), 3.1, 3.1)):
        monkeypatch.setattr(module, "_KNOWN", {})
        for claim in order:
            alone = map_norm(dense(matrix), 2.0, claim).value
            assert alone == (claim if claim is not None and claim > 3.0 else fresh[0])
    with monkeypatch.context() as blocked:  # the same map again costs nothing
        blocked.setattr(module, "sigma_max_upper", None)  # whoever calls it fails
        blocked.setattr(module, "certify_sigma_max", None)
        assert map_norm(dense(matrix.clone()), 2.0).value == fresh[0]
        for other in (dense(2.0 * matrix, 700.0), dense(-matrix), dense(with_norm(3.0, seed=1)), dense(matrix, 1e9)):
            with pytest.raises(TypeError):  # but no other, nor with more rounding
                map_norm(other, 2.0)


def test_a_map_that_was_changed_in_place_is_another() -> None:
    matrix = with_norm(1.0, seed=2)
    linear = dense(matrix)
    assert map_norm(linear, 2.0).value < 1.0 + 1e-6
    linear.constants[0].mul_(3.0)
    assert map_norm(linear, 2.0, 1.1).value >= 3.0 * (1 - 1e-9)


def test_what_passes_propose_is_proved_by_the_value_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = dense(with_norm(0.7, seed=3))
    found = map_norm(linear, 2.0).value
    claim = propose_norm(linear, 2.0)
    monkeypatch.setattr(module, "certify_sigma_max", None)  # it is not asked again
    assert found <= claim
    assert map_norm(linear, 2.0, claim).value == claim < 0.7 * (1 + 1e-6)


def test_maps_that_are_put_together_in_another_order_are_others() -> None:
    """A stack of a composition, and a composition behind a stack: the same parts, but other norms."""
    generator, n = torch.Generator().manual_seed(0), 520
    first, second = (dense(torch.eye(n)[torch.randperm(n, generator=generator)]) for _ in range(2))
    mixing = dense(torch.ones(n, n) / n + 2.0 * torch.eye(n)[torch.randperm(n, generator=generator)])
    for linear in (compose(Stacked((first, second)), mixing), Stacked((compose(first, second), mixing))):
        exact = float(torch.linalg.matrix_norm(linear.matrix(), 2))
        assert exact * (1 - 1e-12) <= map_norm(linear, 2.0).value <= exact * (1 + 1e-6)


def test_the_hash_of_a_stack_tells_its_parts() -> None:
    a, b, c = (dense(torch.eye(3) * k) for k in (1.0, 2.0, 3.0))
    digests = set()
    for linear in (Stacked((a, b, c)), Stacked((a, compose(b, c))), Stacked((compose(a, b), c))):
        digest = sha256()
        linear.update_hash(digest)
        digests.add(digest.digest())
    assert len(digests) == 3
