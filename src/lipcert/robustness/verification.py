"""The rows of a run proved again: from what its file holds, on the model that is given."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from lipcert.capture.load import Model, prepared
from lipcert.capture.model import Output
from lipcert.certificates.verify import verify as verify_certificate
from lipcert.errors import CertificateError, LipcertError
from lipcert.network.graph import Network
from lipcert.result import Bound
from lipcert.robustness.checks import Claim, Facts, breaks, recheck
from lipcert.robustness.examples import Examples
from lipcert.robustness.executed import Arithmetic, Rounding, captured
from lipcert.robustness.pair_constants import BODY, OUTPUTS, PairConstants, body, classes_of, without_shared
from lipcert.robustness.rows import Decision, Row
from lipcert.robustness.threat import Threat, scaled
from lipcert.robustness.unperturbed import digits_there, margin_there


def capture_in_units(
    model: Model, threat: Threat, shape: Sequence[int], arithmetic: Arithmetic, output: Output = None
) -> tuple[Network, Rounding | None]:
    """The network that is certified, the model after the threat's normalisation, and what its execution adds."""
    generator = torch.Generator("cpu").manual_seed(0)
    example = torch.rand(1, *shape, generator=generator, device="cpu", dtype=torch.float32)
    built = prepared(model, example, None, output)[0]
    return captured(scaled(built, threat.scale, shape), example, arithmetic)


def restored(certificates: Mapping[str, bytes | None], network: Network, p: float) -> tuple[PairConstants, ...]:
    """The constants that stored certificates prove, by their names; of empty ones, where the run found none, none.

    Raises:
        CertificateError: one does not prove what it is kept for.
    """
    found = []
    if (content := certificates.get(BODY)) and (front := body(network)) is not None:
        bound = _read(content, front, p, None)
        found.append(PairConstants.of(network, p, bound.value, bound.guarantee))
    if content := certificates.get(OUTPUTS):
        bound = _read(content, network, p, without_shared(classes_of(network)))
        found.append(PairConstants.of_outputs(network, p, bound.value, bound.guarantee))
    return tuple(found)


def _read(content: bytes, network: Network, p: float, select: torch.Tensor | None) -> Bound:
    """The bound of these outputs everywhere that a certificate proves."""
    with tempfile.TemporaryDirectory(prefix="lipcert-") as folder:
        path = Path(folder) / "constants.lipcert"
        path.write_bytes(content)
        bound = verify_certificate(path, network)
    known = bound.select
    same = known is None if select is None else known is not None and torch.equal(known.double(), select)
    if bound.norm != (p, p) or bound.domain is not None or bound.anchor is not None or not same:
        raise CertificateError("the shared constant is of another question.")
    return bound


def verify_row(decision: Decision, facts: Facts, data: Examples | None) -> None:
    """Prove what a row claims once more.

    Args:
        decision: the row with its evidence.
        facts: the network and the threat of the run.
        data: what the run is said to be about, or None.

    Raises:
        CertificateError: it is not proved, or contradicts itself.
    """
    row, threat = decision.row, facts.threat
    if data is not None and int(data.labels[row.index]) != row.label:
        raise CertificateError(f"its label is {row.label}, that of the data is {int(data.labels[row.index])}.")
    if not 0 <= row.label < facts.classes or (row.status == "wrong") != (row.predicted != row.label):
        raise CertificateError("its classes do not fit its status.")
    if row.status != _status_of(row, threat):
        raise CertificateError(f"it is called {row.status}, its radii say {_status_of(row, threat)}.")
    if row.status == "wrong":
        if data is not None and facts.rounding is None:
            x = torch.from_numpy(data.batch([row.index])).reshape(facts.network.in_shape)
            if digits_there(facts, Claim(x, row.label, 0.0)) > 0.0:
                raise CertificateError("it is called wrong, and the network gives its class.")
        return
    if row.certified_radius == 0.0 and decision.counter is None:
        if math.isfinite(row.attacked_radius):
            raise CertificateError("it holds no counter-example.")
        return
    if decision.example is None:
        raise CertificateError("it holds no example.")
    x = _point(decision.example, facts)
    if data is not None and not np.array_equal(data.batch([row.index]).reshape(-1), x.numpy().reshape(-1)):
        raise CertificateError("its example is not the one of the data.")
    try:
        if row.certified_radius > 0.0:
            claim = Claim(x, row.label, row.certified_radius)
            if decision.proof is None or row.guarantee is None:
                raise CertificateError("it holds no proof.")
            recheck(row.method, facts, claim, decision.proof, row.margin, row.guarantee)
        else:
            _, least = margin_there(facts, Claim(x, row.label, 0.0))
            if not row.margin <= least:
                raise CertificateError(
                    f"it claims a margin of {row.margin!r} at its example, the check proves {least!r}."
                )
        if math.isfinite(row.attacked_radius):
            if decision.counter is None:
                raise CertificateError("it holds no counter-example.")
            claim = Claim(x, row.label, row.attacked_radius)
            if not breaks(facts, claim, _point(decision.counter, facts)):
                raise CertificateError("its counter-example is none.")
    except CertificateError:
        raise
    except LipcertError as problem:
        raise CertificateError(str(problem)) from problem


def _status_of(row: Row, threat: Threat) -> str:
    """What the radii of a row amount to."""
    if threat.radii is not None or row.predicted != row.label:
        return row.status_at(math.inf if threat.radii is None else threat.radii[-1])
    if row.certified_radius > 0.0:
        return "certified"
    return "attacked" if math.isfinite(row.attacked_radius) else "open"


def _point(content: bytes, facts: Facts) -> torch.Tensor:
    fits = len(content) == 8 * math.prod(facts.network.in_shape)
    values = np.frombuffer(content if fits else b"", dtype="<f8").astype(np.float64)
    if not fits or not np.isfinite(values).all():
        raise CertificateError("its example or counter-example does not fit the network.")
    return torch.from_numpy(values).reshape(facts.network.in_shape)
