"""lipcert: certified upper bounds on the Lipschitz constant of trained neural networks."""

from lipcert.version import __version__

from lipcert.api import bound, compare, lower_bound, methods, supported_ops, verify
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
from lipcert.methods.auto import Auto
from lipcert.methods.autolip import AutoLip
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.lipsdp import LipSDP, LipSDPLayer
from lipcert.problem import Ball, Box
from lipcert.result import Bound, Comparison, Estimate, LowerBound

__all__ = [
    "Auto",
    "AutoLip",
    "Ball",
    "Bound",
    "Box",
    "BranchAndBound",
    "CaptureError",
    "CertificateError",
    "Comparison",
    "Estimate",
    "InputError",
    "LipcertError",
    "LipSDP",
    "LipSDPLayer",
    "LowerBound",
    "MissingExtraError",
    "NotLipschitzError",
    "NumericsError",
    "TrainModeError",
    "UnsupportedNormError",
    "UnsupportedOpError",
    "bound",
    "compare",
    "lower_bound",
    "methods",
    "supported_ops",
    "verify",
]
