"""A loss that is a module, and parameters that callbacks bring, beside plain loops of torch."""

from functools import partial

import pytest
import torch
from toolbox import (
    MOM_SGD,
    StopCB,
    at,
    drawn,
    every_rest,
    make_learner,
    mentions,
    noisy_learner,
    state_of,
    stop,
)
from torch import nn
from torch.nn import functional as F

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    DeviceCB,
    EarlyStoppingCB,
    GradientAccumulationCB,
    GradientClippingCB,
    MetricsCB,
    MomentumCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import read

SGD = partial(torch.optim.SGD, fused=False)


class CentreLoss(nn.Module):
    """Cross-entropy, the distance from a learned centre of each class, and a buffer that follows the data."""

    def __init__(self):
        super().__init__()
        self.centres, self.drop = nn.Parameter(torch.zeros(2, 2)), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("n_calls", torch.zeros(()), persistent=False)
        self.modes = []

    def forward(self, preds, target):
        self.modes.append((torch.is_grad_enabled(), self.training, self.drop.training))
        if self.training:
            self.mean.lerp_(preds.detach().mean(0), 0.5)
            self.n_calls += 1
        far = (preds - self.centres[target] - 0.1 * self.mean).square().mean()
        return F.cross_entropy(preds, target) + far * (1 + 0.01 * self.n_calls)


class ScaleCB(Callback):
    """Weigh the loss by a learned uncertainty, and add what a head of its own says."""

    def __init__(self):
        self.log_scale, self.head = nn.Parameter(torch.zeros(())), drawn(nn.Linear(2, 1))

    def extra_params(self, learn):
        return [self.log_scale, *self.head.parameters()]

    def after_loss(self, learn):
        if learn.training:
            more = self.head(learn.preds).square().mean()
            learn.loss = (learn.loss + more) * torch.exp(-self.log_scale) + self.log_scale


