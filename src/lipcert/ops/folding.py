"""Sub-graphs of constants (parametrised or normalised weights): enclosures of what exact arithmetic gives.

Every op runs twice: on enclosures (``enclosure``), for the number that is meant, and on the tensors of the model's own
precision, for the number that the model multiplies with. An op without a rule here keeps its float64 value with an
infinite radius, so that no bound that uses it is ``rigorous``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import lipcert.ops.folding_sums  # noqa: F401  (registers its rules)
from lipcert.network.source import Derived, Fixed, Source
from lipcert.numerics.process_state import ordinary_dtype
from lipcert.ops.constant import Constant
from lipcert.ops.enclosure import Ball, unknown
from lipcert.ops.folding_rules import MOVES, RULES

#: Ops that make constants: what they give in the model's dtype is stored, so that 0.1 is the number the model holds.
_CREATION = frozenset(
    "zeros zeros_like ones ones_like full full_like arange eye new_zeros new_ones new_full scalar_tensor linspace "  # noqa: SIM905
    "empty_like tril_indices triu_indices".split()
)
#: Functions of exact numbers that make no rounding: comparisons, orders, whole numbers.
_EXACT_ON_EXACT = frozenset(
    "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not isfinite "  # noqa: SIM905
    "isnan argmax argmin argsort nonzero one_hot any all count_nonzero bucketize searchsorted _to_copy to".split()
)
_COMPARISON = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))


def fold(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run ``target`` on constants; every tensor of the result is a Constant."""
    own = _own(target, args, kwargs)
    if name in _CREATION and own is not None:
        return tree_map(lambda v: Constant.exactly(v, source=Fixed(v)) if isinstance(v, Tensor) else v, own)
    with ordinary_dtype():
        result = _enclosed(target, name, args, kwargs)
    leaves, spec = tree_flatten(result)
    others = [None] * len(leaves) if own is None else tree_leaves(own)
    if len(others) != len(leaves):
        others = [None] * len(leaves)
    joined = (_joined(a, b) for a, b in zip(leaves, others, strict=True))
    sources = _sources(target, args, kwargs, len(leaves))
    kept = (replace(c, source=s) if isinstance(c, Constant) else c for c, s in zip(joined, sources, strict=True))
    return tree_unflatten(list(kept), spec)


def _sources(target: Any, args: Any, kwargs: Any, number: int) -> list[Source | None]:
    """Of the results of a call; None if an argument's is not known."""
    if any(isinstance(leaf, Constant) and leaf.source is None for leaf in tree_leaves((args, kwargs))):
        return [None] * number
    plain, named = tree_map(lambda c: c.source if isinstance(c, Constant) else c, (args, kwargs))
    return [Derived(target, plain, named, place) for place in range(number)]


def _joined(value: Any, own: Any) -> Any:
    """The Constant of an enclosure and of the model's own value."""
    if isinstance(value, Ball):
        if not isinstance(own, Tensor):
            return Constant(value, None)
        if own.shape != value.middle.shape:  # a rule that broadcast less than the op does
            value = value.map(lambda t: t.expand(own.shape).clone())
        if not value.middle.is_floating_point():
            return Constant(Ball(own, value.radius), own.dtype)
        same = torch.equal(own.double(), value.middle.double())
        return Constant(value, own.dtype, None if same else own)
    if not isinstance(value, Tensor):
        return value
    if not isinstance(own, Tensor) or torch.equal(own, value):
        return Constant(Ball(value, None), value.dtype)
    return Constant(_jump(own), own.dtype)


def _own(target: Any, args: Any, kwargs: Any) -> Any:
    """What the op gives in the model's own precision; None if it does not run there (half precision on a CPU)."""
    plain, named = tree_map(lambda c: c.own if isinstance(c, Constant) else c, (args, kwargs))
    try:
        with torch.no_grad():
            return target(*plain, **{k: torch.device("cpu") if k == "device" else v for k, v in named.items()})
    except Exception:  # any failure only means: the model's own value is not known
        return None


