"""What an op rule sees: variables, constants and a few ways to add nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import CaptureError, NotLipschitzError, NumericsError, UnsupportedOpError
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.linear import Identity, LinearMap, OpMap, Shape
from lipcert.network.nodes.open import Evaluation
from lipcert.network.nonlinearity import GainFunction, Nonlinearity, Selection
from lipcert.network.origin import Origin
from lipcert.network.radial import Radial
from lipcert.network.source import Fixed, Source, derived
from lipcert.numerics.rounding import gamma
from lipcert.ops.constant import Constant as Constant
from lipcert.ops.constant import Parts
from lipcert.ops.enclosure import added, exact
from lipcert.ops.keys import move_key


class Context:
    """Adds nodes on behalf of the op that is being lowered; ``op``, ``where`` and ``signature`` describe that op.

    ``dtype`` is that of its value in the model, ``whole`` has those of its variable arguments that
    are no floats, by position.
    """

    def __init__(self, builder: NetworkBuilder) -> None:
        self.builder = builder
        self.op = ""
        self.where = Origin()
        self.signature = ""
        self.dtype: torch.dtype | None = None
        self.whole: dict[int, torch.dtype] = {}

    # -- errors -------------------------------------------------------------------------------------------

    def unsupported(self, reason: str) -> UnsupportedOpError:
        """An error that names the op, the user's line and the reason."""
        return UnsupportedOpError(f"{shown(self.op)} {self._place()}: {reason} `lipcert ops` lists what is supported.")

    def not_lipschitz(self, reason: str) -> NotLipschitzError:
        """The same for an op that is discontinuous or unbounded in slope."""
        return NotLipschitzError(f"{shown(self.op)} {self._place()}: {reason}")

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
        value = torch.as_tensor(x, dtype=torch.float64)
        return Constant.within(exact(value), Fixed(value))

    # -- nodes --------------------------------------------------------------------------------------------

    def linear(
        self,
        x: Var,
        function: Callable[..., Tensor],
        constants: Sequence[Constant],
        rounding: float,
        offset: Constant | None = None,
        key: str | None = None,
        transposed: Callable[..., Tensor] | None = None,
        written: Callable[..., Tensor] | None = None,
    ) -> Var:
        """``function(x, *constants) + offset`` with a function linear in x (see ``OpMap`` for what it promises).

        ``rounding`` is the number of terms in the longest sum that the op or its transpose forms. What the constants'
        own errors are beyond a small relative one (see ``Constant.parts``) becomes a block beside the map, of which
        only its gain is known. ``key`` is for the network's hash (see ``map``), ``transposed`` and ``written`` are
        for ``OpMap``.
        """
        parts = [c.parts for c in constants]
        linear = self._map(x.shape, function, constants, parts, rounding, key)
        linear = replace(linear, transposed=transposed, written=written)
        terms: list[tuple[Var, LinearMap]] = [(x, linear)]
        rest = self._rest_map(linear, function, constants, parts)
        if rest is not None:
            block = self.builder.gain(x, _unknown_map(rest), linear.out_shape, self.where)
            terms.append((block, Identity(linear.out_shape)))
        return self.affine(terms, linear.out_shape, offset)

    def affine(self, terms: Sequence[tuple[Var, LinearMap]], shape: Shape, offset: Constant | None = None) -> Var:
        """``Σ map(var) + offset``; the offset with what is known of its error."""
        if offset is None:
            return self.builder.affine(terms, shape, None, self.op, self.where)
        self.require_finite(offset)
        ball = offset.floating
        return self.builder.affine(terms, shape, ball.middle, self.op, self.where, ball.spread, offset.source)

    def map(
        self,
        in_shape: Shape,
        function: Callable[..., Tensor],
        constants: Sequence[Constant],
        rounding: float,
        key: str | None = None,
    ) -> LinearMap:
        """The linear map behind ``linear``; its output shape is found by running it.

        ``key`` says for the network's hash what the map is (see ``keys``). None: a map that only moves entries is known
        by where it puts them, any other by the op and its arguments.
        """
        parts = [c.parts for c in constants]
        if any(p.rest is not None for p in parts):
            raise self.unsupported("a constant it uses is not determined by float64 arithmetic; store its value.")
        return self._map(in_shape, function, constants, parts, rounding, key)

    def _map(
        self,
        in_shape: Shape,
        function: Callable[..., Tensor],
        constants: Sequence[Constant],
        parts: Sequence[Parts],
        rounding: float,
        key: str | None,
    ) -> OpMap:
        for constant in constants:
            self.require_finite(constant)
        values = tuple(c.value for c in constants)
        with torch.no_grad():
            out_shape = tuple(function(torch.zeros(in_shape, dtype=torch.float64), *values).shape)
        total = float(rounding + sum(p.count for p in parts))
        if key is None and not constants:
            key = move_key(function, in_shape)
        attributes = self.call if key is None else key
        stored = all(c.error is None for c in constants)
        majorants = tuple(p.majorant for p in parts)
        sources = tuple(c.source for c in constants)
        return OpMap(self.op, function, in_shape, out_shape, values, attributes, total, stored, majorants, sources)

    def _rest_map(
        self, linear: OpMap, function: Callable[..., Tensor], constants: Sequence[Constant], parts: Sequence[Parts]
    ) -> OpMap | None:
        """A map whose entries bound Σ_i f(|C_1|, …, rest_i, …, |C_k|), a telescoping sum; None without a rest."""
        places = [i for i, p in enumerate(parts) if p.rest is not None]
        if not places:
            return None
        reach = [c.floating.reach for c in constants]
        stacks = tuple(
            torch.stack([parts[i].rest if i == place else reach[i] for place in places])  # type: ignore[misc]
            for i in range(len(constants))
        )

        def total(x: Tensor, *rests: Tensor) -> Tensor:
            return sum((function(x, *(r[k] for r in rests)) for k in range(len(places))), x.new_zeros(()))

        terms = linear.rounding + len(places)
        return OpMap(self.op, total, linear.in_shape, linear.out_shape, stacks, f"{linear.attributes} rest", terms)

    @property
    def call(self) -> str:
        """The op and its arguments, as text; of tensors the shape alone."""
        return f"{self.op} {self.signature}"

    def jointly_linear(
        self, function: Callable[..., Tensor], operands: Sequence[Any], rounding: float, extra: str = ""
    ) -> Var:
        """``function(list of tensors)``, linear in all its tensors together with non-negative entries (cat, stack).

        ``rounding`` is the number of terms in the longest sum that it or its transpose forms, 0 if it adds nothing;
        ``extra`` tells for the network's hash what the op's arguments do not.
        """
        zeros = [torch.zeros(o.shape, dtype=torch.float64) if isinstance(o, Var) else o.value for o in operands]
        terms = []
        for place, operand in enumerate(operands):
            if isinstance(operand, Var):

                def part(x: Tensor, place: int = place) -> Tensor:
                    others = [x.new_zeros(tuple(z.shape)) for z in zeros]
                    others[place] = x
                    return function(others)

                key = move_key(part, operand.shape) or f"{self.call} {extra} operand {place}"
                linear = self.map(operand.shape, part, (), rounding, key)
                terms.append((operand, linear))
        offset = function([z.double() for z in zeros])
        kept = None
        if any(isinstance(o, Constant) for o in operands):
            balls = [exact(z) if isinstance(o, Var) else o.floating for z, o in zip(zeros, operands, strict=True)]
            sources = [Fixed(z) if isinstance(o, Var) else o.source for z, o in zip(zeros, operands, strict=True)]
            source = derived(lambda *parts: function(list(parts)), *sources)
            kept = Constant.within(added(lambda *parts: function(list(parts)), *balls), source)
        return self.affine(terms, tuple(offset.shape), kept)

    def scaled(self, x: Var, scale: float, source: Source | None = None) -> Var:
        """``scale · x``; ``source`` is that of the scale."""
        return self.builder.affine([(x, Identity(x.shape, scale, source))], x.shape, None, self.op, self.where)

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
        self,
        parents: Sequence[Var],
        shape: Shape,
        error: CaptureError,
        settings: tuple[object, ...] = (),
        function: Callable[..., Tensor] | None = None,
        steep: Nonlinearity | None = None,
        combines: str = "",
        block: Radial | None = None,
    ) -> Var:
        """A value without a constant, unless a later pattern absorbs it; ``settings`` are what the pattern needs.

        ``function`` of the parents is the value; where it is None and a rule returns the value, its op is run.
        ``steep`` is what is done to each entry of the only parent; to whole numbers an op may do something else,
        also one that ``combines`` two parents.
        """
        own: Evaluation | None = None if function is None else lambda values, _: function(*values)
        alone = {p.position for p in parents} - set(self.whole)
        steep = steep if len(alone) == 1 and all(p.shape == shape for p in parents) else None
        return self.builder.unresolved(
            parents, shape, self.op, error, settings, self.where, "", own, steep, "" if self.whole else combines,
            block,
        )  # fmt: skip

    def without_constant(
        self,
        operands: Sequence[Any],
        reason: str,
        settings: tuple[object, ...] = (),
        function: Callable[..., Tensor] | None = None,
        steep: Nonlinearity | None = None,
        combines: str = "",
    ) -> Var:
        """``unresolved`` for an elementwise op on Vars, Constants and numbers that has none for this reason."""
        shape = tuple(torch.broadcast_shapes(*(x.shape for x in operands if isinstance(x, (Var, Constant)))))
        parents = [x for x in operands if isinstance(x, Var)]
        return self.unresolved(parents, shape, self.not_lipschitz(reason), settings, function, steep, combines)

    def require_finite(self, value: Tensor | Constant) -> None:
        """Raise if a parameter, or what is computed from parameters, holds NaN or infinity."""
        tensor = value.value if isinstance(value, Constant) else value
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            return
        if isinstance(value, Constant) and value.exact.radius is not None:
            raise CaptureError(
                f"{shown(self.op)} {self._place()}: a constant of shape {tuple(tensor.shape)} that is computed from "
                "parameters leaves the range of float64 (an overflow, or a division by zero). Rescale the parameters."
            )
        raise CaptureError(
            f"{shown(self.op)} {self._place()}: a parameter of shape {tuple(tensor.shape)} holds NaN or infinity; "
            "no bound exists for such a network. Repair or reload the weights."
        )


