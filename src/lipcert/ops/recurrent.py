"""Recurrent layers and cells, unrolled over the length of the example: affine maps, activations and gates.

A gate is a product of two values. With sigmoids and tanhs for factors these keep to finite ranges, so that LSTM and GRU
have constants on the whole space: of the cell state |c_t| ≤ |c_0| + t, of a GRU's state |h_t| ≤ max(|h_0|, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lipcert.errors import TrainModeError
from lipcert.network.activations.clamp import RELU
from lipcert.network.builder import Var
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.ops.arithmetic import add, mul, rsub
from lipcert.ops.context import Context
from lipcert.ops.linear import linear
from lipcert.ops.nonlinearities import SIGMOID, TANH
from lipcert.ops.registry import rule
from lipcert.ops.structure import cat, stack
from lipcert.ops.terms import moved

#: A state: h, and of an LSTM c; ``None`` where it is 0.
State = tuple[Var | None, ...]


@dataclass(frozen=True)
class Weights:
    """Of one layer in one direction; rows of ``inputs`` and ``states`` are those of its gates, one after the other."""

    inputs: Any
    states: Any
    input_bias: Any = None
    state_bias: Any = None
    projection: Any = None

    def gate(self, ctx: Context, number: int, count: int) -> Weights:
        """Those of one of so many gates."""

        def rows(tensor: Any) -> Any:
            if tensor is None:
                return None
            constant = ctx.constant(tensor, "weights")
            n = constant.shape[0] // count
            return constant.map(lambda t: t[number * n : (number + 1) * n].contiguous())

        return Weights(rows(self.inputs), rows(self.states), rows(self.input_bias), rows(self.state_bias))

    def entering(self, ctx: Context, x: Var) -> Var:
        """W x + b of an input."""
        return linear(ctx, x, self.inputs, self.input_bias)

    def again(self, ctx: Context, h: Var | None) -> Any:
        """W h + b of a state; a constant, or None for 0, where there is no state yet."""
        return self.state_bias if h is None else linear(ctx, h, self.states, self.state_bias)

    def total(self, ctx: Context, x: Var, h: Var | None) -> Var:
        """The sum of both."""
        own, other = self.entering(ctx, x), self.again(ctx, h)
        return own if other is None else add(ctx, own, other)


#: (call, input, state, weights) → the next state.
Cell = Callable[[Context, Var, State, Weights], State]


def _simple(function: Nonlinearity) -> Cell:
    def cell(ctx: Context, x: Var, state: State, weights: Weights) -> State:
        return (ctx.activation(weights.total(ctx, x, state[0]), function),)

    return cell


def _lstm(ctx: Context, x: Var, state: State, weights: Weights) -> State:
    """c' = f c + i g and h' = o tanh(c') (Hochreiter & Schmidhuber 1997, Gers et al. 2000), h' projected on request."""
    h, c = state
    functions = (SIGMOID, SIGMOID, TANH, SIGMOID)
    i, f, g, o = (ctx.activation(weights.gate(ctx, k, 4).total(ctx, x, h), functions[k]) for k in range(4))
    new = mul(ctx, i, g)
    new = new if c is None else add(ctx, mul(ctx, f, c), new)
    out = mul(ctx, o, ctx.activation(new, TANH))
    return (out if weights.projection is None else linear(ctx, out, weights.projection)), new


def _gru(ctx: Context, x: Var, state: State, weights: Weights) -> State:
    """h' = n + z (h − n) with n = tanh(W x + b + r (U h + d)) (Cho et al. 2014, as PyTorch has it)."""
    (h,) = state
    gates = [weights.gate(ctx, k, 3) for k in range(3)]
    r, z = (ctx.activation(gate.total(ctx, x, h), SIGMOID) for gate in gates[:2])
    inner, again = gates[2].entering(ctx, x), gates[2].again(ctx, h)
    n = ctx.activation(inner if again is None else add(ctx, inner, mul(ctx, r, again)), TANH)
    if h is None:
        return (mul(ctx, rsub(ctx, z, 1.0), n),)
    return (blend(ctx, z, h, n),)


def blend(ctx: Context, z: Var, h: Var, n: Var) -> Var:
    """z h + (1 − z) n of three values of one shape: between h and n where z lies in [0, 1]."""
    error = ctx.not_lipschitz(
        "a gate multiplies values that all depend on the input, and some have no finite range: give a bounded domain."
    )

    def value(z: Any, h: Any, n: Any) -> Any:
        return n + z * (h - n)

    return ctx.unresolved((z, h, n), z.shape, error, function=value, combines="blend")


# -- layers -------------------------------------------------------------------------------------------------


def _state(ctx: Context, value: Any, place: int | None = None) -> Var | None:
    """A state that was given, or its part for one layer and direction."""
    if isinstance(value, Var):
        return value if place is None else moved(ctx, value, lambda v: v[place])
    constant = ctx.constant(value, "state")
    constant = constant if place is None else constant.map(lambda t: t[place])
    if not constant.rounding and not bool(constant.value.any()):
        return None
    return ctx.affine([], constant.shape, constant)


def _layers(
    ctx: Context, cell: Cell, x: Any, first: Sequence[Any], parameters: Sequence[Any], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool, projected: bool = False,
) -> tuple[Var, ...]:  # fmt: skip
    """(outputs of the last layer, last states of all layers and directions for each value of a state)."""
    if train and dropout > 0.0:
        raise TrainModeError(f"{ctx.op} at {ctx.where} applies dropout between its layers. Call model.eval() first.")
    x = ctx.variable(x)
    axis = 1 if batch_first else 0
    steps = x.shape[axis]
    if not steps:
        raise ctx.unsupported("its sequence has length 0: there is no state to bound. Give an example with a step.")
    values = [_at(ctx, x, axis, step) for step in range(steps)]
    count, ways = 2 + 2 * has_biases + projected, 1 + bidirectional
    last: list[State] = []
    for layer in range(layers):
        outputs: list[list[Any]] = []
        for way in range(ways):
            place = layer * ways + way
            given = list(parameters[place * count : (place + 1) * count])
            projection = given.pop() if projected else None
            weights = replace(Weights(*given), projection=projection)
            state: State = tuple(_state(ctx, value, place) for value in first)
            found: list[Any] = [None] * steps
            for step in reversed(range(steps)) if way else range(steps):
                state = cell(ctx, values[step], state, weights)
                found[step] = state[0]
            outputs.append(found)
            last.append(state)
        values = [cat(ctx, list(both), -1) if ways > 1 else both[0] for both in zip(*outputs, strict=True)]
    return (stack(ctx, values, axis), *(stack(ctx, list(part), 0) for part in zip(*last, strict=True)))


def _at(ctx: Context, x: Var, axis: int, step: int) -> Var:
    return moved(ctx, x, lambda v: v.select(axis, step))


@rule("lstm.input", kind="product")
def lstm(
    ctx: Context, x: Any, first: Any, parameters: Any, has_biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Var, ...]:  # fmt: skip
    """LSTM, unrolled: gates by their ranges, |c_t| ≤ |c_0| + t on the whole space."""
    ways = layers * (1 + bidirectional)
    projected = len(parameters) // ways > 2 + 2 * has_biases
    options = (has_biases, layers, dropout, train, bidirectional, batch_first, projected)
    return _layers(ctx, _lstm, x, first, parameters, *options)


def _sequence(name: str, cell: Cell, summary: str) -> None:
    @rule(f"{name}.input", kind="activation" if name.startswith("rnn") else "product")
    def layers_of(
        ctx: Context, x: Any, first: Any, parameters: Any, has_biases: bool, layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Var, ...]:  # fmt: skip
        options = (has_biases, layers, dropout, train, bidirectional, batch_first)
        return _layers(ctx, cell, x, (first,), parameters, *options)

    layers_of.__doc__ = f"{summary}, unrolled."


def _step(name: str, cell: Cell, summary: str) -> None:
    @rule(f"{name}_cell", kind="activation" if name.startswith("rnn") else "product")
    def one(ctx: Context, x: Any, first: Any, *parameters: Any) -> Any:
        several = isinstance(first, (list, tuple))
        given = tuple(_state(ctx, value) for value in (first if several else (first,)))
        x = x if isinstance(x, Var) else _constant_input(ctx, x)
        found = cell(ctx, x, given, Weights(*parameters))
        return found if several else found[0]

    one.__doc__ = f"One step of {summary}."


def _constant_input(ctx: Context, x: Any) -> Var:
    constant = ctx.constant(x, "input")
    return ctx.affine([], constant.shape, constant)


_sequence("gru", _gru, "GRU: gates by their ranges, |h_t| ≤ max(|h_0|, 1)")
_sequence("rnn_tanh", _simple(TANH), "Elman's recurrence with tanh")
_sequence("rnn_relu", _simple(RELU), "Elman's recurrence with ReLU")
_step("lstm", _lstm, "an LSTM")
_step("gru", _gru, "a GRU")
_step("rnn_tanh", _simple(TANH), "Elman's recurrence with tanh")
_step("rnn_relu", _simple(RELU), "Elman's recurrence with ReLU")
