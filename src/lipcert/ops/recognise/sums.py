"""The reader of sums over entries: affine images, their offsets, and which entries a map adds up with which weights.

A map without constants that moves, repeats or adds up entries is a matrix of whole numbers ≥ 0; sums of such numbers
are exact in float64, so two products with its transpose determine which output owns each input (``partition``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.network.builder import NetworkBuilder, Var
from lipcert.network.graph import AffineNode
from lipcert.network.linear import Composition, Dense, Identity, LinearMap, OpMap, compose
from lipcert.ops.rational import Real, exactly
from lipcert.ops.recognise.expression import offset_of
from lipcert.ops.recognise.scalings import constant_of, majorised, scalar_of, times, uniform
from lipcert.ops.structure import Reduction

#: Largest matrix that is written out to read its entries.
ENTRIES = 1 << 22
#: Ops that copy, move or drop entries: each output is one of the inputs.
_COPIES = frozenset(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze permute transpose swapaxes t mT "  # noqa: SIM905
    "numpy_T movedim moveaxis flip roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle select narrow diagonal "
    "expand repeat tile repeat_interleave slice split split_with_sizes unsafe_split chunk tensor_split unbind".split()
)
#: Ops whose entries are products of one constant each, or equal shares (pools), added up.
WEIGHTED = frozenset(
    "linear mm bmm matmul mv dot addmm einsum convolution conv1d conv2d conv3d avg_pool1d avg_pool2d "  # noqa: SIM905
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d".split()
)
#: Affine nodes that are read for one expression, at most.
_MOST_STEPS = 500
#: A weight below this may be the rest of an underflow.
_LEAST_WEIGHT = 2.0**-900


def steps(linear: LinearMap) -> list[LinearMap]:
    """The maps that are applied one after the other; a sum of maps counts as one."""
    if isinstance(linear, Composition):
        return [step for part in linear.maps for step in steps(part)]
    return [linear]


def _copies(step: LinearMap) -> bool:
    return isinstance(step, OpMap) and step.label in _COPIES and not step.constants


def nonnegative(linear: LinearMap) -> bool:
    """True if every entry is certainly ≥ 0: relative errors of known size change no sign, others may."""
    for leaf in linear.leaves():
        known = isinstance(leaf, (Identity, OpMap, Dense)) and math.isfinite(leaf.rounding) and not majorised(leaf)
        factors = (
            [torch.tensor(leaf.scale, dtype=torch.float64)]
            if isinstance(leaf, Identity)
            else getattr(leaf, "constants", ())
        )
        if not known or any(bool((c < 0).any()) for c in factors):
            return False
    return True


# -- affine images -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AffineImage:
    """The sum of ``linear · source`` over ``terms``, plus ``offset``.

    Attributes:
        terms: position of a value that is not affine in others, and its map; a value may come several times.
        offset: doubles close to the offset, for evaluation only; None for none.
        level: the number that every entry of the offset is, exact or enclosed; None if it is not known as one.
        nonnegative: the offset is certainly ≥ 0 in every entry.
    """

    terms: tuple[tuple[int, LinearMap], ...]
    offset: Tensor | None
    level: Real | None
    nonnegative: bool


def affine_image(builder: NetworkBuilder, var: Var) -> AffineImage | None:
    """``var`` as an affine image of the last values that are not affine in others; None where that takes too long."""
    terms: list[tuple[int, LinearMap]] = []
    offset: Tensor | None = None
    level: Real | None = exactly(0)
    certain = True
    waiting: list[tuple[int, LinearMap]] = [(var.position, Identity(var.shape))]
    for _ in range(_MOST_STEPS):
        if not waiting:
            positive = certain if level is None else certain or level.low >= 0
            return AffineImage(tuple(terms), offset, level, positive)
        place, linear = waiting.pop()
        node = builder.nodes[place]
        if not isinstance(node, AffineNode):
            terms.append((place, linear))
            continue
        if node.offset is not None:
            own, factor = offset_of(node), _level_of(linear)
            moved = linear.apply(node.offset.double().expand(node.shape)[None].contiguous())[0]
            offset = moved if offset is None else offset + moved
            level = level + own * factor if level and own and factor else None
            known = node.offset_error is not None and bool((node.offset >= node.offset_error).all())
            certain = certain and known and nonnegative(linear)
        inner = zip(node.parents, node.maps, strict=True)
        waiting += reversed([(parent, compose(own, linear)) for parent, own in inner])
    return None


def _level_of(linear: LinearMap | None) -> Real | None:
    """The number that the map takes the constant 1 to in every entry; None if that is not known."""
    total = exactly(1)
    for step in [] if linear is None else steps(linear):
        factor: Real | None
        if isinstance(step, OpMap) and isinstance(step.function, Reduction):
            factor = exactly(1 if step.function.mean else step.in_size // max(1, step.out_size))
        elif isinstance(step, OpMap) and step.function is times:
            factor = uniform(constant_of(step))
        else:
            factor = exactly(1) if _copies(step) else scalar_of(step)
        if factor is None:
            return None
        total = total * factor
    return total


# -- who adds up what --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Partition:
    """A map with y_o = Σ of w_j x_j over the inputs j that o owns, 0 < low ≤ w_j ≤ high.

    ``owner`` has the shape of the input and holds flat positions of outputs; ``largest`` inputs share one output.
    """

    owner: Tensor
    largest: int
    low: Fraction
    high: Fraction


def partition(linear: LinearMap) -> Partition | None:
    """Which output owns each input, with enclosed weights; None if an input has none or several, or a weight ≤ 0.

    Why this is a proof: with its weights taken out, every step is a matrix of whole numbers ≥ 0, and so is their
    product N. Float sums of whole numbers below 2^53 are exact. Let column j of N hold n_o, with Σ n_o = k,
    Σ n_o o = k m and Σ n_o o² = k m²: then Σ n_o (o − m)² = 0, so that n_o = 0 for every o but m.
    """
    low = high = Fraction(1)
    counts: list[LinearMap] = []
    for step in steps(linear):
        taken = _weights(step)
        if taken is None:
            return None
        low, high = low * taken[0], high * taken[1]
        counts += [taken[2]] if taken[2] is not None else []
    n, m = linear.in_size, linear.out_size
    if not n or not m:
        return None
    whole = compose(Identity(linear.in_shape), *counts)
    places = torch.arange(m, dtype=torch.float64).reshape(linear.out_shape)
    columns = whole.transpose(torch.stack([torch.ones_like(places), places, places * places]))
    k = float(columns[0].reshape(-1)[0])
    if not k >= 1 or k * (m + 1.0) ** 2 > 2.0**50 or not bool((columns[0] == k).all()):
        return None
    owner = columns[1] / k
    if not bool((owner == owner.round()).all()) or not torch.equal(columns[2], k * owner * owner):
        return None
    chosen = owner.long()
    largest = int(torch.bincount(chosen.reshape(-1), minlength=m).max())
    return Partition(chosen, largest, low * int(k), high * int(k))


def _weights(step: LinearMap) -> tuple[Fraction, Fraction, LinearMap | None] | None:
    """(low, high, N): the step is N with every entry multiplied by a weight in [low, high], N of whole numbers."""
    if isinstance(step, OpMap) and step.function is times:
        taken = _range(constant_of(step).value, constant_of(step).rounding)
        spread = OpMap(
            "times", times, step.in_shape, step.out_shape, (torch.ones_like(step.constants[0]),), "times", 1.0
        )
        return None if taken is None else (*taken, None if step.in_shape == step.out_shape else spread)
    scalar = scalar_of(step)
    if scalar is not None:
        return (scalar.low, scalar.high, None) if scalar.sign > 0 else None
    if isinstance(step, Dense):
        return _written(step)
    if not isinstance(step, OpMap):
        return None
    if isinstance(step.function, Reduction):
        sums = Reduction(False, step.function.axes, step.function.keepdim)
        one = Fraction(step.out_size, step.in_size) if step.function.mean and step.in_size else Fraction(1)
        return (
            one,
            one,
            OpMap("sum", sums, step.in_shape, step.out_shape, (), sums.key(step.in_shape), float(step.in_size)),
        )
    if _copies(step):
        return Fraction(1), Fraction(1), step
    return _written(step) if step.label in WEIGHTED else None


def _range(value: Tensor, rounding: float) -> tuple[Fraction, Fraction] | None:
    """(low, high) around numbers > 0 with a rounding count."""
    if not value.numel() or not bool((value > 0).all()):
        return None
    ends = Real.of(float(value.min()), rounding), Real.of(float(value.max()), rounding)
    if ends[0] is None or ends[1] is None or ends[0].sign <= 0:
        return None
    return ends[0].low, ends[1].high


def _written(step: OpMap | Dense) -> tuple[Fraction, Fraction, LinearMap] | None:
    """The same for a map given by constants ≥ 0, read from its matrix.

    Which entries are 0 is known exactly: the map of the constants' own pattern of zeros says it in whole numbers.
    """
    if step.in_size * step.out_size > ENTRIES or not math.isfinite(step.rounding) or not nonnegative(step):
        return None
    pattern = tuple((c > 0).to(c.dtype) for c in step.constants)
    counts = replace(step, constants=pattern).matrix()  # type: ignore[arg-type]
    if pattern and not torch.equal(counts, counts.round()):
        return None
    some = counts > 0
    matrix = step.matrix()
    if not torch.equal(matrix > 0, some) or not bool(some.any()):
        return None
    if float(matrix[some].min()) < _LEAST_WEIGHT or not bool(torch.isfinite(matrix).all()):
        return None
    taken = _range(matrix[some], step.rounding)
    whole = Dense((some.double(),), step.in_shape, step.out_shape, float(step.in_size + step.out_size))
    return None if taken is None else (*taken, whole)
