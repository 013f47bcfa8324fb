"""The search's view of the trusted end: lipcert.certificates.lower_witness."""

from lipcert.certificates.lower_witness import evaluate, movable, norm

__all__ = ["evaluate", "movable", "norm"]
