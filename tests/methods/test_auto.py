"""The default call: what it falls back on and returns at Ctrl-C, what ``guarantee`` asks for, whatever the budget."""

import importlib
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness, prove
from lipcert.certificates.forms.matrix_free import ScaledMap
from lipcert.certificates.forms.quadratic_form import Weights
from lipcert.certificates.norms import operator_norm
from lipcert.certificates.norms.conversion import cost
from lipcert.errors import CertificateError, InputError, NotProved, NumericsError
from lipcert.increments import ScaledIncrements
from lipcert.increments.units import natural_exponents
from lipcert.methods.auto import Auto
from lipcert.methods.base import Run
from lipcert.methods.from_below import loop, product
from lipcert.methods.interval_jacobian import IntervalJacobian
from lipcert.methods.lipsdp_free import FreeEffort, Look
from lipcert.methods.mixed_product import MixedProduct
from lipcert.methods.norm_effort import maps_of, plan_norms
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from lipcert.search.passes import Passes
from lipcert.search.vector_neuron import VectorNeuron

lipsdp_free = importlib.import_module("lipcert.methods.lipsdp_free")


def mlp(*widths: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


def scaled_of(model: nn.Module, n: int) -> ScaledIncrements:
    increments = Problem(capture(model, torch.zeros(1, n))).expanded_increments
    return ScaledIncrements(increments, natural_exponents(increments))


class Failing:
    """A stand-in for ``solve`` that raises; ``calls`` counts."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self, *_: object) -> object:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("budget", [1e-6, 0.05, 2.0])
def test_whatever_the_budget_there_is_a_bound_and_a_table(budget: float) -> None:
    model, x = mlp(6, 12, 12, 3), torch.zeros(1, 6)
    found = lipcert.bound(model, x, budget=budget)
    assert lipcert.lower_bound(model, x, budget=0.2).value <= found.value
    assert [row.method for row in found.tried][:2] == ["autolip", "liplt"]
    assert found.value == min(row.value for row in found.tried if row.value is not None)
    assert found.method in {row.method for row in found.tried}


@pytest.mark.slow
def test_with_time_it_is_never_above_the_single_methods() -> None:
    for seed in range(3):
        model, x = mlp(5, 16, 16, 16, 2, seed=seed), torch.zeros(1, 5)
        found = lipcert.bound(model, x, budget=20.0).value
        for name in ("autolip", "liplt", "eclipse_fast", "lipsdp"):
            assert found <= lipcert.bound(model, x, method=name, budget=20.0).value * (1.0 + 1e-3)


def test_tiny_networks_go_to_branch_and_bound() -> None:
    found = lipcert.bound(mlp(4, 8, 8, 2), torch.zeros(1, 4))
    assert "branch_and_bound" in {row.method for row in found.tried}
    assert "branch_and_bound" not in {row.method for row in lipcert.bound(mlp(4, 200, 2), torch.zeros(1, 4)).tried}


def test_interrupt_returns_the_best_bound_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(6, 12, 3), torch.zeros(1, 6)
    monkeypatch.setattr(lipcert.LipSDP, "solve", Failing(KeyboardInterrupt()))
    found = lipcert.bound(model, x)
    assert found.method in ("autolip", "liplt")
    assert found.tried[-1].method == "lipsdp"
    assert found.tried[-1].remark == "interrupted"


def test_interrupt_before_the_first_bound_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipcert.AutoLip, "solve", Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        lipcert.bound(mlp(6, 12, 3), torch.zeros(1, 6))


def test_interrupt_of_a_single_method_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipcert.LipSDP, "solve", Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        lipcert.bound(mlp(6, 12, 3), torch.zeros(1, 6), method="lipsdp")


@pytest.mark.parametrize("error", [NotProved("nothing here."), NumericsError("overflow.")])
def test_a_method_that_proves_nothing_falls_back_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = mlp(6, 12, 3), torch.zeros(1, 6)
    failing = Failing(error)
    monkeypatch.setattr(lipcert.LipSDP, "solve", failing)
    found = lipcert.bound(model, x, method="lipsdp")
    assert failing.calls == 1
    assert found.method == "liplt"
    for row, name in zip(found.tried[1:], ("autolip", "liplt"), strict=True):
        assert row.method == name
        assert row.value == pytest.approx(lipcert.bound(model, x, method=name).value)
    assert found.value == found.tried[2].value <= found.tried[1].value
    assert (found.tried[0].method, found.tried[0].value) == ("lipsdp", None)
    assert str(error) in found.tried[0].remark
    found.save(tmp_path / "a.lipcert")
    assert lipcert.verify(tmp_path / "a.lipcert", model, x).value == found.value


def test_between_other_norms_the_mixed_product_is_what_a_method_falls_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipcert.LipSDP, "solve", Failing(NotProved("nothing here.")))
    found = lipcert.bound(mlp(6, 12, 3), torch.zeros(1, 6), method="lipsdp", norm=(2, math.inf))
    assert found.method == "mixed_product"
    assert "nothing here" in found.tried[0].remark


def test_comparison_shows_a_failure_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipcert.LipSDP, "solve", Failing(NotProved("nothing here.")))
    rows = lipcert.compare(mlp(6, 12, 3), torch.zeros(1, 6), methods=["autolip", "lipsdp"], lower_budget=0.1).rows
    assert {row.method: row.value is None for row in rows} == {"autolip": False, "lipsdp": True}


def test_rigorous_is_kept_and_anything_else_refused() -> None:
    model, x = mlp(6, 12, 3), torch.zeros(1, 6)
    for budget in (1e-6, 5.0):
        assert lipcert.bound(model, x, budget=budget, guarantee="rigorous").guarantee == "rigorous"
    free = lipcert.LipSDP(route="matrix_free")
    assert lipcert.bound(model, x, method=free).guarantee == "probabilistic"
    with pytest.raises(NumericsError, match="only as a probabilistic bound"):
        lipcert.bound(model, x, method=free, guarantee="rigorous")
    with pytest.raises(InputError, match="guarantee must be"):
        lipcert.bound(model, x, guarantee="certain")  # type: ignore[arg-type]


def test_rigorous_on_maps_too_large_to_write_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row and column sums are rigorous at any size; the default would take passes."""
    monkeypatch.setattr(operator_norm, "MAX_SIDE", 8)
    monkeypatch.setattr("lipcert.certificates.loop_transform.MAX_SIDE", 8)
    monkeypatch.setattr("lipcert.certificates.forms.elimination.MAX_SIDE", 8)
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval(),
        torch.zeros(1, 1, 7, 7),
    )
    some = lipcert.bound(model, x, budget=5.0)
    sure = lipcert.bound(model, x, budget=5.0, guarantee="rigorous")
    assert (some.guarantee, sure.guarantee) == ("probabilistic", "rigorous")
    assert some.value <= sure.value
    assert sure.delta == 0.0


