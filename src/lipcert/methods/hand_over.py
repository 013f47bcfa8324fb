"""LipSDP is never above LipLT or AutoLip where these are cheap: where its own gap is open, theirs is looked at too."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from lipcert.errors import LipcertError
from lipcert.guarantee import STRENGTH
from lipcert.methods.autolip import AutoLip
from lipcert.methods.base import Run
from lipcert.methods.estimates import estimate
from lipcert.methods.liplt import LipLT
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.result import Attempt, Bound

#: Seconds that another bound may take, and the share of the seconds of the bound at hand.
SECONDS, SHARE = 0.5, 0.1

#: Power steps of the look at AutoLip's value from below.
STEPS = 3


def smallest(asked: str, bound: Bound, tolerance: float, problem: Problem, run: Run, chance: Chance) -> Bound:
    """``bound``, or a smaller one of a cheaper method that is no less sure; ``tried`` then has a row of each.

    In the l2 → l2 norm neither LipLT nor AutoLip is below the relaxation's optimum, nor that below the dual value that
    the search ended with: within ``tolerance`` of it there is nothing to look for.

    Args:
        asked: name of the method that was asked for.
        bound: what it, or its fallback, proved.
        tolerance: relative distance from the dual value that the method counts as none.
        problem, run, chance: as for ``Method.bound``.
    """
    if (bound.value == 0.0 and bound.log10 is None) or closed(bound, tolerance, problem):
        return bound
    rows = list(bound.tried) or [Attempt(asked, bound.value, bound.guarantee, bound.seconds)]
    seconds = max(SECONDS, SHARE * bound.seconds)
    best, tried = bound, False
    for other in (LipLT(), AutoLip()):
        if problem.norm not in other.norms or other.name == bound.method:
            continue
        own = replace(run, budget=seconds, started=time.perf_counter(), checked=True, spare=True)
        own = replace(own, rigorous=bound.guarantee == "rigorous")
        if other.obstacle(problem, own) is not None or (other.name == AutoLip.name and _hopeless(problem, best, own)):
            continue
        began = time.perf_counter()
        try:
            found = other.own_bound(problem, own, chance)
        except LipcertError:
            continue
        tried = True
        spent = time.perf_counter() - began
        sure = STRENGTH.index(found.guarantee) >= STRENGTH.index(bound.guarantee)
        rows.append(Attempt(other.name, found.value, found.guarantee, spent, "" if sure else "less sure"))
        if sure and _size(found) < _size(best):
            best = found
        if other.name == LipLT.name and sure:  # it is never above AutoLip
            break
    if not tried:
        return bound
    delta = 0.0 if best.guarantee == "rigorous" else chance.spent
    if best is bound:
        return replace(bound, delta=delta)
    whole = time.perf_counter() - run.started
    return replace(best, tried=tuple(rows), delta=delta, seconds=whole, state=bound.state)


def closed(bound: Bound, tolerance: float, problem: Problem) -> bool:
    """Whether the bound is within the tolerance of a value that no LipLT and no AutoLip is below."""
    witness = bound.certificate.witness if bound.certificate is not None else None
    if witness is None or witness.kind != "quadratic" or problem.norm != (2.0, 2.0):
        return False
    if witness.settings.get("route") != "dense":  # its search is for neurons grown by a margin
        return False
    unit = int(witness.arrays["exponents"][-1])
    below = float(witness.settings["dual_value"])
    if not (0.0 < below < math.inf and abs(unit) < 1000 and 0.0 < bound.value < math.inf):
        return False
    return math.log2(bound.value) - unit <= math.log2(below * (1.0 + 1.01 * tolerance))


def _hopeless(problem: Problem, bound: Bound, run: Run) -> bool:
    """Whether some power steps on every norm, all from below, already give a product above the bound."""
    if problem.norm != (2.0, 2.0):
        return False
    try:
        return estimate(problem, "power_iteration", steps=STEPS, generator=run.generator).value > bound.value
    except (LipcertError, ValueError):
        return False


def _size(bound: Bound) -> tuple[float, float]:
    """For comparison: the value, and its logarithm where that over- or underflows."""
    return bound.value, -math.inf if bound.log10 is None else bound.log10
