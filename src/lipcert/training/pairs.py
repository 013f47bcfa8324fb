"""A constant for the difference of any two outputs, followed through training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lipcert.errors import MethodError
from lipcert.increments import Linear
from lipcert.network.graph import Network
from lipcert.network.linear import Dense, LinearMap, size
from lipcert.training.follower import Follower, plain_arithmetic
from lipcert.training.layers import Layers
from lipcert.training.live import Live
from lipcert.training.searches import AutoLipSearch, LipSDPSearch, Search, State

PairMethod = Literal["autolip", "lipsdp"]

#: Columns of a pair's point: two come within a per cent of eight. Most pairs that are followed.
COLUMNS, MOST_PAIRS = 2, 1000


class PairSearch(Search):
    """A constant for the difference of any two outputs."""

    @abstractmethod
    def read(self, layers: Layers, point: Mapping[str, Tensor]) -> list[Tensor]:
        """What all constants are made of; the point is moved to where the sum grows."""

    @abstractmethod
    def matrix(self, layers: Layers, found: Sequence[Tensor]) -> Tensor:
        """The constants, (m, m), of what was read."""

    def value(self, layers: Layers, point: Mapping[str, Tensor]) -> Tensor:
        """The sum of all that is read: each part of the point is moved as its own norm says."""
        return _total(self.read(layers, point))


class BodySearch(PairSearch, AutoLipSearch):
    """K_ij = Σ_p ‖w_i − w_j‖ L_p, with L_p AutoLip's constant of each parent p that the last linear map reads.

    Raises:
        MethodError: the network does not end in a linear map, or has fewer than two outputs.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        last = self.increments.relations[-1]
        if not isinstance(last, Linear) or not last.parents:
            raise MethodError(
                f"the model ends in {last.name}, not in a linear map: pairs of its outputs have no constants of their "
                "own by products. Give the module that returns logits, or method='lipsdp'."
            )
        require_classes(size(last.shape))

    def start(self, generator: torch.Generator) -> State:
        """A vector for each map but the last ones, which are written down."""
        last = len(self.increments.relations) - 1
        return {name: v for name, v in super().start(generator).items() if not name.startswith(f"{last}.")}

    def read(self, layers: Layers, point: Mapping[str, Tensor]) -> list[Tensor]:
        """The constant of each parent of the last map."""
        if not point:  # one linear map of the input
            like = next(
                (c for m in layers.maps[len(self.increments.relations) - 1] for c in _constants(m)), torch.ones(())
            )
            return [like.new_ones(()) for _ in self.increments.relations[-1].parents]
        known = self.constants(layers, point, but_last=True)
        return [known[p] for p in self.increments.relations[-1].parents]

    def matrix(self, layers: Layers, found: Sequence[Tensor]) -> Tensor:
        """From the distances of rows of the last map."""
        last = len(self.increments.relations) - 1
        parts = [_distances(rows_of(m)) * v for m, v in zip(layers.maps[last], found, strict=True)]
        return sum(parts[1:], parts[0])


class EachPairSearch(PairSearch, LipSDPSearch):
    """K_ij of LipSDP, with a point for each pair: all pairs are one batch.

    Raises:
        MethodError: the network has fewer than two outputs, or more pairs than are followed.
    """

    def __init__(self, network: Network, columns: int) -> None:
        classes = size(network.out_shape)
        require_classes(classes)
        self.first, self.second = torch.triu_indices(classes, classes, 1)
        if len(self.first) > MOST_PAIRS:
            raise MethodError(
                f"{classes} outputs have {len(self.first)} pairs, and method='lipsdp' follows {MOST_PAIRS} at most, "
                "each in every call. Take method='autolip'."
            )
        super().__init__(network, columns, problems=len(self.first))

    def read(self, layers: Layers, point: Mapping[str, Tensor]) -> list[Tensor]:
        """‖y_i − y_j‖ of each pair's point."""
        y = self.outputs(layers, point).flatten(2)
        own = torch.arange(self.problems)
        return [torch.linalg.vector_norm(y[own, :, self.first] - y[own, :, self.second], dim=1)]

    def matrix(self, layers: Layers, found: Sequence[Tensor]) -> Tensor:
        """Both halves."""
        classes = size(self.increments.relations[-1].shape)
        half = found[0].new_zeros(classes, classes).index_put((self.first, self.second), found[0])
        return half + half.T


