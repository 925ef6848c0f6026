"""learn.again(): one more forward of the batch, by which SAM, R-Drop and FGM are written."""

import random
from functools import partial

import pytest
import torch
from toolbox import (
    dealt,
    every_rest,
    make_learner,
    mentions,
    noisy_learner,
    norm_net,
    same,
    samples,
    state_of,
    tensors_of,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from minilearn import (
    EMACB,
    Callback,
    CancelForwardException,
    CancelStepException,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    TensorLoader,
    TestTimeFlipCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in

RHO, ALPHA, SEED = 0.05, 1.0, 7


class SAMCB(Callback):
    """Step by the gradients at the worst weights near by (Foret et al. 2021)."""

    def before_step(self, learn):
        params = list(learn.model.parameters())
        undo = climb(params)
        learn.again(backward=True)
        undo()


class RDropCB(Callback):
    """Have two forwards, each with its own dropout, agree (Liang et al. 2021)."""

    def after_loss(self, learn):
        if learn.training:
            preds, loss = learn.again()
            learn.loss = agreeing(learn.preds, preds, learn.loss, loss)


class FGMCB(Callback):
    """Add the gradients at inputs moved against the model (Miyato et al. 2017)."""

    def before_batch(self, learn):
        if learn.training:
            learn.xb = learn.xb.detach().requires_grad_()

    def after_backward(self, learn):
        learn.xb = moved(learn.xb)
        learn.again(backward=True)


class EmbeddingFGMCB(Callback):
    def after_backward(self, learn):
        weight = learn.model[0].weight
        undo = climb([weight], zero=False)
        learn.again(backward=True)
        undo()


def climb(params, zero=True):
    """Move parameters up by their gradients, clear these, and return what undoes the move."""
    norm = torch.stack([p.grad.norm() for p in params]).norm()
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p.add_(p.grad * (RHO / norm))
            if zero:
                p.grad = None

    def undo():
        with torch.no_grad():
            for p, value in zip(params, kept, strict=True):
                p.copy_(value)

    return undo


def moved(xb):
    return (xb + RHO * xb.grad.sign()).detach()


def agreeing(preds, others, loss, other_loss):
    a, b = preds.log_softmax(1), others.log_softmax(1)
    kl = F.kl_div(a, b, reduction="batchmean", log_target=True)
    return (loss + other_loss) / 2 + (kl + F.kl_div(b, a, reduction="batchmean", log_target=True)) / 2


# By hand ----------------------------------------------------------------------------------------------

BESIDE = {
    "nothing": {},
    "MixedPrecisionCB": {"casts": True},
    "MixupCB": {"mixes": True},
    "label smoothing": {"smoothing": 0.1},
    "GradientClippingCB": {"max_norm": 0.1},
    "all of them": {"casts": True, "mixes": True, "smoothing": 0.1, "max_norm": 0.1},
}
METHODS = {"SAM": SAMCB, "R-Drop": RDropCB, "FGM": FGMCB}


def make_net():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 2))


def parts():
    set_seed(SEED)
    x, y = samples(14)
    return make_net(), TensorLoader(x, y, bs=4)


def by_hand(method, casts=False, mixes=False, smoothing=0.0, max_norm=None):
    """Train two epochs in plain torch; return the weights after each step, and the rows' losses."""
    model, loader = parts()
    loss_func = nn.CrossEntropyLoss(label_smoothing=smoothing)
    opt = SGD(model.parameters(), 0.1, momentum=0.9, fused=True)  # as the learner makes it
    steps, rows = [], []
    model.train()
    set_seed(SEED)
    for _ in range(2):
        total = n = 0
        for xb, yb in loader:
            share, other = 1.0, None
            if mixes:
                order = torch.randperm(len(xb))
                share, other = random.betavariate(ALPHA, ALPHA), yb[order]
                xb = torch.lerp(xb[order], xb, share)

            def forward(xb, yb=yb, share=share, other=other):
                with torch.autocast("cpu", torch.bfloat16, enabled=casts):
                    preds = model(xb).float()
                    loss = loss_func(preds, yb)
                    if other is not None:
                        loss = share * loss + (1 - share) * loss_func(preds, other)
                return preds, loss

            if method == "FGM":
                xb = xb.detach().requires_grad_()
            preds, loss = forward(xb)
            if method == "R-Drop":
                with torch.autocast("cpu", torch.bfloat16, enabled=casts):
                    loss = agreeing(preds, *(x := forward(xb))[:1], loss, x[1])
            loss.backward()
            if method == "FGM":
                forward(moved(xb))[1].backward()
            if method == "SAM":
                undo = climb(list(model.parameters()))
                forward(xb)[1].backward()
                undo()
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            opt.step()
            opt.zero_grad()
            total, n = total + loss.double().item() * len(yb), n + len(yb)
            steps.append([p.detach().clone() for p in model.parameters()])
        rows.append(total / n)
    return steps, rows


