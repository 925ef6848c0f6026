import os
import random
import shutil
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from toolbox import (
    CountCB,
    StopCB,
    StoppedError,
    every_rest,
    names_in,
    noisy_learner,
    resumed_from_each_rest,
    samples,
    state_of,
    stop,
)
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from minilearn import (
    BatchSizeCB,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidateException,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    EarlyStoppingCB,
    Learner,
    MetricsCB,
    MomentumCB,
    ProgressCB,
    SingleBatchCB,
    TensorLoader,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in, read
from minilearn.files import read_torch, write_torch
from minilearn.optim import OPTIMIZERS

pytestmark = pytest.mark.slow

N_EPOCHS, N_TRAIN, N_VALID = 2, 3, 2  # batches
N_RESTS = N_EPOCHS * (N_TRAIN + N_VALID + 1) + 1  # after each batch, epoch and fit
MOM_SGD = partial(optim.SGD, momentum=0.9)


class TraceCB(Callback):
    """Write down each batch that was read."""

    def __init__(self):
        self.seen = []

    def state_dict(self):
        return {}

    def before_batch(self, learn):
        x = learn.batch[0]
        self.seen.append((learn.n_epochs_trained, learn.epoch, learn.phase, learn.batch_idx, x.sum().item()))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def loaders(bs=4, n_train=12, n_valid=8, valid_bs=4, **kwargs):
    x, y = samples(20)
    train = TensorLoader(x[:n_train], y[:n_train], bs=bs, **{"shuffle": True} | kwargs)
    return DataLoaders(train, TensorLoader(x[12 : 12 + n_valid], y[12 : 12 + n_valid], bs=valid_bs))


def new(*cbs, seed=1, model=None, dls=None, **kwargs):
    """Make a noisy_learner of 3 and 2 batches."""

    def net():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))

    model, dls = net if model is None else model, loaders if dls is None else dls
    return noisy_learner(*cbs, seed=seed, model=model, dls=dls, **kwargs)


def end_of(learn):
    return state_of(learn, "CheckpointCB")


def check(folder, n, make=list, n_epochs=N_EPOCHS, **kwargs):
    """Stop a fit at its n-th rest, resume in another learner, and compare it with a fit that was not stopped.

    Functions among kwargs make what a learner is given. Returns the learner that went on.
    """

    def seeded(*more, seed):
        set_seed(seed)
        made = {key: value() if key in ("model", "dls") else value for key, value in kwargs.items()}
        return new(*make(), *more, seed=seed, **made)

    straight = seeded(seed=1)
    straight.fit(n_epochs)
    stop(seeded(every_rest(folder), StopCB(n), seed=1), n_epochs)
    resumed = seeded(every_rest(folder), seed=50)
    resumed.fit(n_epochs, resume=True)
    assert first_difference(end_of(straight), end_of(resumed)) == ""
    return resumed


def test_run_that_has_nothing_but_its_best_epoch_goes_on_from_there(folder):
    # As one with every_minutes=10 that is killed after nine.
    def saver():
        return CheckpointCB(folder, every_steps=99, monitor="train/loss")

    straight = new(MetricsCB(), seed=1)
    straight.fit(3)
    stop(new(MetricsCB(), saver(), StopCB(N_TRAIN + N_VALID + 2), seed=1), 3)
    assert names_in(folder) == ["best.pt"]
    resumed = new(MetricsCB(), saver(), seed=50)
    resumed.fit(3, resume=True)
    assert first_difference(end_of(straight), end_of(resumed)) == ""


# The place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, N_RESTS + 1))
def test_fit_goes_on_with_the_batch_that_comes_next(folder, n):
    whole, before, after = TraceCB(), TraceCB(), TraceCB()
    new(whole).fit(N_EPOCHS)
    stop(new(before, every_rest(folder), StopCB(n)))
    new(after, every_rest(folder), seed=50).fit(N_EPOCHS, resume=folder)
    assert len(whole.seen) == N_EPOCHS * (N_TRAIN + N_VALID)
    assert before.seen + after.seen == whole.seen


@pytest.mark.parametrize("n", range(1, N_RESTS + 1))
def test_resumed_fit_is_the_straight_one(folder, n):
    check(folder, n, lambda: [MetricsCB(), CountCB()])


@pytest.mark.parametrize("n", [1, 4, 6, 8, 12, 13])
def test_learner_that_was_stopped_goes_on_itself(folder, n):
    straight = new(CountCB())
    straight.fit(N_EPOCHS)
    stopper = StopCB(n)
    learn = stop(new(CountCB(), every_rest(folder), stopper))
    set_seed(50)
    learn.fit(N_EPOCHS, resume=True)
    assert first_difference(end_of(straight), end_of(learn)) == ""


def test_place_is_the_next_batch(folder):
    stop(new(every_rest(folder), StopCB(N_RESTS)))
    places = [tuple(read(path)["position"].values()) for path in checkpoints_in(folder)]
    train, valid = [(0, "train", i) for i in (1, 2, 3)], [(0, "eval", i) for i in (1, 2)]
    second = [(1, phase, i) for _, phase, i in [*train, *valid]]
    assert sorted(places) == sorted([*train, *valid, (1, "", 0), *second, (2, "over", 0)])


def test_batches_that_were_trained_are_not_read(folder):
    class Counted:
        def batches(self, start=0):
            for i in range(start, 3):
                drawn.append(i)
                yield batches()[i]

        def __iter__(self):
            return self.batches()

    drawn = []
    stop(new(every_rest(folder), StopCB(2), dls={"train": Counted()}))
    assert drawn == [0, 0, 1]  # the first is drawn to look at its target
    drawn.clear()
    new(every_rest(folder), dls={"train": Counted()}).fit(N_EPOCHS, resume=True)
    assert drawn == [0, 2, 0, 1, 2]


