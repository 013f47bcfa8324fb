"""Numbers that vanish on the way: in units that a file asks for, in multipliers or networks of any scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness, prove
from lipcert.certificates.bound import Certificate, check
from lipcert.certificates.forms.block_rows import congruence, dense
from lipcert.certificates.forms.elimination import Segment, matrices
from lipcert.certificates.forms.lmi import Radius
from lipcert.certificates.forms.multipliers import in_own_units
from lipcert.certificates.norms.pass_underflow import Amplification
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError, LipcertError, NumericsError
from lipcert.increments import Increments, Linear, ScaledIncrements
from lipcert.methods.base import Run
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem

FLOAT = torch.float64

#: Powers of two, one per layer, up and down again: products of neighbouring layers vanish in such units.
STAIRS = [(1, 2, 3, 3, 2, 1, 0), (-1, -2, -3, -3, -2, -1, 0), (1, -1, 1, -1, 1, -1, 0), (0, 0, 0, 0, 0, 0, 1)]


def chain(weights: Sequence[Tensor], act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = weight.double()
        layers += [layer, act()]
    return nn.Sequential(*layers[:-1]).eval()


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


NETWORKS: dict[str, tuple[nn.Module, float]] = {
    "relu": (chain([torch.ones(1, 1)] * 5), 1.0),
    "linear": (chain([torch.ones(1, 1)] * 7, lambda: nn.LeakyReLU(1.0)), 1.0),
    "residual": (Skip(chain([torch.ones(1, 1)] * 5)).eval(), 2.0),
    "wide": (chain([torch.eye(3), *[torch.eye(3).flip(0)] * 6]), 1.0),
}


def stairs(network: Network, steps: Sequence[int], step: int) -> Tensor:
    """Exponents that climb with the affine nodes."""
    exponents, layer = [0], -1
    for relation in Increments.of(network).relations[1:]:
        layer += isinstance(relation, Linear)
        exponents.append(step * steps[layer % len(steps)] if isinstance(relation, Linear) else exponents[-1])
    return torch.tensor(exponents)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("steps", STAIRS)
@pytest.mark.parametrize("step", [100, 300, 600, 1000])
def test_units_in_a_file_change_nothing_that_is_stated(name: str, steps: tuple[int, ...], step: int) -> None:
    """A forged claim of 1e-100 was once believed: the error bounds of products had underflowed with the products."""
    model, truth = NETWORKS[name]
    width = 3 if name == "wide" else 1
    network = capture(model, torch.zeros(1, width, dtype=torch.float64))
    problem = Problem(network)
    nodes = problem.expanded
    cells = Increments.of(nodes).cells
    everything = sum(cell.size for cell in cells)

    def tree(depth: int) -> list[int]:
        return [-1] if depth == everything else [depth, *tree(depth + 1), *tree(depth + 1)]

    full = tree(0) if name in ("relu", "residual") else [-1]
    for kind, leaves in (("quadratic", 1), ("branch_tree", full.count(-1))):
        for rho, multiplier in ((1e-200, 1.0), (1e-200, 1e-290), (0.99 * truth**2, 1.0), (0.99 * truth**2, 1e200)):
            size = {c.node: (leaves, c.size) for c in cells}
            arrays = {f"multipliers.{k}": torch.full(shape, multiplier, dtype=FLOAT) for k, shape in size.items()}
            arrays |= {"exponents": stairs(nodes, steps, step)}
            settings = {"rho": [rho], "slack": [1e-9], "route": "dense"} if kind == "quadratic" else {"rho": rho}
            if kind == "branch_tree":
                arrays |= {"tree": torch.tensor(full), "slack": torch.full((leaves,), 1e-9, dtype=torch.float64)}
            value = math.sqrt(rho) * 1.0000001
            record = Certificate(
                Witness(kind, arrays, settings), "forged", network.fingerprint, (2.0, 2.0), None, None, value,
                math.log10(value) + 1e-9, "rigorous", "0",
            )  # fmt: skip
            with pytest.raises(CertificateError):
                verify(record, network)


def test_multipliers_mean_the_same_in_any_units() -> None:
    """The exponents of a file are how its numbers are written: other units and the numbers to match, the same bound."""
    torch.manual_seed(0)
    model = chain([torch.randn(5, 3), torch.randn(4, 5), torch.randn(2, 4)])
    problem = Problem(capture(model, torch.zeros(1, 3, dtype=torch.float64)))
    for method in (lipcert.LipSDP(), lipcert.LipSDP(route="matrix_free"), lipcert.BranchAndBound(max_nodes=5)):
        witness = method.solve(problem, Run(torch.Generator().manual_seed(0), torch.device("cpu"), 3.0)).witness
        value = check(problem, witness, "x", Chance()).value
        for powers in (1, -37, 40):
            moved = witness.arrays["exponents"] + powers * torch.arange(len(witness.arrays["exponents"]))
            gap = moved - witness.arrays["exponents"]
            arrays = {
                k: v * 4.0 ** float(gap[int(k.split(".")[1])] - gap[-1]) if k.startswith("multipliers") else v
                for k, v in witness.arrays.items()
            }
            rho = witness.settings["rho"]
            factor = 4.0 ** -float(gap[-1])
            settings = {**witness.settings, "rho": [r * factor for r in rho] if isinstance(rho, list) else rho * factor}
            other = Witness(witness.kind, {**arrays, "exponents": moved}, settings)
            assert check(problem, other, "x", Chance()).value == pytest.approx(value, rel=1e-12)


# -- the errors themselves, against exact rational numbers ----------------------------------------------------------


def exactly(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in matrix.tolist()]


def product(a: list[list[Fraction]], b: list[list[Fraction]]) -> list[list[Fraction]]:
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True)]
        for row in a
    ]


def transpose(a: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(row) for row in zip(*a, strict=True)]


def spread(rows: int, columns: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Entries whose sizes are spread evenly over powers of two."""
    powers = torch.randint(low, high, (rows, columns), generator=generator).double()
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2.0**powers


