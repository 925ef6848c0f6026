"""What many tests are made of: data, learners, callbacks that watch or stop them, and comparisons.

Fixtures are in conftest.py.
"""

import io
import os
import random
import re
import tarfile
from functools import partial
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, SequentialLR
from torch.utils._python_dispatch import TorchDispatchMode

from minilearn import Callback, CheckpointCB, DataLoaders, Learner, MetricsCB, TensorLoader, set_seed
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture, position_of

aten = torch.ops.aten

MOM_SGD = partial(SGD, momentum=0.9)

# Data and models --------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(n, regression=False, rng=None):
    """Return n samples of 3 features; the target is the sum of these, or whether it is over 0."""
    x = torch.randn(n, 3, generator=rng or generator())
    return x, x.sum(1, keepdim=True) if regression else (x.sum(1) > 0).long()


def drawn(model, rng=None):
    """Draw the model's parameters from N(0, 1), with `rng` only."""
    rng = rng or generator()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return model


def norm_net(p=0.0):
    """Make a net with BatchNorm and, where p > 0, Dropout."""
    dropout = [nn.Dropout(p)] if p else []
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), *dropout, nn.Linear(5, 2))


class OwnLoss(nn.Linear):
    """Compute the loss too, as the models of transformers do."""

    def forward(self, x, labels=None):
        logits = super().forward(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


class Losses(nn.Linear):
    """Return a dict of losses in training, and predictions in evaluation."""

    def forward(self, x, y=None):
        preds = super().forward(x)
        return {"loss": nn.functional.cross_entropy(preds, y)} if self.training else preds


def two_layers():
    """Make a net of two layers, so that one of them can be frozen."""
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def tanh_net(n_out=2):
    """Make a net without anything random, always the same."""
    return drawn(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n_out)))


def conv_net(p=0.0, bias=False):
    """Make a small net for images of 3 channels of 6 x 6 pixels, with BatchNorm and, where p > 0, Dropout."""
    convs = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)
    dropout = [nn.Dropout(p)] if p else []
    return nn.Sequential(*convs, *dropout, nn.Flatten(), nn.Linear(4 * 4 * 4, 2))


def as_images(dls):
    """Turn each sample into an image of one row of three pixels; return the loaders."""
    for loader in (dls.train, dls.valid):
        loader.tensors = (loader.tensors[0][:, None, None], loader.tensors[1])
    return dls


