"""HTML of which nothing that comes from a model or a file becomes part: every text is escaped, whoever wrote it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

#: Control characters, surrogates, and what turns the direction of text: shown by number, so that nothing hides.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


#: Characters beyond which a cell's text is a remark.
NOTE = 60


class Markup(str):
    """HTML that was built here; a plain ``str`` is a text, and is escaped where it is put in."""


def text(value: object) -> Markup:
    """A text as HTML."""
    if isinstance(value, Markup):
        return value
    seen = _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", str(value))
    return Markup(html.escape(seen, quote=True))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element with its children; texts are escaped.

    Args:
        name: of the element.
        children: texts and elements; None is left out.
        attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False are left out.
    """
    given = [
        f' {key.rstrip("_").replace("_", "-")}="{text("" if value is True else value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    inside = "".join(text(child) for child in children if child is not None)
    return Markup(f"<{name}{''.join(given)}>{inside}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Elements and texts one after the other."""
    return Markup("".join(text(part) for part in parts))


def table(caption: object, head: Sequence[object], rows: Iterable[Sequence[object]], **attributes: object) -> Markup:
    """A table whose first column names its rows.

    Args:
        caption: what it shows.
        head: names of the columns.
        rows: texts or elements, one per column.
        attributes: of the ``table``.
    """
    body = (tag("tr", _cell(row[0], "th", scope="row"), *(_cell(cell, "td") for cell in row[1:])) for row in rows)
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag("tbody", *body),
        **attributes,
    )


def _cell(content: object, name: str, **attributes: object) -> Markup:
    """Long texts, remarks and sources, are marked, so that a style can give them room."""
    note = not isinstance(content, Markup) and name == "td" and len(str(content)) > NOTE
    return tag(name, content, class_="note" if note else None, **attributes)


class Shown:
    """What prints as text, for a notebook; results with parts show a table instead."""

    def _repr_html_(self) -> str:
        return tag("pre", str(self))