def test_norms_get_the_work_that_the_seconds_allow() -> None:
    maps = maps_of(Problem(capture(mlp(6, 12, 3), torch.zeros(1, 6))).increments)
    assert set(plan_norms(maps, 100.0, rigorous=False).routes.values()) == {"written"}
    assert set(plan_norms(maps, 0.0, rigorous=False).routes.values()) == {"sums"}
    assert "passes" not in plan_norms(maps, 0.0, rigorous=True).routes.values()


@pytest.mark.parametrize("route", ["written", "passes", "sums"])
def test_every_route_bounds_the_norm(route: operator_norm.Route) -> None:
    linear = nn.Linear(30, 20).double()
    network = Problem(capture(linear.eval(), torch.zeros(1, 30))).network
    exact = float(torch.linalg.matrix_norm(linear.weight.detach(), 2))
    for target in (0.01, 0.5):
        found = operator_norm.map_norm(network.nodes[-1].maps[0], 2.0, route=route, target=target)  # type: ignore[attr-defined]
        assert exact <= found.value <= 4.0 * exact
        assert found.guarantee == ("probabilistic" if route == "passes" else "rigorous")


@pytest.mark.parametrize(
    "settings",
    [{"routes": ["guess", "guess"]}, {"routes": ["sums"]}, {"routes": "sums"}, {"target": 0.0}, {"target": "much"}],
)
def test_routes_that_are_none_are_refused(settings: dict[str, object]) -> None:
    problem = Problem(capture(mlp(6, 12, 3), torch.zeros(1, 6)))
    with pytest.raises(CertificateError):
        prove(problem, Witness("layer_product", {}, settings), Chance())


