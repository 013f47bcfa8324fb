"""The hash of a network is over what it is, not over the ops it was called as; other functions have other hashes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.capture.sequential import read_sequential
from lipcert.capture.torch_export import capture
from lipcert.network.linear import OpMap
from tests.zoo import ZOO, Apply, zoo_case

D = torch.float64
_random = torch.Generator().manual_seed(0)
W, B = torch.randn(4, 6, generator=_random, dtype=D), torch.randn(4, generator=_random, dtype=D)
K, C = torch.randn(4, 3, 3, 3, generator=_random, dtype=D), torch.randn(4, generator=_random, dtype=D)
G = torch.randn(4, 1, 3, 3, generator=_random, dtype=D)
T = torch.randn(3, 4, 3, 3, generator=_random, dtype=D)

Function = Callable[[Tensor], Tensor]


def fingerprint(function: Function, *shape: int) -> str:
    return capture(Apply(lambda _, x: function(x)).eval(), torch.zeros(1, *shape, dtype=D)).fingerprint


def generic(x: Tensor, weight: Tensor, *settings) -> Tensor:
    return torch.convolution(x, weight, *settings)


#: Shape of one example, and one function written several ways: each group has one hash.
SAME: dict[str, tuple[tuple[int, ...], list[Function]]] = {
    "affine map": (
        (6,),
        [
            lambda x: F.linear(x, W, B),
            lambda x: torch.addmm(B, x, W.t()),
            lambda x: F.dropout(F.linear(x, W, B), 0.5, False),
            lambda x: F.linear(x.clone(), W, B).contiguous(),
        ],
    ),
    "matrix": ((6,), [lambda x: F.linear(x, W), lambda x: x @ W.T, lambda x: x.mm(W.t())]),
    "matrix for every token": ((5, 6), [lambda x: F.linear(x, W), lambda x: x @ W.T, lambda x: torch.matmul(x, W.t())]),
    "contraction": (
        (5, 6),
        [lambda x: torch.einsum("bti,ji->btj", x, W), lambda x: torch.einsum("x y z, w z -> x y w", x, W)],
    ),
    "convolution": (
        (3, 8, 8),
        [
            lambda x: F.conv2d(x, K, C, 1, 1),
            lambda x: F.conv2d(x, K, C, (1, 1), (1, 1), (1, 1)),
            lambda x: F.conv2d(x, K, C, padding="same"),
            lambda x: generic(x, K, C, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ],
    ),
    "valid convolution": ((3, 8, 8), [lambda x: F.conv2d(x, K, padding="valid"), lambda x: F.conv2d(x, K)]),
    "grouped convolution": (
        (4, 8, 8),
        [
            lambda x: F.conv2d(x, G, None, 2, 1, 1, 4),
            lambda x: generic(x, G, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 4),
        ],
    ),
    "transposed convolution": (
        (3, 4, 4),
        [
            lambda x: F.conv_transpose2d(x, T, C, 2, 1, 1),
            lambda x: generic(x, T, C, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        ],
    ),
    "reshape": (
        (3, 4, 4),
        [
            lambda x: x.flatten(1),
            lambda x: x.reshape(-1, 48),
            lambda x: x.view(x.shape[0], -1),
            lambda x: x.reshape(x.shape[0], 48).clone(),
        ],
    ),
    "slice": (
        (6,),
        [
            lambda x: x[:, :3],
            lambda x: x.narrow(1, 0, 3),
            lambda x: x.split(3, 1)[0],
            lambda x: x.chunk(2, 1)[0],
            lambda x: x[:, torch.arange(3)],
            lambda x: x.index_select(1, torch.arange(3)),
            lambda x: x.gather(1, torch.arange(3)[None].expand(x.shape[0], 3)),
        ],
    ),
    "permutation": (
        (3, 4, 4),
        [lambda x: x.transpose(1, 3), lambda x: x.permute(0, 3, 2, 1), lambda x: torch.movedim(x, (1, 3), (3, 1))],
    ),
    "broadcast": (
        (1, 6),
        [lambda x: x.expand(-1, 4, -1), lambda x: x.repeat(1, 4, 1), lambda x: torch.tile(x, (1, 4, 1))],
    ),
    "padding": ((3, 4, 4), [lambda x: F.pad(x, (1, 2, 0, 0)), lambda x: torch.constant_pad_nd(x, (1, 2))]),
    "mean of planes": (
        (3, 8, 8),
        [
            lambda x: x.mean((2, 3), keepdim=True),
            lambda x: x.mean((-1, -2), keepdim=True),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.avg_pool2d(x, 8),
        ],
    ),
    "average pool": (
        (3, 8, 8),
        [
            lambda x: F.avg_pool2d(x, 2),
            lambda x: F.avg_pool2d(x, (2, 2), (2, 2), 0, False, False),
            lambda x: F.adaptive_avg_pool2d(x, 4),
        ],
    ),
    "maximum pool": (
        (3, 8, 8),
        [
            lambda x: F.max_pool2d(x, 2),
            lambda x: F.adaptive_max_pool2d(x, 4),
            lambda x: F.max_pool2d(x, (2, 2), 2, 0, 1),
        ],
    ),
    "sum": ((5, 6), [lambda x: x.sum(2), lambda x: x.sum((-1,)), lambda x: torch.sum(x, dim=-1)]),
    "batch norm": (
        (4, 5),
        [
            lambda x: F.batch_norm(x, B, B * B + 1, C, B, False, 0.1, 1e-5),
            lambda x: torch.ops.aten._native_batch_norm_legit_no_training(x, C, B, B, B * B + 1, 0.1, 1e-5)[0],
        ],
    ),
}  # fmt: skip

#: Functions of a (3, 8, 8) example, no two of which are alike; each with all others has its own hash.
DIFFERENT: list[Function] = [
    *(lambda x, s=s: F.conv2d(x, K, C, *s) for s in ((1, 0), (1, 1), (2, 1), (2, 0), (1, 1, 2), (1, (0, 1)))),
    lambda x: F.conv2d(x, K, C, 1, (1, 0)),
    lambda x: F.conv2d(x, K, None, 1, 1),
    lambda x: F.conv2d(x, -K, C, 1, 1),
    lambda x: F.conv2d(x, K.flip(2), C, 1, 1),
    lambda x: F.conv2d(x, K.flip(0), C, 1, 1),
    lambda x: F.conv_transpose2d(x, T, C, 1, 1),
    lambda x: F.conv_transpose2d(x, T, C, 2, 1),
    lambda x: F.conv_transpose2d(x, T, C, 2, 1, 1),
    *(lambda x, d=d: x.flip(d) for d in (1, 2, 3, (1, 2), (2, 3))),
    *(lambda x, d=d: x.roll(*d) for d in ((1, 2), (2, 2), (1, 3), (-1, 2))),
    lambda x: x.transpose(2, 3),
    lambda x: x.transpose(2, 3).flip(2),
    lambda x: x.tril(),
    lambda x: x.triu(),
    lambda x: x.tril(1),
    *(lambda x, m=m: F.pad(x, (1, 1, 1, 1), m) for m in ("constant", "reflect", "replicate", "circular")),
    lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    lambda x: F.pad(x, (2, 0, 1, 1)),
    lambda x: F.avg_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 2, 1),
    lambda x: F.avg_pool2d(x, 3, 1, 1),
    lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    lambda x: F.avg_pool2d(x, (2, 1), (2, 2)),
    lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: F.max_pool2d(x, 2),
    lambda x: F.max_pool2d(x, 2, 1),
    lambda x: F.max_pool2d(x, 3, 2, 1),
    lambda x: F.max_pool2d(x, 2, 2, 0, 2),
    lambda x: x[:, :, ::2, ::2],
    lambda x: x[:, :, 1::2, ::2],
    lambda x: x.sum((2, 3), keepdim=True),
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: x.mean((1, 3), keepdim=True),
    lambda x: x.cumsum(2),
    lambda x: x.cumsum(3),
    *(lambda x, m=m: F.interpolate(x, scale_factor=2, mode=m) for m in ("nearest", "bilinear", "bicubic")),
    lambda x: F.interpolate(x, size=16, mode="bilinear", align_corners=True),
    lambda x: torch.cat([x, x.flip(1)], 1),
    lambda x: torch.cat([x.flip(1), x], 1),
    lambda x: torch.cat([x, x.flip(1)], 2),
    lambda x: 2 * x,
    lambda x: x * torch.arange(8, dtype=D),
    lambda x: x * torch.arange(8, dtype=D)[:, None],
    lambda x: x + 1,
    lambda x: x + torch.arange(8, dtype=D),
    lambda x: torch.relu(x),
    lambda x: F.leaky_relu(x, 0.1),
    lambda x: F.leaky_relu(x, 0.2),
    lambda x: F.relu6(x),
    lambda x: torch.tanh(torch.relu(x)),
    lambda x: torch.relu(torch.tanh(x)),
    lambda x: F.layer_norm(x, [8]),
    lambda x: F.layer_norm(x, [8, 8]),
    lambda x: F.layer_norm(x, [8], eps=1e-3),
    lambda x: torch.softmax(x, 1),
    lambda x: torch.softmax(x, 2),
    lambda x: torch.softmax(x, 3),
    lambda x: x.sort(2)[0],
    lambda x: x.sort(2, descending=True)[0],
    lambda x: x.sort(3)[0],
    *(lambda x, s=s: F.unfold(x, 2, **s) for s in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2})),
    *(lambda x, s=s: F.fold(F.unfold(x, 3, padding=1), 8, 3, padding=1, **s) for s in ({},)),
    *(
        lambda x, i=i, a=a: torch.ops.aten.index_put(x, (None, torch.tensor(i)), x[:, :2].flip(1), a)
        for i, a in (([0, 1], False), ([1, 2], False), ([1, 2], True), ([1, 1], True), ([2, 2], True))
    ),
]  # fmt: skip


@pytest.mark.few(9)
@pytest.mark.parametrize("name", SAME)
def test_one_function_written_several_ways_is_one_network(name: str) -> None:
    shape, functions = SAME[name]
    assert len({fingerprint(function, *shape) for function in functions}) == 1


def test_functions_that_differ_are_different_networks() -> None:
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=D)
    seen: dict[str, Tensor] = {}
    for function in DIFFERENT:
        key, value = fingerprint(function, 3, 8, 8), function(x)
        assert key not in seen or torch.equal(seen[key], value)
        assert key not in seen
        seen[key] = value


LAYERS = [
    nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)),
    nn.Sequential(nn.Linear(4, 6, bias=False), nn.LeakyReLU(0.2), nn.Linear(6, 6), nn.Tanh(), nn.Flatten()),
    nn.Sequential(nn.SiLU(), nn.Flatten(1, 2), nn.Linear(12, 2), nn.Identity()),
]  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("place", range(len(LAYERS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_front_ends_give_one_network(place: int, dtype: torch.dtype) -> None:
    model, x = copy.deepcopy(LAYERS[place]).to(dtype).eval(), torch.zeros(1, 3, 4, dtype=dtype)
    direct = read_sequential(model, x)
    assert direct is not None
    exported = capture(torch.export.export(model, (x,)), x)
    wrapped = capture(Apply(lambda s, x: s.inner(x), inner=model).eval(), x)
    assert direct.fingerprint == exported.fingerprint == wrapped.fingerprint
    if place != 1:  # its linear layers are for every row, which the decomposition writes as other shapes
        decomposed = capture(torch.export.export(model, (x,)).run_decompositions(), x)
        assert decomposed.fingerprint == direct.fingerprint


def test_a_certificate_holds_for_the_model_by_another_way(tmp_path) -> None:
    model, x = LAYERS[0].eval(), torch.zeros(1, 3, 4)
    lipcert.bound(model, x, method="liplt").save(tmp_path / "a.lipcert")
    other = torch.export.export(model, (x,)).run_decompositions()
    assert lipcert.verify(tmp_path / "a.lipcert", other, x).value > 0
    with torch.no_grad():
        changed = copy.deepcopy(model)
        changed[1].weight[0, 0] += 1e-6
    with pytest.raises(lipcert.CertificateError, match="another model"):
        lipcert.verify(tmp_path / "a.lipcert", changed, x)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO[::3]])
def test_every_parameter_counts(name: str) -> None:
    case = zoo_case(name)
    model = copy.deepcopy(case.model)
    own = capture(model, case.example).fingerprint
    for parameter in list(model.parameters())[:6]:
        with torch.no_grad():
            before = parameter.clone()
            parameter.view(-1)[-1] += 0.25
            changed = capture(model, case.example).fingerprint
            parameter.copy_(before)
        assert changed != own
    assert capture(model, case.example).fingerprint == own


def test_maps_of_one_hash_are_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """An einsum repeats the entries of an operand of size 1 as often as the other one says."""
    made: list[OpMap] = []
    init = OpMap.__init__

    def noted(self: OpMap, *args: Any, **settings: Any) -> None:
        init(self, *args, **settings)
        made.append(self)

    monkeypatch.setattr(OpMap, "__init__", noted)
    for rows, columns in ((3, 4), (4, 3)):

        def product(_: nn.Module, x: Tensor, rows: int = rows, columns: int = columns) -> Tensor:
            left, right = x[:, :10].reshape(-1, 1, 2, 1, 5), x[:, 10:].reshape(-1, rows, 2, columns)
            return torch.einsum("zijkl,zijk->z", left, right)[:, None]

        assert capture(Apply(product).eval(), torch.zeros(1, 34, dtype=D)).hopeless is None
    seen: dict[bytes, Tensor] = {}
    for linear in made:
        digest = sha256()
        linear.update_hash(digest)
        assert torch.equal(seen.setdefault(digest.digest(), linear.matrix()), linear.matrix())
    assert sum("einsum" in linear.attributes for linear in made) >= 2
