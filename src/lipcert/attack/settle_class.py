"""From the search's low margins to counter-examples that are proved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.attack.descent import Descent
from lipcert.attack.geometry import Bounded
from lipcert.attack.starts import inside
from lipcert.certificates.counter_example import CounterExample, counter_example
from lipcert.network.graph import Network

#: Pairs of an example that are tried, the lowest margin first.
_TRIES = 3


def counter_examples(
    network: Network, domains: Sequence[Bounded], labels: Tensor, found: Descent, other: Tensor
) -> list[CounterExample | None]:
    """One per domain, of the lowest pairs below 0."""
    geometry = found.geometry.to(torch.float64, "cpu")
    result: list[CounterExample | None] = [None] * len(domains)
    order = found.best.argsort().tolist()
    tried = [0] * len(domains)
    for task in order:
        if not float(found.best[task]) <= 0.0:
            break
        i = int(found.domain[task])
        if result[i] is not None or tried[i] >= _TRIES:
            continue
        tried[i] += 1
        here = geometry.at(torch.tensor([i]))
        u = found.place[task].to("cpu", torch.float64)[None]
        point = inside(domains[i], here.points(here.project(u))[0].reshape(network.in_shape))
        result[i] = counter_example(network, domains[i], point, int(labels[i]), int(other[task]))
    return result
