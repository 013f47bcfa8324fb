"""Hand-written functions as networks and bounds, for the tests of what is recognised."""

from fractions import Fraction

import torch
from cases import Call

import lipcert
from lipcert.capture.lowering import lower
from lipcert.capture.torch_export import capture
from lipcert.network.graph import ActivationNode, GainNode
from lipcert.problem import Problem

D = torch.float64


def network_of(function, *shape, tensors=()):
    generator = torch.Generator().manual_seed(1)
    network = capture(Call(function, *tensors).eval(), torch.randn(1, *shape, generator=generator, dtype=D))
    return Problem(network).model  # or the error of a network without a constant on the whole space


def bound(function, *shape, tensors=(), norm=(2, 2)):
    """AutoLip's bound of the function, as an exact rational."""
    example = torch.zeros(1, *shape, dtype=D)
    result = lipcert.bound(Call(function, *tensors).eval(), example, norm=norm, method="autolip")
    assert result.guarantee == "rigorous"
    return Fraction(result.value)


def lowered(function, *shape):
    """The network without the comparison with the model, which itself may lose everything to rounding."""
    network = lower(torch.export.export(Call(function).eval(), (torch.zeros(1, *shape, dtype=D),)))
    return Problem(network).model


def steepest(network):
    """The l2 constant of a network of one block, exactly."""
    (function,) = [n.function for n in network.nodes if isinstance(n, (ActivationNode, GainNode))]
    return Fraction(function.gains[2.0] if hasattr(function, "gains") else function.greatest_slope)
