"""What the processes of test_distributed_jobs do: a GAN, mixed images, and transformers on a length plan."""

import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for toolbox

import torch
from distributed_worker import leave, said, shared_learner
from outputs import PAD, Net, V, tokens
from toolbox import drawn, generator, tensors_of
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from minilearn import (
    Callback,
    CheckpointCB,
    CutMixCB,
    DataLoaders,
    DatasetLoader,
    GradientAccumulationCB,
    GradientClippingCB,
    TensorLoader,
    TransformersCB,
    by_length,
)

RANK = int(os.environ.get("RANK", 0))

# A second optimizer -----------------------------------------------------------------------------------

N_TRAIN, N_VALID, BS = 28, 10, 9  # the last batch has one sample: none for the second process


def real(preds):
    return F.binary_cross_entropy_with_logits(preds, torch.ones_like(preds))


def fake(preds):
    return F.binary_cross_entropy_with_logits(preds, torch.zeros_like(preds))


def critic():
    """Make a discriminator, with other weights and another buffer in each process."""
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 1))
    net[1].running_mean += RANK
    return drawn(net, generator(RANK))


class GANCB(Callback):
    """Train a discriminator beside the generator, which is the learner's model.

    A batch is real samples, and noise beside them, so that it does not depend on the number of processes.
    """

    def __init__(self):
        self.critic = critic()
        self.opt = Adam(self.critic.parameters(), 0.02)

    def before_fit(self, learn):
        self.sched = CosineAnnealingLR(self.opt, learn.total_steps)

    def predict(self, learn):
        learn.preds = learn.model(learn.xb[:, 3:])

    def get_loss(self, learn):
        learn.loss = real(self.critic(learn.preds))

    def after_predict(self, learn):
        if learn.training:
            loss = real(self.critic(learn.xb[:, :3])) + fake(self.critic(learn.preds.detach()))
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.sched.step()

    def after_step(self, learn):
        self.opt.zero_grad()  # what the generator's loss left there


def gan_learner(gan, *cbs):
    x = torch.randn(N_TRAIN + N_VALID, 5, generator=generator())
    train, valid = TensorLoader(x[:N_TRAIN], bs=BS, shuffle=True, seed=RANK), TensorLoader(x[N_TRAIN:], bs=BS)
    model = drawn(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), generator(RANK))
    return shared_learner([gan, *cbs], model=model, dls=DataLoaders(train, valid), opt_func=Adam)


def with_critic(learn, gan):
    """Return what came out, with the discriminator of each process."""
    return said(learn, critics=learn.processes.all_gather(tensors_of(gan.critic)))


def adversarial(folder):
    learn = gan_learner(gan := GANCB())
    learn.fit(2)
    return with_critic(learn, gan)


def saver(folder, **kwargs):
    return CheckpointCB(folder, keep=99, **kwargs)


def adversarial_resumed(folder):
    learn = gan_learner(GANCB(), saver(folder / "gan", every_steps=1))
    learn.fit(2)
    learn = gan_learner(gan := GANCB(), saver(folder / "gan again"))
    learn.fit(2, resume=folder / "gan" / "epoch-0001-train-000002.pt")
    return with_critic(learn, gan)


class CodesCB(Callback):
    """Train a code for each sample, an optimizer's only in the batches that have the sample."""

    def __init__(self):
        self.codes = [nn.Parameter(torch.full((3,), float(RANK))) for _ in range(N_TRAIN)]
        self.opt = SGD(self.codes, 0.5, momentum=0.5, weight_decay=0.1)

    def after_step(self, learn):
        self.opt.zero_grad()
        if not learn.processes.is_idle:
            codes = torch.stack([self.codes[i] for i in learn.index])
            (codes - learn.xb[:, :3]).square().mean().backward()
        self.opt.step()


class ProbeCB(Callback):
    """Fit a probe in the first process only, with an optimizer that it keeps from batch to batch."""

    in_each_process = False

    def __init__(self):
        self.p = nn.Parameter(torch.ones(3))
        self.opt = SGD([self.p], 0.1)

    def after_batch(self, learn):
        if learn.training:
            self.opt.zero_grad()
            (learn.preds.detach() @ self.p).mean().backward()
            self.opt.step()


class AttackCB(Callback):
    """Change each batch with an optimizer of its own, as an adversary does."""

    def before_batch(self, learn):
        if learn.training:
            x = learn.xb.clone().requires_grad_()
            opt = SGD([x], 0.1)
            x.square().sum().backward()
            opt.step()
            learn.xb = x.detach()


