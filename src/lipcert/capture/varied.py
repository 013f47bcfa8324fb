"""Which inputs of a model vary and which are fixed, told in errors and reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lipcert.capture.adapter import Adapted, Wrt
from lipcert.capture.call import listed
from lipcert.errors import NotLipschitzError


@contextmanager
def advised(model: Any, wrt: Wrt) -> Iterator[None]:
    """Where several inputs vary because none was named, an error about a constant that does not exist says so."""
    try:
        yield
    except NotLipschitzError as problem:
        names = list(varied_in(model))
        if wrt is None and len(names) > 1:
            problem.args = (
                f"{problem} The inputs {listed(names)} vary together; wrt={names[0]!r} fixes the others.",
                *problem.args[1:],
            )
        raise


def varied_in(model: Any) -> dict[str, tuple[int, ...]]:
    """The inputs that vary, in order, and the shape of one example of each; of a model that ``adapted`` or a file made.

    Empty of a model of one tensor.
    """
    if isinstance(model, Adapted):
        return {one.name: one.shape or () for one in model.varied}
    return dict(getattr(model, "meta", {}).get("varied", {})) if isinstance(model, torch.fx.GraphModule) else {}


def fixed_in(model: Any) -> list[str]:
    """The names of the inputs that are fixed, as ``varied_in``."""
    if isinstance(model, Adapted):
        return list(model.fixed)
    return list(getattr(model, "meta", {}).get("fixed", ())) if isinstance(model, torch.fx.GraphModule) else []
