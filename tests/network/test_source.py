"""Constants keep how they came from named parameters: with other tensors put in, they are those of the other model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.capture.torch_export import capture
from lipcert.network.graph import ActivationNode, AffineNode, Network
from lipcert.network.linear import Dense, Identity, OpMap
from lipcert.network.source import Derived, Fixed, Named, Source
from lipcert.network.transform import fuse
from tests.zoo import ZOO, Apply, zoo_case

D = torch.float64


def constants(network: Network) -> Iterator[tuple[Tensor, Source | None]]:
    """Every number of a captured network with its source."""
    for node in network.nodes:
        if isinstance(node, ActivationNode):
            yield from zip(node.function.parameters, node.function.sources, strict=True)
        if not isinstance(node, AffineNode):
            continue
        for leaf in (leaf for linear in node.maps for leaf in linear.leaves()):
            if isinstance(leaf, (OpMap, Dense)):
                yield from zip(leaf.constants, leaf.sources, strict=True)
            elif isinstance(leaf, Identity) and leaf.source is not None:
                yield torch.tensor(leaf.scale, dtype=D), leaf.source
        if node.offset is not None:
            yield node.offset, node.source


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for name, tensor in model.named_buffers():
            if "running_var" in name:
                tensor.uniform_(0.5, 2.0)
            elif "running_mean" in name:
                tensor.normal_()
        return model


class Mixed(nn.Module):
    """Weights that forward computes: scaled, summed, sliced, normalised, masked, divided by and stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))
        self.g = nn.Parameter(torch.rand(4) + 0.5)
        self.s = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        w = self.w / self.w.norm(dim=1, keepdim=True) * self.g[:, None]
        first, second = torch.split(w * self.mask + 0.1, 2)
        y = torch.cat([F.linear(x, first), torch.addmm(self.g[:2], x, second.t(), beta=0.5)], 1)
        y = torch.maximum(self.s * y / self.g, self.g - 1) + 2 * self.g - F.softplus(self.s)
        y = torch.cat([y, self.g.expand(len(x), 4)], 1)
        y = (
            torch.where(self.mask.repeat(2)[:8] > 0, y / self.s, self.g.repeat(2))
            + torch.where(self.g > 0, self.g, 0).sum()
        )
        return torch.stack([y, torch.exp(self.s) * y, y.masked_fill(self.mask.repeat(2)[:8] == 0, 2.0)], 1)[:, :, 1:]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU()), (5,)),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 5, 5)),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh()), (5,)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4), "weight", "cayley"), (4,)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()), (5,)),
    "batch norm of planes": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.BatchNorm2d(3), nn.PReLU(3)), (2, 7, 7)),
    "plain batch norm": (lambda: nn.BatchNorm1d(4, affine=False), (4,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), (4,)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), (2, 5, 5)),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2)), (4,)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 4, 3, 2), (2, 4, 4)),
    "resize": (lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 2, 3)), (2, 4, 4)),
    "padding": (lambda: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(2, 2, 3)), (2, 4, 4)),
    "computed weights": (Mixed, (6,)),
}  # fmt: skip


def case(name: str) -> tuple[nn.Module, Tensor]:
    if name in MODELS:
        build, shape = MODELS[name]
        return seeded(build), torch.zeros(1, *shape)
    found = zoo_case(name)
    return found.model.eval(), found.example


def values(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def agree(network: Network, other: Network, parameters: dict[str, Tensor], tolerance: float) -> int:
    """Compare the sources of ``network`` at ``parameters`` with the constants of ``other``; how many were compared."""
    pairs = list(zip(constants(network), constants(other), strict=True))
    for (_, source), (expected, _) in pairs:
        assert source is not None
        assert source.names <= set(parameters)
        found = source.evaluate(parameters)
        assert found.dtype == D
        assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))
    return len(pairs)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [*MODELS, *(name for name, _, _ in ZOO)])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_sources_give_the_constants_of_this_model_and_of_others(name: str, dtype: torch.dtype) -> None:
    model, example = case(name)
    model, example = copy.deepcopy(model).to(dtype), example.to(dtype)
    tolerance = 1e-12 if dtype == D else 1e-5
    network = capture(model, example)
    assert agree(network, network, values(model), tolerance) > 0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in values(model).values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator).to(dtype))
    if name == "spectral norm":  # u and v are to be singular vectors no more: forward uses them as they are
        assert any("_u" in key for key in values(model))
    assert agree(network, capture(model, example), values(model), tolerance) > 0


def test_sources_do_not_enter_the_hash() -> None:
    named = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    literal = Apply(lambda s, x: torch.relu(F.linear(x, s.inner.get_parameter("w"), s.inner.b)), inner=nn.Module())
    literal.inner.w, literal.inner.b = named[0].weight, named[0].bias
    x = torch.zeros(1, 3)
    first, second = capture(named, x), capture(literal, x)
    assert first.fingerprint == second.fingerprint
    assert {s.names for _, s in constants(first) if s} != {s.names for _, s in constants(second) if s}


def test_gradients_pass_to_parameters() -> None:
    model = seeded(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU())).double()
    (weight, source), *_ = constants(capture(model, torch.zeros(1, 5, dtype=D)))
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    source.evaluate(parameters).square().sum().backward()
    g = parameters["0.parametrizations.weight.original0"]
    assert torch.allclose(g.grad, 2 * g.detach(), rtol=1e-12)  # ‖W‖² = Σ g²
    assert float(parameters["0.parametrizations.weight.original1"].grad.abs().max()) < 1e-12
    assert weight.grad is None


def test_expressions_that_share_parts_are_evaluated_once() -> None:
    calls = []

    def double(a: Tensor) -> Tensor:
        calls.append(1)
        return a + a

    source: Source = Derived(double, (Named("a"),), {})
    for _ in range(60):
        source = Derived(torch.add, (source, source), {})
    assert float(source.evaluate({"a": torch.tensor(1.0)})) == 2.0**61
    assert len(calls) == 1
    assert source.names == {"a"}


def test_a_parameter_that_is_missing_is_named() -> None:
    source = Derived(torch.add, (Named("layer.weight"), Fixed(torch.ones(()))), {})
    with pytest.raises(KeyError, match=r"layer\.weight"):
        source.evaluate({})


def test_a_fused_network_has_the_sources_of_its_leaves_and_no_others() -> None:
    """An offset that fusion computes is none that was captured."""
    model, example = case("batch norm")
    fused = fuse(capture(model, example))
    assert all(node.source is None for node in fused.nodes if isinstance(node, AffineNode))
    for node in fused.nodes:
        for leaf in (
            leaf for m in getattr(node, "maps", ()) for leaf in m.leaves() if isinstance(leaf, (OpMap, Dense))
        ):
            for constant, source in zip(leaf.constants, leaf.sources, strict=True):
                assert torch.allclose(source.evaluate(values(model)), constant, rtol=1e-6)
