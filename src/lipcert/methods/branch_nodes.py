"""Nodes of a branch-and-bound tree, and when tests of their regions pay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.certificates.branch_tree import LEAF
from lipcert.methods.branch_ascent import Vectors

#: After so many tests in a row that found nothing every test is followed by so many nodes without.
MOST_SKIPPED = 16


@dataclass(frozen=True, eq=False)
class Implied:
    """A neuron whose slope number ``end`` no point of a region has, with the numbers that prove it."""

    neuron: int
    end: int
    proof: Tensor


@dataclass(eq=False)
class Settled:
    """What is known of the region of a pattern.

    Attributes:
        pattern: all that is implied is fixed in it, too.
        steps: what is implied, in the order in which it was found.
        empty: numbers that prove the region, as the steps leave it, empty; else None.
        tested: whether it was looked at.
    """

    pattern: Tensor
    steps: list[Implied] = field(default_factory=list)
    empty: Tensor | None = None
    tested: bool = False


@dataclass(eq=False)
class Node:
    """A leaf of the tree so far; ``vectors`` (single precision) and ``branch`` serve its children.

    ``empty``: numbers that prove that no point of the domain is in its region; it needs no bound then.
    ``tested``: whether its region was looked at.
    """

    pattern: Tensor
    rho: float
    multipliers: Tensor
    slack: float
    lift: float
    vectors: Vectors | None = None
    branch: int = -1
    neuron: int = LEAF
    children: tuple[Node, Node] | None = None
    empty: Tensor | None = None
    tested: bool = False

    def become(self, other: Node) -> None:
        """Be what another node is, in this one's place."""
        vars(self).update(vars(other))


def empty_leaf(pattern: Tensor, proof: Tensor | None) -> Node:
    """A leaf without a bound."""
    return Node(pattern, 0.0, torch.zeros(0), 0.0, 0.0, empty=proof)


def below(settled: Settled, last: Node | None) -> Node:
    """The node of a pattern: ``last`` or an empty leaf, below splits with empty leaves for what is implied."""
    node = empty_leaf(settled.pattern, settled.empty) if last is None else last
    for step in reversed(settled.steps):
        dead = empty_leaf(settled.pattern, step.proof)
        children = (node, dead) if step.end else (dead, node)
        node = replace(empty_leaf(settled.pattern, None), neuron=step.neuron, children=children)
    return node


def preorder(root: Node) -> tuple[list[int], list[Node]]:
    """The tree in preorder, lower slope first, and its leaves in the same order."""
    tree, leaves, waiting = [], [], [root]
    while waiting:
        node = waiting.pop()
        tree.append(node.neuron if node.children else LEAF)
        if node.children:
            waiting += [node.children[1], node.children[0]]
        else:
            leaves.append(node)
    return tree, leaves


@dataclass(eq=False)
class Pace:
    """Tests of regions, as often as they find something: after failures in a row only every second, third, … time.

    Attributes:
        tests: how many there were.
        last: how many when one found something.
    """

    tests: int = 0
    last: int = 0
    _misses: int = 0
    _skipped: int = 0

    def due(self) -> bool:
        """Whether the next region is to be tested."""
        if self._skipped < self._misses // 4:
            self._skipped += 1
            return False
        return True

    def count(self, found: bool) -> None:
        """A test was made."""
        self.tests += 1
        self._skipped = 0
        self.last = self.tests if found else self.last
        self._misses = 0 if found else min(self._misses + 1, 4 * MOST_SKIPPED)
