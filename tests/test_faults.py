"""Event x fault: the error comes out as it is, nothing is left behind, and the run can be resumed."""

import errno
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
from copy import deepcopy
from functools import lru_cache, partial
from io import StringIO

import pytest
import torch
from rich.console import Console
from toolbox import names_in, untimed_rows
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    DeviceCB,
    EarlyStoppingCB,
    Learner,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
    StoreModuleStatsCB,
    TensorLoader,
    TerminateOnNaNCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture_weights, checkpoints_in, read
from minilearn.events import STEPS, events
from minilearn.files import written_whole
from minilearn.schedules import cosine

pytestmark = pytest.mark.slow

FAULTS = (ValueError, KeyboardInterrupt, SystemExit, torch.OutOfMemoryError, MemoryError)
FIRST, MIDDLE, LAST = -1000, 70, CheckpointCB.order
ONLY_IN_TRAINING = {
    *("before_train", "after_train", "cleanup_train", "backward", "after_backward"),
    *("before_step", "step", "after_step", "cleanup_step", "zero_grad"),
}
IN_BATCH = {"before_batch", "predict", "after_predict", "get_loss", "after_loss", "after_batch"}
IN_BATCH |= {"cleanup_batch", "at_rest"}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
SEED = 3


class AutocastCB(Callback):
    order = FIRST - 1  # a batch that an earlier one ends in before_batch has nothing to leave

    def __init__(self):
        self.casts = []

    def state_dict(self):
        return {}

    def before_batch(self, learn):
        self.casts.append(torch.autocast("cpu", torch.bfloat16))
        self.casts[-1].__enter__()

    def cleanup_batch(self, learn):
        self.casts.pop().__exit__(None, None, None)


class Fault(Callback):
    """Raise an error, once, at the event that a subclass has, and do a step where that is one."""

    def state_dict(self):
        return {}

    def set(self, error, epoch=None, phase=None):
        self.error, self.epoch, self.phase = error, epoch, phase

    def _run(self, learn, event):
        is_there = self.epoch in (None, learn.epoch) and self.phase in (None, learn.phase)
        if self.error is not None and is_there:
            error, self.error = self.error, None
            raise error
        if event in STEPS:
            getattr(Learner, event)(learn)


def fault_cb(event, order=MIDDLE):
    def hook(self, learn):
        self._run(learn, event)

    cb = type("FaultCB", (Fault,), {event: hook, "order": order})()
    cb.set(None)
    return cb


def new_model():
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        nn.Dropout(0.2),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.Linear(4, 2),
    )
    model[1].eval()
    return model


@pytest.fixture
def make(make_learner, tmp_path):
    """Make a learner with all callbacks at once; its checkpoints go to tmp_path / "run"."""

    def made(*cbs, lr_cb=None, new_model=new_model, **kwargs):
        set_seed(SEED)
        given = [
            *(DeviceCB("cpu"), MetricsCB(), RecorderCB(), StoreModuleStatsCB(), AutocastCB()),
            *(lr_cb or BatchSchedulerCB(OneCycleLR), EarlyStoppingCB()),
            ProgressCB(console=Console(file=StringIO(), force_terminal=True)),
            CheckpointCB(tmp_path / "run", every_steps=1, monitor="loss", keep=3),
        ]
        kwargs = {"n_batches": 2, "n_valid": 2, "loss_func": nn.CrossEntropyLoss()} | kwargs
        return make_learner(
            model=new_model(), cbs=[*given, *cbs], opt_func=partial(SGD, momentum=0.9), **kwargs
        )

    return made


def end_of(learn):
    recorder = next(cb for cb in learn.cbs if isinstance(cb, RecorderCB))
    rows = untimed_rows(learn)
    return {"weights": capture_weights(learn), "recs": recorder.recs, "rows": rows}


straight_ends = {}  # of the runs that many tests compare with


