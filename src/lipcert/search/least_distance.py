"""Points of an l2 ball that satisfy linear inequalities, or weights that prove that there are none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from lipcert.domain import Ball

Array = npt.NDArray[np.float64]

#: Distances from the faces that a point is to keep, as shares of what the ball leaves.
_ROOMS = (0.5, 0.1, 0.01, 1e-4)


def in_ball(ball: Ball, rows: Array, ends: Array) -> tuple[Array | None, Array | None]:
    """(weights, None), (None, x) or (None, None): no x of the ball has rows·x + ends ≥ 0; this one has; not known.

    The weights prove it by sup Σ weights·(rows·x + ends) < 0. It is a least-distance problem, solved as one of
    non-negative least squares (Lawson & Hanson 1974, ch. 23): with x = centre + radius ξ and the inequalities Gξ ≥ h,
    let u ≥ 0 bring [Gᵀ; hᵀ]u nearest to (0, …, 0, 1), and q = hᵀu. Then ‖Gᵀu‖² = q − q², and the least ‖ξ‖² is
    q/(1 − q): above 1, and ‖Gᵀu‖ below hᵀu, just where q > 1/2.
    """
    centre = ball.center.reshape(-1).numpy()
    if not len(ends):
        return None, centre
    with np.errstate(over="ignore", invalid="ignore"):
        g, h = rows * ball.radius, -(ends + rows @ centre)
        scale = np.linalg.norm(g, axis=1) + np.abs(h)
    if not np.isfinite(scale).all():
        return None, None
    scale = np.where(scale > 0, scale, 1.0)
    g, h = g / scale[:, None], h / scale
    lengths = np.linalg.norm(g, axis=1)
    hopeless = int((h - lengths).argmax())
    if h[hopeless] > lengths[hopeless]:
        return np.eye(len(h))[hopeless] / scale, None
    factor: Array = np.asarray(np.linalg.qr(g.T, mode="r")) if g.shape[1] > g.shape[0] else g.T
    weights, share = _least_distance(factor, h)
    if weights is None:
        return None, None
    if share > 0.5:
        return weights / scale, None
    room = 1.0 - np.sqrt(share / (1.0 - share))
    for part in _ROOMS:
        further, own = _least_distance(factor, h + part * room * lengths)
        if further is not None and own <= 0.5:
            weights, share = further, own
            break
    return None, centre + ball.radius * (g.T @ weights) / (1.0 - share)


def _least_distance(factor: Array, h: Array) -> tuple[Array | None, float]:
    """(u, q) of ``in_ball``, with Gᵀ or a factor of the same Gram matrix."""
    target = np.zeros(len(factor) + 1)
    target[-1] = 1.0
    try:
        weights, _ = nnls(np.vstack([factor, h]), target)
    except RuntimeError:  # it does not converge
        return None, 0.0
    return weights, float(h @ weights)