class WeightsCB(Callback):
    order = 100

    def __init__(self):
        self.steps = []

    def after_step(self, learn):
        self.steps.append([p.detach().clone() for p in learn.model.parameters()])


def by_again(method, *cbs, casts=False, mixes=False, smoothing=0.0, max_norm=None):
    model, loader = parts()
    cbs = [*cbs, METHODS[method](), MetricsCB(), weights := WeightsCB()]
    cbs += [MixedPrecisionCB()] * casts + [MixupCB(ALPHA)] * mixes
    cbs += [GradientClippingCB(max_norm)] if max_norm else []
    loss_func = nn.CrossEntropyLoss(label_smoothing=smoothing)
    opt_func = partial(SGD, momentum=0.9)
    learn = Learner(model, {"train": loader}, loss_func, 0.1, cbs, opt_func, default_cbs=False)
    set_seed(SEED)
    learn.fit(2)
    return weights.steps, [row["loss"] for row in learn.history]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("method", METHODS)
def test_method_is_the_one_in_plain_torch_bit_for_bit(method, beside):
    expected, rows = by_hand(method, **BESIDE[beside])
    steps, found = by_again(method, **BESIDE[beside])
    for step, (a, b) in enumerate(zip(expected, steps, strict=True)):
        assert all(map(torch.equal, a, b)), step
    assert found == pytest.approx(rows, rel=1e-12)  # sums in another order


def test_average_is_of_the_weights_between_the_moves():
    steps, _ = by_hand("SAM")
    model, _ = parts()
    cb = EMACB(0.5, warmup=False)
    learn_steps, _ = by_again("SAM", cb)
    average = [p.detach().clone() for p in model.parameters()]
    for step in steps:
        average = [0.5 * a + 0.5 * p for a, p in zip(average, step, strict=True)]
    assert all(all(map(torch.equal, a, b)) for a, b in zip(steps, learn_steps, strict=True))
    torch.testing.assert_close(cb._averages, average)


def test_embedding_is_moved_and_put_back():
    def parts():
        set_seed(SEED)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
        x = torch.randint(5, (8, 2))
        return model, TensorLoader(x, (x.sum(1) > 4).long(), bs=4)

    model, loader = parts()
    opt = SGD(model.parameters(), 0.1, fused=True)
    for xb, yb in loader:
        F.cross_entropy(model(xb), yb).backward()
        undo = climb([model[0].weight], zero=False)
        F.cross_entropy(model(xb), yb).backward()
        undo()
        opt.step()
        opt.zero_grad()
    other, loader = parts()
    cbs = EmbeddingFGMCB()
    Learner(other, {"train": loader}, lr=0.1, cbs=cbs, opt_func=SGD, default_cbs=False).fit()
    assert same(tensors_of(model), tensors_of(other))


def test_owner_of_get_loss_may_call_it():
    class OwnerCB(Callback):
        def get_loss(self, learn):
            loss = F.cross_entropy(learn.preds, learn.yb)
            if learn.training:
                preds, other = learn.again()  # with the learner's own get_loss
                loss = agreeing(learn.preds, preds, loss, other)
            learn.loss = loss

    model, loader = parts()
    learn = Learner(model, {"train": loader}, F.cross_entropy, 0.1, OwnerCB(), partial(SGD, momentum=0.9))
    set_seed(SEED)
    learn.fit(2)
    assert all(map(torch.equal, by_hand("R-Drop")[0][-1], learn.model.parameters()))


