"""Training with Lipschitz constants: penalties and losses that follow a model, and changes that lower its constant."""

from lipcert.training.accuracy import AccuracyEstimate, certified_accuracy
from lipcert.training.balance import rebalance_
from lipcert.training.binding import bind
from lipcert.training.change import Change
from lipcert.training.margin_loss import MarginLoss
from lipcert.training.projection import project_
from lipcert.training.regularizer import LipschitzRegularizer

__all__ = [
    "AccuracyEstimate",
    "Change",
    "LipschitzRegularizer",
    "MarginLoss",
    "bind",
    "certified_accuracy",
    "project_",
    "rebalance_",
]
