"""Attention, softmax and normalisations: bounds on domains against attacks, masks, errors, certificates."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import loop_transform
from lipcert.errors import NotLipschitzError, TrainModeError, UnsupportedOpError
from lipcert.network.graph import GainNode, OpenNode
from lipcert.ops.softmax import MaskedSoftmax
from tests.zoo import Apply

D = torch.float64
CAUSAL = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)


class Attention(nn.Module):
    """Tokens of width 4 in one or two heads, the attention written in one of several ways."""

    def __init__(self, kind: str, heads: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.whole = nn.MultiheadAttention(4, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.startswith("module"):
            mask = None if self.kind == "module" else CAUSAL
            return self.whole(x, x, x, need_weights=self.kind != "module", attn_mask=mask)[0]
        shape = (x.shape[0], x.shape[1], self.heads, 4 // self.heads)
        q, k, v = (layer(x).reshape(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        fused = functional.scaled_dot_product_attention
        if self.kind == "fused":
            y = fused(q, k, v)
        elif self.kind == "causal":
            y = fused(q, k, v, is_causal=True)
        elif self.kind == "mask":
            y = fused(q, k, v, attn_mask=~CAUSAL.T)
        elif self.kind == "cosine":
            scores = 4.0 * functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-1, -2)
            y = scores.softmax(-1) @ v
        elif self.kind == "l2":
            squares = (q * q).sum(-1, keepdim=True) + (k * k).sum(-1)[..., None, :]
            y = (2.0 * q @ k.transpose(-1, -2) - squares).softmax(-1) @ v
        elif self.kind == "einsum":
            y = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(4)
            y = scores.masked_fill(CAUSAL, -math.inf).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(x.shape))


KINDS = ("fused", "causal", "mask", "cosine", "l2", "einsum", "by hand", "module", "module, masked")
LASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
}


class Block(nn.Module):
    """Attention and a layer of neurons, with normalisations before or after."""

    def __init__(self, choose: random.Random, kind: str) -> None:
        super().__init__()
        self.first = choose.choice([True, False])
        self.attention = Attention(kind, choose.choice([1, 2]))
        self.norms = nn.ModuleList(
            [choose.choice([lambda: nn.LayerNorm(4), lambda: nn.RMSNorm(4), nn.Identity])() for _ in range(2)]
        )
        activation = choose.choice([nn.ReLU, nn.GELU, nn.SiLU])()
        self.neurons = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attention(self.norms[0](x))
            return x + self.neurons(self.norms[1](x))
        return self.norms[1](x + self.neurons(self.norms[0](x + self.attention(x))))


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """A generated network and a point."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    blocks = [Block(choose, KINDS[seed % len(KINDS)])]
    blocks += [Block(choose, choose.choice(KINDS))] if choose.random() < 0.3 else []
    last = LASTS[choose.choice(list(LASTS))]
    model = nn.Sequential(*blocks, Apply(lambda _, x: last(x.flatten(1)))).to(D).eval()
    return model, torch.randn(1, 3, 4, dtype=D)


