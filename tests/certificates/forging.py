"""Genuine certificates of every kind, and ways to spoil them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack import attack
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import Certificate
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError
from lipcert.methods.base import Found, Method, Run
from lipcert.methods.routes import Route
from lipcert.methods.vertex_search import best_vertex
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from tests.zoo import mlp, zoo_case

INF = math.inf


@dataclass(frozen=True, eq=False)
class Genuine:
    """A certificate with its network, and a value that is certainly below the constant."""

    record: Certificate
    network: Network
    low: float

    def offered(self, **changes: Any) -> Certificate:
        """The certificate with some fields changed, and a claim that is false whatever they are."""
        value = self.low * (1.0 - 1e-6)
        return replace(self.record, **{"value": value, "log10": math.log10(value) + 1e-9, **changes})

    def refused(self, **changes: Any) -> str:
        """What the verifier says; an assertion where it believes the false claim or fails in another way."""
        try:
            bound = verify(self.offered(**changes), self.network)
        except CertificateError as reason:
            return str(reason)
        raise AssertionError(f"believed {bound.value}, which is below {self.low}, with {changes}")


def chain() -> nn.Module:
    return mlp((3, 5, 4, 2), 0)


class AllVertices(Method):
    """The check of pairs of layers, of a whole two-layer network."""

    name = "all vertices"

    def solve(self, problem: Problem, run: Run) -> Found:
        return Found(Witness("vertex_enumeration", {}, {"value": best_vertex(problem, 0.0)}))


class Converted(Method):
    name = "converted"

    def own_bound(self, problem: Problem, run: Run, chance: Chance) -> lipcert.Bound:
        return Route((2.0, INF)).bound(lipcert.LipSDP(), problem, run, chance)


class Turned(Method):
    name = "transposed"

    def own_bound(self, problem: Problem, run: Run, chance: Chance) -> lipcert.Bound:
        return Route(None, transposed=True).bound(lipcert.LipSDP(), problem, run, chance)


#: name → (method, model, example, norm): every kind of certificate and every route.
MAKERS: dict[str, tuple[Method, Callable[[], tuple[nn.Module, Tensor]], Norm]] = {
    "layer_product": (lipcert.AutoLip(), lambda: _zoo("residual"), (2.0, 2.0)),
    "layer_product op by op": (lipcert.AutoLip(fuse=False), lambda: _zoo("concatenation"), (INF, INF)),
    "loop_transform": (lipcert.LipLT(window=2), lambda: _zoo("small cnn"), (2.0, 2.0)),
    "loop_transform l1": (lipcert.LipLT(), lambda: _zoo("residual"), (1.0, 1.0)),
    "quadratic": (lipcert.LipSDP(), lambda: _zoo("residual"), (2.0, 2.0)),
    "quadratic pools": (lipcert.LipSDP(tolerance=1e-2), lambda: _zoo("small cnn"), (2.0, 2.0)),
    "quadratic weights": (lipcert.LipSDP(), lambda: (chain(), torch.zeros(1, 3)), (INF, 1.0)),
    "quadratic rows": (lipcert.LipSDP(), lambda: (chain(), torch.zeros(1, 3)), (2.0, INF)),
    "quadratic layer": (lipcert.LipSDPLayer(), lambda: (chain(), torch.zeros(1, 3)), (2.0, 2.0)),
    "quadratic matrix-free": (
        lipcert.LipSDP(route="matrix_free"), lambda: (chain(), torch.zeros(1, 3)), (2.0, 2.0),
    ),
    "branch_tree": (lipcert.BranchAndBound(max_nodes=9), lambda: _zoo("leaky 4-6-6-3"), (2.0, 2.0)),
    "vertex_enumeration": (AllVertices(), lambda: (mlp((3, 6, 2), 0), torch.zeros(1, 3)), (2.0, 2.0)),
    "mixed_product": (lipcert.MixedProduct(), lambda: _zoo("residual"), (1.0, 2.0)),
    "interval_jacobian": (lipcert.IntervalJacobian(), lambda: _zoo("residual"), (1.0, INF)),
    "converted": (Converted(), lambda: (chain(), torch.zeros(1, 3)), (1.0, INF)),
    "transposed": (Turned(), lambda: (chain(), torch.zeros(1, 3)), (1.0, 2.0)),
    "layer_pairs": (lipcert.SeqLip(), lambda: (chain(), torch.zeros(1, 3)), (2.0, 2.0)),
    "layer_pairs exact": (
        lipcert.SeqLip(pairs=lipcert.ExactPairs()), lambda: (chain(), torch.zeros(1, 3)), (2.0, 2.0),
    ),
    "layer_pairs trees": (
        lipcert.SeqLip(pairs=lipcert.BranchAndBound()), lambda: (chain(), torch.zeros(1, 3)), (2.0, 2.0),
    ),
}  # fmt: skip


def _zoo(name: str) -> tuple[nn.Module, Tensor]:
    case = zoo_case(name)
    return case.model, case.example


@functools.cache
def genuine(name: str) -> Genuine:
    """The certificate of a maker."""
    method, make, norm = MAKERS[name]
    network = capture(*make())
    problem = Problem(network, norm)
    bound = method.bound(problem, Run(torch.Generator().manual_seed(0), torch.device("cpu"), 3.0), Chance())
    assert isinstance(bound.certificate, Certificate)
    low = attack(problem, None, 0.3, seed=0).value
    assert 0 < low <= bound.value
    return Genuine(bound.certificate, network, low)


def spoilt_arrays(array: Tensor) -> Iterator[Any]:
    """Other arrays in the place of one: values, single entries, dtypes, shapes, strides, nothing."""
    floating = array.is_floating_point()
    if floating:
        for factor in (0.0, -0.0, -1.0, 1e-300, 1e-160, 1e-8, 0.5, 0.999, 2.0, 1e8, 1e160, 1e300, math.nan, INF):
            yield array * factor
        for value in (0.0, 5e-324, 1e-310, 1.0, 1e308, math.nan, INF, -INF):
            yield torch.full_like(array, value)
        for dtype in (torch.float32, torch.float16, torch.complex128, torch.int64, torch.bool):
            yield array.nan_to_num(0.0, 1.0, -1.0).to(dtype)
    else:
        for change in (-(2**62), -600, -1, 1, 600, 2**31, 2**62):
            yield array + change
        for value in (-(2**63), -2, -1, 0, 2**63 - 1):
            yield torch.full_like(array, value)
        for other in (torch.float64, torch.int32, torch.int8, torch.bool):
            yield array.to(other)
        for step in (-600, -300, 300, 600):
            yield array + step * torch.arange(array.numel()).reshape(array.shape)
    if array.numel():
        for place in {0, array.numel() // 2, array.numel() - 1}:
            for value in (0, 1, -1, 7) if not floating else (0.0, 1e-300, 1.0, 1e300, math.nan, -1.0):
                changed = array.clone()
                changed.view(-1)[place] = value
                yield changed
    yield array.flip(0) if array.dim() else array + 1
    yield array.reshape(-1)
    yield array[None]
    yield array[..., None]
    yield array.reshape(-1)[:0]
    yield torch.cat([array.reshape(-1), array.reshape(-1)])
    yield torch.stack([array, array], dim=-1)[..., 0]  # the same values, not contiguous
    yield None


#: What may stand in the place of any setting.
SETTINGS: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 10**400, -0.0, 5e-324, 1e-300, 1e-9, 0.5, 1e300, INF, -INF, math.nan, "", "x",
    "dense", "matrix_free", "through", [], [0.0], [1e-300], [INF], [math.nan], [True], [None], ["1"], [[0.0]],
    [0.0, 0.0], {}, {"kind": "quadratic"},
)  # fmt: skip


def with_array(witness: Witness, key: str, value: Any) -> Witness:
    """The witness with one array replaced, or taken out."""
    arrays = {k: v for k, v in witness.arrays.items() if k != key}
    return replace(witness, arrays=arrays if value is None else {**arrays, key: value})


def with_setting(witness: Witness, key: str, value: Any) -> Witness:
    """The witness with one setting replaced."""
    return replace(witness, settings={**witness.settings, key: value})
