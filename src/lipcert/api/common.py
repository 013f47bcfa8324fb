"""What the public functions share: problems of arguments, and progress."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor

from lipcert.capture.adapter import Example, Wrt
from lipcert.capture.load import Model, prepared
from lipcert.capture.model import Output
from lipcert.capture.torch_export import capture
from lipcert.capture.varied import advised
from lipcert.domain import Domain, exactly, require_real
from lipcert.errors import InputError
from lipcert.network.graph import Network
from lipcert.problem import Problem, as_norm

Anchor = Tensor | Literal["center"] | None


def network_of(model: Model, example: Example, wrt: Wrt = None, output: Output = None) -> Network:
    """The network of a model; arguments as for ``lipcert.bound``."""
    return capture(*prepared(model, example, wrt, output))


def problem_of(
    model: Model, example: Example, norm: Any, domain: Domain, select: Tensor | None, anchor: Anchor = None,
    wrt: Wrt = None, output: Output = None,
) -> Problem:  # fmt: skip
    """A problem of a model, captured; arguments as for ``lipcert.bound``."""
    return problems_of(model, example, norm, [domain], select, anchor=anchor, wrt=wrt, output=output)[0]


def problems_of(
    model: Model,
    example: Example,
    norm: Any,
    domains: list[Domain],
    select: Tensor | None,
    several: bool = False,
    anchor: Anchor = None,
    wrt: Wrt = None,
    output: Output = None,
) -> list[Problem]:
    """One problem for each domain, of a model that is captured once."""
    pair = as_norm(norm)
    for number, one in enumerate(domains):
        if not isinstance(one, get_args(Domain)):
            raise InputError(
                f"domain{f'[{number}]' if several else ''} must be None, a lipcert.Ball, a lipcert.Box or a "
                f"lipcert.Intersection, not {type(one).__name__}."
            )
    if select is not None and (not isinstance(select, Tensor) or select.is_complex()):
        raise InputError(f"select must be a real (k, m) tensor, not {type(select).__name__}.")
    module, tensor = prepared(model, example, wrt, output)
    with advised(module, wrt):
        return _problems(capture(module, tensor), pair, domains, select, several, anchor)


def _problems(
    network: Network, pair: Any, domains: list[Domain], select: Tensor | None, several: bool, anchor: Anchor
) -> list[Problem]:
    for number, one in enumerate(domains if several else []):
        try:
            _ = one and one.fitted(network.in_shape)
        except InputError as problem:
            raise InputError(f"domain[{number}]: {problem}") from problem
    if not domains:
        return []
    fitted = [one and one.fitted(network.in_shape) for one in domains]
    first = Problem(network, pair, fitted[0], select, _anchor(anchor, fitted[0]))
    return [first, *(first.on(one, _anchor(anchor, one)) for one in fitted[1:])]


def _anchor(anchor: Any, domain: Domain) -> Tensor | None:
    """The point itself, or the centre of the domain's ball."""
    if not isinstance(anchor, str):
        return None if anchor is None else exactly("the anchor", anchor)
    balls = () if domain is None else domain.balls()
    if anchor != "center" or not balls:
        raise InputError(
            f"anchor must be a point of the domain, or 'center' where that is a ball; not {anchor!r} on "
            f"{'the whole space' if domain is None else f'a {domain.describe()}'}."
        )
    return balls[0].center


def require_data(inputs: Any, problem: Problem) -> None:
    """Raise InputError unless these are examples for a search to start from, or None."""
    if inputs is None:
        return
    require_real("inputs", inputs, "shape (B, *shape of one example)")
    if tuple(inputs.shape[1:]) != problem.model.in_shape[1:]:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}, expected (B, *{problem.model.in_shape[1:]}).")


@contextmanager
def reporter(progress: bool, title: str):  # type: ignore[no-untyped-def]
    """A rich progress bar with the time that remains; it appears, on a terminal, after two seconds of work."""
    if not progress:
        yield lambda fraction, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:  # a log is no place for a bar
        yield lambda fraction, text: None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"),
        TimeRemainingColumn(elapsed_when_finished=True), console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task(title, total=1.0, step="")
    started = time.perf_counter()
    shown = False

    def report(fraction: float, text: str) -> None:
        nonlocal shown
        if not shown and time.perf_counter() - started > 2.0:
            bar.start()
            shown = True
        bar.update(task, completed=fraction, step=text)

    try:
        yield report
    finally:
        if shown:
            bar.stop()
