"""Expressions in one variable with what cancels left out: relu(x) − relu(−x) is x, a sine and a cosine are one wave.

Each step is written as Σ c_k·atom_k + c with exact rationals c, an atom being the variable or a step that is not
affine. An activation of −a·t, a > 0, becomes one of a·t (``mirror.py``); equal atoms become one; and
p·sin t + q·cos t becomes √(p² + q²)·sin(t + δ), (p, q) being √(p² + q²)·(cos δ, sin δ).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from lipcert.network.activations.rationals import between
from lipcert.network.activations.smooth import Cos, Sin
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.numerics.midrad import UNIT, Near, Range
from lipcert.ranges.mirror import mirror_of
from lipcert.ranges.steps import Apply, Combine, Quotient, Step

#: Coefficients by atom: 0 is the variable, ONE the number 1.
Line = Mapping[int, Fraction]
ONE = -1


@dataclass(frozen=True, eq=False)
class _Atom:
    """A step that is not affine, and its arguments."""

    step: Step
    arguments: tuple[Line, ...]
    phase: Range | None = None

    def equals(self, other: _Atom) -> bool:
        """Whether both are surely the same value."""
        if type(self.step) is not type(other.step) or self.arguments != other.arguments:
            return False
        if isinstance(self.step, Apply) and isinstance(other.step, Apply):
            return same(self.step.function, other.step.function)
        return True


def same(f: Nonlinearity, g: Nonlinearity) -> bool:
    """Whether two activations are one by kind and settings, which must be exact: two numbers near 0.3 may differ."""
    return type(f) is type(g) and exact(f) and exact(g) and f.settings == g.settings


def exact(function: Nonlinearity) -> bool:
    """Whether an activation's settings are numbers, and no others than these are meant."""
    settings = function.settings
    numbers = [n for value in settings.values() for n in (value if isinstance(value, tuple) else (value,))]
    known = all(n is None or (isinstance(n, (bool, int, float)) and not isinstance(n, Near)) for n in numbers)
    return known and settings.get("error", 0.0) == 0.0


def normal_form(steps: Sequence[Step]) -> tuple[Step, ...] | None:
    """Fewer steps with the same last value, the last of them affine if it can be; None where nothing is gained.

    Only expressions whose factors and offsets are exact numbers, the same for all entries, are understood.
    """
    atoms: list[_Atom] = []
    lines: list[Line] = [{0: Fraction(1)}]
    for step in steps:
        line = _line(step, [lines[k] for k in step.arguments], atoms)
        if line is None:
            return None
        lines.append(line)
    last, waves = _with_waves(lines[-1], atoms)
    if not waves and len(atoms) == sum(not isinstance(step, Combine) for step in steps):
        return None
    return _written(last, atoms)


def _line(step: Step, arguments: list[Line], atoms: list[_Atom]) -> Line | None:
    if isinstance(step, Combine):
        offset = Fraction(0) if step.offset is None else number(step.offset)
        factors = [number(factor) for factor in step.factors]
        if offset is None or any(factor is None for factor in factors):
            return None
        return _total([({ONE: offset}, Fraction(1)), *zip(arguments, factors, strict=True)])  # type: ignore[list-item]
    if isinstance(step, Quotient) or (isinstance(step, Apply) and step.function.valid != (-math.inf, math.inf)):
        return None  # what cancels might not be defined
    if not isinstance(step, Apply):
        return {_atom(_Atom(step, tuple(arguments)), atoms): Fraction(1)}
    (argument,) = arguments
    leading = next((argument[k] for k in sorted(argument) if k != ONE), Fraction(0))
    if leading == 0:
        return None
    mirror = mirror_of(step.function) if leading < 0 else None
    if mirror is None:
        return {_atom(_Atom(step, (argument,)), atoms): Fraction(1)}
    turned = _total([(argument, Fraction(-1))])
    atom = _atom(_Atom(step, (turned,)), atoms)
    return _total([
        ({atom: Fraction(mirror.sign), ONE: mirror.offset}, Fraction(1)), (turned, mirror.slope)
    ])  # fmt: skip


