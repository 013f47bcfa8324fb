"""Importing this module registers every kind of certificate."""

from lipcert.certificates import (  # noqa: F401
    branch_tree,
    hull,
    layer_pairs,
    layer_product,
    loop_transform,
    quadratic,
    vertex_enumeration,
)
