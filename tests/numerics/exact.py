"""Exact rational oracles: what a float matrix *is*, without rounding."""

from fractions import Fraction

from torch import Tensor


def fractions(a: Tensor) -> list[list[Fraction]]:
    return [[Fraction(x) for x in row] for row in a.double().tolist()]


def is_positive_definite(a: list[list[Fraction]]) -> bool:
    """All pivots of exact symmetric elimination are positive."""
    a = [list(row) for row in a]
    n = len(a)
    for k in range(n):
        if a[k][k] <= 0:
            return False
        for i in range(k + 1, n):
            factor = a[i][k] / a[k][k]
            for j in range(k, n):
                a[i][j] -= factor * a[k][j]
    return True


def exceeds_sigma_max(w: Tensor, value: Fraction) -> bool:
    """Whether ``value > sigma_max(w)``, exactly."""
    rows = fractions(w if w.shape[0] >= w.shape[1] else w.mT)
    n = len(rows[0])
    gram = [[sum(r[i] * r[j] for r in rows) for j in range(n)] for i in range(n)]
    return value > 0 and is_positive_definite(
        [[(value**2 if i == j else 0) - gram[i][j] for j in range(n)] for i in range(n)]
    )
