import json
import time

import pytest
import torch
from toolbox import mentions
from torch.optim import SGD

from minilearn import Callback, MetricsCB, ProfileCB
from minilearn.events import STEPS, events


class SleepCB(Callback):
    def after_loss(self, learn):
        time.sleep(0.002)


class SlowLoader:
    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            time.sleep(0.002)
            yield batch


def test_rows_count_each_step_and_hook(make_learner, capsys):
    cb = ProfileCB()
    make_learner(cbs=[cb, MetricsCB()], opt_func=SGD).fit(2)
    calls = {name: n for name, (n, _) in cb.seconds.items()}
    assert calls == {
        **{"Learner.predict": 8, "Learner.get_loss": 8},
        **{"MetricsCB.after_batch": 8, "data": 8},
        **{"Learner.backward": 6, "Learner.step": 6, "Learner.zero_grad": 6},
        **{"MetricsCB.before_train": 2, "MetricsCB.after_train": 2},
        **{"MetricsCB.before_validate": 2, "MetricsCB.after_validate": 2, "MetricsCB.cleanup_validate": 2},
        "MetricsCB.before_fit": 1,
    }
    assert cb.n_steps == 6
    out = capsys.readouterr().out
    assert cb.table() in out
    assert "6 steps" in out.splitlines()[-1]


def test_seconds_are_those_of_who_takes_them(make_learner):
    cb = ProfileCB()
    learn = make_learner(cbs=[cb, SleepCB()], opt_func=SGD)
    learn.dls.train = SlowLoader(learn.dls.train)
    learn.fit(2)
    assert cb.seconds["SleepCB.after_loss"][1] >= 8 * 0.002
    assert cb.seconds["data"][1] >= 5 * 0.002  # of 6 batches; the first was read before the fit, to look at
    assert cb.seconds["Learner.zero_grad"][1] < 6 * 0.002
    rows = sum(seconds for _, seconds in cb.seconds.values())
    assert rows <= cb.total_s
    shares = [float(line.split()[-1].rstrip("%")) for line in cb.table().splitlines()[1:-1]]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_rows_are_summed_by_callback_and_by_event(make_learner):
    cb = ProfileCB()
    make_learner(cbs=[cb, MetricsCB(), SleepCB()], opt_func=SGD).fit()

    def calls(by):
        rows = [line.split() for line in cb.table(by).splitlines()[1:-1]]
        return {row[0]: int(row[1]) for row in rows if row[0] != "the"}

    of_metrics = [n for name, (n, _) in cb.seconds.items() if name.startswith("MetricsCB.")]
    assert calls("callback") == {
        **{"MetricsCB": sum(of_metrics), "SleepCB": 4, "data": 4},
        **{"Learner.predict": 4, "Learner.get_loss": 4},
        **{"Learner.backward": 3, "Learner.step": 3, "Learner.zero_grad": 3},
    }
    assert calls("event")["after_batch"] == 4
    assert calls("event").keys() >= {"predict", "backward", "after_loss", "data"}
    with pytest.raises(ValueError, match=r"by='cb'.*'hook', 'callback' or 'event'"):
        cb.table("cb")


def test_validation_in_a_hook_is_counted_once(make_learner, at):
    cb = ProfileCB()
    validate = at("after_train", lambda learn: (time.sleep(0.01), learn.validate()))
    make_learner(cbs=[cb, validate, SleepCB()], opt_func=SGD).fit()
    rows = [float(line.split()[-1].rstrip("%")) for line in cb.table().splitlines()[1:-1]]
    assert cb.seconds["At.after_train"][1] >= 0.012
    assert cb.seconds["SleepCB.after_loss"][0] == 4  # those of the validation are in the hook's time
    assert cb._inside_s <= cb.total_s
    assert rows


def trace_of(make_learner, *cbs):
    seen = []

    def record(event):
        def hook(self, learn):
            seen.append(event)

        return hook

    watch = type("Watch", (Callback,), {event: record(event) for event in events() if event not in STEPS})
    make_learner(cbs=[*cbs, watch()], opt_func=SGD).fit(2)
    return seen


def test_events_are_those_of_a_fit_without_it(make_learner):
    assert trace_of(make_learner, ProfileCB()) == trace_of(make_learner)


def test_training_is_bitwise_that_without_it(make_learner):
    weights = []
    for cbs in ([], [ProfileCB(sync=True)]):
        learn = make_learner(cbs=cbs)
        learn.fit(2)
        weights.append(learn.model.weight.detach().clone())
    assert torch.equal(*weights)


def test_errors_keep_their_place(make_learner, at):
    def fail(learn):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as info:
        make_learner(cbs=[ProfileCB(), at("after_step", fail)]).fit()
    assert info.value.__notes__[0].startswith("minilearn: in At.after_step, epoch 0 of 1")


def test_default_steps_are_still_known(make_learner):
    learn = make_learner(cbs=ProfileCB())
    assert all(learn.has_default(step) for step in ("predict", "get_loss", "step"))


def test_hooks_are_as_before_when_it_is_gone(make_learner):
    learn = make_learner()
    before = learn._hooks
    learn.fit(cbs=ProfileCB())
    assert learn._hooks == before


def test_trace_is_of_the_batches_asked_for(make_learner, tmp_path):
    path = tmp_path / "a" / "trace.json"
    make_learner(n_batches=6, cbs=ProfileCB(trace=path, at=(2, 4)), opt_func=SGD).fit(2)
    events = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    assert sum(name.startswith("Optimizer.step#SGD") for name in events) == 2


def test_trace_of_a_shorter_epoch_ends_with_the_fit(make_learner, tmp_path):
    path = tmp_path / "trace.json"
    make_learner(n_batches=3, cbs=ProfileCB(trace=path, at=(1, 99))).fit()
    assert json.loads(path.read_text())["traceEvents"]


@pytest.mark.parametrize("at", [(2, 2), (-1, 3), (0.5, 3), (1,)])
def test_range_of_the_trace_is_checked(at):
    with pytest.raises(ValueError, match=mentions(f"at={at} ... 0 <= from < to")):
        ProfileCB(at=at)


def test_folder_of_the_trace_that_cannot_be_made_is_named(make_learner, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"ProfileCB\(.*file"):
        make_learner(cbs=ProfileCB(trace=tmp_path / "file" / "trace.json")).fit()


def test_a_range_that_no_batch_reaches_is_refused_before_training(make_learner, tmp_path):
    cb = ProfileCB(trace=tmp_path / "trace.json", at=(3, 5))
    learn = make_learner(cbs=cb)
    with pytest.raises(ValueError, match=r"at=\(3, 5\).*3 batches \(0.*2\)"):
        learn.fit()
    assert not learn.history
    learn.validate()
