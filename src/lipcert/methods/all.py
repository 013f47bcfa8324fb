"""Importing this module registers every method."""

from lipcert.methods import (  # noqa: F401
    auto,
    autolip,
    branch_and_bound,
    eclipse_fast,
    hull,
    interval_jacobian,
    liplt,
    lipsdp,
    lipsdp_ipm,
    mixed_product,
    seqlip,
)
