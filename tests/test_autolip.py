"""AutoLip against values computed by hand, and the laws every product of norms must obey."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.errors import InputError
from tests.zoo import Apply, Concat, Residual, Twice, linear_weights, mlp, vertex_maximum

INF = math.inf


def bound(model: nn.Module, *shape: int, **options: object) -> lipcert.Bound:
    options.setdefault("method", "autolip")
    return lipcert.bound(model.eval(), torch.zeros(1, *shape), **options)  # type: ignore[arg-type]


def matrix(rows: list[list[float]]) -> nn.Linear:
    weight = torch.tensor(rows, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return layer


def just_above(found: lipcert.Bound, truth: float, relative: float = 1e-9) -> bool:
    return truth * (1 - 1e-15) <= found.value <= truth * (1 + relative) and found.guarantee == "rigorous"


A = [[3.0, 0.0], [0.0, 1.0]]  # norms: l2 3, l1 3, linf 3
B = [[0.0, 2.0], [1.0, 0.0]]  # l2 2
C = [[1.0, 2.0], [0.0, -2.0]]  # l1: 4, linf: 3


@pytest.mark.parametrize(("p", "expected"), [(1, 4.0), (2, (6.5 + math.sqrt(26.25)) ** 0.5), (INF, 3.0)])
def test_a_single_linear_layer(p: float, expected: float) -> None:
    truth = float(torch.linalg.matrix_norm(torch.tensor(C, dtype=torch.float64), p))
    assert just_above(bound(matrix(C), 2, norm=(p, p)), truth)
    assert p == 2 or truth == expected


def test_a_chain_is_the_product() -> None:
    assert just_above(bound(nn.Sequential(matrix(A), nn.ReLU(), matrix(B)), 2), 6.0)
    assert just_above(bound(nn.Sequential(matrix(A), nn.Sigmoid(), matrix(B)), 2), 1.5)


@pytest.mark.parametrize(("p", "factor"), [(1, 3.0), (2, 3.0), (INF, 3.0)])
def test_a_residual_is_one_plus_the_branch(p: float, factor: float) -> None:
    branch = nn.Sequential(matrix(A), nn.ReLU())
    assert just_above(bound(Residual(branch), 2, norm=(p, p)), 1.0 + factor)
    assert just_above(bound(Residual(branch, skip=-2.0), 2, norm=(p, p)), 2.0 + factor)


def test_a_linear_residual_is_one_linear_map() -> None:
    """Fused: ‖I + B‖; op by op: 1 + ‖B‖."""
    truth = float(torch.linalg.matrix_norm((torch.eye(2) + torch.tensor(B)).double(), 2))
    assert just_above(bound(Residual(matrix(B)), 2), truth, 1e-6)
    assert just_above(bound(Residual(matrix(B)), 2, method=lipcert.AutoLip(fuse=False)), 3.0)


@pytest.mark.parametrize(("p", "expected"), [(1, 5.0), (2, math.sqrt(13.0)), (INF, 3.0)])
def test_a_concatenation(p: float, expected: float) -> None:
    """√(3² + 2²) in l2, 3 + 2 in l1, the larger in l∞."""
    model = Concat(nn.Sequential(matrix(A), nn.ReLU()), nn.Sequential(matrix(B), nn.ReLU()))
    assert just_above(bound(model, 2, norm=(p, p)), expected)


def test_the_stacked_map_after_a_concatenation() -> None:
    """A linear layer that reads two branches: ‖[W1 W2]‖ √(L1² + L2²) where that is less than ‖W1‖L1 + ‖W2‖L2."""
    model = nn.Sequential(
        Concat(nn.Sequential(matrix(A), nn.ReLU()), nn.Sequential(matrix(B), nn.ReLU())),
        matrix([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]),
    )
    assert just_above(bound(model, 2), math.sqrt(13.0))


@pytest.mark.parametrize(
    ("pool", "l2", "l1"),
    [
        (nn.MaxPool2d(2), 1.0, 1.0),
        (nn.MaxPool2d(3, 2), 2.0, 4.0),
        (nn.MaxPool2d(3, 1), 3.0, 9.0),
        (nn.MaxPool2d(3, 2, padding=1, dilation=2), 3.0, 9.0),
    ],
)
def test_max_pool_counts_the_windows_over_one_input(pool: nn.Module, l2: float, l1: float) -> None:
    assert just_above(bound(pool, 1, 12, 12), l2)
    assert just_above(bound(pool, 1, 12, 12, norm=(1, 1)), l1)
    assert just_above(bound(pool, 1, 12, 12, norm=(INF, INF)), 1.0)


@pytest.mark.parametrize(
    ("model", "shape", "l2"),
    [
        (nn.AvgPool2d(2), (1, 8, 8), 0.5),
        (nn.LeakyReLU(-1.5), (3,), 1.5),
        (nn.ELU(3.0), (3,), 3.0),
        (nn.GELU(), (3,), 1.128904145185155),
        (nn.SiLU(), (3,), 1.099839320128867),
        (nn.Mish(), (3,), 1.088498161251728),
        (nn.Hardswish(), (3,), 1.5),
        (nn.Softmax(dim=1), (5,), 0.5),
        (nn.LogSoftmax(dim=1), (9,), 3.0),
        (Apply(lambda _, x: x[:, [0, 0, 0]]), (3,), math.sqrt(3.0)),
        (Apply(lambda _, x: 100.0 * x), (3,), 100.0),
        (Apply(lambda _, x: F.pad(x, (1, 1), mode="reflect")), (1, 8), math.sqrt(2.0)),
        (Apply(lambda _, x: x.sum(1, keepdim=True)), (4,), 2.0),
        (nn.Flatten(), (2, 3), 1.0),
    ],
)
def test_single_operations(model: nn.Module, shape: tuple[int, ...], l2: float) -> None:
    assert just_above(bound(model, *shape), l2)


def test_batch_norm_counts_its_running_variance() -> None:
    norm = nn.BatchNorm1d(2, eps=0.0).double()
    norm.running_var.copy_(torch.tensor([1.0 / 256.0, 4.0]))  # type: ignore[union-attr]
    norm.weight.data.copy_(torch.tensor([-0.5, 3.0]))
    assert just_above(bound(norm, 2), 8.0)
    assert just_above(bound(nn.Sequential(matrix([[1.0, 0.0], [0.0, 0.0]]), norm), 2), 8.0)
    assert just_above(bound(nn.Sequential(matrix([[0.0, 0.0], [0.0, 1.0]]), norm), 2), 1.5)  # fused
    unfused = bound(nn.Sequential(matrix([[0.0, 0.0], [0.0, 1.0]]), norm), 2, method=lipcert.AutoLip(fuse=False))
    assert just_above(unfused, 8.0)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_fusing_never_loses(p: float) -> None:
    for seed in range(4):
        model = nn.Sequential(mlp((4, 5), seed), mlp((5, 6, 3), seed + 10), mlp((3, 3), seed + 20))
        fused = bound(model, 4, norm=(p, p)).value
        assert fused <= bound(model, 4, norm=(p, p), method=lipcert.AutoLip(fuse=False)).value * (1 + 1e-9)


@pytest.mark.parametrize("scale", [-3.0, 1e6, 1e-6, 2.0**40])
def test_scaling_a_layer_scales_the_bound(scale: float) -> None:
    model = mlp((4, 6, 5, 2), 3)
    before = bound(model, 4).value
    with torch.no_grad():
        model[2].weight.mul_(scale)  # type: ignore[operator, union-attr]
    assert bound(model, 4).value == pytest.approx(abs(scale) * before, rel=1e-9)


def test_permuting_neurons_changes_nothing() -> None:
    model = mlp((4, 6, 5), 4)
    before = bound(model, 4).value
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order])  # type: ignore[index, union-attr, operator]
        model[0].bias.copy_(model[0].bias[order])  # type: ignore[index, union-attr, operator]
        model[2].weight.copy_(model[2].weight[:, order])  # type: ignore[index, union-attr, operator]
    assert bound(model, 4).value == pytest.approx(before, rel=1e-9)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("p", "scale", "log10", "activation"),
    [
        (2, 1e6, 600.0, nn.ReLU),
        (2, 1e-6, -600.0, nn.ReLU),
        (2, 1e6, 600.0, None),
        (1, 1e-6, -600.0, None),
        (INF, 1e6, 600.0, None),
        (INF, 1e-6, -600.0, nn.ReLU),
    ],
)
def test_hundred_layers_of_norm_1e6(
    p: float, scale: float, log10: float, activation: Callable[[], nn.Module] | None
) -> None:
    layers: list[nn.Module] = []
    for _ in range(100):
        layers += [matrix([[scale, 0.0], [0.0, scale]])] + ([activation()] if activation else [])
    found = bound(nn.Sequential(*layers), 2, norm=(p, p))
    assert found.log10 == pytest.approx(log10, abs=1e-6)
    assert found.value == (INF if scale > 1 else 5e-324)


@pytest.mark.parametrize(("p", "fuse"), [(2, True), (2, False), (INF, True)])
def test_tiny_layers_then_huge_ones(p: float, fuse: bool) -> None:
    """Fused or not, what the small layers lose to underflow must not be lost to the bound (truth 1)."""
    half = 2.0**-20
    layers = [matrix([[half, 0.0], [0.0, half]]) for _ in range(60)]
    layers += [matrix([[1 / half, 0.0], [0.0, 1 / half]]) for _ in range(60)]
    for fuse in (True, False):
        assert just_above(bound(nn.Sequential(*layers), 2, norm=(p, p), method=lipcert.AutoLip(fuse=fuse)), 1.0)


def test_scales_in_the_branches_of_a_sum() -> None:
    """Branch norms 1e-250 and 1e250 after shrinking layers: the sum's row rule must see both."""
    tiny = nn.Sequential(matrix([[1e-125, 0.0], [0.0, 1e-125]]), nn.ReLU(), matrix([[1e-125, 0.0], [0.0, 1e-125]]))
    huge = nn.Sequential(matrix([[1e125, 0.0], [0.0, 1e125]]), nn.ReLU(), matrix([[1e125, 0.0], [0.0, 1e125]]))
    for norm in ((1, 1), (2, 2), (INF, INF)):
        model = Apply(lambda s, x: s.huge(s.tiny(x)) + torch.relu(x), tiny=tiny, huge=huge)
        assert just_above(bound(model, 2, norm=norm), 2.0, 1e-9)