def require_classes(count: int) -> None:
    """Raise MethodError where there are no pairs."""
    if count < 2:
        raise MethodError("the model has one output: there are no pairs of classes.")


class Pairs:
    """K_ij, about the constant of f_i − f_j in l2, by a power method that a pass per call keeps near its maximum.

    By ``autolip`` ‖w_i − w_j‖ times the constant of what the last map W reads, a product of norms along the graph: K
    lies below that product's own bound. By ``lipsdp`` that of LipSDP for each pair, below its optimum. With
    normalisations, of whose arguments certificates know more, both may lie far above these. So K is an estimate.

    Args:
        live: the model.
        passes: power steps per call.
        seed: of the first vectors.
        method: see above.
        columns: rank of LipSDP's relaxation.
    """

    def __init__(
        self, live: Live, passes: int = 1, seed: int = 0, method: PairMethod = "autolip", columns: int = COLUMNS
    ) -> None:
        self.live, self.passes = live, passes
        self.search: PairSearch
        self.search = BodySearch(live.network) if method == "autolip" else EachPairSearch(live.network, columns)
        self.follower = Follower(live, self.search, passes, seed)
        self.classes = size(live.network.out_shape)

    @torch.compiler.disable
    def matrix(self, passes: int | None = None) -> Tensor:
        """(m, m) with zeros on the diagonal, differentiable in the parameters unless gradients are off.

        Raises:
            InputError, NumericsError: as ``LipschitzRegularizer``.
        """
        with plain_arithmetic():
            parameters = self.live.parameters()
            if torch.is_grad_enabled():
                self.live.require_trainable(parameters)
            self.follower.settle(parameters)
            for _ in range((self.passes if passes is None else passes) - 1):
                self.follower._advance(parameters)
            wanted = torch.is_grad_enabled()
            given = parameters if wanted else {n: p.detach() for n, p in parameters.items()}
            with torch.enable_grad():
                found = self._matrix(given)
            if not bool(torch.isfinite(found).all()):
                raise self.live.explain(parameters)
            return found if wanted else found.detach()

    def _matrix(self, parameters: dict[str, Tensor]) -> Tensor:
        values = self.live.values(parameters)
        layers = self.search.template.layers(values)
        point = self.follower.points(torch.empty(0, dtype=values.dtype, device=values.device))
        read = self.search.read(layers, point)
        if point:
            keep = any(p.requires_grad for p in parameters.values())
            found = torch.autograd.grad(_total(read), list(point.values()), allow_unused=True, retain_graph=True)
            self.follower.move({n: p.detach() for n, p in point.items()}, dict(zip(point, found, strict=True)))
            read = read if keep else [v.detach() for v in read]
        return self.search.matrix(layers, read)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts]).sum()


def _constants(linear: LinearMap) -> list[Tensor]:
    return [c for leaf in linear.leaves() for c in getattr(leaf, "constants", ())]


def _distances(rows: Tensor) -> Tensor:
    """‖w_i − w_j‖ of all pairs of rows, (m, n) → (m, m)."""
    gram = rows @ rows.T
    squares = gram.diagonal()
    apart = (squares[:, None] + squares[None, :] - 2.0 * gram).clamp(min=torch.finfo(rows.dtype).tiny)
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(own, 0.0, torch.where(own, 1.0, apart).sqrt())


def rows_of(linear: LinearMap) -> Tensor:
    """The matrix of a map with few outputs, (out_size, in_size), differentiable in its constants."""
    if isinstance(linear, Dense):
        return linear.constants[0]
    like = next(iter(_constants(linear)), torch.ones(()))
    x = torch.zeros(1, *linear.in_shape, dtype=like.dtype, device=like.device, requires_grad=True)
    y = linear.apply(x).reshape(-1)
    units = torch.eye(len(y), dtype=y.dtype, device=y.device)
    rows = [torch.autograd.grad(y, x, unit, create_graph=True)[0].reshape(-1) for unit in units]
    return torch.stack(rows)
