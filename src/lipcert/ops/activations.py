"""Elementwise activations with their exact slope ranges [α, β]."""

from __future__ import annotations

from typing import Any

from lipcert.network.builder import Var
from lipcert.network.transform import RELU
from lipcert.ops.context import Context
from lipcert.ops.registry import rule


@rule("relu", kind="activation")
def relu(ctx: Context, x: Any) -> Var:
    """ReLU: slopes [0, 1]."""
    return ctx.activation(ctx.variable(x), RELU)
