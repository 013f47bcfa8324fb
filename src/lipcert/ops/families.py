"""Importing this module registers every op rule."""

from lipcert.ops import (  # noqa: F401
    activations,
    arithmetic,
    convolution,
    linear,
    normalisation,
    structure,
)
