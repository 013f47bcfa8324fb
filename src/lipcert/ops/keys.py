"""What a linear map is, as text for the network's hash: its family and settings, however the model called it.

Together with the shapes of input and output and the map's constants a key determines the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.network.hashing import index_key
from lipcert.network.linear import Shape, size

#: Positions are told in digits of this base, whose squares are exact.
_BASE = 1 << 26


def move_key(function: Callable[[Tensor], Tensor], in_shape: Shape) -> str | None:
    """The key of a linear function with entries ≥ 0 that moves, repeats and drops entries; None if it does more.

    Why this decides it: weights w ≥ 0 with Σ w = 1 and Σ w i² = (Σ w i)² over distinct places i sit on one place, by
    the strict convexity of squares, and that place is Σ w i. The same holds of the digits of places.
    """
    places = torch.arange(1, size(in_shape) + 1, dtype=torch.float64).reshape(in_shape)
    with torch.no_grad():
        ones = function(torch.ones_like(places))
        if not bool(((ones == 0) | (ones == 1)).all()):
            return None
        table = torch.zeros_like(ones)
        for unit in (1, _BASE) if size(in_shape) >= _BASE else (1,):
            digits = (places // unit) % _BASE
            image = function(digits)
            if not torch.equal(function(digits * digits), image * image):
                return None
            table += unit * image
    return index_key(table)


def axes_key(kind: str, shape: Shape, axes: Any) -> str:
    """The key of a sum or mean over axes of a value of ``shape``; None or no axes mean all."""
    chosen = range(len(shape)) if axes is None or axes == [] else (axes,) if isinstance(axes, int) else axes
    return f"{kind} {sorted(a % len(shape) for a in chosen) if shape else []}"


def window_key(
    in_shape: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    count_padding: bool,
    divisor: int | None,
) -> str:
    """The key of an average over windows; one window that is the whole plane is the mean over its axes."""
    spatial = len(kernel)
    plane = tuple(in_shape[len(in_shape) - spatial :])
    padded = any(padding)
    if tuple(kernel) == plane and not padded and divisor is None:
        return axes_key("mean", in_shape, tuple(range(-spatial, 0)))
    counted = count_padding if padded else True
    return f"average {(tuple(kernel), tuple(stride), tuple(padding), bool(ceil), bool(counted), divisor)}"


def convolution_key(
    kind: str, spatial: int, kernel: Shape, stride: Any, padding: Any, dilation: Any, groups: int, extra: Any = 0
) -> str:
    """The key of a convolution; ``extra`` is the output padding of a transposed one."""
    stride, dilation, extra = (each(v, spatial) for v in (stride, dilation, extra))
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [t // 2 for t in total] if not any(t % 2 for t in total) else padding
    settings = (stride, padding if isinstance(padding, str) else each(padding, spatial), dilation, groups, extra)
    return f"{kind} {settings}"


def equation_key(equation: str, place: int) -> str:
    """The key of a contraction whose operand ``place`` varies; letters count by their order of appearance."""
    text = equation.replace(" ", "")
    if "->" in text:  # without it the order of the output's axes is that of the alphabet
        letters = {c: str(k) for k, c in enumerate(dict.fromkeys(c for c in text if c.isalpha()))}
        text = " ".join(letters.get(c, c) for c in text)
    return f"contraction {text} of {place}"


def each(value: Any, spatial: int) -> tuple[int, ...]:
    """A setting of a convolution, one number per axis; a single number stands for all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(int(v) for v in (values * spatial if len(values) == 1 else values))
