"""Lower bounds of anchored constants: an ascent of ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over the points x of the domain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.attack.jacobian import SearchNetwork
from lipcert.attack.norms import dual, lengths, maximiser
from lipcert.attack.pool import Pool
from lipcert.attack.starts import Region, inside
from lipcert.attack.witness import evaluate
from lipcert.errors import InputError, NumericsError
from lipcert.network.linear import size
from lipcert.problem import Problem
from lipcert.result import LowerBound, PairWitness

Progress = Callable[[float, str], None]

#: Scalars that a batch of points may touch in one pass, and the most points that ascend together.
_BATCH_WORK, _BATCH = 500_000, 48
#: Distances from the anchor of first points in the steepest directions, and of random points on the whole space, in
#: units of the region's own size.
_NEAR, _FAR = (1.0, 0.3, 0.1, 1e-2, 1e-4, 1e-6), (1.0, 4.0, 0.25, 16.0, 100.0, 1e3)
#: Factors by which a point is moved from the anchor, and by which a step's length is tried.
_SCALED, _LENGTHS = (0.25, 0.7, 0.95, 1.05, 1.4, 4.0), (4.0, 1.0, 0.25)
#: First length of a step, least one, both relative to the distance, and steps of one ascent.
_STEP, _LEAST, _STEPS = 0.3, 1e-9, 120
#: Rounding of the search's own outputs, relative to their size: differences below say nothing.
_NOISE = 1e-14
#: Rounds without improvement after which the search stops; share of the budget kept for proofs.
_PATIENCE, _RESERVE = 6, 0.15
#: Distances of the last pairs in the steepest direction at the anchor: their quotients tend to its derivative.
_LIMIT = (1e-3, 1e-5, 1e-7, 1e-9)


def attack_pairs(
    problem: Problem,
    data: Tensor | None,
    budget: float,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> LowerBound:
    """A lower bound on sup ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain, with a pair as its witness.

    Points start in the steepest directions at the anchor, from data and from random points, near and at the
    boundary; each takes the best of a few moves at a time. The value is what ``evaluate`` proves in float64 of the
    network as captured, so nothing the search does can make it too large.

    Args:
        problem: network, norms, domain and anchor.
        data: (B, *in_shape) float64 points to start from, or None.
        budget: seconds; exceeded by no more than about one evaluation.
        seed: of all random choices.
        device: where the search runs, in float64; the CPU where the device has none.
        progress: called as progress(fraction, text).

    Returns:
        A LowerBound; value 0 with the anchor twice as its witness if no pair proves more.
    """
    assert problem.anchor is not None
    begin = time.perf_counter()
    pool = Pool(begin)
    deadline = begin + budget
    steepest = None
    try:
        try:
            search = _Quotients.of(problem, device)
        except (RuntimeError, TypeError):  # a device without float64
            search = _Quotients.of(problem, torch.device("cpu"))
        if bool(search.net.mask.any()) and size(problem.network.out_shape):
            steepest = _steepest(search, seed)
            _search(search, data, pool, steepest, deadline - _RESERVE * budget, seed, progress, begin)
    except KeyboardInterrupt:  # what has been found is worth proving; a second one ends that too
        deadline = time.perf_counter()
    except (RuntimeError, ValueError, ArithmeticError):  # out of range in float64, say
        pass
    value, witness = _finish(problem, pool, steepest, deadline)
    seconds = time.perf_counter() - begin
    if progress is not None:
        progress(1.0, f"lower bound {value:.6g}")
    history = (*pool.history, (seconds, value))
    return LowerBound(value, witness, problem.norm, problem.domain, seconds, history, anchor=problem.anchor)


@dataclass(eq=False)
class _Quotients:
    """‖f(x) − f(x̂)‖_q/‖x − x̂‖_p of batches (B, *in_shape), in float64."""

    net: SearchNetwork
    region: Region
    anchor: Tensor
    at_anchor: Tensor

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> _Quotients:
        net = SearchNetwork.of(problem, torch.float64, device)
        assert problem.anchor is not None
        anchor = problem.anchor.to(device)[None]
        region = Region.of(problem.domain, problem.network.in_shape, None, anchor.new_zeros(()))
        if problem.domain is None and bool(anchor.any()):
            region = Region(None, region.origin, region.scale * float(anchor.square().mean().sqrt()))
        with torch.no_grad():
            return cls(net, region, anchor, net.network.forward(anchor).reshape(1, -1))

    @property
    def reach(self) -> float:
        """The region's own size, in the norm of the input."""
        return float(lengths((self.region.scale * self.net.mask).reshape(1, -1), self.net.norm[0]))

    def move(self, x: Tensor) -> Tensor:
        """Into the domain, along its own coordinates."""
        return self.region.project(self.anchor + (x - self.anchor) * self.net.mask)

    def at(self, direction: Tensor, distance: float) -> Tensor:
        """(B, *in_shape) points in these directions from the anchor, as far as the domain lets them be."""
        size = lengths(direction.reshape(len(direction), -1), self.net.norm[0]).clamp(min=1e-300)
        return self.move(self.anchor + direction * (distance / size).reshape(_column(direction)))

    def values(self, x: Tensor) -> Tensor:
        """(B,), less what the rounding of the outputs may add."""
        blocks = x.split(max(1, _BATCH_WORK // max(1, self.net.work)))
        with torch.no_grad():
            outputs = torch.cat([self.net.network.forward(block).reshape(len(block), -1) for block in blocks])
        return self._quotient(outputs, x)

    def _quotient(self, outputs: Tensor, x: Tensor) -> Tensor:
        p, q = self.net.norm
        noise = _NOISE * (lengths(outputs, q) + lengths(self.at_anchor, q))
        distance = lengths((x - self.anchor).reshape(len(x), -1), p)
        found = (lengths(outputs - self.at_anchor, q) - noise).clamp(min=0.0) / distance
        return found.nan_to_num(0.0, 0.0, 0.0)

    def gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of ‖f(x) − f(x̂)‖_q, and of the logarithm of the quotient, both (B, *in_shape)."""
        p, q = self.net.norm
        pulled = []
        for block in x.split(max(1, _BATCH_WORK // max(1, self.net.work))):
            with torch.enable_grad():
                point = block.detach().requires_grad_(True)
                difference = self.net.network.forward(point).reshape(len(block), -1) - self.at_anchor
                if not difference.requires_grad:
                    return torch.zeros_like(x), torch.zeros_like(x)
                (gradient,) = torch.autograd.grad(difference, point, dual(difference.detach(), q))
            gain = lengths(difference.detach(), q).clamp(min=1e-300).reshape(_column(block))
            pulled.append(torch.stack([gradient, gradient / gain]))
        rise, relative = torch.cat(pulled, 1).nan_to_num(0.0, 0.0, 0.0) * self.net.mask
        step = (x - self.anchor).reshape(len(x), -1)
        shorter = dual(step, p) / lengths(step, p).clamp(min=1e-300)[:, None]
        return rise, relative - shorter.reshape(x.shape) * self.net.mask


def _column(x: Tensor) -> tuple[int, ...]:
    return (-1, *([1] * (x.dim() - 1)))


def _steepest(search: _Quotients, seed: int) -> Tensor:
    """(k, *in_shape) directions in which f rises most at the anchor, as far as is found."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(4, *search.anchor.shape[1:], generator=generator, dtype=torch.float64).to(search.anchor)
    points = search.anchor.expand(starts.shape)
    values, directions = search.net.gains(points, starts * search.net.mask, iterations=8)
    order = values.nan_to_num(0.0, 0.0, 0.0).argsort(descending=True)
    return (directions * search.net.mask)[order].nan_to_num(0.0, 0.0, 0.0)


def _search(
    search: _Quotients,
    data: Tensor | None,
    pool: Pool,
    steepest: Tensor,
    deadline: float,
    seed: int,
    progress: Progress | None,
    begin: float,
) -> None:
    """Rounds of starts and ascents until time is up or nothing improves."""
    generator = torch.Generator().manual_seed(seed)
    batch = max(2, min(_BATCH, _BATCH_WORK // max(1, search.net.work)))
    idle = number = 0
    while idle < _PATIENCE and (number == 0 or time.perf_counter() < deadline):
        before = pool.best
        x = _first(search, data, steepest, batch, generator) if number == 0 else None
        _ascend(search, _next(search, data, pool, batch, generator) if x is None else x, pool, deadline, generator)
        idle = 0 if pool.best > before * (1.0 + 1e-6) else idle + 1
        number += 1
        if progress is not None:
            share = (time.perf_counter() - begin) / max(deadline - begin, 1e-9)
            progress(min(0.95, share), f"lower bound {pool.best:.6g}")


def _first(search: _Quotients, data: Tensor | None, steepest: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """The steepest directions at several distances, data, and random points: the best ``batch`` of them."""
    points = [search.at(sign * steepest[:2], search.reach * near) for near in _NEAR for sign in (1.0, -1.0)]
    if data is not None:
        points.append(search.move(data[torch.randperm(len(data), generator=generator)[:batch]].to(search.anchor)))
    points.append(_random(search, batch, generator))
    every = torch.cat(points)
    return every[search.values(every).argsort(descending=True)[:batch]]


def _next(search: _Quotients, data: Tensor | None, pool: Pool, batch: int, generator: torch.Generator) -> Tensor:
    """Half of them near the best so far, the others random, or data that are moved from and to the anchor."""
    best = torch.stack([e[1].to(search.anchor) for e in pool.entries]) if pool.entries else search.anchor
    best = best[torch.arange(batch // 2) % len(best)]
    size = lengths((best - search.anchor).reshape(len(best), -1), 2.0).reshape(_column(best))
    noise = torch.randn(best.shape, generator=generator, dtype=torch.float64).to(best)
    spread = torch.tensor([0.03, 0.2, 1.0], dtype=torch.float64).to(best)[torch.arange(len(best)) % 3]
    near = best + noise * spread.reshape(_column(best)) * size / max(1, _entries(best)) ** 0.5
    parts = [search.move(near)]
    left = batch - len(best)
    if data is not None:
        chosen = data[torch.randint(len(data), (left // 2,), generator=generator)].to(search.anchor)
        factor = torch.rand(len(chosen), generator=generator, dtype=torch.float64).to(chosen) * 2.0
        parts.append(search.move(search.anchor + factor.reshape(_column(chosen)) * (chosen - search.anchor)))
        left -= len(chosen)
    return torch.cat([*parts, _random(search, left, generator)])


def _entries(x: Tensor) -> int:
    """Entries of one example of a batch."""
    return x[0].numel()


def _random(search: _Quotients, count: int, generator: torch.Generator) -> Tensor:
    """Random points of the domain, others at its boundary, and on the whole space near and far."""
    noise = torch.randn(count, *search.anchor.shape[1:], generator=generator, dtype=torch.float64).to(search.anchor)
    signs = torch.where(noise >= 0, 1.0, -1.0).to(noise)
    kind = (torch.arange(count, device=noise.device) % 3).reshape(_column(noise))
    noise = torch.where(kind == 0, signs, noise) * search.region.scale
    factor = torch.tensor([_FAR[i // 3 % len(_FAR)] for i in range(count)], dtype=torch.float64).to(noise)
    return search.move(search.anchor + factor.reshape(_column(noise)) * noise)


def _ascend(search: _Quotients, x: Tensor, pool: Pool, deadline: float, generator: torch.Generator) -> None:
    """Each point of a batch takes the best of its moves, until none improves any."""
    p = search.net.norm[0]
    values = search.values(x)
    step = torch.full_like(values, _STEP)
    pool.add(x, values, x)
    for _ in range(_STEPS):
        if time.perf_counter() > deadline or not bool((step > _LEAST).any()):
            break
        rise, relative = search.gradients(x)
        moved, lengths_tried = _moves(search, x, step, rise, relative, p, generator)
        found = search.values(moved.flatten(0, 1)).reshape(moved.shape[:2])
        place = found.argmax(0)
        rows = torch.arange(len(x), device=x.device)
        better = found[place, rows] > values * (1.0 + 1e-12)
        chosen = lengths_tried[place, rows]
        step = torch.where(better & (chosen > 0), chosen, torch.where(better, step, step * 0.1))
        x = torch.where(better.reshape(_column(x)), moved[place, rows], x)
        values = torch.where(better, found[place, rows], values)
    pool.add(x, values, x)


def _moves(
    search: _Quotients, x: Tensor, step: Tensor, rise: Tensor, relative: Tensor, p: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(moves, B, *in_shape) points to try, and the length of the step that each is, 0 for those of another kind."""
    away = x - search.anchor
    distance = lengths(away.reshape(len(x), -1), p).reshape(_column(x))
    length = step.reshape(_column(x)) * lengths(away.reshape(len(x), -1), 2.0).reshape(_column(x))
    best = maximiser(rise.reshape(len(x), -1), p).reshape(x.shape) * search.net.mask
    points = [search.anchor + distance * best, search.anchor + 0.5 * (away + distance * best)]
    points += [search.anchor + factor * away for factor in _SCALED]
    tried = [torch.zeros_like(step)] * len(points)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    directions = [(relative, _LENGTHS), (noise, (1.0,))]
    if p != 2:
        directions.append((torch.sign(relative), (1.0, 0.25)))
    for direction, factors in directions:
        size = lengths(direction.reshape(len(x), -1), 2.0).clamp(min=1e-300).reshape(_column(x))
        for factor in factors:
            points.append(x + factor * length * direction / size)
            tried.append(step * factor)
    return torch.stack([search.move(point) for point in points]), torch.stack(tried)


def _finish(problem: Problem, pool: Pool, steepest: Tensor | None, deadline: float) -> tuple[float, PairWitness]:
    """The best pair after the trusted evaluation."""
    anchor = problem.anchor
    assert anchor is not None
    shape = problem.network.in_shape[1:]
    at = anchor.reshape(shape).clone()
    best = (0.0, PairWitness(at, at))

    def prove(point: Tensor) -> None:
        nonlocal best
        moved = inside(problem.domain, point.double().cpu().reshape(problem.network.in_shape))
        witness = PairWitness(at, moved.reshape(shape).clone())
        try:
            proved = evaluate(problem, witness)
        except (NumericsError, InputError):
            return
        if proved > best[0]:
            best = proved, witness

    for value, point, _ in pool.entries:
        if best[0] >= value * (1.0 - 1e-9) or (best[0] > 0 and time.perf_counter() > deadline):
            break
        prove(point)
    if steepest is None:
        return best
    search = _Quotients.of(problem, torch.device("cpu"))
    for share in _LIMIT:
        if best[0] > 0 and time.perf_counter() > deadline:
            break
        for sign in (1.0, -1.0):
            point = search.at(sign * steepest[:1].cpu(), share * search.reach)
            if float(search.values(point)) > best[0] * (1.0 - 1e-6):
                prove(point[0])
    return best
