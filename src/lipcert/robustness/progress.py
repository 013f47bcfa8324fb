"""A progress bar of examples with the remaining time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lipcert.robustness.rows import Row


@contextmanager
def shown(progress: bool, count: int, finished: int) -> Iterator[Callable[[Row], None]]:
    """What is to be called with each row; shows nothing unless asked to, on a terminal.

    Args:
        progress: whether to show it, on the standard error.
        count: of all examples.
        finished: of these before.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not progress or not console.is_terminal:  # a log is no place for a bar
        yield lambda row: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    seen: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("certify", total=count, completed=finished, text="")

        def report(row: Row) -> None:
            seen[row.status] += 1
            bar.update(task, advance=1, text=", ".join(f"{n} {name}" for name, n in sorted(seen.items())))

        yield report