def test_zero_networks_have_bound_zero() -> None:
    zero = matrix([[0.0, 0.0], [0.0, 0.0]])
    for model in (zero, nn.Sequential(matrix(A), nn.ReLU(), zero), nn.Sequential(zero, nn.Sigmoid(), matrix(A)),
                  Apply(lambda _, x: torch.zeros_like(x)), Twice(zero, nn.ReLU())):  # fmt: skip
        for p in (1, 2, INF):
            found = bound(model, 2, norm=(p, p))
            assert found.value == 0.0
            assert found.log10 == -INF


def test_no_layers_is_the_identity() -> None:
    found = bound(nn.Sequential(), 3)
    assert (found.value, found.log10) == (1.0, 0.0)


def test_one_neuron() -> None:
    """f(x) = 2 relu(−3x + 1): the constant is 6 in every norm."""
    model = nn.Sequential(matrix([[-3.0]]), nn.ReLU(), matrix([[2.0]]))
    for p in (1, 2, INF):
        assert just_above(bound(model, 1, norm=(p, p)), 6.0)


def test_a_convolution_alone() -> None:
    conv = nn.Conv2d(1, 1, 2, bias=False).double()
    conv.weight.data.fill_(1.0)
    assert just_above(bound(conv, 1, 2, 2), 2.0)
    assert just_above(bound(conv, 1, 2, 2, norm=(INF, INF)), 4.0)
    assert just_above(bound(conv, 1, 2, 2, norm=(1, 1)), 1.0)


