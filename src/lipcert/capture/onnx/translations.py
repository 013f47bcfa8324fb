"""Imports every file of translations, so that the table is complete."""

from lipcert.capture.onnx import (
    constants,
    elementwise,
    fourier,
    layers,
    recurrent,
    reductions,
    resizing,
    structure,
    windows,
)

__all__ = [
    "constants",
    "elementwise",
    "fourier",
    "layers",
    "recurrent",
    "reductions",
    "resizing",
    "structure",
    "windows",
]
