"""What is known of an executed value, and what a rule sees of an executed op."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.errors import NumericsError, UnsupportedOpError
from lipcert.execution.float32 import LARGEST, to_float32, up
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.numerics.interval import Interval
from lipcert.numerics.midrad import lengths
from lipcert.ops.constant import Constant


@dataclass(frozen=True, eq=False)
class Executed:
    """A tensor of the executed network: within ``error`` of a real one that lies in ``box``, entry by entry.

    Attributes:
        box: of the real value.
        error: float64, ≥ 0.
        varies: whether it depends on the input; constants have no steps before them.
        known_length: the Euclidean length of the error, all entries together, where a bound is known for it.
    """

    box: Interval
    error: Tensor
    varies: bool = True
    known_length: float = math.inf

    @cached_property
    def length(self) -> float:
        """The Euclidean length of the error at most: often far below that of ``error``."""
        entries = self.error.reshape(1, -1)
        return min(self.known_length, float(lengths(entries, 2.0)[0])) if entries.numel() else 0.0

    @property
    def size(self) -> Tensor:
        """The largest absolute value of the real tensor."""
        return self.box.greatest

    @cached_property
    def reach(self) -> Tensor:
        """The largest absolute value of the executed tensor."""
        return up(self.box.greatest + self.error)

    @property
    def low(self) -> Tensor:
        """The least executed value."""
        return _down(self.box.low - self.error)

    @property
    def high(self) -> Tensor:
        """The greatest executed value."""
        return _above(self.box.high + self.error)

    @staticmethod
    def constant(value: Constant) -> Executed:
        """A tensor that does not depend on the input: the network's and the one that the module multiplies with."""
        meant = value.floating
        spread = meant.spread.expand(meant.middle.shape)
        run = to_float32(value.own.to(torch.float64))
        gap = torch.where(run == meant.middle, 0.0, up((run - meant.middle).abs()) + 2.0**-1000)
        box = Interval.point(meant.middle)
        if bool(spread.any()):
            box = Interval(_down(meant.middle - spread), _above(meant.middle + spread))
        return Executed(box, torch.where(spread > 0, up(gap + spread), gap), False)

    @staticmethod
    def number(value: float) -> Executed:
        """A Python number, rounded to float32 where it meets a float32 tensor."""
        meant = torch.tensor(float(value), dtype=torch.float64)
        run = to_float32(meant)
        # the network may hold the number as a decimal: 2^-52 of it is more than that can differ
        gap = torch.where(run == meant, 0.0, (run - meant).abs() + 2.0**-50 * meant.abs() + 2.0**-1000)
        return Executed(Interval.point(meant), gap, False)


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


@dataclass(frozen=True, eq=False)
class Call:
    """One executed op as its rule sees it.

    Attributes:
        op: ATen name.
        target: the op.
        arguments: by the names of the op's schema, in its order: Executed values and settings.
        box: of the real result.
        place: for messages.
        function: what the op computes where that is one function of each entry of its first argument.
        windows: the flat places, one row per result, of which the op takes the greatest.
        refine: an operand with the least error that is known for it.
    """

    op: str
    target: Any
    arguments: Mapping[str, Any]
    box: Interval
    place: str
    function: Nonlinearity | None
    windows: Tensor | None
    refine: Callable[[Executed, Tensor | None], Executed]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by name."""
        return self.arguments.get(name, default)

    def operand(self, name: str) -> Executed:
        """An argument as an executed value; a Python number, too."""
        value = self.arguments.get(name)
        if isinstance(value, (int, float)):
            return Executed.number(value)
        if isinstance(value, Tensor):  # whole numbers or truth values
            return Executed.constant(Constant.exactly(value.to(torch.float64)))
        if not isinstance(value, Executed):
            raise self.unsupported(f"its argument {name!r} is not a tensor of floats here")
        return value

    @property
    def varying(self) -> tuple[Executed, ...]:
        """The distinct operands that depend on the input."""
        leaves = tree_leaves(dict(self.arguments), is_leaf=lambda v: isinstance(v, Executed))
        return tuple({id(v): v for v in leaves if isinstance(v, Executed) and v.varies}.values())

    def refined(self, name: str) -> Executed:
        """An operand of an op whose result keeps nothing of signs: worth the work of a better error."""
        value = self.operand(name)
        return self.refine(value, None) if value.varies else value

    def run(self, part: Callable[[Executed], Tensor], /, **others: Any) -> Any:
        """The op in float64 on one tensor for each operand: ``part`` of it, or what ``others`` names."""
        chosen = {**self.arguments, **others}
        plain = {k: _parts(v, part) for k, v in chosen.items()}
        positional = [a.name for a in self.target._schema.arguments if not a.kwarg_only]
        while positional and positional[-1] not in plain:
            positional.pop()
        defaults = {a.name: a.default_value for a in self.target._schema.arguments if a.has_default_value()}
        args = [plain.get(name, defaults.get(name)) for name in positional]
        named = {k: v for k, v in plain.items() if k not in positional}
        return self.target(*args, **named)

    def bounded(self, reach: Tensor) -> Tensor:
        """``reach`` itself, the largest absolute value that may occur inside the op.

        Raises:
            NumericsError: float32 may overflow there.
        """
        if bool((reach <= LARGEST).all()):
            return reach
        most = float(reach.nan_to_num(math.inf).max())
        raise NumericsError(
            f"{self.op}{self.place} may overflow float32: values of up to {most:.3g} cannot be excluded on this "
            "domain, so the executed network is not bounded. Choose a smaller domain, or scale the model."
        )

    def unsupported(self, why: str) -> UnsupportedOpError:
        """An error that names the op and its place."""
        return UnsupportedOpError(
            f"the rounding of {self.op}{self.place} in float32 is not known: {why}. A bound for real arithmetic is "
            "still to be had."
        )


def _parts(value: Any, part: Callable[[Executed], Tensor]) -> Any:
    return tree_map(
        lambda v: part(v) if isinstance(v, Executed) else v, value, is_leaf=lambda v: isinstance(v, Executed)
    )