def test_fields_are_those_of_the_place(folder, at):
    stop(new(every_rest(folder), StopCB(8)))  # the second batch of the second epoch
    seen = []
    look = at(
        "before_batch", lambda x: seen.append((x.epoch, x.n_steps, x.n_epochs_trained, x.batch_idx, x.phase))
    )
    learn = new(look, every_rest(folder))
    learn.fit(N_EPOCHS, resume=True)
    assert seen == [(1, 5, 2, 2, "train"), (1, 6, 2, 0, "eval"), (1, 6, 2, 1, "eval")]
    assert (learn.n_fits, learn.n_epochs, learn.total_steps) == (1, 2, 6)


@pytest.mark.parametrize("event", ["before_fit", "before_epoch", "before_train"])
@pytest.mark.parametrize("n", [2, N_TRAIN + N_VALID + 3])
def test_row_that_a_hook_adds_before_training_is_there_once(folder, at, event, n):
    def add(learn):
        learn.history.append({"train": event, "epoch": learn.epoch})

    learn = check(folder, n, lambda: [at(event, add)])
    assert len(learn.history) == (1 if event == "before_fit" else N_EPOCHS)


def test_resumed_fit_can_be_stopped_and_resumed_again(folder):
    whole = new(CountCB())
    whole.fit(N_EPOCHS)
    stop(new(CountCB(), every_rest(folder), StopCB(2)))
    for seed in range(2, 12):
        stop(new(CountCB(), every_rest(folder), StopCB(1), seed=seed), resume=True)
    last = new(CountCB(), every_rest(folder), seed=20)
    last.fit(N_EPOCHS, resume=True)
    assert first_difference(end_of(whole), end_of(last)) == ""


def test_loss_of_the_last_batch_is_there(folder):
    stopped = stop(new(every_rest(folder), StopCB(2)))
    seen = []

    class LookCB(Callback):
        def before_batch(self, learn):
            seen.append(learn.loss)

    new(LookCB(), every_rest(folder)).fit(N_EPOCHS, resume=True)
    assert torch.equal(seen[0], stopped.loss.detach())


# After the fit ----------------------------------------------------------------------------------------


def test_fit_that_is_over_is_not_trained_again(folder):
    whole, trace = new(CountCB(), MetricsCB(), every_rest(folder)), TraceCB()
    whole.fit(N_EPOCHS)
    learn = new(CountCB(), MetricsCB(), trace, every_rest(folder), seed=50)
    learn.fit(N_EPOCHS, resume=True)
    assert trace.seen == []
    assert first_difference(end_of(whole), end_of(learn)) == ""
    assert (learn.n_epochs_trained, learn.n_steps, learn.epoch) == (2, 6, 1)


@pytest.mark.parametrize("event", ["after_batch", "after_step", "after_train", "before_epoch", "after_epoch"])
def test_fit_that_was_cancelled_stays_so(folder, at, event):
    def cancel(learn):
        if learn.epoch == 1:
            raise CancelFitException

    whole, trace = new(at(event, cancel), every_rest(folder)), TraceCB()
    whole.fit(N_EPOCHS)
    learn = new(trace, at(event, cancel), every_rest(folder), seed=50)
    learn.fit(N_EPOCHS, resume=True)
    assert trace.seen == []
    assert first_difference(end_of(whole), end_of(learn)) == ""


@pytest.mark.parametrize("n", [2, 7, 9, 12])
def test_fit_that_ends_early_ends_where_it_would_have(folder, n):
    def cbs():
        return [MetricsCB(), EarlyStoppingCB(patience=1, mode="min", min_delta=100)]

    learn = check(folder, n, cbs, n_epochs=5)
    assert learn.cbs[1].stopped_epoch == 1


def test_weights_that_early_stopping_restored_are_there(folder):
    def cbs():
        return [MetricsCB(), EarlyStoppingCB(patience=1, min_delta=100)]

    whole = new(*cbs(), every_rest(folder))
    whole.fit(5)
    learn = new(*cbs(), every_rest(folder), seed=50)
    learn.fit(5, resume=True)
    assert torch.equal(learn.model[0].weight, whole.model[0].weight)
    assert (learn.cbs[1].best_epoch, learn.cbs[1].best) == (0, whole.cbs[1].best)


def test_after_fit_runs_once(folder, at):
    ends = []
    new(at("after_fit", lambda learn: ends.append("first")), every_rest(folder)).fit(N_EPOCHS)
    new(at("after_fit", lambda learn: ends.append("second")), every_rest(folder)).fit(N_EPOCHS, resume=True)
    assert ends == ["first"]


@pytest.mark.parametrize("n", [2, 5, 6, 8, 13])
def test_each_row_is_printed_once(folder, n):
    texts = [StringIO(), StringIO()]
    progress = [ProgressCB(console=Console(file=text)) for text in texts]
    stop(new(MetricsCB(), progress[0], every_rest(folder), StopCB(n)))
    new(MetricsCB(), progress[1], every_rest(folder)).fit(N_EPOCHS, resume=True)
    text = "".join(text.getvalue() for text in texts)
    assert (text.count("train: "), text.count("eval: "), text.count("loss")) == (2, 2, 4)
    assert text.count("epoch 1 (2/2)  train: ") == 1