@pytest.fixture
def check_resumed(make, tmp_path):
    """Check that a new learner continues from the folder to the end of a run without a fault."""

    def check(*cbs, **kwargs):
        learn = make(*cbs, **kwargs)
        learn.fit(2, resume=True)
        key = () if kwargs else (any(hasattr(cb, "get_loss") for cb in cbs),)  # then nothing is inferred
        if key not in straight_ends:
            shutil.rmtree(tmp_path / "run")
            straight = make(*cbs, **kwargs)
            straight.fit(2)
            end = end_of(straight)
            if not key:
                assert first_difference(end, end_of(learn)) == ""
                return
            straight_ends[key] = deepcopy(end)
        assert first_difference(straight_ends[key], end_of(learn)) == ""

    return check


def found_in(learn):
    """Return what a fit changes for its own time, and has to put back."""
    groups = learn.opt.param_groups if learn.opt is not None else [{"lr": 0.1, "momentum": 0.9}]
    return {
        "cbs": [id(cb) for cb in learn.cbs],
        "modes": [m.training for m in learn.model.modules()],
        "handlers": [signal.getsignal(number) for number in HANDLED],
        "groups": [(group["lr"], group["momentum"]) for group in groups],
    }


@lru_cache
def read_once(path, mtime_ns):
    read(path)


def check_clean(learn, before):
    assert found_in(learn) == before
    assert [m for m in learn.model.modules() if m._forward_hooks] == []
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert (learn.scopes, learn.is_fitting) == ([], False)
    assert (learn.stop_signal, learn.purpose) == (None, None)
    assert learn.stop.is_fetching is False
    assert (learn.training, learn.dl, learn.modes.found) == (False, None, {})
    for cb in learn.cbs:
        if isinstance(cb, ProgressCB):
            assert cb._view is None
            assert cb.console._live_stack == []
        if isinstance(cb, MetricsCB):
            assert cb._outer == []
        if isinstance(cb, CheckpointCB) and cb.folder.is_dir():
            assert [name for name in names_in(cb.folder) if not name.endswith(".pt")] == []
            for path in cb.folder.glob("*.pt"):
                read_once(path, path.stat().st_mtime_ns)


def fails(learn, error, n_epochs=2, **kwargs):
    """Fit, check that this very error, or one of this class, comes out and nothing is left; return it."""
    before = found_in(learn)
    with pytest.raises(error if isinstance(error, type) else type(error)) as e:
        learn.fit(n_epochs, **kwargs)
    assert isinstance(error, type) or e.value is error
    check_clean(learn, before)
    return e.value


# At an event, raised by a callback ----------------------------------------------------------------------

PLACES = []
for _event in events():
    if _event in ONLY_IN_TRAINING:
        PLACES.append((_event, "train"))
    elif _event in IN_BATCH:
        PLACES += [(_event, "train"), (_event, "eval")]
    else:
        PLACES.append((_event, None))

OF_THE_FIT = {"before_fit", "after_fit", "cleanup_fit"}  # these have no epoch to be chosen
WITH_ORDERS = [
    pytest.param(
        event, phase, order, marks=pytest.mark.full if order == MIDDLE and event not in STEPS else ()
    )
    for event, phase in PLACES
    for order in ([MIDDLE] if event in STEPS else [FIRST, MIDDLE, LAST])
]


def test_table_has_each_event():
    assert {event for event, _ in PLACES} == set(events())


@pytest.mark.dealt
@pytest.mark.parametrize(("event", "phase", "order"), WITH_ORDERS)
def test_fault_comes_out_as_it_is_and_leaves_nothing_behind(make, event, phase, order):
    cb = fault_cb(event, order)
    learn = make(cb)
    for i, kind in enumerate(FAULTS if order == MIDDLE else FAULTS[:2]):
        epoch = None if event in OF_THE_FIT else i % 2
        cb.set(kind("the fault"), epoch, phase)
        error = fails(learn, cb.error)
        (note,) = error.__notes__
        where = r"epoch \d of 2" if epoch is None else f"epoch {epoch} of 2"
        assert re.match(f"minilearn: in FaultCB.{event}, {where}", note)
    if order == MIDDLE:
        learn.fit(1)
        check_clean(learn, found_in(learn))