@dataclass(frozen=True, eq=False, repr=False)
class Unknown(GainFunction):
    """A linear map of which only bounds of the constants are known; evaluated as 0."""

    bounds: OpMap

    def value(self, x: Tensor) -> Tensor:
        """Zeros.

        Raises:
            NumericsError: the derivative is asked for.
        """
        if not isinstance(x, Tensor):
            raise NumericsError("a constant is known only up to rounding that may change it: no derivative is proved.")
        return 0.0 * self.bounds.function(x, *self.bounds.constants)


def _unknown_map(bounds: OpMap) -> GainFunction:
    """A linear map W of which only |W| ≤ the map ``bounds``, entry by entry, is known; evaluated as zero.

    Why the gains hold: ‖W‖_1 and ‖W‖_∞ are at most the greatest column and row sum of the bounds, and
    ‖W‖_2 ≤ √(‖W‖_1 ‖W‖_∞) (Schur). Sums of n non-negative terms carry a relative error of γ_n; 2^-1022 times the
    number of terms covers what underflow can lose.
    """
    shape = bounds.in_shape
    with torch.no_grad():
        rows = bounds.apply(torch.ones(1, *shape, dtype=torch.float64))
    columns = bounds.transpose(torch.ones(1, *bounds.out_shape, dtype=torch.float64)).detach()
    terms = bounds.rounding if bounds.rounding <= 2.0**40 else float(rows.numel() + columns.numel())
    widen = 1.0 + 4.0 * gamma(terms + 8.0)
    one, top = (
        float(sums.max()) * widen + (terms + 8.0) * 2.0**-1000 if sums.numel() else 0.0 for sums in (columns, rows)
    )
    two = math.sqrt(one) * math.sqrt(top) * (1.0 + 2.0**-48)
    gains = {1.0: one, 2.0: two, math.inf: top}
    source = "what rounding may have done to a constant that is computed from parameters"
    return Unknown("rounding of constants", gains, source, bounds)


def shown(op: str) -> str:
    """The name of an op as error messages give it: ``aten.relu``, ``mylib::relu``."""
    return op if "::" in op else f"aten.{op}"


def is_number(x: Any) -> bool:
    """True for a Python number, or a constant with one entry."""
    if isinstance(x, Constant):
        return x.value.numel() == 1
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def number(x: Any) -> float:
    """The float behind ``is_number``."""
    return float(x.value.reshape(()).item()) if isinstance(x, Constant) else float(x)
