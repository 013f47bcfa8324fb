"""Every registered name has a case, a family and a summary that states its constant."""

import pytest
from cases import CASES

from lipcert.ops.registry import find_rule, rule, supported_ops

#: Families tested by files of their own: test_activations.py, test_patterns.py, test_attention.py, test_recurrent.py …
ELSEWHERE = {"activations", "patterns", "branches", "unbounded", "powers", "pairs", "recurrent", "attention"}


def test_every_registered_name_has_a_case():
    covered = {name for case in CASES for name in case.covers.split()}
    registered = {info.name for info in supported_ops() if info.family not in ELSEWHERE}
    assert registered - covered == set(), "ops without a case in tests/ops/cases.py"
    assert covered <= {info.name for info in supported_ops()}, "cases of ops that do not exist"


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("info", supported_ops(), ids=lambda info: info.name)
def test_summary(info):
    assert info.summary.endswith((".", ")")), info
    assert info.kind in ("linear", "activation", "gain", "selection", "pattern", "product")


def test_a_second_rule_for_a_name_raises():
    with pytest.raises(ValueError, match="two rules"):
        rule("linear", kind="linear")(lambda: None)


def test_a_rule_for_an_overload_wins():
    assert find_rule("max", "dim") is not find_rule("max", "other")
    assert find_rule("max", "no_such_overload") is None
