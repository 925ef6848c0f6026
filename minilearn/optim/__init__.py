"""Optimizers, and how the learner builds one and sets its hyperparameters."""

from .adam import Adam
from .base import Optimizer
from .groups import Group, build_opt, by_layer, groups_of, set_lr
from .momentum_sgd import MomentumSGD
from .rmsprop import RMSProp
from .sgd import SGD
from .sgd_alternate import SGDAlternate

# Every optimizer that comes with minilearn. What is in here is put through all of tests/optim.
OPTIMIZERS = {cls.__name__: cls for cls in (SGD, MomentumSGD, RMSProp, Adam, SGDAlternate)}

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "Group",
    "MomentumSGD",
    "Optimizer",
    "RMSProp",
    "SGDAlternate",
    "build_opt",
    "by_layer",
    "groups_of",
    "set_lr",
]
