"""Are layers that are called 1-Lipschitz 1-Lipschitz? Those of deel-torchlip and orthogonium, bounded from both sides.

    python examples/one_lipschitz_layers.py [--steps 100] [--budget 5]

Each layer is bounded fresh and after some steps of training on noise, in eval mode, in l2. The upper number is a Bound;
the lower one has a witness, so where it is above 1 the layer is: by rounding (1e-7 or so) or by iterations that have
not converged.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

import lipcert


@dataclass(frozen=True)
class Layer:
    """A layer of a library and the shape of one input."""

    library: str
    name: str
    made: Callable[[], nn.Module]
    shape: tuple[int, ...]


def layers() -> list[Layer]:
    """Those of the libraries that are installed (extra ``examples``)."""
    return [*_torchlip(), *_orthogonium()]


def _torchlip() -> list[Layer]:
    try:
        import deel.torchlip as lip
    except ImportError:
        return []
    flat, image = (32,), (4, 10, 10)

    def network() -> nn.Module:
        return nn.Sequential(
            lip.SpectralConv2d(4, 8, 3, padding=1), lip.GroupSort2(), lip.ScaledL2NormPool2d((2, 2)), nn.Flatten(),
            lip.SpectralLinear(200, 32), lip.FullSort(), lip.FrobeniusLinear(32, 1),
        )  # fmt: skip

    return [
        Layer("deel-torchlip", "SpectralLinear (Björck)", lambda: lip.SpectralLinear(32, 32), flat),
        Layer("deel-torchlip", "SpectralLinear, no Björck", lambda: lip.SpectralLinear(32, 32, eps_bjorck=None), flat),
        Layer("deel-torchlip", "SpectralConv2d (Björck)", lambda: lip.SpectralConv2d(4, 8, 3, padding=1), image),
        Layer("deel-torchlip", "FrobeniusLinear", lambda: lip.FrobeniusLinear(32, 1), flat),
        Layer("deel-torchlip", "GroupSort2", lip.GroupSort2, flat),
        Layer("deel-torchlip", "FullSort", lip.FullSort, flat),
        Layer("deel-torchlip", "ScaledAvgPool2d", lambda: lip.ScaledAvgPool2d((2, 2)), image),
        Layer("deel-torchlip", "ScaledL2NormPool2d", lambda: lip.ScaledL2NormPool2d((2, 2)), image),
        Layer("deel-torchlip", "convolution, GroupSort, linear", network, image),
    ]


def _orthogonium() -> list[Layer]:
    try:
        from orthogonium.layers import AdaptiveOrthoConv2d, HouseHolder, MaxMin, OrthoLinear, UnitNormLinear
        from orthogonium.layers.conv.AOL.aol import AOLConv2D
        from orthogonium.layers.conv.SLL import SDPBasedLipschitzDense, SDPBasedLipschitzResBlock
    except ImportError:
        return []
    flat, image = (32,), (4, 10, 10)

    def network() -> nn.Module:
        return nn.Sequential(
            AdaptiveOrthoConv2d(4, 8, 3, padding=1, padding_mode="circular"), MaxMin(), nn.Flatten(),
            OrthoLinear(800, 16), MaxMin(), OrthoLinear(16, 4),
        )  # fmt: skip

    return [
        Layer("orthogonium", "OrthoLinear", lambda: OrthoLinear(32, 32), flat),
        Layer("orthogonium", "UnitNormLinear, 1 output", lambda: UnitNormLinear(32, 1), flat),
        Layer("orthogonium", "AdaptiveOrthoConv2d (AOC)", lambda: AdaptiveOrthoConv2d(4, 8, 3, padding=1), image),
        Layer("orthogonium", "AOLConv2D", lambda: AOLConv2D(4, 8, 3, padding=1), image),
        Layer("orthogonium", "SLL, dense", lambda: SDPBasedLipschitzDense(32, 32, 64), flat),
        Layer("orthogonium", "SLL, convolution", lambda: SDPBasedLipschitzResBlock(4, 2, 3), image),
        Layer("orthogonium", "MaxMin", MaxMin, image),
        Layer("orthogonium", "HouseHolder", lambda: HouseHolder(4), image),
        Layer("orthogonium", "convolution, MaxMin, linear", network, image),
    ]


def trained(layer: Layer, steps: int) -> nn.Module:
    """Of seed 0, in eval mode, after so many steps towards noise of twice the size of its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = layer.made().train()
        x = torch.randn(64, *layer.shape)
        target = 2.0 * torch.randn_like(model(x))
        parameters = [p for p in model.parameters() if p.requires_grad]
        if parameters:
            optimiser = torch.optim.Adam(parameters, lr=1e-2)
            for _ in range(steps):
                optimiser.zero_grad()
                (model(x) - target).square().mean().backward()
                optimiser.step()
        model(x)  # what keeps vectors for its norm brings them up to date
    for part in list(model.eval().modules()):
        if parametrize.is_parametrized(part):  # the weights that it runs with, as plain ones
            for name in list(part.parametrizations):
                parametrize.remove_parametrizations(part, name)
    return model


def audit(layer: Layer, steps: int, budget: float) -> tuple[float, float] | str:
    """Lower and upper bound of its constant, or why there is none."""
    try:
        model, example = trained(layer, steps), torch.zeros(1, *layer.shape)
        upper = lipcert.bound(model, example, budget=budget)
        lower = lipcert.lower_bound(model, example, budget=budget)
    except (lipcert.LipcertError, RuntimeError, TypeError) as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:90]}"
    return lower.value, upper.value


def verdict(lower: float, upper: float) -> str:
    """In words: what is proved."""
    if upper <= 1.0:
        return "at most 1"
    if lower > 1.0:
        return f"above 1 by {lower - 1.0:.1e}" + ("" if lower - 1.0 > 1e-5 else " (rounding of its weights)")
    return f"at most 1 + {upper - 1.0:.1e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds, of each bound and each attack")
    given = parser.parse_args()
    found = layers()
    if not found:
        raise SystemExit("neither deel-torchlip nor orthogonium is installed: pip install 'lipcert[examples]'")
    print(f"{'layer':<48}{'steps':>6}{'≥':>14}{'≤':>14}  verdict")
    for layer in found:
        for steps in (0, given.steps):
            result = audit(layer, steps, given.budget)
            head = f"{layer.library + ' ' + layer.name:<48}{steps:>6}"
            if isinstance(result, str):
                print(f"{head}  {result}", flush=True)
            else:
                print(f"{head}{result[0]:>14.8f}{result[1]:>14.8f}  {verdict(*result)}", flush=True)


if __name__ == "__main__":
    main()
