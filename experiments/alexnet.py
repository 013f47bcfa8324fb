"""AlexNet at 224 × 224: AutoLip, SeqLip with k singular vectors per layer (estimate and bound), LipSDP.

    python -m experiments.alexnet [--rank 200] [--budget 600] [--skip lipsdp] [--checkpoint alexnet.pth]

Without ``--checkpoint`` the weights are torch's default initialisation at seed 0; trained ones are large files that
this repository does not carry. Every number goes to results/alexnet.csv and results/alexnet.md as soon as it is known.
LipSDP takes many minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lipcert
from examples import models
from experiments.common import (
    RESULTS,
    Row,
    estimate,
    lower,
    number,
    plain_table,
    upper,
    value_of,
    verdict,
    write_csv,
    write_page,
)

NET = "alexnet"

#: What ``--skip`` takes, in the order of the rows.
STEPS = ("autolip", "power", "estimate", "estimate-pools", "seqlip", "pairs", "pairs-pools", "lipsdp", "attack")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill in a user's weights: a state dict in torchvision's names, .pt / .pth (no pickled code) or .safetensors.

    Raises:
        ValueError: the file cannot be read, or its names or shapes are not the model's.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise ValueError(f"cannot read {path} as a state dict: {type(problem).__name__}: {problem}") from problem
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a plain state dict (parameter name → tensor).")
    own = model.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    found = [f"{what}: {', '.join(names)}" for what, names in wrong.items() if names]
    if found:
        raise ValueError(f"{path} does not fit torchvision's AlexNet; {'; '.join(found)}.")
    model.load_state_dict(state)


def study(
    model: nn.Module,
    x: Tensor,
    rank: int,
    budget: float,
    skip: Collection[str] = (),
    tell: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """All rows that are not skipped; ``tell`` sees the rows so far after each."""
    lipsdp = lipcert.LipSDP(columns=32, route="matrix_free")
    makers: dict[str, Callable[[], Row]] = {
        "autolip": lambda: upper(NET, model, x, "autolip", budget=budget),
        "power": lambda: estimate(NET, model, x, "power_iteration", "autolip, 10 power iterations", steps=10),
        "estimate": lambda: estimate(NET, model, x, "seqlip_rank_k", f"seqlip rank {rank}, estimate", k=rank),
        "estimate-pools": lambda: estimate(
            NET, model, x, "seqlip_rank_k", f"seqlip rank {rank} through pools, estimate", k=rank, pools="through"
        ),
        "seqlip": lambda: upper(
            NET, model, x, lipcert.SeqLip(pairs=lipcert.RankKPairs(k=rank)), f"seqlip rank {rank}, bound", budget
        ),
        "pairs": lambda: upper(NET, model, x, "seqlip", "seqlip, certified pairs", budget),
        "pairs-pools": lambda: upper(
            NET, model, x, lipcert.SeqLip(pools="through"), "seqlip, certified pairs through pools", budget
        ),
        "lipsdp": lambda: upper(NET, model, x, lipsdp, "lipsdp", budget),
        "attack": lambda: lower(NET, model, x, budget=min(budget, 60.0)),
    }
    rows: list[Row] = []
    for step in STEPS:
        if step in skip:
            continue
        rows.append(makers[step]())
        row = rows[-1]
        print(f"{row.method}: {number(row.value, 7)}, {number(row.seconds, 3)} s {row.remark}", flush=True)
        tell(rows)
    return rows


def page(rows: Sequence[Row], weights: str) -> list[str]:
    """The table, and by what factor each number is below AutoLip."""
    autolip = value_of(rows, NET, "autolip")
    factors = [
        f"{row.method} ×{autolip / row.value:.3g}"
        for row in rows
        if autolip and row.value and row.method != "autolip" and row.kind != "lower"
    ]
    return [
        f"Weights: {weights}.",
        "",
        *plain_table(rows),
        "",
        f"AutoLip is larger by: {', '.join(factors) or '–'}.",
        "",
        verdict(rows),
    ]


def main() -> None:
    """Run the experiment; write its files after every number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="state dict with torchvision's names: .pt, .pth, .safetensors")
    parser.add_argument("--rank", type=int, default=200, help="singular vectors per layer")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of each anytime method")
    parser.add_argument("--skip", action="append", choices=STEPS, default=[], help="leave out a row; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for alexnet.csv and alexnet.md")
    args = parser.parse_args()
    model, weights = models.alexnet(), "torch's default initialisation, seed 0 (not trained)"
    if args.checkpoint is not None:
        try:
            load_weights(model, args.checkpoint)
        except ValueError as problem:
            parser.error(str(problem))
        weights = f"the user's checkpoint {args.checkpoint.name}"

    def tell(rows: list[Row]) -> None:
        write_csv(rows, args.out / "alexnet.csv")
        write_page(args.out / "alexnet.md", "AlexNet, 3 × 224 × 224", page(rows, weights))

    study(model, torch.zeros(1, 3, 224, 224), args.rank, args.budget, args.skip, tell)


if __name__ == "__main__":
    main()
