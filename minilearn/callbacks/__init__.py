"""The callbacks that come with minilearn, one file per family."""

from .device import DeviceCB
from .lr_finder import LRFinderCB
from .metrics import MetricsCB
from .momentum import MomentumCB
from .monitor import Monitor
from .predictions import PredictionsCB
from .progress import ProgressCB
from .recorder import RecorderCB, g
from .scheduler import BaseSchedulerCB, BatchSchedulerCB, EpochSchedulerCB
from .stop import SingleBatchCB, TerminateOnNaNCB

__all__ = [
    "BaseSchedulerCB",
    "BatchSchedulerCB",
    "DeviceCB",
    "EpochSchedulerCB",
    "LRFinderCB",
    "MetricsCB",
    "MomentumCB",
    "Monitor",
    "PredictionsCB",
    "ProgressCB",
    "RecorderCB",
    "SingleBatchCB",
    "TerminateOnNaNCB",
    "g",
]
