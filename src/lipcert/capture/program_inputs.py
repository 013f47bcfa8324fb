"""The inputs of an exported program: at the values that it was exported with, or at others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from lipcert.capture.adapter import Wrt, adapted
from lipcert.capture.call import Call, listed, matching
from lipcert.capture.declared import Declared
from lipcert.capture.model import Output, as_module
from lipcert.errors import CaptureError, InputError, named
from lipcert.numerics.process_state import ordinary


@ordinary(dtype=None)
def with_values(
    program: ExportedProgram, fixed: Mapping[str, Any], wrt: Wrt = None, output: Output = None,
    example: Tensor | None = None,
) -> tuple[nn.Module | ExportedProgram, Any]:  # fmt: skip
    """A program as a module of the inputs that vary, the others fixed, and its example.

    What is bounded is the program called with these values: it checks their shapes as it would those of any caller.

    Args:
        program: with the inputs that it was exported with.
        fixed: name → value: an array in the shape that the program takes, rounded to its type, or a number for all
            entries. What has no value here keeps that of the export.
        wrt: as for ``lipcert.bound``; None: all inputs of floating-point numbers that have axes and no value.
        output: as for ``lipcert.bound``.
        example: of the one input that varies, with a batch dimension of 1; None takes that of the export.

    Returns:
        As ``adapted``.

    Raises:
        InputError: no such input, none left to vary, a value that does not fit, no inputs in the program.
        CaptureError: the program is damaged.
    """
    with named(CaptureError, "reading the inputs of the program"):
        if not program.example_inputs or not any(program.example_inputs):
            raise InputError("the .pt2 file carries no example inputs, so those that do not vary have no values.")
        args, kwargs = program.example_inputs
        module = as_module(program)
        call = Call.of(module, Call(tuple(args), dict(kwargs)))
        leaves = call.leaves(module)
        declared = _declared(program, leaves)
        values: dict[str, Tensor] = {}
        for wanted, value in fixed.items():
            name = _input(wanted, leaves)
            if name in values:
                raise InputError(f"the input {name!r:.80} of the .pt2 file is given two values.")
            values[name] = declared[name].filled(value)
        varied = _varied(wrt, leaves, values)
        if example is not None:
            if len(varied) != 1:
                raise InputError(
                    f"one input shape is given, and {len(varied)} inputs of the .pt2 file vary ({listed(varied)}): "
                    "name the one that varies, wrt=…, on the command line --wrt."
                )
            values[varied[0]] = example.to(leaves[varied[0]].dtype)
        else:
            values |= _first_examples(leaves, declared, varied, values)
        names = iter(leaves)

        def changed(_: str, leaf: Any) -> Any:
            return values.get(next(names), leaf)

        return adapted(program, call.mapped(changed), varied if wrt is None else wrt, output)


def _declared(program: ExportedProgram, leaves: Mapping[str, Any]) -> dict[str, Declared]:
    """What the program takes for its tensors: the shape of its example, an axis free that it takes of any length."""
    shapes: dict[int, Any] = {}
    found = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names, given = program.graph_signature.user_inputs, tree_leaves(program.example_inputs)
    if len(names) == len(given):
        for name, leaf in zip(names, given, strict=True):
            shape = getattr(found.get(name) if isinstance(name, str) else None, "shape", None)
            if isinstance(leaf, Tensor) and shape is not None and len(shape) == leaf.dim():
                shapes[id(leaf)] = shape if shapes.get(id(leaf), shape) == shape else leaf.shape
    return {
        name: Declared(
            name, leaf.dtype,
            tuple(n if isinstance(n, int) else None for n in shapes.get(id(leaf), leaf.shape)), kind=".pt2",
        )
        for name, leaf in leaves.items() if isinstance(leaf, Tensor)
    }  # fmt: skip


def _input(wanted: str, leaves: Mapping[str, Any]) -> str:
    """The one tensor that a name means."""
    found = matching(wanted, list(leaves))
    if len(found) > 1:
        raise InputError(f"the input {wanted!r:.80} of the .pt2 file holds {listed(found)}: give each its value.")
    if not found:
        tensors = [name for name, leaf in leaves.items() if isinstance(leaf, Tensor)]
        raise InputError(f"the .pt2 file has no input {wanted!r:.80}; it has {listed(tensors) or 'none'}.")
    (name,) = found
    if not isinstance(leaves[name], Tensor):
        raise InputError(
            f"the input {name!r:.80} of the .pt2 file is the constant {leaves[name]!r:.80} that it was exported with: "
            "export it with a tensor there to give it other values."
        )
    return name


def _varied(wrt: Wrt, leaves: Mapping[str, Any], values: Mapping[str, Tensor]) -> list[str]:
    """The inputs that vary; names of submodules are no inputs."""
    tensors = [name for name, leaf in leaves.items() if isinstance(leaf, Tensor)]
    if wrt is None:
        left = [n for n in tensors if n not in values and leaves[n].is_floating_point() and leaves[n].dim()]
        if not left:
            raise InputError(
                f"nothing varies: of {listed(tensors)} none is left that holds floating numbers and has an axis."
            )
        return left
    found = [one for name in ([wrt] if isinstance(wrt, str) else wrt) for one in matching(name, tensors)]
    both = next((name for name in found if name in values), None)
    if both is not None:
        raise InputError(f"the input {both!r:.80} of the .pt2 file has a value and cannot vary.")
    return found


def _first_examples(
    leaves: Mapping[str, Any], declared: Mapping[str, Declared], varied: list[str], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of a batch that the program was exported with: one example, unless a value of the export belongs to several."""

    def batched(name: str) -> bool:
        return (declared[name].shape or (1,))[0] is None and len(leaves[name]) > 1

    if any(batched(name) for name in declared if name not in varied and name not in values):
        return {}
    return {name: leaves[name][:1] for name in varied if batched(name)}
