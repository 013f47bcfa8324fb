"""Importing this module registers every method."""

from lipcert.methods import autolip  # noqa: F401
