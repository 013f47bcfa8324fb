"""How far a proof reaches: secants where its margin falls along a line, halves where it jumps; and what ends them."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lipcert.robustness.provers as module
from lipcert.errors import NotProved
from lipcert.robustness.checks import Claim, Margins
from lipcert.robustness.provers import Asked, Proof, stretched

#: Margin at a radius, from 1 at the example itself to 0 at 1 or where it jumps; NaN where nothing is proved.
Margin = Callable[[float], float]


def kinked(at: float) -> Margin:
    """Slowly at first, then fast."""
    return lambda r: 1.0 - 0.1 * r if r < at else 1.0 - 0.1 * at - (r - at) * (1.0 - 0.1 * at) / (1.0 - at)


SMOOTH: dict[str, Margin] = {
    "line": lambda r: 1.0 - r,
    "parabola": lambda r: 1.0 - r * r,
    "root": lambda r: 1.0 - math.sqrt(r),
    "steep at the end": kinked(0.9),
}
JUMPS: dict[str, tuple[Margin, float]] = {
    "far below": (lambda r: 1.0 - 0.01 * r if r < 0.8 else -1e6, 0.8),
    "to nothing": (lambda r: 1.0 - r if r < 0.6 else math.nan, 0.6),
    "to -inf": (lambda r: 1.0 - r if r < 0.6 else -math.inf, 0.6),
    "below by a little": (lambda r: 1.0 - 0.5 * r if r < 0.7 else -0.3, 0.7),
}


def reached(margin: Margin, first: float, between: tuple[float, float] | None) -> tuple[Proof | None, list[float]]:
    """What comes of a proof with these margins, first tried at a radius, and at which radii it was checked."""
    seen: list[float] = []

    def margins(method: str, facts: object, claim: Claim, content: bytes) -> Margins:
        seen.append(claim.radius)
        value = margin(claim.radius)
        if math.isnan(value):
            raise NotProved("nothing")
        return Margins(torch.tensor([value], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), "rigorous")

    centre = Margins(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), "rigorous")
    facts: Any = SimpleNamespace(at_centre=lambda claim: centre)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "margins", margins)
        asked = Asked(Claim(torch.zeros(1), 0, first), torch.zeros(1, 1), between)
        return stretched("cost_to_go", facts, asked, b""), seen


@pytest.mark.parametrize("first", [0.3, 0.95, 1.05, 2.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_where_the_margin_falls_gently_the_radius_is_found_to_a_per_cent(name: str, first: float) -> None:
    proof, _ = reached(SMOOTH[name], first, (0.1, 4.0))
    assert proof is not None
    assert 0.99 < proof.radius < 1.0


@pytest.mark.parametrize("first", [0.3, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("name", JUMPS)
def test_where_the_margin_jumps_the_radius_is_found_by_halves(name: str, first: float) -> None:
    margin, end = JUMPS[name]
    proof, _ = reached(margin, first, (0.2, 2.0))
    if math.isnan(margin(first)):  # there is nothing to go on from
        assert proof is None
        return
    assert proof is not None
    assert end / 1.15 < proof.radius < end


@given(
    at=st.floats(0.05, 5.0), below=st.floats(-1e9, -1e-12) | st.just(-math.inf) | st.just(math.nan),
    slope=st.floats(0.0, 0.19), first=st.floats(0.01, 10.0), low=st.floats(0.0, 1.0), share=st.floats(1.001, 100.0),
)  # fmt: skip
def test_what_comes_back_was_checked_and_is_no_less_than_what_was_asked(
    at: float, below: float, slope: float, first: float, low: float, share: float
) -> None:
    def margin(radius: float) -> float:
        return 1.0 - slope * radius if radius < at else below

    low = min(low, first)
    proof, seen = reached(margin, first, (low, first * share))
    assert len(seen) <= 7
    assert all(low <= radius <= first * share for radius in seen)
    if first < at:
        assert proof is not None
        assert proof.radius >= first
    if proof is not None:
        assert proof.radius in seen
        assert proof.margin == margin(proof.radius) > 0.0


def test_a_claim_at_one_radius_is_checked_once() -> None:
    proof, seen = reached(SMOOTH["line"], 0.5, None)
    assert proof is not None
    assert seen == [0.5]
    assert reached(SMOOTH["line"], 1.5, None)[0] is None
