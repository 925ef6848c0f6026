import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from toolbox import StopCB, SyncCounter, make_learner, state_of, stop, tanh_net
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    BatchSizeCB,
    CancelBatchException,
    CancelStepException,
    CheckpointCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    RecorderCB,
    ScheduleCB,
)
from minilearn.checkpoints.codec import first_difference

OPTS = {"SGD with momentum": partial(SGD, momentum=0.9), "Adam": Adam}


def tanh_learner(n=24, n_valid=0, **kwargs):
    """Make a learner of tanh_net on n samples; n_valid: batches."""
    return make_learner(n=n, n_valid=n_valid, model=tanh_net(), **kwargs)


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


# One large batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("n", [24, 20, 22, 13, 25], ids="n={}".format)
def test_k_batches_step_as_one_large_batch(opt, n):
    # 24: two whole groups of 3; 20: the last group has 2; 22, 13 and 25: the last batch is smaller too.
    large = tanh_learner(n, bs=12, opt_func=OPTS[opt])
    small = tanh_learner(n, bs=4, opt_func=OPTS[opt], cbs=GradientAccumulationCB(3))
    large.fit(3)
    small.fit(3)
    assert small.n_steps == large.n_steps == 3 * math.ceil(n / 12)
    # Sums in another order; Adam divides by their square root, which makes rounding larger.
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-5)


def test_gradients_of_unlike_batches_count_by_their_samples(at):
    def keep(learn):
        grads.append(torch.cat([p.grad.flatten() for p in learn.model.parameters()]))

    sizes, grads = [1, 4, 2], []
    source = tanh_learner(7, bs=7)
    xb, yb = next(iter(source.dls.train))
    batches = list(zip(xb.split(sizes), yb.split(sizes), strict=True))
    cbs = [GradientAccumulationCB(3), at("before_step", keep)]
    Learner(source.model, {"train": batches}, cbs=cbs, opt_func=partial(SGD, weight_decay=0.0), lr=0.0).fit()
    F.cross_entropy(source.model.zero_grad() or source.model(xb), yb).backward()
    expected = torch.cat([p.grad.flatten() for p in source.model.parameters()])
    torch.testing.assert_close(grads, [expected])


def test_bfloat16_gathers_the_mean_too():
    for cbs in ([], [GradientClippingCB(0.5)]):
        large = tanh_learner(bs=12, opt_func=SGD, cbs=[MixedPrecisionCB(), *cbs])
        small = tanh_learner(bs=4, opt_func=SGD, cbs=[MixedPrecisionCB(), GradientAccumulationCB(3), *cbs])
        large.fit(2)
        small.fit(2)
        # bfloat16 has 8 bits; the sums over a batch are rounded to them.
        torch.testing.assert_close(weights(small), weights(large), rtol=0.02, atol=0.02)


def test_one_batch_a_step_is_plain_training():
    plain, one = tanh_learner(n=10), tanh_learner(n=10, cbs=GradientAccumulationCB(1))
    plain.fit(2)
    one.fit(2)
    assert torch.equal(weights(one), weights(plain))


def test_weights_stand_still_between_steps(at):
    seen = []
    look = at("after_batch", lambda learn: seen.append(weights(learn)))
    tanh_learner(cbs=[GradientAccumulationCB(2), look]).fit()
    assert [torch.equal(a, b) for a, b in pairwise(seen)] == [False, True] * 2 + [False]


@pytest.mark.parametrize("event", ["before_batch", "after_predict"])
def test_cancelled_batch_is_not_counted(at, event):
    # Of the batches 0 to 5, number 1 is left out: groups 0 and 2, 3 and 4, and 5 alone.
    def cancel(learn):
        if learn.batch_idx == 1:
            raise CancelBatchException

    steps = []
    cbs = [
        GradientAccumulationCB(2),
        at(event, cancel),
        at("before_step", lambda x: steps.append(x.batch_idx)),
    ]
    learn = tanh_learner(cbs=cbs, opt_func=SGD)
    xs, ys = learn.dls.train.tensors
    other = tanh_learner(opt_func=SGD)
    groups = [[*range(4), *range(8, 12)], list(range(12, 20)), list(range(20, 24))]
    other.dls.train = [(xs[i], ys[i]) for i in groups]
    learn.fit()
    other.fit()
    assert steps == [2, 4, 5]
    torch.testing.assert_close(weights(learn), weights(other))


