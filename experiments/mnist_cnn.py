"""The paper's MNIST CNN: SeqLip from k singular vectors per layer, as an estimate and as a bound, beside the others.

    python -m experiments.mnist_cnn

The paper takes the k leading singular triplets of every layer (k-vector power method) and forgets the rest of the
spectrum: an estimate. ``lipcert.RankKPairs`` adds what the rest can contribute, so that a bound comes out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lipcert
from examples.mnist import mnist_split
from examples.models import load_paper_cnn
from experiments.common import (
    RESULTS,
    Row,
    estimate,
    figure_axes,
    lower,
    number,
    plain_table,
    table,
    upper,
    value_of,
    verdict,
    write_csv,
    write_page,
)

NET = "paper_cnn"
RANKS = (1, 2, 5, 10, 20, 50, 100, 200)
BOUND_RANKS = (100, 200, 400)


def study(
    model: nn.Module, inputs: Tensor, ranks: Sequence[int], bound_ranks: Sequence[int], budget: float, attack: float
) -> list[Row]:
    """All rows: bounds and lower bound, then estimates and bounds from k triplets per layer."""
    x = torch.zeros(1, *inputs.shape[1:])
    rows: list[Row] = []

    def add(row: Row) -> None:
        print(f"{row.method}: {number(row.value, 7)}, {number(row.seconds, 3)} s {row.remark}", flush=True)
        rows.append(row)

    add(lower(NET, model, x, inputs, attack))
    add(upper(NET, model, x, "lipsdp", budget=budget))
    add(upper(NET, model, x, "seqlip", budget=budget))
    add(upper(NET, model, x, "liplt"))
    add(upper(NET, model, x, "autolip"))
    add(estimate(NET, model, x, "power_iteration", "autolip, 10 power iterations", steps=10))
    add(estimate(NET, model, x, "seqlip_greedy"))
    for k in ranks:
        add(estimate(NET, model, x, "seqlip_rank_k", estimate_name(k), k=k))
    for k in bound_ranks:
        add(upper(NET, model, x, lipcert.SeqLip(pairs=lipcert.RankKPairs(k=k)), bound_name(k), budget))
    return rows


def estimate_name(k: int) -> str:
    """Method of an estimate from k triplets."""
    return f"seqlip rank {k}, estimate"


def bound_name(k: int) -> str:
    """Method of a bound from k triplets."""
    return f"seqlip rank {k}, bound"


def page(rows: Sequence[Row], ranks: Sequence[int]) -> list[str]:
    """Both tables."""
    cells = []
    for k in ranks:
        values = (value_of(rows, NET, name(k)) for name in (estimate_name, bound_name))
        cells.append([str(k), *(number(value, 7) for value in values)])
    fixed = [row for row in rows if " rank " not in row.method]
    return [
        *plain_table(fixed),
        "",
        "## k singular vectors per layer",
        "",
        *table(["k", "estimate (rest of the spectrum forgotten)", "bound (rest of the spectrum added)"], cells),
        "",
        verdict(rows),
    ]


def plot(rows: Sequence[Row], ranks: Sequence[int], path: str) -> None:
    """Estimate and bound against k, the other numbers as lines."""
    figure, axes = figure_axes()
    for name, marker, label in ((estimate_name, "o--", "SeqLip rank k, estimate"), (bound_name, "s-", "rank k, bound")):
        points = [(k, value) for k in ranks if (value := value_of(rows, NET, name(k))) is not None]
        axes.plot(*zip(*points, strict=True), marker, label=label)
    lines = ("autolip", "seqlip", "seqlip_greedy", "lipsdp", "attack")
    for i, method in enumerate(lines, start=2):
        value = value_of(rows, NET, method)
        if value is not None:
            kind = {"attack": ":", "seqlip_greedy": "--"}.get(method, "-")
            axes.axhline(value, linestyle=kind, color=f"C{i}", label=f"{method} {value:.4g}", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("k, singular vectors per layer")
    axes.set_ylabel("Lipschitz constant, l2")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the experiment and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of each anytime method")
    parser.add_argument("--attack", type=float, default=20.0, help="seconds of the attack")
    args = parser.parse_args()
    rows = study(load_paper_cnn(), mnist_split()[2][:200], RANKS, BOUND_RANKS, args.budget, args.attack)
    write_csv(rows, RESULTS / "mnist_cnn.csv")
    ranks = sorted({*RANKS, *BOUND_RANKS})
    write_page(RESULTS / "mnist_cnn.md", "The paper's MNIST CNN", page(rows, ranks))
    plot(rows, ranks, str(RESULTS / "mnist_cnn.png"))


if __name__ == "__main__":
    main()
