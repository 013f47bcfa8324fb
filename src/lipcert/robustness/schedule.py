"""Which radius to try next: certified radii and failures bracket the answer, and so do counter-examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: How close the largest certified radius is to be found, relatively, where no radius is given.
PRECISION = 1.01
#: Below the nearest counter-example by this, a proof is close enough, and there is room for one.
BELOW = PRECISION**0.75
#: Factor from the radius that constants certify to that up to which a search is likely to.
LIKELY = 5.0
#: Part of the time left for the least of several radii, where none is likely: if it fails, so do the others.
_LEAST = 0.75
#: Rounds at most.
_MOST = 60
#: Radii beyond this are not tried.
FARTHEST = 1e300


@dataclass
class Bracket:
    """Of one example.

    What is certified at a radius is so at all smaller ones; what failed at one is not tried at larger ones.
    Of given radii those come first that are likely, the largest of them before the others; beyond them the least.

    Attributes:
        radii: those asked for, ascending; None: the largest to 1 %.
        certified: the largest proved.
        attacked: distance of the nearest counter-example.
        failed: the least that was tried in vain.
        likely: up to which a proof is.
        cut: the least of these that only a part of the time was given to; ``had``, at most how many seconds.
        rounds, streak: how many there were, and how many of the last ended well.
        stopped: whether time is over.
    """

    radii: tuple[float, ...] | None
    certified: float = 0.0
    attacked: float = math.inf
    failed: float = math.inf
    likely: float = math.inf
    cut: float = math.inf
    had: float = 0.0
    rounds: int = 0
    streak: int = 0
    stopped: bool = False

    @property
    def top(self) -> float:
        """The largest radius that is of interest."""
        return math.inf if self.radii is None else self.radii[-1]

    def certify(self, radius: float) -> None:
        """It was proved at a radius."""
        self.certified = max(self.certified, radius)

    def attack(self, distance: float) -> None:
        """A counter-example was found."""
        self.attacked = min(self.attacked, distance)

    def fail(self, radius: float, had: float = math.inf) -> None:
        """It was tried in vain, or only for so many seconds as others were still to be tried."""
        self.failed = min(self.failed, radius)
        if had < math.inf and radius < self.cut:
            self.cut, self.had = radius, max(self.had, had)

    @property
    def share(self) -> float:
        """Of the time left the part for the next radius: the others that are given have to be decided in the rest."""
        left = self._left()
        if len(left) > 1 and self.next() == left[0]:
            return _LEAST
        return 1.0 / max(1, len(left).bit_length())

    @property
    def waits(self) -> bool:
        """Whether nothing is left to try but the least radius that failed, which had not all the time."""
        return self.radii is not None and self.cut < math.inf and not self.stopped and self._next() is None

    def reconsider(self, seconds: float) -> None:
        """Where it waits, that radius goes again if there is more time than it had."""
        if not self.waits or not seconds > self.had:
            return
        assert self.radii is not None
        larger = [radius for radius in self.radii if radius > self.cut]
        self.failed, self.cut = larger[0] if larger else math.inf, math.inf

    def tried(self, radius: float) -> None:
        """A round at a radius is over, and what came of it was said."""
        self.rounds += 1
        self.streak = self.streak + 1 if self.certified >= radius else 0

    def stop(self) -> None:
        """No time is left."""
        self.stopped = True

    @property
    def done(self) -> bool:
        """Whether there is nothing left to try."""
        return self.stopped or self._next() is None

    def next(self) -> float:
        """The radius to try now: of given ones the largest likely one first, then the middle of those undecided."""
        radius = self._next()
        assert radius is not None
        return radius

    def _left(self) -> list[float]:
        """Of the radii that are given, those that are not decided."""
        above = min(self.attacked, self.failed)
        return [r for r in self.radii or () if self.certified < r < above]

    def _next(self) -> float | None:
        above = min(self.attacked, self.failed)
        if self.radii is not None:
            left = self._left()
            if not left:
                return None
            if self.failed < math.inf:
                return left[len(left) // 2]
            return max((radius for radius in left if radius <= self.likely), default=left[0])
        if self.rounds > _MOST or min(above, FARTHEST) <= self.certified * PRECISION:
            return None
        if math.isinf(above):
            return min(2.0 * self.certified, FARTHEST) if self.certified > 0 else 1.0
        middle = math.sqrt(self.certified) * math.sqrt(above)  # their product may be beyond floats
        if math.isinf(self.failed):
            return min(max(self.attacked / BELOW, middle), FARTHEST)
        if self.certified == 0.0:
            return above / 2.0 if above > 1e-300 else None
        return min(self.certified * PRECISION ** (2 ** min(self.streak, 10)), middle)
