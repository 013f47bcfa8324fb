"""Selections and gain blocks: product of gains against sampled Jacobians, and against known constants."""

import itertools
import math

import pytest
import torch
from cases import GAIN, SELECTION, Call
from common import NORMS, captured, jacobian, norm, points

from lipcert.capture.torch_export import capture
from lipcert.network.graph import ActivationNode, AffineNode, GainNode, SelectionNode
from lipcert.network.transform import expand, fuse
from lipcert.ops.radial import radial_gains


def constant(network, p):
    """The product rule on the fused network with dense norms: what any method would start from."""
    value = [1.0]
    for node in fuse(network).nodes[1:]:
        if isinstance(node, AffineNode):
            value.append(sum(norm(m.matrix(), p) * value[i] for m, i in zip(node.maps, node.parents, strict=True)))
        elif isinstance(node, ActivationNode):
            value.append(node.function.greatest_slope * value[node.parents[0]])
        elif isinstance(node, GainNode):
            value.append(node.function.gains[p] * value[node.parents[0]])
        elif isinstance(node, SelectionNode):
            value.append(node.function.gain(p) * value[node.parents[0]])
    return value[-1]


@pytest.mark.few(7)
@pytest.mark.parametrize("name", [c.name for c in [*SELECTION, *GAIN]])
def test_never_below_sampled_jacobians(name):
    case, module, network = captured(name)
    bounds = {p: constant(network, p) for p in NORMS}
    for scale in (1e-6, 0.05, 1.0, 8.0):
        for x in points(case, 3, scale, seed=3):
            dense = jacobian(module, x)
            for p in NORMS:
                assert norm(dense, p) <= bounds[p] * (1 + 1e-9)
    for p, truth in (case.constant or {}).items():
        assert truth * (1 - 1e-14) <= bounds[p] <= truth * (1 + 1e-9) + 1e-300


@pytest.mark.few(13)
@pytest.mark.parametrize("name", [c.name for c in [*SELECTION, *GAIN]])
def test_never_below_difference_quotients(name):
    case, module, network = captured(name)
    x = points(case, 40, 1.0, seed=5).round(decimals=1)  # ties are common
    y = x + points(case, 40, 0.3, seed=6).round(decimals=1)
    difference = (torch.stack([module(e) for e in x]) - torch.stack([module(e) for e in y])).reshape(40, -1)
    step = (x - y).reshape(40, -1)
    for p in NORMS:
        top, bottom = (torch.linalg.vector_norm(d, p, 1) for d in (difference, step))
        assert (top <= constant(network, p) * bottom * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", [c.name for c in SELECTION])
def test_expansion_is_exact(name):
    case, module, network = captured(name)
    x = torch.cat([points(case, 20, 1.0), points(case, 20, 1.0).round(), torch.zeros(1, 1, *case.shape)]).double()
    expanded = expand(network)
    assert not any(isinstance(n, SelectionNode) for n in expanded.nodes)
    expected = torch.stack([module(e) for e in x])
    assert torch.allclose(network.forward(x), expected, atol=1e-12)
    assert torch.allclose(expanded.forward(x), expected, atol=1e-12)
    assert torch.allclose(fuse(expanded).forward(x), expected, atol=1e-12)


@pytest.mark.parametrize("name", [c.name for c in SELECTION if c.name.startswith(("max_pool", "adaptive"))])
def test_overlap_by_brute_force_and_attained(name):
    """m is the most outputs one input can move; a bump at that input attains √m."""
    case, module, network = captured(name)
    node = network.nodes[-1]
    n = math.prod(case.shape)
    bumps = torch.eye(n, dtype=torch.float64).reshape(n, 1, *case.shape)
    moved = torch.stack([module(b) - module(0 * b) for b in bumps]).reshape(n, -1)
    m = int((moved > 0.5).sum(1).max())
    assert node.function.overlap == m
    assert float(moved.norm(dim=1).max()) == pytest.approx(node.function.gain(2), rel=1e-14)


@pytest.mark.parametrize(
    "settings", list(itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2, 3), (False, True)))
)
def test_max_pool_windows(settings):
    kernel, stride, padding, dilation, ceil = settings
    if padding > kernel // 2:
        pytest.skip("PyTorch refuses")
    from lipcert.network.builder import NetworkBuilder
    from lipcert.ops.context import Context
    from lipcert.ops.registry import find_rule

    x = torch.randn(4, 1, 2, 9, 11, dtype=torch.float64) - 5
    pool = torch.nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    try:
        expected = torch.stack([pool(e) for e in x])
    except RuntimeError:
        pytest.skip("no output")
    context = Context(NetworkBuilder())
    context.op = "max_pool2d"
    var = find_rule("max_pool2d", "default")(
        context, context.builder.input((1, 2, 9, 11)), kernel, stride, padding, dilation, ceil
    )
    assert torch.equal(context.builder.finish(var).forward(x), expected)


