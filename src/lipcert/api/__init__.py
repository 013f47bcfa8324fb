"""The public interface: what ``lipcert`` offers under its own name."""

from lipcert.api.constants import bound, compare, estimate, lower_bound, methods, supported_ops, verify
from lipcert.api.outputs import execution_error, margin, output_bounds, ranges
from lipcert.api.variation import derivative_signs, inverse_lipschitz_bound, one_sided_lipschitz_bound
from lipcert.capture.onnx.load import load_onnx
from lipcert.capture.vnnlib import read_vnnlib
from lipcert.domain import Ball, Box, Intersection
from lipcert.errors import (
    CaptureError,
    CertificateError,
    EngineError,
    InputError,
    LipcertError,
    MethodError,
    NotLipschitzError,
    NumericsError,
    StoreError,
    TrainModeError,
    UnsupportedNormError,
    UnsupportedOpError,
)
from lipcert.execution.error import ExecutionError
from lipcert.methods.auto import Auto
from lipcert.methods.autolip import AutoLip
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.eclipse_fast import EclipseFast
from lipcert.methods.interval_jacobian import IntervalJacobian
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP, LipSDPLayer
from lipcert.methods.lipsdp_ipm import LipSDPInteriorPoint
from lipcert.methods.mixed_product import MixedProduct
from lipcert.methods.seqlip import CertifiedPairs, ExactPairs, RankKPairs, SeqLip
from lipcert.result import Bound, Comparison, Estimate, LowerBound, OutputBound
from lipcert.robustness.certification import Certification
from lipcert.robustness.certify import certify
from lipcert.robustness.engines import LocalEngine, RayEngine
from lipcert.variation.derivatives import DerivativeSigns
from lipcert.variation.inverse import InverseBound
from lipcert.variation.one_sided import OneSidedBound

__all__ = [
    "Auto",
    "AutoLip",
    "Ball",
    "Bound",
    "Box",
    "BranchAndBound",
    "CaptureError",
    "CertificateError",
    "Certification",
    "CertifiedPairs",
    "Comparison",
    "DerivativeSigns",
    "EclipseFast",
    "EngineError",
    "Estimate",
    "ExactPairs",
    "ExecutionError",
    "InputError",
    "Intersection",
    "IntervalJacobian",
    "InverseBound",
    "LipLT",
    "LipSDP",
    "LipSDPInteriorPoint",
    "LipSDPLayer",
    "LipcertError",
    "LocalEngine",
    "LowerBound",
    "MethodError",
    "MixedProduct",
    "NotLipschitzError",
    "NumericsError",
    "OneSidedBound",
    "OutputBound",
    "RankKPairs",
    "RayEngine",
    "SeqLip",
    "StoreError",
    "TrainModeError",
    "UnsupportedNormError",
    "UnsupportedOpError",
    "bound",
    "certify",
    "compare",
    "derivative_signs",
    "estimate",
    "execution_error",
    "inverse_lipschitz_bound",
    "load_onnx",
    "lower_bound",
    "margin",
    "methods",
    "one_sided_lipschitz_bound",
    "output_bounds",
    "ranges",
    "read_vnnlib",
    "supported_ops",
    "verify",
]