@pytest.mark.parametrize("seed", range(12))
def test_block_rows_and_forms_are_within_their_radius(seed: int) -> None:
    """Two fused layers around a ReLU and a form: entries of 2^±500 in units of 2^±300; all in rational arithmetic."""
    g = torch.Generator().manual_seed(seed)
    low, high = ((-500, -300), (-300, 300), (-520, 0), (100, 300))[seed % 4]
    weights = [spread(3, 2, low, high, g), spread(2, 3, low, high, g)]
    if seed >= 8:  # whole columns and rows that vanish in the product, next to others that do not
        weights = [spread(3, 2, -5, 5, g) * torch.tensor([1.0, 2.0**-520], dtype=FLOAT),
                   spread(2, 3, -5, 5, g) * torch.tensor([[1.0], [2.0**-480]], dtype=FLOAT)]  # fmt: skip
    model = chain(weights, lambda: nn.LeakyReLU(0.3))
    increments = Increments.of(Problem(capture(model, torch.zeros(1, 2, dtype=torch.float64))).expanded)
    exponents = (0, 300, 300, int(torch.randint(-300, 300, (1,), generator=g)))
    scaled = ScaledIncrements(increments, exponents)
    relation = matrices(scaled, Segment(0, 3, (0,), (3,), scaled.cells))
    (cell,) = scaled.cells
    c, d = ([[Fraction(float(v)) if i == j else Fraction(0) for j in range(3)] for i, v in enumerate(t.reshape(-1))]
            for t in (cell.c, cell.d))  # fmt: skip
    first, second = (exactly(w) for w in weights)
    unit = Fraction(2) ** -exponents[1]
    first = [[v * unit for v in row] for row in first]
    second = [[v * Fraction(2) ** (exponents[1] - exponents[3]) for v in row] for row in second]
    exact = {0: product(second, product(c, first)), 1: product(second, d)}
    gamma = Fraction(relation.output.rounding) / 2**52
    for block, truth in exact.items():
        computed = exactly(dense(relation.output.parts[block]))
        dominant = exactly(dense(relation.output.absolute[block]))
        for row, own, most in zip(truth, computed, dominant, strict=True):
            for x, y, z in zip(row, own, most, strict=True):
                assert abs(x - y) <= gamma * z + Fraction(relation.output.floor)
    whole = [[*a, *b] for a, b in zip(exact[0], exact[1], strict=True)]
    for power in (-900, -300, 0, 300):
        form = torch.diag(torch.tensor([1.5, 0.75], dtype=torch.float64) * 2.0**power)
        truth = product(transpose(whole), product(exactly(form), whole))
        computed = congruence(relation.output.parts, form, relation.places, relation.side)
        radius = Radius(relation)
        radius.include(relation.output, form)
        if not bool(torch.isfinite(computed).all()):
            continue
        error = [[abs(x - y) for x, y in zip(a, b, strict=True)] for a, b in zip(truth, exactly(computed), strict=True)]
        for probe in (torch.ones(5, dtype=torch.float64), 2.0 ** torch.randint(-400, 400, (5,), generator=g).double()):
            bound = radius.times(probe)
            if not bool(torch.isfinite(bound).all()):
                continue
            weights_ = [Fraction(float(v)) for v in probe]
            for row, most in zip(error, bound.tolist(), strict=True):
                assert sum(e * w for e, w in zip(row, weights_, strict=True)) <= Fraction(most)


