"""The theorems of Scaman & Virmaux (2018) as things that can be run: hard networks with known constants, and ratios.

Theorem 1 (computing the constant is NP-hard, already for two layers) becomes a family of networks whose constant is the
root of a graph's maximum cut; Theorems 2 and 3 say by how much SeqLip improves on AutoLip. Everything here is plain
floating-point mathematics for study and tests: nothing returns a ``Bound``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.errors import InputError

Edge = tuple[int, int, float]

#: Brute force looks at 2^(n − 1) cuts; more nodes than this are refused.
MOST_NODES = 24


@dataclass(frozen=True)
class CutNetwork:
    """Theorem 1 as an instance: f(x) = 1ᵀ relu(Bx), B the weighted incidence matrix of a graph, has constant √maxcut.

    B has a row per vertex and a column per edge; the column of edge (u, v) of weight w ≥ 0 holds +√w at u and −√w at v.
    At the pattern σ ∈ {0, 1}^n (which vertices are active) the gradient is Bᵀσ, whose entry for (u, v) is
    √w (σ_u − σ_v), so ‖Bᵀσ‖² = Σ w [σ_u ≠ σ_v] = cut(σ).

    Why the constant is exactly √maxcut: every gradient is some Bᵀσ, σ ∈ [0, 1]^n, and the convex ‖Bᵀσ‖ is largest at a
    vertex: L ≤ √maxcut. Conversely the image of B holds every z whose sum over each connected component vanishes, so
    each pattern that is constant on no component (of more than one vertex) is that of an open set of inputs; a
    component on which σ is constant adds nothing to the cut, and may as well be cut somewhere. So L = √maxcut, in l2.

    Attributes:
        nodes: number n of vertices.
        edges: (u, v, w) with 0 ≤ u, v < n, u ≠ v, w ≥ 0; a pair may occur more than once.
    """

    nodes: int
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if self.nodes < 1 or not self.edges:
            raise InputError("a cut network needs at least one vertex and one edge.")
        for u, v, w in self.edges:
            if not (0 <= u < self.nodes and 0 <= v < self.nodes and u != v and 0.0 <= w < math.inf):
                raise InputError(f"({u}, {v}, {w}) is not an edge between two of {self.nodes} vertices of weight ≥ 0.")

    def incidence(self) -> Tensor:
        """B, (n, m) float64."""
        matrix = torch.zeros(self.nodes, len(self.edges), dtype=torch.float64)
        for e, (u, v, w) in enumerate(self.edges):
            matrix[u, e], matrix[v, e] = math.sqrt(w), -math.sqrt(w)
        return matrix

    def network(self) -> nn.Module:
        """x ↦ 1ᵀ relu(Bx): R^m → R, in eval mode, float64."""
        first = nn.Linear(len(self.edges), self.nodes, bias=False).double()
        last = nn.Linear(self.nodes, 1, bias=False).double()
        with torch.no_grad():
            first.weight.copy_(self.incidence())
            last.weight.fill_(1.0)
        return nn.Sequential(first, nn.ReLU(), last).eval()

    def cut(self, side: Sequence[int]) -> float:
        """Weight of the edges between the vertices with side 0 and with side 1."""
        return sum(w for u, v, w in self.edges if side[u] != side[v])

    def max_cut(self) -> float:
        """The maximum cut by brute force.

        Raises:
            InputError: more than ``MOST_NODES`` vertices.
        """
        if self.nodes > MOST_NODES:
            raise InputError(f"{self.nodes} vertices are too many for brute force (at most {MOST_NODES}).")
        best = 0.0
        count, chunk = 1 << (self.nodes - 1), 1 << 16
        for start in range(0, count, chunk):
            numbers = torch.arange(start, min(count, start + chunk))
            total = torch.zeros(len(numbers), dtype=torch.float64)
            for u, v, w in self.edges:
                total += w * (((numbers >> u) ^ (numbers >> v)) & 1).double()
            best = max(best, float(total.max()))
        return best

    def constant(self) -> float:
        """√maxcut, the network's Lipschitz constant l2 → l2."""
        return math.sqrt(self.max_cut())


