"""Networks with every one-variable expression as one activation: exp(tanh(x)) has slopes that a product has not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipcert.errors import CaptureError
from lipcert.network.activations.rationals import between
from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import ActivationNode, AffineNode, Network, Node, OpenNode
from lipcert.network.linear import Composition, Identity, LinearMap, OpMap, Sum
from lipcert.network.moves import times
from lipcert.network.nonlinearity import AnySlope, Nonlinearity
from lipcert.network.origin import Origins, united
from lipcert.numerics.midrad import TINY, Range, known
from lipcert.numerics.rounding import gamma
from lipcert.ranges.composite import Composite
from lipcert.ranges.normal_form import normal_form
from lipcert.ranges.polyline import Lines, polyline
from lipcert.ranges.steps import Apply, Combine, Product, Quotient, Step, squared_wave

#: Entries of a node for which a composite is worth its time, and nodes of one.
MOST_ENTRIES, MOST_NODES = 1 << 20, 40


@dataclass(frozen=True)
class Region:
    """Nodes of an expression: the last one is its value, ``base`` the one variable; nothing else reads the others."""

    base: int
    nodes: tuple[int, ...]


#: What was made of networks that are still in use.
_KNOWN: WeakKeyDictionary[Network, Network] = WeakKeyDictionary()


def collapse(network: Network) -> Network:
    """The same function with each region of more than one bend as one activation.

    An expression without a constant on the whole space becomes an open node that has slopes on intervals. Affine steps
    at either end stay outside, for other linear maps to absorb; an expression of lines only is left as it is.
    """
    if network not in _KNOWN:
        found = _collapsed(network)
        if found is network:
            return network  # known by itself it would never be dropped
        _KNOWN[network] = found
    return _KNOWN[network]


def _collapsed(network: Network) -> Network:
    regions: dict[int, Region] = {}
    inside: set[int] = set()
    for position in range(len(network.nodes) - 1, 0, -1):
        region = None if position in inside else _region(network, position)
        if region is not None:
            regions[position] = region
            inside.update(region.nodes)
    if not regions:
        return network
    builder = NetworkBuilder()
    new: dict[int, Var] = {}
    for position, node in enumerate(network.nodes):
        if position in regions:
            new[position] = _as_one(network, regions[position], builder, new)
        elif position not in inside:
            new[position] = builder.again(node, [new[p] for p in node.parents])
    return builder.finish(new[len(network.nodes) - 1])


# -- what is a region ---------------------------------------------------------------------------------------


def function_of(node: Node) -> Nonlinearity | None:
    """The one function that a node applies to each entry of its parent, if it knows slopes and values."""
    function = node.function if isinstance(node, ActivationNode) else None
    function = node.steep if isinstance(node, OpenNode) else function
    return None if isinstance(function, AnySlope) else function


def _fits(network: Network, position: int) -> bool:
    """Whether a node is, entry by entry, a function of entries of its parents."""
    node = network.nodes[position]
    if not node.parents or any(network.nodes[p].shape != node.shape for p in node.parents):
        return False
    if isinstance(node, AffineNode):
        return all(factor_of(linear) is not None for linear in node.maps)
    return function_of(node) is not None or (isinstance(node, OpenNode) and node.combines in ("mul", "div"))


def _straight(node: Node) -> bool:
    return isinstance(node, AffineNode) and len(node.parents) == 1


def _region(network: Network, last: int) -> Region | None:
    """The largest region with this last node that is worth it."""
    node = network.nodes[last]
    if _straight(node) or not 0 < _entries(node) <= MOST_ENTRIES or not _fits(network, last):
        return None
    members, frontier = {last}, set(node.parents)
    found: list[Region] = []
    while True:
        if len(frontier) == 1:
            found.append(Region(min(frontier), tuple(sorted(members))))
        top = max(frontier)
        if len(members) >= MOST_NODES or not _fits(network, top):
            break
        if any(reader not in members for reader in network.consumers[top]):
            break
        members.add(top)
        frontier = (frontier - {top}) | set(network.nodes[top].parents)
    while found:
        region = found.pop()
        entry = [k for k in region.nodes if region.base in network.nodes[k].parents]
        if all(_straight(network.nodes[k]) for k in entry) and len(entry) == 1:
            continue  # the affine step next to the variable stays outside
        return region if _worth_it(network, region) else None
    return None


def _entries(node: Node) -> int:
    return Identity(node.shape).in_size


def _worth_it(network: Network, region: Region) -> bool:
    nodes = [network.nodes[k] for k in region.nodes]
    bends = [node for node in nodes if not isinstance(node, AffineNode)]
    functions = [function_of(node) for node in bends]
    several = len(bends) > 1 or any(len(node.parents) > 1 for node in nodes if isinstance(node, AffineNode))
    several = several or any(f is None for f in functions)
    if not several or any(f is None or f.curved for f in functions):
        return several
    return bool(bends) and polyline("", _steps(network, region)) is not None


# -- what becomes of it -------------------------------------------------------------------------------------


def _as_one(network: Network, region: Region, builder: NetworkBuilder, new: dict[int, Var]) -> Var:
    nodes = [network.nodes[k] for k in region.nodes]
    name = "+".join(node.name for node in nodes if not _straight(node))
    base, origin = new[region.base], united([node.origin for node in nodes])
    steps = _steps(network, region)
    whole = polyline(name, steps)
    if whole is None:
        steps = list(normal_form(steps) or steps)
        whole = polyline(name, steps)
    if isinstance(whole, Lines):
        return _affine(builder, base, whole, name, origin)
    function = Composite.of(name, steps) if whole is None else whole
    error: CaptureError | None = next((node.error for node in nodes if isinstance(node, OpenNode)), None)
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (function.lower, function.upper))
    if error is None or bool((low.isfinite() & high.isfinite()).all()):
        return builder.activation(base, function, origin)
    var = builder.unresolved((base,), base.shape, name, error, (), origin, steep=function)
    digest = hashlib.sha256()
    function.update_hash(digest)

    def value(inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> Tensor:
        return function.value(inputs[0])

    builder.evaluated(var, (base,), value, (), digest.hexdigest())
    return var


def _affine(builder: NetworkBuilder, base: Var, line: Lines, name: str, where: Origins) -> Var:
    """What is left where all bends cancel."""
    rate, level = (between(n, n) for n in (line.rates[0], line.levels[0]))
    shape = base.shape
    linear: LinearMap = Identity(shape, float(rate.mid))
    if bool(rate.rad != 0):
        numbers = rate.mid.expand(shape).contiguous()
        linear = OpMap("times", times, shape, shape, (numbers,), "times", 3.0)
    offset = None if line.levels[0] == 0 else level.mid.expand(shape)
    error = None if line.levels[0] == 0 else level.rad.expand(shape)
    return builder.affine([(base, linear)], shape, offset, name, where, error)


def _steps(network: Network, region: Region) -> list[Step]:
    place = {region.base: 0}
    steps: list[Step] = []

    def append(step: Step) -> int:
        steps.append(step)
        return len(steps)

    for position in region.nodes:
        node = network.nodes[position]
        arguments = tuple(place[p] for p in node.parents)
        function = function_of(node)
        if isinstance(node, AffineNode):
            factors = [factor_of(linear) for linear in node.maps]
            place[position] = append(Combine(arguments, tuple(f for f in factors if f is not None), node.known_offset))
        elif function is not None:
            place[position] = _applied(append, steps, arguments[0], function)
        else:
            assert isinstance(node, OpenNode)
            place[position] = append((Product if node.combines == "mul" else Quotient)(arguments))
    return _needed(steps)


def _applied(append: Callable[[Step], int], steps: Sequence[Step], argument: int, function: Nonlinearity) -> int:
    if isinstance(function, Composite):  # of a network that was collapsed before
        place = {0: argument}
        for number, step in enumerate(function.steps, start=1):
            place[number] = append(replace(step, arguments=tuple(place[k] for k in step.arguments)))
        return place[len(function.steps)]
    before = steps[argument - 1] if argument else None
    wave = squared_wave(function, before)
    if wave is None or before is None:
        return append(Apply((argument,), function))
    double = append(Combine(before.arguments, (Range.literal(2.0),)))
    inner = append(Apply((double,), wave[0]))
    return append(Combine((inner,), (Range.literal(wave[1]),), Range.literal(0.5)))


def _needed(steps: Sequence[Step]) -> list[Step]:
    """Those that the last one needs, renumbered."""
    needed = {len(steps)}
    for k in range(len(steps), 0, -1):
        if k in needed:
            needed.update(steps[k - 1].arguments)
    kept = sorted(needed - {0})
    number = {0: 0} | {old: new for new, old in enumerate(kept, start=1)}
    return [replace(steps[k - 1], arguments=tuple(number[a] for a in steps[k - 1].arguments)) for k in kept]


def factor_of(linear: LinearMap) -> Range | None:
    """The numbers that a map multiplies entries by, with their errors; None for any other map."""
    if linear.in_shape != linear.out_shape:
        return None
    if isinstance(linear, Identity):
        return known(linear.scale)
    if isinstance(linear, (Composition, Sum)):
        total: Range | None = None
        for part in linear.maps:
            factor = factor_of(part)
            if factor is None:
                return None
            both = isinstance(linear, Composition)
            total = factor if total is None else total * factor if both else total + factor
        return total
    if not isinstance(linear, OpMap) or linear.function is not times or not linear.relative:
        return None
    if linear.rounding > 2.0**40:
        return None
    constant = linear.constants[0].to(torch.float64)
    count = max(0.0, linear.rounding - 1.0)  # one unit is the map's own product
    error = constant.abs() * (gamma(count) * (1.0 + 2.0**-40)) + TINY
    return Range.exact(constant).widened(error if count else torch.zeros_like(constant))
