"""Networks without a constant on the whole space: captured as they are, refused where a constant is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, NotLipschitzError, UnsupportedOpError
from lipcert.increments import Increments
from lipcert.network.graph import ActivationNode, Network, OpenNode
from lipcert.network.transform import fuse
from lipcert.problem import Problem
from tests.zoo import Apply

D = torch.float64
W = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=D)


def tokens(x):
    return x.reshape(-1, 3, 2)


#: x of shape (B, 6) ↦ a value that has no constant on the whole space.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "x times its sum": lambda x: x * x.sum(1, keepdim=True),
    "square": lambda x: (x @ W) ** 2,
    "power of a variable": lambda x: (1 + x.abs()) ** torch.tanh(x),
    "exp": torch.exp,
    "exp of a clamp": lambda x: torch.exp(torch.clamp(x, -3, 2)),
    "log": lambda x: torch.log(1.5 + torch.tanh(x)),
    "quotient": lambda x: x / (1 + (x * x).sum(1, keepdim=True)),
    "number over a variable": lambda x: 3.0 / (1 + x**4),
    "attention": lambda x: torch.softmax(tokens(x) @ tokens(x @ W).transpose(1, 2), -1) @ tokens(x),
    "fused attention": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x @ W), tokens(x)),
    "contraction": lambda x: torch.einsum("bi,bj->bij", x, x @ W),
    "contraction, operands swapped": lambda x: torch.einsum("bij,bj->bi", tokens(x), x[:, :2]),
    "bilinear": lambda x: F.bilinear(x, x @ W, torch.ones(2, 6, 6, dtype=x.dtype)),
    "glu": F.glu,
    "gates": lambda x: torch.sigmoid(x @ W) * torch.tanh(x) + (1 - torch.sigmoid(x @ W)) * x,
    "added product": lambda x: torch.addcmul(x, x @ W, x, value=0.5),
    "batched sum of products": lambda x: torch.baddbmm(tokens(x), tokens(x), tokens(x)[:, :2], beta=0.5, alpha=2.0),
    "layer norm without eps": lambda x: F.layer_norm(x, [6], eps=0.0),
    "variance": lambda x: x.var(1, keepdim=True),
    "sign": torch.sign,
    "floor": lambda x: torch.floor(3 * x),
    "comparison": lambda x: (x > 0.3).to(x.dtype),
    "comparison under linear maps": lambda x: 2 * (x > x.flip(1)).to(x.dtype) @ W.to(x.dtype) - x,
    "mask of a constant kind": lambda x: x.masked_fill(x > 0.5, 3.0),
    "choice with a gap": lambda x: torch.where(x > 0, x + 1, x),
    "cast to whole numbers": lambda x: (5 * x).to(torch.int32).to(x.dtype) + x,
    "positions of a maximum": lambda x: x.max(1, keepdim=True)[1].to(x.dtype) + x,
    "positions of a sort": lambda x: x.sort(1)[1].to(x.dtype),
    "positions in a pool": lambda x: F.max_pool1d(x[:, None], 2, return_indices=True)[1].flatten(1).to(x.dtype),
    "op without a rule": lambda x: torch.special.i0e(x @ W),
}


def model_of(name: str) -> nn.Module:
    return Apply(lambda _, x: FORMS[name](x)).eval()


@pytest.mark.few(10)
@pytest.mark.parametrize("name", FORMS)
def test_the_network_is_the_model(name: str) -> None:
    model, generator = model_of(name), torch.Generator().manual_seed(1)
    network = capture(model, torch.randn(2, 6, generator=generator, dtype=D))
    assert any(isinstance(node, OpenNode) for node in network.nodes)
    for scale in (0.1, 1.0, 4.0):
        x = scale * torch.randn(5, 6, generator=generator, dtype=D)
        expected = model(x)
        assert torch.allclose(network.forward(x[:, None])[:, 0], expected, rtol=1e-12, atol=1e-12)
        low = network.to(torch.float32, "cpu").forward(x[:, None].float())
        assert low.dtype == torch.float32
        assert low.shape == (5, 1, *expected.shape[1:])
    assert name != "exp" or network.forward(torch.zeros(0, 1, 6, dtype=D)).shape == (0, 1, 6)


@pytest.mark.parametrize("name", ["x times its sum", "attention", "exp", "op without a rule"])
def test_one_error_wherever_a_constant_is_asked_for(name: str) -> None:
    model, x = model_of(name), torch.zeros(1, 6, dtype=D)
    network = capture(model, x)
    refusal = network.refusal
    assert type(refusal) is (UnsupportedOpError if name == "op without a rule" else NotLipschitzError)
    on_ball = lambda: lipcert.bound(model, x, domain=lipcert.Ball(torch.zeros(6), 1.0))  # noqa: E731
    for call in (
        lambda: Problem(network),
        lambda: Increments.of(network),
        lambda: lipcert.bound(model, x),
        *((on_ball,) if name == "op without a rule" else ()),
        lambda: lipcert.compare(model, x),
        lambda: lipcert.lower_bound(model, x),
        lambda: lipcert.estimate(model, x),
    ):
        with pytest.raises(type(refusal)) as caught:
            call()
        assert str(caught.value) == str(refusal)
    assert "in forward" in str(refusal)  # the user's line


def test_the_first_of_several_is_named() -> None:
    model = Apply(lambda _, x: torch.exp(x) * x.flip(1)).eval()
    with pytest.raises(NotLipschitzError, match=r"aten\.exp"):
        lipcert.bound(model, torch.zeros(1, 6))


def test_what_the_output_does_not_need_is_not_refused() -> None:
    def forward(_, x):
        attention = tokens(x) @ tokens(x).transpose(1, 2)
        return torch.relu(x) if attention.shape[-1] == 3 else attention

    assert lipcert.bound(Apply(forward).eval(), torch.zeros(1, 6), method="autolip").value == 1.0


def test_patterns_absorb_open_nodes() -> None:
    network = capture(Apply(lambda _, x: x * (1 / (1 + torch.exp(-x)))).eval(), torch.zeros(1, 6))
    assert [type(node) for node in network.nodes[1:]] == [ActivationNode]


def test_no_pattern_absorbs_what_a_rule_refused() -> None:
    """A softplus that jumps keeps its value and has no name by which x·tanh(softplus(x)) would take it for Mish."""
    model = nn.Sequential(nn.Softplus(threshold=2)).double()
    jumping = Apply(lambda s, x: x * torch.tanh(s.inner(x)), inner=model).eval()
    x = torch.linspace(-4, 4, 12, dtype=D).reshape(2, 6)
    network = capture(jumping, x)
    assert_close(network.forward(x[:, None])[:, 0], jumping(x), rtol=1e-14, atol=0.0)  # shapes differ in SIMD lanes
    with pytest.raises(NotLipschitzError, match="jumps by"):
        Problem(network)


@pytest.mark.parametrize(
    "forward",
    [
        lambda _, x: x / torch.zeros(6),  # NaN or infinity everywhere
        lambda _, x: x @ x.T,  # couples the examples of a batch
        lambda _, x: (x * x).sum(),  # has no batch dimension
        lambda _, x: x.topk(2, 1, sorted=False)[0],  # is not one function
    ],
)
def test_what_the_network_does_not_reproduce_is_refused_at_capture(forward) -> None:
    with pytest.raises(CaptureError, match=r"aten\.(div|topk)|couples its batch|no leading batch dimension"):
        capture(Apply(forward).eval(), torch.ones(1, 6))


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_products_whose_values_cancel_are_not_refused_for_their_rounding(dtype) -> None:
    """(x + c)(y + c) − cx − cy − c² is xy: in floats all but its rounding is gone."""
    c = 1e8 if dtype == D else 2e3
    model = Apply(lambda _, x: (x + c) * (x.flip(1) + c) - c * x - c * x.flip(1) - c**2).eval()
    ball = lipcert.Ball(torch.ones(1, 6), 1.0)
    assert 3.0 <= lipcert.bound(model, torch.ones(2, 6, dtype=dtype), domain=ball, method="liplt").value <= 4.1


def test_what_the_check_finds_is_said_where_products_have_nothing_to_do_with_it() -> None:
    with pytest.raises(CaptureError, match="no leading batch dimension") as caught:
        capture(Apply(lambda _, x: (x * x.flip(1)).sum()).eval(), torch.ones(1, 6))
    assert not isinstance(caught.value, NotLipschitzError)


def test_the_hash_is_over_op_arguments_and_constants() -> None:
    def network(function) -> Network:
        return capture(Apply(lambda _, x: function(x)).eval(), torch.ones(1, 6, dtype=D))

    same = [network(lambda x: torch.clamp(x, -1, 1) ** 3).fingerprint for _ in range(2)]
    others = [
        network(function).fingerprint
        for function in (
            lambda x: torch.clamp(x, -1, 1) ** 2,
            lambda x: torch.clamp(x, -1, 2) ** 3,
            lambda x: x**3,
            lambda x: x * x,
            lambda x: x * x.flip(1),
            lambda x: torch.exp(x),
            lambda x: x ** torch.arange(2.0, 8.0, dtype=D),
            lambda x: x ** torch.arange(3.0, 9.0, dtype=D),
        )
    ]
    assert same[0] == same[1]
    assert len({*same, *others}) == 1 + len(others)


#: x ↦ one function of each entry, and what it is; then values that are none.
STEEP: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "exp": (torch.exp, "Exp()"),
    "expm1": (torch.expm1, "Expm1()"),
    "exp2": (torch.exp2, "Exp2()"),
    "sinh": (torch.sinh, "Sinh()"),
    "cosh": (torch.cosh, "Cosh()"),
    "log": (torch.log, "Log()"),
    "log1p": (torch.log1p, "Log1p()"),
    "log2": (torch.log2, "Log2()"),
    "log10": (torch.log10, "Log10()"),
    "asin": (lambda x: torch.asin(x / 9), "Asin()"),
    "acos": (lambda x: torch.arccos(x / 9), "Acos()"),
    "acosh": (lambda x: torch.acosh(x + 2), "Acosh()"),
    "atanh": (lambda x: torch.arctanh(x / 9), "Atanh()"),
    "logit": (lambda x: torch.logit(x / 9), "Logit()"),
    "special logit": (lambda x: torch.special.logit(x / 9), "Logit()"),
    "square": (torch.square, "Power(exponent=2.0, factor=1.0)"),
    "product with itself": (lambda x: x * x, "Power(exponent=2.0, factor=1.0)"),
    "second power": (lambda x: x**2, "Power(exponent=2.0, factor=1.0)"),
    "cube": (lambda x: x**3, "Power(exponent=3.0, factor=1.0)"),
    "power by a tensor": (lambda x: x ** torch.full((6,), 5.0, dtype=x.dtype), "Power(exponent=5.0, factor=1.0)"),
    "power −2": (lambda x: x**-2, "Power(exponent=-2.0, factor=1.0)"),
    "power 1.5": (lambda x: x**1.5, "Power(exponent=1.5, factor=1.0)"),
    "power 0.3": (lambda x: x**0.3, "Power(exponent=0.3, factor=1.0)"),
    "sqrt": (torch.sqrt, "Power(exponent=0.5, factor=1.0)"),
    "power ½": (lambda x: x**0.5, "Power(exponent=0.5, factor=1.0)"),
    "rsqrt": (torch.rsqrt, "Power(exponent=-0.5, factor=1.0)"),
    "reciprocal": (torch.reciprocal, "Power(exponent=-1.0, factor=1.0)"),
    "power −1": (lambda x: x**-1, "Power(exponent=-1.0, factor=1.0)"),
    "over": (lambda x: 3.0 / x, "Power(exponent=-1.0, factor=1.0)"),  # torch's own 3·(1/x)
    "tensor over": (lambda x: torch.full((6,), -0.5, dtype=x.dtype) / x, "Power(exponent=-1.0, factor=-0.5)"),
    "another factor": (lambda x: x * x.flip(1), ""),
    "broadcast factor": (lambda x: x * x.sum(1, keepdim=True), ""),
    "power per entry": (lambda x: x ** torch.arange(2.0, 8.0, dtype=x.dtype), ""),
    "power 0": (lambda x: x**0, ""),
    "computed power": (lambda x: x ** (torch.ones(6, dtype=x.dtype) / 3), ""),
    "computed numerator": (lambda x: (torch.ones(6, dtype=x.dtype) / 3) / x, "Power(exponent=-1.0, factor=1.0)"),
    "numerator per entry": (lambda x: torch.arange(2.0, 8.0, dtype=x.dtype) / x, "Power(exponent=-1.0, factor=1.0)"),
    "zero over": (lambda x: torch.zeros(6, dtype=x.dtype) / x, "Power(exponent=-1.0, factor=1.0)"),
    "broadcast divisor": (lambda x: torch.ones(6, dtype=x.dtype) / x.sum(1, keepdim=True), ""),
    "tan": (torch.tan, ""),
    "whole numbers": (lambda x: torch.exp((x > 0.3).to(torch.int64)).to(x.dtype), ""),
    "square of whole numbers": (lambda x: ((3 * x).to(torch.int8) ** 2).to(x.dtype), ""),
}


@pytest.mark.parametrize("name", STEEP)
def test_what_one_function_of_each_entry_is_says_so(name: str) -> None:
    function, expected = STEEP[name]
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 4 * torch.rand(5, 6, generator=generator, dtype=D)
    network = capture(Apply(lambda _, x: function(x)).eval(), x)
    nodes = [node for node in network.nodes if isinstance(node, OpenNode)]
    assert [repr(n.steep) for n in nodes if n.steep is not None] == ([expected] if expected else [])
    values = {k: value.clone() for k, value in network.values(x[:, None])}
    for k, node in enumerate(network.nodes):
        if isinstance(node, OpenNode) and node.steep is not None:
            assert len(set(node.parents)) == 1
            own = node.steep(values[node.parents[0]])
            assert torch.allclose(own, values[k], rtol=1e-15, atol=0.0)
            plain = Network(tuple(replace(n, steep=None) if n is node else n for n in network.nodes))
            assert plain.fingerprint == network.fingerprint
            assert type(network.refusal) is NotLipschitzError


def test_steep_functions_survive_fusing_and_moving() -> None:
    model = Apply(lambda _, x: 2 * torch.exp(x @ W.to(x.dtype) + 1) @ W.to(x.dtype)).eval()
    network = capture(model, torch.zeros(1, 6, dtype=D))
    for changed in (fuse(network), network.to(torch.float32, "cpu")):
        assert [repr(n.steep) for n in changed.nodes if isinstance(n, OpenNode)] == ["Exp()"]


#: x ↦ a function of each entry on [−1, 1], and its greatest |slope| there.
ON_A_BOX: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "exp": (torch.exp, math.e),
    "sinh": (torch.sinh, math.cosh(1)),
    "product with itself": (lambda x: x * x, 2.0),
    "square and the value itself": (lambda x: x**2 + x, 3.0),
    "cube": (lambda x: x**3, 3.0),
    "reciprocal": (lambda x: 1 / (3 + x), 0.25),
    "sqrt": (lambda x: torch.sqrt(2 + x), 0.5),
    "rsqrt": (lambda x: torch.rsqrt(2 + x), 0.5),
    "log": (lambda x: torch.log(2 + x), 1.0),
    "asin": (lambda x: torch.asin(x / 2), 1 / math.sqrt(3)),
    "power 1.5": (lambda x: (x + 2) ** 1.5, 1.5 * math.sqrt(3)),
}


@pytest.mark.parametrize("name", ON_A_BOX)
def test_steep_functions_have_a_constant_on_a_domain(name: str) -> None:
    function, expected = ON_A_BOX[name]
    model, ones = Apply(lambda _, x: function(x)).eval(), torch.ones(4, dtype=D)
    bound = lipcert.bound(model, torch.zeros(1, 4, dtype=D), domain=lipcert.Box(-ones, ones), method="autolip")
    assert expected * (1 - 1e-14) <= bound.value <= expected * (1 + 1e-11)


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.reciprocal, lambda x: torch.asin(1.5 * x)])
def test_a_domain_that_meets_a_pole_gives_none(function) -> None:
    model, ones = Apply(lambda _, x: function(x)).eval(), torch.ones(4, dtype=D)
    network = capture(model, 0.5 * ones[None])
    for low in (-ones, 0 * ones):
        with pytest.raises(NotLipschitzError):
            Problem(network, domain=lipcert.Box(low, ones))


def test_linear_bounds_go_through_a_product_with_itself() -> None:
    model, ones = Apply(lambda _, x: x * x + x).eval(), torch.ones(4, dtype=D)
    bound = lipcert.bound(model, torch.zeros(1, 4, dtype=D), domain=lipcert.Box(-ones, ones), method="autolip")
    assert 3.0 <= bound.value <= 3.0 * (1 + 1e-11)


@pytest.mark.few(2)
@pytest.mark.parametrize("between", [lambda x: x, lambda x: torch.relu(x + 9) - 9, lambda x: x.amax(1, keepdim=True)])
def test_a_pole_that_intervals_reach_and_linear_bounds_do_not(between) -> None:
    """1.5 + x ≥ ½ on the ball, so its logarithm has slopes up to 2; op by op, intervals of xWW⁻¹ reach far below."""
    inverse = torch.linalg.inv(W)
    model = Apply(lambda _, x: torch.log(1.5 + between(x @ W @ inverse))).eval()
    ball = lipcert.Ball(torch.zeros(6, dtype=D), 1.0)
    bound = lipcert.bound(model, torch.zeros(1, 6, dtype=D), domain=ball, budget=1)
    assert 2.0 * (1 - 1e-9) <= bound.value <= 2.0 * math.sqrt(6)
    by_op = lipcert.bound(model, torch.zeros(1, 6, dtype=D), method=lipcert.AutoLip(fuse=False), domain=ball)
    assert by_op.value >= bound.value * (1 - 1e-9)