def steepest(model: nn.Module, domain: lipcert.Ball, p: float, seed: int, count: int = 40) -> float:
    """The greatest ratio of increments, and norm of a Jacobian, at points of a ball."""
    generator = torch.Generator().manual_seed(seed)
    center = domain.center.to(D)
    points = []
    for k in range(count):
        step = torch.randn(center.numel(), generator=generator, dtype=D)
        step = step.sign() if domain.p == math.inf and k % 2 else step
        length = step.norm(p=domain.p) / (1.0 if k % 2 else float(torch.rand((), generator=generator)))
        points.append(center + (domain.radius * (1 - 1e-12) * step / length).reshape(center.shape))
    f = lambda x: model(x.reshape(1, *center.shape)).reshape(-1)  # noqa: E731
    with torch.no_grad():
        values = [f(x) for x in points]
    found = max(
        float((values[k] - values[k - 1]).norm(p) / (points[k] - points[k - 1]).norm(p)) for k in range(1, count)
    )
    for x in points[::8]:
        jacobian = torch.autograd.functional.jacobian(f, x).reshape(-1, center.numel())
        found = max(found, float(torch.linalg.matrix_norm(jacobian, 2 if p == 2 else p)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(45))
def test_bounds_on_balls_hold(seed: int) -> None:
    model, x = network(seed)
    radius = 10.0 ** random.Random(seed).uniform(-4.0, 0.0)
    ball = lipcert.Ball(x[0], radius, p=(2.0, math.inf, 1.0)[seed % 3])
    for norm in (2.0, (math.inf, 1.0)[seed % 2]):
        truth = steepest(model, ball, norm, seed)
        for method in ("autolip", "liplt", *(("lipsdp",) if norm == 2.0 and seed % 3 == 0 else ())):
            value = lipcert.bound(model, x, method, (norm, norm), domain=ball, budget=1).value
            assert value >= truth * (1 - 1e-9), (method, norm)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_ball_gives_the_norm_of_the_jacobian(kind: str) -> None:
    torch.manual_seed(KINDS.index(kind))
    model = nn.Sequential(Attention(kind, 2), nn.LayerNorm(4), nn.Linear(4, 3)).to(D).eval()
    x = torch.randn(1, 3, 4, dtype=D)
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z).reshape(-1), x).reshape(9, 12)
    truth = float(torch.linalg.matrix_norm(jacobian, 2))
    value = lipcert.bound(model, x, "liplt", domain=lipcert.Ball(x[0], 1e-5)).value
    assert truth * (1 - 1e-9) <= value <= truth * 1.01


def test_a_smaller_ball_has_no_greater_bound() -> None:
    torch.manual_seed(0)
    model, x = Attention("fused", 2).to(D).eval(), torch.randn(1, 3, 4, dtype=D)
    balls = [lipcert.Ball(x[0], r) for r in (1e-5, 1e-2, 1.0)]
    values = [bound.value for bound in lipcert.bound(model, x, "liplt", domain=balls)]
    assert values == sorted(values)


@pytest.mark.slow
def test_encoder_layers_of_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for layer in (
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu"),
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True),
    ):
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)).to(D).eval()
        x = torch.randn(1, 3, 8, dtype=D)
        ball = lipcert.Ball(x[0], 1e-3)
        bound = lipcert.bound(model, x, "liplt", domain=ball)
        assert steepest(model, ball, 2.0, 0) <= bound.value <= 2.0 * steepest(model, ball, 2.0, 0)
        assert bound.certificate is not None
        bound.certificate.save(tmp_path / "encoder.lipcert")
        assert lipcert.verify(tmp_path / "encoder.lipcert", model, x).value == pytest.approx(bound.value, rel=1e-9)


@pytest.mark.slow
def test_passes_through_maps_agree_with_matrices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What networks too wide for matrices get, on one that is not: no less than what holds, and hardly more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4), Attention("causal", 2), nn.LayerNorm(4), nn.GELU()).to(D).eval()
    x = torch.randn(1, 3, 4, dtype=D)
    ball = lipcert.Ball(x[0], 1e-4)
    for p in (2.0, math.inf):
        dense = lipcert.bound(model, x, "liplt", (p, p), domain=ball)
        with monkeypatch.context() as patch:
            patch.setattr(loop_transform, "MAX_WORK", 0.0)
            passes = lipcert.bound(model, x, "liplt", (p, p), domain=ball)
            assert passes.certificate is not None
            assert passes.guarantee == "rigorous"
            assert passes.certificate.witness.settings["sparse"] is True
            passes.certificate.save(tmp_path / "passes.lipcert")
            assert lipcert.verify(tmp_path / "passes.lipcert", model, x).value <= passes.value * (1 + 1e-9)
        assert steepest(model, ball, p, 0) <= passes.value
        assert dense.value * (1 - 1e-9) <= passes.value <= dense.value * 1.01


@pytest.mark.slow
def test_a_decoder_layer_with_a_causal_mask() -> None:
    torch.manual_seed(1)
    layer = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    model = Apply(lambda s, x: s.layer(x, 0.5 * x, tgt_mask=mask), layer=layer).to(D).eval()
    x = torch.randn(1, 3, 4, dtype=D)
    ball = lipcert.Ball(x[0], 1e-3)
    assert lipcert.bound(model, x, "liplt", domain=ball).value >= steepest(model, ball, 2.0, 0)


