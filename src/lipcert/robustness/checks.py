"""What proves that an example keeps its class: one check per method, used by the search and by ``verify`` alike."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.counter_example import counter_example
from lipcert.certificates.outputs import ROOM, Subject, prove_outputs
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import CertificateError, LipcertError, NotProved
from lipcert.guarantee import Guarantee, weakest
from lipcert.network.graph import Network
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.executed import Rounding
from lipcert.robustness.pair_constants import PairConstants, classes_of, rows_against
from lipcert.robustness.threat import Threat


@dataclass(frozen=True, eq=False)
class Claim:
    """f_label − f_k > 0 for every other class k, and all inputs that the threat allows within ``radius`` of ``x``.

    Where the network that runs in float32 is meant, f is that, and the inputs are the float32 tensors among these.

    Attributes:
        x: the example, float64, of the network's ``in_shape``.
        label: its class.
        radius: positive.
    """

    x: Tensor
    label: int
    radius: float


@dataclass(frozen=True, eq=False)
class Margins:
    """Lower bounds of f_label − f_k for every other class k, in order, (m − 1,).

    Attributes:
        least: the bounds.
        size: of what was added up, so of what other machines may round differently.
        guarantee: how sure they are.
    """

    least: Tensor
    size: Tensor
    guarantee: Guarantee

    @property
    def sure(self) -> Tensor:
        """With room for the arithmetic of other machines."""
        return self.least - ROOM * self.size.nan_to_num(0.0, 0.0)

    def less(self, lost: Tensor) -> Margins:
        """What is left where each may be less by ``lost``, (m − 1,) from 0, inf included."""
        least = torch.nextafter(self.least - lost, torch.tensor(-math.inf, dtype=torch.float64))
        return Margins(least.nan_to_num(-math.inf, math.inf, -math.inf), self.size + lost, self.guarantee)

    def or_else(self, other: Margins) -> Margins:
        """The greater of two true bounds, class by class."""
        better = other.sure > self.sure
        kinds: list[Guarantee] = [m.guarantee for m, used in ((self, ~better), (other, better)) if bool(used.any())]
        return Margins(
            torch.where(better, other.least, self.least), torch.where(better, other.size, self.size), weakest(kinds)
        )


@dataclass(frozen=True, eq=False)
class Facts:
    """What all claims about one network share.

    Attributes:
        network: the model as captured, in the units of the threat.
        threat: what an adversary may do.
        constants: Lipschitz constants of pairs of outputs, each true of all pairs.
        rounding: what the execution in float32 may take from margins, where claims are about that; else None.
    """

    network: Network
    threat: Threat
    constants: tuple[PairConstants, ...] = ()
    rounding: Rounding | None = None
    _centres: dict[bytes, Margins] = field(default_factory=dict, repr=False)

    @cached_property
    def subject(self) -> Subject:
        """As checks of outputs see it."""
        return Subject(self.network)

    @cached_property
    def classes(self) -> int:
        """How many there are."""
        return classes_of(self.network)

    def domain(self, claim: Claim) -> Ball | Intersection:
        """Where a claim is to hold."""
        return self.threat.domain(claim.x, claim.radius)

    def searched(self, claim: Claim) -> Ball | Intersection:
        """Where multipliers are looked for: limits are left to the check but for l∞, where they cost nothing."""
        domain = self.domain(claim)
        return domain if self.threat.norm == math.inf or isinstance(domain, Ball) else domain.ball

    def rows(self, claim: Claim, classes: Sequence[int] | None = None) -> Tensor:
        """e_label − e_k, for all other classes, or those at some places among them."""
        rows = rows_against(claim.label, self.classes)
        return rows if classes is None else rows[list(classes)]

    def at_centre(self, claim: Claim) -> Margins:
        """At the example itself, of the real-valued network: its values by intervals, their own rounding included."""
        key = struct.pack("<q", claim.label) + claim.x.numpy().tobytes()
        if key not in self._centres:
            while len(self._centres) > 4096:
                self._centres.pop(next(iter(self._centres)))
            ranges = Witness("ranges")
            self._centres[key] = self._outputs(Box(claim.x, claim.x), self.rows(claim), ranges)
        return self._centres[key]

    def by_constants(self, claim: Claim) -> Margins:
        """m_k(x̂) − L_k·radius, the greatest of several L; −∞ where there are no constants.

        Why these are lower bounds: f_label − f_k is at least m_k at x̂ and changes by at most L_k ‖x − x̂‖_p to x.
        """
        nothing = torch.full((self.classes - 1,), -math.inf, dtype=torch.float64)
        found = Margins(nothing, torch.zeros_like(nothing), "rigorous")
        known = [constants for constants in self.constants if constants.p == self.threat.norm]
        if not known:
            return found
        centre = self.at_centre(claim)
        for constants in known:
            least, sure = constants.margins(claim.label, centre.least, claim.radius)
            found = found.or_else(Margins(least, centre.size, sure))
        return self._executed(claim, found)

    def radius_by_constants(self, label: int, at_centre: Tensor) -> float:
        """About the largest radius at which one of the constants proves all margins; at_centre as they have it."""
        return max((known.radius(label, at_centre) for known in self.constants), default=0.0)

    def by_outputs(self, claim: Claim, witness: Witness, classes: Sequence[int] | None = None) -> Margins:
        """What a witness proves of the outputs on the claim's domain; −∞ for classes that are not asked."""
        found = self._outputs(self.domain(claim), self.rows(claim, classes), witness)
        if classes is None:
            return self._executed(claim, found)
        least = torch.full((self.classes - 1,), -math.inf, dtype=torch.float64)
        size = torch.zeros_like(least)
        least[list(classes)], size[list(classes)] = found.least, found.size
        return self._executed(claim, Margins(least, size, found.guarantee))

    def lost(self, claim: Claim, tight: bool = False) -> Tensor:
        """What rounding may take from each margin of a claim, (m − 1,); 0 where real arithmetic is meant."""
        if self.rounding is None:
            return torch.zeros(self.classes - 1, dtype=torch.float64)
        return self.rounding.lost(self.domain(claim), claim.label, "undecided" if tight else "none")

    def _executed(self, claim: Claim, found: Margins) -> Margins:
        """Margins of the network that is meant, from those of the real-valued one.

        Why these are lower bounds: f̂_y − f̂_k ≥ (f_y − f_k) − E_k at every float32 tensor of the claim's domain. Of two
        true E_k the less is taken; the second costs much more, so it is worked out where a sign depends on it.
        """
        if self.rounding is None:
            return found
        lost = self.lost(claim)
        if bool(((found.sure > 0.0) & ~(found.less(lost).sure > 0.0)).any()):
            lost = torch.minimum(lost, self.lost(claim, tight=True))
        return found.less(lost)

    def _outputs(self, domain: Ball | Box | Intersection, rows: Tensor, witness: Witness) -> Margins:
        with torch.no_grad():
            proof = prove_outputs(self.subject, domain, rows, witness)
        return Margins(proof.lower, proof.size, proof.guarantee)


