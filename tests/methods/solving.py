"""Run methods on a model that is captured only once (``lipcert.bound`` captures on every call)."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from lipcert import Bound
from lipcert.capture.torch_export import capture
from lipcert.methods.base import Method, Run, make
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem

_NETWORKS: weakref.WeakKeyDictionary[nn.Module, Network] = weakref.WeakKeyDictionary()


def solved(model: nn.Module, example: Tensor | int, method: str | Method, norm: Norm = (2.0, 2.0)) -> Bound:
    """The Bound of one method; ``example`` is an example input or the number of inputs."""
    if model not in _NETWORKS:
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        _NETWORKS[model] = capture(model, torch.zeros(1, example, dtype=dtype) if isinstance(example, int) else example)
    chosen = make(method)
    problem = Problem(_NETWORKS[model], norm)
    return chosen.bound(problem, Run(torch.Generator().manual_seed(0), torch.device("cpu")), Chance())
