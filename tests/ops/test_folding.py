# ruff: noqa: E501
"""Constant sub-graphs: folded in float64, with a rounding count that never understates."""

import math
from fractions import Fraction

import pytest
import torch
from cases import Call, numbers
from torch import nn

from lipcert.capture.torch_export import capture
from lipcert.ops.context import Constant
from lipcert.ops.folding import fold

A = torch.ops.aten


def weight_rounding(module, shape=(1, 6)):
    (map_,) = capture(module.eval(), torch.randn(shape)).nodes[-1].maps
    return map_.rounding


@pytest.mark.parametrize("wrap", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm,
                                  torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm])  # fmt: skip
@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 3), lambda: nn.Conv1d(2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parametrised_weights_keep_a_finite_count(wrap, layer, dtype):
    """In float32 the weight is the tensor that the module multiplies with: exact, so only the terms count."""
    x = torch.randn((1, 6) if isinstance(layer(), nn.Linear) else (1, 2, 6), dtype=dtype)
    (map_,) = capture(wrap(layer()).to(dtype).eval(), x).nodes[-1].maps
    assert 3 < map_.rounding < 1e6
    if dtype == torch.float32:
        assert map_.rounding <= 12


def test_unknown_op_has_no_count():
    assert weight_rounding(Call(lambda x, w: x @ torch.linalg.matrix_exp(w), numbers(6, 6).float())) == math.inf


def test_masks_of_rounded_numbers_are_known_where_rounding_cannot_decide():
    def model(x, w):
        sign = ((w / w.norm()).sum(0) > 0.1).to(x.dtype)
        return x[:, :3] * sign

    def on_the_edge(x, w):
        return x[:, :3] * (w * 3.0 / 3.0 * 7.0 / 7.0 > w).to(x.dtype)

    assert weight_rounding(Call(model, numbers(6, 3).float())) < 10
    assert weight_rounding(Call(on_the_edge, numbers(3).float())) == math.inf
    assert weight_rounding(Call(lambda x, w: x[:, :3] * (w > 0.1).to(x.dtype), numbers(3).float())) < 10


def test_reduced_precision_inside_the_graph_is_covered_with_the_exact_value():
    w = numbers(6, 3)
    model = Call(lambda x, w: x @ (w * 1.1).to(torch.float32).to(x.dtype), w)
    (map_,) = capture(model.eval(), numbers(1, 6)).nodes[-1].maps
    error = map_.absolute().matrix() * (map_.rounding * 2.0**-53)
    for meant in (w * 1.1, (w * 1.1).float().double()):
        assert bool(((map_.matrix() - meant.T).abs() <= error).all())


UNIT = Fraction(1, 2**53)


def exact_error(value, exact):
    """Largest relative error of float64 ``value`` against Fractions."""
    worst = Fraction(0)
    for v, e in zip(value.reshape(-1).tolist(), exact, strict=True):
        if Fraction(v) != e:
            worst = max(worst, abs(Fraction(v) - e) / abs(Fraction(v)) if v else Fraction(10**9))
    return worst


@pytest.mark.parametrize("seed", range(10))
def test_counts_cover_cancellation(seed):
    """sub, sum over rows and products of already rounded operands, against exact rational arithmetic."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 5, generator=g, dtype=torch.float64) for _ in range(2))
    a[:, 1] = -a[:, 0] + 1e-9 * b[:, 0]
    fa = [[Fraction(v) for v in row] for row in a.tolist()]
    fb = [[Fraction(v) for v in row] for row in b.tolist()]
    third = fold(
        A.div.Tensor, "div", (Constant.exactly(a), Constant.exactly(torch.tensor(3.0, dtype=torch.float64))), {}
    )
    total = fold(A.sum.dim_IntList, "sum", (third, [1]), {})
    exact = [sum(v / 3 for v in row) for row in fa]
    assert exact_error(total.value, exact) <= Fraction(total.rounding) * UNIT
    near = fold(A.sub.Tensor, "sub", (third, Constant.exactly(third.value * (1 + 1e-8))), {"alpha": 1})
    exact = [
        x / 3 - Fraction(t)
        for row, other in zip(fa, (third.value * (1 + 1e-8)).tolist(), strict=True)
        for x, t in zip(row, other, strict=True)
    ]
    assert exact_error(near.value, exact) <= Fraction(near.rounding) * UNIT
    product = fold(A.mm.default, "mm", (third, Constant.exactly(b.T.contiguous())), {})
    exact = [sum(x * y / 3 for x, y in zip(row, col, strict=True)) for row in fa for col in fb]
    assert exact_error(product.value, exact) <= Fraction(product.rounding) * UNIT


@pytest.mark.parametrize("reduce", [lambda w: w.sum(0, dtype=torch.int64), lambda w: w.prod(0, dtype=torch.int64),
                                    lambda w: w.cumsum(0, dtype=torch.int64), lambda w: w.cumprod(0, dtype=torch.int64)])  # fmt: skip
def test_sums_in_whole_numbers_truncate_their_terms_first(reduce):
    """Σ trunc(w) is not Σ w: neither the sum of the fractions nor an exact figure of it may come out."""
    w = torch.tensor([[2.6, 0.6], [2.6, 0.6], [2.9, 0.9]], dtype=torch.float64)
    (map_,) = capture(Call(lambda x, w: x * reduce(w).sum(), w).eval(), numbers(1, 2)).nodes[-1].maps
    scale = float(map_.matrix()[0, 0])
    assert scale == float(reduce(w).sum())


def test_rows_normalised_by_torch_are_enclosed():
    """F.normalize of weights, a cosine head: exact rationals give each row's length."""
    w = numbers(3, 4)
    (map_,) = (
        capture(Call(lambda x, w: x @ torch.nn.functional.normalize(w, dim=1).T, w).eval(), numbers(1, 4))
        .nodes[-1]
        .maps
    )
    assert map_.rounding < 100
    for row, unit in zip(w.tolist(), map_.matrix().tolist(), strict=True):
        square = sum(Fraction(a) ** 2 for a in row)
        for a, b in zip(row, unit, strict=True):
            assert abs(Fraction(b) ** 2 * square / Fraction(a) ** 2 - 1) <= 2 * Fraction(map_.rounding) / 2**53