@pytest.mark.parametrize("cancelled", [0, 1])
@pytest.mark.parametrize("event", ["after_loss", "backward"])
def test_batch_cancelled_before_its_backward_weighs_nothing(at, event, cancelled):
    def cancel(learn):
        if learn.batch_idx == cancelled:
            raise CancelBatchException
        if event == "backward":
            learn.loss.backward()

    learn = tanh_learner(16, cbs=[GradientAccumulationCB(2), at(event, cancel)], opt_func=SGD)
    xs, ys = learn.dls.train.tensors
    other = tanh_learner(16, opt_func=SGD)
    left = [i for i in range(16) if i // 4 != cancelled]
    groups = [left[:8], left[8:]]
    other.dls.train = [(xs[i], ys[i]) for i in groups]
    learn.fit()
    other.fit()
    assert learn.n_steps == 2
    torch.testing.assert_close(weights(learn), weights(other))


def test_gradients_of_a_broken_off_fit_are_not_in_the_next(at):
    def stop(learn):
        if learn.batch_idx == 0:
            raise KeyboardInterrupt

    cb = GradientAccumulationCB(2)
    learn = tanh_learner(cbs=cb, opt_func=SGD)
    straight = tanh_learner(cbs=GradientAccumulationCB(2), opt_func=SGD)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(cbs=[at("after_batch", stop)])
    learn.fit()
    straight.fit()
    assert torch.equal(weights(learn), weights(straight))


# Events -----------------------------------------------------------------------------------------------


def test_events_of_the_step_fire_once_a_group(at):
    seen = []
    names = ["before_step", "after_step", "cleanup_step", "after_backward", "after_batch"]
    cbs = [at(name, lambda learn, name=name: seen.append((learn.batch_idx, name))) for name in names]
    learn = tanh_learner(20, cbs=[GradientAccumulationCB(2), *cbs])  # 5 batches
    learn.fit()
    for name in names[:3]:
        assert [i for i, seen_name in seen if seen_name == name] == [1, 3, 4]
    for name in names[3:]:
        assert [i for i, seen_name in seen if seen_name == name] == [0, 1, 2, 3, 4]


def test_gradients_are_cleared_once_a_group(at):
    seen = []

    def zero_grad(learn):
        seen.append(learn.batch_idx)
        learn.opt.zero_grad()

    tanh_learner(20, cbs=[GradientAccumulationCB(2), at("zero_grad", zero_grad)]).fit()
    assert seen == [1, 3, 4]


def test_is_accumulating_says_whether_a_step_is_to_come(at):
    seen = []
    look = at("after_batch", lambda learn: seen.append(learn.is_accumulating))
    learn = tanh_learner(20, cbs=[GradientAccumulationCB(3), look])
    learn.fit()
    assert seen == [True, True, False, True, False]
    learn.fit()
    assert not learn.is_accumulating


def test_users_before_step_sees_the_mean_of_the_group(at):
    grads = []
    cbs = [
        GradientAccumulationCB(2),
        at("before_step", lambda x: grads.append(x.model[0].weight.grad.clone())),
    ]
    learn = tanh_learner(8, cbs=cbs, opt_func=SGD)
    xb, yb = learn.dls.train.tensors
    copy = tanh_learner(8).model
    F.cross_entropy(copy(xb), yb).backward()
    learn.fit()
    torch.testing.assert_close(grads, [copy[0].weight.grad])


def test_reported_loss_is_that_of_each_batch(at):
    losses = []
    cbs = [MetricsCB(), at("after_batch", lambda learn: losses.append(learn.loss.item()))]
    recorder = RecorderCB(loss="learn.loss")
    learn = tanh_learner(8, bs=4, lr=0.0, cbs=[*cbs, recorder, GradientAccumulationCB(2)])
    learn.fit()
    xs, ys = learn.dls.train.tensors
    expected = [F.cross_entropy(learn.model(xs[i : i + 4]), ys[i : i + 4]).item() for i in (0, 4)]
    assert losses == pytest.approx(expected)
    assert learn.history[0]["loss"] == pytest.approx(sum(expected) / 2)
    assert recorder.recs["loss"] == pytest.approx(expected[1:])  # at the step


def test_validation_gathers_nothing(at):
    seen = []
    cbs = [GradientAccumulationCB(2), at("after_train", lambda learn: learn.validate())]
    learn = tanh_learner(n_valid=3, cbs=[*cbs, at("before_step", lambda learn: seen.append(learn.training))])
    learn.fit(2)
    assert seen == [True] * 6


def test_validation_in_the_middle_of_a_group_changes_nothing(at):
    plain = tanh_learner(n_valid=3, cbs=GradientAccumulationCB(2))
    learn = tanh_learner(
        n_valid=3, cbs=[GradientAccumulationCB(2), at("after_batch", lambda x: x.training and x.validate())]
    )
    plain.fit()
    learn.fit()
    assert torch.equal(weights(learn), weights(plain))


# Schedules and averages -------------------------------------------------------------------------------


def test_total_steps_are_those_of_the_optimizer():
    learn = tanh_learner(20, cbs=GradientAccumulationCB(2))
    learn.fit(3)
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([3, 3, 3], 9, 9)


def test_schedule_follows_the_steps_of_the_optimizer():
    recorder, plain = RecorderCB(), RecorderCB()
    cb = BatchSchedulerCB(OneCycleLR)
    learn = tanh_learner(20, bs=4, cbs=[GradientAccumulationCB(2), cb, recorder])
    learn.fit(2)
    tanh_learner(20, bs=8, cbs=[BatchSchedulerCB(OneCycleLR), plain]).fit(2)
    assert recorder.recs["lr"] == plain.recs["lr"]
    assert recorder.recs["lr"] == pytest.approx(cb.preview(learn, 2))
    assert recorder.recs["lr"][-1] == pytest.approx(0.1 / 25 / 1e4)


def test_schedule_cb_follows_the_steps_too():
    recorder = RecorderCB()
    tanh_learner(cbs=[GradientAccumulationCB(3), ScheduleCB("lr", lambda step: 0.5**step), recorder]).fit(2)
    assert recorder.recs["lr"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


@pytest.mark.parametrize("opt", OPTS)
def test_batch_size_that_changes_is_planned_and_counted(opt):
    # 20 samples: 5 batches of 4, then 3 of 8 (8, 8, 4), in groups of 2: 3 steps, then 2.
    learn = tanh_learner(20, cbs=[BatchSizeCB({1: 8}), GradientAccumulationCB(2)], opt_func=OPTS[opt])
    large = tanh_learner(20, bs=8, cbs=BatchSizeCB({1: 16}), opt_func=OPTS[opt])
    learn.fit(2)
    large.fit(2)
    assert (learn.epoch_steps, learn.n_steps) == ([3, 2], 5)
    torch.testing.assert_close(weights(learn), weights(large), rtol=1e-4, atol=1e-5)


def test_averages_count_steps_of_the_optimizer():
    ema, swa = EMACB(0.5), SWACB(0, every_steps=2)
    tanh_learner(20, cbs=[GradientAccumulationCB(2), ema]).fit(2)
    tanh_learner(20, cbs=[GradientAccumulationCB(2), swa]).fit(2)
    assert ema.n_averaged == 1 + 6
    assert swa.n_averaged == 3


def test_lr_find_takes_a_step_at_each_batch():
    learn = tanh_learner(cbs=GradientAccumulationCB(2))
    assert len(learn.lr_find(n_steps=12, diverge=1e9).lrs) == 12  # 6 batches an epoch


# Resume -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 9])  # of 5 batches in groups of 3, and a rest at the epoch
def test_run_resumed_in_the_middle_of_a_group_is_the_straight_run(tmp_path, n, bf16):
    def new(*cbs, folder=tmp_path):
        tools = [GradientAccumulationCB(3), GradientClippingCB(0.5), BatchSchedulerCB(OneCycleLR)]
        tools += [CheckpointCB(folder, every_minutes=1e-9), *[MixedPrecisionCB()] * bf16]
        return tanh_learner(18, cbs=[*tools, *cbs], shuffle=True, opt_func=partial(SGD, momentum=0.9))

    straight = new(folder=tmp_path / "straight")
    straight.fit(2)
    stop(new(StopCB(n)))
    resumed = new()
    resumed.fit(2, resume=True)
    assert first_difference(state_of(straight), state_of(resumed)) == ""


def test_verify_resume_finds_no_difference_in_a_gathered_run():
    learn = tanh_learner(22, cbs=[GradientAccumulationCB(3), GradientClippingCB()], shuffle=True)
    assert "bit for bit" in learn.verify_resume(n_epochs=2)


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", True, None])
def test_number_of_batches_is_whole(n):
    with pytest.raises(ValueError, match=rf"^GradientAccumulationCB\(n_batches={n!r}\).*whole number"):
        GradientAccumulationCB(n)


@pytest.mark.parametrize("others", [[], [BatchSchedulerCB(OneCycleLR)]])
def test_more_batches_than_an_epoch_has_are_refused_before_training(at, others):
    batches = []
    learn = tanh_learner(20, cbs=[GradientAccumulationCB(6), at("before_batch", batches.append), *others])
    with pytest.raises(ValueError, match=r"GradientAccumulationCB\(6\).*epoch.*5 batches"):
        learn.fit()
    assert batches == []
    GradientAccumulationCB(5)._checked(5)


def test_batch_size_that_leaves_too_few_batches_is_refused_before_training(at):
    batches = []
    cbs = [GradientAccumulationCB(3), BatchSizeCB({1: 12}), at("before_batch", batches.append)]
    with pytest.raises(ValueError, match=r"epoch.*2 batches.*batch size"):
        tanh_learner(24, cbs=cbs).fit(2)
    assert batches == []


def test_loader_without_length_is_refused_before_training(at):
    class Endless:
        def __iter__(self):
            yield torch.ones(2, 3), torch.tensor([0, 1])

    batches = []
    learn = tanh_learner(cbs=[GradientAccumulationCB(2), at("before_batch", batches.append)])
    learn.dls.train = Endless()
    with pytest.raises(TypeError, match=r"GradientAccumulationCB\(2\).*train loader.*length"):
        learn.fit()
    assert batches == []


def test_two_of_them_are_refused_before_training(at):
    batches = []
    cbs = [GradientAccumulationCB(2), GradientAccumulationCB(3), at("before_batch", batches.append)]
    with pytest.raises(ValueError, match=r"GradientAccumulationCB\(2\).*GradientAccumulationCB\(3\)"):
        tanh_learner(cbs=cbs).fit()
    assert batches == []


def test_validation_alone_asks_for_nothing():
    learn = tanh_learner(4, n_valid=1, cbs=[GradientAccumulationCB(9), MetricsCB()])
    assert learn.validate()["loss"] > 0


# Clipping ---------------------------------------------------------------------------------------------


def norm_of(learn, p=2.0):
    return torch.cat([w.grad.flatten() for w in learn.model.parameters()]).norm(p).item()


@pytest.mark.parametrize("norm_type", [1, 2.0, 3.0, math.inf])
def test_norm_of_the_gradients_of_a_step_is_at_most_max_norm(at, norm_type):
    norms = []
    clip = GradientClippingCB(0.1, norm_type)
    before = at("before_step", lambda learn: norms.append(norm_of(learn, norm_type)))
    after = at("before_step", lambda learn: norms.append(norm_of(learn, norm_type)), order=46)
    tanh_learner(4, cbs=[before, clip, after]).fit()
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.1, rel=1e-4)  # torch divides by norm + 1e-6
    assert clip.norm.item() == pytest.approx(norms[0])


def test_clipping_is_torchs():
    learn, plain = tanh_learner(4, cbs=GradientClippingCB(0.3), opt_func=SGD), tanh_learner(4)
    F.cross_entropy(plain.model(plain.dls.train.tensors[0]), plain.dls.train.tensors[1]).backward()
    norm = nn.utils.clip_grad_norm_(plain.model.parameters(), 0.3)
    SGD(plain.model.parameters(), 0.1).step()
    learn.fit()
    assert torch.equal(learn.cbs[0].norm, norm)
    assert torch.equal(weights(learn), weights(plain))


def test_small_gradients_stay_as_they_are():
    learn, plain = tanh_learner(cbs=GradientClippingCB(1e6)), tanh_learner()
    learn.fit()
    plain.fit()
    assert torch.equal(weights(learn), weights(plain))


def test_clipping_is_of_the_gathered_gradients_once_a_step():
    small = RecorderCB(norm=lambda _: clip.norm)
    large = RecorderCB(norm=lambda _: other.norm)
    clip, other = GradientClippingCB(0.2), GradientClippingCB(0.2)
    a = tanh_learner(20, cbs=[clip, GradientAccumulationCB(2), small])
    b = tanh_learner(20, bs=8, cbs=[other, large])
    a.fit()
    b.fit()
    assert len(small.recs["norm"]) == 3
    assert small.recs["norm"] == pytest.approx(large.recs["norm"], rel=1e-5)
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)


