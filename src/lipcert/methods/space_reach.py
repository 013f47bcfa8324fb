"""Which patterns of slopes points of the whole space have: points that show one, and coefficients that prove none has.

Untrusted: the branch-tree certificate proves again what is said to be empty. Both are linear programs (HiGHS): one in x
and the values of neurons that are not fixed, one in the coefficients that ``SpaceRegions.empty`` takes.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from lipcert.methods.branch_ascent import FREE
from lipcert.methods.branch_nodes import Settled
from lipcert.network.linear import Shape
from lipcert.ranges.space import Pieces, SpaceRegions, Sum
from lipcert.search.least_distance import Array

#: Random points that are looked at first, at each of these multiples of the kinks' median distance from 0.
SAMPLES, FAR = 50, (0.1, 1.0, 10.0, 100.0)
#: Regions are looked at as empty where no ball of more than this radius, relative to its faces, is in them.
THIN = 1e-9
#: A constant is asked to be below −1 by a program, and below this by its proof.
CLEAR = -0.5


class SpaceReach:
    """Regions of patterns: rows of −1, 0 and 1 over all neurons of the cells; ``allowed`` are those in the regions.

    Attributes:
        seconds: what the proofs that were found take in all.
    """

    def __init__(self, regions: SpaceRegions, shape: Shape, allowed: Tensor, seed: torch.Generator) -> None:
        self.regions, self.shape, self.allowed = regions, shape, allowed
        self.two = (regions.side != 0).numpy()
        self.patterns = torch.zeros(0, regions.count, dtype=torch.int8)
        self._known: set[bytes] = set()
        self._seed, self.seconds = seed, 0.0
        self._steps = [None if step is None else _Arrays(step) for step in regions.steps]
        self._n = int(np.prod(shape))
        self._free = sum(len(step.numbers) for step in regions.steps if isinstance(step, Pieces))
        self._visit(self._samples(seed))

    def reached(self, first: int) -> Tensor:
        """Patterns that points have shown, from the number ``first`` on."""
        rows = torch.full((len(self.patterns) - first, len(self.allowed)), FREE, dtype=torch.int8)
        rows[:, self.allowed] = self.patterns[first:]
        return rows

    def settled(self, pattern: Tensor) -> Settled:
        """Whether the region of a pattern is empty."""
        return Settled(pattern, empty=self._refuted(pattern))

    def _refuted(self, pattern: Tensor) -> Tensor | None:
        """Coefficients that prove the region of a pattern empty; else a point in it may be noted."""
        own = pattern[self.allowed]
        if not bool((own != FREE).numpy()[self.two].any()):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            return self._decided(own)

    def _decided(self, own: Tensor) -> Tensor | None:
        point, width = self._widest(own.numpy())
        if width > THIN:
            aside = torch.randn(self._n, generator=self._seed, dtype=torch.float64)  # off the kinks of what is free
            self._visit((torch.from_numpy(point) + 0.5 * width * aside / aside.norm().clamp(min=1e-300))[None])
            return None
        for least in (-1.0, 0.0):
            found = self._coefficients(own.numpy(), least)
            if found is None:
                continue
            rows = torch.from_numpy(found)[None]
            began = time.perf_counter()
            greatest, strict = self.regions.greatest(own[None], rows)
            if bool(greatest[0] <= CLEAR * -least) and (least < 0 or bool(strict[0])):
                result = torch.zeros(len(self.allowed), dtype=torch.float64)
                result[self.allowed] = rows[0]
                self.seconds += time.perf_counter() - began
                return result
        return None

    def _widest(self, fixing: Array) -> tuple[Array, float]:
        """The centre of the widest ball, of radius at most 1, between the faces of a region, and its radius.

        Variables: x, values z of what is not fixed, and the radius. A free neuron whose lines make a convex φ has z
        above both, else below both; anything else lies in its box.
        """
        n, size = self._n, self._n + self._free
        forms: list[Array] = [np.hstack([np.eye(n), np.zeros((n, self._free + 1))])]
        least, most, place = np.full(size, -np.inf), np.full(size, np.inf), n
        faces: list[Array] = []
        rows: list[Array] = []
        for step in self._steps[1:]:
            assert step is not None
            if step.sum:
                total = np.zeros((len(step.offset), size + 1))
                total[:, -1] = step.offset
                for parent, matrix in zip(step.parents, step.maps, strict=True):
                    total += matrix @ forms[parent]
                forms.append(total)
                continue
            v = forms[step.parents[0]]
            count = len(step.numbers)
            own = np.zeros((count, size + 1))
            own[np.arange(count), place + np.arange(count)] = 1.0
            least[place : place + count], most[place : place + count] = step.low, step.high
            two, place = step.numbers >= 0, place + count
            if two.any():
                lines = []
                for slope in (step.left, step.right):
                    line = slope[:, None] * v
                    line[:, -1] += step.value - slope * step.kink
                    lines.append(line)
                chosen = np.where(two, fixing[step.numbers], FREE)
                right = (chosen >= 0) & (chosen == step.side)
                left = (chosen >= 0) & ~right
                sign = np.where(right, 1.0, -1.0)[:, None]
                away = v.copy()
                away[:, -1] -= step.kink
                faces.append((sign * away)[right | left])
                bend = np.where(step.right >= step.left, 1.0, -1.0)[:, None]
                rows += [(bend * (own - line))[two & (chosen < 0)] for line in lines]
                own = np.where(right[:, None], lines[1], np.where(left[:, None], lines[0], own))
            forms.append(own)
        face, row = np.vstack(faces), np.vstack(rows)
        lengths = np.linalg.norm(face[:, :-1], axis=1)
        level = lengths <= 1e-300
        if bool((level & (face[:, -1] < 0)).any()):
            return np.zeros(n), -1.0
        face, lengths = face[~level], lengths[~level]
        cost = np.zeros(size + 1)
        cost[-1] = -1.0
        matrix = np.vstack([np.hstack([-face[:, :-1] / lengths[:, None], np.ones((len(face), 1))]),
                            np.hstack([-row[:, :-1], np.zeros((len(row), 1))])])  # fmt: skip
        ends = np.concatenate([face[:, -1] / lengths, row[:, -1]])
        bounds = np.column_stack([np.append(least, -np.inf), np.append(most, 1.0)])
        if not (np.isfinite(matrix).all() and np.isfinite(ends).all()):
            return np.zeros(n), 0.0
        found = linprog(cost, A_ub=matrix, b_ub=ends, bounds=bounds, method="highs")
        if found.status != 0 or found.x is None:
            return np.zeros(n), 0.0
        return found.x[:n], float(found.x[-1])

    def _coefficients(self, fixing: Array, least: float) -> Array | None:
        """λ with r = 0 and c ≤ ``least`` in ``SpaceRegions.empty``, and as much room as can be in all conditions.

        Variables: λ, the room of each condition, at most 1, and what each box costs.
        """
        count = self.regions.count
        size = count + self._free
        pending: dict[int, Array] = {}
        constant = np.zeros(size)
        rows: list[Array] = []
        place = count
        roomy: list[Array] = []
        for k in range(len(self._steps) - 1, 0, -1):
            step = self._steps[k]
            assert step is not None
            own = pending.pop(k, None)
            if step.sum:
                if own is not None:
                    constant += step.offset @ own
                    for parent, matrix in zip(step.parents, step.maps, strict=True):
                        pending[parent] = pending.get(parent, 0.0) + matrix.T @ own
                continue
            items = len(step.numbers)
            own = np.zeros((items, size)) if own is None else own
            boxes = np.zeros((items, size))
            boxes[np.arange(items), place + np.arange(items)] = 1.0
            place += items
            two = step.numbers >= 0
            for end, sign in ((step.low, -1.0), (step.high, 1.0)):
                bounded = np.isfinite(end)
                rows.append((np.where(bounded, end, 0.0)[:, None] * own - boxes)[~two & bounded])
                rows.append((sign * own)[~two & ~bounded])
            constant += boxes[~two].sum(axis=0)
            if two.any():
                taken = np.zeros((items, size))
                taken[two, step.numbers[two]] = 1.0
                chosen = fixing[step.numbers]
                may_right = two & ((chosen < 0) | (chosen == step.side))
                may_left = two & ((chosen < 0) | (chosen != step.side))
                roomy.append((step.right[:, None] * own - taken)[may_right])
                roomy.append((taken - step.left[:, None] * own)[may_left])
                constant += (step.value @ (own * two[:, None])) - step.kink @ taken
                pending[step.parents[0]] = pending.get(step.parents[0], 0.0) + taken
        room = np.vstack(roomy)
        rest = np.vstack([*rows, constant[None]])
        most = len(room)
        matrix = np.block([[room, np.eye(most)], [rest, np.zeros((len(rest), most))]])
        ends = np.append(np.zeros(len(matrix) - 1), least)
        equal = np.hstack([pending.get(0, np.zeros((self._n, size))), np.zeros((self._n, most))])
        cost = np.append(np.zeros(size), -np.ones(most))
        bounds = [*[(None, None)] * size, *[(0.0, 1.0)] * most]
        zero = np.zeros(self._n)
        if not (np.isfinite(matrix).all() and np.isfinite(equal).all()):
            return None
        found = linprog(cost, A_ub=matrix, b_ub=ends, A_eq=equal, b_eq=zero, bounds=bounds, method="highs")
        return found.x[:count] if found.status == 0 and found.x is not None else None

    def _visit(self, points: Tensor) -> None:
        """Note the patterns of points (B, n)."""
        for row in self.regions.at(points.reshape(len(points), *self.shape)):
            key = row.numpy().tobytes()
            if key not in self._known:
                self._known.add(key)
                self.patterns = torch.cat([self.patterns, row[None]])

    def _samples(self, seed: torch.Generator) -> Tensor:
        """Random points, at distances like those of the first kinks."""
        distances: list[float] = []
        for step in self._steps[1:]:
            if step is not None and step.sum and step.parents == (0,):
                lengths = np.linalg.norm(step.maps[0], axis=1)
                distances += (np.abs(step.offset[lengths > 0]) / lengths[lengths > 0]).tolist()
        scale = float(np.median(distances)) if distances else 0.0
        scale = scale if 0.0 < scale < 1e100 else 1.0
        noise = torch.randn(len(FAR), SAMPLES, self._n, generator=seed, dtype=torch.float64)
        return (noise * scale * torch.tensor(FAR, dtype=torch.float64)[:, None, None]).reshape(
            len(FAR) * SAMPLES, self._n
        )


class _Arrays:
    """A step as arrays, without what their rounding may be."""

    def __init__(self, step: Sum | Pieces) -> None:
        self.sum = isinstance(step, Sum)
        if isinstance(step, Sum):
            self.parents = step.parents
            self.maps = [m.mid.numpy() for m in step.maps]
            self.offset = step.offset.mid.numpy()
            return
        self.parents = (step.parent,)
        self.numbers = step.numbers.numpy()
        self.left, self.right, self.kink = step.left.numpy(), step.right.numpy(), step.kink.numpy()
        self.value, self.low, self.high = step.value.mid.numpy(), step.low.numpy(), step.high.numpy()
        self.side = np.where(self.right >= self.left, 1, 0)  # the number of the right line's slope
