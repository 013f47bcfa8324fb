"""Training with Lipschitz constants: penalties that follow a model."""

from lipcert.training.regularizer import LipschitzRegularizer

__all__ = ["LipschitzRegularizer"]
