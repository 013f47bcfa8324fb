"""The 200 leading singular triplets of AlexNet's largest convolution by the library's own map, with their residuals.

.venv/bin/python benchmarks/bench_triplets.py [--rank 200]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import nets
import tables
import torch
from torch import Tensor

from lipcert.capture.torch_export import capture
from lipcert.methods.estimates import RESIDUAL
from lipcert.network.graph import AffineNode
from lipcert.numerics.triplets import top_singular_triplets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=200)
    args = parser.parse_args()
    net = nets.find("alexnet")
    network = capture(net.build(), nets.example(net))
    maps = [m for node in network.nodes if isinstance(node, AffineNode) for m in node.maps]
    linear = max(maps, key=lambda m: m.out_size).to(torch.float32, "cpu")

    def apply(x: Tensor) -> Tensor:
        with torch.no_grad():
            return linear.apply(x.reshape(len(x), *linear.in_shape)).reshape(len(x), -1)

    def transpose(y: Tensor) -> Tensor:
        return linear.transpose(y.reshape(len(y), *linear.out_shape)).reshape(len(y), -1)

    load, began = os.getloadavg()[0], time.perf_counter()
    _, s, _, residuals = top_singular_triplets(
        apply, transpose, linear.in_size, linear.out_size, args.rank,
        generator=torch.Generator().manual_seed(0), dtype=torch.float32, tol=RESIDUAL,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    line = (
        f"{args.rank} triplets of {linear.out_size} × {linear.in_size}: {seconds:.0f} s, s_1 = {s[0]:.5f}, "
        f"s_{args.rank} = {s[-1]:.5f}, largest residual {float(residuals.max() / s[0]):.1e} s_1. {tables.machine()}, "
        f"{torch.get_num_threads()} thread(s), load {load:.1f}, {time.strftime('%Y-%m-%d')}, {tables.version()}."
    )
    print(line)
    (Path(__file__).parent / "triplets.md").write_text(
        f"# Singular triplets\n\nMade by `bench_triplets.py`.\n\n{line}\n"
    )


if __name__ == "__main__":
    main()
