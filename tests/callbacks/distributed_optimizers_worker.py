"""What the processes of test_distributed_optimizers do; the first one writes what came out."""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from distributed_worker import N_TRAIN, _write, data, leave, said, shared_learner
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Muon

from minilearn import (
    EMACB,
    SAMCB,
    Callback,
    CheckpointCB,
    DataLoaders,
    DistributedCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    TensorLoader,
    set_seed,
)
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


def tensor_parallel(model, mesh):
    """Shard the first layer by columns and the last one by rows, whose bias stays whole."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "3": RowwiseParallel()})


def parallel_learner(*cbs, parallelize=tensor_parallel, **kwargs):
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    set_seed(int(os.environ.get("RANK", 0)))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return Learner(model, data(), lr=0.02, cbs=[DistributedCB(parallelize=parallelize), *cbs], **kwargs)


def parallel():
    learn = parallel_learner(MetricsCB())
    learn.fit(2)
    preds, row = learn.predict(learn.dls.valid), learn.validate()
    n_here = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in learn.model.parameters())
    return said(learn, preds=preds, row=row["loss"], n_here=n_here)


def parallel_beside():
    cbs = [GradientAccumulationCB(2), GradientClippingCB(0.5), EMACB(0.9)]
    learn = parallel_learner(*cbs, opt_func=partial(SGD, momentum=0.9))
    learn.fit(2)
    return said(learn)


def parallel_in_bf16():
    learn = parallel_learner(MixedPrecisionCB())
    learn.fit(2)
    return said(learn)


def parallel_muon_and_sam():
    learn = parallel_learner(SAMCB(0.1), opt_func=Combined(("0", partial(SGD, momentum=0.9)), AdamW))
    learn.fit(2)
    return said(learn)


class PauseCB(Callback):
    """Pause in the second epoch."""

    free_on_resume = ("pauses",)

    def __init__(self, pauses=True):
        self.pauses = pauses

    def state_dict(self):
        return {}

    def after_step(self, learn):
        if learn.n_steps == 13 and self.pauses:
            learn.pause()


def saver(folder):
    return CheckpointCB(folder, every_steps=1, keep=100)


def parallel_unbroken():
    learn = parallel_learner(EMACB(0.9), opt_func=AdamW)
    learn.fit(2)
    return said(learn)


def parallel_resumed(folder):
    """Stop in the second epoch, and resume."""
    first = parallel_learner(EMACB(0.9), saver(folder / "tp"), PauseCB(), opt_func=AdamW)
    first.fit(2)
    assert first.is_paused
    learn = parallel_learner(EMACB(0.9), saver(folder / "tp"), PauseCB(False), opt_func=AdamW)
    learn.fit(2, resume=True)
    return said(learn)


def refused():
    """Return what is said of functions that shard nothing, change a part, or make another model."""

    def nothing(model, mesh):
        pass

    def apart(model, mesh):
        with torch.no_grad():
            model[4].weight.add_(mesh.get_rank())
        tensor_parallel(model, mesh)

    def another(model, mesh):
        return nn.Sequential(model)

    found = {}
    for parallelize in (nothing, apart, another):
        learn = parallel_learner(parallelize=parallelize)
        (cb,) = [cb for cb in learn.cbs if isinstance(cb, DistributedCB)]
        cb._processes.are(cb.rank, cb.n_processes)  # a fit that failed would leave the group
        cb._processes.broadcast_into(learn.model.parameters())
        try:
            cb._parallelize(learn.model, torch.device("cpu"))
        except (TypeError, ValueError) as error:
            found[parallelize.__name__] = str(error)
    return found


PARALLEL = (parallel, parallel_beside, parallel_muon_and_sam)
CASES = (combined, sam, sam_sharded, closure, searched, schedule_free)


def main():
    what, folder = sys.argv[1:]
    if what == "parallel":
        found = {case.__name__: case() for case in (*PARALLEL, parallel_in_bf16, parallel_unbroken)}
        found["parallel_resumed"] = parallel_resumed(Path(folder))
        _write(found, folder, what, torch.distributed.get_rank())
        _write(refused(), folder, "refused", torch.distributed.get_rank())
        return
    found = {case.__name__: case() for case in (*CASES, muon_sharded)}
    _write(found, folder, what, int(torch.distributed.get_rank()))


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        leave(1)
    leave(0)
