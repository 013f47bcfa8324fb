"""What the increments of a network obey: the one noun that methods and certificates consume."""

from lipcert.increments.graph import Increments
from lipcert.increments.units import ScaledIncrements
from lipcert.network.relations import BlockCell, Cell, EntryCell, Linear, Relation, Start

__all__ = ["BlockCell", "Cell", "EntryCell", "Increments", "Linear", "Relation", "ScaledIncrements", "Start"]
