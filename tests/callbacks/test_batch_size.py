import multiprocessing
import os
from itertools import chain

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from minilearn import (
    BatchSchedulerCB,
    BatchSizeCB,
    Callback,
    CancelFitException,
    CancelStepException,
    DataLoaders,
    EpochSchedulerCB,
    MetricsCB,
    RecorderCB,
    ScheduleCB,
    SingleBatchCB,
    TensorLoader,
)
from minilearn.schedules import cosine

N = 10
X = torch.arange(float(N))[:, None]  # a sample is its own index, and its target too
ALL = list(range(N))
DATA = TensorDataset(X, X)
# 10 samples in batches of 4, of 2 and of 5: 3, 5 and 2 steps.
SIZES, STEPS = {1: 2, 2: 5}, [3, 5, 2, 2]


class Watch(Callback):
    """Keep which samples each batch of training has: a list of lists for each epoch."""

    def __init__(self):
        self.epochs = []

    def before_train(self, learn):
        self.epochs.append([])

    def after_batch(self, learn):
        if learn.training:
            self.epochs[-1].append([int(i) for i in learn.batch[1]])

    @property
    def sizes(self):
        return [[len(batch) for batch in epoch] for epoch in self.epochs]

    @property
    def orders(self):
        return [list(chain(*epoch)) for epoch in self.epochs]