@pytest.mark.parametrize(
    "scales", [(1e-100, 1e-100, 1e200), (1e-160, 1e160), (1e150, 1e-300, 1e150), (1e-200, 1e-150, 1e200, 1e150)]
)
@pytest.mark.parametrize("method", ["autolip", "liplt", "lipsdp", "matrix-free", "branch_and_bound", "seqlip"])
def test_networks_whose_layers_vanish_between_each_other(scales: tuple[float, ...], method: str) -> None:
    model = chain([torch.eye(2, dtype=torch.float64) * s for s in scales])
    chosen = lipcert.LipSDP(route="matrix_free") if method == "matrix-free" else method
    log10 = sum(math.log10(s) for s in scales)
    try:
        bound = lipcert.bound(model, torch.zeros(1, 2, dtype=torch.float64), method=chosen, budget=2)
    except NumericsError:
        return
    assert bound.log10 is not None
    assert bound.log10 >= log10 - 1e-12


def blind(small: float) -> nn.Module:
    """Layers of norm 1 whose middle sends the first direction, and nothing else, through ``small`` and back."""
    down, up = (torch.diag(torch.tensor([s, 0.0], dtype=torch.float64)) for s in (small, 1.0 / small))
    return chain([torch.eye(2), down, down, up, up])


@pytest.mark.parametrize("small", [1e-3, 1e-60, 1e-100, 1e-150])
def test_matrix_free_passes_that_underflow_are_not_believed(small: float) -> None:
    """Units that do not see the small layers leave x·small² to vanish; its way back would restore it."""
    problem = Problem(capture(blind(small), torch.zeros(1, 2, dtype=torch.float64)))
    increments = in_own_units(problem).increments
    unseen = ScaledIncrements(increments, (0,) * len(increments.relations))
    lost = float(Amplification(unseen).between_nodes())
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    values = unseen.run(x.reshape(1, *increments.in_shape), lambda cell, v: v, unseen.matrices)
    assert abs(float(values[-1].norm()) - 1.0) <= lost + 1e-9
    for method in ("liplt", lipcert.LipSDP(route="matrix_free")):
        try:
            value = lipcert.bound(blind(small), torch.zeros(1, 2, dtype=torch.float64), method=method, budget=2).value
        except LipcertError:
            continue
        assert value >= 1.0 - 1e-12


def test_the_largest_of_several_outputs_is_exact() -> None:
    """Values that differ in their last bits have one decimal logarithm; the larger one counts, wherever it stands."""
    model = chain([1e5 * torch.eye(2, dtype=FLOAT)])
    problem = Problem(capture(model, torch.zeros(1, 2, dtype=FLOAT)), (2.0, math.inf))
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"))
    witness = lipcert.LipSDP().solve(problem, run).witness
    low = witness.settings["rho"][0] * (1.0 + 1e-6)
    high = low * (1.0 + 2.0**-50)
    for claims in ([low, high], [high, low]):
        proof = prove(problem, replace(witness, settings={**witness.settings, "rho": claims}), Chance())
        values = [row.constant for row in proof.rows]
        assert len({math.log10(v) for v in values}) == 1 < len(set(values))
        assert float(proof.value) == max(values)
