"""Rescale neurons so that the product of layer norms is least, the function being the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipcert.api.constants import bound
from lipcert.errors import InputError
from lipcert.network.source import Values
from lipcert.training.binding import bind
from lipcert.training.change import Change
from lipcert.training.live import Live, in_eval_mode
from lipcert.training.searches import AutoLipSearch

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: f(s x) = s f(x) for s > 0, channel by channel.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
#: The same of the channels of a convolution.
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
#: Steps of Adam on the logarithms of the scales, its first rate, power steps before.
_STEPS, _RATE, _SETTLE = 200, 0.07, 30


@dataclass(frozen=True)
class _Joint:
    """Channels between two linear layers: scaled by s behind the first, by 1/s in front of the second.

    Attributes:
        channels: how many.
        given: names of what is multiplied by s, channels first: weight and bias of the layer, or of its batch norm.
        taken: name of the weight whose axis 1 is multiplied by 1/s.
        each: entries of that axis that belong to one channel.
        rectified: whether a ReLU lies between.
    """

    channels: int
    given: tuple[str, ...]
    taken: str
    each: int
    rectified: bool


def rebalance_(model: nn.Module, example: Tensor) -> Change:
    """Rescale the neurons of a network with ReLUs so that AutoLip's product is as small as it gets.

    relu(s v) = s relu(v) for s > 0: a neuron's incoming weights and bias times s and its outgoing weights over s leave
    the function as it is, up to the rounding of the parameters, and change the norms of both layers. The product of
    norms is minimised over all s (after Kuang et al. 2026). Neurons that do nothing, with outgoing weights 0, or with
    incoming ones 0 before a ReLU and a bias ≤ 0, get weights 0 on both sides and count no more. LipSDP's bound does not
    depend on s.

    Args:
        model: an ``nn.Sequential`` (of Sequentials) of linear and convolutional layers, batch norms behind them, ReLU,
            LeakyReLU, PReLU, pools, Dropout and Flatten; other layers end a part. Changed in place unless the certified
            product would grow.
        example: floating tensor with a leading batch dimension of any size; only its shape matters.

    Returns:
        Bounds by AutoLip before and after, and how many neurons were dead.

    Raises:
        InputError: there is nothing to rescale.
    """
    live = Live.of(model, example, trained=False)
    joints = list(_joints(live.module))
    if not joints:
        raise InputError(
            "no two layers of this model have a homogeneous activation between them: rebalance_ works on an "
            "nn.Sequential of plain Linear and Conv layers with ReLU, LeakyReLU or PReLU between them."
        )
    changed = {name for joint in joints for name in (*joint.given, joint.taken)}
    if live.shared(changed):
        raise InputError("layers of this model share weights: they cannot be rescaled one by one.")
    before = bound(in_eval_mode(live.module), example, method="autolip")
    parameters = live.parameters()
    kept = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    with torch.no_grad(), _put_back(parameters, kept):
        removed = sum(_without_dead(joint, parameters) for joint in joints)
        scaled = _scaled(parameters, joints, _best_scales(live, joints))
        _require_same(live, kept, scaled)
        for name in changed:
            parameters[name].copy_(scaled[name])
    after = bound(in_eval_mode(live.module), example, method="autolip")
    if after.value < before.value:
        return Change(before, after, removed=removed)
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(kept[name])
    return Change(before, before)


@contextmanager
def _put_back(parameters: dict[str, Tensor], kept: dict[str, Tensor]) -> Iterator[None]:
    """Whatever goes wrong leaves the parameters as they were."""
    try:
        yield
    except BaseException:
        for name, tensor in parameters.items():
            tensor.copy_(kept[name])
        raise


def _require_same(live: Live, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Raise InputError unless both give the same outputs, at some points.

    Layers that are not applied along the axes that their kind suggests would not.
    """
    shape = live.network.in_shape
    points = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, new = (bind(live.network, given).forward(points) for given in (before, after))
    if not bool(torch.allclose(old, new, rtol=1e-7, atol=1e-9 * float(old.abs().max()))):
        raise InputError(
            "rescaled, this model is another function: its layers are not applied channel by channel in their order. "
            "Nothing was changed."
        )


