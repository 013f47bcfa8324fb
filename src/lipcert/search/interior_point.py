"""Primal–dual interior point for the semidefinite programs of LipSDP, dense, with rank-two constraint matrices.

    minimise ρ  such that  S = ρ E_x + Σ_g λ_g Σ_{i in g} (p_i q_iᵀ + q_i p_iᵀ)/2 − YᵀY ⪰ 0,  λ ≥ 0

over (x, z), x being the first coordinates. A solver, not a proof: what comes out is a proposal for a certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import NumericsError
from lipcert.numerics.lanczos import lanczos_ritz


@dataclass(frozen=True, eq=False)
class Program:
    """The data of one program over N coordinates.

    Attributes:
        inputs: number of entries of x, the first columns.
        p, q: (T, N) rows of the constraint matrices.
        group: (T,) the multiplier of each row.
        y: (m, N).
        groups: number of multipliers.
    """

    inputs: int
    p: Tensor
    q: Tensor
    group: Tensor
    y: Tensor
    groups: int

    @property
    def size(self) -> int:
        """N."""
        return int(self.p.shape[1])

    def adjoint(self, t: Tensor) -> Tensor:
        """ρ E_x + Σ λ_g (…) for t = (ρ, λ): (groups + 1,) → (N, N)."""
        result = self.p.T @ (t[1:][self.group][:, None] * self.q)
        result.diagonal()[: self.inputs].add_(t[0])
        return (result + result.T) / 2

    def forward(self, z: Tensor) -> Tensor:
        """The inner products of the constraint matrices with z: (N, N) → (groups + 1,)."""
        rows = ((self.p @ z) * self.q).sum(dim=1) + ((self.q @ z) * self.p).sum(dim=1)
        result = z.new_zeros(self.groups + 1)
        result[0] = z.diagonal()[: self.inputs].sum()
        result[1:].index_add_(0, self.group, rows / 2)
        return result

    def schur(self, x: Tensor, inverse: Tensor) -> Tensor:
        """tr(A_k X A_l S⁻¹): four Hadamard products of Gram matrices, as every A_k is a sum of rank-two pieces."""
        n = self.inputs
        xp, xq, sp, sq = x @ self.p.T, x @ self.q.T, inverse @ self.p.T, inverse @ self.q.T
        crossed = (self.p @ xq) * (self.q @ sp)  # terms (k, l); its transpose is the other one
        inner = ((self.p @ xp) * (self.q @ sq) + (self.q @ xq) * (self.p @ sp) + crossed + crossed.T) / 4
        by_rows = x.new_zeros(self.groups, len(self.p)).index_add_(0, self.group, inner)
        result = x.new_zeros(self.groups + 1, self.groups + 1)
        result[1:, 1:].index_add_(1, self.group, by_rows)
        result[0, 0] = (x[:n, :n] * inverse[:n, :n]).sum()
        edge = (xp[:n] * sq[:n] + xq[:n] * sp[:n]).sum(dim=0) / 2
        result[0, 1:].index_add_(0, self.group, edge)
        result[1:, 0] = result[0, 1:]
        return (result + result.T) / 2


@dataclass(frozen=True, eq=False)
class Solution:
    """The last iterate.

    Attributes:
        rho, multipliers: dual point (ρ, λ); S ⪰ 0 holds up to ``infeasibility``.
        primal: ⟨YᵀY, X⟩, at most the optimum up to ``infeasibility``.
        gap: (ρ − primal) / ρ.
        infeasibility: the larger of the two relative residuals.
        iterations: how many were made.
        converged: whether the gap met the tolerance and the infeasibility ten times that.
    """

    rho: float
    multipliers: Tensor
    primal: float
    gap: float
    infeasibility: float
    iterations: int
    converged: bool


def solve(
    program: Program,
    tolerance: float = 1e-7,
    max_iterations: int = 60,
    report: Callable[[int, float], None] = lambda iteration, gap: None,
) -> Solution:
    """Mehrotra's predictor–corrector with the HKM direction, from an infeasible start.

    Source: Helmberg, Rendl, Vanderbei & Wolkowicz, SIAM J. Optim. 6 (1996); Todd, Toh & Tütüncü, SIAM J. Optim. 8
    (1998). Variables should be scaled so that the optimal multipliers are about 1.

    Raises:
        NumericsError: the first step already fails.
    """
    state = _State(program)
    best = current = state.solution(0, tolerance)
    stalled = 0
    while not current.converged and current.iterations < max_iterations and stalled < 5:
        centre = state.centre
        if not state.step():
            break
        current = state.solution(current.iterations + 1, tolerance)
        report(current.iterations, current.gap)
        progress = state.centre < 0.9 * centre or _error(current) < 0.9 * _error(best)
        stalled = 0 if progress else stalled + 1
        if _error(current) < _error(best):
            best = current
    if not math.isfinite(best.rho):
        raise NumericsError("the interior-point method broke down; try method 'lipsdp'.")
    return best


def _error(solution: Solution) -> float:
    return max(abs(solution.gap), solution.infeasibility)


class _State:
    """X, S, μ and t = (ρ, λ), all strictly positive."""

    def __init__(self, program: Program) -> None:
        self.program = program
        n, k = program.size, program.groups
        self.c = program.y.T @ program.y
        self.b = torch.zeros(k + 1, dtype=torch.float64)
        self.b[0] = 1.0
        self.eye = torch.eye(n, dtype=torch.float64)
        self.t = torch.full((k + 1,), 2.0, dtype=torch.float64)
        self.x = self.eye.clone()
        self.mu = torch.ones(k, dtype=torch.float64)
        spectrum = float(torch.linalg.matrix_norm(program.adjoint(self.t) - self.c, 2))
        self.s = self.eye * max(1.0, spectrum)

    def solution(self, iterations: int, tolerance: float) -> Solution:
        """The iterate with its residuals."""
        rho, primal = float(self.t[0]), float((self.c * self.x).sum())
        residual = self.b - self.program.forward(self.x)
        residual[1:] -= self.mu
        primal_error = float(residual.norm()) / (1.0 + float(self.x.diagonal().max()))
        dual_error = float((self.program.adjoint(self.t) - self.c - self.s).norm()) / (1.0 + float(self.c.norm()))
        gap = (rho - primal) / max(abs(rho), 1e-300)
        worst = max(primal_error, dual_error)
        # Where neurons have v = 0 at the optimum their λ grow without end; rounding then keeps the residuals just above
        # the gap, and each further step only makes the multipliers worse to prove with.
        done = abs(gap) <= tolerance and worst <= 10.0 * tolerance
        return Solution(rho, self.t[1:].clone(), primal, gap, worst, iterations, done)

    @property
    def centre(self) -> float:
        """Mean complementarity."""
        products = float((self.x * self.s).sum()) + float(self.mu @ self.t[1:])
        return products / (self.program.size + self.program.groups)

    def step(self) -> bool:
        """One predictor–corrector step; False when rounding allows no further one."""
        program, lam = self.program, self.t[1:]
        factor, info = torch.linalg.cholesky_ex(self.s)
        x_factor, x_info = torch.linalg.cholesky_ex(self.x)
        if int(info) or int(x_info):
            return False
        inverse = torch.cholesky_inverse(factor)
        matrix = program.schur(self.x, inverse)
        matrix.diagonal()[1:].add_(self.mu / lam)
        solver = _Definite(matrix)
        if not solver.usable:
            return False
        missing = program.adjoint(self.t) - self.c - self.s
        base = program.forward(self.x @ missing @ inverse)
        from_inverse = program.forward(inverse)
        centre, n = self.centre, program.size + program.groups

        def direction(sigma: float, second: Tensor | None, second_lp: Tensor | None) -> tuple[Tensor, ...]:
            right = sigma * centre * from_inverse - base - self.b
            right[1:] += sigma * centre / lam
            if second is not None and second_lp is not None:
                right = right - program.forward(second)
                right[1:] -= second_lp
            dt = solver(right)
            ds = program.adjoint(dt) + missing
            dx = sigma * centre * inverse - self.x - self.x @ ds @ inverse
            dmu = sigma * centre / lam - self.mu - self.mu * dt[1:] / lam
            if second is not None and second_lp is not None:
                dx, dmu = dx - second, dmu - second_lp
            return dt, ds, (dx + dx.T) / 2, dmu

        dt, ds, dx, dmu = direction(0.0, None, None)
        if not bool(torch.isfinite(dt).all()):
            return False
        primal = min(1.0, _reach(x_factor, dx), _ratio(self.mu, dmu))
        dual = min(1.0, _reach(factor, ds), _ratio(lam, dt[1:]))
        ahead = float(((self.x + primal * dx) * (self.s + dual * ds)).sum())
        ahead = (ahead + float((self.mu + primal * dmu) @ (lam + dual * dt[1:]))) / n
        power = max(1.0, 3.0 * min(primal, dual) ** 2)
        sigma = min(1.0, max(0.0, ahead / centre)) ** power if min(primal, dual) > 0.1 else 0.8
        dt, ds, dx, dmu = direction(max(sigma, 1e-6), dx @ ds @ inverse, dmu * dt[1:] / lam)
        keep = 0.9 + 0.09 * min(primal, dual)
        primal = min(1.0, keep * _reach(x_factor, dx), keep * _ratio(self.mu, dmu))
        dual = min(1.0, keep * _reach(factor, ds), keep * _ratio(lam, dt[1:]))
        primal, dual = _safe(self.x, dx, primal), _safe(self.s, ds, dual)
        if not max(primal, dual) > 1e-8:
            return False
        self.x = self.x + primal * dx
        self.mu = self.mu + primal * dmu
        self.s = self.s + dual * ds
        self.t = self.t + dual * dt
        return True


class _Definite:
    """Solve with a positive definite matrix, scaled to unit diagonal, once refined."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.scale = matrix.diagonal().clamp(min=1e-300).rsqrt()
        scaled = matrix * self.scale[:, None] * self.scale
        self.usable = bool(torch.isfinite(scaled).all())
        shift = 0.0
        while self.usable:
            self.factor, info = torch.linalg.cholesky_ex(scaled + shift * torch.eye(len(scaled), dtype=torch.float64))
            if not int(info):
                return
            shift = max(1e-15, 10.0 * shift)
            self.usable = shift < 1e-6

    def __call__(self, right: Tensor) -> Tensor:
        solution = self._once(right)
        for _ in range(2):
            solution = solution + self._once(right - self.matrix @ solution)
        return solution

    def _once(self, right: Tensor) -> Tensor:
        return self.scale * torch.cholesky_solve((self.scale * right)[:, None], self.factor)[:, 0]


