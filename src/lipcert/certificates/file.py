"""The ``.lipcert`` file: safetensors arrays, a JSON header, and a SHA-256 over both. Reading never unpickles."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.bound import Certificate
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import CertificateError, LipcertError

FORMAT = "lipcert-certificate-1"
T = TypeVar("T")
#: Makes a certificate of a file's header and arrays.
Reader = Callable[[dict[str, Any], dict[str, Tensor]], T]

#: What the name of a method, which reports print beside what was proved, may look like.
_NAME = re.compile(r"[\w .+-]{1,80}")
HASH = re.compile(r"[0-9a-f]*")


def save(certificate: Certificate, path: str | Path) -> None:
    """Write a certificate; the file appears whole or not at all.

    Raises:
        CertificateError: the place cannot be written, or the method has a name that no file may hold.
    """
    write(path, *_described(certificate))


def content_of(certificate: Certificate) -> bytes:
    """The bytes that ``save`` writes."""
    return _to_bytes(*_described(certificate))


def _described(certificate: Certificate) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and arrays."""
    arrays = {f"witness.{k}": stored(v) for k, v in certificate.witness.arrays.items()}
    domain, domain_arrays = domain_to_json(certificate.domain)
    arrays.update(domain_arrays)
    if certificate.select is not None:
        arrays["select"] = stored(certificate.select.double())
    if certificate.anchor is not None:
        arrays["anchor"] = stored(certificate.anchor)
    header = {
        "format": FORMAT,
        "kind": certificate.kind,
        "settings": dict(certificate.witness.settings),
        "method": certificate.method,
        "fingerprint": certificate.fingerprint,
        "norm": [_number(v) for v in certificate.norm],
        "domain": domain,
        "value": _number(certificate.value),
        "log10": None if certificate.log10 is None else _number(certificate.log10),
        "guarantee": certificate.guarantee,
        "version": certificate.version,
    }
    return header, arrays


