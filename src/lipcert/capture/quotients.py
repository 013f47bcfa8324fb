"""A watch over all rules at run time: difference quotients of every nonlinear node must respect its constants.

The self-check compares values only; α, β and gains come from the rules. Here every nonlinear node is evaluated at pairs
of points, and ‖φ(a) − φ(b)‖ / ‖a − b‖ beyond its constant, by more than rounding can explain, is a bug of lipcert.
Sampling proves nothing, so nothing rests on it: it only finds constants that are wrong where inputs go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.graph import ActivationNode, GainNode, Network, Node, SelectionNode
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection
from lipcert.numerics.midrad import lengths

#: Sizes of the points drawn, and of the steps from them (each times the larger of 1 and the point's own size).
_SCALES, _STEPS = (1e-3, 0.1, 1.0, 3.0, 10.0, 100.0), (1e-3, 1e-2, 0.1, 1.0)
#: Entries evaluated per activation, examples per block, and the most entries of either.
_ENTRIES, _EXAMPLES, _MOST_ENTRIES = 1 << 14, 48, 1 << 22
#: Relative excess that counts as agreement, and rounding granted to a value in units of its size.
_RELATIVE, _ROUNDING = 1e-5, 2.0**-42


def check_quotients(network: Network, example: Tensor) -> None:
    """Evaluate every nonlinear node at pairs of points: inputs that reach it, random ones, kinks.

    Args:
        network: the captured network.
        example: the caller's batch (B, *shape of one example), which is sent through the network.

    Raises:
        CaptureError: a quotient lies outside the constants of its node: a bug in lipcert.
    """
    generator = torch.Generator().manual_seed(20181206)
    base = example[:2].double().cpu()
    spread = float(base.abs().max()) or 1.0
    noise = torch.randn(3, *base.shape[1:], generator=generator, dtype=torch.float64)
    points = torch.cat([base, base[:1] + 1e-2 * spread * noise[:1], base[:1] + noise[1:2], 3.0 * spread * noise[2:3]])
    watched = {p for p, n in enumerate(network.nodes) if isinstance(n, (ActivationNode, GainNode, SelectionNode))}
    wanted: dict[int, list[int]] = {}
    for position in watched:
        wanted.setdefault(network.nodes[position].parents[0], []).append(position)
    for position, value in network.values(points[:, None]):
        for reader in wanted.get(position, ()):
            node = network.nodes[reader]
            reached = value[torch.isfinite(value).reshape(len(value), -1).all(1)]
            if not value[0].numel():
                continue
            if isinstance(node, ActivationNode):
                _check_activation(node, node.function, reached, generator)
            elif isinstance(node, (GainNode, SelectionNode)):
                _check_block(node, node.function, reached, generator)


def _draw(shape: Sequence[int], scales: Sequence[float], generator: torch.Generator) -> Tensor:
    """Normal entries; each row of a size of its own."""
    sizes = torch.tensor(scales, dtype=torch.float64)[torch.arange(shape[0]) % len(scales)]
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return noise * sizes.reshape(-1, *[1] * (len(shape) - 1))


def _pick(shape: Sequence[int], choices: Sequence[float], generator: torch.Generator) -> Tensor:
    """Every entry one of ``choices``, at random."""
    places = torch.randint(len(choices), tuple(shape), generator=generator)
    return torch.tensor(choices, dtype=torch.float64)[places]


def _check_activation(node: Node, function: Nonlinearity, reached: Tensor, generator: torch.Generator) -> None:
    shape = reached.shape[1:]
    rows = (max(2, min(_ENTRIES, -(-_ENTRIES // shape.numel()))), *shape)
    starts = [_pick(rows, _SCALES, generator) * torch.randn(rows, generator=generator, dtype=torch.float64), reached]
    for kink in function.kinks:
        place = torch.as_tensor(kink.position, dtype=torch.float64).expand(shape)
        offset = _pick(rows, _STEPS, generator) * _pick(rows, (-1.5, -1.0, -0.5, 0.0, 0.5), generator)
        starts.append(place + offset * place.abs().clamp(min=1.0))
    low, high = function.slope_range(tuple(shape))
    for a in starts:
        a = a[torch.isfinite(a).reshape(len(a), -1).all(1)]
        b = a + _pick(a.shape, _STEPS, generator) * a.abs().clamp(min=1.0)
        fa, fb = function(a), function(b)
        wide = torch.maximum(low.abs(), high.abs())
        granted = _RELATIVE * wide + _ROUNDING * (fa.abs() + fb.abs() + wide * (a.abs() + b.abs()) + 1.0) / (b - a)
        quotient = (fb - fa) / (b - a)
        outside = (quotient > high + granted) | (quotient < low - granted)
        if bool(outside.any()):
            at = tuple(outside.nonzero()[0].tolist())
            found = f"slope {float(quotient[at])!r} between {float(a[at])!r} and {float(b[at])!r}"
            raise _bug(node, found, f"slopes in [{float(low[at[1:]])!r}, {float(high[at[1:]])!r}]")


def _pairs(reached: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    shape = reached.shape[1:]
    rows = max(4, min(_EXAMPLES, _MOST_ENTRIES // shape.numel()))
    drawn = _draw((rows, *shape), (1e-6, *_SCALES), generator)
    yield drawn, drawn + _draw((rows, *shape), _STEPS, generator) * drawn.abs().mean()
    yield torch.zeros_like(drawn), drawn
    yield _steep(shape, generator)
    if len(reached):
        near = reached[torch.arange(rows) % len(reached)]
        size = near.abs().reshape(rows, -1).amax(1).reshape(-1, *[1] * len(shape))
        yield near, near + size * _draw((rows, *shape), _STEPS, generator)
        yield near, near.roll(1, 0)


def _steep(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where blocks attain their gains: steps from a constant, and from two entries that outweigh all others.

    A step goes to one entry, to the difference of two neighbours, or to every entry by a random sign.
    """
    n = math.prod(shape)
    first = torch.randint(n, (1,), generator=generator).item()
    one, two = torch.zeros(2, n, dtype=torch.float64)
    one[first], two[first], two[(first + 1) % n] = 1.0, 1.0, -1.0
    signs = torch.randint(2, (n,), generator=generator).double() * 2.0 - 1.0
    starts = torch.stack([torch.zeros(n, dtype=torch.float64), 40.0 * (two.abs() - 1.0)])
    steps = torch.cat([size * torch.stack([one, two, signs]) for size in (1e-9, 1e-6, *_STEPS[:3])])
    a = starts.repeat_interleave(len(steps), 0)
    b = a + steps.repeat(2, 1)
    kept = torch.randperm(len(a), generator=generator)[: max(2, _MOST_ENTRIES // n)]
    return a[kept].reshape(-1, *shape), b[kept].reshape(-1, *shape)


def _check_block(node: Node, function: GainFunction | Selection, reached: Tensor, generator: torch.Generator) -> None:
    if isinstance(function, GainFunction):
        gains = dict(function.gains)
    else:
        gains = {p: function.gain(p) for p in (1.0, 2.0, math.inf)}
    lost = function.evaluation_error if isinstance(function, GainFunction) else 0.0
    for a, b in _pairs(reached, generator):
        with torch.no_grad():
            fa, fb = function(a).reshape(len(a), -1), function(b).reshape(len(b), -1)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        for p, gain in gains.items():
            moved, rose = lengths(b - a, p), lengths(fb - fa, p)
            sizes = lengths(fa, p) + lengths(fb, p) + gain * (lengths(a, p) + lengths(b, p))
            outside = rose > gain * (1.0 + _RELATIVE) * moved + a.shape[1] * _ROUNDING * sizes
            outside &= rose > 2.0 * lost * fa.shape[1] + gain * moved
            if bool(outside.any()):
                worst = int((torch.where(outside, rose / moved.clamp(min=1e-300), 0.0)).argmax())
                raise _bug(
                    node, f"‖f(a) − f(b)‖ / ‖a − b‖ = {float(rose[worst] / moved[worst])!r} in l{p:g}", f"gain {gain!r}"
                )


def _bug(node: Node, found: str, stated: str) -> CaptureError:
    return CaptureError(
        f"{node.name} at {node.where or 'an unknown place'}: sampling finds {found}, but its rule states {stated}. The "
        "rule is wrong: this is a bug in lipcert and not in your model; please report it. No bound is given."
    )
