import math
import multiprocessing
import os
import random
import signal
from copy import deepcopy
from functools import partial
from io import StringIO
from itertools import product

import numpy as np
import pytest
import torch
from rich.console import Console
from test_all_resume import check_each_place
from toolbox import (
    StopCB,
    StoppedError,
    noisy_learner,
    norm_net,
    same,
    state_of,
    syncs_in_fit,
    tensors_of,
    two_groups,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from minilearn import (
    EMACB,
    SWACB,
    BaseAveragingCB,
    BatchSchedulerCB,
    Callback,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CheckpointCB,
    CompileCB,
    EarlyStoppingCB,
    EpochSchedulerCB,
    GradientAccumulationCB,
    MetricsCB,
    MixedPrecisionCB,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
    TensorLoader,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.schedules import cosine
from minilearn.seeding import rng_state

BOTH = pytest.mark.parametrize("make", [lambda: SWACB(1), lambda: EMACB(0.8)], ids=["SWACB", "EMACB"])


def norm_learner(*cbs, n_train=4, model=norm_net, **kwargs):
    return noisy_learner(MetricsCB(), *cbs, n_train=n_train, model=model, **kwargs)


def params_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def statistics_of(model):
    return {name: t.detach().clone() for name, t in model.named_buffers()}


def assert_near(a, b):
    """Torch's tolerance for float32: the same sums may be taken in another order."""
    torch.testing.assert_close(dict(a), dict(b))


class WatchCB(Callback):
    """Keep the weights after each step and each epoch's training, and the training batches of each epoch."""

    def __init__(self):
        self.start, self.steps, self.epochs, self.tensors, self.batches = {}, [], [], [], []

    def state_dict(self):
        return {}

    def before_fit(self, learn):
        if "train" in learn.phases:
            self.start = params_of(learn.model)

    def before_train(self, learn):
        self.batches.append([])

    def before_batch(self, learn):
        if learn.training:
            self.batches[-1].append(learn.batch)

    def after_step(self, learn):
        self.steps.append(params_of(learn.model))

    def after_train(self, learn):
        self.epochs.append(params_of(learn.model))
        self.tensors.append(tensors_of(learn.model))


def mean_by_torch(weights, average=None):
    """Average with torch's AveragedModel; by default as SWA does."""
    holder = nn.ParameterDict({name.replace(".", "/"): p for name, p in weights[0].items()})
    averaged = AveragedModel(holder, multi_avg_fn=average or get_swa_multi_avg_fn())
    for values in weights:
        for name, p in values.items():
            holder[name.replace(".", "/")].data.copy_(p)
        averaged.update_parameters(holder)
    return {name.replace("/", "."): p.detach() for name, p in averaged.module.items()}


def with_norms_of(weights, batches, model=norm_net):
    """Make a model of these weights, with BatchNorm statistics by torch's update_bn."""
    model = model()
    model.load_state_dict(weights, strict=False)
    update_bn(batches, model)
    return model.eval()


@torch.no_grad()
def loss_of(model, batches):
    """Return the mean loss over samples, in evaluation mode."""
    batches = list(batches)
    total = sum(F.cross_entropy(model.eval()(x), y, reduction="sum").item() for x, y in batches)
    return total / sum(len(y) for _, y in batches)


def kinds(learn):
    return [(row["epoch"], row["train"]) for row in learn.history]


def losses(learn, kind):
    return {row["epoch"]: row["loss"] for row in learn.history if row["train"] == kind}


# The averages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "first"), [(0, 0), (1, 1), (3, 3), (0.5, 2), (0.74, 2), (0.75, 3)])
def test_swa_is_torchs_average_of_the_weights_at_the_end_of_each_epoch_from_start(start, first):
    watch, swa = WatchCB(), SWACB(start)
    learn = norm_learner(watch, swa)
    learn.fit(4)
    assert swa.n_averaged == 4 - first
    assert_near(params_of(learn.model), mean_by_torch(watch.epochs[first:]))


@pytest.mark.parametrize(("share", "n_epochs", "first"), [(0.29, 100, 29), (0.57, 100, 57), (0.58, 50, 29)])
def test_share_that_is_a_whole_number_of_epochs_is_that_epoch(share, n_epochs, first):
    assert norm_learner(SWACB(share, swa_lr=0.1)).scheduled_epochs(n_epochs) == first


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_swa_by_steps_is_torchs_average_of_the_weights_at_every_kth_step_from_start(start, every):
    watch, swa = WatchCB(), SWACB(start, every_steps=every)
    learn = norm_learner(watch, swa)
    learn.fit(3)
    taken = watch.steps[4 * start :][every - 1 :: every]
    assert swa.n_averaged == len(taken) == (12 - 4 * start) // every
    assert_near(params_of(learn.model), mean_by_torch(taken))


def ema_by_hand(start, steps, decay, warmup):
    average = {name: p.double() for name, p in start.items()}
    for t, weights in enumerate(steps):
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = {name: d * average[name] + (1 - d) * p.double() for name, p in weights.items()}
    return {name: p.float() for name, p in average.items()}


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.3, 1), (0.3, 3), (0.999, 5)])
def test_ema_is_the_recursion_by_hand(decay, warmup, every):
    watch, ema = WatchCB(), EMACB(decay, warmup, every)
    learn = norm_learner(watch, ema)
    learn.fit(3)
    steps = watch.steps[every - 1 :: every]
    assert ema.n_averaged == 1 + len(steps) == 1 + 12 // every
    assert_near(params_of(learn.model), ema_by_hand(watch.start, steps, decay, warmup))


def test_warm_up_of_ema_begins_at_a_tenth():
    watch = WatchCB()
    learn = norm_learner(watch, EMACB(0.999), n_train=1)
    learn.fit(1)
    expected = {name: 0.1 * watch.start[name] + 0.9 * p for name, p in watch.steps[0].items()}
    assert_near(params_of(learn.model), expected)


def test_ema_without_warm_up_is_torchs():
    watch = WatchCB()
    learn = norm_learner(watch, EMACB(0.7, warmup=False))
    learn.fit(2)
    expected = mean_by_torch([watch.start, *watch.steps], get_ema_multi_avg_fn(0.7))
    assert_near(params_of(learn.model), expected)


def test_ema_counts_optimizer_steps_not_batches():
    watch, ema = WatchCB(), EMACB(0.8, warmup=False)
    learn = norm_learner(watch, ema, GradientAccumulationCB(2), n_train=5)
    learn.fit(2)
    assert len(watch.steps) == 6
    assert ema.n_averaged == 7
    assert_near(params_of(learn.model), ema_by_hand(watch.start, watch.steps, 0.8, False))


