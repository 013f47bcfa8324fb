"""Scale a model so that its certified constant is at most a target."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.api.constants import bound
from lipcert.arguments import real
from lipcert.errors import InputError, NumericsError
from lipcert.network.graph import AffineNode, Network
from lipcert.training.binding import bind, names
from lipcert.training.change import Change
from lipcert.training.live import Live, in_eval_mode

#: Rounding of scaled parameters may move a bound by about this share; attempts to get below the target.
_SLACK, _ATTEMPTS = 1e-6, 4


def project_(model: nn.Module, example: Tensor, target: float, **options: Any) -> Change:
    """Multiply the last linear layer by a number ≤ 1, so that the certified constant is at most ``target``.

    The outputs are multiplied by that number: classes stay, margins and constant shrink alike. Call it as a projection
    between steps of training, or once at the end. A model that is below already stays as it is.

    Args:
        model: changed in place. Its output is that of a linear layer with a weight of its own.
        example: floating tensor with a leading batch dimension of any size; only its shape matters.
        target: > 0, in output units per input unit.
        options: for ``lipcert.bound``: ``method``, ``norm``, ``budget`` …

    Returns:
        Bounds before and after, both by that method, and the factor.

    Raises:
        InputError: a target that is none, or a model whose outputs cannot be scaled by its last layer.
        NumericsError: the bound of the scaled model stays above the target; the model is as before.
    """
    goal = real(target)
    if not 0.0 < goal < math.inf:
        raise InputError(f"target must be a number > 0, not {target!r}.")
    live = Live.of(model, example, trained=False)
    before = after = bound(in_eval_mode(live.module), example, **options)
    if before.value <= goal:
        return Change(before, after)
    scaled = _last_layer(live)
    kept = {name: tensor.detach().clone() for name, tensor in scaled.items()}
    factor = goal / before.value * (1.0 - _SLACK)
    for _ in range(_ATTEMPTS):
        with torch.no_grad():
            for name, tensor in scaled.items():
                tensor.copy_(kept[name].double() * factor)
        after = bound(in_eval_mode(live.module), example, **options)
        if after.value <= goal:
            return Change(before, after, factor)
        factor *= goal / after.value * (1.0 - _SLACK)
    with torch.no_grad():
        for name, tensor in scaled.items():
            tensor.copy_(kept[name])
    raise NumericsError(
        f"the bound of the scaled model stays at {after.value:.6g}, above the target {goal:g}; the model is as before. "
        "Ask for a method= whose value does not depend on the clock, such as 'autolip'."
    )


def _last_layer(live: Live) -> dict[str, Tensor]:
    """The parameters that, all multiplied by a number t, give t·f.

    Raises:
        InputError: there are none.
    """
    network = live.network
    node, position = network.nodes[-1], len(network.nodes) - 1
    while isinstance(node, AffineNode) and len(node.parents) == 1 and node.offset is None and not _made_of(node):
        position = node.parents[0]
        node = network.nodes[position]
    used = _made_of(node) if isinstance(node, AffineNode) else frozenset()
    others = Network(tuple(n for k, n in enumerate(network.nodes) if k != position))
    parameters = live.parameters()
    own: dict[str, Tensor] = {n: p for n, p in parameters.items() if n in used and isinstance(p, nn.Parameter)}
    if not own or used & names(others) or live.shared(own) or not _scales(network, parameters, own):
        raise InputError(
            f"the model ends in {node.name}{f' at {node.where}' if node.where else ''}, which is no linear layer whose "
            "weight and bias scale the outputs and serve nowhere else: end the model in a plain nn.Linear or nn.Conv."
        )
    return own


def _made_of(node: AffineNode) -> frozenset[str]:
    return names(Network((node,)))


def _scales(network: Network, parameters: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Whether half the parameters give half the outputs, at some points."""
    points = torch.randn(3, *network.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        whole = bind(network, parameters).forward(points)
        half = bind(network, {n: p * 0.5 if n in own else p for n, p in parameters.items()}).forward(points)
    return bool(torch.allclose(half, 0.5 * whole, rtol=1e-9, atol=1e-12 * float(whole.abs().max())))