def test_progress_says_where_the_fit_goes_on(folder, capsys):
    stop(new(every_rest(folder), StopCB(2)))
    assert capsys.readouterr().out == ""
    learn = new(ProgressCB(console=Console(file=StringIO())), every_rest(folder))
    learn.fit(N_EPOCHS, resume=True)
    assert capsys.readouterr().out == f"Resumed from {folder / 'epoch-0000-train-000002.pt'}\n"


def test_progress_says_that_a_fit_is_finished(folder, capsys):
    new(every_rest(folder)).fit(N_EPOCHS)
    learn = new(ProgressCB(console=Console(file=StringIO())), every_rest(folder))
    learn.fit(N_EPOCHS, resume=True)
    assert "finished" in capsys.readouterr().out


# Cancelling -------------------------------------------------------------------------------------------

CANCELS = [
    ("before_step", CancelStepException),
    ("after_loss", CancelBatchException),
    ("after_step", CancelBatchException),
    ("after_batch", CancelTrainException),
    ("before_batch", CancelTrainException),
    ("after_backward", CancelEpochException),
    ("before_train", CancelTrainException),
    ("before_epoch", CancelEpochException),
    ("before_validate", CancelValidateException),
]


@pytest.mark.dealt
@pytest.mark.parametrize("n", [1, 4, 8])
@pytest.mark.parametrize(("event", "cancel"), CANCELS, ids=lambda x: getattr(x, "__name__", x))
def test_what_a_callback_cancels_is_cancelled_in_the_resumed_fit(folder, at, event, cancel, n):
    def leave(learn):
        is_here = event in ("before_train", "before_epoch", "before_validate")
        if learn.epoch in (0, 2) and (is_here or (learn.training and learn.batch_idx == 1)):
            raise cancel

    check(folder, n, lambda: [CountCB(), MetricsCB(), at(event, leave)], n_epochs=4)


class GatherCB(Callback):
    """Take a step with the gradients of so many batches."""

    def __init__(self, n):
        self.n, self.n_seen = n, 0

    def plan_steps(self, learn, steps):
        return [None] * len(steps)

    def before_step(self, learn):
        self.n_seen += 1
        if self.n_seen % self.n:
            raise CancelStepException


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8])
def test_gradients_that_are_gathered_are_kept(folder, n):
    learn = check(folder, n, lambda: [GatherCB(2)])
    assert learn.n_steps == 3


@pytest.mark.parametrize("n", [1, 4, 8, 13])
def test_gradients_that_momentum_keeps_are_kept(folder, n):
    check(folder, n, lambda: [MomentumCB(0.9)], opt_func=optim.SGD)


# Optimizers -------------------------------------------------------------------------------------------

OPTS = {
    "torch SGD": MOM_SGD,
    "nesterov": partial(optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "torch AdamW": optim.AdamW,
    "amsgrad": partial(optim.Adam, amsgrad=True),
    "tensor lr": lambda params, lr: optim.Adam(params, torch.tensor(lr)),
    "capturable off": partial(optim.Adam, foreach=False),
    "RMSprop": partial(optim.RMSprop, centered=True, momentum=0.5),
    "Adagrad": optim.Adagrad,
    "NAdam": optim.NAdam,
    **OPTIMIZERS,
}


@pytest.mark.parametrize("name", OPTS)
def test_optimizer_goes_on(folder, name):
    check(folder, 2, opt_func=OPTS[name], lr=0.01)


def test_optimizer_of_narrow_weights_keeps_its_wide_state(folder):
    class Wide(optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                wide = self.state[p].setdefault("wide", p.detach().double())
                wide.sub_(p.grad.double() * 1e-3)
                p.data.copy_(wide)

    check(folder, 4, opt_func=Wide, model=lambda: nn.Linear(3, 2))


def test_groups_are_the_same_objects(folder, at):
    stop(new(every_rest(folder), StopCB(2), param_groups=two_groups))
    groups = []
    learn = new(
        at("before_fit", lambda learn: groups.extend(learn.opt.param_groups)),
        every_rest(folder),
        param_groups=two_groups,
    )
    learn.fit(N_EPOCHS, resume=True)
    assert [id(group) for group in groups] == [id(group) for group in learn.opt.param_groups]


def two_groups(model):
    return [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[3].parameters()]}]


@pytest.mark.parametrize("n", [2, 7])
def test_lr_that_a_callback_set_goes_on(folder, at, n):
    def lower(learn):
        learn.opt.param_groups[1]["lr"] *= 0.5

    def cbs():
        return [at("after_step", lower)]

    learn = check(folder, n, cbs, param_groups=two_groups, lr=[0.1, 0.2])
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.2 * 0.5**6]


def test_lr_of_the_checkpoint_rules(folder):
    stop(new(every_rest(folder), StopCB(2), lr=0.1))
    learn = new(every_rest(folder), lr=0.5)
    said = r"group 0.*lr=0.7.*0.1"
    with pytest.warns(UserWarning, match=said):
        learn.fit(N_EPOCHS, resume=True, lr=0.7)
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_frozen_layers_and_modes_are_those_of_the_checkpoint(folder, at):
    def freeze(learn):
        if learn.n_steps == 1:
            learn.freeze("0", "1")

    stop(new(at("after_step", freeze), every_rest(folder), StopCB(2)))
    seen = []
    look = at("before_batch", lambda learn: seen.append((learn.model[1].training, learn.model[2].training)))
    learn = new(look, every_rest(folder))
    learn.fit(N_EPOCHS, resume=True)
    assert [p.requires_grad for p in learn.model.parameters()] == [False] * 4 + [True] * 2
    train, valid = (False, True), (False, False)
    assert seen == [train, valid, valid, train, train, train, valid, valid]
    assert (learn.model[1].training, learn.model.training) == (False, True)