def unweighted(nodes: int, pairs: Iterable[tuple[int, int]]) -> CutNetwork:
    """The cut network of a graph without weights."""
    return CutNetwork(nodes, tuple((u, v, 1.0) for u, v in pairs))


def complete(n: int) -> CutNetwork:
    """K_n. Its maximum cut is ⌊n²/4⌋: k vertices against n − k give k(n − k) edges, most at k = ⌊n/2⌋."""
    return unweighted(n, ((u, v) for u in range(n) for v in range(u + 1, n)))


def complete_cut(n: int) -> int:
    """⌊n²/4⌋."""
    return n * n // 4


def cycle(n: int) -> CutNetwork:
    """The cycle of n ≥ 3 vertices. A closed walk changes sides an even number of times: n for even n, else n − 1."""
    if n < 3:
        raise InputError("a cycle has at least 3 vertices.")
    return unweighted(n, ((u, (u + 1) % n) for u in range(n)))


def cycle_cut(n: int) -> int:
    """n for even n, n − 1 for odd n."""
    return n - n % 2


def bipartite(a: int, b: int) -> CutNetwork:
    """K_{a,b}. Its sides cut every edge: the maximum cut is ab, as for any bipartite graph the number of edges."""
    return unweighted(a + b, ((u, a + v) for u in range(a) for v in range(b)))


def random_graph(n: int, probability: float = 0.5, seed: int = 0, weighted: bool = False) -> CutNetwork:
    """Every edge with the given probability, a path in any case; weights uniform in (0, 1], or 1."""
    generator = torch.Generator().manual_seed(seed)
    edges = []
    for u in range(n):
        for v in range(u + 1, n):
            chance, weight = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            if chance < probability or v == u + 1:
                edges.append((u, v, 1.0 - weight if weighted else 1.0))
    return CutNetwork(n, tuple(edges))


def goemans_williamson_factor() -> float:
    """min over θ in (0, π] of (2/π) θ/(1 − cos θ) = 0.87856…: what rounding the relaxation of maximum cut keeps.

    LipSDP on a cut network *is* that relaxation: with Σ_j v_j = 0 (columns of B add up to zero) the vector network's
    output is ½ Σ_j ‖v_j‖ u_j, whose largest norm over X is ½ max ‖BᵀU‖_F over unit rows u_j, and its square
    ¼ ⟨BBᵀ, UUᵀ⟩ is the objective of Goemans & Williamson (1995). Hence factor · LipSDP² ≤ maxcut ≤ LipSDP².

    Derivation: a random hyperplane separates two unit vectors at angle θ with probability θ/π, and the edge counts
    (1 − cos θ)/2 in the relaxation; the stationary angle solves 1 − cos θ = θ sin θ, found by bisection.
    """
    low, high = 1.5, 3.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.sin(middle) > 1.0 - math.cos(middle) else (low, middle)
    return 2.0 / math.pi * low / (1.0 - math.cos(low))


@dataclass(frozen=True)
class SpectralGaps:
    """Theorem 2 evaluated: SeqLip ≤ ``ratio`` · AutoLip.

    Attributes:
        autolip: ∏ s_{k,1} ∏ g, the product of norms.
        factors: one per pair of neighbouring layers.
    """

    autolip: float
    factors: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """∏ factors."""
        return math.prod(self.factors)

    @property
    def bound(self) -> float:
        """ratio · autolip, above SeqLip with exact pairs."""
        return self.ratio * self.autolip


