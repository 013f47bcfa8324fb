"""Write docs/constants.md, the table of every op's constants, from the op registry: ``make docs`` runs this."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import lipcert
from lipcert.ops.recognise.registry import patterns

PAGE = Path(__file__).with_name("constants.md")

INTRODUCTION = """\
# Layer constants

Generated from the op registry by `docs/make_constants.py` (`make docs`); do not edit. Each row is a rule of
`lipcert.supported_ops()`: the ATen operations it covers, how the network represents them, and the constants with the
place or the source they come from. The layers of Scaman & Virmaux (2018) are among them:
activations by their slopes, pooling, batch norm with its running statistics, dropout as the identity, and max-pooling
by the number of overlapping windows.

* **linear**: the constant is the norm of the map itself, computed and certified for the layer at hand.
* **activation**: slopes [α, β] for every entry; the product rule uses max(|α|, |β|), the other methods both.
* **gain**: a block of which the ratio of norms is known.
* **selection**: a maximum or a sort, with a constant of its own and an exact expansion into ReLUs.
* **product**: of values that both depend on the input, with slopes by the ranges of both: finite on a bounded domain,
  and everywhere where both are bounded.
* **pattern**: no constant by itself; recognised in context, or refused by name.

A constant in a summary is rounded as shown; in the program it is a float rounded to the safe side.

Complex numbers between real ones are pairs of real ones: Fourier transforms of up to 4096 entries are maps whose
matrices of cosines and sines are enclosed, and what is moved, added or multiplied goes through the rules below. So
FNet's layers, spectral convolutions, short-time transforms and rotary codes have the constants of the real maps that
they are.
"""

PATTERNS = """\
Expressions of a model's own code whose parts have no constant but which have one together. Coefficients are compared
as exact rationals: `where(x > 0.1, 4*x - 0.3, x)` is refused, because the doubles 4·0.1 − 0.3 and 0.1 differ."""


def page() -> str:
    """The page's text."""
    lines = [INTRODUCTION]
    for family, rows in groupby(lipcert.supported_ops(), key=lambda info: info.family):
        lines += [
            f"## {family.replace('_', ' ').capitalize()}",
            "",
            "| ops | kind | constants and source |",
            "|---|---|---|",
        ]
        merged: dict[tuple[str, str], list[str]] = {}
        for info in rows:
            merged.setdefault((info.summary, info.kind), []).append(info.name)
        for (summary, kind), names in merged.items():
            ops = ", ".join(f"`{name}`" for name in names)
            text = summary.replace("|", "\\|").replace("``", "`")
            lines.append(f"| {ops} | {kind} | {text} |")
        lines.append("")
    lines += ["## Written by hand", "", PATTERNS, "", "| expression | recognised as |", "|---|---|"]
    for pattern in patterns():
        written = ", ".join(pattern.forms).replace("|", "\\|")
        meaning = (pattern.match.__doc__ or "").splitlines()[0].replace("|", "\\|")
        lines.append(f"| {written} | {pattern.name}: {meaning} |")
    lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