# Random numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 5, 6, 7, 12])
def test_random_numbers_go_on(folder, n):
    class DrawCB(Callback):
        def __init__(self):
            self.drawn = []

        def before_batch(self, learn):
            self.drawn += [random.random(), np.random.rand(), torch.rand(()).item()]

    learn = check(folder, n, lambda: [DrawCB()])
    assert len(set(learn.cbs[0].drawn)) == 3 * N_EPOCHS * (N_TRAIN + N_VALID)


def test_generators_that_callbacks_keep_go_on(folder):
    class OwnCB(Callback):
        def __init__(self):
            self.rng, self.numpy = random.Random(0), np.random.default_rng(0)
            self.torch, self.drawn = torch.Generator(), []

        def before_batch(self, learn):
            numbers = [self.rng.random(), self.numpy.random(), torch.rand((), generator=self.torch).item()]
            self.drawn.append(numbers)

    check(folder, 8, lambda: [OwnCB()])


# What to resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resume",
    [
        lambda folder: folder,
        str,
        lambda folder: True,
        lambda folder: folder / "epoch-0000-train-000002.pt",
        lambda folder: f"{folder}/epoch-0000-train-000002.pt",
        lambda folder: folder / "." / ".." / "run",
    ],
)
def test_checkpoint_is_given_by_folder_file_or_true(folder, resume):
    stop(new(every_rest(folder), StopCB(2)))
    trace = TraceCB()
    new(trace, every_rest(folder)).fit(N_EPOCHS, resume=resume(folder))
    assert (len(trace.seen), trace.seen[0][:4]) == (8, (1, 0, "train", 2))


def test_newest_of_a_folder_is_taken_whatever_their_times_are(folder):
    stop(new(every_rest(folder), StopCB(8)))
    os.utime(folder / "epoch-0000-train-000001.pt", (2e9, 2e9))
    trace = TraceCB()
    new(trace, every_rest(folder)).fit(N_EPOCHS, resume=True)
    assert trace.seen[0][:4] == (2, 1, "train", 2)


def test_earlier_one_is_gone_on_from_in_another_folder(folder, tmp_path):
    whole = new()
    whole.fit(N_EPOCHS)
    new(every_rest(folder)).fit(N_EPOCHS)
    learn = new(every_rest(tmp_path / "other"), seed=50)
    learn.fit(N_EPOCHS, resume=folder / "epoch-0000-valid-000001.pt")
    assert first_difference(end_of(whole), end_of(learn)) == ""


def test_earlier_one_in_its_own_folder_is_refused(folder):
    new(every_rest(folder)).fit(N_EPOCHS)
    learn = new(every_rest(folder))
    with pytest.raises(ValueError, match=r"epoch-0002-train-000000\.pt"):
        learn.fit(N_EPOCHS, resume=folder / "epoch-0001-train-000001.pt")
    assert (learn.n_epochs_trained, learn.run_id, learn.history) == (0, None, [])


def test_best_one_is_gone_on_from_in_another_folder(folder, tmp_path):
    whole = new(MetricsCB())
    whole.fit(N_EPOCHS)
    new(MetricsCB(), every_rest(folder, monitor="loss", mode="max")).fit(N_EPOCHS)
    learn = new(MetricsCB(), every_rest(tmp_path / "other", monitor="loss", mode="max"))
    learn.fit(N_EPOCHS, resume=folder / "best.pt")
    assert first_difference(end_of(whole), end_of(learn)) == ""


@pytest.mark.parametrize("by", ["folder", True])
def test_fit_begins_where_the_folder_of_its_checkpoints_is_empty(folder, by):
    trace = TraceCB()
    new(trace, every_rest(folder)).fit(N_EPOCHS, resume=folder if by == "folder" else by)
    assert len(trace.seen) == 10
    assert len(checkpoints_in(folder)) == 12  # that of the last epoch is overwritten when the fit is over


@pytest.mark.parametrize("cbs", [lambda folder: [], lambda folder: [every_rest(folder)]])
def test_folder_with_a_typo_is_refused(folder, cbs):
    learn = new(*cbs(folder))
    with pytest.raises(FileNotFoundError, match=r"fit\(resume='.*/rnu'\).*CheckpointCB"):
        learn.fit(N_EPOCHS, resume=str(folder.parent / "rnu"))
    assert not folder.exists()


def test_file_that_is_not_there_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"epoch-0009\.pt"):
        new(every_rest(folder)).fit(resume=folder / "epoch-0009.pt")


@pytest.mark.parametrize("resume", [False, 3, b"run", ["run"]])
def test_other_values_are_refused(folder, resume):
    with pytest.raises(TypeError, match=r"fit\(resume=.*\).*folder.*checkpoint"):
        new(every_rest(folder)).fit(resume=resume)


@pytest.mark.parametrize("n", [0, 2])
def test_true_needs_one_folder(tmp_path, n):
    learn = new(*[every_rest(tmp_path / str(i)) for i in range(n)])
    with pytest.raises(ValueError, match=rf"CheckpointCB.*{n}"):
        learn.fit(resume=True)


def test_only_training_can_be_resumed(folder):
    with pytest.raises(ValueError, match=r"fit\(train=False, resume='x'\)"):
        new(every_rest(folder)).fit(train=False, resume="x")


# Refusals ---------------------------------------------------------------------------------------------


