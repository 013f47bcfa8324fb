"""Branch and bound around the cost-to-go: trees that split one domain until every row is bounded on every part."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from lipcert.attack.adversarial import descend
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.splits import MOST_DEPTH, Split, write_trees
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.certificates.outputs import Subject
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import CertificateError, NotProved
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.robustness.outputs import joined, norms_of, precise_enough
from lipcert.robustness.outputs import together as as_batch
from lipcert.search.cost_to_go.ascent import WIDER, first_variables
from lipcert.search.cost_to_go.dual import Question
from lipcert.search.cost_to_go.leaves import Look, carried, look, together, within
from lipcert.search.cost_to_go.plan import Plan
from lipcert.search.cost_to_go.relaxed import Relaxed
from lipcert.search.cost_to_go.settings import Settings
from lipcert.search.cost_to_go.variables import Variables

#: Steps at a part, rate of the first and share of it at the last; steps between attempts to prove.
STEPS, RATE, LAST, EVERY = 100, 0.08, 0.03, 25
#: Parts that are searched together, at most; parts left at which the search gives up.
TOGETHER, MOST_OPEN = 48, 256
#: How often the ascent goes on where nothing is left to split.
MOST_VAIN = 4


def entries_of(network: Network) -> int:
    """Numbers that all nodes hold together."""
    return sum(size(node.shape) for node in network.nodes)


@dataclass(eq=False)
class Node:
    """Of a tree.

    Attributes:
        row: which function is to be bounded.
        setting: where; None where it is done.
        depth: splits above it.
        variables: of the ascent, one function; None where it is done.
        split: None: a leaf.
        below: its children, the lower first; None: without points.
        multipliers: that prove a leaf, or what is known of it.
        value: what is proved there so far, where bounds are raised.
        room: relative, in which weights exceed what was found necessary.
        vain: how often the ascent was not enough where nothing is left to split.
    """

    row: int
    setting: Setting | None
    depth: int
    variables: Variables | None
    room: float
    split: Split | None = None
    below: list[Node | None] = field(default_factory=list)
    multipliers: Multipliers | None = None
    value: float = -math.inf
    vain: int = 0

    def preorder(self) -> Iterator[tuple[Split | None, Multipliers | None]]:
        """Splits, None at leaves, and the multipliers there."""
        waiting: list[Node | None] = [self]
        while waiting:
            node = waiting.pop()
            yield (None, None) if node is None else (node.split, node.multipliers)
            if node is not None:
                waiting += reversed(node.below)


@dataclass(eq=False)
class Forest:
    """A tree for every row.

    Attributes:
        setting: the network on the domain.
        domain: the same.
        rows: (P, m) float64, all to be bounded.
        question: the same for the search.
        points: (P, *in_shape) where rows are small.
        settings: of the ascent at the roots.
        goal: what bounds are to exceed.
        stuck: whether a part is left that cannot be split.
        counter: a point of the domain where a row is below 0, as far as float64 says; ends the search.
    """

    setting: Setting
    domain: Ball | Box | Intersection
    rows: Tensor
    question: Question
    points: Tensor
    settings: Settings
    goal: float
    counter: Tensor | None = None
    stuck: bool = False
    trees: list[Node] = field(default_factory=list)
    open: list[Node] = field(default_factory=list)

    @classmethod
    def of(
        cls, subject: Subject, setting: Setting, domain: Ball | Box | Intersection, rows: Tensor, starts: Tensor,
        settings: Settings, goal: float,
    ) -> Self:  # fmt: skip
        """With the question for the search, in a precision that holds it.

        Args:
            subject: the captured network.
            setting: it on the domain.
            domain: the same.
            rows: (P, m).
            starts: (P, *in_shape), points where they are small.
            settings: of the ascent at the roots.
            goal: what bounds are to exceed.
        """
        network, norms = subject.network, norms_of(subject)
        ends = [end for box in setting.boxes for end in (box.low, box.high)]
        settings, _ = precise_enough(settings, norms, [*ends, rows])
        one = torch.zeros(len(rows), dtype=torch.int64)
        relaxed = Relaxed.of([setting.bounds], one, settings.dtype, settings.device)
        plan = Plan(network.to(settings.dtype, settings.device), norms, relaxed.parents, subject.facts.bases)
        like = torch.zeros(1, dtype=settings.dtype, device=settings.device)
        low, high = (
            {k: getattr(setting.boxes[k], end)[None][one].to(like) for k in plan.ranged} for end in ("low", "high")
        )
        domains = as_batch([domain]).at(one).to(settings.dtype, settings.device)
        question = Question(plan, rows.to(like), low, high, domains, relaxed)
        points = starts.reshape(len(rows), *network.in_shape).to(like)
        return cls(setting, domain, rows, question, points, settings, goal)

    def grow(self, until: float, begun: Sequence[Variables | None] = ()) -> bool:
        """Whether every row was proved before the time (perf_counter) ended.

        Args:
            until: the time.
            begun: of each row where another search ended that did not prove it: then roots are searched as parts are.
        """
        further = carried(begun, self.question)
        variables = first_variables(self.question, self.points, self.settings) if further is None else further
        numbers = torch.arange(len(self.rows))
        self.trees = [
            Node(r, self.setting, 0, variables.at(numbers[[r]]), self.settings.room) for r in numbers.tolist()
        ]
        own = self.settings
        count = min(TOGETHER, max(1, own.chunk // entries_of(self.setting.network)))
        if further is None:
            self._go_on(self._climb(self.trees, own, until), until)
        else:
            self.open = list(self.trees)
        while self.open and self.counter is None:
            if self.stuck or time.perf_counter() > until or len(self.open) > MOST_OPEN:
                return False
            some, self.open = self.open[-count:], self.open[:-count]
            self._go_on(self._climb(some, self.later, until), until)
        return not self.stuck and self.counter is None

    def proof(self, row: int) -> tuple[dict[str, Tensor], Multipliers]:
        """Arrays of a tree, none where it is a single leaf, and the multipliers of its leaves."""
        nodes = list(self.trees[row].preorder())
        leaves = [own for split, own in nodes if split is None]
        some = next(own for own in leaves if own is not None)
        filled = [some.map(torch.zeros_like) if own is None else own for own in leaves]
        return write_trees([split for split, _ in nodes]) if len(nodes) > 1 else {}, joined(filled)

    @property
    def later(self) -> Settings:
        """Of the ascent at parts."""
        return replace(self.settings, steps=STEPS, rate=RATE, last=LAST)

    def _climb(self, nodes: list[Node], settings: Settings, until: float) -> list[Node]:
        """The ascent at some parts; those that it does not prove."""
        steps = settings.steps
        variables = together([node.variables for node in nodes if node.variables is not None])
        for step in range(steps + 1):
            if step == min(self.settings.warm, steps):
                variables.release(self.question.plan.bent)
            if step == steps or (step % EVERY == 0 and (step or nodes[0].depth)):
                keep = self._prove(nodes, variables, until)
                if len(keep) < len(nodes):
                    nodes, variables = [nodes[k] for k in keep.tolist()], variables.at(keep)
            if not nodes or time.perf_counter() > until:
                break
            if step < steps:
                variables.ascend(settings.rate_at(step / steps))
        for k, node in enumerate(nodes):
            node.variables = variables.at(torch.tensor([k]))
        return nodes

    def _prove(self, nodes: Sequence[Node], variables: Variables, until: float) -> Tensor:
        """Numbers of the parts that are still open; none is begun beyond the end of the time."""
        steady, value = variables.steadied()
        ready = (value > self.goal).nonzero().reshape(-1)
        left = torch.ones(len(nodes), dtype=torch.bool)
        if len(ready):
            room = torch.tensor([nodes[k].room for k in ready.tolist()]).to(value)
            multipliers, sure = steady.at(ready).provable(room)
            for place, k in enumerate(ready.tolist()):
                if sure[place] > self.goal and time.perf_counter() < until:
                    left[k] = not self._proved(nodes[k], multipliers.at(slice(place, place + 1)))
        return left.nonzero().reshape(-1)

    def _proved(self, node: Node, own: Multipliers) -> bool:
        assert node.setting is not None
        try:
            with torch.no_grad():
                value, _ = lower_bounds(node.setting, self.rows[[node.row]], own)
        except (NotProved, CertificateError):
            node.room *= WIDER
            return False
        if not float(value) > self.goal:
            return False
        node.multipliers, node.variables, node.setting = own.map(torch.clone), None, None
        return True

    def _go_on(self, nodes: Sequence[Node], until: float) -> None:
        """Split what is left, unless a point is found where it is below 0."""
        if not nodes or time.perf_counter() > until:
            self.open += nodes
            return
        seen = look(together([node.variables for node in nodes if node.variables is not None]), 1)
        rows = self.rows[[node.row for node in nodes]]
        values, points = descend(self.setting.network, self.domain, rows, seen.x)
        if float(values.min()) < 0.0:
            self.counter = points[int(values.argmin())]
            return
        for place, node in enumerate(nodes):
            if bool(seen.score[place].isfinite().all()) and node.depth < MOST_DEPTH:
                self._split(node, seen, place)
                continue
            node.vain += 1
            self.stuck |= node.vain > MOST_VAIN
            self.open.append(node)

    def _split(self, node: Node, seen: Look, place: int) -> None:
        variables, setting, plan = node.variables, node.setting, self.question.plan
        assert variables is not None
        assert setting is not None
        node.split = Split(int(seen.position[place, 0]), int(seen.entry[place, 0]), float(seen.threshold[place, 0]))
        node.variables = node.setting = None
        for high in (False, True):
            part = node.split.part(setting, high)
            if part is None:
                node.below.append(None)
                continue
            ends = (
                {k: getattr(part.boxes[k], end)[None].to(self.question.rows) for k in plan.ranged}
                for end in ("low", "high")
            )
            child = Node(node.row, part, node.depth + 1, within(variables, *ends), self.settings.room)
            child.multipliers, child.value = node.multipliers, node.value
            node.below.append(child)
            self.open.append(child)
