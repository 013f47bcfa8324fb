"""The bound of a vision transformer of ViT-tiny's shape on a small ball, beside the norm of the Jacobian at its centre.

    .venv/bin/python benchmarks/bench_wide.py [--radius R] [--layers N]

197 tokens of width 192, three heads, layers of 768 GELU neurons, normalised before, as PyTorch starts them; l2 → l2.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lipcert


def vision_transformer(layers: int = 2) -> tuple[nn.Module, Tensor]:
    """The network, behind the embedding of patches, and a point."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(192, 3, 768, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(192), enable_nested_tensor=False)
    return model.eval(), torch.randn(1, 197, 192)


def jacobian_norm(model: nn.Module, x: Tensor, steps: int = 60) -> float:
    """Spectral norm of the Jacobian at x from below, by the power method."""
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    norm = 0.0
    with sdpa_kernel(SDPBackend.MATH):  # the fused op has no second derivative, by which torch makes forward passes
        for _ in range(steps):
            step = step / step.norm()
            _, image = torch.autograd.functional.jvp(model, x, step)
            norm = float(image.norm())
            _, step = torch.autograd.functional.vjp(model, x, image)
    return norm


def main() -> None:
    """Two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radius", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, x = vision_transformer(args.layers)
    began, clock = time.perf_counter(), time.process_time()
    bound = lipcert.bound(model, x, domain=lipcert.Ball(x[0], args.radius, p=2))
    seconds, spent = time.perf_counter() - began, time.process_time() - clock
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"radius {args.radius:g}: ≤ {bound.value:.5g} ({bound.method}, {bound.guarantee}), {seconds:.0f} s, "
        f"{spent:.0f} of them CPU, {memory:.1f} GiB",
        flush=True,
    )
    below = jacobian_norm(model, x)
    print(f"norm of the Jacobian at the centre ≥ {below:.5g}")


if __name__ == "__main__":
    main()
