"""Bases in which maxima over windows hand on their quadratic costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.errors import CertificateError
from lipcert.network.graph import AffineNode, Network, Node
from lipcert.network.hashing import index_key
from lipcert.network.linear import LinearMap, OpMap, Shape, compose, size
from lipcert.network.nonlinearity import MaxSelection
from lipcert.network.transform import moved_offset
from lipcert.ranges.build import maximum

#: Entries of a window beyond which its cost stays one of single entries.
MOST_ENTRIES = 9
#: How large a number of a basis may be, and how small one of its inverse.
LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Basis:
    """What a maximum over windows hands its quadratic costs to: u = B v, window by window.

    Why such costs are smaller: neighbouring values of a convolution go together. A maximum moves by at most the length
    of δu whenever the rows of B⁻¹ have length 1, as δmax v lies between entries of δv = B⁻¹δu. For B = 1 that is the
    length of δv; the best B makes the map to u about that to the entry which is chosen, instead of that to all.

    Attributes:
        position: of the affine node whose value is u, (O, K).
        matrix: B of every window, (O, K, K); rows and columns of repeated entries are 0.
        inverse: about B⁻¹, (O, K, K).
    """

    position: int
    matrix: Tensor
    inverse: Tensor

    def to(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """B and its inverse in the dtype and on the device of another tensor."""
        return self.matrix.to(like), self.inverse.to(like)


def classes_of(windows: MaxSelection) -> int:
    """How many bases there are: one per channel, where there are any."""
    shape = windows.out_shape
    return shape[1] if len(shape) > 2 and shape[0] == 1 else 1


def with_bases(network: Network, bases: Mapping[int, Tensor]) -> tuple[Network, dict[int, Basis]]:
    """The network with a node u for every maximum that has a basis, and these by the maxima's new positions.

    Args:
        network: fused.
        bases: position of a maximum of the values of an affine node → (classes, K, K).

    Raises:
        CertificateError: they do not fit the network.
    """
    nodes: list[Node] = []
    place: dict[int, int] = {}
    found: dict[int, Basis] = {}
    for k in bases:
        if not 0 < k < len(network.nodes) or maximum(network.nodes[k]) is None:
            raise CertificateError(f"the certificate has a basis at {k}, where the network has no maxima over windows.")
    for k, node in enumerate(network.nodes):
        windows = maximum(node)
        if windows is not None and k in bases:
            before = network.nodes[node.parents[0]]
            if not isinstance(before, AffineNode):
                raise CertificateError(f"the certificate has a basis at {k}, for maxima of what is not affine.")
            _require(bases[k], windows, k)
            matrix, inverse = (_of_windows(t, windows) for t in (bases[k], torch.linalg.inv(bases[k])))
            nodes.append(_turned(replace(before, parents=tuple(place[p] for p in before.parents)), windows, matrix))
            found[len(nodes)] = Basis(len(nodes) - 1, matrix, inverse)
        place[k] = len(nodes)
        nodes.append(replace(node, parents=tuple(place[p] for p in node.parents)))
    return Network(tuple(nodes)), found


def _require(bases: Tensor, windows: MaxSelection, k: int) -> None:
    entries = windows.index.shape[1]
    if bases.dtype != torch.float64 or tuple(bases.shape) != (classes_of(windows), entries, entries):
        raise CertificateError(f"the certificate's basis at {k} does not fit the network's windows.")
    if entries > MOST_ENTRIES or not bool((bases.abs() <= LARGEST).all()):
        raise CertificateError(f"the certificate's basis at {k} is too large.")
    if not bool((torch.linalg.svdvals(bases) > 1.0 / LARGEST).all()):
        raise CertificateError(f"the certificate's basis at {k} is none: its rows are as good as dependent.")


def _of_windows(bases: Tensor, windows: MaxSelection) -> Tensor:
    """(O, K, K); a window with repetitions keeps the entries that it has."""
    whole = bases.repeat_interleave(len(windows.index) // len(bases), dim=0)
    return torch.where(windows.first.all(dim=1)[:, None, None], whole, torch.diag_embed(windows.first.double()))


def _turned(before: AffineNode, windows: MaxSelection, matrix: Tensor) -> AffineNode:
    """u as a node: the maps before the windows, and B."""
    linear = _in_basis(windows.index, matrix, before.shape)
    offset = None if before.offset is None else moved_offset(before, linear)
    return replace(
        before, shape=linear.out_shape, name=f"{before.name} in a basis", source=None,
        maps=tuple(compose(own, linear) for own in before.maps),
        offset=None if offset is None else offset.mid, offset_error=None if offset is None else offset.rad,
    )  # fmt: skip


def _in_basis(index: Tensor, matrix: Tensor, in_shape: Shape) -> LinearMap:
    """x ↦ B x of every window: (O, K) places and (O, K, K)."""
    shape = tuple(index.shape)

    def function(x: Tensor, b: Tensor) -> Tensor:
        return (b * x.reshape(-1)[index.to(x.device)].unsqueeze(-2)).sum(-1)

    def transposed(y: Tensor, b: Tensor) -> Tensor:
        entries = (b * y.unsqueeze(-1)).sum(-2).flatten(1)
        total = y.new_zeros(len(y), size(in_shape)).index_add(1, index.reshape(-1).to(y.device), entries)
        return total.reshape(len(y), *in_shape)

    terms = float(shape[1] + int(torch.bincount(index.reshape(-1), minlength=1).max()) * shape[1])
    key = f"windows of {index_key(index + 1)} in a basis"
    return OpMap("basis", function, in_shape, shape, (matrix.contiguous(),), key, terms, stored=True, transposed=transposed)
