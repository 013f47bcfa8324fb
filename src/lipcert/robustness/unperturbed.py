"""What is known of the margins at an example itself, of the real-valued network."""

from __future__ import annotations

import math

from lipcert.certificates.counter_example import values_at
from lipcert.errors import LipcertError
from lipcert.numerics.process_state import ordinary
from lipcert.robustness.checks import Claim, Facts


@ordinary()
def margin_there(facts: Facts, claim: Claim) -> tuple[float, float]:
    """A lower bound of all margins at the example, with room for the arithmetic of other machines, and without.

    By intervals, which are kept for the claims around it; −∞ where nothing is known.
    """
    found = facts.at_centre(claim)
    sure, least = float(found.sure.min()), float(found.least.min())
    return (sure, least) if math.isfinite(least) else (-math.inf, -math.inf)


@ordinary()
def digits_there(facts: Facts, claim: Claim) -> float:
    """The same with more digits where the sign of a margin needs them, for this example alone."""
    try:
        return -max(values_at(facts.network, None, claim.x, -facts.rows(claim), least=0.0))
    except LipcertError:
        return -math.inf
