"""Searches for what proves that examples keep their class; what they return was checked."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.errors import CertificateError, NotProved
from lipcert.network.graph import AffineNode
from lipcert.ranges.build import applied
from lipcert.robustness.checks import Claim, Facts, Margins, Part, margins, write_proof
from lipcert.search.cost_to_go.ascent import ascend
from lipcert.search.cost_to_go.inputs import Domains
from lipcert.search.cost_to_go.settings import Settings

#: Checks that a proof is stretched by, and how close the ends of the interval of radii get.
_SECANTS, _CLOSE = 6, 1.002


@dataclass(frozen=True, eq=False)
class Asked:
    """A claim to be proved.

    Attributes:
        claim: it.
        starts: (m − 1, *in_shape) points of its domain where the margins are low, for the other classes in order.
        between: None, or radii: what is proved at another radius between them is welcome, too.
    """

    claim: Claim
    starts: Tensor
    between: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Proof:
    """What a prover found for a claim.

    Attributes:
        method: name of the check.
        content: its bytes.
        radius: of the claim that it proves.
        margins: what the check said.
    """

    method: str
    content: bytes
    radius: float
    margins: Margins

    @property
    def margin(self) -> float:
        """The least of all classes, with room for other machines; positive."""
        return float(self.margins.sure.min())


class Prover(Protocol):
    """One step of the cascade."""

    def prove(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        """Try claims together; None for what was not proved, at no radius. It ends about ``until`` (perf_counter)."""


def proved(method: str, facts: Facts, claim: Claim, content: bytes = b"") -> Proof | None:
    """A proof, if the check says that it is one."""
    found = _checked(method, facts, claim, content)
    return found if found is not None and found.margin > 0.0 else None


def _checked(method: str, facts: Facts, claim: Claim, content: bytes) -> Proof | None:
    """What the check says, whatever the sign."""
    try:
        return Proof(method, content, claim.radius, margins(method, facts, claim, content))
    except (NotProved, CertificateError):
        return None


def stretched(method: str, facts: Facts, asked: Asked, content: bytes) -> Proof | None:
    """A proof at the radius that is asked, or at about the largest between two radii at which the content is one.

    What it proves falls as the radius grows: the root is bracketed, and found by secants.
    """
    first = _checked(method, facts, asked.claim, content)
    if first is None:
        return None
    best = first if first.margin > 0.0 else None
    if asked.between is None:
        return best
    low, high = asked.between
    low, high = (first.radius, high) if best else (low, min(high, first.radius))
    points = [(first.radius, first.margin)]
    for _ in range(_SECANTS):
        if not 0.0 < low * _CLOSE < high < math.inf:
            break
        radius = _root(points, low, high)
        found = _checked(method, facts, Claim(asked.claim.x, asked.claim.label, radius), content)
        if found is None or not found.margin > 0.0:
            high = radius
        else:
            best, low = found, radius
        if found is not None and math.isfinite(found.margin):
            points = [*points[-1:], (radius, found.margin)]
    return best


def _root(points: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Just below where the line through two points is 0; the middle where that is not between the ends."""
    middle = math.sqrt(low * high)
    if len(points) < 2 or points[0][1] == points[1][1]:
        return middle
    (a, at_a), (b, at_b) = points
    guess = (b - at_b * (b - a) / (at_b - at_a)) * (1.0 - 5e-4)
    return guess if low * 1.0005 < guess < high * 0.9999 else middle


