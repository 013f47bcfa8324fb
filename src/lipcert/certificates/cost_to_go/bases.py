"""Bases in which maxima over windows hand on their quadratic costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.errors import CertificateError
from lipcert.network.graph import AffineNode, Network, Node
from lipcert.network.hashing import index_key
from lipcert.network.images import image_if_known
from lipcert.network.linear import LinearMap, OpMap, Shape, compose, size
from lipcert.ranges.build import maximum

if TYPE_CHECKING:
    from lipcert.network.nonlinearity import MaxSelection

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
            nodes.append(_in_basis(replace(before, parents=tuple(place[p] for p in before.parents)), windows, matrix))
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


def _in_basis(before: AffineNode, windows: MaxSelection, matrix: Tensor) -> AffineNode:
    """u as a node: the maps before the windows, and B."""
    linear = _in_bases(windows.index, matrix, before.shape)
    offset = None if before.known_offset is None else image_if_known(linear, before.known_offset)
    return replace(
        before, shape=linear.out_shape, name=f"{before.name} in a basis", source=None,
        maps=tuple(compose(own, linear) for own in before.maps),
        offset=None if offset is None else offset.mid, offset_error=None if offset is None else offset.rad,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class InBases(OpMap):
    """x ↦ B x window by window, on a batch at once; the places of the entries are the function's."""

    places: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def apply(self, x: Tensor) -> Tensor:
        """Without a ``vmap``, which is several times slower."""
        if not isinstance(x, Tensor):
            return super().apply(x)
        entries = x.flatten(1).index_select(1, self.places.reshape(-1).to(x.device))
        return torch.einsum("orl,bol->bor", self.constants[0], entries.reshape(len(x), *self.places.shape))


def _in_bases(index: Tensor, matrix: Tensor, in_shape: Shape) -> LinearMap:
    """B of every window, (O, K, K), as a map of the values that the windows at these places, (O, K), are of."""

    def function(x: Tensor, b: Tensor) -> Tensor:
        return (b * x.reshape(-1)[index.to(x.device)].unsqueeze(-2)).sum(-1)

    def transposed(y: Tensor, b: Tensor) -> Tensor:
        entries = torch.einsum("orl,bor->bol", b, y).flatten(1)
        total = y.new_zeros(len(y), size(in_shape)).index_add(1, index.reshape(-1).to(y.device), entries)
        return total.reshape(len(y), *in_shape)

    most = int(torch.bincount(index.reshape(-1), minlength=1).max())
    return InBases(
        "in bases", function, in_shape, tuple(index.shape), (matrix.contiguous(),), f"{index_key(index + 1)} in bases",
        float(index.shape[1] * (1 + most)), stored=True, transposed=transposed, places=index,
    )  # fmt: skip