class NoLength:
    """A loader without a length."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def write_tar_of(path, *members):
    """A tar of (name, type, content or what it links to), in this order."""
    with tarfile.open(path, "w") as tar:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(data)
            else:
                member.linkname = data
            tar.addfile(member, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return path


def png(value, size=(4, 3), mode="RGB"):
    """Return the bytes of an image of one color, whose red is the value."""
    file = io.BytesIO()
    color = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


# Learners ---------------------------------------------------------------------------------------------


def make_learner(n_batches=3, n_valid=1, regression=False, *, n=None, bs=4, shuffle=False, **kwargs):
    """Make a Learner of Linear(3, 2) at lr 0.1, on batches of 4, without default callbacks.

    n: how many samples to train on, in place of n_batches batches.
    kwargs: those of Learner; the model may be a partial that makes it.
    """
    rng, n = generator(), bs * n_batches if n is None else n
    x, y = samples(n + 4 * n_valid, regression, rng)
    model = drawn(nn.Linear(3, 1 if regression else 2), rng)
    valid = TensorLoader(x[n:], y[n:], bs=4) if n_valid else None
    dls = DataLoaders(TensorLoader(x[:n], y[:n], bs=bs, shuffle=shuffle), valid)
    kwargs = {"model": model, "dls": dls, "lr": 0.1, "default_cbs": False} | kwargs
    if isinstance(kwargs["model"], partial):
        kwargs["model"] = kwargs["model"]()
    return Learner(**kwargs)


def noisy_learner(
    *cbs,
    seed=1,
    n_train=3,
    n_valid=2,
    bs=4,
    model=None,
    train=None,
    valid=None,
    dls=None,
    cls=Learner,
    **kwargs,
):
    """Make a learner with dropout, BatchNorm, momentum and shuffled batches, all drawn from `seed`.

    n_train, n_valid: batches.
    train, valid: functions that make a loader of (x, y), the samples.
    model, dls: what to use instead, or functions that make it, drawn from `seed` too.
    kwargs: those of Learner.
    """
    set_seed(seed)
    if dls is None:
        n = bs * n_train
        x, y = samples(n + bs * n_valid)
        train = (train or partial(TensorLoader, bs=bs, shuffle=True))(x[:n], y[:n])
        dls = DataLoaders(train, (valid or partial(TensorLoader, bs=bs))(x[n:], y[n:]))
    elif callable(dls):
        dls = dls()
    if not isinstance(model, nn.Module):
        model = (model or partial(norm_net, 0.3))()
    return cls(model, dls, cbs=cbs, **{"lr": 0.1, "opt_func": MOM_SGD, "default_cbs": False} | kwargs)


def conv_learner(*cbs, model=None, n_train=16, seed=None, **kwargs):
    """Make a learner of images, on shuffled batches of 4, the order drawn from `seed` if it is given.

    model: a model, or a function that makes one.
    n_train: the number of images to train on; it validates with 8 others.
    """
    rng = generator(1)
    x, y = torch.randn(n_train + 8, 3, 6, 6, generator=rng), torch.randint(2, (n_train + 8,), generator=rng)
    if seed is not None:
        set_seed(seed)
    order = {"seed": 3} if seed is None else {}
    train = TensorLoader(x[:n_train], y[:n_train], bs=4, shuffle=True, **order)
    dls = DataLoaders(train, TensorLoader(x[n_train:], y[n_train:], bs=4))
    kwargs = {"opt_func": MOM_SGD, "lr": 0.05, "default_cbs": False} | kwargs
    if not isinstance(model, nn.Module):
        model = model() if model else drawn(conv_net())
    return Learner(model, dls, cbs=cbs, **kwargs)


def two_groups(model):
    """Split a Sequential: its first module, and the rest at an lr of its own."""
    return [{"params": model[0].parameters()}, {"params": model[1:].parameters(), "lr": 0.05}]


def sequential(opt):
    return SequentialLR(opt, [ConstantLR(opt, 0.5, 2), ExponentialLR(opt, 0.9)], milestones=[2])


def chained(opt):
    return ChainedScheduler([ConstantLR(opt, 0.5, 2), ExponentialLR(opt, 0.9)])


# Callbacks --------------------------------------------------------------------------------------------


def at(event, function, order=0):
    """Make a callback that calls a function with the learner."""

    def hook(self, learn):
        function(learn)

    return type("At", (Callback,), {event: hook, "order": order})()


def fail_at(step, error=ZeroDivisionError):
    """Make a function for `at` that raises an error in a step of the training."""

    def fail(learn):
        if learn.training and learn.n_steps == step:
            raise error

    return fail


class CountCB(Callback):
    """Count the steps."""

    def __init__(self, start=0):
        self.n = start

    def after_step(self, learn):
        self.n += 1


class DecliningCB(Callback):
    """Train less and less, by a count that a resumed run has to have."""

    def __init__(self):
        self.n = 0

    def after_loss(self, learn):
        self.n += 1
        learn.loss = learn.loss / self.n


class StoppedError(Exception):
    """Stand for the end of a process."""


class StopCB(Callback):
    """End a fit at its n-th rest, as a crash does, after the checkpoint was written."""

    order = CheckpointCB.order
    free_on_resume = ("n",)

    def __init__(self, n):
        self.n = n

    def state_dict(self):
        return {}

    def at_rest(self, learn):
        self.n -= 1
        if self.n == 0:
            raise StoppedError


def stop(learn, n_epochs=2, **kwargs):
    """Fit, which StopCB ends; return the learner."""
    with pytest.raises(StoppedError):
        learn.fit(n_epochs, **kwargs)
    return learn


def every_rest(folder, **kwargs):
    """Save at each rest, and keep it all."""
    return CheckpointCB(folder, every_minutes=1e-9, keep=100, **kwargs)


def only_at_the_end(folder):
    """Save only the end of a fit of a few epochs: for a run that is resumed, and not again."""
    return CheckpointCB(folder, every_epochs=9)


def resumed_from_each_rest(make, folder, n_rests=None):
    """Fit two epochs; stop a new learner at each rest, resume it, and check that it ends the same.

    make: makes a learner with the callbacks that it is given, always the same one.
    n_rests: how many rests there have to be. None: any number.
    Gives the straight learner and the resumed one, for each rest that is dealt.
    """
    rests = StopCB(-1)  # counts them, and stops at none
    straight = make(every_rest(folder / "straight"), rests)
    straight.fit(2)
    expected = state_of(straight, "CheckpointCB")
    assert n_rests in (None, -rests.n - 1)
    for n in dealt(range(1, -rests.n)):
        stop(make(every_rest(folder / str(n)), StopCB(n)))
        learn = make(every_rest(folder / str(n)))
        learn.fit(2, resume=True)
        assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", n
        yield straight, learn


def dealt(places):
    """Return every sixth of the places to stop at, other ones in each test; .ci/full tries them all."""
    if os.environ.get("MINILEARN_EVERY_PLACE"):
        return places
    return places[crc32(os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].encode()) % 6 :: 6]


class Scripted:
    """A metric with the given values, one for each phase, and then 0."""

    def __init__(self, values):
        self.values, self.n = values, 0

    def reset(self):
        pass

    def update(self, preds, target):
        pass

    def compute(self):
        self.n += 1
        return self.values[self.n - 1] if self.n <= len(self.values) else 0.0


def scripted(evals, trains=None):
    """Make a MetricsCB whose "score" has these values in validation, and others in training."""
    trains = [100.0 + i for i in range(len(evals))] if trains is None else trains
    return MetricsCB(score=Scripted([value for pair in zip(trains, evals, strict=True) for value in pair]))


# Messages ---------------------------------------------------------------------------------------------


def mentions(text):
    """Return the regular expression of a message that has the parts of `text`, which " ... " divides."""
    return "(?s)" + ".*".join(re.escape(part) for part in text.split(" ... "))


# Comparisons ------------------------------------------------------------------------------------------


def tensors_of(model):
    """Return a copy of each parameter and each buffer, including those that are not saved."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def same(a, b):
    """Whether two dicts have the same names, and the same tensors for these."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CLOCKS = ("time_s", "samples_per_s", "memory_mb")  # columns that differ from run to run


def untimed_rows(learn):
    """Return the learner's history without the times, and what ThroughputCB adds."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in learn.history]


