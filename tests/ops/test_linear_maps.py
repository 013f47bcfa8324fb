"""Every linear case against the module's own dense Jacobian."""

import pytest
import torch
from cases import LINEAR
from common import NORMS, captured, jacobian, norm, points

from lipcert.network.adjoint import adjoint
from lipcert.network.graph import AffineNode
from lipcert.network.transform import fuse

NAMES = [case.name for case in LINEAR]


@pytest.fixture(params=NAMES)
def linear(request):
    case, module, network = captured(request.param)
    fused = fuse(network)
    assert len(fused.nodes) == 2, [n.name for n in fused.nodes]
    node = fused.nodes[-1]
    assert isinstance(node, AffineNode)
    return case, module, network, node


@pytest.mark.few(38)
def test_contract(linear):
    """Matrix, transpose, absolute, gram, offset and rounding of the map agree with the dense Jacobian."""
    case, module, network, node = linear
    (map_,) = node.maps
    x = points(case, 3)
    dense = jacobian(module, x[0])
    scale = dense.abs().sum().item() + 1e-300
    matrix = map_.matrix()
    assert torch.allclose(matrix, dense, rtol=1e-12, atol=1e-14 * scale)
    y = torch.randn(3, *map_.out_shape, dtype=torch.float64)
    assert torch.allclose(map_.transpose(y).reshape(3, -1), y.reshape(3, -1) @ dense, rtol=1e-11, atol=1e-13 * scale)
    assert torch.allclose(
        map_.gram(x).reshape(3, -1), x.reshape(3, -1) @ dense.T @ dense, rtol=1e-10, atol=1e-12 * scale**2
    )
    assert (map_.absolute().matrix() >= dense.abs() * (1 - 1e-12) - 1e-15 * scale).all()
    assert (map_.absolute().matrix() >= 0).all()
    assert torch.allclose(network.forward(x), torch.stack([module(e) for e in x]), rtol=1e-11, atol=1e-12 * scale)
    single = map_.to(torch.float32, "cpu")
    assert single.apply(x.float()).dtype == torch.float32
    for p, truth in (case.constant or {}).items():
        assert norm(dense, p) == pytest.approx(truth, abs=1e-12)


@pytest.mark.few(38)
def test_the_transposed_as_a_map(linear):
    """Same entries, same sizes, same count, both ways, in batches and in float32."""
    _, _, _, node = linear
    (map_,) = node.maps
    turned = adjoint(map_)
    assert (turned.in_shape, turned.out_shape) == (map_.out_shape, map_.in_shape)
    assert turned.rounding == map_.rounding
    scale = map_.absolute().matrix().sum().item() + 1e-300
    for one, other in ((turned, map_), (turned.absolute(), map_.absolute())):
        assert torch.allclose(one.matrix(), other.matrix().T, rtol=1e-12, atol=1e-15 * scale)
        y, x = (torch.randn(3, *shape, dtype=torch.float64) for shape in (map_.out_shape, map_.in_shape))
        assert torch.allclose(one.apply(y), other.transpose(y), rtol=1e-11, atol=1e-13 * scale)
        assert torch.allclose(one.transpose(x), other.apply(x), rtol=1e-11, atol=1e-13 * scale)
    single = turned.to(torch.float32, "cpu")
    assert single.apply(torch.randn(2, *map_.out_shape)).dtype == torch.float32


@pytest.mark.few(30)
def test_rounding_counts_every_sum(linear):
    """The count is at least the terms of the longest row and column, and finite."""
    case, _, _, node = linear
    (map_,) = node.maps
    nonzero = map_.absolute().matrix() > 0
    if nonzero.numel():
        longest = max(nonzero.sum(0).max().item(), nonzero.sum(1).max().item())
        assert map_.rounding < 1e6
        assert longest - 1 <= map_.rounding or case.name.startswith(("bi", "tri"))  # separable: axis by axis


def test_leaves_promise_nonnegative_entries(linear):
    """An elementary map without constants must have non-negative entries: absolute() returns it unchanged."""
    _, _, network, _ = linear
    for node in network.nodes[1:]:
        for map_ in node.maps:
            for leaf in map_.leaves():
                if not getattr(leaf, "constants", ()) and hasattr(leaf, "function"):
                    matrix = leaf.matrix()
                    assert (matrix >= 0).all(), leaf.label
                    assert leaf.rounding >= max((matrix > 0).sum(0).max(), (matrix > 0).sum(1).max()) - 1


def test_norm_helper():
    assert [norm(torch.tensor([[3.0, -4.0]]), p) for p in NORMS] == [4, 5, 7]