@pytest.mark.dealt
@pytest.mark.parametrize(("event", "phase"), PLACES)
def test_run_goes_on_from_the_folder_bit_for_bit_after_a_fault(make, check_resumed, event, phase):
    cb = fault_cb(event)
    cb.set(MemoryError(), None if event in OF_THE_FIT else 1, phase)
    learn = make(cb)
    fails(learn, MemoryError)
    assert (folder_of(learn) / "best.pt").is_file() == (event != "before_fit")
    check_resumed(fault_cb(event))


@pytest.mark.parametrize("event", ["before_fit", "before_epoch", "after_loss", "after_step"])
def test_fault_of_the_first_step_leaves_a_folder_to_begin_with(make, check_resumed, event):
    cb = fault_cb(event)
    cb.set(ValueError())
    fails(make(cb), ValueError)
    check_resumed(fault_cb(event))


def test_callback_of_one_fit_is_gone_after_its_fault(make):
    learn, cb = make(), fault_cb("after_loss")
    cb.set(ValueError())
    fails(learn, cb.error, cbs=cb)
    assert cb not in learn.cbs


def test_schedule_of_functions_is_undone_by_a_fault(make):
    cb = fault_cb("after_step")
    learn = make(cb, lr_cb=ScheduleCB("lr", cosine))
    cb.set(ValueError(), epoch=1)
    fails(learn, cb.error)


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_validate"])
def test_fault_in_a_validation_inside_of_training_leaves_nothing_behind(make, at, event):
    cb = fault_cb(event)
    learn = make(cb, at("after_step", lambda learn: learn.n_steps == 3 and learn.validate() and None))
    cb.set(ValueError(), epoch=1, phase="eval")
    fails(learn, cb.error)
    learn.fit(1)


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_fault_in_validate_and_predict_leaves_nothing_behind(make, call):
    cb = fault_cb("after_predict")
    learn = make(cb)
    learn.fit(1)
    before, rows = found_in(learn), list(learn.history)
    cb.set(error := ValueError("x"))
    with pytest.raises(ValueError, match="x") as e:
        getattr(learn, call)(learn.dls.valid)
    assert e.value is error
    check_clean(learn, before)
    assert learn.history == rows


CLEANUPS = ["cleanup_step", "cleanup_batch", "cleanup_train", "cleanup_epoch", "cleanup_fit"]


@pytest.mark.parametrize("order", [FIRST, LAST])
def test_cleanups_that_raise_as_well_are_noted_on_the_first_error(make, order):
    def fail(self, learn):
        if cb.error is None:  # the first one was raised
            raise KeyError("second")

    cb = fault_cb("after_step")
    bad = type("BadCB", (Callback,), {**dict.fromkeys(CLEANUPS, fail), "order": order})()
    learn = make(cb, bad)
    cb.set(ValueError("first"))
    error = fails(learn, cb.error)
    said = [note for note in error.__notes__ if "then" in note]
    assert said == [f"minilearn: then {name} failed too: KeyError('second')" for name in CLEANUPS]


# From elsewhere -----------------------------------------------------------------------------------------


class Model(nn.Sequential):
    """Raise an error in the n-th forward pass, or give a loss that is no number."""

    n = 0  # of the class, so that it is no state of a run

    def __init__(self):
        super().__init__(*new_model())
        self.train()
        self[1].eval()
        self.error = None

    def forward(self, x):
        Model.n -= 1
        if self.error is not None and self.n == 0:
            raise self.error
        return super().forward(x) * (math.nan if self.n == 0 else 1)


@pytest.mark.filterwarnings("ignore:the model has class=:UserWarning")  # the resumed one does not fail
@pytest.mark.parametrize(("n", "phase"), [(1, "train batch 0"), (3, "eval batch 0"), (6, "train batch 1")])
def test_model_out_of_memory_leaves_nothing_behind(make, check_resumed, n, phase):
    learn = make(new_model=Model)
    learn.model.error, Model.n = torch.OutOfMemoryError("out of memory"), n
    error = fails(learn, learn.model.error)
    assert len(error.__notes__) == 1
    assert re.match(rf"minilearn: in Learner\.predict, epoch \d of 2, {phase}, step \d", error.__notes__[0])
    check_resumed()


