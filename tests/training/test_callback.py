"""The callback adds the penalty to what is differentiated, resumes exactly and names what is missing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.training import LipschitzRegularizer
from lipcert.training.hooks import PenaltyHooks
from tests.training.test_regularizer import IMAGE, batch, small

OPTIONS: dict[str, Any] = {"method": "autolip", "penalty": "log"}


class Module(nn.Module):
    """What a hook may ask of a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()
        self.logged: list[float] = []

    def log(self, name: str, value: float) -> None:
        assert name == "lipschitz"
        self.logged.append(value)


def fitted(module: Module, hooks: PenaltyHooks, steps: range, scale: float = 1.0, parts: int = 1) -> None:
    """What a trainer does, with the gradient of the scaled loss divided again."""
    scaler = None if scale == 1.0 else SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), accumulate_grad_batches=parts)
    hooks.setup(trainer, module, "fit")
    optimiser = torch.optim.SGD(module.net.parameters(), lr=0.05)
    for k in steps:
        optimiser.zero_grad()
        for _ in range(parts):
            x, y = batch(k)
            loss = F.cross_entropy(module.net(x), y) / parts * scale
            hooks.on_before_backward(trainer, module, loss)
            loss.backward()
        for p in module.net.parameters():
            if p.grad is not None:
                p.grad /= scale
        optimiser.step()
    hooks.on_fit_end(trainer, module)


@pytest.mark.parametrize(("scale", "parts"), [(1.0, 1), (256.0, 1), (1.0, 2)])
def test_it_is_the_penalty_in_a_loop(scale: float, parts: int) -> None:
    model = small()
    reg = LipschitzRegularizer(model, IMAGE, passes=parts, **OPTIONS)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for k in range(2):
        x, y = batch(k)
        loss = F.cross_entropy(model(x), y) + 0.3 * reg()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module = Module()
    fitted(module, PenaltyHooks(IMAGE, 0.3, part="net", **OPTIONS), range(2), scale, parts)
    for p, q in zip(model.parameters(), module.net.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-3 if parts > 1 else 1e-5, atol=1e-3 if parts > 1 else 1e-6)
    assert len(module.logged) == 2 * parts


def test_a_checkpoint_goes_on_exactly_and_the_end_is_certified() -> None:
    whole, module, again = Module(), Module(), Module()
    hooks = PenaltyHooks(IMAGE, 0.3, part="net", certify={}, **OPTIONS)
    fitted(whole, hooks, range(4))
    assert hooks.bound is not None
    assert hooks.bound.value >= whole.logged[-1] * 0.5
    first, second = (PenaltyHooks(IMAGE, 0.3, part="net", **OPTIONS, seed=s) for s in (0, 9))
    fitted(module, first, range(2))
    again.net.load_state_dict(module.net.state_dict())
    second.load_state_dict(first.state_dict())
    fitted(again, second, range(2, 4))
    assert module.logged + again.logged == whole.logged


def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for weight in (-1.0, float("nan"), "1"):
        with pytest.raises(lipcert.InputError, match="weight"):
            PenaltyHooks(IMAGE, weight)  # type: ignore[arg-type]
    with pytest.raises(lipcert.InputError, match="part='body' is no module of Module"):
        PenaltyHooks(IMAGE, 1.0, part="body", **OPTIONS).setup(None, Module(), "fit")
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lipcert.training.lightning", raising=False)
    with pytest.raises(lipcert.InputError, match=r"lipcert\[lightning\]"):
        importlib.import_module("lipcert.training.lightning")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_lightning_trains_with_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from lipcert.training.lightning import LipschitzCallback

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, step: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self(step[0]), step[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    def fit(module: nn.Module, callback: LipschitzCallback, epochs: int, **more: Any) -> Any:
        data = torch.utils.data.DataLoader([batch(k) for k in range(4)], batch_size=None)
        trainer = pl.Trainer(
            max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, **settings,
        )  # fmt: skip
        trainer.fit(module, data, **more)
        return trainer

    values = []
    for weight in (0.0, 1.0):
        module, callback = Classifier(), LipschitzCallback(IMAGE, weight, certify={}, **OPTIONS)
        fit(module, callback, 2)
        values.append(callback.bound.value)
    assert values[1] < 0.9 * values[0]
    half, first = Classifier(), LipschitzCallback(IMAGE, 1.0, **OPTIONS)
    fit(half, first, 1).save_checkpoint(tmp_path / "half.ckpt")
    again, second = Classifier(), LipschitzCallback(IMAGE, 1.0, **OPTIONS)
    fit(again, second, 2, ckpt_path=tmp_path / "half.ckpt")
    assert second.regularizer.estimate.value == pytest.approx(callback.regularizer.estimate.value, rel=1e-6)
