"""Schedule-free optimizers keep other weights in the model for training than for evaluation."""

import importlib.util
import warnings
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from toolbox import (
    drawn,
    make_learner,
    mentions,
    noisy_learner,
    norm_net,
    resumed_from_each_rest,
    same,
    scripted,
    tensors_of,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    CheckpointCB,
    EarlyStoppingCB,
    GradientAccumulationCB,
    GradientClippingCB,
    MetricsCB,
    MixedPrecisionCB,
    NormStatisticsCB,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.optim import Combined, is_matrix


class ScheduleFreeSGD(Optimizer):
    """z is stepped with the gradient at y = (1 - mom) * z + mom * x, and x is the mean of all z.

    The parameters hold y in training, x in evaluation. `where` says where the mode is kept.
    """

    where = "group"

    def __init__(self, params, lr, mom=0.9):
        super().__init__(params, {"lr": lr, "mom": mom, "k": 0})
        self.is_training = False

    def _set(self, training):
        if training == self.is_training:
            return
        self.is_training = training
        for group in self.param_groups:
            for p in group["params"]:
                if "z" in self.state[p]:
                    weight = 1 - group["mom"] if training else 1 - 1 / group["mom"]
                    p.lerp_(self.state[p]["z"], weight)

    @torch.no_grad()
    def train(self):
        self._set(True)

    @torch.no_grad()
    def eval(self):
        self._set(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.is_training
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                x = p.lerp(z, 1 - 1 / group["mom"])
                z.add_(p.grad, alpha=-group["lr"])
                p.copy_(x.lerp_(z, 1 / group["k"]).lerp_(z, 1 - group["mom"]))


class InGroups(ScheduleFreeSGD):
    """The same, with the mode in the groups, as `schedulefree` has it."""

    @property
    def is_training(self):
        return self.param_groups[0].get("train_mode", False)

    @is_training.setter
    def is_training(self, value):
        for group in self.param_groups:
            group["train_mode"] = value


OPTIMIZERS = [ScheduleFreeSGD, InGroups]
if importlib.util.find_spec("schedulefree"):
    import schedulefree

    OPTIMIZERS += [
        partial(schedulefree.AdamWScheduleFree, warmup_steps=3),
        schedulefree.SGDScheduleFree,
        schedulefree.RAdamScheduleFree,
    ]
EACH = pytest.mark.parametrize("opt_func", OPTIMIZERS, ids=lambda f: getattr(f, "func", f).__name__)


def dropped():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2))


def by_hand(opt_func, n_epochs=2, **kwargs):
    """Train in a plain loop that switches; return the losses of validation, and the weights in each mode."""
    learn = make_learner(n_batches=4, n_valid=2, opt_func=opt_func, **kwargs)
    model, losses = learn.model, []
    opt = opt_func(model.parameters(), lr=0.1)
    for _ in range(n_epochs):
        opt.train()
        for x, y in learn.dls.train:
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
        in_training = tensors_of(model)
        opt.eval()
        with torch.no_grad():
            losses.append(sum(F.cross_entropy(model(x), y).item() for x, y in learn.dls.valid) / 2)
    return losses, in_training, tensors_of(model)


@EACH
def test_validation_and_the_end_see_the_weights_of_evaluation(opt_func, at):
    seen = []
    look = at("after_train", lambda learn: seen.append(tensors_of(learn.model)))
    learn = make_learner(n_batches=4, n_valid=2, opt_func=opt_func, cbs=[MetricsCB(), look])
    learn.fit(2)
    losses, in_training, at_the_end = by_hand(opt_func)
    assert same(seen[-1], in_training)
    assert same(tensors_of(learn.model), at_the_end)
    assert not same(in_training, at_the_end)
    assert [row["loss"] for row in learn.history if row["train"] == "eval"] == pytest.approx(losses, rel=1e-6)
    x = learn.dls.valid.tensors[0]
    assert torch.equal(learn.predict(learn.dls.valid), learn.model(x).detach())
    learn.fit(1)
    assert same(tensors_of(learn.model), by_hand(opt_func, 3)[2])


