"""Numbers as they are printed: what is claimed of them holds of the digits, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def at_most(value: float, digits: int = 7) -> str:
    """An upper bound: the printed number is no smaller."""
    return _rounded(value, digits, ROUND_CEILING)


def at_least(value: float, digits: int = 7) -> str:
    """A lower bound: the printed number is no larger."""
    return _rounded(value, digits, ROUND_FLOOR)


def given(value: float, digits: int, otherwise: Callable[[float, int], str]) -> str:
    """A number that somebody gave: its digits where they name this double and no other, else rounded as said."""
    short = f"{value:.{digits}g}"
    return short if float(short) == value else otherwise(value, digits)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return f"{value:g}"
    exact = Context(prec=digits, rounding=rounding).create_decimal(Decimal(value))
    if not 1e-290 < abs(value) < 1e300:  # digits that no double stands for
        return f"{exact:.{digits}g}"
    return f"{float(exact):.{digits}g}"
