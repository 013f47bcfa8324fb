"""A search's point that follows a model through training, one pass or a few for each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import InputError
from lipcert.training.live import Live
from lipcert.training.searches import Search, State

#: Passes before the first value: a random point says little.
SETTLE = 60


class Follower:
    """Where a search is, and the value there for the parameters that the model has now.

    Args:
        live: the model.
        search: of its network.
        passes: for each step.
        seed: of the first point.
    """

    def __init__(self, live: Live, search: Search, passes: int, seed: int) -> None:
        self.live, self.search, self.passes = live, search, passes
        self.point: State = search.start(torch.Generator().manual_seed(seed))
        self.settled = False

    @torch.compiler.disable
    def value(self, passes: int | None = None) -> Tensor:
        """The value after so many passes more (None: ``passes``), with the gradient for the model's parameters.

        The gradient is worked out here, in the last pass; a later ``backward`` only multiplies it.

        Raises:
            InputError: the model has changed; NumericsError: a parameter or the value is not finite.
        """
        with plain_arithmetic():
            parameters = self.live.parameters()
            self.settle(parameters)
            wanted = torch.is_grad_enabled()
            for _ in range((self.passes if passes is None else passes) - 1):
                self._advance(parameters)
            return self._last(parameters, wanted)

    def settle(self, parameters: Mapping[str, Tensor]) -> None:
        """The passes before the first value, once."""
        if not self.settled:
            self.settled = True
            for _ in range(SETTLE):
                self._advance(parameters)

    def points(self, like: Tensor) -> State:
        """The point as leaves that gradients reach."""
        return {name: part.to(like).detach().requires_grad_() for name, part in self.point.items()}

    def move(self, point: State, gradients: Mapping[str, Tensor | None]) -> None:
        """Go on from ``point`` to where these gradients point."""
        with torch.no_grad():
            self.point = {n: p.detach() for n, p in self.search.moved(point, gradients).items()}

    def _advance(self, parameters: Mapping[str, Tensor]) -> None:
        """One pass that moves the point and nothing else."""
        self._pass({name: p.detach() for name, p in parameters.items()}, [])

    def _last(self, parameters: Mapping[str, Tensor], wanted: bool) -> Tensor:
        trained = {id(p): p for p in parameters.values() if p.requires_grad}  # a shared one has several names
        leaves = list(trained.values()) if wanted else []
        if wanted:
            self.live.require_trainable(parameters)
        value, gradients = self._pass(parameters if wanted else {n: p.detach() for n, p in parameters.items()}, leaves)
        if not math.isfinite(value.item()):
            raise self.live.explain(parameters)
        if not wanted:
            return value
        with torch.enable_grad():
            result: Tensor = _Known.apply(value, gradients, *leaves)
        return result

    def _pass(self, parameters: Mapping[str, Tensor], leaves: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """The value at the point and its gradients for ``leaves``; the point moves on."""
        with torch.enable_grad():
            values = self.live.values(parameters)
            point = self.points(torch.empty(0, dtype=values.dtype, device=values.device))
            value = self.search.value(self.search.template.layers(values), point)
            inputs = [*point.values(), *leaves]
            found: list[Tensor | None] = [None] * len(inputs)
            if value.requires_grad:
                found = list(torch.autograd.grad(value, inputs, allow_unused=True))
        if math.isfinite(value.item()):
            self.move({n: p.detach() for n, p in point.items()}, dict(zip(point, found, strict=False)))
        return value.detach(), found[len(point) :]

    def state_dict(self) -> dict[str, Any]:
        """The point, on the CPU, and whether it has settled: with the model's own, all that a run needs to go on."""
        return {"settled": self.settled, "point": {n: p.detach().cpu().clone() for n, p in self.point.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved point.

        Raises:
            InputError: it is that of another model or method.
        """
        try:
            settled, point = bool(state["settled"]), dict(state["point"])
        except (TypeError, KeyError, ValueError) as problem:
            raise InputError("this is not what state_dict() gave: it has no 'settled' and 'point'.") from problem
        own = {n: tuple(p.shape) for n, p in self.point.items()}
        if {n: tuple(getattr(p, "shape", ())) for n, p in point.items()} != own:
            raise InputError(
                "this state is that of another model, method or number of columns: its point has other shapes."
            )
        self.settled, self.point = settled, {n: p.detach().clone() for n, p in point.items()}


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Without autocast and inference mode, whatever the training loop uses."""
    grad = torch.is_grad_enabled()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        else:
            stack.enter_context(torch.set_grad_enabled(grad))
        yield


class _Known(torch.autograd.Function):
    """A value whose gradients have been worked out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *leaves: Tensor) -> Tensor:
        """The value."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Each gradient times that of the value."""
        scaled = (None if g is None else (outer.to(g.device) * g.to(outer.dtype)).to(g.dtype) for g in ctx.gradients)
        return None, None, *scaled
