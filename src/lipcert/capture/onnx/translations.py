"""Imports every file of translations, so that the table is complete."""

from lipcert.capture.onnx import elementwise, layers, recurrent, reductions, resizing, structure, windows

__all__ = ["elementwise", "layers", "recurrent", "reductions", "resizing", "structure", "windows"]
