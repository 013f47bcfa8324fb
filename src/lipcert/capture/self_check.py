"""The model itself as judge: the Network must reproduce it, and one example must not depend on its batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from lipcert.capture.diagnosis import does_not_run
from lipcert.capture.model import one_tensor
from lipcert.capture.noise import network_noise
from lipcert.errors import CaptureError, LipcertError
from lipcert.network.graph import Network

#: Largest relative difference tolerated between Network and model, by the dtype the model ran in. In the lower ones
#: it says little: there ``replay`` compares with the exported program, run in float64.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.3}
#: Batch sizes from the shapes of parameters that are tried when a model takes neither two nor three examples.
_MOST_SIZES, _LARGEST_SIZE, _MOST_ENTRIES = 16, 4096, 1 << 24

Run = Callable[[Tensor], Tensor]


def check_shapes(network: Network) -> None:
    """Raise CaptureError unless a batch of one gives a batch of one."""
    if not network.out_shape or network.out_shape[0] != 1:
        raise CaptureError(
            f"for one example, read as shape {network.in_shape[1:]}, the model returns shape {network.out_shape}, "
            "which has no leading batch dimension of 1: either the example was given without its batch dimension, or "
            "the model reduces over the batch or drops the batch axis. Return one output row per example."
        )


def self_check(
    network: Network, module: nn.Module, example: Tensor, precision: torch.dtype
) -> tuple[Run, torch.dtype, torch.dtype]:
    """Network.forward must reproduce the model on the example and on random inputs.

    Args:
        network, module, example: what is compared.
        precision: the lowest that the model computes in: where it is judged as it is, by that one's rounding.

    Returns:
        The model as the function that was reproduced, the dtype it takes, float64 where a copy can, and the dtype by
        whose rounding it is judged.

    Raises:
        CaptureError: it does not, or every value is NaN or infinite.
        InputError: the model does not run on the example.
    """
    run, dtype = _reference(module, example)
    try:
        _compare(network, run, dtype, dtype, example)
    except CaptureError:
        if dtype == example.dtype == precision:
            raise
        # A model that casts to its own precision inside differs from its float64 copy by no fault of the capture.
        run, dtype = _as_is(module, example), example.dtype
        _compare(network, run, dtype, precision, example)
        return run, dtype, precision
    return run, dtype, dtype


def check_examples_independent(
    network: Network, run: Run, dtype: torch.dtype, judged: torch.dtype, module: nn.Module, example: Tensor
) -> None:
    """In batches of two and three, f(x)[i] must be f(x[i : i + 1]): in shape, and on the data of the example.

    A model that takes only batches of one has nothing to couple. It may also broadcast the one example against
    constants of several channels because the batch dimension was forgotten; then some batch size that occurs among the
    shapes of its parameters runs too, and gives itself away by the number of rows it returns.

    Args:
        network: agrees with the model on single examples.
        run, dtype, judged: the model, as ``self_check`` gives it.
        module, example: where batch sizes to try come from.

    Raises:
        CaptureError: examples of a batch influence each other, or a batch of B does not give B outputs.
    """
    base, noise, spread = _points(example, 3, 20181205)
    second = example[1:2].double().cpu() if len(example) > 1 else base + 0.1 * spread * noise[1:2]
    rows = torch.cat([base + noise[:1], second, 3.0 * spread * noise[2:3]]).to(dtype)
    single = network.forward(rows.double()[:, None])
    alone = single[:, 0]

    @cache
    def rounding() -> float:
        return network_noise(network, rows.double()[:, None], single, judged)

    taken = [_compare_batch(run, judged, rows[:size], alone[:size], rounding, example) for size in (2, 3)]
    for size in () if any(taken) else _sizes(module, example):
        repeated = torch.arange(size) % 3
        _compare_batch(run, judged, rows[repeated], alone[repeated], rounding, example)


def _reference(module: nn.Module, example: Tensor) -> tuple[Run, torch.dtype]:
    """The model as a function to compare with: a float64 copy if it can be made, else the model itself."""
    if example.dtype != torch.float64:
        try:
            double = copy.deepcopy(module)._apply(_doubled)
            for part in double.modules():
                if isinstance(part, nn.RMSNorm) and part.eps is None:  # means the model's own machine epsilon
                    part.eps = torch.finfo(example.dtype).eps
            double(example[:1].double().cpu().clone())
            return lambda x: one_tensor(double(x.clone())), torch.float64
        except Exception:  # any failure only means: compare in the model's own dtype
            pass
    return _as_is(module, example), example.dtype


def _doubled(tensor: Tensor) -> Tensor:
    """A parameter in twice the precision of float32, on the CPU."""
    held = tensor.cpu()
    if held.is_complex():
        return held.to(torch.complex128)
    return held.to(torch.float64) if held.is_floating_point() else held


def _as_is(module: nn.Module, example: Tensor) -> Run:
    return lambda x: one_tensor(module(x.clone().to(example.device)))


def _points(example: Tensor, rows: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """The example in float64, noise of its shape, and its scale."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, *example.shape[1:], generator=generator, dtype=torch.float64)
    base = example[:1].double().cpu()
    return base, noise, float(base.abs().max()) or 1.0


