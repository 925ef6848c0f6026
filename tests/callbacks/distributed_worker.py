"""What the processes of test_distributed do: cases by name; the first process writes what came out."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from minilearn import (
    EMACB,
    SWACB,
    Callback,
    CancelBatchException,
    CancelStepException,
    CancelTrainException,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    DistributedCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MixedPrecisionCB,
    TensorLoader,
    by_length,
    set_seed,
)

N_TRAIN, N_VALID, BS = 83, 20, 9  # the last batches have 2 samples each, fewer than 3 processes


X = torch.randn(N_TRAIN + N_VALID, 6, generator=torch.Generator().manual_seed(0))
ID_OF = {value: i for i, value in enumerate(X[:, 0].tolist())}


def data(as_list=False):
    x, y = X, (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 1).long()
    train = TensorLoader(x[:N_TRAIN], y[:N_TRAIN], bs=BS, shuffle=not as_list)
    valid = TensorLoader(x[N_TRAIN:], y[N_TRAIN:], bs=BS)
    return DataLoaders(list(train), list(valid)) if as_list else DataLoaders(train, valid)


class WatchCB(Callback):
    """Note which samples this process had, and whether gradients are alike in all when they should be."""

    order = 2000

    def __init__(self):
        self.seen, self.alike = [[], []], {"accumulating": [], "step": []}

    def after_batch(self, learn):
        if not learn.processes.is_idle:
            self.seen[learn.training] += [ID_OF[value] for value in learn.xb[:, 0].tolist()]

    def _is_alike(self, learn):
        grads = learn.processes.all_gather(learn.model[0].weight.grad[0, 0].item())
        return len(set(grads)) == 1

    def after_backward(self, learn):
        if learn.is_accumulating:
            self.alike["accumulating"].append(self._is_alike(learn))

    def before_step(self, learn):
        self.alike["step"].append(self._is_alike(learn))


def shared_learner(cbs=(), as_list=False, shard=None, model=None, loss=None, dls=None, **kwargs):
    rank = int(os.environ.get("RANK", 0))
    set_seed(rank)  # weights and order would differ, if they were not the first process's
    model = model or nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    cbs = [DistributedCB(shard=shard), *cbs]
    return Learner(model, dls or data(as_list), loss, 0.02, cbs=cbs, **kwargs)


def said(learn, **more):
    ddps = [cb._ddp for cb in learn.cbs if isinstance(cb, DistributedCB)]
    assert ddps in ([], [None]), (
        "a fit left its DistributedDataParallel, which may abort the process at its end"
    )
    rows = [{k: v for k, v in row.items() if k != "time_s"} for row in learn.history]
    weights = {
        k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in learn.model.state_dict().items()
    }
    return {"rows": rows, "weights": weights, "all_rows": learn.processes.all_gather(rows), **more}


class ValidateCB(Callback):
    """Validate in the middle of a batch, whose own share must stay what it is."""

    def after_step(self, learn):
        learn.validate()


class LookAtTrainCB(Callback):
    """Validate on the training data, in one pass, and note its row."""

    def after_step(self, learn):
        learn.log("all_of_train", learn.validate(learn.dls.train)["loss"])


def plain():
    learn = shared_learner([watch := WatchCB()])
    learn.fit(2)
    seen = learn.processes.all_gather(watch.seen)
    preds, row = learn.predict(learn.dls.valid), learn.validate()
    learn.fit(1)
    seeds = learn.processes.all_gather(torch.initial_seed())
    return said(learn, seen=seen, preds=preds, row=row["loss"], seeds=seeds)


def of_a_list():
    learn = shared_learner([ValidateCB()], as_list=True)
    learn.fit(2)
    return said(learn)


def clipped_accumulation():
    learn = shared_learner([watch := WatchCB(), GradientAccumulationCB(4), GradientClippingCB(0.5)])
    learn.fit(2)
    return said(learn, alike=watch.alike)


def in_steps():
    learn = shared_learner([EMACB(0.9), GradientAccumulationCB(2)])
    learn.fit(n_steps=11, epoch_steps=4)  # the last batch of a pass has a shard without a sample
    return said(learn)


def in_steps_of_a_list():
    learn = shared_learner([LookAtTrainCB()], as_list=True)
    learn.fit(3, epoch_steps=7)
    return said(learn)


def averaged():
    learn = shared_learner([SWACB(1, every_steps=3), MixedPrecisionCB()])
    learn.fit(2)
    return said(learn)


def normed():
    """BatchNorm: nothing is compared with one process, but all processes have to agree."""
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    learn = shared_learner([EMACB(0.9)], model=model)
    learn.dls.train.drop_last = True  # BatchNorm needs two samples
    learn.fit(2)
    statistics = learn.processes.all_gather([learn.model[1].running_mean, learn.model[1].running_var])
    return said(learn, statistics=statistics)


class CentreLoss(nn.Module):
    """Cross-entropy, the distance from learned centres, and a buffer; each process begins with others."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.full((3, 3), float(os.environ.get("RANK", 0))))
        self.register_buffer("scale", torch.ones(()) + int(os.environ.get("RANK", 0)))

    def forward(self, preds, target):
        far = (preds - self.centres[target]).square().mean()
        return nn.functional.cross_entropy(preds * self.scale, target) + far


