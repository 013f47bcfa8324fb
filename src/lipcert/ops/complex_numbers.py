"""Complex values between real ones, as pairs of real values: Fourier layers, spectral convolutions, rotary codes.

A network is a function of real numbers. A complex value inside is its real and its imaginary part, and an op on it the
ops on these that it is made of; each of them goes through its own rule. So a chain that starts and ends real is a
network as any other, and its parts are exact: nothing is known of complex numbers but this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.network.builder import Var
from lipcert.network.source import Fixed, Source, derived
from lipcert.ops.constant import Constant
from lipcert.ops.context import Context
from lipcert.ops.fourier import LONGEST, along, waves

_ATEN = torch.ops.aten
#: Applies an op to real values by its rule: target, arguments, named ones.
Apply = Callable[..., Any]
#: Ops that are linear in all their values together with real coefficients: the parts go apart.
_APART = frozenset(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze permute transpose t mT numpy_T "  # noqa: SIM905
    "expand clone alias contiguous detach lift_fresh_copy slice select narrow index_select index repeat cat stack "
    "flip roll movedim swapaxes diagonal tril triu sum mean cumsum neg positive slice_scatter select_scatter copy "
    "index_put split split_with_sizes chunk unbind constant_pad_nd add sub rsub _to_copy to gather "
    "index_add scatter_add".split()
)
_FILLED = frozenset("full_like zeros_like ones_like new_zeros new_ones new_full".split())  # noqa: SIM905
_SAME = frozenset(("resolve_conj", "resolve_neg"))
_PRODUCTS = frozenset(("mul", "mm", "bmm", "matmul", "mv", "einsum", "outer"))


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex value: two Vars or Constants of one shape; None for an imaginary part of zero."""

    real: Any
    imag: Any

    @staticmethod
    def exactly(value: Tensor, source: Source | None = None) -> Complex:
        """A stored tensor; one that did not come from parameters has no source."""
        parts = []
        for place in (0, 1):
            part = torch.view_as_real(value.resolve_conj())[..., place].clone()
            own = Fixed(part) if source is None else derived(lambda v, k=place: torch.view_as_real(v)[..., k], source)
            parts.append(Constant.exactly(part, source=own))
        return Complex(*parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of either part."""
        return tuple(self.real.shape)


def known(name: str) -> bool:
    """Whether there is a way to apply an op of this name to complex values."""
    return name in _APART or name in _SAME | _PRODUCTS | _FILLED or name in _RULES


def complex_call(ctx: Context, target: Any, name: str, args: Any, kwargs: Any, value: Any, apply: Apply) -> Any:
    """What an op gives that has complex arguments or makes complex values.

    Args:
        ctx: of the call.
        target, name: the op.
        args, kwargs: Vars, Constants, Complexes and plain values.
        value: the traced result.
        apply: applies an op to real values.

    Raises:
        UnsupportedOpError: there is no way to write it in real ops.
    """
    ctx.op = name
    leaves = tree_leaves((args, kwargs))
    if not any(isinstance(leaf, (Var, Constant, Complex)) for leaf in leaves) or name in _FILLED:
        return _made(target, args, kwargs)
    if name in _SAME:
        return args[0]
    if name in _APART:
        return _apart(target, _as_complex_numbers(name, args), kwargs, value, apply)
    if name in _PRODUCTS:
        return _product(ctx, target, args, kwargs, apply)
    if name in _RULES:
        return _RULES[name](ctx, apply, *args, **kwargs)
    raise ctx.unsupported("no rule covers it for complex numbers.")


def _made(target: Any, args: Any, kwargs: Any) -> Complex | Constant:
    """Zeros, ones and the like, also those like another value."""

    def empty(leaf: Any) -> Any:
        if isinstance(leaf, Complex):
            return torch.zeros(leaf.shape, dtype=torch.complex128)
        return torch.zeros(tuple(leaf.shape), dtype=torch.float64) if isinstance(leaf, (Var, Constant)) else leaf

    plain, named = tree_map(empty, (args, kwargs))
    named = {key: torch.device("cpu") if key == "device" else one for key, one in named.items()}
    made = target(*plain, **named)
    return Complex.exactly(made) if made.is_complex() else Constant.exactly(made, source=Fixed(made))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (Var, Complex)) or (isinstance(leaf, Constant) and leaf.value.is_floating_point())


def _parts(leaf: Any, apply: Apply) -> tuple[Any, Any]:
    """Real and imaginary part of a value or a number."""
    if isinstance(leaf, complex):
        return leaf.real, leaf.imag
    if isinstance(leaf, Complex) and leaf.imag is not None:
        return leaf.real, leaf.imag
    real = leaf.real if isinstance(leaf, Complex) else leaf
    return real, _zeros(real) if isinstance(real, (Var, Constant)) else 0.0


def _zeros(like: Any) -> Constant:
    zeros = torch.zeros(tuple(like.shape), dtype=torch.float64)
    return Constant.exactly(zeros, source=Fixed(zeros))


def _real_dtype(leaf: Any) -> Any:
    if not isinstance(leaf, torch.dtype) or not leaf.is_complex:
        return leaf
    return torch.float64 if leaf is torch.complex128 else torch.float32


def _as_complex_numbers(name: str, args: Any) -> Any:
    """Real numbers among the values of an op, which have no imaginary part; other numbers are sizes and places."""
    places = {"add": (0, 1), "sub": (0, 1), "rsub": (0, 1), "constant_pad_nd": (2,)}.get(name, ())
    return tuple(
        complex(one) if place in places and isinstance(one, (int, float)) else one for place, one in enumerate(args)
    )


def _apart(target: Any, args: Any, kwargs: Any, value: Any, apply: Apply) -> Any:
    """The op on the real parts, and on the imaginary ones."""

    def part(place: int) -> Any:
        def chosen(leaf: Any) -> Any:
            if _is_value(leaf) or isinstance(leaf, complex):
                return _parts(leaf, apply)[place]
            return _real_dtype(leaf)

        plain, named = tree_map(chosen, (args, kwargs))
        return apply(target, *plain, **named)

    if isinstance(value, (tuple, list)):
        return tuple(Complex(re, im) for re, im in zip(part(0), part(1), strict=True))
    return Complex(part(0), part(1))


def _product(ctx: Context, target: Any, args: Any, kwargs: Any, apply: Apply) -> Complex:
    """(a + bi)(c + di) = (ac − bd) + (ad + bc)i for what is linear in each of two values."""
    listed = list(args[1]) if isinstance(args[1], (list, tuple)) else list(args)  # einsum has them in a list
    places = [k for k, leaf in enumerate(listed) if _is_value(leaf) or isinstance(leaf, (complex, float, int))]
    both = [k for k in places if isinstance(listed[k], (Complex, complex))]

    def times(*chosen: tuple[int, Any]) -> Any:
        new = list(listed)
        for place, leaf in chosen:
            new[place] = leaf
        plain = (args[0], new, *args[2:]) if listed is not args and isinstance(args[1], (list, tuple)) else tuple(new)
        return apply(target, *plain, **kwargs)

    def parts(place: int) -> tuple[Any, Any]:
        leaf = listed[place]
        return (leaf.real, leaf.imag)

    if len(both) == 1:
        (one,) = both
        re, im = parts(one)
        return Complex(times((one, re)), None if im is None else times((one, im)))
    if len(both) > 2:
        raise ctx.unsupported("a product of more than two complex values; multiply two at a time.")
    first, second = both
    (a, b), (c, d) = parts(first), parts(second)
    real, cross = times((first, a), (second, c)), []
    if b is not None and d is not None:
        real = apply(_ATEN.sub.Tensor, real, times((first, b), (second, d)))
    if d is not None:
        cross.append(times((first, a), (second, d)))
    if b is not None:
        cross.append(times((first, b), (second, c)))
    imag = None if not cross else cross[0] if len(cross) == 1 else apply(_ATEN.add.Tensor, *cross)
    return Complex(real, imag)


# -- ops of their own ---------------------------------------------------------------------------------------------


def _conjugate(ctx: Context, apply: Apply, x: Any) -> Complex:
    return Complex(x.real, None if x.imag is None else apply(_ATEN.neg.default, x.imag))


def _real(ctx: Context, apply: Apply, x: Any) -> Any:
    return x.real


def _imag(ctx: Context, apply: Apply, x: Any) -> Any:
    return _parts(x, apply)[1]


def _as_real(ctx: Context, apply: Apply, x: Any) -> Any:
    return apply(_ATEN.stack.default, list(_parts(x, apply)), -1)


def _as_complex(ctx: Context, apply: Apply, x: Any) -> Complex:
    return Complex(*(apply(_ATEN.select.int, x, -1, place) for place in (0, 1)))


def _joined(ctx: Context, apply: Apply, real: Any, imag: Any) -> Complex:
    return Complex(real, imag)


def _size(ctx: Context, apply: Apply, x: Any) -> Any:
    """|z|, the l2 norm of the two parts."""
    return apply(_ATEN.linalg_vector_norm.default, _as_real(ctx, apply, x), 2.0, [-1])


def _over(ctx: Context, apply: Apply, x: Any, y: Any, **named: Any) -> Complex:
    """By a real value alone."""
    if named or not isinstance(x, Complex) or isinstance(y, (Complex, complex)):
        raise ctx.unsupported("a quotient of complex numbers is not covered; multiply with the reciprocal.")
    target = _ATEN.div.Tensor
    return Complex(apply(target, x.real, y), None if x.imag is None else apply(target, x.imag, y))


def _require_short(ctx: Context, n: int) -> int:
    if n > LONGEST:
        raise ctx.unsupported(f"a Fourier transform of {n} entries; up to {LONGEST} are covered.")
    return n


def _transformed(ctx: Context, apply: Apply, x: Complex, axis: int, kept: int, norm: int, forward: bool) -> Complex:
    """Along one axis; ``kept`` frequencies of it."""
    n = _require_short(ctx, x.shape[axis])
    cosine, sine = (waves(n, n, kept, kind, norm) for kind in (False, True))

    def along_axis(part: Any, table: Any, what: str) -> Any:
        ctx.op = "_fft"
        return along(ctx, part, axis, table, f"{what} {n} {kept} {norm}")

    real, crossed = along_axis(x.real, cosine, "cos"), along_axis(x.real, sine, "sin")
    crossed = apply(_ATEN.neg.default, crossed) if forward else crossed
    if x.imag is None:
        return Complex(real, crossed)
    other = along_axis(x.imag, sine, "sin")
    join = _ATEN.add.Tensor if forward else _ATEN.sub.Tensor
    return Complex(apply(join, real, other), apply(_ATEN.add.Tensor, along_axis(x.imag, cosine, "cos"), crossed))


def _complex_to_complex(ctx: Context, apply: Apply, x: Any, dim: Any, normalization: int, forward: bool) -> Complex:
    """The transform of a complex value along some axes."""
    found = x if isinstance(x, Complex) else Complex(x, None)
    for axis in dim:
        found = _transformed(ctx, apply, found, axis, found.shape[axis], normalization, forward)
    return found


def _real_to_complex(ctx: Context, apply: Apply, x: Any, dim: Any, normalization: int, onesided: bool) -> Complex:
    """The transform of a real value; one-sided: of the last axis named, the first ⌊n/2⌋ + 1 frequencies."""
    n = x.shape[dim[-1]]
    kept = n // 2 + 1 if onesided else n
    found = _transformed(ctx, apply, Complex(x, None), dim[-1], kept, normalization, True)
    return _complex_to_complex(ctx, apply, found, dim[:-1], normalization, True)


def _complex_to_real(ctx: Context, apply: Apply, x: Any, dim: Any, normalization: int, last_dim_size: int) -> Any:
    """The way back from one-sided frequencies to real numbers."""
    x = _complex_to_complex(ctx, apply, x, dim[:-1], normalization, False)
    n, axis = _require_short(ctx, last_dim_size), dim[-1]
    rows = n // 2 + 1
    if x.shape[axis] != rows:
        raise ctx.unsupported(f"{x.shape[axis]} frequencies for {n} real numbers.")
    twice = (n + 1) // 2
    tables = [waves(n, rows, n, kind, normalization, twice) for kind in (False, True)]
    ctx.op = "_fft"
    real = along(ctx, x.real, axis, tables[0], f"back cos {n} {normalization}")
    if x.imag is None:
        return real
    ctx.op = "_fft"
    return apply(_ATEN.sub.Tensor, real, along(ctx, x.imag, axis, tables[1], f"back sin {n} {normalization}"))


def _nothing(ctx: Context, apply: Apply, *args: Any, **kwargs: Any) -> None:
    """A check of dtype and device that export writes next to a conversion: no value."""


def _short_time(
    ctx: Context, apply: Apply, x: Any, n_fft: int, hop_length: int | None = None, win_length: int | None = None,
    window: Any = None, normalized: bool = False, onesided: bool | None = None, return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Complex:  # fmt: skip
    """The transform of windows of a real signal, (…, L) → (…, frequencies, frames)."""
    width = win_length or n_fft
    if isinstance(x, Complex) or align_to_window or len(x.shape) not in (1, 2) or not 0 < width <= n_fft:
        raise ctx.unsupported("this form of the short-time transform is not covered.")
    frames = apply(_ATEN.unfold.default, x, -1, n_fft, hop_length or n_fft // 4)
    if window is not None or width < n_fft:
        ones = torch.ones(width, dtype=torch.float64)
        shape = Constant.exactly(ones, source=Fixed(ones)) if window is None else window
        left = (n_fft - width) // 2
        frames = apply(
            _ATEN.mul.Tensor, frames, shape.map(lambda w: torch.nn.functional.pad(w, (left, n_fft - width - left)))
        )
    norm = 1 if normalized else 0
    found = _real_to_complex(ctx, apply, frames, [len(frames.shape) - 1], norm, onesided is not False)
    return Complex(*(apply(_ATEN.transpose.int, part, -1, -2) for part in (found.real, found.imag)))


_RULES: dict[str, Callable[..., Any]] = {
    "conj": _conjugate, "_conj": _conjugate, "conj_physical": _conjugate, "_conj_physical": _conjugate,
    "real": _real, "imag": _imag, "view_as_real": _as_real, "view_as_complex": _as_complex, "complex": _joined,
    "abs": _size, "div": _over, "_fft_c2c": _complex_to_complex, "_fft_r2c": _real_to_complex,
    "_fft_c2r": _complex_to_real, "stft": _short_time, "_assert_tensor_metadata": _nothing,
}  # fmt: skip
