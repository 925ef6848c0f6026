"""Fits that are planned in steps: epochs of so many steps, over passes that continue."""

import math
from functools import partial
from itertools import count, islice

import pytest
import torch
from toolbox import (
    NoLength,
    StopCB,
    at,
    dealt,
    every_rest,
    make_learner,
    mentions,
    noisy_learner,
    samples,
    state_of,
    stop,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    BatchSizeCB,
    DataLoaders,
    DatasetLoader,
    EarlyStoppingCB,
    GradientAccumulationCB,
    Learner,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    SingleBatchCB,
    TensorLoader,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in

N, BS = 11, 3  # a pass of 4 batches, the last of 2 samples
X = torch.arange(float(N))[:, None].expand(N, 3).clone()
Y = torch.arange(N) % 2
DATA = TensorDataset(X, Y)


class Endless(IterableDataset):
    """Give samples without an end."""

    def __iter__(self):
        return ((X[i % N], Y[i % N]) for i in count())


class EndlessState:
    """Give batches without an end, and know where it stands."""

    def __init__(self):
        self.i = 0

    def __iter__(self):
        while True:
            self.i += 1
            index = (torch.arange(BS) + (self.i - 1) * BS) % N
            yield X[index], Y[index]

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, state):
        self.i = state["i"]


class State(EndlessState):
    """Give a pass of 4 batches, and know where it stands."""

    def __iter__(self):
        yield from islice(super().__iter__(), 4 - self.i)
        self.i = 0


class FromAny:
    """Give batches without an end, from any one on."""

    def batches(self, start=0):
        return ((X[[i % N, -1]], Y[[i % N, -1]]) for i in count(start))

    def __iter__(self):
        return self.batches()


def growing(epoch, rng):
    """Plan a pass of one batch more than the pass before."""
    return torch.arange(N).split(BS)[: epoch % 4 + 1]


LOADERS = {
    "tensors": lambda: TensorLoader(X, Y, bs=BS, shuffle=True, seed=0),
    "dataset": lambda: DatasetLoader(DATA, BS, shuffle=True, seed=0),
    "dataset, dropped": lambda: DatasetLoader(DATA, BS, shuffle=True, seed=0, drop_last=True),
    "dataset, plan": lambda: DatasetLoader(DATA, plan=lambda e, rng: [b.tolist() for b in growing(e, rng)]),
    "list": lambda: list(zip(X.split(BS), Y.split(BS), strict=True)),
    "torch": lambda: DataLoader(DATA, BS),
    "iterable": lambda: NoLength(TensorLoader(X, Y, bs=BS)),
    "stream": lambda: DataLoader(Endless(), BS),
    "state": State,
    "endless, state": EndlessState,
    "endless, any batch": FromAny,
}
RESUMED = [name for name in LOADERS if name not in ("torch", "iterable", "stream")]


