"""Pattern rules are proofs: near misses are refused, random expressions never get too small a range."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, LipcertError, NotLipschitzError
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, InputNode, OpenNode
from lipcert.ops.context import Constant, Context
from lipcert.ops.recognise.scalings import scalar_of
from lipcert.ops.registry import find_rule
from lipcert.problem import Problem
from lipcert.ranges import Ranges

# -- near misses ------------------------------------------------------------------------------------------

NEAR_MISSES = {
    "shifted swish": lambda x: (x + 1) * torch.sigmoid(x),
    "gate of a square": lambda x: x * torch.sigmoid(x * x),
    "gate of another entry": lambda x: x * torch.sigmoid(x.flip(-1)),
    "gate of a mean": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "gate of a linear map": lambda x: x * torch.sigmoid(x @ torch.ones(4, 4, dtype=x.dtype)),
    "gated halves": lambda x: x[:, :2] * torch.sigmoid(x[:, 2:]),
    "relu times x": lambda x: x * F.relu(x),
    "half-open clamp": lambda x: x * x.clamp(max=1.0),
    "2 + erf": lambda x: x * (2 + torch.erf(x)),
    "erf of a shift": lambda x: x * (1 + torch.erf(x + 1)),
    "tanh of a cube": lambda x: x * (1 + torch.tanh(x**3)),
    "tanh gelu, wrong cubic": lambda x: x * (1 + torch.tanh(0.8 * (x + 0.1 * x**3))),
    "tanh gelu, wrong sign": lambda x: x * (1 + torch.tanh(0.8 * (x - 0.044715 * x**3))),
    "mish with beta": lambda x: x * torch.tanh(F.softplus(x, beta=2.0)),
    "mask elsewhere": lambda x: x * (x > 1),
    "mask of another entry": lambda x: x * (x.flip(-1) > 0),
    "jump": lambda x: torch.where(x > 0, x + 1, x),
    "jump beside 1": lambda x: torch.where(x > 1, 2 * x - 0.999, x),
    "where of another entry": lambda x: torch.where(x.flip(-1) > 0, x, 0.1 * x),
    "exponential right of 0": lambda x: torch.where(x < 0, x, torch.exp(x) - 1),
    "falling exponential": lambda x: torch.where(x > 0, x, torch.exp(-x) - 1),
    "elu with a gap": lambda x: torch.where(x > 0, x, torch.exp(x) - 0.9),
    "elu beside 0": lambda x: torch.where(x > 1, x, torch.exp(x) - 1),
    "softshrink with a gap": lambda x: torch.where(x.abs() > 0.5, x - 0.4 * torch.sign(x), 0 * x),
    "difference of sides": lambda x: torch.where(x.abs() > 0.5, x - 0.5, 0 * x),
    "x/(1 - |x|)": lambda x: x / (1 - x.abs()),
    "x/(|x|)": lambda x: x / x.abs(),
    "x/(exp(x) - 1)": lambda x: x / (torch.exp(x) - 1),
    "x/(2 + exp(x))": lambda x: (x + 1) / (1 + torch.exp(-x)),
    "log(exp(x) - 1)": lambda x: torch.log(torch.exp(x.abs() + 1) - 1),
    "log of exp of square": lambda x: torch.log(1 + torch.exp(x * x)) * x,
    "sqrt(x² + x)": lambda x: torch.sqrt(x * x + x + 0.25),
    "exp(x²)": lambda x: torch.exp(x * x),
    "exp(x - x³)": lambda x: torch.exp(x - x**3),
    "relu²": lambda x: F.relu(x) ** 2,
}


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.few(12)
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_is_refused(name):
    with pytest.raises(NotLipschitzError):
        Problem(capture(Call(NEAR_MISSES[name]), torch.rand(2, 4, dtype=torch.float64)))


#: Recognised by no pattern, yet the argument of the steep function is bounded on the whole space: greatest |slope|.
BOUNDED_ARGUMENTS = {
    "snake": (lambda x: x + torch.sin(x) ** 2, 2.0, 3.0),
    "exp of tanh": (lambda x: torch.exp(torch.tanh(x)), 1.15, math.e),
    "log of 1 and the size": (lambda x: torch.log1p(x.abs()), 1.0, 1.0),
    "reciprocal of a shifted sine": (lambda x: 1 / (2 + torch.sin(x)), 0.42, 1.0),
    "square of a sigmoid": (lambda x: torch.sigmoid(x) * torch.sigmoid(x), 0.29, 0.5),
}


@pytest.mark.parametrize("name", BOUNDED_ARGUMENTS)
def test_a_steep_function_of_a_bounded_value_has_a_constant(name):
    function, least, greatest = BOUNDED_ARGUMENTS[name]
    bound = lipcert.bound(Call(function), torch.rand(2, 4, dtype=torch.float64), method="autolip")
    assert least <= bound.value <= greatest * (1 + 1e-11)


def test_unneeded_open_question_is_no_error():
    def function(x):
        unused = torch.exp(x)
        return torch.relu(x) + 0 * unused.detach().new_zeros(1)

    assert capture(Call(function), torch.randn(2, 4)).out_shape == (1, 4)


def test_constant_mask_is_linear():
    mask = torch.tensor([True, False, True, False])
    network = capture(Call(lambda x: torch.where(mask, 2 * x, -3.0)), torch.randn(2, 4))
    assert all(isinstance(n, AffineNode) for n in network.nodes[1:])
    filled = capture(Call(lambda x: x.masked_fill(mask, 0.5)), torch.randn(2, 4))
    x = torch.randn(5, 1, 4, dtype=torch.float64)
    assert torch.equal(filled.forward(x), x.masked_fill(mask, 0.5))


def test_infinite_fill_is_refused():
    mask = torch.tensor([True, False, True, False])
    with pytest.raises(CaptureError, match="−∞"):
        Problem(capture(Call(lambda x: torch.relu(x.masked_fill(mask, -math.inf))), torch.randn(2, 4)))


def test_patterns_behind_layers_and_in_half_precision():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3 * 16, 2)
            self.beta = nn.Parameter(torch.rand(3, 1, 1) + 0.5)

        def forward(self, x):
            h = self.first(x)
            h = h * torch.sigmoid(self.beta * h)
            h = h.flatten(1)
            return self.last(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))

    for dtype in (torch.float32, torch.bfloat16):
        network = capture(Model().eval().to(dtype), torch.randn(2, 1, 6, 6, dtype=dtype))
        names = [n.name for n in network.nodes if isinstance(n, ActivationNode)]
        assert names == ["swish", "gelu"]


# -- random expressions -----------------------------------------------------------------------------------

FACTORS = [1.0, -1.0, 2.0, 0.5, 3.0, -0.5, 1 / 3, 0.7978845608028654, 1.702]
SHIFTS = [0.0, 0.0, 1.0, -1.0, 3.0, 0.5, 1e-9]
UNARY = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "erf": torch.erf, "erfc": torch.erfc, "relu": torch.relu,
    "abs": torch.abs, "exp": torch.exp, "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p,
    "sqrt": torch.sqrt, "reciprocal": torch.reciprocal, "square": torch.square, "hardsigmoid": F.hardsigmoid,
    "silu": F.silu, "sign": torch.sign, "relu6": F.relu6,
}  # fmt: skip
COMPARE = {"gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le}


class Expression:
    """Builds one random expression twice: as nodes through the rules, and as a function on tensors."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.builder = NetworkBuilder()
        self.ctx = Context(self.builder)
        self.x = self.builder.input((1, 1))
        self.made = [(self.x, lambda t: t)]

    def rule(self, op, overload, *args):
        self.ctx.op = self.ctx.signature = op
        return find_rule(op, overload)(self.ctx, *args)

    def line(self, term):
        var, f = term
        pick = self.random.random()
        c = self.random.choice(FACTORS)
        if pick < 0.4:
            return self.rule("mul", "Tensor", var, c), lambda t: f(t) * c
        if pick < 0.6:
            d = self.random.choice([2.0, 3.0, 6.0, math.sqrt(2), -1.0])
            return self.rule("div", "Tensor", var, d), lambda t: f(t) / d
        b = self.random.choice(SHIFTS)
        if pick < 0.9:
            return self.rule("add", "Tensor", var, b), lambda t: f(t) + b
        return self.rule("rsub", "Scalar", var, b), lambda t: b - f(t)

    def unary(self, term):
        var, f = term
        op = self.random.choice([*UNARY, "softplus", "clamp", "cube"])
        if op == "softplus":
            return self.rule("softplus", "", var, 1.0, 20.0), lambda t: F.softplus(f(t))
        if op == "clamp":
            low, high = self.random.choice([(0.0, 1.0), (0.0, 6.0), (-1.0, 1.0), (None, 0.0), (0.0, None)])
            return self.rule("clamp", "", var, low, high), lambda t: torch.clamp(f(t), low, high)
        if op == "cube":
            return self.rule("pow", "Tensor_Scalar", var, 3), lambda t: f(t) ** 3
        g = UNARY[op]
        return self.rule(op, "", var), lambda t: g(f(t))

    def binary(self, a, b):
        (u, f), (v, g) = a, b
        op = self.random.choice(["mul", "mul", "mul", "div", "sub", "add", "where", "mask"])
        if op == "mul":
            return self.rule("mul", "Tensor", u, v), lambda t: f(t) * g(t)
        if op == "div":
            return self.rule("div", "Tensor", u, v), lambda t: f(t) / g(t)
        if op in ("sub", "add"):
            sign = 1 if op == "add" else -1
            return self.rule(op, "Tensor", u, v), lambda t: f(t) + sign * g(t)
        w, h = self.random.choice(self.made)
        name, test = self.random.choice(list(COMPARE.items()))
        limit = self.random.choice([0, 0, 0, 0.5, 1])
        condition = self.rule(name, "Scalar", w, limit)
        if op == "mask":
            return self.rule("mul", "Tensor", u, condition), lambda t: f(t) * test(h(t), limit)
        if self.random.random() < 0.2:
            v, g = Constant.exactly(torch.zeros((), dtype=torch.float64)), torch.zeros_like
        return self.rule("where", "self", condition, u, v), lambda t: torch.where(test(h(t), limit), f(t), g(t))

    def grow(self, steps):
        for _ in range(steps):
            recent = self.made[-3:] if self.random.random() < 0.7 else self.made
            pick = self.random.random()
            term = self.random.choice(recent)
            if pick < 0.35:
                new = self.line(term)
            elif pick < 0.65:
                new = self.unary(term)
            else:
                new = self.binary(term, self.random.choice(self.made))
            self.made.append(new)
        return self.made[-1]

    def affine(self, term, scale, shift):
        var, f = term
        moved = self.rule("add", "Tensor", self.rule("mul", "Tensor", var, scale), shift)
        return moved, lambda t: f(t) * scale + shift

    def apply(self, name, term):
        var, f = term
        g = UNARY[name]
        return self.rule(name, "", var), lambda t: g(f(t))

    def product(self, a, b):
        (u, f), (v, g) = a, b
        return self.rule("mul", "Tensor", u, v), lambda t: f(t) * g(t)

    def sum(self, a, b):
        (u, f), (v, g) = a, b
        return self.rule("add", "Tensor", u, v), lambda t: f(t) + g(t)

    def template(self):
        """A known pattern with random coefficients, right or not."""
        pick = self.random.choice
        shifts, factors = [0, 0, 0, 1, -1, 3, 0.5], [1, 1, 1, -1, 2, 0.5, 0.3, 1.702, -2]
        x = self.affine(self.made[0], pick(factors), pick(shifts))
        inner = self.affine(pick([x, x, self.made[0]]), pick(factors), pick(shifts))
        kind = pick(["gate", "cubic", "clamp", "where", "elu", "ratio", "logistic", "root", "mish", "mask", "bell"])
        if kind in ("gate", "cubic"):
            name = pick(["sigmoid", "tanh", "erf", "erfc"]) if kind == "gate" else "tanh"
            if kind == "cubic":
                k = pick([0.7978845608028654, 0.7978845608, 0.8, -0.7978845608])
                square = self.product(x, x)
                inner = self.product(self.affine(x, k, 0), self.affine(square, pick([0.044715, 0.0447, 0.05]), 1))
            c = pick([0.5, 1, 1, -1, 1 / 3])
            gate = self.affine(self.apply(name, inner), c, pick([c, c, -c, 0, 1]))
            return self.product(x, gate)
        if kind == "clamp":
            low, high = pick([(0.0, 6.0), (0.0, 1.0), (-1.0, 2.0), (1.0, 0.0), (3.0, 3.0)])
            (u, f) = inner
            return self.product(x, (self.rule("clamp", "", u, low, high), lambda t: torch.clamp(f(t), low, high)))
        if kind == "mish":
            u, f = inner
            soft = self.rule("softplus", "", u, pick([1.0, 1.0, 2.0]), 20.0)
            beta = self.builder.node(soft).function.beta
            return self.product(x, self.apply("tanh", (soft, lambda t: F.softplus(f(t), beta))))
        if kind == "ratio":
            (u, f), (v, g) = x, self.affine(self.apply("abs", inner), pick([1, 2, -1]), pick([1, 2, 0.5, -1]))
            return self.rule("div", "Tensor", u, v), lambda t: f(t) / g(t)
        if kind == "logistic":
            (u, f), (v, g) = x, self.affine(self.apply("exp", inner), pick([1, 1, 2]), pick([1, 1, 2]))
            if pick([True, False]):
                return self.rule("div", "Tensor", u, v), lambda t: f(t) / g(t)
            return self.rule("log", "", v), lambda t: torch.log(g(t))
        if kind in ("root", "bell"):
            shape = self.sum(self.affine(self.product(x, x), pick([1, 2, -1, -0.5]), pick([0.25, 1, 2])), inner)
            return self.apply("sqrt" if kind == "root" else "exp", shape)
        name, test = pick(list(COMPARE.items()))
        limit = pick([0, 0, 0, 0.5, 1, -1])
        w, h = pick([x, inner])
        condition = self.rule(name, "Scalar", w, limit)
        if kind == "mask":
            u, f = x
            return self.rule("mul", "Tensor", u, condition), lambda t: f(t) * test(h(t), limit)
        a, b = x, inner
        if kind == "elu":
            c = pick([1, 1, 2, 0.3])
            b = self.affine(self.apply(pick(["exp", "expm1"]), b), c, pick([-c, -c, 0]))
        if pick([True, False]):
            a, b = b, a
        (u, f), (v, g) = a, b
        return self.rule("where", "self", condition, u, v), lambda t: torch.where(test(h(t), limit), f(t), g(t))


