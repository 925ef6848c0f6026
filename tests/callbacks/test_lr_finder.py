import math
import random
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from toolbox import untimed_rows
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from minilearn import (
    Callback,
    DataLoaders,
    Learner,
    LRFinderCB,
    MetricsCB,
    RecorderCB,
    TensorLoader,
    set_seed,
)

N_SAMPLES = 40


class Model(nn.Module):
    """Everything that a sweep could leave changed: weights, both kinds of buffers, dropout's numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.register_buffer("n_calls", torch.zeros(()), persistent=False)
        self.fails_at = None

    def forward(self, x):
        self.n_calls += 1
        if self.n_calls == self.fails_at:
            raise RuntimeError("on purpose")
        return self.layers(x)


class Counter(Callback):
    def __init__(self, model=None, log=None):
        self.n, self.model, self.log, self.fails_at = 0, model, log, None

    def after_batch(self, learn):
        random.random()
        np.random.rand()
        self.n += 1
        if self.log is not None:
            self.log.append(learn.n_steps)
        if self.n == self.fails_at:
            raise RuntimeError("on purpose")


def shuffled():
    return torch.Generator().manual_seed(3)


LOADERS = {
    "generator": lambda data: DataLoader(data, 4, shuffle=True, generator=shuffled()),
    "global generator": lambda data: DataLoader(data, 4, shuffle=True),
    "sampler": lambda data: DataLoader(data, 4, sampler=RandomSampler(data, generator=shuffled())),
    "batch sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(RandomSampler(data, generator=shuffled()), 4, drop_last=False)
    ),
    "TensorLoader": lambda data: TensorLoader(*data.tensors, bs=4, shuffle=True, seed=5),
}


def make(loader="generator", **kwargs):
    set_seed(1)
    x = torch.randn(N_SAMPLES, 3)
    data = TensorDataset(x, x.sum(1, keepdim=True) + 0.1 * torch.randn(N_SAMPLES, 1))
    kwargs = {"default_cbs": False, "lr": 0.02, "cbs": [Counter(), MetricsCB()]} | kwargs
    return Learner(Model(), DataLoaders(LOADERS[loader](data), TensorLoader(*data.tensors, bs=20)), **kwargs)


def frozen(value):
    """Return nested values as they are now, to be compared."""
    if isinstance(value, Tensor):
        return frozen(value.detach().numpy())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return [frozen(item) for item in value] if isinstance(value, list | tuple) else value


def everything(learn):
    model, opt, train = learn.model, learn.opt, learn.dls.train
    return frozen(
        {
            "weights": dict(model.named_parameters()),
            "buffers": dict(model.named_buffers()),
            "modes": [module.training for module in model.modules()],
            "grads": [None if p.grad is None else p.grad for p in model.parameters()],
            "opt": (id(opt), opt and opt.state_dict()),
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "loader": train.generator.get_state() if getattr(train, "generator", None) else None,
            "epoch of the loader": getattr(train, "epoch", None),
            "callbacks": [(id(cb), vars(cb)) for cb in learn.cbs if isinstance(cb, Counter)],
            "cbs": [id(cb) for cb in learn.cbs],
            "learner": {k: v for k, v in vars(learn).items() if k[0] != "_" and not callable(v)},
        }
    )


def quadratic(**kwargs):
    """Make a learner of two weights whose loss is the sum of their squares; SGD diverges over lr 1."""
    x = torch.eye(2).repeat(4, 1) * math.sqrt(2)
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    dls = DataLoaders([(x, torch.zeros(8, 1))] * 10)
    return Learner(model, dls, **({"opt_func": SGD, "default_cbs": False} | kwargs))


# Nothing is left -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("trained", [False, True])
def test_everything_is_as_before(loader, trained):
    learn = make(loader)
    if trained:
        learn.fit(2)
    learn.model(torch.randn(8, 3)).sum().backward()
    before = everything(learn)
    assert len(learn.lr_find(n_steps=25, diverge=math.inf).losses) > 10
    assert everything(learn) == before
    assert (learn.opt is None) is not trained


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("who", ["model", "callback"])
def test_everything_is_as_before_when_it_fails(who, trained):
    learn = make()
    if trained:
        learn.fit(2)
    failing = learn.model if who == "model" else learn.cbs[-1]
    failing.fails_at = int(learn.model.n_calls if who == "model" else failing.n) + 7
    before = everything(learn)
    with pytest.raises(RuntimeError, match="on purpose"):
        learn.lr_find(n_steps=25)
    assert everything(learn) == before


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("n_before", [0, 1])
def test_fit_that_follows_is_bitwise_the_one_without(loader, n_before):
    results = []
    for find in (False, True):
        learn = make(loader)
        recorder = RecorderCB()
        for _ in range(n_before):
            learn.fit()
        if find:
            learn.lr_find(n_steps=25)
        learn.fit(2, cbs=[recorder])
        rows = untimed_rows(learn)
        results.append((frozen(dict(learn.model.named_parameters())), recorder.recs, rows))
    assert results[0] == results[1]


def test_frozen_modules_stay_in_their_mode():
    learn = make()
    learn.model.layers[1].eval()
    learn.lr_find(n_steps=12)
    assert [learn.model.training, learn.model.layers[1].training] == [True, False]


def test_callback_keeps_what_it_refers_to():
    log = []
    learn = make()
    cb = Counter(learn.model, log)
    learn.add_cb(cb)
    parameters = list(learn.model.parameters())
    learn.lr_find(n_steps=12)
    assert cb.model is learn.model
    assert all(p is q for p, q in zip(learn.model.parameters(), parameters, strict=True))
    assert cb.log is log
    assert log == []


def test_callbacks_that_only_watch_sit_it_out():
    recorder = RecorderCB()
    learn = make(cbs=[recorder, MetricsCB()])
    learn.lr_find(n_steps=12)
    assert recorder.recs == {}
    assert learn.history == []


# The sweep -----------------------------------------------------------------------------------------


def test_lr_rises_by_one_factor_from_start_to_end(at):
    used = []
    look = at("after_step", lambda learn: used.append(learn.opt.param_groups[0]["lr"]))
    finder = quadratic(cbs=[look]).lr_find(start_lr=1e-5, end_lr=1e-1, n_steps=41)
    assert finder.lrs[::10] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert used == finder.lrs
    assert len(finder.losses) == 41


def test_losses_are_those_of_sgd_by_hand():
    finder = quadratic().lr_find(start_lr=1e-3, end_lr=0.5, n_steps=20)
    weight, losses = 1.0, []  # loss = (2 w^2 + 2 w^2) / 2 of two equal weights, with gradient 2 w each
    for lr in finder.lrs:
        losses.append(2 * weight**2)
        weight -= lr * 2 * weight
    assert finder.losses == pytest.approx(losses, rel=1e-4)


def test_two_groups_are_swept_together_and_put_back(at):
    lrs = []
    look = at("after_step", lambda learn: lrs.append([group["lr"] for group in learn.opt.param_groups]))
    learn = make(lr=[0.1, 0.2], param_groups=lambda model: [[p] for p in halves(model)], cbs=[look])
    learn.fit()
    del lrs[:]
    finder = learn.lr_find(n_steps=15)
    assert lrs == [[lr, lr] for lr in finder.lrs]
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.2]


def halves(model):
    for p in model.parameters():
        p.requires_grad_(False)
    return [p.requires_grad_() for p in (model.layers[0].weight, model.layers[3].weight)]


def test_sweep_goes_on_over_epochs_of_a_short_loader():
    finder = make().lr_find(end_lr=0.1, n_steps=34)  # the loader has 10 batches
    assert len(finder.losses) == 34


def test_loader_without_length_is_swept():
    class NoLength:
        def __iter__(self):
            return iter([(torch.ones(2, 3), torch.ones(2, 1))] * 3)

    learn = make(cbs=[])
    learn.dls.train = NoLength()
    assert len(learn.lr_find(end_lr=0.1, n_steps=12).losses) == 12


def test_diverging_loss_stops_the_sweep():
    kwargs = {"start_lr": 1.01, "end_lr": 1.3, "n_steps": 30}
    finder = quadratic().lr_find(**kwargs)
    assert len(finder.losses) < len(quadratic().lr_find(diverge=math.inf, **kwargs).losses) == 30
    assert 2 < max(finder.smoothed) / min(finder.smoothed) <= 4


def test_loss_that_is_not_finite_stops_the_sweep(at):
    def spoil(learn):
        if learn.n_steps == 12:
            learn.loss = learn.loss * math.nan

    finder = quadratic(cbs=[at("after_loss", spoil)]).lr_find(n_steps=30)
    assert len(finder.losses) == 12


# What comes of it ----------------------------------------------------------------------------------


def test_suggestion_is_where_the_loss_falls():
    finder = quadratic().lr_find(start_lr=1e-5, end_lr=10)
    assert 1e-3 < finder.suggestion < 1  # under 1e-3 nothing moves in 100 steps, over 1 it diverges
    assert finder.suggestion in finder.lrs


def test_suggestion_trains():
    learn = quadratic()
    lr = learn.lr_find(start_lr=1e-5, end_lr=10).suggestion
    learn.fit(5, lr=lr)
    assert learn.loss < 0.02  # it begins at 2


def test_no_suggestion_where_the_loss_never_falls():
    finder = quadratic().lr_find(start_lr=50, end_lr=100, n_steps=10)
    with pytest.raises(ValueError, match=r"loss.*lr 50.*100"):
        _ = finder.suggestion


def test_plot_returns_a_figure_with_the_suggestion():
    finder = quadratic().lr_find()
    figure = finder.plot()
    assert isinstance(figure, Figure)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["loss", "smoothed", f"suggestion {finder.suggestion:.2g}"]


def test_plot_without_a_suggestion_says_so():
    figure = quadratic().lr_find(start_lr=50, end_lr=100, n_steps=10).plot()
    assert "no suggestion" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start_lr": 0.0}, r"start_lr=0.0, end_lr=10.0.*0 < start_lr < end_lr"),
        ({"start_lr": 1.0, "end_lr": 0.1}, r"start_lr=1.0, end_lr=0.1.*0 < start_lr < end_lr"),
        ({"n_steps": 9}, r"n_steps=9.*10"),
        ({"smooth": 1.0}, r"smooth=1.0.*0 <= smooth < 1"),
        ({"smooth": -0.1}, r"smooth=-0.1.*0 <= smooth < 1"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LRFinderCB(**kwargs)


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="num_it"):
        quadratic().lr_find(num_it=100)


def test_error_in_a_callback_says_that_it_was_in_lr_find(at):
    def fail(learn):
        raise RuntimeError("on purpose")

    learn = make(cbs=[at("after_epoch", fail)])
    with pytest.raises(RuntimeError, match="on purpose") as error:
        learn.lr_find(n_steps=30)
    assert re.search("lr_find.*in_lr_find = False", error.value.__notes__[-1])
