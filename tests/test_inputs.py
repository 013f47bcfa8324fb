"""Models as people have them: several inputs, dicts, chosen outputs, functions, token ids. Expected: Jacobians."""

import dataclasses
import functools
from collections import UserDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert

Pair = namedtuple("Pair", ["logits", "hidden"])


def layer(*shape: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(*shape).double()


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


def value(model: Any, example: Any, **options: Any) -> float:
    return float(lipcert.bound(model, example, method="autolip", **options).value)


class Field(nn.Module):
    """A y + m * (B [sin t, cos t]) for scalar t: linear in y, of slope ‖m * B‖ at most in t."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = layer(3, 3), layer(2, 3, seed=1)

    def forward(self, t: Tensor, y: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Any:
        hidden = self.b(torch.stack([torch.sin(t), torch.cos(t)]).reshape(1, 2))
        out = scale * self.a(y) + (hidden if mask is None else hidden * mask)
        return {"dy": out, "more": [hidden, out[:, :1]]}


class Observer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos, self.vel = layer(2, 4), layer(3, 4, seed=1)

    def forward(self, obs: dict[str, Tensor]) -> tuple[Tensor]:
        return (self.pos(obs["pos"]) + self.vel(obs["vel"]),)


class Tokens(nn.Module):
    """Linear in the embedding, with a mask of the ids that are 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Embedding(7, 2).double()
        self.head = nn.Sequential(nn.Flatten(), layer(8, 3))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids) * (input_ids != 0)[..., None])

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


f, y, t = Field().eval(), torch.zeros(1, 3).double(), torch.tensor(0.3).double()
a, b = f.a.weight, f.b.weight


@pytest.mark.parametrize(
    ("example", "options", "expected"),
    [
        ((t, y), {"output": "dy"}, norm(a)),  # t has no dimensions: fixed
        ((t, y), {"output": "dy", "wrt": "y"}, norm(a)),
        ({"t": t, "y": y, "scale": 2.0}, {"output": "dy", "wrt": ["y"]}, 2 * norm(a)),
        ({"y": y, "t": t}, {"output": 0, "wrt": "y"}, None),  # no output is called 0
        ((t, y), {"output": "more.1", "wrt": "y"}, norm(a[:1])),
        ((t.numpy(), y.numpy()), {"output": "dy"}, norm(a)),
        ((t, y, torch.zeros(1, 3)), {"output": "dy", "wrt": ("y", "t")}, norm(a)),  # the mask takes t away
    ],
)
def test_a_field_of_time_and_state(example: Any, options: Any, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(lipcert.InputError, match=r"returns no such output but dy, more\.0, more\.1"):
            value(f, example, **options)
    else:
        assert value(f, example, **options) == pytest.approx(expected, rel=1e-6)


def test_bounds_hold_in_time_and_state_together() -> None:
    bound = lipcert.bound(f, (t, y), wrt=["y", "t"], output="dy", method="lipsdp")
    assert bound.input_shape == (4,)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 2, 4, generator=generator, dtype=torch.float64)
    for first, second in points:
        change = f(first[3], first[None, :3])["dy"] - f(second[3], second[None, :3])["dy"]
        assert float(change.detach().norm()) <= bound.value * float((first - second).norm())
    assert bound.value <= norm(a) + norm(b)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "example",
    [
        {"pos": torch.zeros(1, 2).double(), "vel": np.zeros((1, 3))},
        {"obs": {"pos": np.zeros((1, 2)), "vel": torch.zeros(1, 3).double()}},
        ({"pos": torch.zeros(4, 2).double(), "vel": torch.zeros(4, 3).double()},),
        UserDict({"pos": np.zeros((1, 2)), "vel": np.zeros((1, 3))}),
    ],
)
def test_a_dict_of_observations(example: Any) -> None:
    model = Observer().eval()
    joint = torch.cat([model.pos.weight, model.vel.weight], dim=1)
    for wrt, expected in ((None, joint), (["vel", "pos"], joint), ("vel", model.vel.weight), ("obs.pos", joint[:, :2])):
        if wrt in (None, ["vel", "pos"]) or not (isinstance(example, tuple)):
            assert value(model, example, wrt=wrt) == pytest.approx(norm(expected), rel=1e-6)
        else:  # four examples, and the other input fixed
            with pytest.raises(lipcert.InputError, match=r"has shape .*, 4 examples.*fixed: give one example"):
                value(model, example, wrt=wrt)