def test_cancelled_steps_are_not_averaged(at):
    def cancel(learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException

    watch, ema = WatchCB(), EMACB(0.8)
    learn = norm_learner(watch, at("before_step", cancel), ema)
    learn.fit(2)
    assert ema.n_averaged == 1 + len(watch.steps) == 5
    assert_near(params_of(learn.model), ema_by_hand(watch.start, watch.steps, 0.8, True))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_averaged_in_float32_or_wider(make, dtype):
    watch, cb = WatchCB(), make()
    learn = norm_learner(
        watch, cb, model=lambda: nn.Linear(3, 2).to(dtype), train=cast(dtype), valid=cast(dtype)
    )
    learn.fit(4)
    wide = torch.promote_types(dtype, torch.float32)
    weights = [
        {name: p.to(wide) for name, p in step.items()}
        for step in (watch.epochs[1:] if isinstance(cb, SWACB) else [watch.start, *watch.steps])
    ]
    by_hand = mean_by_torch(weights) if isinstance(cb, SWACB) else ema_wide(weights, 0.8)
    assert {t.dtype for t in cb.state_dict()["averages"].values()} == {wide}
    assert_near(cb.state_dict()["averages"], by_hand)
    assert {p.dtype for p in learn.model.parameters()} == {dtype}
    assert_near(params_of(learn.model), {name: p.to(dtype) for name, p in by_hand.items()})


def cast(dtype):
    return lambda x, y: TensorLoader(x.to(dtype), y, bs=4)


def ema_wide(weights, decay):
    average = weights[0]
    for t, new in enumerate(weights[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = {name: d * average[name] + (1 - d) * p for name, p in new.items()}
    return average


class Rotated(nn.Module):
    """One real weight and one complex."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, x):
        return (self.linear(x) * self.turn).real


def test_complex_weights_are_averaged_too():
    watch = WatchCB()
    learn = norm_learner(watch, SWACB(0), model=Rotated)
    learn.fit(3)
    expected = torch.stack([weights["turn"] for weights in watch.epochs]).mean(0)
    torch.testing.assert_close(learn.model.turn.detach(), expected)


def test_frozen_weights_and_tied_ones_are_themselves_in_the_average():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    watch = WatchCB()
    learn = norm_learner(watch, EMACB(0.8), model=Tied)
    learn.freeze("c")
    learn.fit(2)
    assert_near(params_of(learn.model), ema_by_hand(watch.start, watch.steps, 0.8, True))
    assert torch.equal(learn.model.c.weight, watch.start["c.weight"])
    assert learn.model.b.weight is learn.model.a.weight


# The rows ---------------------------------------------------------------------------------------------


def test_rows_of_an_epoch_are_train_iterate_and_eval_from_the_first_average_on():
    learn = norm_learner(SWACB(1))
    learn.fit(3)
    later = [(epoch, kind) for epoch in (1, 2) for kind in ("train", "iterate", "eval")]
    assert kinds(learn) == [(0, "train"), (0, "eval"), *later]
    keys = [row.keys() for row in learn.history]
    assert all(row == keys[0] for row in keys)


def test_ema_has_an_average_from_the_first_epoch_on():
    learn = norm_learner(EMACB())
    learn.fit(1)
    assert kinds(learn) == [(0, "train"), (0, "iterate"), (0, "eval")]


def test_there_is_no_iterate_before_the_first_average_by_steps():
    learn = norm_learner(SWACB(0, every_steps=6))  # 4 steps an epoch
    learn.fit(2)
    assert kinds(learn) == [(0, "train"), (0, "eval"), (1, "train"), (1, "iterate"), (1, "eval")]


def test_without_validation_there_are_only_rows_of_training():
    learn = norm_learner(SWACB(0))
    learn.fit(2, valid=False)
    assert kinds(learn) == [(0, "train"), (1, "train")]


def test_without_metrics_there_are_no_rows(make_learner):
    learn = make_learner(cbs=[EMACB()])
    learn.fit(1)
    assert learn.history == []


def test_iterate_is_the_loss_of_the_trained_weights_and_eval_that_of_the_average():
    watch = WatchCB()
    learn = norm_learner(watch, SWACB(1))
    learn.fit(3)
    valid = list(learn.dls.valid)
    for epoch in (1, 2):
        iterate = norm_net()
        iterate.load_state_dict(watch.tensors[epoch])
        average = with_norms_of(mean_by_torch(watch.epochs[1 : epoch + 1]), watch.batches[epoch])
        assert losses(learn, "iterate")[epoch] == pytest.approx(loss_of(iterate, valid), rel=1e-6)
        assert losses(learn, "eval")[epoch] == pytest.approx(loss_of(average, valid), rel=1e-5)
        assert losses(learn, "iterate")[epoch] != losses(learn, "eval")[epoch]


def test_rows_of_what_is_not_averaged_are_those_of_a_fit_without_it():
    plain, averaged = norm_learner(), norm_learner(SWACB(1))
    plain.fit(3)
    averaged.fit(3)
    assert losses(averaged, "train") == losses(plain, "train")
    assert losses(averaged, "eval")[0] == losses(plain, "eval")[0]
    assert losses(averaged, "iterate") == {epoch: losses(plain, "eval")[epoch] for epoch in (1, 2)}


# BatchNorm --------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("valid", [True, False])
def test_statistics_of_the_average_are_those_of_torchs_update_bn(make, valid):
    watch = WatchCB()
    learn = norm_learner(watch, make())
    learn.fit(3, valid=valid)
    expected = with_norms_of(params_of(learn.model), watch.batches[-1])
    assert_near(tensors_of(learn.model), tensors_of(expected))
    assert learn.model[1].momentum == 0.1
    assert learn.model[1].num_batches_tracked == 4


@pytest.mark.parametrize(("n", "measured"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_statistics_are_measured_on_so_many_training_batches(n, measured, at):
    watch, batches = WatchCB(), []

    def count(learn):
        if learn.purpose == "measure":
            batches.append(learn.xb)

    learn = norm_learner(watch, SWACB(1, n_norm_batches=n), at("cleanup_batch", count))
    learn.fit(2)
    assert len(batches) == measured == learn.model[1].num_batches_tracked
    assert all(torch.equal(a, b[0]) for a, b in zip(batches, watch.batches[1], strict=False))
    assert_near(
        tensors_of(learn.model), tensors_of(with_norms_of(params_of(learn.model), watch.batches[1][:n]))
    )


def passes(at, *cbs, **kwargs):
    """Count the batches that a fit of three epochs goes through in all."""
    batches = []
    learn = norm_learner(*cbs, at("before_batch", batches.append), **kwargs)
    learn.fit(3)
    return len(batches)


def test_models_without_batch_norms_need_no_pass_over_the_data(at):
    def net():
        return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))

    plain = 3 * (4 + 2)
    assert passes(at, SWACB(1), model=net) == plain + 2 * 2  # the iterate's validation
    assert passes(at, SWACB(1)) == plain + 2 * 2 + 2 * 4  # and BatchNorm's


def test_batch_norms_without_statistics_need_no_pass_over_the_data(at):
    def net():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))

    assert passes(at, EMACB(), model=net) == 3 * (4 + 2 + 2)


def test_statistics_are_measured_once_for_an_average(at):
    batches = []

    def count(learn):
        batches.append(learn.model[1].training and not learn.training)
        assert batches[-1] is (learn.purpose == "measure")

    def look(learn):
        for _ in range(2):
            with learn.averaged():
                pass

    learn = norm_learner(SWACB(0), at("cleanup_batch", count), at("after_epoch", look))
    learn.fit(2)
    look(learn)
    assert sum(batches) == 2 * 4


def two_norms():
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )


@BOTH
@pytest.mark.parametrize("how", ["frozen", "in evaluation mode"])
def test_batch_norms_that_are_not_trained_keep_their_statistics(make, how):
    learn = norm_learner(make(), model=two_norms)
    learn.model[1].running_mean.fill_(0.25)
    before = statistics_of(learn.model[1])
    if how == "frozen":
        learn.freeze("1")
    else:
        learn.model[1].eval()
    learn.fit(3)
    assert same(statistics_of(learn.model[1]), before)
    assert learn.model[3].num_batches_tracked == 4
    assert [learn.model[1].training, learn.model[3].training] == [False, True]


def test_model_found_in_evaluation_mode_has_its_norms_measured():
    watch = WatchCB()
    learn = norm_learner(watch, SWACB(0))
    learn.model.eval()
    learn.fit(2)
    assert_near(tensors_of(learn.model), tensors_of(with_norms_of(params_of(learn.model), watch.batches[-1])))
    assert not learn.model[1].training


def test_dropout_is_off_while_statistics_are_measured(at):
    modes = set()

    def look(learn):
        if not learn.training:
            modes.add((learn.model.training, learn.model[1].training, learn.model[3].training))

    norm_learner(SWACB(0), at("cleanup_batch", look), model=partial(norm_net, 0.5)).fit(2)
    assert modes == {(False, True, False), (False, False, False)}


def deep_net():
    layers = [layer for _ in range(3) for layer in (nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))]
    return nn.Sequential(nn.Linear(3, 16), *layers[:-1], nn.Linear(16, 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_averaged_weights_with_their_own_statistics_beat_those_with_the_iterates(seed):
    # An average is smaller than the weights that are in it, which differ by the noise of small batches; under
    # the iterate's statistics its activations are too small, the more so the deeper they lie.
    watch = WatchCB()
    swa = SWACB(1, every_steps=3)
    learn = norm_learner(watch, swa, seed=seed, model=deep_net, n_train=16, n_valid=16, bs=16)
    learn.fit(6)
    valid, average = list(learn.dls.valid), params_of(learn.model)
    stale = deep_net()
    stale.load_state_dict({**watch.tensors[-1], **average})
    fresh = with_norms_of(average, watch.batches[-1], deep_net)
    assert losses(learn, "eval")[5] == pytest.approx(loss_of(fresh, valid), rel=1e-4)
    assert not torch.allclose(stale[1].running_var, fresh[1].running_var, rtol=0.1)
    assert losses(learn, "eval")[5] < 0.8 * loss_of(stale, valid)  # 0.55 to 0.69 of it


@BOTH
def test_scaled_weights_under_batch_norm_are_averaged_without_harm(make, at):
    # Weights before BatchNorm may be scaled: the model stays the same, if the statistics follow.
    learn = norm_learner(make(), opt_func=SGD, lr=0.0)
    before = params_of(learn.model)

    def scale(learn):
        with torch.no_grad():
            learn.model[0].weight.copy_(before["0.weight"] * (1 + learn.n_steps))
            learn.model[0].bias.copy_(before["0.bias"] * (1 + learn.n_steps))

    learn.fit(4, cbs=[at("after_step", scale)])
    evals, last = losses(learn, "eval"), params_of(learn.model)
    assert last["0.weight"].norm() > 5 * before["0.weight"].norm()
    assert evals[3] == pytest.approx(
        loss_of(with_norms_of(before, learn.dls.train), learn.dls.valid), rel=1e-3
    )
    assert losses(learn, "iterate")[3] != pytest.approx(evals[3], rel=1e-3)  # BatchNorm lags behind


# Training is not touched ------------------------------------------------------------------------------


class TraceCB(Callback):
    """Keep all that training has after each of its batches, and at the end of its epochs."""

    order = -200

    def __init__(self):
        self.seen = []

    def before_batch(self, learn):
        if learn.training:
            self.seen.append({"drawn": (random.random(), float(np.random.rand())), "x": learn.xb.clone()})

    def after_batch(self, learn):
        if learn.training:
            self.seen.append(moment_of(learn))

    def before_train(self, learn):
        self.seen.append(moment_of(learn))


def moment_of(learn):
    modes = [module.training for module in learn.model.modules()]
    opt = deepcopy(learn.opt.state_dict())
    return {"model": tensors_of(learn.model), "opt": opt, "rng": rng_state(), "modes": modes}


class ValidateInsideCB(Callback):
    """Validate the average during the epoch, once there is one."""

    def __init__(self, order, event):
        self.order, self.rows = order, []
        setattr(self, event, self.look)

    def look(self, learn):
        averaging = next(cb for cb in learn.cbs if isinstance(cb, BaseAveragingCB))
        if learn.training and averaging.n_averaged and learn.batch_idx in (1, 2):
            with learn.averaged():
                self.rows.append(learn.validate())


def own_generator(x, y, **kwargs):
    generator = torch.Generator().manual_seed(7)
    return DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=generator, **kwargs)


def drawing(x, y):
    return DataLoader(TensorDataset(x, y), 4, shuffle=True)


class OwnSampler(Sampler):
    """Shuffle by a generator of numpy's, which the sampler has for itself."""

    def __init__(self, n):
        self.n, self.rng = n, np.random.default_rng(3)

    def __iter__(self):
        return iter(self.rng.permutation(self.n).tolist())

    def __len__(self):
        return self.n


def own_sampler(x, y):
    return DataLoader(TensorDataset(x, y), 4, sampler=OwnSampler(len(x)))


LOADERS = {
    "TensorLoader": None,
    "generator": own_generator,
    "the usual generator": drawing,
    "workers": partial(own_generator, num_workers=1, persistent_workers=True),
}


def traced(*cbs, valid=True, loader=None, loader_valid=None, n_epochs=3):
    trace = TraceCB()
    learn = norm_learner(trace, *cbs, model=partial(norm_net, 0.3), train=loader, valid=loader_valid)
    learn.fit(n_epochs, valid=valid)
    return trace.seen, rng_state()


AVERAGES = {
    "SWACB": lambda: SWACB(1),
    "SWACB by steps": lambda: SWACB(1, every_steps=3, n_norm_batches=2),
    "EMACB": lambda: EMACB(0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("loader", ["TensorLoader", "generator", "the usual generator"])
def test_training_is_bitwise_the_same_with_an_average_and_without(loader, name):
    make, loader = AVERAGES[name], LOADERS[loader]
    plain = traced(loader=loader)
    assert not first_difference(plain, traced(make(), loader=loader))
    assert not first_difference(plain, traced(make(), loader=loader, valid=False))
    assert not first_difference(plain, traced(loader=loader, valid=False))


@pytest.mark.slow
def test_training_is_bitwise_the_same_with_workers_that_persist():
    plain = traced(loader=LOADERS["workers"], n_epochs=2)
    inside = ValidateInsideCB(80, "after_step")
    averaged = traced(EMACB(0.8), inside, loader=LOADERS["workers"], n_epochs=2)
    assert not first_difference(plain, averaged)
    assert len(inside.rows) == 4


@pytest.mark.slow
def test_workers_that_measure_end_with_it(at):
    before, left = set(multiprocessing.active_children()), []
    look = at("after_epoch", lambda learn: left.append(len({*multiprocessing.active_children()} - before)))
    learn = norm_learner(SWACB(0), look, train=LOADERS["workers"])
    learn.fit(2)
    assert left == [1, 1]


def test_training_is_bitwise_the_same_with_a_sampler_that_has_its_own_random_numbers():
    difference = first_difference(traced(loader=own_sampler), traced(SWACB(0), loader=own_sampler))
    assert not difference


@pytest.mark.slow
@pytest.mark.parametrize("loader", [drawing, own_generator])
def test_validation_that_draws_draws_as_often_as_without_an_average(loader):
    assert not first_difference(traced(loader_valid=loader), traced(SWACB(1), loader_valid=loader))


def test_validation_has_the_order_that_it_has_without_an_average():
    def order(*cbs):
        learn = norm_learner(*cbs, valid=own_generator)
        learn.fit(3)
        return torch.cat([x for x, _ in learn.dls.valid])

    assert torch.equal(order(SWACB(1)), order())


@pytest.mark.slow
@pytest.mark.parametrize("event", ["after_step", "after_batch", "before_batch"])
@pytest.mark.parametrize("order", [-10, 80])
def test_training_is_bitwise_the_same_where_the_average_is_validated_inside_it(event, order):
    inside = ValidateInsideCB(order, event)
    assert not first_difference(traced(), traced(EMACB(0.8), inside))
    assert len(inside.rows) == 6


@pytest.mark.slow
def test_shuffled_order_is_seen_by_the_comparison():
    assert first_difference(traced(), traced(loader=drawing))
    assert first_difference(traced(loader=own_generator)[0][0], traced()[0][-1])


# What the model holds ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("valid", [True, False])
def test_after_the_fit_the_model_holds_the_average(make, valid):
    cb = make()
    learn = norm_learner(cb)
    learn.fit(3, valid=valid)
    after = tensors_of(learn.model)
    assert same(params_of(learn.model), cb.state_dict()["averages"])
    with learn.averaged():
        assert same(tensors_of(learn.model), after)
    assert same(tensors_of(learn.model), after)
    if valid:
        assert learn.validate()["loss"] == losses(learn, "eval")[2]


@BOTH
def test_iterate_is_in_the_model_at_each_event_of_the_fit_but_validation(make, at):
    found = {}

    def keep(event):
        return at(event, lambda learn: found.setdefault(event, []).append(tensors_of(learn.model)))

    events = ["after_train", "after_validate", "after_epoch", "cleanup_epoch", "after_fit"]
    learn = norm_learner(make(), *[keep(event) for event in events])
    learn.fit(3)
    average, trained = found["after_validate"][-1], found["after_train"][-1]
    assert same(average, tensors_of(learn.model))
    assert not same(trained, average)
    for event in ("after_epoch", "cleanup_epoch", "after_fit"):
        assert same(found[event][-1], trained)


@BOTH
@pytest.mark.parametrize("event", ["after_epoch", "after_validate", "before_validate", "after_fit"])
def test_after_a_cancelled_fit_the_model_holds_the_average(make, event, at):
    def cancel(learn):
        if learn.epoch == 1 and learn.scopes in (["fit", "epoch", "validate"], ["fit", "epoch"], ["fit"]):
            raise CancelFitException

    watch, cb = WatchCB(), make()
    learn = norm_learner(watch, cb, at(event, cancel))
    learn.fit(2 if event == "after_fit" else 3)
    assert len(watch.epochs) == 2
    expected = with_norms_of(cb.state_dict()["averages"], watch.batches[1])
    assert_near(tensors_of(learn.model), tensors_of(expected))


def test_fit_cancelled_in_the_measuring_leaves_no_norm_half_measured(at):
    def cancel(learn):
        if learn.purpose == "measure" and learn.batch_idx == 1:
            raise CancelFitException

    watch = WatchCB()
    learn = norm_learner(watch, SWACB(1), at("before_batch", cancel))
    learn.fit(3)
    assert same(tensors_of(learn.model), watch.tensors[1])


def test_fit_cancelled_between_two_steps_leaves_the_average(at):
    def cancel(learn):
        if learn.training and learn.n_steps == 6:
            raise CancelFitException

    watch = WatchCB()
    learn = norm_learner(watch, EMACB(0.8), at("after_batch", cancel))
    learn.fit(3)
    expected = ema_by_hand(watch.start, watch.steps, 0.8, True)
    assert len(watch.steps) == 6
    assert_near(params_of(learn.model), expected)
    assert_near(tensors_of(learn.model), tensors_of(with_norms_of(expected, learn.dls.train)))


def test_fit_cancelled_before_the_first_average_says_so_and_leaves_the_iterate(at):
    def cancel(learn):
        raise CancelFitException

    watch = WatchCB()
    learn = norm_learner(watch, SWACB(2), at("after_epoch", cancel))
    with pytest.warns(UserWarning, match=r"SWACB.*averaged"):
        learn.fit(3)
    assert same(tensors_of(learn.model), watch.tensors[0])
    with pytest.raises(RuntimeError, match=r"^averaged\(\): SWACB\(start=2, swa_lr=None\)"):
        learn.averaged()


ITERATE = ["fit", "epoch", "train", "validate"]
AVERAGE = ["fit", "epoch", "validate"]
MEASURING = ["fit", "epoch", "validate", "validate"]
MEASURING_LAST = ["fit", "validate"]


def fail_in(at, scopes, event="after_predict", order=75):
    """Make a callback that raises at an event of the last epoch of three, in these scopes."""

    def fail(learn):
        is_there = learn.scopes[: len(scopes)] == scopes and "validate" not in learn.scopes[len(scopes) :]
        if learn.epoch == 2 and is_there and (learn.batch_idx == 1 or event.endswith("_validate")):
            raise ZeroDivisionError

    return at(event, fail, order)


@pytest.mark.dealt
@BOTH
@pytest.mark.parametrize("order", [-10, 75])
@pytest.mark.parametrize(
    ("scopes", "event"),
    [
        *product(
            [ITERATE, AVERAGE], ["before_validate", "after_predict", "after_validate", "cleanup_validate"]
        ),
        *product([MEASURING], ["before_batch", "cleanup_batch"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " > ".join(value[2:]),
)
def test_error_in_validation_leaves_the_iterate_and_nothing_of_the_swap(make, scopes, event, order, at):
    watch, cb, failing = WatchCB(), make(), fail_in(at, scopes, event, order)
    learn = norm_learner(watch, cb, failing)
    with pytest.raises(ZeroDivisionError):
        learn.fit(3)
    assert same(tensors_of(learn.model), watch.tensors[2])
    assert (learn.model[1].momentum, learn.purpose) == (0.1, None)
    assert all(module.training for module in learn.model.modules())
    learn.remove_cb(failing)
    with learn.averaged():
        average = tensors_of(learn.model)
    assert same({name: average[name] for name in watch.start}, cb.state_dict()["averages"])
    expected = with_norms_of(cb.state_dict()["averages"], learn.dls.train)
    assert_near(average, tensors_of(expected))
    assert same(tensors_of(learn.model), watch.tensors[2])


def test_error_in_the_measuring_after_the_last_epoch_leaves_the_iterate(at):
    watch = WatchCB()
    learn = norm_learner(watch, SWACB(1), fail_in(at, MEASURING_LAST, "cleanup_batch"))
    with pytest.raises(ZeroDivisionError):
        learn.fit(3, valid=False)
    assert same(tensors_of(learn.model), watch.tensors[2])


@BOTH
def test_error_in_training_leaves_the_iterate_and_the_average_at_hand(make, at):
    def fail(learn):
        if learn.n_steps == 10:
            raise ZeroDivisionError

    watch, cb = WatchCB(), make()
    learn = norm_learner(watch, cb, at("after_batch", fail))
    with pytest.raises(ZeroDivisionError):
        learn.fit(3)
    assert same(params_of(learn.model), watch.steps[9])
    with learn.averaged():
        assert same(params_of(learn.model), cb.state_dict()["averages"])
    assert same(params_of(learn.model), watch.steps[9])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_the_iterate_and_the_average_at_hand(number, training, at, capfd):
    def send(learn):
        if (
            learn.training == training
            and learn.epoch == 1
            and learn.batch_idx == 1
            and learn.stop_signal is None
        ):
            os.kill(os.getpid(), number)

    watch, ema = WatchCB(), EMACB(0.8)
    learn = norm_learner(watch, ema, at("after_loss", send))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        learn.fit(3)
    assert len(watch.steps) == (6 if training else 8)
    assert same(params_of(learn.model), watch.steps[-1])
    with learn.averaged():
        assert_near(params_of(learn.model), ema_by_hand(watch.start, watch.steps, 0.8, True))
    assert same(params_of(learn.model), watch.steps[-1])


def test_averaged_gives_the_iterate_back_after_an_error_inside_it(at):
    def look(learn):
        before = tensors_of(learn.model)
        with pytest.raises(ZeroDivisionError), learn.averaged():
            1 / same(tensors_of(learn.model), before)
        assert same(tensors_of(learn.model), before)
        with learn.averaged(), learn.averaged():
            inside = tensors_of(learn.model)
            with learn.averaged():
                pass
            assert same(tensors_of(learn.model), inside)
        assert same(tensors_of(learn.model), before)

    norm_learner(EMACB(0.8), at("after_step", look)).fit(2)


def test_averaged_needs_a_callback_that_averages():
    learn = norm_learner()
    with pytest.raises(RuntimeError, match=r"^averaged\(\).*SWACB.*EMACB"):
        learn.averaged()


def test_averaged_before_the_first_fit_has_nothing():
    with pytest.raises(RuntimeError, match=r"EMACB\(decay=0.9\)"):
        norm_learner(EMACB(0.9)).averaged()


# Others look on ---------------------------------------------------------------------------------------


def test_validate_of_a_callback_is_of_the_average_only_inside_averaged(at):
    found = []

    def look(learn):
        if learn.epoch == 2 and learn.batch_idx == 3 and learn.training:
            plain = learn.validate()["loss"]
            with learn.averaged():
                found.append(
                    (plain, learn.validate()["loss"], loss_of(deepcopy(learn.model), learn.dls.valid))
                )
            found.append(loss_of(deepcopy(learn.model), learn.dls.valid))

    learn = norm_learner(SWACB(1), at("after_batch", look))
    learn.fit(3)
    (plain, average, by_hand), after = found
    assert average == pytest.approx(by_hand, rel=1e-6)
    assert plain == pytest.approx(after, rel=1e-6)
    assert plain != average
    assert average == pytest.approx(losses(learn, "eval")[1], rel=0.5)


def test_predict_inside_averaged_gives_the_averages_predictions(at):
    found = []

    def look(learn):
        if learn.epoch == 1 and learn.batch_idx == 1 and learn.training:
            with learn.averaged():
                found.append(learn.predict(learn.dls.valid))
                model = deepcopy(learn.model).eval()
            with torch.no_grad():
                found.append(torch.cat([model(x) for x, _ in learn.dls.valid]))

    norm_learner(EMACB(0.8), at("after_batch", look)).fit(2)
    torch.testing.assert_close(*found)


def test_predict_of_a_callback_between_epochs_has_a_row_for_each_sample(at):
    found = []
    learn = norm_learner(
        EMACB(0.8), at("after_epoch", lambda learn: found.append(learn.predict(learn.dls.valid)))
    )
    learn.fit(2, valid=False)
    assert [len(preds) for preds in found] == [8, 8]


@pytest.mark.parametrize("event", ["before_epoch", "after_epoch", "cleanup_epoch"])
def test_validate_of_a_callback_between_epochs_is_of_the_iterate(at, event):
    rows, by_hand = [], []

    def look(learn):
        if learn.epoch == 1:
            rows.append(learn.validate()["loss"])
            by_hand.append(loss_of(deepcopy(learn.model), learn.dls.valid))

    norm_learner(EMACB(0.8), at(event, look)).fit(2)
    assert rows == pytest.approx(by_hand, rel=1e-6)


def test_callback_of_one_validation_sees_only_its_batches(at):
    found = []

    def look(learn):
        learn.validate(cbs=[at("after_predict", lambda learn: found.append(len(learn.preds)))])

    norm_learner(EMACB(0.8), at("after_epoch", look)).fit(1, valid=False)
    assert found == [4, 4]


def test_validations_inside_validation_fire_in_pairs(at):
    depth, seen = [0], []

    def begin(learn):
        depth[0] += 1
        seen.append((learn.epoch, depth[0]))

    def end(learn):
        depth[0] -= 1

    norm_learner(SWACB(1), at("before_validate", begin), at("cleanup_validate", end)).fit(2)
    assert depth == [0]
    assert seen == [
        (0, 1),
        (1, 1),
        (1, 1),
    ]  # iterate and average; the measuring inside of it is no validation


def test_progress_shows_the_rows(at):
    out = StringIO()
    norm_learner(SWACB(1), ProgressCB(console=Console(file=out, width=200))).fit(2)
    assert out.getvalue().count("iterate") == 1


def test_early_stopping_restores_the_average_of_the_best_epoch(at):
    kept = []
    stop = EarlyStoppingCB("eval/loss", patience=1)
    keep = at("after_validate", lambda learn: kept.append((learn.is_nested, tensors_of(learn.model))), 75)
    learn = norm_learner(EMACB(0.5), stop, keep, lr=3.0)
    learn.fit(8)
    averages = [tensors for is_nested, tensors in kept if not is_nested]
    evals = losses(learn, "eval")
    assert stop.stopped_epoch is not None
    assert stop.best_epoch == min(evals, key=evals.get) != stop.stopped_epoch
    assert same(tensors_of(learn.model), averages[stop.best_epoch])
    assert learn.validate()["loss"] == pytest.approx(stop.best, rel=1e-6)


def test_early_stopping_restores_the_iterate_of_an_epoch_before_the_first_average(at):
    def spoil(learn):
        if learn.epoch >= 2 and not learn.training:
            learn.loss = learn.loss + 10

    watch, stop = WatchCB(), EarlyStoppingCB("eval/loss", patience=3)
    learn = norm_learner(watch, SWACB(2), stop, at("after_loss", spoil, -90))
    learn.fit(4)
    assert stop.best_epoch < 2
    assert same(tensors_of(learn.model), watch.tensors[stop.best_epoch])


def best_run(folder, *cbs, seed=1):
    check = CheckpointCB(folder, every_epochs=1, monitor="eval/loss", keep=9)
    return norm_learner(WatchCB(), EMACB(0.5), *cbs, check, lr=3.0, seed=seed, model=partial(norm_net, 0.2))


@pytest.mark.slow
def test_best_checkpoint_has_the_averaged_weights_that_scored_best(tmp_path, at):
    kept = []
    keep = at("after_validate", lambda learn: kept.append((learn.is_nested, tensors_of(learn.model))), 75)
    learn = best_run(tmp_path, keep)
    learn.fit(4)
    evals = losses(learn, "eval")
    best = min(evals, key=evals.get)
    assert best != 3
    averages = [tensors for is_nested, tensors in kept if not is_nested]
    fresh = norm_learner(model=partial(norm_net, 0.2), seed=9)
    fresh.load(tmp_path / "best.pt")
    assert same(tensors_of(fresh.model), averages[best])
    assert fresh.validate()["loss"] == evals[best]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.pt", "newest", "the one before"])
def test_run_resumed_from_the_best_or_the_newest_is_the_straight_run(tmp_path, name, at):
    straight = best_run(tmp_path / "a")
    straight.fit(4)
    stopped = best_run(tmp_path / "b", StopCB(3 * 7 - 1))
    with pytest.raises(StoppedError):
        stopped.fit(4)
    found = sorted((tmp_path / "b").glob("epoch-*"))
    path = {"best.pt": tmp_path / "b" / "best.pt", "newest": found[-1], "the one before": found[-2]}[name]
    learn = best_run(tmp_path / "c", seed=5)
    learn.fit(4, resume=path)
    kept = [state_of(x, "CheckpointCB", "WatchCB") for x in (straight, learn)]
    assert not first_difference(*kept)


RESUMED = {
    "EMACB": (lambda: [EMACB(0.8), MetricsCB()], 4, 0),
    "EMACB by steps": (lambda: [EMACB(0.8, every_steps=3)], 4, 0),
    "EMACB, accumulated, in 16 bits": (
        lambda: [EMACB(0.8), GradientAccumulationCB(2), MixedPrecisionCB(), MetricsCB()],
        5,
        0,
    ),
    "SWACB, accumulated, in 16 bits": (
        lambda: [SWACB(1, every_steps=2), GradientAccumulationCB(2), MixedPrecisionCB(), MetricsCB()],
        5,
        1,
    ),
    "SWACB, annealed after a cycle": (
        lambda: [BatchSchedulerCB(OneCycleLR), SWACB(1, swa_lr=0.03, anneal_epochs=1)],
        4,
        1,
    ),
    "SWACB, annealed from the first epoch": (lambda: [SWACB(0, swa_lr=0.03, anneal_epochs=2)], 3, 0),
    "SWACB after a table": (lambda: [ScheduleCB("lr", {1: 0.05}), SWACB(2, swa_lr=0.03)], 3, 2),
    "SWACB after epochs": (
        lambda: [EpochSchedulerCB(CosineAnnealingLR), SWACB(2, swa_lr=0.03), RecorderCB()],
        3,
        2,
    ),
    "SWACB and EarlyStoppingCB": (lambda: [SWACB(1), MetricsCB(), EarlyStoppingCB("eval/loss")], 3, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_is_the_straight_run(tmp_path, name):
    make, n_train, n_seen = RESUMED[
        name
    ]  # n_seen: epochs whose validation has no average, and may be stopped
    n_places = 3 * (n_train + 1) + n_seen + 1
    check_each_place(make, tmp_path, n_places, n_train=n_train, n_valid=1, param_groups=two_groups)


# Which rules the lr -----------------------------------------------------------------------------------


class LrsCB(Callback):
    """Keep what each step uses: the lr and the momentum of each group."""

    def __init__(self):
        self.lrs, self.momenta = [], []

    def after_step(self, learn):
        self.lrs.append([float(group["lr"]) for group in learn.opt.param_groups])
        self.momenta.append([group.get("momentum", group.get("betas")) for group in learn.opt.param_groups])


SCHEDULES = {
    "OneCycleLR": lambda: BatchSchedulerCB(OneCycleLR),
    "CosineAnnealingLR by epochs": lambda: EpochSchedulerCB(CosineAnnealingLR),
    "plateau": lambda: EpochSchedulerCB(ReduceLROnPlateau, patience=0, threshold=9, factor=0.5),
    "cosine": lambda: ScheduleCB("lr", cosine),
    "table": lambda: ScheduleCB("lr", {1: 0.07, 2: 0.02}),
}


@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.9), AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_has_the_epochs_before_start_and_then_comes_swa_lr(name, opt_func):
    kwargs = {"param_groups": two_groups, "opt_func": opt_func}
    short, long = LrsCB(), LrsCB()
    norm_learner(short, SCHEDULES[name](), **kwargs).fit(3)
    learn = norm_learner(long, SCHEDULES[name](), SWACB(3, swa_lr=[0.02, 0.01]), **kwargs)
    learn.fit(5)
    assert long.lrs[:12] == short.lrs
    assert long.lrs[12:] == [[0.02, 0.01]] * 8
    own = 0.9 if opt_func is not AdamW else (0.9, 0.999)
    assert long.momenta == short.momenta + [[own, own]] * 8
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.05]
    assert not any("max_lr" in group or "initial_lr" in group for group in learn.opt.param_groups)


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR by epochs", "plateau"])
def test_preview_is_of_the_steps_before_start(name):
    recorder, schedule = RecorderCB(), SCHEDULES[name]()
    learn = norm_learner(recorder, schedule, SWACB(0.5, swa_lr=0.02))
    preview = schedule.preview(learn, 4, values=[1.0, 1.0] if name == "plateau" else ())
    learn.fit(4)
    assert len(preview) == 8
    assert list(recorder.recs["lr"]) == pytest.approx([*preview, *[0.02] * 8])


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_swa_lr_the_schedule_has_the_whole_fit(name):
    plain, averaged = LrsCB(), LrsCB()
    norm_learner(plain, SCHEDULES[name]()).fit(4)
    norm_learner(averaged, SCHEDULES[name](), SWACB(2)).fit(4)
    # The plateau sees other values in validation of an average, of which none is better by so much.
    assert averaged.lrs == plain.lrs


def test_swa_lr_needs_no_schedule_and_goes_with_the_fit():
    lrs = LrsCB()
    learn = norm_learner(lrs, SWACB(1, swa_lr=0.02), param_groups=two_groups)
    learn.fit(3)
    assert lrs.lrs == [[0.1, 0.05]] * 4 + [[0.02, 0.02]] * 8
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.05]


@pytest.mark.parametrize(
    ("anneal", "shares"),
    [("linear", [i / 8 for i in range(8)]), ("cos", [(1 - math.cos(math.pi * i / 8)) / 2 for i in range(8)])],
)
@pytest.mark.parametrize("start", [0, 1])
def test_lr_is_annealed_from_where_it_stands(anneal, shares, start):
    lrs = LrsCB()
    swa = SWACB(start, swa_lr=[0.02, 0.25], anneal_epochs=2, anneal=anneal)
    norm_learner(lrs, swa, param_groups=two_groups).fit(start + 3)
    annealed = [[0.1 - 0.08 * share, 0.05 + 0.2 * share] for share in shares]
    expected = [[0.1, 0.05]] * 4 * start + annealed + [[0.02, 0.25]] * 4
    assert lrs.lrs == [pytest.approx(lr, rel=1e-12) for lr in expected]
    assert lrs.lrs[-4:] == [[0.02, 0.25]] * 4


def test_lr_is_annealed_from_the_last_value_of_the_schedule():
    lrs = LrsCB()
    swa = SWACB(2, swa_lr=0.02, anneal_epochs=1, anneal="linear")
    norm_learner(lrs, ScheduleCB("lr", lambda step: 1 - step / 10), swa).fit(3)
    # The 8th step used 0.1 * (1 - 0.7); 0.03 goes to 0.02 in 4 steps.
    assert [lr for (lr,) in lrs.lrs[7:]] == pytest.approx([0.03, 0.03, 0.0275, 0.025, 0.0225])


def test_annealing_counts_optimizer_steps():
    lrs = LrsCB()
    swa = SWACB(1, swa_lr=0.02, anneal_epochs=1, anneal="linear")
    norm_learner(lrs, swa, GradientAccumulationCB(2), n_train=5).fit(3)
    assert [lr for (lr,) in lrs.lrs] == pytest.approx(
        [0.1] * 3 + [0.1 - 0.08 * i / 3 for i in range(3)] + [0.02] * 3
    )


def test_lr_after_a_fit_that_failed_is_as_before_it(at):
    def fail(learn):
        if learn.epoch == 2:
            raise ZeroDivisionError

    learn = norm_learner(SWACB(1, swa_lr=0.02), at("after_step", fail))
    with pytest.raises(ZeroDivisionError):
        learn.fit(3)
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_lr_that_is_a_tensor_is_set_in_place():
    learn = norm_learner(
        SWACB(1, swa_lr=0.02),
        opt_func=lambda p, lr: AdamW(p, torch.tensor(lr), capturable=False, foreach=False),
    )
    lrs = LrsCB()
    learn.fit(2, cbs=[lrs])
    assert [lr for (lr,) in lrs.lrs] == pytest.approx([0.1] * 4 + [0.02] * 4)
    assert torch.is_tensor(learn.opt.param_groups[0]["lr"])
    assert float(learn.opt.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_loader_without_a_length_has_its_schedule_until_start():
    class NoLength:
        def __init__(self, x, y):
            self.loader = TensorLoader(x, y, bs=4)

        def __iter__(self):
            return iter(self.loader)

    lrs = LrsCB()
    schedule = BatchSchedulerCB(LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
    norm_learner(lrs, schedule, SWACB(1, swa_lr=0.02), train=NoLength).fit(2)
    assert [lr for (lr,) in lrs.lrs] == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4, *[0.02] * 4])


def test_lr_of_groups_that_no_schedule_rules_is_after_the_fit_as_before_it():
    learn = norm_learner(ScheduleCB("lr", cosine, group=0), SWACB(1, swa_lr=0.02), param_groups=two_groups)
    learn.fit(2)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.05]


@pytest.mark.parametrize("schedule", [{1: 0.5}, lambda step: 1 - step / 100], ids=["table", "function"])
def test_schedule_of_the_momentum_continues_where_swa_sets_the_lr(schedule):
    plain, averaged = LrsCB(), LrsCB()
    norm_learner(plain, ScheduleCB("momentum", schedule)).fit(4)
    steps = BatchSchedulerCB(LambdaLR, lr_lambda=lambda step: 1.0)
    norm_learner(averaged, ScheduleCB("momentum", schedule), steps, SWACB(2, swa_lr=0.02)).fit(4)
    assert averaged.momenta == plain.momenta


# Around the model -------------------------------------------------------------------------------------


def fitted(make, model=norm_net, *cbs, **kwargs):
    learn = norm_learner(make(), *cbs, model=model, **kwargs)
    learn.fit(3)
    return learn


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrapped_model_is_averaged_like_its_plain_one(make, wrap, tmp_path):
    plain = fitted(make)
    check = CheckpointCB(tmp_path, monitor="eval/loss")
    wrapped = fitted(make, lambda: wrap(norm_net()), check)
    inner = getattr(wrapped.model, "_orig_mod", None) or wrapped.model.module
    assert_near(tensors_of(inner), tensors_of(plain.model))
    assert losses(wrapped, "eval") == pytest.approx(losses(plain, "eval"), rel=1e-5)
    plain.load(tmp_path / "best.pt")
    best = min(losses(plain, "eval").values())
    assert loss_of(plain.model, plain.dls.valid) == pytest.approx(best, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [False, True])
def test_model_compiled_by_the_callback_is_averaged(fullgraph):
    torch.compiler.reset()
    plain = fitted(lambda: SWACB(1))
    compiled = fitted(lambda: SWACB(1), norm_net, CompileCB(backend="eager", fullgraph=fullgraph))
    assert_near(tensors_of(compiled.model), tensors_of(plain.model))


@pytest.mark.slow
def test_measuring_breaks_no_graph_and_compiles_none():
    from torch._dynamo.utils import counters  # takes seconds to import

    def compiled(*cbs):
        torch.compiler.reset()
        counters.clear()
        norm_learner(*cbs, CompileCB(backend="eager")).fit(3)
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    assert compiled(SWACB(1)) == compiled() == (2, 0)


@BOTH
def test_second_fit_starts_an_average_of_its_own_from_the_first_ones(make):
    watch, cb = WatchCB(), make()
    learn = norm_learner(watch, cb)
    learn.fit(2)
    first = params_of(learn.model)
    watch.steps, watch.epochs = [], []
    learn.fit(3)
    assert same(watch.start, first)
    if isinstance(cb, SWACB):
        expected = mean_by_torch(watch.epochs[1:])
    else:
        expected = ema_by_hand(watch.start, watch.steps, 0.8, True)
    assert_near(params_of(learn.model), expected)


@BOTH
def test_callback_of_one_fit_is_gone_after_it(make):
    cb = make()
    learn = norm_learner()
    learn.fit(3, cbs=[cb])
    assert same(params_of(learn.model), cb.state_dict()["averages"])
    with pytest.raises(RuntimeError, match=r"averaged\(\).*SWACB.*EMACB"):
        learn.averaged()
    learn.fit(1)
    assert kinds(learn)[-2:] == [(3, "train"), (3, "eval")]


def test_lr_find_and_validation_outside_of_a_fit_leave_the_average_alone():
    ema = EMACB(0.8)
    learn = norm_learner(ema)
    learn.fit(2)
    before, averages = tensors_of(learn.model), deepcopy(ema.state_dict())
    learn.lr_find(n_steps=10)
    learn.validate()
    learn.fit(1, train=False)
    assert same(tensors_of(learn.model), before)
    assert not first_difference(averages, ema.state_dict())


def test_cancelled_training_of_an_epoch_is_not_in_the_average_of_epochs(at):
    def cancel(learn):
        if learn.epoch == 2 and learn.batch_idx == 2:
            raise CancelTrainException

    watch, swa = WatchCB(), SWACB(1)
    learn = norm_learner(watch, swa, at("after_batch", cancel))
    learn.fit(4)
    assert swa.n_averaged == 2
    assert_near(params_of(learn.model), mean_by_torch(watch.epochs[1:]))


def syncs(n_train, *cbs):
    return syncs_in_fit(norm_learner(*cbs, n_train=n_train), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGES)
def test_no_step_waits_for_the_device(name):
    def make():
        cb = AVERAGES[name]()
        cb.n_norm_batches = 2  # BatchNorm's own mean over batches waits, as in torch's update_bn
        return cb

    plain = syncs(20) - syncs(4)
    assert syncs(20, make()) - syncs(4, make()) == plain


def test_counter_sees_a_wait_of_a_step(at):
    wait = at("after_step", lambda learn: learn.loss.item())
    assert syncs(20, wait) == syncs(20) + 40


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SWACB(-1), r"^SWACB\(start=-1\).*epoch.*0.*share"),
        (lambda: SWACB(1.0), r"^SWACB\(start=1.0\).*epoch"),
        (lambda: SWACB(0.0), r"^SWACB\(start=0.0\).*epoch"),
        (lambda: SWACB(1.5), r"^SWACB\(start=1.5\).*epoch"),
        (lambda: SWACB(math.nan), r"^SWACB\(start=nan\).*epoch"),
        (lambda: SWACB(True), r"^SWACB\(start=True\).*epoch"),
        (lambda: SWACB("1"), r"^SWACB\(start='1'\).*epoch"),
        (lambda: SWACB(1, -0.1), r"^SWACB\(swa_lr=-0.1\).*lr >= 0"),
        (lambda: SWACB(1, math.inf), r"^SWACB\(swa_lr=inf\).*lr"),
        (lambda: SWACB(1, math.nan), r"^SWACB\(swa_lr=nan\).*lr"),
        (lambda: SWACB(1, "0.1"), r"^SWACB\(swa_lr='0.1'\).*lr"),
        (lambda: SWACB(1, True), r"^SWACB\(swa_lr=True\).*lr"),
        (lambda: SWACB(1, [0.1, -1]), r"^SWACB\(swa_lr=\[0.1, -1\]\).*lr"),
        (lambda: SWACB(1, 0.1, -1), r"^SWACB\(anneal_epochs=-1\).*whole number.*>= 0"),
        (lambda: SWACB(1, 0.1, 1.0), r"^SWACB\(anneal_epochs=1.0\).*whole number.*>= 0"),
        (lambda: SWACB(1, None, 2), r"^SWACB\(anneal_epochs=2\).*swa_lr"),
        (lambda: SWACB(1, 0.1, 1, "cosine"), r"^SWACB\(anneal='cosine'\).*'cos'.*'linear'"),
        (lambda: SWACB(1, every_steps=0), r"^SWACB\(every_steps=0\).*whole number.*>= 1.*None"),
        (lambda: SWACB(1, every_steps=2.0), r"^SWACB\(every_steps=2.0\).*whole number.*>= 1"),
        (lambda: SWACB(1, n_norm_batches=0), r"^n_norm_batches=0.*whole number.*>= 1"),
        (lambda: EMACB(n_norm_batches=1.5), r"^n_norm_batches=1.5.*whole number.*>= 1"),
        (lambda: EMACB(0.0), r"^EMACB\(decay=0.0\).*0 < decay < 1"),
        (lambda: EMACB(1.0), r"^EMACB\(decay=1.0\).*0 < decay < 1"),
        (lambda: EMACB(1), r"^EMACB\(decay=1\).*0 < decay < 1"),
        (lambda: EMACB(math.nan), r"^EMACB\(decay=nan\).*0 < decay < 1"),
        (lambda: EMACB("0.9"), r"^EMACB\(decay='0.9'\).*0 < decay < 1"),
        (lambda: EMACB(every_steps=0), r"^EMACB\(every_steps=0\).*whole number.*>= 1"),
    ],
)
def test_argument_that_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("lr", [[0.1, None], {"lr": 0.1}])
def test_lr_that_is_no_number_is_refused_in_words(lr):
    with pytest.raises(ValueError, match=r"^SWACB\(swa_lr=.*\).*lr >= 0"):
        SWACB(1, lr)


def test_base_class_averages_nothing():
    with pytest.raises(TypeError, match=r"^BaseAveragingCB.*SWACB.*EMACB"):
        BaseAveragingCB()


@pytest.mark.parametrize(
    ("cbs", "message"),
    [
        ([SWACB(4)], r"^SWACB\(start=4, swa_lr=None\).*epoch 4.*4 \(0.*3\)"),
        ([SWACB(9, swa_lr=0.1)], r"SWACB\(start=9, swa_lr=0.1\).*epoch 9"),
        ([SWACB(2, swa_lr=[0.1] * 3)], r"swa_lr=.*1.*group"),
        ([SWACB(2, 0.1, 3)], r"anneal_epochs=3.*epoch 2.*fit.*2"),
        ([SWACB(2, every_steps=9)], r"every_steps=9.*fit.*8 steps.*epoch 2"),
        ([BatchSchedulerCB(OneCycleLR), SWACB(0, 0.1)], r"BatchSchedulerCB\(OneCycleLR\).*SWACB.*lr"),
        ([ScheduleCB("lr", cosine), SWACB(0, 0.1)], r"SWACB.*lr.*epoch 0"),
        ([ScheduleCB("lr", {2: 0.1}), SWACB(2, 0.1)], r"SWACB.*lr.*epoch 2"),
        pytest.param(
            [EMACB(every_steps=17)],
            r"every_steps=17.*fit.*16 steps",
        ),
    ],
)
def test_plan_that_cannot_be_meant_is_refused_before_training(cbs, message, at):
    batches = []
    learn = norm_learner(*cbs, at("before_batch", batches.append))
    before = tensors_of(learn.model)
    with pytest.raises(ValueError, match=message):
        learn.fit(4)
    assert batches == []
    assert same(tensors_of(learn.model), before)
    assert learn.opt.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("cbs", [(SWACB(), EMACB()), (EMACB(), EMACB(0.9))])
def test_two_averages_are_refused(cbs):
    with pytest.raises(ValueError, match=r"CB\(.*\) and EMACB\(.*\): .*validation can see one average"):
        norm_learner(*cbs)
    with pytest.raises(ValueError, match="validation can see one average"):  # one given to the fit too
        norm_learner(cbs[0]).fit(2, cbs=cbs[1])


def test_annealing_needs_a_loader_with_a_length(make_learner):
    class NoLength:
        def __iter__(self):
            yield torch.ones(2, 3), torch.tensor([0, 1])

    learn = make_learner(dls={"train": NoLength()}, cbs=[SWACB(1, 0.1, 1)])
    with pytest.raises(ValueError, match=r"train loader.*length"):
        learn.fit(2)


def test_optimizer_without_an_lr_has_none_to_set(make_learner):
    class Fixed:
        def __init__(self, params, lr):
            self.params = list(params)

        def step(self):
            pass

        def zero_grad(self):
            for p in self.params:
                p.grad = None

    with pytest.raises(TypeError, match=r"Fixed.*lr"):
        make_learner(cbs=[SWACB(0, 0.1)], opt_func=Fixed).fit(1)
    make_learner(cbs=[SWACB(0)], opt_func=Fixed).fit(1)


def test_optimizer_without_groups_is_averaged_and_its_lr_set(make_learner, bare_sgd):
    swa, lrs = SWACB(1, swa_lr=0.02), []
    keep = type("Keep", (Callback,), {"after_step": lambda self, learn: lrs.append(learn.opt.lr)})
    learn = make_learner(cbs=[swa, keep()], opt_func=bare_sgd)
    learn.fit(2)
    assert (lrs, learn.opt.lr) == ([0.1] * 3 + [0.02] * 3, 0.1)
    assert same(params_of(learn.model), swa.state_dict()["averages"])