def whole_state(learn):
    saved = end_of(learn)
    kept = {key: saved[key] for key in ("model", "opt", "grads", "history", "cbs", "loaders", "rng", "own")}
    kept |= {key: saved[key] for key in ("frozen", "in_eval")}
    return kept | {"n": learn.n_epochs_trained, "run": learn.run_id, "n_fits": learn.n_fits}


def other_groups(model):
    return [{"params": list(model.parameters())[::-1]}]


def with_name(model):
    return [{"params": list(model.parameters()), "name": "all"}]


FIT = {"n_epochs": N_EPOCHS}
REFUSALS = {
    "epochs": (
        {},
        {"n_epochs": 3},
        r"2 epochs.*3",
    ),
    "phases": (
        {},
        FIT | {"valid": False},
        r"\['train', 'eval'\].*\['train'\].*validation",
    ),
    "steps": (
        {"bs": 6},
        FIT,
        r"2.*3 steps.*2.*2",
    ),
    "optimizer": ({"opt_func": optim.Adam}, FIT, r"SGD.*optimizer.*Adam"),
    "groups": (
        {"param_groups": two_groups},
        FIT,
        r"1 parameter groups.*2",
    ),
    "order": (
        {"param_groups": other_groups},
        FIT,
        r"group 0.*order",
    ),
    "key": ({"param_groups": with_name}, FIT, r"name.*group 0"),
    "added": (
        {"cbs": [MomentumCB]},
        FIT,
        r"state.*MomentumCB.*CheckpointCB, StopCB",
    ),
    "bs": (
        {"valid_bs": 2},
        FIT,
        r"data.*bs=2.*4",
    ),
    "n_samples": (
        {"n_train": 11},
        FIT,
        r"data.*n_samples=11.*12",
    ),
    "shuffle": (
        {"shuffle": False},
        FIT,
        r"data.*shuffle=False.*True",
    ),
    "model": (
        {"model": lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2))},
        FIT,
        r"another model.*0\.weight.*\(4, 3\).*\(5, 3\).*4 more",
    ),
}


def live(bs=4, n_train=12, shuffle=True, valid_bs=4, cbs=(), model=None, **kwargs):
    """Make a learner that has trained an epoch by itself."""
    set_seed(7)
    dls = loaders(bs, n_train, valid_bs=valid_bs, shuffle=shuffle)
    learn = new(*[cb() for cb in cbs], dls=dls, model=model and model(), seed=7, **kwargs)
    learn.fit(1, cbs=[MetricsCB()])
    return learn


@pytest.mark.parametrize("why", REFUSALS)
def test_learner_that_is_not_alike_is_refused_and_nothing_is_changed(folder, why):
    kwargs, fit, said = REFUSALS[why]
    stop(new(every_rest(folder), StopCB(2)))
    learn = live(**kwargs)
    before = whole_state(learn)
    weights = learn.model[0].weight.data_ptr()
    with pytest.raises(ValueError, match=rf"/run/epoch-0000-train-000002\.pt.*{said}"):
        learn.fit(**fit, cbs=[every_rest(folder)], resume=folder)
    assert first_difference(before, whole_state(learn)) == ""
    assert learn.model[0].weight.data_ptr() == weights
    learn.fit(1)


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ([CountCB], [], r"state.*CountCB.*CheckpointCB"),
        (
            [CountCB, CountCB],
            [CountCB],
            r"state.*CountCB 2.*CountCB, CheckpointCB",
        ),
        ([], [CountCB], r"state.*CountCB.*CheckpointCB"),
        (
            [CountCB],
            [CountCB, CountCB],
            r"state.*CountCB 2.*CountCB, CheckpointCB",
        ),
        ([], [MetricsCB], r"state.*MetricsCB.*CheckpointCB"),
    ],
)
def test_other_callbacks_are_refused(folder, there, here, said):
    stop(new(*[cb() for cb in there], every_rest(folder), StopCB(2)))
    learn = new(*[cb() for cb in here], every_rest(folder))
    with pytest.raises(ValueError, match=rf"\.pt.*{said}"):
        learn.fit(N_EPOCHS, resume=True)


def test_run_without_callbacks_is_said_so(folder):
    stop(new(every_rest(folder), StopCB(2)))
    with pytest.raises(ValueError, match=r"state.*CheckpointCB"):
        new().fit(N_EPOCHS, resume=folder)


def test_callbacks_without_state_may_come_and_go(folder):
    stop(new(TraceCB(), every_rest(folder), StopCB(2)))
    new(StopCB(99), TraceCB(), every_rest(folder)).fit(N_EPOCHS, resume=True)


def test_group_key_that_is_only_in_the_file_is_refused(folder):
    stop(new(every_rest(folder), StopCB(2), param_groups=with_name))
    with pytest.raises(ValueError, match=r"name.*file.*group 0"):
        new(every_rest(folder), param_groups=lambda model: [{"params": list(model.parameters())}]).fit(
            N_EPOCHS, resume=True
        )


def test_keys_that_a_scheduler_left_are_not_looked_at(folder):
    stop(new(every_rest(folder), StopCB(2)))
    learn = new(
        every_rest(folder), param_groups=lambda model: [{"params": list(model.parameters()), "initial_lr": 3}]
    )
    learn.fit(N_EPOCHS, resume=True)
    assert "initial_lr" not in learn.opt.param_groups[0]


