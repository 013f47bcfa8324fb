"""Operators that work entry by entry: activations, arithmetic, comparisons, casts."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch

from lipcert.capture.onnx.build import Builder, Value
from lipcert.capture.onnx.file import torch_type
from lipcert.capture.onnx.node import OnnxNode, Translation, translates

_aten = torch.ops.aten

#: Operators of one operand without settings, each an ATen op.
_ONE = {
    "Relu": _aten.relu.default, "Tanh": _aten.tanh.default, "Sigmoid": _aten.sigmoid.default, "Exp": _aten.exp.default,
    "Log": _aten.log.default, "Sqrt": _aten.sqrt.default, "Abs": _aten.abs.default, "Neg": _aten.neg.default,
    "Reciprocal": _aten.reciprocal.default, "Erf": _aten.erf.default, "Sin": _aten.sin.default,
    "Cos": _aten.cos.default, "Tan": _aten.tan.default, "Asin": _aten.asin.default, "Acos": _aten.acos.default,
    "Atan": _aten.atan.default, "Sinh": _aten.sinh.default, "Cosh": _aten.cosh.default, "Asinh": _aten.asinh.default,
    "Acosh": _aten.acosh.default, "Atanh": _aten.atanh.default, "Sign": _aten.sign.default,
    "Floor": _aten.floor.default, "Ceil": _aten.ceil.default, "Round": _aten.round.default,
    "Not": _aten.logical_not.default, "IsNaN": _aten.isnan.default, "HardSwish": _aten.hardswish.default,
    "Mish": _aten.mish.default,
}  # fmt: skip
_TWO = {
    "Add": _aten.add.Tensor, "Sub": _aten.sub.Tensor, "Mul": _aten.mul.Tensor, "Equal": _aten.eq.Tensor,
    "Greater": _aten.gt.Tensor, "Less": _aten.lt.Tensor, "GreaterOrEqual": _aten.ge.Tensor,
    "LessOrEqual": _aten.le.Tensor, "And": _aten.logical_and.default, "Or": _aten.logical_or.default,
    "Xor": _aten.logical_xor.default,
}  # fmt: skip
_MANY = {"Max": _aten.maximum.default, "Min": _aten.minimum.default, "Sum": _aten.add.Tensor}


def _one(target: Any) -> Translation:
    def one(build: Builder, node: OnnxNode, x: Value) -> Any:
        return build(target, x)

    return one


def _two(target: Any) -> Translation:
    def two(build: Builder, node: OnnxNode, a: Value, b: Value) -> Any:
        return build(target, a, b)

    return two


def _many(target: Any) -> Translation:
    def many(build: Builder, node: OnnxNode, first: Value, *others: Value) -> Any:
        return reduce(lambda a, b: build(target, a, b), others, first)

    return many


for _table, _kind in ((_ONE, _one), (_TWO, _two), (_MANY, _many)):
    for _name, _target in _table.items():
        translates(_name)(_kind(_target))


@translates("Identity")
def _identity(build: Builder, node: OnnxNode, x: Value) -> Value:
    return x


@translates("Dropout")
def _dropout(
    build: Builder, node: OnnxNode, x: Value, ratio: Value | None = None, training: Value | None = None
) -> Any:
    node.ignore("ratio", "seed")
    if training is not None and (training.varies or bool(training.tensor.any())):
        raise node.unsupported("it is in training mode, so its output is random; export the model in eval mode.")
    return x, None


@translates("Mean")
def _mean(build: Builder, node: OnnxNode, first: Value, *others: Value) -> Any:
    total = reduce(lambda a, b: build(_aten.add.Tensor, a, b), others, first)
    return build(_aten.div.Tensor, total, build.like(total, float(len(others) + 1)))


@translates("Div")
def _div(build: Builder, node: OnnxNode, a: Value, b: Value) -> Any:
    if a.floating or b.floating:
        return build(_aten.div.Tensor, a, b)
    return build(_aten.div.Tensor_mode, a, b, rounding_mode="trunc")


@translates("Mod")
def _mod(build: Builder, node: OnnxNode, a: Value, b: Value) -> Any:
    return build(_aten.fmod.Tensor if node.integer("fmod", 0) else _aten.remainder.Tensor, a, b)


@translates("Pow")
def _pow(build: Builder, node: OnnxNode, x: Value, exponent: Value) -> Any:
    if not exponent.varies and bool(exponent.tensor.isinf().any()):
        raise node.wrong("its exponent is infinite")
    if not exponent.varies and exponent.tensor.numel() == 1 and x.floating and exponent.rank <= x.rank:
        return build(_aten.pow.Tensor_Scalar, x, build.number(exponent, "exponent"))
    return build.cast(build(_aten.pow.Tensor_Tensor, x, exponent), x.tensor.dtype)


@translates("Where")
def _where(build: Builder, node: OnnxNode, condition: Value, a: Value, b: Value) -> Any:
    return build(_aten.where.self, condition, a, b)


@translates("Cast")
def _cast(build: Builder, node: OnnxNode, x: Value) -> Value:
    node.ignore("saturate", "round_mode")  # of element types that are refused
    return build.cast(x, torch_type(f"ONNX {node}: what it casts to", node.integer("to")))


@translates("CastLike")
def _cast_like(build: Builder, node: OnnxNode, x: Value, like: Value) -> Value:
    node.ignore("saturate", "round_mode")
    return build.cast(x, like.tensor.dtype)


# -- activations with settings --------------------------------------------------------------------------------


@translates("LeakyRelu")
def _leaky_relu(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.leaky_relu.default, x, node.real("alpha", _float32(0.01)))


@translates("Elu")
def _elu(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.elu.default, x, node.real("alpha", 1.0))


@translates("Selu")
def _selu(build: Builder, node: OnnxNode, x: Value) -> Any:
    alpha = node.real("alpha", _float32(1.67326319217681884765625))
    return build(_aten.elu.default, x, alpha, node.real("gamma", _float32(1.05070102214813232421875)))


@translates("Celu")
def _celu(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.celu.default, x, node.real("alpha", 1.0))


@translates("Softplus")
def _softplus(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.softplus.default, x)


@translates("Softsign")
def _softsign(build: Builder, node: OnnxNode, x: Value) -> Any:
    one = build(_aten.add.Scalar, build(_aten.abs.default, x), 1)
    return build(_aten.div.Tensor, x, one)


@translates("HardSigmoid")
def _hard_sigmoid(build: Builder, node: OnnxNode, x: Value) -> Any:
    alpha, beta = node.real("alpha", _float32(0.2)), node.real("beta", 0.5)
    line = build(_aten.add.Tensor, build(_aten.mul.Tensor, x, build.like(x, alpha)), build.like(x, beta))
    return build(_aten.clamp.default, line, 0.0, 1.0)


@translates("ThresholdedRelu")
def _thresholded_relu(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.threshold.default, x, node.real("alpha", 1.0), 0.0)


@translates("Shrink")
def _shrink(build: Builder, node: OnnxNode, x: Value) -> Any:
    limit, bias = node.real("lambd", 0.5), node.real("bias", 0.0)
    if bias == limit >= 0.0:
        return build(_aten.softshrink.default, x, limit)
    raise node.unsupported(f"with bias {bias} and lambd {limit} it jumps, so it has no Lipschitz constant.")


@translates("Gelu")
def _gelu(build: Builder, node: OnnxNode, x: Value) -> Any:
    return build(_aten.gelu.default, x, approximate=node.text("approximate", "none"))


@translates("Swish")
def _swish(build: Builder, node: OnnxNode, x: Value) -> Any:
    alpha = node.real("alpha", 1.0)
    if alpha == 1.0:
        return build(_aten.silu.default, x)
    inner = build(_aten.mul.Tensor, x, build.like(x, alpha))
    return build(_aten.mul.Tensor, x, build(_aten.sigmoid.default, inner))


@translates("PRelu")
def _prelu(build: Builder, node: OnnxNode, x: Value, slope: Value) -> Any:
    per_channel = x.rank > 1 and slope.rank == x.rank - 1 and slope.shape[0] == x.shape[1]
    if slope.tensor.numel() == 1 or (per_channel and slope.tensor.numel() == slope.shape[0]):
        return build(_aten.prelu.default, x, build.reshaped(slope, (slope.tensor.numel(),)))
    # max(x, 0) − s max(−x, 0), of any slope that is broadcast
    below = build(_aten.relu.default, build(_aten.neg.default, x))
    return build(_aten.sub.Tensor, build(_aten.relu.default, x), build(_aten.mul.Tensor, below, slope))


@translates("Clip")
def _clip(build: Builder, node: OnnxNode, x: Value, low: Value | None = None, high: Value | None = None) -> Any:
    """Bounds are attributes before operator set 11."""
    given: list[float | None] = [None, None]
    if node.version < 11:
        given = [node.real(name) if node.has(name) else None for name in ("min", "max")]
    else:
        given = [None if v is None else build.number(v, "bound") for v in (low, high)]
    least, most = given
    least, most = (None if least == -math.inf else least), (None if most == math.inf else most)
    if math.inf in (abs(least or 0.0), abs(most or 0.0)):
        raise node.wrong(f"it clips to [{least}, {most}]")
    if least is not None and most is not None and least > most:
        least = most  # the specification: the result is the upper bound everywhere
    if least is None and most is None:
        return x
    if least == 0.0 and most is None:
        return build(_aten.relu.default, x)
    return build(_aten.clamp.default, x, *(v if v is None or x.floating else int(v) for v in (least, most)))


def _float32(value: float) -> float:
    """The float32 number that a default of the specification is."""
    return float(torch.tensor(value, dtype=torch.float32).item())
