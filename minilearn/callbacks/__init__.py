"""The callbacks that come with minilearn, one file per family."""

from .batch_size import BatchSizeCB
from .checkpoint import CheckpointCB
from .device import DeviceCB
from .hooks import HooksCB, StoreModuleStatsCB
from .hyperparameters import ScheduleCB
from .lr_finder import LRFinderCB
from .metrics import MetricsCB
from .momentum import MomentumCB
from .monitor import Monitor
from .predictions import PredictionsCB
from .progress import ProgressCB
from .recorder import RecorderCB, g
from .scheduler import BaseSchedulerCB, BatchSchedulerCB, EpochSchedulerCB
from .stop import EarlyStoppingCB, SingleBatchCB, TerminateOnNaNCB

__all__ = [
    "BaseSchedulerCB",
    "BatchSchedulerCB",
    "BatchSizeCB",
    "CheckpointCB",
    "DeviceCB",
    "EarlyStoppingCB",
    "EpochSchedulerCB",
    "HooksCB",
    "LRFinderCB",
    "MetricsCB",
    "MomentumCB",
    "Monitor",
    "PredictionsCB",
    "ProgressCB",
    "RecorderCB",
    "ScheduleCB",
    "SingleBatchCB",
    "StoreModuleStatsCB",
    "TerminateOnNaNCB",
    "g",
]