def test_parameter_that_is_only_here_is_named(folder):
    def part(model):
        model[0].requires_grad_(False)
        return [{"params": [*model[1].parameters(), *model[3].parameters()]}]

    def part_and_more(model):
        return [{"params": [*part(model)[0]["params"], model[0].bias]}]

    stop(new(every_rest(folder), StopCB(2), param_groups=part))
    with pytest.raises(ValueError, match=r"group 0.*0\.bias"):
        new(every_rest(folder), param_groups=part_and_more).fit(N_EPOCHS, resume=True)


def batches():
    return [(x, y) for x, y in loaders(shuffle=False).train]


@pytest.mark.parametrize("there", ["list", "loader"])
def test_loader_of_another_kind_is_refused_and_nothing_is_changed(folder, there):
    def dls(kind):
        return loaders() if kind == "loader" else DataLoaders(batches(), loaders().valid)

    stop(new(every_rest(folder), StopCB(2), dls=dls(there)))
    learn = new(every_rest(folder), dls=dls("loader" if there == "list" else "list"))
    learn.opt_func(learn.model.parameters(), 0.1)
    before = learn.model[0].weight.clone()
    with pytest.raises(ValueError, match="data"):
        learn.fit(N_EPOCHS, resume=True)
    assert torch.equal(learn.model[0].weight, before)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"weight": torch.zeros(1)}, r"checkpoint.*learn.load"),
        ([1], r"checkpoint.*minilearn"),
        ({"minilearn": 2}, r"format 2.*1"),
    ],
)
def test_other_files_are_refused(tmp_path, contents, said):
    write_torch(tmp_path / "x.pt", contents)
    with pytest.raises(ValueError, match=rf"x\.pt.*{said}"):
        new().fit(resume=tmp_path / "x.pt")


class Broken(Callback):
    def __init__(self, is_broken=False):
        self.n, self._is_broken = 0, is_broken

    def after_step(self, learn):
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        if self._is_broken:
            raise ZeroDivisionError
        self.n = state["n"]


@pytest.mark.parametrize("n", [2, 4, 6, 13])
def test_load_state_dict_that_raises_leaves_the_learner_usable(folder, n):
    stop(new(Broken(), every_rest(folder), StopCB(n)))
    broken = Broken()
    learn = live(cbs=[lambda: broken])
    before = whole_state(learn)
    broken._is_broken = True
    with pytest.raises(ZeroDivisionError):
        learn.fit(N_EPOCHS, cbs=[every_rest(folder)], resume=folder)
    assert first_difference(before | {"rng": 0}, whole_state(learn) | {"rng": 0}) == ""
    assert learn.run.source.is_put is False
    broken._is_broken = False
    learn.fit(N_EPOCHS, cbs=[every_rest(folder)], resume=folder)
    straight = new(Broken())
    straight.fit(N_EPOCHS)
    assert first_difference(end_of(straight), end_of(learn)) == ""


class Extra(nn.Linear):
    """A module whose extra state is counted, and may not be taken back."""

    def __init__(self, is_broken=False):
        super().__init__(3, 2)
        self.n, self.is_broken = 0, is_broken

    def forward(self, x):
        self.n += self.training
        return super().forward(x)

    def get_extra_state(self):
        return {"n": self.n}

    def set_extra_state(self, state):
        if self.is_broken:
            raise ZeroDivisionError
        self.n = state["n"]


@pytest.mark.parametrize("n", [2, 5, 13])
def test_extra_state_of_a_module_goes_on(folder, n):
    assert check(folder, n, model=Extra).model.n == 6


def test_extra_state_that_is_not_taken_leaves_the_optimizer(folder):
    stop(new(every_rest(folder), StopCB(2), model=Extra()))
    learn = new(every_rest(folder), model=Extra(is_broken=True))
    with pytest.warns(UserWarning, match="is_broken=True"), pytest.raises(ZeroDivisionError):
        learn.fit(N_EPOCHS, resume=True)
    assert dict(learn.opt.state) == {}


# Several fits -----------------------------------------------------------------------------------------


def script(folder, *cbs, resume=True, seed=1):
    """Train in three fits, each of which is resumed if it can be."""
    learn = new(CountCB(), MetricsCB(), every_rest(folder), *cbs, seed=seed)
    for n_epochs in (1, 2, 1):
        learn.fit(n_epochs, resume=resume or None)
    return learn


@pytest.mark.parametrize("n", [1, 6, 7, 9, 20, 21])
def test_script_of_several_fits_is_started_again(folder, tmp_path, n):
    straight = script(tmp_path / "straight", resume=False)
    stopper = StopCB(n)
    with pytest.raises(StoppedError):
        script(folder, stopper)
    trace = TraceCB()
    resumed = script(folder, trace, seed=50)
    assert first_difference(end_of(straight), end_of(resumed)) == ""
    assert (resumed.n_fits, resumed.n_epochs_trained) == (3, 4)
    # Each fit rests after its 5 or 10 batches, its epochs, and at its end.
    rests = ([1] * 5 + [0] * 2) + ([1] * 5 + [0]) * 2 + [0] + ([1] * 5 + [0] * 2)
    n_before = sum(rests[:n])
    assert len(trace.seen) == 20 - n_before


def test_finished_fits_are_left_out_and_said_so(folder, capsys):
    script(folder)
    capsys.readouterr()
    trace = TraceCB()
    learn = script(folder, trace, seed=50)
    assert trace.seen == []
    path = folder / "epoch-0004-train-000000.pt"
    assert capsys.readouterr().out.splitlines() == [
        f"Left out fit {i} of this run, which is finished: weights and rows are those of {path}, of fit 3"
        for i in (1, 2)
    ]
    assert learn.n_fits == 3