class ScaleCB(Callback):
    """Weigh the loss by a learned uncertainty; the last batch of an epoch lets it out."""

    def __init__(self):
        self.log_scale = nn.Parameter(torch.full((), float(os.environ.get("RANK", 0))))

    def extra_params(self, learn):
        return [self.log_scale]

    def after_loss(self, learn):
        if learn.training and learn.batch_idx < 9:
            learn.loss = learn.loss * (-self.log_scale).exp() + self.log_scale


def beside():
    """Train parameters beside the model's: of a loss, and of a callback."""
    cbs = [scale := ScaleCB(), GradientAccumulationCB(4), GradientClippingCB(0.5)]
    learn = shared_learner(cbs, loss=CentreLoss())
    learn.fit(2)
    values = [learn.loss_func.centres.detach(), learn.loss_func.scale, scale.log_scale.detach()]
    return said(learn, values=learn.processes.all_gather(values))


def found():
    finder = shared_learner().lr_find(n_steps=30)
    return {"losses": finder.losses}


PAD = -100


class MaskedMean(nn.Module):
    """The mean square of the outputs at the targets that are not ignored, which it counts itself."""

    def count(self, preds, target):
        return (target != PAD).sum()

    def forward(self, preds, target):
        kept = target != PAD
        return (preds.square().sum(1) * kept).sum() / kept.sum()


WEIGHT = torch.tensor([0.5, 4.0, 1.0])
LOSSES = {
    "ignored": nn.CrossEntropyLoss,
    "class weights": lambda: nn.CrossEntropyLoss(WEIGHT),
    "smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
    "own count": MaskedMean,
    "sum": lambda: nn.CrossEntropyLoss(WEIGHT / 10, reduction="sum"),
}


def ignored_data():
    """Data of which a batch has no target, another one only for the first samples."""
    loaders = data()
    y = loaders.train.tensors[1].clone()
    y[torch.arange(len(y)) % 5 == 0] = y[BS : 2 * BS] = y[2 * BS + 2 : 3 * BS] = PAD
    loaders.train = TensorLoader(loaders.train.tensors[0], y, bs=BS)
    return loaders


def counted():
    """Train on losses that are means over something else than samples, a step for 1 batch and for 3."""
    rows, weights = [], {}
    for name, loss in LOSSES.items():
        for n in (1, 3):
            cbs = [GradientAccumulationCB(n)] * (n > 1)
            opt_func = torch.optim.AdamW if name == "ignored" else torch.optim.SGD
            learn = shared_learner(cbs, loss=loss(), dls=ignored_data(), opt_func=opt_func)
            learn.fit(2)
            rows += said(learn)["rows"]
            weights |= {f"{name}, {n}: {k}": v for k, v in learn.model.state_dict().items()}
            weights[f"{name}, {n}: steps"] = torch.tensor(float(learn.n_steps))
    return {"rows": rows, "weights": weights}


class SkipCB(Callback):
    """Leave out the last two batches of an epoch, whose rest is to take its step."""

    def __init__(self, event):
        setattr(self, event, self._skip)

    def _skip(self, learn):
        if learn.training and learn.batch_idx >= 8:
            raise CancelBatchException


SEQUENCES = [torch.arange(1 + i % 11) * (i + 3) % 7 for i in range(61)]


