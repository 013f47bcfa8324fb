"""SeqLip on layers with prescribed spectra and independent random singular vectors (the paper's ideal case).

    python -m experiments.ideal_spectra

K square layers U diag(s) Vᵀ, U and V independent and Haar distributed, s_1 = 1 and s_2 = r: AutoLip is 1, and as r → 0
SeqLip tends to the product of the alignments of the leading singular vectors (Theorem 2), each 1/π in the limit of wide
layers (Theorem 3). At finite width an alignment is the larger of the positive and the negative part of Σ u_j v_j, so a
little above 1/π: ``finite_width`` says how much, and nine factors make it a factor of three.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.common import (
    RESULTS,
    Row,
    estimate,
    figure_axes,
    lower,
    number,
    table,
    upper,
    value_of,
    verdict,
    write_csv,
    write_page,
)
from lipcert.theory import alignment_limit, mean_alignment, spectral_gaps

RATIOS = (0.5, 0.1, 0.01)
SHAPES = ("flat", "geometric")


def spectrum(shape: str, ratio: float, width: int) -> Tensor:
    """(width,) singular values from 1 down: 1, r, r, … (``flat``) or 1, r, r², … (``geometric``)."""
    powers = torch.arange(width, dtype=torch.float64)
    return ratio ** (powers.clamp(max=1.0) if shape == "flat" else powers)


def haar(width: int, generator: torch.Generator) -> Tensor:
    """A uniformly distributed orthogonal matrix: Q of a Gaussian matrix, its signs set by R's diagonal."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def network(layers: int, values: Tensor, seed: int) -> nn.Module:
    """A ReLU chain of ``layers`` square matrices with these singular values; layer k is the same at every depth."""
    modules: list[nn.Module] = []
    for k in range(layers):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        layer = nn.Linear(len(values), len(values), bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(haar(len(values), generator) * values @ haar(len(values), generator).T)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def finite_width(width: int) -> float:
    """The mean alignment at finite width: E max(S⁺, S⁻) = E (S⁺ + S⁻ + |S⁺ − S⁻|)/2 with S^± the parts of Σ u_j v_j.

    E S^± = ``mean_alignment``, and |S⁺ − S⁻| = |⟨u, v⟩| has the mean of |u_1|, which is √(2 mean_alignment / n).
    """
    mean = mean_alignment(width)
    return mean + 0.5 * math.sqrt(2.0 * mean / width)


def name_of(shape: str, ratio: float, layers: int) -> str:
    """Key of a network in the results."""
    return f"{shape} {ratio:g} K={layers}"


def study(
    ratios: Sequence[float],
    depths: Sequence[int],
    width: int,
    seed: int = 0,
    attack: float = 2.0,
) -> list[Row]:
    """All rows: AutoLip, certified and greedy SeqLip, Theorem 2's value, a lower bound on the shallow networks."""
    rows = []
    for shape, ratio, layers in itertools.product(SHAPES, ratios, depths):
        net, x = name_of(shape, ratio, layers), torch.zeros(1, width, dtype=torch.float64)
        model = network(layers, spectrum(shape, ratio, width), seed)
        theorem = spectral_gaps([m.weight.detach() for m in model if isinstance(m, nn.Linear)])
        here = [
            upper(net, model, x, "autolip"),
            upper(net, model, x, "seqlip"),
            estimate(net, model, x, "seqlip_greedy"),
            Row(net, "theorem 2", "upper", theorem.bound, "plain floating point"),
        ]
        if layers <= 3:
            here.append(lower(net, model, x, budget=attack))
        print(f"{net}: " + ", ".join(f"{row.method} {number(row.value)}" for row in here), flush=True)
        rows += here
    return rows


def page(rows: Sequence[Row], ratios: Sequence[float], depths: Sequence[int], width: int) -> list[str]:
    """A table of SeqLip / AutoLip for each shape of spectrum."""
    lines = [
        f"SeqLip / AutoLip for K layers of {width} × {width}, singular values 1, r, r, … (flat) or 1, r, r², … "
        "(geometric). `cert` is the certified bound, `greedy` the paper's estimate (no bound), `Thm 2` the bound of "
        f"Theorem 2. One alignment is a = {finite_width(width):.5f} on average at this width and "
        f"1/π = {alignment_limit():.5f} in the limit.",
        "",
    ]
    for shape in SHAPES:
        head = [
            "K",
            *(f"{what}, r = {r:g}" for r in ratios for what in ("cert", "greedy", "Thm 2")),
            "a^(K−1)",
            "1/π^(K−1)",
        ]
        cells = []
        for layers in depths:
            row = [str(layers)]
            for ratio in ratios:
                net = name_of(shape, ratio, layers)
                autolip = value_of(rows, net, "autolip") or 1.0
                for method in ("seqlip", "seqlip_greedy", "theorem 2"):
                    value = value_of(rows, net, method)
                    row.append(number(None if value is None else value / autolip, 4))
            limits = (finite_width(width), alignment_limit())
            cells.append([*row, *(number(limit ** (layers - 1), 4) for limit in limits)])
        lines += [f"## {shape} spectrum", "", *table(head, cells), ""]
    return [*lines, verdict(rows)]


def plot(rows: Sequence[Row], ratios: Sequence[float], depths: Sequence[int], width: int, path: str) -> None:
    """SeqLip / AutoLip against depth, with the limits for this and for infinite width."""
    figure, axes = figure_axes()
    axes.semilogy(depths, [1.0] * len(depths), "k:", label="AutoLip")
    for (shape, marker), (i, ratio) in itertools.product(zip(SHAPES, "os", strict=True), enumerate(ratios)):
        nets = [name_of(shape, ratio, layers) for layers in depths]
        for method, line, label in (("seqlip", "-", f"{shape}, r = {ratio:g}"), ("seqlip_greedy", "--", None)):
            values = [value_of(rows, net, method) for net in nets]
            axes.semilogy(depths, values, line, marker=marker, color=f"C{i}", label=label, markersize=4, alpha=0.8)
    for base, line, label in ((finite_width(width), "k--", f"width {width}"), (alignment_limit(), "k-.", "1/π^(K−1)")):
        axes.semilogy(depths, [base ** (k - 1) for k in depths], line, label=f"limit r → 0, {label}", linewidth=1)
    axes.set_xlabel("layers K")
    axes.set_ylabel("SeqLip / AutoLip (solid: certified, dashed: greedy)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the experiment and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    depths = range(1, args.depth + 1)
    rows = study(RATIOS, depths, args.width, args.seed)
    write_csv(rows, RESULTS / "ideal_spectra.csv")
    lines = page(rows, RATIOS, depths, args.width)
    write_page(RESULTS / "ideal_spectra.md", "Ideal spectra", lines)
    plot(rows, RATIOS, depths, args.width, str(RESULTS / "ideal_spectra.png"))


if __name__ == "__main__":
    main()
