"""A run that is resumed calls the same hooks as a straight one, and they see the same."""

import random
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from toolbox import dealt, every_rest, noisy_learner, samples, state_of
from torch.utils.data import TensorDataset

from minilearn import Callback, CheckpointCB, DatasetLoader, MetricsCB, TensorLoader
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in, read
from minilearn.plan import Position

pytestmark = pytest.mark.slow

N_EPOCHS, N_TRAIN, N_VALID = 2, 2, 2
N_PLACES = N_EPOCHS * (N_TRAIN + N_VALID + 1)  # the last one twice, at the end of the epoch and of the fit
EVENTS = ("before_fit", "before_epoch", "before_train", "before_validate")


class NoisyData(TensorDataset):
    """Samples with noise, as augmentation has it."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(3), y


def dataset_loader(x, y, **kwargs):
    return DatasetLoader(NoisyData(x, y), bs=4, **kwargs)


def batches(x, y):
    return list(zip(x.split(4), y.split(4), strict=True))


LOADERS = {
    "TensorLoader": {"train": partial(TensorLoader, bs=4, shuffle=True)},
    "DatasetLoader": {"train": partial(dataset_loader, shuffle=True), "valid": dataset_loader},
    "list": {"train": batches, "valid": batches},
}


class OwnCB(Callback):
    """A user's callback whose state changes in each batch, and acts upon training."""

    def __init__(self):
        self.n, self.scale, self.seen = 0, 1.0, []

    @property
    def is_put_back(self):
        """Whether its state is put back for hooks at a beginning, and not only for the batches."""
        return any(hasattr(self, event) for event in EVENTS[1:])

    def after_loss(self, learn):
        learn.loss = learn.loss * self.scale

    def after_batch(self, learn):
        self.n += 1

    def _act(self, learn):
        raise NotImplementedError


class ValidatesCB(OwnCB):
    is_put_back = False  # it sees other weights: a checkpoint has them once

    def _act(self, learn):
        if not learn.is_nested:
            self.scale = 1 / (1 + learn.validate()["loss"])


class DrawsCB(OwnCB):
    def _act(self, learn):
        self.scale = random.random() + np.random.random() + torch.rand(()).item()


class ReadsCB(OwnCB):
    def _act(self, learn):
        self.seen = [*self.seen, (self.n, learn.n_steps, learn.n_epochs_trained, len(learn.history))]
        self.scale = 1 / (1 + self.n)


class ReplacesCB(OwnCB):
    """Put another loader in place, by its own state."""

    def _act(self, learn):
        if learn.dl is not None and learn.scopes[-1] in ("train", "validate"):
            x, y = samples(12)
            learn.dl = batches(x.roll(self.n, 0), y.roll(self.n, 0))[:2]


class LateFieldCB(OwnCB):
    """Make an attribute in a batch, and look for it at a beginning."""

    def after_batch(self, learn):
        super().after_batch(learn)
        if learn.epoch == 1:
            self.late = 0.3

    def _act(self, learn):
        self.scale = getattr(self, "late", self.scale)


KINDS = {cls.__name__: cls for cls in (ValidatesCB, DrawsCB, ReadsCB, ReplacesCB, LateFieldCB)}


def acting_at(kind, event):
    return type(kind, (KINDS[kind],), {event: lambda self, learn: self._act(learn)})()


class SeesCB(Callback):
    """Note what can be seen at hooks of fit, epoch and phases, and at each batch; `sees` gives it hooks."""

    order = -60

    def __init__(self):
        self.seen = []

    def state_dict(self):
        return {}

    def _look(self, event, learn):
        if learn.is_nested:
            return
        own = next(cb for cb in learn.cbs if isinstance(cb, OwnCB))
        state = deepcopy(vars(own)) if event not in EVENTS or own.is_put_back else {}
        rows = [row["loss"] for row in learn.history]
        counts = (learn.epoch, learn.n_steps, learn.n_epochs_trained)
        self.seen.append((event, counts, state, rows, rng_digest()))


def rng_digest():
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    return hash(states)


def sees():
    cls = type("SeesCB", (SeesCB,), {})
    for event in (*EVENTS, "before_batch", "after_batch", "after_train", "after_epoch", "after_fit"):

        def hook(self, learn, event=event):
            self._look(event, learn)

        setattr(cls, event, hook)
    return cls()


def new(*cbs, loader="TensorLoader", seed=1):
    return noisy_learner(*cbs, seed=seed, n_train=N_TRAIN, n_valid=N_VALID, **LOADERS[loader])


def check_every_place(folder, make, loader):
    """Save at every rest, resume from each file, and compare with the run that was not stopped."""
    straight = new(*make(), all_seen := sees(), every_rest(folder), loader=loader)
    straight.fit(N_EPOCHS)
    files = checkpoints_in(folder)
    assert len(files) == N_PLACES
    for path in dealt(files):
        saver = CheckpointCB(folder / path.stem, every_epochs=99)
        resumed = new(*make(), seen := sees(), saver, seed=50, loader=loader)
        resumed.fit(N_EPOCHS, resume=path)
        assert (
            first_difference(state_of(straight, "CheckpointCB"), state_of(resumed, "CheckpointCB")) == ""
        ), path
        position = Position(**read(path)["position"])
        if not position.is_over:
            check_seen(all_seen.seen, seen.seen, position)


def check_seen(straight, resumed, n):
    """Compare, but for before_fit, the hooks that a run called again and those that it continued with."""
    again = 2 if n.is_inside else 0  # before_epoch, and that of the phase
    head, tail = resumed[1 : 1 + again], resumed[1 + again :]
    epoch = head[0][1][0] if head else None
    assert [e[:2] for e in straight[len(straight) - len(tail) :]] == [e[:2] for e in tail], n
    assert straight[len(straight) - len(tail) :] == tail, n
    for entry in head:
        expected = next(e for e in straight if (e[0], e[1][0]) == (entry[0], epoch))
        assert entry == expected, n


@pytest.mark.parametrize(
    "loader", [pytest.param(name, marks=pytest.mark.full if i else ()) for i, name in enumerate(LOADERS)]
)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_at_a_beginning_see_the_same_in_a_resumed_run(tmp_path, kind, event, loader):
    check_every_place(tmp_path, lambda: [acting_at(kind, event), MetricsCB()], loader)


def test_hooks_at_the_beginning_of_a_second_validation_set_see_the_same_in_a_resumed_run(tmp_path):
    def two_sets(x, y):
        return {"a": batches(x, y), "b": batches(x.flip(0), y.flip(0))}

    def make(*cbs, seed=1):
        own = acting_at("ReplacesCB", "before_validate")
        return noisy_learner(own, MetricsCB(), *cbs, seed=seed, train=batches, valid=two_sets)

    straight = make(every_rest(tmp_path))
    straight.fit(N_EPOCHS)
    inside = [path for path in checkpoints_in(tmp_path) if Position(**read(path)["position"]).part == 1]
    assert len(inside) == 2 * N_EPOCHS  # after each batch but the last, and where the set begins
    for path in inside:
        resumed = make(CheckpointCB(tmp_path / path.stem, every_epochs=99), seed=50)
        resumed.fit(N_EPOCHS, resume=path)
        difference = first_difference(state_of(straight, "CheckpointCB"), state_of(resumed, "CheckpointCB"))
        assert difference == "", path
