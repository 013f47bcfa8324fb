"""Where searches start, and how a domain is kept: origin, scale, sampling, points inside."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.network.linear import Shape

#: Multiples of the unit scale at which random starts are drawn.
SCALES = (1.0, 4.0)
#: Multiples of the unit scale for starts with a pattern: constants, waves, blocks, a few spots.
_LEVELS = (1.0, 0.25, 4.0, 0.05, 16.0)
#: Noise on constant inputs, in unit scales: none, and far below and above what a normalisation adds to a variance.
_NOISES = (0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1)
#: Cells per axis of smooth patterns, and shares of the entries that are not 0 in sparse ones.
_CELLS = (1, 2, 4, 7)
_SHARES = (0.3, 0.1, 0.02)


@dataclass(frozen=True, eq=False)
class Region:
    """The domain in the search's coordinates x = origin + scale · ξ with ξ of order one.

    Attributes:
        domain: the problem's domain.
        origin: (1, *in_shape).
        scale: (1, *in_shape), positive.
    """

    domain: Domain
    origin: Tensor
    scale: Tensor

    @classmethod
    def of(cls, domain: Domain, in_shape: Shape, inputs: Tensor | None, like: Tensor) -> Region:
        """Unit scale: the domain's own, else the data's root mean square, else 1."""
        shape = (1, *in_shape)
        origin, scale = torch.zeros(shape).to(like), torch.ones(shape).to(like)
        if isinstance(domain, Ball):
            origin = domain.center.to(like).reshape(shape)
            scale = scale * max(_spread(domain), 1e-30)
        elif isinstance(domain, Intersection):
            lower, upper = domain.bounds()
            middle = (lower + (upper - lower) / 2).reshape(shape)
            origin = domain.project(middle).to(like)
            scale = ((upper - lower) / 2).reshape(shape).clamp(1e-30, max(_spread(domain.ball), 1e-30)).to(like)
        elif isinstance(domain, Box):
            lower, upper = domain.lower.to(like).reshape(shape), domain.upper.to(like).reshape(shape)
            width = upper - lower
            known = torch.isfinite(width)
            origin = torch.where(known, (lower + upper) / 2, torch.zeros_like(lower).clamp(lower, upper))
            scale = torch.where(known, (width / 2).clamp(min=1e-30), scale)
        elif inputs is not None and len(inputs):
            rms = float(inputs.double().square().mean().sqrt())
            scale = scale * (rms if rms > 0 else 1.0)
        return cls(domain, origin, scale)

    def scaled_to(self, point: Tensor, share: float = 1.0) -> Region:
        """The region with ``share`` of the size of ``point`` as the unit: never more than a domain's own."""
        spread = float(((point - self.origin[0]) / self.scale[0]).double().square().mean().sqrt()) * share
        if not 0.0 < spread < math.inf:
            return self
        return replace(self, scale=self.scale * (spread if self.domain is None else min(spread, 1.0)))

    def project(self, x: Tensor) -> Tensor:
        """A batch (B, *in_shape) moved into the domain."""
        return x if self.domain is None else self.domain.project(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points: normal at the two scales on the whole space, uniform or normal within a domain."""
        noise = torch.randn(count, *self.origin.shape[1:], generator=generator).to(self.origin)
        factors = torch.tensor([SCALES[i % len(SCALES)] for i in range(count)]).to(noise)
        return self.project(self.origin + self.scale * noise * factors.reshape(-1, *([1] * (noise.dim() - 1))))

    def steep(self) -> Tensor:
        """Points where normalisations are steep: constant and nearly constant inputs, at several levels."""
        generator = torch.Generator().manual_seed(0)
        shape = self.origin.shape[1:]
        points = []
        for noise in _NOISES:
            for level in (0.0, 1.0, -1.0, 0.1, 4.0):
                points.append(level + noise * torch.randn(shape, generator=generator, dtype=torch.float64))
        return self.project(self.origin + self.scale * torch.stack(points).to(self.origin))

    def patterned(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points with a pattern: smooth and blocky at several frequencies, sparse, constant per channel."""
        shape = self.origin.shape[1:]
        points = []
        for number in range(count):
            level = _LEVELS[number // 3 % len(_LEVELS)]
            kind, choice = number % 3, int(torch.randint(0, 1 << 20, (), generator=generator))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            if kind == 2:
                share = _SHARES[choice % len(_SHARES)]
                kept = torch.rand(shape, generator=generator, dtype=torch.float64) < share
                point = torch.where(kept, noise / math.sqrt(share), torch.zeros_like(noise))
            else:
                point = _coarse(shape, _CELLS[choice % len(_CELLS)], kind == 0, generator)
            points.append(level * point)
        if not points:
            return self.origin[:0]
        return self.project(self.origin + self.scale * torch.stack(points).to(self.origin))


def _spread(ball: Ball) -> float:
    """The size of a typical coordinate of x − c within the ball."""
    return ball.radius / (1.0 if ball.p == math.inf else math.sqrt(max(1, ball.center.numel())))


def _coarse(shape: torch.Size, cells: int, smooth: bool, generator: torch.Generator) -> Tensor:
    """Noise on a grid of ``cells`` per axis, interpolated (or repeated) to the last two axes; channels differ."""
    axes = [n for n in shape if n > 1][-2:] or [1]
    rows, columns = ([1, *axes] if len(axes) == 1 else axes)[-2:]
    others = math.prod(shape) // (rows * columns)
    noise = torch.randn(1, others, min(cells, rows), min(cells, columns), generator=generator, dtype=torch.float64)
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    return torch.nn.functional.interpolate(noise, (rows, columns), **mode).reshape(shape)


def inside(domain: Domain, x: Tensor) -> Tensor:
    """One float64 point moved into the domain so that ``domain.contains`` holds (pulled inward)."""
    if domain is None:
        return x
    moved = domain.project(x[None])[0]
    if not isinstance(domain, Box):
        center = domain.home().to(moved).reshape(moved.shape)
        shrink = 1e-12
        while not domain.contains(moved) and shrink < 1:
            moved = center + (moved - center) * (1.0 - shrink)
            shrink *= 10
        if not domain.contains(moved):
            moved = center.clone()
    return moved
