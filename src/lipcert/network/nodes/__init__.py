"""The kinds of node of a network, one file each."""

from lipcert.network.nodes.activation import ActivationNode
from lipcert.network.nodes.affine import AffineNode
from lipcert.network.nodes.base import Node
from lipcert.network.nodes.block import GainNode
from lipcert.network.nodes.head import HeadNode
from lipcert.network.nodes.input import InputNode
from lipcert.network.nodes.open import OpenNode
from lipcert.network.nodes.part import PartNode
from lipcert.network.nodes.selection import SelectionNode

__all__ = [
    "ActivationNode", "AffineNode", "GainNode", "HeadNode", "InputNode", "Node", "OpenNode", "PartNode",
    "SelectionNode",
]  # fmt: skip
