"""onnxruntime as judge: the module that a file became must compute what the file computes."""

from __future__ import annotations

import copy
from functools import partial
from threading import Timer
from typing import Any

import torch
from torch import Tensor

from lipcert.capture.noise import rounding_noise
from lipcert.capture.onnx.batch import high_precision, points, require_rows, rows_are_examples
from lipcert.capture.onnx.file import Tensors, number_of, package
from lipcert.capture.onnx.graph import reads
from lipcert.capture.onnx.inputs import Feed
from lipcert.capture.onnx.reader import Read
from lipcert.capture.self_check import TOLERANCE
from lipcert.errors import CaptureError

#: Absolute error of the sigmoids and the like of onnxruntime, which are 0 where they should be small.
_SIGMOID = 1e-6
#: That onnxruntime has for one input.
_SECONDS = 60.0


def compared(read: Read, tensors: Tensors) -> str:
    """Run the file by onnxruntime on random inputs beside its module, and two examples beside each alone.

    onnxruntime is given the nodes that were read and their tensors, as bytes: no more than what has been checked, and
    no path.

    Args:
        read: the file and what it became.
        tensors: reads what lies in other files.

    Returns:
        What is to be said if there was no comparison, else "".

    Raises:
        CaptureError: they differ, or the examples of a batch influence each other.
    """
    known = not read.feed.open() or rows_are_examples(read)
    reason, told = _reason(read, tensors, known)
    if not known and not told:
        raise CaptureError(
            f"the first axis of the input is of any length, and nothing tells whether it is a batch: {reason}. Export "
            "the file with a first axis of length 1."
        )
    return reason


def _reason(read: Read, tensors: Tensors, known: bool) -> tuple[str, bool]:
    """Why there was no comparison, or "", and whether onnxruntime was asked about the batch, where not known."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed (pip install 'lipcert[onnx]')", False
    try:
        content = _pruned(read, tensors)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        session.get_inputs()
    except CaptureError:
        raise
    except Exception as problem:
        return f"onnxruntime does not take the file ({_short(problem)})", False
    module, dtype = read.module, read.module.precision.dtype
    assert isinstance(dtype, torch.dtype)
    if any(one.dtype is torch.bfloat16 for one in (*read.feed.parts, *read.feed.fixed)):
        return "onnxruntime has no bfloat16 input on a CPU", False
    double, told = copy.deepcopy(module).double(), 0
    for point in points(read.feed.example, dtype):
        try:
            found = _run(session, read.feed, point)
        except Exception as problem:
            return f"onnxruntime does not run the file ({_short(problem)})", False
        try:
            with torch.no_grad():
                high, _ = high_precision(module, double, point)
                noise = rounding_noise(high, partial(module, point), dtype)
        except Exception as problem:
            return f"PyTorch does not run its ops in {dtype} on a CPU ({_short(problem)})", False
        told += _compare(found, high, TOLERANCE[dtype], noise)
    if not told:
        return "on random inputs its values are NaN, infinite, or too small for onnxruntime's sigmoids", False
    return "", not known and _tells_examples_apart(session, read)


def _tells_examples_apart(session: Any, read: Read) -> bool:
    """Ask onnxruntime what was not read for two examples; whether it was asked. Raises as ``require_rows``."""
    both, dtype = read.feed.repeated(2), read.module.precision.dtype
    assert isinstance(dtype, torch.dtype)
    if both is None:
        return False
    first, second = points(read.feed.example, dtype)[:2]
    try:
        together = _run(session, both, torch.cat([first, second]))
        alone = torch.cat([_run(session, read.feed, one) for one in (first, second)])
    except Exception:  # written for one example
        return True
    require_rows(together, alone, dtype)
    return True


def _run(session: Any, feed: Feed, x: Tensor) -> Tensor:
    """The output as onnxruntime gives it, within a minute."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = Timer(_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        asked = {one.name for one in session.get_inputs()}
        given = {name: v.contiguous().numpy() for name, v in feed.arguments(x).items() if name in asked}
        return torch.from_numpy(session.run(None, given, options)[0]).double()
    finally:
        timer.cancel()


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


def _pruned(read: Read, tensors: Tensors) -> bytes:
    """The file as bytes: only what the output needs, all tensors inside.

    Raises:
        CaptureError: a tensor cannot be read.
        ValueError: a function has branches, a branch has tensors in other files, or it is too large for one message.
    """
    onnx, model, graph = package(), read.model, read.graph
    names = {one.name for one in (*read.feed.parts, *read.feed.fixed)}
    nodes = [node for _, node in graph.needed([read.output], names)]
    wanted = {name for node in nodes for name in reads(node)} | {read.output}
    new = onnx.ModelProto(ir_version=model.ir_version)
    new.opset_import.extend(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    new.graph.name = "graph"
    new.functions.extend(model.functions)
    new.opset_import.extend(o for o in model.opset_import if o.domain not in ("", "ai.onnx"))
    for function in new.functions:
        for node in function.node:
            _close(node)
            if any(a.type in (5, 10) for a in node.attribute):
                raise ValueError("it has branches")
            for attribute in node.attribute:
                if attribute.type == 4:
                    _embed(attribute.t, tensors)
    for node in nodes:
        if any(_outside(inner) for a in node.attribute for inner in (*((a.g,) if a.type == 5 else ()), *a.graphs)):
            raise ValueError("its branches hold tensors in other files")
        copied = new.graph.node.add()
        copied.CopyFrom(node)
        _close(copied)
        for attribute in copied.attribute:
            if attribute.type == 4:
                _embed(attribute.t, tensors)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            held = new.graph.initializer.add()
            held.CopyFrom(tensor)
            _embed(held, tensors)
    given = names | wanted.intersection(graph.initializers)
    new.graph.input.extend(i for i in model.graph.input if i.name in given)
    for one in read.feed.parts:
        if one.name in graph.made:
            new.graph.input.append(onnx.helper.make_tensor_value_info(one.name, number_of(one.dtype), one.shape))
    chosen = new.graph.output.add(name=read.output)
    chosen.CopyFrom(next((o for o in model.graph.output if o.name == read.output), chosen))
    content = new.SerializeToString()
    assert isinstance(content, bytes)
    return content


def _close(node: Any) -> None:
    """Take away inputs that are left out behind the last one: where a DFT names its axis so, onnxruntime crashes."""
    while node.input and not node.input[-1]:
        del node.input[-1]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _close(inner)


def _outside(graph: Any) -> bool:
    """Whether a branch holds a tensor that lies in another file, or in a form that is not looked into."""
    held = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.type == 4)]
    if graph.sparse_initializer or any(tensor.data_location or tensor.external_data for tensor in held):
        return True
    attributes = [a for node in graph.node for a in node.attribute]
    if any(a.type in (9, 11, 12) for a in attributes):
        return True
    return any(_outside(one) for a in attributes for one in (*((a.g,) if a.type == 5 else ()), *a.graphs))


def _embed(tensor: Any, tensors: Tensors) -> None:
    """Put the bytes of an external tensor into it."""
    if tensor.data_location == 1:
        tensor.raw_data = tensors.external(tensor)
        del tensor.external_data[:]
        tensor.data_location = 0


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]
