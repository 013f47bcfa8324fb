"""The trusted end of an attack: what a witness proves, evaluated in float64 in the network as captured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.attack.pushforward import Pair, push
from lipcert.errors import InputError, NumericsError
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, Network, Node, SelectionNode
from lipcert.network.linear import LinearMap, Shape, size
from lipcert.network.nonlinearity import MaxSelection
from lipcert.numerics.process_state import ordinary
from lipcert.problem import Ball, Box, Domain, Problem
from lipcert.result import LowerWitness

#: Perturbed copies that are run beside the plain evaluation.
_COPIES = 4
#: A margin must exceed the spread of the copies by this factor.
_SAFETY = 8.0
#: Unit roundoff of float64.
_UNIT = 2.0**-53
#: Absolute error granted to every entry for underflow: far above the least normal double.
_UNDERFLOW = 2.0**-1010
#: Roundings granted to one activation, and to one entry of a gain block.
_ACTIVATION_ROUNDINGS = 8.0
_GAIN_ROUNDINGS = 64.0
#: A tangent below this fraction of its layer's largest does not make a kink matter.
_NEGLIGIBLE = 1e-10
#: The value is always rounded down by this much, and refused if the copies disagree by more than ``_MOST``.
_LEAST, _MOST = 1e-12, 1e-6


@ordinary()
def evaluate(problem: Problem, witness: LowerWitness) -> float:
    """The lower bound ‖J(x)v‖_q / ‖v‖_p that a witness (x, v) proves, rounded down.

    Why this is a lower bound: if f has the one-sided derivative f'(x; v) and D is convex with x in D, then
    f'(x; v) is a limit of Jacobians of f at inner points of D applied to v, and each of those is at most
    L‖v‖. The chain rule for one-sided derivatives (Shapiro 1990, *On concepts of directional
    differentiability*) computes it node by node. Where a node has no derivative, the derivative still exists
    in a direction that leaves the node's input unmoved: a dead neuron exactly at its kink (zero weights, zero
    bias; a ReLU after a dead ReLU), a max-pool over zeros of dead ReLUs, is harmless. Every other kink or tie
    that cannot be told apart from x is refused.

    What the rounding covers: beside the plain float64 pass, ``_COPIES`` passes are run in which every node's
    value and tangent is disturbed by independent random errors of the worst size that rounding can have
    there: γ_k |W||x| for a linear map whose k is known, 8 units for an activation, 64 for a gain block. A
    kink, or a tie, counts as avoided if its distance exceeds 8 times the largest disturbance seen; the value
    is lowered by 8 times the largest disturbance of ‖Jv‖ and by 1e-12. This is a statistical and not a
    worst-case account of float64 rounding (worst-case bounds grow by a factor ~√width per layer and say
    nothing about deep networks); the noise is fixed, so the same witness always has the same value.

    Args:
        problem: network (evaluated op by op, not fused), norms and domain.
        witness: point and direction of one example's shape; used in float64.

    Returns:
        A finite number ≥ 0 that is at most the Lipschitz constant; 0 for the zero direction.

    Raises:
        InputError: wrong shape, NaN, a point outside the domain, a direction that leaves a flat domain.
        NumericsError: the derivative at the point is ambiguous, or the arithmetic overflows.
    """
    network = problem.unfused
    x, v = _checked(problem, network.in_shape, witness)
    p, q = problem.norm
    v = v * 2.0 ** -max(-1000, min(1000, math.frexp(norm(v, math.inf))[1]))
    length = norm(v, p)
    if length == 0.0:
        return 0.0
    image = _tangents(network, x.reshape(1, *network.in_shape), v.reshape(1, *network.in_shape))
    if not bool(torch.isfinite(image).all()):
        raise NumericsError("the derivative at the witness overflows, or does not exist (NaN); no lower bound.")
    values = [norm(row, q) for row in image]
    spread = max(norm(row - image[0], q) for row in image[1:])
    if spread > _MOST * values[0]:
        raise NumericsError(
            f"‖Jv‖ at the witness, {values[0]:.3g}, changes by {spread:.3g} under disturbances of the size "
            "of rounding: the point is too close to one without a derivative."
        )
    value = (values[0] * (1.0 - _LEAST) - _SAFETY * spread) / length
    if not math.isfinite(value):
        raise NumericsError("the value at the witness overflows float64; no lower bound.")
    return max(0.0, math.nextafter(value, -math.inf))


def norm(vector: Tensor, p: float) -> float:
    """‖vector‖_p to a few units in the last place: the sum is exact (fsum), overflow is scaled away."""
    entries = vector.detach().reshape(-1).abs().double().cpu()
    largest = float(entries.max()) if entries.numel() else 0.0
    if largest == 0.0 or p == math.inf or not math.isfinite(largest):
        return largest
    entries = entries / largest
    total = math.fsum(entries.tolist()) if p == 1 else math.sqrt(math.fsum((entries * entries).tolist()))
    return total * largest


def movable(domain: Domain, shape: Shape) -> Tensor:
    """0/1 tensor: the coordinates along which the domain extends at all."""
    if isinstance(domain, Ball):
        return torch.full(shape, float(domain.radius > 0), dtype=torch.float64)
    if isinstance(domain, Box):
        return (domain.lower < domain.upper).cpu().double().reshape(shape)
    return torch.ones(shape, dtype=torch.float64)


def _checked(problem: Problem, in_shape: Shape, witness: LowerWitness) -> Pair:
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


def _tangents(network: Network, x: Tensor, v: Tensor) -> Tensor:
    """(1 + copies, m) tangents of the output: row 0 plain, the others disturbed at every node."""
    generator = torch.Generator().manual_seed(20181204)

    def disturb(pair: Pair, sizes: Pair) -> Pair:
        disturbed = []
        for tensor, amount in zip(pair, sizes, strict=True):
            noise = 2.0 * torch.rand(_COPIES, *tensor.shape[1:], generator=generator, dtype=torch.float64) - 1.0
            disturbed.append(torch.cat([tensor[:1], tensor[1:] + noise * amount]))
        return disturbed[0], disturbed[1]

    def after(_: int, node: Node, inputs: list[Pair], pair: Pair) -> Pair:
        if isinstance(node, AffineNode):
            return disturb(pair, _affine_rounding(node, inputs))
        _refuse_ambiguous(node, inputs[0])
        return disturb(pair, _rounding(node, inputs[0], pair))

    copies = (1 + _COPIES, *(1 for _ in network.in_shape))
    with torch.no_grad():
        _, image = push(network, x.repeat(copies), v.repeat(copies), hook=after)
    return image.reshape(1 + _COPIES, -1)


def _affine_rounding(node: AffineNode, inputs: list[Pair]) -> Pair:
    """γ (Σ|W_i||x_i| + |b|) for the value, γ Σ|W_i||t_i| for the tangent, with γ of the maps' own counts."""
    total = torch.zeros(2, *node.shape, dtype=torch.float64)
    for linear, (value, tangent) in zip(node.maps, inputs, strict=True):
        count = _count(linear) + len(node.maps)
        total += count * _UNIT * linear.absolute().apply(torch.cat([value[:1].abs(), tangent[:1].abs()]))
    if node.offset is not None:
        total[0] += 4.0 * _UNIT * node.offset.abs()
    total = torch.where(total > 0, total + _UNDERFLOW, total)
    return total[:1], total[1:]


