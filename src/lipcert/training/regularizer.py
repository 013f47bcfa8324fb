"""A penalty on the Lipschitz constant, for a training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lipcert.api.constants import bound
from lipcert.arguments import real, seed_of, whole
from lipcert.domain import NORMS
from lipcert.errors import InputError, NumericsError, UnsupportedNormError
from lipcert.methods.autolip import AutoLip
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP
from lipcert.network.linear import Dense, size
from lipcert.network.source import Fixed
from lipcert.network.transform import then
from lipcert.problem import Norm, as_norm, require_select
from lipcert.result import Bound, Estimate
from lipcert.training.follower import Follower
from lipcert.training.live import Live, in_eval_mode
from lipcert.training.searches import AutoLipSearch, LipLTSearch, LipSDPSearch, Search

Method = Literal["autolip", "liplt", "lipsdp"]
Penalty = Literal["hinge", "log", "value"]


class LipschitzRegularizer:
    """The Lipschitz constant of a model, as a differentiable penalty that follows the model through training.

        reg = LipschitzRegularizer(model, example, method="lipsdp", penalty="hinge", target=5.0)
        for x, y in batches:
            loss = F.cross_entropy(model(x), y) + 0.1 * reg()
            optimiser.zero_grad(); loss.backward(); optimiser.step()
        print(reg.certify())

    The model is captured once. Each call makes ``passes`` passes of the method's search with the parameters of the
    moment, from where the last call ended, and returns the penalty of the value L there: ``hinge`` max(L − target, 0),
    ``log`` log L, ``value`` L. Its gradient is that of the method's value, by the envelope theorem, as far as the
    search keeps up with training: L lies below what ``certify`` proves, and is an ``Estimate``.

    The model is taken as in eval mode: batch norms count with their running statistics, whose own dependence on the
    parameters has no gradient, dropout not at all. The model may be compiled, wrapped in DistributedDataParallel, run
    under autocast or be moved to another device; its layers and shapes must stay.

    Args:
        model: the module that is trained. Never changed.
        example: floating tensor with a leading batch dimension of any size; only its shape matters.
        method: ``autolip`` (cheapest), ``liplt`` or ``lipsdp`` (closest to the truth); or an ``AutoLip()``, ``LipLT()``
            or ``LipSDP(columns=8)``, of which the columns count and no other option.
        columns: rank of LipSDP's relaxation.
        norm: of inputs and outputs: 2, or a pair (p, q). Of ``lipsdp`` p may be ∞, q 1 (or any, with one output).
        select: optional (k, m) matrix applied to the flattened output, as for ``lipcert.bound``.
        penalty: see above.
        target: of ``hinge``, > 0, in output units per input unit.
        passes: for each call; 1 to 3 are enough at usual learning rates.
        seed: of the first point.

    Raises:
        InputError: an unusable argument, a model without parameters or with all of them frozen.
        UnsupportedNormError: norms that the method does not follow.
        CaptureError: as ``lipcert.bound``; or a parameter enters the network in a way that cannot be followed.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        method: Method | AutoLip | LipLT | LipSDP = "lipsdp",
        columns: int = 8,
        norm: float | tuple[float, float] = 2,
        penalty: Penalty = "hinge",
        target: float | None = None,
        passes: int = 1,
        seed: int = 0,
        select: Tensor | None = None,
    ) -> None:
        if type(method) in (AutoLip, LipLT, LipSDP):
            assert not isinstance(method, str)
            columns = method.columns if isinstance(method, LipSDP) else columns
            method = method.name  # type: ignore[assignment]
        if method not in get_args(Method):
            raise InputError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}.")
        self.penalty, self.target = penalty, _target(penalty, target)
        for name, number in (("columns", columns), ("passes", passes)):
            if (whole(number) or 0) < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {number!r}.")
        pair = _pair(norm)
        live = Live.of(model, example)
        network = live.network
        self._select: Tensor | None = None
        if select is not None:
            require_select(select, size(network.out_shape))
            self._select = rows = select.detach().to("cpu", torch.float64).clone()
            shapes = network.out_shape, (1, len(rows))
            network = then(network, Dense((rows,), *shapes, math.inf, sources=(Fixed(rows),)))
        search: Search
        if method == "lipsdp":
            search = LipSDPSearch(network, columns, pair)
        else:
            search = (AutoLipSearch if method == "autolip" else LipLTSearch)(network, pair)
        self._follower = Follower(live, search, passes, seed_of(seed))
        self._last: Tensor | None = None

    def __call__(self) -> Tensor:
        """The penalty for the parameters of this moment, a scalar on the model's device.

        Raises:
            InputError: the model has other layers or shapes than at first, or has been frozen.
            NumericsError: a parameter holds NaN or infinity, or the value overflows.
        """
        value = self._follower.value()
        self._last = value.detach()
        if self.penalty == "hinge":
            return (value - self.target).clamp(min=0.0)
        if self.penalty == "log" and not self._last > 0:
            raise NumericsError(
                "the Lipschitz estimate is 0, of which penalty='log' has no value: a layer is zero. Start from other "
                "weights, or take 'hinge' or 'value'."
            )
        return value.log() if self.penalty == "log" else value

    @property
    def estimate(self) -> Estimate:
        """The value at the last call: about the method's, and no bound.

        Raises:
            InputError: there was no call yet.
        """
        if self._last is None:
            raise InputError("there is no estimate before the first call.")
        return Estimate(float(self._last), self._follower.search.name, self._follower.search.norm)

    def certify(self, **options: Any) -> Bound:
        """The Bound of the model as it is now, in eval mode, by the method of the same name.

        Args:
            options: for ``lipcert.bound``; ``method``, too.
        """
        live, search = self._follower.live, self._follower.search
        own = {"method": search.name, "norm": search.norm, "select": self._select}
        return bound(in_eval_mode(live.module), live.example, **{**own, **options})

    def state_dict(self) -> dict[str, Any]:
        """What, with the model's own state, makes a resumed run go on exactly."""
        return {**self._follower.state_dict(), "last": None if self._last is None else float(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: it is that of another model, method or number of columns.
        """
        self._follower.load_state_dict(state)
        last = state.get("last")
        self._last = None if last is None else torch.tensor(float(last), dtype=torch.float64)


def require_two(norm: Any) -> None:
    """Raise UnsupportedNormError unless this is the l2 norm, or the pair of it."""
    pair = norm if isinstance(norm, (tuple, list)) else (norm, norm)
    if len(pair) != 2 or any(real(p) != 2.0 for p in pair):
        raise UnsupportedNormError(f"training follows constants in l2 only, not norm={norm!r}.")


def _pair(norm: Any) -> Norm:
    """(p, q) of a pair, or of one number."""
    pair = as_norm(norm if isinstance(norm, (tuple, list)) else (norm, norm))
    if any(p not in NORMS for p in pair):
        raise UnsupportedNormError(f"norm must be 2 or a pair (p, q) of 1, 2 and inf, not {norm!r}.")
    return pair


def _target(penalty: Any, target: Any) -> float:
    if penalty not in get_args(Penalty):
        raise InputError(f"penalty must be one of {', '.join(get_args(Penalty))}, not {penalty!r}.")
    if penalty != "hinge":
        if target is not None:
            raise InputError(f"target is for penalty='hinge'; {penalty!r} has none.")
        return math.nan
    number = math.nan if target is None else real(target)
    if not 0.0 < number < math.inf:
        raise InputError(
            f"penalty='hinge' needs a target > 0, the constant above which there is a penalty; not {target!r}."
        )
    return number
