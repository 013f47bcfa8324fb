"""Every registered pattern has a row: it matches, and its constant is the true one."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from expressions import D, bound, network_of

from lipcert.errors import NotLipschitzError
from lipcert.network.builder import NetworkBuilder
from lipcert.ops.context import Context
from lipcert.ops.recognise import registry

ROOT2 = math.sqrt(2)

#: Pattern → (function, input shape, its Lipschitz constant in l2).
ROWS = {
    "inverse square root unit": (lambda x: x * torch.rsqrt(4 * x * x + 0.25), (3,), 2.0),
    "quotient by the root of a quadratic": (lambda x: 3 * x / torch.sqrt(x * x + 0.25), (3,), 6.0),
    "product with a reciprocal root": (lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.25), (3, 4), 2.0),
    "sign times size": (lambda x: torch.sign(x) * x.abs(), (3,), 1.0),
    "swish": (lambda x: x * torch.sigmoid(1.7 * x), (3,), 1.0998393201288670),
    "gelu by erfc": (lambda x: x * torch.erfc(-x / ROOT2), (3,), 2 * 1.1289041451851549),
    "mish": (lambda x: x * torch.tanh(F.softplus(3 * x)), (3,), 1.0884981612517275),
    "product with a clamp": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, (3,), 1.5),
    "product with a shifted gate": (lambda x: x * (1 + torch.tanh(x)), (3,), 2 * 1.0998393201288670),
    "product with a mask": (lambda x: x * (x > 0), (3,), 1.0),
    "quotient by a root": (lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True) + 0.25), (3, 4), 2.0),
    "quotient by a clamped norm": (lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=0.25), (3, 4), 4.0),
    "quotient by a shifted norm": (lambda x: x / (3 * x.norm(dim=-1, keepdim=True) + 0.25), (3, 4), 4.0),
    "quotient by 1 + exp": (lambda x: 1 / (1 + torch.exp(-x)), (3,), 0.25),
    "quotient by 1 + abs": (lambda x: x / (2 + x.abs()), (3,), 0.5),
    "gaussian": (lambda x: torch.exp(-x * x), (3,), math.sqrt(2 / math.e)),
    "log of a sigmoid": (lambda x: torch.log(torch.sigmoid(x)), (3,), 1.0),
    "softplus by log": (lambda x: torch.log(1 + torch.exp(x)), (3,), 1.0),
    "softplus by log1p": (lambda x: torch.log1p(torch.exp(x)), (3,), 1.0),
    "tanhshrink": (lambda x: x - torch.tanh(x), (3,), 1.0),
    "two half lines": (lambda x: torch.where(x > 1, 3 * x - 2, x), (3,), 3.0),
    "outside a band": (lambda x: torch.where(x.abs() > 0.5, x - 0.5 * torch.sign(x), 0 * x), (3,), 1.0),
    "square inside, line outside": (lambda x: torch.where(x.abs() < 0.5, 3 * x * x, 3 * x.abs() - 0.75), (3,), 3.0),
    "number over a quadratic": (lambda x: -4 / (4 * x * x + 1), (3,), 4 * 2 * 0.649519052838329),
    "log of a quadratic": (lambda x: torch.log(x * x + 0.25), (3,), 2.0),
    "log1p of a quadratic": (lambda x: torch.log1p(4 * x * x), (3,), 2.0),
    "larger of two lines": (lambda x: torch.maximum(2 * x, x - 1), (3,), 2.0),
    "smaller of two lines": (lambda x: torch.minimum(2 * x, x - 1), (3,), 2.0),
    "root of a quadratic": (lambda x: torch.sqrt(4 * x * x + 1), (3,), 2.0),
    "root of a sum of squares": (lambda x: torch.sqrt((x * x).sum(-1) + 0.1), (3, 4), 1.0),
    "fourth root": (lambda x: ((x**4).sum(-1) + 0.1) ** 0.25, (3, 4), 1.0),
    "eighth root": (lambda x: ((x**8).sum(-1) + 0.1) ** 0.125, (3, 4), 1.0),
}


def test_every_pattern_has_a_row():
    assert {p.name for p in registry.patterns()} == set(ROWS)


@pytest.mark.few(16)
@pytest.mark.parametrize("name", ROWS)
def test_row(name, monkeypatch):
    """The pattern itself matches; its constant is the true one, never below and not above by more than 1e-9."""
    function, shape, truth = ROWS[name]
    matched = []
    own = registry._PATTERNS[name]

    def watched(ctx, *operands):
        found = own.match(ctx, *operands)
        matched.append(found is not None)
        return found

    monkeypatch.setitem(registry._PATTERNS, name, replace(own, match=watched))
    value = float(bound(function, *shape))
    assert any(matched)
    assert truth * (1 - 1e-15) <= value <= truth * (1 + 1e-9)


@pytest.mark.few(16)
@pytest.mark.parametrize("name", ROWS)
def test_row_never_below_sampled_jacobians(name):
    function, shape, _ = ROWS[name]
    value = float(bound(function, *shape))
    generator = torch.Generator().manual_seed(3)
    for scale in (1e-3, 0.1, 1.0, 5.0):
        x = scale * torch.randn(1, *shape, generator=generator, dtype=D) + 1e-9
        jacobian = torch.autograd.functional.jacobian(function, x).reshape(-1, x.numel())
        assert float(torch.linalg.matrix_norm(jacobian, 2)) <= value * (1 + 1e-12)


#: Roots of powers of several values: (function, input shape, constants in l1, l2 and l∞).
SEVERAL = {
    "modulus": (lambda x: torch.sqrt(x[..., :3] ** 2 + x[..., 3:] ** 2), (6,), (1.0, 1.0, ROOT2)),
    "interleaved": (lambda x: (x[..., ::2].square() + x[..., 1::2].square() + 0.1).sqrt(), (6,), (1.0, 1.0, ROOT2)),
    "weighted": (lambda x: torch.sqrt(4 * x[..., 0] ** 2 + 1 + x[..., 1] ** 2 + 2), (3, 2), (2.0, 2.0, 5**0.5)),
    "of another shape": (lambda x: torch.sqrt(x[..., 1:] ** 2 + x[..., :1] ** 2), (3, 5), (4.0, 2.0, ROOT2)),
    "itself and its mean": (lambda x: torch.sqrt(x * x + (x * x).mean(-1, keepdim=True)), (4,), (None, ROOT2, ROOT2)),
    "three fourth powers": (lambda x: sum(x[..., i] ** 4 for i in range(3)) ** 0.25, (2, 3), (1.0, 1.0, 3**0.25)),
    "of one slice": (lambda x: torch.sqrt((2 * x[..., :2]) ** 2 + (x[..., :2] - 1) ** 2 + x[..., 2:] ** 2), (4,), None),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", SEVERAL)
def test_powers_of_several_values_under_one_root(name):
    function, shape, truth = SEVERAL[name]
    generator = torch.Generator().manual_seed(3)
    for place, p in enumerate((1, 2, math.inf)):
        value = float(bound(function, *shape, norm=(p, p)))
        if truth is not None and truth[place] is not None:
            assert truth[place] * (1 - 1e-15) <= value <= truth[place] * (1 + 1e-9)
        for _ in range(20):
            x = torch.randn(1, *shape, generator=generator, dtype=D) * torch.randint(0, 2, shape, generator=generator)
            jacobian = torch.autograd.functional.jacobian(function, x + 1e-9).reshape(-1, x.numel())
            assert float(torch.linalg.matrix_norm(jacobian, p)) <= value * (1 + 1e-9)


def test_sums_of_products_are_no_squares():
    for function in (
        lambda x: torch.sqrt(x[..., :2] ** 2 + x[..., 2:]),
        lambda x: torch.sqrt(x[..., :2] ** 2 - x[..., 2:] ** 2),
        lambda x: torch.sqrt(x[..., :2] ** 2 + x[..., 2:] ** 4),
        lambda x: torch.sqrt(x[..., :2] ** 2 + x[..., :2] * x[..., 2:]),
        lambda x: torch.sqrt(x[..., :2] ** 2 + x[..., 2:] ** 2 - 0.1),
    ):
        with pytest.raises(NotLipschitzError):
            bound(function, 4)


@pytest.mark.parametrize("place", [("swish", "mul", 999), ("a new name", "mul", 30)])
def test_a_second_pattern_of_a_name_or_place_raises(place):
    with pytest.raises(ValueError, match="clashes"):
        registry.pattern(*place)(lambda ctx: None)


def test_patterns_are_tried_in_order(monkeypatch):
    monkeypatch.setattr(registry, "_PATTERNS", {})
    tried = []
    for order in (7, 3, 5):
        registry.pattern(f"test {order}", "an op", order)(lambda ctx, order=order: tried.append(order))
    assert registry.recognise(Context(NetworkBuilder()), "an op") is None
    assert tried == [3, 5, 7]


def test_errors_name_the_forms():
    for pattern in registry.patterns():
        assert pattern.forms
        assert pattern.match.__doc__
    with pytest.raises(NotLipschitzError, match=r"x·sigmoid\(βx\).*x·tanh\(softplus\(kx\)\)"):
        network_of(lambda x: x * torch.sin(x), 3)
