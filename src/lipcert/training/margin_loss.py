"""Losses for certified accuracy: margins counted against the Lipschitz constant of each pair of classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.arguments import real, seed_of, whole
from lipcert.errors import InputError, NumericsError
from lipcert.training.accuracy import (
    AccuracyEstimate,
    accuracy_by_pairs,
    evaluating,
    logits_of,
    margins_of,
    positive,
    require_labels,
)
from lipcert.training.live import Live
from lipcert.training.pairs import COLUMNS, PairMethod, Pairs
from lipcert.training.regularizer import require_two

Kind = Literal["mixed", "gloro", "crm"]

#: Default of ``strength`` for each kind.
STRENGTH: Mapping[Kind, float] = {"mixed": 0.35, "gloro": 1.0, "crm": 1.0}
#: Default of ``warm_up``.
WARM_UP = 1000
#: Of what a batch's loss without constants is below a constant's loss the part that they may take; halvings to find it.
_PART, _HALVINGS = 0.75, 10
#: What a constant is taken for at least where it divides: of equal outputs radii and their gradients would overflow.
_LEAST_CONSTANT = 1e-9
#: Calls from one look at whether the outputs still depend on the inputs to the next, and part of them that is nothing.
_LOOKED, _ALIKE = 100, 1e-3
#: Modules that run another one.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class MarginLoss:
    """A classification loss in which the constants K_ij of pairs of outputs stand against the margins.

        loss = MarginLoss(model, example, radius=1.58)
        for x, y in batches:
            value = loss(x, y)
            optimiser.zero_grad(); value.backward(); optimiser.step()

    K_ij is an estimate of the constant of f_i − f_j that one warm power step per call keeps near its maximum: by
    ``autolip`` ‖w_i − w_j‖ times the product of the norms of the layers before the last, by ``lipsdp`` LipSDP's own for
    each pair. With ε the radius and r the strength:

    * ``mixed``, the default: x' by projected gradient steps at the full radius, then cross-entropy of the logits
      f_j(x') + r ε K_yj; r = 0.35. Adversarial training keeps attacks out, the reduced term keeps constants down: at
      full strength (r = 1, x' = x) the bound is met at the cost of the function.
    * ``gloro``: an extra logit max_{i ≠ j} (f_i + r ε K_ij), j the predicted class; cross-entropy over all (Leino, Wang
      & Fredrikson 2021, *Globally-robust neural networks*).
    * ``crm``: cross-entropy + r · mean over the examples with a radius below ε of (1/α) log Σ_{j ≠ y} exp(−α R_yj),
      R_yj = (f_y − f_j)/K_yj the certified radius (Fazlyab et al. 2023, *Certified robustness via dynamic margin
      maximization and improved Lipschitz regularization*).

    A model that meets the full radius at once may end in a constant, of which a look at every 100th batch warns: ε
    grows from 0 over the first ``warm_up`` calls, or as ``schedule`` says; ``reach`` is the present ε. No constant has
    a loss below the entropy H of the labels, log m where classes are alike (H is that of all labels so far). Of what a
    batch's loss with r = 0 is below H, constants may take 3/4 in ``mixed`` and ``gloro``: where they would take more, r
    counts for a ``share`` of it in this call, on each rank its own. So the constants K alone make no model a constant;
    an attack may. A warning tells when the share stays below 1/2 for long. ``strength`` and ``radius`` may also be set
    to other numbers between calls.

    Args:
        model: the module that is trained; it returns logits (B, m). Never changed, but run.
        example: floating tensor with a leading batch dimension of any size; only its shape matters.
        kind: see above.
        method: of K. ``lipsdp`` leaves a model freer at the same constants, more accurate and harder to attack; but
            its norms are no smaller than they must be, and certification takes longer.
        columns: rank of LipSDP's relaxation.
        radius: ε > 0, l2, in the units of the inputs.
        strength: r ≥ 0; None: as the kind has it.
        warm_up: calls over which ε grows to ``radius`` in a line; None: 1000. A third of all is a good choice.
        schedule: instead: number of a call, from 1 on → share of the radius, from 0 to 1.
        attack_steps: of ``mixed``.
        clip: None, or (least, greatest) value of an input's entry, which the attack keeps to.
        sharpness: α of ``crm``; None: 10/radius.
        norm: 2.
        passes: power steps per call.
        seed: of the first vectors and of the attack's starts.

    Raises:
        InputError, CaptureError, UnsupportedNormError: as ``LipschitzRegularizer``.
        MethodError: the model has one output; for ``autolip`` it does not end in a linear map; for ``lipsdp`` it has
            too many pairs of outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        kind: Kind = "mixed",
        *,
        method: PairMethod = "autolip",
        columns: int = COLUMNS,
        radius: float,
        strength: float | None = None,
        warm_up: int | None = None,
        schedule: Callable[[int], float] | None = None,
        attack_steps: int = 4,
        clip: tuple[float, float] | None = None,
        sharpness: float | None = None,
        norm: float = 2,
        passes: int = 1,
        seed: int = 0,
    ) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}.")
        if method not in get_args(PairMethod):
            raise InputError(f"method must be one of {', '.join(get_args(PairMethod))}, not {method!r}.")
        self.kind, self.method = kind, method
        self.radius = positive("radius", radius)
        self.strength = STRENGTH[kind] if strength is None else positive("strength", strength, zero=True)
        self.sharpness = 10.0 / self.radius if sharpness is None else positive("sharpness", sharpness)
        for name, number in (("attack_steps", attack_steps), ("passes", passes), ("columns", columns)):
            if (whole(number) or 0) < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {number!r}.")
        if clip is not None and not (len(clip) == 2 and real(clip[0]) < real(clip[1])):
            raise InputError(f"clip must be None or a pair of numbers, the lesser first, not {clip!r}.")
        if schedule is not None and (warm_up is not None or not callable(schedule)):
            raise InputError("schedule is a function of the number of a call, and takes the place of warm_up.")
        calls = WARM_UP if warm_up is None else whole(warm_up)
        if calls is None or calls < 0:
            raise InputError(f"warm_up must be a number of calls, not {warm_up!r}.")
        require_two(norm)
        self.attack_steps, self.clip, self.warm_up, self.schedule = attack_steps, clip, calls, schedule
        self.calls, self.share, self._cut = 0, 1.0, 0
        self._labels: Tensor | None = None
        self._model = model
        self._pairs = Pairs(Live.of(model, example), passes, seed_of(seed), method, columns)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch.

        Args:
            inputs: (B, *shape of one example).
            labels: (B,) whole numbers from 0 to m − 1.

        Raises:
            InputError: labels or logits do not fit, or torch is in inference mode; NumericsError: parameters, logits or
                constants are not finite.
        """
        if torch.is_inference_mode_enabled():
            raise InputError(
                "a loss has no gradients in torch.inference_mode(): call it outside, under no_grad if need be."
            )
        require_labels(self._pairs.classes, inputs, labels)
        self.calls += 1
        points = self._attacked(inputs, labels) if self.kind == "mixed" else inputs
        constants = self._pairs.matrix()
        logits = logits_of(self._model, points, self._pairs.classes).to(constants.dtype)
        if self.kind == "crm":
            loss = F.cross_entropy(logits, labels) + self.strength * self._lost_radius(logits, labels, constants)
        else:
            loss = self._shared(logits, labels, constants)
        if not bool(torch.isfinite(loss)):
            self._explain(logits)
        if self.calls % _LOOKED == 0:
            self._warn_of_a_constant(points.detach(), logits.detach())
        return loss

    def _shared(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        """Cross-entropy against the constants, at the largest share of the strength that leaves a constant farther."""
        raised = self._raised if self.kind == "mixed" else self._with_extra_logit
        rise, entropy = self.strength * self.reach * constants, self._entropy(labels)

        def at(share: Tensor | float) -> Tensor:
            return F.cross_entropy(raised(logits, labels, share * rise), labels)

        loss, self.share = at(1.0), 1.0
        with torch.no_grad():
            least = at(0.0)
            most = least + _PART * (entropy - least).clamp(min=0.0)
            if bool(loss > most) and bool(torch.isfinite(loss)):
                # convex in the share: at or below its secant; halved by ratios, as it may be tiny
                low, high = (most - least) / (loss - least), torch.ones_like(loss)
                for _ in range(_HALVINGS):
                    middle = (low * high).sqrt()
                    more = at(middle) > most
                    low, high = torch.where(more, low, middle), torch.where(more, middle, high)
                self.share = float(low)
        self._warn_of_a_cut()
        return loss if self.share == 1.0 else at(self.share)

    def _entropy(self, labels: Tensor) -> Tensor:
        """Of all labels so far, and one of each class: the least loss of a constant, about."""
        counts = torch.bincount(labels, minlength=self._pairs.classes).double()
        before = torch.ones_like(counts) if self._labels is None else self._labels.to(counts.device)
        self._labels = before + counts
        shares = self._labels / self._labels.sum()
        return -(shares * shares.log()).sum()

    def _warn_of_a_cut(self) -> None:
        self._cut = self._cut + 1 if self.share < 0.5 else 0
        if self._cut == max(self.warm_up, _LOOKED):
            warnings.warn(
                f"for {self._cut} calls less than half of the strength has counted, {self.share:.2g} of it now: more "
                f"would make the model a constant at {self.reach:.3g} of the radius {self.radius:g}. Train with a "
                "smaller radius or strength.",
                stacklevel=4,
            )

    @property
    def reach(self) -> float:
        """ε at this call.

        Raises:
            InputError: the schedule gave no number from 0 to 1.
        """
        if self.schedule is None:
            return self.radius * min(1.0, self.calls / max(self.warm_up, 1))
        share = real(self.schedule(self.calls))
        if not 0.0 <= share <= 1.0:
            raise InputError(f"schedule({self.calls}) must be a share of the radius, from 0 to 1, not {share!r}.")
        return self.radius * share

    def certified_accuracy(self, inputs: Tensor, labels: Tensor, radius: float | None = None) -> AccuracyEstimate:
        """About how many examples the constants K certify at a radius (None: the loss's own); see the function."""
        at = self.radius if radius is None else positive("radius", radius, zero=True)
        return accuracy_by_pairs(self._model, self._pairs, inputs, labels, at)

    def state_dict(self) -> dict[str, Any]:
        """What, with the model's own state, makes a resumed run go on exactly."""
        own = {"generator": self._generator.get_state(), "calls": self.calls}
        if self._labels is not None:
            own["labels"] = self._labels.cpu()
        return {**self._pairs.follower.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: it is that of another model.
        """
        self._pairs.follower.load_state_dict(state)
        try:
            self.calls, self._cut = int(state["calls"]), 0
            self._labels = state.get("labels")
            self._generator.set_state(state["generator"])
        except (KeyError, TypeError, RuntimeError) as problem:
            raise InputError("this is not what state_dict() of a MarginLoss gave: it has no generator.") from problem

    @staticmethod
    def _raised(logits: Tensor, labels: Tensor, rise: Tensor) -> Tensor:
        return logits + rise[labels]

    @staticmethod
    def _with_extra_logit(logits: Tensor, _: Tensor, rise: Tensor) -> Tensor:
        predicted = logits.argmax(1)
        reach = logits + rise[predicted]
        return torch.cat([logits, reach.scatter(1, predicted[:, None], -math.inf).amax(1, keepdim=True)], 1)

    def _lost_radius(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        margins, pairs = margins_of(logits, labels, constants)
        radii = margins / pairs.clamp(min=_LEAST_CONSTANT)
        radii = radii.scatter(1, labels[:, None], math.inf)
        low = radii.detach().amin(1) < self.reach
        soft = torch.logsumexp(-self.sharpness * radii, 1) / self.sharpness
        return torch.where(low, soft, 0.0).sum() / len(logits)

    def _attacked(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Points of the ball of high loss: gradient steps of fixed length from a random start, projected."""
        inputs = inputs.detach()
        if not self.reach:
            return inputs
        number = int(torch.randint(1 << 62, (), generator=self._generator))
        generator = torch.Generator(inputs.device).manual_seed(number)  # drawn where they are, kept on the CPU
        start = torch.randn(inputs.shape, generator=generator, device=inputs.device).to(inputs)
        share = torch.rand(len(inputs), generator=generator, device=inputs.device).to(inputs)
        moved = _of_length(start, self.reach * share)
        model = self._model.module if isinstance(self._model, _WRAPPERS) else self._model
        with evaluating(model), torch.enable_grad():
            for _ in range(self.attack_steps):
                x = self._clipped(inputs + moved).requires_grad_(True)
                loss = F.cross_entropy(model(x).float(), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                moved = x.detach() - inputs + _of_length(gradient, 2.5 * self.reach / self.attack_steps)
                length = _lengths(moved)
                moved = moved * (self.reach / length.clamp(min=self.reach)).reshape(-1, *[1] * (moved.dim() - 1))
        return self._clipped(inputs + moved).detach()

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(*self.clip)

    def _warn_of_a_constant(self, points: Tensor, logits: Tensor) -> None:
        """A model whose margins no longer depend on its inputs does not come back; a shift of all classes is none."""
        margins = logits - logits.mean(1, keepdim=True)
        apart = margins.amax(0) - margins.amin(0)
        alike = bool(apart.max() <= _ALIKE * margins.abs().max()) and len(margins.argmax(1).unique()) == 1
        if alike and bool((points != points[:1]).any()):
            warnings.warn(
                f"at call {self.calls} the model gives all {len(logits)} examples of the batch the same outputs, but "
                "for a small part: at this radius and strength training has made it a constant. Start again with a "
                "smaller strength, a smaller rate or a longer warm_up.",
                stacklevel=3,
            )

    def _explain(self, logits: Tensor) -> None:
        self._pairs.live.require_finite(self._pairs.live.parameters())
        if not bool(torch.isfinite(logits).all()):
            raise NumericsError("the loss is not finite: the model returns NaN or infinity for finite inputs.")
        raise NumericsError("the loss is not finite: margins against constants overflow. Take a smaller radius.")


def _lengths(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _of_length(x: Tensor, length: Tensor | float) -> Tensor:
    """Each example scaled to this length; zero stays zero."""
    scale = length / _lengths(x).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
    return x * scale.reshape(-1, *[1] * (x.dim() - 1))