def write(path: str | Path, header: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    """Write a header, which names format and method, and arrays; the file appears whole or not at all.

    Raises:
        CertificateError: as ``save``.
    """
    path = _place(path)
    require_name(header["method"])
    content = _to_bytes(header, arrays)
    try:
        placed(path, content)
    except (OSError, ValueError) as error:
        raise CertificateError(f"cannot write the certificate {path}: {error}") from error


def placed(path: Path, content: bytes) -> None:
    """Write a file for others to read, whole or not at all; raises OSError or ValueError."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".lipcert-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
        temporary = None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def read(path: str | Path) -> Certificate:
    """Read the certificate of a bound and check its integrity (not yet its claim).

    Raises:
        CertificateError: missing, not a certificate, damaged, or of another format.
    """
    return parsed(path, {FORMAT: certificate_of})


def parsed(path: str | Path, formats: Mapping[str, Reader[T]]) -> T:
    """What the file's header and arrays are, by the reader of its format.

    Raises:
        CertificateError: as ``read``.
    """
    path = _place(path)
    try:
        if not path.is_file() and path.exists():
            raise CertificateError(f"cannot read the certificate {path}: it is no file.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CertificateError(f"cannot read the certificate {path}: {error}") from error
    try:
        arrays = load(content)
        header = _header(content)
        arrays.pop("empty", None)
        reader = formats.get(str(header.get("format")))
        if reader is None:
            known = ", ".join(map(repr, formats))
            raise CertificateError(f"{path} has format {header.get('format')!r}; read here is {known}.")
        claimed = header.pop("sha256", None)
        if claimed != _digest(header, arrays) or content != _to_bytes(header, arrays):
            raise CertificateError(f"{path} is damaged or was changed: its content does not match its SHA-256.")
        return reader(header, arrays)
    except LipcertError as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{path} holds an unusable problem: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CertificateError(f"{path} is not a readable certificate: {reason}") from error


def _place(path: Any) -> Path:
    if not isinstance(path, (str, Path)):
        raise CertificateError(f"a certificate is a file, named by a string or a Path, not by a {type(path).__name__}.")
    return Path(path)


def require_name(method: Any) -> None:
    """A name from a file must not read like a part of the report."""
    if not isinstance(method, str) or not _NAME.fullmatch(method):
        raise CertificateError("the certificate's method must be a name of at most 80 letters, digits, spaces and .+-_")


def _to_bytes(header: dict[str, Any], arrays: dict[str, Tensor]) -> bytes:
    """The one byte string that holds this header and these arrays."""
    signed = {**header, "sha256": _digest(header, arrays)}
    return to_bytes(
        arrays or {"empty": torch.zeros(0, dtype=torch.float32)},
        metadata={"header": json.dumps(signed, sort_keys=True)},
    )


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["header"])
    return dict(header)


def certificate_of(header: dict[str, Any], arrays: dict[str, Tensor]) -> Certificate:
    """From a file's header and arrays; CertificateError where they are not those of such a certificate."""
    witness_arrays = {k.removeprefix("witness."): v for k, v in arrays.items() if k.startswith("witness.")}
    norm = [float(v) for v in header["norm"]] if isinstance(header["norm"], list) else []
    if len(norm) != 2 or not isinstance(header["settings"], dict) or not isinstance(header["kind"], str):
        raise CertificateError("the certificate's norm, settings or kind has the wrong form.")
    require_name(header["method"])
    if not isinstance(header["fingerprint"], str) or not HASH.fullmatch(header["fingerprint"]):
        raise CertificateError("the certificate's fingerprint must be a hexadecimal number.")
    select = arrays.get("select")
    if select is not None and select.dtype != torch.float64:
        raise CertificateError(f"the certificate's selection must hold float64 numbers, not {select.dtype}.")
    anchor = arrays.get("anchor")
    if anchor is not None and anchor.dtype != torch.float64:
        raise CertificateError(f"the certificate's anchor must hold float64 numbers, not {anchor.dtype}.")
    return Certificate(
        witness=Witness(header["kind"], witness_arrays, header["settings"]),
        method=header["method"],
        fingerprint=header["fingerprint"],
        norm=(norm[0], norm[1]),
        domain=domain_from_json(header["domain"], arrays),
        select=select,
        anchor=anchor,
        value=float(header["value"]),
        log10=None if header["log10"] is None else float(header["log10"]),
        guarantee=str(header["guarantee"]),
        version=str(header["version"]),
    )


def stored(tensor: Tensor) -> Tensor:
    """A copy of its own: safetensors refuses tensors that share memory."""
    return tensor.detach().cpu().contiguous().clone()


def _number(value: float) -> float | str:
    """JSON has no infinity; Python's own spelling is read back by ``float``."""
    return value if math.isfinite(value) else str(value)


def _digest(header: dict[str, Any], arrays: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, str(array.dtype), tuple(array.shape))).encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def domain_to_json(domain: Domain) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """A domain's entries in the header, and its arrays."""
    if domain is None:
        return None, {}
    if isinstance(domain, Ball):
        described: dict[str, Any] = {"type": "ball", "radius": domain.radius, "p": _number(domain.p)}
        return described, {"domain.center": stored(domain.center)}
    if isinstance(domain, Box):
        return {"type": "box"}, {"domain.lower": stored(domain.lower), "domain.upper": stored(domain.upper)}
    (ball, center), (_, ends) = domain_to_json(domain.ball), domain_to_json(domain.box)
    return {**(ball or {}), "type": "intersection"}, {**center, **ends}


#: Kind of domain → its entries in the header, beside the kind, and its arrays.
_DOMAINS: dict[str, tuple[set[str], set[str]]] = {
    "ball": ({"radius", "p"}, {"center"}),
    "box": (set(), {"lower", "upper"}),
    "intersection": ({"radius", "p"}, {"center", "lower", "upper"}),
}


def domain_from_json(data: Any, arrays: dict[str, Tensor]) -> Domain:
    """What ``domain_to_json`` wrote, and nothing else."""
    held = {k.removeprefix("domain."): v for k, v in arrays.items() if k.startswith("domain.")}
    kind = data.get("type") if isinstance(data, dict) else None
    if data is None and not held:
        return None
    if not isinstance(kind, str) or kind not in _DOMAINS:
        raise CertificateError(f"the certificate's domain must be a {', '.join(_DOMAINS)} or null, with its arrays.")
    entries, names = _DOMAINS[kind]
    if set(data) != {"type", *entries} or set(held) != names:
        raise CertificateError(f"the certificate's domain, {kind!r}, has other entries or arrays than such a one.")
    if any(t.dtype != torch.float64 or not t.dim() for t in held.values()):
        raise CertificateError("the certificate's domain must hold float64 numbers, one for each coordinate.")
    if entries and (type(data["radius"]) is not float or data["p"] is True or data["p"] not in (1.0, 2.0, "inf")):
        raise CertificateError("the certificate's domain must have a number as radius, and 1, 2 or inf as p.")
    parts: list[Any] = []
    if "center" in held:
        parts.append(Ball(held["center"], data["radius"], float(data["p"])))
    if "lower" in held:
        parts.append(Box(held["lower"], held["upper"]))
    return Intersection(*parts) if len(parts) == 2 else parts[0]
