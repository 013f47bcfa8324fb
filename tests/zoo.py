"""Networks for the tests: a generator of random ones, a list of named ones, and exact oracles for small ReLU chains.

``random_network(seed)`` and the hypothesis strategy ``networks()`` make their choices through the same code, so a
failure that hypothesis found can be replayed from what it prints, and later method tests can loop over seeds.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Case:
    """A model in eval mode, an example input with batch dimension, and what the model is made of."""

    name: str
    model: nn.Module
    example: Tensor

    def __repr__(self) -> str:
        return f"Case({self.name})"


# -- building blocks ------------------------------------------------------------------------------------------


class Apply(nn.Module):
    """A function as a module; its modules are given by name and reach the function as attributes of ``self``."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, skip: float = 1.0) -> None:
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip * x + self.inner(x) if self.skip != 1.0 else x + self.inner(x)


class Concat(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=1)


class Branches(nn.Module):
    """a(x) − b(x), the modules declared in the other order."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.second = b
        self.first = a

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) - self.second(x)


class Twice(nn.Module):
    """One layer used two times with an activation between."""

    def __init__(self, layer: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.layer = activation, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.activation(self.layer(x)))


def max_min(_: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


#: name → factory of every activation that lipcert supports, as module and as function.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu inplace": lambda: nn.ReLU(inplace=True),
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "leaky relu -1.5": lambda: nn.LeakyReLU(-1.5),
    "prelu": lambda: nn.PReLU(init=-0.4),
    "rrelu": nn.RReLU,
    "elu": nn.ELU,
    "elu 3": lambda: nn.ELU(3.0),
    "celu 2": lambda: nn.CELU(2.0),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softplus 3": lambda: nn.Softplus(beta=3.0, threshold=30.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softshrink": lambda: nn.Softshrink(0.3),
    "tanhshrink": nn.Tanhshrink,
    "softsign": nn.Softsign,
    "f.relu": lambda: Apply(lambda _, x: F.relu(x)),
    "f.abs": lambda: Apply(lambda _, x: x.abs()),
    "f.clamp": lambda: Apply(lambda _, x: x.clamp(-0.7, 0.9)),
    "f.sin": lambda: Apply(lambda _, x: torch.sin(x)),
    "f.cos": lambda: Apply(lambda _, x: torch.cos(2 * x)),
    "f.atan": lambda: Apply(lambda _, x: torch.atan(x)),
    "f.erf": lambda: Apply(lambda _, x: torch.erf(x)),
    "f.swish": lambda: Apply(lambda _, x: x * torch.sigmoid(1.7 * x)),
    "f.mish": lambda: Apply(lambda _, x: x * torch.tanh(F.softplus(x))),
    "f.maximum": lambda: Apply(lambda _, x: torch.maximum(x, -0.3 * x)),
}

#: Blocks of known gain on vectors, for some of whose norms no constant may be known.
GAINS: dict[str, Callable[[int], nn.Module]] = {
    "softmax": lambda n: nn.Softmax(dim=1),
    "log softmax": lambda n: nn.LogSoftmax(dim=1),
    "layer norm": lambda n: nn.LayerNorm(n, eps=1e-2),
}


# -- the generator --------------------------------------------------------------------------------------------


class Choices:
    """Where random choices come from; two sources below."""

    def choose(self, options: Sequence[T]) -> T:
        raise NotImplementedError

    def number(self, low: int, high: int) -> int:
        return self.choose(range(low, high + 1))  # type: ignore[return-value]

    def chance(self, percent: int) -> bool:
        return self.number(0, 99) >= 100 - percent


class Seeded(Choices):
    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)

    def choose(self, options: Sequence[T]) -> T:
        return self.source.choice(list(options))


class Drawn(Choices):
    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw

    def choose(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(list(options)))


class Generator:
    """Grows a network block by block; ``words`` says what was chosen."""

    def __init__(self, choices: Choices) -> None:
        self.c = choices
        self.words: list[str] = []
        self.torch = torch.Generator().manual_seed(choices.number(0, 10**6))

    def build(self) -> Case:
        dtype = self.c.choose([torch.float32, torch.float64])
        if self.c.chance(25):
            layers, shape = self._image()
        else:
            width = self.c.number(1, 6)
            layers, shape = [], (width,)
            for _ in range(self.c.number(1, 4)):
                block, width = self._block(width, depth=0)
                layers.append(block)
        model = nn.Sequential(*layers).to(dtype).eval()
        example = torch.randn(self.c.number(1, 3), *shape, generator=self.torch).to(dtype)
        return Case(f"{'f64' if dtype == torch.float64 else 'f32'} {shape}: {', '.join(self.words)}", model, example)

    def _fill(self, layer: nn.Module) -> nn.Module:
        """Weights of every kind: usual, scaled by 1e±6, all zero, with dead neurons, without bias."""
        scale = self.c.choose([1.0] * 12 + [1e-6, 1e6])
        zero, dead = self.c.chance(4), self.c.chance(10)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.torch) * 0.7)
                if name.endswith("weight"):
                    parameter.mul_(0.0 if zero else scale)
                elif dead:
                    parameter.sub_(100.0)
        self.words.append(f"x{scale:g}{' zero' if zero else ''}{' dead' if dead else ''}")
        return layer

    def _linear(self, n: int, m: int) -> nn.Module:
        self.words.append(f"linear {n}-{m}")
        return self._fill(nn.Linear(n, m, bias=self.c.chance(80)))

    def _activation(self) -> nn.Module:
        name = self.c.choose(list(ACTIVATIONS))
        self.words.append(name)
        return ACTIVATIONS[name]()

    def _block(self, n: int, depth: int) -> tuple[nn.Module, int]:
        kinds = ["mlp"] * 4 + [
            "linear",
            "activation",
            "batch norm",
            "twice",
            "pool",
            "conv1d",
            "scale",
            "move",
            "gain",
        ]
        if depth < 2:
            kinds += ["residual"] * 2 + ["concat"] * 2 + ["branches"]
        if n % 2 == 0:
            kinds.append("max-min")
        kind = self.c.choose(kinds)
        self.words.append(f"[{kind}]")
        return getattr(self, "block_" + kind.replace(" ", "_").replace("-", "_"))(n, depth)

    def block_mlp(self, n: int, depth: int) -> tuple[nn.Module, int]:
        m = self.c.number(1, 8)
        return nn.Sequential(self._linear(n, m), self._activation()), m

    def block_linear(self, n: int, depth: int) -> tuple[nn.Module, int]:
        m = self.c.number(1, 8)
        return self._linear(n, m), m

    def block_activation(self, n: int, depth: int) -> tuple[nn.Module, int]:
        return self._activation(), n

    def block_batch_norm(self, n: int, depth: int) -> tuple[nn.Module, int]:
        norm = nn.BatchNorm1d(n, affine=self.c.chance(70))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(torch.randn(n, generator=self.torch))
        norm.running_var.copy_(torch.rand(n, generator=self.torch) * self.c.choose([1.0, 1e-3]))
        return norm, n

    def block_twice(self, n: int, depth: int) -> tuple[nn.Module, int]:
        return Twice(self._linear(n, n), self._activation()), n

    def block_pool(self, n: int, depth: int) -> tuple[nn.Module, int]:
        size = self.c.number(1, min(3, n))
        stride = self.c.number(1, size)
        kind = self.c.choose([nn.MaxPool1d, nn.AvgPool1d])
        self.words.append(f"{kind.__name__} {size} {stride}")
        pool = Apply(lambda s, x: s.pool(x.unsqueeze(1)).flatten(1), pool=kind(size, stride))
        return pool, (n - size) // stride + 1

    def block_conv1d(self, n: int, depth: int) -> tuple[nn.Module, int]:
        channels, kernel = self.c.number(1, 2), self.c.number(1, min(3, n))
        padding, stride = self.c.number(0, kernel - 1), self.c.number(1, 2)
        self.words.append(f"k{kernel} p{padding} s{stride} c{channels}")
        conv = self._fill(nn.Conv1d(1, channels, kernel, stride, padding, bias=self.c.chance(50)))
        length = (n + 2 * padding - kernel) // stride + 1
        return Apply(lambda s, x: s.conv(x.unsqueeze(1)).flatten(1), conv=conv), channels * length

    def block_scale(self, n: int, depth: int) -> tuple[nn.Module, int]:
        factor = self.c.choose([-1.0, 100.0, 0.1])
        self.words.append(f"{factor:g}")
        return Apply(lambda _, x: factor * x / 3 - 1.5), n

    def block_move(self, n: int, depth: int) -> tuple[nn.Module, int]:
        return Apply(lambda _, x: torch.cat([x.flip(1), x[:, :1]], dim=1)), n + 1

    def block_gain(self, n: int, depth: int) -> tuple[nn.Module, int]:
        name = self.c.choose(list(GAINS))
        self.words.append(name)
        return GAINS[name](n), n

    def block_max_min(self, n: int, depth: int) -> tuple[nn.Module, int]:
        return Apply(max_min), n

    def _inner(self, n: int, depth: int, m: int) -> nn.Module:
        """A block followed by a linear layer to m outputs."""
        first, width = self._block(n, depth + 1)
        return nn.Sequential(first, self._linear(width, m))

    def block_residual(self, n: int, depth: int) -> tuple[nn.Module, int]:
        return Residual(self._inner(n, depth, n), self.c.choose([1.0, 1.0, -0.5])), n

    def block_concat(self, n: int, depth: int) -> tuple[nn.Module, int]:
        (a, wide), (b, narrow) = self._block(n, depth + 1), self._block(n, depth + 1)
        return Concat(a, b), wide + narrow

    def block_branches(self, n: int, depth: int) -> tuple[nn.Module, int]:
        m = self.c.number(1, 4)
        return Branches(self._inner(n, depth, m), self._inner(n, depth, m)), m

    def _image(self) -> tuple[list[nn.Module], tuple[int, ...]]:
        side, channels = self.c.number(3, 5), self.c.number(1, 2)
        shape = (channels, side, side)
        layers: list[nn.Module] = []
        for _ in range(self.c.number(1, 2)):
            kernel, stride = self.c.number(1, 3), self.c.number(1, 2)
            padding, groups = self.c.number(0, 1), self.c.choose([1, channels])
            wider = channels * self.c.number(1, 2) if groups > 1 else self.c.number(1, 3)
            mode = self.c.choose(["zeros"] * 3 + (["circular"] if padding < side else []))
            conv = nn.Conv2d(channels, wider, kernel, stride, padding, groups=groups, padding_mode=mode)
            self.words.append(f"conv2d {channels}-{wider} k{kernel} s{stride} p{padding} g{groups} {mode}")
            layers += [self._fill(conv), self._activation()]
            channels, side = wider, (side + 2 * padding - kernel) // stride + 1
            if side < 2:
                break
            if self.c.chance(30):
                pool = self.c.choose([nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(1)])
                self.words.append(str(pool))
                layers.append(pool)
                side = 1 if isinstance(pool, nn.AdaptiveAvgPool2d) else side - 1
            if side < 3:
                break
        return [*layers, nn.Flatten(), self._linear(channels * side * side, self.c.number(1, 4))], shape


def random_network(seed: int) -> Case:
    """The same network for the same seed, on every machine with the same torch."""
    case = Generator(Seeded(seed)).build()
    return Case(f"seed {seed}: {case.name}", case.model, case.example)


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
    """Hypothesis strategy of random networks; smaller choices come first, so failures shrink to small networks."""
    return Generator(Drawn(draw)).build()


# -- named networks -------------------------------------------------------------------------------------------


def mlp(widths: Sequence[int], seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """A float64 chain with independent normal weights of variance 1/fan-in."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layer = nn.Linear(n, m, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) / math.sqrt(n))
            layer.bias.copy_(0.3 * torch.randn(m, generator=generator))
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.GELU(),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def _resnet() -> nn.Module:
    block = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))
    return nn.Sequential(nn.Linear(4, 5), Residual(block), nn.SiLU(), nn.Linear(5, 2))


