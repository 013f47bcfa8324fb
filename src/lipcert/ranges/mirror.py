"""How an activation of −x is one of x: φ(−x) = sign·φ(x) + slope·x + offset."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lipcert.network.activations.clamp import Clamp
from lipcert.network.activations.gates import GELU, ErfGELU, GELUTanh, Hardswish, SiLU, Swish, TanhGELU
from lipcert.network.activations.piecewise import Abs, HardSigmoid, LeakyReLU, Softshrink
from lipcert.network.activations.smooth import (
    Asinh,
    Atan,
    Cos,
    Erf,
    Erfc,
    LogSigmoid,
    Sigmoid,
    Sin,
    Softplus,
    Softsign,
    Tanh,
    Tanhshrink,
)
from lipcert.network.nonlinearity import Nonlinearity
from lipcert.numerics.midrad import Near


@dataclass(frozen=True)
class Mirror:
    """φ(−x) = sign·φ(x) + slope·x + offset for all x."""

    sign: int
    slope: Fraction = Fraction(0)
    offset: Fraction = Fraction(0)


_ODD, _EVEN = Mirror(-1), Mirror(1)
#: x·g(x) with g(−x) = 1 − g(x), and integrals of such g.
_GATED = Mirror(1, Fraction(-1))

_MIRRORS: dict[type[Nonlinearity], Mirror] = {
    **dict.fromkeys((Tanh, Sin, Softsign, Erf, Atan, Asinh, Tanhshrink, Softshrink), _ODD),
    **dict.fromkeys((Cos, Abs), _EVEN),
    **dict.fromkeys((SiLU, Swish, GELU, GELUTanh, ErfGELU, TanhGELU, Hardswish, Softplus), _GATED),
    **dict.fromkeys((Sigmoid, HardSigmoid), Mirror(-1, Fraction(0), Fraction(1))),
    Erfc: Mirror(-1, Fraction(0), Fraction(2)),
    LogSigmoid: _GATED,
}


def mirror_of(function: Nonlinearity) -> Mirror | None:
    """The mirror of an activation; None where none is known.

    Why: sigmoids s obey s(−x) = 1 − s(x), so that x·s(x) and ∫ s change by x; the softplus (1/β) log(1 + e^{βx}) as
    well, and log σ(−x) = log σ(x) − x; max(−x, 0) = max(x, 0) − x.
    """
    if isinstance(function, Clamp):
        return _GATED if (function.low, function.high) in ((0.0, None), (None, 0.0)) else None
    if isinstance(function, LeakyReLU):
        near = isinstance(function.slope, Near)
        return None if near else Mirror(1, -1 - Fraction(function.slope))
    return _MIRRORS.get(type(function))
