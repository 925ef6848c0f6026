"""Several named validation sets: a row each, monitors, resuming inside the second, averages, processes."""

import csv
from io import StringIO

import pytest
from toolbox import (
    StopCB,
    at,
    dealt,
    every_rest,
    make_learner,
    mentions,
    noisy_learner,
    same,
    samples,
    stop,
    tensors_of,
    untimed_rows,
)

from minilearn import (
    EMACB,
    SWACB,
    CheckpointCB,
    CSVLoggerCB,
    DataLoaders,
    EarlyStoppingCB,
    MetricsCB,
    Monitor,
    ProgressCB,
    TensorLoader,
    plot_history,
)
from minilearn.callback import Callback

X, Y = samples(30)


def sets():
    return {
        "clean": TensorLoader(X[12:20], Y[12:20], bs=4),
        "shifted": TensorLoader(X[20:] + 1, Y[20:], bs=4),
    }


def loaders(valid=None):
    return DataLoaders(TensorLoader(X[:12], Y[:12], bs=4, shuffle=True), valid or sets())


def learner(*cbs, **kwargs):
    return noisy_learner(MetricsCB(), *cbs, dls=loaders, **kwargs)


def test_each_set_has_a_row():
    learn = learner()
    learn.fit(2)
    assert [(row["epoch"], row["train"]) for row in learn.history] == [
        (epoch, name) for epoch in range(2) for name in ("train", "clean", "shifted")
    ]


def test_rows_are_those_of_separate_validations():
    learn = learner()
    learn.fit(1)
    for row in learn.history[1:]:
        alone = learn.validate(learn.dls[row["train"]])
        assert (row["loss"], row["MulticlassAccuracy"]) == (alone["loss"], alone["MulticlassAccuracy"])


def test_training_is_that_with_one_set():
    learn = learner()
    learn.fit(2)
    one = noisy_learner(MetricsCB(), dls=lambda: loaders(sets()["clean"]))
    one.fit(2)
    assert same(tensors_of(learn.model), tensors_of(one.model))
    clean = [dict(row, train="eval") for row in untimed_rows(learn) if row["train"] == "clean"]
    assert clean == [row for row in untimed_rows(one) if row["train"] == "eval"]


def test_validate_gives_each_column_the_name_of_its_set():
    learn = learner()
    row = learn.validate()
    assert row["clean/loss"] == learn.validate(learn.dls["clean"])["loss"]
    assert row["shifted/MulticlassAccuracy"] == learn.validate(learn.dls["shifted"])["MulticlassAccuracy"]
    assert learn.history == []


def test_the_first_set_is_the_valid_loader():
    dls = loaders()
    assert dls.valid is dls["eval"] is dls["clean"] is dls.sets["clean"]
    assert dls["shifted"] is not dls.valid
    dls.valid = [(X[:4], Y[:4])]
    assert list(dls.sets) == ["eval"]
    with pytest.raises(KeyError, match="shifted"):
        dls["shifted"]
    assert list(DataLoaders.of({"train": dls.train, "eval": sets()}).sets) == ["clean", "shifted"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "{} ... one"),
        ({"a/b": [1]}, "'a/b'"),
        ({"train": [1]}, "'train'"),
        ({"iterate": [1]}, "'iterate'"),
        ({"": [1]}, "''"),
        ({3: [1]}, "3"),
        ({"a": None}, "['a'] is None"),
        ({"a": [1], "b": 5}, "['b']=5 ... iterable"),
        ({"a": [1], "b": iter([1])}, "['b'] ... only once"),
    ],
)
def test_wrong_sets_are_refused_by_name(wrong, said):
    with pytest.raises((TypeError, ValueError), match=mentions(said)):
        DataLoaders([1], wrong)


def test_an_empty_second_set_is_refused_before_training():
    learn = make_learner(dls=loaders({"clean": [(X, Y)], "shifted": []}))
    with pytest.raises(ValueError, match="shifted"):
        learn.fit(1)
    assert learn.n_steps == 0


def test_a_second_set_without_targets_is_refused_before_training():
    learn = make_learner(dls=loaders({"clean": [(X, Y)], "shifted": [X]}))
    with pytest.raises(ValueError, match="target"):
        learn.fit(1)
    assert learn.n_steps == 0


# Those that read rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clean/loss", "shifted/loss", "train/loss", "loss", "eval/loss"])
def test_a_monitor_names_the_set(name):
    learn = learner(EMACB(0.9))
    learn.fit(2)
    row = {"loss": "clean", "eval/loss": "clean"}.get(name, name.split("/")[0])
    (expected,) = [r["loss"] for r in learn.history if r["epoch"] == 1 and r["train"] == row]
    monitor = Monitor(name)
    monitor.check(learn)
    assert monitor.value(learn) == expected


def test_a_monitor_of_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match=mentions("cleen/loss ... did you mean 'clean/loss'")):
        learner(EarlyStoppingCB("cleen/loss")).fit(1)


def test_early_stopping_and_the_best_checkpoint_watch_a_set(tmp_path):
    learn = learner(
        EarlyStoppingCB("shifted/loss", patience=9), CheckpointCB(tmp_path, monitor="shifted/loss")
    )
    learn.fit(3)
    best = min(row["loss"] for row in learn.history if row["train"] == "shifted")
    assert learn.validate()["shifted/loss"] == pytest.approx(best)