def _ratio(value: Tensor, change: Tensor) -> float:
    """The largest step that keeps a positive vector non-negative."""
    falling = change < 0
    return float((-value[falling] / change[falling]).min()) if bool(falling.any()) else math.inf


def _reach(factor: Tensor, change: Tensor) -> float:
    """About the largest step that keeps LLᵀ + step · change positive semidefinite."""
    half = torch.linalg.solve_triangular(factor, change, upper=False)
    scaled = torch.linalg.solve_triangular(factor, half.T, upper=False)
    scaled = (scaled + scaled.T) / 2
    if not bool(torch.isfinite(scaled).all()):
        return 0.0
    least = float(torch.linalg.eigvalsh(scaled)[0]) if len(scaled) <= 250 else _least_eigenvalue(scaled)
    return -1.0 / least if least < 0 else math.inf


def _least_eigenvalue(matrix: Tensor, steps: int = 40) -> float:
    """λ_min by Lanczos on ‖M‖ − M, the residual subtracted."""
    size = float(matrix.abs().sum(dim=1).max())
    if size == 0.0:
        return 0.0
    ritz = lanczos_ritz(lambda x: x - matrix @ x / size, len(matrix), steps, torch.Generator().manual_seed(0))
    return size * (1.0 - ritz.value - ritz.residual)


def _safe(matrix: Tensor, change: Tensor, step: float) -> float:
    """The step, shortened until a Cholesky factorisation of the new matrix exists."""
    while step > 1e-10:
        _, info = torch.linalg.cholesky_ex(matrix + step * change)
        if not int(info):
            return step
        step *= 0.8
    return 0.0
