"""Networks that end in a mean of increments: a maximum, a log-sum-exp, a softmax entry, a loss made of these.

Let f = ℓ(x) + s·h(v(x)), entry by entry, with h the maximum or the log-sum-exp of the entries of v. For every pair of
points δh = Σ_k p_k δv_k with p ≥ 0 and Σ p_k = 1, so that

    δf = Σ_k p_k (δℓ + s δv_k):     |δf| ≤ max over k of |δg_k|,     g_k = ℓ + s·v_k,

whatever the points: the constant l_p → l_∞ of f is at most that of g. Why δh is such a mean: the log-sum-exp has the
probabilities as its gradient, so by the mean value theorem on the segment between the two values of v; the maximum at
the one point exceeds that at the other by at most the largest δv_k and at least the smallest. In the same way

    [log softmax v]_i = v_i − log-sum-exp v,
    δ[softmax v]_i = Σ_k q_k (δv_i − δv_k) with 0 ≤ q_k and Σ_(k ≠ i) q_k ≤ 1/4:     g_k = ℓ + (s/4)(v_i − v_k),

the q_k being means of p_i p_k along the segment, of sum p_i (1 − p_i) ≤ 1/4; k = i gives ℓ itself. An elementwise
function that comes after all this multiplies by its greatest slope.

Distances s_i‖u − c_i‖ to several centres obey |δf_i| ≤ |s_i|‖δu‖: their constant l_p → l_∞ is that of s·u, l_p → l_2,
with s the greatest |s_i|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, Network, Node, SelectionNode
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, Shape, add, compose, size
from lipcert.network.moves import gather, only_moves, simplified, times
from lipcert.network.nonlinearity import MaxSelection

#: Most outputs of g, most nodes that are looked at, and most entries of a map that is written down.
MOST_ROWS, MOST_NODES, MOST_ENTRIES = 1024, 500, 1 << 22
#: Constants of maps whose zeros are read off a product: nothing under- or overflows between these.
_LEAST, _GREATEST, _FACTORS = 1e-20, 1e20, 12


def hull(network: Network) -> tuple[Network, float] | None:
    """(g, q) with |δf_i| ≤ ‖δg‖_q for every output i and pair of points; None where f ends in nothing of the kind.

    q is ∞ where each |δf_i| is at most some |δg_k|, and 2 where f is distances.
    """
    found, network = None, _without_last_activation(network)
    distances = _distances(network)
    if distances is not None:
        return distances, 2.0
    while True:
        inner = _step(network)
        if inner is None:
            return None if found is None else (found, math.inf)
        found = network = inner


# -- one step -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Mean:
    """A node z as Σ_i own_i + factor·h, entry by entry, with δh a mean of the entries ``index[e]`` of δv.

    Attributes:
        index: (entries of h, K) flat positions in v.
        spread: from h to z.
        own: what else z has of v; None for nothing.
        single: whether an output may read one entry of z only (else one of h).
    """

    index: Tensor
    spread: LinearMap
    own: LinearMap | None = None
    single: bool = False


def _step(network: Network) -> Network | None:
    terms = _tail(network)
    for place in sorted(terms, reverse=True):
        mean = _mean(network.nodes[place], network)
        inner = None if mean is None else _replaced(network, terms, place, mean)
        if inner is not None:
            return inner
    return None


def _tail(network: Network) -> dict[int, LinearMap]:
    """The output's increment as a sum of maps of nodes that are not affine; empty where that takes too many.

    What a mean is of counts as not affine: the same entries of it, met on two ways, cancel exactly.
    """
    last = len(network.nodes) - 1
    stops = {node.parents[0] for node in network.nodes if _mean(node, network) is not None}
    waiting: dict[int, LinearMap] = {last: Identity(network.out_shape)}
    terms: dict[int, LinearMap] = {}
    for _ in range(MOST_NODES):
        if not waiting:
            return terms
        place = max(waiting)
        linear, node = waiting.pop(place), network.nodes[place]
        if not isinstance(node, AffineNode) or place in stops:
            terms[place] = linear
            continue
        for parent, own in zip(node.parents, node.maps, strict=True):
            moved = compose(own, linear)
            waiting[parent] = add(waiting[parent], moved) if parent in waiting else moved
    return {}


def _mean(node: Node, network: Network) -> _Mean | None:
    if isinstance(node, SelectionNode) and isinstance(node.function, MaxSelection):
        return _Mean(node.function.index, Identity(node.shape))
    if not isinstance(node, GainNode) or node.function.probabilities is None:
        return None
    kind, axes = node.function.probabilities
    shape = network.nodes[node.parents[0]].shape
    index = _groups(shape, axes)
    if kind == "logsumexp":
        return _Mean(index, Identity(node.shape))
    if kind == "log_softmax":
        return _Mean(index, compose(_from_groups(index, shape), Identity(shape, -1.0)), Identity(shape))
    quarter = compose(_from_groups(index, shape), Identity(shape, -0.25))
    return _Mean(index, quarter, Identity(shape, 0.25), single=True)


def _groups(shape: Shape, axes: tuple[int, ...]) -> Tensor:
    """(groups, K): flat positions of entries that differ in ``axes`` only."""
    places = torch.arange(size(shape)).reshape(shape)
    own = sorted({a % max(1, len(shape)) for a in axes}) if shape else []
    count = math.prod(shape[a] for a in own)
    return places.movedim(own, tuple(range(-len(own), 0))).reshape(-1, count) if own else places.reshape(-1, 1)


def _from_groups(index: Tensor, shape: Shape) -> LinearMap:
    """One number per group, put in all of its entries."""
    owner = torch.empty(index.numel(), dtype=torch.int64)
    owner[index.reshape(-1)] = torch.arange(len(index)).repeat_interleave(index.shape[1])
    return gather(owner, (1, len(index)), shape)


def _replaced(network: Network, terms: dict[int, LinearMap], place: int, mean: _Mean) -> Network | None:
    """g, whose outputs are those of f, each K times."""
    m, count = size(network.out_shape), mean.index.shape[1]
    if not count or m * count > MOST_ROWS:
        return None
    one, read = _entries(terms[place]), _entries(compose(mean.spread, terms[place]))
    if read is None or (mean.single and one is None):
        return None
    node = network.nodes[place]
    builder, new = NetworkBuilder(), list[Var]()
    for old in network.nodes[: len(network.nodes) - 1]:
        new.append(builder.again(old, [new[p] for p in old.parents]))
    shape: Shape = (1, m * count)
    again = gather(torch.arange(m).repeat_interleave(count), network.out_shape, shape)
    whole = [(new[k], compose(linear, again)) for k, linear in terms.items() if k != place]
    v = new[node.parents[0]]
    chosen = gather(mean.index[read.places].reshape(-1), v.shape, shape)
    if mean.own is not None and one is not None:  # v_k − v_i first, then its number: for k = i surely 0
        chosen = add(chosen, gather(one.places.repeat_interleave(count), v.shape, shape, -1.0))
    elif mean.own is not None:
        whole.append((v, compose(mean.own, terms[place], again)))
    if mean.own is not None and one is not None:
        chosen = simplified(chosen)
    whole.append((v, compose(chosen, read.factors(count, shape))))
    merged: dict[Var, LinearMap] = {}
    for var, linear in whole:
        if not linear.is_zero:
            merged[var] = add(merged[var], linear) if var in merged else linear
    kept = _kept(list(merged.values()), m * count)
    if len(kept) < m * count:
        shape = (1, len(kept))
        merged = {var: compose(linear, gather(kept, linear.out_shape, shape)) for var, linear in merged.items()}
    return builder.finish(builder.affine(list(merged.items()), shape, None, f"{node.name} differences", node.origin))


def _kept(maps: list[LinearMap], rows: int) -> Tensor:
    """The outputs of a sum of maps of different values that are not surely 0, one at least."""
    some = torch.zeros(rows, dtype=torch.bool)
    for linear in maps:
        small = linear.in_size * linear.out_size <= MOST_ENTRIES
        inner = linear.maps[0] if isinstance(linear, Composition) and _diagonal(linear.maps[1:]) else linear
        some |= (inner.matrix() != 0).any(dim=1) if small and _written_exactly(inner) else True
    return some.nonzero().reshape(-1) if bool(some.any()) else torch.zeros(min(rows, 1), dtype=torch.int64)


def _diagonal(maps: Sequence[LinearMap]) -> bool:
    """Whether maps only multiply entries by numbers, so that what is 0 stays 0."""
    return all(isinstance(m, Identity) or (isinstance(m, OpMap) and m.function is times) for m in maps)


def _written_exactly(linear: LinearMap) -> bool:
    """Whether float64 has the map's matrix exactly.

    It is made of moves and at most two maps of multiples of 2^−8 up to 2^8: every sum on the way is a multiple of 2^−16
    below 2^30.
    """
    factors = 0
    for leaf in linear.leaves():
        if only_moves(leaf):
            continue
        if not isinstance(leaf, Identity) and not (isinstance(leaf, (Dense, OpMap)) and leaf.stored):
            return False
        numbers = [_scale(leaf)] if isinstance(leaf, Identity) else list(leaf.constants)
        if any(bool(((n * 256.0).frac() != 0).any() | (n.abs() > 256.0).any()) for n in numbers):
            return False
        factors += 1
    return factors <= 2 and float(linear.absolute().matrix().max()) < 2.0**30


def _distances(network: Network) -> Network | None:
    """s·u for f_i = s_i‖u − c_i‖, all with the same u."""
    terms = _tail(network)
    place, linear = next(iter(terms.items()), (0, Identity(network.out_shape)))
    node = network.nodes[place]
    if len(terms) != 1 or not isinstance(node, GainNode) or node.function.length is None:
        return None
    parent, read = node.parents[0], _entries(linear)
    index = _groups(network.nodes[parent].shape, node.function.length)
    common = _common(network, parent, index)
    if read is None or common is None:
        return None
    base, own = common
    factor = math.nextafter(float((read.values.abs() + read.sizes * 2.0**-20).max()), math.inf)
    exact = read.rounding == 0.0
    factor = float(read.values.abs().max()) if exact else factor
    builder, new = NetworkBuilder(), list[Var]()
    for old in network.nodes[: parent + 1]:
        new.append(builder.again(old, [new[p] for p in old.parents]))
    shape: Shape = (1, index.shape[1])
    one = compose(own, gather(index[0], own.out_shape, shape), Identity(shape, factor))
    return builder.finish(builder.affine([(new[base], one)], shape, None, node.name, node.origin))


def _common(network: Network, place: int, index: Tensor) -> tuple[int, LinearMap] | None:
    """A value that all groups of entries at ``place`` are the same function of but for offsets, and the map to them."""
    linear: LinearMap = Identity(network.nodes[place].shape)
    while index.numel():
        if _repeated(linear, index):
            return place, linear
        node = network.nodes[place]
        if not isinstance(node, AffineNode) or len(node.maps) != 1:
            return None
        place, linear = node.parents[0], compose(node.maps[0], linear)
        if not 0 < linear.in_size * linear.out_size <= MOST_ENTRIES or not _written_exactly(linear):
            return None
    return None


def _repeated(linear: LinearMap, index: Tensor) -> bool:
    """Whether all groups of outputs are surely the same function of the input."""
    if not linear.in_size or linear.in_size * linear.out_size > MOST_ENTRIES or not _written_exactly(linear):
        return False
    rows = linear.matrix()[index]
    return bool((rows == rows[:1]).all())


# -- which entry an output reads ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Entries:
    """Output i of a map is a number times entry ``places[i]`` of its input, and nothing else.

    The number differs from values[i] by at most γ_rounding sizes[i].
    """

    places: Tensor
    values: Tensor
    sizes: Tensor
    rounding: float

    def factors(self, count: int, shape: Shape) -> LinearMap:
        """Every entry times its number, for ``count`` copies of each."""
        values, sizes = (t.repeat_interleave(count).reshape(shape) for t in (self.values, self.sizes))
        if self.rounding == 0.0 and bool((values == values[0, 0]).all()):
            return Identity(shape, float(values[0, 0]))
        return OpMap("times", times, shape, shape, (values,), "times", self.rounding + 1.0, majorants=(sizes,))


def _entries(linear: LinearMap) -> _Entries | None:
    """What each output reads; None unless it is surely one entry at most."""
    n, m = linear.in_size, linear.out_size
    if not 0 < n * m <= MOST_ENTRIES or not linear.rounding < 2.0**20 or not _tame(linear):
        return None
    sizes = linear.absolute().matrix()
    if n > 1 and (not _faithful(linear) or int((sizes > 0).sum(dim=1).max()) > 1):
        return None
    largest, places = sizes.max(dim=1)
    values = linear.matrix().gather(1, places[:, None])[:, 0]
    leaves = linear.leaves()
    exact = all(only_moves(leaf) or math.frexp(getattr(leaf, "scale", 0.0))[0] in (-0.5, 0.5) for leaf in leaves)
    return _Entries(places, values, largest * (1.0 + 2.0**-20), 0.0 if exact else linear.rounding)


def _scale(linear: Identity) -> Tensor:
    """Its number as it is: the default dtype would round it, or lose it."""
    return torch.tensor(linear.scale, dtype=torch.float64)


def _tame(linear: LinearMap) -> bool:
    """Whether nothing can under- or overflow where the map is written."""
    factors = 0
    for leaf in linear.leaves():
        numbers = [_scale(leaf)] if isinstance(leaf, Identity) else list(getattr(leaf, "constants", ()))
        for number in numbers:
            some = number[number != 0].abs()
            if some.numel() and not _LEAST <= float(some.min()) <= float(some.max()) <= _GREATEST:
                return False
        factors += bool(numbers)
    return factors <= _FACTORS


def _faithful(linear: LinearMap) -> bool:
    """Whether the written map of absolute values, if tame, is 0 exactly where the map is surely 0."""
    return all(
        isinstance(leaf, Identity)
        or only_moves(leaf)
        or (isinstance(leaf, (Dense, OpMap)) and leaf.stored and len(leaf.constants) == 1)
        for leaf in linear.leaves()
    )


# -- what comes after ---------------------------------------------------------------------------------------


def _without_last_activation(network: Network) -> Network:
    """Instead of φ(f) the map that multiplies f by the greatest |slope| of φ, where that is the last step but scales.

    |δφ(f)_i| ≤ |slope| |δf_i|, entry by entry.
    """
    while True:
        terms = _tail(network)
        place = next(iter(terms), 0)
        node = network.nodes[place]
        if len(terms) != 1 or not isinstance(node, ActivationNode):
            return network
        if network.nodes[node.parents[0]].shape != node.shape:
            return network
        low, high = node.function.slope_range(node.shape)
        steepest = torch.maximum(low.abs(), high.abs())
        read = _entries(terms[place])
        if read is None or not bool(steepest.isfinite().all()):
            return network
        builder, new = NetworkBuilder(), list[Var]()
        for old in network.nodes[:place]:
            new.append(builder.again(old, [new[p] for p in old.parents]))
        v = new[node.parents[0]]
        linear = compose(_scales(steepest), terms[place])
        network = builder.finish(builder.affine([(v, linear)], network.out_shape, None, node.name, node.origin))


def _scales(factors: Tensor) -> LinearMap:
    """Entries times these numbers."""
    shape, first = tuple(factors.shape), float(factors.reshape(-1)[0])
    if bool((factors == first).all()):
        return Identity(shape, first)
    return OpMap("times", times, shape, shape, (factors.contiguous(),), "times", 1.0, stored=True)