def test_steps_of_a_check_are_a_number_of_steps() -> None:
    model, x = mlp(6, 12, 3), torch.zeros(1, 6)
    witness = lipcert.bound(model, x, method=lipcert.LipSDP(route="matrix_free")).certificate.witness
    for steps in (0, 10**6, "many", True):
        with pytest.raises(CertificateError, match="steps"):
            prove(
                Problem(capture(model, x)),
                Witness(witness.kind, witness.arrays, {**witness.settings, "steps": steps}),
                Chance(),
            )


def dense_g(scaled: ScaledMap) -> torch.Tensor:
    """GᵀG as a matrix."""
    return torch.stack([scaled.gram(row) for row in torch.eye(scaled.size, dtype=torch.float64)])


def test_grown_multipliers_leave_the_margin() -> None:
    """At the optimum of the grown network ‖G‖² ≤ 1 − margin, and ρ has grown by less than lifting would cost."""
    exact = scaled_of(mlp(5, 20, 20, 3), 5)
    margin = 0.05
    values = {}
    for growth in (1.0, 1.0 / math.sqrt(1.0 - margin)):
        search = VectorNeuron(Passes(exact), (2.0, 2.0), 16, torch.Generator().manual_seed(0), growth=growth)
        for _ in range(400):
            search.step()
        rho = float(search.rho[0]) * growth**2
        ones = [torch.ones(n, dtype=torch.float64) for n in (5, 3)]
        own = {node: m[0].clamp(min=1e-12) for node, m in search.multipliers.items()}
        values[growth] = rho, float(torch.linalg.eigvalsh(dense_g(ScaledMap(exact, own, Weights(*ones), rho)))[-1])
    (plain, at_one), (grown, below) = values.values()
    assert at_one <= 1.0 + 1e-4
    assert below <= 1.0 - margin + 1e-4
    assert plain < grown < plain * (1.0 + margin) ** 3


def test_looks_agree_with_the_map_of_the_check() -> None:
    exact = scaled_of(mlp(5, 9, 7, 3), 5)
    generator = torch.Generator().manual_seed(1)
    own = {c.node: torch.rand(c.size, generator=generator, dtype=torch.float64) + 0.1 for c in exact.cells}
    scaled = ScaledMap(exact, own, Weights(torch.ones(5).double(), torch.ones(3).double()), 0.7)
    gram = dense_g(scaled)
    look = Look(Passes(exact), scaled)
    greatest = float(torch.linalg.eigvalsh(gram)[-1])
    assert look.greatest(21, generator) == pytest.approx(greatest, rel=1e-9)
    assert Look(Passes(exact, torch.float32), scaled).greatest(21, generator) == pytest.approx(greatest, rel=1e-4)
    rows, columns = look.squared_norms(generator, probes=20_000)
    places = dict(zip([c.node for c in exact.cells], torch.split(gram.diagonal(), scaled.sizes)[1:], strict=True))
    for node, exactly in places.items():
        assert torch.allclose(columns[node], exactly, rtol=0.1, atol=1e-12)
    eye = look.images(torch.eye(scaled.size, dtype=torch.float64))
    for node, image in eye.items():
        assert torch.allclose(rows[node], image.square().sum(dim=0).reshape(-1), rtol=0.1, atol=1e-12)


