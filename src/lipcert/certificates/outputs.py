"""The certificate of an OutputBound: lower ≤ select·f(x) ≤ upper for every x of a domain."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.facts import Facts
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.splits import branched_bounds, read_branched
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.file import HASH, domain_from_json, domain_to_json, require_name, stored, write
from lipcert.domain import Ball, Domain, Intersection
from lipcert.errors import CertificateError, NotProved
from lipcert.guarantee import STRENGTH, Guarantee
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.network.parts import joined
from lipcert.network.transform import expand, fuse
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.ranges.collapse import collapse
from lipcert.result import OutputBound
from lipcert.version import __version__

FORMAT = "lipcert-outputs-1"
#: Kinds of witness: multipliers of the quadratic cost-to-go; such at the leaves of trees; nothing but ranges.
KINDS = ("cost_to_go", "branched_cost_to_go", "ranges")
#: Entries of networks whose ranges are kept, over all domains that are.
KEPT = 1 << 21
#: Room for the arithmetic of other machines, relative to the size of the outputs.
ROOM = 2.0**-40


class Subject:
    """A captured network as checks of its outputs see it, with what they share between domains.

    Args:
        model: as captured.
        chance: what random starts of norms may spend, over all domains.
    """

    def __init__(self, model: Network, chance: Chance | None = None) -> None:
        self.model = model
        self.chance = chance or Chance()
        self._claimed: tuple[bytes, Facts] | None = None
        self._settings: dict[tuple[Any, ...], Setting] = {}
        self._based = False

    @cached_property
    def plain(self) -> Network:
        """Fused, expressions in one variable as activations, sorts as linear maps and ReLUs; pools come first."""
        return fuse(expand(fuse(joined(collapse(self.model))), maxima=False))

    @cached_property
    def facts(self) -> Facts:
        """Norms, found here, and reaches."""
        return Facts(self.plain, self.chance)

    @property
    def network(self) -> Network:
        """Of these facts."""
        return self.facts.network

    @property
    def based(self) -> bool:
        """Whether bases of maxima were looked for."""
        return self._based

    def adopt(self, bases: Mapping[int, Tensor]) -> None:
        """Take bases of maxima that a search has found: position in ``plain`` → (classes, K, K)."""
        self._based = True
        if bases:
            self.facts = Facts(self.plain, self.chance, given=bases)
            self._settings.clear()

    def facts_of(self, witness: Witness) -> Facts:
        """With the norms that a witness claims, proved, and its bases; those of one call are kept for the next."""
        claims = witness.arrays.get("norms")
        if claims is None:
            return self.facts
        key = _arrays_key(witness.arrays)
        if "facts" in self.__dict__ and key == _arrays_key(self.facts.arrays):  # it was found here
            return self.facts
        if self._claimed is None or self._claimed[0] != key:
            self._claimed = key, Facts(self.plain, self.chance, claims, _bases(witness.arrays))
        return self._claimed[1]

    def setting(self, facts: Facts, domain: Domain, linear: bool, until: float = math.inf) -> Setting:
        """The network's ranges on a domain; the last ones are kept, as search and checks ask for the same.

        Raises:
            NotProved: linear bounds were not done ``until`` then (perf_counter).
        """
        key = (id(facts), linear, _content(domain))
        found = self._settings.pop(key, None)
        if found is None or found.facts is not facts or _content(found.domain) != key[2]:
            found = Setting(facts, domain, linear, until=until)
        self._settings[key] = found
        entries = sum(size(node.shape) for node in self.network.nodes)
        while len(self._settings) > max(1, KEPT // max(1, entries)):
            self._settings.pop(next(iter(self._settings)))
        return found

    def rows(self, select: Tensor | None) -> Tensor:
        """The matrix of the selection, (k, m): every output where there is none."""
        m = size(self.model.out_shape)
        return torch.eye(m, dtype=torch.float64) if select is None else select.detach().to("cpu", torch.float64)


def _arrays_key(arrays: Mapping[str, Tensor]) -> bytes:
    """All that facts depend on."""
    digest = sha256()
    for name, tensor in sorted(arrays.items()):
        if name == "norms" or name.startswith("basis."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.digest()


def _bases(arrays: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Of a witness, by the positions in their names."""
    found = {}
    for name, tensor in arrays.items():
        if name.startswith("basis."):
            place = name.removeprefix("basis.")
            if not (place.isascii() and place.isdigit() and len(place) < 10 and str(int(place)) == place):
                raise CertificateError(f"a certificate of this kind has no array {name[:40]!r}.")
            found[int(place)] = tensor
    return found