@dataclass(frozen=True, kw_only=True)
class CostToGo:
    """The quadratic cost-to-go, on ranges by intervals and prefixes, or by linear bounds too.

    Attributes:
        linear: whether linear bounds tighten the ranges: slower, and tighter on networks of large norms.
        steps: of the ascent.
        device: where it runs.
        seed: of its random starts.
    """

    name: ClassVar[str] = "cost_to_go"

    linear: bool = False
    steps: int = 300
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def prove(self, facts: Facts, asked: Sequence[Asked], until: float) -> list[Proof | None]:
        """Ranges first, then multipliers for the classes that these leave open."""
        with torch.no_grad():
            settings: list[Setting] = []
            for one in asked:
                if time.perf_counter() > until:
                    break
                settings.append(Setting(facts.subject.facts, facts.domain(one.claim), self.linear))
        asked_here = asked[: len(settings)]
        open_ = [self._open(facts, one.claim, s) for one, s in zip(asked_here, settings, strict=True)]
        places = [(i, k) for i, classes in enumerate(open_) for k in classes]
        bends = any(applied(node) is not None for node in facts.subject.network.nodes)
        found = self._search(facts, asked_here, settings, places) if places and bends else {}
        result = [self._proof(facts, one, open_[i], found, i) for i, one in enumerate(asked_here)]
        return [*result, *[None] * (len(asked) - len(asked_here))]

    def _proof(
        self, facts: Facts, asked: Asked, open_: list[int], found: Mapping[tuple[int, int], Multipliers], place: int
    ) -> Proof | None:
        """Of one claim, by the multipliers found for the classes that were open."""
        method, content = "linear_bounds" if self.linear else "ranges", b""
        if open_:
            pieces = {k: found[place, k] for k in open_ if (place, k) in found}
            if len(pieces) < len(open_):
                return None
            method, content = self.name, write_proof(_joined(pieces), self.linear)
        return stretched(method, facts, asked, content)

    def _open(self, facts: Facts, claim: Claim, setting: Setting) -> list[int]:
        """Places of the classes that constants and ranges leave open."""
        with torch.no_grad():
            plain = setting.plain(facts.rows(claim))
        return (~((facts.by_constants(claim).sure > 0.0) | (plain > 0.0))).nonzero().reshape(-1).tolist()

    def _search(
        self, facts: Facts, asked: Sequence[Asked], settings: Sequence[Setting], places: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], Multipliers]:
        network = facts.subject.network
        kept = sorted({i for i, _ in places})
        number = {i: place for place, i in enumerate(kept)}
        boxes = [
            (
                torch.stack([settings[i].boxes[k].low for i in kept]),
                torch.stack([settings[i].boxes[k].high for i in kept]),
            )
            for k in range(len(network.nodes))
        ]
        rows = torch.stack([facts.rows(asked[i].claim, [k])[0] for i, k in places])
        starts = torch.stack([asked[i].starts[k] for i, k in places])
        example = torch.tensor([number[i] for i, _ in places])

        def prove(which: Tensor, multipliers: Multipliers) -> Tensor:
            values = torch.full((len(which),), -math.inf, dtype=torch.float64)
            for i in sorted({places[w][0] for w in which.tolist()}):
                at = torch.tensor([place for place, w in enumerate(which.tolist()) if places[w][0] == i])
                try:
                    values[at] = lower_bounds(settings[i], rows[which[at]], multipliers.map(lambda t, at=at: t[at]))[0]  # type: ignore[misc]
                except (NotProved, CertificateError):
                    continue
            return values

        norms = {
            k: [n.value for n in facts.subject.facts.norms(k)]
            for k, node in enumerate(network.nodes)
            if isinstance(node, AffineNode)
        }
        domains = _domains(facts, [asked[i].claim for i in kept])
        search = Settings(steps=self.steps, device=self.device, seed=self.seed)
        try:
            found = ascend(network, norms, boxes, domains, rows, example, starts, search, prove)
        except Exception as problem:  # what a search does not find, another may
            warnings.warn(
                f"the search of the cost-to-go broke ({type(problem).__name__}: {str(problem)[:200]}): examples stay "
                "open that might be certified. This is a bug in lipcert; please report it.",
                stacklevel=2,
            )
            return {}
        return {
            place: multipliers
            for place, multipliers, value in zip(places, found.multipliers, found.proved.tolist(), strict=True)
            if multipliers is not None and (value > 0.0 or asked[place[0]].between is not None)
        }


def _domains(facts: Facts, claims: Sequence[Claim]) -> Domains:
    """As the search sees them: of a ball within limits the ball, but for l∞; the check counts the limits in."""
    centre = torch.stack([c.x for c in claims])
    limits = facts.threat.clip if facts.threat.norm == math.inf else None
    low, high = limits or (-math.inf, math.inf)
    ends = (torch.full_like(centre, low), torch.full_like(centre, high))
    return Domains(centre, torch.tensor([c.radius for c in claims], dtype=torch.float64), facts.threat.norm, *ends)


def _joined(found: Mapping[int, Multipliers]) -> list[Part]:
    """Classes whose multipliers are of the same kinds go together."""
    groups: dict[tuple[str, ...], dict[int, dict[str, Tensor]]] = {}
    for k, multipliers in sorted(found.items()):
        arrays = multipliers.arrays()
        kinds = tuple(f"{name}{tuple(t.shape)}" for name, t in sorted(arrays.items()))
        groups.setdefault(kinds, {})[k] = arrays
    return [
        Part(list(group), {name: torch.cat([arrays[name] for arrays in group.values()]) for name in first})
        for group in groups.values()
        for first in [next(iter(group.values()))]
    ]