def state_of(learn, *left_out):
    """Return all that a checkpoint would hold, without clocks and counts of checkpoints.

    left_out: the keys of callbacks whose state is left out.
    Compare two of them with `minilearn.checkpoints.codec.first_difference`.
    """
    saved = capture(learn, position_of(learn))
    saved["history"] = untimed_rows(learn)
    for key, state in saved["cbs"].items():
        if key.startswith("MetricsCB"):
            state.pop("elapsed_s")
        if key.startswith("CSVLoggerCB"):
            for line in state["_lines"]:
                for name in CLOCKS:
                    line.pop(name, None)
        if key.startswith("TensorBoardCB"):
            rows = state["_rows"].items()
            state["_rows"] = {tag: value for tag, value in rows if tag.partition("/")[0] not in CLOCKS}
    saved["cbs"] = {key: state for key, state in saved["cbs"].items() if state and key not in left_out}
    saved["fit"].pop("index")  # only runs with checkpoints count it
    saved.pop("attributes")  # and only they know what has changed
    saved["identities"].pop("kept")
    names, same = {f"model.{name}" for name in saved["model"]}, saved["identities"]["same"]
    for path in [path for path in same if path.startswith("model.") and path not in names]:
        del same[path]  # of a plain attribute of a module, such as a config
    saved.pop("run")
    return saved


def rng_states():
    """Return the states of the global generators, in a form that == can compare."""
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


def names_in(folder):
    """Return the names of what is in a folder, but for run.json, which CheckpointCB always writes."""
    return sorted(path.name for path in folder.iterdir() if path.name != "run.json")


class SyncCounter(TorchDispatchMode):
    """Count the operations that wait for the device: those that make a Python number of a tensor."""

    waiting = (aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero)

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.overloadpacket in self.waiting
        return func(*args, **(kwargs or {}))


def syncs_in_fit(learn, n_epochs=1):
    """Fit; return how often this waited for the device."""
    with SyncCounter() as counter:
        learn.fit(n_epochs)
    return counter.n
