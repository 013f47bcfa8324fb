"""Bounds of outputs raised by trees of splits: the worst parts first, as long as there is time."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.splits import MOST_DEPTH, write_trees
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.outputs import Subject
from lipcert.errors import CertificateError, NotProved
from lipcert.robustness.forest import MOST_VAIN, Forest, Node, entries_of
from lipcert.robustness.outputs import Answer, Bounded, deep, joined
from lipcert.search.cost_to_go.ascent import WIDER, first_variables
from lipcert.search.cost_to_go.leaves import look, together
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.variables import Variables

#: Parts split together, at most, and how near to the worst a part is to be, of what separates that from its goal.
TOGETHER, NEAR = 24, 0.5
#: Numbers that variables of all parts hold together, at most.
MOST_HELD = 1 << 27
#: Share of the distance from a bound to a value that is attained, within which it is good enough.
CLOSE = 1e-4


class Raising(Forest):
    """A tree for every row, whose leaves' bounds are raised; the row's is the least of them.

    A part inherits what is proved of the whole, and proves more on its own, smaller, ranges.
    """

    def climb(self, until: float) -> None:
        """The ascent at the roots."""
        variables = first_variables(self.question, self.points, self.settings)
        numbers = torch.arange(len(self.rows))
        self.trees = [
            Node(r, self.setting, 0, variables.at(numbers[[r]]), self.settings.room) for r in numbers.tolist()
        ]
        self.open = list(self.trees)
        self._raise(self.trees, self.settings, until)

    def bounds(self) -> Tensor:
        """What is proved of the rows, (P,)."""
        least = torch.full((len(self.rows),), math.inf, dtype=torch.float64)
        for node in self.open:
            least[node.row] = min(float(least[node.row]), node.value)
        return least

    def split(self, goals: Tensor, least: bool, until: float) -> None:
        """Split the parts that are farthest below their goals, again and again.

        Args:
            goals: (P,); parts that exceed them are good enough.
            least: whether it is the least of all rows that counts.
            until: perf_counter.
        """
        most = max(1, MOST_HELD // entries_of(self.setting.network))
        spent = 0.0
        while time.perf_counter() + spent < until and len(self.open) < most:
            started = time.perf_counter()
            ends = goals.tolist()
            waiting = [n for n in self.open if n.value <= ends[n.row] and n.vain <= MOST_VAIN and n.depth < MOST_DEPTH]
            if not waiting:
                return

            def behind(node: Node, ends: Sequence[float] = ends) -> float:
                return (min(ends) if least else ends[node.row]) - node.value

            worst = heapq.nlargest(TOGETHER, waiting, key=behind)
            chosen = [n for n in worst if not behind(n) < NEAR * behind(worst[0])]
            self._divide(chosen, until)
            spent = time.perf_counter() - started

    def _divide(self, nodes: Sequence[Node], until: float) -> None:
        seen = look(together([_variables(node) for node in nodes]), 1)
        known = len(self.open)
        kept = {id(node) for node in nodes}
        for place, node in enumerate(nodes):
            if bool(seen.score[place].isfinite().all()):
                self._split(node, seen, place)
                kept.discard(id(node))
                # what is left is in its children
            else:
                node.vain += 1
        gone = {id(node) for node in nodes} - kept
        fresh = self.open[known:]
        self.open = [node for node in self.open if id(node) not in gone]
        again = [node for node in nodes if id(node) in kept]
        self._raise([*fresh, *again], self.later, until)

    def _raise(self, nodes: Sequence[Node], settings: Settings, until: float) -> None:
        """The ascent at some parts, and what it proves."""
        if not nodes:
            return
        variables = together([_variables(node) for node in nodes])
        for step in range(settings.steps):
            if step == min(settings.warm, settings.steps // 2):
                variables.release(self.question.plan.bent)
            variables.ascend(settings.rate_at(step / settings.steps))
            if time.perf_counter() > until:
                break
        room = torch.tensor([node.room for node in nodes], dtype=self.question.rows.dtype).to(self.question.rows)
        multipliers, _ = variables.steadied()[0].provable(room)
        for k, node in enumerate(nodes):
            node.variables = variables.at(torch.tensor([k]))
            self._keep(node, multipliers.at(slice(k, k + 1)))

    def _keep(self, node: Node, own: Multipliers) -> None:
        """What multipliers prove of a part, if it is more than what was known."""
        assert node.setting is not None
        rows = self.rows[[node.row]]
        with torch.no_grad():
            node.value = max(node.value, float(node.setting.plain(rows)))
            try:
                value = float(lower_bounds(node.setting, rows, own)[0])
            except (NotProved, CertificateError):
                node.room *= WIDER
                return
        if value > node.value or node.multipliers is None:
            node.value, node.multipliers = max(value, node.value), own.map(torch.clone)


def _variables(node: Node) -> Variables:
    assert node.variables is not None
    return node.variables


def raised(
    subject: Subject, setting: Setting, domain: Bounded, rows: Tensor, starts: Tensor, best: Answer, goals: Tensor,
    reached: Tensor, least: bool, upper: bool, settings: Settings, until: float,
) -> Witness:  # fmt: skip
    """The witness of the best bounds by trees of splits, of rows·f on a domain.

    Args:
        subject: the captured network.
        setting: it on the domain.
        domain: the same.
        rows: (k, m).
        starts: (k, *in_shape), where they are small.
        best: what is known of them.
        goals: (k,), bounds above are good enough; infinite: as high as can be.
        reached: (k,), values that they take.
        least: whether only the least of all bounds counts.
        upper: whether the second half of the rows is minus the first.
        settings: of the ascent at the roots.
        until: perf_counter.
    """
    ends = torch.minimum(goals, reached - CLOSE * (reached - best.lower).abs().nan_to_num(0.0, 0.0, 0.0))
    open_ = (~(best.lower > ends) & (reached > torch.where(goals.isfinite(), goals, -math.inf))).nonzero().reshape(-1)
    many = max(1, Settings.chunk // entries_of(subject.network))
    open_ = open_[(best.lower - ends)[open_].argsort()[:many]]
    usable = deep(subject.network) and bool(setting.boxes[0].finite.all())
    if not usable or not len(open_) or time.perf_counter() > until:
        return best.witness(subject, upper)
    forest = Raising.of(subject, setting, domain, rows[open_], starts[open_], settings, -math.inf)
    forest.climb(until)
    for place, row in enumerate(open_.tolist()):  # what was known is known of every part
        known = best.multipliers[row]
        if known is not None and float(best.lower[row]) > forest.trees[place].value:
            forest.trees[place].value, forest.trees[place].multipliers = float(best.lower[row]), known
    forest.split(ends[open_], least, until)
    places = {row: place for place, row in enumerate(open_.tolist())}
    nodes = [
        pair
        for row in range(len(rows))
        for pair in (forest.trees[places[row]].preorder() if row in places else [(None, best.multipliers[row])])
    ]
    leaves = [own or Multipliers() for split, own in nodes if split is None]
    if len(leaves) == len(rows):  # nothing was split
        own = Answer(best.lower, True, best.guarantee, [m for _, m in nodes])
        return own.witness(subject, upper)
    arrays = {**joined(leaves).arrays(), **write_trees([split for split, _ in nodes]), **subject.facts.arrays}
    return Witness("branched_cost_to_go", arrays, {"linear": True, "upper": upper})