def by_hand(loader, n):
    """Return the samples of the first n batches of passes one after the other."""
    found = []
    for epoch in count():
        for part in (loader, getattr(loader, "sampler", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        for x, _ in loader:
            found.append(x[:, 0].int().tolist())
            if len(found) == n:
                return found


def seen_by(loader, *cbs, **kwargs):
    """Fit; return the samples of each epoch's batches, and the learner."""
    epochs = {}

    def note(learn):
        if learn.training:
            epochs.setdefault(learn.epoch, []).append(learn.xb[:, 0].int().tolist())

    valid = TensorLoader(X, Y, bs=N)
    learn = Learner(
        nn.Linear(3, 2), DataLoaders(loader, valid), F.cross_entropy, cbs=[at("before_batch", note), *cbs]
    )
    learn.fit(**kwargs)
    return list(epochs.values()), learn


# The samples, and the steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("kwargs", "lengths"),
    [
        ({"n_epochs": 4, "epoch_steps": 3}, [3, 3, 3, 3]),
        ({"n_epochs": 2, "epoch_steps": 9}, [9, 9]),
        ({"n_steps": 10, "epoch_steps": 4}, [4, 4, 2]),
        ({"n_steps": 3, "epoch_steps": 5}, [3]),
    ],
)
def test_a_pass_goes_on_from_epoch_to_epoch(name, kwargs, lengths):
    epochs, learn = seen_by(LOADERS[name](), MetricsCB(), **kwargs)
    assert [len(epoch) for epoch in epochs] == lengths == learn.epoch_steps
    assert [batch for epoch in epochs for batch in epoch] == by_hand(LOADERS[name](), sum(lengths))
    assert learn.n_steps == learn.total_steps == sum(lengths)
    rows = [row["train"] for row in learn.history]
    assert rows == ["train", "eval"] * len(lengths)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("tensors", [4, 4, 2]), ("dataset, dropped", [3, 3, 3, 1]), ("list", [4, 4, 2]), ("stream", [10])],
)
def test_without_epoch_steps_an_epoch_is_a_pass(name, lengths):
    epochs, _ = seen_by(LOADERS[name](), n_steps=10)
    assert [len(epoch) for epoch in epochs] == lengths


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_steps_of_several_batches_go_on_too(n):
    epochs, learn = seen_by(LOADERS["tensors"](), GradientAccumulationCB(n), n_epochs=3, epoch_steps=2)
    assert [len(epoch) for epoch in epochs] == [2 * n] * 3
    assert learn.n_steps == 6
    assert [batch for epoch in epochs for batch in epoch] == by_hand(LOADERS["tensors"](), 6 * n)