def folder_of(learn):
    return next(cb.folder for cb in learn.cbs if isinstance(cb, CheckpointCB))


@pytest.mark.parametrize("n", [1, 6])
def test_loss_that_is_no_number_leaves_nothing_behind(make, check_resumed, n):
    learn = make(TerminateOnNaNCB(), new_model=Model)
    Model.n = n
    error = fails(learn, FloatingPointError)
    assert re.search("nan.*epoch", str(error))
    assert all(t.isfinite().all() for t in learn.model.state_dict().values())
    check_resumed(TerminateOnNaNCB(), new_model=Model)


class Samples:
    """Samples of which one cannot be read while a file is there."""

    def __init__(self, flag, bad=None):
        rng = torch.Generator().manual_seed(0)
        self.x, self.flag, self.bad = torch.randn(16, 3, generator=rng), flag, bad

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if i == self.bad and self.flag.exists():
            raise LookupError(f"sample {i} is damaged")
        return self.x[i], int(self.x[i].sum() > 0)


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "flag"


def loaders_of(flag, bad, n_workers, phase="train"):
    parts = {name: Samples(flag, bad if name == phase else None) for name in ("train", "eval")}
    return {
        name: DatasetLoader(samples, bs=8, num_workers=n_workers, seed=1) for name, samples in parts.items()
    }


