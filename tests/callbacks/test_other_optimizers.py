"""Optimizers beside the learner's, as one of several processes has them; test_distributed_jobs has two."""

import pytest
import torch
from toolbox import make_learner, mentions, two_layers
from torch import nn
from torch.optim import SGD, Adam

from minilearn import Callback, DistributedCB, optim
from minilearn.callbacks.other_optimizers import OtherOptimizers
from minilearn.processes import Processes

SHARE = 3 / 4


class JoinedCB(Callback):
    """Do with other optimizers what DistributedCB does, in a process that has SHARE of each batch."""

    order = DistributedCB.order

    def __init__(self, share=SHARE):
        self.others = OtherOptimizers(lambda learn: (4 * share, 4))

    def state_dict(self):
        return {}

    def before_fit(self, learn):
        self.others.begin(learn)

    def release(self, learn):
        self.others.end()

    def wrap_hook(self, name, hook):
        if name.endswith(".backward"):
            return self.others.in_learners(hook)
        if name.endswith(".step"):
            return self.others.checked(hook)
        return self.others.apart(hook) if name.startswith("ProbeCB") else hook


class SecondCB(Callback):
    """Step a parameter of its own after each step of the learner's."""

    def __init__(self):
        self.p, self.grads = nn.Parameter(torch.ones(3)), []
        self.opt = SGD([self.p], 0.1)

    def after_step(self, learn):
        self.opt.zero_grad()
        (self.p * learn.xb).sum(1).mean().backward()
        self.grads.append((self.p.grad.clone(), learn.xb.mean(0)))
        self.opt.step()


def fit(*cbs, share=SHARE, **kwargs):
    learn = make_learner(cbs=[JoinedCB(share), *cbs], **kwargs)
    learn.fit(2)
    return learn


@pytest.mark.parametrize("share", [0, SHARE])
def test_a_gradient_is_weighted_by_the_share_of_the_batch(share):
    fit(cb := SecondCB(), share=share)
    assert len(cb.grads) == 6
    for grad, expected in cb.grads:
        torch.testing.assert_close(grad, share * expected)


class FrozenCB(SecondCB):
    """Begin with the parameter frozen."""

    def __init__(self):
        super().__init__()
        self.p.requires_grad_(False)

    def before_batch(self, learn):
        self.p.requires_grad_(True)


class ListCB(SecondCB):
    """Keep the optimizer in a list or a dict only."""

    def __init__(self, keep):
        super().__init__()
        self.opts = keep(self.opt)
        del self.opt

    def after_step(self, learn):
        [opt] = self.opts.values() if isinstance(self.opts, dict) else self.opts
        opt.zero_grad()
        (self.p * learn.xb).sum(1).mean().backward()
        self.grads.append((self.p.grad.clone(), learn.xb.mean(0)))
        opt.step()


@pytest.mark.parametrize(
    "make", [FrozenCB, lambda: ListCB(lambda opt: [opt]), lambda: ListCB(lambda opt: {"p": opt})]
)
def test_one_that_is_unfrozen_later_or_in_a_list_or_dict_is_weighted_too(make):
    fit(cb := make())
    for grad, expected in cb.grads:
        torch.testing.assert_close(grad, SHARE * expected)


def test_nothing_is_left_of_it_after_the_fit():
    fit(cb := SecondCB())
    cb.opt.zero_grad()
    cb.p.sum().backward()
    assert cb.p.grad.tolist() == [1, 1, 1]
    cb.opt.step(lambda: torch.zeros(()))  # which is refused in a fit


# What is this process's own, or the learner's ---------------------------------------------------------


class ProbeCB(SecondCB):
    in_each_process = False


def test_an_optimizer_of_the_first_process_only_is_left_as_it_is():
    fit(cb := ProbeCB())
    for grad, expected in cb.grads:
        torch.testing.assert_close(grad, expected)


def test_an_optimizer_that_is_made_for_a_batch_is_left_as_it_is(at):
    def attack(learn):
        x = learn.xb.clone().requires_grad_()
        opt = SGD([x], 0.5)
        for _ in range(2):
            opt.zero_grad()
            x.square().sum().backward()
            opt.step()
        assert torch.equal(x.detach(), torch.zeros_like(x))

    fit(at("after_step", attack))


