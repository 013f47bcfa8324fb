"""Networks on which existing tools give false or no answers (measured; see the project's notes).

Every test has its own instance of the case. ``truth`` is a lower bound of the constant, found by hand or by sampling;
our bound must be at least that, and the attack must come near it.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.network.graph import AffineNode
from tests.zoo import Apply, Residual, Twice, difference_quotients, mlp

INF = math.inf


def matrix(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    weight = torch.tensor(rows, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def bracket(model: nn.Module, *shape: int, truth: float, nearly: float = 0.98, **options: object) -> lipcert.Bound:
    """upper ≥ truth, upper ≥ sampled quotients, and the attack reaches ``nearly`` of the truth from below."""
    model = model.eval()
    norm = options.get("norm", (2, 2))
    found = lipcert.bound(model, torch.zeros(1, *shape), method="autolip", **options)  # type: ignore[arg-type]
    assert found.value >= truth
    low = lipcert.lower_bound(model, torch.zeros(1, *shape), budget=0.3, **options)  # type: ignore[arg-type]
    assert nearly * truth <= low.value <= found.value
    if options.get("domain") is None:
        quotients, noise = difference_quotients(model, shape, *norm)  # type: ignore[misc]
        assert bool((quotients <= found.value * (1 + 1e-9) + noise).all())
    return found


def seeded(build: object, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()  # type: ignore[operator]


def test_conv_layer_before_linear_layers() -> None:
    """Skipped silently: 0.50 for a truth ≥ 2.05. Here the convolution alone multiplies by 4."""
    conv = nn.Conv2d(1, 1, 1, bias=False).double()
    conv.weight.data.fill_(4.0)
    model = nn.Sequential(conv, nn.Flatten(), nn.ReLU(), matrix([[0.5, 0.0, 0.0, 0.0]]))
    assert bracket(model, 1, 2, 2, truth=2.0).value <= 2.0 * (1 + 1e-9)


def test_skip_straight_from_the_input() -> None:
    """Dropped silently: 0.23 / 0.92 for truths ≥ 1.04 / 1.70."""
    branch = nn.Sequential(matrix([[0.5, 0.0], [0.0, 0.2]]), nn.ReLU(), matrix([[0.5, 0.0], [0.0, 0.5]]))
    assert bracket(Residual(branch), 2, truth=1.25).value <= 1.25 * (1 + 1e-9)


def test_batch_norm_with_a_small_running_variance() -> None:
    """Ignored: 0.85 for a truth ≥ 17."""
    norm = nn.BatchNorm1d(2).double()
    norm.running_var.fill_(1e-3)  # type: ignore[union-attr]
    gain = 1.0 / math.sqrt(1e-3 + 1e-5)
    model = nn.Sequential(matrix([[0.5, 0.0], [0.0, 0.4]]), norm, nn.ReLU(), matrix([[1.0, 1.0]]))
    assert bracket(model, 2, truth=gain * math.hypot(0.5, 0.4)).value <= gain * 0.5 * math.sqrt(2) * (1 + 1e-6)


def test_layer_norm() -> None:
    """Ignored: 0.85 for a truth ≥ 0.99. Its gain 1/√ε is counted, and said to be loose."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=0.25), nn.Linear(4, 2)).double()
    found = bracket(seeded(lambda: copy.deepcopy(model), 0), 3, truth=0.0, nearly=0.0)
    row = next(r for r in found.breakdown if r.kind == "gain")
    assert row.constant == pytest.approx(2.0)
    assert row.remark


def test_a_factor_in_forward() -> None:
    """Modules read, code not: 0.85 for a truth ≥ 54."""
    model = Apply(lambda s, x: 100.0 * s.layer(x), layer=matrix([[0.54, 0.0], [0.0, 0.1]]))
    assert bracket(model, 2, truth=54.0).value <= 54.0 * (1 + 1e-9)


def test_one_layer_used_twice() -> None:
    """4.6 for a truth ≥ 8.1: counted once."""
    model = Twice(matrix([[3.0, 0.0], [0.0, 1.0]]), nn.ReLU())
    assert bracket(model, 2, truth=9.0).value <= 9.0 * (1 + 1e-9)


