"""How much probability of error the statements behind one number may spend together, and whence their randomness.

A probabilistic statement says: for this matrix, a value computed from a random start is wrong with probability at most
δ_i. The matrix, and δ_i, may depend on everything that happened before, earlier starts and failed attempts included; as
the start is drawn afresh, the statement holds given that history. By the union bound the probability that *any*
statement made is wrong is then at most the expected Σ δ_i. So a search may retry, fall back and choose the best of
several results as it likes, as long as every statement that could have been returned draws its δ_i from one budget.
"""

from __future__ import annotations

import torch

from lipcert.numerics.rounding import add_up

#: Probability of error of one Bound: all methods tried, all attempts and all norms together.
TOTAL = 1e-9


class Chance:
    """A budget of probability of error.

    The k-th group of statements takes 0.6 k⁻² of the budget when its first statement is made, and splits that equally
    among its statements. As Σ k⁻² = π²/6 < 1/0.6, no number of groups ever spends more than the budget; the first has
    most of it, the hundredth still enough for a few steps of Lanczos more; and a check that needs no chance spends
    nothing.

    Args:
        delta: the budget, in (0, 1).
        generator: source of the random starts; None, as it has to be where others could know the seed, draws every
            start from a generator seeded with 128 bits of the operating system's entropy.

    Attributes:
        spent: what all groups took so far.
        varies: whether a value, not only the yes to a claim, has come from a random start; another start gives another.
    """

    def __init__(self, delta: float = TOTAL, generator: torch.Generator | None = None) -> None:
        if not 0.0 < delta < 1.0:
            raise ValueError(f"a probability of error lies between 0 and 1, not at {delta!r}")
        self.generator = generator
        self.spent = 0.0
        self.varies = False
        self._delta, self._groups = delta, 0

    def take(self) -> float:
        """The next group's part; the sum of all stays a hundredth below ``delta``, far more than its rounding."""
        self._groups += 1
        part = 0.6 * self._delta / self._groups**2
        self.spent = add_up(self.spent, part)
        return part

    def group(self, count: int) -> Share:
        """A share for about ``count`` statements; taken at the first of them, and anew after ``count`` of them."""
        return Share(self, count)


class Share:
    """The part of a ``Chance`` that a group of statements splits equally."""

    def __init__(self, chance: Chance, count: int) -> None:
        self._chance, self._count = chance, max(1, count)
        self._each, self._left = 0.0, 0

    @property
    def generator(self) -> torch.Generator | None:
        """Source of the random starts."""
        return self._chance.generator

    def draw(self, value: bool = False) -> float:
        """δ of one statement, to be used for it alone; ``value``: it is about a value that the start determines."""
        self._chance.varies |= value
        if not self._left:
            self._each, self._left = self._chance.take() / self._count * (1.0 - 2.0**-50), self._count
        self._left -= 1
        return self._each
