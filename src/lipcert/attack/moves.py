"""Activation-pattern moves: from a good point, cross one neuron's hyperplane and keep what improves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.attack.jacobian import SearchNetwork
from lipcert.attack.norms import dual
from lipcert.attack.pushforward import Pair, push
from lipcert.attack.starts import Region
from lipcert.network.graph import ActivationNode, Node

#: Candidates tried together, at most.
_BATCH = 64
#: How far beyond the hyperplane to go, relative to the distance to it.
_BEYOND = (1e-3, 0.3)
#: An improvement below this relative size does not count.
_WORTH = 1e-5


def climb(
    search: SearchNetwork,
    region: Region,
    x: Tensor,
    v: Tensor,
    value: float,
    expired: Callable[[], bool],
    report: Callable[[Tensor, Tensor, Tensor], None],
) -> float:
    """Hill-climb over activation patterns from one point x of shape (1, *in_shape); the best value found.

    With w dual to Jv, neuron j contributes a_j φ'(z_j) t_j to wᵀJv (t_j its pre-activation's tangent, a_j the
    adjoint of its output), so crossing its kink changes the gain by a_j t_j · (change of slope) to first
    order. The neurons of greatest promised gain are tried first: x' = x − (1 + ε)(z_j − kink) ∇z_j/‖∇z_j‖²,
    projected to the domain.
    """
    batch = max(1, min(_BATCH, 20_000_000 // max(1, search.work)))
    while not expired():
        crossings = _crossings(search, x, v)
        improved = False
        for block in crossings[: 8 * batch].split(batch):
            if expired() or not len(block):
                break
            candidates = region.project(_crossed(search, x, block))
            candidates = candidates[torch.isfinite(candidates).reshape(len(candidates), -1).all(1)]
            if not len(candidates):
                continue
            values, directions = search.gains(candidates, v.expand(candidates.shape))
            place = int(values.argmax())
            if float(values[place]) > value * (1 + _WORTH):
                x, v = candidates[place : place + 1], directions[place : place + 1]
                value, improved = float(values[place]), True
                report(x, values[place : place + 1], v)
                break
        if not improved:
            break
    return value


def _crossings(search: SearchNetwork, x: Tensor, v: Tensor) -> Tensor:
    """(k, 3) rows (node, neuron, kink) of positive promised gain, the greatest promise first."""
    states: list[tuple[int, ActivationNode, Pair, Tensor]] = []

    def keep(position: int, node: Node, inputs: list[Pair], pair: Pair) -> Pair:
        if isinstance(node, ActivationNode) and node.function.kinks:
            handle = pair[1].detach().requires_grad_(True) if not pair[1].requires_grad else pair[1]
            states.append((position, node, inputs[0], handle))
            return pair[0], handle
        return pair

    with torch.enable_grad():
        _, image = push(search.network, x.detach(), (v * search.mask).requires_grad_(True), hook=keep)
        weight = dual(image.detach().reshape(1, -1), search.norm[1])
        if not states or not image.requires_grad:
            return torch.zeros(0, 3, dtype=torch.int64)
        adjoints = torch.autograd.grad(image.reshape(1, -1), [s[3] for s in states], weight, allow_unused=True)
    rows, promises = [], []
    for (position, node, (z, t), _), adjoint in zip(states, adjoints, strict=True):
        if adjoint is None:
            continue
        for number, kink in enumerate(node.function.kinks):
            side = torch.where(z > kink.position, -1.0, 1.0).to(z)
            promise = (side * kink.jump * t * adjoint).detach().reshape(-1)
            places = torch.nonzero(promise > 0)[:, 0]
            promises.append(promise[places])
            rows.append(torch.stack([torch.full_like(places, position), places, torch.full_like(places, number)], 1))
    if not rows:
        return torch.zeros(0, 3, dtype=torch.int64)
    return torch.cat(rows)[torch.cat(promises).argsort(descending=True)]


def _crossed(search: SearchNetwork, x: Tensor, block: Tensor) -> Tensor:
    """Points just beyond, and well beyond, the kinks of ``block``: (len(block) · len(_BEYOND), *in_shape)."""
    count = len(block)
    distance = torch.zeros(count).to(x)
    nodes = search.network.nodes
    readers: dict[int, list[int]] = {}
    for position in block[:, 0].unique().tolist():
        readers.setdefault(nodes[position].parents[0], []).append(position)
    with torch.enable_grad():
        points = x.detach().expand(count, *x.shape[1:]).clone().requires_grad_(True)
        total = points.sum() * 0.0
        for parent, z in search.network.values(points):
            for position in readers.get(parent, []):
                node = nodes[position]
                assert isinstance(node, ActivationNode)
                rows = torch.nonzero(block[:, 0] == position)[:, 0]
                entries = z.reshape(count, -1)[rows, block[rows, 1]]
                total = total + entries.sum()
                kinks = [torch.as_tensor(k.position).to(z).expand(z.shape[1:]).reshape(-1) for k in node.function.kinks]
                distance[rows] = entries.detach() - torch.stack(kinks)[block[rows, 2], block[rows, 1]]
        (gradient,) = torch.autograd.grad(total, points)
    gradient = gradient * search.mask
    square = gradient.square().reshape(count, -1).sum(1)
    step = (distance / square).reshape(-1, *([1] * (x.dim() - 1))) * gradient
    return torch.cat([x - (1 + beyond) * step for beyond in _BEYOND])