def number(x: Range) -> Fraction | None:
    """The one number that a range is in all entries; None if it is not known exactly."""
    x = x.plain
    if not x.mid.numel() or bool((x.rad != 0).any()) or not bool((x.mid == x.mid.reshape(-1)[0]).all()):
        return None
    value = float(x.mid.reshape(-1)[0])
    return Fraction(value) if math.isfinite(value) else None


def _total(terms: Sequence[tuple[Line, Fraction]]) -> Line:
    result: dict[int, Fraction] = {}
    for line, factor in terms:
        for atom, coefficient in line.items():
            result[atom] = result.get(atom, Fraction(0)) + factor * coefficient
    return {atom: coefficient for atom, coefficient in result.items() if coefficient}


def _atom(atom: _Atom, atoms: list[_Atom]) -> int:
    for place, known in enumerate(atoms, start=1):
        if known.equals(atom):
            return place
    atoms.append(atom)
    return len(atoms)


def _with_waves(line: Line, atoms: list[_Atom]) -> tuple[dict[int, Fraction | Range], bool]:
    """The line with each pair p·sin t + q·cos t as one wave, whose coefficient is a range."""
    result: dict[int, Fraction | Range] = dict(line)
    found = False
    for place in [k for k in line if k > 0]:
        sine = atoms[place - 1]
        partner = next((k for k in line if k > 0 and _quadrature(sine, atoms[k - 1])), None)
        if partner is None or not all(2.0**-400 < abs(line[k]) < 2.0**400 for k in (place, partner)):
            continue
        size, phase = _polar(line[place], line[partner])
        atoms.append(replace(sine, phase=phase))
        del result[place], result[partner]
        result[len(atoms)] = size
        found = True
    return result, found


def _quadrature(a: _Atom, b: _Atom) -> bool:
    """Whether these are sin t and cos t."""
    waves = isinstance(a.step, Apply) and isinstance(b.step, Apply) and a.arguments == b.arguments
    return waves and type(a.step.function) is Sin and type(b.step.function) is Cos  # type: ignore[attr-defined]


def _polar(p: Fraction, q: Fraction) -> tuple[Range, Range]:
    """(√(p² + q²), δ) with (p, q) = √(p² + q²)·(cos δ, sin δ)."""
    square = p * p + q * q
    root = Fraction(math.sqrt(square))
    while root * root < square:
        root = Fraction(math.nextafter(float(root), math.inf))
    below = root
    while below * below > square:
        below = Fraction(math.nextafter(float(below), 0.0))
    angle = torch.tensor(math.atan2(float(q), float(p)), dtype=torch.float64)
    # the library's own error, and 2u of relative error in q/p, which turns the angle by 1/2 of that at most
    return between(below, root), Range.exact(angle).widened(torch.full_like(angle, 16.0 * UNIT * math.pi))


def _written(last: Mapping[int, Fraction | Range], atoms: Sequence[_Atom]) -> tuple[Step, ...]:
    needed = {k for k in last if k > 0}
    for place in range(len(atoms), 0, -1):
        if place in needed:
            needed.update(k for line in atoms[place - 1].arguments for k in line if k > 0)
    steps: list[Step] = []
    at = {0: 0}

    def append(line: Mapping[int, Fraction | Range], phase: Range | None = None) -> int:
        if phase is None and len(line) == 1 and next(iter(line.values())) == 1 and ONE not in line:
            return at[next(iter(line))]
        parts = {k: c if isinstance(c, Range) else between(c, c) for k, c in line.items()}
        offset = parts.pop(ONE, None)
        offset = phase if offset is None else offset if phase is None else offset + phase
        arguments = tuple(at[k] for k in parts) or (0,)
        zero = Range.exact(torch.zeros((), dtype=torch.float64))
        steps.append(Combine(arguments, tuple(parts.values()) or (zero,), offset))
        return len(steps)

    for place in sorted(needed):
        atom = atoms[place - 1]
        arguments = tuple(append(line, atom.phase) for line in atom.arguments)
        steps.append(replace(atom.step, arguments=arguments))
        at[place] = len(steps)
    if append(last) != len(steps) or not steps:
        steps.append(Combine((append(last),), (Range.exact(torch.ones((), dtype=torch.float64)),)))
    return tuple(steps)
