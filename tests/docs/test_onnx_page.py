"""docs/onnx.md lists the operators with a translation, and the limits that the code has."""

from pathlib import Path

import lipcert.capture.onnx.walk  # noqa: F401  (registers every translation)
from lipcert.capture.onnx import limits
from lipcert.capture.onnx.node import translated_ops

PAGE = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")


def test_the_operators_are_those_with_a_translation() -> None:
    listed = [line.split() for line in PAGE.split("## Operators")[1].splitlines() if line.startswith("    ")]
    assert sorted(word for words in listed for word in words) == sorted({*translated_ops(), "If"})


def test_the_limits_are_those_of_the_code() -> None:
    assert limits.COMPUTED_BYTES == 1 << 30
    assert (limits.ENTRIES, limits.TOTAL_ENTRIES, limits.NODES) == (1 << 28, 1 << 30, 100_000)
    for text in ("1 GiB", "2^28", "2^30", "100 000", f"{limits.OPERATOR_SETS[0]} to {limits.OPERATOR_SETS[-1]}"):
        assert text in PAGE
