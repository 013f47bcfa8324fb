"""Blocks and activations as data: hash and repr follow from kind and settings, all of them and nothing else."""

import dataclasses
import hashlib

import pytest
import torch
from cases import GAIN
from common import captured
from slope_cases import INSTANCES

from lipcert.network.graph import GainNode
from lipcert.network.linear import Identity, LinearMap, OpMap, compose
from lipcert.network.nonlinearity import GainFunction
from lipcert.network.radial import Radial
from lipcert.numerics.midrad import Near
from lipcert.ops.context import Unknown
from lipcert.ops.rational import Real, exactly


def fingerprint(fact):
    digest = hashlib.sha256()
    fact.update_hash(digest)
    return digest.hexdigest()


def blocks():
    found = {}
    for case in GAIN:
        for node in captured(case.name)[2].nodes:
            if isinstance(node, GainNode):
                found.setdefault(type(node.function), node.function)
    return found


def other(value):
    """Another setting of the same type; None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, torch.Tensor):
        return torch.where(value.isinf(), 0.0, value + 1)
    if isinstance(value, Real):
        return value + exactly(1)
    if isinstance(value, LinearMap):
        return compose(value, Identity(value.out_shape, 2.0))
    if isinstance(value, tuple):
        return (other(value[0]), *value[1:]) if value else (1,)
    return 1.0


def kinds(parent):
    for kind in parent.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_block_has_a_case():
    ours = {kind for kind in kinds(GainFunction) if kind.__module__.startswith("lipcert.")} - {Unknown, Radial}
    assert ours - set(blocks()) == set()


def test_hash_is_over_every_setting_of_a_block_and_not_its_name():
    for function in blocks().values():
        own = fingerprint(function)
        assert fingerprint(dataclasses.replace(function, name="another", source="elsewhere")) == own
        assert fingerprint(dataclasses.replace(function, gains={2.0: 7.0})) != own
        assert function.settings
        for name, value in function.settings.items():
            assert fingerprint(dataclasses.replace(function, **{name: other(value)})) != own, (function, name)


@pytest.mark.parametrize("function", INSTANCES, ids=lambda f: repr(f)[:60])
def test_hash_is_over_every_setting_of_an_activation_and_not_its_name(function):
    own = fingerprint(function)
    assert fingerprint(dataclasses.replace(function, name="another")) == own
    assert fingerprint(dataclasses.replace(function, lower=function.lower - 1.0)) != own
    for name, value in function.settings.items():
        assert fingerprint(dataclasses.replace(function, **{name: other(value)})) != own, name
        if type(value) is float:
            assert fingerprint(dataclasses.replace(function, **{name: Near(value, 0.25)})) != own, name


def test_moving_a_block_moves_its_tensors_and_maps():
    for function in blocks().values():
        single = function.to(torch.float32, "cpu")
        assert all(p.dtype == torch.float32 for p in single.parameters)
        for value in single.settings.values():
            for leaf in value.leaves() if isinstance(value, LinearMap) else ():
                assert all(c.dtype == torch.float32 for c in getattr(leaf, "constants", ()))


def test_repr_names_kind_and_settings():
    texts = {type(f).__name__: repr(f) for f in blocks().values()}
    assert texts["Softmax"].startswith("Softmax(axis=")
    assert texts["VectorNorm"].startswith("VectorNorm(order=")
    assert "eps=" in texts["LayerNorm"]
    linear = OpMap("times", lambda v, c: v * c, (1, 2), (1, 2), (torch.ones(1),), "", 1.0)
    assert repr(Unknown("x", {}, "", linear)).startswith("Unknown(bounds=")
