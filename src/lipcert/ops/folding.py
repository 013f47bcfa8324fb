"""Sub-graphs of constants (parametrised or normalised weights): evaluated in float64 with a rounding count."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.ops.context import Constant

#: Ops that move, copy or drop entries without arithmetic.
_EXACT = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t clone alias contiguous detach "
    "lift_fresh_copy slice select index_select index expand repeat cat stack split chunk flip roll neg abs "
    "_to_copy to unbind diagonal tril triu narrow relu zeros zeros_like ones ones_like full full_like arange eye "
    "empty_like new_zeros new_ones new_full scalar_tensor".split()
)


def fold(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run ``target`` on constants; floating tensors come back as float64 Constants with their rounding count."""
    operands = [c for c in tree_leaves((args, kwargs)) if isinstance(c, Constant)]
    plain_args, plain_kwargs = tree_map(lambda c: c.value if isinstance(c, Constant) else c, (args, kwargs))
    plain_kwargs = {k: _double(k, v) for k, v in plain_kwargs.items()}
    with torch.no_grad():
        result = target(*plain_args, **plain_kwargs)
    inherited = sum(c.rounding for c in operands)
    rounding = inherited + _own_rounding(name, args)

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            value = value.double()
        return Constant(value, rounding if value.is_floating_point() else 0.0)

    return tree_map(wrap, result)


def _double(key: str, value: Any) -> Any:
    if key == "device":
        return torch.device("cpu")
    if key == "dtype" and isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def _own_rounding(name: str, args: Any) -> float:
    """Units of relative rounding per entry that the op itself adds; inf when a cancellation may hide in it."""
    values = [a.value if isinstance(a, Constant) else a for a in args]
    tensors = [v for v in values if isinstance(v, Tensor)]
    if name in _EXACT:
        return 0.0
    if name in ("mul", "div", "sqrt", "rsqrt", "reciprocal"):
        return 2.0
    if name in ("linalg_vector_norm", "norm", "norm_except_dim"):
        return float(tensors[0].numel()) + 3.0
    if name == "_weight_norm":
        return float(tensors[0].numel()) + 6.0
    if name in ("mv", "mm", "matmul", "dot", "vdot", "add", "sub", "sum"):
        return _cancellation(name, values)
    return math.inf


def _cancellation(name: str, values: list[Any]) -> float:
    """Relative error of a sum: k · (sum of absolute values) / |sum|, entry by entry, worst entry."""
    try:
        if name in ("add", "sub"):
            a, b = (torch.as_tensor(v, dtype=torch.float64) for v in values[:2])
            total, absolute, terms = (a + b if name == "add" else a - b), a.abs() + b.abs(), 2
        elif name == "sum":
            total, absolute, terms = values[0].sum(), values[0].abs().sum(), values[0].numel()
        else:
            a, b = values[:2]
            total, absolute, terms = torch.matmul(a, b), torch.matmul(a.abs(), b.abs()), a.shape[-1]
    except (RuntimeError, TypeError, ValueError):
        return math.inf
    nonzero = absolute > 0
    if not bool(nonzero.any()):
        return 0.0
    ratio = (absolute[nonzero] / total.abs()[nonzero]).max().item()
    return (terms + 2.0) * ratio * 1.01 if math.isfinite(ratio) else math.inf
