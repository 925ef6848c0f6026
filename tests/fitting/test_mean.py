"""Losses in rows and steps are those of the concatenated data, whatever a loss is a mean over."""

import re
import warnings
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toolbox import (
    MOM_SGD,
    StopCB,
    SyncCounter,
    at,
    drawn,
    every_rest,
    generator,
    mentions,
    same,
    samples,
    stop,
    tensors_of,
)
from toolbox import state_of as all_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CancelForwardException,
    CancelStepException,
    DeviceCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    RecorderCB,
    ScheduleCB,
    counting,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.data import TensorLoader
from minilearn.data.adapters import adapter_of
from minilearn.fitting import mean as mean_module
from minilearn.schedules import cosine

G = generator(3)
PAD = -100
LR = 0.5


# Models, and cases of batches -------------------------------------------------------------------------


class LastStep(nn.Linear):
    """Classify sequences (T, N, F), or packed ones, by the sum of their steps."""

    def forward(self, x):
        return super().forward((x if isinstance(x, torch.Tensor) else pad_packed_sequence(x)[0]).sum(0))


class Nodes(nn.Linear):
    """Classify the nodes of a graph by themselves and those that have an edge to them."""

    def forward(self, graph):
        x, (source, sink) = graph.x, graph.edges
        return super().forward(x + torch.zeros_like(x).index_add(0, sink, x[source]))


class MaskedMean(nn.Module):
    """The mean square of those elements whose target is no nan."""

    def count(self, preds, target):
        return target.isfinite().sum()

    def forward(self, preds, target):
        kept = target.isfinite()
        return ((preds - target.nan_to_num()).square() * kept).sum() / kept.sum()


@dataclass
class Case:
    """Batches, and all of the data as one.

    n: samples, which the loss of all the data is divided by in a row; only for a sum.
    """

    model: nn.Module
    loss: Any
    batches: list
    whole: Any
    unpack: Any = None
    n: int = 1

    def learner(self, *cbs, batches=None, **kwargs):
        batches = self.batches if batches is None else batches
        dls = {"train": batches, "eval": batches}
        defaults = {"lr": LR, "opt_func": SGD, "default_cbs": False, "unpack": self.unpack}
        return Learner(
            deepcopy(self.model), dls, self.loss, cbs=[*cbs, MetricsCB()], **{**defaults, **kwargs}
        )

    def by_hand(self):
        """Return the loss of all of the data, and the weights after one step of SGD."""
        model = deepcopy(self.model)
        inputs, target = self.whole if self.unpack is None else self.unpack(self.whole)
        loss = self.loss(model(inputs), target)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= LR * p.grad
        return loss.item() / self.n, tensors_of(model)


def split(x, y, sizes, model, loss, dim=0, **kwargs):
    """Cut samples into batches of these sizes."""
    batches = list(zip(x.split(sizes, dim), y.split(sizes), strict=True))
    return Case(drawn(model, generator(5)), loss, batches, (x, y), **kwargs)


def rows(loss, sizes=(4, 1, 3), y=None, model=None, n_out=4, **kwargs):
    n = sum(sizes)
    y = torch.randint(4, (n,), generator=G) if y is None else y
    return split(torch.randn(n, 3, generator=G), y, sizes, model or nn.Linear(3, n_out), loss, **kwargs)


def tokens(loss, lengths=(5, 1, 0, 2, 5, 3), sizes=(3, 1, 2), pad=PAD):
    """Sequences (N, F, T) with targets (N, T), padded after their lengths."""
    x, y = torch.randn(len(lengths), 3, 5, generator=G), torch.randint(1, 4, (len(lengths), 5), generator=G)
    for i, length in enumerate(lengths):
        y[i, length:] = pad
    return split(x, y, sizes, nn.Conv1d(3, 4, 1), loss)


def time_major():
    x, y = torch.randn(6, 7, 3, generator=G), torch.randint(2, (7,), generator=G)
    return split(x, y, (3, 1, 3), LastStep(3, 2), F.cross_entropy, dim=1)


def packed():
    sequences = [torch.randn(n, 3, generator=G) for n in (2, 5, 1, 3, 3, 7)]
    y = torch.randint(2, (6,), generator=G)
    pack = partial(pack_sequence, enforce_sorted=False)
    batches = [(pack(sequences[a:b]), y[a:b]) for a, b in ((0, 3), (3, 4), (4, 6))]
    return Case(drawn(LastStep(3, 2), generator(5)), F.cross_entropy, batches, (pack(sequences), y))


