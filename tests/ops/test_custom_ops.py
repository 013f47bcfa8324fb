"""An op of the user's own that is named like one of ATen's is not that op."""

import pytest
import torch
from cases import Call

import lipcert
from lipcert.capture.lowering import op_name
from lipcert.errors import UnsupportedOpError
from lipcert.ops.context import Constant
from lipcert.ops.folding import fold

NAMES = ("relu", "tanh", "view", "linear", "add", "abs")
LIBRARY = torch.library.Library("lipcert_namesakes", "DEF")
X = torch.randn(1, 3, dtype=torch.float64)


def _fifth_power(x: torch.Tensor) -> torch.Tensor:
    return x**5


for _name in NAMES:
    LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    LIBRARY.impl(_name, _fifth_power, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lipcert_namesakes::{_name}", torch.empty_like)
LIBRARY.define("sigmoid(Tensor x) -> Tensor")
LIBRARY.impl("sigmoid", lambda x: 7.0 * x, "CompositeImplicitAutograd")


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_namesake_has_no_rule(name):
    op = getattr(torch.ops.lipcert_namesakes, name)
    with pytest.raises(UnsupportedOpError, match=f"lipcert_namesakes::{name} at .*no rule covers it"):
        lipcert.bound(Call(op).eval(), X, method="autolip")


def test_a_namesake_made_of_known_ops_is_what_it_is_made_of():
    bound = lipcert.bound(Call(torch.ops.lipcert_namesakes.sigmoid).eval(), X, method="autolip")
    assert 7.0 <= bound.value <= 7.0 * (1 + 1e-12)


def test_a_namesake_of_constants_is_not_folded_by_atens_rule():
    """|w| keeps exact numbers exact; w⁵ does not."""
    folded = fold(torch.ops.lipcert_namesakes.abs.default, "lipcert_namesakes::abs", (Constant.exactly(X),), {})
    assert bool(folded.error.isinf().all())
    assert op_name(torch.ops.lipcert_namesakes.abs.default) == ("lipcert_namesakes::abs", "default")
    assert op_name(torch.ops.aten.abs.default)[0] == "abs"
    model = Call(lambda x: x * torch.ops.lipcert_namesakes.abs(torch.tensor(0.1, dtype=x.dtype))).eval()
    assert lipcert.bound(model, X, method="autolip").guarantee == "numerical"
