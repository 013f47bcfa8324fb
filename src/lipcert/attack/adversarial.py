"""The adversarial attack: low outputs, and changes of class, on many small domains at once; what it claims is proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.attack.descent import Combination, Descent, Difference, Objective, Outputs
from lipcert.attack.geometry import Bounded, Geometry
from lipcert.attack.settle_class import counter_examples
from lipcert.certificates.counter_example import CounterExample
from lipcert.domain import exactly
from lipcert.errors import InputError
from lipcert.network.graph import Network
from lipcert.network.linear import size

#: The first look at every task: steps, and their first and last lengths in units of the domain. A step of 2 radii jumps
#: to where the gradient points on the surface, which is where the least value of a nearly linear function is.
_FIRST = (10, 2.0, 0.05)
#: Later rounds, from random points: which tasks (those whose best value is below this share of what the descent has
#: gained so far), steps, and lengths.
_LATER = ((0.5, 10, 2.0, 0.05), (0.25, 20, 2.0, 0.02), (0.25, 40, 0.5, 0.01))
#: The last round of each repetition goes on from the best point.
_LAST = (0.5, 15, 0.2, 0.003)
#: Domains less than this part of a centre's size are lost in float32, as is what is beyond its range.
_RESOLUTION, _RANGE = 2.0**-10, 1e15


@dataclass(frozen=True, eq=False)
class Attack:
    """What the search found for pairs of an example and a wrong class; margins and points are the search's own.

    Attributes:
        example, other: (T,), the pairs.
        margins: (T,) float64, the least f_label − f_other found, as the search's arithmetic says; inf where it gave no
            number. Of an example that is broken by one class the other pairs may not have been looked at further.
        points: (T, *shape) float64, where; in the domain up to the search's rounding.
        broken: one per example, a proved counter-example or None.
    """

    example: Tensor
    other: Tensor
    margins: Tensor
    points: Tensor
    broken: tuple[CounterExample | None, ...]

    @property
    def undecided(self) -> Tensor:
        """Indices of the pairs of examples without a counter-example."""
        open_ = torch.tensor([c is None for c in self.broken], dtype=torch.bool)
        return open_[self.example].nonzero()[:, 0]


def attack(
    network: Network,
    domains: Sequence[Bounded],
    labels: Tensor,
    classes: Tensor | None = None,
    effort: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    module: nn.Module | None = None,
    thorough: bool = False,
) -> Attack:
    """Look for points of each domain where another class than the label's is at least as high.

    Targeted projected gradient descent on f_label − f_k for all pairs at once. Nothing that is claimed
    (``Attack.broken``) rests on the search: see :func:`lipcert.certificates.counter_example.counter_example`.

    Args:
        network: the model as captured.
        domains: B balls of one p, balls within boxes, or boxes, of one example's shape each.
        labels: (B,) classes.
        classes: (B, m) truth: which pairs; None: all. A label's own entry does not count.
        effort: multiplies the number of random starts of the pairs that are close to breaking.
        seed: of the random starts; the result repeats on the same machine.
        device: where the search runs; None: the CPU.
        module: the model itself in the state that was captured, to be searched in place of the network.
        thorough: go on with every pair of an example that is broken, for the best point of each.

    Raises:
        InputError: shapes do not fit, labels are not classes, or domains are of several kinds.
    """
    m = size(network.out_shape)
    labels = _checked_labels(labels, len(domains), m)
    wanted = torch.ones(len(domains), m, dtype=torch.bool) if classes is None else classes.to("cpu", torch.bool)
    if tuple(wanted.shape) != (len(domains), m):
        raise InputError(f"classes must be a truth value per example and class, {(len(domains), m)}.")
    wanted = wanted.scatter(1, labels[:, None], torch.zeros(len(domains), 1, dtype=torch.bool))
    example, other = wanted.nonzero().unbind(1)
    fitted = [d.fitted(network.in_shape) for d in domains]
    place = torch.device("cpu" if device is None else device)
    objective = Difference(labels[example].to(place), other.to(place))
    found = _searched(network, module, fitted, example, objective, effort, seed, place, leaving=not thorough)
    proved = counter_examples(network, fitted, labels, found, other.to(place))
    shape = network.in_shape[1:]
    points = found.geometry.to(torch.float64, "cpu").at(example).points(found.place.to("cpu", torch.float64))
    margins = found.best.to("cpu", torch.float64)
    return Attack(example, other, margins, points.reshape(-1, *shape), tuple(proved))


def _searched(
    network: Network,
    module: nn.Module | None,
    domains: Sequence[Bounded],
    task_domain: Tensor,
    objective: Objective,
    effort: float,
    seed: int,
    device: torch.device,
    leaving: bool,
) -> Descent:
    """The descent after all rounds, in float32 or, where that will not do, in float64."""
    exact = Geometry.of(domains, network.in_shape, torch.float64, "cpu")
    dtypes = (torch.float32, torch.float64) if _fits_float32(exact) else (torch.float64,)
    for dtype in dtypes:
        outputs = Outputs.of(network if module is None else module, network.in_shape, dtype, device)
        if isinstance(objective, Combination):
            objective = Combination(objective.matrix.to(device=device, dtype=dtype), objective.row)
        descent = Descent(outputs, exact.to(dtype, device), task_domain.to(device), objective, leaving)
        _rounds(descent, effort, torch.Generator().manual_seed(seed))
        if bool(descent.best.isfinite().all()):
            break
    return descent


def _fits_float32(geometry: Geometry) -> bool:
    greatest = float(geometry.origin.abs().max()) if geometry.origin.numel() else 0.0
    scale = geometry.scale[geometry.scale > 0]
    if not scale.numel():
        return greatest < _RANGE
    least, most = float(scale.min()), float(scale.max())
    return max(greatest, most) < _RANGE and least > 1.0 / _RANGE and least > _RESOLUTION * greatest / 16.0


def _rounds(descent: Descent, effort: float, generator: torch.Generator) -> None:
    everything = torch.arange(len(descent.domain), device=descent.domain.device)
    if not len(everything):
        return
    descent.run(everything, descent.place, 0, 1.0, 1.0)
    start = descent.best.clone()
    descent.run(descent.open(), descent.place[descent.open()], *_FIRST)
    for number in range(max(1, math.ceil(effort))):
        for share, steps, first, last in _LATER:
            tasks = _close(descent, start, share)
            sampled = descent.geometry.at(descent.domain[tasks]).sample(generator)
            descent.run(tasks, sampled, steps, first, last)
        share, steps, first, last = _LAST
        tasks = _close(descent, start, share)
        descent.run(tasks, descent.place[tasks], steps, first * 0.5**number, last * 0.5**number)


def _close(descent: Descent, start: Tensor, share: float) -> Tensor:
    """Open tasks that are likely to break: little is left of what the descent has come down."""
    tasks = descent.open()
    if not descent.leaving:
        return tasks
    best = descent.best[tasks]
    return tasks[~(best > share * (start[tasks] - best))]


def _checked_labels(labels: Tensor, count: int, m: int) -> Tensor:
    held = exactly("labels", labels)
    if m < 2:
        raise InputError(f"a model with {m} outputs has no other class: nothing can be attacked.")
    if tuple(held.shape) != (count,):
        raise InputError(f"labels have shape {tuple(held.shape)}; {count} domains need ({count},).")
    if not bool(((held >= 0) & (held < m) & (held == held.round())).all()):
        raise InputError(f"labels must be whole numbers from 0 to {m - 1}, the model's classes.")
    return held.long()