def test_parts_of_the_learners_optimizer_are_the_learners():
    combined = optim.Combined((optim.is_matrix, SGD), Adam)
    straight = make_learner(opt_func=combined, model=two_layers())
    joined = make_learner(cbs=JoinedCB(), opt_func=combined, model=two_layers())
    joined.model.load_state_dict(straight.model.state_dict())
    for learn in (straight, joined):
        learn.fit(2)
    for a, b in zip(straight.model.parameters(), joined.model.parameters(), strict=True):
        assert torch.equal(a, b)


# What is refused --------------------------------------------------------------------------------------


class OfModelCB(Callback):
    """Keep an optimizer of the model's last layer."""

    def __init__(self, model):
        self.opt = SGD(model[1].parameters(), 0.1)


def test_parameters_of_the_model_are_refused_before_training():
    model = two_layers()
    groups = {"param_groups": lambda model: [{"params": model[0].parameters()}]}
    learn = make_learner(cbs=[JoinedCB(), OfModelCB(model)], model=model, **groups)
    with pytest.raises(ValueError, match=mentions("OfModelCB.opt ... 1.weight ... Combined")):
        learn.fit()
    assert learn.n_steps == 0


class SharedLossCB(SecondCB):
    """Step by the gradients of the learner's loss, which it has a part in."""

    def after_loss(self, learn):
        if learn.training:
            learn.loss = learn.loss + self.p.sum()

    def after_step(self, learn):
        self.opt.step()


def test_a_step_by_gradients_of_the_learners_loss_is_refused():
    with pytest.raises(RuntimeError, match=mentions("SharedLossCB.opt ... learn.loss ... extra_params")):
        fit(SharedLossCB())


class ClearedCB(SharedLossCB):
    """Clear them first."""

    after_step = SecondCB.after_step


def test_gradients_of_the_learners_loss_may_be_cleared_before_a_step():
    fit(cb := ClearedCB())
    for grad, expected in cb.grads:
        torch.testing.assert_close(grad, SHARE * expected)


class ClosureCB(SecondCB):
    def after_step(self, learn):
        self.opt.step(lambda: torch.zeros(()))


def test_a_closure_is_refused():
    with pytest.raises(RuntimeError, match=mentions("ClosureCB.opt.step(closure) ... averaged ... step()")):
        fit(ClosureCB())


class HiddenCB(SecondCB):
    """Keep the optimizer where it is not looked for."""

    def __init__(self):
        super().__init__()
        self.hidden = lambda opt=self.opt: opt
        del self.opt

    def after_step(self, learn):
        self.hidden().zero_grad()
        (self.p * learn.xb).sum(1).mean().backward()
        self.hidden().step()


def test_an_optimizer_that_was_not_found_is_refused_at_its_second_batch():
    with pytest.raises(RuntimeError, match=mentions("SGD ... several batches ... attribute")):
        fit(HiddenCB())


def test_other_optimizers_in_each_process_are_refused_before_training(monkeypatch):
    learn = make_learner(cbs=[JoinedCB(), SecondCB()])
    monkeypatch.setattr(Processes, "all_gather", lambda self, value: [value, {"SecondCB.opt": [(4,)]}])
    with pytest.raises(ValueError, match=mentions("different optimizers ... SecondCB.opt")):
        learn.fit()
    assert learn.n_steps == 0


# Gradients of the model -------------------------------------------------------------------------------


def own_backward(learn, **kwargs):
    if learn.training:
        learn.model(learn.xb).square().mean().backward(**kwargs)


@pytest.mark.parametrize(
    "event",
    ["before_batch", "before_forward", "after_predict", "after_loss", "after_backward", "before_step"],
)
def test_a_step_by_gradients_of_another_backward_is_refused(at, event):
    with pytest.raises(RuntimeError, match=mentions("weight ... another backward ... learn.again")):
        fit(at(event, own_backward))


def test_gradients_of_another_backward_may_be_looked_at(at):
    def look(learn):
        if learn.training:
            own_backward(learn)
            learn.opt.zero_grad()
            torch.autograd.grad(learn.model(learn.xb).square().mean(), learn.model.weight)

    assert fit(at("before_batch", look), at("after_step", own_backward)).n_steps == 6


def test_another_backward_of_the_learners_is_no_other(at):
    def again(learn):
        learn.opt.zero_grad()
        learn.again(backward=True)

    assert fit(at("before_step", again)).n_steps == 6
