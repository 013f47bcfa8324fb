"""What an adversary may do to an input: a norm, a radius, limits of the pixels, all in the units of the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.arguments import real
from lipcert.capture.model import as_module
from lipcert.domain import NORMS, Ball, Box, Intersection, exactly
from lipcert.errors import InputError

Scale = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Threat:
    """Which perturbed inputs count: ‖x − x̂‖_p ≤ radius, with every entry of x in ``clip``.

    Attributes:
        norm: p, one of 1, 2 and inf.
        radii: ascending; None: the largest that can be certified is looked for, example by example.
        clip: limits of the entries, or None.
        scale: (means, deviations) by which inputs are normalised before the model sees them, one number or one per
            entry of the first axis of an example; distances, radii and clip are those before. None: not at all.
    """

    norm: float
    radii: tuple[float, ...] | None
    clip: tuple[float, float] | None = None
    scale: Scale | None = None

    @classmethod
    def of(cls, norm: Any, radius: Any, radii: Any, clip: Any, scale: Any) -> Threat:
        """From what a user gives.

        Raises:
            InputError: what cannot be used, and why.
        """
        if radius is not None and radii is not None:
            raise InputError("give radius=, one number, or radii=, several; not both.")
        several = None if radius is None and radii is None else _radii(radii) if radius is None else (_radius(radius),)
        return cls(_norm(norm), several, _clip(clip), _scale(scale))

    def domain(self, x: Tensor, radius: float) -> Ball | Intersection:
        """All that counts around one example (float64)."""
        ball = Ball(x, radius, self.norm)
        return ball if self.clip is None else Intersection(ball, Box(*self.clip))

    def farthest(self, x: Tensor) -> float:
        """How far from an example (float64) the farthest input within the limits is: larger balls hold no others."""
        if self.clip is None:
            return math.inf
        low, high = self.clip
        apart = torch.maximum((x - low).abs(), (high - x).abs()).reshape(-1)
        return float(apart.norm(p=self.norm)) * (1.0 + 1e-9) or math.inf

    def describe(self) -> str:
        """For the head of a table."""
        parts = [f"l{self.norm:g} distance in the units of the inputs"]
        if self.clip is not None:
            parts.append(f"entries within [{self.clip[0]:g}, {self.clip[1]:g}]")
        if self.scale is not None:
            means, deviations = (", ".join(f"{v:g}" for v in values) for values in self.scale)
            parts.append(f"the model sees (x − ({means})) / ({deviations})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As the settings of a run are stored."""
        return {
            "norm": _plain(self.norm),
            "radii": None if self.radii is None else list(self.radii),
            "clip": None if self.clip is None else list(self.clip),
            "scale": None if self.scale is None else [list(values) for values in self.scale],
        }

    @classmethod
    def from_json(cls, stored: Any) -> Threat:
        """What ``to_json`` wrote, checked as a user's arguments are."""
        return cls.of(stored["norm"], None, stored["radii"], stored["clip"], stored["scale"])


class Scaled(nn.Module):
    """A model that normalises its input first: x ↦ model((x − mean) / std), in the model's own precision.

    The two are constants of the network that is certified, so that balls are in the units of x.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, scale: Scale, dims: int) -> None:
        super().__init__()
        self.model = model
        plain = torch.zeros(0, dtype=torch.float32, device="cpu")  # whatever the process's defaults are
        own = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), plain)
        for name, values in zip(("mean", "std"), scale, strict=True):
            tensor = torch.tensor(values, dtype=own.dtype, device=own.device)
            self.register_buffer(name, tensor.reshape(-1, *[1] * (dims - 1)) if len(values) > 1 else tensor[0])
        self.training = model.training  # the model's own parts keep their modes

    def forward(self, x: Tensor) -> Any:
        """What the model says of the normalised input."""
        return self.model((x - self.mean) / self.std)


def scaled(
    model: nn.Module | ExportedProgram, scale: Scale | None, shape: Sequence[int]
) -> nn.Module | ExportedProgram:
    """The model of inputs in the user's units; ``shape`` is one example's.

    Raises:
        InputError: the scale has another number of entries than the first axis of an example.
    """
    if scale is None:
        return model
    for name, values in zip(("mean", "standard deviation"), scale, strict=True):
        if len(values) not in (1, shape[0]):
            raise InputError(
                f"scale= has {len(values)} entries as {name}, but one example has shape {tuple(shape)}: give one "
                f"number, or {shape[0]}, one for each entry of its first axis."
            )
    return Scaled(as_module(model), scale, len(shape))


def _norm(norm: Any) -> float:
    try:
        value = float(norm) if isinstance(norm, str) else real(norm)
    except (TypeError, ValueError):
        value = math.nan
    if value not in NORMS:
        raise InputError(f"norm must be 1, 2 or inf, the norm of the perturbation, not {norm!r:.60}.")
    return value


def _number(what: str, value: Any) -> float:
    try:
        held = exactly(what, value)
    except InputError as problem:
        raise InputError(f"{what} must be a number, not {value!r:.60}: {problem}") from problem
    if held.dim():
        raise InputError(f"{what} must be one number, not {value!r:.60}.")
    return float(held)


def _radius(radius: Any, what: str = "radius") -> float:
    value = _number(what, radius)
    if not 0.0 < value < math.inf:
        raise InputError(
            f"{what} must be a finite number above 0, not {value:g}"
            + (": at radius 0 nothing is perturbed, and the clean accuracy is the answer." if value == 0 else ".")
        )
    return value


def _radii(radii: Any) -> tuple[float, ...]:
    try:
        held = list(radii)
    except TypeError:
        raise InputError(f"radii must be several numbers, ascending, not {radii!r:.60}; one goes to radius=.") from None
    if isinstance(radii, str) or not held:
        raise InputError(f"radii must be one or more numbers, ascending, not {radii!r:.60}.")
    values = tuple(_radius(value, f"radii[{place}]") for place, value in enumerate(held))
    for place, (one, other) in enumerate(pairwise(values)):
        if not one < other:
            raise InputError(
                f"radii must ascend: radii[{place}] is {one:g} and radii[{place + 1}] is {other:g}. "
                "Give sorted(set(radii))."
            )
    return values


def _clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    try:
        low, high = clip
    except (TypeError, ValueError):
        raise InputError(f"clip must be a pair (least, greatest) of an input's entries, not {clip!r:.60}.") from None
    ends = _number("clip[0]", low), _number("clip[1]", high)
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise InputError(f"clip must be two finite numbers, the lesser first, not ({ends[0]:g}, {ends[1]:g}).")
    return ends


def _scale(scale: Any) -> Scale | None:
    if scale is None:
        return None
    try:
        mean, std = scale
    except (TypeError, ValueError):
        raise InputError(
            "scale must be a pair (mean, std): the model is given (x − mean) / std. "
            f"Each is a number or one number per channel, not {scale!r:.60}."
        ) from None
    found = []
    for name, given in (("mean", mean), ("std", std)):
        held = exactly(f"scale's {name}", given).reshape(-1)
        if not held.numel() or not bool(torch.isfinite(held).all()):
            raise InputError(f"scale's {name} must be finite numbers, not {given!r:.60}.")
        if name == "std" and not bool((held > 0).all()):
            raise InputError(f"scale's std must be above 0 everywhere, not {given!r:.60}.")
        found.append(tuple(held.tolist()))
    return found[0], found[1]


def _plain(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