def test_mixture_and_its_targets_stay():
    seen = []

    class LookCB(Callback):
        order = -25  # after mixing

        def before_forward(self, learn):
            mixup = learn.cbs[0]
            seen.append((learn.xb, learn.yb, mixup._share, mixup._other))

    learn = make_learner(1, cbs=[MixupCB(1.0), LookCB(), SAMCB()])
    learn.fit(valid=False)
    assert len(seen) == 2
    assert all(a is b for a, b in zip(*seen, strict=True))


def test_other_views_are_taken_again_in_validation():
    class AgainCB(Callback):
        def after_loss(self, learn):
            if not learn.training:
                found.append([learn.preds, *learn.again()])

    found = []
    learn = make_learner(
        1, model=nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), cbs=[TestTimeFlipCB(), AgainCB()]
    )
    for loader in (learn.dls.train, learn.dls.valid):
        loader.tensors = (loader.tensors[0][:, None, None], loader.tensors[1])
    learn.fit()
    x, y = learn.dls.valid.tensors
    with torch.no_grad():
        preds = (learn.model(x) + learn.model(x.flip(-1))) / 2
        assert all(
            torch.equal(a, b)
            for a, b in zip(found[0], [preds, preds, F.cross_entropy(preds, y)], strict=True)
        )


# What runs, and what stays ------------------------------------------------------------------------------


def watching(trace, name="others"):
    events = ("before_forward", "after_predict", "after_loss", "after_forward", "cleanup_forward")

    def hook(event):
        return lambda self, learn: trace.append((name, event))

    return type("WatchCB", (Callback,), {event: hook(event) for event in events})


CALLS = ("before_batch", "before_forward", "after_predict", "after_loss", "after_forward", "cleanup_forward")
CALLS += ("after_backward", "before_step", "after_step", "cleanup_step", "after_batch", "cleanup_batch")


@pytest.mark.parametrize("event", CALLS)
@pytest.mark.parametrize("kind", ["method", "static", "instance"])
def test_hooks_of_the_caller_do_not_run_and_all_others_do(event, kind):
    trace, calls = [], []

    def call(learn):
        if learn.training:
            calls.append(len(trace))
            learn.again()
            calls.append(len(trace))

    body = {"method": lambda self, learn: call(learn), "static": staticmethod(call)}
    caller = type("CallCB", (watching(trace, "caller"),), {event: body[kind]} if kind in body else {})()
    if kind == "instance":
        setattr(caller, event, call)
    learn = make_learner(1, cbs=[caller, watching(trace)()])
    learn.fit(valid=False)
    names = ("before_forward", "after_predict", "after_loss", "after_forward", "cleanup_forward")
    assert trace[calls[0] : calls[1]] == [("others", name) for name in names]
    assert len(calls) == 2


def test_two_callers_leave_each_other_out_in_turn():
    trace = []

    class FirstCB(Callback):
        def after_loss(self, learn):
            trace.append(type(self).__name__)
            learn.again()

    class SecondCB(FirstCB):
        pass

    make_learner(1, cbs=[FirstCB(), SecondCB()]).fit(valid=False)
    assert trace == ["FirstCB", "SecondCB", "SecondCB", "FirstCB"]


@pytest.mark.parametrize("adds", [False, True])
def test_caller_stays_out_though_a_hook_validates_or_adds_a_callback(adds):
    n, evals = [], []

    class CallCB(Callback):
        def after_loss(self, learn):
            if learn.training:
                n.append(1)
                assert len(n) == 1, "it called itself"
                learn.again()
            else:
                evals.append(1)

    class InsideCB(Callback):
        def after_predict(self, learn):
            if learn.training and not learn.is_nested:
                learn.add_cb(MetricsCB()) if adds and len(learn.cbs) < 3 else learn.validate()

    make_learner(1, cbs=[CallCB(), InsideCB()]).fit(valid=False)
    assert (len(n), len(evals)) == (1, 1 if adds else 2)  # another pass is not a part of the forward


def test_preds_loss_and_count_of_the_batch_stay_and_are_none_before():
    class CallCB(Callback):
        def after_forward(self, learn):
            own = learn.preds, learn.loss, learn.loss_count
            found = learn.again()
            after = learn.preds, learn.loss, learn.loss_count
            results.append(
                [a is b for a, b in zip(own, after, strict=True)]
                + [a is not b for a, b in zip(own[:2], found, strict=True)]
            )

    class BeforeCB(Callback):
        def before_forward(self, learn):
            results.append([learn.preds, learn.loss, learn.loss_count])

    results = []
    make_learner(1, cbs=[CallCB(), BeforeCB()]).fit(valid=False)
    assert results == [[None] * 3, [None] * 3, [True] * 5]


