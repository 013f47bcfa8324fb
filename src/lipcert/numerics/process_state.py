"""The state of the process that a proof relies on: put in order while lipcert works, and put back afterwards.

IEEE arithmetic as the proofs assume it is a setting of each thread, and PyTorch adds some twenty settings of its own
that change what the same line of code computes. None of them may change a bound. ``ordinary`` neutralises what can be
set back and raises ``NumericsError`` for what cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _disable_current_modes

from lipcert.errors import NumericsError

#: Entries of one chunk of PyTorch's parallel loops (at::internal::GRAIN_SIZE): each thread gets one at least.
_GRAIN = 32768
_UNIT, _NORMAL = 2.0**-53, 2.0**-1022
#: Devices whose autocast mode could cast the maps of a network.
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")
#: Where newer versions of PyTorch keep the precision of float32 on the CPU; a part inherits from the whole before it.
#: Those of a GPU stay: only searches run there, and reading them raises once they disagree.
_PRECISIONS = (("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"))


@contextmanager
def ordinary(dtype: torch.dtype | None = torch.float32) -> Iterator[None]:
    """Run a block in ordinary arithmetic, whatever the caller has set; the caller's settings return afterwards.

    Neutralised: flush-to-zero of this thread, and of the threads of PyTorch's pool (the block then runs on one
    thread); default device and any other function or dispatch mode; default dtype; autocast; inference mode and
    ``no_grad``; float32 matmul precision; deterministic algorithms; anomaly detection; hooks on saved tensors;
    NumPy's error state; cached parametrisations; warnings turned into errors.

    Args:
        dtype: default dtype inside; None leaves the caller's, for running the caller's model.

    Raises:
        NumericsError: rounding is not to nearest; subnormal numbers cannot be switched on; the call is inside a
            ``torch.func`` transform or a trace, where tensors hold no numbers of their own; the block itself changed
            the arithmetic.
    """
    _refuse_transforms()
    with ExitStack() as stack:
        stack.enter_context(_without_modes())
        stack.enter_context(_subnormals())
        _require_ordinary_arithmetic("")
        stack.enter_context(_sound_threads())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(_settings(dtype))
        stack.enter_context(_no_saved_tensor_hooks())
        stack.enter_context(_warnings_stay_warnings())
        yield
        _require_ordinary_arithmetic(" after the model ran: its forward changes the arithmetic of the process")


def subnormals_survive() -> bool:
    """Whether this thread neither flushes subnormal results to zero nor reads subnormal operands as zero."""
    return _NORMAL * 0.5 > 0.0 and 2.0**-1074 * 2.0**100 > 0.0


def _rounds_to_nearest() -> bool:
    one, half, more = 1.0, _UNIT, 1.5 * _UNIT
    up = 1.0 + 2.0 * _UNIT
    return one + half == one and one + more == up and -one - half == -one and -one - more == -up


def _require_ordinary_arithmetic(when: str) -> None:
    if not _rounds_to_nearest():
        raise NumericsError(
            f"this thread does not round to nearest{when}; proofs assume IEEE rounding to nearest. "
            "Call fesetround(FE_TONEAREST) (or drop what changed it) first."
        )
    if not subnormals_survive():
        raise NumericsError(
            f"this thread flushes subnormal numbers to zero{when}; call torch.set_flush_denormal(False), or drop the "
            "library compiled with -ffast-math that switched it on."
        )


@contextmanager
def _subnormals() -> Iterator[None]:
    flushing = not subnormals_survive()
    if flushing:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)


@contextmanager
def _sound_threads() -> Iterator[None]:
    """Leave the pool alone for the block if its threads do not compute as this one does.

    Threads inherit the arithmetic of the thread that started them and keep it, so switching flushing off here does
    not reach threads that began while it was on.
    """
    threads = torch.get_num_threads()
    alone = threads > 1 and not _pool_is_ordinary(threads)
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(threads)


def _pool_is_ordinary(threads: int) -> bool:
    """The probes of this thread, in a loop that PyTorch shares out over all its threads."""
    entries = threads * _GRAIN
    normal, one = (torch.full((entries,), v, dtype=torch.float64, device="cpu") for v in (_NORMAL, 1.0))
    subnormal = torch.full((entries,), 2.0**-1074, dtype=torch.float64, device="cpu")
    half, more = _UNIT, 1.5 * _UNIT
    up = 1.0 + 2.0 * _UNIT
    probes = (
        normal * 0.5 > 0, subnormal * 2.0**100 > 0, one + half == 1.0, one + more == up,
        -one - half == -1.0, -one - more == -up,
    )  # fmt: skip
    return all(bool(probe.all()) for probe in probes)


def _refuse_transforms() -> None:
    what = None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        what = "a torch.func transform (vmap, grad, jvp …)"
    elif torch.autograd.forward_ad._current_level >= 0:
        what = "a forward-mode level (torch.autograd.forward_ad.dual_level)"
    elif torch.compiler.is_compiling() or torch._C._is_tracing():
        what = "a trace (torch.compile, torch.export, torch.jit.trace)"
    if what is not None:
        raise NumericsError(f"lipcert was called inside {what}, where tensors hold no fixed numbers; call it outside.")


@contextmanager
def _without_modes() -> Iterator[None]:
    """No default device, no other function mode, no dispatch mode: each may replace any operation by another."""
    modes = [torch._C._pop_torch_function_stack() for _ in _get_current_function_mode_stack()]
    try:
        with _disable_current_modes():
            yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)


@contextmanager
def ordinary_dtype(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Run a block with this default dtype."""
    default = torch.get_default_dtype()
    if default == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _settings(dtype: torch.dtype | None) -> Iterator[None]:
    """Settings of the whole process; touched only where they are not ordinary already."""
    with ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(ordinary_dtype(dtype))
        if torch.are_deterministic_algorithms_enabled():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.use_deterministic_algorithms(False)
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
        cached = parametrize._cache_enabled  # parametrize.cached() would hand a trace's tensors to the next run
        if cached:
            parametrize._cache_enabled = 0
            stack.callback(setattr, parametrize, "_cache_enabled", cached)
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for place in _PRECISIONS if hasattr(torch._C, "_get_fp32_precision_getter") else ():
            before = torch._C._get_fp32_precision_getter(*place)
            if before not in ("none", "ieee") or (before != "none" and place[1] == "all"):
                torch._C._set_fp32_precision_setter(*place, "none")
                stack.callback(torch._C._set_fp32_precision_setter, *place, before)
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # set by the newer interface, and so undone above
            precision = "highest"
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        yield


@contextmanager
def _no_saved_tensor_hooks() -> Iterator[None]:
    """Maps are transposed by autograd, and a hook may store what it saves in half precision."""
    hooks: list[Any] = []
    while torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        hooks.append(torch._C._autograd._top_saved_tensors_default_hooks(True))
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


@contextmanager
def _warnings_stay_warnings() -> Iterator[None]:
    """A warning of a library is no failed proof; filters that name lipcert stay as they are."""

    def strict(row: Any) -> bool:
        return row[0] == "error" and "lipcert" not in getattr(row[3], "pattern", row[3] or "")

    if not any(strict(row) for row in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        warnings.filters[:] = [("default", *row[1:]) if strict(row) else row for row in warnings.filters]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        yield