def test_spoiled_multipliers_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 does to neurons of no weight: a ratio of noise. The bound stays near the one without."""
    model, x = mlp(8, 40, 40, 3), torch.zeros(1, 8)
    method = lipcert.LipSDP(route="matrix_free", precision="float32")
    clean = lipcert.bound(model, x, method=method)
    of = VectorNeuron.__dict__["multipliers"].func

    def spoiled(self: VectorNeuron) -> dict[int, torch.Tensor]:
        result = of(self)
        for m in result.values():
            m[0, 0], m[0, 1] = 1e9 * m[0, 0], 1e-9 * m[0, 1]
        return result

    monkeypatch.setattr(VectorNeuron, "multipliers", property(spoiled))
    found = lipcert.bound(model, x, method=method)
    mended = {row.method: row.value for row in found.tried}.get("lipsdp", found.value)  # LipLT may be below that
    assert mended is not None
    assert found.value <= mended
    assert clean.value * 0.99 <= mended <= 3.0 * clean.value


def test_effort_knows_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = scaled_of(mlp(40, 100, 100, 3), 40)

    def effort(budget: float) -> FreeEffort:
        run = Run(torch.Generator(), torch.device("cpu"), budget, checked=True)
        return FreeEffort.of(exact, (2.0, 2.0), run)

    assert effort(1e-6).obstacle is not None
    assert effort(1e6).obstacle is None
    assert effort(1e6).margin < effort(1e6).within(0.0).margin
    monkeypatch.setattr(lipsdp_free, "free_memory", lambda: 1e3)
    assert "memory" in str(effort(1e6).obstacle)


def test_auto_as_an_object_takes_other_plans() -> None:
    found = lipcert.bound(mlp(6, 12, 3), torch.zeros(1, 6), method=Auto(early=("autolip",), main=(), last=(), wide=()))
    assert {row.method for row in found.tried} == {"autolip"}


def on_a_ball(radius: float, seed: int = 0) -> tuple[nn.Module, torch.Tensor, lipcert.Ball]:
    """A network with a small ball around a point."""
    model, x = mlp(8, 30, 30, 4, seed=seed), torch.linspace(-1.0, 1.0, 8).double()
    return model, x[None], lipcert.Ball(x, radius, 2)


def jacobian_norm(model: nn.Module, x: torch.Tensor) -> float:
    """The spectral norm at the point."""
    return float(torch.linalg.matrix_norm(torch.func.jacrev(lambda z: model(z[None])[0])(x[0]), 2))


def test_where_no_slope_is_free_the_norm_of_the_jacobian_is_enough() -> None:
    model, x, ball = on_a_ball(1e-9)
    found = lipcert.bound(model, x, domain=ball)
    assert [row.method for row in found.tried] == ["autolip"]
    assert jacobian_norm(model, x) <= found.value <= jacobian_norm(model, x) * (1.0 + 1e-6)


def test_a_norm_bounded_by_sums_for_want_of_time_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that seems slow AutoLip takes row and column sums: then the others are asked."""
    from lipcert.methods import norm_effort

    monkeypatch.setattr(norm_effort, "operations_per_second", lambda: 1e-3)
    model, x, ball = on_a_ball(1e-9)
    found = lipcert.bound(model, x, domain=ball)
    assert found.value <= jacobian_norm(model, x) * (1.0 + 1e-3)


@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_on_a_domain_lipsdp_comes_first_where_it_is_quick(radius: float) -> None:
    """The bound is not above that of any method asked by name, whichever ran."""
    model, x, ball = on_a_ball(radius)
    found = lipcert.bound(model, x, domain=ball)
    assert found.tried[0].method == "lipsdp"
    for name in ("autolip", "liplt", "lipsdp"):
        assert found.value <= lipcert.bound(model, x, method=name, domain=ball).value * (1.0 + 2.1e-4)


def test_what_liplt_and_autolip_cannot_be_below_is_below_them() -> None:
    """Along single inputs both come out below what the methods prove."""
    for seed in range(4):
        model, x, ball = on_a_ball(0.3, seed)
        increments = Problem(capture(model, x), domain=ball).increments
        assert product(increments) <= lipcert.bound(model, x, method="autolip", domain=ball).value * (1.0 + 1e-9)
        assert loop(increments) <= lipcert.bound(model, x, method="liplt", domain=ball).value * (1.0 + 1e-9)
        assert 0.5 * jacobian_norm(model, x) < loop(increments)


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", [(1.0, 2.0), (2.0, math.inf), (math.inf, 1.0)])
def test_what_takes_too_long_to_come_first_leaves_the_time_to_lipsdp(
    norm: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """l1 → l2 is never above l2 → l2: where mixed_product does not fit, LipSDP's bound of the latter has to serve."""
    for kind in (MixedProduct, IntervalJacobian):
        monkeypatch.setattr(kind, "obstacle", lambda *_: "too long")
    model, x = mlp(4, 6, 6, 3), torch.zeros(1, 4)
    plain = lipcert.bound(model, x, budget=2)
    found = lipcert.bound(model, x, norm=norm, budget=2)
    left_out = [row for row in found.tried if row.remark == "too long"]
    assert {row.method for row in left_out} == {"mixed_product", "interval_jacobian"}
    assert found.value <= plain.value * float(cost(norm, (2.0, 2.0), 4, 3)) * (1 + 2e-3)
