import math
import random
import re
from collections import Counter as Counting
from collections import deque

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from toolbox import drawn, untimed_rows
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


@pytest.mark.slow
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


class CentreLoss(nn.Module):
    """A loss with a parameter, a buffer that is replaced, one that is not saved, and a mode."""

    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("n_calls", torch.zeros(()), persistent=False)

    def forward(self, preds, target):
        self.mean = self.mean.lerp(preds.detach().mean(), 0.5)
        self.n_calls += 1
        return (preds * self.scale - target - self.mean).square().mean()


class RichCB(Callback):
    """Keep about everything that a callback may keep, and change all of it."""

    def __init__(self):
        self.scale = nn.Parameter(torch.zeros(()))
        self.net = drawn(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        self.opt = torch.optim.Adam(self.net.parameters(), 0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.5)
        self.tensor, self.array, self.set, self.list = torch.ones(2), np.ones(2), {1}, [[1]]
        self.counter, self.queue, self.pair = Counting(a=1), deque([1]), ([1], 2)
        self.helper, self.iterator, self.late = Helper(), iter(range(1000)), None
        self.rng, self.generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        self.table = {"nested": {"list": [1]}, "function": print}
        self.me = self

    def extra_params(self, learn):
        return [self.scale]

    def after_loss(self, learn):
        learn.loss = learn.loss * (-self.scale).exp() + self.scale

    def after_step(self, learn):
        self.net.train()
        self.opt.zero_grad()
        self.net(learn.batch[0]).square().mean().backward()
        self.opt.step()
        self.scheduler.step()
        self.tensor += torch.rand(2, generator=self.generator)
        self.array += self.rng.random()
        self.set.add(len(self.set))
        self.list[0].append(1)
        self.counter["a"] += 1
        self.queue.append(2)
        self.pair[0].append(1)
        self.helper.n += 1
        self.helper.log.append(learn.n_steps)
        next(self.iterator)
        self.late, self.new = learn.n_steps, 1
        self.table["nested"] = {"list": []}
        self.table["function"] = None
        self.net.eval()

    def state(self):
        simple = (self.tensor, self.array, sorted(self.set), self.list, dict(self.counter), list(self.queue))
        more = (self.pair, self.helper.n, self.helper.log, self.late, self.table, self.scale)
        random = (self.rng.random(), torch.rand(1, generator=self.generator))
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.opt.param_groups]
        modes = [m.training for m in self.net.modules()]
        nets = (dict(self.net.state_dict()), [p.grad for p in self.net.parameters()], modes)
        opts = (groups, self.opt.state_dict()["state"], self.scheduler.state_dict())
        return frozen([simple, more, nets, opts, random])

    def objects(self):
        params = [*self.net.parameters(), *(p for g in self.opt.param_groups for p in g["params"])]
        inside = [self.list[0], self.table["nested"], self.helper.log, self.pair[0], self.scheduler.optimizer]
        return [id(x) for x in [*vars(self).values(), *params, *inside]]


class Helper:
    def __init__(self):
        self.n, self.log = 0, []


def test_loss_and_all_that_a_callback_keeps_are_as_before_in_the_same_objects():
    learn = make(loss_func=CentreLoss(), cbs=[cb := RichCB(), MetricsCB()])
    learn.fit(1)
    make(loss_func=CentreLoss(), cbs=[other := RichCB(), MetricsCB()]).fit(1)
    names, objects = list(vars(cb)), cb.objects()
    learn.loss_func.drop.eval()
    tensors = [*learn.loss_func.parameters(), *learn.loss_func.buffers()]
    loss = frozen([t.clone() for t in tensors])
    learn.lr_find(n_steps=25, diverge=math.inf)
    assert list(vars(cb)) == names
    assert cb.objects() == objects
    assert next(cb.iterator) > 11  # what cannot be saved is the same object, and has moved on
    assert cb.state() == other.state()
    now = [*learn.loss_func.parameters(), *learn.loss_func.buffers()]
    assert frozen(now) == loss
    assert all(t is u for t, u in zip(now, tensors, strict=True))
    assert (learn.loss_func.training, learn.loss_func.drop.training) == (True, False)


@pytest.mark.slow
def test_fit_after_it_trains_loss_and_callback_as_without_it():
    results = []
    for find in (False, True):
        learn = make(loss_func=CentreLoss(), cbs=[cb := RichCB(), MetricsCB()])
        learn.fit()
        if find:
            learn.lr_find(n_steps=25, diverge=math.inf)
        learn.fit(2)
        results.append(
            (frozen(dict(learn.model.named_parameters())), frozen(learn.loss_func.scale), cb.state())
        )
    assert results[0] == results[1]


def test_what_was_frozen_or_put_into_the_model_in_the_sweep_is_not_afterwards(at):
    def change(learn):
        if learn.epoch == 1:
            learn.freeze("layers.1")
            learn.model.layers[0].requires_grad_(False)
            learn.model.layers.append(nn.Identity())
            learn.added = 1

    learn = make(cbs=at("before_epoch", change))
    learn.lr_find(n_steps=25, diverge=math.inf)
    assert all(p.requires_grad for p in learn.model.parameters())
    assert all(m.training for m in learn.model.modules())
    assert len(learn.model.layers) == 4
    assert learn.modes.frozen_norms == []
    assert not hasattr(learn, "added")


class StatefulLoader:
    """Resume where it stood, with an order of its own."""

    def __init__(self):
        self.n = 0

    def __len__(self):
        return 10

    def __iter__(self):
        for _ in range(10):
            self.n += 1
            yield torch.full((2, 3), self.n / 10), torch.ones(2, 1)

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_loader_with_a_state_of_its_own_is_where_it_was():
    learn = make(cbs=[])
    learn.dls.train = StatefulLoader()
    learn.fit()
    learn.lr_find(end_lr=0.1, n_steps=12)
    assert learn.dls.train.n == 10


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


def test_sweep_continues_over_epochs_of_a_short_loader():
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
