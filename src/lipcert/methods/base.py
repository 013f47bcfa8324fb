"""What a method is, and the registry of methods."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.bound import check
from lipcert.errors import CertificateError, InputError, LipcertError, NotProved, NumericsError, UnsupportedNormError
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Attempt, Bound

Report = Callable[[float, str], None]
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Run:
    """The circumstances of one search.

    Attributes:
        generator: source of randomness (CPU).
        device: where heavy searches may run; checks stay on the CPU.
        budget: seconds an anytime method may use.
        report: called with (fraction done, what is being done) now and then.
        checked: whether the check has to fit in the budget too (else only the search does).
        rigorous: whether only a rigorous bound is wanted.
        spare: whether another bound is at hand: a check that would not fit in the budget is then not worth it.
        repeatable: whether the clock may decide nothing but when the budget ends.
    """

    generator: torch.Generator
    device: torch.device
    budget: float = 60.0
    report: Report = lambda fraction, text: None
    started: float = field(default_factory=time.perf_counter)
    checked: bool = False
    rigorous: bool = False
    spare: bool = False
    repeatable: bool = False

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self.started)


def fork(run: Run, share: float = 1.0) -> Run:
    """The same circumstances with what is left of the budget, at most ``share`` of all of it, starting now."""
    return replace(run, budget=max(0.0, min(run.left, share * run.budget)), started=time.perf_counter())


@dataclass(frozen=True, eq=False)
class Found:
    """What a search returns.

    Attributes:
        witness: what it found.
        weaker: makes a more cautious witness, for when this one proves nothing; it returns None when there is none.
        state: where the search ended, for a later one to start from.
    """

    witness: Witness
    weaker: Callable[[], Found | None] | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def next(self) -> Found | None:
        """The more cautious result, or None."""
        return None if self.weaker is None else self.weaker()

    def before(self, last: Callable[[], Found | None]) -> Found:
        """The same, with ``last`` after the weakest of its own."""

        def weaker() -> Found | None:
            try:
                found = self.next()
            except NotProved:
                found = None
            return last() if found is None else found.before(last)

        return replace(self, weaker=weaker)


def _searched(search: Callable[[], Found | None]) -> Found | None:
    """What a search finds; one that breaks has found nothing, so that another method's bound can be given.

    Raises:
        NotProved: it broke.
    """
    try:
        return search()
    except LipcertError:
        raise
    except Exception as problem:
        raise NotProved(
            f"its search broke ({type(problem).__name__}: {str(problem)[:200]}). This is a bug in lipcert and not in "
            "your model; please report it."
        ) from problem


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]
    norms: ClassVar[tuple[Norm, ...]]
    summary: ClassVar[str]
    #: The method whose bound is returned where this one proves nothing.
    fallback: ClassVar[str | None] = "autolip"

    def solve(self, problem: Problem, run: Run) -> Found:
        """Search a witness for ``problem``; anytime searches take the seconds of ``run.budget``, others what they need.

        Raises:
            MethodError: the method does not apply to this network.
            NotProved: the search ended without anything that a check might accept.
        """
        raise NotImplementedError

    def bound(self, problem: Problem, run: Run, chance: Chance) -> Bound:
        """The Bound of this method, or, where it proves nothing, of ``fallback``: ``tried`` then says why.

        Args:
            problem: what to bound.
            run: circumstances of the search.
            chance: probability of error for all attempts together, and the source of the checks' random starts, which
                has to be independent of the search and of the network.

        Raises:
            NumericsError: no attempt proved anything, or nothing rigorous where that is asked for.
        """
        began = time.perf_counter()
        reason: LipcertError | None = None
        try:
            bound = self.own_bound(problem, run, chance)
        except (NumericsError, UnsupportedNormError) as met:  # the latter: a block without a gain in this norm
            self.require_norm(problem.norm)
            bound, reason = self._fallen_back(problem, run, chance, met), met
        if run.rigorous and bound.guarantee != "rigorous":
            raise NumericsError(
                f"method {self.name!r} proves {bound.value:.6g} here, but only as a {bound.guarantee} bound; leave out "
                "guarantee='rigorous', or ask for it with method='auto'."
            )
        if reason is None:
            return bound
        first = Attempt(self.name, None, None, time.perf_counter() - began, str(reason))
        second = Attempt(bound.method, bound.value, bound.guarantee, bound.seconds)
        return replace(bound, tried=(first, second))

    def _fallen_back(self, problem: Problem, run: Run, chance: Chance, met: LipcertError) -> Bound:
        """The bound of the first method to fall back on that proves one; raises what was met where none does."""
        for name in (self.fallback, LAST_RESORT):
            other = _METHODS.get(name or "")
            if other is None or name == self.name or problem.norm not in other.norms:
                continue
            try:
                return other().own_bound(problem, run, chance)
            except (NumericsError, UnsupportedNormError):
                continue
        raise met

    def own_bound(self, problem: Problem, run: Run, chance: Chance) -> Bound:
        """Solve and check, weaker witnesses after stronger ones: the Bound is the check's; arguments as ``bound``.

        Raises:
            NumericsError: no attempt proved anything.
        """
        failure: LipcertError
        try:
            found = _searched(lambda: self.solve(problem, run))
            while found is not None:
                try:
                    bound = check(problem, found.witness, self.name, chance, run.started)
                except (NotProved, CertificateError) as reason:  # the latter: a search ended in infinities, say
                    failure, found = reason, _searched(found.next)
                else:
                    return replace(bound, state=found.state)
        except NotProved as reason:
            failure = reason
        raise NumericsError(
            f"method {self.name!r} proved no bound here: {failure} Methods that ask for less: liplt, autolip."
        ) from failure

    def obstacle(self, problem: Problem, run: Run) -> str | None:
        """Why this method would not fit the budget of ``run``; None if it may."""
        return None

    def require_norm(self, norm: Norm) -> None:
        """Raise unless this method handles the pair of norms."""
        if norm not in self.norms:
            raise self.impossible(norm)

    def impossible(self, norm: Norm) -> UnsupportedNormError:
        """The error that says which methods can bound this pair of norms."""
        able = [name for name, kind in sorted(_METHODS.items()) if norm in kind.norms and name != "auto"]
        return UnsupportedNormError(
            f"method {self.name!r} cannot bound l{norm[0]:g} → l{norm[1]:g}; "
            + (f"methods that can: {', '.join(able)}." if able else "no method of this version can.")
        )


_METHODS: dict[str, type[Method]] = {}

#: The method that has a bound between all pairs of norms.
LAST_RESORT = "mixed_product"

#: l_p → l_p for p = 1, 2, ∞.
EQUAL_NORMS: tuple[Norm, ...] = ((2.0, 2.0), (1.0, 1.0), (math.inf, math.inf))
#: Every pair.
ALL_NORMS: tuple[Norm, ...] = (*EQUAL_NORMS, *itertools.permutations((1.0, 2.0, math.inf), 2))


def method(kind: T) -> T:
    """Register a method class under its ``name``; a duplicate raises."""
    if kind.name in _METHODS:  # type: ignore[attr-defined]
        raise ValueError(f"two methods named {kind.name!r}")  # type: ignore[attr-defined]
    _METHODS[kind.name] = kind  # type: ignore[attr-defined]
    return kind


def registered() -> dict[str, type[Method]]:
    """name → class of every method."""
    import_module("lipcert.methods.all")  # registers them
    return dict(sorted(_METHODS.items()))


def make(chosen: str | Method) -> Method:
    """A method object from a name or an object."""
    if isinstance(chosen, Method):
        return chosen
    known = registered()
    if not isinstance(chosen, str) or chosen not in known:
        raise InputError(f"unknown method {chosen!r}; methods: {', '.join(known)}.")
    return known[chosen]()


@dataclass(frozen=True)
class MethodInfo:
    """One row of ``lipcert.methods()``."""

    name: str
    summary: str
    norms: tuple[Norm, ...]
    options: dict[str, Any]


def describe() -> tuple[MethodInfo, ...]:
    """Every registered method with its norms and options (name → default)."""
    rows = []
    for name, kind in registered().items():
        options = {f.name: f.default for f in dataclasses.fields(kind)}
        rows.append(MethodInfo(name, kind.summary, kind.norms, options))
    return tuple(rows)