def test_constant_keys_and_values_have_a_constant_everywhere() -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(6, 8, dtype=D), torch.randn(6, 8, dtype=D)
    by_hand = Apply(lambda _, q: torch.softmax(q @ keys.T / 8**0.5, -1) @ values).eval()

    def fused(_: nn.Module, q: Tensor) -> Tensor:
        parts = q[:, None, None], keys[None, None], values[None, None]
        return functional.scaled_dot_product_attention(*parts)[:, 0, 0]

    bounds = [lipcert.bound(m, torch.zeros(1, 8, dtype=D), "liplt").value for m in (by_hand, Apply(fused).eval())]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    points = torch.randn(200, 8, dtype=D)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: by_hand(z[None])[0]))(points)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= bounds[0]


def test_masks_are_left_out_exactly() -> None:
    """Entries at −∞ are none of the row, whichever way the mask is written; so are rows of which all is left out."""
    x = torch.randn(1, 3, 4, dtype=D)
    hidden = torch.tensor([[False, True, True], [True, True, True], [False, False, True]])
    additive = torch.zeros(3, 3, dtype=D).masked_fill(hidden, -math.inf)
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda z: functional.scaled_dot_product_attention(z, z, z, attn_mask=~hidden),
        lambda z: functional.scaled_dot_product_attention(z, z, z, attn_mask=additive),
    ]
    networks = [capture(Apply(lambda _, z, way=way: way(z)).eval(), x) for way in ways]
    for found, way in zip(networks, ways, strict=True):
        node = next(n for n in found.nodes if isinstance(n, GainNode))
        assert isinstance(node.function, MaskedSoftmax)
        assert torch.equal(node.function.kept, (~hidden).to(D).expand(1, 3, 3))
        assert torch.allclose(found.forward(x[None])[0], way(x), atol=1e-12)
    model = Apply(lambda _, z: (z @ z.transpose(1, 2)).masked_fill(hidden, -math.inf).softmax(-1)).eval()
    with pytest.raises(UnsupportedOpError, match="all entries of a row"):
        lipcert.bound(model, x, domain=lipcert.Ball(x[0], 0.1))


@pytest.mark.slow
def test_a_program_in_elementary_operations() -> None:
    """PyTorch's own decomposition of fused attention, with its test for rows of −∞."""
    model, x = Attention("causal", 2).to(D).eval(), torch.randn(1, 3, 4, dtype=D)
    program = torch.export.export(model, (x,)).run_decompositions()
    ball = lipcert.Ball(x[0], 0.01)
    values = [lipcert.bound(m, x, "liplt", domain=ball).value for m in (model, program)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_one_token_and_its_certificate() -> None:
    """One token attends to itself: the value as it is."""
    model = Apply(lambda _, x: functional.scaled_dot_product_attention(x, 3.0 * x, 2.0 * x)).eval()
    x = torch.randn(1, 1, 4, dtype=D)
    assert lipcert.bound(model, x, domain=lipcert.Ball(x[0], 1.0)).value == pytest.approx(2.0, rel=1e-9)


def test_errors_say_what_and_where() -> None:
    x = torch.randn(1, 3, 4, dtype=D)
    ball = lipcert.Ball(x[0], 0.1)
    fused = functional.scaled_dot_product_attention
    with pytest.raises(NotLipschitzError, match="Give a domain"):
        lipcert.bound(Apply(lambda _, z: fused(z, z, z)).eval(), x)
    moving = Apply(lambda _, z: fused(z, z, z, attn_mask=(z.sum(-1) > 0)[:, None].expand(-1, 3, 3))).eval()
    with pytest.raises(NotLipschitzError, match=r"comparison|depends on the input"):
        lipcert.bound(moving, x, domain=ball)
    with pytest.raises(TrainModeError, match="at random"):
        lipcert.bound(Apply(lambda _, z: fused(z, z, z, dropout_p=0.5)).eval(), x, domain=ball)
    with pytest.raises(lipcert.LipcertError, match="does not run"):
        lipcert.bound(Apply(lambda _, z: z.reshape(1, 3, 3, -1)).eval(), x, domain=ball)
    model = Apply(lambda _, z: z.masked_fill(torch.tensor([True, False, False, False]), -math.inf)).eval()
    with pytest.raises(NotLipschitzError, match="follows at once"):
        lipcert.bound(model, x, domain=ball)


def test_a_domain_with_a_constant_token() -> None:
    """With an ε the bound is 1/√ε, which is attained; without one the error names the token."""
    x = torch.randn(1, 3, 4, dtype=D)
    x[0, 1] = 2.0
    ball = lipcert.Ball(x[0], 0.01)
    value = lipcert.bound(nn.LayerNorm(4, eps=1e-4).to(D).eval(), x, "autolip", domain=ball).value
    assert value == pytest.approx(100.0, rel=1e-9)
    example = torch.randn(1, 3, 4, dtype=D)
    with pytest.raises(
        NotLipschitzError, match=r"1 of 3 groups may be constant, the first of them entries \[0, 1, 0\]"
    ):
        lipcert.bound(nn.LayerNorm(4, eps=0.0).to(D).eval(), example, domain=ball)
    away = lipcert.Ball(example[0], 0.01)
    bound = lipcert.bound(nn.LayerNorm(4, eps=0.0).to(D).eval(), example, "autolip", domain=away)
    assert bound.value >= steepest(nn.LayerNorm(4, eps=0.0).to(D), away, 2.0, 0)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(16), lambda: nn.RMSNorm(16), lambda: nn.GroupNorm(2, 16)])