def test_a_shared_layer_counts_each_time() -> None:
    assert just_above(bound(Twice(matrix(A), nn.ReLU()), 2), 9.0)


def test_select_is_a_last_layer() -> None:
    model = nn.Sequential(matrix(A), nn.ReLU(), matrix(B))
    margin = torch.tensor([[1.0, -1.0]])
    by_hand = nn.Sequential(
        matrix(A), nn.ReLU(), matrix((margin.double() @ torch.tensor(B, dtype=torch.float64)).tolist())
    )
    assert bound(model, 2, select=margin).value == pytest.approx(bound(by_hand, 2).value, rel=1e-9)
    assert bound(model, 2, select=torch.zeros(1, 2)).value == 0.0
    assert bound(model, 2, select=torch.eye(2)).value == pytest.approx(bound(model, 2).value, rel=1e-9)
    with pytest.raises(InputError, match=r"\(k, 2\) matrix"):
        bound(model, 2, select=torch.ones(2))


def test_the_examples_batch_size_and_values_do_not_matter() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)).eval()
    values = {
        lipcert.bound(model, x, method="autolip").value
        for x in (
            torch.zeros(1, 3),
            torch.ones(7, 3),
            torch.randn(2, 3, dtype=torch.float64),
            torch.randn(3, 3).half(),
        )
    }
    assert len(values) == 1


