"""Rules of executed ops: from what is known of the operands to the error of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lipcert.execution.value import Call

#: The ``Outcome`` of an op; a tuple of them for an op of several results.
Rule = Callable[[Call], Any]

_RULES: dict[str, Rule] = {}


def executed(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen ops."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two rules for the execution of {name}")
            _RULES[name] = rule
        return rule

    return register


def find(name: str) -> Rule | None:
    """The rule of an op; None if how it is executed is not known."""
    return _RULES.get(name)