@EACH
def test_saving_and_validating_in_training_change_nothing(opt_func, at, tmp_path):
    rows, saved, learners = [], [], []
    for looks in (False, True):

        def look(learn):
            if looks:  # noqa: B023  called in this turn
                learn.save(tmp_path / "weights.safetensors")
                saved.append(load_file(tmp_path / "weights.safetensors"))
                rows.append(learn.validate()["loss"])
                twin = deepcopy(learn.opt), tensors_of(learn.model)
                learn.opt.eval()
                expected = tensors_of(learn.model)
                learn.opt.load_state_dict(twin[0].state_dict())
                learn.opt.is_training = True
                with torch.no_grad():
                    for name, p in learn.model.named_parameters():
                        p.copy_(twin[1][name])
                assert same(saved[-1], expected)

        cbs = [MetricsCB(), at("after_step", look)]
        learn = make_learner(n_batches=4, n_valid=2, opt_func=opt_func, cbs=cbs)
        learn.fit(2)
        learners.append(learn)
    assert len(rows) == 8
    assert same(*(tensors_of(learn.model) for learn in learners))
    assert first_difference(*(learn.opt.state_dict() for learn in learners)) == ""


def test_an_error_leaves_the_weights_of_evaluation(at):
    def fail(learn):
        if learn.n_steps == 3:
            raise ZeroDivisionError

    learn = make_learner(n_batches=4, opt_func=InGroups, cbs=[at("after_step", fail)])
    with pytest.raises(ZeroDivisionError):
        learn.fit()
    assert not learn.opt.is_training


def test_lr_find_leaves_weights_and_mode_alone():
    learn = make_learner(n_batches=4, opt_func=InGroups)
    learn.fit()
    before = tensors_of(learn.model), deepcopy(learn.opt.state_dict())
    learn.lr_find(n_steps=12)
    assert same(before[0], tensors_of(learn.model))
    assert first_difference(before[1], learn.opt.state_dict()) == ""


def test_an_average_is_not_mixed_with_the_optimizer_s(at):
    """The average of a schedule-free optimizer's training weights, by hand."""
    seen, found = [], []

    def look(learn):
        seen.append(tensors_of(learn.model))
        if learn.n_steps >= 2:
            with learn.averaged():
                found.append(tensors_of(learn.model))
                learn.validate()
                assert same(found[-1], tensors_of(learn.model))
            assert same(seen[-1], tensors_of(learn.model))

    def look_in_validation(learn):
        if learn.is_nested and found:
            assert same(found[-1], tensors_of(learn.model))
            n_seen.append(1)

    n_seen = []
    cbs = [SWACB(0, every_steps=1), at("after_step", look, 80), at("after_forward", look_in_validation)]
    learn = make_learner(n_batches=4, opt_func=InGroups, cbs=cbs)
    learn.fit(valid=False)
    assert len(n_seen) == 3
    for i, average in enumerate(found):
        for name, value in average.items():
            expected = torch.stack([weights[name] for weights in seen[: i + 2]]).mean(0)
            torch.testing.assert_close(value, expected)


def test_the_best_weights_are_those_of_evaluation(at):
    kept = []
    look = at("after_epoch", lambda learn: kept.append(tensors_of(learn.model)), 100)
    stopping = EarlyStoppingCB(patience=5, min_delta=10.0)
    learn = make_learner(n_batches=4, opt_func=InGroups, cbs=[MetricsCB(), stopping, look])
    learn.fit(3)
    assert same(tensors_of(learn.model), kept[0])