def _compare(network: Network, run: Run, dtype: torch.dtype, judged: torch.dtype, example: Tensor) -> None:
    base, noise, spread = _points(example, 3, 20181204)
    compared = 0
    points = (base, base + 0.1 * spread * noise[:1], noise[1:2], 3.0 * spread * noise[2:3])
    for place, point in enumerate((*points, 0.5 + 0.25 * torch.tanh(noise[:1]))):  # the last: a logarithm takes it
        rounded = point.to(dtype)
        try:
            expected = run(rounded)
        except LipcertError:
            raise
        except Exception as failure:
            if place == 0:
                raise does_not_run(failure, example[:1]) from failure
            continue  # a model may refuse inputs far from its data
        expected = expected.double().cpu()
        actual = network.forward(rounded.double()[None])[0]
        if tuple(expected.shape) != tuple(actual.shape):
            shapes = f"the model returns {tuple(expected.shape)}, the capture {tuple(actual.shape)}"
            raise CaptureError(f"self-check: {shapes}")
        if not bool(torch.isfinite(expected).all()) or not bool(torch.isfinite(actual).all()):
            continue
        compared += 1
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-300)
        difference = float((expected - actual).abs().max()) if expected.numel() else 0.0
        if difference <= TOLERANCE[judged] * scale:
            continue
        if difference > network_noise(network, rounded.double()[None], actual[None], judged):
            raise CaptureError(
                f"self-check failed: the captured network differs from the model by {difference:.3g} "
                f"(values up to {scale:.3g}). This is a bug in lipcert, a model that is not a fixed function, or "
                "one in which far larger values cancel, so that floats do not tell; no bound is given."
            )
    if not compared:
        raise CaptureError(
            "self-check: the model returns NaN or infinity on every test input; no bound is given. Give an example "
            "input of its domain."
        )


def _sizes(module: nn.Module, example: Tensor) -> list[int]:
    shapes = [t.shape for t in (*module.parameters(), *module.buffers())]
    most = min(_LARGEST_SIZE, max(1, _MOST_ENTRIES // max(1, example[0].numel())))
    found = {n for shape in shapes for n in shape} | {len(example)}
    return sorted(n for n in found if 1 < n <= most)[:_MOST_SIZES]


def _compare_batch(
    run: Run, dtype: torch.dtype, batch: Tensor, alone: Tensor, rounding: Callable[[], float], example: Tensor
) -> bool:
    """Whether the model takes a batch of this size; raises if its rows are not those of its examples ``alone``.

    ``rounding`` says how far they may be off where values cancel.
    """
    try:
        together = run(batch)
    except Exception:  # the model is written for another number of examples
        return False
    size = len(batch)
    if together.dim() == 0 or together.shape[0] != size:
        raise CaptureError(
            f"{_reading(example)}, but a batch of {size} gives an output of shape {tuple(together.shape)}, not {size} "
            "rows: the model couples its batch, or the example lacks its batch dimension "
            "(then give example_input.unsqueeze(0))."
        )
    together = together.double().cpu()
    if tuple(alone.shape) != tuple(together.shape):
        raise CaptureError(
            f"{_reading(example)}, but a batch of {size} gives {tuple(together.shape[1:])} per example where one alone "
            f"gives {tuple(alone.shape[1:])}: the model couples its batch."
        )
    for row, expected in zip(alone, together, strict=True):
        if not bool(torch.isfinite(expected).all()):
            continue
        scale = max(float(row.abs().max()) if row.numel() else 0.0, 1e-300)
        difference = float((row - expected).abs().max()) if row.numel() else 0.0
        if difference > 10 * TOLERANCE[dtype] * scale and difference > rounding():
            raise CaptureError(
                f"{_reading(example)}, but the output of one example changes with the other examples of its batch (a "
                "batch-coupled operation, or an example without its batch dimension); a per-example Lipschitz "
                "constant does not exist. Evaluate such layers in eval mode or per example."
            )
    return True


def _reading(example: Tensor) -> str:
    """How the example was understood."""
    return (
        f"example_input of shape {tuple(example.shape)} was read as {len(example)} example(s) of shape "
        f"{tuple(example.shape[1:])}"
    )
