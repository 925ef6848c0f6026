from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from toolbox import fail_at, mentions
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from minilearn import BatchSchedulerCB, CancelStepException, RecorderCB, g


def halving():
    return BatchSchedulerCB(StepLR, step_size=1, gamma=0.5)


def test_recorder_reads_the_lr_the_step_used(make_learner):
    recorder = RecorderCB()
    learn = make_learner(n_batches=4, opt_func=SGD, cbs=[halving(), recorder])
    expected = make_learner(n_batches=4)
    opt = SGD(expected.model.parameters(), lr=0.1)
    sched = StepLR(opt, step_size=1, gamma=0.5)
    lrs, losses = [], []
    for xb, yb in expected.dls.train:
        loss = F.cross_entropy(expected.model(xb), yb)
        loss.backward()
        lrs.append(opt.param_groups[0]["lr"])
        losses.append(loss.item())
        opt.step()
        sched.step()
        opt.zero_grad()
    learn.fit()
    assert recorder.recs["lr"] == lrs == [0.1, 0.05, 0.025, 0.0125]
    assert recorder.recs["loss"] == losses
    torch.testing.assert_close(learn.model.weight, expected.model.weight)


def test_order_in_the_list_makes_no_difference(make_learner):
    recs = []
    for reverse in (False, True):
        recorder = RecorderCB()
        cbs = [BatchSchedulerCB(OneCycleLR), recorder]
        make_learner(cbs=cbs[::-1] if reverse else cbs).fit(2)
        recs.append(recorder.recs)
    assert recs[0] == recs[1]
    assert recs[0]["lr"][0] == pytest.approx(0.1 / 25)


@pytest.mark.parametrize(
    ("opt_func", "mom"),
    [
        (torch.optim.AdamW, [0.9] * 3),
        (lambda params, lr: SGD(params, lr, momentum=0.85), [0.85] * 3),
        (SGD, [0] * 3),
        (torch.optim.Adagrad, None),
    ],
    ids=["betas", "momentum", "momentum 0", "no momentum"],
)
def test_bare_recorder_records_lr_mom_and_loss(make_learner, opt_func, mom):
    recorder = RecorderCB()
    make_learner(opt_func=opt_func, cbs=[recorder]).fit()
    assert list(recorder.recs) == (["lr", "mom", "loss"] if mom else ["lr", "loss"])
    assert recorder.recs["lr"] == [0.1] * 3
    assert recorder.recs.get("mom") == mom
    assert len(recorder.recs["loss"]) == 3


def test_bare_optimizer_class_is_recorded(make_learner, bare_sgd):
    bare, named = RecorderCB(), RecorderCB(rate=g("pg.lr"), wd="pg.wd")
    make_learner(opt_func=bare_sgd, cbs=[bare, named]).fit()
    assert bare.recs["lr"] == [0.1] * 3
    assert named.recs == {"rate": [0.1] * 3, "wd": [0] * 3}


def test_values_are_named_by_path_or_function(make_learner):
    recorder = RecorderCB(
        lr="pg.lr",
        beta=g("pg.betas.1"),
        loss="learn.loss",
        batch=lambda cb: cb.learn.batch_idx,
        twice=lambda cb: 2 * cb.pg["lr"],
    )
    make_learner(cbs=[recorder]).fit()
    recs = dict(recorder.recs)
    losses = recs.pop("loss")
    assert recs == {"lr": [0.1] * 3, "beta": [0.999] * 3, "batch": [0, 1, 2], "twice": [0.2] * 3}
    assert len(set(losses)) == 3


def test_g_reads_attributes_keys_and_indices():
    assert g("pg.betas.1")(SimpleNamespace(pg={"betas": (0.9, 0.99)})) == 0.99


@pytest.mark.parametrize("path", ["", "pg.", ".lr", "pg..lr"])
def test_path_with_an_empty_part_is_refused(path):
    with pytest.raises(ValueError, match=mentions(f"'{path}' ... dots")):
        g(path)


def test_value_that_is_neither_path_nor_function_is_refused():
    with pytest.raises(TypeError, match=r"RecorderCB\(lr=0.1\).*path.*'pg.lr'.*function"):
        RecorderCB(lr=0.1)


