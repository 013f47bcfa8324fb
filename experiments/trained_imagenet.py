"""A trained ImageNet network, EfficientNet-Lite0: how large AutoLip gets and what certified SeqLip takes off.

    python -m experiments.trained_imagenet [--seqlip 900]

Stands in for the paper's trained AlexNet, whose weights no package carries.
"""

from __future__ import annotations

import argparse

import torch

import lipcert
from examples.efficientnet import load_efficientnet_lite0, photographs
from experiments.common import RESULTS, estimate, lower, number, plain_table, upper, verdict, write_csv, write_page

NET = "efficientnet_lite0"


def main() -> None:
    """Run the experiment and write its files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqlip", type=float, help="seconds of search for certified SeqLip; its check takes longer")
    parser.add_argument("--attack", type=float, default=60.0, help="seconds of the attack")
    args = parser.parse_args()
    model, inputs, x = load_efficientnet_lite0(), photographs(), torch.zeros(1, 3, 224, 224)
    makers = [
        lambda: lower(NET, model, x, inputs, args.attack),
        lambda: estimate(NET, model, x, "power_iteration", "autolip, 10 power iterations", steps=10),
        lambda: upper(NET, model, x, "autolip"),
    ]
    if args.seqlip is not None:
        makers.append(lambda: upper(NET, model, x, lipcert.SeqLip(), "seqlip, certified pairs", args.seqlip))
    rows = []
    for make in makers:
        rows.append(make())
        print(f"{rows[-1].method}: {number(rows[-1].value, 7)}, {number(rows[-1].seconds, 3)} s", flush=True)
        write_csv(rows, RESULTS / "trained_imagenet.csv")
        lines = [*plain_table(rows), "", verdict(rows)]
        write_page(RESULTS / "trained_imagenet.md", "EfficientNet-Lite0, trained on ImageNet", lines)


if __name__ == "__main__":
    main()
