"""The discrete Fourier transform as a real linear map: matrices of cosines and sines, enclosed.

The transform of length n multiplies with e^{∓2πi jk/n}. Of a complex value (re, im), along one axis, it is

    re' = re C ± im S,   im' = im C ∓ re S,   C_jk = cos(2π jk/n),  S_jk = sin(2π jk/n),

with the upper signs forward. The transform back to real numbers takes the first ⌊n/2⌋ + 1 frequencies, of which all but
the first and, where n is even, the last count twice; what imaginary part those have is left out, as S is 0 there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.network.builder import Var
from lipcert.network.source import Fixed
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.enclosure import Ball
from lipcert.ops.folding import fold

#: Longest transform: its matrix has the square of this many entries.
LONGEST = 4096
#: Relative error of an entry, far more than it is: see ``waves``.
_RELATIVE = 2.0**-48
#: What a transform and its way back are divided by together, by PyTorch's number for each way to do so.
_NORMS = {0: lambda n: 1.0, 1: lambda n: 1.0 / math.sqrt(n), 2: lambda n: 1.0 / n}


def waves(n: int, rows: int, columns: int, sine: bool, normalization: int = 0, twice: int = 0) -> Ball:
    """C or S of length n, its first rows and columns, divided by 1, √n or n.

    Why the enclosure holds: jk/n is reduced with whole numbers, exactly, to an angle in [0, π/4], of which the float
    has a relative error of at most 4 units; sine and cosine are there, relative to themselves, no worse conditioned
    than the angle. Those of the library are right to a few units, as everywhere in ``enclosure``, and the scale and its
    product to three more: together less than 2^-48. 0, 1 and −1 are exact where nothing is divided.

    Args:
        n: length of the transform.
        rows, columns: how many of each.
        sine: S, else C.
        normalization: 0 for 1, 1 for √n, 2 for n.
        twice: the rows from 1 up to this one, excluded, count twice.
    """
    scale = _NORMS[normalization](n)
    table = torch.tensor([_wave(k, n, sine) for k in range(n)], dtype=torch.float64) * scale
    middle = table[torch.arange(rows)[:, None] * torch.arange(columns)[None] % n]
    middle[1:twice] *= 2.0
    radius = middle.abs() * _RELATIVE
    if not normalization:
        radius = torch.where((middle == 0) | (middle.abs() == 1) | (middle.abs() == 2), 0.0, radius)
    return Ball(middle, radius if bool(radius.any()) else None)


def _wave(k: int, n: int, sine: bool) -> float:
    """sin or cos of 2π k/n for 0 ≤ k < n; exact at whole quarters of a turn."""
    quarter, rest = divmod(4 * k, n)  # the angle is (quarter + rest/n) · π/2
    quarter = (quarter + (0 if sine else 1)) % 4  # a cosine is the sine a quarter later
    part = rest if quarter % 2 == 0 else n - rest
    value = math.sin(math.pi / 2 * (part / n)) if 2 * part <= n else math.cos(math.pi / 2 * ((n - part) / n))
    return value if quarter < 2 else -value


def along(ctx: Context, x: Any, axis: int, table: Ball, what: str) -> Any:
    """A Var or a Constant, one axis multiplied with a table of shape (its length, length of the result)."""
    constant = Constant.within(table, Fixed(table.middle))
    axis %= len(x.shape)

    def multiplied(v: Tensor, c: Tensor) -> Tensor:
        return torch.movedim(torch.movedim(v, axis, -1) @ c, -1, axis)

    if isinstance(x, Var):
        terms = float(max(table.middle.shape))
        return ctx.linear(x, multiplied, (constant,), terms, key=f"dft {what} along {axis}")
    last = x.map(lambda v: torch.movedim(v, axis, -1).contiguous())
    product = fold(torch.ops.aten.matmul.default, "matmul", (last, constant), {})
    moved: Constant = product.map(lambda v: torch.movedim(v, -1, axis))
    return moved
