"""The adversarial attack: low outputs and changes of class on many domains at once; what it claims is proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lipcert.attack.descent import Combination, Descent, Difference, Objective, Outputs
from lipcert.attack.geometry import Bounded, Geometry
from lipcert.attack.settle_low import counter_examples, low_values, nearer
from lipcert.certificates.counter_example import CounterExample
from lipcert.domain import exactly
from lipcert.errors import InputError
from lipcert.network.graph import Network
from lipcert.network.linear import Shape, size

#: The first look at every task: steps, and their first and last lengths in units of the domain. A step of 2 radii jumps
#: to where the gradient points on the surface, which is where the least value of a nearly linear function is.
_FIRST = (10, 2.0, 0.05)
#: Later rounds, from random points: which tasks (those whose best value is below this share of what the descent has
#: gained so far), steps, and lengths.
_LATER = ((0.5, 10, 2.0, 0.05), (0.25, 20, 2.0, 0.02), (0.25, 40, 0.5, 0.01))
#: How often they are repeated, at an effort of 1; each repetition ends with a round from the best points.
_REPEATS = 3
_LAST = (0.5, 15, 0.2, 0.003)
#: From points that a bound takes for the lowest.
_LEAF = (20, 0.1, 0.003)
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
        broken: one per example, a proved counter-example, the nearest to the centre that was found, or None.
    """

    example: Tensor
    other: Tensor
    margins: Tensor
    points: Tensor
    broken: tuple[CounterExample | None, ...]

    @property
    def undecided(self) -> Tensor:
        """Indices of the pairs of examples without a counter-example."""
        unbroken = torch.tensor([c is None for c in self.broken], dtype=torch.bool)
        return unbroken[self.example].nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Lowest:
    """Low values of combinations of outputs.

    Attributes:
        values: (B, k) float64, proved: the least value of row k on domain B is not above; inf where nothing is proved.
        points: (B, k, *shape) float64, where; in the domains by proof.
    """

    values: Tensor
    points: Tensor


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
    nearest: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Attack:
    """Look for points of each domain where another class than the label's is at least as high.

    Targeted projected gradient descent on f_label − f_k for all pairs at once. Nothing that is claimed
    (``Attack.broken``) rests on the search: see :func:`lipcert.certificates.counter_example.counter_example`.

    Args:
        network: the model as captured.
        domains: B balls of one p, balls within boxes, or boxes, of one example's shape each.
        labels: (B,) classes.
        classes: (B, m) truth: which pairs; None: all. A label's own entry does not count.
        effort: multiplies the number of random starts of the pairs that are close to breaking; above 1 the lowest pair
            of each example counts as close.
        seed: of the random starts; the result repeats on the same machine.
        device: where the search runs; None: the CPU.
        module: the model itself in the state that was captured, to be searched in place of the network.
        thorough: go on with every pair of an example that is broken, for the best point of each.
        nearest: look for counter-examples nearer to the centres of the balls.
        dtype: of the search, float32 or float64; float64 is taken where float32 will not do.

    Raises:
        InputError: shapes do not fit, labels are not classes, or domains are of several kinds.
    """
    m = size(network.out_shape)
    labels = _checked_labels(labels, len(domains), m)
    wanted = torch.ones(len(domains), m, dtype=torch.bool) if classes is None else classes.to("cpu", torch.bool)
    if tuple(wanted.shape) != (len(domains), m):
        raise InputError(f"classes must hold a truth value per example and class, {(len(domains), m)}.")
    wanted = wanted.scatter(1, labels[:, None], torch.zeros(len(domains), 1, dtype=torch.bool))
    example, other = wanted.nonzero().unbind(1)
    fitted = [d.fitted(network.in_shape) for d in domains]
    place = torch.device("cpu" if device is None else device)
    objective = Difference(labels[example].to(place), other.to(place))
    searched = network if module is None else module
    descent = partial(_searched, searched, network.in_shape, fitted, example, objective)
    found, start = descent(effort, seed, place, dtype, leaving=not thorough)
    broken = counter_examples(network, fitted, labels, found, other, start)
    if nearest:
        broken = nearer(network, fitted, labels, found.outputs, broken)
    points = found.geometry.to(torch.float64, "cpu").at(example).points(found.place.to("cpu", torch.float64))
    margins = found.best.to("cpu", torch.float64)
    return Attack(example, other, margins, points.reshape(-1, *network.in_shape[1:]), tuple(broken))


def lowest(
    network: Network,
    domains: Sequence[Bounded],
    rows: Tensor,
    effort: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    module: nn.Module | None = None,
) -> Lowest:
    """Low values of every row c of a (k, m) matrix, c·f, on every domain; arguments as for :func:`attack`.

    Raises:
        InputError: shapes do not fit, numbers are not finite, or domains are of several kinds.
    """
    m, k = size(network.out_shape), len(rows)
    matrix = exactly("rows", rows)
    if matrix.dim() != 2 or matrix.shape[1] != m or not bool(matrix.isfinite().all()):
        raise InputError(f"rows must be a (k, {m}) matrix of finite numbers for this model, not {tuple(matrix.shape)}.")
    fitted = [d.fitted(network.in_shape) for d in domains]
    place = torch.device("cpu" if device is None else device)
    example, row = torch.ones(len(domains), k).nonzero().unbind(1)
    objective = Combination(matrix, row.to(place))
    searched = network if module is None else module
    descent = partial(_searched, searched, network.in_shape, fitted, example, objective)
    found, _ = descent(effort, seed, place, torch.float32, leaving=False)
    values, points = low_values(network, fitted, matrix, found, row)
    shape = (len(domains), k)
    return Lowest(
        torch.tensor(values, dtype=torch.float64).reshape(shape), points.reshape(*shape, *network.in_shape[1:])
    )


