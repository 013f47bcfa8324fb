"""``lipcert certify``: certified robustness of a data set."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lipcert
from lipcert.cli.common import FixOption, JsonOption, ModelArgument, OutputOption, SeedOption, console, errors, guard
from lipcert.cli.load import find_model_of_one
from lipcert.errors import InputError

if TYPE_CHECKING:
    from lipcert.robustness.certification import Certification


def certify(
    model: ModelArgument,
    data: Annotated[Path, typer.Argument(help=".npz, .parquet, a folder of .npy, or inputs .npy")],
    labels: Annotated[Path | None, typer.Option("--labels", help="labels .npy, where DATA has none")] = None,
    norm: Annotated[str, typer.Option("--norm", help="of the perturbation: 1, 2 or inf")] = "2",
    radius: Annotated[float | None, typer.Option("--radius", help="in the units of the inputs")] = None,
    radii: Annotated[str | None, typer.Option("--radii", help="several, ascending: 0.1,0.3,0.5")] = None,
    clip: Annotated[tuple[float, float] | None, typer.Option("--clip", metavar="LOW HIGH", help="limits")] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="the model is given (x - mean) / std")] = None,
    std: Annotated[str | None, typer.Option("--std", help="see --mean")] = None,
    count: Annotated[int | None, typer.Option("--count", help="only the first examples")] = None,
    budget: Annotated[float, typer.Option("--budget", help="seconds per example, at most")] = 60.0,
    engine: Annotated[str, typer.Option("--engine", help="local or ray")] = "local",
    workers: Annotated[int, typer.Option("--workers", help="processes of the local engine")] = 1,
    resume: Annotated[Path | None, typer.Option("--resume", help="file that keeps what is finished")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="write rows and certificates here")] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", help="exit with 1 if the certified accuracy is below this share")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="list so many of the examples")] = 0,
    arithmetic: Annotated[str, typer.Option("--arithmetic", help="real, or float32: the network as it runs")] = "real",
    output: OutputOption = None,
    fix: FixOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Which examples of DATA keep their class under every perturbation up to a radius. Neither: the largest radius."""
    with guard(as_json), warnings.catch_warnings(record=True) as caught:
        from lipcert.robustness.data_file import read_data

        warnings.simplefilter("always", UserWarning)
        _require_share(at_least, radius, radii)
        if rows < 0:
            raise InputError(f"--rows must be a whole number from 0, not {rows}.")
        if save is not None and not save.absolute().parent.is_dir():
            raise InputError(f"--save: there is no folder {save.absolute().parent}.")  # before hours of work
        if save is not None and save.is_dir():
            raise InputError(f"--save: {save} is a folder; name a file.")
        inputs, classes = read_data(data, labels)
        if count is not None and count < 1:
            raise InputError(f"--count must be a whole number from 1, not {count}.")
        built, output = find_model_of_one(model, inputs.shape[1:], output, fix or ())
        result = lipcert.certify(
            built, inputs[:count], classes[:count], norm=norm, radius=radius,  # type: ignore[arg-type]
            radii=None if radii is None else _numbers("--radii", radii), clip=clip, scale=_scale(mean, std),
            budget=budget, engine=engine, workers=workers, resume=resume, seed=seed, progress=not as_json,
            output=output, arithmetic=arithmetic,  # type: ignore[arg-type]
        )  # fmt: skip
        if save is not None:
            result.save(save)
    for warning in caught:
        errors.print(f"warning: {warning.message}", markup=False, highlight=False, soft_wrap=True)
    share = None if at_least is None else result.certified_accuracy()
    _print(result, rows, save, share, at_least, as_json)
    if share is not None and at_least is not None and not share >= at_least:
        errors.print(f"certified accuracy {share:.4g} is below --at-least {at_least:.4g}")
        raise typer.Exit(1)


def is_run(path: Path) -> bool:
    """Whether a file is a database, as certifications are."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\x00"
    except OSError:
        return False


def verified_run(path: Path, model: str, as_json: bool, output: str | None = None, fix: Sequence[str] = ()) -> None:
    """``lipcert verify`` of a certification: every row proved again."""
    with guard(as_json):
        run = lipcert.Certification.load(path)
        built, output = find_model_of_one(model, run.input_shape, output, fix)
        result = run.verify(built, output=output)
    if as_json:
        typer.echo(json.dumps({"verified": True, **result.to_json()}))
    else:
        console.print("[green]verified[/green]")
        console.print(result.table(), markup=False, highlight=False, soft_wrap=True)


def _print(
    result: Certification, rows: int, save: Path | None, share: float | None, wanted: float | None, as_json: bool
) -> None:
    if as_json:
        extra = {"certificates": None if save is None else str(save), "seconds": result.seconds}
        typer.echo(json.dumps({**result.to_json(), **extra, "certified_accuracy": share, "at_least": wanted}))
        return
    console.print(result.table(rows=rows), markup=False, highlight=False, soft_wrap=True)
    if save is not None:
        console.print(f"rows and certificates written to {save}", markup=False, highlight=False, soft_wrap=True)


def _require_share(share: float | None, radius: float | None, radii: str | None) -> None:
    if share is None:
        return
    if math.isnan(share) or not 0.0 <= share <= 1.0:
        raise InputError(f"--at-least is a share from 0 to 1, as 0.6, not {share:g}.")
    if radius is None and radii is None:
        raise InputError("--at-least needs --radius (or --radii, of which the largest counts).")


def _scale(mean: str | None, std: str | None) -> tuple[Sequence[float], Sequence[float]] | None:
    if mean is None and std is None:
        return None
    return _numbers("--mean", mean or "0"), _numbers("--std", std or "1")


def _numbers(option: str, text: str) -> list[Any]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} must be numbers with commas between, as 0.1,0.3, not {text!r}.") from None
