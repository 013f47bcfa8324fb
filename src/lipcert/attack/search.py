"""The attack: starts, homotopy rounds, pattern moves, and a witness that the trusted end accepts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.attack.homotopy import FIRST, REFINE, anneal, planned_steps
from lipcert.attack.jacobian import SearchNetwork
from lipcert.attack.moves import climb
from lipcert.attack.norms import maximiser
from lipcert.attack.pairs import attack_pairs
from lipcert.attack.pool import FINALISTS, Pool
from lipcert.attack.region_walk import walk
from lipcert.attack.settle import finish
from lipcert.attack.starts import Region
from lipcert.errors import InputError
from lipcert.network.linear import Shape, size
from lipcert.problem import Problem
from lipcert.result import LowerBound

Progress = Callable[[float, str], None]

#: Scalars a batch of starts may touch in one pass, and the largest batch.
_BATCH_WORK, _BATCH = 250_000, 64
#: Share of the budget kept for the last pattern moves, and steps' worth of time kept for the float64 end.
_RESERVE, _RESERVED_STEPS = 0.2, 8
#: Starts that a large network's ascent follows together, if as many times so many steps fit 0.4 of the budget.
_TRACKS, _TRACK_STEPS = 6, 100
#: Gains outside [_SMALL, 1/_SMALL] are searched in float64.
_SMALL = 1e-20
#: Rounds without improvement after which the search stops.
_PATIENCE = 12
#: Share of the budget for the walk over regions, and rounds without improvement that end the search after one.
_WALK, _PATIENCE_AFTER_WALK = 0.6, 4
#: Share of the budget for a first look at inputs with a pattern, and how many of them.
_LOOK, _LOOKED_AT = 0.1, 96
#: Steps of a round that refines the best point, against the size of that point.
_REFINED = 0.3
#: Random points that are looked at before a round, per start and step of the round.
_SCREENED = 0.25


def attack(
    problem: Problem,
    inputs: Tensor | None = None,
    budget: float = 20.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> LowerBound:
    """A lower bound on L_{p,q}(f; D), with a witness, by the softplus homotopy and activation-pattern moves.

    With an anchor another search looks for pairs of points: :func:`lipcert.attack.pairs.attack_pairs`.

    The search runs in float32 (float64 if that under- or overflows) on ``device``; the value is that of
    :func:`lipcert.attack.witness.evaluate` in float64 on the network as captured, so nothing the search does
    can make it too large. The search stops early when it no longer improves. All nine pairs of p, q in {1, 2,
    inf} work; for (2,1), (inf,1) and (inf,2), whose matrix norms are NP-hard, the best direction at a point
    is itself a heuristic.

    Args:
        problem: network, norms, domain, anchor.
        inputs: (B, *shape) data points to start from (projected to the domain), without the graph's batch of
            1.
        budget: seconds; exceeded by no more than about one evaluation.
        seed: of all random choices. The result repeats as long as the same number of steps fits the budget.
        device: where the search runs; None: the CPU.
        progress: called as progress(fraction, text).

    Returns:
        A LowerBound; value 0 with a zero direction if no better point passes the check. An interrupt (Ctrl-C) ends
        the search, and the best point so far is returned.

    Raises:
        InputError: inputs of a wrong shape, NaN in them, or a budget that is not a number ≥ 0.
    """
    if not budget >= 0:
        raise InputError(f"budget must be a number of seconds ≥ 0, not {budget}.")
    begin = time.perf_counter()
    pool = Pool(begin)
    target = torch.device("cpu" if device is None else device)
    data = _checked_inputs(inputs, problem.network.in_shape)
    if problem.anchor is not None:
        return attack_pairs(problem, data, budget, seed, target, progress)
    try:
        for dtype in (torch.float32, torch.float64):
            try:
                if _search(problem, data, pool, dtype, target, begin, budget, seed, progress):
                    break
            except (RuntimeError, ValueError, ArithmeticError):  # out of range in this precision, say
                continue
            pool.entries.clear()
        deadline = begin + budget
    except KeyboardInterrupt:  # what has been found is worth proving; a second one ends that too
        deadline = time.perf_counter()
    value, witness = finish(problem, pool, deadline, seed)
    seconds = time.perf_counter() - begin
    if progress is not None:
        progress(1.0, f"lower bound {value:.6g}")
    return LowerBound(value, witness, problem.norm, problem.domain, seconds, (*pool.history, (seconds, value)))


def _checked_inputs(inputs: Tensor | None, in_shape: Shape) -> Tensor | None:
    if inputs is None or len(inputs) == 0:
        return None
    if inputs.dim() < 1 or inputs[0].numel() != size(in_shape):
        raise InputError(f"inputs have shape {tuple(inputs.shape)}; expected (B, {', '.join(map(str, in_shape[1:]))}).")
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("inputs hold NaN or infinity.")
    return inputs.detach().double().reshape(len(inputs), *in_shape)


def _search(
    problem: Problem,
    data: Tensor | None,
    pool: Pool,
    dtype: torch.dtype,
    device: torch.device,
    begin: float,
    budget: float,
    seed: int,
    progress: Progress | None,
) -> bool:
    """Fill the pool; False if the gains leave the comfortable range of float32."""
    search = SearchNetwork.of(problem, dtype, device)
    if not bool(search.mask.any()) or not size(problem.network.out_shape):
        return True
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=dtype, device=device)
    region = Region.of(problem.domain, problem.network.in_shape, data, like)
    batch = max(1, min(_BATCH, _BATCH_WORK // max(1, search.work)))
    deadline = begin + budget * (1 - _RESERVE)

    def expired() -> bool:
        return time.perf_counter() > deadline

    x = _starts(region, data, pool, batch, generator, fresh=True)
    v = _directions(search, x, generator)
    search.measure(x)
    values, best = search.gains(x, v)
    pool.add(x, values, best)
    if dtype == torch.float32 and not (_SMALL < pool.best < 1 / _SMALL and bool(torch.isfinite(values).all())):
        return False
    if search.linear or expired():
        return True
    share = _LOOK if data is None else 0.3 * _LOOK
    looked = _look(search, region, pool, generator, min(deadline, time.perf_counter() + share * budget))
    per_step = _step_seconds(search, region, x, v, pool, expired)
    if batch < _TRACKS and _TRACKS * _TRACK_STEPS * per_step <= 0.4 * budget:  # one start alone is a matter of luck
        batch = _TRACKS
        x = _starts(region, data, pool, batch, generator, fresh=True)
        per_step = _step_seconds(search, region, x, _directions(search, x, generator), pool, expired)
    end = begin + min(budget * 0.95, budget - _RESERVED_STEPS * per_step)
    deadline = min(deadline, end)
    steps = planned_steps(per_step, budget)
    looks = int(batch * steps * _SCREENED)
    idle = number = 0
    patience = _PATIENCE
    typical, near, began = search.scales, True, 0.0
    while not expired() and idle < (patience if pool.best > 0 else 2):
        before = pool.best
        refine = number % 2 == 1
        if not refine:
            near = near if pool.best > began * (1 + 1e-5) else not near
            began = pool.best
        here = _around(region, pool, refine) if near else region
        x = _starts(here, data, pool, batch, generator, fresh=number == 0, refine=refine)
        best = _directions(search, x, generator)
        if number == 0 and looked is not None:
            looked = looked[: len(x) if data is None else max(1, len(x) // 16)]
            x[-len(looked) :] = looked
        search.scales = typical
        if near:
            search.measure(x)
        if not refine:
            _screen(search, here, x, best, pool, generator, looks)
        x, v = anneal(
            search,
            here,
            x,
            best,
            steps,
            max(2, steps // 12),
            pool.add,
            expired,
            REFINE if refine else FIRST,
        )
        if not expired():
            pool.add(x, *search.gains(x, v))
            _climb_all(search, here, pool, 2, min(deadline, time.perf_counter() + 0.05 * budget))
        idle = 0 if pool.best > before * (1 + 1e-5) else idle + 1
        number += 1
        if number == 1 and _walk(problem, data, pool, generator, min(deadline, time.perf_counter() + _WALK * budget)):
            patience = _PATIENCE_AFTER_WALK
        if progress is not None:
            progress(min(0.95, (time.perf_counter() - begin) / max(budget, 1e-9)), f"lower bound {pool.best:.6g}")
    _climb_all(search, region, pool, FINALISTS, end)
    return True


def _step_seconds(
    search: SearchNetwork, region: Region, x: Tensor, v: Tensor, pool: Pool, expired: Callable[[], bool]
) -> float:
    """Seconds of one step of the ascent; the first call also pays for warming up."""
    seconds = 0.0
    for _ in range(2):
        clock = time.perf_counter()
        anneal(search, region, x, v, 1, 2, pool.add, expired)
        seconds = time.perf_counter() - clock
        if seconds > 1.0:
            break
    return seconds


def _around(region: Region, pool: Pool, refine: bool) -> Region:
    """The region at the scale of the best point so far, a fraction of it to refine that point."""
    if not pool.entries:
        return region
    best = pool.entries[0][1].to(region.origin)
    return region.scaled_to(best) if not refine else region.scaled_to(best, _REFINED)


def _walk(problem: Problem, data: Tensor | None, pool: Pool, generator: torch.Generator, deadline: float) -> bool:
    """The walk over activation regions, from the best points so far, data and random points; False if not for it."""
    region = Region.of(problem.domain, problem.network.in_shape, data, torch.zeros((), dtype=torch.float64))
    starts = [region.sample(8, generator), region.patterned(6, generator)]
    starts += [e[1].double().cpu()[None] for e in pool.entries]
    if data is not None:
        starts.append(data[torch.randperm(len(data), generator=generator)[:8]])
    points = region.project(torch.cat(starts))
    return walk(problem, region, points, lambda: time.perf_counter() > deadline, pool.add)


def _look(
    search: SearchNetwork, region: Region, pool: Pool, generator: torch.Generator, deadline: float
) -> Tensor | None:
    """Judge constant, smooth and sparse inputs; the steepest are starts of the first round."""
    points = torch.cat([region.steep(), region.patterned(_LOOKED_AT, generator)])
    block = max(1, min(_BATCH, _BATCH_WORK // max(1, search.work)))
    seen, gains = [], []
    for part in points[torch.randperm(len(points), generator=generator)].split(block):
        if time.perf_counter() > deadline:
            break
        values, directions = search.gains(part, _directions(search, part, generator))
        pool.add(part, values, directions)
        seen.append(part)
        gains.append(torch.nan_to_num(values, 0.0, 0.0, 0.0))
    if not seen:
        return None
    order = torch.cat(gains).argsort(descending=True)
    return torch.cat(seen)[order[: max(_TRACKS, block // 4)]]


def _climb_all(search: SearchNetwork, region: Region, pool: Pool, count: int, deadline: float) -> None:
    """Pattern moves from the ``count`` best points, the best first."""
    if not search.kinked:
        return
    for value, point, direction in list(pool.entries[:count]):
        climb(
            search,
            region,
            point[None].to(region.origin),
            direction[None].to(region.origin),
            value,
            lambda: time.perf_counter() > deadline,
            pool.add,
        )


def _starts(
    region: Region,
    data: Tensor | None,
    pool: Pool,
    batch: int,
    generator: torch.Generator,
    fresh: bool,
    refine: bool = False,
) -> Tensor:
    """Data (plain at first, then disturbed), random points and the best so far (``refine``: only it)."""
    parts: list[Tensor] = []
    noise = 0.0 if fresh else 0.5
    if data is not None and not refine:
        chosen = data[torch.randperm(len(data), generator=generator)[: max(1, batch // 2)]].to(region.origin)
        parts.append(chosen + noise * region.scale * torch.randn(chosen.shape, generator=generator).to(chosen))
    if not fresh and pool.entries:
        best = torch.stack([e[1].to(region.origin) for e in pool.entries])
        again = batch // 4 if batch > 2 * _TRACKS else batch // 2
        best = best[torch.arange(batch if refine else max(1, again)) % len(best)]
        spread = torch.tensor([0.03, 0.1, 0.3])[torch.arange(len(best)) // FINALISTS % 3].to(best)
        spread = spread.reshape(-1, *([1] * (best.dim() - 1)))
        parts.append(best + spread * region.scale * torch.randn(best.shape, generator=generator).to(best))
    left = batch - sum(len(p) for p in parts)
    if left > 0:
        patterned = 0 if refine else left // (3 if data is None else 8)
        parts += [region.sample(left - patterned, generator), region.patterned(patterned, generator)]
    return region.project(torch.cat(parts)[:batch])


def _screen(
    search: SearchNetwork,
    region: Region,
    x: Tensor,
    v: Tensor,
    pool: Pool,
    generator: torch.Generator,
    count: int,
) -> None:
    """Replace the last third of the starts (x, v), in place, by the best of ``count`` random points."""
    part = len(x) // 3
    block = max(len(x), min(count, search.exact_batch))
    if not part or count < len(x):
        return
    kept = (torch.zeros(part).to(x), x[-part:].clone(), v[-part:].clone())
    for _ in range(max(1, count // block)):
        points = region.sample(block, generator)
        values, directions = search.gains(points, _directions(search, points, generator))
        pool.add(points, values, directions)
        values = torch.nan_to_num(torch.cat([kept[0], values]), 0.0, 0.0, 0.0)
        top = values.argsort(descending=True)[:part]
        kept = (values[top], torch.cat([kept[1], points])[top], torch.cat([kept[2], directions])[top])
    x[-part:], v[-part:] = kept[1], kept[2]


def _directions(search: SearchNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator).to(x)
    return maximiser((noise * search.mask).reshape(len(x), -1), search.norm[0]).reshape(x.shape) * search.mask
