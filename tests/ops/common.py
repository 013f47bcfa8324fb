"""Captured cases, shared by the test files; importable because pytest adds this folder by conftest."""

from __future__ import annotations

import math
import zlib
from functools import cache

import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.func import jacrev

from lipcert.capture.torch_export import capture
from lipcert.network.graph import Network

NORMS = (1.0, 2.0, math.inf)
BY_NAME = {case.name: case for case in CASES}


@cache
def captured(name: str) -> tuple[Case, nn.Module, Network]:
    case = BY_NAME[name]
    torch.manual_seed(zlib.crc32(name.encode()) % 2**31)
    module = case.make().eval().double().requires_grad_(False)
    return case, module, capture(module, torch.randn(2, *case.shape, dtype=torch.float64))


def points(case: Case, count: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, 1, *case.shape, generator=generator, dtype=torch.float64)


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """Dense Jacobian of the module itself at one example (1, *shape)."""
    value = jacrev(module)(x)
    return value.reshape(-1, x.numel())


def norm(matrix: Tensor, p: float) -> float:
    return float(torch.linalg.matrix_norm(matrix, {1.0: 1, 2.0: 2, math.inf: math.inf}[p])) if matrix.numel() else 0.0
