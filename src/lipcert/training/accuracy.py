"""How many examples constants of pairs of classes certify, about: one pass of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.arguments import real
from lipcert.errors import InputError, NumericsError
from lipcert.markup import Shown
from lipcert.training.live import Live
from lipcert.training.pairs import Pairs

#: Examples that an accuracy is worked out for at once, and power steps before it.
_CHUNK, _SETTLED = 1000, 30


@dataclass(frozen=True)
class AccuracyEstimate(Shown):
    """How many examples of a batch constants that are estimates would certify; ``lipcert.certify`` proves it.

    Attributes:
        value: certified accuracy, from 0 to 1.
        clean: accuracy.
        radius: l2.
        count: of examples.
    """

    value: float
    clean: float
    radius: float
    count: int

    def __str__(self) -> str:
        return (
            f"certified accuracy ≈ {100 * self.value:.1f} % at l2 radius {self.radius:g} (estimate, not certified), "
            f"clean {100 * self.clean:.1f} %, {self.count} examples"
        )


def certified_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, radius: float) -> AccuracyEstimate:
    """About how many examples are right and keep their class within ``radius`` in l2, by one constant per pair.

    An example counts if f_y − f_j > radius · K_yj for all j ≠ y, K as in ``MarginLoss`` after some power steps. It
    costs one pass of the data; ``MarginLoss.certified_accuracy`` goes on from the loss's own constants.
    ``lipcert.certify`` proves it, and certifies more.

    Args:
        model: returns logits (B, m).
        inputs: (B, *shape).
        labels: (B,) int64.
        radius: ≥ 0, in the units of the inputs.

    Raises:
        As ``MarginLoss``.
    """
    at = positive("radius", radius, zero=True)
    return accuracy_by_pairs(model, Pairs(Live.of(model, inputs[:1], trained=False)), inputs, labels, at)


def accuracy_by_pairs(
    model: nn.Module, pairs: Pairs, inputs: Tensor, labels: Tensor, radius: float
) -> AccuracyEstimate:
    """The same from constants that are followed already; a model in training mode is looked at in eval mode."""
    require_labels(pairs.classes, inputs, labels)
    right = certain = 0
    with torch.no_grad(), evaluating(model):
        constants = pairs.matrix(_SETTLED)
        for x, y in zip(inputs.split(_CHUNK), labels.split(_CHUNK), strict=True):
            margins, against = margins_of(logits_of(model, x, pairs.classes).to(constants.dtype), y, constants)
            right += _positive_but_own(margins, y)
            certain += _positive_but_own(margins - radius * against, y)
    return AccuracyEstimate(certain / len(inputs), right / len(inputs), radius, len(inputs))


def _positive_but_own(room: Tensor, labels: Tensor) -> int:
    """Rows of which all entries but the label's are positive."""
    return int((room.scatter(1, labels[:, None], math.inf).amin(1) > 0).sum())


def logits_of(model: nn.Module, inputs: Tensor, classes: int) -> Tensor:
    """What the model returns, which must be a number for each example and class."""
    logits = model(inputs)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(inputs), classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the model must return logits of shape ({len(inputs)}, {classes}), not {shape}.")
    return logits


def require_labels(classes: int, inputs: Tensor, labels: Tensor) -> None:
    """Labels fit the inputs and the classes, and the inputs are finite."""
    fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and tuple(labels.shape) == (len(inputs),)
    if not fits or not len(inputs):
        raise InputError("labels must be an int64 tensor of shape (B,), one for each of B ≥ 1 inputs.")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise InputError(f"labels must lie from 0 to {classes - 1}.")
    if not bool(torch.isfinite(inputs).all()):  # before a batch norm takes them into its statistics
        raise NumericsError("the inputs hold NaN or infinity.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each part's own mode returns afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def margins_of(logits: Tensor, labels: Tensor, constants: Tensor) -> tuple[Tensor, Tensor]:
    """f_y − f_j and K_yj, (B, m)."""
    return logits.gather(1, labels[:, None]) - logits, constants[labels]


def positive(name: str, value: Any, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on."""
    number = real(value)
    if not (0.0 < number < math.inf or (zero and number == 0.0)):
        raise InputError(f"{name} must be a number {'≥' if zero else '>'} 0, not {value!r}.")
    return number
