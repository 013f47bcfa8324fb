"""What is asked: a network, the norms on its two sides, a domain, and an optional selection of outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lipcert.domain import NORMS, Domain, require_real
from lipcert.errors import CaptureError, InputError
from lipcert.increments import Increments
from lipcert.increments.adjoint import DUAL, adjoint
from lipcert.increments.joint import linked, stacked
from lipcert.increments.narrowing import narrowed
from lipcert.increments.reduction import reduced, remaining
from lipcert.network.graph import Network, PartNode, SelectionNode
from lipcert.network.heads import head_of
from lipcert.network.linear import Dense, size
from lipcert.network.parts import block_of, split
from lipcert.network.transform import expand, fuse, then
from lipcert.network.twins import Circle, Twins
from lipcert.numerics.process_state import ordinary
from lipcert.ranges.away import any_away
from lipcert.ranges.build import Ranges, Tighten
from lipcert.ranges.collapse import collapse
from lipcert.ranges.hull import hull
from lipcert.ranges.regions import Neurons, Regions
from lipcert.ranges.space import SpaceRegions
from lipcert.ranges.twins import twins_of

Norm = tuple[float, float]

#: Entries of all nodes above which ranges of blocks as blocks are intervals: of their parts there are better ones.
WIDE = 5_000


@dataclass(frozen=True, eq=False)
class Problem:
    """L_{p,q}(select ∘ network; domain); ``norm`` is (p, q), input norm first.

    Attributes:
        model: the captured network, as captured.
        norm: (p, q) with entries 1, 2 or inf.
        domain: None for the whole space; else a domain in the shape of the network's input, batch of 1 included.
        select: (k, m) matrix applied to the flattened output, or None.
        anchor: None, or a point x̂ of the domain: asked is then sup ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain.
        slopes_only: asked is the largest norm over all slopes that activations and selections have, whatever the
            values: offsets are not meant.

    Raises:
        NotLipschitzError: an op of the network has no constant on the whole space.
        InputError: norm, domain or selection do not fit the network.
    """

    model: Network
    norm: Norm = (2.0, 2.0)
    domain: Domain = None
    select: Tensor | None = None
    anchor: Tensor | None = None
    slopes_only: bool = False

    def __post_init__(self) -> None:
        if len(self.norm) != 2 or any(p not in NORMS for p in self.norm):
            raise InputError(f"norm must be a pair (p, q) of 1, 2 and inf, not {self.norm!r}.")
        m = size(self.model.out_shape)
        if self.domain is not None:
            object.__setattr__(self, "domain", self.domain.fitted(self.model.in_shape))
        if self.select is not None:
            require_select(self.select, m)
        if self.anchor is not None:
            object.__setattr__(self, "anchor", self._fitted_anchor(self.anchor))
        if self.model.refusal is not None:
            with ordinary():
                _ = self.unfused_increments  # the error of the first node that has no constant on the domain

    def _fitted_anchor(self, anchor: Tensor) -> Tensor:
        """The anchor in the shape of the network's input, in float64."""
        require_real("the anchor", anchor)
        shape = self.model.in_shape
        if tuple(anchor.shape) not in (shape, shape[1:]):
            raise InputError(
                f"the anchor has shape {tuple(anchor.shape)}, one example {shape[1:]}: give one point of the domain, "
                "without batch dimension."
            )
        point = anchor.detach().to("cpu", torch.float64).reshape(shape).clone()
        if not bool(torch.isfinite(point).all()):
            raise InputError("the anchor holds NaN or infinity.")
        if self.domain is not None and not self.domain.contains(point):
            raise InputError(f"the anchor lies outside the {self.domain.describe()}.")
        return point

    def between(self, norm: Norm) -> Problem:
        """The same for other norms, with all that does not depend on them."""
        if norm == self.norm:
            return self
        if len(norm) != 2 or any(p not in NORMS for p in norm):
            raise InputError(f"norm must be a pair (p, q) of 1, 2 and inf, not {norm!r}.")
        _ = self._shorter_increments  # worked out once for all norms
        other = object.__new__(Problem)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name != "expanded_increments"})
        other.__dict__["norm"] = norm
        return other

    def transposed(self) -> Problem:
        """What bounds the same constant: (p, q) → (q*, p*) and the transposed of all that the increments allow.

        Only its increments are another network's; model and domain are those of this problem.
        """
        relations = adjoint(self.reduced_increments)
        other = object.__new__(Problem)
        kept = ("model", "domain", "select", "anchor", "unfused", "network")
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name in kept})
        other.__dict__.update(norm=(DUAL[self.norm[1]], DUAL[self.norm[0]]), slopes_only=True)
        other.__dict__.update(has_selections=False, nearly_linear=False)
        for name in (
            "increments", "blocked_increments", "merged_increments", "unfused_increments", "reduced_increments",
        ):  # fmt: skip
            other.__dict__[name] = relations
        return other

    def on(self, domain: Domain, anchor: Tensor | None = None) -> Problem:
        """The same on another domain, with what does not depend on it."""
        other = replace(self, domain=domain, anchor=anchor)
        for name in ("unfused", "network"):
            other.__dict__[name] = getattr(self, name)
        if (self.domain is None) == (domain is None):
            other.__dict__["expanded"] = self.expanded
        return other

    @cached_property
    def network(self) -> Network:
        """The fused network with the selection appended: what methods and checks work on."""
        return fuse(self.unfused)

    @cached_property
    def unfused(self) -> Network:
        """The network op by op, with the selection appended.

        Each expression in one variable is one activation there, each product of two variables a sum of parts.
        """
        return self._split(smooth=False)

    def _split(self, smooth: bool) -> Network:
        """With ``smooth``, blocks that may be nearly linear on small domains are sums of parts, too."""
        model = split(collapse(self.model), smooth)
        return model if self.select is None else self._selected(model)

    def _selected(self, network: Network) -> Network:
        """With the selection appended."""
        assert self.select is not None
        matrix = self.select.detach().to(device="cpu", dtype=torch.float64).clone()  # no tensor of inference mode
        rounding = float(max(matrix.shape, default=1))
        return then(network, Dense((matrix,), self.model.out_shape, (1, matrix.shape[0]), rounding, stored=True))

    @property
    def inner(self) -> Problem | None:
        """A problem whose constant is no smaller, l_p → l_∞ with what f ends in as a mean (``ranges/hull.py``).

        None where f ends in nothing of the kind, or where its outputs are several and q is not ∞. Kept for each pair of
        norms, for which it is another one.
        """
        known: dict[Norm, Problem | None] = self.__dict__.setdefault("_inner", {})
        if self.norm not in known:
            known[self.norm] = self._inside()
        return known[self.norm]

    def _inside(self) -> Problem | None:
        whole = self.model if self.select is None else self._selected(self.model)
        if self.slopes_only or (self.norm[1] != math.inf and size(whole.out_shape) != 1):
            return None
        found = hull(whole)
        if found is None:
            return None
        network, q = found
        try:
            return Problem(network, (self.norm[0], q), self.domain, None, self.anchor)
        except CaptureError:  # f itself may still have a constant
            return None

    @cached_property
    def expanded(self) -> Network:
        """The fused network with every selection replaced by linear maps and ReLUs.

        On a domain also with every block that may be nearly linear there as a sum of parts.
        """
        return fuse(expand(self._split(smooth=True) if self.nearly_linear else self.unfused))

    @cached_property
    def headed(self) -> Network:
        """``expanded``, on a domain with what is known of attention besides (``HeadNode``)."""
        if not self.nearly_linear:
            return self.expanded
        model = fuse(collapse(self.model))
        if not any(head_of(model, k) for k in range(len(model.nodes))):
            return self.expanded
        whole = split(model, smooth=True, heads=True)
        return fuse(expand(whole if self.select is None else self._selected(whole)))

    @cached_property
    def increments(self) -> Increments:
        """What the increments of the fused network obey, selections as blocks.

        Linear bounds go through selections only where those are expanded: with any, ranges here are intervals.
        """
        return self._obeyed(self.network, self._network_ranges)

    def _obeyed(self, network: Network, ranges: Ranges | None) -> Increments:
        """By these ranges; where they let a node come near a pole, by linear bounds, too, which may not."""
        try:
            return Increments.of(network, ranges)
        except CaptureError:
            if self.domain is None:
                raise
            return Increments.of(network, self._ranges(network, "undecided"))

    @cached_property
    def blocked_increments(self) -> Increments:
        """The same with two activations of one value as one block."""
        return stacked(self.increments, self._twins(self.network))

    @cached_property
    def merged_increments(self) -> Increments:
        """The same as one linear map where the domain leaves no slope free."""
        return self.increments if self._shorter_increments.cells else self._shorter_increments

    @cached_property
    def _shorter_increments(self) -> Increments:
        return self.increments if self.domain is None else reduced(self.increments)

    @cached_property
    def unfused_increments(self) -> Increments:
        """The same op by op."""
        return self._obeyed(self.unfused, self._ranges(self.unfused, "none"))

    @cached_property
    def reduced_increments(self) -> Increments:
        """Those of the fused network, every selection as linear relations and cells of ReLUs, fixed slopes merged."""
        return reduced(self._whole_increments)

    @cached_property
    def expanded_increments(self) -> Increments:
        """The same; on a domain an l2 input is narrowed to what is read of it: its shape may then be another."""
        whole = self.reduced_increments
        return narrowed(whole) if self.domain is not None and self.norm[0] == 2 else whole

    @cached_property
    def regions(self) -> Neurons | None:
        """The neurons of ``expanded_increments``, their pieces, and parts of the domain where some are on one of them.

        None where the domain is neither bounded nor the whole space, where only slopes are meant, and with an anchor:
        slopes are then those of chords, which are not those of any piece.
        """
        if self.anchor is not None or self.slopes_only:
            return None
        network, ranges = self._expanded_ranges
        nodes = remaining(self._whole_increments)
        if self.domain is None:
            return SpaceRegions.of(network, ranges, nodes)
        assert ranges is not None
        return Regions.of(network, self.domain, ranges, nodes)

    @cached_property
    def _whole_increments(self) -> Increments:
        network, ranges = self._expanded_ranges
        return linked(Increments.of(network, ranges), self._twins(network))

    def _twins(self, network: Network) -> tuple[Twins, ...]:
        """Two activations of one value; their values have to do with each other, their slopes alone have not."""
        return () if self.slopes_only else twins_of(network)

    @cached_property
    def _expanded_ranges(self) -> tuple[Network, Ranges | None]:
        if self.is_expanded:
            return self.expanded, self._ranges(self.expanded, "undecided")
        return self.network, self._network_ranges

    @cached_property
    def _network_ranges(self) -> Ranges | None:
        wide = self.nearly_linear and sum(size(node.shape) for node in self.network.nodes) > WIDE
        return self._ranges(self.network, "none" if self.has_selections or wide else "undecided")

    def _ranges(self, network: Network, tighten: Tighten) -> Ranges | None:
        """On the domain: values lie in ranges, and on these slopes are what they are there."""
        plain = self.domain is None and self.anchor is None and self.model.refusal is None
        if plain and not any_away(network):
            return None
        return Ranges.of(network, self.domain, self.anchor, tighten)

    @cached_property
    def has_selections(self) -> bool:
        """Whether a node is a maximum or a sort."""
        return any(isinstance(node, SelectionNode) for node in self.network.nodes)

    @cached_property
    def has_parts(self) -> bool:
        """Whether a node is a part of a function of several values."""
        return any(isinstance(node, PartNode) for node in self.unfused.nodes)

    @property
    def has_waves(self) -> bool:
        """Whether a sine and a cosine of one value are among the activations."""
        return any(isinstance(pair, Circle) for pair in self._twins(self.network))

    @property
    def has_twins(self) -> bool:
        """Whether there are two activations of one value that have to do with each other."""
        return bool(self._twins(self.network))

    @cached_property
    def nearly_linear(self) -> bool:
        """Whether a block is more than its gains on the domain; products of norms are better off with the gains."""
        return self.domain is not None and any(block_of(node) is not None for node in self.network.nodes)

    @property
    def is_expanded(self) -> bool:
        """Whether ``expanded`` is another network than ``network``."""
        return self.has_selections or self.nearly_linear


def require_select(select: Tensor, m: int) -> None:
    """Raise InputError unless this is a (k, m) matrix of finite numbers that float64 holds, k ≥ 1."""
    require_real("select", select, f"shape (k, {m})")
    if select.dim() != 2 or select.shape[1] != m:
        raise InputError(f"select must be a (k, {m}) matrix for this model, not {tuple(select.shape)}.")
    if not len(select):
        raise InputError("select has no rows: nothing is left to bound. Give a (k, m) matrix with k ≥ 1.")
    if not bool(torch.isfinite(select).all()):
        raise InputError("select holds NaN or infinity.")
    if not torch.equal(select.double().to(select.dtype), select):
        raise InputError("select holds integers that float64 cannot: give them as floats, rounded as you like.")


def as_norm(norm: Any) -> Norm:
    """(p, q) as floats; accepts "inf"."""
    try:
        p, q = (float(value) for value in norm)
    except (TypeError, ValueError):
        raise InputError(f"norm must be a pair (p, q) of 1, 2 and inf, not {norm!r}.") from None
    return p, q