def end_workers():
    """After an error of theirs torch waits for them for 5 s each, whenever their loader is collected."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    signal.signal(signal.SIGCHLD, handler)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("phase", "n_workers"), [("train", 0), ("eval", 0), ("train", 2)])
def test_sample_that_cannot_be_read_leaves_nothing_behind(
    make, at, flag, tmp_path, check_resumed, phase, n_workers, epoch
):
    if n_workers:
        next(iter(loaders_of(flag, None, 2)["train"]))  # torch sets its handler of SIGCHLD for good
    damage = at("before_epoch", lambda learn: flag.touch() if learn.epoch == epoch else None)
    learn = make(damage, dls=loaders_of(flag, 12, n_workers, phase))
    error = fails(learn, LookupError)
    assert "sample 12 is damaged" in str(error)
    scope = "_train" if phase == "train" else "_validate"
    note = f"minilearn: in Learner.{scope}, epoch {epoch} of 2, after {phase} batch 0, step "
    assert error.__notes__[0].startswith(note)
    end_workers()
    flag.unlink()
    check_resumed(dls=loaders_of(flag, 12, n_workers, phase))


class BrokenLoader(TensorLoader):
    error = None

    def batches(self, start=0):
        for i, batch in enumerate(super().batches(start)):
            if self.error is not None and self.epoch == 1 and i == 1:
                raise self.error
            yield batch


class BrokenOrder(BrokenLoader):
    def batches(self, start=0):
        return TensorLoader.batches(self, start)

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        if self.error is not None and epoch == 1:
            raise self.error


@pytest.mark.parametrize(
    "kind",
    [
        BrokenLoader,
        BrokenOrder,
    ],
)
def test_error_of_the_loader_leaves_nothing_behind(make, check_resumed, kind):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()

    def dls(error=None):
        loaders = DataLoaders(kind(x, y, bs=4, seed=1), TensorLoader(x, y, bs=4, seed=1))
        loaders.train.error = error
        return loaders

    error = LookupError("no disk")
    fails(make(dls=dls(error)), error)
    check_resumed(dls=dls())


# While a checkpoint is written or read ------------------------------------------------------------------


def torch_save_that_fills_the_disk(n):
    """Save the first n files, and of the next one a half."""
    save, left = torch.save, [n]

    def saved(value, file):
        left[0] -= 1
        if left[0] >= 0:
            return save(value, file)
        file.write(b"a half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return saved


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_full_disk_leaves_the_files_that_were_there(make, check_resumed, monkeypatch, n):
    learn = make()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torch_save_that_fills_the_disk(n))
        error = fails(learn, OSError)
    assert error.errno == errno.ENOSPC
    assert str(error).startswith(f"[Errno {errno.ENOSPC}] No space left on device")
    assert str(folder_of(learn)) in str(error)
    assert "minilearn: in CheckpointCB." in error.__notes__[0]
    assert len(names_in(folder_of(learn))) == n if n < 3 else True
    check_resumed()


def test_file_that_may_not_grow_leaves_the_files_that_were_there(make, at, check_resumed):
    def limit(learn):
        if learn.n_steps == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    learn = make(at("after_step", limit))
    try:
        with pytest.raises(OSError, match="File too large") as e:
            learn.fit(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.errno == errno.EFBIG
    names = [path.name for path in checkpoints_in(folder_of(learn))]
    assert names == ["epoch-0000-train-000001.pt", "epoch-0000-train-000002.pt"]
    check_clean(learn, found_in(learn))
    check_resumed()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_error_in_an_except_of_a_missing_file_is_not_taken_for_one_of_the_disk(tmp_path, kind):
    def write():
        try:
            (tmp_path / "missing").read_text()
        except FileNotFoundError:  # where a script may well begin a run
            with written_whole(tmp_path / "a.pt"):
                raise error  # noqa: B904

    error = kind("x")
    with pytest.raises(kind, match="x") as e:
        write()
    assert e.value is error


@pytest.mark.parametrize("n", [2, 3])
def test_error_in_state_dict_while_saving_leaves_the_files_that_were_there(make, check_resumed, n):
    class OddCB(Callback):
        def state_dict(self):
            if is_failing and self.learn.n_steps == n:
                raise error
            return {}

        def before_fit(self, learn):
            self.learn = learn

    error, is_failing = ValueError("no state"), [True]
    learn = make(OddCB())
    fails(learn, error)
    assert "minilearn: in CheckpointCB." in error.__notes__[0]
    is_failing.clear()
    check_resumed(OddCB())


@pytest.mark.parametrize(
    ("n", "phase"),
    [
        (1, "train"),
        (2, "eval"),
        (3, "train"),
    ],
)
def test_error_in_load_state_dict_leaves_the_learner_as_it_was(make, at, check_resumed, n, phase):
    class OddCB(Callback):
        order = LAST
        error = None

        def state_dict(self):
            return {"n": 1}

        def load_state_dict(self, state):
            if OddCB.error is not None:
                raise OddCB.error

    cb = fault_cb("at_rest", LAST)
    cb._run = lambda learn, event: stop_at(learn, n, phase)
    with pytest.raises(StopError):
        make(OddCB(), cb).fit(2)
    OddCB.error = ValueError("cannot load")
    learn = make(OddCB(), fault_cb("at_rest", LAST))
    weights = [t.clone() for t in learn.model.state_dict().values()]
    error = fails(learn, OddCB.error, resume=True)
    assert error.__notes__[0].startswith("minilearn: in _RestoreCB.")
    assert all(map(torch.equal, weights, learn.model.state_dict().values()))
    assert (learn.history, learn.n_epochs_trained, learn.run_id) == ([], 0, None)
    OddCB.error = None
    learn.fit(2, resume=True)
    check_resumed(OddCB(), fault_cb("at_rest", LAST))


class StopError(BaseException):
    pass


def stop_at(learn, n, phase):
    if learn.n_steps == n and learn.phase == phase:
        raise StopError


@pytest.mark.parametrize("event", ["before_fit", "before_epoch", "before_train"])
def test_fault_before_a_resumed_batch_leaves_the_learner_as_it_was(make, check_resumed, event):
    cb = fault_cb("after_validate")
    cb.set(MemoryError(), epoch=1)
    fails(make(cb, fault_cb(event)), MemoryError)
    other = fault_cb(event)
    learn = make(fault_cb("after_validate"), other)
    weights = [t.clone() for t in learn.model.state_dict().values()]
    rows = learn.history
    other.set(ValueError())
    fails(learn, other.error, resume=True)
    assert learn.history is rows  # others may hold it
    assert (learn.history, learn.n_epochs_trained, learn.run_id) == ([], 0, None)
    assert all(map(torch.equal, weights, learn.model.state_dict().values()))
    check_resumed(fault_cb("after_validate"), fault_cb(event))
