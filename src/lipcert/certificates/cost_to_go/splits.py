"""Binary trees that split a domain by values of single entries of nodes, and lower bounds over their leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.multipliers import Multipliers
from lipcert.certificates.cost_to_go.walk import Setting, lower_bounds
from lipcert.errors import CertificateError, NotProved
from lipcert.guarantee import Guarantee, weakest
from lipcert.network.graph import Network
from lipcert.network.linear import size
from lipcert.numerics.interval import Interval

#: Mark of a leaf in a tree.
LEAF = (-1, -1)
#: Nodes and depth of a tree up to which a certificate is read.
MOST_NODES, MOST_DEPTH = 1 << 20, 500


@dataclass(frozen=True)
class Split:
    """Whether entry ``entry`` (flat) of the value of node ``position`` is at most the threshold, or at least."""

    position: int
    entry: int
    threshold: float

    def part(self, setting: Setting, high: bool) -> Setting | None:
        """Where it is at least (``high``) or at most the threshold; None where no point is there."""
        box = setting.boxes[self.position]
        low, top = box.low.reshape(-1).clone(), box.high.reshape(-1).clone()
        if high:
            low[self.entry] = max(float(low[self.entry]), self.threshold)
        else:
            top[self.entry] = min(float(top[self.entry]), self.threshold)
        if bool(low[self.entry] > top[self.entry]):
            return None
        return setting.part(self.position, Interval(low, top).reshaped(tuple(box.low.shape)))


#: Binary trees in preorder, the child of the lower values first, one tree after another; None: a leaf.
Trees = Sequence[Split | None]


def write_trees(trees: Trees) -> dict[str, Tensor]:
    """Arrays of a witness."""
    places = [LEAF if split is None else (split.position, split.entry) for split in trees]
    thresholds = [0.0 if split is None else split.threshold for split in trees]
    return {
        "tree": torch.tensor(places, dtype=torch.int64).reshape(-1, 2),
        "threshold": torch.tensor(thresholds, dtype=torch.float64),
    }


def read_branched(witness: Witness, network: Network) -> tuple[list[Split | None], Multipliers]:
    """Trees and the multipliers of their leaves.

    Raises:
        CertificateError: they are no splits of this network.
    """
    arrays = dict(witness.arrays)
    tree, thresholds = arrays.pop("tree", None), arrays.pop("threshold", None)
    if tree is None or tree.dtype != torch.int64 or tree.dim() != 2 or tree.shape[1] != 2 or len(tree) > MOST_NODES:
        raise CertificateError("the certificate holds no tree of splits.")
    if thresholds is None or thresholds.dtype != torch.float64 or thresholds.shape != tree.shape[:1]:
        raise CertificateError("the certificate's thresholds are not one float64 number per node of its tree.")
    if not bool(thresholds.isfinite().all()):
        raise CertificateError("the certificate's thresholds hold a number that is not finite.")
    result: list[Split | None] = []
    for (position, entry), threshold in zip(tree.tolist(), thresholds.tolist(), strict=True):
        if (position, entry) == LEAF:
            result.append(None)
            continue
        if not 0 <= position < len(network.nodes) or not 0 <= entry < size(network.nodes[position].shape):
            raise CertificateError(f"the tree splits entry {entry} of node {position}, which the network has not.")
        result.append(Split(position, entry, threshold))
    return result, Multipliers.read(Witness(witness.kind, arrays, witness.settings))


def parts(setting: Setting, trees: Trees, count: int) -> Iterator[tuple[int, Setting | None]]:
    """(number of the tree, where its leaf is meant) of every leaf in order; None where no point is.

    Why the leaves of a tree cover the domain: at every point an entry is at most a threshold or at least. What a leaf
    assumes is what the steps from the root to it say, and nothing else.

    Raises:
        CertificateError: there are not ``count`` complete trees.
    """
    waiting: list[tuple[Setting | None, int]] = []
    started = 0
    for split in trees:
        if not waiting:
            if started == count:
                raise CertificateError("the tree of splits goes on after its last leaf.")
            waiting.append((setting, 0))
            started += 1
        own, depth = waiting.pop()
        if split is None:
            yield started - 1, own
            continue
        if depth == MOST_DEPTH:
            raise CertificateError(f"the tree of splits is deeper than {MOST_DEPTH}.")
        low, high = (None if own is None else split.part(own, side) for side in (False, True))
        waiting += [(high, depth + 1), (low, depth + 1)]
    if waiting or started != count:
        raise CertificateError(f"the tree of splits leaves {len(waiting) + count - started} of its branches open.")


def branched_bounds(setting: Setting, rows: Tensor, trees: Trees, multipliers: Multipliers) -> tuple[Tensor, Guarantee]:
    """(P,) lower bounds of rows·f(x) over the domain by one tree per row, and how sure they are.

    Why this is a lower bound: the leaves cover the domain, and the bound of each holds where its assumptions do: with
    boxes that hold there (``cut_bounds``) every step of ``lower_bounds`` is one about the points of that part alone.

    Args:
        setting: the domain.
        rows: (P, m).
        trees: P of them.
        multipliers: of the leaves, in order, those without points included.

    Raises:
        CertificateError: trees or multipliers do not fit.
        NotProved: a leaf's multipliers prove nothing, or no leaf is said to have a point.
    """
    leaves = sum(split is None for split in trees)
    multipliers.require(setting.network, leaves)
    least = torch.full((len(rows),), math.inf, dtype=torch.float64)
    guarantees: list[Guarantee] = ["rigorous"]
    for number, (row, part) in enumerate(parts(setting, trees, len(rows))):
        if part is None:
            continue
        asked = rows[row : row + 1]
        found, sure = lower_bounds(part, asked, multipliers.at(slice(number, number + 1)))
        guarantees.append(sure)
        least[row] = min(float(least[row]), max(float(found), float(part.plain(asked))))
    if bool(torch.isposinf(least).any()):
        raise NotProved("every leaf of a tree is said to be empty, which no domain is.")
    return least, weakest(guarantees)
