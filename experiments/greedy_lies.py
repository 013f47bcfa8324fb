"""Networks small enough to check by hand whose SeqLip by greedy or L-BFGS search lies below a proven lower bound.

    python -m experiments.greedy_lies

Bias-free ReLU networks with small integer weights, found by a seeded search. For each the table states the weights, an
integer point x where no pre-activation is 0, the integer Jacobian there, its norm (proved again by the witness of
``lipcert.lower_bound``) and the vertex maximum by enumeration. Last, a linear layer whose norm the power method misses.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import lipcert
from experiments.common import RESULTS, Row, estimate, lower, number, table, upper, verdict, write_csv, write_page
from lipcert.methods.pair_ascent import Slopes, Stage, maximise_greedily, maximise_lbfgs

Weights = tuple[np.ndarray, ...]

#: The network of tests/methods/test_estimates.py.
KNOWN: Weights = (np.array([[-2, -2, 0], [1, 2, 2], [2, 1, -1]]), np.array([[1, 1, 0], [1, 0, 1]]))

#: Widths that are searched; of each a network is kept that greedy gets wrong and one that L-BFGS gets wrong.
SEARCHED = ((2, 3, 1), (3, 3, 2), (3, 4, 1), (2, 3, 2, 1), (3, 3, 2, 2))

MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class Case:
    """One network with what proves its constant large.

    Attributes:
        weights: integer matrices, first layer first; no biases.
        point: integer x with the steepest Jacobian found; no pre-activation is 0 there.
        jacobian: the integer Jacobian at ``point``.
        vertex: the largest norm over all activation patterns, by enumeration: L ≤ vertex.
    """

    weights: Weights
    point: np.ndarray
    jacobian: np.ndarray
    vertex: float

    @property
    def steepness(self) -> float:
        """‖J(point)‖ ≤ L."""
        return float(np.linalg.norm(self.jacobian, 2))


def model_of(weights: Weights) -> nn.Module:
    """The ReLU network, float64."""
    modules: list[nn.Module] = []
    for matrix in weights:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(torch.from_numpy(matrix.astype(float)))
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def jacobian(weights: Weights, point: np.ndarray) -> np.ndarray | None:
    """The Jacobian at an integer point, in integers; None where a pre-activation is 0."""
    product, value = np.eye(weights[0].shape[1], dtype=int), point
    for k, matrix in enumerate(weights):
        product, value = matrix @ product, matrix @ value
        if k < len(weights) - 1:
            if (value == 0).any():
                return None
            product, value = (value > 0)[:, None] * product, np.maximum(value, 0)
    return product


def vertex_maximum(weights: Weights) -> float:
    """max over all activation patterns of the norm of the product, by enumeration."""
    best = 0.0
    patterns = [itertools.product((0, 1), repeat=len(matrix)) for matrix in weights[:-1]]
    for pattern in itertools.product(*patterns):
        product = weights[0]
        for matrix, active in zip(weights[1:], pattern, strict=True):
            product = matrix @ (np.array(active)[:, None] * product)
        best = max(best, float(np.linalg.norm(product, 2)))
    return best


def steepest(weights: Weights, reach: int = 3) -> Case | None:
    """The integer point of [−reach, reach]^n with the largest Jacobian; the smallest of several."""
    points = sorted(
        itertools.product(range(-reach, reach + 1), repeat=weights[0].shape[1]), key=lambda x: sum(map(abs, x))
    )
    best, found = -1.0, None
    for point in map(np.array, points):
        here = jacobian(weights, point)
        if here is not None and (norm := float(np.linalg.norm(here, 2))) > best + 1e-9:
            best, found = norm, (point, here)
    return None if found is None else Case(weights, *found, vertex_maximum(weights))


def heuristic(weights: Weights, lbfgs: bool) -> float:
    """SeqLip by greedy or L-BFGS search as ``lipcert.estimate`` does it, without capture: for the search alone."""
    factors = [np.linalg.svd(matrix.astype(float), full_matrices=False) for matrix in weights]
    value = 1.0
    for k in range(len(weights) - 1):
        (u, s, _), (_, t, v) = factors[k], factors[k + 1]
        a = torch.from_numpy(u * (s if k == 0 else np.sqrt(s)))
        b = torch.from_numpy((t if k == len(weights) - 2 else np.sqrt(t))[:, None] * v)
        ones = torch.ones(len(a), dtype=torch.float64)
        value *= (maximise_lbfgs if lbfgs else maximise_greedily)(b, a, Stage([Slopes(0 * ones, ones)]))
    return value


def search(widths: Sequence[int], lbfgs: bool, seed: int, most: int = 2) -> Case:
    """A random network with integer entries up to ``most`` whose heuristic value is below a reached Jacobian's norm."""
    rng = np.random.default_rng(seed)
    while True:
        weights = tuple(rng.integers(-most, most + 1, (m, n)) for n, m in itertools.pairwise(widths))
        value, vertex = heuristic(weights, lbfgs), vertex_maximum(weights)
        if 0.1 * vertex < value < (1.0 - MARGIN) * vertex:
            case = steepest(weights)
            if case is not None and value < (1.0 - MARGIN) * case.steepness:
                return case