def _best_scales(live: Live, joints: list[_Joint]) -> list[Tensor]:
    """Logarithms of the scales with the least product that gradient steps find."""
    search = AutoLipSearch(live.network)
    point = {n: v.double() for n, v in search.start(torch.Generator().manual_seed(0)).items()}
    parameters = {n: p.detach().cpu() for n, p in live.parameters().items()}
    with torch.enable_grad():
        logs = [torch.zeros(joint.channels, dtype=torch.float64, requires_grad=True) for joint in joints]
        optimiser = torch.optim.Adam(logs, lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
        for step in range(_SETTLE + _STEPS):
            given = {n: p.requires_grad_(True) for n, p in point.items()}
            layers = search.template.layers(Values(_scaled(parameters, joints, logs)))
            value = search.value(layers, given)
            found = torch.autograd.grad(value.log(), [*given.values(), *logs], allow_unused=True)
            point = {n: p.detach() for n, p in search.moved(point, dict(zip(given, found, strict=False))).items()}
            if step < _SETTLE:
                continue
            for log, gradient in zip(logs, found[len(given) :], strict=True):
                log.grad = gradient
            optimiser.step()
            schedule.step()
    return [log.detach() for log in logs]


def _scaled(parameters: dict[str, Tensor], joints: list[_Joint], logs: list[Tensor]) -> dict[str, Tensor]:
    """The parameters with every joint's scales in them, in float64 where they are scaled."""
    result = dict(parameters)
    for joint, log in zip(joints, logs, strict=True):
        scale = log.exp()
        for name in joint.given:
            whole = result[name].double()
            result[name] = whole * scale.to(whole.device).reshape(-1, *[1] * (whole.dim() - 1))
        whole = result[joint.taken].double()
        back = (1.0 / scale).repeat_interleave(joint.each).to(whole.device)
        result[joint.taken] = whole * back.reshape(1, -1, *[1] * (whole.dim() - 2))
    return result


def _without_dead(joint: _Joint, parameters: dict[str, Tensor]) -> int:
    """Zero the weights on both sides of neurons that do nothing; how many had some on one side."""
    taken = parameters[joint.taken]
    columns = taken.movedim(1, 0).reshape(joint.channels, -1)
    unread = ~columns.any(dim=1)
    incoming = parameters[joint.given[0]].reshape(joint.channels, -1)
    silent = ~incoming.any(dim=1)
    if len(joint.given) > 1:
        bias = parameters[joint.given[1]]
        silent &= bias <= 0 if joint.rectified else bias == 0
    found = (unread & (incoming != 0).any(dim=1)) | (silent & ~unread)
    for name in joint.given:
        parameters[name][unread] = 0.0
    columns[silent] = 0.0
    taken.copy_(columns.reshape(joint.channels * joint.each, *taken.movedim(1, 0).shape[1:]).movedim(0, 1))
    return int(found.sum())


@dataclass
class _Open:
    """A layer whose channels have met nothing but homogeneous functions so far."""

    layer: nn.Module
    owner: str
    bias: bool
    flat: bool = False
    between: bool = False
    rectified: bool = False

    def joint(self, path: str, second: nn.Module) -> _Joint | None:
        """With the next layer, if that reads each channel by weights of its own."""
        weight, after = self.layer.weight, second.weight
        assert isinstance(weight, Tensor)
        assert isinstance(after, Tensor)
        channels, width = len(weight), after.shape[1]
        dense = isinstance(second, nn.Linear)
        if getattr(second, "groups", 1) != 1 or width % channels or self.flat != (dense and self.convolves):
            return None
        if not self.flat and width != channels:
            return None
        given = (f"{self.owner}.weight", *((f"{self.owner}.bias",) if self.bias else ()))
        return _Joint(channels, given, f"{path}.weight", width // channels, self.rectified)

    @property
    def convolves(self) -> bool:
        """Whether the channels are axis 1 of several."""
        return not isinstance(self.layer, nn.Linear)


def _joints(model: nn.Module) -> Iterator[_Joint]:
    """Pairs of layers with nothing but homogeneous functions between them, in order."""
    leaves = list(_leaves(model))
    uses = Counter(id(part) for _, part in leaves)
    before: _Open | None = None
    for path, part in leaves:
        own = uses[id(part)] == 1 and not parametrize.is_parametrized(part)
        if isinstance(part, _LINEAR):
            joint = before.joint(path, part) if before is not None and own else None
            if joint is not None:
                yield joint
            before = _Open(part, path, part.bias is not None) if own else None
        elif before is None:
            continue
        elif isinstance(part, _NORMS) and not before.between and own and part.affine:
            before = _Open(before.layer, path, True, between=True)
        elif isinstance(part, nn.Flatten) and part.start_dim == 1 and part.end_dim == -1:
            before.flat = before.flat or before.convolves
        elif isinstance(part, _HOMOGENEOUS) or (isinstance(part, _POOLS) and before.convolves and not before.flat):
            before.between, before.rectified = True, before.rectified or isinstance(part, nn.ReLU)
        else:
            before = None


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers of a Sequential of Sequentials, in order of application; of anything else the module itself."""
    if type(model) is not nn.Sequential:
        yield prefix.removesuffix("."), model
        return
    for name, child in model._modules.items():
        if child is not None:
            yield from _leaves(child, f"{prefix}{name}.")
