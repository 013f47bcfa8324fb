"""Importing this module registers every method."""

from lipcert.methods import auto, autolip, liplt, lipsdp, lipsdp_ipm  # noqa: F401
