"""Importing this module registers every kind of certificate."""

from lipcert.certificates import layer_product, loop_transform, pair_product, quadratic, vertices  # noqa: F401