def descend(network: Network, domain: Bounded, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Low values of row c of a (P, m) matrix, c·f, from one point for each on: a short descent in float64.

    Args:
        network: of the outputs.
        domain: fitted to its in_shape.
        rows: (P, m).
        points: (P, *in_shape), of the domain or near it.

    Returns:
        The values (P,) as the search's arithmetic says, and the points (P, *in_shape[1:]), which lie in the domain.
    """
    outputs = Outputs.of(network, network.in_shape, torch.float64, "cpu")
    geometry = Geometry.of([domain], network.in_shape, torch.float64, "cpu")
    tasks = torch.arange(len(rows))
    here = torch.zeros_like(tasks)
    descent = Descent(outputs, geometry, here, Combination(rows.to("cpu", torch.float64), tasks), False)
    own = geometry.at(here)
    units = own.project(own.units(points.detach().to("cpu", torch.float64).reshape(len(rows), -1)))
    descent.run(tasks, units, *_LEAF)
    return descent.best, own.points(descent.place).reshape(-1, *network.in_shape[1:])


def _searched(
    searched: Network | nn.Module,
    in_shape: Shape,
    domains: Sequence[Bounded],
    task_domain: Tensor,
    objective: Objective,
    effort: float,
    seed: int,
    device: torch.device,
    wished: torch.dtype,
    leaving: bool,
) -> tuple[Descent, Tensor]:
    """The descent after all rounds and the values at its start; in float64 where the wished dtype will not do."""
    exact = Geometry.of(domains, in_shape, torch.float64, "cpu")
    dtypes = (wished, torch.float64) if _fits_float32(exact) else (torch.float64,)
    for dtype in dtypes:
        outputs = Outputs.of(searched, in_shape, dtype, device)
        if isinstance(objective, Combination):
            objective = Combination(objective.matrix.to(device=device, dtype=dtype), objective.row)
        descent = Descent(outputs, exact.to(dtype, device), task_domain.to(device), objective, leaving)
        start = _rounds(descent, effort, torch.Generator().manual_seed(seed))
        if bool(descent.best.isfinite().all()):
            break
    return descent, start


def _fits_float32(geometry: Geometry) -> bool:
    greatest = float(geometry.origin.abs().max()) if geometry.origin.numel() else 0.0
    scale = geometry.scale[geometry.scale > 0]
    if not scale.numel():
        return greatest < _RANGE
    least, most = float(scale.min()), float(scale.max())
    return max(greatest, most) < _RANGE and least > 1.0 / _RANGE and least > _RESOLUTION * greatest / 16.0


def _rounds(descent: Descent, effort: float, generator: torch.Generator) -> Tensor:
    """All rounds; the values at home."""
    everything = torch.arange(len(descent.domain), device=descent.domain.device)
    descent.run(everything, descent.place, 0, 1.0, 1.0)
    start = descent.best.clone()
    descent.run(descent.open(), descent.place[descent.open()], *_FIRST)
    for _ in range(max(1, math.ceil(_REPEATS * effort))):
        for share, steps, first, last in _LATER:
            tasks = _close(descent, start, share, effort > 1.0)
            sampled = descent.geometry.at(descent.domain[tasks]).sample(generator)
            descent.run(tasks, sampled, steps, first, last)
        share, steps, first, last = _LAST
        tasks = _close(descent, start, share, effort > 1.0)
        descent.run(tasks, descent.place[tasks], steps, first, last)
    return start


def _close(descent: Descent, start: Tensor, share: float, lowest: bool) -> Tensor:
    """Open tasks that are likely to break: little is left of what the descent has come down; or the lowest, too."""
    tasks = descent.open()
    if not descent.leaving:
        return tasks
    best, domain = descent.best[tasks], descent.domain[tasks]
    close = ~(best > share * (start[tasks] - best))
    if lowest:
        least = torch.full_like(descent.broken, torch.inf, dtype=best.dtype).scatter_reduce(0, domain, best, "amin")
        close |= best <= least[domain]
    return tasks[close]


def _checked_labels(labels: Tensor, count: int, m: int) -> Tensor:
    held = exactly("labels", labels)
    if m < 2:
        raise InputError(f"a model with {m} outputs has no other class: nothing can be attacked.")
    if tuple(held.shape) != (count,):
        raise InputError(f"labels have shape {tuple(held.shape)}; {count} domains need ({count},).")
    if not bool(((held >= 0) & (held < m) & (held == held.round())).all()):
        raise InputError(f"labels must be whole numbers from 0 to {m - 1}, the model's classes.")
    return held.long()