def cases(seed: int = 0, searched: Sequence[tuple[int, ...]] = SEARCHED) -> list[Case]:
    """The known network and those of the search."""
    known = steepest(KNOWN)
    assert known is not None
    return [known, *(search(widths, lbfgs, seed) for widths in searched for lbfgs in (False, True))]


def name_of(number: int) -> str:
    """Key of a case in the results."""
    return f"case {number}"


def study(found: Sequence[Case], budget: float = 1.0) -> list[Row]:
    """All rows of all cases."""
    rows = []
    for k, case in enumerate(found, start=1):
        net, model = name_of(k), model_of(case.weights)
        point = torch.from_numpy(case.point.astype(float))[None]
        rows += [
            estimate(net, model, point, "seqlip_greedy"),
            estimate(net, model, point, "seqlip_lbfgs"),
            Row(net, "Jacobian at x", "lower", case.steepness, "witness"),
            lower(net, model, point, inputs=point, budget=budget),
            Row(net, "vertex maximum", "upper", case.vertex, "enumerated, plain floating point"),
            upper(net, model, point, "branch_and_bound"),
            upper(net, model, point, lipcert.SeqLip(pairs=lipcert.ExactPairs()), "seqlip, exact pairs"),
            upper(net, model, point, "seqlip"),
        ]
    return rows


def power_rows() -> list[Row]:
    """diag(100, 99) as a network: its constant is 100, and power iteration gives less."""
    model = model_of((np.diag([100, 99]),))
    x = torch.zeros(1, 2, dtype=torch.float64)
    net = "x ↦ diag(100, 99) x"
    return [
        Row(net, "Jacobian", "lower", 100.0, "witness"),
        *(estimate(net, model, x, "power_iteration", f"power, {n} steps", steps=n) for n in (10, 100)),
        upper(net, model, x, "autolip"),
    ]


def weights_text(weights: Sequence[np.ndarray]) -> str:
    """W1 = [[…]]; W2 = [[…]]."""
    return "; ".join(f"W{k} = {matrix.tolist()}" for k, matrix in enumerate(weights, start=1))


def exact_text(matrix: np.ndarray) -> str:
    """The norm in closed form where the matrix has one row or column: the root of an integer."""
    if 1 in matrix.shape:
        return f"√{int((matrix**2).sum())}"
    return number(float(np.linalg.norm(matrix, 2)), 7)


def page(found: Sequence[Case], rows: Sequence[Row], power: Sequence[Row]) -> list[str]:
    """The table, one line per network."""
    head = [
        "", "weights (ReLU between, no biases)", "x", "J(x)", "‖J(x)‖ ≤ L", "attack", "vertex maximum ≥ L",
        "greedy", "L-BFGS", "SeqLip, exact pairs",
    ]  # fmt: skip
    cells = []
    for k, case in enumerate(found, start=1):
        values = {row.method: row.value for row in rows if row.net == name_of(k)}
        wrong = {
            method: number(value, 7) + (" **<**" if value < case.steepness * (1.0 - 1e-9) else "")
            for method in ("seqlip_greedy", "seqlip_lbfgs")
            if (value := values[method]) is not None
        }
        cells.append([
            str(k), weights_text(case.weights), str(tuple(case.point.tolist())), str(case.jacobian.tolist()),
            f"{exact_text(case.jacobian)} = {number(case.steepness, 7)}", number(values["attack"], 7),
            number(case.vertex, 7), wrong["seqlip_greedy"], wrong["seqlip_lbfgs"],
            number(values["seqlip, exact pairs"], 7),
        ])  # fmt: skip
    return [
        "**<** marks an estimate below the proven lower bound ‖J(x)‖, so below the constant L. To check a line "
        "by hand: follow x through the layers, keep the rows of neurons that are positive, multiply the matrices.",
        "",
        *table(head, cells),
        "",
        "## Power iteration",
        "",
        "The linear map diag(100, 99) has constant 100.",
        "",
        *table(["number", "kind", "value"], ([row.method, row.kind, number(row.value, 10)] for row in power)),
        "",
        verdict([*rows, *power]),
    ]


def main() -> None:
    """Search, prove, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the search")
    args = parser.parse_args()
    found = cases(args.seed)
    rows, power = study(found), power_rows()
    texts = {name_of(k): weights_text(case.weights) for k, case in enumerate(found, start=1)}
    named = [Row(texts[r.net], r.method, r.kind, r.value, r.guarantee, r.seconds, r.remark) for r in rows]
    write_csv([*named, *power], RESULTS / "greedy_lies.csv")
    lines = page(found, rows, power)
    write_page(RESULTS / "greedy_lies.md", "Where SeqLip's heuristics lie", lines)
    shares = {
        method: min(r.value / case.steepness for k, case in enumerate(found, 1) for r in rows
                    if (r.net, r.method) == (name_of(k), method) and r.value is not None)
        for method in ("seqlip_greedy", "seqlip_lbfgs")
    }  # fmt: skip
    print(f"{len(found)} networks; least estimate / proven lower bound: {shares}. {verdict([*rows, *power])}")


if __name__ == "__main__":
    main()
