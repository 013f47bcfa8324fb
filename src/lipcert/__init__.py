"""lipcert: certified upper bounds on the Lipschitz constant of trained neural networks."""

__version__ = "0.1.0"

from lipcert.api import bound, lower_bound, methods, supported_ops, verify
from lipcert.errors import (
    CaptureError,
    CertificateError,
    InputError,
    LipcertError,
    MissingExtraError,
    NotLipschitzError,
    NumericsError,
    TrainModeError,
    UnsupportedNormError,
    UnsupportedOpError,
)
from lipcert.methods.autolip import AutoLip
from lipcert.problem import Ball, Box
from lipcert.result import Bound, Estimate, LowerBound

__all__ = [
    "AutoLip",
    "Ball",
    "Bound",
    "Box",
    "CaptureError",
    "CertificateError",
    "Estimate",
    "InputError",
    "LipcertError",
    "LowerBound",
    "MissingExtraError",
    "NotLipschitzError",
    "NumericsError",
    "TrainModeError",
    "UnsupportedNormError",
    "UnsupportedOpError",
    "bound",
    "lower_bound",
    "methods",
    "supported_ops",
    "verify",
]
