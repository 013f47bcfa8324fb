"""Multipliers as a witness holds them, brought into the units that a check works out for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import CertificateError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents

if TYPE_CHECKING:
    from lipcert.certificates.base import Witness
    from lipcert.problem import Problem

#: Powers of two in which a witness may state its multipliers; any finite double is within them.
MOST_EXPONENT = 1_000_000


def in_own_units(problem: Problem, layerwise: bool = False) -> ScaledIncrements:
    """The increments in units that follow from the network alone.

    Units decide what underflows and what a proof costs, never what is true: the statement that comes out is about the
    network, and what underflow takes is part of the proof. So they need not be the same on every machine either.
    """
    increments = problem.expanded_increments.layerwise() if layerwise else problem.expanded_increments
    return ScaledIncrements(increments, natural_exponents(increments))


@dataclass(frozen=True, eq=False)
class Notation:
    """How a witness writes numbers: λ of node k as 4^(e_k − e_output) times what is stored, ρ as 4^−e_output times it.

    ``exponents``, one integer per node of the expanded network, are those of the units in which the search worked. They
    are part of how the numbers are written and of nothing else: a change of them is a change of the multipliers.
    """

    exponents: tuple[int, ...]
    own: tuple[int, ...]

    @classmethod
    def of(cls, witness: Witness, transformed: ScaledIncrements) -> Notation:
        """Read ``witness.arrays["exponents"]``.

        Raises:
            CertificateError: not one integer of moderate size for every node.
        """
        stored = witness.arrays.get("exponents")
        count = len(transformed.increments.relations)
        if stored is None or stored.shape != (count,) or stored.dtype not in (torch.int32, torch.int64):
            raise CertificateError("the certificate's exponents do not fit the network.")
        values = tuple(int(e) for e in stored)
        if any(abs(e) > MOST_EXPONENT for e in values):
            raise CertificateError("the certificate's exponents are out of range.")
        return cls(values, transformed.exponents)

    def multiplier(self, node: int, stored: Tensor) -> Tensor:
        """λ in the check's units; exact unless it leaves the range of floats, and then another λ."""
        power = 2 * ((self.exponents[-1] - self.exponents[node]) - (self.own[-1] - self.own[node]))
        with np.errstate(over="ignore", under="ignore"):
            return torch.from_numpy(np.ldexp(stored.double().contiguous().numpy(), np.int64(power)))

    def rho(self, stored: float) -> float:
        """A claim for ρ in the check's units; ``inf``, no claim, where it leaves the range of floats."""
        try:
            return math.ldexp(stored, 2 * (self.exponents[-1] - self.own[-1]))
        except OverflowError:
            return math.inf


def read_multipliers(
    witness: Witness, transformed: ScaledIncrements, notation: Notation, forms: int
) -> dict[int, Tensor]:
    """``multipliers.K`` of every nonlinear node K in the check's units, (forms, neurons), of a block (forms, groups).

    Raises:
        CertificateError: missing, negative, not finite or of wrong size.
    """
    multipliers = {}
    for cell in transformed.cells:
        stored = witness.arrays.get(f"multipliers.{cell.node}")
        expected = (forms, cell.groups)
        if stored is None or stored.shape != expected or not stored.is_floating_point():
            raise CertificateError(f"the multipliers of node {cell.node} are missing or of wrong size.")
        values = notation.multiplier(cell.node, stored)
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise CertificateError(f"the multipliers of node {cell.node} are negative or not finite.")
        multipliers[cell.node] = values
    return multipliers
