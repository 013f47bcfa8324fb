"""``lipcert outputs``: certified ranges of what a model puts out on a domain, or margins of a class."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import lipcert
from lipcert.cli.common import (
    BallOption,
    BoxOption,
    FixOption,
    JsonOption,
    ModelArgument,
    OutputOption,
    PowerOption,
    RadiusOption,
    SeedOption,
    ShapeOption,
    WrtOption,
    app,
    as_dict,
    console,
    errors,
    finite,
    guard,
)
from lipcert.cli.load import load, one_shape, parse_domain, read_array
from lipcert.digits import at_least, at_most
from lipcert.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lipcert.result import OutputBound

#: Most rows that are printed as a table.
ROWS = 40


@app.command()
def outputs(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    ball: BallOption = None,
    radius: RadiusOption = None,
    p: PowerOption = None,
    box: BoxOption = None,
    select: Annotated[
        str | None, typer.Option("--select", help="bound combinations of outputs: a .npy file of shape (k, m) or (m,)")
    ] = None,
    label: Annotated[
        int | None, typer.Option("--label", help="bound the margins of this class: output minus each other output")
    ] = None,
    above: Annotated[
        float | None, typer.Option("--above", help="exit with 1 unless all that is bounded is proved greater than this")
    ] = None,
    below: Annotated[
        float | None, typer.Option("--below", help="exit with 1 unless all that is bounded is proved less than this")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="write the certificate here")] = None,
    budget: Annotated[float, typer.Option("--budget", help="seconds of search")] = 60.0,
    split: Annotated[bool, typer.Option("--split", help="split the domain to the end of the budget")] = False,
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Certified lower and upper bounds of MODEL's outputs on a ball, a box or both."""
    with guard(as_json):
        _require(select, label, above, below)
        if ball is None and box is None and radius is None and p is None:
            raise InputError("outputs are bounded on a domain: give --ball CENTER --radius R, --box LOW HIGH, or both.")
        rows = None if select is None else _matrix(select)
        built, example, named = load(model, input_shape, wrt, output, fix or ())
        domain = parse_domain(ball, radius, p, box, one_shape(example))
        assert domain is not None
        if label is None:
            result = lipcert.output_bounds(
                built,
                example,
                domain,
                select=rows,
                budget=budget,
                seed=seed,
                above=above,
                below=below,
                split=split,
                **named,
            )
        else:
            result = lipcert.margin(
                built, example, label, domain, budget=budget, seed=seed, above=above, split=split, **named
            )
        if save is not None:
            result.save(save)
    names = _names(result, select is not None, label)
    missed = _not_proved(result, names, above, below)
    if as_json:
        asked = above is not None or below is not None
        typer.echo(json.dumps({
            **as_dict(result), "label": label, "above": _number(above), "below": _number(below),
            "proved": not missed if asked else None, "certificate": None if save is None else str(save),
        }))  # fmt: skip
    else:
        _print(result, names)
        if save is not None:
            console.print(f"certificate written to {escape(str(save))}", soft_wrap=True)
    if missed:
        more = f", and {len(missed) - 3} more" if len(missed) > 3 else ""
        errors.print(f"not proved: {', '.join(missed[:3])}{more}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _require(select: str | None, label: int | None, above: float | None, below: float | None) -> None:
    if select is not None and label is not None:
        raise InputError("--select and --label both say which combinations of outputs to bound: give one of them.")
    for option, limit in (("--above", above), ("--below", below)):
        if limit is not None and math.isnan(limit):
            raise InputError(f"{option} must be a number.")
    if label is not None and below is not None:
        raise InputError("margins are bounded from below only: --label goes with --above.")


def _matrix(path: str) -> Tensor:
    """(k, m) from a .npy file; a vector is one row.

    Raises:
        InputError: no such file, or not one array of real numbers.
    """
    import numpy as np
    import torch

    if not Path(path).is_file():
        raise InputError(f"--select takes a .npy file; there is no file {path!r}.")
    found = read_array("--select", path)
    exact = found.astype(np.float64) if found.dtype.kind in "fiub" else found
    if exact.dtype != np.float64 or not np.array_equal(exact.astype(found.dtype), found, equal_nan=True):
        raise InputError(f"--select: {path} must hold real numbers that float64 can hold, not {found.dtype}.")
    matrix = torch.from_numpy(np.ascontiguousarray(exact))
    return matrix[None] if matrix.dim() == 1 else matrix


def _names(result: OutputBound, selected: bool, label: int | None) -> list[str]:
    """Of what is bounded, in words of the command line."""
    count = len(result.lower)
    if label is None:
        return [f"{'row' if selected else 'output'} {k}" for k in range(count)]
    return [f"output {label} − output {k}" for k in range(count + 1) if k != label]


def _not_proved(result: OutputBound, names: list[str], above: float | None, below: float | None) -> list[str]:
    """What --above and --below ask for and the bounds do not prove."""
    missed = []
    for name, low, high in zip(names, result.lower.tolist(), result.upper.tolist(), strict=True):
        if above is not None and not low > above:
            missed.append(f"{name} > {above:.7g} ({_known('≥', low)})")
        if below is not None and not high < below:
            missed.append(f"{name} < {below:.7g} ({_known('≤', high)})")
    return missed


def _known(sign: str, end: float) -> str:
    if not math.isfinite(end):
        return "nothing is known"
    return f"known: {sign} {at_least(end) if sign == '≥' else at_most(end)}"


def _number(value: float | None) -> Any:
    return None if value is None else finite(value)


def _print(result: OutputBound, names: list[str]) -> None:
    console.print(escape(str(result)), soft_wrap=True)
    if len(names) > ROWS:
        return
    table = Table("", "at least", "at most")
    for name, low, high in zip(names, result.lower.tolist(), result.upper.tolist(), strict=True):
        table.add_row(name, at_least(low) if low > -math.inf else "", at_most(high) if high < math.inf else "")
    console.print(table)
