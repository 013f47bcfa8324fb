"""The leading singular triplets of AlexNet's layers by the library's own maps: time, spectrum and residuals.

.venv/bin/python benchmarks/bench_triplets.py [--rank 200] [--layers conv1]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import nets
import tables
import torch

from lipcert.capture.torch_export import capture
from lipcert.certificates.chains import RESIDUAL
from lipcert.network.graph import AffineNode
from lipcert.network.linear import LinearMap
from lipcert.network.spectrum import leading_triplets
from lipcert.problem import Problem

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
HEAD = ("layer", "outputs × inputs", "s", "s_1", "s_k", "s_k / s_1", "largest residual / s_1")


def row(name: str, linear: LinearMap, rank: int) -> tuple[str, ...]:
    """The triplets of one layer, timed."""
    began = time.perf_counter()
    found = leading_triplets(linear, rank, RESIDUAL, torch.Generator().manual_seed(0), torch.float32)
    seconds = time.perf_counter() - began
    first, last, residual = float(found.s[0]), float(found.s[-1]), float(found.residuals.max())
    numbers = (f"{seconds:.0f}", f"{first:.5f}", f"{last:.5f}", f"{last / first:.3f}", f"{residual / first:.1e}")
    return (name, f"{linear.out_size} × {linear.in_size}", *numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=200, help="k, triplets per layer")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    args = parser.parse_args()
    net = nets.find("alexnet")
    network = Problem(capture(net.build(), nets.example(net))).network  # affine neighbours merged
    maps = [m for node in network.nodes if isinstance(node, AffineNode) for m in node.maps]
    machine = f"{tables.machine()}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f} at the start"
    lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD))]
    for name, linear in zip(LAYERS, maps, strict=True):
        if name in args.layers:
            lines.append(f"| {' | '.join(row(name, linear, args.rank))} |")
            print(lines[-1], flush=True)
    made = f"Made by `bench_triplets.py`, k = {args.rank}; {machine}, {time.strftime('%Y-%m-%d')}, {tables.version()}."
    (Path(__file__).parent / "triplets.md").write_text(
        "\n".join(["# Singular triplets of AlexNet's layers", "", made, "", *lines]) + "\n"
    )


if __name__ == "__main__":
    main()
