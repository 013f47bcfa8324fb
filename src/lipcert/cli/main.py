"""The typer application behind the ``lipcert`` command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import lipcert
from lipcert.cli import outputs as _outputs  # noqa: F401  adds its command
from lipcert.cli import report as _report  # noqa: F401  adds its command
from lipcert.cli.certify import certify, is_run, verified_run
from lipcert.cli.common import (
    BallOption,
    BoxOption,
    FixOption,
    JsonOption,
    ModelArgument,
    NormOption,
    OutputOption,
    PowerOption,
    RadiusOption,
    SeedOption,
    ShapeOption,
    WrtOption,
    app,
    as_dict,
    console,
    domain_text,
    errors,
    finite,
    guard,
    norm_json,
)
from lipcert.cli.defaults import defaults, options_of
from lipcert.cli.load import load, one_shape, parse_domain, parse_norm
from lipcert.digits import at_most
from lipcert.errors import InputError

if TYPE_CHECKING:
    from lipcert.result import Bound

AnchoredOption = Annotated[
    bool, typer.Option("--anchored", help="bound |f(x) - f(c)| / |x - c| for the ball's centre c alone")
]


def main() -> None:
    """Entry point of the ``lipcert`` command."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipcert {lipcert.__version__}")
        raise typer.Exit(0)


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Certified bounds for trained networks. Exit code: 0 ok, 1 not as good as was asked for, 2 error."""
    commands = getattr(context.command, "commands", {})
    with guard(as_json=False):
        context.default_map = defaults({name: options_of(command) for name, command in commands.items()})


app.command()(certify)


@app.command()
def bound(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    method: Annotated[str, typer.Option("--method", help="see `lipcert methods`")] = "auto",
    norm: NormOption = "2,2",
    ball: BallOption = None,
    radius: RadiusOption = None,
    p: PowerOption = None,
    box: BoxOption = None,
    anchored: AnchoredOption = False,
    maximum: Annotated[float | None, typer.Option("--max", help="exit with 1 if the bound exceeds this")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="write the certificate here")] = None,
    budget: Annotated[float, typer.Option("--budget", help="seconds for auto and anytime methods")] = 60.0,
    guarantee: Annotated[str, typer.Option("--guarantee", help="any, or rigorous: nothing less is returned")] = "any",
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Certified upper bound of MODEL's Lipschitz constant."""
    with guard(as_json):
        if maximum is not None and math.isnan(maximum):
            raise InputError("--max must be a number.")
        built, example, names = load(model, input_shape, wrt, output, fix or ())
        result = lipcert.bound(  # type: ignore[call-overload]
            built,
            example,
            method=method,
            norm=parse_norm(norm),
            domain=parse_domain(ball, radius, p, box, one_shape(example)),
            seed=seed,
            budget=budget,
            progress=not as_json,
            guarantee=guarantee,
            anchor="center" if anchored else None,
            **names,
        )
        if save is not None:
            result.save(save)
    if as_json:
        limit = None if maximum is None else finite(maximum)
        typer.echo(json.dumps({**as_dict(result), "max": limit, "certificate": None if save is None else str(save)}))
    else:
        _print(result)
        if save is not None:
            console.print(f"certificate written to {escape(str(save))}", soft_wrap=True)
    if maximum is not None and not result.value <= maximum:
        errors.print(f"bound {result.value:.7g} exceeds --max {maximum:.7g}")
        raise typer.Exit(1)