class TokensNet(nn.Module):
    """Predict a class for each token."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 16), nn.Linear(16, 7)

    def forward(self, tokens):
        return self.out(self.embed(tokens).cumsum(1)).transpose(1, 2)


def padded(sequences):
    """Collate sequences; the target is the next token, PAD where there is none."""
    tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=7)
    target = torch.where(tokens == 7, PAD, tokens)
    return tokens, torch.cat([target[:, 1:], torch.full((len(tokens), 1), PAD)], 1)


def planned():
    """Train on batches by length, whose tokens are not shared equally, a step for 1 batch and for 3."""
    rows, weights = [], {}
    for n in (1, 3):
        plan = by_length([len(s) for s in SEQUENCES], tokens=40)
        train = DatasetLoader(SEQUENCES, plan=plan, collate_fn=padded)
        valid = DatasetLoader(SEQUENCES[:20], 7, collate_fn=padded)
        cbs = [GradientAccumulationCB(n)] * (n > 1) + [GradientClippingCB(0.5)]
        dls = DataLoaders(train, valid)
        learn = shared_learner(cbs, model=TokensNet(), dls=dls, opt_func=torch.optim.SGD)
        learn.fit(2)
        rows += said(learn)["rows"]
        weights |= {f"{n}: {k}": v for k, v in learn.model.state_dict().items()}
    return {"rows": rows, "weights": weights}


class SumCB(Callback):
    """Add up the loss of each sample, by its number."""

    def __init__(self):
        self.n_seen = torch.zeros(N_TRAIN)

    def after_loss(self, learn):
        if learn.training and not learn.processes.is_idle:
            assert torch.equal(X[learn.index], learn.xb)
            self.n_seen[learn.index] += 1


def numbered():
    """Number the samples of a fit, and predict them in batches: what each process has of them."""
    rows, seen = [], []
    for shard in (None, True):
        learn = shared_learner([summed := SumCB()], shard=shard)
        learn.fit(1)
        loaders = [learn.dls.valid, list(learn.dls.valid), DatasetLoader(X[N_TRAIN:], plan=in_fours)]
        for loader in loaders:
            found = [*learn.predict_batches(loader)]
            index = torch.cat([i for i, _ in found]) if found else torch.empty(0)
            preds = torch.cat([p for _, p in found]) if found else torch.empty(0, 3)
            seen.append(learn.processes.all_gather((index, preds)))
        rows += said(learn)["rows"]
        seen.append(learn.processes.all_gather(summed.n_seen))
    return {"rows": rows, "weights": learn.model.state_dict() if shard is None else {}, "seen": seen}


def named():
    """Validate on two named sets, one of which has batches smaller than the number of processes."""
    train, valid = data().train, data().valid
    sets = {"clean": valid, "few": TensorLoader(*(t[:7] for t in valid.tensors), bs=3)}
    learn = shared_learner([EMACB(0.9, every_steps=4)], dls=DataLoaders(train, sets))
    learn.fit(2)
    row = {k: v for k, v in learn.validate().items() if k.endswith("loss")}
    return said(learn, row=row)


def in_fours(epoch, rng):
    return [[i, i + 5, i + 10, i + 15] for i in range(5)]


def left():
    """Leave the rest of an accumulated step to the end of the epoch, in one way and in another."""
    rows, weights = [], {}
    for event in ("before_batch", "before_forward"):
        for shard in (None, True):
            cbs = [GradientAccumulationCB(3), SkipCB(event)]
            learn = shared_learner(cbs, shard=shard, opt_func=torch.optim.SGD)
            learn.fit(2)
            found = said(learn)
            rows += found["rows"]
            weights |= {f"{event}, {shard}: {k}": v for k, v in found["weights"].items()}
    return {"rows": rows, "weights": weights}


class NormCB(Callback):
    """Log the norm of the gradients, a DTensor where they are sharded."""

    def before_step(self, learn):
        learn.log("norm", nn.utils.get_total_norm([p.grad for p in learn.model.parameters()]))


def sharded():
    cbs = [EMACB(0.9), GradientAccumulationCB(2), GradientClippingCB(0.5), NormCB()]
    learn = shared_learner(cbs, shard=True)
    learn.fit(2)
    n_here = sum(p.to_local().numel() for p in learn.model.parameters()) if learn.n_processes > 1 else None
    return said(learn, n_here=learn.processes.all_gather(n_here))


class SAMCB(Callback):
    """Step by the gradients at other weights; those of the joint batch, in each process."""

    def before_step(self, learn):
        params = list(learn.model.parameters())
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p += 0.1 * p.grad
                p.grad = None
        learn.again(backward=True)
        with torch.no_grad():
            for p, value in zip(params, kept, strict=True):
                p.copy_(value)


class TwiceCB(Callback):
    """Take the mean of two forwards, the second one inside of the first one's DistributedDataParallel."""

    def after_predict(self, learn):
        learn.preds = (learn.preds + learn.again()[0]) / 2