def test_fit_that_was_left_out_has_the_newest_weights_and_rows(folder):
    whole = script(folder)
    learn = new(CountCB(), MetricsCB(), every_rest(folder), seed=50)
    learn.fit(1, resume=True)
    assert torch.equal(learn.model[0].weight, whole.model[0].weight)
    assert torch.equal(learn.model[1].running_mean, whole.model[1].running_mean)
    assert len(learn.history) == 8
    assert (learn.n_fits, learn.run_id) == (1, whole.run_id)


def test_two_runs_in_one_folder_are_refused(folder):
    new(every_rest(folder)).fit(1)
    with pytest.raises(
        ValueError,
        match=r"epoch-0001-train-000000\.pt.*another run",
    ):
        new(every_rest(folder)).fit(1)


@pytest.mark.parametrize("n_fits", [1, 2])
def test_checkpoint_of_another_run_is_gone_on_from_whatever_the_learner_did(folder, tmp_path, n_fits):
    straight = new(CountCB())
    straight.fit(N_EPOCHS)
    stop(new(CountCB(), every_rest(folder), StopCB(2)))
    learn = new(CountCB(), seed=50)
    for _ in range(n_fits):
        learn.fit(1, cbs=[every_rest(tmp_path / "own")])
    learn.fit(N_EPOCHS, cbs=[every_rest(folder)], resume=folder)
    assert first_difference(end_of(straight), end_of(learn)) == ""
    assert learn.n_fits == 1


# Attributes of the learner ----------------------------------------------------------------------------


class Adversarial(Learner):
    """Has a second model and optimizer, and counts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic = nn.Linear(2, 1)
        self.critic_opt = optim.Adam(self.critic.parameters())
        self.n_calls, self.losses = 0, []

    def get_loss(self):
        super().get_loss()
        self.n_calls += 1
        if self.training:
            self.critic_opt.zero_grad()
            loss = self.critic(self.preds.detach()).square().mean()
            loss.backward()
            self.critic_opt.step()
            self.losses.append(loss.item())


@pytest.mark.parametrize("n", [2, 5, 7, 13])
def test_attributes_of_a_learner_subclass_go_on(folder, n):
    learn = check(folder, n, cls=Adversarial)
    assert (learn.n_calls, len(learn.losses)) == (10, 6)


def test_attributes_that_were_set_on_the_learner_go_on(folder):
    learn = new(every_rest(folder), StopCB(2))
    learn.mine, learn.values, learn.function = 3, [1], print
    stop(learn)
    learn = new(every_rest(folder))
    values = learn.values = []
    learn.function = len
    learn.fit(N_EPOCHS, resume=True)
    assert (learn.mine, learn.values, learn.function) == (3, [1], len)
    assert learn.values is values


def test_attribute_that_a_callback_set_goes_on(folder, at):
    def count(learn):
        learn.n_mine = getattr(learn, "n_mine", 0) + 1

    assert check(folder, 4, lambda: [at("before_batch", count)]).n_mine == 10


def test_object_on_the_learner_that_is_not_there_is_named(folder):
    learn = new(every_rest(folder), StopCB(2))
    learn.other = nn.Linear(1, 1)
    stop(learn)
    with pytest.raises(ValueError, match=r"learn\.other.*Linear.*None"):
        new(every_rest(folder)).fit(N_EPOCHS, resume=True)


def test_attribute_that_cannot_be_saved_is_refused_before_training(folder):
    learn = new(every_rest(folder))
    learn.mine = range(3)
    with pytest.raises(TypeError, match=r"learn\.mine.*range.*callback"):
        learn.fit()
    assert learn.n_epochs_trained == 0


def test_attribute_that_was_set_before_the_learners_own_goes_on(folder):
    class Early(Learner):
        def __init__(self, *args, **kwargs):
            self.n_calls = 0
            super().__init__(*args, **kwargs)

        def predict(self):
            super().predict()
            self.n_calls += 1

    assert check(folder, 4, cls=Early).n_calls == 10


# Loaders ----------------------------------------------------------------------------------------------


class Stream:
    """A loader that knows where it stands; its batches depend on the pass."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.i = self.start = self.n_passes = 0

    def __len__(self):
        return self.n

    def __iter__(self):
        first, self.start = self.start, 0
        for i in range(first, self.n):
            self.i = i + 1
            rng = torch.Generator().manual_seed(1000 * self.seed + 100 * self.n_passes + i)
            yield torch.randn(4, 3, generator=rng), torch.arange(4) % 2
        self.n_passes, self.i = self.n_passes + 1, 0

    def state_dict(self):
        return {"seed": self.seed, "n_passes": self.n_passes, "i": self.i}

    def load_state_dict(self, state):
        vars(self).update(state)
        self.start = self.i


def stopped_and_resumed(folder, dls, n):
    """Return the batches of a straight run, and those of one that was stopped and gone on with."""
    traces = [TraceCB() for _ in range(3)]
    new(traces[0], dls=dls(1)).fit(N_EPOCHS)
    stop(new(traces[1], every_rest(folder), StopCB(n), dls=dls(1)))
    new(traces[2], every_rest(folder), dls=dls(5)).fit(N_EPOCHS, resume=True)
    return traces[0].seen, traces[1].seen + traces[2].seen


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_loader_with_a_state_goes_on_by_itself(folder, n):
    straight, resumed = stopped_and_resumed(folder, lambda seed: {"train": Stream(3, seed)}, n)
    assert resumed == straight


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 8])
def test_both_loaders_with_a_state_go_on(folder, n):
    def dls(seed):
        return {"train": Stream(3, seed), "eval": Stream(2, 10 + seed)}

    straight, resumed = stopped_and_resumed(folder, dls, n)
    assert resumed == straight


