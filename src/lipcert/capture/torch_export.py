"""Capture an ``nn.Module`` or a saved ``torch.export`` program as a Network, and prove that the two agree."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.capture.lowering import lower, refuse_training_ops
from lipcert.capture.replay import check_replay
from lipcert.capture.sequential import read_sequential
from lipcert.errors import CaptureError, InputError, LipcertError, TrainModeError
from lipcert.network.graph import Network

#: Largest relative difference tolerated between Network and model, by the dtype the model ran in. In the lower ones
#: it says little; there ``check_replay`` compares with the exported program, in float64.
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.3}


def capture(model: nn.Module | ExportedProgram, example_input: Tensor) -> Network:
    """The Network of one example of ``model``, in float64 on the CPU, checked against the model.

    Args:
        model: a module in eval mode, or an ExportedProgram whose batch size is 1 or dynamic. It is not changed.
        example_input: a floating tensor with a leading batch dimension of any size ≥ 1.

    Raises:
        InputError: unusable example, several inputs or outputs.
        TrainModeError: a layer in training mode.
        UnsupportedOpError, NotLipschitzError: an op without a rule, or without a constant.
        CaptureError: the export failed, examples of a batch influence each other, or the self-check failed.
    """
    module = _as_module(model)
    example = _check_example(example_input, module)
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad(), _private(module) as module:
        network = read_sequential(module, example[:1]) or _exported(module, example)
        _check_shapes(network)
        _self_check(network, module, example)
        _check_examples_independent(network, module, example)
    return network


def _exported(module: nn.Module, example: Tensor) -> Network:
    try:
        program = torch.export.export(module, (example[:1].clone(),), strict=False)
    except LipcertError:
        raise
    except Exception as problem:
        raise _export_error(problem, module, example) from problem
    refuse_training_ops(program)
    network = lower(program)
    check_replay(network, program, example)
    return network


def _as_module(model: Any) -> nn.Module:
    if isinstance(model, ExportedProgram):
        return model.module()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module or a torch.export.ExportedProgram, not {type(model).__name__}."
        )
    return model


@contextmanager
def _private(module: nn.Module) -> Iterator[nn.Module]:
    """A copy to work on, so that attributes which ``forward`` writes (caches, counters) stay as they were.

    A module that cannot be copied is used itself; the attributes of its submodules are put back afterwards.
    """
    try:
        yielded = copy.deepcopy(module)
    except Exception:  # locks, handles, non-leaf tensors: anything can refuse to be copied
        yielded = module
    kept = []
    for part in module.modules() if yielded is module else ():
        tables = {k: dict(v) for k, v in part.__dict__.items() if k in ("_parameters", "_buffers", "_modules")}
        kept.append((part, dict(part.__dict__), tables))
    try:
        yield yielded
    finally:
        for part, attributes, tables in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, table in tables.items():
                part.__dict__[name].clear()
                part.__dict__[name].update(table)


def _floating(module: nn.Module) -> Tensor | None:
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.is_complex():
            raise CaptureError(f"the model has complex parameters ({tensor.dtype}); only real networks are supported.")
    return next((t for t in tensors if t.is_floating_point()), None)


def _check_example(example: Any, module: nn.Module) -> Tensor:
    if not isinstance(example, Tensor):
        raise InputError(
            f"example_input must be one tensor with a leading batch dimension, not {type(example).__name__}; "
            "wrap a model of several inputs in a module of one."
        )
    if example.is_complex() or not example.is_floating_point():
        raise InputError(
            f"example_input has dtype {example.dtype}; a Lipschitz constant needs a real floating-point input."
        )
    if example.dim() < 2 or example.numel() == 0:
        raise InputError(
            f"example_input has shape {tuple(example.shape)}; it needs a leading batch dimension and no empty axis "
            "(one example of shape (n,) is example.unsqueeze(0))."
        )
    if not bool(torch.isfinite(example).all()):
        raise InputError("example_input holds NaN or infinity.")
    reference = _floating(module)
    if reference is not None:
        example = example.to(dtype=reference.dtype, device=reference.device)
    return example.detach()


def _export_error(problem: Exception, module: nn.Module, example: Tensor) -> LipcertError:
    text = str(problem).strip() or type(problem).__name__
    first = text.splitlines()[0][:300]
    if "when training" in text:
        return TrainModeError(
            f"a layer of the model works in training mode ({first}): it normalises by the statistics of the batch. "
            "Call model.eval(), and give batch norm running statistics."
        )
    try:
        module(example[:1].clone())
    except Exception as failure:  # whatever it is, the model does not run on this example
        return InputError(
            f"the model does not run on example_input[:1] (shape {tuple(example[:1].shape)}, {example.dtype}): "
            f"{type(failure).__name__}: {str(failure).strip()[:300]}. Give an example of the shape the model takes, "
            "with a leading batch dimension."
        )
    if type(problem).__name__ in ("GuardOnDataDependentSymNode", "UserError", "DataDependentOutputException") or (
        "data-dependent" in text.lower() or "data dependent" in text.lower()
    ):
        advice = "Control flow that depends on the data is not one fixed network; capture each branch by itself."
    else:
        advice = "Check that model(example_input) runs, and that forward is made of tensor operations only."
    return CaptureError(f"torch.export could not trace the model: {type(problem).__name__}: {first}. {advice}")


def _check_shapes(network: Network) -> None:
    if not network.out_shape or network.out_shape[0] != 1:
        raise CaptureError(
            f"for one example the model returns shape {network.out_shape}, which has no leading batch dimension: "
            "either it reduces over the batch, or it drops the batch axis. Return one output row per example."
        )


def _self_check(network: Network, module: nn.Module, example: Tensor) -> None:
    """Network.forward must reproduce the model on the example and on random inputs."""
    reference, dtype = _reference(module, example)
    try:
        _compare(network, reference, dtype, example)
    except CaptureError:
        if dtype == example.dtype:
            raise
        # A model that casts to its own precision inside differs from its float64 copy by no fault of the capture.
        _compare(network, _as_is(module, example), example.dtype, example)


def _compare(network: Network, reference: Callable[[Tensor], Tensor], dtype: torch.dtype, example: Tensor) -> None:
    generator = torch.Generator().manual_seed(20181204)
    noise = torch.randn(3, *example.shape[1:], generator=generator, dtype=torch.float64)
    base = example[:1].double().cpu()
    spread = float(base.abs().max()) or 1.0
    compared = 0
    for point in (base, base + 0.1 * spread * noise[:1], noise[1:2], 3.0 * spread * noise[2:3]):
        rounded = point.to(dtype)
        expected = reference(rounded.clone())
        if not isinstance(expected, Tensor):
            raise InputError(
                f"the model returns a {type(expected).__name__}; wrap it in a module that returns one tensor."
            )
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
        if difference > _TOLERANCE[dtype] * scale:
            raise CaptureError(
                f"self-check failed: the captured network differs from the model by {difference:.3g} "
                f"(values up to {scale:.3g}). This is a bug in lipcert or a model that is not a fixed function; "
                "no bound is given."
            )
    if not compared:
        raise CaptureError("self-check: the model returns NaN or infinity on every test input; no bound is given.")


def _reference(module: nn.Module, example: Tensor) -> tuple[Callable[[Tensor], Tensor], torch.dtype]:
    """The model as a function to compare with: a float64 copy if it can be made, else the model itself."""
    if example.dtype != torch.float64:
        try:
            double = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
            for part in double.modules():
                if isinstance(part, nn.RMSNorm) and part.eps is None:  # means the model's own machine epsilon
                    part.eps = torch.finfo(example.dtype).eps
            double(example[:1].double().cpu().clone())
            return double, torch.float64
        except Exception:  # any failure only means: compare in the model's own dtype
            pass
    return _as_is(module, example), example.dtype


def _as_is(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x.to(example.device))


def _check_examples_independent(network: Network, module: nn.Module, example: Tensor) -> None:
    """Examples of a batch must not influence each other.

    A model that takes only batches of one has nothing to couple.
    """
    reference, dtype = _reference(module, example)
    try:
        _compare_pair(network, reference, dtype, example)
    except CaptureError:
        if dtype == example.dtype:
            raise
        _compare_pair(network, _as_is(module, example), example.dtype, example)  # as in _self_check


def _compare_pair(network: Network, run: Callable[[Tensor], Tensor], dtype: torch.dtype, example: Tensor) -> None:
    generator = torch.Generator().manual_seed(20181205)
    noise = torch.randn(2, *example.shape[1:], generator=generator, dtype=torch.float64)
    pair = (example[:1].double().cpu() + noise).to(dtype)
    try:
        together = run(pair.clone())
    except Exception:  # the model is written for one example at a time
        return
    if not isinstance(together, Tensor) or together.dim() == 0 or together.shape[0] != 2:
        raise CaptureError("a batch of two examples does not give two outputs: the model couples its batch.")
    for place in range(2):
        alone = network.forward(pair[place : place + 1].double()[None])[0, 0]
        expected = together[place].double().cpu()
        if tuple(alone.shape) != tuple(expected.shape):
            raise CaptureError("a batch of two examples gives another shape per example: the model couples its batch.")
        if not bool(torch.isfinite(expected).all()):
            continue
        scale = max(float(alone.abs().max()) if alone.numel() else 0.0, 1e-300)
        if expected.numel() and float((alone - expected).abs().max()) > 10 * _TOLERANCE[dtype] * scale:
            raise CaptureError(
                "the output of one example changes with the other examples of its batch (a batch-coupled operation); "
                "a per-example Lipschitz constant does not exist. Evaluate such layers in eval mode or per example."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of torch.export: what goes wrong is told by the error raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
