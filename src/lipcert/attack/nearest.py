"""Counter-examples near the centres of balls: from points where the class has changed, inward."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.attack.descent import LeastDifference, Outputs
from lipcert.attack.geometry import Geometry

#: Steps, and by which factors the radius of the sphere changes: down where the class has changed, else up.
_STEPS, _CHANGES = 40, (0.2, 0.005)
#: Lengths of the steps in units of the sphere.
_LENGTHS = (0.5, 0.01)
#: Halvings of the way from the centre.
_HALVINGS = 32


def approach(outputs: Outputs, geometry: Geometry, labels: Tensor, starts: Tensor) -> Tensor:
    """Nearer points (B, n) in units at which another class is higher, as far as the search's arithmetic says.

    Descent on a sphere whose radius falls while the class is another one and grows while it is not (Rony et al. 2019,
    *Decoupling direction and norm*).

    Args:
        outputs: f.
        geometry: balls, or balls within boxes.
        labels: (B,).
        starts: (B, n), where the class is another one, in units.
    """
    rows = torch.arange(len(starts), device=starts.device).split(outputs.chunk)
    done = [starts[:0]]
    for r in rows:
        here, objective = geometry.at(r), LeastDifference(labels[r])
        best = _approach(outputs, here, objective, starts[r], starts[r])
        done.append(_approach(outputs, here, objective, best, here.home))  # it may have come in from a far side
    return torch.cat(done)


def _approach(outputs: Outputs, geometry: Geometry, objective: LeastDifference, best: Tensor, u: Tensor) -> Tensor:
    """Shorter points than ``best``, on a way that begins at u."""
    length = geometry.lengths(best)
    least = geometry.lengths(geometry.home) * (1.0 + 1e-3)
    radius = length.clone()
    rows = torch.arange(len(u), device=u.device)
    for number in range(_STEPS):
        share = number / (_STEPS - 1)
        change, step = (a * (b / a) ** share for a, b in (_CHANGES, _LENGTHS))
        x = geometry.points(u).requires_grad_(True)
        with torch.enable_grad():
            values = objective(outputs.call(x), rows)
            if not values.requires_grad:
                return best
            (gradient,) = torch.autograd.grad(values.sum(), x)
        changed = (values.detach() < 0)[:, None]
        here = geometry.lengths(u)
        nearer = changed & (here < length)
        best, length = torch.where(nearer, u, best), torch.where(nearer, here, length)
        radius = torch.where(changed, torch.minimum(radius, length) * (1.0 - change), radius * (1.0 + change))
        radius = torch.maximum(torch.minimum(radius, length * (1.0 - 0.5 * change)), least).clamp(min=1e-12, max=1.0)
        sphere = geometry.shrunk(radius)
        u = sphere.step(u / radius, torch.nan_to_num(gradient, 0.0, 0.0, 0.0), step) * radius
    return best


def halved(outputs: Outputs, geometry: Geometry, labels: Tensor, ends: Tensor) -> Tensor:
    """On the way from home to each end (B, n) the first place found, by halving, where the class is another one."""
    objective, rows = LeastDifference(labels), torch.arange(len(ends), device=ends.device)

    def changed(share: Tensor) -> Tensor:
        u = geometry.home + share * (ends - geometry.home)
        return (objective(outputs(geometry.points(u)), rows) <= 0)[:, None]

    low, high = torch.zeros_like(ends[:, :1]), torch.ones_like(ends[:, :1])
    high = torch.where(changed(low), low, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        there = changed(middle)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    return geometry.home + high * (ends - geometry.home)
