"""Softmax, normalisations and products of matrices on boxes: maps, offsets and rests against dense Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import lipcert
from lipcert.network.expanded import MatrixProduct
from lipcert.network.expansion import Expansion, image_of_product, product_of_matrices
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.radial import Radial
from lipcert.network.relations import LocalGains, LocalMap
from lipcert.numerics.interval import Interval
from lipcert.numerics.matrices import norms_of
from lipcert.numerics.softmax_rows import greatest_norms, growth, probabilities, swings
from lipcert.ops.normalisation import GroupNorm, LayerNorm, RMSNorm
from lipcert.ops.recognise.normalisations import OverClampedNorm, OverShiftedNorm
from lipcert.ops.softmax import LogSoftmax, LogSumExp, MaskedSoftmax, Softmax

D = torch.float64
HALF = {1.0: 0.5, 2.0: 0.5, math.inf: 0.5}


def box(generator: torch.Generator, shape: tuple[int, ...], least: float, most: float) -> Interval:
    """Around a point of any size, of any width between powers of ten."""
    size = 10.0 ** (2.0 * torch.rand((), generator=generator, dtype=D) - 1.0)
    width = 10.0 ** (least + (most - least) * torch.rand((), generator=generator, dtype=D))
    centre = size * torch.randn(shape, generator=generator, dtype=D)
    below, above = (width * torch.rand(shape, generator=generator, dtype=D) for _ in range(2))
    return Interval(centre - below, centre + above)


def points(around: Interval, generator: torch.Generator, count: int) -> list[Tensor]:
    """Points and corners of a box."""
    low, high = around.low, around.high
    shares = [torch.rand(low.shape, generator=generator, dtype=D) for _ in range(count)]
    shares = [s if k % 2 else s.round() for k, s in enumerate(shares)]
    return [(low + s * (high - low)).clamp(low, high) for s in shares]


def gains(weights: tuple[float, ...]) -> dict[float, float]:
    return dict(zip((1.0, 2.0, math.inf), weights, strict=True))


def radial(seed: int, eps: float) -> tuple[Radial, tuple[int, ...]]:
    top = {2.0: eps**-0.5 * (1.0 + 1e-12)}
    return [
        (LayerNorm("layer_norm", top, "", (5,), eps), (3, 5)),
        (GroupNorm("group_norm", top, "", 2, eps, 6), (1, 4, 3)),
        (RMSNorm("rms_norm", top, "", 1, eps, 4), (2, 4)),
        (OverClampedNorm("normalize", {}, "", (1,), 1.0, 1e-3, 1.0), (3, 4)),
        (OverShiftedNorm("normalize", {}, "", (1,), 2.0, 0.0, 2.0), (2, 3)),
    ][seed % 5]


def soft(seed: int, generator: torch.Generator) -> tuple[GainFunction, tuple[int, ...]]:
    kept = (torch.rand(3, 6, generator=generator) < 0.7).to(D)
    return [
        (Softmax("softmax", HALF, "", 1), (2, 5, 3)),
        (MaskedSoftmax("softmax", HALF, "", 1, kept), (3, 6)),
        (LogSoftmax("log_softmax", gains((3.0, 2.0, 2.0)), "", 1), (3, 4)),
        (LogSumExp("logsumexp", gains((1.0, 1.0, 1.0)), "", (0, 2), False), (2, 3, 2)),
    ][seed % 4]


def holds(function: GainFunction, found: Expansion, around: Interval, generator: torch.Generator) -> None:
    """The rests are no longer than gains times the scaled increments, and the offset encloses, on points of the box."""
    (linear,), (scale,), (gain,) = found.maps, found.scales, found.gains
    n = around.low.numel()
    before: list[Tensor] = []
    for x in points(around, generator, 12):
        value = function.value(x).reshape(-1)
        image = torch.zeros_like(value) if linear is None else linear.apply(x[None])[0].reshape(-1)
        rest = value - image
        slack = 1e-13 * (1.0 + value.abs() + image.abs())
        assert bool((rest <= found.offset.high.reshape(-1) + slack).all())
        assert bool((rest >= found.offset.low.reshape(-1) - slack).all())
        jacobian = torch.autograd.functional.jacobian(function.value, x).reshape(-1, n)
        dense = torch.zeros_like(jacobian) if linear is None else linear.matrix()
        unit = torch.where(scale > 0, 1.0 / scale, 0.0).reshape(-1)
        assert bool((((jacobian - dense).abs() * (scale.reshape(-1) == 0)) <= 1e-12).all())
        for p, order in ((1.0, 1), (2.0, 2), (math.inf, math.inf)):
            norm = float(torch.linalg.matrix_norm((jacobian - dense) * unit, order))
            assert norm <= gain[p] * (1.0 + 1e-9) + 1e-9 * float(unit.max()), (p, norm, gain[p])
        for y in before[-2:]:  # also between points far apart
            change = (function.value(x) - function.value(y)).reshape(-1) - dense @ (x - y).reshape(-1)
            assert float(change.norm()) <= float((scale * (x - y)).norm()) * (1 + 1e-9) + 1e-12
        before.append(x)


@pytest.mark.parametrize("seed", range(24))
def test_softmax_is_its_map_and_a_rest(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    function, shape = soft(seed, generator)
    around = box(generator, shape, -5.0, 1.0)
    found = function.expansion(around)
    assert found is not None
    holds(function, found, around, generator)
    gain = function.gains_on(around)
    for x in points(around, generator, 8):
        jacobian = torch.autograd.functional.jacobian(function.value, x).reshape(-1, x.numel())
        for p, order in ((1.0, 1), (2.0, 2), (math.inf, math.inf)):
            assert float(torch.linalg.matrix_norm(jacobian, order)) <= gain[p] * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(25))
def test_a_normalisation_is_its_map_and_a_rest(seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    function, shape = radial(seed, 10.0 ** -float(6 * torch.rand((), generator=generator)))
    around = box(generator, shape, -6.0, 0.0)
    found = function.expansion(around)
    if found is not None:
        holds(function, found, around, generator)


@pytest.mark.parametrize("seed", range(25))
def test_the_rest_of_a_normalisation_vanishes_with_the_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    function, shape = radial(seed, 1e-5)
    x = torch.randn(shape, generator=generator, dtype=D)
    found = function.expansion(Interval(x - 1e-7, x + 1e-7))
    assert found is not None
    assert found.maps[0] is not None
    assert float(found.scales[0].max()) < 1e-4


@pytest.mark.parametrize("seed", range(10))
def test_probabilities_and_the_norm_of_their_covariance(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    around = box(generator, (4, 2 + seed % 5), -4.0, 1.5)
    least, greatest = probabilities(around.low, around.high)
    top = greatest_norms(least, greatest)
    centre = 0.5 * around.low + 0.5 * around.high
    swing = growth(swings(around.low, around.high, centre))
    at = torch.softmax(centre, -1)
    here = torch.diag_embed(at) - at[:, :, None] * at[:, None]
    for x in points(around, generator, 40):
        p = torch.softmax(x, -1)
        assert bool(((least <= p * (1 + 1e-13)) & (p <= greatest * (1 + 1e-13))).all())
        covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        assert bool((torch.linalg.matrix_norm(covariance, 2) <= top).all())
        change = torch.linalg.eigvalsh((1.0 + swing[:, None, None]) * here - covariance)
        assert bool((change >= -1e-12 * (1.0 + swing[:, None])).all())


def test_the_greatest_norm_is_attained() -> None:
    for p in ([0.5, 0.5], [0.7, 0.3], [1.0, 0.0], [0.4, 0.4, 0.2], [0.25] * 4):
        row = torch.tensor([p], dtype=D)
        exact = float(torch.linalg.matrix_norm(torch.diag(row[0]) - row.T * row, 2))
        assert exact <= float(greatest_norms(row, row)) <= max(exact, 2 * max(p) * (1 - max(p)), max(p)) + 1e-14


def test_probabilities_at_the_ends_of_the_doubles() -> None:
    low = torch.tensor([[-1e308, 0.0], [-900.0, 0.0], [-math.inf, 0.0], [-3e38, 1.0]], dtype=D)
    least, greatest = probabilities(low, low)
    assert least[2].tolist() == [0.0, pytest.approx(1.0)]
    assert greatest[2, 0] == 0.0
    assert bool((greatest[:, 0] < 1e-280).all())
    assert bool((greatest[[0, 1, 3], 0] > 0.0).all())
    assert bool((least[:, 1] > 1.0 - 1e-12).all())
    wide = probabilities(torch.tensor([[-1e308, -1e308]], dtype=D), torch.tensor([[1e308, 1e308]], dtype=D))
    assert wide[0].tolist() == [[0.0, 0.0]]
    assert bool((wide[1] > 1.0 - 1e-9).all())


def test_large_finite_masks_do_not_spoil_the_rest() -> None:
    """−3.4e38 in place of −∞: where the probability is nothing, how far the logit may be does not matter."""
    x = torch.tensor([[0.1, -0.3, 0.2, -3.4e38]], dtype=D)
    around = Interval(x - 1e-4 * (1.0 + x.abs() * 1e-16), x + 1e-4 * (1.0 + x.abs() * 1e-16))
    found = Softmax("softmax", HALF, "", 1).expansion(around)
    assert found is not None
    assert float(found.scales[0].max()) < 1e-3
    assert float(found.offset.rad.max()) < 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_products_of_matrices(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k, m = (int(v) for v in torch.randint(1, 5, (3,), generator=generator))
    x, y = box(generator, (2, n, k), -4.0, 1.0), box(generator, (2, k, m), -4.0, 1.0)
    found, image = product_of_matrices(x, y), image_of_product(x, y)
    assert found is not None
    middles = [0.5 * b.low + 0.5 * b.high for b in (x, y)]
    left, right = points(x, generator, 20), points(y, generator, 20)
    for k_, (a, b) in enumerate(zip(left, right, strict=True)):
        assert bool(((image.low <= a @ b) & (a @ b <= image.high)).all())
        images = [linear.apply(z[None])[0] for linear, z in zip(found.maps, (a, b), strict=True) if linear is not None]
        rest = a @ b - images[0] - images[1]
        slack = 1e-13 * (1.0 + images[0].abs() + images[1].abs())
        assert bool((rest <= found.offset.high + slack).all() & (rest >= found.offset.low - slack).all())
        c, d = left[k_ - 1], right[k_ - 1]
        rests = (a - c) @ (0.5 * (b + d) - middles[1]), (0.5 * (a + c) - middles[0]) @ (b - d)
        exact = a @ b - c @ d - (a - c) @ middles[1] - middles[0] @ (b - d)
        assert torch.allclose(rests[0] + rests[1], exact, rtol=1e-9, atol=1e-9 * float(image.greatest.max()))
        for p in (1.0, 2.0, math.inf):
            for w, scale, gain, change in zip(rests, found.scales, found.gains, (a - c, b - d), strict=True):
                assert float(w.norm(p)) <= gain[p] * float((scale * change).norm(p)) * (1 + 1e-12)


def test_products_with_an_empty_side_or_an_infinite_box() -> None:
    empty = Interval(torch.zeros(2, 3, 0, dtype=D), torch.zeros(2, 3, 0, dtype=D))
    other = Interval(torch.zeros(2, 0, 4, dtype=D), torch.zeros(2, 0, 4, dtype=D))
    found = product_of_matrices(empty, other)
    assert found is not None
    assert found.offset.rad.shape == (2, 3, 4)
    whole = Interval.whole((2, 3, 4))
    parts = MatrixProduct().obeyed([whole, Interval.whole((2, 4, 3))])
    assert all(isinstance(part, LocalGains) and not part.gains for part in parts)
    assert not bool(image_of_product(whole, Interval.whole((2, 4, 3))).finite.any())
    assert isinstance(MatrixProduct().obeyed([empty, other])[0], LocalMap)


def test_norms_of_matrices_without_negative_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.rand(6, 5, 7, generator=generator, dtype=D)
    matrices[0] = 0.0
    matrices[1, :, 3:] = 0.0
    matrices[2] *= 1e-200
    found, exact = norms_of(matrices), torch.linalg.matrix_norm(matrices, 2)
    assert bool((found >= exact * (1 - 1e-14)).all())
    assert bool((found <= exact * (1 + 1e-6)).all())


@pytest.mark.parametrize("function", [lambda x: functional.softmax(x, 1), lambda x: functional.layer_norm(x, (4,))])
def test_the_maps_are_the_derivatives_at_the_middle(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=D)
    around = Interval(x - 1e-9, x + 1e-9)
    blocks = [Softmax("softmax", HALF, "", 1), LayerNorm("layer_norm", {}, "", (4,), 1e-5)]
    own = blocks[0] if torch.allclose(function(x).sum(1), torch.ones(3, dtype=D)) else blocks[1]
    found = own.expansion(around)
    assert found is not None
    assert found.maps[0] is not None
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(12, 12)
    assert torch.allclose(found.maps[0].matrix(), jacobian, atol=1e-7)


def test_the_jacobian_of_log_sum_exp_is_bounded_in_one_batch() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, 2.0 * x, x * x], 1).logsumexp(1)

    centre = torch.zeros(1, 3, dtype=torch.float64)
    found = lipcert.bound(Model(), centre, method="interval_jacobian", domain=lipcert.Ball(centre, 0.1, p=2))
    assert found.method == "interval_jacobian"
    assert found.value >= 1.0 - 1e-12  # at 0


@pytest.mark.parametrize("scale", [0.1, 1.0 / 3.0, 1.0 + 2.0**-40])
def test_factors_of_norms_are_the_doubles_and_not_their_float32(scale: float) -> None:
    """As roots √(k²‖x‖² + 0), in the default dtype that checks run with."""
    for function in (
        OverShiftedNorm("norm", {}, "", (1,), scale, 0.0, scale),
        OverClampedNorm("norm", {}, "", (1,), scale, 1e-12, scale),
    ):
        form = function.root_form(1.0)
        assert form is not None
        square = Fraction(scale) ** 2
        assert Fraction(float(form[0].low)) <= square <= Fraction(float(form[0].high))
