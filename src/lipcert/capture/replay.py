"""An exported program run in float64: what its Network must reproduce, whatever precision the model runs in.

A model in half precision differs from its Network by percents of rounding; its program, run in float64 with the
constants that the model computes, does not. So a wrong rule cannot hide behind the model's own rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map

from lipcert.capture.noise import network_noise, rounding_noise
from lipcert.errors import CaptureError
from lipcert.network.graph import Network

#: Largest relative difference tolerated: float64 in another order of summation, torch's softplus at its threshold.
_TOLERANCE = 1e-5


def check_replay(network: Network, program: ExportedProgram, example: Tensor) -> torch.dtype:
    """Raise CaptureError if the Network differs from the program it was made of, both run in float64.

    Returns the lowest precision that the program computes in, so that the model itself is judged by no higher one; the
    example's where the program could not be run in float64.

    Args:
        network: made from ``program``.
        program: takes one tensor of batch size 1.
        example: (B, …); its first row, and random points of its scale, are compared.
    """
    generator = torch.Generator().manual_seed(20181206)
    noise = torch.randn(3, *example.shape[1:], generator=generator, dtype=torch.float64)
    base = example[:1].double().cpu()
    spread = float(base.abs().max()) or 1.0
    for point in (base + 0.1 * spread * noise[:1], noise[1:2], 3.0 * spread * noise[2:3]):
        try:
            with torch.no_grad():
                expected = replay(program, point)
        except Exception:  # an op that does not run in float64: the model itself is the judge
            return example.dtype
        actual = network.forward(point[None])[0]
        if not isinstance(expected, Tensor) or expected.shape != actual.shape or not expected.numel():
            return example.dtype  # reported by the comparison with the model
        if not bool(expected.isfinite().all()) or not bool(actual.isfinite().all()):
            continue
        difference, size = float((expected - actual).abs().max()), float(expected.abs().max())
        if difference <= _TOLERANCE * max(size, 1e-300):
            continue
        granted = rounding_noise(expected, partial(replay, program, point, torch.float32))
        if difference > max(granted, network_noise(network, point[None], actual[None])):
            raise CaptureError(
                f"self-check failed: in float64 the captured network differs from the exported program by "
                f"{difference:.3g} (values up to {size:.3g}). This is a bug in lipcert, or float64 does not "
                "tell, because far larger values cancel; no bound is given."
            )
    values = [value for node in program.graph.nodes for value in tree_leaves(node.meta.get("val"))]
    used = {v.dtype for v in values if isinstance(v, Tensor)} & {torch.float32, torch.float16, torch.bfloat16}
    return max(used | {example.dtype}, key=lambda dtype: torch.finfo(dtype).eps)


def replay(program: ExportedProgram, x: Tensor, dtype: torch.dtype = torch.float64) -> Any:
    """The program's output for a batch of one: what depends on the input in ``dtype``, the rest as the model does it.

    Conversions of values that depend on the input to another floating dtype are left out.
    """
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    known: dict[FxNode, Any] = {}
    varying = _written(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if specs[node.name].kind == InputKind.USER_INPUT:
                known[node] = x.to(dtype).clone()  # forward may write into it
                varying.add(node)
            else:
                value = _constant(program, specs[node.name].target)
                known[node] = _in(dtype, value) if node in varying else value
        elif node.op == "get_attr":
            known[node] = getattr(program.graph_module, str(node.target))
        elif node.op == "call_function":
            depends = node in varying or any(parent in varying for parent in node.all_input_nodes)
            if depends:
                varying.add(node)
            known[node] = _call(node, known, dtype if depends else None)
        elif node.op == "output":
            outputs = zip(program.graph_signature.output_specs, tree_leaves(node.args[0]), strict=True)
            leaf = next(leaf for spec, leaf in outputs if spec.kind == OutputKind.USER_OUTPUT)
            return known[leaf].double()
    return None


def _written(program: ExportedProgram) -> set[FxNode]:
    """Values into which forward writes, and those whose memory they share: a copy in ``dtype`` would lose it."""
    found: set[FxNode] = set()
    for node in program.graph.nodes:
        for value in _shared(node, written=True):
            while value not in found:
                found.add(value)
                value = next(iter(_shared(value, written=False)), value)
    return found


def _shared(node: FxNode, written: bool) -> list[FxNode]:
    """The arguments into which an op writes, or whose memory its result shares."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    named = {a.name: v for a, v in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    marked = [a.name for a in arguments if a.alias_info is not None and (a.alias_info.is_write or not written)]
    return [value for name in marked if isinstance(value := named.get(name), FxNode)]


def _in(dtype: torch.dtype, value: Any) -> Any:
    """A floating tensor, complex or not, in this precision; anything else as it is."""
    if isinstance(value, Tensor) and value.is_complex():
        return value.to(dtype.to_complex())
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _constant(program: ExportedProgram, name: Any) -> Any:
    value = program.state_dict.get(name)
    value = program.constants.get(name) if value is None else value
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _call(node: FxNode, known: dict[FxNode, Any], dtype: torch.dtype | None) -> Any:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError("a higher-order operator")

    def argument(a: Any) -> Any:
        value = known[a] if isinstance(a, FxNode) else a
        if dtype and isinstance(value, Tensor):
            return _in(dtype, value)
        if dtype and isinstance(value, torch.dtype) and (value.is_floating_point or value.is_complex):
            return dtype if value.is_floating_point else dtype.to_complex()
        return torch.device("cpu") if isinstance(value, torch.device) else value

    args, kwargs = tree_map(argument, (node.args, node.kwargs))
    if "rms_norm" in str(node.target) and (len(args) < 4 or args[3] is None) and kwargs.get("eps") is None:
        kwargs = {**kwargs, "eps": torch.finfo(tree_leaves(node.meta["val"])[0].dtype).eps}  # None: the dtype's own
        args = args[:3]
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return tree_map(lambda v: _in(dtype, v) if dtype else v, result)