Check = Callable[[Facts, Claim, bytes], Margins]
_CHECKS: dict[str, Check] = {}


def check_of(method: str) -> Callable[[Check], Check]:
    """Register what proves the rows of one method; a duplicate raises."""

    def register(function: Check) -> Check:
        if method in _CHECKS:
            raise ValueError(f"two checks of rows by {method!r}")
        _CHECKS[method] = function
        return function

    return register


@ordinary()
def margins(method: str, facts: Facts, claim: Claim, proof: bytes = b"") -> Margins:
    """What a proof says of a claim, class by class.

    Raises:
        CertificateError: no proof of a kind that this version knows, or a damaged one.
        NotProved: it proves nothing.
    """
    if method not in _CHECKS:
        raise CertificateError(f"rows proved by {method!r} are unknown to this version of lipcert.")
    return _CHECKS[method](facts, claim, proof)


def recheck(method: str, facts: Facts, claim: Claim, proof: bytes, margin: float, guarantee: str) -> None:
    """Prove a stored claim again.

    Raises:
        CertificateError: it is not proved, or not as surely as it says.
    """
    try:
        found = margins(method, facts, claim, proof)
    except CertificateError:
        raise
    except (LipcertError, NotProved) as reason:
        raise CertificateError(f"nothing is proved: {reason}") from reason
    except Exception as error:
        raise CertificateError(f"the proof does not fit its check: {type(error).__name__}: {error}") from error
    least = float(found.least.min())
    if not 0.0 < margin <= least:
        raise CertificateError(f"it claims a margin of {margin!r}, the check proves {least!r}.")
    if weakest([found.guarantee, guarantee]) != guarantee:  # type: ignore[list-item]
        raise CertificateError(f"it claims to be {guarantee}, the check is {found.guarantee}.")


@check_of("pair_constants")
def _by_pair_constants(facts: Facts, claim: Claim, proof: bytes) -> Margins:
    """A Lipschitz constant for each pair of outputs, of the whole space."""
    _require_empty(proof)
    return facts.by_constants(claim)


