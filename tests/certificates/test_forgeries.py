"""A false claim is refused, whatever else a certificate holds; a true one may pass; nothing else ever happens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lipcert.certificates.base import Witness
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError
from tests.certificates.forging import MAKERS, SETTINGS, Genuine, genuine, spoilt_arrays, with_array, with_setting

#: Every how manieth forgery is tried: all of them in the long tests, which take minutes.
THIN = [pytest.param(1, marks=pytest.mark.slow), 11]

#: The settings that a kind reads.
READ = {
    "layer_product": ("fuse",), "loop_transform": ("window",),
    "quadratic": ("rho", "slack", "route", "layerwise", "steps"),
    "branch_tree": ("rho", "layerwise"), "layer_pairs": ("rank", "pools", "pairs"),
    "vertex_enumeration": ("value",), "mixed_product": ("target", "routes"), "interval_jacobian": (),
    "converted": ("via", "kind", "settings"), "transposed": ("kind", "settings"),
}  # fmt: skip


@pytest.fixture(params=list(MAKERS))
def case(request: pytest.FixtureRequest) -> Genuine:
    return genuine(request.param)


def believed_if_true(case: Genuine, witness: Witness) -> None:
    """With its own, true claim the same certificate may pass at that value, or be refused."""
    try:
        bound = verify(replace(case.record, witness=witness), case.network)
    except CertificateError:
        return
    assert bound.value == case.record.value


@pytest.mark.few(10)
def test_the_genuine_certificate_passes(case: Genuine) -> None:
    assert verify(case.record, case.network).value == case.record.value
    assert "claims" in case.refused()


@pytest.mark.few(12)
@pytest.mark.parametrize("thin", THIN)
def test_no_array_makes_a_false_claim_true(thin: int, case: Genuine) -> None:
    witness = case.record.witness
    forgeries = [(key, spoilt) for key, array in witness.arrays.items() for spoilt in spoilt_arrays(array)]
    for key, spoilt in forgeries[::thin]:
        case.refused(witness=with_array(witness, key, spoilt))


@pytest.mark.parametrize("thin", THIN)
def test_no_setting_makes_a_false_claim_true(thin: int, case: Genuine) -> None:
    witness = case.record.witness
    forgeries = [(key, value) for key in READ[witness.kind] for value in SETTINGS]
    for key, value in forgeries[::thin]:
        case.refused(witness=with_setting(witness, key, value))


def test_no_claim_inside_the_witness_makes_a_false_claim_true(case: Genuine) -> None:
    """Lowered claims for ρ, norms and pair constants, each a little or a lot, together with every array in turn."""
    witness = case.record.witness
    for factor in (1e-300, 1e-9, 0.5, 0.999):
        lowered = witness
        for key in ("rho", "value"):
            if key in witness.settings:
                own = witness.settings[key]
                lowered = with_setting(
                    lowered, key, [v * factor for v in own] if isinstance(own, list) else own * factor
                )
        if "norms" in witness.arrays:
            lowered = with_array(lowered, "norms", witness.arrays["norms"] * factor)
        pairs = {
            name: {**pair, "settings": {k: _scaled(v, factor) if k in ("rho", "value") else v
                                        for k, v in pair["settings"].items()}}
            for name, pair in witness.settings.get("pairs", {}).items()
        }  # fmt: skip
        case.refused(witness=with_setting(lowered, "pairs", pairs) if pairs else lowered)


def _scaled(value: object, factor: float) -> object:
    return [v * factor for v in value] if isinstance(value, list) else value * factor  # type: ignore[operator]


@pytest.mark.parametrize("thin", [pytest.param(1, marks=pytest.mark.slow), 23])
def test_a_spoilt_certificate_with_a_true_claim_passes_or_is_refused(thin: int, case: Genuine) -> None:
    witness = case.record.witness
    spoilt = [
        with_array(witness, key, other) for key, array in witness.arrays.items() for other in spoilt_arrays(array)
    ]
    spoilt += [with_setting(witness, key, value) for key in READ[witness.kind] for value in SETTINGS]
    for changed in spoilt[::thin]:
        believed_if_true(case, changed)


def test_claims_that_no_check_can_reach(case: Genuine) -> None:
    for value, log10 in ((0.0, -math.inf), (-0.0, None), (-1.0, 0.0), (5e-324, math.inf), (math.nan, math.nan)):
        case.refused(value=value, log10=log10)
    case.refused(value=math.inf, log10=math.log10(case.low) - 1e-9)
    case.refused(log10=None)


def test_other_kinds_with_these_arrays(case: Genuine) -> None:
    for kind in (
        "layer_product",
        "loop_transform",
        "quadratic",
        "branch_tree",
        "layer_pairs",
        "vertex_enumeration",
        "mixed_product",
        "interval_jacobian",
        "joint_transform",
        "converted",
        "transposed",
        "?",
    ):
        case.refused(witness=replace(case.record.witness, kind=kind))


def test_a_guarantee_is_never_stronger_than_what_was_proved(case: Genuine) -> None:
    order = ("numerical", "probabilistic", "rigorous")
    for guarantee in (*order, "proved", None):
        try:
            bound = verify(replace(case.record, guarantee=guarantee), case.network)  # type: ignore[arg-type]
        except CertificateError:
            assert guarantee != case.record.guarantee
        else:
            assert order.index(guarantee) <= order.index(bound.guarantee)  # type: ignore[arg-type]


def test_another_problem_is_another_statement(case: Genuine) -> None:
    """Norms and selections of the file are part of the statement: it is about them, and it says so."""
    rows = case.network.out_shape[-1]
    for norm in (
        (2.0, 2.0),
        (1.0, 1.0),
        (math.inf, math.inf),
        (math.inf, 1.0),
        (2.0, math.inf),
        (3.0, 2.0),
        (2.0, 0.0),
    ):
        if norm == case.record.norm:
            continue
        try:
            bound = verify(replace(case.record, norm=norm), case.network)
        except CertificateError:
            continue
        assert bound.norm == norm
    small = 1e-3 * torch.eye(rows, dtype=torch.float64)
    try:
        bound = verify(replace(case.record, select=small), case.network)
    except CertificateError:
        return
    assert bound.select is not None
    assert "selected combinations" in str(bound)
