"""A model in training, captured once: its network, and the parameters that it has at this moment."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.capture.model import as_module, one_tensor
from lipcert.capture.torch_export import capture
from lipcert.errors import CaptureError, InputError, MethodError, NumericsError
from lipcert.network.graph import Network, OpenNode
from lipcert.network.source import Values
from lipcert.problem import Problem
from lipcert.ranges.collapse import collapse
from lipcert.training.binding import bind, names

#: Floating types whose numbers are followed in float32.
_LOW = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Live:
    """What a model is, and where its numbers are.

    The network is that of the model in eval mode: a batch norm in training mode counts with its running statistics, a
    dropout not at all, a spectral norm with the vectors that it holds.

    Attributes:
        module: the user's, never changed; what DataParallel and torch.compile wrap.
        example: of one input, as given.
        network: as captured.
        used: names of the parameters and buffers that the network comes from.
        shapes: of these.
        layout: name and type of every part of the module.
    """

    module: nn.Module
    example: Tensor
    network: Network
    used: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    layout: tuple[tuple[str, type], ...]

    @classmethod
    def of(cls, model: Any, example: Tensor, trained: bool = True) -> Live:
        """Capture a model; one that is not ``trained`` may be frozen.

        Raises:
            InputError: it has no parameters, or all that matter are frozen, or it cannot be copied.
            CaptureError: as ``lipcert.bound``; or a parameter enters the network in a way that cannot be followed.
            NotLipschitzError: it has no constant on the whole space.
            MethodError: it has one only by what is known of values (nn.GRU).
        """
        if isinstance(model, ExportedProgram):
            raise InputError("an exported program is fixed: pass the nn.Module that is trained.")
        module = as_module(model)
        if trained and not any(True for _ in module.parameters()):
            raise InputError("the model has no parameters: there is nothing to train.")
        network = capture(in_eval_mode(module), example)
        if network.refusal is not None:
            network = _without_open(network)
        live = cls(module, example, network, tuple(sorted(names(network))), {}, _layout(module))
        found = live._tensors()
        live = cls(module, example, network, live.used, {n: tuple(found[n].shape) for n in live.used}, live.layout)
        if trained:
            live.require_trainable(live.parameters())
        _require_followed(module, network, example)
        return live

    def parameters(self) -> dict[str, Tensor]:
        """The tensors of ``used`` as the module has them now, by name.

        Raises:
            InputError: the module has other layers or shapes than when it was captured.
        """
        if _layout(self.module) != self.layout:
            raise InputError(
                "the model has other layers than when it was captured: make a new regulariser (or loss) of the changed "
                "model, and load the optimiser's state into a new optimiser if need be."
            )
        found = self._tensors()
        for name, shape in self.shapes.items():
            if tuple(found[name].shape) != shape:
                raise InputError(
                    f"{name!r} has shape {tuple(found[name].shape)}, and had {shape} when the model was captured: make "
                    "a new regulariser (or loss) of the changed model."
                )
        return {name: found[name] for name in self.used}

    def values(self, parameters: Mapping[str, Tensor]) -> Values:
        """For bound maps, in float32 (float64 if all parameters are that) on the model's device.

        Raises:
            InputError: the parameters lie on several devices.
        """
        floating = [p for p in parameters.values() if p.is_floating_point()]
        devices = {p.device for p in floating}
        if len(devices) > 1:
            raise InputError(
                f"the model's parameters lie on several devices ({', '.join(map(str, devices))}); use one."
            )
        low = any(p.dtype in _LOW for p in floating)
        return Values(parameters, torch.float32 if low else torch.float64, (devices or {torch.device("cpu")}).pop())

    def shared(self, names: Collection[str]) -> bool:
        """Whether a parameter of these has another name that is not among them, or two that are."""
        found = self._tensors()
        count = Counter(id(tensor) for tensor in found.values())
        return any(count[id(found[name])] > 1 for name in names)

    def require_trainable(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise InputError if no parameter that the network comes from has a gradient."""
        if not any(p.requires_grad for p in parameters.values()):
            raise InputError(
                "every parameter that the model's Lipschitz constant depends on is frozen (requires_grad is False): "
                "there is nothing to train."
            )

    def require_finite(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise NumericsError that names the parameters that hold NaN or infinity, if any do."""
        wrong = [n for n, p in parameters.items() if p.is_floating_point() and not bool(torch.isfinite(p).all())]
        if wrong:
            raise NumericsError(
                f"{', '.join(map(repr, wrong))} hold NaN or infinity: training has diverged before this step. Go back "
                "to a checkpoint and take a smaller learning rate."
            )

    def explain(self, parameters: Mapping[str, Tensor]) -> NumericsError:
        """What is wrong where the value for these parameters is not finite; raises where it is the parameters."""
        self.require_finite(parameters)
        return NumericsError(
            "the Lipschitz estimate is not finite although all parameters are: their product overflows. Start from "
            "smaller weights."
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Those of the module as it is now, ``used`` among them."""
        found = _named(self.module)
        missing = [name for name in self.used if name not in found]
        if missing:
            raise InputError(
                f"the model no longer has {', '.join(map(repr, missing))}: make a new regulariser (or loss) of the "
                "changed model."
            )
        return found


def _without_open(network: Network) -> Network:
    """The network with expressions of one variable as one activation each, which leaves no open node.

    Raises:
        NotLipschitzError: it has no constant on the whole space.
        MethodError: it has one only by what is known of values, which is not followed.
    """
    found = collapse(network)
    if found.refusal is not None:
        Problem(found)  # raises where there is no constant
        node = next(node for node in found.nodes if isinstance(node, OpenNode))
        raise MethodError(
            f"{node.name}{f' at {node.where}' if node.where else ''} has a constant only because its arguments keep to "
            "known ranges, and these are not followed through training. lipcert.bound bounds the model."
        )
    return found


def in_eval_mode(module: nn.Module) -> nn.Module:
    """A copy in eval mode.

    Raises:
        InputError: the module cannot be copied.
    """
    try:
        return copy.deepcopy(module).eval()
    except Exception as problem:
        raise InputError(
            f"the model cannot be copied ({type(problem).__name__}: {str(problem)[:200]}): keep no tensors that were "
            "computed with gradients in its attributes (torch.nn.utils.weight_norm does; take that of "
            "torch.nn.utils.parametrizations), no locks and no open files."
        ) from problem


def _layout(module: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(part)) for name, part in module.named_modules())