def _densenet() -> nn.Module:
    return nn.Sequential(
        Concat(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Identity()),
        nn.Linear(7, 5),
        nn.ELU(3.0),
        nn.Linear(5, 2),
    )


def _groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), Apply(max_min), nn.Flatten(), nn.Linear(16, 2)
    )


def _gates() -> nn.Module:
    gate = Apply(lambda _, x: x * torch.sigmoid(1.5 * x) + torch.where(x > 0, x, 0.1 * x))
    return nn.Sequential(nn.Linear(4, 6), gate, nn.Linear(6, 4), Apply(lambda _, x: x / (1 + x.abs())), nn.Linear(4, 2))


def _products() -> nn.Module:
    gates = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 5)])
    product = Apply(lambda s, x: torch.tanh(s.inner[0](x)) * torch.sigmoid(s.inner[1](x)), inner=gates)
    quotient = Apply(
        lambda s, x: torch.sin(s.inner(x)) / (2 + torch.cos(x).mean(1, keepdim=True)), inner=nn.Linear(5, 4)
    )
    return nn.Sequential(product, quotient, nn.Linear(4, 2))


def _attention() -> nn.Module:
    """One head over three bounded tokens, with a layer of neurons: its products have constants everywhere."""
    maps = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    head = Apply(lambda s, x: torch.softmax(s.maps[0](x) @ s.maps[1](x).transpose(1, 2), 2) @ s.maps[2](x), maps=maps)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), Residual(head), nn.Flatten(), nn.Linear(6, 2))


