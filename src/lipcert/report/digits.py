"""Numbers as the page prints them: what is claimed of them holds of the digits, too."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def _rounded(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    exact = Context(prec=digits, rounding=rounding).create_decimal(Decimal(value))
    return f"{exact:.{digits}g}"


def at_most(value: float, digits: int = 7) -> str:
    """An upper bound: the printed number is no smaller."""
    return _rounded(value, digits, ROUND_CEILING)


def at_least(value: float, digits: int = 7) -> str:
    """A lower bound: the printed number is no larger."""
    return _rounded(value, digits, ROUND_FLOOR)