def _content(domain: Domain) -> tuple[Any, ...]:
    """All numbers of a domain."""
    if isinstance(domain, Intersection):
        return (*_content(domain.ball), *_content(domain.box))
    if isinstance(domain, Ball):
        return ("ball", *_numbers(domain.center), domain.radius, domain.p)
    return () if domain is None else ("box", *_numbers(domain.lower), *_numbers(domain.upper))


def _numbers(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.contiguous().numpy().tobytes()


@dataclass(frozen=True, eq=False)
class OutputCertificate:
    """A witness with what it is about and what was proved.

    Attributes:
        witness: of one of ``KINDS``; multipliers are those of the rows for ``lower``, then, where ``upper`` is finite
            anywhere, of minus these rows.
        method: who found it.
        fingerprint: SHA-256 of the captured network.
        domain: where the claim holds.
        select: (k, m) or None.
        lower, upper: (k,) float64, the claim.
        guarantee: of the claim.
        version: lipcert's version.
    """

    witness: Witness
    method: str
    fingerprint: str
    domain: Domain
    select: Tensor | None
    lower: Tensor
    upper: Tensor
    guarantee: Guarantee
    version: str

    @property
    def kind(self) -> str:
        """The kind of witness."""
        return self.witness.kind

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and arrays of a file."""
        domain, arrays = domain_to_json(self.domain)
        arrays = {k: stored(v) for k, v in arrays.items()}
        arrays |= {f"witness.{k}": stored(v) for k, v in self.witness.arrays.items()}
        arrays |= {"lower": stored(self.lower), "upper": stored(self.upper)}
        if self.select is not None:
            arrays["select"] = stored(self.select.double())
        header = {
            "format": FORMAT, "kind": self.kind, "settings": dict(self.witness.settings), "method": self.method,
            "fingerprint": self.fingerprint, "domain": domain, "guarantee": self.guarantee, "version": self.version,
        }  # fmt: skip
        return header, arrays

    def save(self, path: str | Path) -> None:
        """Write the file; see ``certificates.file.write``."""
        write(path, *self.parts())

    @classmethod
    def of_parts(cls, header: dict[str, Any], arrays: dict[str, Tensor]) -> OutputCertificate:
        """From a file's header and arrays.

        Raises:
            CertificateError: they are not those of such a certificate.
        """
        require_name(header["method"])
        if not isinstance(header["fingerprint"], str) or not HASH.fullmatch(header["fingerprint"]):
            raise CertificateError("the certificate's fingerprint must be a hexadecimal number.")
        if not isinstance(header["settings"], dict) or header["guarantee"] not in STRENGTH:
            raise CertificateError("the certificate's settings or guarantee has the wrong form.")
        lower, upper, select = arrays["lower"], arrays["upper"], arrays.get("select")
        if lower.dim() != 1 or lower.shape != upper.shape or {lower.dtype, upper.dtype} != {torch.float64}:
            raise CertificateError("the certificate's bounds must be two float64 vectors of one length.")
        if select is not None and (select.dtype != torch.float64 or select.dim() != 2):
            raise CertificateError("the certificate's selection must be a float64 matrix.")
        witness = {k.removeprefix("witness."): v for k, v in arrays.items() if k.startswith("witness.")}
        return cls(
            Witness(str(header["kind"]), witness, header["settings"]), header["method"], header["fingerprint"],
            domain_from_json(header["domain"], arrays), select, lower, upper, header["guarantee"],
            str(header["version"]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class OutputProof:
    """lower ≤ select·f ≤ upper on the domain, and how surely; ``size`` bounds |select|·|f| there."""

    lower: Tensor
    upper: Tensor
    guarantee: Guarantee
    size: Tensor


def prove_outputs(subject: Subject, domain: Domain, select: Tensor | None, witness: Witness) -> OutputProof:
    """What a witness proves of select·f on the domain.

    The bounds are at least as good as what ranges alone prove: of two true lower bounds the greater is one.

    Raises:
        CertificateError: it is no witness of this network's outputs.
        NotProved: it proves nothing.
    """
    settings = dict(witness.settings)
    linear, both = settings.pop("linear", False), settings.pop("upper", False)
    if witness.kind not in KINDS or settings or type(linear) is not bool or type(both) is not bool:
        raise CertificateError(f"no such witness of outputs: {witness.kind!r} with {sorted(witness.settings)}.")
    rows = subject.rows(select)
    if rows.shape[1:] != (size(subject.model.out_shape),) or not bool(rows.isfinite().all()):
        raise CertificateError("the selection does not fit the network's output.")
    rows = torch.cat([rows, -rows]) if both else rows
    setting = subject.setting(subject.facts_of(witness), domain, linear)
    value = setting.plain(rows)
    guarantee: Guarantee = "rigorous"
    if witness.kind != "ranges":
        if witness.kind == "cost_to_go":
            found, sure = lower_bounds(setting, rows, Multipliers.read(witness))
        else:
            found, sure = branched_bounds(setting, rows, *read_branched(witness, setting.network))
        guarantee = sure if bool((found > value).any()) else guarantee
        value = torch.maximum(value, found)
    elif witness.arrays:
        raise CertificateError("a witness of ranges holds no arrays.")
    value = torch.where(value.isnan(), -math.inf, value)
    greatest = setting.boxes[-1].greatest.reshape(-1)
    size_ = torch.where(rows == 0, 0.0, rows.abs() * greatest).sum(dim=1)
    if not both:
        return OutputProof(value, torch.full_like(value, math.inf), guarantee, size_)
    lower, minus = value.chunk(2)
    return OutputProof(lower, -minus, guarantee, size_.chunk(2)[0])


@ordinary()
def check_outputs(
    subject: Subject, domain: Domain, select: Tensor | None, witness: Witness, method: str, started: float | None = None
) -> OutputBound:
    """The OutputBound that a witness proves, with its certificate.

    Raises:
        CertificateError, NotProved: as ``prove_outputs``.
    """
    started = time.perf_counter() if started is None else started
    with torch.no_grad():
        proof = prove_outputs(subject, domain, select, witness)
    guarantee = proof.guarantee
    room = ROOM * proof.size.nan_to_num(0.0, 0.0)  # other machines round in other ways
    lower, upper = proof.lower - room, proof.upper + room
    record = OutputCertificate(
        witness, method, subject.model.fingerprint, domain, select, lower, upper, guarantee, __version__
    )
    return OutputBound(
        lower, upper, guarantee, method, domain, time.perf_counter() - started, record, select,
        0.0 if guarantee == "rigorous" else subject.chance.spent, subject.model.in_shape[1:],
    )  # fmt: skip


@ordinary()
def verify_outputs(record: OutputCertificate, subject: Subject) -> OutputBound:
    """The OutputBound that a certificate proves for this network, recomputed.

    Raises:
        CertificateError: of another model, or the check does not reach the claim.
    """
    if record.fingerprint != subject.model.fingerprint:
        raise CertificateError(
            f"this certificate is for another model: it names network {record.fingerprint[:12]}…, "
            f"the model given is {subject.model.fingerprint[:12]}…"
        )
    started = time.perf_counter()
    try:
        domain = record.domain and record.domain.fitted(subject.model.in_shape)
        with torch.no_grad():
            proof = prove_outputs(subject, domain, record.select, record.witness)
    except CertificateError:
        raise
    except NotProved as reason:
        raise CertificateError(f"the certificate proves nothing: {reason}") from reason
    except Exception as error:
        raise CertificateError(f"the certificate does not fit its check: {type(error).__name__}: {error}") from error
    guarantee = proof.guarantee
    weaker = STRENGTH.index(guarantee) < STRENGTH.index(record.guarantee)
    if weaker or proof.lower.shape != record.lower.shape or not bool((record.lower <= proof.lower).all()):
        raise CertificateError("the certificate claims more of the least outputs than the check proves.")
    if not bool((record.upper >= proof.upper).all()):
        raise CertificateError("the certificate claims more of the greatest outputs than the check proves.")
    return OutputBound(
        record.lower, record.upper, guarantee, record.method, domain, time.perf_counter() - started, record,
        record.select, 0.0 if guarantee == "rigorous" else subject.chance.spent, subject.model.in_shape[1:],
    )  # fmt: skip