def again():
    learn = shared_learner([SAMCB(), TwiceCB(), watch := WatchCB()])
    learn.fit(2)
    return said(learn, alike=watch.alike)


def again_sharded():
    learn = shared_learner([SAMCB()], shard=True)
    learn.fit(2)
    return said(learn)


class LeaveOutCB(Callback):
    """Cancel steps and batches, in all processes alike; keep their gradients, or not."""

    def __init__(self, n_train):
        self.n_train = n_train

    def before_batch(self, learn):
        if learn.training and learn.batch_idx >= self.n_train:
            raise CancelBatchException

    def after_backward(self, learn):
        if learn.batch_idx in (1, 5):
            raise CancelBatchException(keep=learn.batch_idx == 1)

    def before_step(self, learn):
        if learn.batch_idx in (3, 7):
            raise CancelStepException(keep=learn.batch_idx == 3)


class SpoilCB(Callback):
    """Have a gradient that is not finite in a batch that is left out."""

    def after_backward(self, learn):
        if learn.batch_idx == 1 and learn.epoch == 1:
            grad = learn.model[0].weight.grad
            (grad.to_local() if hasattr(grad, "to_local") else grad).mul_(torch.inf)


class LastOnlyCB(Callback):
    """Bring a parameter that only the last process has a gradient of."""

    def __init__(self):
        self.p = nn.Parameter(torch.zeros(()))

    def extra_params(self, learn):
        return [self.p]

    def after_loss(self, learn):
        if learn.training and learn.rank == learn.n_processes - 1:
            learn.loss = learn.loss + 0 * self.p


def left_out():
    learn = shared_learner([LeaveOutCB(9), SpoilCB()])
    learn.fit(2)
    return said(learn)


def rest_left_out():
    learn = shared_learner([LastOnlyCB(), LeaveOutCB(9), SpoilCB(), GradientAccumulationCB(4)])
    learn.fit(2)
    return said(learn, n_steps=learn.processes.all_gather(learn.n_steps))


def rest_sharded():
    learn = shared_learner([LeaveOutCB(9), SpoilCB(), GradientAccumulationCB(4)], shard=True)
    learn.fit(2)
    return said(learn)


class PauseCB(Callback):
    """Have one process ask for a pause."""

    def before_batch(self, learn):
        if learn.training and learn.epoch == 1 and learn.batch_idx == 3 and learn.rank == 1:
            learn.pause()


def paused(folder):
    """Pause, and resume with another learner; what all processes say of the pause."""
    learn = shared_learner([saver(folder, "paused"), EMACB(0.9), PauseCB()])
    learn.fit(3)
    asked = [learn.is_paused, learn.n_fits, learn.n_steps, learn.saved_to is not None]
    learn = shared_learner([saver(folder, "paused"), EMACB(0.9)])
    learn.fit(3, resume=True)
    return said(learn, asked=learn.processes.all_gather(asked), straight=unbroken())


def saver(folder, name):
    return CheckpointCB(Path(folder) / name, every_steps=2, keep=9)


class KillCB(Callback):
    """End the last process, as a machine that fails does, at the second epoch's third batch."""

    def before_batch(self, learn):
        if learn.epoch == 1 and learn.batch_idx == 3 and learn.rank == learn.n_processes - 1 > 0:
            os._exit(9)


class RaiseCB(Callback):
    def before_batch(self, learn):
        if learn.epoch == 1 and learn.batch_idx == 3 and learn.rank == learn.n_processes - 1:
            raise ValueError("a broken sample")


class CancelCB(Callback):
    """Leave training in one process alone."""

    def after_batch(self, learn):
        if learn.training and learn.batch_idx == 3 and learn.rank == 1:
            raise CancelTrainException