def _enclosed(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The result as Balls (floating numbers, and whole ones that rounding may have decided) and exact tensors."""
    operands = [c for c in tree_leaves((args, kwargs)) if isinstance(c, Constant)]
    whole = all(not c.exact.middle.is_floating_point() and c.exact.radius is None for c in operands)
    if whole and name not in RULES:
        return _plain(target, args, kwargs, exact=True)
    balls, named = tree_map(_argument, (args, kwargs))
    try:
        if name in MOVES:
            return _moved(target, balls, named)
        if name in RULES and not (whole and _is_whole(target, args, kwargs)):
            found = RULES[name](target, *balls, **named)
            if found is not None:
                return found
    except (RuntimeError, TypeError, ValueError, IndexError):  # a form of the op that the rule does not know
        pass
    if name in _COMPARISON and operands:
        return _compared(target, args, kwargs)
    exact = all(c.exact.radius is None for c in operands) and (whole or name in _EXACT_ON_EXACT)
    return _plain(target, args, kwargs, exact)


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    """The op on the values, in float64."""
    plain, named = tree_map(lambda c: c.exact.middle if isinstance(c, Constant) else c, (args, kwargs))
    with torch.no_grad():
        return target(*tree_map(_double, plain), **{k: _cpu(k, _double(v)) for k, v in named.items()})


def _is_whole(target: Any, args: Any, kwargs: Any) -> bool:
    tensors = [t for t in tree_leaves(_run(target, args, kwargs)) if isinstance(t, Tensor)]
    return not any(t.is_floating_point() for t in tensors)


def _plain(target: Any, args: Any, kwargs: Any, exact: bool) -> Any:
    """An op without a rule of enclosure: its whole numbers are exact where said so, its floating ones unknown."""

    def known(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point() or value.is_complex():
            return unknown(value.double() if value.is_floating_point() else value.real.double())
        return value if exact else _jump(value)

    return tree_map(known, _run(target, args, kwargs))


def _jump(value: Tensor) -> Ball:
    """A whole number or mask that rounding may have decided."""
    return Ball(value, torch.full(value.shape, math.inf, dtype=torch.float64))


def _argument(c: Any) -> Any:
    """Constants as Balls where they are floating or undecided, as plain tensors where they are exact whole numbers."""
    if not isinstance(c, Constant):
        return c
    if c.exact.middle.is_floating_point() or c.exact.radius is not None:
        return c.exact
    return c.exact.middle


def _moved(target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An op that moves, repeats or drops entries: applied to middles and to radii alike."""
    leaves, spec = tree_flatten((args, kwargs))
    balls = [v for v in leaves if isinstance(v, Ball)]

    def run(part: Callable[[Ball], Tensor]) -> Any:
        plain, named = tree_unflatten([part(v) if isinstance(v, Ball) else v for v in leaves], spec)
        with torch.no_grad():
            return target(*tree_map(_double, plain), **{k: _cpu(k, _double(v)) for k, v in named.items()})

    middle = run(lambda ball: ball.middle)
    if any(not ball.middle.is_floating_point() for ball in balls):
        return tree_map(lambda m: unknown(m) if m.is_floating_point() else _jump(m), middle)
    if all(ball.radius is None for ball in balls):
        return tree_map(lambda m: Ball(m, None) if m.is_floating_point() else m, middle)
    radius = run(lambda ball: ball.spread)
    return tree_map(lambda m, r: Ball(m, r if bool(r.any()) else None), middle, radius)


def _compared(target: Any, args: Any, kwargs: Any) -> Any:
    """A comparison, known where the two enclosures do not meet or are both single numbers."""
    result = _run(target, args, kwargs)
    sides = [torch.as_tensor(c.exact.middle if isinstance(c, Constant) else c) for c in args[:2]]
    errors = [c.exact.radius if isinstance(c, Constant) else None for c in args[:2]]
    if all(e is None for e in errors):
        return result
    distance = (sides[0].double() - sides[1].double()).abs() * (1.0 - 2.0**-50)
    reach = sum((e for e in errors if e is not None), torch.zeros((), dtype=torch.float64)) * (1.0 + 2.0**-50)
    return result if bool((distance > reach).all()) else _jump(result)


def _double(value: Any) -> Any:
    """Floating dtypes among the arguments become float64: no constant is rounded to the model's dtype."""
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _cpu(key: str, value: Any) -> Any:
    return torch.device("cpu") if key == "device" else value
