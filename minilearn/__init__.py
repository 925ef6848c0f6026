"""minilearn: a small, callback-driven training framework for PyTorch."""

from . import optim, schedules
from .callback import Callback, CallbackHost
from .callbacks import (
    BaseSchedulerCB,
    BatchSchedulerCB,
    BatchSizeCB,
    CheckpointCB,
    DeviceCB,
    EarlyStoppingCB,
    EpochSchedulerCB,
    HooksCB,
    LRFinderCB,
    MetricsCB,
    MomentumCB,
    Monitor,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
    SingleBatchCB,
    StoreModuleStatsCB,
    TerminateOnNaNCB,
    g,
)
from .data import DataLoaders, DatasetLoader, TensorLoader, fashion_mnist, mnist, shapes
from .events import (
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidateException,
    cancel_exception,
    with_cbs,
)
from .learner import Learner
from .models import MLP, GeneralReLU, StridedCNN, init_leaky
from .plot import plot_history, plot_images, plot_lines, plot_scheduler
from .seeding import set_seed

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "BaseSchedulerCB",
    "BatchSchedulerCB",
    "BatchSizeCB",
    "Callback",
    "CallbackHost",
    "CancelBatchException",
    "CancelEpochException",
    "CancelException",
    "CancelFitException",
    "CancelStepException",
    "CancelTrainException",
    "CancelValidateException",
    "CheckpointCB",
    "DataLoaders",
    "DatasetLoader",
    "DeviceCB",
    "EarlyStoppingCB",
    "EpochSchedulerCB",
    "GeneralReLU",
    "HooksCB",
    "LRFinderCB",
    "Learner",
    "MetricsCB",
    "MomentumCB",
    "Monitor",
    "ProgressCB",
    "RecorderCB",
    "ScheduleCB",
    "SingleBatchCB",
    "StoreModuleStatsCB",
    "StridedCNN",
    "TensorLoader",
    "TerminateOnNaNCB",
    "cancel_exception",
    "fashion_mnist",
    "g",
    "init_leaky",
    "mnist",
    "optim",
    "plot_history",
    "plot_images",
    "plot_lines",
    "plot_scheduler",
    "schedules",
    "set_seed",
    "shapes",
    "with_cbs",
]
