"""The networks of the benchmark: how to build each, what is run on it, and the values it is measured against."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import models  # noqa: E402
from mnist import mnist_split, to_rgb32  # noqa: E402

PRODUCT = ("autolip", "liplt")
CHAIN = (*PRODUCT, "eclipse_fast", "lipsdp_layer", "lipsdp")


@dataclass(frozen=True)
class Net:
    """One network and the rows of the table that it gets.

    Attributes:
        name: key of the row, what ``--only`` matches.
        title: for the table.
        build: makes the model, in eval mode.
        shape: shape of one example.
        methods: rows: names of lipcert's methods, peers, or ``attack``.
        group: ``quick``, ``normal`` (the default adds these), ``slow`` (only with ``--slow``) or ``alexnet``.
        reference: LipSDP-Neuron optimum (lower end of an interval) by an independent interior point, or None.
        budget: seconds that lipcert's anytime methods may use.
        limit: wall seconds for one row before its process is stopped.
        data: images that the attack may start from.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    methods: tuple[str, ...]
    group: str = "normal"
    reference: float | None = None
    budget: float = 60.0
    limit: float = 300.0
    data: Callable[[], Tensor] | None = None


def _mnist() -> Tensor:
    return mnist_split()[2][:200]


def _recipe(layers: int, width: int, reference: float | None, group: str, *extra: str, limit: float = 300.0) -> Net:
    eclipse = "eclipse-nn ECLipsE" if layers * width <= 200 else "slow eclipse-nn ECLipsE"
    return Net(
        name=f"recipe-{layers}x{width}",
        title=f"ECLipsE recipe, L = {layers}, width {width}",
        build=partial(models.eclipse_recipe, layers, width),
        shape=(4,),
        methods=("attack", *CHAIN, *extra, "eclipse-nn Fast", eclipse),
        group=group,
        reference=reference,
        limit=limit,
    )


def _trained(name: str, title: str, methods: tuple[str, ...], group: str = "normal", **more: object) -> Net:
    builder = {"lenet5": models.load_lenet5, "paper_cnn": models.load_paper_cnn}.get(name) or partial(models.load, name)
    options: dict = {"shape": (1, 28, 28), "data": _mnist, **more}
    return Net(name=name, title=title, build=builder, methods=("attack", *methods), group=group, **options)


SOLVERS = ("cvxpy CLARABEL", "cvxpy SCS")
MLP = (*CHAIN, "lipsdp_ipm", "eclipse-nn Fast")

NETS: tuple[Net, ...] = (
    _recipe(2, 20, 0.3839808046, "quick", "lipsdp_ipm", *SOLVERS),
    _recipe(2, 80, 0.1587430659, "quick", "lipsdp_ipm", *SOLVERS),
    _recipe(5, 20, None, "quick", "lipsdp_ipm", *SOLVERS),
    _recipe(5, 40, 0.0178039737, "quick", "lipsdp_ipm", "slow cvxpy CLARABEL", "slow cvxpy SCS", limit=600.0),
    _recipe(5, 80, 0.0779153841, "normal", "lipsdp_ipm"),
    _recipe(10, 60, 0.006984286, "normal", "lipsdp_ipm"),
    _recipe(20, 40, 0.0054055987, "normal", "lipsdp_ipm"),
    _recipe(20, 80, 0.000141984, "normal", "slow lipsdp_ipm", limit=600.0),
    _recipe(50, 80, None, "normal"),
    _recipe(50, 200, None, "normal"),
    _trained("mlp_128x2", "MNIST MLP 784-128-128-10", MLP, "quick"),
    _trained("mlp_256x3", "MNIST MLP 784-256-256-256-10", MLP, budget=500.0, limit=600.0),
    _trained("residual_mlp", "residual MLP, 18 layers, width 64", (*PRODUCT, "lipsdp_layer", "lipsdp"), "quick"),
    _trained("lenet5", "LeNet-5 with max-pool", (*PRODUCT, "lipsdp")),
    _trained("paper_cnn", "MNIST CNN of Scaman & Virmaux", (*PRODUCT, "lipsdp"), budget=75.0),
    _trained("residual_cnn", "residual CNN with max-pool, 18 layers", (*PRODUCT, "lipsdp"), budget=240.0, limit=600.0),
    _trained(
        "resnet",
        "ResNet, BN, strides, 32×32×3",
        (*PRODUCT, "lipsdp"),
        budget=240.0,
        limit=600.0,
        shape=(3, 32, 32),
        data=lambda: to_rgb32(_mnist()),
    ),
    Net(
        "alexnet",
        "AlexNet 224×224, random weights",
        models.alexnet,
        (3, 224, 224),
        ("autolip", "lipsdp"),
        "alexnet",
        budget=400.0,
        limit=1800.0,
    ),
)


def rows(*, quick: bool, slow: bool, alexnet: bool, only: str | None) -> list[tuple[Net, str]]:
    """(network, method) pairs in the order they run."""
    groups = {"quick"} if quick else {"quick", "normal"}
    groups |= {"alexnet"} if alexnet else set()
    chosen = []
    for net in NETS:
        if only is not None and only not in net.name:
            continue
        if only is None and net.group not in groups:
            continue
        for method in net.methods:
            if not method.startswith("slow "):
                chosen.append((net, method))
            elif slow:
                chosen.append((net, method.removeprefix("slow ")))
    return chosen


def find(name: str) -> Net:
    """The network of that name."""
    return next(net for net in NETS if net.name == name)


def example(net: Net) -> Tensor:
    """One example input with batch dimension, in the model's dtype."""
    dtype = next(net.build().parameters()).dtype
    return torch.rand(1, *net.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