def beside_others(folder):
    """Train parameters that only one process has a gradient of, beside optimizers of one process or batch."""
    learn = gan_learner(gan := GANCB(), codes := CodesCB(), ProbeCB(), AttackCB())
    learn.fit(2)
    values = [code.detach() for code in codes.codes]
    return with_critic(learn, gan) | {"codes": learn.processes.all_gather(torch.stack(values))}


# Mixed images -----------------------------------------------------------------------------------------


class MixedCB(Callback):
    """Note the samples of each batch as they were mixed: inputs, both targets, and the share of the first."""

    def __init__(self):
        self.steps = []

    def state_dict(self):
        return {}

    def after_step(self, learn):
        cb = next(cb for cb in learn.cbs if isinstance(cb, CutMixCB))
        mine = None if learn.processes.is_idle else (learn.xb, learn.yb, cb._other, cb._share)
        self.steps.append(learn.processes.all_gather(mine))


def images():
    return drawn(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.Tanh(), nn.Linear(6, 2)), generator(RANK)
    )


def cut_learner(*cbs):
    rng = generator()
    x = torch.randn(N_TRAIN, 3, 4, 4, generator=rng)
    train = TensorLoader(x, torch.randint(2, (N_TRAIN,), generator=rng), bs=BS, shuffle=True, seed=RANK)
    cbs = [CutMixCB(), *cbs]
    return shared_learner(cbs, model=images(), dls=DataLoaders(train), opt_func=SGD)


def mixed(folder):
    learn = cut_learner(watch := MixedCB())
    learn.fit(2)
    return said(learn, steps=watch.steps)


def mixed_resumed(folder):
    found = {}
    for name, resume in (("straight", None), ("resumed", folder / "cut" / "epoch-0001-train-000002.pt")):
        saves = saver(folder / "cut", every_steps=1) if resume is None else saver(folder / "cut again")
        learn = cut_learner(saves, watch := MixedCB())
        learn.fit(2, resume=resume)
        found[name] = said(learn, steps=watch.steps)
    return found


# A plan of lengths ------------------------------------------------------------------------------------


def collated(samples):
    """Pad dicts to the longest of a batch; labels with PAD."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": PAD}
    return {
        name: nn.utils.rnn.pad_sequence([s[name] for s in samples], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }


def theirs(of):
    """Make a model of transformers for a label of each token, or for the next token."""
    import transformers

    size = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if of == "token":
        config = transformers.BertConfig(
            **size, num_labels=V, intermediate_size=8, hidden_dropout_prob=0, attention_probs_dropout_prob=0
        )
        return drawn(transformers.BertForTokenClassification(config), generator(RANK))
    config = transformers.LlamaConfig(**size, intermediate_size=8, pad_token_id=0)
    return drawn(transformers.LlamaForCausalLM(config), generator(RANK))


def planned(of, make, n):
    """Train on batches by length, with one step for n of them."""
    whole = tokens(23, of)
    lengths = whole["attention_mask"].sum(1).tolist()
    rows = [{name: t[i, :size] for name, t in whole.items()} for i, size in enumerate(lengths)]
    if of == "token":
        rows[3]["labels"] = torch.full_like(rows[3]["labels"], PAD)
    train = DatasetLoader(rows, plan=by_length(lengths, tokens=20), collate_fn=collated, seed=RANK)
    valid = DatasetLoader(rows[:10], bs=4, collate_fn=collated)
    cbs = [TransformersCB(), GradientClippingCB(0.5)] + [GradientAccumulationCB(n)] * (n > 1)
    learn = shared_learner(
        cbs, model=make(of), dls=DataLoaders(train, valid), opt_func=partial(SGD, momentum=0.5)
    )
    learn.fit(2)
    return said(learn)


def by_lengths(folder):
    return {f"{of}, {n}": planned(of, ours, n) for of in ("token", "next") for n in (1, 3)}


def by_lengths_of_theirs(folder):
    if find_spec("transformers") is None:
        return {}
    return {f"{of}, {n}": planned(of, theirs, n) for of in ("token", "next") for n in (1, 3)}


def ours(of):
    return drawn(Net(of), generator(RANK))


CASES = (
    adversarial,
    adversarial_resumed,
    beside_others,
    mixed,
    mixed_resumed,
    by_lengths,
    by_lengths_of_theirs,
)


def main():
    what, folder = sys.argv[1:]
    result = {case.__name__: case(Path(folder)) for case in CASES}
    if RANK == 0:
        torch.save(result, Path(folder) / f"{what}.pt")


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        leave(1)
    leave(0)