class SignalCB(Callback):
    """Send a signal to one process only."""

    def __init__(self, number=signal.SIGTERM, rank=1):
        self.number, self.rank = number, rank

    def state_dict(self):
        return {}  # a resumed run may be without it

    def before_batch(self, learn):
        if learn.epoch == 1 and learn.batch_idx == 3 and learn.rank == self.rank:
            os.kill(os.getpid(), self.number)


class StopAllCB(Callback):
    """Stop all processes at the second epoch's third batch, in the orderly way."""

    def before_batch(self, learn):
        if learn.epoch == 1 and learn.batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def killed(folder):
    with suppress(SystemExit):
        shared_learner([saver(folder, "sharded"), EMACB(0.9), StopAllCB()], shard=True).fit(3)
    for shard in (None, True):
        with suppress(SystemExit):
            accumulating([saver(folder, f"accumulating-{shard}"), StopAllCB()], shard).fit(3)
    shared_learner([saver(folder, "ddp"), EMACB(0.9), KillCB()]).fit(3)


def accumulating(cbs, shard=None):
    """Make a learner with a step an epoch, so that it is stopped while batches are being accumulated."""
    cbs, loss = [GradientAccumulationCB(10), *cbs], LOSSES["class weights"]()
    return shared_learner(cbs, shard=shard, loss=loss, dls=ignored_data(), opt_func=torch.optim.SGD)


def resumed(folder):
    found = {}
    for name, shard in (("sharded", True), ("ddp", None)):
        learn = shared_learner([saver(folder, name), EMACB(0.9)], shard=shard)
        learn.fit(3, resume=True)
        found[name] = said(learn)
    for shard in (None, True):
        learn = accumulating([saver(folder, f"accumulating-{shard}")], shard)
        learn.fit(3, resume=True)
        found[f"accumulating-{shard}"] = said(learn)
    return found


def accumulated():
    learn = accumulating([])
    learn.fit(3)
    return said(learn)


def unbroken():
    learn = shared_learner([EMACB(0.9)])
    learn.fit(3)
    return said(learn)


CASES = (
    plain,
    in_steps,
    in_steps_of_a_list,
    of_a_list,
    clipped_accumulation,
    averaged,
    normed,
    beside,
    found,
    sharded,
    counted,
    left,
)
CASES += (planned, numbered, named)
CASES += (again, again_sharded, left_out, rest_left_out, rest_sharded)


def main():
    what, folder = sys.argv[1:]
    rank = int(os.environ["RANK"])
    result = None
    if what == "cases":
        result = {case.__name__: case() for case in CASES}
        _write(result, folder, what, rank)
        shared_learner([RaiseCB()]).fit(2)
    elif what == "killed":
        result = {case.__name__: case() for case in CASES}
        _write(result, folder, "cases", rank)
        killed(folder)
    elif what == "apart":
        shared_learner([CancelCB()]).fit(2)
    elif what == "resumed":
        _write(resumed(folder) | {"paused": paused(folder)}, folder, what, rank)
        cb = CheckpointCB(Path(folder) / "signalled", keep=9, every_steps=1000)
        shared_learner([cb, SignalCB()]).fit(2)
    elif what.startswith("SIGUSR1 to "):
        of_scheduler = SignalCB(signal.SIGUSR1, int(what.removeprefix("SIGUSR1 to ")))
        cb = CheckpointCB(Path(folder) / what, keep=9, every_steps=1000, signals=(signal.SIGUSR1,))
        shared_learner([cb, EMACB(0.9), of_scheduler]).fit(3)
    elif what == "after SIGUSR1":
        found = {}
        for name in ("SIGUSR1 to 0", "SIGUSR1 to 1"):
            learn = shared_learner([saver(folder, name), EMACB(0.9)])
            learn.fit(3, resume=True)
            found[name] = said(learn)
        _write(found, folder, what, rank)


def _write(result, folder, what, rank):
    if rank == 0:
        torch.save(result, Path(folder) / f"{what}-{os.environ['WORLD_SIZE']}.pt")


def leave(code):
    """End this process without an end of the interpreter, in which torch 2.14 sometimes aborts after gloo."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(main):
    try:
        main()
    except SystemExit as end:
        leave(end.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        leave(1)
    leave(0)


if __name__ == "__main__":
    run(main)
