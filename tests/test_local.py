"""Bounds on a domain: every method on every network of the zoo, above what points of the domain show."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.verify import verify
from lipcert.domain import Ball, Box, Domain
from lipcert.errors import MethodError
from lipcert.methods.base import Run, registered
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound
from tests.zoo import ZOO, Double, mlp, random_network, zoo_case

NAMES = [name for name, _, _ in ZOO]
RADII = (1e-3, 0.3, 3.0)


@functools.cache
def network(name: str) -> Network:
    case = zoo_case(name)
    return capture(case.model, case.example)


def center(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def bounded(method: str, problem: Problem, budget: float = 1.0) -> Bound:
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=budget)
    return registered()[method]().bound(problem, run, Chance())


def jacobians(model: nn.Module, domain: Ball, count: int = 40) -> Tensor:
    """Dense Jacobians (count, m, n) at points of a ball, its centre first."""
    double = Double(model)
    generator = torch.Generator().manual_seed(3)
    shape = domain.center.shape
    offsets = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    sizes = offsets.reshape(count, -1).norm(p=domain.p, dim=1).reshape(-1, *([1] * len(shape)))
    offsets = offsets / sizes * domain.radius * (1 - 1e-9)
    offsets[0] = 0.0
    rows = []
    for x in domain.center + offsets:
        j = torch.autograd.functional.jacobian(lambda z: double(z[None]).reshape(-1), x)
        rows.append(j.reshape(j.shape[0], -1))
    return torch.stack(rows)


def operator_norms(matrices: Tensor, norm: Norm) -> Tensor:
    """‖J‖_{p→q} for the pairs that have a formula; else a lower bound by the pair's unit vectors."""
    p, q = norm
    if p == q == 2:
        return torch.linalg.matrix_norm(matrices, 2)
    if p == 1:
        return matrices.norm(p=q, dim=1).amax(1)
    if q == math.inf:
        return matrices.norm(p={2.0: 2, math.inf: 1}[p], dim=2).amax(1)
    vectors = torch.randn(50, matrices.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    images = torch.einsum("kmn,bn->kbm", matrices, vectors)
    return (images.norm(p=q, dim=2) / vectors.norm(p=p, dim=1)).amax(1)


@pytest.mark.few(16)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", sorted(registered()))
def test_each_method_on_each_network_on_a_ball(method: str, name: str, tmp_path: Path) -> None:
    kind, place = registered()[method], NAMES.index(name)
    norm = kind.norms[place % len(kind.norms)]
    ball = Ball(center(network(name).in_shape[1:]), RADII[place % 3], norm[0])
    problem = Problem(network(name), norm, ball)
    try:
        bound = bounded(method, problem)
    except MethodError:
        assert method in ("eclipse_fast", "hull")
        return
    seen = operator_norms(jacobians(zoo_case(name).model, ball), norm)
    assert bound.value >= float(seen.max()) * (1 - 1e-9)
    assert bound.domain is problem.domain
    bound.save(tmp_path / "c.lipcert")
    again = verify(tmp_path / "c.lipcert", network(name))
    assert (again.value, again.guarantee) == (bound.value, bound.guarantee)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_domain_never_has_a_larger_bound(name: str) -> None:
    values = []
    for domain in [*(Ball(center(network(name).in_shape[1:]), r, 2) for r in (1e-3, 0.1, 1.0, 1e3)), None]:
        values.append(bounded("autolip", Problem(network(name), (2.0, 2.0), domain), 600.0).value)
    # A value that the check computed has room for what other machines compute.
    assert all(small <= large * (1.0 + 2.0**-39) for small, large in itertools.pairwise(values))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_bound_tends_to_the_jacobian(name: str) -> None:
    ball = Ball(center(network(name).in_shape[1:]), 1e-7, 2)
    increments = Problem(network(name), (2.0, 2.0), ball).expanded_increments
    if any(cell.block for cell in increments.cells) or name == "max-min 4-6-6-3":
        pytest.skip("of blocks only gains are known, no derivative")
    value = bounded("auto", Problem(network(name), (2.0, 2.0), ball), 3.0).value
    exact = float(operator_norms(jacobians(zoo_case(name).model, ball, 1), (2.0, 2.0))[0])
    assert exact * (1 - 1e-9) <= value <= exact * (1 + 1e-3)


@pytest.mark.few(10)
@pytest.mark.parametrize("norm", [(2.0, 2.0), (2.0, math.inf), (math.inf, math.inf), (1.0, 1.0), (math.inf, 1.0)])
@pytest.mark.parametrize("method", ["auto", "lipsdp", "liplt", "autolip"])
def test_where_no_slope_is_open_the_bound_is_the_norm_of_the_jacobian(method: str, norm: Norm) -> None:
    if norm not in registered()[method].norms:
        pytest.skip("not its norms")
    model = mlp((6, 9, 9, 4), 3)
    ball = Ball(center((6,)), 1e-9, 2)
    captured = capture(model, torch.zeros(1, 6))
    problem = Problem(captured, norm, ball)
    assert not problem.expanded_increments.cells
    value = bounded(method, problem).value
    j = jacobians(model, ball, 1)[0]
    if norm == (math.inf, 1.0):
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
        exact = float((signs @ j.T).abs().sum(1).max())
        assert exact * (1 - 1e-9) <= value
        return
    exact = float(operator_norms(j[None], norm)[0])
    assert exact * (1 - 1e-9) <= value <= exact * (1 + 1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_on_random_balls(seed: int) -> None:
    case = random_network(seed)
    captured = capture(case.model, case.example)
    ball = Ball(center(captured.in_shape[1:]), 10.0 ** (seed % 4 - 2), (2, math.inf, 1)[seed % 3])
    for norm in ((2.0, 2.0), (math.inf, math.inf)):
        value = bounded("auto", Problem(captured, norm, ball), 1.0).value
        assert value >= float(operator_norms(jacobians(case.model, ball), norm).max()) * (1 - 1e-9)


def test_a_steep_function_has_a_constant_where_its_argument_is_bounded() -> None:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)

    domain: Domain = Box(torch.full((3,), -1.0), torch.full((3,), 2.0))
    bound = lipcert.bound(Exponential(), torch.zeros(1, 3), domain=domain)
    assert math.exp(2.0) <= bound.value <= math.exp(2.0) * (1 + 1e-9)
    with pytest.raises(lipcert.NotLipschitzError):
        lipcert.bound(Exponential(), torch.zeros(1, 3))
    with pytest.raises(lipcert.NotLipschitzError):
        lipcert.bound(Exponential(), torch.zeros(1, 3), domain=Box(torch.zeros(3), torch.full((3,), math.inf)))
