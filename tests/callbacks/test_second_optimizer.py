"""A GAN: the learner trains the generator, and a callback the discriminator, with an optimizer and a schedule
of its own. Nothing is written for saving: they are attributes."""

import pytest
import torch
from toolbox import StopCB, dealt, every_rest, generator, same, state_of, stop, tensors_of
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    Callback,
    DataLoaders,
    GradientClippingCB,
    Learner,
    MetricsCB,
    TensorLoader,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference

LR, N_TRAIN, N_VALID, BS = 1e-2, 16, 8, 4


def real(preds):
    return F.binary_cross_entropy_with_logits(preds, torch.ones_like(preds))


def fake(preds):
    return F.binary_cross_entropy_with_logits(preds, torch.zeros_like(preds))


class GANCB(Callback):
    """Train a discriminator beside the generator, which is the learner's model.

    A batch is real samples. The discriminator steps first, then the generator's loss is computed against it.
    """

    def __init__(self, critic, lr):
        self.critic, self.lr = critic, lr
        self.opt = Adam(critic.parameters(), lr)

    def before_fit(self, learn):
        self.sched = CosineAnnealingLR(self.opt, learn.total_steps)

    def predict(self, learn):
        noise = torch.randn(len(learn.xb), 2)
        learn.preds = learn.model(noise)

    def get_loss(self, learn):
        learn.loss = real(self.critic(learn.preds))

    def after_predict(self, learn):
        if learn.training:
            loss = real(self.critic(learn.xb)) + fake(self.critic(learn.preds.detach()))
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.sched.step()

    def after_step(self, learn):
        self.opt.zero_grad()  # what the generator's loss left there


def nets():
    set_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Linear(3, 1)


def data():
    x = torch.randn(N_TRAIN + N_VALID, 3, generator=generator())
    train = TensorLoader(x[:N_TRAIN], bs=BS, shuffle=True, seed=0)
    return DataLoaders(train, TensorLoader(x[N_TRAIN:], bs=BS))


def learner(*cbs):
    model, critic = nets()
    gan = GANCB(critic, 2 * LR)
    cbs = [gan, BatchSchedulerCB(OneCycleLR, cycle_momentum=False), *cbs]
    return Learner(model, data(), lr=LR, cbs=cbs, opt_func=Adam, default_cbs=False), gan


def by_hand():
    model, critic = nets()
    dls = data()
    opt, opt_d = Adam(model.parameters(), LR, fused=True), Adam(critic.parameters(), 2 * LR)
    sched, sched_d = OneCycleLR(opt, LR, 8, cycle_momentum=False), CosineAnnealingLR(opt_d, 8)
    for epoch in range(2):
        dls.train.set_epoch(epoch)
        for i, batch in enumerate(dls.train):
            x = batch[0] if isinstance(batch, tuple | list) else batch
            preds = model(torch.randn(len(x), 2))
            opt_d.zero_grad()
            (real(critic(x)) + fake(critic(preds.detach()))).backward()
            opt_d.step()
            sched_d.step()
            opt.zero_grad()
            real(critic(preds)).backward()
            opt.step()
            if (epoch, i) != (1, 3):
                sched.step()
    return model, critic


def test_it_is_the_loop_by_hand():
    learn, gan = learner()
    learn.fit(2, valid=False)
    model, critic = by_hand()
    assert same(tensors_of(model), tensors_of(learn.model))
    assert same(tensors_of(critic), tensors_of(gan.critic))
    assert gan.opt.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_it_resumes_from_each_step_of_two_epochs(tmp_path):
    def make(*cbs):
        return learner(EMACB(0.9), GradientClippingCB(1.0), MetricsCB(), *cbs)

    rests = StopCB(-1)  # counts them, and stops at none
    straight, gan = make(every_rest(tmp_path / "straight"), rests)
    straight.fit(2)
    expected = state_of(straight, "CheckpointCB")
    for n in dealt(range(1, -rests.n)):
        folder = tmp_path / str(n)
        stop(make(every_rest(folder), StopCB(n))[0])
        learn, other = make(every_rest(folder))
        set_seed(n)
        learn.fit(2, resume=True)
        assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", n
        assert same(tensors_of(gan.critic), tensors_of(other.critic))


@pytest.mark.slow
def test_it_passes_verify_resume():
    assert "not compared" not in learner()[0].verify_resume()


def test_lr_find_leaves_the_discriminator_as_it_was():
    learn, gan = learner()
    before = tensors_of(gan.critic)
    learn.lr_find(n_steps=12)
    assert same(before, tensors_of(gan.critic))
    assert not gan.opt.state