class TeacherLoss(nn.Module):
    """Cross-entropy by way of parts of the model itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, preds, target):
        return F.cross_entropy(preds, target)


def batches(learn):
    return list(learn.dls.train)


def by_hand(model, loss, data, n_epochs, opt, more=None):
    """Train in plain torch."""
    for _ in range(n_epochs):
        for x, y in data:
            opt.zero_grad()
            preds = model(x)
            value = loss(preds, y)
            if more is not None:
                head = more.head(preds).square().mean()
                value = (value + head) * torch.exp(-more.log_scale) + more.log_scale
            value.backward()
            opt.step()


def groups(learn):
    return [(g.get("extra"), len(g["params"]), g["lr"]) for g in learn.opt.param_groups]


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opt_func",
    [
        SGD,
        partial(SGD, momentum=0.9),
        partial(torch.optim.AdamW, fused=False),
        partial(torch.optim.Adagrad, fused=False),
    ],
)
def test_loss_and_callback_are_trained_as_in_a_plain_loop(opt_func):
    loss, cb = CentreLoss(), ScaleCB()
    learn = make_learner(loss_func=loss, cbs=cb, opt_func=opt_func)
    twin, twin_loss, twin_cb = make_learner(), CentreLoss(), ScaleCB()
    params = [*twin.model.parameters(), *twin_loss.parameters(), *twin_cb.extra_params(None)]
    by_hand(twin.model, twin_loss, batches(twin), 2, opt_func(params, 0.1), twin_cb)
    learn.fit(2)
    for mine, theirs in ((learn.model, twin.model), (loss, twin_loss), (cb.head, twin_cb.head)):
        assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))
    assert torch.equal(cb.log_scale, twin_cb.log_scale)
    assert loss.centres.abs().min() > 0
    assert groups(learn) == [(None, 2, 0.1), ("loss_func", 1, 0.1), ("ScaleCB", 3, 0.1)]


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), F.cross_entropy, None, CentreLoss().requires_grad_(False)],
    ids=["module", "function", "inferred", "frozen"],
)
def test_loss_without_trainable_parameters_adds_no_group(loss):
    learn = make_learner(loss_func=loss)
    learn.fit()
    assert groups(learn) == [(None, 2, 0.1)]


@pytest.mark.parametrize(
    "wrap", [lambda loss: partial(loss), lambda loss: loss.forward], ids=["partial", "method"]
)
def test_module_inside_a_partial_or_a_method_is_found(wrap):
    loss = CentreLoss()
    make_learner(loss_func=wrap(loss)).fit()
    assert loss.centres.abs().max() > 0


def test_loss_that_holds_the_model_is_not_trained_twice():
    learn = make_learner()
    learn.loss_func = TeacherLoss(learn.model)
    plain = make_learner(loss_func=F.cross_entropy)
    for one in (learn, plain):
        one.fit(2)
    assert torch.equal(learn.model.weight, plain.model.weight)
    assert groups(learn) == [(None, 2, learn.lr)]


def test_parameter_that_param_groups_has_is_in_no_second_group():
    loss = CentreLoss()
    learn = make_learner(
        loss_func=loss, param_groups=lambda m: [[*m.parameters(), loss.centres]], opt_func=SGD
    )
    learn.fit()
    assert groups(learn) == [(None, 3, 0.1)]
    assert loss.centres.abs().max() > 0


@pytest.mark.parametrize(
    ("lr", "lrs"),
    [(0.2, [0.2] * 4), ([0.1, 0.2], [0.1, 0.2, 0.2, 0.2]), ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])],
)
def test_list_of_lrs_is_of_the_model_s_groups_or_of_all(lr, lrs):
    for late in (False, True):
        learn = make_learner(
            lr=0.5 if late else lr,
            loss_func=CentreLoss(),
            cbs=ScaleCB(),
            param_groups=lambda m: [[m.weight], [m.bias]],
        )
        learn.fit()
        if late:
            learn.fit(lr=lr)
        assert [lr for _, _, lr in groups(learn)] == lrs


def test_another_number_of_lrs_is_refused():
    learn = make_learner(lr=[0.1, 0.2, 0.3], loss_func=CentreLoss())
    with pytest.raises(ValueError, match=mentions("lr=[0.1, 0.2, 0.3] ... 1, ... group ... 2, ... loss")):
        learn.fit()


def test_optimizer_without_groups_is_refused(bare_sgd):
    with pytest.raises(TypeError, match=mentions("BareSGD ... param_groups ... loss_func")):
        make_learner(loss_func=CentreLoss(), opt_func=bare_sgd).fit()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda self: self.log_scale, "a Parameter"),
        (lambda self: self.head, "a Linear"),
        (lambda self: 3, "a int"),
        (lambda self: [torch.zeros(2, requires_grad=True)], "a Tensor at place 0 ... nn.Parameter"),
        (lambda self: dict(self.head.named_parameters()), "a dict"),
    ],
)
def test_what_is_no_list_of_parameters_is_refused(given, found):
    class BadCB(ScaleCB):
        def extra_params(self, learn):
            return given(self)

    with pytest.raises(TypeError, match=mentions(f"BadCB.extra_params ... {found}")):
        make_learner(cbs=BadCB()).fit()


def test_second_fit_keeps_the_state_of_all_groups():
    loss, cb = CentreLoss(), ScaleCB()
    learn = make_learner(loss_func=loss, cbs=cb, opt_func=MOM_SGD)
    learn.fit()
    buffers = [learn.opt.state[p]["momentum_buffer"] for p in (loss.centres, cb.log_scale)]
    learn.fit()
    assert all(
        learn.opt.state[p]["momentum_buffer"] is b
        for p, b in zip((loss.centres, cb.log_scale), buffers, strict=True)
    )


def test_loss_or_callback_that_comes_beside_a_kept_optimizer_is_refused():
    learn = make_learner()
    learn.fit()
    with pytest.raises(ValueError, match=mentions("ScaleCB.log_scale ... reset_opt=True")):
        learn.fit(cbs=ScaleCB())
    learn.loss_func = CentreLoss()
    with pytest.raises(ValueError, match=mentions("learn.loss_func.centres (1 in all) ... reset_opt=True")):
        learn.fit()
    learn.fit(reset_opt=True)
    learn.loss_func = F.cross_entropy
    with pytest.raises(ValueError, match=mentions("1 tensor in group 1 ... loss_func ... reset_opt=True")):
        learn.fit()


def test_model_that_is_frozen_may_have_a_loss_that_is_trained():
    loss = CentreLoss()
    learn = make_learner(loss_func=loss)
    learn.model.requires_grad_(False)
    learn.fit()
    assert loss.centres.abs().max() > 0


def test_preview_of_a_schedule_knows_the_groups():
    learn = make_learner(loss_func=CentreLoss(), cbs=BatchSchedulerCB(torch.optim.lr_scheduler.OneCycleLR))
    learn.fit()
    assert len(groups(learn)) == 2


# Modes and devices --------------------------------------------------------------------------------


def test_loss_follows_the_modes_of_training_and_validation():
    loss = CentreLoss()
    learn = make_learner(loss_func=loss)
    learn.fit(2)
    assert set(loss.modes) == {(True, True, True), (False, False, False)}
    learn.validate()
    assert loss.training


def test_part_of_a_loss_that_is_in_evaluation_mode_stays_in_it():
    loss = CentreLoss()
    loss.drop.eval()
    make_learner(loss_func=loss).fit(2)
    assert set(loss.modes) == {(True, True, False), (False, False, False)}
    assert (loss.training, loss.drop.training) == (True, False)


def test_validation_in_the_middle_of_training_leaves_the_mode_of_the_loss():
    loss = CentreLoss()
    make_learner(
        loss_func=loss, cbs=at("after_predict", lambda learn: learn.training and learn.validate())
    ).fit()
    assert set(loss.modes) == {(True, True, True), (False, False, False)}


class Called(Exception):  # noqa: N818
    """End a fit inside the loss."""


class MetaLoss(CentreLoss):
    def forward(self, preds, target):
        raise Called(preds.device.type, self.centres.device.type, self.mean.device.type)


def test_loss_and_parameters_of_callbacks_are_moved_to_the_device():
    class HeadCB(ScaleCB):
        def extra_params(self, learn):
            return self.head.parameters()

        def after_predict(self, learn):
            seen.append(self.head.weight.device.type)

    seen, cb = [], HeadCB()
    del cb.log_scale  # of which torch cannot move the data to "meta"
    learn = make_learner(loss_func=MetaLoss(), cbs=[DeviceCB("meta"), cb])
    with pytest.raises(Called) as called:
        learn.fit()
    assert called.value.args == ("meta",) * 3
    assert seen == ["meta"]


# What goes by the optimizer's parameters ----------------------------------------------------------


def test_all_gradients_are_cleared_before_a_fit_and_after_a_step():
    loss, cb = CentreLoss(), ScaleCB()
    learn = make_learner(loss_func=loss, cbs=cb, opt_func=SGD)
    twin = make_learner(loss_func=CentreLoss(), cbs=ScaleCB(), opt_func=SGD)
    loss.centres.grad, cb.log_scale.grad = torch.ones(2, 2), torch.ones(())
    learn.fit()
    twin.fit()
    assert torch.equal(loss.centres, twin.loss_func.centres)
    assert loss.centres.grad is None
    assert cb.log_scale.grad is None


def test_norm_that_is_clipped_is_of_all_gradients():
    loss, cb, clip = CentreLoss(), ScaleCB(), GradientClippingCB(0.01)
    seen = []

    def look(learn):
        params = [*learn.model.parameters(), *loss.parameters(), *cb.extra_params(learn)]
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in params]).item())

    make_learner(loss_func=loss, cbs=[cb, clip, at("before_step", look, order=46)]).fit()
    assert seen == pytest.approx([0.01] * 3)


def test_accumulated_gradients_are_those_of_one_large_batch():
    results = []
    for bs, cbs in ((4, [GradientAccumulationCB(2)]), (8, [])):
        loss = Scaled()
        cb = ScaleCB()
        learn = make_learner(n=16, bs=bs, loss_func=loss, cbs=[cb, *cbs], opt_func=SGD)
        learn.fit(2)
        results.append(torch.cat([loss.scale, cb.log_scale[None], cb.head.weight[0], learn.model.bias]))
    torch.testing.assert_close(*results)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, preds, target):
        return F.cross_entropy(preds * self.scale, target)


def test_momentum_of_the_callback_is_torch_s_for_all_parameters():
    results = []
    for cbs, opt_func in (([MomentumCB(0.9)], SGD), ([], MOM_SGD)):
        loss, cb = Scaled(), ScaleCB()
        learn = make_learner(loss_func=loss, cbs=[cb, *cbs], opt_func=opt_func)
        learn.fit(2)
        results.append(torch.cat([loss.scale, cb.log_scale[None], learn.model.bias]))
    torch.testing.assert_close(*results)


def test_best_epoch_gives_back_its_loss_and_callback():
    loss, cb, kept = CentreLoss(), ScaleCB(), []
    keep = at(
        "after_epoch", lambda learn: kept.append([t.clone() for t in (loss.centres, loss.mean, cb.log_scale)])
    )
    early = EarlyStoppingCB(patience=9)
    values = iter([1.0, 0.0, 2.0])
    early.monitor.check, early.monitor.value = lambda learn: None, lambda learn: next(values)
    make_learner(loss_func=loss, cbs=[cb, keep, early]).fit(3)
    assert early.best_epoch == 1
    assert all(map(torch.equal, (loss.centres, loss.mean, cb.log_scale), kept[1]))
    assert not torch.equal(kept[1][0], kept[2][0])


def test_average_is_of_loss_and_callback_too():
    loss, cb, seen = Scaled(), ScaleCB(), []
    keep = at("after_train", lambda learn: seen.append(torch.cat([loss.scale, cb.log_scale[None]]).detach()))
    make_learner(loss_func=loss, cbs=[cb, keep, SWACB(0)]).fit(3)
    torch.testing.assert_close(torch.cat([loss.scale, cb.log_scale[None]]).detach(), sum(seen) / 3)


def test_validation_under_an_average_leaves_the_training_of_the_loss_as_it_is():
    results = []
    for cbs in ([], [EMACB(0.9)]):
        loss, end = CentreLoss(), []
        keep = at("after_epoch", lambda learn, loss=loss, end=end: end.append(loss.centres.detach().clone()))
        make_learner(loss_func=loss, cbs=[*cbs, keep]).fit(3)
        results.append(end)
    assert all(map(torch.equal, *results))


def test_save_is_of_the_model(tmp_path):
    learn = make_learner(loss_func=CentreLoss(), cbs=ScaleCB())
    learn.fit()
    learn.save(tmp_path / "m.safetensors")
    plain = make_learner()
    plain.load(tmp_path / "m.safetensors")
    assert torch.equal(plain.model.weight, learn.model.weight)


# Checkpoints --------------------------------------------------------------------------------------


class Noted(CentreLoss):
    """With a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, preds, target):
        self.n += self.training
        return super().forward(preds, target) * (1 + 0.1 * self.n)

    def get_extra_state(self):
        return {"n": self.n}

    def set_extra_state(self, state):
        self.n = state["n"]