class OtherOrder(nn.Module):
    """Modules declared in another order than they are used in."""

    def __init__(self) -> None:
        super().__init__()
        self.last = matrix([[1.0, 0.0, 2.0]])
        self.act = nn.ReLU()
        self.first = matrix([[1.0], [5.0], [3.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


def test_modules_declared_in_another_order() -> None:
    found = bracket(OtherOrder(), 1, truth=7.0)
    assert found.value == pytest.approx(math.sqrt(35.0) * math.sqrt(5.0), rel=1e-9)


def test_gelu_with_unit_weights() -> None:
    """1 for a truth ≥ 1.1289."""
    model = nn.Sequential(matrix([[1.0]], [0.0]), nn.GELU(), matrix([[1.0]], [0.0]))
    assert bracket(model, 1, truth=1.1289).value <= 1.128904145185155 * (1 + 1e-11)


def test_two_silu_layers_with_unit_weights() -> None:
    """1 for a truth ≥ 1.189; the product of the slopes is 1.2096."""
    model = nn.Sequential(matrix([[1.0]], [0.0]), nn.SiLU(), matrix([[1.0]], [0.0]), nn.SiLU(), matrix([[1.0]]))
    assert bracket(model, 1, truth=1.189).value == pytest.approx(1.099839320128867**2, rel=1e-9)


def test_leaky_relu_with_a_steep_negative_slope() -> None:
    """0.845 for a truth ≥ 0.879: |−1.5| > 1."""
    model = nn.Sequential(matrix([[0.6, 0.0], [0.0, 0.2]]), nn.LeakyReLU(-1.5), matrix([[1.0, 1.0]]))
    assert bracket(model, 2, truth=1.5 * math.hypot(0.6, 0.2)).value <= 0.9 * math.sqrt(2) * (1 + 1e-9)


@pytest.mark.parametrize(("activation", "truth"), [(nn.LeakyReLU(0.3), 0.163), (nn.ELU(3.0), 1.31), (nn.ReLU(), 0.0)])
def test_local_constants(activation: nn.Module, truth: float) -> None:
    """Local: a leaky unit far in the negative (0.005), ELU(3) (0.78), all ReLUs dead (NaN for a truth of 0).

    On a domain the bound here is the global one, which holds there too and is never larger than it.
    """
    scale = {0.163: 0.163 / 0.3, 1.31: 1.31 / 3.0, 0.0: 1.0}[truth]
    shift = {0.163: -50.0, 1.31: 0.0, 0.0: -50.0}[truth]
    model = nn.Sequential(matrix([[scale]], [shift]), activation, matrix([[1.0]])).eval()
    ball = lipcert.Ball(torch.zeros(1), 1e-3)
    found = bracket(model, 1, truth=truth, nearly=0.95, domain=ball)
    assert math.isfinite(found.value)
    everywhere = lipcert.bound(model, torch.zeros(1, 1), method="autolip").value
    assert found.value <= everywhere * (1.0 + 2.0**-39)  # room for rounding of what the check computed
    assert (found.domain.center.tolist(), found.domain.radius) == ([[0.0]], 1e-3)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = matrix([[2.0, 0.0], [0.0, 1.0]]), matrix([[1.5, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(
    ("model", "shape", "truth"),
    [
        (Functional(), (2,), 3.0),
        (nn.Sequential(matrix([[2.0, 0.0], [0.0, 1.0]]), matrix([[0.0, 0.0], [0.0, 3.0]])), (2,), 3.0),
        (matrix([[0.0, 2.0], [2.0, 0.0]]), (2,), 2.0),
        (nn.Linear(2, 1, bias=False).double(), (2,), 0.0),
        (nn.Conv1d(1, 1, 1, bias=False).double(), (1, 4), 0.0),
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()).double(), (1, 3, 3), 0.0),
    ],
)
def test_forms_that_are_ignored_or_crash(model: nn.Module, shape: tuple[int, ...], truth: float) -> None:
    """Functional ReLU, linear–linear without activation, bias=False, a single Linear, conv only."""
    found = bracket(model, *shape, truth=truth)
    exact = lipcert.lower_bound(model.eval(), torch.zeros(1, *shape), budget=0.2).value
    assert found.value == pytest.approx(exact, rel=1e-6)  # all of these are linear, or reach their product


def test_zero_hidden_layer() -> None:
    model = nn.Sequential(matrix([[1.0], [2.0]]), nn.ReLU(), matrix([[0.0, 0.0]]), nn.ReLU(), matrix([[5.0]]))
    assert bracket(model, 1, truth=0.0).value == 0.0


def test_nan_weight_is_an_error() -> None:
    with pytest.raises(lipcert.CaptureError, match="NaN"):
        lipcert.bound(matrix([[1.0, math.nan]]).eval(), torch.zeros(1, 2), method="autolip")


@pytest.mark.parametrize("scale", [1e-6, 1e-30])
def test_tiny_weights(scale: float) -> None:
    """Weights of 1e-6 end in linear-algebra errors elsewhere."""
    model = nn.Sequential(matrix([[3 * scale, 0.0], [0.0, scale]]), nn.ReLU(), matrix([[scale, 0.0]]))
    assert bracket(model, 2, truth=3 * scale**2).value <= 3 * scale**2 * (1 + 1e-9)


def test_float32_and_half_precision_weights() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = nn.Sequential(matrix([[2.0, 0.0], [0.0, 1.0]]), nn.ReLU(), matrix([[1.5, 0.0]])).to(dtype).eval()
        found = lipcert.bound(model, torch.zeros(1, 2), method="autolip")
        assert 3.0 <= found.value <= 3.0 * (1 + 1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_padded_convolution_is_not_the_circular_or_reshaped_one(groups: int) -> None:
    """Circular below the truth in 11 of 300, reshaped kernel in most; here over 30 kernels each."""
    reshaped_below = 0
    for seed in range(30 if groups == 1 else 5):
        conv = nn.Conv2d(2, 2, 3, padding=1, groups=groups, bias=False).double()
        conv.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        truth = power(conv, (2, 5, 5))
        if seed < 2:
            node = capture(conv.eval(), torch.zeros(1, 2, 5, 5)).nodes[-1]
            assert isinstance(node, AffineNode)
            assert truth <= map_norm(node.maps[0], 2).value <= truth * (1 + 1e-6)
        reshaped_below += float(torch.linalg.matrix_norm(conv.weight.detach().reshape(2, -1), 2)) < truth
    assert reshaped_below >= 1


def power(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The exact norm of a small linear layer by its dense matrix."""
    size = math.prod(shape)
    with torch.no_grad():
        columns = layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1)
    return float(torch.linalg.matrix_norm(columns, 2))


def test_max_pool_with_dilation() -> None:
    """⌈k/s⌉ = 2 for a truth of 3: one input that wins in nine windows."""
    pool = nn.MaxPool2d(3, 2, padding=1, dilation=2)
    found = lipcert.bound(pool, torch.zeros(1, 1, 16, 16), method="autolip")
    spike = torch.zeros(256, 1, 16, 16, dtype=torch.float64)
    spike[torch.arange(256), 0, torch.arange(256) // 16, torch.arange(256) % 16] = 1.0
    truth = float(pool(spike).reshape(256, -1).norm(dim=1).max())
    assert truth == 3.0
    assert found.value == 3.0


@pytest.mark.parametrize(
    ("n", "norm", "factor"), [(10, (2, 2), math.sqrt(10)), (10, (INF, INF), 2.0), (10, (1, 1), 9.0)]
)
def test_log_softmax(n: int, norm: tuple[float, float], factor: float) -> None:
    """Taken as 1- or 2-Lipschitz in l2; the supremum is √n, reached far out."""
    model = nn.LogSoftmax(dim=1).eval()
    found = lipcert.bound(model, torch.zeros(1, n), method="autolip", norm=norm)
    x = torch.zeros(1, n, dtype=torch.float64)
    x[0, 0] = 40.0
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v)[0], x)[:, 0]
    truth = float(torch.linalg.matrix_norm(jacobian, norm[0]))
    assert truth == pytest.approx(factor, rel=1e-6)
    assert truth * (1 - 1e-12) <= found.value <= factor * (1 + 1e-9)


def test_lower_slope_of_silu() -> None:
    """−0.0734 in a table; −0.0998 in truth. The activation node must say so, for methods that use both ends."""
    nodes = capture(nn.SiLU().eval(), torch.zeros(1, 1)).nodes
    low, high = nodes[-1].function.slope_range((1, 1))  # type: ignore[attr-defined]
    assert float(low) == pytest.approx(-0.099839320128867, rel=1e-13)
    assert float(high) == pytest.approx(1.099839320128867, rel=1e-13)


def test_where_greedy_seqlip_fails() -> None:
    """3.162 for a truth of 4, attained at (−1, ½, −½)."""
    first = [[-2.0, -2.0, 0.0], [1.0, 2.0, 2.0], [2.0, 1.0, -1.0]]
    model = nn.Sequential(matrix(first), nn.ReLU(), matrix([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])).eval()
    point = torch.tensor([-1.0, 0.5, -0.5], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], point)
    at_point = float(torch.linalg.matrix_norm(jacobian, 2))
    found = bracket(model, 3, truth=4.0 - 1e-9, nearly=1.0 - 1e-6)
    assert at_point <= 4.0 + 1e-9
    assert found.value <= 8.0


def test_transposes_are_where_they_belong() -> None:
    """V in place of Vᵀ: 11.88 for a truth of 36.48. Singular vectors of a non-square, non-symmetric chain."""
    model = mlp((7, 3, 5, 2), 5)
    product = torch.eye(7, dtype=torch.float64)
    for layer in model:
        if isinstance(layer, nn.Linear):
            product = layer.weight.detach() @ product
    linear = nn.Sequential(*(m for m in model if isinstance(m, nn.Linear))).eval()
    found = lipcert.bound(linear, torch.zeros(1, 7), method="autolip")
    assert found.value == pytest.approx(float(torch.linalg.matrix_norm(product, 2)), rel=1e-9)


def test_float32_networks_are_bounded_above_their_float64_truth() -> None:
    """A bound computed in float32 lay 1.4e-7 below its own sample; ours are certified for the stored weights."""
    for seed in range(6):
        layer = nn.Linear(6, 6, bias=False)
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        truth = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
        value = lipcert.bound(layer.eval(), torch.zeros(1, 6), method="autolip").value
        assert truth * (1 - 1e-15) <= value <= truth * (1 + 1e-9)


def test_a_kernel_with_its_axes_in_another_order_is_another_network() -> None:
    """5.11 for a truth of 5.57: the bound of a different network. The fingerprint tells the two apart."""
    conv = seeded(lambda: nn.Conv2d(1, 1, 3, padding=1, bias=False), 0).double()
    turned = copy.deepcopy(conv)
    turned.weight.data.copy_(conv.weight.detach().transpose(2, 3))  # type: ignore[union-attr, operator]
    marks = [capture(m.eval(), torch.zeros(1, 1, 4, 6)).fingerprint for m in (conv, turned)]
    assert marks[0] != marks[1]
