"""onnxruntime as judge: the module that a file became must compute what the file computes."""

from __future__ import annotations

import copy
from functools import partial
from threading import Timer
from typing import Any

import torch
from torch import Tensor, fx

from lipcert.capture.noise import rounding_noise
from lipcert.capture.onnx.file import Tensors, package
from lipcert.capture.onnx.graph import Graph
from lipcert.capture.onnx.shapes import Reading
from lipcert.capture.self_check import TOLERANCE
from lipcert.errors import CaptureError

#: A batch of two may round otherwise than one example does.
_COUPLED = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.3, torch.bfloat16: 1.0}
#: Absolute error of the sigmoids and the like of onnxruntime, which are 0 where they should be small.
_SIGMOID = 1e-6
#: That onnxruntime has for one input.
_SECONDS = 60.0


def compared(model: Any, module: fx.GraphModule, reading: Reading, output: str | None, tensors: Tensors) -> str:
    """Run the file by onnxruntime on random inputs beside its module.

    onnxruntime is given the nodes that were read and their tensors, as bytes: no more than what has been checked, and
    no path.

    Args:
        model: the ModelProto.
        module: what it became.
        reading: how its input was read.
        output: the output's name, None for the only one.
        tensors: reads what lies in other files.

    Returns:
        What is to be said if there was no comparison, else "".

    Raises:
        CaptureError: they differ, or the examples of a batch influence each other.
    """
    reason = _reason(model, module, reading, output, tensors)
    if reason and reading.declared == (1, *reading.example) and _any_length(model):
        raise CaptureError(
            f"the first axis of the input is of any length, and nothing tells whether it is a batch: {reason}. Export "
            "the file with a first axis of length 1."
        )
    return reason


def _reason(model: Any, module: fx.GraphModule, reading: Reading, output: str | None, tensors: Tensors) -> str:
    """As ``compared``, whatever the length of the first axis."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed (pip install 'lipcert[onnx]')"
    try:
        content = _pruned(model, output, tensors)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except CaptureError:
        raise
    except Exception as problem:
        return f"onnxruntime does not take the file ({_short(problem)})"
    dtype = module.precision.dtype
    assert isinstance(dtype, torch.dtype)
    if dtype is torch.bfloat16:
        return "onnxruntime has no bfloat16 input on a CPU"
    double, told = copy.deepcopy(module).double(), 0
    for point in _points(reading, dtype):
        try:
            found = _run(session, name, point.reshape(reading.declared))
        except Exception as problem:
            return f"onnxruntime does not run the file ({_short(problem)})"
        try:
            with torch.no_grad():
                high = _high(module, double, point)
                noise = rounding_noise(high, partial(module, point), dtype)
        except Exception as problem:
            return f"PyTorch does not run its ops in {dtype} on a CPU ({_short(problem)})"
        told += _compare(found, high, TOLERANCE[dtype], noise)
    if not told:
        return "on random inputs its values are NaN, infinite, or too small for onnxruntime's sigmoids"
    if reading.declared == (1, *reading.example):
        _require_independent(session, name, reading, dtype)
    return ""


def _any_length(model: Any) -> bool:
    """Whether the file leaves the length of the first axis of an input open."""
    known = {t.name for t in model.graph.initializer}
    shapes = [i.type.tensor_type.shape.dim for i in model.graph.input if i.name not in known]
    return any(dims and not dims[0].HasField("dim_value") for dims in shapes)


def _points(reading: Reading, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(20181207)
    noise = torch.randn(3, *reading.example, generator=generator, dtype=torch.float64)
    flat = torch.rand(1, *reading.example, generator=generator, dtype=torch.float64)
    return [one.to(dtype) for one in (flat, noise[:1], 0.1 * noise[1:2], 3.0 * noise[2:3])]


def _run(session: Any, name: str, x: Tensor) -> Tensor:
    """The output as onnxruntime gives it, within a minute."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = Timer(_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()}, options)[0]).double()
    finally:
        timer.cancel()


def _high(module: fx.GraphModule, double: fx.GraphModule, point: Tensor) -> Tensor:
    """The module's output, in float64 where it runs so: not if it casts to its own precision inside."""
    try:
        found: Tensor = double(point.double())
    except Exception:
        found = module(point).double()
    return found