def spectral_gaps(weights: Sequence[Tensor], low: float = 0.0, high: float = 1.0) -> SpectralGaps:
    """Theorem 2: ∏_k √(min(1, a_k² + ρ_k² + ρ'_k² + ρ_k² ρ'_k²)) for a chain with slopes in [low, high].

    u_k is the leading left vector of W_k, v_{k+1} the leading right one of W_{k+1}, g = max(|low|, |high|),
    a_k = max over σ of |⟨σ·v_{k+1}, u_k⟩| / g, and ρ = √(s₂/s₁) for a layer inside the chain, s₂/s₁ for one at its end
    (ρ of layer k, ρ' of layer k + 1; at both ends the paper has the larger √(s₂/s₁) too).

    Derivation: divide the pair's matrix Σ̃_{k+1} V_{k+1}ᵀ diag(σ) U_k Σ̃_k by g and by the leading entries of both Σ̃,
    and split each side into the leading direction and the rest. The corner is ⟨σ·v, u⟩/g, at most a; the rest of the
    first row is at most ρ long, that of the first column ρ', the remaining block has norm at most ρρ', since
    ‖diag(σ)‖ ≤ g and the vectors are orthonormal. The norm of the matrix is at most that of the 2 × 2 matrix of norms,
    and that at most its Frobenius norm. No pair exceeds 1 (product of norms).

    Args:
        weights: W_1, …, W_K as (out, in) matrices, K ≥ 1.
        low: least slope.
        high: greatest slope.
    """
    spectra = [torch.linalg.svd(w.double(), full_matrices=False) for w in weights]
    gain = max(abs(low), abs(high))
    autolip = math.prod(float(s[0]) for _, s, _ in spectra) * gain ** (len(weights) - 1)
    gaps = []
    for k, (_, s, _) in enumerate(spectra):
        gap = float(s[1] / s[0]) if len(s) > 1 and float(s[0]) > 0 else 0.0
        gaps.append(gap if k in (0, len(weights) - 1) else math.sqrt(gap))
    factors = []
    for k in range(len(weights) - 1):
        a = alignment(spectra[k + 1][2][0], spectra[k][0][:, 0], low, high) / gain if gain else 0.0
        square = a**2 + gaps[k] ** 2 + gaps[k + 1] ** 2 + (gaps[k] * gaps[k + 1]) ** 2
        factors.append(math.sqrt(min(1.0, square)))
    return SpectralGaps(autolip, tuple(factors))


def alignment(v: Tensor, u: Tensor, low: float = 0.0, high: float = 1.0) -> float:
    """max over σ in [low, high]^n of |⟨σ·v, u⟩|: every product u_j v_j takes the slope that helps."""
    products = u.double() * v.double()
    most = torch.maximum(low * products, high * products).sum()
    least = torch.minimum(low * products, high * products).sum()
    return float(torch.maximum(most, -least))


def alignment_limit(low: float = 0.0, high: float = 1.0) -> float:
    """Theorem 3: for independent uniform unit vectors in R^n, ``alignment`` → (high − low)/π; 1/π for ReLU.

    Derivation: u = g/‖g‖ and v = h/‖h‖ with independent standard normal g, h. Since max(αp, βp) = (α + β)/2 · p +
    (β − α)/2 · |p|, the maximum of ⟨σ·v, u⟩ is (α + β)/2 ⟨v, u⟩ + (β − α)/2 Σ |g_j h_j| / (‖g‖‖h‖). By the law of large
    numbers ⟨v, u⟩ → 0, ‖g‖²/n → 1 and Σ |g_j h_j| / n → E|g| E|h| = (√(2/π))² = 2/π. Together (β − α)/2 · 2/π. The
    minimum has the same absolute value in the limit.
    """
    return (high - low) / 2.0 * (2.0 / math.pi)


def mean_alignment(n: int) -> float:
    """E Σ_j (u_j v_j)⁺ for independent uniform unit vectors of R^n: n/2 · (E|u_1|)², which tends to 1/π.

    E|u_1| = Γ(n/2) / (√π Γ((n + 1)/2)): the normal vector's mean length of one entry, √(2/π), is the mean of ‖g‖ times
    E|u_1|, and E‖g‖ = √2 Γ((n + 1)/2)/Γ(n/2). ``alignment`` takes the larger of this sum and its negative counterpart.
    """
    mean = math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2)) / math.sqrt(math.pi)
    return 0.5 * n * mean * mean
