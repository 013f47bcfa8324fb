"""Importing this module registers every op rule and every pattern."""

import importlib
import pkgutil

from lipcert.ops import (  # noqa: F401
    activations,
    arithmetic,
    attention,
    branches,
    convolution,
    distances,
    linear,
    losses,
    masking,
    normalisation,
    norms,
    padding,
    pairs,
    pooling,
    powers,
    recognise,
    recurrent,
    resize,
    scatters,
    selections,
    softmax,
    sorting,
    structure,
    unbounded,
)

for _module in pkgutil.iter_modules(recognise.__path__, recognise.__name__ + "."):
    importlib.import_module(_module.name)