def joined(graphs):
    """Put several graphs into one, whose nodes have new numbers."""
    starts = [sum(len(g.x) for g in graphs[:i]) for i in range(len(graphs))]
    x, target = (torch.cat([getattr(g, name) for g in graphs]) for name in ("x", "target"))
    edges = torch.cat([g.edges + start for g, start in zip(graphs, starts, strict=True)], 1)
    return SimpleNamespace(x=x, edges=edges, target=target)


def graphs():
    made = []
    for n in (4, 2, 7, 3, 1):
        target = torch.randint(3, (n,), generator=G)
        target[1:2] = PAD  # a node without a target
        edges = torch.randint(n, (2, 2 * n), generator=G)
        made.append(SimpleNamespace(x=torch.randn(n, 3, generator=G), edges=edges, target=target))
    batches = [joined(made[:3]), joined(made[3:4]), joined(made[4:])]
    model = drawn(Nodes(3, 3), generator(5))
    return Case(model, F.cross_entropy, batches, joined(made), unpack=lambda g: (g, g.target))


WEIGHT = torch.tensor([0.5, 4.0, 1.0, 2.0])
OUTPUTS = torch.randn(8, 2, generator=G)
CASES = {
    "an uneven last batch": rows(F.cross_entropy, (4, 4, 1)),
    "padded tokens": tokens(F.cross_entropy),
    "padded tokens, another index": tokens(nn.CrossEntropyLoss(ignore_index=0), pad=0),
    "padded tokens of a partial": tokens(partial(F.cross_entropy, ignore_index=0), pad=0),
    "class weights": rows(nn.CrossEntropyLoss(WEIGHT)),
    "class weights of padded tokens": tokens(nn.CrossEntropyLoss(WEIGHT)),
    "label smoothing": tokens(nn.CrossEntropyLoss(label_smoothing=0.2)),
    "soft targets": rows(F.cross_entropy, y=torch.rand(8, 4, generator=G).softmax(1)),
    "masked mean": rows(MaskedMean(), y=OUTPUTS.where(OUTPUTS > -0.5, torch.nan), n_out=2),
    "several outputs": rows(F.mse_loss, y=OUTPUTS, n_out=2),
    "time-major": time_major(),
    "packed sequences": packed(),
    "graphs": graphs(),
    "an empty batch": rows(F.cross_entropy, (3, 0, 2)),
    "an empty batch of outputs": rows(F.mse_loss, (4, 0, 4), y=OUTPUTS, n_out=2),
    "a batch that is ignored": tokens(F.cross_entropy, (2, 0, 0, 3), (1, 2, 1)),
    "a batch that is ignored, smoothed": tokens(nn.CrossEntropyLoss(label_smoothing=0.2), (2, 0, 0), (1, 2)),
    "a first batch that is ignored": tokens(F.cross_entropy, (0, 0, 4, 3), (2, 1, 1)),
    "a batch of classes that weigh 0": rows(
        nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0])), (2, 3), torch.tensor([0, 0, 1, 0, 2]), n_out=3
    ),
    "sum": rows(nn.CrossEntropyLoss(reduction="sum"), n=8),
    "sum of padded tokens": tokens(partial(F.cross_entropy, reduction="sum"), (5, 1, 2), (2, 1)),
}
CASES["sum of padded tokens"].n = 3


class OfTokens(nn.Module):
    """A module that calls one of torch's losses."""

    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(ignore_index=0)

    def forward(self, preds, target):
        return self.loss(preds.transpose(1, 2).reshape(-1, 4), target.view(-1))


def of_next(preds, target):
    return F.cross_entropy(preds[..., :-1], target[..., 1:], label_smoothing=0.1)


def of_next_padded(preds, target):
    return F.cross_entropy(preds, F.pad(target[..., 1:], (0, 1), value=PAD))


# Losses of the user's own, of which the first batch shows what they return.
CASES |= {
    "tokens of a function": tokens(lambda preds, target: F.cross_entropy(preds, target)),
    "tokens of a function, flat": tokens(
        lambda preds, target: F.nll_loss(preds.log_softmax(1).mT.flatten(0, 1), target.flatten())
    ),
    "tokens of a module of the user's": tokens(OfTokens(), pad=0),
    "the next token": tokens(of_next),
    "the next token, padded": tokens(of_next_padded),
    "samples of a function, some ignored": rows(
        lambda preds, target: F.cross_entropy(preds, target, ignore_index=2), (4, 1, 3)
    ),
}


