"""``lipcert report``: one HTML file that explains a bound."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lipcert.cli.common import (
    BallOption,
    BoxOption,
    FixOption,
    JsonOption,
    ModelArgument,
    NormOption,
    PowerOption,
    RadiusOption,
    SeedOption,
    ShapeOption,
    WrtOption,
    app,
    as_dict,
    console,
    finite,
    guard,
)
from lipcert.cli.load import load, one_shape, parse_domain, parse_norm
from lipcert.errors import InputError


@app.command()
def report(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="the HTML file to write")],
    input_shape: ShapeOption = None,
    norm: NormOption = "2,2",
    ball: BallOption = None,
    radius: RadiusOption = None,
    p: PowerOption = None,
    box: BoxOption = None,
    anchored: Annotated[bool, typer.Option("--anchored", help="as for `lipcert bound`")] = False,
    radii: Annotated[
        str | None, typer.Option("--radii", help="a curve of bounds on balls around --ball (or 0): 0.1,0.3,1")
    ] = None,
    certification: Annotated[
        Path | None, typer.Option("--certification", help="what `lipcert certify --save` wrote; it is verified")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="the certificate; the default lies beside the report, as .lipcert")
    ] = None,
    budget: Annotated[float, typer.Option("--budget", help="seconds for the bound, and for each method")] = 20.0,
    lower_budget: Annotated[float, typer.Option("--lower-budget", help="seconds for the lower bound")] = 10.0,
    wrt: WrtOption = None,
    model_output: Annotated[str | None, typer.Option("--model-output", help="which output: logits, 0")] = None,
    fix: FixOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="only the methods that `auto` tries")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """One HTML file about MODEL's bound: methods, layers, graph, certificate. Nothing in it comes from elsewhere."""
    with guard(as_json):
        from lipcert.report.gather import Wanted, gather
        from lipcert.report.write import require_place, write
        from lipcert.robustness.certification import Certification

        require_place(output)
        place = output.with_suffix(".lipcert") if save is None else save
        if not place.absolute().parent.is_dir():
            raise InputError(f"--save: there is no folder {place.absolute().parent}.")
        curve = [] if radii is None else _radii(radii)
        built, example, names = load(model, input_shape, wrt, model_output, fix or ())
        shape = one_shape(example)
        if ball is not None and radius is None and curve:
            domain, centre = parse_domain(None, None, None, box, shape), ball
        else:
            domain, centre = parse_domain(ball, radius, p if radius is not None else None, box, shape), ball or "0"
        run = None if certification is None else Certification.load(certification).verify(built, output=names["output"])
        around = parse_domain(centre, 1.0, p, None)
        wanted = Wanted(
            budget=budget, lower_budget=lower_budget, methods=not quick, radii=curve, seed=seed, progress=not as_json,
            centre=None if around is None else around.balls()[0].center, p=math.inf if p is None else float(p),
            **names,
        )  # fmt: skip
        found = gather(built, example, wanted, parse_norm(norm), domain, "center" if anchored else None)
        found.bound.save(place)
        write(
            replace(
                found, model=model, certification=run, certificate=str(place),
                input_shape=input_shape or "", output=model_output or "", options=tuple(
                    part for name, values in (("--wrt", [wrt]), ("--output", [model_output]), ("--fix", fix or []))
                    for value in values if value is not None for part in (name, value)
                ),
            ),
            output,
        )  # fmt: skip
    if as_json:
        lower = None if found.lower is None else finite(found.lower.value)
        typer.echo(json.dumps({
            **as_dict(found.bound), "lower_bound": lower, "certificate": str(place), "report": str(output),
        }))  # fmt: skip
    else:
        console.print(escape(str(found.bound)), soft_wrap=True)
        console.print(f"report written to {escape(str(output))}, certificate to {escape(str(place))}", soft_wrap=True)


def _radii(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0.0 < value < math.inf for value in found) or found != sorted(set(found)):
        raise InputError(f"--radii must be positive numbers that rise, with commas between, as 0.1,0.3, not {text!r}.")
    return found
