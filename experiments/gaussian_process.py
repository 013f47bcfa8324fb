"""MLPs of 1 to 10 hidden layers fitted to a 2-D Gaussian-process function: every bound against depth.

    python -m experiments.gaussian_process

The function is a sample of a Gaussian process (zero mean, kernel exp(−‖x − y‖²/2)) at random points. Two inputs make a
grid of exact Jacobian norms affordable as the lower bound; a few neurons per layer, SeqLip with exact pairs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lipcert
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

EXACT = "vertex maximum (branch and bound)"
PAIRS = "seqlip, exact pairs"
FROBENIUS = "frobenius product"

#: Half widths of the grids, in standard deviations of the data: the constant is that of the whole plane.
REACHES = (3.0, 6.0, 24.0, 96.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the experiment.

    Attributes:
        width: neurons of every hidden layer.
        points: training points, normal with standard deviation ``scale``.
        scale: see there; the grids cover [−r scale, r scale]², r in ``REACHES``.
        steps: Adam steps on all points at once.
        grid: points per side of each grid.
        budget: seconds of branch and bound, on the network and over all pairs.
        attack: seconds of the attack.
        seed: of points, function, weights.
    """

    width: int = 20
    points: int = 2000
    scale: float = 2.0
    steps: int = 3000
    grid: int = 500
    budget: float = 20.0
    attack: float = 4.0
    seed: int = 0


def sample(setting: Setting) -> tuple[Tensor, Tensor]:
    """Points (n, 2) and values (n, 1) of one Gaussian-process function, float64."""
    generator = torch.Generator().manual_seed(setting.seed)
    x = setting.scale * torch.randn(setting.points, 2, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-0.5 * torch.cdist(x, x) ** 2) + 1e-8 * torch.eye(len(x), dtype=torch.float64)
    noise = torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
    return x, torch.linalg.cholesky(kernel) @ noise


