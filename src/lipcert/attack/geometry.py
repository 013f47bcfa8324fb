"""Many domains of one kind side by side, as the adversarial search walks in them: units, projection, steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import InputError
from lipcert.network.linear import Shape, size

Bounded = Ball | Box | Intersection

#: Newton steps for the multiplier of a ball's constraint; a scaling makes up for the rest.
_NEWTON = {2.0: 3, 1.0: 6}
_GROWING = 12
#: Stands for 0 where something is divided by.
_LITTLE = 1e-30


@dataclass(frozen=True, eq=False)
class Geometry:
    """x = origin + scale · u, a row for each domain; ‖u‖_p ≤ 1, and low ≤ u ≤ high where there are boxes.

    Attributes:
        p: 1, 2, inf; None for boxes alone.
        origin: (B, n), the balls' centres, or points of the boxes.
        scale: (B, 1) radii, or (B, n) half the widths of the boxes, 1 where a side is open.
        low, high: (B, n) ends of the boxes in units; None where there are none.
        home: (B, n), a point of each domain in units, the nearest to the origin.
    """

    p: float | None
    origin: Tensor
    scale: Tensor
    low: Tensor | None
    high: Tensor | None
    home: Tensor

    @classmethod
    def of(cls, domains: Sequence[Bounded], shape: Shape, dtype: torch.dtype, device: torch.device | str) -> Geometry:
        """Domains of one kind, each fitted to ``shape``.

        Raises:
            InputError: balls of different p, or balls and boxes, in one batch.
        """
        kinds = {_kind(d) for d in domains}
        if len(kinds) > 1:
            raise InputError("one attack takes domains of one kind: balls of one p, or boxes, all with a clip or none.")
        p, clipped = kinds.pop() if kinds else (None, True)
        n = size(shape)
        if p is None:
            return cls._boxes(*(_stacked([d.bounds()[end] for d in domains], n) for end in (0, 1))).to(dtype, device)
        balls = [_ball(d) for d in domains]
        origin = _stacked([b.center for b in balls], n)
        scale = torch.tensor([b.radius for b in balls], dtype=torch.float64).reshape(-1, 1)
        low = high = None
        home = torch.zeros_like(origin)
        if clipped:
            boxes = [d.box for d in domains if isinstance(d, Intersection)]
            lower, upper = (_stacked([getattr(b, end) for b in boxes], n) - origin for end in ("lower", "upper"))
            low, high = ((end / scale.clamp(min=1e-300)).clamp(-2.0, 2.0) for end in (lower, upper))
            home = home.clamp(low, high)
        return cls(p, origin, scale, low, high, home).to(dtype, device)

    @classmethod
    def _boxes(cls, lower: Tensor, upper: Tensor) -> Geometry:
        closed = lower.isfinite() & upper.isfinite()
        origin = torch.where(closed, lower / 2 + upper / 2, torch.zeros_like(lower).clamp(lower, upper))
        scale = torch.where(closed, upper / 2 - lower / 2, 1.0)
        low, high = torch.where(closed, -1.0, lower - origin), torch.where(closed, 1.0, upper - origin)
        return cls(None, origin, scale, low, high, torch.zeros_like(origin))

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Geometry:
        """In another dtype, on another device."""
        return self._map(lambda t: t.to(device=device, dtype=dtype))

    def at(self, index: Tensor) -> Geometry:
        """The rows ``index``, repeated as it says."""
        return self._map(lambda t: t[index])

    def _map(self, move) -> Geometry:  # type: ignore[no-untyped-def]
        low, high = (None if t is None else move(t) for t in (self.low, self.high))
        return Geometry(self.p, move(self.origin), move(self.scale), low, high, move(self.home))

    def shrunk(self, factor: Tensor) -> Geometry:
        """Balls of ``factor`` (B, 1) times the radius, in units of their own; boxes around them stay."""
        low, high = (None if t is None else t / factor for t in (self.low, self.high))
        return replace(self, scale=self.scale * factor, low=low, high=high, home=self.home / factor)

    def points(self, u: Tensor) -> Tensor:
        """x for u, (B, n)."""
        return self.origin + self.scale * u

    def units(self, x: Tensor) -> Tensor:
        """u for x, (B, n); 0 where a domain is flat."""
        return torch.where(self.scale > 0, (x - self.origin) / self.scale, 0.0)

    def lengths(self, u: Tensor) -> Tensor:
        """‖u‖_p as a column (the greatest entry for boxes)."""
        return lengths(u, math.inf if self.p is None else self.p)

    # -- staying inside -------------------------------------------------------------------------------------

    def project(self, u: Tensor) -> Tensor:
        """Into the domain, close to the nearest point."""
        if self.p == math.inf:
            u = u.clamp(-1.0, 1.0)
        result = self._clamped(u)
        if self.p not in _NEWTON:
            return result
        length = self.lengths(result)
        if not bool((length > 1.0).any()):
            return result
        if self.p == 1.0:
            result = self._soft(u)
        elif self.low is not None:
            result = self._scaled(u)
        length, start = self.lengths(result), self.lengths(self.home)
        share = torch.where(length > 1.0, (1.0 - start) / (length - start), 1.0).clamp(0.0, 1.0)
        return self.home + share * (result - self.home)

    def _clamped(self, u: Tensor) -> Tensor:
        return u if self.low is None or self.high is None else u.clamp(self.low, self.high)

    def _stretch(self, t: Tensor, u: Tensor) -> Tensor:
        """The factor for which ‖clamp(t u)‖₂ = 1 if no further coordinate reaches an end; t where all have."""
        moved = t * u
        held = self._clamped(moved)
        free = held == moved
        fixed = torch.where(free, 0.0, held.square()).sum(1, keepdim=True)
        rest = torch.where(free, u.square(), 0.0).sum(1, keepdim=True)
        return torch.where(rest > 0, ((1.0 - fixed).clamp(min=0.0) / rest.clamp(min=_LITTLE)).sqrt(), t)

    def _scaled(self, u: Tensor) -> Tensor:
        """clamp(t u) with ‖·‖₂ = 1: the fewer coordinates are at an end the smaller t, so t only falls."""
        t = torch.ones_like(u[:, :1])
        for _ in range(_NEWTON[2.0]):
            t = torch.minimum(t, self._stretch(t, u))
        return self._clamped(t * u)

    def _longest(self, direction: Tensor) -> Tensor:
        """clamp(t d) with ‖·‖₂ = 1, or as long as the box allows: from t = 1 up, as more coordinates reach an end."""
        t = torch.ones_like(direction[:, :1])
        for _ in range(_GROWING):
            t = torch.maximum(t, self._stretch(t, direction))
        return self._clamped(t * direction)

    def _soft(self, u: Tensor) -> Tensor:
        """clamp(sign(u) max(|u| − λ, 0)) with ‖·‖₁ = 1."""
        threshold = torch.zeros_like(u[:, :1])
        signs, sizes = u.sign(), u.abs()
        result = self._clamped(u)
        for _ in range(_NEWTON[1.0]):
            free = (result != 0) & (result == signs * (sizes - threshold))
            excess = result.abs().sum(1, keepdim=True) - 1.0
            threshold = (threshold + excess / free.sum(1, keepdim=True).clamp(min=1)).clamp(min=0.0)
            result = self._clamped(signs * (sizes - threshold).clamp(min=0.0))
        return result

    # -- moving ---------------------------------------------------------------------------------------------

    def step(self, u: Tensor, gradient: Tensor, length: float) -> Tensor:
        """From u against a gradient by ``length`` units, the steepest way in the domain's norm, and back inside."""
        slope = gradient
        if self.low is not None and self.high is not None:
            blocked = ((u <= self.low) & (gradient > 0)) | ((u >= self.high) & (gradient < 0))
            slope = torch.where(blocked, 0.0, gradient)
        if self.p == 2.0:
            clipped = self.low is not None and length >= 1.0  # then the way along the surface is a long one
            return self.project(self._longest(-_units(gradient)) if clipped else u - length * _units(slope))
        if self.p == 1.0:  # a share of the way to the corner: gradient steps move too many coordinates
            return self.project(u + min(1.0, length) * (self.corner(gradient) - u))
        return self.project(u - length * slope.sign())

    def corner(self, gradient: Tensor) -> Tensor:
        """The point of an l1 ball, within its box, that is the least in the linear function of this gradient.

        The budget that home leaves goes to the steepest coordinates, to each what room its end leaves.
        """
        room = torch.ones_like(gradient)
        if self.low is not None and self.high is not None:
            room = torch.where(gradient > 0, self.home - self.low, self.high - self.home).clamp(0.0, 1.0)
        room = torch.where(gradient == 0, 0.0, room)
        order = gradient.abs().argsort(dim=1, descending=True, stable=True)
        ranked = room.gather(1, order)
        left = 1.0 - self.lengths(self.home) - (ranked.cumsum(1) - ranked)
        taken = torch.zeros_like(room).scatter(1, order, torch.minimum(ranked, left.clamp(min=0.0)))
        return self.home - gradient.sign() * taken

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random point of each domain."""
        noise = torch.randn(self.origin.shape, generator=generator, dtype=torch.float64).to(self.origin)
        if self.p in _NEWTON:
            return self.project(noise / self.lengths(noise).clamp(min=_LITTLE))
        return self.project(noise.clamp(-1.0, 1.0))


def lengths(rows: Tensor, p: float) -> Tensor:
    """‖row‖_p as a column; squares neither overflow nor vanish."""
    if not rows.shape[1]:
        return rows.new_zeros(len(rows), 1)
    if p == 1.0:
        return rows.abs().sum(1, keepdim=True)
    greatest = rows.abs().amax(1, keepdim=True)
    if p == math.inf:
        return greatest
    return (rows / torch.where(greatest > 0, greatest, 1.0)).norm(dim=1, keepdim=True) * greatest


def _units(rows: Tensor) -> Tensor:
    """The rows with an l2 norm of 1, whatever their size; zero stays zero."""
    if not rows.shape[1]:
        return rows
    greatest = rows.abs().amax(1, keepdim=True)
    scaled = rows / torch.where(greatest > 0, greatest, 1.0)
    return scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1.0)


def _ball(domain: Bounded) -> Ball:
    assert not isinstance(domain, Box)
    return domain.ball if isinstance(domain, Intersection) else domain


def _kind(domain: Bounded) -> tuple[float | None, bool]:
    return (None, True) if isinstance(domain, Box) else (_ball(domain).p, isinstance(domain, Intersection))


def _stacked(tensors: Sequence[Tensor], n: int) -> Tensor:
    return torch.stack([t.reshape(n) for t in tensors]) if tensors else torch.zeros(0, n, dtype=torch.float64)