def new(*cbs, seed=1, loss=Noted):
    return noisy_learner(*cbs, ScaleCB(), MetricsCB(), seed=seed, n_train=3, n_valid=1, loss_func=loss())


def loss_of(learn):
    return {**dict(learn.loss_func.named_parameters()), **dict(learn.loss_func.named_buffers())}


KEPT = lambda: [MomentumCB(0.5), EMACB(0.9)]  # noqa: E731  # gradients, and averages


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize(
    ("more", "n"), [*((list, n) for n in range(1, 11)), *((KEPT, n) for n in range(1, 10))]
)
def test_resumed_run_is_the_straight_one_bit_for_bit(tmp_path, more, n):
    straight = new(*more())
    straight.fit(2)
    stop(new(*more(), every_rest(tmp_path), StopCB(n)))
    learn = new(*more(), every_rest(tmp_path), seed=99)
    with torch.no_grad():
        learn.loss_func.centres += 7
    learn.fit(2, resume=tmp_path)
    assert first_difference(state_of(straight), state_of(learn, "CheckpointCB")) == ""
    assert all(map(torch.equal, loss_of(straight).values(), loss_of(learn).values()))
    assert straight.loss_func.n == learn.loss_func.n == 6


@pytest.mark.slow
def test_frozen_part_and_modes_of_the_loss_are_those_of_the_checkpoint(tmp_path):
    def freeze(learn):
        learn.loss_func.centres.requires_grad_(False)

    stop(new(at("before_fit", freeze), every_rest(tmp_path), StopCB(2)))
    learn = new(every_rest(tmp_path), at("before_fit", lambda learn: None))
    learn.fit(2, resume=tmp_path)
    assert not learn.loss_func.centres.requires_grad


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_checkpoint_of_a_loss_without_state_is_as_it_was(tmp_path, loss):
    learn = make_learner(loss_func=loss, cbs=CheckpointCB(tmp_path))
    learn.fit()
    saved = read(learn.saved_to)
    assert not saved.keys() & {"loss", "extra_grads"}
    assert list(saved["opt"]["state"]["param_groups"][0]).count("extra") == 0