def test_the_order_named_is_the_order_of_domains_and_witnesses() -> None:
    model, example = Observer().eval(), {"pos": torch.zeros(1, 2), "vel": torch.zeros(1, 3)}
    low = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0])
    box = lipcert.Box(low, low + 1)
    bounds = lipcert.output_bounds(model, example, box, wrt=["vel", "pos"], budget=1)
    inside = model({"pos": torch.full((1, 2), 5.5).double(), "vel": torch.full((1, 3), 0.5).double()})[0][0]
    assert bool((bounds.lower <= inside).all())
    assert bool((inside <= bounds.upper).all())
    elsewhere = model({"pos": torch.full((1, 2), 0.5).double(), "vel": torch.full((1, 3), 5.5).double()})[0][0]
    assert not bool(((bounds.lower <= elsewhere) & (elsewhere <= bounds.upper)).all())


def test_token_ids_are_bounded_in_their_embedding() -> None:
    model, ids = Tokens().eval(), torch.tensor([[3, 5, 0, 0]])
    w = model.head[1].weight
    assert value(model, ids, wrt="embed") == pytest.approx(norm(w[:, :4]), rel=1e-6)
    assert value(model, {"input_ids": ids.numpy()}, wrt="inputs_embeds") == pytest.approx(norm(w[:, :4]), rel=1e-6)
    assert "forward" not in vars(model.embed)
    assert not model.embed._forward_hooks
    for example, options in ((ids, {}), ({"input_ids": ids}, {}), (ids, {"wrt": "input_ids"})):
        with pytest.raises(lipcert.InputError, match=r"int64.*embed"):
            value(model, example, **options)


def test_certificates_are_of_the_values_that_were_fixed(tmp_path: Path) -> None:
    model, ids = Tokens().eval(), torch.tensor([[3, 5, 0, 0]])
    found = lipcert.bound(model, ids, method="autolip", wrt="embed")
    found.save(tmp_path / "b.lipcert")
    assert lipcert.verify(tmp_path / "b.lipcert", model, ids, wrt="embed").value == found.value
    with pytest.raises(lipcert.CertificateError, match="another model"):
        lipcert.verify(tmp_path / "b.lipcert", model, torch.tensor([[3, 5, 1, 0]]), wrt="embed")
    lipcert.bound(f, (t, y), method="autolip", wrt="t", output="dy").save(tmp_path / "t.lipcert")
    for other in ((t, y + 1), (t + 1, y)):
        same = other[0] is not t  # where t is the input, its value does not matter
        if same:
            lipcert.verify(tmp_path / "t.lipcert", f, other, wrt="t", output="dy")
            continue
        with pytest.raises(lipcert.CertificateError, match="another model"):
            lipcert.verify(tmp_path / "t.lipcert", f, other, wrt="t", output="dy")


def closure() -> Callable[[Tensor], Tensor]:
    inner = layer(3, 2)
    return lambda x: 2 * inner(x)


@dataclasses.dataclass
class Scaled:
    by: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.by * outer(x)


outer, square = layer(3, 2), layer(3, 3)
W = norm(outer.weight)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 3 * outer(x), 3 * W),
        (closure(), 2 * W),
        (outer.forward, W),
        (functools.partial(torch.nn.functional.linear, weight=outer.weight.detach()), W),
        (functools.partial(lambda k, x: k * outer(x), 4), 4 * W),
        (Scaled(5.0), 5 * W),
        (lambda x: Pair(outer(x), None), W),
        (torch.tanh, 1.0),
    ],
)
def test_functions(function: Callable[..., Any], expected: float) -> None:
    x = torch.zeros(1, 3).double()
    assert value(function, x) == pytest.approx(expected, rel=1e-6)
    assert outer.weight.dtype is torch.float64  # the reference in another precision is a copy


def test_what_a_function_calls_keeps_its_name_and_its_precision() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    rows = lipcert.bound(lambda x: net(x), torch.zeros(1, 3), method="autolip").breakdown
    assert [row.module for row in rows][:2] == ["net.0", "net.1"]
    assert all(p.dtype is torch.float32 for p in net.parameters())
    names = [r.module for r in lipcert.bound(net, (torch.zeros(1, 3),), method="autolip", output=None).breakdown]
    both = lipcert.bound(lambda x: {"a": net(x)}, torch.zeros(1, 3), method="autolip", output="a")
    assert [f"net.{name}" for name in names] == [row.module for row in both.breakdown]


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        (f, (t, y), {}, r"returns 3 outputs \(dy, more.0, more.1\).*output="),
        (
            f,
            (t, y),
            {"output": "dy", "wrt": "z"},
            "wrt='z' is no input .there are t: float64, y: float64. and no submodule",
        ),
        (f, (t, y), {"output": "dy", "wrt": []}, "wrt must be the name"),
        (f, (t, y), {"output": "dy", "wrt": ""}, "wrt='' is no input"),
        (f, (t, y), {"output": "dy", "wrt": ["y", "y"]}, "twice"),
        (f, (t, y, y, y), {"output": "dy"}, "does not run on the arguments given .*takes from 3 to 4 positional"),
        (f, (t.float(), y), {"output": "dy"}, "same dtype.*Fixed inputs are used as they are given"),
        (lambda p: {"a": p, "n": 3}, (y,), {}, r"a dict of Tensor, int; give the name of the tensor as output='a'"),
        (f, (3,), {}, "holds no tensor but int"),
        (Observer(), ({"pos": torch.zeros(1, 2), "vel": torch.zeros(2, 3)},), {}, "differ in their leading batch"),
        (lambda p, q: p["x"] + q["x"], ({"x": y}, {"x": y}), {"wrt": "x"}, "may be p.x or q.x"),
        (nn.Linear, y, {}, "the class Linear: pass an object"),
        (nn.Sequential(square, nn.ReLU(), square), y, {"wrt": "2"}, "calls this submodule 2 times"),
        (lambda x: outer(square(x) + square.forward(2 * x)), y, {"wrt": "square"}, "calls this submodule twice"),
        (lambda x: outer(outer(x)[:, [0, 1, 0]]), y, {"wrt": "outer"}, "calls this submodule 2 times"),
    ],
)
def test_errors_say_what_to_do(model: Any, example: Any, options: Any, message: str) -> None:
    with pytest.raises(lipcert.InputError, match=message):
        value(model, example, **options)