def slope_interval(network):
    """Interval of slopes by the chain rule from the node's own constants."""
    ranges = []
    local = Ranges.of(network, None).local if network.refusal is not None else {}
    for k, node in enumerate(network.nodes):
        if isinstance(node, AffineNode):
            low = high = 0.0
            for parent, linear in zip(node.parents, node.maps, strict=True):
                factor = scalar_of(linear).middle
                ends = [factor * e for e in ranges[parent]]
                low, high = low + min(ends), high + max(ends)
            ranges.append((low, high))
        elif isinstance(node, ActivationNode):
            own = (float(node.function.lower), float(node.function.upper))
            products = [a * b for a in own for b in ranges[node.parents[0]]]
            ranges.append((min(products), max(products)))
        elif isinstance(node, OpenNode):
            products = [float(a) * b for a in (local[k].lower, local[k].upper) for b in ranges[node.parents[0]]]
            ranges.append((min(products), max(products)))
        elif isinstance(node, GainNode):
            gain = node.function.gains[2.0] * max(map(abs, ranges[node.parents[0]]))
            ranges.append((-gain, gain))
        else:
            assert isinstance(node, InputNode)
            ranges.append((1.0, 1.0))
    return ranges[-1]


def sample_points(seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [s * torch.randn(400, generator=generator, dtype=torch.float64) for s in (0.3, 2.0, 12.0)]
    return torch.cat(parts).sort().values


def check(seed, template=False):
    """True if the expression was understood; fails if its range is wrong or its value differs."""
    expression = Expression(seed)
    try:
        var, function = expression.template() if template else expression.grow(expression.random.randint(2, 9))
        assert isinstance(var, Var)
        network = Problem(expression.builder.finish(var)).unfused  # a one-variable product is one activation
    except LipcertError:
        return False
    low, high = slope_interval(network)
    x = sample_points(seed)
    y = function(x)
    value = network.forward(x.reshape(-1, 1, 1)).reshape(-1)
    fine = torch.isfinite(y) & torch.isfinite(value)
    # the hand-written form itself overflows or cancels far out: compare where it is well conditioned
    near = fine & (x.abs() < 4)
    assert torch.allclose(value[near], y[near], rtol=1e-9, atol=1e-8), f"seed {seed}: values"
    u, v = x[:-1], x[1:]
    a, b = value[:-1], value[1:]
    slope = (b - a) / (v - u)
    error = 1e-13 * (1 + a.abs() + b.abs() + u.abs()) * 50 / (v - u) + 1e-10 * (1 + abs(low) + abs(high))
    assert bool((slope <= high + error).all()), f"seed {seed}: {float(slope.max())} above {high}"
    assert bool((slope >= low - error).all()), f"seed {seed}: {float(slope.min())} below {low}"
    return any(n.name in HAND_MADE for n in network.nodes)


HAND_MADE = {
    "swish", "silu", "mish", "gelu", "gelu_tanh", "x*clamp", "softsign", "sqrt", "two slopes", "leaky_relu",
    "elu", "min(x, 0)", "softplus", "sigmoid", "gaussian", "relu",
}  # fmt: skip


@pytest.mark.parametrize("block", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3))])
def test_random_expressions(block):
    assert sum(check(1000 * block + k) for k in range(200)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3))])
def test_patterns_with_random_coefficients(block):
    assert sum(check(1000 * block + k, template=True) for k in range(200)) > 10