def _count(linear: LinearMap) -> float:
    return linear.rounding + 1.0 if math.isfinite(linear.rounding) else 2.0 * linear.in_size + 64.0


def _rounding(node: Node, before: Pair, pair: Pair) -> Pair:
    """Size of the disturbance after a nonlinear node; entries that are exactly 0 are taken to be exact."""
    amounts = []
    for inner, outer in zip(before, pair, strict=True):
        outer = outer[:1]
        if isinstance(node, ActivationNode):
            steepest = min(node.function.greatest_slope, 1e6)
            amount = _ACTIVATION_ROUNDINGS * _UNIT * (outer.abs() + steepest * inner[:1].abs())
        elif isinstance(node, GainNode):
            amount = _GAIN_ROUNDINGS * _UNIT * outer.abs().max().expand(outer.shape)
        else:
            amount = torch.zeros_like(outer)
        amounts.append(torch.where(outer == 0, 0.0, amount + _UNDERFLOW))
    return amounts[0], amounts[1]


def _refuse_ambiguous(node: Node, before: Pair) -> None:
    z, t = before
    spread = _SAFETY * (z[1:] - z[:1]).abs().amax(0)
    threshold = _NEGLIGIBLE * float(t[0].abs().max()) if t.numel() else 0.0
    if isinstance(node, ActivationNode):
        for kink in node.function.kinks:
            distance = (z[0] - kink.position).abs()
            margin = spread + _ACTIVATION_ROUNDINGS * _UNIT * torch.as_tensor(kink.position).abs()
            change = (t[0] * kink.jump).abs()
            unclear = (distance <= margin) & (change > threshold)
            if bool(unclear.any()):
                raise NumericsError(
                    f"{int(unclear.sum())} neuron(s) of {node.name} {node.where} sit on their kink at the "
                    "witness: the derivative there is ambiguous."
                )
    elif isinstance(node, SelectionNode):
        selection = node.function
        index = selection.index
        values, tangents = z[0].reshape(-1)[index], t[0].reshape(-1)[index]
        spreads = spread.reshape(-1)[index]
        if isinstance(selection, MaxSelection):
            top = values.argmax(-1, keepdim=True)
        else:  # in sorted order, each entry against the next
            order = values.argsort(-1)
            values, tangents, spreads = (a.gather(-1, order) for a in (values, tangents, spreads))
            top = (torch.arange(index.shape[1]) - 1).clamp(min=0).expand(index.shape)
        gap = (values.gather(-1, top) - values).abs()
        difference = (tangents.gather(-1, top) - tangents).abs()
        tie = (gap <= spreads + spreads.gather(-1, top)) & (difference > threshold)
        if bool(tie.any()):
            raise NumericsError(
                f"{int(tie.any(-1).sum())} tie(s) in {node.name} {node.where} at the witness: the derivative "
                "there is ambiguous."
            )
