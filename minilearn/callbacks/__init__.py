"""The callbacks that come with minilearn, one file per family."""

from .at_end import AtEnd
from .averaging import EMACB, SWACB, BaseAveragingCB, NormStatisticsCB
from .batch_size import BatchSizeCB
from .checkpoint import CheckpointCB
from .closure import ClosureCB
from .csv_logger import CSVLoggerCB
from .detection import DetectionCB
from .device import DeviceCB
from .distributed import DistributedCB
from .gradients import GradientAccumulationCB, GradientClippingCB
from .graph import CUDAGraphCB
from .hooks import HooksCB, StoreModuleStatsCB
from .hyperparameters import ScheduleCB
from .layout import ChannelsLastCB, CompileCB
from .loggers import TensorBoardCB
from .lr_finder import LRFinderCB
from .measures import InValidation
from .metrics import MetricsCB
from .mixing import CutMixCB, MixupCB, TestTimeFlipCB
from .momentum import MomentumCB
from .monitor import Monitor
from .precision import MixedPrecisionCB
from .predictions import PredictionsCB
from .profile import ProfileCB
from .progress import ProgressCB
from .recorder import RecorderCB, g
from .scheduler import BaseSchedulerCB, BatchSchedulerCB, EpochSchedulerCB
from .sharpness import SAMCB
from .stop import EarlyStoppingCB, SingleBatchCB, TerminateOnNaNCB
from .switches import SwitchPointsCB
from .throughput import ThroughputCB
from .time_limit import TimeLimitCB
from .trackers import MLflowCB, WandbCB
from .transformers import TransformersCB
from .unfreezing import GradualUnfreezeCB

__all__ = [
    "EMACB",
    "SAMCB",
    "SWACB",
    "AtEnd",
    "BaseAveragingCB",
    "BaseSchedulerCB",
    "BatchSchedulerCB",
    "BatchSizeCB",
    "CSVLoggerCB",
    "CUDAGraphCB",
    "ChannelsLastCB",
    "CheckpointCB",
    "ClosureCB",
    "CompileCB",
    "CutMixCB",
    "DetectionCB",
    "DeviceCB",
    "DistributedCB",
    "EarlyStoppingCB",
    "EpochSchedulerCB",
    "GradientAccumulationCB",
    "GradientClippingCB",
    "GradualUnfreezeCB",
    "HooksCB",
    "InValidation",
    "LRFinderCB",
    "MLflowCB",
    "MetricsCB",
    "MixedPrecisionCB",
    "MixupCB",
    "MomentumCB",
    "Monitor",
    "NormStatisticsCB",
    "PredictionsCB",
    "ProfileCB",
    "ProgressCB",
    "RecorderCB",
    "ScheduleCB",
    "SingleBatchCB",
    "StoreModuleStatsCB",
    "SwitchPointsCB",
    "TensorBoardCB",
    "TerminateOnNaNCB",
    "TestTimeFlipCB",
    "ThroughputCB",
    "TimeLimitCB",
    "TransformersCB",
    "WandbCB",
    "g",
]
