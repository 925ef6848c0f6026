"""What the processes of test_distributed_optimizers do; the first one writes what came out."""

import sys
from functools import partial

import torch
from distributed_worker import N_TRAIN, _write, data, leave, said, shared_learner
from torch import nn
from torch.optim import LBFGS, AdamW, Muon

from minilearn import SAMCB, Callback, DataLoaders, TensorLoader
from minilearn.optim import Combined, is_matrix

MUON_AND_ADAMW = Combined((is_matrix, partial(Muon, lr=0.02)), AdamW)


def combined():
    learn = shared_learner(opt_func=MUON_AND_ADAMW)
    learn.fit(2)
    return said(learn)


class StepsCB(Callback):
    """Compare each step of a sharded matrix with that of the whole one, and of shards by themselves.

    It is of a hidden layer. The gradient of the last one has rank 2, and in the third direction Muon makes a
    step of the rounding, with one process too.
    """

    def __init__(self):
        self.whole, self.alone = [], []  # differences, as parts of the step's norm

    def before_step(self, learn):
        p = learn.model[0].weight
        buffer = learn.opt.state[p].get("momentum_buffer", torch.zeros_like(p))
        self.before = [t.detach().full_tensor().clone() for t in (p, p.grad, buffer)]

    def after_step(self, learn):
        weight = self.before[0]
        step = learn.model[0].weight.detach().full_tensor() - weight
        for found, n in ((self.whole, 1), (self.alone, 2)):
            parts = zip(*(t.chunk(n) for t in self.before), strict=True)
            expected = torch.cat([muon_step(*part) for part in parts]) - weight
            found.append(float((step - expected).norm() / expected.norm()))


def muon_step(weight, grad, buffer):
    p = nn.Parameter(weight.clone())
    opt = Muon([p], lr=0.02)
    p.grad, opt.state[p]["momentum_buffer"] = grad.clone(), buffer.clone()
    opt.step()
    return p.detach()


def muon_sharded():
    cb = StepsCB()
    shared_learner([cb], opt_func=MUON_AND_ADAMW, shard=True).fit(2)
    return {"whole": cb.whole, "alone": cb.alone}


def sam():
    learn = shared_learner([SAMCB(0.1)])
    learn.fit(2)
    return said(learn)


def sam_sharded():
    learn = shared_learner([SAMCB(0.5, adaptive=True)], shard=True)
    learn.fit(2)
    return said(learn)


def full_batches():
    """Of 83 samples, which 2 processes cannot halve: on small batches LBFGS makes much of rounding."""
    x, y = data().train.tensors
    return DataLoaders(TensorLoader(x, y, bs=N_TRAIN), data().valid)


def closure():
    learn = shared_learner(opt_func=partial(LBFGS, max_iter=3), dls=full_batches())
    learn.fit(3)
    return said(learn)


def searched():
    opt_func = partial(LBFGS, max_iter=3, line_search_fn="strong_wolfe")
    learn = shared_learner(opt_func=opt_func, dls=full_batches())
    learn.fit(3)
    return said(learn)


def schedule_free():
    from schedulefree import AdamWScheduleFree

    learn = shared_learner(opt_func=AdamWScheduleFree)
    learn.fit(2)
    return said(learn, row=learn.validate()["loss"])


CASES = (combined, sam, sam_sharded, closure, searched, schedule_free)


def main():
    what, folder = sys.argv[1:]
    found = {case.__name__: case() for case in (*CASES, muon_sharded)}
    _write(found, folder, what, int(torch.distributed.get_rank()))


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        leave(1)
    leave(0)
