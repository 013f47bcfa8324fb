"""Importing this module registers every kind of certificate."""

from lipcert.certificates import layer_product, quadratic  # noqa: F401