def test_loss_by_of_the_batch_stays_after_a_second_forward_that_was_cancelled():
    class CallCB(Callback):
        def after_forward(self, learn):
            learn.again()
            results.append(learn.loss_by is learn.loss_func)

    class StopCB(Callback):
        def before_forward(self, learn):
            if learn.is_again:
                learn.loss = learn.model(learn.xb).sum()
                raise CancelForwardException

    results = []
    make_learner(1, cbs=[CallCB(), StopCB()]).fit(valid=False)
    assert results == [True]


def test_weight_of_the_batch_is_its_own_after_a_forward_that_counts_otherwise():
    class TwiceCB(Callback):
        """Own get_loss, and count all but the first time as ten times as much."""

        def __init__(self):
            self.n = 0

        def get_loss(self, learn):
            self.n += 1
            learn.loss = F.cross_entropy(learn.preds, learn.yb)
            learn.loss_count = len(learn.yb) * (10 if self.n % 2 == 0 else 1)

    class CallCB(Callback):
        def after_forward(self, learn):
            learn.mean.weight = torch.tensor(3.0)
            learn.again()
            weights.append(learn.loss_weight)

    weights = []
    make_learner(1, n_valid=0, cbs=[TwiceCB(), CallCB()]).fit()
    assert weights == [torch.tensor(3.0)]


def test_inputs_that_a_hook_set_stay():
    class CallCB(Callback):
        def after_loss(self, learn):
            if learn.training:
                learn.xb = learn.xb * 0
                found.append(learn.again()[0])
                found.append(learn.xb)

    found = []
    learn = make_learner(1, cbs=[CallCB()])
    bias = learn.model.bias.detach().clone()
    learn.fit(valid=False)
    assert torch.equal(found[0].detach(), bias.expand(4, 2))
    assert not found[1].any()


def test_gradients_are_added_to_those_that_there_are():
    class CallCB(Callback):
        def after_backward(self, learn):
            once = learn.model.weight.grad.clone()
            learn.again()
            assert torch.equal(learn.model.weight.grad, once)
            learn.again(backward=True)
            assert torch.equal(learn.model.weight.grad, 2 * once)

    make_learner(cbs=[CallCB()]).fit()


def test_forward_that_is_cancelled_gives_the_loss_that_was_set():
    class CancelCB(Callback):
        def __init__(self, sets):
            self.n, self.sets = 0, sets

        def before_forward(self, learn):
            self.n += 1
            if self.n == 2:
                if self.sets:
                    learn.preds = learn.model(learn.xb)
                    learn.loss = learn.preds.sum()
                raise CancelForwardException

    class CallCB(Callback):
        def after_backward(self, learn):
            if learn.batch_idx == 0:
                found.append(learn.again(backward=True))

    found = []
    make_learner(cbs=[CancelCB(True), CallCB()]).fit(valid=False)
    assert torch.equal(found[0][1], found[0][0].sum())
    learn = make_learner(cbs=[CancelCB(False), CallCB()])
    with pytest.raises(RuntimeError, match=mentions("learn.loss is None ... CancelCB.before_forward")):
        learn.fit()


def test_gradients_of_a_cancelled_step_are_kept_with_those_of_again():
    class CancelCB(Callback):
        order = 10

        def before_step(self, learn):
            raise CancelStepException

    class TwiceCB(Callback):
        def before_step(self, learn):
            learn.again(backward=True)

    learn = make_learner(2, cbs=[TwiceCB(), CancelCB()])
    learn.fit(valid=False)
    expected = torch.zeros(2, 3)
    for xb, yb in learn.dls.train:
        learn.model.zero_grad()
        F.cross_entropy(learn.model(xb), yb).backward()
        expected += 2 * learn.model.weight.grad
    grads = []

    class LookCB(Callback):
        order = 5

        def before_step(self, learn):
            grads.append(learn.model.weight.grad.clone())

    make_learner(2, cbs=[TwiceCB(), LookCB(), CancelCB()]).fit(valid=False)
    torch.testing.assert_close(grads[-1], expected)


# Refused ------------------------------------------------------------------------------------------------


