"""Importing this module registers every method."""

from lipcert.methods import autolip, liplt, lipsdp, lipsdp_ipm  # noqa: F401