@pytest.mark.parametrize("path", ["pg.momentum", "pg.betas.2", "pg.betas.x", "pg.lr.deep"])
def test_missing_path_is_refused_before_training_with_the_keys(make_learner, at, path):
    batches = []
    learn = make_learner(cbs=[RecorderCB(x=path), at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=rf"RecorderCB\(x='{path}'\).*lr, betas, eps"):
        learn.fit()
    assert batches == []


def test_recorded_tensors_are_copies(make_learner):
    recorder = RecorderCB(bias=lambda cb: cb.learn.model.bias)
    learn = make_learner(cbs=[recorder])
    learn.fit()
    biases = recorder.recs["bias"]
    assert len({tuple(bias) for bias in biases}) == 3
    assert biases[-1] == learn.model.bias.tolist()


def test_recording_keeps_no_graph(make_learner, at):
    recorder = RecorderCB(loss="learn.loss")
    kept = []
    look = at("after_step", lambda learn: kept.extend(recorder._new["loss"]), 99)
    make_learner(cbs=[recorder, look]).fit()
    assert kept
    assert not any(loss.requires_grad for loss in kept)


@pytest.mark.parametrize("n_batches", [255, 256, 257, 600])
def test_every_step_of_a_long_epoch_is_recorded_in_order(make_learner, n_batches):
    recorder = RecorderCB(
        step=lambda cb: cb.learn.n_steps, tensor=lambda cb: torch.tensor(cb.learn.n_steps), loss="learn.loss"
    )
    make_learner(n_batches=n_batches, cbs=[recorder]).fit()
    steps = list(range(1, n_batches + 1))
    assert recorder.recs["step"] == recorder.recs["tensor"] == steps
    assert len(recorder.recs["loss"]) == n_batches


def test_recs_can_be_read_in_mid_epoch(make_learner, at):
    recorder = RecorderCB()
    lengths = []
    look = at("after_batch", lambda learn: lengths.append([len(rec) for rec in recorder.recs.values()]))
    make_learner(n_valid=0, cbs=[recorder, look]).fit()
    assert lengths == [[1] * 3, [2] * 3, [3] * 3]


def test_recs_survive_an_error_in_mid_epoch(make_learner, at):
    recorder = RecorderCB()
    learn = make_learner(cbs=[recorder, at("after_loss", fail_at(2))])
    with pytest.raises(ZeroDivisionError):
        learn.fit()
    assert [len(rec) for rec in recorder.recs.values()] == [2, 2, 2]


def test_value_that_fails_leaves_no_half_row(make_learner):
    recorder = RecorderCB(lr="pg.lr", mine=lambda cb: fail_at(2)(cb.learn) or 1)
    with pytest.raises(ZeroDivisionError):
        make_learner(cbs=[recorder]).fit()
    assert recorder.recs == {"lr": [0.1], "mine": [1]}


def test_records_continue_over_two_fits(make_learner):
    recorder = RecorderCB(lr="pg.lr")
    learn = make_learner(cbs=[recorder])
    learn.fit()
    learn.fit(lr=0.2)
    assert recorder.recs == {"lr": [0.1] * 3 + [0.2] * 3}


def test_step_that_is_cancelled_is_not_recorded(make_learner, at):
    def cancel(learn):
        if learn.batch_idx == 1:
            raise CancelStepException

    recorder = RecorderCB(batch="learn.batch_idx")
    make_learner(cbs=[recorder, at("before_step", cancel)]).fit()
    assert recorder.recs == {"batch": [0, 2]}


def test_validation_is_not_recorded(make_learner):
    recorder = RecorderCB()
    learn = make_learner(cbs=[recorder])
    learn.fit(train=False)
    learn.validate()
    assert recorder.recs == {}


def test_to_csv_writes_a_column_for_each_record(make_learner, tmp_path):
    recorder = RecorderCB(lr="pg.lr", batch="learn.batch_idx")
    make_learner(cbs=[halving(), recorder]).fit()
    recorder.to_csv(tmp_path / "recs.csv")
    text = (tmp_path / "recs.csv").read_text()
    assert text.splitlines() == ["step,lr,batch", "0,0.1,0", "1,0.05,1", "2,0.025,2"]


def test_plot_returns_a_figure_with_a_panel_for_each_record(make_learner):
    recorder = RecorderCB()
    make_learner(cbs=[recorder]).fit()
    figure = recorder.plot()
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in figure.axes] == ["lr", "mom", "loss"]
    assert figure.axes[2].lines[0].get_ydata().tolist() == recorder.recs["loss"]


def test_plot_before_any_fit_is_refused():
    with pytest.raises(ValueError, match=r"plot.*recorded"):
        RecorderCB().plot()


@pytest.mark.parametrize(
    "part", [lambda w: w[0, 0], lambda w: w.flatten()[:2], lambda w: w.T, lambda w: w.detach()]
)
def test_view_of_a_parameter_is_recorded_as_it_was(make_learner, at, part):
    seen = []
    look = at("after_step", lambda learn: seen.append(part(learn.model.weight).tolist()))
    recorder = RecorderCB(w=lambda r: part(r.learn.model.weight))
    make_learner(cbs=[look, recorder]).fit(2)
    assert recorder.recs["w"] == seen
    assert len({str(w) for w in seen}) == 6


def test_values_of_different_shapes_and_kinds_are_kept_in_order(make_learner):
    values = [torch.zeros(2), torch.zeros(2), torch.ones(3), 1.5, torch.tensor(2.0)]
    recorder = RecorderCB(x=lambda r: values[r.learn.n_steps - 1])
    make_learner(n_batches=5, n_valid=0, cbs=[recorder]).fit()
    assert recorder.recs["x"] == [[0, 0], [0, 0], [1, 1, 1], 1.5, 2.0]


def test_path_into_the_optimizer_says_how_to_reach_each_group(make_learner):
    groups = {"param_groups": lambda model: [{"params": [p]} for p in model.parameters()]}
    with pytest.raises(ValueError, match=r"lr='opt.lr'.*'pg.lr'.*'learn.opt.param_groups.1.lr'"):
        make_learner(cbs=[RecorderCB(lr="opt.lr")], **groups).fit()
    recorder = RecorderCB(first="pg.lr", second="learn.opt.param_groups.1.lr")
    make_learner(cbs=[recorder], lr=[0.1, 0.2], **groups).fit()
    assert (recorder.recs["first"][0], recorder.recs["second"][0]) == (0.1, 0.2)


def test_path_that_begins_nowhere_is_refused_before_training(make_learner):
    learn = make_learner(cbs=[RecorderCB(lr="lr")])
    with pytest.raises(ValueError, match=r"RecorderCB\(lr='lr'\).*'pg.lr'"):
        learn.fit()
    assert learn.n_steps == 0
