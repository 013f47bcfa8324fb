"""The page of methods and norms, from the registry of methods: docs/make_site.py puts it into the site."""

from __future__ import annotations

import itertools
import math

import lipcert

INTRODUCTION = """\
# Methods and norms

Made from `lipcert.methods()`. Ask for one by name, `method="lipsdp"`, or with options,
`method=lipcert.LipSDP(tolerance=1e-3)`. [Which to take](choosing.md) has figures.
"""

PAIRS = """\
## Who bounds which pair

`norm=(p, q)`: the input is measured in l_p, the output in l_q. `auto` answers for all nine, where need be by another
pair and what passing from one to the other costs (`.via` says so).
"""


def name(p: float) -> str:
    """A norm's name."""
    return "∞" if p == math.inf else f"{p:g}"


def page() -> str:
    """The page's text."""
    found = lipcert.methods()
    lines = [INTRODUCTION, "| method | what it is | options and defaults |", "|---|---|---|"]
    for info in found:
        options = ", ".join(f"`{key}={value}`" for key, value in info.options.items())
        lines.append(f"| `{info.name}` | {info.summary.replace('|', chr(92) + '|')} | {options} |")
    pairs = list(itertools.product((1.0, 2.0, math.inf), repeat=2))
    lines += ["", PAIRS, "| method | " + " | ".join(f"{name(p)}→{name(q)}" for p, q in pairs) + " |"]
    lines.append("|---" * (1 + len(pairs)) + "|")
    for info in found:
        lines.append(f"| `{info.name}` | " + " | ".join("✓" if pair in info.norms else "" for pair in pairs) + " |")
    return "\n".join([*lines, ""])