class EverySecondCB(Callback):
    """Take a step after two batches, and say so; a batch left over at the end of an epoch takes none."""

    def plan_steps(self, learn, steps):
        return [n // 2 for n in steps]

    def before_step(self, learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException


class OwnOrder(Sampler):
    """The samples from the last to the first."""

    def __len__(self):
        return N

    def __iter__(self):
        return iter(ALL[::-1])


class ByEpoch(OwnOrder):
    """As torch's DistributedSampler: the order is a function of the epoch that it was told."""

    def __init__(self):
        self.epoch, self.told = 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        return iter(ALL[self.epoch :] + ALL[: self.epoch])


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((x, x) for x in X)


class WithPid(Dataset):
    """The target is the number of the process that reads the sample."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], torch.tensor([float(os.getpid())])


def tensors(**kwargs):
    return TensorLoader(X, X, **{"bs": 4, "seed": 1} | kwargs)


def shuffled(**kwargs):
    return DataLoader(DATA, 4, shuffle=True, generator=torch.Generator().manual_seed(3), **kwargs)


@pytest.fixture
def make(make_learner):
    """Make a Learner of Linear(1, 1) and its Watch: make(loader, *cbs, **kwargs of make_learner)."""

    def with_watch(loader=None, *cbs, valid=None, **kwargs):
        watch = Watch()
        dls = DataLoaders(tensors() if loader is None else loader, valid)
        learn = make_learner(model=nn.Linear(1, 1), dls=dls, cbs=[watch, *cbs], **kwargs)
        return learn, watch

    return with_watch


@pytest.fixture
def watched(make):
    """Fit with BatchSizeCB(sizes) and return the Watch."""

    def fit(sizes, n_epochs, loader=None, *cbs):
        learn, watch = make(loader, *cbs)
        learn.fit(n_epochs, cbs=[BatchSizeCB(sizes)])
        return watch

    return fit


# Sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({1: 2}, [[4, 4, 2], [2] * 5, [2] * 5]),
        ({0: 3, 2: 10}, [[3, 3, 3, 1], [3, 3, 3, 1], [10]]),
        ({0: 7}, [[7, 3]] * 3),
        ({1: 5, 2: 1}, [[4, 4, 2], [5, 5], [1] * 10]),
        ({2: 6, 1: 9}, [[4, 4, 2], [9, 1], [6, 4]]),
        ({2: 11}, [[4, 4, 2], [4, 4, 2], [10]]),
    ],
    ids=["one change", "from the first on", "all epochs", "down again", "unsorted table", "all in one batch"],
)
@pytest.mark.parametrize("kind", [tensors, lambda: DataLoader(DATA, 4)], ids=["TensorLoader", "DataLoader"])
def test_batches_of_each_epoch_have_the_size_in_the_table(watched, sizes, expected, kind):
    watch = watched(sizes, 3, kind())
    assert watch.sizes == expected
    assert watch.orders == [ALL] * 3


@pytest.mark.parametrize(
    "kind", [tensors, lambda **kwargs: DataLoader(DATA, 4, **kwargs)], ids=["TensorLoader", "DataLoader"]
)
def test_drop_last_drops_the_smaller_batch_of_each_size(watched, kind):
    assert watched({1: 3, 2: 6}, 3, kind(drop_last=True)).sizes == [[4, 4], [3, 3, 3], [6]]


def test_loader_of_the_learner_is_back_outside_of_training(make, at):
    learn, watch = make(valid=tensors(bs=5))
    dls = []
    learn.fit(2, cbs=[BatchSizeCB({0: 2}), at("after_epoch", lambda learn: dls.append(learn.dl))])
    assert watch.sizes == [[2] * 5] * 2
    assert dls == [None, None]


def test_repr_shows_the_table_in_order():
    assert repr(BatchSizeCB({5: 8, 1: 2})) == "BatchSizeCB({1: 2, 5: 8})"


def test_table_is_read_when_the_callback_is_made(make):
    sizes = {1: 2}
    cb = BatchSizeCB(sizes)
    sizes[0] = 5
    learn, watch = make()
    learn.fit(2, cbs=[cb])
    assert watch.sizes == [[4, 4, 2], [2] * 5]


# The plan of steps ------------------------------------------------------------------------------------


def test_planned_steps_are_those_taken(make):
    learn, watch = make()
    learn.fit(4, cbs=[BatchSizeCB(SIZES)])
    assert learn.epoch_steps == STEPS == [len(epoch) for epoch in watch.epochs]
    assert learn.total_steps == learn.n_steps == 12


def test_one_cycle_runs_its_course_over_epochs_of_different_lengths(make):
    opt = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    sched = OneCycleLR(opt, max_lr=0.1, total_steps=12, cycle_momentum=False)
    by_hand = []
    for step in range(12):
        by_hand.append(opt.param_groups[0]["lr"])
        opt.step()
        if step < 11:
            sched.step()
    cb, recorder = BatchSchedulerCB(OneCycleLR), RecorderCB(lr="pg.lr")
    learn, _ = make(None, BatchSizeCB(SIZES), cb, recorder, opt_func=SGD)
    assert cb.preview(learn, 4) == by_hand
    learn.fit(4)
    assert recorder.recs["lr"] == by_hand
    assert by_hand[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_epoch_scheduler_steps_once_an_epoch_all_the_same(make):
    cb, recorder = EpochSchedulerCB(StepLR, step_size=1, gamma=0.5), RecorderCB(lr="pg.lr")
    learn, _ = make(None, BatchSizeCB(SIZES), cb, recorder)
    learn.fit(4)
    assert recorder.recs["lr"] == [0.1] * 3 + [0.05] * 5 + [0.025] * 2 + [0.0125] * 2
    assert cb.preview(learn, 4) == recorder.recs["lr"]


def test_epoch_scheduler_is_told_epochs_and_one_step_in_each(make):
    told = []

    def function(opt, epochs, steps_per_epoch, T_max):  # noqa: N803  torch's name
        told.append((epochs, steps_per_epoch, T_max))
        return CosineAnnealingLR(opt, T_max)

    make(None, BatchSizeCB(SIZES), EpochSchedulerCB(function))[0].fit(4)
    assert told == [(4, 1, 4)]


def by_steps_per_epoch(opt, steps_per_epoch):
    return StepLR(opt, steps_per_epoch)


@pytest.mark.parametrize(("scheduler_f", "kwargs"), [(OneCycleLR, {"epochs": 4}), (by_steps_per_epoch, {})])
def test_steps_per_epoch_is_not_known_where_epochs_differ(make, scheduler_f, kwargs):
    cb = BatchSchedulerCB(scheduler_f, **kwargs)
    learn, watch = make(None, BatchSizeCB(SIZES), cb)
    message = rf"(?=.*steps_per_epoch)BatchSchedulerCB\({scheduler_f.__name__}\).*epochs"
    with pytest.raises(ValueError, match=message):
        learn.fit(4)
    with pytest.raises(ValueError, match=message):
        cb.preview(learn, 4)
    assert watch.epochs == []


@pytest.mark.parametrize(
    "kwargs", [{"epochs": 4}, {"steps_per_epoch": 3}, {"epochs": 4, "steps_per_epoch": 3}]
)
def test_one_cycle_is_told_to_leave_out_what_does_not_hold_for_each_epoch(make, kwargs):
    learn, _ = make(None, BatchSizeCB(SIZES), BatchSchedulerCB(OneCycleLR, **kwargs))
    with pytest.raises(ValueError, match=r"epochs.*12.*epochs.*steps_per_epoch"):
        learn.fit(4)


def test_steps_per_epoch_can_be_given_to_a_function_where_epochs_differ(make):
    recorder = RecorderCB(lr="pg.lr")
    cb = BatchSchedulerCB(by_steps_per_epoch, steps_per_epoch=6)
    make(None, BatchSizeCB(SIZES), cb, recorder)[0].fit(4)
    assert recorder.recs["lr"] == pytest.approx([0.1] * 6 + [0.01] * 6)


def test_steps_per_epoch_is_known_where_all_epochs_are_resized_alike(make):
    recorder = RecorderCB(lr="pg.lr")
    cb = BatchSchedulerCB(by_steps_per_epoch)
    make(None, BatchSizeCB({0: 5}), cb, recorder)[0].fit(2)
    assert recorder.recs["lr"] == pytest.approx([0.1] * 2 + [0.01] * 2)


def test_schedule_factory_gets_the_sum_of_the_steps(make):
    told = []

    def factory(n_steps):
        told.append(n_steps)
        return cosine(n_steps)

    recorder = RecorderCB(lr="pg.lr")
    make(None, BatchSizeCB(SIZES), ScheduleCB("lr", factory), recorder)[0].fit(4)
    assert told == [12]
    assert recorder.recs["lr"] == [0.1 * cosine(12)(step) for step in range(12)]


def test_with_single_batch_an_epoch_is_one_batch_of_the_new_size(make):
    learn, watch = make(None, SingleBatchCB(), BatchSizeCB({1: 2, 2: 5}))
    learn.fit(3)
    assert watch.epochs == [[[0, 1, 2, 3]], [[0, 1]], [[0, 1, 2, 3, 4]]]
    assert (learn.epoch_steps, learn.n_steps) == ([1, 1, 1], 3)


def test_steps_that_a_callback_cancels_are_planned_from_the_new_sizes(make):
    learn, _ = make(None, EverySecondCB(), BatchSizeCB(SIZES), recorder := RecorderCB(lr="pg.lr"))
    learn.fit(4, cbs=[BatchSchedulerCB(OneCycleLR)])
    assert learn.epoch_steps == [1, 2, 1, 1]
    assert learn.n_steps == learn.total_steps == 5
    assert recorder.recs["lr"][-1] == pytest.approx(0.1 / 25 / 1e4)


def test_loader_without_length_leaves_the_steps_unknown(make):
    learn, watch = make(DataLoader(Stream(), batch_size=4))
    learn.fit(3, cbs=[BatchSizeCB({1: 2})])
    assert (learn.epoch_steps, learn.total_steps) == ([None] * 3, None)
    assert watch.sizes == [[4, 4, 2], [2] * 5, [2] * 5]


# The order of the samples -----------------------------------------------------------------------------


def test_order_of_a_shuffled_tensor_loader_is_a_function_of_seed_and_epoch(watched):
    plain = tensors(shuffle=True)
    expected = []
    for epoch in range(4):
        plain.set_epoch(epoch)
        expected.append(plain.order().tolist())
    watch = watched(SIZES, 4, tensors(shuffle=True))
    assert watch.orders == expected
    assert [len(epoch) for epoch in watch.epochs] == STEPS
    assert len({tuple(order) for order in expected} - {tuple(ALL)}) == 4


def test_order_continues_in_a_second_fit(make):
    plain, (learn, watch) = make(tensors(shuffle=True)), make(tensors(shuffle=True))
    plain[0].fit(4)
    for _ in range(2):
        learn.fit(2, cbs=[BatchSizeCB({1: 5})])
    assert watch.orders == plain[1].orders
    assert watch.sizes == [[4, 4, 2], [5, 5]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_loader",
    [
        shuffled,
        lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, generator=torch.Generator().manual_seed(3))),
        lambda: DataLoader(DATA, 4, sampler=OwnOrder()),
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(OwnOrder(), 4, drop_last=False)),
        lambda: DataLoader(Stream(), batch_size=4),
        lambda: shuffled(num_workers=1),
    ],
    ids=["generator", "generator of a sampler", "own sampler", "BatchSampler", "stream", "workers"],
)
def test_dataloaders_samples_come_in_the_order_that_they_have_without_it(make, make_loader):
    plain, (learn, watch) = make(make_loader()), make(make_loader())
    plain[0].fit(3)
    learn.fit(3, cbs=[BatchSizeCB({1: 3, 2: 5})])
    assert watch.orders == plain[1].orders
    assert [sorted(order) for order in watch.orders] == [ALL] * 3
    assert watch.sizes == [[4, 4, 2], [3, 3, 3, 1], [5, 5]]


def test_global_random_numbers_are_drawn_as_without_it(make):
    orders = []
    for sizes in ({0: 4}, {1: 5}):
        torch.manual_seed(0)
        learn, watch = make(DataLoader(DATA, 4, shuffle=True))
        learn.fit(3, cbs=[BatchSizeCB(sizes)])
        orders.append(watch.orders)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_sampler_is_told_each_epoch_once(watched):
    sampler = ByEpoch()
    watch = watched({1: 5}, 3, DataLoader(DATA, 4, sampler=sampler))
    assert sampler.told == [0, 1, 2]
    assert watch.orders == [ALL, [*ALL[1:], 0], [*ALL[2:], 0, 1]]
    assert watch.sizes == [[4, 4, 2], [5, 5], [5, 5]]


def test_batch_sampler_that_drops_the_last_batch_goes_on_to(watched):
    loader = DataLoader(DATA, batch_sampler=BatchSampler(OwnOrder(), 4, drop_last=True))
    assert watched({1: 3}, 2, loader).epochs == [
        [[9, 8, 7, 6], [5, 4, 3, 2]],
        [[9, 8, 7], [6, 5, 4], [3, 2, 1]],
    ]


@pytest.mark.slow
def test_workers_of_a_size_live_from_its_first_epoch_to_the_end_of_the_fit(make):
    learn, watch = make(DataLoader(WithPid(), 5, num_workers=2, persistent_workers=True))
    learn.fit(3, cbs=[BatchSizeCB({1: 2})])
    own, resized, later = ({pid for batch in epoch for pid in batch} for epoch in watch.epochs)
    assert [len(epoch) for epoch in watch.epochs] == [2, 5, 5]
    assert resized == later
    assert len(resized) == len(own) == 2
    assert not resized & own
    assert not {child.pid for child in multiprocessing.active_children()} & resized


# What it leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_loader", [tensors, lambda: DataLoader(DATA, 4)], ids=["TensorLoader", "DataLoader"]
)
@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt, CancelFitException])
def test_batch_size_is_what_it_was_however_the_fit_ended(make, at, make_loader, error):
    def stop(learn):
        if error and learn.n_steps == 4:
            raise error

    loader = make_loader()
    learn, watch = make(loader)
    try:
        learn.fit(2, cbs=[BatchSizeCB({1: 2}), at("after_step", stop)])
    except (ZeroDivisionError, KeyboardInterrupt):
        assert error
    assert watch.sizes[1] == [2] * (0 if error else 5)
    assert learn.dls.train is loader
    assert getattr(loader, "bs", None) == 4 or loader.batch_size == 4
    watch.epochs.clear()
    learn.fit()
    assert watch.sizes == [[4, 4, 2]]


def test_second_fit_begins_the_table_again(make):
    learn, watch = make(None, BatchSizeCB({1: 5}))
    learn.fit(2)
    learn.fit(2)
    assert watch.sizes == [[4, 4, 2], [5, 5]] * 2


def test_second_fit_reads_the_loader_that_there_is_then(make):
    learn, watch = make(None, BatchSizeCB({0: 5}))
    learn.fit()
    learn.dls.train = TensorLoader(X[:6], X[:6], bs=4)
    learn.fit()
    assert watch.epochs == [[ALL[:5], ALL[5:]], [ALL[:5], [5]]]


def test_loader_of_validation_keeps_its_size(make, at):
    sizes = []

    def look(learn):
        if not learn.training:
            sizes.append((learn.epoch, len(learn.batch[0])))

    learn, watch = make(valid=tensors(bs=6))
    learn.fit(2, cbs=[BatchSizeCB({0: 5, 1: 2}), at("after_batch", look)])
    assert sizes == [(0, 6), (0, 4), (1, 6), (1, 4)]
    assert watch.sizes == [[5, 5], [2] * 5]


def test_fit_without_training_has_nothing_to_resize(make, at):
    sizes = []
    batches = [(X, X)]  # a list could not be resized
    learn, watch = make(batches, BatchSizeCB({7: 2}), MetricsCB(), valid=tensors(bs=6))
    learn.fit(train=False, cbs=[at("after_batch", lambda learn: sizes.append(len(learn.batch[0])))])
    assert sizes == [6, 4]
    assert learn.epoch_steps == [0]
    assert "loss" in learn.validate()
    assert learn.predict(tensors()).shape == (10, 1)
    assert watch.epochs == []


def test_lr_find_goes_in_the_loaders_own_batches(make, at):
    sizes = []
    learn, watch = make(
        None, BatchSizeCB({1: 2}), at("before_batch", lambda learn: sizes.append(len(learn.batch[0])))
    )
    learn.lr_find(n_steps=10, diverge=1e9)
    assert sizes == [4, 4, 2] * 3 + [4]
    learn.fit(2)
    assert watch.sizes == [[4, 4, 2], [2] * 5]


# Refused before the first batch -----------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [2, 3, 10])
def test_epoch_that_the_fit_does_not_have_is_refused(make, epoch):
    learn, watch = make()
    with pytest.raises(
        ValueError,
        match=rf"^BatchSizeCB\(\{{0: 2, {epoch}: 5\}}\).*epoch {epoch}.*2 \(0.*1\)",
    ):
        learn.fit(2, cbs=[BatchSizeCB({0: 2, epoch: 5})])
    assert watch.epochs == []


@pytest.mark.parametrize("bs", [0, -1, True, 1.5, 2.0, "2", None])
def test_size_that_is_no_count_is_refused(bs):
    with pytest.raises(ValueError, match=rf"BatchSizeCB\(sizes=\{{1: {bs!r}\}}\).*>= 1"):
        BatchSizeCB({0: 8, 1: bs})


@pytest.mark.parametrize("epoch", [-1, True, 0.5, "1", None])
def test_epoch_that_is_no_count_is_refused(epoch):
    with pytest.raises(ValueError, match=rf"BatchSizeCB\(sizes=\{{{epoch!r}: 8\}}\).*epoch.*0"):
        BatchSizeCB({epoch: 8})


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [({}, r"\{\}"), ([(0, 2)], r"\[\(0, 2\)\]"), (8, "8"), (None, "None")],
    ids=["empty", "list", "number", "none"],
)
def test_what_is_no_table_is_refused(sizes, shown):
    with pytest.raises(TypeError, match=rf"^BatchSizeCB\(sizes={shown}\).*\{{epoch: batch size\}}"):
        BatchSizeCB(sizes)


def test_size_that_leaves_no_batch_is_refused(make):
    learn, watch = make(tensors(drop_last=True), BatchSchedulerCB(OneCycleLR))
    with pytest.raises(
        ValueError,
        match=r"train.*batch size 11\).*0 batches.*drop_last=True",
    ):
        learn.fit(2, cbs=[BatchSizeCB({1: 11})])
    assert watch.epochs == []


class OwnLoader:
    batch_size = 4

    def __iter__(self):
        return iter([(X, X)])

    def __len__(self):
        return 1


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("make_loader", "shown"),
    [
        (lambda: [(X, X), (X, X)], "a list"),
        (lambda: [1, 2], r"\[1, 2\]"),
        (OwnLoader, r".*OwnLoader.*"),
        (lambda: DataLoader(DATA, batch_sampler=[[0, 1], [2, 3]]), ".*DataLoader.*"),
        (lambda: DataLoader(DATA, batch_sampler=OwnBatches(OwnOrder(), 4, False)), ".*DataLoader.*"),
        (lambda: DataLoader(DATA, batch_size=None), ".*DataLoader.*"),
        (lambda: DataLoader(Stream(), batch_size=None), ".*DataLoader.*"),
    ],
    ids=["list", "short list", "own class", "list of batches", "own BatchSampler", "samples", "stream"],
)
def test_loader_whose_size_cannot_be_changed_is_refused(make, make_loader, shown):
    learn, watch = make(make_loader())
    with pytest.raises(
        TypeError,
        match=rf"{shown}.*TensorLoader.*DatasetLoader.*DataLoader.*batch_size",
    ):
        learn.fit(2, cbs=[BatchSizeCB({1: 5})])
    assert watch.epochs == []


class Doubled(DataLoader):
    """A DataLoader with an __iter__ of its own: samples come doubled."""

    def __iter__(self):
        return ((2 * x, 2 * y) for x, y in super().__iter__())


def test_dataloader_class_of_ones_own_is_not_exchanged_for_a_plain_one(make):
    learn, watch = make(Doubled(DATA, 4))
    with pytest.raises(TypeError, match=r"TensorLoader.*DatasetLoader.*DataLoader"):
        learn.fit(2, cbs=[BatchSizeCB({1: 5})])
    assert watch.epochs == []


def test_two_of_them_are_refused(make_learner):
    with pytest.raises(ValueError, match=r"BatchSizeCB\(.*\) and BatchSizeCB\(.*\): .*one the whole table"):
        make_learner(cbs=[BatchSizeCB({0: 2}), BatchSizeCB({0: 3})]).fit()
