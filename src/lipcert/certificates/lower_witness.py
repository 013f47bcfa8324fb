"""What the witness of a lower bound proves: the derivative at a point, enclosed with all roundings.

This file, ``ranges/enclosure.py``, ``ranges/enclosure_rules.py`` and ``numerics/midrad.py`` are all that a LowerBound
rests on, beside the network itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.errors import InputError, NumericsError
from lipcert.network.graph import (
    ActivationNode,
    AffineNode,
    GainNode,
    InputNode,
    Network,
    Node,
    OpenNode,
    SelectionNode,
)
from lipcert.network.linear import Shape, size
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.numerics.midrad import UNIT, Range, choose, require_subnormals
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Problem
from lipcert.ranges import enclosure_rules as _rules  # noqa: F401  registers what enclosures can do
from lipcert.ranges.enclosure import Enclosure, add

if TYPE_CHECKING:
    from lipcert.result import LowerWitness


#: Entries of the (groups, K, K) comparison of a sort that are formed at a time.
_COMPARED = 1 << 24
#: Doubles carried beyond the first, in turn, until the radius is below this share of the value: an enclosure in float64
#: widens by about the root of the width per layer, so that deep networks need more.
_DIGITS, _LOSS = (0, 1, 3, 5), 1e-9
#: Covers the roundings of a norm: scaling, squares, exact sum, root.
_NORM = 32.0 * UNIT


@ordinary()
def evaluate(problem: Problem, witness: LowerWitness) -> float:
    """The lower bound ‖f'(x; v)‖_q / ‖v‖_p that a witness (x, v) proves, rounded down.

    Why this is a lower bound: D is convex, x lies in D and v is a direction of D's affine hull. At every x' in the
    relative interior of D the one-sided derivative f'(x'; v) exists (all nodes are Lipschitz and have one-sided
    derivatives; chain rule: Shapiro 1990, *On concepts of directional differentiability*) and x' + hv lies in D for
    small h, so ‖f'(x'; v)‖_q ≤ L‖v‖_p. Now let x' tend to x within D. Node by node, ``Enclosure`` holds every limit
    of the derivatives: of a branch that is certain it holds φ' on an interval around the pre-activation, at a kink or
    tie that the interval does not exclude it holds both sides. So the limit of f'(x'; v) has entries of size at least
    |mid| − rad, whose norm is returned. No kink is told by a threshold: where many are undecided the enclosure is wide
    and the number small, and it is true all the same.

    The number holds for the real-valued function of the stored parameters: constants count with the errors with
    which they were folded, and every float64 operation with its own. Of the array library it assumes what
    ``numerics/midrad.py`` says.

    Args:
        problem: network (evaluated op by op, not fused), norms and domain.
        witness: point and direction of one example's shape; used in float64.

    Returns:
        A finite number ≥ 0 that is at most the Lipschitz constant; 0 for the zero direction.

    Raises:
        InputError: wrong shape, NaN, a point outside the domain, a direction that leaves a flat domain.
        NumericsError: the derivative cannot be enclosed (overflow, constants without an error bound, a root at 0).
    """
    require_subnormals()
    network = problem.unfused
    x, v = _checked(problem, network.in_shape, witness)
    p, q = problem.norm
    v = v * 2.0 ** -max(-1000, min(1000, math.frexp(norm(v, math.inf))[1]))
    length = norm(v, p) * (1.0 + _NORM)
    if length == 0.0:
        return 0.0
    shape = (1, *network.in_shape)
    best, finite, width = 0.0, False, math.inf
    for digits in _DIGITS:
        with torch.no_grad():
            tangent = derivative(network, x.reshape(shape), v.reshape(shape), digits).plain
        if not bool((torch.isfinite(tangent.mid) & torch.isfinite(tangent.rad)).all()):
            continue
        finite = True
        gap = tangent.mid.abs() - tangent.rad
        least = torch.clamp(torch.nextafter(gap, torch.full_like(gap, -math.inf)), min=0.0)
        best = max(best, norm(least, q))
        before, width = width, norm(tangent.rad, q)
        if width <= _LOSS * best or width > 0.1 * before:  # narrow, or no narrower than before: further digits are idle
            break
    if not finite:
        raise NumericsError(
            "the derivative at the witness cannot be enclosed: it overflows, or does not exist; no lower bound."
        )
    value = best * (1.0 - _NORM) / length
    if not math.isfinite(value):
        raise NumericsError("the value at the witness overflows float64; no lower bound.")
    return max(0.0, math.nextafter(value, -math.inf))


def norm(vector: Tensor, p: float) -> float:
    """‖vector‖_p within a relative 16 units of roundoff: the sum is exact (fsum), overflow is scaled away."""
    entries = vector.detach().reshape(-1).abs().double().cpu()
    largest = float(entries.max()) if entries.numel() else 0.0
    if largest == 0.0 or p == math.inf or not math.isfinite(largest):
        return largest
    entries = entries / largest
    total = math.fsum(entries.tolist()) if p == 1 else math.sqrt(math.fsum((entries * entries).tolist()))
    return total * largest


def movable(domain: Domain, shape: Shape) -> Tensor:
    """0/1 tensor: the coordinates along which the domain extends at all."""
    if domain is None:
        return torch.ones(shape, dtype=torch.float64)
    return domain.movable().double().reshape(shape)


def derivative(network: Network, x: Tensor, v: Tensor, digits: int = 0) -> Range:
    """An enclosure of the limits of f'(x'; v) for x' → x; x and v are batches (1, *in_shape).

    ``digits`` more doubles are carried through sums, choices and linear maps of stored constants.
    """
    return enclosed(network, x, v, digits).tangent


def enclosed(network: Network, x: Tensor, v: Tensor, digits: int = 0) -> Enclosure:
    """f(x) with the same derivative; x and v are batches (1, *in_shape)."""
    known: dict[int, Enclosure] = {}
    last_use = [max(c, default=len(network.nodes)) for c in network.consumers]
    result = Enclosure(Range.exact(x), Range.exact(v)).to_digits(digits)
    for position, node in enumerate(network.nodes):
        inputs = [known[p] for p in node.parents]
        if not isinstance(node, InputNode):
            result = _through(node, inputs)
        known[position] = result
        for parent in node.parents:
            if last_use[parent] == position:
                known.pop(parent, None)
    return result


def _through(node: Node, inputs: list[Enclosure]) -> Enclosure:
    if isinstance(node, AffineNode):
        return _affine(node, inputs)
    if isinstance(node, (ActivationNode, GainNode)):
        result = node.function.value(inputs[0][0])  # type: ignore[arg-type]
        if not isinstance(result, Enclosure):  # a constant
            return _still(torch.as_tensor(result, dtype=torch.float64).expand(node.shape)[None])
        return result.map(lambda t: t.expand(node.shape)[None])
    if isinstance(node, OpenNode):
        return _open(node, inputs)
    assert isinstance(node, SelectionNode)
    selection = node.function
    return _largest(selection, inputs[0]) if isinstance(selection, MaxSelection) else _sorted(selection, inputs[0])


def _open(node: OpenNode, inputs: list[Enclosure]) -> Enclosure:
    """An op by what it computes entry by entry, or by its own code.

    Raises:
        NumericsError: that code does something to which no rule belongs.
    """
    examples = [x.map(lambda t: t[0]) for x in inputs]
    if node.steep is not None:
        result: Any = node.steep.value(examples[0])  # type: ignore[arg-type]
    elif node.function is not None:
        try:
            result = node.function(examples, node.constants)  # type: ignore[arg-type]
        except (AttributeError, TypeError, RuntimeError) as problem:
            raise NumericsError(
                f"the derivative of {node.name} at the witness cannot be enclosed: {problem}"
            ) from problem
    else:
        raise node.error
    if not isinstance(result, Enclosure):
        return _still(torch.as_tensor(result, dtype=torch.float64).expand(node.shape)[None])
    return result.map(lambda t: t.expand(node.shape)[None])


def _still(value: Tensor) -> Enclosure:
    return Enclosure(Range.literal(value), Range.exact(torch.zeros_like(value)))


def _affine(node: AffineNode, inputs: list[Enclosure]) -> Enclosure:
    total = _still(torch.zeros(1, *node.shape, dtype=torch.float64))
    for linear, x in zip(node.maps, inputs, strict=True):
        total = add(total, x.through(linear))
    offset = node.known_offset
    if offset is not None:
        total = Enclosure(total.value + offset.map(lambda t: t[None]), total.tangent)
    return total


def _largest(selection: MaxSelection, x: Enclosure) -> Enclosure:
    """max over windows: of the tangents, those of every entry that can be the largest."""
    windows = x.map(lambda t: t.reshape(-1)[selection.index])
    low, high = windows.value.low, windows.value.high
    bottom, top = low.amax(-1, keepdim=True), high.amax(-1, keepdim=True)
    can = ~(high < bottom)
    winner = can.double().argmax(-1, keepdim=True)
    alone = windows.map(lambda t: t.gather(-1, winner)[..., 0])
    sure = can.sum(-1) == 1
    value = choose(sure, alone.value, Range.between(bottom[..., 0], top[..., 0]))
    tangent = choose(sure, alone.tangent, _spanned(windows.tangent, can))
    return Enclosure(value, tangent).map(lambda t: t.reshape(1, *selection.out_shape))


def _sorted(selection: SortSelection, x: Enclosure) -> Enclosure:
    """The k-th value lies between the k-th lower and the k-th upper end; entries that reach there are candidates."""
    flat = x.map(lambda t: t.reshape(-1))
    groups = flat.map(lambda t: t[selection.index])
    low, high = (e.sort(-1, descending=selection.descending).values for e in (groups.value.low, groups.value.high))
    rows = max(1, _COMPARED // max(1, selection.index.shape[1] ** 2))
    mids, rads = [], []
    for start in range(0, len(low), rows):
        part = groups.map(lambda t, s=start: t[s : s + rows])  # type: ignore[misc]
        first, last = low[start : start + rows], high[start : start + rows]
        can = ~(part.value.high[:, None, :] < first[:, :, None]) & ~(part.value.low[:, None, :] > last[:, :, None])
        spanned = _spanned(part.tangent.map(lambda t: t[:, None, :].expand(can.shape)), can)  # noqa: B023
        mids.append(spanned.mid)
        rads.append(spanned.rad)
    chosen = Enclosure(Range.between(low, high), Range(torch.cat(mids), torch.cat(rads)) if mids else groups.tangent)

    def put(original: Tensor, ordered: Tensor) -> Tensor:
        result = original.clone()
        result[selection.index.reshape(-1)] = ordered.reshape(-1)
        return result.reshape(1, *selection.in_shape)

    flat = flat.to_digits(0)
    value = Range(put(flat.value.mid, chosen.value.mid), put(flat.value.rad, chosen.value.rad))
    tangent = Range(put(flat.tangent.mid, chosen.tangent.mid), put(flat.tangent.rad, chosen.tangent.rad))
    return Enclosure(value, tangent)


def _spanned(tangents: Range, candidates: Tensor) -> Range:
    """Over the last axis: from the least lower to the greatest upper end of the candidates."""
    low = torch.where(candidates, tangents.low, math.inf).amin(-1)
    high = torch.where(candidates, tangents.high, -math.inf).amax(-1)
    return Range.between(low, high)


def _checked(problem: Problem, in_shape: Shape, witness: LowerWitness) -> tuple[Tensor, Tensor]:
    x, v = (t.detach().to(device="cpu", dtype=torch.float64) for t in (witness.point, witness.direction))
    for name, tensor in (("point", x), ("direction", v)):
        if tuple(tensor.shape) != tuple(in_shape[1:]) and tensor.numel() != size(in_shape):
            raise InputError(
                f"the witness's {name} has shape {tuple(tensor.shape)}, one example {tuple(in_shape[1:])}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"the witness's {name} holds NaN or infinity.")
    if problem.domain is not None:
        if not problem.domain.contains(x):
            raise InputError(f"the witness's point lies outside the {problem.domain.describe()}.")
        if bool((v.reshape(-1)[movable(problem.domain, (v.numel(),)) == 0] != 0).any()):
            raise InputError("the witness's direction leaves the domain, which is flat along it.")
    return x, v
