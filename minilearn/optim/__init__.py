"""Optimizers, and how the learner builds one and sets its hyperparameters."""

from .groups import Group, build_opt, groups_of, set_lr

__all__ = ["Group", "build_opt", "groups_of", "set_lr"]
