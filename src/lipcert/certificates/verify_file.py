"""Re-check a certificate file of any kind against a captured model."""

from __future__ import annotations

from pathlib import Path

from lipcert.certificates.bound import Certificate
from lipcert.certificates.file import FORMAT, Reader, certificate_of, parsed
from lipcert.certificates.outputs import FORMAT as OUTPUTS
from lipcert.certificates.outputs import OutputCertificate, Subject, verify_outputs
from lipcert.certificates.verify import verify
from lipcert.network.graph import Network
from lipcert.result import Bound, OutputBound


def verify_file(path: str | Path, network: Network) -> Bound | OutputBound:
    """What the certificate in a file proves for this network, recomputed.

    Raises:
        CertificateError: as ``verify``.
    """
    formats: dict[str, Reader[Certificate | OutputCertificate]] = {
        FORMAT: certificate_of,
        OUTPUTS: OutputCertificate.of_parts,
    }
    record = parsed(path, formats)
    if isinstance(record, Certificate):
        return verify(record, network)
    return verify_outputs(record, Subject(network))