def test_loader_with_a_state_does_not_lose_its_first_batch(at):
    class Once:
        i = 0

        def __iter__(self):
            while self.i < 3:
                self.i += 1
                yield torch.full((4, 3), float(self.i)), torch.zeros(4, dtype=torch.int64)
            self.i = 0

        def state_dict(self):
            return {"i": self.i}

        def load_state_dict(self, state):
            self.i = state["i"]

    seen = []
    look = at("before_batch", lambda learn: seen.append(learn.batch[0][0, 0].item()))
    new(look, dls={"train": Once()}).fit(2)
    assert seen == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 8, 13])
def test_list_of_batches_goes_on(folder, n):
    check(folder, n, dls=lambda: DataLoaders(batches(), batches()[:2]))


class Indexed:
    """A loader with `batches` and without a state."""

    def batches(self, start=0):
        yield from batches()[start:]

    def __iter__(self):
        return self.batches()


@pytest.mark.parametrize("n", [2, 5, 9])
def test_loader_with_batches_alone_goes_on(folder, n):
    check(folder, n, dls=lambda: DataLoaders(Indexed(), Indexed()))


class Drawing:
    """A loader that draws a random number when a pass over it begins."""

    def batches(self, start=0):
        torch.rand(1)
        return iter(batches()[start:])

    def __iter__(self):
        return self.batches()


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_loader_that_draws_when_its_pass_begins(folder, n):
    check(folder, n, dls=lambda: DataLoaders(Drawing(), Drawing()))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 8])
def test_validation_by_a_plain_dataloader(folder, n):
    # Its place inside a phase cannot be kept, so that validation begins again.
    def dls():
        own = loaders()
        return DataLoaders(own.train, DataLoader(TensorDataset(*own.valid.tensors), 4, shuffle=True))

    check(folder, n, lambda: [MetricsCB(), CountCB()], dls=dls)


@pytest.mark.parametrize("n", [1, 3, 6, 7, 9, 12, 13, 15])
def test_batches_of_another_size_go_on(folder, n):
    learn = check(folder, n, lambda: [BatchSizeCB({1: 2})])
    assert learn.n_steps == 9


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_single_batches_go_on(folder, n):
    trace = TraceCB()
    check(folder, n, lambda: [SingleBatchCB()])
    new(trace, SingleBatchCB()).fit(N_EPOCHS)
    assert len(trace.seen) == 4


@pytest.mark.parametrize("n", [2, 5])
def test_seed_of_the_loader_is_that_of_the_checkpoint(folder, n):
    whole = stop(new(every_rest(folder), StopCB(n)))
    learn = new(every_rest(folder), seed=50)
    assert learn.dls.train.seed != whole.dls.train.seed
    learn.fit(N_EPOCHS, resume=True)
    assert learn.dls.train.seed == whole.dls.train.seed
    assert learn.dls.valid.seed == whole.dls.valid.seed


# Devices ----------------------------------------------------------------------------------------------


def on_another_device(saved):
    """Turn tensors into what a run on another device writes."""
    if isinstance(saved, torch.Tensor):
        return ("tensor", saved)
    return {k: on_another_device(v) for k, v in saved.items()} if isinstance(saved, dict) else saved


@pytest.mark.parametrize("n", [2, 7])
def test_checkpoint_of_another_device_is_gone_on_from(folder, n):
    whole = new()
    whole.fit(N_EPOCHS)
    stop(new(every_rest(folder), StopCB(n)))
    path = checkpoints_in(folder)[-1]
    saved = read_torch(path)
    parts = {key: on_another_device(saved[key]) for key in ("opt", "fields")}
    write_torch(path, saved | parts)
    learn = new(every_rest(folder), seed=50)
    learn.fit(N_EPOCHS, resume=True)
    assert first_difference(end_of(whole), end_of(learn)) == ""


def test_folder_can_be_moved(folder, tmp_path):
    stop(new(every_rest(folder), StopCB(2)))
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    trace = TraceCB()
    new(trace, every_rest(moved)).fit(N_EPOCHS, resume=True)
    assert len(trace.seen) == 8


class OwnLoader:
    """A loader with batches(start) whose order depends on the epoch."""

    def __init__(self, x, y):
        self.x, self.y, self.epoch = x, y, 0

    def __len__(self):
        return 3

    def __iter__(self):
        return self.batches()

    def set_epoch(self, epoch):
        self.epoch = epoch

    def batches(self, start=0):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch)).split(4)
        return ((self.x[index], self.y[index]) for index in order[start:])


BOTH = {
    "tensors": partial(TensorLoader, bs=4, shuffle=True),
    "data set": lambda x, y: DatasetLoader(TensorDataset(x, y), 4, shuffle=True),
    "sampler": lambda x, y: DatasetLoader(TensorDataset(x, y), 4, sampler=RandomSampler(range(12))),
    "own": OwnLoader,
}


@pytest.mark.parametrize("kind", BOTH)
def test_a_loader_to_train_and_to_validate_on_is_resumed_bit_for_bit(tmp_path, kind):
    def make(*cbs):
        set_seed(1)
        loader = BOTH[kind](*samples(12))
        return noisy_learner(MetricsCB(), *cbs, dls=DataLoaders(loader, loader))

    assert [*resumed_from_each_rest(make, tmp_path, n_rests=2 * (3 + 3 + 1) + 1)]
