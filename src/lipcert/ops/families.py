"""Importing this module registers every op rule."""

from lipcert.ops import (  # noqa: F401
    activations,
    arithmetic,
    branches,
    convolution,
    linear,
    masking,
    normalisation,
    norms,
    padding,
    pooling,
    resize,
    selections,
    softmax,
    sorting,
    structure,
    unbounded,
)