@app.command()
def lower(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    norm: NormOption = "2,2",
    ball: BallOption = None,
    radius: RadiusOption = None,
    p: PowerOption = None,
    box: BoxOption = None,
    anchored: AnchoredOption = False,
    budget: Annotated[float, typer.Option("--budget", help="seconds of search")] = 20.0,
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Lower bound with a witness: the steepest point and direction, or pair of points, that an attack finds."""
    with guard(as_json):
        built, example, names = load(model, input_shape, wrt, output, fix or ())
        result = lipcert.lower_bound(
            built, example, norm=parse_norm(norm), domain=parse_domain(ball, radius, p, box, one_shape(example)),
            budget=budget, seed=seed, progress=not as_json, anchor="center" if anchored else None, **names,
        )  # fmt: skip
    if as_json:
        witness = {name: tensor.reshape(-1).tolist() for name, tensor in vars(result.witness).items()}
        typer.echo(json.dumps({
            "lower_bound": result.value, "norm": norm_json(result.norm), "domain": domain_text(result.domain),
            "anchored": result.anchor is not None, "seconds": result.seconds,
            "input_shape": list(result.input_shape), **witness,
        }))  # fmt: skip
    else:
        console.print(escape(str(result)), soft_wrap=True)


@app.command()
def compare(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    norm: NormOption = "2,2",
    ball: BallOption = None,
    radius: RadiusOption = None,
    p: PowerOption = None,
    box: BoxOption = None,
    anchored: AnchoredOption = False,
    budget: Annotated[float, typer.Option("--budget", help="seconds for each method")] = 60.0,
    lower_budget: Annotated[float, typer.Option("--lower-budget", help="seconds for the lower bound")] = 10.0,
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Every applicable method side by side, with the lower bound."""
    with guard(as_json):
        built, example, names = load(model, input_shape, wrt, output, fix or ())
        result = lipcert.compare(
            built, example, norm=parse_norm(norm), domain=parse_domain(ball, radius, p, box, one_shape(example)),
            budget=budget, lower_budget=lower_budget, seed=seed, progress=not as_json,
            anchor="center" if anchored else None, **names,
        )  # fmt: skip
    if as_json:
        rows = [{**vars(row), "ratio": result.ratio(row)} for row in result.rows]
        shape = list(result.lower.input_shape)
        typer.echo(json.dumps({
            "rows": rows, "lower_bound": result.lower.value, "domain": domain_text(result.lower.domain),
            "anchored": result.lower.anchor is not None, "input_shape": shape,
        }))  # fmt: skip
    else:
        console.print(str(result), highlight=False, markup=False)


@app.command()
def estimate(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    method: Annotated[
        str, typer.Option("--method", help="seqlip_greedy, seqlip_lbfgs, seqlip_rank_k or power_iteration")
    ] = "seqlip_greedy",
    k: Annotated[int | None, typer.Option("--k", help="singular vectors per layer, for seqlip_rank_k")] = None,
    pools: Annotated[str, typer.Option("--pools", help="max-pools end a chain (factor) or join a pair (through)")] = (
        "factor"
    ),
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """A number of the 2018 paper that is no bound: it may lie below the constant or above."""
    with guard(as_json):
        built, example, names = load(model, input_shape, wrt, output, fix or ())
        options: dict[str, Any] = {"method": method, "k": k, "pools": pools, **names}
        result = lipcert.estimate(built, example, seed=seed, **options)
    if as_json:
        row = {"estimate": finite(result.value), "method": result.method, "seconds": result.seconds}
        typer.echo(json.dumps(row))
    else:
        console.print(escape(str(result)), soft_wrap=True)


@app.command()
def verify(
    certificate: Annotated[Path, typer.Argument(help="a .lipcert file, or what certify saved")],
    model: ModelArgument,
    input_shape: ShapeOption = None,
    wrt: WrtOption = None,
    fix: FixOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-check a certificate, or all of a certification, against MODEL: its hash, and the checks alone."""
    if is_run(certificate):
        verified_run(certificate, model, as_json, output, fix or ())
        return
    with guard(as_json):
        built, example, names = load(model, input_shape, wrt, output, fix or ())
        result = lipcert.verify(certificate, built, example, **names)
    if as_json:
        typer.echo(json.dumps({"verified": True, **as_dict(result)}))
    else:
        console.print("[green]verified[/green]", escape(str(result)), soft_wrap=True)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """The methods, their norms and options."""
    rows = lipcert.methods()
    if as_json:
        typer.echo(json.dumps([
            {"name": r.name, "summary": r.summary, "norms": [norm_json(n) for n in r.norms],
             "options": {k: str(v) for k, v in r.options.items()}} for r in rows
        ]))  # fmt: skip
        return
    table = Table("method", "norms", "options", "what it is", title="methods")
    for r in rows:
        norms = ", ".join(f"{p:g}→{q:g}" for p, q in r.norms)
        table.add_row(r.name, norms, ", ".join(f"{k}={v}" for k, v in r.options.items()), r.summary)
    console.print(table)


@app.command()
def ops(as_json: JsonOption = False) -> None:
    """The operations with a rule."""
    rows = lipcert.supported_ops()
    if as_json:
        typer.echo(json.dumps([vars(r) for r in rows]))
        return
    table = Table("op", "family", "kind", "constant and source", title="operations (ATen names)")
    for r in rows:
        table.add_row(r.name, r.family, r.kind, r.summary)
    console.print(table)


def _print(result: Bound) -> None:
    console.print(escape(str(result)), soft_wrap=True)
    if not result.breakdown:
        return
    table = Table("step", "kind", "constant", "so far", "guarantee", "remark")
    for row in result.breakdown:
        table.add_row(
            escape(row.name),
            row.kind,
            at_most(row.constant, 6),
            at_most(row.cumulative, 6),
            row.guarantee,
            escape(row.remark),
        )
    console.print(table)