def test_weights_are_those_of_a_loop_by_hand():
    learn = make_learner(4, bs=3, opt_func=SGD, cbs=[BatchSchedulerCB(OneCycleLR, max_lr=0.5)])
    model = nn.Linear(3, 2)
    model.load_state_dict(learn.model.state_dict())
    opt = SGD(model.parameters(), 0.1)
    schedule = OneCycleLR(opt, 0.5, total_steps=10, cycle_momentum=False)
    x, y = learn.dls.train.tensors
    for i in range(10):
        k = i % 4 * 3
        F.cross_entropy(model(x[k : k + 3]), y[k : k + 3]).backward()
        opt.step()
        opt.zero_grad()
        if i < 9:
            schedule.step()
    learn.fit(n_steps=10, epoch_steps=3)
    for a, b in zip(learn.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_fit_begins_a_pass_of_its_own():
    _, learn = seen_by(LOADERS["tensors"](), n_epochs=2, epoch_steps=3)
    learn.fit(1)
    loader = LOADERS["tensors"]()
    loader.set_epoch(2)
    assert [x[:, 0].int().tolist() for x, _ in loader] == [x[:, 0].int().tolist() for x, _ in learn.dls.train]


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_the_loader_is_the_users_own_during_the_fit_and_after_it(error):
    loader, seen = LOADERS["tensors"](), []

    def look(learn):
        seen.append(learn.dls.train is learn.dl is loader)
        if error is not None:
            raise error

    learn = Learner(nn.Linear(3, 2), DataLoaders(loader), cbs=[at("after_batch", look)], default_cbs=False)
    whole = learn.dls.adapters["train"]
    try:
        learn.fit(2, epoch_steps=3)
    except ZeroDivisionError:
        assert error is not None
    assert all(seen)
    assert learn.dls.adapters["train"] is whole
    learn = Learner(nn.Linear(3, 2), learn.dls, default_cbs=False)
    learn.fit(1)
    assert learn.n_steps == 4


@pytest.mark.parametrize("name", ["tensors", "dataset", "list"])
def test_other_passes_over_the_data_change_nothing(name):
    plain, _ = seen_by(LOADERS[name](), n_epochs=3, epoch_steps=3)

    def look(learn):
        if learn.training and not learn.is_nested and learn.batch_idx == 1:
            learn.validate(learn.dls.train)
            learn.validate()

    epochs = []

    def note(learn):
        if learn.training:
            epochs.append(learn.xb[:, 0].int().tolist())

    valid = TensorLoader(X, Y, bs=N)
    cbs = [at("before_batch", note), at("after_step", look), MetricsCB(), EMACB(0.5)]
    learn = Learner(nn.Linear(3, 2), DataLoaders(LOADERS[name](), valid), F.cross_entropy, cbs=cbs)
    learn.fit(3, epoch_steps=3)
    assert epochs == [batch for epoch in plain for batch in epoch]


@pytest.mark.parametrize("name", ["tensors", "dataset", "dataset, plan", "torch"])
def test_index_says_which_samples_are_in_the_batch(name):
    found, shuffled = [], partial(DataLoader, DATA, BS, shuffle=True)

    def note(learn):
        if learn.training:
            found.append((learn.index.tolist(), learn.xb[:, 0].int().tolist()))

    make = shuffled if name == "torch" else LOADERS[name]
    seen_by(make(), at("after_batch", note), n_epochs=3, epoch_steps=5)
    assert len(found) == 15
    assert all(index == sample for index, sample in found)


# Callbacks that count -----------------------------------------------------------------------------------


def test_swa_and_early_stopping_count_epochs():
    swa = SWACB(start=2)
    learn = make_learner(4, cbs=[swa, MetricsCB()])
    learn.fit(4, epoch_steps=3)
    assert swa.n_averaged == 2
    learn = make_learner(4, lr=0.0, cbs=[EarlyStoppingCB(patience=2), MetricsCB()])
    learn.fit(n_steps=300, epoch_steps=3)
    assert learn.n_steps == 9


def test_progress_counts_epochs_and_batches(capsys):
    learn = make_learner(4, cbs=[ProgressCB(), MetricsCB()])
    learn.fit(n_steps=7, epoch_steps=3)
    said = capsys.readouterr().out
    assert "epoch 0 (1/3)" in said
    assert "epoch 2 (3/3)" in said


def test_schedule_ends_with_the_last_step():
    recorder = RecorderCB()
    learn = make_learner(4, cbs=[BatchSchedulerCB(OneCycleLR), recorder])
    learn.fit(n_steps=10, epoch_steps=3)
    lrs = recorder.recs["lr"]
    assert len(lrs) == 10
    assert lrs[-1] == min(lrs)


# Resuming -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cbs", [(), (GradientAccumulationCB,)])
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_from_each_place_it_is_the_straight_run(tmp_path, name, cbs):
    def make(folder, seed):
        more = [cb(2) for cb in cbs]
        schedule, average = BatchSchedulerCB(OneCycleLR, max_lr=0.5), EMACB(0.9)
        learn = noisy_learner(schedule, average, MetricsCB(), *more, every_rest(folder), seed=seed)
        learn.dls.train = LOADERS[name]()
        return learn

    straight = make(tmp_path / "straight", 1)
    straight.fit(n_steps=7, epoch_steps=3)
    files = checkpoints_in(tmp_path / "straight")
    assert len(files) >= 7
    for path in dealt(files):
        resumed = make(tmp_path / path.stem, 50)
        resumed.fit(n_steps=7, epoch_steps=3, resume=path)
        expected, found = state_of(straight, "CheckpointCB"), state_of(resumed, "CheckpointCB")
        if path == files[-1]:  # nothing is left to read, so a plan is not asked for the last epoch
            expected.pop("loaders"), found.pop("loaders")
        assert first_difference(expected, found) == "", path


def test_a_run_of_other_steps_is_not_resumed(tmp_path):
    learn = make_learner(4, cbs=[every_rest(tmp_path), StopCB(4)])
    stop(learn, epoch_steps=3)
    for kwargs in ({"n_epochs": 2, "epoch_steps": 2}, {"n_epochs": 2}):
        learn = make_learner(4, cbs=[every_rest(tmp_path)])
        with pytest.raises(ValueError, match="steps in its epochs"):
            learn.fit(resume=tmp_path, **kwargs)


def accumulating(n):
    return [GradientAccumulationCB(n)] if n else []


@pytest.mark.parametrize(("there", "here"), [(0, 2), (2, 0), (2, 3)])
def test_a_run_that_accumulates_otherwise_is_not_resumed(tmp_path, there, here):
    def new(n, *cbs):
        return make_learner(4, cbs=[*cbs, every_rest(tmp_path), *accumulating(n)])

    stop(new(there, StopCB(2)), epoch_steps=3)
    with pytest.raises(ValueError, match=mentions("batches, but ... batches; ... accumulated")):
        new(here).fit(2, epoch_steps=3, resume=True)


def test_a_run_by_passes_is_not_resumed_in_as_many_steps(tmp_path):
    cbs = [every_rest(tmp_path), GradientAccumulationCB(3)]  # 2 steps a pass, of 3 batches and of 1
    stop(make_learner(4, cbs=[*cbs, StopCB(2)]))
    with pytest.raises(ValueError, match=mentions("one pass ... 2 times 6 batches")):
        make_learner(4, cbs=cbs).fit(2, epoch_steps=2, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{"epoch_steps": 3}, {"n_steps": 7, "epoch_steps": 3}, {"n_steps": 7}])
