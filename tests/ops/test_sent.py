"""Every op's network can go to another process: closures of ops name what they call, and hold no op of torch."""

import cloudpickle
import pytest
import torch
from activation_cases import HAND, ROWS
from cases import CASES
from common import captured, points

from lipcert.capture.torch_export import capture


def same(network, x):
    again = cloudpickle.loads(cloudpickle.dumps(network))
    assert again.fingerprint == network.fingerprint
    assert torch.equal(again.forward(x), network.forward(x))
    for one, other in zip(network.nodes, again.nodes, strict=True):
        source = getattr(one, "source", None)
        assert (source and source.names) == (source and other.source.names)


@pytest.mark.few(25)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_ops(name):
    case, _, network = captured(name)
    same(network, points(case, 2))


@pytest.mark.few(15)
@pytest.mark.parametrize("row", [*ROWS, *HAND], ids=lambda row: row.name)
def test_activations(row):
    module = row.make().eval().double().requires_grad_(False)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same(capture(module, x), x[:, None])
