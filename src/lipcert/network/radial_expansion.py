"""Normalisations x / √(k‖x‖² + ε) near the middle of a box: their derivative there, and how far it varies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.network.expansion import Expansion, diagonal, rank_one, total
from lipcert.network.images import image
from lipcert.numerics.interval import Interval, middle_of
from lipcert.numerics.midrad import TINY, UNIT, Range
from lipcert.numerics.rows import length_up, placed

if TYPE_CHECKING:
    from lipcert.network.radial import Radial

#: Share of the greatest norm of the derivative in a group up to which its distance from that at the middle is of use.
WORTH = 0.75
#: Above 2/√3.
_BEND = 1.1548


def radial_expansion(function: Radial, box: Interval, least: Tensor | None = None) -> Expansion | None:
    """Of a normalisation on a box; None where the box is not finite or r² is no k‖x‖² + ε.

    With P the identity, or the projection off the mean, and r(x) = √(k‖Px‖² + ε) the derivative of f = Px/r is Df =
    (P − k f fᵀ)/r. The map is that at the centre c, with rounded constants; its error is part of the gains.

    Why the gains hold: f = φ(√k Px)/√k with φ(w) = w/√(‖w‖² + ε). The second derivative of φ is a symmetric trilinear
    form, whose norm is its greatest value at three equal unit vectors (Banach 1938): with ρ = √(‖w‖² + ε), t = ‖w‖/ρ
    and q the cosine to w it is t(3q − 3t²q³)/ρ² there, at most 2/(√3 ρ²). Hence ‖Df(x) − Df(c)‖ ≤ 2/(√3 ρ²) √k ‖P(x −
    c)‖ with ρ least on the segment from c, which no point of the domain may have as its value, to x. Or, as ρ ≥ √k(L −
    t s) at the part t of a segment of length ‖P(x − c)‖ ≤ s < L = ‖Pc‖, with k L(L − s) for ρ²: ∫ dt/(L − t s)² =
    1/(L(L − s)). In l1 and l∞ a matrix of n columns has at most √n times its norm in l2. The remainder f(x) − f(c) −
    Df(c)(x − c) is at most half that times ‖P(x − c)‖, the bound being convex in s. Where the distance is more than a
    share of the greatest ‖Df‖ itself, at most 1/ρ, a group's map is 0. Unequal weights of the entries, k ± a relative
    2η, are f with D^−1 φ(Dx), D = √k (1 ± η).

    Args:
        function: what it is.
        box: of its argument.
        least: (2, groups) lower bounds of ‖Px‖ on the domain, and on all segments from there to the middle of the
            box, better than what the box gives; or None.
    """
    if not bool(box.finite.all()):
        return None
    shape = tuple(box.low.shape)
    places = function.grouped(torch.arange(math.prod(shape)).reshape(shape))
    groups, n = places.shape
    if not groups or n < (2 if function.centred else 1):
        return None
    around, reach = middle_of(box)
    middle = around.map(lambda t: t.reshape(-1)[places])
    centre, far = Range.exact(middle.mid), length_up(middle.rad).clamp(max=reach)
    count = Range.exact(torch.tensor(float(n), dtype=torch.float64))
    own = centre - centre.sum((1,), True) * count.reciprocal() if function.centred else centre
    square = own.square().sum((1,), True)
    length = square.sqrt()
    shortest = between = (length.low - far).clamp(min=0.0) * (1.0 - 4.0 * UNIT)
    if least is not None:
        shortest, between = (torch.maximum(shortest, own[:, None]) for own in least)
    form = function.root_form(float(torch.minimum(shortest, between).min()))
    if form is None:
        return None
    k, eps, spread = form
    r = (k * square + eps).sqrt()
    rho2, rho2_between = ((k * Range.exact(own).square() + eps).low for own in (shortest, between))
    inverse = r.reciprocal()
    unit = own * inverse
    factor = (k * inverse).sqrt()
    v = unit * factor
    finite = v.mid.isfinite().all(1, True) & v.reach.isfinite().all(1, True) & inverse.reach.isfinite()
    known = (rho2_between > 0) & finite
    scale, arrow = torch.where(known, inverse.mid, 0.0), torch.where(known, v.mid, 0.0)
    # what the floats of the map are off: a(P) by |a − 1/r| (and the mean's own factor), vvᵀ by ‖v − v'‖(‖v‖ + ‖v'‖)
    step = length_up(v.reach)
    wrong = inverse.reach + 4.0 * UNIT * scale + step * (2.0 * length_up(arrow) + step)
    wrong = wrong + (spread * spread - 1.0) * (length_up(arrow) ** 2 + scale) * 4.0
    along = k.low * length.low * (length.low - far).clamp(min=0.0) * (1.0 - 8.0 * UNIT)  # ρ² if the step is integrated
    rho2_between = torch.maximum(rho2_between, along)
    near = _BEND * k.sqrt().high * far / rho2_between * spread**4 * (1.0 + 64.0 * UNIT) + wrong * (1.0 + 64.0 * UNIT)
    plain = spread / torch.sqrt(rho2.clamp(min=0.0)) * (1.0 + 8.0 * UNIT)
    plain = plain.clamp(max=function.gains.get(2.0, math.inf))
    used = known & (near <= WORTH * plain)
    if not bool(plain.isfinite().all()):
        return None
    scale, arrow = torch.where(used, scale, 0.0), torch.where(used, arrow, 0.0)
    two = torch.where(used, near, plain)
    sizes, gains = placed(two, places, shape), _gains(function, n, bool(used.any()))
    maps = [diagonal(placed(scale, places, shape)), rank_one(places, shape, -arrow, arrow)]
    if function.centred:
        ones = torch.ones(groups, n, dtype=torch.float64)
        maps.append(rank_one(places, shape, -(scale / n).expand(groups, n).contiguous(), ones))
    linear = total(maps) if bool(used.any()) else None
    if linear is None:
        nothing = torch.zeros(shape, dtype=torch.float64)
        return Expansion((None,), Range(nothing, torch.full_like(nothing, math.inf)), (sizes,), (gains,))
    start = image(linear, Range.exact(placed(middle.mid, places, shape)[None])).map(lambda t: t[0])
    bend = (0.5 * near * far * (1.0 + 8.0 * UNIT) + wrong * far) + TINY
    value = Range(unit.mid, (unit.reach + bend) * (1.0 + 8.0 * UNIT))
    offset = value.map(lambda t: placed(t, places, shape)) - start
    whole = placed(used.to(torch.float64), places, shape) > 0
    offset = Range(torch.where(whole, offset.mid, 0.0), torch.where(whole, offset.rad, math.inf))
    return Expansion((linear,), offset, (sizes,), (gains,))


def _gains(function: Radial, n: int, near: bool) -> dict[float, float]:
    """Of what is left of the increments, in units of the gains in l2; see ``Radial.gains_beyond``."""
    root = math.sqrt(n)
    alone = max(2.0 * (n - 1) / n if function.centred else 1.0, (1.0 + root) / 2.0)
    wide = root if near else alone
    return {1.0: wide * (1.0 + 16.0 * UNIT), 2.0: 1.0, math.inf: wide * (1.0 + 16.0 * UNIT)}