def test_a_normalisation_after_a_map_that_stays_away(make: Callable[[], nn.Module]) -> None:
    """The image of 3 numbers in 16 entries keeps its distance from constants: no 1/√ε."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 16)
    model = nn.Sequential(linear, make(), nn.Tanh(), nn.Linear(16, 2)).to(D).eval()
    bound = lipcert.bound(model, torch.zeros(1, 3, dtype=D), "autolip")
    assert bound.value < 30.0
    points = torch.cat([torch.randn(100, 3, dtype=D) * s for s in (0.1, 1.0, 10.0)])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(points)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= bound.value
    with torch.no_grad():  # now the image holds a constant
        linear.bias.copy_(1.0 + linear.weight @ torch.ones(3, dtype=D))
    if not isinstance(model[1], nn.RMSNorm):
        assert lipcert.bound(model, torch.zeros(1, 3, dtype=D), "autolip").value > 100.0
    with torch.no_grad():  # and now it holds one far away, by a column of which little is left in floats
        linear.weight[:, 0] = 1e-308 * linear.bias
        linear.bias.copy_(torch.randn(16, dtype=D))
        linear.weight[:, 0] = 1e-308 * linear.bias
    assert lipcert.bound(model, torch.zeros(1, 3, dtype=D), "autolip").value > 100.0


@pytest.mark.slow
def test_margins_of_a_transformer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
    model = Apply(lambda s, x: s.last(s.layer(x).mean(1)), layer=layer, last=nn.Linear(8, 3)).to(D).eval()
    x = torch.randn(1, 4, 8, dtype=D)
    label = model(x).argmax(1)
    assert "certified" in str(lipcert.certify(model, x, label, radius=1e-3))
    outputs = lipcert.output_bounds(model, x, domain=lipcert.Ball(x[0], 0.01))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(4, 8, generator=generator, dtype=D)
        y = model(x + 0.01 * step / step.norm())[0]
        assert bool((outputs.lower <= y + 1e-12).all() & (y - 1e-12 <= outputs.upper).all())


def test_products_have_no_constant_everywhere_but_a_value() -> None:
    found = capture(Apply(lambda _, x: torch.einsum("bi,bj->bij", x, x)).eval(), torch.zeros(1, 3, dtype=D))
    assert [type(n) for n in found.nodes if isinstance(n, OpenNode)] == [OpenNode]
    x = torch.randn(2, 1, 3, dtype=D)
    assert torch.equal(found.forward(x)[:, 0], x[:, 0, :, None] * x[:, 0, None])