def test_softmax_half_is_attained():
    j = jacobian(torch.nn.Softmax(1), torch.zeros(1, 2, dtype=torch.float64))
    assert [norm(j, p) for p in NORMS] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize("n", [2, 3, 10])
def test_log_softmax_suprema_are_approached(n):
    _, _, network = None, None, capture(torch.nn.LogSoftmax(1), torch.randn(1, n, dtype=torch.float64))
    x = torch.zeros(1, n, dtype=torch.float64)
    x[0, 0] = 30.0
    j = jacobian(torch.nn.LogSoftmax(1), x)
    for p in NORMS:
        assert norm(j, p) == pytest.approx(network.nodes[-1].function.gains[p], rel=1e-9)


@pytest.mark.parametrize(("module", "n"), [
    (torch.nn.LayerNorm(6, eps=1e-4), 6), (torch.nn.GroupNorm(2, 4, eps=1e-4), 2), (torch.nn.RMSNorm(5, eps=1e-4), 5),
])  # fmt: skip
def test_norm_layers_attain_their_gain_at_constant_inputs(module, n):
    shape = {6: (1, 6), 2: (1, 4), 5: (1, 5)}[n]
    module = module.double()
    j = jacobian(module, torch.zeros(shape, dtype=torch.float64))
    assert norm(j, 2) == pytest.approx(1 / math.sqrt(1e-4), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 16, 100])
@pytest.mark.parametrize("kind", ["root", "sum", "clamp"])
def test_radial_gain_in_linf_is_attained(n, kind):
    """The worst unit vector has s² = |uᵢ|² with tan 2θ = √(n − 1); scan the radius."""
    eps, best = 0.3, 0.0
    s = math.sin(0.5 * math.atan(math.sqrt(n - 1)))
    u = torch.full((n,), -math.sqrt((1 - s * s) / (n - 1)), dtype=torch.float64)
    u[0] = s

    def f(v):
        if kind == "root":
            return v / torch.sqrt((v * v).mean() + eps**2)
        return v / (v.norm() + eps) if kind == "sum" else v / v.norm().clamp_min(eps)

    for radius in [1.000001, *torch.logspace(-2, 2, 60).tolist()]:
        best = max(best, norm(jacobian(f, radius * eps * u), math.inf))
    gain = radial_gains(n, eps, kind)[math.inf]
    assert best <= gain * (1 + 1e-9)
    assert best >= 0.98 * gain


def test_layer_norm_linf_gain_exceeds_the_usual_claim():
    """2(n − 1)/n · 1/√ε is not an upper bound in l∞ for wide layers; ours is."""
    n, eps = 400, 1e-2
    a = torch.full((n,), -1.0, dtype=torch.float64)
    a[: n // 2] = 1.0
    a[0] = 12.0
    best = max(
        norm(jacobian(lambda v: torch.layer_norm(v, [n], eps=eps), float(r) * a), math.inf)
        for r in torch.logspace(-2.5, -0.5, 12)
    )
    assert best > 2 * (n - 1) / n / math.sqrt(eps)
    assert best <= radial_gains(n, math.sqrt(eps), "root", 2 * (n - 1) / n)[math.inf]


def test_max_min_pairs_share_one_sort():
    _, _, network = captured("MaxMin by halves")
    assert sum(isinstance(n, SelectionNode) for n in network.nodes) == 1


def test_large_selection_of_random_windows():
    pool = Call(lambda x: torch.nn.functional.max_pool2d(x, (3, 5), (2, 1), (1, 2), (2, 1)))
    network = capture(pool.eval(), torch.randn(1, 3, 12, 14, dtype=torch.float64))
    x = torch.randn(5, 1, 3, 12, 14, dtype=torch.float64)
    assert torch.equal(network.forward(x), torch.stack([pool(e) for e in x]))
