"""Sums, products and quotients entry by entry: one rounding each, of the executed result."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.execution.float32 import FLUSH, UNIT, up
from lipcert.execution.registry import executed
from lipcert.execution.value import Call


def _rounded(call: Call, error: Tensor, roundings: float = 1.0) -> Tensor:
    """``error`` with the roundings of a result that differs from the real one by it."""
    reach = call.bounded(up(call.box.greatest + error))
    return up(error + (roundings * UNIT) * (1.0 + 2.0**-20) * reach) + 4.0 * FLUSH


@executed("add", "sub", "rsub")
def _sum(call: Call) -> Tensor:
    a, b = call.operand("self"), call.operand("other")
    if call.op == "rsub":
        a, b = b, a
    alpha = call.get("alpha", 1)
    if alpha == 1:
        return _rounded(call, a.error + b.error)
    if call.op == "rsub":
        raise call.unsupported("it scales by alpha")
    scale = call.operand("alpha")
    term = scale.size * b.error + scale.error * b.reach + UNIT * scale.reach * b.reach
    call.bounded(scale.reach * b.reach)
    return _rounded(call, a.error + term)


@executed("mul")
def _product(call: Call) -> Tensor:
    """x̂ŷ − xy = (x̂ − x)y + x̂(ŷ − y)."""
    a, b = call.operand("self"), call.operand("other")
    tiny = FLUSH * (a.reach + b.reach)
    return _rounded(call, a.error * b.size + a.reach * b.error + tiny)


@executed("div")
def _quotient(call: Call) -> Tensor:
    """x̂/ŷ − x/y = (x̂ − x)/ŷ − (x/y)(ŷ − y)/ŷ; two roundings, where a kernel multiplies by 1/ŷ."""
    if call.get("rounding_mode") is not None:
        raise call.unsupported("it rounds to whole numbers")
    a, b = call.operand("self"), call.operand("other")
    least = torch.maximum(b.low, -b.high) - 2.0 * FLUSH
    if not bool((least > 2.0**-100).all()):
        raise call.unsupported("its divisor may be zero or nearly so on this domain")
    call.bounded(1.0 / least)
    error = (a.error + 2.0 * FLUSH + (call.box.greatest * (b.error + 2.0 * FLUSH))) / least
    return _rounded(call, error, 3.0) + FLUSH * a.reach


@executed("neg")
def _negative(call: Call) -> Tensor:
    return call.operand("self").error


@executed("abs")
def _absolute(call: Call) -> Tensor:
    return call.operand("self").error + FLUSH


@executed("maximum", "minimum")
def _extreme(call: Call) -> Tensor:
    a, b = call.operand("self"), call.operand("other")
    return torch.maximum(a.error, b.error) + FLUSH


__all__: list[str] = []
