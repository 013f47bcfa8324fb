"""Boxes of inputs from ``.vnnlib`` files, the properties of the VNN-COMP benchmarks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from lipcert.domain import Box
from lipcert.errors import InputError

_TOKEN = re.compile(r"[()]|[^\s()]+")
_INPUT = re.compile(r"X_(\d+)")
_VARIABLE = re.compile(r"[XY]_\d+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
#: Characters of a file; the properties of VNN-COMP have up to some ten million.
_LONGEST = 1 << 27
_ORDER = {"<=": 1, "<": 1, ">=": -1, ">": -1}


def read_vnnlib(path: str | Path, input_shape: Sequence[int] | None = None) -> Box:
    """The box that a ``.vnnlib`` file puts its inputs X_0, X_1, … in, as a domain.

    Bounds are decimal fractions; each is rounded outward, so that the box holds all that the file means. What the file
    says of outputs alone is no part of a domain and is left out.

    Args:
        path: of the file (Demarchi et al., *VNN-LIB*, version 1).
        input_shape: of one example; None gives a box of shape (n,).

    Raises:
        InputError: no such file, not this format, an input without both bounds, other conditions on inputs than bounds,
            several boxes, or an input_shape with another number of entries.
    """
    count, terms = 0, []
    for form in _forms(_text(Path(path)), path):
        head = form[0] if isinstance(form, list) and form else None
        if head == "declare-const" and len(form) == 3 and isinstance(form[1], str):
            if match := _INPUT.fullmatch(form[1]):
                count += 1
                if int(match[1]) >= _LONGEST:
                    raise InputError(f"{path} declares the input {form[1]}; lipcert reads no such number of inputs.")
        elif head == "assert" and len(form) == 2:
            terms.append(form[1])
        else:
            raise InputError(
                f"{path} is no VNN-LIB property of version 1: it has declare-const and assert and nothing else, here "
                f"stands {_shown(form)}."
            )
    low, high = [-math.inf] * count, [math.inf] * count
    while terms:
        term = terms.pop()
        parts = term[1:] if isinstance(term, list) and term else []
        if not _about_inputs(term):
            continue
        if term[0] == "and" or (term[0] == "or" and len(parts) == 1):
            terms += parts
        elif term[0] == "or":
            raise InputError(
                f"{path} puts the inputs in one of {len(parts)} sets; a domain is one box. Write a file for each."
            )
        else:
            _narrow(term, low, high, path)
    open_ = next((k for k in range(count) if math.inf in (-low[k], high[k])), None)
    if open_ is not None or not count:
        raise InputError(f"{path} gives " + (f"X_{open_} no bound on one side." if count else "no inputs X_0, X_1, …"))
    box = Box(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
    if input_shape is None:
        return box
    if math.prod(input_shape) != count:
        raise InputError(f"{path} has {count} inputs, input_shape {tuple(input_shape)} has {math.prod(input_shape)}.")
    return Box(box.lower.reshape(tuple(input_shape)), box.upper.reshape(tuple(input_shape)))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST:
            raise InputError(f"{path} has more than {_LONGEST} characters; lipcert reads no longer property.")
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"cannot read {path} as a VNN-LIB property: {str(problem)[:200]}.") from problem


def _forms(text: str, path: Any) -> Iterator[Any]:
    """The expressions of a file, as nested lists of words."""
    stack: list[list[Any]] = []
    for line in text.splitlines():
        for token in _TOKEN.findall(line.split(";", 1)[0]):
            if token == "(":
                stack.append([])
            elif token == ")" and stack:
                done = stack.pop()
                if stack:
                    stack[-1].append(done)
                else:
                    yield done
            elif stack and token != ")":
                stack[-1].append(token)
            else:
                raise InputError(f"{path} is no VNN-LIB property: {token[:40]!r} stands outside any expression.")
    if stack:
        raise InputError(f"{path} is no VNN-LIB property, or truncated: a bracket is not closed.")


def _about_inputs(term: Any) -> bool:
    """Whether an input occurs in a condition."""
    waiting = [term]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif _INPUT.fullmatch(one):
            return True
    return False


def _narrow(term: list[Any], low: list[float], high: list[float], path: Any) -> None:
    """Take a bound of one input into account."""
    sides = term[1:]
    plain = len(sides) == 2 and term[0] in (*_ORDER, "=") and all(isinstance(s, str) for s in sides)
    names = [s for s in sides if plain and _VARIABLE.fullmatch(s)]
    if not plain or len(names) != 1 or not _NUMBER.fullmatch(sides[1 - sides.index(names[0])]):
        raise InputError(f"{path} has a condition on inputs that is no bound of one by a number: {_shown(term)}.")
    first = sides[0] == names[0]
    place, value = int(names[0][2:]), Fraction(sides[1] if first else sides[0])
    if place >= len(low):
        raise InputError(f"{path} bounds {names[0]}, which it does not declare.")
    way = _ORDER.get(term[0], 0) * (1 if first else -1)
    if way >= 0:
        high[place] = min(high[place], _rounded(value, math.inf))
    if way <= 0:
        low[place] = max(low[place], _rounded(value, -math.inf))


def _rounded(value: Fraction, towards: float) -> float:
    """The nearest float64 that is no nearer to the other side."""
    try:
        found = float(value)
    except OverflowError:
        found = math.inf if value > 0 else -math.inf
    if math.isinf(found):
        return found
    beyond = Fraction(found) < value if towards > 0 else Fraction(found) > value
    return math.nextafter(found, towards) if beyond else found


def _shown(form: Any) -> str:
    text = f"({' '.join('(…)' if isinstance(f, list) else f for f in form[:4])} …)" if isinstance(form, list) else form
    return str(text)[:120]
