"""Projected gradient descent on outputs over many domains at once: what is minimised, by which passes, how far."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lipcert.attack.geometry import Geometry
from lipcert.network.graph import Network
from lipcert.network.linear import Shape, size
from lipcert.network.parts import joined
from lipcert.network.transform import fuse
from lipcert.ranges.collapse import collapse

#: Scalars that one pass over a chunk may touch: on a CPU what its cache holds, elsewhere what its memory does.
_PASS = {"cpu": 1 << 23, "cuda": 1 << 28}
#: Rounding errors in units of the largest output: a difference below that decides nothing.
_NOISE = 64.0
#: Steps between two looks at which tasks have ended; the chunk shrinks when this share of it is left.
_LOOK, _LEFT = 3, 0.75


@dataclass(frozen=True, eq=False)
class Outputs:
    """f on flat batches, (B, n) → (B, m), with gradients.

    Attributes:
        call: the function.
        dtype, device: what it works in.
        chunk: rows for one pass.
    """

    call: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device
    chunk: int

    @classmethod
    def of(cls, model: Network | nn.Module, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> Outputs:
        """Of a captured network, or of a module in its present mode (a copy of it).

        Args:
            model: what is evaluated.
            shape: a network's ``in_shape``, with a leading 1; for modules too.
            dtype, device: of the search.
        """
        place = torch.device(device)
        if isinstance(model, Network):
            network = fuse(joined(collapse(model))).to(dtype, place)
            touched = sum(size(node.shape) for node in network.nodes)

            def call(x: Tensor) -> Tensor:
                return network.forward(x.reshape(len(x), *shape)).reshape(len(x), -1)
        else:
            module = copy.deepcopy(model).to(dtype=dtype, device=place).requires_grad_(False)
            touched = 8 * size(shape)

            def call(x: Tensor) -> Tensor:
                return module(x.reshape(len(x), *shape[1:])).reshape(len(x), -1)

        return cls(call, dtype, place, max(1, _PASS.get(place.type, 1 << 26) // max(1, touched)))

    def __call__(self, x: Tensor) -> Tensor:
        """f without gradients, chunk by chunk."""
        with torch.no_grad():
            return torch.cat([self.call(part) for part in x.to(self.device, self.dtype).split(self.chunk)])


class Objective(Protocol):
    """What is minimised: one number for each task, of the outputs (T, m) of ``tasks`` (T,)."""

    def __call__(self, out: Tensor, tasks: Tensor) -> Tensor:
        """(T,)."""


@dataclass(frozen=True, eq=False)
class Difference:
    """f_label − f_other, classes per task."""

    label: Tensor
    other: Tensor

    def __call__(self, out: Tensor, tasks: Tensor) -> Tensor:
        """(T,)."""
        ends = torch.stack([self.label[tasks], self.other[tasks]], 1)
        high, low = out.gather(1, ends).unbind(1)
        return high - low


@dataclass(frozen=True, eq=False)
class LeastDifference:
    """f_label − the largest other output."""

    label: Tensor

    def __call__(self, out: Tensor, tasks: Tensor) -> Tensor:
        """(T,)."""
        own = self.label[tasks][:, None]
        return out.gather(1, own)[:, 0] - out.scatter(1, own, -torch.inf).amax(1)


@dataclass(frozen=True, eq=False)
class Combination:
    """c·f, one row c of a matrix per task."""

    matrix: Tensor
    row: Tensor

    def __call__(self, out: Tensor, tasks: Tensor) -> Tensor:
        """(T,)."""
        return (out * self.matrix[self.row[tasks]]).sum(1)


@dataclass(eq=False)
class Descent:
    """The best points found so far for a list of tasks, each an objective on a domain.

    Attributes:
        outputs: f.
        geometry: the domains.
        domain: (T,), which domain a task is on.
        objective: what is minimised.
        leaving: a task ends when another, or itself, is below 0 on its domain.
        best: (T,), the least values found; inf where f gave no number.
        place: (T, n), where, in units.
        broken: (B,), domains with a value below 0 by more than float noise.
    """

    outputs: Outputs
    geometry: Geometry
    domain: Tensor
    objective: Objective
    leaving: bool
    best: Tensor = field(init=False)
    place: Tensor = field(init=False)
    broken: Tensor = field(init=False)

    def __post_init__(self) -> None:
        origin = self.geometry.origin
        self.best = torch.full((len(self.domain),), torch.inf, dtype=origin.dtype, device=origin.device)
        self.place = self.geometry.home[self.domain]
        self.broken = torch.zeros(len(origin), dtype=torch.bool, device=origin.device)

    def open(self) -> Tensor:
        """The tasks that have not ended."""
        if not self.leaving:
            return torch.arange(len(self.domain), device=self.domain.device)
        return (~self.broken[self.domain]).nonzero()[:, 0]

    def run(self, tasks: Tensor, starts: Tensor, steps: int, first: float, last: float) -> None:
        """Steps of lengths that fall geometrically from ``first`` to ``last`` units, from ``starts`` (T', n)."""
        for part, start in zip(tasks.split(self.outputs.chunk), starts.split(self.outputs.chunk), strict=True):
            if len(part):
                self._run(part, start, steps, first, last)

    def _run(self, tasks: Tensor, u: Tensor, steps: int, first: float, last: float) -> None:
        here = self.geometry.at(self.domain[tasks])
        ratio = (last / first) ** (1.0 / max(1, steps - 1))
        for number in range(steps + 1):
            gradient = self._look(tasks, here, u, number < steps)
            if gradient is None:
                return
            if self.leaving and number % _LOOK == 0:
                left = ~self.broken[self.domain[tasks]]
                if float(left.double().mean()) <= _LEFT:
                    tasks, here, u, gradient = tasks[left], here.at(left), u[left], gradient[left]
                    if not len(tasks):
                        return
            with torch.no_grad():
                u = here.step(u, gradient, first * ratio**number)

    def _look(self, tasks: Tensor, here: Geometry, u: Tensor, on: bool) -> Tensor | None:
        """Keep what is better at u; the gradient there, None at the end."""
        x = here.points(u).requires_grad_(on)
        with torch.set_grad_enabled(on):
            out = self.outputs.call(x)
            values = self.objective(out, tasks)
        found = values.detach()
        better = found < self.best[tasks]
        self.best[tasks] = torch.where(better, found, self.best[tasks])
        self.place[tasks] = torch.where(better[:, None], u, self.place[tasks])
        noise = _NOISE * torch.finfo(found.dtype).eps * out.detach().abs().amax(1)
        self.broken[self.domain[tasks[found < -noise]]] = True
        if not on or not values.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(values.sum(), x)
        return torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
