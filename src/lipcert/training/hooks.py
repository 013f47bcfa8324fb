"""What a callback of a trainer does with a penalty, whichever trainer calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lipcert.arguments import real
from lipcert.errors import InputError
from lipcert.result import Bound
from lipcert.training.regularizer import LipschitzRegularizer


class PenaltyHooks:
    """Adds weight · penalty to each loss just before its backward pass, by the hooks of Lightning's ``Callback``.

    Args:
        example: floating tensor with a leading batch dimension of any size; only its shape matters.
        weight: of the penalty, ≥ 0.
        part: name of the module that is bounded, as "net" or "net.body"; None: the LightningModule itself, by its
            ``forward``.
        name: under which the estimate is logged at each step; None: not at all.
        certify: None, or options of ``LipschitzRegularizer.certify`` (perhaps none, ``{}``) with which the model is
            certified when training ends; the Bound is then in ``bound``.
        options: for ``LipschitzRegularizer``: ``method``, ``penalty``, ``target`` …

    Attributes:
        regularizer: from the start of training on; before that None.
        bound: see ``certify``.

    Raises:
        InputError: a weight that is none. When training starts: as ``LipschitzRegularizer``; ``part`` is no module.
    """

    def __init__(
        self,
        example: Tensor,
        weight: float,
        part: str | None = None,
        name: str | None = "lipschitz",
        certify: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.weight = real(weight)
        if not 0.0 <= self.weight < float("inf"):
            raise InputError(f"weight must be a number ≥ 0, not {weight!r}.")
        self.example, self.part, self.name, self.certify, self.options = example, part, name, certify, options
        self.regularizer: LipschitzRegularizer | None = None
        self.bound: Bound | None = None
        self._state: Mapping[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Capture the model, once."""
        if stage == "fit" and self.regularizer is None:
            self.regularizer = LipschitzRegularizer(self._module(pl_module), self.example, **self.options)
            if self._state is not None:
                self.load_state_dict(self._state)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Add the penalty, as the loss is scaled: by the gradient scaler, and over the batches of a step."""
        assert self.regularizer is not None
        penalty = self.weight * self.regularizer()
        scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        parts = (
            getattr(trainer, "accumulate_grad_batches", 1) if getattr(pl_module, "automatic_optimization", True) else 1
        )
        loss += (penalty * (scale / parts)).to(loss)  # in place: the trainer goes on with this tensor
        if self.name is not None:
            pl_module.log(self.name, self.regularizer.estimate.value)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Certify the model, if that is wanted."""
        if self.certify is not None and self.regularizer is not None:
            self.bound = self.regularizer.certify(**self.certify)

    def state_dict(self) -> dict[str, Any]:
        """For the trainer's checkpoints, from which a run goes on exactly."""
        return {} if self.regularizer is None else self.regularizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; before the start of training it is kept until then.

        Raises:
            InputError: it is that of another model or method.
        """
        if self.regularizer is None:
            self._state = state_dict or None
        elif state_dict:
            self.regularizer.load_state_dict(state_dict)

    def _module(self, pl_module: Any) -> nn.Module:
        try:
            found = pl_module if self.part is None else pl_module.get_submodule(self.part)
        except AttributeError as problem:
            raise InputError(f"part={self.part!r} is no module of {type(pl_module).__name__}: {problem}.") from problem
        assert isinstance(found, nn.Module)
        return found