def test_infinite_max_norm_only_records(at):
    norms = []
    clip = GradientClippingCB(math.inf)
    plain = tanh_learner()
    learn = tanh_learner(cbs=[clip, at("before_step", lambda x: norms.append(norm_of(x)))])
    learn.fit()
    plain.fit()
    assert torch.equal(weights(learn), weights(plain))
    assert clip.norm.item() == pytest.approx(norms[-1])


def test_gradients_that_are_not_finite_stay_so_with_an_infinite_max_norm(at):
    def spoil(learn):
        learn.model[0].weight.grad[0, 0] = math.inf

    seen = []
    cbs = [
        at("before_step", spoil),
        at("before_step", lambda x: seen.append(x.model[0].weight.grad), order=46),
    ]
    clip = GradientClippingCB(math.inf)
    tanh_learner(4, cbs=[clip, *cbs]).fit()
    assert clip.norm.item() == math.inf
    assert seen[0].isnan().sum() == 0


def test_norm_is_none_before_the_first_step(at):
    clip = GradientClippingCB()
    seen = []
    tanh_learner(cbs=[clip, at("before_batch", lambda _: seen.append(clip.norm))]).fit()
    assert seen[0] is None
    assert seen[1].shape == ()


@pytest.mark.parametrize("max_norm", [1.0, math.inf])
@pytest.mark.parametrize("k", [1, 2])
def test_training_waits_for_no_device(at, max_norm, k):
    counter = SyncCounter()
    counter.__enter__()
    cbs = [GradientAccumulationCB(k), GradientClippingCB(max_norm)]
    learn = tanh_learner(22, cbs=[], opt_func=partial(SGD, foreach=True))
    counter.__exit__(None, None, None)

    def begin(learn):
        learn.check = SyncCounter()
        learn.check.__enter__()

    def end(learn):
        learn.check.__exit__(None, None, None)

    # From the second batch on: at the first the learner looks at the targets.
    cbs += [at("before_batch", lambda x: begin(x) if x.batch_idx == 1 else None), at("after_train", end)]
    learn.fit(cbs=cbs)
    assert learn.check.n == 0


