"""Which norms of a network are worth which work, so that all of them fit in the seconds there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lipcert.certificates.layer_product import claim_slots
from lipcert.certificates.norms.operator_norm import TARGET, Route, lanczos_steps, writable
from lipcert.increments import Increments
from lipcert.methods.cost import SWEEP, operations_per_second, seconds_of
from lipcert.network.linear import Dense, LinearMap
from lipcert.network.stacked import Stacked

Slot = tuple[int, int]

#: Relative inflation that passes aim at where there is no time for TARGET.
ROUGH = 0.1
#: Lanczos steps, in float32 and about half as dear, of a proposal.
_PROPOSAL = 40.0


@dataclass(frozen=True)
class Effort:
    """A route for every norm, and the inflation that passes aim at."""

    routes: Mapping[Slot, Route]
    target: float = TARGET


def maps_of(increments: Increments) -> dict[Slot, LinearMap]:
    """The map of every slot of ``claim_slots`` for p = 2."""
    maps: dict[Slot, LinearMap] = {}
    for position, term in claim_slots(increments, 2.0):
        own = increments.linears[position].maps
        maps[position, term] = own[term] if term >= 0 else Stacked(own)
    return maps


def seconds_at_best(maps: Mapping[Slot, LinearMap]) -> float:
    """About what all norms take where each is given the work that it is worth."""
    prices = [_Price.of(linear) for linear in maps.values()]
    return sum(price.seconds(price.ladder(False)[0], TARGET) for price in prices)


def plan_norms(maps: Mapping[Slot, LinearMap], seconds: float, rigorous: bool) -> Effort:
    """The best routes that fit in ``seconds``: written, and where that is too dear passes, then sums.

    Norms are moved to the next cheaper route one by one, the one first that saves the most.

    Args:
        maps: the linear map of every norm.
        seconds: what search and check of all norms together may take.
        rigorous: whether passes, which are probabilistic, are ruled out.
    """
    prices = {slot: _Price.of(linear) for slot, linear in maps.items()}
    ladders = {slot: price.ladder(rigorous) for slot, price in prices.items()}
    for target in (TARGET, ROUGH):
        at = dict.fromkeys(maps, 0)
        total = sum(prices[slot].seconds(ladder[0], target) for slot, ladder in ladders.items())
        while total > seconds:
            savings = {
                slot: prices[slot].seconds(ladder[at[slot]], target)
                - prices[slot].seconds(ladder[at[slot] + 1], target)
                for slot, ladder in ladders.items()
                if at[slot] + 1 < len(ladder)
            }
            if not savings:
                break
            dearest = max(savings, key=lambda slot: savings[slot])
            total -= savings[dearest]
            at[dearest] += 1
        effort = Effort({slot: ladders[slot][place] for slot, place in at.items()}, target)
        if "sums" not in effort.routes.values():
            break
    return effort


@dataclass(frozen=True)
class _Price:
    """What the routes of one norm cost."""

    written: float
    one_pass: float
    steps: Mapping[float, float]
    entries: int
    writable: bool

    @classmethod
    def of(cls, linear: LinearMap) -> _Price:
        """Measured by one pass; a matrix is written by as many as it has columns, sixteen about as dear as four."""
        x = torch.ones(1, *linear.in_shape, dtype=torch.float64)
        here = linear.to(torch.float64, "cpu")
        one_pass = seconds_of(lambda: here.gram(x))
        if one_pass < 0.02 or linear.in_size + linear.out_size < 20_000:  # the first call may have been for much else
            one_pass = min(one_pass, seconds_of(lambda: here.gram(x)))
        short, long = sorted((linear.in_size, linear.out_size))
        written = (2.0 * short**2 * long + 3.0 * short**3) / operations_per_second()
        if not isinstance(linear, Dense):
            written += 0.15 * linear.in_size * one_pass
        steps = {t: float(lanczos_steps(linear.in_size, 1e-12, t)) if linear.in_size else 0.0 for t in (TARGET, ROUGH)}
        return cls(written, one_pass, steps, linear.in_size, writable(linear))

    def seconds(self, route: Route, target: float) -> float:
        """Search and check by this route."""
        sums = 8.0 * self.one_pass
        if route == "sums":
            return sums
        if route == "written":
            return sums + self.written
        steps = self.steps[target]
        return sums + (steps + _PROPOSAL) * self.one_pass + SWEEP * self.entries * steps**2

    def ladder(self, rigorous: bool) -> tuple[Route, ...]:
        """The routes there are, best first."""
        if not self.writable:
            return ("sums",) if rigorous else ("passes", "sums")
        if rigorous or self.seconds("passes", TARGET) > self.written:
            return ("written", "sums")
        return ("written", "passes", "sums")
