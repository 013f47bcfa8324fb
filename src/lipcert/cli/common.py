"""What the commands share: options, consoles, and how errors end."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lipcert.errors import LipcertError

console = Console()
errors = Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="a .pt2 file, or package.module:factory")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]
SeedOption = Annotated[int, typer.Option("--seed")]


@contextmanager
def guard(as_json: bool) -> Iterator[None]:
    """Turn any error into a message on stderr (and JSON on stdout) and exit code 2.

    Exit code 1 means "not as good as was asked for" (``--max``, ``--at-least``) and nothing else, so an error nobody
    foresaw must not end with it either.
    What the user's own code prints while it is imported or run goes to stderr.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as problem:
        if as_json:
            typer.echo(json.dumps({"error": type(problem).__name__, "message": str(problem)}))
        if not isinstance(problem, LipcertError):
            errors.print(escape(traceback.format_exc()), highlight=False)
        errors.print(f"[red]{type(problem).__name__}[/red]: {escape(str(problem))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
