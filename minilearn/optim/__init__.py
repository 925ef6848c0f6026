"""Optimizers, and how the learner builds one and sets its hyperparameters."""

from .adabound import AdaBound
from .adam import Adam
from .base import Optimizer
from .building import build_opt
from .combined import Combined, is_matrix
from .groups import Group, by_layer, groups_of, set_lr
from .momentum_sgd import MomentumSGD
from .rmsprop import RMSProp
from .sgd import SGD
from .sgd_alternate import SGDAlternate
from .swats import SWATS

# Every optimizer that comes with minilearn. All of these go through the tests in tests/optim.
OPTIMIZERS = {cls.__name__: cls for cls in (SGD, MomentumSGD, RMSProp, Adam, SGDAlternate, SWATS, AdaBound)}

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "SWATS",
    "AdaBound",
    "Adam",
    "Combined",
    "Group",
    "MomentumSGD",
    "Optimizer",
    "RMSProp",
    "SGDAlternate",
    "build_opt",
    "by_layer",
    "groups_of",
    "is_matrix",
    "set_lr",
]
