"""Sums of products and means: γ_n Σ|terms| for n roundings in any order, fused multiply-adds included.

In every order of summation, with products rounded or fused into the additions, the computed Σ w_j x_j of n terms is
Σ w_j x_j (1 + θ_j) with |θ_j| ≤ γ_n (Higham 2002, §3.1 and §4.2): each term meets at most one rounding of its product
and n − 1 of additions. Zeros that a kernel pads with round nothing. Two roundings more are granted for a bias and
for a factor of 1/k. What is *not* covered are algorithms that form other sums than these, Winograd's and by FFT.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, gamma, up
from lipcert.execution.outcome import Linear, Outcome
from lipcert.execution.registry import executed
from lipcert.execution.value import Call, Executed


def _products(call: Call, first: str, second: str, bias: str | None, terms: int) -> Outcome:
    """Error of Σ x_j w_j + b.

    Why this is an upper bound: with |x̂ − x| ≤ e and |ŵ − w| ≤ d, x̂ŵ − xw = (x̂ − x)w + x̂(ŵ − w), at most e|w| +
    |x̂|d; the roundings add γ times the sum of all |x̂||ŵ| and |b̂|, ``reach`` being their upper ends. Every product,
    sum and operand may be flushed to zero where it is below the least normal number.
    """
    x, w = call.operand(first), call.operand(second)
    c = call.operand(bias) if bias is not None and call.get(bias) is not None else None
    both = x.varies and w.varies
    if both:
        x, w = call.refined(first), call.refined(second)
    names = {first: x.reach, second: w.reach}
    total = call.bounded(up(call.run(_reach, **names), terms) * (1.0 + gamma(terms + 3.0)))
    largest = 1.0 + _largest(x.reach) + _largest(w.reach)
    own = gamma(terms + 3.0) * total + (2.0 * terms + 4.0) * FLUSH * largest
    none = {} if c is None or bias is None else {bias: torch.zeros_like(c.error)}
    for moving, other, value, size in ((first, second, x, w.reach), (second, first, w, x.reach)):
        if both or (not value.varies and bool((value.error > 0).any())):
            own = own + call.run(_error, **{moving: value.error, other: size, **none})
    if c is not None and bias is not None:
        if c.varies:
            raise call.unsupported("its bias depends on the input")
        own = own + call.run(_error, **{first: torch.zeros_like(x.error), second: w.size})
    if both:
        return Outcome(up(own, terms))
    moving, other, value, fixed = (first, second, x, w) if x.varies else (second, first, w, x)
    signed, size = fixed.box.low, fixed.size
    if not torch.equal(signed, fixed.box.high):  # a constant that is known to an error: no sign is certain
        raise call.unsupported("its weight is known only to an error")
    part = Linear(
        value,
        lambda t: call.run(_error, **{moving: t, other: signed, **none}),
        lambda t: call.run(_error, **{moving: t, other: size, **none}),
        signed if call.op in ("linear", "mm", "addmm", "mv") and signed.dim() == 2 else None,
    )
    return Outcome(up(own, terms), (part,))


def _largest(reach: Tensor) -> float:
    return float(reach.max()) if reach.numel() else 0.0


def _error(value: Executed) -> Tensor:
    return value.error


def _reach(value: Executed) -> Tensor:
    return value.reach


def _shape(call: Call, name: str) -> tuple[int, ...]:
    return tuple(call.operand(name).error.shape)


@executed("linear")
def _linear(call: Call) -> Outcome:
    return _products(call, "input", "weight", "bias", _shape(call, "weight")[-1])


@executed("conv1d", "conv2d", "conv3d")
def _conv(call: Call) -> Outcome:
    return _products(call, "input", "weight", "bias", math.prod(_shape(call, "weight")[1:]))


@executed("convolution")
def _convolution(call: Call) -> Outcome:
    return _transposed(call) if call.get("transposed") else _conv(call)


@executed("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(call: Call) -> Outcome:
    weight = _shape(call, "weight")
    return _products(call, "input", "weight", "bias", weight[0] // int(call.get("groups", 1)) * math.prod(weight[2:]))


@executed("mm", "bmm")
def _matrices(call: Call) -> Outcome:
    return _products(call, "self", "mat2", None, _shape(call, "self")[-1])


@executed("matmul")
def _matmul(call: Call) -> Outcome:
    return _products(call, "self", "other", None, _shape(call, "self")[-1])


@executed("mv")
def _vector(call: Call) -> Outcome:
    return _products(call, "self", "vec", None, _shape(call, "self")[-1])


@executed("addmm", "baddbmm")
def _added(call: Call) -> Outcome:
    if call.get("alpha", 1) != 1 or call.get("beta", 1) != 1:
        raise call.unsupported("it scales by alpha or beta")
    first, second = ("mat1", "mat2") if call.op == "addmm" else ("batch1", "batch2")
    return _products(call, first, second, "self", _shape(call, first)[-1])


def _mean(call: Call, terms: int, divided: bool = True) -> Outcome:
    """Error of a sum of ``terms`` entries, or of that divided by their number."""
    (x,) = call.varying
    total = call.bounded(up(call.run(_reach), terms) * (1.0 + gamma(terms + 3.0)))
    call.bounded(total * (float(terms) if divided else 1.0))  # the sum before the division
    own = up(gamma(terms + 3.0) * total) + (2.0 * terms + 4.0) * FLUSH

    def apply(t: Tensor) -> Tensor:
        return call.run(lambda v: t)

    return Outcome(own, (Linear(x, apply, apply),))


@executed("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _pooled(call: Call) -> Outcome:
    axes = int(call.op[-2])
    kernel = call.get("kernel_size")
    sizes = [int(k) for k in kernel] if isinstance(kernel, (list, tuple)) else [int(kernel)]
    sizes = sizes * axes if len(sizes) == 1 else sizes
    divisor = call.get("divisor_override")
    if divisor is not None and not 1 <= divisor <= math.prod(sizes):
        raise call.unsupported("its divisor is none of the numbers of entries")
    return _mean(call, math.prod(sizes))


@executed("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(call: Call) -> Outcome:
    (x,) = call.varying
    return _mean(call, math.prod(x.error.shape[-int(call.op[-2]) :]))


@executed("sum", "mean")
def _reduced(call: Call) -> Outcome:
    x = call.operand("self")
    shape, dim = x.error.shape, call.get("dim")
    axes: list[Any] = list(range(len(shape))) if dim is None or dim == [] else dim if isinstance(dim, list) else [dim]
    return _mean(call, max(1, math.prod(shape[a] for a in axes)), call.op == "mean")


__all__: list[str] = []