@check_of("ranges")
def _by_ranges(facts: Facts, claim: Claim, proof: bytes) -> Margins:
    """Intervals and prefixes on the domain, made anew, and the constants."""
    _require_empty(proof)
    return facts.by_outputs(claim, Witness("ranges")).or_else(facts.by_constants(claim))


@check_of("linear_bounds")
def _by_linear_bounds(facts: Facts, claim: Claim, proof: bytes) -> Margins:
    """Linear bounds on the domain, made anew, and the constants."""
    _require_empty(proof)
    return facts.by_outputs(claim, Witness("ranges", {}, {"linear": True})).or_else(facts.by_constants(claim))


@check_of("cost_to_go")
def _by_cost_to_go(facts: Facts, claim: Claim, proof: bytes) -> Margins:
    """Multipliers for some classes; the constants, and where these do not serve ranges, for the others."""
    return _by_multipliers(facts, claim, proof, ("cost_to_go",))


@check_of("branched_cost_to_go")
def _by_branched_cost_to_go(facts: Facts, claim: Claim, proof: bytes) -> Margins:
    """The same; for some classes the domain is split by a tree, with multipliers at its leaves."""
    return _by_multipliers(facts, claim, proof, ("cost_to_go", "branched_cost_to_go"))


def _by_multipliers(facts: Facts, claim: Claim, proof: bytes, kinds: Sequence[str]) -> Margins:
    parts, linear = read_proof(proof)
    found = facts.by_constants(claim)
    asked = [k for part in parts for k in part.classes]
    if len(set(asked)) != len(asked) or not all(0 <= k < facts.classes - 1 for k in asked):
        raise CertificateError("the proof's classes are not those of other outputs, each once.")
    for part in parts:
        if part.kind not in kinds:
            raise CertificateError("the proof holds a tree of splits, which its method has not.")
        witness = Witness(part.kind, part.multipliers, {"linear": linear})
        found = found.or_else(facts.by_outputs(claim, witness, part.classes))
    left = (~(found.sure > 0.0)).nonzero().reshape(-1).tolist()
    if left and not set(left) & set(asked):
        found = found.or_else(facts.by_outputs(claim, Witness("ranges", {}, {"linear": linear}), left))
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """Multipliers for some classes, whose places among the other classes are given; with trees, or without."""

    classes: list[int]
    multipliers: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """Of the witness."""
        return "branched_cost_to_go" if "tree" in self.multipliers else "cost_to_go"


def write_proof(parts: Sequence[Part], linear: bool) -> bytes:
    """Bytes of a proof by the cost-to-go; ``linear``: on ranges by linear bounds."""
    arrays = {
        f"{number}/{name}": tensor.detach().to("cpu").contiguous().clone()
        for number, part in enumerate(parts)
        for name, tensor in part.multipliers.items()
    }
    header = json.dumps({"classes": [part.classes for part in parts], "linear": linear})
    return to_bytes({**arrays, "empty": torch.zeros(0, dtype=torch.float32)}, metadata={"header": header})


def read_proof(proof: bytes) -> tuple[list[Part], bool]:
    """What ``write_proof`` wrote.

    Raises:
        CertificateError: it is something else.
    """
    try:
        arrays = load(proof)
        (length,) = struct.unpack("<Q", proof[:8])
        header: Any = json.loads(json.loads(proof[8 : 8 + length])["__metadata__"]["header"])
        classes, linear = header["classes"], header["linear"]
        parts = [
            Part(list(places), {k.split("/", 1)[1]: t for k, t in arrays.items() if k.startswith(f"{number}/")})
            for number, places in enumerate(classes)
        ]
    except Exception as error:
        raise CertificateError(f"the proof cannot be read: {type(error).__name__}: {error}") from error
    if type(linear) is not bool or not all(type(k) is int for part in parts for k in part.classes):
        raise CertificateError("the proof's header has the wrong form.")
    return parts, linear


def _require_empty(proof: bytes) -> None:
    if proof:
        raise CertificateError("this kind of proof holds no numbers of its own.")


@ordinary()
def breaks(facts: Facts, claim: Claim, point: Tensor) -> bool:
    """Whether a point certainly lies where the claim is to hold, and another class is at least as high there.

    Membership is decided exactly, the class with all roundings (``counter_example``).
    """
    domain = facts.domain(claim)
    if not domain.contains(point):
        return False
    scores = facts.network.forward(point.reshape(1, *facts.network.in_shape)).reshape(-1).clone()  # not the point
    scores[claim.label] = -math.inf
    other = int(scores.argmax())
    return counter_example(facts.network, domain, point, claim.label, other) is not None
