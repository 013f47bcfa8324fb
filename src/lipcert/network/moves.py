"""Linear maps that move or scale entries."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.network.hashing import index_key
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Shape, Sum, compose, size


def times(x: Tensor, constant: Tensor) -> Tensor:
    """The function of the maps that multiply by a constant, by which they are recognised."""
    return x * constant


def gather(index: Tensor, in_shape: Shape, out_shape: Shape, sign: float = 1.0) -> LinearMap:
    """The map x ↦ sign · x.flatten()[index].reshape(out_shape)."""
    index = index.reshape(-1)

    def function(x: Tensor) -> Tensor:
        return x.reshape(-1)[index.to(x.device)].reshape(out_shape)

    def transposed(y: Tensor) -> Tensor:
        return _summed(y.reshape(len(y), -1), index, in_shape, repeats > 1)

    repeats = int(torch.bincount(index, minlength=1).max()) if index.numel() else 0
    count, key = float(repeats - 1 if repeats else 0), index_key(index + 1)
    chosen: LinearMap = OpMap("gather", function, in_shape, out_shape, (), key, count, transposed=transposed)
    return chosen if sign == 1.0 else compose(chosen, Identity(out_shape, sign))


def scatter(index: Tensor, in_shape: Shape, out_shape: Shape) -> LinearMap:
    """The map that puts entry i of its input at flat place index[i] (all distinct) of a zero tensor."""
    source = torch.full((size(out_shape),), -1, dtype=torch.int64)
    source[index.reshape(-1)] = torch.arange(index.numel())

    def function(x: Tensor) -> Tensor:
        padded = torch.cat([x.reshape(-1), x.new_zeros(1)])
        return padded[source.to(x.device)].reshape(out_shape)

    def transposed(y: Tensor) -> Tensor:
        return y.reshape(len(y), -1)[:, index.reshape(-1).to(y.device)].reshape(len(y), *in_shape)

    return OpMap("scatter", function, in_shape, out_shape, (), index_key(source + 1), 0.0, transposed=transposed)


def _summed(rows: Tensor, index: Tensor, shape: Shape, repeated: bool) -> Tensor:
    """Entries of (B, k) rows put at flat places ``index`` of zeros (B, *shape), summed where these are ``repeated``."""
    result = rows.new_zeros(len(rows), size(shape))
    places = index.to(rows.device)
    if repeated:
        result.index_add_(1, places, rows)
    else:
        result[:, places] = rows
    return result.reshape(len(rows), *shape)


#: What a diagonal map is, for ``OpMap.attributes``.
DIAGONAL = "entries times constants"

#: Entries up to which a map that moves entries is written down in order to be simplified.
_MOST_WRITTEN = 40_000_000


def simplified(linear: LinearMap) -> LinearMap:
    """The same map with what cancels left out, where it only moves, adds and subtracts entries; else itself.

    b + (a − b), a maximum that a surely wins, is a; as a sum of moves it would count the roundings of b. All numbers
    here are whole, and small ones, which float64 adds exactly: sums of their absolute values stay below 2^20.
    """
    if not isinstance(linear, (Composition, Sum)) or linear.in_size * linear.out_size > _MOST_WRITTEN:
        return linear
    if not only_moves(linear):
        return linear
    if linear.is_zero or not float(linear.absolute().matrix().max()) < 2.0**20:
        return linear
    matrix = linear.matrix()
    most = int((matrix != 0).sum(dim=1).max())
    if most == 0:
        return compose(linear, Identity(linear.out_shape, 0.0))
    size_, index = matrix.abs().topk(most, dim=1)
    factors = torch.where(size_ > 0, matrix.gather(1, index), 0.0)
    return combination(index, factors, linear.in_shape, linear.out_shape)


def combination(index: Tensor, factors: Tensor, in_shape: Shape, out_shape: Shape) -> LinearMap:
    """The map that sums factors[o, k] · x.flatten()[index[o, k]] over k."""

    def function(x: Tensor, c: Tensor) -> Tensor:
        return (x.reshape(-1)[index.to(x.device)] * c).sum(-1).reshape(out_shape)

    def transposed(y: Tensor, c: Tensor) -> Tensor:
        return _summed((y.reshape(len(y), -1, 1) * c).flatten(1), index.reshape(-1), in_shape, True)

    rounding = float(index.shape[1] + int(torch.bincount(index.reshape(-1), minlength=1).max()))
    return OpMap(
        "combination", function, in_shape, out_shape, (factors.contiguous(),), f"combination of {index_key(index + 1)}",
        rounding, stored=True, transposed=transposed,
    )  # fmt: skip


def only_moves(linear: LinearMap) -> bool:
    """Whether the map only moves, adds and subtracts entries, or multiplies them by whole numbers."""
    return all(_moves(leaf) for leaf in linear.leaves())


def _moves(leaf: LinearMap) -> bool:
    if isinstance(leaf, Identity):
        return leaf.scale in (-1.0, 0.0, 1.0)
    if not isinstance(leaf, OpMap):
        return False
    if not leaf.constants:
        return leaf.attributes.startswith("entries")  # see ``index_key``
    one = leaf.attributes.startswith(("combination of entries", DIAGONAL)) and leaf.stored
    return one and bool((leaf.constants[0] == leaf.constants[0].round()).all())
