"""The multipliers of the quadratic cost-to-go: what a search finds and a certificate holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipcert.certificates.base import Witness
from lipcert.certificates.cost_to_go.cells import LARGEST
from lipcert.errors import CertificateError
from lipcert.network.graph import Network, Node
from lipcert.network.linear import Shape
from lipcert.ranges.build import maximum

#: (position of an affine node, place of one of its parents).
Edge = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Of P linear functions of the output at once, each of whose lower bounds they prove; float64.

    Any numbers prove something; the better they are, the more.

    Attributes:
        slope: position of an activation or a maximum → g, (P, *handed): the linear cost that it hands to its parent;
            of a maximum one for each entry of each window, see ``handed``. Absent, as the curvature, at a ReLU that
            leaves its cost to the maximum before it, see ``floors``. Of any other node that is not affine: the part of
            its linear cost that linear bounds hand to its parents; the rest is cut.
        curvature: the same → D ≥ 0, (P, *handed), or (P, 1, …, 1) for one number per function; of a maximum that has a
            basis in the coordinates of that.
        anchor: edge of an affine node from a parent that is none → z̃, (P, *shape of the parent): where the quadratic
            cost of the parent is centred. Absent: at the middle of the parent's range.
        weight: edge of an affine node → T ≥ 0, (P, *shape of the parent), the quadratic cost there. Absent at any edge
            of a node, or 0 at all of them for a function: from the norms of its maps and the greatest D.
    """

    slope: Mapping[int, Tensor] = field(default_factory=dict)
    curvature: Mapping[int, Tensor] = field(default_factory=dict)
    anchor: Mapping[Edge, Tensor] = field(default_factory=dict)
    weight: Mapping[Edge, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Multipliers:
        """The same change of every tensor: other rows, another dtype."""
        return Multipliers(*({k: change(t) for k, t in group.items()} for group in self._groups()))

    def at(self, functions: Tensor | slice) -> Multipliers:
        """Those of some of the functions."""
        return self.map(lambda tensor: tensor[functions])

    def _groups(self) -> tuple[Mapping[Any, Tensor], ...]:
        return self.slope, self.curvature, self.anchor, self.weight

    def require(self, network: Network, count: int) -> None:
        """Raise CertificateError unless these are the multipliers of ``count`` functions of this network's output."""
        nodes = network.nodes
        for name, group in zip(_NAMES, self._groups(), strict=True):
            for key, tensor in group.items():
                k, place = key if isinstance(key, tuple) else (key, None)
                fits = 0 < k < len(nodes) and (place is None or 0 <= place < len(nodes[k].parents))
                shape = () if not fits else handed(nodes[k]) if place is None else nodes[nodes[k].parents[place]].shape
                allowed = {(count, *shape), (count, *[1] * len(shape))}
                if not fits or tensor.dtype != torch.float64 or tuple(tensor.shape) not in allowed:
                    raise CertificateError(f"the certificate's {name} at {key} does not fit the network.")
                if not bool((tensor.abs() <= LARGEST).all()):
                    raise CertificateError(f"the certificate's {name} at {key} holds a number beyond {LARGEST:g}.")
                if name in ("curvature", "weight") and bool((tensor < 0).any()):
                    raise CertificateError(f"the certificate's {name} at {key} holds a negative number.")

    def arrays(self) -> dict[str, Tensor]:
        """For a witness; in float32 what that holds to the last digit, as all that is searched in it."""
        result = {}
        for name, group in zip(_NAMES, self._groups(), strict=True):
            for key, tensor in group.items():
                place = ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
                short = tensor.float()
                result[f"{name}.{place}"] = short if torch.equal(short.double(), tensor) else tensor
        return result

    @classmethod
    def read(cls, witness: Witness) -> Multipliers:
        """From a witness, which may hold norms and bases beside.

        Raises:
            CertificateError: an array has a name that none of these has.
        """
        groups: dict[str, dict[Any, Tensor]] = {name: {} for name in _NAMES}
        for full, tensor in witness.arrays.items():
            if full == "norms" or full.startswith("basis."):
                continue
            name, *place = full.split(".")
            lengths = {"slope": 1, "curvature": 1, "anchor": 2, "weight": 2}
            if lengths.get(name) != len(place) or not all(
                p.isascii() and p.isdigit() and (p == "0" or p[0] != "0") for p in place
            ):
                raise CertificateError(f"a certificate of this kind has no array {full[:40]!r}.")
            numbers = tuple(int(p) for p in place)
            exact = tensor.double() if tensor.dtype == torch.float32 else tensor
            groups[name][numbers if len(numbers) == 2 else numbers[0]] = exact
        return cls(*(groups[name] for name in _NAMES))


def handed(node: Node) -> Shape:
    """Of what a node hands to its parent: an activation's own shape; windows × entries of a maximum."""
    windows = maximum(node)
    return node.shape if windows is None else tuple(windows.index.shape)


_NAMES = ("slope", "curvature", "anchor", "weight")