def test_logs_plots_and_progress_show_each_set(tmp_path):
    out = StringIO()

    from rich.console import Console

    terminal = Console(file=out, force_terminal=True, width=120)
    learn = learner(CSVLoggerCB(tmp_path / "log.csv"), ProgressCB(console=terminal))
    learn.fit(2)
    with open(tmp_path / "log.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["train"] for line in lines] == ["train", "clean", "shifted"] * 2
    labels = [text.get_text() for text in plot_history(learn.history).axes[0].get_legend().get_texts()]
    assert labels == ["train", "clean", "shifted"]
    assert "clean" in out.getvalue()
    assert "shifted" in out.getvalue()


def test_tensorboard_has_a_curve_for_each_set(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from minilearn import TensorBoardCB

    learner(TensorBoardCB(tmp_path, "run")).fit(1)
    log = EventAccumulator(str(tmp_path / "run"))
    log.Reload()
    assert {"loss/train", "loss/clean", "loss/shifted"} <= set(log.Tags()["scalars"])


@pytest.mark.parametrize("average", [EMACB, lambda: SWACB(1)])
def test_averages_have_two_rows_for_each_set(average):
    learn = learner(average())
    learn.fit(2)
    names = [row["train"] for row in learn.history if row["epoch"] == 1]
    assert names == ["train", "iterate/clean", "iterate/shifted", "clean", "shifted"]
    last = {row["train"]: row["loss"] for row in learn.history[-2:]}
    now = learn.validate()  # the model holds the average
    assert last == {name: now[f"{name}/loss"] for name in last}


def test_where_names_the_set():
    def fail(learn):
        if not learn.training and learn.plan.part == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        learner(at("after_loss", fail)).fit(1)
    assert "shifted batch 0" in "".join(caught.value.__notes__)


# Resuming ---------------------------------------------------------------------------------------------


MORE = (lambda: EMACB(0.9, every_steps=2), lambda: EarlyStoppingCB("shifted/loss", 9))


class FirstCB(Callback):
    """Note the rows that are there when a validation begins."""

    def __init__(self):
        self.seen = []

    def before_validate(self, learn):
        if not learn.is_nested:
            self.seen.append([row["train"] for row in learn.history])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), (lambda: EMACB(0.9, every_steps=2), lambda: EarlyStoppingCB("shifted/loss", 9))]
)
def test_a_fit_resumes_at_every_rest(tmp_path, more):
    def made(*cbs, seed=1):
        return learner(FirstCB(), *(make() for make in more), *cbs, seed=seed)

    rests = []
    straight = made(at("at_rest", lambda learn: rests.append(0)))
    straight.fit(2)
    assert len(rests) == (2 * (3 + 2 + 3 + 1) + 1 if not more else len(rests))
    for n in dealt(range(1, len(rests))):
        stop(made(every_rest(tmp_path / str(n)), StopCB(n)))
        learn = made(every_rest(tmp_path / str(n)), seed=9)
        learn.fit(2, resume=True)
        assert same(tensors_of(learn.model), tensors_of(straight.model)), f"stopped at rest {n}"
        assert untimed_rows(learn) == untimed_rows(straight), f"stopped at rest {n}"
        assert learn.cbs[[type(cb) for cb in learn.cbs].index(FirstCB)].seen == (
            straight.cbs[[type(cb) for cb in straight.cbs].index(FirstCB)].seen
        ), f"stopped at rest {n}"


def test_checkpoints_of_each_set_have_names_in_order(tmp_path):
    learn = learner(every_rest(tmp_path))
    learn.fit(1)
    names = sorted((path.stat().st_mtime_ns, path.name) for path in tmp_path.glob("epoch-*"))
    made = [name for _, name in names]
    assert "epoch-0000-valid-000001.pt" in made
    assert "epoch-0000-valid2-000001.pt" in made
    from minilearn.checkpoints.snapshot import checkpoints_in

    assert [path.name for path in checkpoints_in(tmp_path)] == made


def test_other_sets_are_refused_when_resuming(tmp_path):
    stop(learner(every_rest(tmp_path), StopCB(7)))
    one = noisy_learner(MetricsCB(), every_rest(tmp_path), dls=lambda: loaders(sets()["clean"]))
    with pytest.raises(ValueError, match=mentions("clean, shifted ... eval")):
        one.fit(2, resume=True)


@pytest.mark.slow
def test_verify_resume_stops_inside_the_last_set():
    said = learner().verify_resume()
    assert "in the validation of epoch 1" in said


@pytest.mark.slow
@pytest.mark.parametrize("of", ["clean", "shifted"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_set_that_can_only_be_read_from_its_start_begins_again(tmp_path, of, part):
    class Once:
        def __iter__(self):
            return iter([(X[:4], Y[:4]), (X[4:8], Y[4:8])])

    def made(*cbs):
        return noisy_learner(MetricsCB(), *cbs, dls=lambda: loaders(sets() | {of: Once()}))

    straight = made()
    straight.fit(1)

    def pause(learn):
        if not learn.training and (learn.plan.part, learn.batch_idx) == (part, 0):
            learn.pause()

    made(CheckpointCB(tmp_path), at("before_forward", pause)).fit(1)
    resumed = made(CheckpointCB(tmp_path))
    resumed.fit(1, resume=True)
    assert untimed_rows(resumed) == untimed_rows(straight)
