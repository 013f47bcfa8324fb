"""The smallest network of neuralfoil: an airfoil's lift, drag and moment as smooth functions of its state.

Source: P. Sharpe, *NeuralFoil* 0.3.3 (MIT licence), model ``xxsmall``: two hidden layers of 48 swish units on 25 scaled
inputs. Used are the rows of its last layer for CL, CD and CM, and the mean of its training inputs, whose shape is the
airfoil here. The weights are read from the package where that is installed, its code is not needed:
``pip install --no-deps neuralfoil``.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

#: Names of the outputs, and the box of angles of attack (degrees) and log10 of Reynolds numbers.
OUTPUTS = ("CL", "ln CD", "CM")
LOW, HIGH = torch.tensor([-4.0, 5.7], dtype=torch.float64), torch.tensor([10.0, 6.7], dtype=torch.float64)


class Airfoil(nn.Module):
    """(B, 2) angle of attack in degrees and log10 of the Reynolds number → (B, 3) CL, ln CD and CM.

    Like neuralfoil the mean of the network at a state and, with signs turned back, at its mirror image: upper and lower
    side exchanged, angle reversed. There are no forced transitions, n_crit is 9.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(25, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 3))
        self.net.load_state_dict({k.removeprefix("net."): t for k, t in weights.items() if k.startswith("net.")})
        shape = torch.cat([weights["mean_inputs"][:18], torch.zeros(5), torch.ones(2)])
        shape[21] = -12.5 / 3.5
        fill = torch.zeros(25, 4)
        fill[[18, 19, 20, 21], range(4)] = torch.tensor([1.0, 1.0, 1.0, math.log(10.0) / 3.5])
        mirror = torch.eye(25)
        mirror[:16] = -torch.eye(25)[[*range(8, 16), *range(8)]]
        mirror[[16, 18]] *= -1.0
        mirror[[23, 24]] = mirror[[24, 23]]
        self.inputs, self.mirrored = nn.Linear(4, 25), nn.Linear(4, 25)
        for layer, turn in ((self.inputs, torch.eye(25)), (self.mirrored, mirror)):
            layer.weight.data, layer.bias.data = turn @ fill, turn @ shape
        self.register_buffer("scale", torch.tensor([0.25, 1.0, 0.025]))
        self.register_buffer("sign", torch.tensor([-1.0, 1.0, -1.0]))
        self.register_buffer("shift", torch.tensor([0.0, -4.0, 0.0]))

    def forward(self, state: Tensor) -> Tensor:
        """(B, 2) → (B, 3)."""
        angle = state[:, :1] * (math.pi / 180.0)
        square = 0.5 - 0.5 * torch.cos(2.0 * angle)  # sin²
        features = torch.cat([torch.sin(2.0 * angle), torch.cos(angle), square, state[:, 1:]], dim=1)
        both = self.net(self.inputs(features)) + self.sign * self.net(self.mirrored(features))
        return self.scale * both + self.shift


def folder() -> Path | None:
    """Where the package keeps its weights; None where it is not installed."""
    found = importlib.util.find_spec("neuralfoil")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "nn_weights_and_biases"


def load_airfoil() -> Airfoil:
    """With neuralfoil's weights, in eval mode.

    Raises:
        FileNotFoundError: it is not installed.
    """
    place = folder()
    if place is None:
        raise FileNotFoundError("the weights come with neuralfoil: pip install --no-deps neuralfoil")
    with np.load(place / "nn-xxsmall.npz") as file:
        weights = {name: torch.from_numpy(file[name]).float() for name in file.files}
    with np.load(place / "scaled_input_distribution.npz") as file:
        weights["mean_inputs"] = torch.from_numpy(file["mean_inputs_scaled"]).float()
    for name in ("net.4.weight", "net.4.bias"):
        weights[name] = weights[name][1:4]  # CL, ln CD and CM
    return Airfoil(weights).eval()
