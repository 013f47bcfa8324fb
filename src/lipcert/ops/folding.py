"""Sub-graphs of constants (parametrised or normalised weights), run in float64 with a rounding count."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.ops.context import Constant

#: Ops that move, copy, drop or choose entries without arithmetic; a relative error passes through unchanged.
_EXACT = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t mT numpy_T clone "  # noqa: SIM905
    "alias contiguous detach slice select index_select index expand repeat cat stack split "
    "relu lift_fresh_copy split_with_sizes chunk flip roll neg abs _to_copy to unbind diagonal tril triu "
    "narrow amax amin max min maximum minimum constant_pad_nd clamp_min clamp_max clamp".split()
)
#: Ops that make constants; they keep the dtype the model asks for, so that 0.1 is the number the model holds.
_CREATION = frozenset(
    "zeros zeros_like ones ones_like full full_like arange eye new_zeros new_ones new_full scalar_tensor "  # noqa: SIM905
    "empty_like".split()
)
#: Comparisons: exact on exact operands.
_COMPARISON = frozenset("eq ne lt le gt ge logical_and logical_or logical_not isfinite isnan".split())  # noqa: SIM905
#: A count beyond this is no longer a small relative error.
_MOST = 1e-4 / 2.0**-53


def fold(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run ``target`` on constants; floating tensors come back in float64 with their rounding count."""
    operands = [c for c in tree_leaves((args, kwargs)) if isinstance(c, Constant)]
    plain_args, plain_kwargs = tree_map(lambda c: c.value if isinstance(c, Constant) else c, (args, kwargs))
    if name not in _CREATION:
        plain_args = tree_map(_double, plain_args)
    plain_kwargs = {k: _on_cpu(k, v if name in _CREATION else _double(v)) for k, v in plain_kwargs.items()}
    with torch.no_grad():
        result = target(*plain_args, **plain_kwargs)
    rounding = _rounding(target, name, plain_args, plain_kwargs, operands, result)

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return Constant(value.double() if value.is_floating_point() else value, rounding)

    return tree_map(wrap, result)


def _double(value: Any) -> Any:
    """Floating dtypes among the arguments become float64: no constant is rounded to the model's dtype."""
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _on_cpu(key: str, value: Any) -> Any:
    return torch.device("cpu") if key == "device" else value


def _rounding(target: Any, name: str, args: Any, kwargs: Any, operands: list[Constant], result: Any) -> float:
    """Units of relative rounding per entry of the result; inf when nothing is known."""
    floating = [c for c in operands if c.value.is_floating_point()]
    inherited = max((c.rounding for c in operands), default=0.0)
    whole = [t for t in tree_leaves(result) if isinstance(t, Tensor) and not t.is_floating_point()]
    if any(t.is_complex() for t in whole) or any(c.value.is_complex() for c in operands):
        return math.inf
    if whole:
        # Whole numbers and masks jump: exact on exact operands, unknown on rounded ones.
        known = name in _EXACT or name in _CREATION or name in _COMPARISON or not floating
        return 0.0 if known and inherited == 0 else math.inf
    count = _count(target, name, args, kwargs, operands, inherited, result)
    return count if count <= _MOST else math.inf


def _count(
    target: Any, name: str, args: Any, kwargs: Any, operands: list[Constant], inherited: float, result: Any
) -> float:
    total = sum(c.rounding for c in operands)
    if name in _EXACT:
        return inherited
    if name in _CREATION:
        return 0.0 if name != "arange" or all(not isinstance(a, float) for a in args) else math.inf
    if name in ("mul", "div") and "rounding_mode" not in kwargs:
        return total + 2.0
    if name in ("sqrt", "rsqrt", "reciprocal", "square"):
        return 2.0 * inherited + 2.0
    if name == "pow" and isinstance(args[1], (int, float)) and args[1] in (-1, -0.5, 0.5, 1, 2):
        return abs(args[1]) * inherited + 4.0
    if name in ("linalg_vector_norm", "norm", "norm_except_dim"):
        given = [a for a in args[1:2] if a is not None] + [kwargs[k] for k in ("ord", "p", "pow") if k in kwargs]
        return inherited + args[0].numel() + 3.0 if all(g in (1, 2, math.inf) for g in given) else math.inf
    if name == "_weight_norm":
        return 2.0 * operands[0].rounding + operands[-1].rounding + args[0].numel() + 6.0
    return _sum_count(target, name, args, kwargs, total, result)


def _sum_count(target: Any, name: str, args: Any, kwargs: Any, inherited: float, result: Any) -> float:
    """Counts of sums: (terms + inherited) · Σ|terms| / |sum|, worst entry: cancellation is paid for."""
    try:
        if name in ("add", "sub"):
            a, b = (torch.as_tensor(v, dtype=torch.float64) for v in args[:2])
            absolute, terms = a.abs() + abs(float(kwargs.get("alpha", 1))) * b.abs(), 3.0
        elif name in ("sum", "mean"):
            absolute, terms = target(args[0].abs(), *args[1:], **kwargs), args[0].numel() + 1.0
        elif name in ("mv", "mm", "bmm", "matmul", "dot", "vdot"):
            a, b = args[:2]
            absolute, terms = target(a.abs(), b.abs()), a.shape[-1] + 1.0
        else:
            return math.inf
    except (RuntimeError, TypeError, ValueError):
        return math.inf
    some = absolute > 0
    if not bool(some.any()):
        return 0.0
    ratio = float((absolute[some] / result.double()[some].abs()).max())
    return (terms + 2.0 + inherited) * ratio * 1.01 if math.isfinite(ratio) else math.inf