def test_checkpoint_and_learner_with_unlike_losses_are_refused(tmp_path):
    class Other(Noted):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.zeros(2, 3))

    stop(new(every_rest(tmp_path), StopCB(2)))
    for loss, message in (
        (nn.CrossEntropyLoss, "state of a loss, centres ... CrossEntropyLoss() ... same loss_func"),
        (Other, "another loss ... centres is (2, 2) in the file and (2, 3) in the loss"),
    ):
        with pytest.raises(ValueError, match=mentions(message)):
            new(every_rest(tmp_path), loss=loss).fit(2, resume=tmp_path)
    stop(new(every_rest(tmp_path / "old"), StopCB(2), loss=nn.CrossEntropyLoss))
    with pytest.raises(ValueError, match=mentions("no state of the loss Noted ... loss_func")):
        new(every_rest(tmp_path / "old")).fit(2, resume=tmp_path / "old")


def test_state_dict_that_lacks_a_parameter_is_refused_before_training(tmp_path):
    class HidingCB(ScaleCB):
        def state_dict(self):
            return {"head": self.head.state_dict()}

    learn = make_learner(cbs=[HidingCB(), CheckpointCB(tmp_path)])
    with pytest.raises(ValueError, match=mentions("HidingCB.state_dict ... log_scale ... extra_params")):
        learn.fit()
    assert learn.n_steps == 0


