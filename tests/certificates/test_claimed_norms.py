"""Norms that a certificate of outputs claims: too small or no norms at all, they prove nothing false."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.outputs import OutputCertificate, Subject, verify_outputs
from lipcert.errors import CertificateError
from tests.search.cost_to_go_cases import DOMAINS, F64, MODELS, generator_of

#: Forged in every way that is read as norms, and in some that are not.
FORGED = {
    "zero": lambda n: 0.0 * n, "half": lambda n: 0.5 * n, "just below": lambda n: n * (1.0 - 1e-9),
    "tiny": lambda n: torch.full_like(n, 5e-324), "-0": lambda n: -0.0 * n, "infinite": lambda n: n + math.inf,
    "huge": lambda n: torch.full_like(n, 1e308), "swapped": lambda n: n.flip(0), "whole": lambda n: n.long(),
    "negative": lambda n: -n, "NaN": lambda n: n * math.nan, "fewer": lambda n: n[:-1],
    "more": lambda n: torch.cat([n, n]), "none": lambda n: n[:0], "matrix": lambda n: n[None],
}  # fmt: skip
#: Of these there is no norm.
REFUSED = ("negative", "NaN", "fewer", "more", "none", "matrix")
CASES = [("relu", "clipped")] + [
    pytest.param(name, domain, marks=pytest.mark.slow)
    for name in ("two readers", "image", "first activation")
    for domain in ("l2", "l1", "linf", "clipped")
]


@pytest.mark.parametrize(("name", "domain"), CASES)
def test_forged_norms_prove_nothing_false(name: str, domain: str) -> None:
    """Without weights of their own, all maps are by norms, and so are the ranges of a ball."""
    model, x = MODELS[name]().double(), torch.zeros(1, 4, dtype=F64)
    record = lipcert.output_bounds(model, x, domain=DOMAINS[domain], budget=0.5).certificate
    assert isinstance(record, OutputCertificate)
    network, fitted = capture(model, x), DOMAINS[domain].fitted((1, 4))
    low, high = fitted.bounds()
    points = fitted.project(low + (high - low) * torch.rand(500, 4, generator=generator_of(0), dtype=F64))
    values = model(points).detach().reshape(len(points), -1)
    least, greatest = values.amin(0), values.amax(0)
    arrays = {k: v for k, v in record.witness.arrays.items() if not k.startswith("weight")}
    false = (
        {"lower": least + 1e-6 * (1.0 + least.abs()), "upper": torch.full_like(least, math.inf)},
        {"lower": torch.full_like(least, -math.inf), "upper": greatest - 1e-6 * (1.0 + greatest.abs())},
    )
    trivial = {"lower": torch.full_like(least, -math.inf), "upper": torch.full_like(least, math.inf)}
    for kind, forge in FORGED.items():
        forged = replace(record, witness=replace(record.witness, arrays={**arrays, "norms": forge(arrays["norms"])}))
        subject = Subject(network)
        for claim in false:
            with pytest.raises(CertificateError):
                verify_outputs(replace(forged, **claim), subject)
        if kind in REFUSED:
            with pytest.raises(CertificateError, match="norms"):
                verify_outputs(replace(forged, **trivial), subject)
        else:
            verify_outputs(replace(forged, **trivial), subject)