@pytest.mark.parametrize("name", ["tensors", "endless, state"])
def test_verify_resume_takes_steps(name, kwargs):
    set_seed(1)
    valid = TensorLoader(*samples(6), bs=2)
    learn = Learner(nn.Linear(3, 2), DataLoaders(LOADERS[name](), valid), F.cross_entropy, cbs=[EMACB(0.9)])
    assert "bit for bit" in learn.verify_resume(**kwargs)


# What cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        ({"n_steps": 0}, ValueError, "n_steps=0"),
        ({"n_steps": True}, ValueError, "n_steps=True"),
        ({"n_steps": 1.5}, ValueError, "n_steps=1.5"),
        ({"n_steps": math.inf}, ValueError, "n_steps=inf"),
        ({"epoch_steps": 0}, ValueError, "epoch_steps=0"),
        ({"epoch_steps": "3"}, ValueError, "epoch_steps='3'"),
        ({"epoch_steps": -1}, ValueError, "epoch_steps=-1"),
        ({"n_epochs": 3, "n_steps": 7}, ValueError, "n_epochs=3 ... n_steps=7 ... epoch_steps"),
        ({"n_steps": 7, "train": False}, ValueError, "train=False ... n_steps=7"),
        ({"epoch_steps": 7, "train": False}, ValueError, "train=False ... epoch_steps=7"),
        (
            {"epoch_steps": 3, "cbs": SingleBatchCB()},
            ValueError,
            "epoch_steps=3 ... SingleBatchCB ... plans 1",
        ),
        ({"epoch_steps": 1, "cbs": SingleBatchCB()}, ValueError, "epoch_steps=1 ... plans 1"),
        (
            {"epoch_steps": 3, "cbs": BatchSizeCB({0: 2})},
            ValueError,
            "epoch_steps=3 ... BatchSizeCB ... plans 8",
        ),
    ],
)
def test_steps_that_cannot_be_are_refused_before_training(kwargs, error, said):
    learn = make_learner(4)
    with pytest.raises(error, match=mentions(said)):
        learn.fit(**kwargs)
    assert learn.n_steps == 0
    learn.fit(1)
    assert learn.n_steps == 4


def test_a_loader_to_train_and_to_validate_on_is_refused():
    learn = make_learner(4)
    learn.dls.valid = learn.dls.train
    with pytest.raises(ValueError, match=mentions("n_steps=6 ... TensorLoader ... dls.train ... validat")):
        learn.fit(n_steps=6, epoch_steps=2)
    assert learn.n_steps == 0
    learn.fit(n_steps=6, epoch_steps=2, valid=False)
    assert learn.n_steps == 6


@pytest.mark.parametrize("n_good", [0, 4])
def test_an_iterable_that_ends_for_good_is_an_error(n_good):
    batches = iter([(X[:2], Y[:2])] * n_good)

    class Once:
        def __iter__(self):
            return batches

    learn = Learner(nn.Linear(3, 2), DataLoaders(Once()), F.cross_entropy, default_cbs=False)
    with pytest.raises(ValueError, match="no batch"):
        learn.fit(3, epoch_steps=3)
