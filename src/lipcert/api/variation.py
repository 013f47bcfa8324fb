"""Signs of derivatives, inverse constants and one-sided constants."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.api.common import problem_of
from lipcert.arguments import budget_of, device_of, generator_of
from lipcert.capture.adapter import Example, Wrt
from lipcert.capture.load import Model
from lipcert.capture.model import Output
from lipcert.domain import NORMS, Domain
from lipcert.errors import InputError, NumericsError, named
from lipcert.methods.base import Run
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.variation.derivatives import DerivativeSigns, derivatives
from lipcert.variation.inverse import InverseBound, inverse_bound
from lipcert.variation.one_sided import OneSidedBound, one_sided_bound


def derivative_signs(
    model: Model,
    example_input: Example,
    domain: Domain = None,
    select: Tensor | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> DerivativeSigns:
    """Certified signs of ∂f_i/∂x_j on a domain, and an interval for each: where a model is monotone.

    Args:
        model, example_input, select, wrt, output: as for ``bound``.
        domain: a ``Ball``, ``Box`` or ``Intersection``; None for the whole space.

    Returns:
        A ``DerivativeSigns``: ``signs`` (k, *shape of one example) of −1, 0 and 1, 0 where the sign is not known or the
        derivative is zero; ``lower`` and ``upper``. All of Clarke's derivatives at kinks are included.

    Raises:
        CaptureError, InputError: as ``bound``; MethodError: the network is too large.
    """
    return derivatives(problem_of(model, example_input, (2, 2), domain, select, None, wrt, output))


def inverse_lipschitz_bound(
    model: Model,
    example_input: Example,
    norm: float = 2,
    domain: Domain = None,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> InverseBound:
    """A certified lower Lipschitz constant: ‖f(x) − f(y)‖_p ≥ value · ‖x − y‖_p for all x, y of the domain.

    Linear layers count with their least singular value (l1, l∞: 1/‖W⁻¹‖), activations with their least |slope|,
    residual blocks x + g(x) with 1 − Lip(g); compositions multiply. Where a part may bring points together, a ReLU say,
    the value is 0, which says nothing; ``breakdown`` shows where.

    Args:
        model, example_input, domain, seed, device, wrt, output: as for ``bound``.
        norm: p: 1, 2 or inf, on both sides.
        budget: seconds for the bounds of residual branches.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    problem, run = _prepared(model, example_input, norm, domain, budget, seed, device, wrt, output)
    with named(NumericsError, "the inverse constant"), ordinary(), torch.random.fork_rng(devices=[]):
        return inverse_bound(problem, run)


def one_sided_lipschitz_bound(
    model: Model,
    example_input: Example,
    norm: float = 2,
    domain: Domain = None,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> OneSidedBound:
    """A certified upper bound of the one-sided Lipschitz constant (logarithmic norm) of a vector field, e.g. for steps.

    Args:
        model: f: R^n → R^n; what else as for ``bound``.
        example_input, domain, seed, device, wrt, output: as for ``bound``.
        norm: p: 1, 2 or inf.
        budget: seconds for all bounds together.

    Returns:
        A ``OneSidedBound``; negative where the field contracts, never above the Lipschitz constant's bound.

    Raises:
        CaptureError, InputError: as ``bound``; outputs and inputs that differ in number.
    """
    problem, run = _prepared(model, example_input, norm, domain, budget, seed, device, wrt, output)
    with named(NumericsError, "the one-sided constant"), ordinary(), torch.random.fork_rng(devices=[]):
        return one_sided_bound(problem, run)


def _prepared(
    model: Model, example: Example, norm: float, domain: Domain, budget: float, seed: int,
    device: str | torch.device | None, wrt: Wrt, output: Output,
) -> tuple[Problem, Run]:  # fmt: skip
    if isinstance(norm, bool) or not isinstance(norm, (int, float)) or norm not in NORMS:
        raise InputError(f"norm must be 1, 2 or inf, on both sides, not {norm!r}.")
    problem = problem_of(model, example, (norm, norm), domain, None, None, wrt, output)
    return problem, Run(generator_of(seed), device_of(device), budget_of(budget))
