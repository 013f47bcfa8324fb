"""The order of the methods on networks nobody chose, judged from below by attacks and by the interior point."""

from __future__ import annotations

import math

import pytest
import torch

import lipcert
from lipcert.attack import attack
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.errors import LipcertError
from lipcert.methods.base import Run, make
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import difference_quotients, random_network

METHODS = ("lipsdp", "lipsdp_layer", "lipsdp_ipm", "liplt", "eclipse_fast", "seqlip", "autolip")

#: (tighter, looser) and the relative excess allowed: what an iteration stops at, and the margins of checks.
ORDER = [
    ("lipsdp_ipm", "lipsdp", 1e-2), ("lipsdp", "lipsdp_ipm", 5e-3), ("lipsdp", "lipsdp_layer", 2e-3),
    ("lipsdp_layer", "liplt", 5e-3), ("lipsdp", "eclipse_fast", 2e-3), ("lipsdp", "seqlip", 5e-3),
    ("liplt", "autolip", 5e-3), ("seqlip", "autolip", 5e-3), ("eclipse_fast", "autolip", 5e-3),
]  # fmt: skip


def solution(problem: Problem, name: str) -> tuple[lipcert.Bound, Witness] | None:
    """The method's bound and witness, or None if it says by name that it cannot."""
    try:
        run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=20.0)
        bound = make(name).bound(problem, run, Chance())
        return bound, bound.certificate.witness  # type: ignore[union-attr]
    except LipcertError:
        return None


def dual_value(problem: Problem, witness: Witness) -> float:
    """The value of a feasible point of the dual: below the optimum of LipSDP up to rounding."""
    unit = 1.0 if "gap" in witness.settings else 2.0 ** int(witness.arrays["exponents"][-1])
    return float(witness.settings["dual_value"]) * unit


def judge(seed: int) -> None:
    """Bound a generated network by every method; the answers must be above all observations and in order."""
    case = random_network(seed)
    problem = Problem(capture(case.model, case.example))
    found = {name: answer for name in METHODS if (answer := solution(problem, name)) is not None}
    quotients, noise = difference_quotients(case.model, tuple(case.example.shape[1:]))
    low = max(attack(problem, None, 0.1, seed=0).value, float((quotients - noise).max()))
    for name, (bound, _) in found.items():
        assert math.isfinite(bound.value), (case.name, name)
        assert low <= bound.value, (case.name, name, low, bound.value)
    for tight, loose, excess in ORDER:
        if tight in found and loose in found:
            values = found[tight][0].value, found[loose][0].value
            assert values[0] <= values[1] * (1.0 + excess) + 1e-90, (case.name, tight, loose, values)
    for name in ("lipsdp", "lipsdp_ipm"):
        for dual in ("lipsdp", "lipsdp_ipm"):
            if name in found and dual in found and "dual_value" in found[dual][1].settings:
                value = dual_value(problem, found[dual][1])
                assert value <= found[name][0].value * (1 + 1e-9), (case.name, name, dual, value)
    assert "autolip" in found, case.name
    assert "lipsdp" in found, case.name


@pytest.mark.few(12)
@pytest.mark.parametrize(
    "seed", [s if s % 12 == 0 else pytest.param(s, marks=pytest.mark.slow) for s in range(5000, 5300)]
)
def test_order_on_three_hundred_generated_networks(seed: int) -> None:
    judge(seed)
