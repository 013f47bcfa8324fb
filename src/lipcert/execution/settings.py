"""Settings of this process under which torch computes what float32 bounds are not about."""

from __future__ import annotations

import os

import torch

from lipcert.capture.steps import Steps
from lipcert.errors import InputError

#: Where newer versions of PyTorch keep the precision of float32 on the CPU.
_PRECISIONS = (("generic", "all"), ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"))


def require_float32(steps: Steps) -> None:
    """Refuse a process that would run the model in another arithmetic.

    Raises:
        InputError: a reduced precision is set, or convolutions would go to NNPACK.
    """
    reduced = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", os.environ.get("DNNL_DEFAULT_FPMATH_MODE", "STRICT"))
    if reduced.upper() != "STRICT" or _reduced():
        raise InputError(
            "this process computes float32 products in a reduced precision, which arithmetic='float32' does not cover: "
            "call torch.set_float32_matmul_precision('highest'), leave the fp32_precision of torch.backends.mkldnn at "
            "'ieee', and unset ONEDNN_DEFAULT_FPMATH_MODE."
        )
    convolves = any("conv" in step.op for step in steps.calls)
    if convolves and not torch._C._get_mkldnn_enabled() and torch._C._get_nnpack_enabled():
        raise InputError(
            "with torch.backends.mkldnn switched off, torch runs convolutions of 16 and more examples by NNPACK, whose "
            "Winograd and Fourier transforms round in another way than sums of products: call "
            "torch.backends.nnpack.set_flags(False), or leave oneDNN on."
        )


def _reduced() -> bool:
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        return any(torch._C._get_fp32_precision_getter(*place) not in ("none", "ieee") for place in _PRECISIONS)
    return torch.get_float32_matmul_precision() != "highest"
