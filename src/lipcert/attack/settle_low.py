"""From the search's low values to points that are proved: counter-examples, near ones, and low outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.attack.descent import Descent, Objective, Outputs
from lipcert.attack.geometry import Bounded, Geometry
from lipcert.attack.nearest import approach, halved
from lipcert.attack.starts import inside
from lipcert.certificates.counter_example import CounterExample, counter_example, values_at
from lipcert.domain import Box
from lipcert.errors import NumericsError
from lipcert.network.graph import Network

#: Pairs of an example that are tried, the lowest margin first.
_TRIES = 3
#: What is left of a descent's gain, at most, where a search in float64 may still reach 0, and that search.
_ALMOST, _POLISH = 1e-3, (30, 0.1, 1e-6)
#: Beyond a place where float64 sees the class change, in shares of the way: where it is far enough for a proof.
_FURTHER = (1e-9, 1e-7, 1e-5, 1e-3)


def counter_examples(
    network: Network, domains: Sequence[Bounded], labels: Tensor, found: Descent, other: Tensor, start: Tensor
) -> list[CounterExample | None]:
    """One per domain, of its lowest pairs; what is almost 0 is searched in float64 before.

    Args:
        network: as captured.
        domains: fitted to it.
        labels: (B,).
        found: what the search has found for the pairs.
        other: (T,), the pairs' other classes.
        start: (T,), the pairs' values at the beginning.
    """
    best, place, of = (t.to("cpu") for t in (found.best.double(), found.place.double(), found.domain))
    geometry = Geometry.of(domains, network.in_shape, torch.float64, "cpu")
    result: list[CounterExample | None] = [None] * len(domains)
    start = start.double().cpu()
    _prove(network, domains, geometry, labels, other, (start, geometry.home[of], of), result)
    _prove(network, domains, geometry, labels, other, (best, place, of), result)
    unbroken = torch.tensor([c is None for c in result], dtype=torch.bool)[of]
    almost = unbroken & (best <= _ALMOST * (start - best).clamp(min=0.0))
    tasks = almost.nonzero()[:, 0]
    if len(tasks):
        outputs = Outputs.of(network, network.in_shape, torch.float64, "cpu")
        precise = Descent(outputs, geometry, of[tasks], _Chosen(found.objective, tasks.to(found.domain)), False)
        every = torch.arange(len(tasks))
        precise.run(every, geometry.at(of[tasks]).project(place[tasks]), *_POLISH)
        _prove(network, domains, geometry, labels, other[tasks], (precise.best, precise.place, of[tasks]), result)
    return result


class _Chosen:
    """Some of the tasks of an objective that lives elsewhere."""

    def __init__(self, objective: Objective, tasks: Tensor) -> None:
        self.objective, self.tasks = objective, tasks

    def __call__(self, out: Tensor, tasks: Tensor) -> Tensor:
        """(T,)."""
        device = self.tasks.device
        return self.objective(out.to(device), self.tasks[tasks.to(device)]).to(out)


def _prove(
    network: Network,
    domains: Sequence[Bounded],
    geometry: Geometry,
    labels: Tensor,
    other: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    result: list[CounterExample | None],
) -> None:
    """Fill the gaps of ``result`` from (values, places, domains)."""
    best, place, of = found
    tried = [0] * len(domains)
    for task in best.argsort().tolist():
        if not float(best[task]) <= 0.0:
            break
        i = int(of[task])
        if result[i] is None and tried[i] < _TRIES:
            tried[i] += 1
            point = point_inside(domains[i], geometry, i, place[task], network)
            result[i] = counter_example(network, domains[i], point, int(labels[i]), int(other[task]))


def point_inside(domain: Bounded, geometry: Geometry, row: int, u: Tensor, network: Network) -> Tensor:
    """The float64 point that stands for u (n,) on the domain of a row, in the domain by proof."""
    here = geometry.at(torch.tensor([row]))
    x = here.points(here.project(u[None]))[0]
    return inside(domain, x.reshape(network.in_shape))


def nearer(
    network: Network,
    domains: Sequence[Bounded],
    labels: Tensor,
    outputs: Outputs,
    proved: Sequence[CounterExample | None],
) -> list[CounterExample | None]:
    """The same or nearer counter-examples, for balls; boxes have no centre to be near to."""
    result = list(proved)
    rows = [i for i, c in enumerate(proved) if c is not None and not isinstance(domains[i], Box) and c.distance]
    if not rows:
        return result
    exact = Geometry.of([domains[i] for i in rows], network.in_shape, torch.float64, "cpu")
    points = torch.stack([proved[i].point.reshape(-1) for i in rows])  # type: ignore[union-attr]
    starts, own = exact.units(points), labels[rows]
    searched = exact.to(outputs.dtype, outputs.device)
    near = approach(outputs, searched, own.to(outputs.device), starts.to(searched.origin)).to("cpu", torch.float64)
    precise = Outputs.of(network, network.in_shape, torch.float64, "cpu")
    ends = exact.project(near)
    back = (_least(precise, exact, own, ends) > 0)[:, None]  # float32 was wrong there
    places = halved(precise, exact, own, torch.where(back, starts, ends))
    classes = precise(exact.points(places)).scatter(1, own[:, None], -math.inf).argmax(1)
    for k, i in enumerate(rows):
        before = result[i]
        assert before is not None
        for further in _FURTHER:
            u = exact.home[k] + (1.0 + further) * (places[k] - exact.home[k])
            point = point_inside(domains[i], exact, k, u, network)
            found = counter_example(network, domains[i], point, int(labels[i]), int(classes[k]))
            if found is not None:
                if found.distance < before.distance:  # type: ignore[operator]
                    result[i] = found
                break
    return result


def _least(outputs: Outputs, geometry: Geometry, labels: Tensor, u: Tensor) -> Tensor:
    out, own = outputs(geometry.points(u)), labels[:, None]
    return out.gather(1, own)[:, 0] - out.scatter(1, own, -math.inf).amax(1)


def low_values(
    network: Network, domains: Sequence[Bounded], rows: Tensor, found: Descent, row: Tensor
) -> tuple[list[float], Tensor]:
    """Proved upper bounds of the least c·f per task, and the points, (T, *shape); inf where nothing can be proved."""
    geometry = Geometry.of(domains, network.in_shape, torch.float64, "cpu")
    values, points = [], []
    for task in range(len(found.best)):
        i = int(found.domain[task])
        point = point_inside(domains[i], geometry, i, found.place[task].to("cpu", torch.float64), network)
        try:
            values += values_at(network, domains[i], point, rows[int(row[task])][None])
        except NumericsError:
            values.append(math.inf)
        points.append(point.reshape(network.in_shape[1:]))
    shape = network.in_shape[1:]
    return values, torch.stack(points) if points else torch.zeros(0, *shape, dtype=torch.float64)