def _gains_before_selections() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.Unflatten(1, (2, 4)), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(4, 4), nn.Softmax(dim=1), Apply(lambda _, x: x.sort(dim=1).values[:, 1:]),
    )  # fmt: skip


class Recurrence(nn.Module):
    """A tanh recurrence over the rows of its input; its last state."""

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(inputs, states), nn.Linear(states, states)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.enter(x[:, 0]))
        for step in range(1, x.shape[1]):
            state = torch.tanh(self.enter(x[:, step]) + self.again(state))
        return state


def _twins_and_a_loss() -> nn.Module:
    """[relu(v), relu(−v)], [sin v, cos v] and a cross-entropy."""
    return nn.Sequential(
        nn.Linear(4, 3), Apply(lambda _, x: torch.cat([F.relu(x), F.relu(-x)], 1)),
        nn.Linear(6, 3), Apply(lambda _, x: torch.cat([torch.sin(x), torch.cos(x)], 1)),
        nn.Linear(6, 3), Apply(lambda _, x: -F.log_softmax(x, 1)[:, 1:2]),
    )  # fmt: skip


def _waves_and_messages() -> nn.Module:
    """A real part of a Fourier transform, and messages along the edges of a graph."""
    edges = torch.tensor([1, 2, 0, 0])

    def passed(_: Any, x: Tensor) -> Tensor:
        index = edges[None, :, None].expand(len(x), 4, 2)
        return torch.zeros_like(x).scatter_add(1, index, x)

    return nn.Sequential(
        Residual(Apply(lambda _, x: torch.fft.fft2(x, norm="ortho").real)), nn.Linear(2, 2), nn.Tanh(), Apply(passed),
        nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


#: (name, factory, shape of one example): chains first, on which the order of methods holds in full.
ZOO: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("relu 4-6-3", lambda: mlp((4, 6, 3), 1), (4,)),
    ("relu 5-5-5-5-2", lambda: mlp((5, 5, 5, 5, 2), 2), (5,)),
    ("relu 1-1-1", lambda: mlp((1, 1, 1), 3), (1,)),
    ("relu 10-4-10", lambda: mlp((10, 4, 10), 4), (10,)),
    ("tanh 4-6-6-3", lambda: mlp((4, 6, 6, 3), 5, nn.Tanh), (4,)),
    ("gelu 4-6-3", lambda: mlp((4, 6, 3), 6, nn.GELU), (4,)),
    ("leaky 4-6-6-3", lambda: mlp((4, 6, 6, 3), 7, lambda: nn.LeakyReLU(0.1)), (4,)),
    ("linear 4-3", lambda: mlp((4, 3), 8), (4,)),
    ("max-min 4-6-6-3", lambda: mlp((4, 6, 6, 3), 9, lambda: Apply(max_min)), (4,)),
    ("residual", lambda: _seeded(_resnet, 10), (4,)),
    ("concatenation", lambda: _seeded(_densenet, 11), (4,)),
    ("shared layer", lambda: _seeded(lambda: Twice(nn.Linear(4, 4), nn.ReLU()), 12), (4,)),
    ("small cnn", lambda: _seeded(_cnn, 13), (1, 6, 6)),
    ("groups", lambda: _seeded(_groups, 14), (2, 4)),
    ("gates", lambda: _seeded(_gates, 15), (4,)),
    ("gains before selections", lambda: _seeded(_gains_before_selections, 16), (4,)),
    ("twins and a loss", lambda: _seeded(_twins_and_a_loss, 18), (4,)),
    ("products", lambda: _seeded(_products, 18), (4,)),
    ("attention", lambda: _seeded(_attention, 19), (3, 2)),
    ("waves and messages", lambda: _seeded(_waves_and_messages, 20), (4, 2)),
    ("recurrence", lambda: _seeded(lambda: nn.Sequential(Recurrence(2, 3), nn.Linear(3, 2)), 17), (4, 2)),
)


