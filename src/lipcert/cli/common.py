"""What the commands share: the application, options, errors as exit code 2, results as JSON.

No file of the command line imports torch at its head: help, completion and a misspelt option do not wait for it.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import lipcert
from lipcert.errors import LipcertError

if TYPE_CHECKING:
    from lipcert.domain import Domain
    from lipcert.result import Bound, OutputBound

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Certified bounds for trained networks. Exit code: 0 ok, 1 not as good as was asked for, 2 error.",
)  # fmt: skip
console = Console()
errors = Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="a .pt2 or .onnx file, or package.module:factory")]
ShapeOption = Annotated[str | None, typer.Option("--input-shape", help="one example, no batch: 1,28,28")]
NormOption = Annotated[str, typer.Option("--norm", help="p,q: norms of input and output, each 1, 2 or inf")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]
BallOption = Annotated[str | None, typer.Option("--ball", help="bound on a ball: its centre, a number or .npy file")]
RadiusOption = Annotated[float | None, typer.Option("--radius", help="of the ball")]
PowerOption = Annotated[str | None, typer.Option("--p", help="the ball's norm: 1, 2 or inf (the default)")]
BoxOption = Annotated[
    tuple[str, str] | None,
    typer.Option("--box", metavar="LOW HIGH", help="bound on a box: numbers or .npy files; with --ball: on both"),
]
WrtOption = Annotated[
    str | None, typer.Option("--wrt", help="inputs to bound in, the others fixed as saved: y or pos,vel or a submodule")
]
OutputOption = Annotated[str | None, typer.Option("--output", help="which output: logits, 0")]
FixOption = Annotated[
    list[str] | None,
    typer.Option("--fix", metavar="NAME=VALUE", help="an input of a file that does not vary: a number or .npy file"),
]
SeedOption = Annotated[int, typer.Option("--seed")]


@contextmanager
def guard(as_json: bool) -> Iterator[None]:
    """Turn any error into a message on stderr (and JSON on stdout) and exit code 2.

    Exit code 1 means "not as good as was asked for" (``--max``, ``--at-least``, ``--above``, ``--below``) and nothing
    else, so an error nobody foresaw must not end with it either.
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


def as_dict(result: Bound | OutputBound) -> dict[str, Any]:
    """For JSON."""
    if isinstance(result, lipcert.OutputBound):
        return {
            "lower": [finite(v) for v in result.lower.tolist()],
            "upper": [finite(v) for v in result.upper.tolist()],
            "guarantee": result.guarantee,
            "method": result.method,
            "domain": domain_text(result.domain),
            "input_shape": list(result.input_shape),
            "seconds": result.seconds,
        }
    return {
        "bound": finite(result.value),
        "log10": None if result.log10 is None else finite(result.log10),
        "guarantee": result.guarantee,
        "method": result.method,
        "norm": norm_json(result.norm),
        "via": None if result.via is None else norm_json(result.via),
        "domain": domain_text(result.domain),
        "anchored": result.anchor is not None,
        "input_shape": list(result.input_shape),
        "seconds": result.seconds,
    }


def domain_text(domain: Domain) -> str | None:
    """Short text; null means everywhere."""
    return None if domain is None else domain.describe()


def norm_json(norm: tuple[float, float]) -> list[int | str]:
    """1, 2 or "inf" for each side."""
    return [int(p) if math.isfinite(p) else "inf" for p in norm]


def finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
