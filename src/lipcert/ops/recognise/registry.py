"""The registry of patterns: which expressions are tried where an op starts one, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lipcert.network.builder import Var
from lipcert.ops.context import Constant, Context
from lipcert.ops.rational import OutOfRange

Match = Callable[..., Var | None]


@dataclass(frozen=True)
class Pattern:
    """One recogniser.

    Attributes:
        name: unique; tests have a row for each.
        op: the op whose rule tries it (``mul``, ``div``, ``where`` …); its operands are what ``match`` takes.
        order: patterns of one op are tried in this order, smallest first; no two share a place.
        forms: how users write it, for error messages and docs.
        match: ``match(ctx, *operands)``, the value recognised or None.
    """

    name: str
    op: str
    order: int
    forms: tuple[str, ...]
    match: Match


_PATTERNS: dict[str, Pattern] = {}


def pattern(name: str, op: str, order: int, *forms: str) -> Callable[[Match], Match]:
    """Register ``match(ctx, *operands)`` for ``op``.

    Raises:
        ValueError: the name, or the place among the patterns of the op, is taken.
    """

    def register(match: Match) -> Match:
        for other in _PATTERNS.values():
            if other.name == name or (other.op, other.order) == (op, order):
                raise ValueError(f"pattern {name!r} ({op}, {order}) clashes with {other.name!r} ({other.op})")
        _PATTERNS[name] = Pattern(name, op, order, forms, match)
        return match

    return register


def patterns(op: str | None = None) -> tuple[Pattern, ...]:
    """The registered patterns, of one op or of all, in the order in which they are tried."""
    chosen = [p for p in _PATTERNS.values() if op is None or p.op == op]
    return tuple(sorted(chosen, key=lambda p: (p.op, p.order)))


def recognise(ctx: Context, op: str, *operands: Any) -> Var | None:
    """What the first pattern of ``op`` that matches makes of the operands; None if there is none.

    Where a pattern matches but one of its numbers has no faithful double, the value is an error if it is needed.
    """
    for candidate in patterns(op):
        try:
            found = candidate.match(ctx, *operands)
        except OutOfRange as problem:
            error = ctx.unsupported(f"recognised as {candidate.name}, but {problem}")
            shapes = [x.shape for x in operands if isinstance(x, (Var, Constant))]
            shape = tuple(torch.broadcast_shapes(*shapes))
            # Without parents, so that this error comes before those of the parts, which blame the wrong thing.
            return ctx.builder.unresolved((), shape, "out of range", error, (), ctx.where)
        if found is not None:
            return found
    return None


def forms(op: str) -> str:
    """The forms that are recognised where ``op`` starts, for error messages."""
    return ", ".join(form for candidate in patterns(op) for form in candidate.forms)
