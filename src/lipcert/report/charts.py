"""Charts as SVG: points, lines, and bars beside numbers; every chart has a name, a description and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipcert.markup import Markup, joined, tag

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 120, 16, 44


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        name: what it shows, with its unit.
        low, high: ends, low < high; positive if ``log``.
        log: decades instead of steps.
    """

    name: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, name: str, values: Sequence[float], log: bool = False, zero: bool = False) -> Axis:
        """Around finite values (positive ones if ``log``)."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(kept), max(kept)
        if log:
            low, high = low / 1.3, high * 1.3
            return cls(name, low, high if high > low else 10.0 * low, True)
        low = min(low, 0.0) if zero else low
        return cls(name, low, high if high > low else low + (abs(low) or 1.0))

    def place(self, value: float) -> float:
        """0 to 1."""
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def marks(self) -> list[float]:
        """Where numbers stand: four to eight of them."""
        if not self.log:
            raw = (self.high - self.low) / 4
            unit = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
            step = next((m * unit for m in (1, 2, 5, 10) if m * unit >= raw), raw)
            first = math.ceil(self.low / step)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        stride = max(1, len(powers) // 6)
        factors = (1.0, 2.0, 5.0) if len(powers) <= 3 else (1.0,)
        found = [f * 10.0**e for e in powers[::stride] for f in factors]
        return [v for v in found if self.low <= v <= self.high]


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def frame(x: Axis, y: Axis) -> Markup:
    """Axes with numbers and names."""
    parts = [tag("path", class_="axis", d=f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}")]
    for mark in x.marks():
        parts.append(tag("text", f"{mark:.4g}", class_="soft", x=f"{_x(x, mark):.1f}", y=HEIGHT - BOTTOM + 16,
                         text_anchor="middle"))  # fmt: skip
    for mark in y.marks():
        place = f"{_y(y, mark):.1f}"
        parts.append(tag("path", class_="axis", d=f"M{LEFT} {place}H{WIDTH - RIGHT}"))
        parts.append(tag("text", f"{mark:.4g}", class_="soft", x=LEFT - 6, y=place, dy=4, text_anchor="end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", x.name, x=middle, y=HEIGHT - 8, text_anchor="middle"))
    parts.append(tag("text", y.name, x=8, y=TOP - 4))
    return joined(parts)


def dots(x: Axis, y: Axis, points: Sequence[tuple[float, float, str]], colour: str = "blue") -> Markup:
    """Points with their names; a name that would lie on another goes below it."""
    parts: list[Markup] = []
    taken: list[Point] = []
    for a, b, name in sorted(points, key=lambda point: (point[1], point[0])):
        left, top = _x(x, a), _y(y, b)
        line = top + 4
        while any(abs(left - other) < 110 and abs(line - at) < 12 for other, at in taken):
            line -= 12
        taken.append((left, line))
        parts.append(tag("circle", class_=colour, cx=f"{left:.1f}", cy=f"{top:.1f}", r=4))
        parts.append(tag("text", name, x=f"{left + 8:.1f}", y=f"{line:.1f}"))
    return joined(parts)


def level(y: Axis, value: float, name: str, colour: str = "orange") -> Markup:
    """A horizontal line with its name at the right, above it."""
    place = f"{_y(y, value):.1f}"
    line = tag("path", class_=f"line dash {colour}", d=f"M{LEFT} {place}H{WIDTH - RIGHT}")
    return joined([line, tag("text", name, x=WIDTH - RIGHT + 6, y=place, dy=-4)])


def line(x: Axis, y: Axis, points: Sequence[Point], name: str, colour: str = "blue", steps: bool = False) -> Markup:
    """A line through points, or with ``steps`` one that keeps a value up to its point."""
    if not points:
        return Markup()
    path = f"M{_x(x, points[0][0]):.1f} {_y(y, points[0][1]):.1f}"
    for a, b in points[1:]:
        path += f"V{_y(y, b):.1f}H{_x(x, a):.1f}" if steps else f"L{_x(x, a):.1f} {_y(y, b):.1f}"
    last = points[-1]
    drawn = tag("path", class_=f"line {colour}", d=path)
    label = tag("text", name, x=f"{_x(x, last[0]) + 6:.1f}", y=f"{_y(y, last[1]):.1f}", dy=12)
    return joined([drawn, label])


def chart(name: str, title: str, description: str, *parts: Markup) -> Markup:
    """The picture; ``name`` makes its ids."""
    return tag(
        "div",
        tag(
            "svg",
            tag("title", title, id=f"{name}-title"),
            tag("desc", description, id=f"{name}-desc"),
            *parts,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
        ),
        class_="wide",
        tabindex=0,
        role="group",
        aria_label=title,
    )


def bar(share: float, colour: str = "blue") -> Markup:
    """A share of 1 as a small bar, for a cell of a table; the number stands beside it."""
    width = 80 * min(1.0, max(0.0, share))
    return tag(
        "svg", tag("rect", class_=colour, x=0, y=2, width=f"{width:.1f}", height=8), viewBox="0 0 80 12", width=80,
        height=12, class_="small", aria_hidden="true",
    )  # fmt: skip


def spark(values: Sequence[float]) -> Markup:
    """Singular values as small bars, the largest first; the numbers stand beside them."""
    top = max(values, default=0.0)
    bars = [
        tag("rect", class_="green", x=5 * k, y=f"{20 - 20 * v / top:.1f}", width=3, height=f"{20 * v / top:.1f}")
        for k, v in enumerate(values)
        if top > 0
    ]
    return tag("svg", *bars, viewBox="0 0 80 20", width=80, height=20, class_="small", aria_hidden="true")


def scrolled(content: Markup) -> Markup:
    """What may be wider than the screen, in a frame that scrolls by keyboard, too."""
    return tag("div", content, class_="wide names", tabindex=0, role="group", aria_label="table, scrolls sideways")
