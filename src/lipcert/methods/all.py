"""Importing this module registers every method."""

from lipcert.methods import auto, autolip, branch_and_bound, eclipse_fast, hull, liplt, lipsdp, lipsdp_ipm, seqlip  # noqa: F401