def _compare(found: Tensor, high: Tensor, tolerance: float, noise: float) -> bool:
    """Whether the comparison tells anything; raises CaptureError if the two differ."""
    if found.numel() != high.numel():
        raise CaptureError(
            f"onnxruntime gives an output of shape {tuple(found.shape)}, lipcert one of {tuple(high.shape)}: this "
            "is a bug in lipcert, or in the file; no bound is given."
        )
    found = found.reshape(high.shape)
    if not bool(high.isfinite().all()) or not bool(found.isfinite().all()):
        return False
    if not high.numel():
        return True
    difference, scale = float((found - high).abs().max()), float(high.abs().max())
    if difference <= max(tolerance * scale, noise):
        return True
    if difference > _SIGMOID:
        raise CaptureError(
            f"self-check failed: onnxruntime and lipcert differ by {difference:.3g} on a random input (values up to "
            f"{scale:.3g}). This is a bug in lipcert or in onnxruntime, or far larger values cancel, so that floats do "
            "not tell; no bound is given."
        )
    return False


def _require_independent(session: Any, name: str, reading: Reading, dtype: torch.dtype) -> None:
    """Where the file takes a batch of two and gives two rows, these must be those of the two examples."""
    shape = session.get_inputs()[0].shape
    if not shape or isinstance(shape[0], int):
        return
    first, second = _points(reading, dtype)[:2]
    try:
        together = _run(session, name, torch.cat([first, second]))
        alone = torch.cat([_run(session, name, one) for one in (first, second)])
    except Exception:  # written for one example
        return
    if together.shape != alone.shape or not alone.dim() or len(alone) != 2:
        raise CaptureError(
            "the first axis of the input is of any length, and of two examples the file makes no two rows: it is no "
            "batch. Export the file with a first axis of fixed length."
        )
    if not alone.numel() or not bool(together.isfinite().all()):
        return
    if float((together - alone).abs().max()) > _COUPLED[dtype] * max(float(alone.abs().max()), 1e-300):
        raise CaptureError(
            "the output of one example changes with the other examples of its batch; a per-example Lipschitz constant "
            "does not exist. Export the model in eval mode, or for a batch of 1."
        )


def _pruned(model: Any, output: str | None, tensors: Tensors) -> bytes:
    """The file as bytes: only what the output needs, all tensors inside.

    Raises:
        CaptureError: a tensor cannot be read.
        ValueError: it has branches, or is too large for one message.
    """
    onnx = package()
    graph = Graph(model.graph)
    chosen = next(o for o in model.graph.output if output in (None, o.name))
    nodes = [node for _, node in graph.needed([chosen.name])]
    wanted = {name for node in nodes for name in node.input} | {chosen.name}
    new = onnx.ModelProto(ir_version=model.ir_version)
    new.opset_import.extend(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    new.graph.name = "graph"
    new.functions.extend(model.functions)
    new.opset_import.extend(o for o in model.opset_import if o.domain not in ("", "ai.onnx"))
    for function in new.functions:
        for node in function.node:
            if any(a.type in (5, 10) for a in node.attribute):
                raise ValueError("it has branches")
            for attribute in node.attribute:
                if attribute.type == 4:
                    _embed(attribute.t, tensors)
    for node in nodes:
        if any(a.type in (5, 10) for a in node.attribute):
            raise ValueError("it has branches")
        copied = new.graph.node.add()
        copied.CopyFrom(node)
        for attribute in copied.attribute:
            if attribute.type == 4:
                _embed(attribute.t, tensors)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            held = new.graph.initializer.add()
            held.CopyFrom(tensor)
            _embed(held, tensors)
    given = {i.name for i in graph.inputs} | wanted.intersection(graph.initializers)
    new.graph.input.extend(i for i in model.graph.input if i.name in given)
    new.graph.output.add().CopyFrom(chosen)
    content = new.SerializeToString()
    assert isinstance(content, bytes)
    return content


def _embed(tensor: Any, tensors: Tensors) -> None:
    """Put the bytes of an external tensor into it."""
    if tensor.data_location == 1:
        tensor.raw_data = tensors.external(tensor)
        del tensor.external_data[:]
        tensor.data_location = 0


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]