MORE = {
    "alone": list,
    "with others": lambda: [
        *(GradientAccumulationCB(2), GradientClippingCB(0.5), MixedPrecisionCB(), EMACB(0.9), MetricsCB()),
        BatchSchedulerCB(torch.optim.lr_scheduler.LinearLR),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("more", MORE)
@EACH
def test_it_resumes_from_each_step_of_two_epochs(tmp_path, opt_func, more):
    def make(*cbs):
        return noisy_learner(*MORE[more](), *cbs, opt_func=opt_func, n_train=4, n_valid=2, model=dropped)

    for straight, learn in resumed_from_each_rest(make, tmp_path):
        assert same(tensors_of(straight.model), tensors_of(learn.model))


@pytest.mark.slow
@EACH
def test_it_passes_verify_resume(opt_func):
    learn = noisy_learner(opt_func=opt_func, n_train=4, model=dropped)
    assert "not compared" not in learn.verify_resume()
    learn.fit()
    assert "not compared" not in learn.verify_resume()  # with the kept optimizer


def test_a_part_of_several_optimizers_switches():
    model = nn.Linear(3, 2)
    opt_func = Combined((is_matrix, InGroups), SGD)
    learn = make_learner(n_batches=4, opt_func=opt_func, model=model)
    learn.fit()
    part = learn.opt.parts[0]
    assert not part.is_training
    weight, z = model.weight.detach().clone(), part.state[model.weight]["z"]
    learn.opt.train()
    assert part.is_training
    torch.testing.assert_close(model.weight.detach(), weight.lerp(z, 0.1))


def test_the_best_checkpoint_has_the_weights_of_evaluation(at, tmp_path):
    kept = []
    look = at("after_epoch", lambda learn: kept.append(tensors_of(learn.model)), 100)
    cbs = [scripted([1.0, 3.0, 2.0]), CheckpointCB(tmp_path, monitor="score", mode="max"), look]
    learn = make_learner(n_batches=4, opt_func=InGroups, cbs=cbs)
    learn.fit(3)
    learn.load(tmp_path / "best.pt")
    assert same(tensors_of(learn.model), kept[1])


# BatchNorms -----------------------------------------------------------------------------------------


def test_batchnorms_without_measured_statistics_are_warned_of():
    learn = make_learner(model=norm_net(), opt_func=InGroups)
    with pytest.warns(UserWarning, match=mentions("schedule-free ... BatchNorm '1' ... NormStatisticsCB()")):
        learn.fit()
    learn.fit()  # once for an optimizer
    make_learner(model=norm_net(), opt_func=InGroups, cbs=[NormStatisticsCB()]).fit()
    make_learner(model=norm_net(), opt_func=Combined((is_matrix, SGD), SGD)).fit()


def measured(model, loader):
    """Return the statistics of the present weights: means over the batches."""
    twin = deepcopy(model)
    twin[1].reset_running_stats()
    twin[1].momentum = None
    twin.train()
    with torch.no_grad():
        for x, _ in loader:
            twin(x)
    return {name: b.clone() for name, b in twin.named_buffers()}


def test_statistics_are_those_of_the_weights_in_validation(at):
    seen, learners = [], []

    def look(learn):
        expected = measured(learn.model, learn.dls.train)
        for name, value in learn.model.named_buffers():
            torch.testing.assert_close(value, expected[name])
        seen.append(1)

    for cbs in ([], [NormStatisticsCB(), at("before_validate", look, 75)]):
        torch.manual_seed(0)
        found = []
        ends = at("after_train", lambda learn, found=found: found.append(tensors_of(learn.model)))
        learn = make_learner(n_batches=4, model=drawn(norm_net()), opt_func=InGroups, cbs=[*cbs, ends])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn.fit(2)
        learners.append((learn, found))
    assert len(seen) == 2
    assert all(same(a, b) for a, b in zip(learners[0][1], learners[1][1], strict=True))
    learn = learners[1][0]
    expected = measured(learn.model, learn.dls.train)
    for name, value in learn.model.named_buffers():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.slow
def test_measured_statistics_resume(tmp_path):
    def make(*cbs):
        return noisy_learner(NormStatisticsCB(2), MetricsCB(), *cbs, opt_func=InGroups, n_train=4, n_valid=2)

    for straight, learn in resumed_from_each_rest(make, tmp_path):
        assert same(tensors_of(straight.model), tensors_of(learn.model))


def test_an_average_that_measures_itself_is_not_measured_twice():
    with pytest.raises(ValueError, match=mentions("NormStatisticsCB(100) with EMACB ... leave one out")):
        make_learner(model=norm_net(), opt_func=InGroups, cbs=[NormStatisticsCB(), EMACB(0.9)]).fit()
