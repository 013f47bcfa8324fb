"""A penalty on the Lipschitz constant as a callback of Lightning; needs the extra ``lightning``."""

from __future__ import annotations

from typing import Any

from lipcert.errors import InputError
from lipcert.training.hooks import PenaltyHooks


def _callback() -> Any:
    """The class that callbacks derive from, of whichever package of the two is there.

    Raises:
        InputError: neither is.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise InputError(
                "lipcert.training.lightning needs Lightning: pip install 'lipcert[lightning]'. Without it, add "
                "LipschitzRegularizer's penalty to the loss in your own loop."
            ) from None
    return Callback


class LipschitzCallback(PenaltyHooks, _callback()):  # type: ignore[misc]
    """The penalty of a ``LipschitzRegularizer`` for models that Lightning trains.

        callback = LipschitzCallback(example, weight=0.05, method="lipsdp", target=3.0, certify={})
        Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)
        print(callback.bound)

    Works with gradient accumulation, mixed precision, several devices and checkpoints. ``training_step`` stays as it
    is; the loss that it logs is without the penalty. Arguments and attributes: ``PenaltyHooks``.
    """
