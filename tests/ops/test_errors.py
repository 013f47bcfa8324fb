# ruff: noqa: E501
"""What is not Lipschitz, not linear or not known raises a named error that says so."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Call
from torch import nn

from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, LipcertError, NotLipschitzError, TrainModeError, UnsupportedOpError
from lipcert.problem import Problem

X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))

REFUSED = [
    ("product", lambda x: x * x.flip(1), NotLipschitzError),
    ("matmul", lambda x: x @ x.transpose(1, 2), NotLipschitzError),
    ("attention", lambda x: F.scaled_dot_product_attention(x, x, x), LipcertError),
    ("einsum", lambda x: torch.einsum("bij,bij->bi", x, x.flip(1)), NotLipschitzError),
    ("quotient", lambda x: x / x.flip(1), NotLipschitzError),
    ("divide by zero", lambda x: x / torch.tensor([0.0, 1, 2, 3, 4, 5]), NotLipschitzError),
    ("integer cast", lambda x: x.to(torch.int32).to(torch.float32), NotLipschitzError),
    ("integer sum", lambda x: x.sum(2, dtype=torch.int64), NotLipschitzError),
    ("data-dependent index", lambda x: x.gather(1, x.argmax(1, keepdim=True)), LipcertError),
    ("argmax", lambda x: x.argmax(1), LipcertError),
    ("sort indices", lambda x: x.sort(1)[1], LipcertError),
    ("max indices", lambda x: x.max(1)[1] * 1.0, LipcertError),
    ("pool indices", lambda x: F.max_pool1d(x, 2, return_indices=True)[1], LipcertError),
    ("complex", lambda x: torch.fft.fft(x).angle(), LipcertError),
    ("batch-coupled mean", lambda x: x - x.mean(0, keepdim=True), CaptureError),
    ("batch-coupled sort", lambda x: x.sort(0)[0], CaptureError),
    ("zero norm order", lambda x: torch.linalg.vector_norm(x, 0, dim=1), NotLipschitzError),
    ("negative norm order", lambda x: torch.linalg.vector_norm(x, -1, dim=1), NotLipschitzError),
    ("norm below one", lambda x: torch.linalg.vector_norm(x, 0.5, dim=1), NotLipschitzError),
    ("spectral norm", lambda x: torch.linalg.matrix_norm(x, 2), LipcertError),
    ("normalize in l1", lambda x: F.normalize(x, p=1.0, dim=1), NotLipschitzError),
    ("local response norm", lambda x: F.local_response_norm(x, 2), LipcertError),
    ("layer norm eps 0", lambda x: F.layer_norm(x, [6], eps=0.0), NotLipschitzError),
    ("rms norm eps 0", lambda x: F.rms_norm(x, [6], eps=0.0), NotLipschitzError),
    ("lp pool 3", lambda x: F.lp_pool1d(x, 3, 2), LipcertError),
    ("lp pool 6", lambda x: F.lp_pool1d(x, 6, 2), LipcertError),
    ("variance", lambda x: x.var(1), LipcertError),
    ("product over a dimension", lambda x: x.prod(1), UnsupportedOpError),
    ("padding with infinity", lambda x: F.pad(x, (1, 1), value=-math.inf), UnsupportedOpError),
    ("antialias", lambda x: F.interpolate(x[:, None], scale_factor=0.5, mode="bilinear", antialias=True), UnsupportedOpError),
    ("unsorted topk", lambda x: x.topk(2, 1, sorted=False)[0], UnsupportedOpError),
    ("infinite factor", lambda x: x * math.inf, CaptureError),
    ("bilinear", lambda x: F.bilinear(x, x, torch.ones(2, 6, 6)), NotLipschitzError),
    ("unfolded twice", lambda x: torch.ops.aten.index_put(x, [None, torch.tensor([1, 1])], x[:, :2]), UnsupportedOpError),
]  # fmt: skip


@pytest.mark.few(17)
@pytest.mark.parametrize(("name", "function", "error"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(name, function, error):
    with pytest.raises(error) as caught:
        Problem(capture(Call(function).eval(), X))
    assert len(str(caught.value)) > 30


def test_errors_name_op_and_line():
    with pytest.raises(NotLipschitzError, match=r"aten\.mul at .*cases\.py:\d+"):
        Problem(capture(Call(lambda x: x * x.flip(1)).eval(), X))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True), nn.Dropout()])
def test_training_mode(layer):
    with pytest.raises(TrainModeError):
        Problem(capture(layer.train(), X))


def test_batch_norm_without_statistics():
    with pytest.raises(LipcertError):
        Problem(capture(nn.BatchNorm1d(4, track_running_stats=False).eval(), X))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(6, 2), lambda: nn.Conv1d(4, 2, 1), lambda: nn.BatchNorm1d(4), lambda: nn.LayerNorm(6)],
)
def test_nan_and_infinity(make, value):
    layer = make().eval()
    with torch.no_grad():
        layer.weight.view(-1)[0] = value
    with pytest.raises(CaptureError):
        Problem(capture(layer, X))


def test_default_rms_norm_uses_the_dtype():
    network = capture(nn.RMSNorm(6), X)
    assert network.nodes[1].function.gains[2.0] == pytest.approx(torch.finfo(torch.float32).eps ** -0.5)


def test_tables_are_part_of_the_fingerprint():
    """Two networks that differ only in constant indices are different networks, whatever op picks the entries."""
    prints = set()
    for i in ([0, 1], [1, 0], [0, 0]):
        index = torch.tensor(i)
        for op in (
            lambda x, i: x.index_select(1, i),
            lambda x, i: x[:, i],
            lambda x, i: x.gather(1, i[None, :, None].expand(x.shape[0], 2, 6)),
        ):
            prints.add(capture(Call(op, index).eval(), X).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize("function", [
    lambda x: x[:, :1] / x[:, :1].norm(dim=2, keepdim=True).clamp_min(0.5).expand(1, 4, 6),  # divided by, then repeated
    lambda x: x * torch.rsqrt((x * x).mean(1, keepdim=True).transpose(1, 2).expand(1, 6, 6)[:, :4] + 1),  # of other groups
    lambda x: x / x.norm(dim=2).clamp_min(0.5)[:, :, None].expand(1, 4, 6).flip(1),
])  # fmt: skip
def test_near_misses_of_normalisation_are_refused(function):
    with pytest.raises(NotLipschitzError):
        Problem(capture(Call(function).eval(), X[:1]))


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.exp(x.clamp(max=1.0)), lambda x: torch.tanh(x) ** 3, lambda x: torch.sinh(torch.sigmoid(x)), lambda x: torch.log(x.clamp(min=0.1)),
     lambda x: torch.tan(torch.tanh(x)), lambda x: 2.0 ** torch.tanh(x)],
)  # fmt: skip
def test_what_an_earlier_operation_bounds_is_taken_into_account(function):
    Problem(capture(Call(function).eval(), X))


@pytest.mark.parametrize(("function", "advice"), [
    (torch.exp, r"Bound its argument where its slope is finite"),
    (lambda x: x**3, r"Bound its argument where its slope is finite"),
    (lambda x: torch.acosh(1 + x.abs()), r"Bound its argument where its slope is finite"),
    (lambda x: torch.erfinv(torch.tanh(x)), r"What an earlier operation bounds .* is not taken into account"),
])  # fmt: skip
def test_the_advice_is_one_that_helps(function, advice):
    with pytest.raises(NotLipschitzError, match=advice):
        Problem(capture(Call(function).eval(), X))