def calling(event, **kwargs):
    return type("CallCB", (Callback,), {event: lambda self, learn: learn.again(**kwargs)})()


@pytest.mark.parametrize(
    "event",
    ["before_fit", "before_epoch", "before_train", "at_rest", "after_train", "before_validate", "after_fit"],
)
def test_outside_of_a_batch_it_is_refused(event):
    with pytest.raises(RuntimeError, match=mentions("learn.again() ... hook ... before_batch")):
        make_learner(cbs=[calling(event)]).fit()


def test_outside_of_hooks_it_is_refused():
    class OwnLearner(Learner):
        def get_loss(self):
            self.loss = self.again()[1]

    learn = make_learner()
    with pytest.raises(RuntimeError, match=mentions("learn.again() ... callback's hook")):
        learn.again()
    with pytest.raises(RuntimeError, match=mentions("learn.again() ... callback's hook")):
        OwnLearner(nn.Linear(3, 2), learn.dls, default_cbs=False).fit()


def test_before_a_validation_inside_a_batch_it_is_refused():
    class ValidatesCB(Callback):
        def after_step(self, learn):
            learn.validate()

    with pytest.raises(RuntimeError, match=mentions("learn.again() ... before_batch")):
        make_learner(cbs=[ValidatesCB(), calling("before_validate")]).fit(valid=False)


@pytest.mark.parametrize("event", ["before_forward", "after_loss", "after_backward", "before_step"])
@pytest.mark.parametrize("batch", [0, 1])
def test_while_batches_are_accumulated_it_is_refused(event, batch):
    class CallCB(Callback):
        def _call(self, learn):
            if learn.training and learn.batch_idx == (1 if event == "before_step" else batch):
                learn.again()

    cb = type("CallCB", (CallCB,), {event: CallCB._call})()
    with pytest.raises(RuntimeError, match=mentions("learn.again() ... GradientAccumulationCB")):
        make_learner(4, cbs=[GradientAccumulationCB(2), cb]).fit()


def test_in_a_validation_during_an_accumulation_it_is_not_refused():
    class ValidatesCB(Callback):
        def after_backward(self, learn):
            learn.validate()

    class CallCB(Callback):
        def after_loss(self, learn):
            if not learn.training:
                losses.append((learn.loss, learn.again()[1]))

    losses = []
    make_learner(4, cbs=[GradientAccumulationCB(4), ValidatesCB(), CallCB()]).fit()
    assert len(losses) == 5
    assert all(torch.equal(*pair) for pair in losses)


@pytest.mark.parametrize("call", [lambda learn: learn.fit(), lambda learn: learn.validate()])
def test_backward_in_a_validation_is_refused(call):
    class CallCB(Callback):
        def after_loss(self, learn):
            if not learn.training:
                learn.again(backward=True)

    with pytest.raises(RuntimeError, match=mentions("again(backward=True) ... training")):
        call(make_learner(cbs=[CallCB()]))


def test_in_predict_there_are_predictions_and_no_loss():
    class CallCB(Callback):
        def after_predict(self, learn):
            found.append(learn.again())

    found = []
    learn = make_learner(cbs=[CallCB()])
    preds = learn.predict(learn.dls.valid)
    assert torch.equal(found[0][0], preds)
    assert found[0][1] is None


# Resumed ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resumed_run_is_the_straight_run(tmp_path):
    def make(folder, seed):
        cbs = [
            RDropCB(),
            SAMCB(),
            MixedPrecisionCB(),
            MixupCB(),
            EMACB(0.9),
            GradientClippingCB(),
            MetricsCB(),
        ]
        return noisy_learner(*cbs, every_rest(folder), seed=seed)

    straight = make(tmp_path / "straight", 1)
    straight.fit(2)
    files = checkpoints_in(tmp_path / "straight")
    assert (
        len(files) == 2 * 4
    )  # the average is validated: no rest in it; the fit's end has the name of the last epoch's
    for path in dealt(files):
        other = make(tmp_path / path.stem, 50)
        other.fit(2, resume=path)
        assert first_difference(state_of(straight, "CheckpointCB"), state_of(other, "CheckpointCB")) == ""


def test_norms_see_each_forward_once():
    learn = make_learner(3, model=norm_net(), cbs=[SAMCB()])
    learn.fit()
    assert learn.model[1].num_batches_tracked == 6
