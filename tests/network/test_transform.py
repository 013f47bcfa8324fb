"""Networks from networks: fusing, expanding and sorting networks keep the function; maps keep their algebra."""

import itertools
import math
import random

import pytest
import torch

from lipcert.network.builder import NetworkBuilder
from lipcert.network.graph import AffineNode, SelectionNode
from lipcert.network.linear import Composition, Dense, Identity, OpMap, Sum, add, compose
from lipcert.network.moves import gather, scatter
from lipcert.network.nonlinearity import MaxSelection, SortSelection
from lipcert.network.transform import RELU, batcher_stages, expand, fuse, then
from lipcert.ops.softmax import Softmax

N = 4
SHAPE = (1, N)


def dense(generator, rows=N, columns=N):
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return Dense((matrix,), (1, columns), (1, rows), float(N))


def random_network(seed):
    """A random DAG with every kind of node, shared parents, identities, offsets and constants."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    builder = NetworkBuilder()
    variables = [builder.input(SHAPE)]
    for _ in range(choose.randint(2, 14)):
        kind = choose.choice(["affine"] * 5 + ["identity", "relu", "max", "sort", "gain", "constant"])
        x = choose.choice(variables[-4:])
        if kind == "affine":
            parents = choose.choices(variables, k=choose.randint(1, 3))
            terms = [
                (p, choose.choice([dense(generator), Identity(SHAPE, choose.choice([1.0, -1.0, 0.3]))]))
                for p in parents
            ]
            offset = choose.choice(
                [
                    None,
                    torch.randn(N, generator=generator, dtype=torch.float64),
                    torch.ones((), dtype=torch.float64),
                ]
            )
            variables.append(builder.affine(terms, SHAPE, offset))
        elif kind == "identity":
            variables.append(builder.affine([(x, Identity(SHAPE))], SHAPE))
        elif kind == "constant":
            variables.append(builder.affine([], SHAPE, torch.randn(1, N, generator=generator, dtype=torch.float64)))
        elif kind == "relu":
            variables.append(builder.activation(x, RELU))
        elif kind == "max":
            index = torch.randint(0, N, (N, choose.randint(1, 5)), generator=generator)
            variables.append(builder.selection(x, MaxSelection("max", index, SHAPE, SHAPE)))
        elif kind == "sort":
            index = torch.randperm(N, generator=generator).reshape(choose.choice([(1, 4), (2, 2), (4, 1)]))
            variables.append(builder.selection(x, SortSelection("sort", index, SHAPE, choose.random() < 0.5)))
        else:
            function = Softmax("softmax", {2.0: 0.5}, "", -1)
            variables.append(builder.gain(x, function, SHAPE))
    return builder.finish(variables[-1])


@pytest.mark.parametrize("seed", range(120))
def test_transforms_keep_the_function(seed):
    network = random_network(seed)
    x = torch.randn(6, *SHAPE, dtype=torch.float64).round(decimals=1)
    expected = network.forward(x)
    fused, expanded = fuse(network), expand(network)
    for other in (fused, expanded, fuse(expanded), expand(fused)):
        assert torch.allclose(other.forward(x), expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(n, SelectionNode) for n in expanded.nodes)
    assert len(fused.nodes) <= len(network.nodes)
    assert fuse(fused).fingerprint == fused.fingerprint
    for position, node in enumerate(fused.nodes):
        if isinstance(node, AffineNode) and position != len(fused.nodes) - 1:
            readers = fused.consumers[position]
            assert len(readers) != 1 or not isinstance(fused.nodes[readers[0]], AffineNode)
    select = Dense((torch.randn(2, N, dtype=torch.float64),), network.out_shape, (1, 2), float(N))
    assert torch.allclose(then(network, select).forward(x), select.apply(expected))


def test_fuse_repeats_until_nothing_changes():
    """x ↦ A x read by two maps that are added: one map in the end."""
    generator = torch.Generator().manual_seed(0)
    builder = NetworkBuilder()
    x = builder.input(SHAPE)
    a = builder.affine([(x, dense(generator))], SHAPE)
    b, c = (builder.affine([(a, dense(generator))], SHAPE) for _ in range(2))
    d = builder.affine([(b, Identity(SHAPE)), (c, Identity(SHAPE))], SHAPE)
    assert len(fuse(builder.finish(d)).nodes) == 2


@pytest.mark.parametrize("width", range(1, 12))
def test_batcher_sorts_every_zero_one_input(width):
    """The 0–1 principle (Knuth 5.3.4): sorting all 0–1 inputs means sorting everything."""
    rows = torch.tensor(list(itertools.product((0, 1), repeat=width)))
    for stage in batcher_stages(width):
        touched = [i for pair in stage for i in pair]
        assert len(touched) == len(set(touched))
        for i, j in stage:
            low, high = torch.minimum(rows[:, i], rows[:, j]), torch.maximum(rows[:, i], rows[:, j])
            rows = rows.clone()
            rows[:, i], rows[:, j] = low, high
    assert (rows.diff(dim=1) >= 0).all()


def test_gather_and_scatter():
    index = torch.tensor([3, 0, 0])
    chosen = gather(index, (1, 5), (3,), -1.0)
    assert torch.equal(chosen.matrix(), -torch.eye(5, dtype=torch.float64)[index])
    assert chosen.rounding >= 1
    places = torch.tensor([4, 1])
    put = scatter(places, (2,), (1, 5))
    assert torch.equal(put.matrix(), torch.eye(5, dtype=torch.float64)[places].T)


@pytest.mark.parametrize("seed", range(10))
def test_algebra_of_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (dense(generator) for _ in range(3))
    scale = Identity(SHAPE, -0.7)
    mixed = compose(a, scale, add(b, compose(c, scale)))
    matrix = (b.matrix() - 0.7 * c.matrix()) @ (-0.7 * a.matrix())
    assert torch.allclose(mixed.matrix(), matrix)
    y = torch.randn(3, *SHAPE, dtype=torch.float64)
    assert torch.allclose(mixed.transpose(y), y @ matrix)
    assert torch.allclose(mixed.gram(y), y @ matrix.T @ matrix)
    assert (mixed.absolute().matrix() >= matrix.abs() - 1e-14).all()
    assert math.isfinite(mixed.rounding)
    assert isinstance(mixed, Composition)
    assert isinstance(add(a, b, add(c, a)), Sum)
    assert compose(Identity(SHAPE), Identity(SHAPE)).matrix().equal(torch.eye(N, dtype=torch.float64))


def test_materialising_by_rows_and_columns_agrees():
    wide = OpMap("sum", lambda x: x.sum(-1, keepdim=True), (1, 7), (1, 1), (), "", 7.0)
    tall = OpMap("expand", lambda x: x.expand(1, 7) + 0, (1, 1), (1, 7), (), "", 7.0)
    assert torch.equal(wide.matrix(), torch.ones(1, 7, dtype=torch.float64))
    assert torch.equal(tall.matrix(), torch.ones(7, 1, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(20))
def test_overlap_counts_windows_with_repeats_once(seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 6, (5, 4), generator=generator)
    selection = MaxSelection("max", index, (6,), (5,))
    expected = max(sum(i in row for row in index.tolist()) for i in range(6))
    assert selection.overlap == expected
    assert selection.gain(2.0) ** 2 >= expected
    assert selection.gain(1.0) == expected
