"""Importing this module registers every kind of certificate."""

from lipcert.certificates import (  # noqa: F401
    branch_tree,
    converted,
    hull,
    interval_jacobian,
    joint_transform,
    layer_pairs,
    layer_product,
    loop_transform,
    mixed_product,
    quadratic,
    transposed,
    vertex_enumeration,
)
