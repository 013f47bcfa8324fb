"""Try to break what is claimed certified: ten times the usual search, in float64, and what is found is proved.

    broken = break_certified(network, domains, labels)

No example that a certificate stands for may come back. Used by the robustness benchmark on every certified example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.attack.adversarial import attack
from lipcert.attack.geometry import Bounded
from lipcert.certificates.counter_example import CounterExample
from lipcert.network.graph import Network

#: Times the usual number of random starts.
EFFORT = 10.0


@dataclass(frozen=True)
class Breaking:
    """What an attack on certified examples found.

    Attributes:
        count: examples attacked.
        broken: index of an example → a proved counter-example: its certificate is false.
        least: the least margin found, over all examples; below 0 without an entry in ``broken`` it was not proved.
    """

    count: int
    broken: dict[int, CounterExample]
    least: float

    def __str__(self) -> str:
        return f"{self.count} certified examples attacked: {len(self.broken)} broken, least margin {self.least:.3g}"


def break_certified(
    network: Network,
    domains: Sequence[Bounded],
    labels: Tensor,
    classes: Tensor | None = None,
    effort: float = EFFORT,
    seed: int = 1,
) -> Breaking:
    """Attack examples of which it is certified that no point of their domain has another class.

    Args:
        network: the model as captured.
        domains: one per example, of one kind: balls of one p (radii may differ), within boxes or not, or boxes.
        labels: (B,).
        classes: (B, m) truth: the pairs that are certified; None: all.
        effort: times the usual number of random starts, for the lowest pair of every example and all close ones.
        seed: another one than the usual attack's.
    """
    found = attack(network, domains, labels, classes, effort, seed, nearest=False, dtype=torch.float64)
    broken = {i: c for i, c in enumerate(found.broken) if c is not None}
    return Breaking(len(domains), broken, float(found.margins.min()) if len(found.margins) else float("inf"))