def _require_followed(module: nn.Module, network: Network, example: Tensor) -> None:
    """Raise CaptureError unless the network with other parameters is the model with these, at some points.

    It is not where forward reads a parameter as a plain number, or decides by one what to do.
    """
    own = in_eval_mode(module).double()
    generator = torch.Generator().manual_seed(0)
    shape, device = example.shape[1:], next((p.device for p in own.parameters()), torch.device("cpu"))
    points = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    kept = {name: p.detach().clone() for name, p in own.named_parameters()}

    def differs(moved: Mapping[str, Tensor]) -> bool:
        with torch.no_grad():
            for name, p in own.named_parameters():
                p.copy_(moved.get(name, kept[name]))
            expected = one_tensor(own(points.to(device))).cpu()
            found = bind(network, {n: t.cpu() for n, t in _named(own).items()}).forward(points[:, None])
            gap, size = (found.reshape(expected.shape) - expected).abs().max(), expected.abs().max()
        return bool(size.isfinite() & (gap > 1e-6 * size + 1e-300))

    moved = {n: p * (1.0 + 0.02 * torch.randn(p.shape, generator=generator).to(p)) for n, p in kept.items()}
    try:
        if not differs(moved):
            return
        wrong = [repr(name) for name in kept if differs({name: moved[name]})]
    except RuntimeError:  # a forward that insists on float32: what cannot be compared is taken as captured
        return
    raise CaptureError(
        f"with other values of {', '.join(wrong) or 'its parameters'} the model is another function than the captured "
        "network with these: forward reads a parameter as a plain number, or decides by one what to do, and that "
        "cannot be followed. Compute with tensors: no .item(), float() or `if` on a parameter."
    )


def _named(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, under the names that the module has without compiled parts."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}