def zoo_case(name: str) -> Case:
    """A named network and an example for it."""
    _, factory, shape = next(row for row in ZOO if row[0] == name)
    model = factory()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Case(name, model, example)


# -- oracles --------------------------------------------------------------------------------------------------


def linear_weights(model: nn.Module) -> list[Tensor]:
    """The weight matrices of a chain of linear layers, in float64."""
    return [m.weight.detach().double() for m in model.modules() if isinstance(m, nn.Linear)]


def vertex_maximum(weights: Sequence[Tensor], low: float = 0.0, high: float = 1.0, p: float = 2) -> float:
    """max over all slope patterns in {low, high} of ‖W_K D … D W_1‖_p: at least L, equal if all are reached."""
    hidden = [len(w) for w in weights[:-1]]
    assert sum(hidden) <= 14, "brute force"
    patterns = torch.tensor(list(itertools.product((low, high), repeat=sum(hidden))), dtype=torch.float64)
    product = weights[0].expand(len(patterns), *weights[0].shape)
    for slopes, weight in zip(patterns.split(hidden, dim=1), weights[1:], strict=True):
        product = weight @ (slopes[:, :, None] * product)
    return float(torch.linalg.matrix_norm(product, p).max())


def difference_quotients(model: nn.Module, shape: tuple[int, ...], p: float = 2, q: float = 2, seed: int = 0,
                         count: int = 64) -> tuple[Tensor, Tensor]:  # fmt: skip
    """‖f(x) − f(y)‖_q / ‖x − y‖_p of random and of nearby pairs, in float64, and the rounding error to allow for."""
    generator = torch.Generator().manual_seed(seed)
    double = Double(model)
    distance = 10.0 ** torch.linspace(-4, 1.5, count, dtype=torch.float64).reshape(-1, *([1] * len(shape)))
    size = 10.0 ** (3.0 * torch.rand(count, generator=generator, dtype=torch.float64) - 1.5)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64) * size.reshape(distance.shape)
    y = x + distance * torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        fx, fy = double(x).reshape(count, -1), double(y).reshape(count, -1)
    apart = torch.linalg.vector_norm((x - y).reshape(count, -1), p, dim=1)
    quotient = torch.linalg.vector_norm(fx - fy, q, dim=1) / apart
    noise = 1e-12 * (fx.abs().amax(1) + fy.abs().amax(1)) / apart
    return quotient, noise


class Double(nn.Module):
    """The same model in float64 (a copy)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        import copy

        self.model = copy.deepcopy(model).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.clone())