def test_parameters_without_a_gradient_are_left_out():
    learn = tanh_learner(cbs=[GradientClippingCB(0.1), GradientAccumulationCB(2)])
    learn.freeze("0")
    learn.fit()
    assert learn.cbs[1].norm > 0


def test_bare_optimizer_is_clipped_too(bare_sgd):
    learn, plain = tanh_learner(cbs=GradientClippingCB(0.1), opt_func=bare_sgd), tanh_learner(opt_func=SGD)
    learn.fit()
    plain.fit(cbs=[GradientClippingCB(0.1)])
    torch.testing.assert_close(weights(learn), weights(plain))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, "1", None, True])
@pytest.mark.parametrize("name", ["max_norm", "norm_type"])
def test_norms_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=rf"GradientClippingCB\({name}={value!r}\).*> 0"):
        GradientClippingCB(**{name: value})


def test_reprs():
    assert repr(GradientAccumulationCB(3)) == "GradientAccumulationCB(3)"
    assert repr(GradientClippingCB(0.5)) == "GradientClippingCB(0.5)"


def test_gradients_kept_at_a_cancelled_step_join_those_of_the_next_batch(at):
    def cancel(learn):
        if learn.batch_idx == 1:
            raise CancelStepException

    large = tanh_learner(11, bs=11)
    small = tanh_learner(11, cbs=[GradientAccumulationCB(2), at("before_step", cancel)])
    large.fit()
    small.fit()
    assert small.n_steps == 1
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=1e-5)