def test_a_product_of_inputs_tells_how_to_fix_one() -> None:
    with pytest.raises(lipcert.NotLipschitzError, match="p, q vary together; wrt='p' fixes the others"):
        value(lambda p, q: p * q, (y + 1, y + 2))
    assert value(lambda p, q: p * q, (y + 1, y + 2), wrt="p") == pytest.approx(2.0)
    assert value(lambda p, q: p * q, (y + 1, y + 2), wrt="q") == pytest.approx(1.0)


@pytest.mark.slow
def test_the_other_questions_take_the_same_arguments() -> None:
    options = {"wrt": "y", "output": "dy"}
    box = lipcert.Box(0.0, 1.0)
    assert lipcert.lower_bound(f, (t, y), budget=0.5, **options).value == pytest.approx(norm(a), rel=1e-3)
    assert lipcert.derivative_signs(f, (t, y), **options).signs.tolist() == torch.sign(a).tolist()
    assert lipcert.one_sided_lipschitz_bound(f, (t, y), budget=1, **options).value <= norm(a) + 1e-6
    least = float(torch.linalg.svdvals(a.detach())[-1])
    assert lipcert.inverse_lipschitz_bound(f, (t, y), budget=1, **options).value == pytest.approx(least, rel=1e-6)
    assert set(lipcert.ranges(f, (t, y), box, **options)) >= {"input", "a"}
    assert lipcert.margin(f, (t, y), 0, box, budget=1, **options).lower.shape == (2,)
    assert lipcert.estimate(f, (t, y), **options).value == pytest.approx(norm(a), rel=1e-3)


@pytest.mark.slow
def test_certify_takes_an_output_and_functions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    inputs = torch.randn(3, 2)
    labels = net(inputs).argmax(1)
    options = {"radius": 1e-3, "budget": 2}
    runs = [
        (net, lipcert.certify(net, inputs, labels, **options)),
        (lambda x: net(x), lipcert.certify(lambda x: net(x), inputs, labels, **options)),
        (
            lambda x: {"s": net(x), "x": x},
            lipcert.certify(lambda x: {"s": net(x), "x": x}, inputs, labels, output="s", **options),
        ),
    ]
    for number, (model, run) in enumerate(runs):
        assert run.certified_accuracy() == 1.0
        run.save(tmp_path / f"{number}.robust")
        output = "s" if number == 2 else None
        lipcert.Certification.load(tmp_path / f"{number}.robust").verify(model, output=output)
    with pytest.raises(lipcert.InputError, match=r"2 outputs \(s, x\)"):
        lipcert.certify(runs[2][0], inputs, labels, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("several", [False, True])
def test_an_output_that_is_changed_in_place_is_changed(several: bool) -> None:
    """What forward does to the submodule's output, which is the input, is a part of the model, also through a view."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = layer(3, 4), layer(4, 2, seed=1)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            h = self.first(x)
            early = h[:, 1:3]
            h.mul_(3.0)
            h[:, 0] = 0.0
            found: Tensor = self.last(h) + early
            return found if y is None else found + y

    model = InPlace().eval()
    matrix = 3.0 * model.last.weight.detach().clone()
    matrix[:, 1:3] += 3.0 * torch.eye(2)
    matrix[:, 0] = 0.0
    x, y = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    whole = torch.cat([matrix, torch.eye(2, dtype=torch.float64)], 1)
    if several:
        assert value(model, (x, y), wrt=["first", "y"]) == pytest.approx(norm(whole), rel=1e-6)
    else:
        assert value(model, x, wrt="first") == pytest.approx(norm(matrix), rel=1e-6)
