"""Capture an ``nn.Module`` or a saved ``torch.export`` program as a Network, and prove that the two agree."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.capture.diagnosis import export_error
from lipcert.capture.lowering import Lowered, lowered, refuse_training_ops
from lipcert.capture.model import as_module, check_example, for_tracing, private
from lipcert.capture.quotients import check_quotients
from lipcert.capture.replay import check_replay
from lipcert.capture.self_check import check_examples_independent, check_shapes, self_check
from lipcert.capture.sequential import read_sequential
from lipcert.capture.steps import Steps, steps_of
from lipcert.errors import CaptureError, LipcertError, named
from lipcert.network.graph import Network
from lipcert.numerics.process_state import ordinary


def capture(model: nn.Module | ExportedProgram, example_input: Tensor) -> Network:
    """The Network of one example of ``model``, in float64 on the CPU, checked against the model.

    An op without a Lipschitz constant on the whole space (a product of two variables, exp) becomes an open node:
    whether a constant exists is a question of network and domain, answered where a ``Problem`` is made.

    The model runs under the caller's default dtype, which may be part of what it computes; every other setting of the
    process is neutralised (see ``process_state.ordinary``).

    Args:
        model: a module in eval mode, or an ExportedProgram whose batch size is 1 or dynamic. It is not changed.
        example_input: a floating tensor with a leading batch dimension of any size ≥ 1.

    Raises:
        InputError: unusable model or example, several inputs or outputs.
        TrainModeError: a layer in training mode.
        UnsupportedOpError: an op without a rule.
        NotLipschitzError: an op without a constant on the whole space, of a model that the Network does not reproduce.
        CaptureError: the export failed, examples of a batch influence each other, or a self-check failed.
        NumericsError: the process does not compute in ordinary IEEE arithmetic and cannot be made to.
    """
    with _capturing(model, example_input) as (module, example):
        network, program = read_sequential(module, example[:1]), None
        if network is None:
            found, program = _exported(module, example[:1])
            network = found.network
        _check(network, program, module, example)
    return network


def capture_steps(model: nn.Module | ExportedProgram, example_input: Tensor) -> Steps:
    """The ops that ``model`` executes, one by one, beside the Network that they were made into.

    Args, Raises: as ``capture``, which checks the same.
    """
    with _capturing(model, example_input) as (module, example):
        found, program = _exported(module, example[:1])
        _check(found.network, program, module, example)
        return steps_of(found, module, example.dtype)


@contextmanager
def _capturing(model: nn.Module | ExportedProgram, example_input: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """A private copy of the model and the example in its precision, in a process put in order."""
    with ExitStack() as stack:
        stack.enter_context(named(CaptureError, "capturing the model"))
        for one in (ordinary(dtype=None), quiet(), torch.random.fork_rng(devices=[]), torch.no_grad()):
            stack.enter_context(one)
        module = stack.enter_context(private(as_module(model)))
        yield module, check_example(example_input, module)


def _check(network: Network, program: ExportedProgram | None, module: nn.Module, example: Tensor) -> None:
    with _refusal_first(network):
        precision = example.dtype if program is None else check_replay(network, program, example[:1])
        check_shapes(network)
        run, dtype, judged = self_check(network, module, example, precision)
        check_examples_independent(network, run, dtype, judged, module, example)
        check_quotients(network, example)


@contextmanager
def _refusal_first(network: Network) -> Iterator[None]:
    """Where a network fails a check, and something in it has a constant on no domain, that is the error.

    An op that jumps, or that has no rule, tells more than what follows from it. A product of two values does not: it
    has a constant on a ball, it does not couple a batch, and its value is that of the model.
    """
    try:
        yield
    except Exception as problem:
        if network.hopeless is None:
            raise
        raise network.hopeless from problem


def _exported(module: nn.Module, example: Tensor) -> tuple[Lowered, ExportedProgram]:
    """The Network that torch.export's trace gives; where the plain trace fails, the one through Python's bytecode.

    The second reads ``.data`` and numbers made from parameters; its failures say less, so the first's is reported.
    """
    try:
        program = _traced(module, example, strict=False)
    except LipcertError:
        raise
    except Exception as problem:
        error = export_error(problem, module, example)
        try:
            return _lowered(_traced(module, example, strict=True))
        except Exception:
            raise error from problem
    return _lowered(program)


def _traced(module: nn.Module, example: Tensor, strict: bool) -> ExportedProgram:
    with redirect_stderr(io.StringIO()), for_tracing(module, example) as traced:  # failed traces print graphs
        return torch.export.export(traced, (example.clone(),), strict=strict)


def _lowered(program: ExportedProgram) -> tuple[Lowered, ExportedProgram]:
    try:
        refuse_training_ops(program)
        return lowered(program), program
    except LipcertError:
        raise
    except Exception as problem:
        raise CaptureError(
            f"the traced model cannot be rewritten in elementary operations: {type(problem).__name__}: "
            f"{str(problem).strip().splitlines()[0][:300]}"
        ) from problem


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of torch.export: what goes wrong is told by the error raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
