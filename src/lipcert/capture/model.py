"""What counts as a model and as an example: wrappers taken off, things without fixed real numbers refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from lipcert.capture.call import leaves_of, listed, matching
from lipcert.capture.function import FunctionModule
from lipcert.errors import CaptureError, InputError

#: Entries of a sparse parameter as a dense one.
DENSE = 1 << 27
#: Dtypes in which PyTorch's own layers run; parameters of any other floating type are converted to float32 first.
RUNNABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: A name or the number of an output.
Output = str | int | None


def as_module(model: Any) -> nn.Module:
    """The module behind ``model``: an exported program's, a function's, or what DataParallel and torch.compile wrap.

    Raises:
        InputError: no module, TorchScript, or parameters that hold no numbers yet (lazy, on the meta device).
        CaptureError: parameters that are not plain real tensors (complex, sparse, quantised, nested).
    """
    module: Any = model.module() if isinstance(model, ExportedProgram) else model
    if callable(module) and not isinstance(module, (nn.Module, type, torch.jit.ScriptFunction)):
        module = FunctionModule(module)
    if not isinstance(module, nn.Module):
        weights = isinstance(module, Mapping) and any(isinstance(v, Tensor) for v in module.values())
        raise InputError(
            "model must be a torch.nn.Module, a function of tensors or a torch.export.ExportedProgram, not "
            + (
                f"the class {model.__name__}: pass an object of it."
                if isinstance(model, type)
                else f"{type(model).__name__}."
            )
            + (" It is TorchScript: pass the function it was made from." * isinstance(model, torch.jit.ScriptFunction))
            + (" This one holds weights without the network: load them into the module and pass that." * weights)
        )
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or _compiled(module):
        module = module._orig_mod if _compiled(module) else module.module
    assert isinstance(module, nn.Module)
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            place = f"its part {path!r}" if path else "it"
            raise InputError(
                f"the model cannot be captured: {place} is TorchScript, which torch.export does not read. "
                "Pass the nn.Module it was scripted or traced from."
            )
        if ".quantized" in type(part).__module__ and type(part).__module__.startswith("torch."):
            raise CaptureError(
                f"{path or 'the model'} ({type(part).__name__}) is quantised: it rounds what passes through it, so it "
                "has no Lipschitz constant. Pass the float model it was made from."
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        require_numbers(name, tensor)
    return module


def _compiled(module: nn.Module) -> bool:
    """Whether this is the wrapper that torch.compile puts around a module."""
    return isinstance(module, torch._dynamo.OptimizedModule) if hasattr(module, "_orig_mod") else False


def has_own_arithmetic(tensor: Tensor) -> bool:
    """Whether a subclass of Tensor computes in its own way (masked, distributed, quantised)."""
    return type(tensor).__torch_dispatch__ != Tensor.__torch_dispatch__


def require_numbers(name: str, tensor: Tensor) -> None:
    """Raise a named error unless a parameter is a plain dense real tensor that holds numbers."""
    if is_lazy(tensor):
        raise InputError(
            f"parameter {name!r} is lazy and has no shape yet; run the model once on an example, then train or load it."
        )
    if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
        raise InputError(
            f"{name!r} is on the meta device and holds no numbers; build the model on a real device (or call "
            "to_empty) and load its weights."
        )
    if has_own_arithmetic(tensor):
        raise CaptureError(
            f"{name!r} is a {type(tensor).__name__}, a tensor with arithmetic of its own; only plain tensors are "
            "supported. Replace it by the dense tensor it stands for."
        )
    if tensor.is_quantized:
        raise CaptureError(
            f"{name!r} is quantised ({tensor.dtype}); a bound is about a real-valued function. Pass the float model, "
            "or dequantise its weights."
        )
    if tensor.is_nested:
        raise CaptureError(f"{name!r} is nested; only dense tensors are supported. Pad it.")
    if tensor.layout != torch.strided and tensor.numel() > DENSE:
        raise CaptureError(
            f"{name!r} is sparse ({tensor.layout}) and has {tensor.numel()} entries as a dense tensor, which it is "
            f"here; at most {DENSE} are taken."
        )


def picked(result: Any, output: Output) -> Tensor:
    """The one tensor that a model returns, or that called ``output`` among several.

    Raises:
        InputError: there is none of this name, or it is no tensor.
    """
    if output is None:
        return one_tensor(result)
    leaves = leaves_of(result)
    found = [] if isinstance(result, Tensor) else matching(str(output), list(leaves))
    if not found:
        raise InputError(
            f"output={output!r}: the model returns "
            + (f"no such output but {listed(list(leaves))}." if "" not in leaves else f"one {type(result).__name__}.")
        )
    return one_tensor({name: leaves[name] for name in found})


@contextmanager
def private(module: nn.Module) -> Iterator[nn.Module]:
    """A copy to work on, so that attributes which ``forward`` writes (caches, counters) stay as they were.

    A module that cannot be copied is used itself; the attributes of its submodules are put back afterwards.
    """
    try:
        yielded = copy.deepcopy(module)
    except Exception:  # locks, handles, non-leaf tensors: anything can refuse to be copied
        yielded = module
    with nullcontext() if yielded is not module else _attributes_kept(module):
        yield _interpreted(yielded)


@contextmanager
def for_tracing(module: nn.Module, example: Tensor) -> Iterator[nn.Module]:
    """A copy for a trace, with the module's own tensors: what ``forward`` notes while it is traced stays in the copy.

    Otherwise a first call that does more than the later ones, as layers do that initialise themselves, would be over
    before the module is first run, and nothing would be left that contradicts the trace. A module that cannot be
    copied has its first call here.
    """
    tensors: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        traced = copy.deepcopy(module, tensors)
    except Exception:  # as in ``private``
        traced = module
        with suppress(Exception):  # the trace will say why it does not run
            module(example.clone())
    with nullcontext() if traced is not module else _attributes_kept(module):
        yield traced


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """The attributes of all submodules are put back at the end."""
    kept = []
    for part in module.modules():
        tables = {k: dict(v) for k, v in part.__dict__.items() if k in ("_parameters", "_buffers", "_modules")}
        kept.append((part, dict(part.__dict__), tables))
    try:
        yield
    finally:
        for part, attributes, tables in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, table in tables.items():
                part.__dict__[name].clear()
                part.__dict__[name].update(table)


def _interpreted(module: nn.Module) -> nn.Module:
    """The module with compiled parts replaced by what they compile, and floats that no layer runs in by float32."""
    for part in list(module.modules()):
        part._compiled_call_impl = None  # what module.compile() sets
        for name, child in part._modules.items():
            while child is not None and _compiled(child):
                child = part._modules[name] = child._orig_mod  # type: ignore[assignment]
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.is_floating_point() and t.dtype not in RUNNABLE for t in tensors):
        try:
            module = copy.deepcopy(module).to(torch.float32)  # float8 and smaller: exact
        except Exception as problem:
            kinds = ", ".join(sorted({str(t.dtype) for t in tensors if t.dtype not in RUNNABLE}))
            raise CaptureError(f"parameters of type {kinds} cannot be read as numbers: {problem}") from problem
    return module


def check_example(example: Any, module: nn.Module) -> Tensor:
    """The example in the model's dtype and on its device.

    Raises:
        InputError: not one dense real floating tensor with a batch dimension and finite entries.
    """
    if isinstance(example, np.ndarray) and example.dtype.kind in "fiu" and example.dtype.itemsize <= 8:
        example = torch.from_numpy(np.array(example, dtype=example.dtype.newbyteorder("="), order="C"))
    if not isinstance(example, Tensor):
        raise InputError(
            f"example_input must be a tensor with a leading batch dimension, not {type(example).__name__}; for a model "
            "of several inputs a tuple of its arguments, or a dict of those by name."
        )
    if example.is_complex() or not example.is_floating_point():
        raise InputError(
            f"example_input has dtype {example.dtype}; a Lipschitz constant needs a real floating-point input. Token "
            "ids are looked up in an embedding: name that submodule, wrt='embedding', and its output is the input."
        )
    if example.device.type == "meta" or type(example).__name__ == "FakeTensor":
        raise InputError("example_input is on the meta device and holds no numbers; give a tensor on a real device.")
    if has_own_arithmetic(example) or example.is_nested or example.layout != torch.strided:
        raise InputError("example_input must be a plain dense tensor; call .to_dense() (or pad a nested one) first.")
    if example.dim() < 2 or example.numel() == 0:
        raise InputError(
            f"example_input has shape {tuple(example.shape)}; it needs a leading batch dimension and no empty axis "
            "(one example of shape (n,) is example.unsqueeze(0))."
        )
    example = example.detach()
    if example.is_inference():
        example = example.clone()  # outside inference mode now: a tensor that autograd may save
    if example.dtype not in RUNNABLE:
        example = example.to(torch.float32)
    if not bool(torch.isfinite(example).all()):
        raise InputError("example_input holds NaN or infinity.")
    reference = next((t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()), None)
    if reference is not None:
        example = example.to(dtype=reference.dtype, device=reference.device)
    return example


def one_tensor(output: Any) -> Tensor:
    """The tensor a model returns, alone or inside a tuple, dict, dataclass or named tuple beside nothing but None.

    Raises:
        InputError: no tensor, or several.
    """
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if len(leaves) == 1 and isinstance(leaves[0], Tensor):
        return leaves[0]
    tensors = sum(isinstance(leaf, Tensor) for leaf in leaves)
    if tensors > 1:
        raise several_outputs(output, tensors)
    what = f"the model does not return a tensor but a {type(output).__name__}"
    if leaves and leaves[0] is not output:
        what += f" of {', '.join(sorted({'Tensor' if isinstance(t, Tensor) else type(t).__name__ for t in leaves}))}"
    if tensors:
        name = next(name for name, leaf in leaves_of(output).items() if isinstance(leaf, Tensor))
        raise InputError(f"{what}; give the name of the tensor as output={name!r}.")
    raise InputError(f"{what}; wrap it in a module that returns one tensor (torch.cat joins several).")


def several_outputs(output: Any, count: int) -> InputError:
    """The error for a model whose ``count`` outputs are in these containers."""
    names = [name for name, leaf in leaves_of(output).items() if leaf is not None]
    return InputError(
        f"the model returns {count} outputs ({', '.join(names[:8])}{', …' * (len(names) > 8)}): give the name or "
        "number of one as output=, or join them in one tensor (torch.cat)."
    )
