"""Parameters that nobody trains are found where they may have come."""

import warnings

import pytest
import torch
from toolbox import at, drawn, make_learner, mentions
from torch import nn

from minilearn import Callback
from minilearn.callbacks.trained import CheckTrainedCB

EVENTS = ["before_fit", "before_epoch", "before_train", "after_epoch"]


def replace(learn):
    learn.model[0] = drawn(nn.Linear(3, 2))


def net():
    return drawn(nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize("event", EVENTS)
def test_layer_that_comes_after_the_optimizer_is_refused(event):
    learn = make_learner(model=net(), cbs=at(event, replace))
    with pytest.raises(
        ValueError, match=mentions("0.weight, 0.bias (2 in all) ... prepare ... extra_params")
    ) as e:
        learn.fit()
    assert learn.n_steps == (3 if event == "after_epoch" else 0)
    assert f"CheckTrainedCB.{event}" in e.value.__notes__[0]


def test_layer_that_comes_in_a_batch_is_found_at_the_end_of_the_epoch():
    learn = make_learner(
        model=net(), cbs=at("after_step", lambda learn: learn.n_steps == 2 and replace(learn))
    )
    with pytest.raises(ValueError, match=mentions("0.weight")):
        learn.fit()


def test_layer_that_comes_in_prepare_is_trained():
    class SurgeryCB(Callback):
        def prepare(self, learn):
            if len(learn.model) == 1:
                learn.model.append(drawn(nn.Linear(2, 2)))

    learn = make_learner(model=net(), cbs=SurgeryCB())
    before = drawn(nn.Linear(2, 2)).weight
    learn.fit()
    assert not torch.equal(learn.model[1].weight, before)


@pytest.mark.parametrize("event", EVENTS[:3])
def test_loss_that_is_replaced_is_refused(event):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, preds, target):
            return nn.functional.cross_entropy(preds * self.scale, target)

    learn = make_learner(cbs=at(event, lambda learn: setattr(learn, "loss_func", Scaled())))
    with pytest.raises(ValueError, match=mentions("learn.loss_func.scale (1 in all) ... optimizer")):
        learn.fit()


def test_frozen_layer_may_come_at_any_time():
    def frozen(learn):
        replace(learn)
        learn.model[0].requires_grad_(False)

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))

    def last(learn):
        learn.model[0].requires_grad_(False)

    make_learner(model=model, cbs=at("before_train", last)).fit()
    with pytest.raises(ValueError, match=r"has no gradient.*frozen"):  # nothing is left
        make_learner(model=net(), cbs=at("before_fit", frozen)).fit()


class CriticCB(Callback):
    """Train a part of the model by an optimizer of its own."""

    def __init__(self, event, inside):
        self.opts, self.event, self.inside = {}, event, inside
        setattr(self, event, self._make)

    def _make(self, learn):
        opt = torch.optim.SGD(learn.model[1].parameters(), 0.1)
        self.opts = {"critic": opt} if self.inside == "dict" else [opt] if self.inside == "list" else opt


@pytest.mark.parametrize("inside", ["dict", "list", "attribute"])
def test_parameter_in_an_optimizer_of_a_callback_is_no_one_s_mistake(inside):
    learn = make_learner(
        model=drawn(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))),
        cbs=CriticCB("prepare", inside),
        param_groups=lambda m: [[*m[0].parameters()]],
    )
    for _ in range(2):
        learn.fit()
    assert len(learn.opt.param_groups[0]["params"]) == 2


def test_optimizer_of_the_callback_for_a_new_layer():
    class NewCB(Callback):
        def before_fit(self, learn):
            learn.model.append(drawn(nn.Linear(2, 2)))
            self.opt = torch.optim.SGD(learn.model[1].parameters(), 0.1)

    make_learner(model=net(), cbs=NewCB()).fit()


def test_forgotten_parameter_of_a_callback_is_warned_of():
    class ForgottenCB(Callback):
        def __init__(self):
            self.log_scale, self.unused = nn.Parameter(torch.zeros(())), nn.Linear(2, 2)

        def after_loss(self, learn):
            learn.loss = learn.loss * self.log_scale.exp()

    with pytest.warns(UserWarning, match=mentions("ForgottenCB.log_scale ... extra_params")) as seen:
        make_learner(cbs=ForgottenCB()).fit()
    assert not any("unused" in str(w.message) for w in seen)


def test_callback_that_holds_parts_of_the_model_or_a_copy_is_not_warned_of():
    class HoldsCB(Callback):
        def before_fit(self, learn):
            self.part, self.weight, self.copy = learn.model, learn.model.weight, nn.Linear(3, 2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_learner(cbs=HoldsCB()).fit(2)


def test_bare_optimizer_is_not_looked_into(bare_sgd):
    make_learner(opt_func=bare_sgd).fit()


def test_it_is_not_among_the_callbacks():
    learn = make_learner()
    learn.fit()
    assert learn.cbs == ()
    assert not vars(CheckTrainedCB())


def test_step_does_no_more_than_before():
    learn = make_learner()
    seen = {
        name
        for event in ("before_batch", "before_step", "after_step", "after_batch")
        for name in learn._hooks.get(event, ())
    }
    assert seen == set()
