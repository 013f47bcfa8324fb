"""The registry of op rules: ATen name → how the op becomes nodes of the Network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Rule = Callable[..., Any]


@dataclass(frozen=True)
class OpInfo:
    """One registered rule, as ``lipcert.supported_ops()`` shows it.

    Attributes:
        name: ATen name, with the overload (``max.dim``) when the rule is for that overload only.
        family: the file the rule lives in.
        kind: ``linear``, ``activation``, ``gain``, ``selection`` or ``pattern``.
        summary: first line of the rule's docstring (constants and source).
    """

    name: str
    family: str
    kind: str
    summary: str


_RULES: dict[str, Rule] = {}
_INFO: dict[str, OpInfo] = {}


def rule(*names: str, kind: str) -> Callable[[Rule], Rule]:
    """Register ``function(ctx, *args, **kwargs)`` as the rule of the named ATen ops; a duplicate raises."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two rules for aten op {name!r}: {_RULES[name].__module__}, {function.__module__}")
            _RULES[name] = function
            _INFO[name] = OpInfo(name, function.__module__.rsplit(".", 1)[-1], kind, "")
        return function

    return register


def find_rule(name: str, overload: str) -> Rule | None:
    """The rule of ``name.overload`` if there is one, else the rule of ``name``, else None."""
    return _RULES.get(f"{name}.{overload}") or _RULES.get(name)


def supported_ops() -> tuple[OpInfo, ...]:
    """Every registered rule, sorted by family and name."""
    described = (replace(info, summary=_summary(_RULES[name])) for name, info in _INFO.items())
    return tuple(sorted(described, key=lambda info: (info.family, info.name)))


def _summary(function: Rule) -> str:
    """First line of a rule's docstring, read late: rules made in a loop get theirs after registration."""
    lines = (function.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""