def fitted(depth: int, x: Tensor, y: Tensor, setting: Setting) -> tuple[nn.Module, float]:
    """A trained ReLU network 2-width-…-1 with ``depth`` hidden layers, in eval mode, and its mean squared error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed + depth)
        modules: list[nn.Module] = []
        for k in range(depth):
            layer = nn.Linear(2 if k == 0 else setting.width, setting.width)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            modules += [layer, nn.ReLU()]
        model = nn.Sequential(*modules, nn.Linear(setting.width, 1))
    x, y = x.float(), y.float()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=setting.steps)
    for _ in range(setting.steps):
        loss = nn.functional.mse_loss(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval(), nn.functional.mse_loss(model(x), y).item()


def steepest_on_grid(model: nn.Module, setting: Setting) -> tuple[float, Tensor]:
    """The largest ‖∇f‖ at the points of all grids, in float64, and the eight steepest points of each grid."""
    exact = nn.Sequential(*copy.deepcopy(model).children()).double()
    most, starts = 0.0, []
    for reach in REACHES:
        axis = torch.linspace(-1.0, 1.0, setting.grid, dtype=torch.float64) * reach * setting.scale
        points = torch.cartesian_prod(axis, axis).requires_grad_()
        (gradients,) = torch.autograd.grad(exact(points).sum(), points)
        norms = gradients.norm(dim=1)
        most = max(most, float(norms.max()))
        starts.append(points.detach()[norms.topk(8).indices])
    return most, torch.cat(starts)


def name_of(depth: int) -> str:
    """Key of a network in the results."""
    return f"{depth} hidden"


def study(depth: int, data: tuple[Tensor, Tensor], setting: Setting, enumerate_pairs: bool) -> list[Row]:
    """All rows of the network of one depth; pairs by enumeration, or else by branch and bound."""
    net, x = name_of(depth), torch.zeros(1, 2)
    model, error = fitted(depth, *data, setting)
    steepest, starts = steepest_on_grid(model, setting)
    weights = [m.weight.detach().double() for m in model if isinstance(m, nn.Linear)]
    frobenius = float(torch.stack([w.norm() for w in weights]).prod())
    pairs = lipcert.ExactPairs() if enumerate_pairs else lipcert.BranchAndBound()
    exact = lipcert.bound(model, x, "branch_and_bound", budget=setting.budget)
    reached = exact.certificate.witness.settings["vertex_value"]  # type: ignore[union-attr]
    gap = exact.value / reached - 1.0
    return [
        Row(net, "training error", "estimate", error, remark="mean squared error"),
        Row(net, "grid", "lower", steepest, "exact Jacobians, plain floating point"),
        lower(net, model, x, starts.float(), setting.attack),
        Row(net, EXACT, "upper", exact.value, exact.guarantee, exact.seconds, f"gap {gap:.1e}"),
        upper(net, model, x, "lipsdp"),
        upper(net, model, x, "liplt"),
        upper(net, model, x, lipcert.SeqLip(pairs=pairs), PAIRS, setting.budget),
        upper(net, model, x, "seqlip"),
        estimate(net, model, x, "seqlip_greedy"),
        upper(net, model, x, "autolip"),
        Row(net, FROBENIUS, "upper", frobenius, "plain floating point"),
    ]


LABELS = {
    "grid": "grid ≤ L",
    "attack": "attack ≤ L",
    EXACT: "vertex maximum",
    "lipsdp": "LipSDP",
    "liplt": "LipLT",
    "seqlip_greedy": "SeqLip greedy (estimate)",
    PAIRS: "SeqLip exact pairs",
    "seqlip": "SeqLip certified",
    "autolip": "AutoLip",
    FROBENIUS: "Frobenius",
}


def page(rows: Sequence[Row], depths: Sequence[int]) -> list[str]:
    """The table: one line per depth."""
    head = ["hidden layers", "MSE", *LABELS.values(), "gap", "AutoLip / SeqLip", "SeqLip / attack"]
    cells = []
    for depth in depths:
        net = name_of(depth)
        values = {row.method: row.value for row in rows if row.net == net}
        remark = next(row.remark for row in rows if (row.net, row.method) == (net, EXACT))
        autolip, seqlip, attack = (values[name] or float("nan") for name in ("autolip", "seqlip", "attack"))
        cells.append([
            str(depth), number(values["training error"], 2), *(number(values[name]) for name in LABELS),
            remark.removeprefix("gap "), number(autolip / seqlip, 3), number(seqlip / attack, 3),
        ])  # fmt: skip
    return [
        "The vertex maximum is the largest norm over all activation patterns, whether or not an input reaches them; "
        "the column has its proven upper end, `gap` how far that is above the best pattern found. The grids reach to "
        "192 in every direction, the data to about 6: the bounds are for the whole plane.",
        "",
        *table(head, cells),
        "",
        verdict(rows),
    ]


def plot(rows: Sequence[Row], depths: Sequence[int], path: str) -> None:
    """Every bound against depth."""
    figure, axes = figure_axes()
    for i, (method, label) in enumerate(LABELS.items()):
        values = [value_of(rows, name_of(depth), method) for depth in depths]
        line = ":" if "≤ L" in label else "--" if "estimate" in label else "-"
        axes.semilogy(depths, values, line, marker="os^vDP*X<>"[i], color=f"C{i}", label=label, markersize=5)
    axes.set_xlabel("hidden layers")
    axes.set_ylabel("Lipschitz constant, l2")
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the experiment and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=10, help="most hidden layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--enumerate", type=int, default=3, help="most hidden layers with pairs by enumeration")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of branch and bound per network")
    args = parser.parse_args()
    setting = Setting(seed=args.seed, budget=args.budget)
    data, depths = sample(setting), range(1, args.depth + 1)
    rows: list[Row] = []
    for depth in depths:
        here = study(depth, data, setting, depth <= args.enumerate)
        print(f"{depth}: " + ", ".join(f"{row.method} {number(row.value)}" for row in here), flush=True)
        rows += here
    write_csv(rows, RESULTS / "gaussian_process.csv")
    write_page(
        RESULTS / "gaussian_process.md",
        "A 2-D Gaussian process, fitted by MLPs",
        page(rows, depths),
    )
    plot(rows, depths, str(RESULTS / "gaussian_process.png"))


if __name__ == "__main__":
    main()
