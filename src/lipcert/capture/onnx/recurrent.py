"""LSTM, GRU and RNN with the gates in the order that PyTorch has them."""

from __future__ import annotations

from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.node import OnnxNode, translates

_aten = torch.ops.aten
#: Operator → (order of ONNX's gates in PyTorch, activations of one direction).
_GATES = {"LSTM": ((0, 2, 3, 1), ["Sigmoid", "Tanh", "Tanh"]), "GRU": ((1, 0, 2), ["Sigmoid", "Tanh"])}


@translates("LSTM")
def _lstm(
    build: Builder, node: OnnxNode, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    h: Value | None = None, c: Value | None = None, peepholes: Value | None = None,
) -> Any:  # fmt: skip
    if peepholes is not None or node.integer("input_forget", 0):
        raise node.unsupported("with peepholes or a coupled forget gate.")
    order, activations = _GATES["LSTM"]
    _require_plain(node, x, lengths, activations)
    return _run(build, node, _aten.lstm.input, x, (w, r, b), order, (h, c))


@translates("GRU")
def _gru(
    build: Builder, node: OnnxNode, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    h: Value | None = None,
) -> Any:  # fmt: skip
    if not node.integer("linear_before_reset", 0):
        raise node.unsupported(
            "it resets the state before multiplying it (linear_before_reset = 0); PyTorch's GRU does not."
        )
    order, activations = _GATES["GRU"]
    _require_plain(node, x, lengths, activations)
    return _run(build, node, _aten.gru.input, x, (w, r, b), order, (h,))


@translates("RNN")
def _rnn(
    build: Builder, node: OnnxNode, x: Value, w: Value, r: Value, b: Value | None = None, lengths: Value | None = None,
    h: Value | None = None,
) -> Any:  # fmt: skip
    kinds = set(node.texts("activations") or ["Tanh"])
    if kinds not in ({"Tanh"}, {"Relu"}):
        raise node.unsupported(f"with activations {sorted(kinds)[:4]}.")
    _require_plain(node, x, lengths, sorted(kinds))
    target = _aten.rnn_tanh.input if kinds == {"Tanh"} else _aten.rnn_relu.input
    return _run(build, node, target, x, (w, r, b), (0,), (h,))


def _require_plain(node: OnnxNode, x: Value, lengths: Value | None, activations: list[str]) -> None:
    """Raise UnsupportedOpError for what PyTorch's layers cannot do."""
    if x.rank != 3 or node.integer("layout", 0):
        raise node.unsupported("its layout is not (steps, batch, features).")
    if lengths is not None and (lengths.varies or bool((lengths.tensor != x.shape[0]).any())):
        raise node.unsupported("its sequences end before the last step.")
    given = node.texts("activations")
    if given is not None and any(given[k] != activations[k % len(activations)] for k in range(len(given))):
        raise node.unsupported(f"with activations {given[:6]}.")
    if node.has("clip") or node.reals("activation_alpha") or node.reals("activation_beta"):
        raise node.unsupported("with clipping, or activations with settings.")


def _run(
    build: Builder, node: OnnxNode, target: Any, x: Value, weights: tuple[Value, Value, Value | None],
    order: tuple[int, ...], states: tuple[Value | None, ...],
) -> Any:  # fmt: skip
    w, r, b = weights
    direction, hidden = node.text("direction", "forward"), node.integer("hidden_size", r.shape[-1] if r.rank else 0)
    ways = 2 if direction == "bidirectional" else 1
    steps, batch, features = x.shape
    gates = len(order)
    fits = w.shape == (ways, gates * hidden, features) and r.shape == (ways, gates * hidden, hidden)
    if direction not in ("forward", "reverse", "bidirectional") or not fits:
        raise node.wrong("its direction, hidden_size or weights do not fit each other")
    if b is not None and b.shape != (ways, 2 * gates * hidden):
        raise node.wrong("its bias does not fit its weights")
    parameters = []
    for way in range(ways):
        own = [build(_aten.select.int, one, 0, way) for one in (w, r)]
        if b is not None:
            both = build(_aten.select.int, b, 0, way)
            own += [build(_aten.narrow.default, both, 0, k * gates * hidden, gates * hidden) for k in (0, 1)]
        parameters += [_reordered(build, one, order, hidden) for one in own]
    zeros = torch.zeros(ways, batch, hidden, dtype=x.tensor.dtype)
    first = [build.constant(zeros, "state") if state is None else state for state in states]
    if any(state.shape != (ways, batch, hidden) for state in first):
        raise node.wrong("its initial state does not fit")
    source = build(_aten.flip.default, x, [0]) if direction == "reverse" else x
    given = first if len(first) > 1 else first[0]
    out, *last = build(target, source, given, parameters, b is not None, 1, 0.0, False, ways == 2, False)
    out = build(_aten.flip.default, out, [0]) if direction == "reverse" else out
    out = build(_aten.permute.default, build.reshaped(out, (steps, batch, ways, hidden)), [0, 2, 1, 3])
    return out, *last


def _reordered(build: Builder, rows: Value, order: tuple[int, ...], hidden: int) -> Value:
    if order == tuple(range(len(order))):
        return rows
    parts = [build(_aten.narrow.default, rows, 0, gate * hidden, hidden) for gate in order]
    found: Value = build(_aten.cat.default, parts, 0)
    return found
