"""What an op rule sees: variables, constants and a few ways to add nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import CaptureError, NotLipschitzError, UnsupportedOpError
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.linear import Identity, LinearMap, OpMap, Shape
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection
from lipcert.network.origin import Origin


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the input: floating values are held in float64 on the CPU.

    ``rounding`` counts units of relative rounding error per entry (0 for a stored parameter, ``inf`` when unknown:
    the value was folded by operations without an error rule, and bounds that use it are not ``rigorous``).
    """

    value: Tensor
    rounding: float = 0.0

    @property
    def shape(self) -> Shape:
        """Shape of the value."""
        return tuple(self.value.shape)


Operand = Var | Constant | float | int | bool


class Context:
    """Adds nodes on behalf of the op that is being lowered; ``op``, ``where`` and ``signature`` describe that op."""

    def __init__(self, builder: NetworkBuilder) -> None:
        self.builder = builder
        self.op = ""
        self.where = Origin()
        self.signature = ""
        self.dtype: torch.dtype | None = None

    # -- errors -------------------------------------------------------------------------------------------

    def unsupported(self, reason: str) -> UnsupportedOpError:
        """An error that names the op, the user's line and the reason."""
        return UnsupportedOpError(f"aten.{self.op} {self._place()}: {reason} `lipcert ops` lists what is supported.")

    def not_lipschitz(self, reason: str) -> NotLipschitzError:
        """The same for an op that is discontinuous or unbounded in slope."""
        return NotLipschitzError(f"aten.{self.op} {self._place()}: {reason}")

    def _place(self) -> str:
        return f"at {self.where}" if self.where else "(no source location)"

    # -- operands -----------------------------------------------------------------------------------------

    def variable(self, x: Any, what: str = "input") -> Var:
        """``x`` as a variable, or an error."""
        if not isinstance(x, Var):
            raise self.unsupported(f"its {what} must depend on the network's input.")
        return x

    def constant(self, x: Any, what: str = "argument") -> Constant:
        """``x`` as a constant, or an error: this op is linear only when that argument is fixed."""
        if isinstance(x, Var):
            raise self.unsupported(f"its {what} depends on the network's input; a constant is needed.")
        if isinstance(x, Constant):
            return x
        return Constant(torch.as_tensor(x, dtype=torch.float64))

    # -- nodes --------------------------------------------------------------------------------------------

    def linear(
        self,
        x: Var,
        function: Callable[..., Tensor],
        constants: Sequence[Constant] = (),
        rounding: float = 0.0,
        offset: Tensor | None = None,
        offset_rounding: float = math.inf,
        offset_error: Tensor | None = None,
    ) -> Var:
        """``function(x, *constants) + offset`` with a function linear in x (see ``OpMap`` for what it promises).

        ``rounding`` is the number of terms in the longest sum that the op or its transpose forms, ``offset_rounding``
        the count of the offset (see ``AffineNode``).
        """
        linear = self.map(x.shape, function, constants, rounding)
        return self.builder.affine(
            [(x, linear)], linear.out_shape, offset, self.op, self.where, offset_rounding, offset_error
        )

    def map(
        self,
        in_shape: Shape,
        function: Callable[..., Tensor],
        constants: Sequence[Constant] = (),
        rounding: float = 0.0,
        extra: str = "",
    ) -> LinearMap:
        """The linear map behind ``linear``; its output shape is found by running it."""
        values = tuple(c.value for c in constants)
        for value in values:
            self.require_finite(value)
        with torch.no_grad():
            out_shape = tuple(function(torch.zeros(in_shape, dtype=torch.float64), *values).shape)
        total = rounding + sum(c.rounding for c in constants)
        stored = all(c.rounding == 0 for c in constants)
        return OpMap(self.op, function, in_shape, out_shape, values, self.signature + extra, float(total), stored)

    def jointly_linear(self, function: Callable[..., Tensor], operands: Sequence[Any], rounding: float = 0.0) -> Var:
        """``function(list of tensors)``, linear in all its tensors together with non-negative entries (cat, stack)."""
        zeros = [torch.zeros(o.shape, dtype=torch.float64) if isinstance(o, Var) else o.value for o in operands]
        terms = []
        for place, operand in enumerate(operands):
            if isinstance(operand, Var):

                def part(x: Tensor, place: int = place) -> Tensor:
                    others = [x.new_zeros(tuple(z.shape)) for z in zeros]
                    others[place] = x
                    return function(others)

                linear = self.map(operand.shape, part, (), rounding, extra=f" operand {place}")
                terms.append((operand, linear))
        offset = function([z.double() for z in zeros])
        kept = offset if any(isinstance(o, Constant) for o in operands) else None
        return self.builder.affine(terms, tuple(offset.shape), kept, self.op, self.where)

    def scaled(self, x: Var, scale: float) -> Var:
        """``scale · x``."""
        return self.builder.affine([(x, Identity(x.shape, scale))], x.shape, None, self.op, self.where)

    def activation(self, x: Var, function: Nonlinearity) -> Var:
        """An elementwise activation node."""
        return self.builder.activation(x, function, self.where)

    def gain(self, x: Var, function: GainFunction) -> Var:
        """A gain-bounded node."""
        with torch.no_grad():
            shape = tuple(function(torch.zeros(1, *x.shape, dtype=torch.float64)).shape[1:])
        return self.builder.gain(x, function, shape, self.where)

    def selection(self, x: Var, function: Selection) -> Var:
        """A maximum or sort node."""
        return self.builder.selection(x, function, self.where)

    def unresolved(
        self, parents: Sequence[Var], shape: Shape, error: CaptureError, settings: tuple[object, ...] = ()
    ) -> Var:
        """A value that is an error unless a later pattern absorbs it; ``settings`` are what the pattern needs."""
        return self.builder.unresolved(parents, shape, self.op, error, settings, self.where)

    def require_finite(self, value: Tensor) -> None:
        """Raise if a parameter holds NaN or infinity."""
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CaptureError(
                f"aten.{self.op} {self._place()}: a parameter of shape {tuple(value.shape)} holds NaN or infinity; "
                "no bound exists for such a network. Repair or reload the weights."
            )


def is_number(x: Any) -> bool:
    """True for a Python number, or a constant with one entry."""
    if isinstance(x, Constant):
        return x.value.numel() == 1
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def number(x: Any) -> float:
    """The float behind ``is_number``."""
    return float(x.value.reshape(()).item()) if isinstance(x, Constant) else float(x)


def count(shape: Sequence[int]) -> int:
    """Product of sizes."""
    return math.prod(shape)
