"""What goes to another process, as Ray sends it, arrives as the same network: closures, ops and all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.network.graph import Network
from lipcert.network.transform import expand, fuse
from lipcert.robustness.cascade import Batch
from lipcert.robustness.rows import Decision
from tests.robustness.cases import points, right_labels
from tests.zoo import ZOO, random_network, zoo_case

NAMES = [name for name, _, _ in ZOO]


def captured(name: str) -> Network:
    case = random_network(int(name)) if name.isdigit() else zoo_case(name)
    return capture(case.model, case.example)


def image(network: Network) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return network.forward(torch.randn(2, *network.in_shape, generator=generator, dtype=torch.float64))


def same(network: Network) -> None:
    again = cloudpickle.loads(cloudpickle.dumps(network))
    assert again.fingerprint == network.fingerprint
    assert torch.equal(image(again), image(network))


@pytest.mark.few(7)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_zoo(name: str) -> None:
    """Also as searches and checks rewrite it, with the transposed maps."""
    network = captured(name)
    for one in (network, fuse(network), expand(network)):
        same(one)


@pytest.mark.few(5)
@pytest.mark.parametrize("seed", range(100))
def test_generated_networks(seed: int) -> None:
    same(captured(str(seed)))


def test_in_another_process(tmp_path: Path) -> None:
    """A fresh interpreter that has only the package makes the same network of the bytes."""
    names = ["small cnn", "max-min 4-6-6-3", "gates", "concatenation"]
    networks = [captured(name) for name in names]
    (tmp_path / "networks").write_bytes(cloudpickle.dumps(networks))
    script = (
        "import pathlib, pickle, sys, torch\n"
        "for network in pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()):\n"
        "    x = torch.randn(2, *network.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)\n"
        "    print(network.fingerprint, network.forward(x).double().sum().item().hex())\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "networks")]
    said = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert said == [f"{network.fingerprint} {image(network).sum().item().hex()}" for network in networks]


class Sends:
    """An engine whose decider, batches and decisions are bytes on the way."""

    def run(self, decider: Any, batches: Iterable[Batch]) -> Iterator[Decision]:
        there = cloudpickle.loads(cloudpickle.dumps(decider))
        for batch in batches:
            for decision in there.decide(cloudpickle.loads(cloudpickle.dumps(batch))):
                yield cloudpickle.loads(cloudpickle.dumps(decision))


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_a_decider_that_was_sent_decides_the_same(arithmetic: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding="same"), nn.ReLU(), nn.Flatten(),
        nn.Linear(18, 4),
    ).eval()  # fmt: skip
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel(), 2) ** 0.5)
    x = points(4, 0, (1, 6, 6))
    y = right_labels(model, x)
    said = [
        lipcert.certify(model, x, y, radius=0.05, effort=0.1, engine=engine, arithmetic=arithmetic)
        for engine in ("local", Sends())
    ]
    key = [[(r.status, r.certified_radius, r.attacked_radius, r.margin, r.method) for r in rows] for rows in said]
    assert key[0] == key[1]
