"""Lower bounds: a search for steep points, and the trusted evaluation of what it finds."""

from lipcert.attack.search import attack
from lipcert.attack.witness import evaluate

__all__ = ["attack", "evaluate"]