@pytest.fixture(params=["cpu", "device"])
def place(request, monkeypatch):
    """Have counts as they are on the CPU, or tensors as on a device, of which nobody knows the numbers."""
    if request.param == "device":
        keep_on_device(monkeypatch)
    return request.param


def keep_on_device(monkeypatch):
    def keep(count):
        return count.detach().reshape(()) if isinstance(count, torch.Tensor) else count

    for module in (counting, mean_module):
        monkeypatch.setattr(module, "on_host", keep)
    of_classes = counting.Count._of_classes

    def counted(self, preds, target):
        if target.is_floating_point() or self._weight is not None:
            return of_classes(self, preds, target)
        return (target != self._ignored).sum()

    monkeypatch.setattr(counting.Count, "_of_classes", counted)


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-6)  # sums in float32


# The loss in the rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_rows_have_the_loss_of_all_the_data(case, place):
    learn = CASES[case].learner(lr=0.0)
    learn.fit()
    loss, _ = CASES[case].by_hand()
    assert [row["loss"] for row in learn.history] == pytest.approx([loss, loss], rel=1e-5)
    assert learn.validate()["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_loss_of_data_that_counts_nothing_is_nan():
    learn = tokens(F.cross_entropy, (0, 0), (1, 1)).learner()
    with pytest.warns(UserWarning, match="epoch 0 took no step"):
        learn.fit()
    assert [str(row["loss"]) for row in learn.history] == ["nan", "nan"]


# One step over several batches ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_accumulated_step_is_that_of_all_the_data(case, place):
    case = CASES[case]
    learn = case.learner(GradientAccumulationCB(len(case.batches)))
    learn.fit()
    _, weights = case.by_hand()
    assert learn.n_steps == 1
    assert_close(tensors_of(learn.model), weights)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_batches_is_of_no_account(case, place):
    case = CASES[case]
    learn = case.learner(GradientAccumulationCB(len(case.batches)), batches=case.batches[::-1])
    learn.fit()
    assert_close(tensors_of(learn.model), case.by_hand()[1])


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_bfloat16_is_that_of_all_the_data_but_for_digits(case):
    case = CASES[case]
    learn = case.learner(MixedPrecisionCB(), GradientAccumulationCB(len(case.batches)))
    learn.fit()
    for name, weight in case.by_hand()[1].items():
        # 8 bits, and sums of some 30 gradients of up to about 3 each.
        torch.testing.assert_close(dict(learn.model.named_parameters())[name], weight, rtol=0.05, atol=0.05)


def test_the_weight_of_a_batch_is_near_1(place):
    # What a float16 scaler multiplies with 65536 must not be a count of targets as well.
    weights, case = [], tokens(F.cross_entropy, (5, 4, 3, 5), (1, 1, 1, 1))
    cbs = [GradientAccumulationCB(4), at("after_forward", lambda x: weights.append(x.loss_weight))]
    case.learner(*cbs).fit(valid=False)
    assert [1.0 if w is None else round(w.item(), 2) for w in weights] == [1.0, 0.8, 0.6, 1.0]


def test_an_optimizer_without_groups_steps_by_the_mean_too(bare_sgd):
    case = CASES["padded tokens"]
    learn = case.learner(GradientAccumulationCB(3), opt_func=bare_sgd)

    class Other(bare_sgd):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.ps, self.params = self.params, ()

        def step(self):
            self.params = self.ps
            super().step()

    other = case.learner(GradientAccumulationCB(3), opt_func=Other)
    for each in (learn, other):
        each.fit()
        assert_close(tensors_of(each.model), case.by_hand()[1])


def test_sparse_gradients_are_accumulated_and_kept_where_a_step_is_cancelled():
    def cancel(learn):
        if learn.batch_idx == 1:
            raise CancelStepException

    x, y = torch.tensor([[0, 1], [1, 1], [2, 0], [1, 2]]), torch.tensor([0, 1, 1, 0])
    model = nn.Sequential(nn.Embedding(3, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    case = split(x, y, (1, 2, 1), model, F.cross_entropy)
    learn = case.learner(GradientAccumulationCB(2), at("before_step", cancel))
    learn.fit()
    assert learn.n_steps == 1
    assert_close(tensors_of(learn.model), case.by_hand()[1])


# What a loss is a mean over, said by its owner --------------------------------------------------------


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_an_owner_of_get_loss_says_what_it_counts(kind, place):
    def get_loss(learn):
        learn.loss = MaskedMean()(learn.preds, learn.yb)
        learn.loss_count = kind(int(learn.yb.isfinite().sum()))

    case = CASES["masked mean"]
    learn = case.learner(GradientAccumulationCB(3), at("get_loss", get_loss))
    learn.fit()
    loss, weights = case.by_hand()
    assert learn.history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(tensors_of(learn.model), weights)


def test_an_owner_that_calls_get_loss_counts_what_the_loss_counts():
    case = CASES["padded tokens"]
    learn = case.learner(GradientAccumulationCB(3), at("get_loss", lambda learn: learn.get_loss()))
    learn.fit()
    loss, weights = case.by_hand()
    assert learn.history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(tensors_of(learn.model), weights)


def test_an_owner_that_does_not_say_counts_samples():
    counts = []
    case = CASES["padded tokens"]
    cbs = [
        at("get_loss", lambda x: setattr(x, "loss", x.preds.mean())),
        at("after_forward", lambda x: counts.append(x.loss_count)),
    ]
    case.learner(*cbs).fit(valid=False)
    assert counts == [3, 1, 2]


def test_a_batch_that_tells_no_samples_is_refused_where_they_are_needed():
    batch = SimpleNamespace(x=torch.ones(2, 3))
    cbs = [
        at("predict", lambda x: setattr(x, "preds", x.model(x.batch.x))),
        at("get_loss", lambda x: setattr(x, "loss", x.preds.mean())),
    ]
    learn = Learner(nn.Linear(3, 1), {"train": [batch]}, cbs=cbs, default_cbs=False)
    learn.fit()  # needs none
    with pytest.raises(TypeError, match=mentions("SimpleNamespace ... learn.loss_count")):
        learn.fit(cbs=MetricsCB())


def test_a_validation_in_a_batch_leaves_what_its_loss_counts():
    def get_loss(learn):
        learn.loss = learn.preds.mean()

    def validate(learn):
        if learn.training:
            learn.validate(cbs=at("get_loss", get_loss))

    case = CASES["sum"]
    learn = case.learner(at("after_loss", validate), at("after_backward", validate), lr=0.0)
    learn.fit()
    assert learn.history[0]["loss"] == pytest.approx(case.by_hand()[0], rel=1e-5)


def test_a_forward_cancelled_after_its_loss_counts():
    def cancel(learn):
        raise CancelForwardException

    case = CASES["padded tokens"]
    learn = case.learner(GradientAccumulationCB(3), at("after_loss", cancel))
    learn.fit()
    loss, weights = case.by_hand()
    assert learn.history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(tensors_of(learn.model), weights)


def test_the_count_is_there_after_the_forward_and_not_before(place):
    seen = []
    events = ("before_forward", "after_loss", "after_forward", "after_batch")
    cbs = [at(event, lambda x, e=event: seen.append((e, x.loss_count))) for event in events]
    CASES["padded tokens"].learner(*cbs).fit(valid=False)
    expected = zip(events, (None, None, 6, 6), strict=True)
    assert seen[:4] == [*expected]


# Steps that count nothing -----------------------------------------------------------------------------


def state_of(opt):
    return [deepcopy(dict(state)) for state in opt.state.values()]


NOTHING = {
    "ignored": (tokens(F.cross_entropy, (3, 0, 2), (1, 1, 1)), 1),
    "empty": (rows(F.mse_loss, (4, 0, 4), y=OUTPUTS, n_out=2), 1),
    "of classes that weigh 0": (
        rows(nn.CrossEntropyLoss(torch.tensor([0.0, 1, 1, 1])), (1, 2, 1), torch.tensor([1, 0, 0, 2])),
        1,
    ),
    "an empty sum": (rows(nn.CrossEntropyLoss(reduction="sum"), (3, 0, 2), n=5), 1),
    "ignored, accumulated": (tokens(F.cross_entropy, (3, 2, 0, 0, 1, 2), (1,) * 6), 2),
    "empty, accumulated": (rows(F.cross_entropy, (3, 2, 0, 0, 1, 2)), 2),
    "an empty sum, accumulated": (rows(nn.CrossEntropyLoss(reduction="sum"), (3, 2, 0, 0, 1), n=6), 2),
}


@pytest.mark.parametrize("opt", [MOM_SGD, partial(AdamW, weight_decay=0.5)], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("case", NOTHING)
def test_a_step_that_counts_nothing_is_left_out(case, opt):
    def keep(learn):
        if learn.training:
            seen.append((tensors_of(learn.model), state_of(learn.opt), learn.n_steps))

    case, n = NOTHING[case]
    seen, steps = [], []
    cbs = [at("after_batch", keep), at("before_step", lambda learn: steps.append(learn.batch_idx // n))]
    learn = case.learner(*cbs, *[GradientAccumulationCB(n)] * (n > 1), opt_func=opt)
    learn.fit()
    before, after = seen[n - 1], seen[2 * n - 1]
    assert same(before[0], after[0])
    assert all(map(same, before[1], after[1]))
    assert (before[2], after[2]) == (1, 1)
    assert steps == [0, 2]
    # As if the data were not there.
    left = [b for i, b in enumerate(case.batches) if i // n != 1]
    other = case.learner(*[GradientAccumulationCB(n)] * (n > 1), opt_func=opt, batches=left)
    other.fit()
    assert_close(tensors_of(learn.model), tensors_of(other.model))


def test_a_batch_that_counts_nothing_leaves_the_weights_on_a_device_too(monkeypatch):
    # Whether the step is taken cannot be asked there; its gradients are 0.
    keep_on_device(monkeypatch)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(WEIGHT)):
        for n in (1, 2):
            case = tokens(loss, (0, 0), (1, 1))
            learn = case.learner(*[GradientAccumulationCB(n)] * (n > 1))
            learn.fit()
            assert_close(tensors_of(learn.model), tensors_of(case.model))


ZERO_WEIGHT = rows(nn.CrossEntropyLoss(torch.zeros(3)), (2, 1), torch.tensor([0, 1, 2]), n_out=3)
NEVER = {
    "ignored": (tokens(F.cross_entropy, (0, 0, 0), (1, 1, 1)), 1),
    "nan": (rows(MaskedMean(), (2, 2), y=torch.full((4, 2), torch.nan), n_out=2), 1),
    "of classes that weigh 0": (ZERO_WEIGHT, 1),
    "ignored, accumulated": (tokens(F.cross_entropy, (0, 0, 0), (1, 1, 1)), 2),
}


@pytest.mark.parametrize("case", NEVER)
def test_an_epoch_that_counts_nothing_is_warned_of_once_with_its_cause(case):
    case, n = NEVER[case]
    schedules = [BatchSchedulerCB(OneCycleLR, max_lr=0.1), ScheduleCB("lr", cosine)]
    for cbs in ([], schedules[:1], schedules[1:]):
        learn = case.learner(*cbs, *[GradientAccumulationCB(n)] * (n > 1))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            learn.fit(3)
        assert learn.n_steps == 0
        [said] = [str(warning.message) for warning in found]
        assert re.search(r"epoch 0 took no step.*loss_count was 0.*ignore_index.*nan.*mask.*schedule", said)


def test_a_later_epoch_that_counts_nothing_is_named():
    def of_epoch(learn):
        if learn.epoch == 1:
            learn.yb = torch.full_like(learn.yb, PAD)

    learn = tokens(F.cross_entropy, (0, 2), (1, 1)).learner(at("before_batch", of_epoch))
    with pytest.warns(UserWarning, match="epoch 1 took no step"):
        learn.fit(3)
    assert learn.n_steps == 2


def test_a_fit_whose_steps_are_cancelled_is_not_said_to_count_nothing():
    def cancel(learn):
        raise CancelStepException

    tokens(F.cross_entropy).learner(at("before_step", cancel)).fit()


def test_a_schedule_says_that_steps_which_count_nothing_were_not_taken():
    learn = tokens(F.cross_entropy, (2, 0, 0), (1, 1, 1)).learner(BatchSchedulerCB(OneCycleLR, max_lr=0.1))
    with pytest.warns(UserWarning, match="took 1 of 3 planned steps.*counted nothing in 2 of them"):
        learn.fit()


def test_a_resumed_epoch_that_took_steps_before_the_stop_is_not_warned_of(tmp_path):
    case = tokens(F.cross_entropy, (2, 0, 0), (1, 1, 1))
    stop(case.learner(every_rest(tmp_path), StopCB(1)), 1)
    learn = case.learner(every_rest(tmp_path))
    learn.fit(1, resume=True)
    assert (learn.n_steps, learn.mean.n_uncounted) == (1, 2)


def test_a_count_of_0_by_the_owner_of_get_loss_leaves_the_step_out():
    def get_loss(learn):
        learn.loss = learn.preds.mean()
        learn.loss_count = torch.tensor(2.0 * (learn.batch_idx != 1))

    steps = []
    cbs = [at("get_loss", get_loss), at("before_step", lambda learn: steps.append(learn.batch_idx))]
    CASES["padded tokens"].learner(*cbs).fit()
    assert steps == [0, 2]


def test_accuracy_leaves_out_targets_that_are_ignored():
    y = torch.tensor([1, 0, PAD, 1, PAD, PAD])
    x = F.one_hot(torch.tensor([1, 1, 0, 1, 1, 0]), 3).float()
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    case = Case(model, F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], (x, y))
    learn = case.learner(lr=0.0)
    learn.fit()
    assert [row["MulticlassAccuracy"] for row in learn.history] == pytest.approx([2 / 3, 2 / 3])
    case.loss = nn.CrossEntropyLoss(ignore_index=0)
    case.batches = [(x[:2], y[:2])]
    learn = case.learner(lr=0.0)
    learn.fit()
    assert learn.history[0]["MulticlassAccuracy"] == 1.0


# Resume -----------------------------------------------------------------------------------------------

UNEQUAL = {
    "class weights": tokens(nn.CrossEntropyLoss(WEIGHT), (5, 1, 0, 2, 5, 3, 4), (1, 1, 1, 2, 2)),
    "masked mean": rows(MaskedMean(), (2, 2, 1, 3), OUTPUTS.where(OUTPUTS > -0.5, torch.nan), n_out=2),
    "sum": rows(nn.CrossEntropyLoss(reduction="sum"), (2, 0, 3, 1)),
    "the next token": tokens(of_next_padded, (5, 1, 0, 2, 5, 3, 4), (1, 1, 1, 2, 2)),
}
UNEVEN = rows(F.cross_entropy, (5, 2, 4, 1, 6))


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("case", UNEQUAL)
@pytest.mark.parametrize("n", [1, 2, 4, 6, 8])  # of 5 or 4 batches an epoch in groups of 3
def test_a_run_stopped_in_the_middle_of_a_step_is_the_straight_run(tmp_path, case, n, place):
    def new(folder, *cbs):
        tools = [GradientAccumulationCB(3), GradientClippingCB(0.5), every_rest(tmp_path / folder)]
        return UNEQUAL[case].learner(*tools, *cbs, opt_func=MOM_SGD)

    straight, resumed = new("straight"), new("stopped")
    straight.fit(2)
    stop(new("stopped", StopCB(n)))
    resumed.fit(2, resume=True)
    assert first_difference(all_of(straight), all_of(resumed)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 5])  # of batches of 5, 2, 4, 1 and 6 samples, in groups of 3
def test_a_checkpoint_of_version_0_1_in_the_middle_of_a_step_is_resumed(tmp_path, n):
    def new(folder, *cbs):
        tools = [GradientAccumulationCB(3), every_rest(tmp_path / folder)]
        return UNEVEN.learner(*tools, *cbs, opt_func=MOM_SGD)

    straight, resumed = new("straight"), new("stopped")
    straight.fit(2)
    stop(new("stopped", StopCB(n)))
    newest = max((tmp_path / "stopped").glob("epoch-*"))
    saved = torch.load(newest)
    sizes = [5, 2, 4, 1, 6][3 * ((n - 1) // 3) : n] if n % 3 and n < 5 else []
    mean = saved.pop("mean")
    assert mean["n"] == len(sizes)
    # There it was the callback that knew, and a first batch of so many samples was 1.
    total, size = sum(size / sizes[0] for size in sizes), sizes[0] if sizes else 5
    state = {"n_batches": 3, "_n": len(sizes), "_size": size, "_weight": total, "_share": 1.0}
    saved["cbs"]["GradientAccumulationCB"] = {**state, "_n_in_epoch": 5}
    del saved["beginnings"]
    torch.save(saved, newest)
    resumed.fit(2, resume=True)
    assert same(tensors_of(resumed.model), tensors_of(straight.model))


# Nothing is counted twice -----------------------------------------------------------------------------


def loaders_of(y, kind):
    x = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(x.split(4), y.split(4), strict=True))
    return {"list": pairs, "tuple": tuple(map(list, pairs)), "tensors": TensorLoader(x, y, bs=4)}[kind]


def counted_batches(monkeypatch, dl, *cbs, n_epochs=1):
    """Return the counts of each batch, and how often targets were counted."""
    calls, of_classes = [], counting.Count._of_classes

    def counted(self, preds, target):
        calls.append(target)
        return of_classes(self, preds, target)

    monkeypatch.setattr(counting.Count, "_of_classes", counted)
    counts = []
    note = at("after_batch", lambda learn: counts.append(learn.loss_count))
    learn = Learner(nn.Linear(3, 2), {"train": dl}, F.cross_entropy, cbs=[*cbs, note], default_cbs=False)
    learn.fit(n_epochs)
    return counts, len(calls)


@pytest.mark.parametrize("kind", ["list", "tuple", "tensors"])
def test_targets_that_are_all_counted_are_read_once_an_epoch(monkeypatch, kind):
    y = torch.randint(0, 2, (402,))
    counts, n_calls = counted_batches(monkeypatch, loaders_of(y, kind), n_epochs=2)
    assert counts == ([4] * 100 + [2]) * 2
    assert n_calls == 0


@pytest.mark.parametrize("kind", ["list", "tuple", "tensors"])
def test_one_ignored_target_has_each_batch_counted(monkeypatch, kind):
    y = torch.randint(0, 2, (402,))
    y[-1] = PAD
    counts, n_calls = counted_batches(monkeypatch, loaders_of(y, kind))
    assert counts == [4] * 100 + [1]
    assert n_calls == 101


@pytest.mark.parametrize("how", ["in place", "another"])
@pytest.mark.parametrize("kind", ["list", "tensors"])
def test_a_target_that_a_hook_changes_is_counted(monkeypatch, kind, how):
    def hide(learn):
        if how == "another":
            learn.yb = learn.yb.masked_fill(torch.arange(4) > 1, PAD)
        else:
            learn.yb[2:] = PAD

    counts, n_calls = counted_batches(
        monkeypatch, loaders_of(torch.zeros(8).long(), kind), at("before_batch", hide)
    )
    assert counts == [2, 2]
    assert n_calls == 2


@pytest.mark.parametrize(
    "other",
    [torch.zeros(2), torch.zeros(2).int(), None, (torch.zeros(2),), torch.zeros(2).long().to_sparse()],
)
def test_targets_that_cannot_be_joined_are_not_known_beforehand(other):
    pairs = [(torch.zeros(2, 3), torch.zeros(2).long()), (torch.zeros(2, 3), other)]
    assert adapter_of(pairs).targets() is None
    assert adapter_of(pairs[:1] * 3).targets() is not None
    assert adapter_of([]).targets() is None


# Nobody waits for the device --------------------------------------------------------------------------


def waits(monkeypatch, loss, n_batches, *cbs):
    """Return how often a fit waits for the device."""
    counts: Counter = Counter()

    def counted(name):
        method = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            counts[name] += 1
            return method(self, *args, **kwargs)

        return call

    x, y = samples(4 * n_batches)
    y[::3] = PAD
    model = nn.Linear(3, 2)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    learn = Learner(model, {"train": batches}, loss, cbs=[DeviceCB("cpu"), RecorderCB(), MetricsCB(), *cbs])
    with monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu", "__array__", "__dlpack__"):
            patch.setattr(torch.Tensor, name, counted(name))
        with SyncCounter() as counter:
            learn.fit()
    assert "MulticlassAccuracy" in learn.history[0]
    return counter.n + counts.total()


LOSSES = {
    "ignored": F.cross_entropy,
    "class weights": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_step_waits_for_the_device(monkeypatch, loss, n):
    keep_on_device(monkeypatch)
    cbs = [GradientAccumulationCB(n)] if n > 1 else []
    few, many = (waits(monkeypatch, LOSSES[loss], i, *cbs) for i in (6, 24))
    assert 0 < few == many  # at the first batch and at the end of the epoch
    waiting = at("after_forward", lambda learn: float(learn.loss_count))
    assert waits(monkeypatch, LOSSES[loss], 24, waiting, *cbs) == many + 24
