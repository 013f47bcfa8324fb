"""Defaults of the options from ``[tool.lipcert]`` in the nearest ``pyproject.toml``, this folder's or one above."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipcert.errors import InputError

#: Option without its dashes → the parameter behind it, how many values it takes (0: any number of times one), and
#: whether it must be given.
Options = Mapping[str, tuple[str, int, bool]]


def options_of(command: Any) -> dict[str, tuple[str, int, bool]]:
    """The options of a click command."""
    return {
        flag.removeprefix("--"): (one.name, 0 if one.multiple else one.nargs, bool(one.required))
        for one in command.params
        if one.param_type_name == "option"
        for flag in one.opts
    }


def defaults(commands: Mapping[str, Options], here: Path | None = None) -> dict[str, dict[str, Any]]:
    """command → parameter → default, as click takes them.

    Keys of ``[tool.lipcert]`` are options without their dashes, for every command that has them and can do without;
    those of ``[tool.lipcert.COMMAND]`` are for one. What the command line says goes before both.

    Args:
        commands: command → its options.
        here: the folder to start from; None: the current one.

    Raises:
        InputError: a file that cannot be read, or a key that is no option.
    """
    path, table = _table(here or Path.cwd())
    everywhere = {key: value for key, value in table.items() if not isinstance(value, dict)}
    known = {name for named in commands.values() for name in named}
    for key in everywhere:
        if key not in known:
            raise InputError(f"{path}: [tool.lipcert] has {key!r}, which is no option of any command.")
    found: dict[str, dict[str, Any]] = {}
    for command, named in commands.items():
        own = table.get(command, {})
        for key in own:
            if key not in named:
                raise InputError(f"{path}: [tool.lipcert.{command}] has {key!r}, which is no option of that command.")
        chosen = {**{key: value for key, value in everywhere.items() if key in named and not named[key][2]}, **own}
        found[command] = {named[key][0]: _text(value, named[key][1]) for key, value in chosen.items()}
    for key, value in table.items():
        if isinstance(value, dict) and key not in commands:
            raise InputError(f"{path}: [tool.lipcert.{key}]: there is no such command.")
    return found


def _table(here: Path) -> tuple[Path, dict[str, Any]]:
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                content = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as problem:
                raise InputError(f"cannot read {path}: {problem}") from problem
            tool = content.get("tool", {})
            table = tool.get("lipcert", {}) if isinstance(tool, dict) else {}
            if not isinstance(table, dict):
                raise InputError(f"{path}: tool.lipcert must be a table.")
            return path, table
    return here, {}


def _text(value: Any, count: int) -> Any:
    """As on the command line: ``norm = [2, 2]`` is ``2,2``; an option of two values takes two, ``box = [0, 1]``."""
    if not isinstance(value, list):
        return value if count else [value]
    parts = [str(part) for part in value]
    return ",".join(parts) if count == 1 else parts