def test_state_dict_that_has_the_parameters_resumes(tmp_path):
    class OwnCB(ScaleCB):
        def state_dict(self):
            return {"head": self.head.state_dict(), "scale": self.log_scale.detach()}

        def load_state_dict(self, state):
            self.head.load_state_dict(state["head"])
            self.log_scale.data.copy_(state["scale"])

    def make(*cbs):
        return make_learner(cbs=[OwnCB(), *cbs])

    straight = make()
    straight.fit(2)
    stop(make(every_rest(tmp_path), StopCB(3)))
    learn = make(every_rest(tmp_path))
    learn.fit(2, resume=tmp_path)
    assert torch.equal(learn.cbs[0].log_scale, straight.cbs[0].log_scale)


@pytest.mark.slow
def test_two_callbacks_of_a_class_keep_their_parameters_apart(tmp_path):
    def make(*cbs):
        first, second = ScaleCB(), ScaleCB()
        second.log_scale.data += 1
        return make_learner(cbs=[first, second, *cbs])

    straight = make()
    straight.fit(2)
    stop(make(every_rest(tmp_path), StopCB(3)))
    learn = make(every_rest(tmp_path))
    learn.fit(2, resume=tmp_path)
    assert [cb.log_scale.item() for cb in learn.cbs[:2]] == [cb.log_scale.item() for cb in straight.cbs]
    assert [name for name, _, _ in groups(learn)] == [None, "ScaleCB", "ScaleCB 2"]


@pytest.mark.slow
def test_verify_resume_knows_loss_and_callback():
    set_seed(0)
    assert "the same bit for bit" in make_learner(loss_func=CentreLoss(), cbs=ScaleCB()).verify_resume()
