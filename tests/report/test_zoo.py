"""Every network of the zoo, everywhere and on a ball, in every norm: a page without gaps in its sums."""

from __future__ import annotations

import math

import pytest
import torch

import lipcert
from lipcert.report import Wanted, gather, page
from tests.report.test_page import Reader
from tests.zoo import ZOO, zoo_case


@pytest.mark.slow
@pytest.mark.parametrize("where", ["everywhere", "ball", "anchored"])
@pytest.mark.parametrize("name", [name for name, _, _ in ZOO])
def test_a_page_of_every_network(name: str, where: str) -> None:
    case = zoo_case(name)
    domain = None if where == "everywhere" else lipcert.Ball(torch.zeros(case.example.shape[1:]), 0.5, p=2)
    p = [2.0, 2.0, 1.0, math.inf][len(name) % 4]
    wanted = Wanted(budget=0.5, lower_budget=0.2, methods=False)
    anchor = "center" if where == "anchored" else None
    found = gather(case.model, case.example, wanted, (p, p), domain, anchor)
    assert not Reader(page(found)).open
    assert found.lower is not None
    table = found.table
    assert table is not None, found.remarks
    assert table.product >= found.lower.value * (1 - 1e-9)
    shares = [layer.share for layer in table.layers if layer.share is not None]
    if shares:
        assert math.fsum(shares) == pytest.approx(1.0)
        assert min(shares) > -1e-6
    if table.form is not None:
        assert table.sdp is not None
        assert found.bound.value <= table.sdp or found.bound.norm != (2, 2)
        assert min(layer.slack for layer in table.layers if layer.slack is not None) > -1e-6
        assert table.form > -1e-6
