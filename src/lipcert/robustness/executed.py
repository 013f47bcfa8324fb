"""The network that runs: how far its margins may be from those of the real-valued one, and what it says."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lipcert.capture.model import as_module, one_tensor, private
from lipcert.capture.steps import Steps
from lipcert.capture.torch_export import capture, capture_steps
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import InputError, LipcertError, NumericsError, named
from lipcert.execution.settings import require_float32
from lipcert.execution.walk import margin_errors
from lipcert.network.graph import Network
from lipcert.numerics.process_state import ordinary
from lipcert.ranges.build import Tighten
from lipcert.robustness.examples import Examples
from lipcert.robustness.pair_constants import classes_of, others
from lipcert.robustness.threat import Threat

#: ``real``: the function of the stored parameters; ``float32``: what torch computes on a CPU.
Arithmetic = Literal["real", "float32"]
#: Claims whose rounding is kept.
_KEPT = 4096


def arithmetic_of(given: Any, threat: Threat) -> Arithmetic:
    """The arithmetic that is asked for.

    Raises:
        InputError: there is none of this name, or the normalisation would be outside what is certified.
    """
    if given == "real":
        return "real"
    if given != "float32":
        raise InputError(
            f"arithmetic must be 'real' or 'float32', not {given!r:.60}: TF32, bfloat16, float16 and other precisions "
            "are not covered."
        )
    if threat.scale is not None:
        raise InputError(
            "arithmetic='float32' certifies the model as it runs, and how you compute (x − mean) / std of scale= "
            "outside of it is not known: make the normalisation the first module of the model, and leave scale= out."
        )
    return "float32"


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding may take from margins.

    Attributes:
        steps: the model as executed.
    """

    steps: Steps
    _known: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    def lost(self, domain: Ball | Intersection, label: int, tighten: Tighten) -> Tensor:
        """E_k ≥ |(f̂_y − f̂_k) − (f_y − f_k)| for y = ``label`` and each other class k in order, (m − 1,).

        That is for all float32 tensors of the domain, a ball of the network's ``in_shape``, within limits or not; inf
        where nothing is known, for instance where float32 may overflow.
        """
        key = _key(domain, label, tighten)
        if key not in self._known:
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self._lost(domain, label, tighten)
        return self._known[key]

    def _lost(self, domain: Ball | Intersection, label: int, tighten: Tighten) -> Tensor:
        classes = classes_of(self.steps.network)
        try:
            with named(NumericsError, "bounding the execution"), ordinary():
                found = margin_errors(self.steps, domain.fitted(self.steps.network.in_shape), label, tighten)
        except LipcertError:
            return torch.full((classes - 1,), math.inf, dtype=torch.float64)
        return found[others(label, classes)].nan_to_num(math.inf, math.inf)

    def require_known(self, x: Tensor) -> None:
        """Refuse a model whose execution is not known, by the name of what is not; ``x`` is one example.

        Raises:
            UnsupportedOpError: an op whose rounding is not written down.
            InputError: parameters in another precision.
        """
        try:
            with named(NumericsError, "bounding the execution"), ordinary():
                margin_errors(self.steps, Box(x, x), 0, "none")
        except NumericsError:  # of the values at this example: the claims will show
            return


def _key(domain: Ball | Intersection, label: int, tighten: Tighten) -> bytes:
    ball = domain if isinstance(domain, Ball) else domain.ball
    return struct.pack("<qd", label, ball.radius) + tighten.encode() + ball.center.numpy().tobytes()


def captured(
    model: nn.Module | ExportedProgram, example: Tensor, arithmetic: Arithmetic
) -> tuple[Network, Rounding | None]:
    """The network that is certified, and what its execution adds where that is meant.

    Raises:
        CaptureError, UnsupportedOpError, InputError: the model cannot be captured faithfully, or its execution, in this
            process, is not known.
    """
    if arithmetic == "real":
        return capture(model, example), None
    steps = capture_steps(model, example.float())
    require_float32(steps)
    found = Rounding(steps)
    found.require_known(example[:1].double().reshape(steps.network.in_shape))
    return steps.network, found


@ordinary(dtype=None)
def executed_scores(model: nn.Module | ExportedProgram, data: Examples) -> npt.NDArray[np.float32]:
    """(N, m), what the model itself gives for every example, in float32 on the CPU.

    Raises:
        InputError: the model is elsewhere.
    """
    return np.concatenate([scores.numpy() for scores in _scores(model, data)])


def _scores(model: nn.Module | ExportedProgram, data: Examples) -> Iterator[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), private(as_module(model)) as module:
        elsewhere = {t.device.type for t in (*module.parameters(), *module.buffers())} - {"cpu"}
        if elsewhere:
            raise InputError(
                f"the model is on {elsewhere.pop()}; arithmetic='float32' is about the CPU: pass model.cpu()."
            )
        for index in range(len(data)):  # one by one, as every model takes them
            x = torch.from_numpy(data.batch([index])).float()
            yield one_tensor(module(x)).detach().float().reshape(1, -1)


def require_exact(data: Examples) -> None:
    """Raise InputError unless every entry is a float32 number, as a model that runs in float32 is given."""
    for index in range(len(data)):
        held = data.batch([index])
        with np.errstate(over="ignore"):
            other = np.flatnonzero(held.astype(np.float32).astype(np.float64) != held)
        if len(other):
            raise InputError(
                f"inputs[{index}] holds {held.reshape(-1)[other[0]]!r}, which is no float32 number: "
                "arithmetic='float32' is about the tensors that the model is given. Pass the inputs as float32."
            )
