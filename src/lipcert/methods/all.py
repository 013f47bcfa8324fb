"""Importing this module registers every method."""

from lipcert.methods import autolip, lipsdp  # noqa: F401
