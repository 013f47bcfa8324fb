"""Where in the user's model a node comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """One call in the user's model.

    Attributes:
        module: path of the module that made the call (``features.0``), empty if unknown.
        kind: that module's class (``Conv2d``).
        line: ``file:line in function`` of the user's code, empty if unknown.
    """

    module: str = ""
    kind: str = ""
    line: str = ""

    def __str__(self) -> str:
        module = f"module '{self.module}' ({self.kind})" if self.module else ""
        return ", ".join(part for part in (self.line, module) if part)

    def __bool__(self) -> bool:
        return bool(self.module or self.line)


Origins = tuple[Origin, ...]


def united(parts: Iterable[Origins]) -> Origins:
    """The origins of a node made of several, in order, each once."""
    return tuple(dict.fromkeys(origin for part in parts for origin in part))


def module_paths(origins: Origins) -> str:
    """The paths of the modules behind a node, for a row of a report: ``features.0 + features.1``."""
    return " + ".join(dict.fromkeys(origin.module for origin in origins if origin.module))
