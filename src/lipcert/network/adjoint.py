"""The transposed of a linear map as a linear map of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipcert.errors import UnsupportedNormError
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Sum, add, compose


def adjoint(linear: LinearMap) -> LinearMap:
    """Wᵀ, with the same rounding count, which is that of both directions (``LinearMap``).

    Raises:
        UnsupportedNormError: a kind of map that has no transposed as a map.
    """
    if isinstance(linear, Identity):
        return linear
    if isinstance(linear, Composition):
        return compose(*(adjoint(part) for part in reversed(linear.maps)))
    if isinstance(linear, Sum):
        return add(*(adjoint(part) for part in linear.maps))
    if isinstance(linear, Dense):
        majorant = None if linear.majorant is None else linear.majorant.T.contiguous()
        return replace(
            linear, constants=(linear.constants[0].T.contiguous(),), majorant=majorant, in_shape=linear.out_shape,
            out_shape=linear.in_shape, sources=(),
        )  # fmt: skip
    if isinstance(linear, OpMap):
        return _turned(linear)
    raise UnsupportedNormError(f"a map of kind {type(linear).__name__} has no transposed.")


def _turned(linear: OpMap) -> OpMap:
    """An operation's map back, as an operation: entries of it are entries of the map, so what bounds these serves."""

    def back(y: Tensor, *constants: Tensor) -> Tensor:
        if linear.transposed is not None:
            return linear.transposed(y[None], *constants)[0]
        zero = torch.zeros(linear.in_shape, dtype=y.dtype, device=y.device)
        pull = torch.func.vjp(lambda x: linear.function(x, *constants), zero)[1]
        return pull(y)[0]

    def forth(x: Tensor, *constants: Tensor) -> Tensor:
        return torch.vmap(lambda example: linear.function(example, *constants))(x)

    def written(*constants: Tensor) -> Tensor:
        assert linear.written is not None
        return linear.written(*constants).mT.contiguous()

    return replace(
        linear, label=f"{linear.label} transposed", function=back, in_shape=linear.out_shape,
        out_shape=linear.in_shape, attributes=f"transposed {linear.attributes}", sources=(), transposed=forth,
        written=None if linear.written is None else written,
    )  # fmt: skip