def test_the_seed_does_not_matter_where_it_is_rigorous() -> None:
    model = mlp((4, 6, 3), 8)
    assert bound(model, 4, seed=1).value == bound(model, 4, seed=2).value


@pytest.mark.few(2)
@pytest.mark.parametrize("norm", [(2, 2), (1, 1), (INF, INF)])
def test_lower_is_below_the_constant_and_that_is_below_autolip(norm: tuple[float, float]) -> None:
    model = mlp((3, 5, 4, 2), 5)
    vertex = vertex_maximum(linear_weights(model), p=norm[0])
    low = lipcert.lower_bound(model, torch.zeros(1, 3), norm=norm, budget=1.0)
    assert 0.0 < low.value <= vertex * (1 + 1e-9) <= bound(model, 3, norm=norm).value * (1 + 2e-9)


def test_the_breakdown_explains_the_value() -> None:
    found = bound(nn.Sequential(matrix(A), nn.ReLU(), matrix(B)), 2)
    assert [row.name for row in found.breakdown] == ["linear", "relu", "linear"]
    assert found.breakdown[-1].cumulative == pytest.approx(found.value, rel=1e-11)
    assert math.prod(row.constant for row in found.breakdown) == pytest.approx(found.value)
    assert "relu" in found._repr_html_()
    assert "≤ 6" in str(found)


def test_every_row_is_in_the_order_of_the_graph_and_grows_outward() -> None:
    found = bound(Residual(nn.Sequential(matrix(A), nn.Tanh())), 2)
    assert found.breakdown[-1].remark == "sum of 2"


def test_numbers_computed_from_parameters_are_counted() -> None:
    """Weight norm: the direction is divided by its own length, so only g matters."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1, bias=False).double())
    layer.parametrizations.weight.original0.data.fill_(5.0)  # type: ignore[union-attr, operator]
    assert just_above(bound(layer, 3), 5.0)


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x), 2))


def test_deep_residual_network_is_above_its_jacobians() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [Residual(mlp((4, 6, 4), seed, nn.GELU), skip=0.9) for seed in range(6)]
    model = nn.Sequential(*blocks).eval()
    found = bound(model, 4).value
    for _ in range(20):
        assert jacobian_norm(model, 3 * torch.randn(4, generator=generator, dtype=torch.float64)) <= found
