import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fake_wandb import FakeWandb, of
from toolbox import StopCB, StoppedError, SyncCounter, fail_at, stop
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    MetricsCB,
    MLflowCB,
    RecorderCB,
    TensorLoader,
    WandbCB,
)
from minilearn.callbacks import loggers, trackers

# Of the data base of MLflow.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]

N_RESTS = 2 * (3 + 1 + 1)


@pytest.fixture
def service(monkeypatch):
    """Stand in for wandb, with a service that keeps the runs of all processes."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
    return fake


@pytest.fixture
def one_run(service):
    def get():
        (run,) = service.runs.values()
        return run

    return get


def test_steps_and_rows_are_sent_with_an_axis_of_their_own(make_learner, one_run):
    recorder = RecorderCB()
    cbs = [WandbCB("p", "a", every=1), recorder, BatchSchedulerCB(OneCycleLR), MetricsCB()]
    learn = make_learner(cbs=cbs, opt_func=partial(SGD, momentum=0.9))
    learn.fit(2)
    run = one_run()
    assert of(run, "step/lr") == list(enumerate(recorder.recs["lr"], 1))
    assert of(run, "step/momentum") == list(enumerate(recorder.recs["mom"], 1))
    assert of(run, "step/loss") == list(enumerate(recorder.recs["loss"], 1))
    for phase in ("train", "eval"):
        rows = [row for row in learn.history if row["train"] == phase]
        for name in ("loss", "MulticlassAccuracy", "time_s"):
            assert of(run, f"{name}/{phase}") == [(3, rows[0][name]), (6, rows[1][name])]
            assert run.axes[f"{name}/{phase}"] == "step"
    assert of(run, "epoch") == [(3, 0), (3, 0), (6, 1), (6, 1)]
    assert run.axes["step/*"] == "step"
    assert run.inits == [{"project": "p", "name": "a", "group": None, "resume": None, "tags": None}]
    assert run.ends == [0]


def test_config_is_that_of_run_json_and_what_is_given(make_learner, one_run, tmp_path):
    cbs = [WandbCB(config={"width": 3}), CheckpointCB(tmp_path / "run")]
    learn = make_learner(cbs=[*cbs, BatchSchedulerCB(OneCycleLR)], opt_func=SGD)
    learn.fit()
    given = one_run().config
    assert given["width"] == 3
    assert given["run"] == learn.run_id
    assert given["settings"]["CheckpointCB"]["keep"] == 2
    assert given["settings"]["group 0 of the optimizer"]["lr"] == 0.1  # before the schedule's
    assert given["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("n", range(1, N_RESTS))
@pytest.mark.parametrize("every_steps", [1, 2, 4, None])  # None: at the end of each epoch
@pytest.mark.parametrize("is_prompt", [False, True], ids=["late", "prompt"])
def test_resumed_fit_sends_each_step_and_row_once(
    make_learner, service, tmp_path, monkeypatch, n, every_steps, is_prompt
):
    if is_prompt:  # a process that dies has sent steps that its checkpoint does not have
        monkeypatch.setattr(loggers, "_FLUSH_S", -1.0)

    def make(*cbs):
        saver = CheckpointCB(tmp_path / "saved", every_steps=every_steps)
        logger, schedule = WandbCB(every=1), BatchSchedulerCB(OneCycleLR)
        return make_learner(cbs=[logger, saver, schedule, MetricsCB(), *cbs], opt_func=SGD)

    stop(make(StopCB(n)), resume=True)
    learn = make()
    learn.fit(2, resume=True)
    first = {1: 1, 2: 2, 4: 6, None: 5}[every_steps]  # the rest at which the first checkpoint is written
    assert len(service.runs) == (1 if n >= first else 2)
    run = list(service.runs.values())[-1]
    assert [step for step, _ in of(run, "step/loss")] == [1, 2, 3, 4, 5, 6]
    expected = [row["loss"] for row in learn.history]
    assert [value for _, value in of(run, "loss/train")] == expected[::2]
    assert [value for _, value in of(run, "loss/eval")] == expected[1::2]
    assert run.ends[-1] == 0
    assert [init["resume"] for init in run.inits] == [None, *["allow"] * (n >= first)]


def test_offline_a_resumed_fit_is_a_run_of_the_same_group(make_learner, service, tmp_path):
    def make(*cbs):
        return make_learner(cbs=[WandbCB(every=1, mode="offline"), CheckpointCB(tmp_path / "saved"), *cbs])

    for n in (6, 6):  # after the first step of the next epoch
        stop(make(StopCB(n)), 4, resume=True)
    make().fit(4, resume=True)
    first, *others = service.runs.values()
    assert [run.inits[0]["group"] for run in service.runs.values()] == [first.id] * 3
    assert [of(run, "step/loss")[0][0] for run in others] == [4, 7]
    assert len(service.runs) == 3


def test_each_fit_is_a_run_and_steps_count_on(make_learner, service):
    learn = make_learner(cbs=[WandbCB(every=1, group="g"), MetricsCB()])
    learn.fit(1)
    learn.fit(1)
    first, second = service.runs.values()
    assert [step for step, _ in of(first, "step/loss")] == [1, 2, 3]
    assert [step for step, _ in of(second, "step/loss")] == [4, 5, 6]
    assert first.inits[0]["group"] == second.inits[0]["group"] == "g"


def test_run_of_your_own_is_used_and_left_open(make_learner, service):
    service.run = service.init(id="mine")
    service.run.config["model"] = "resnet50"
    make_learner(cbs=[WandbCB(every=1), MetricsCB()]).fit()
    assert list(service.runs) == ["mine"]
    assert len(of(service.run, "step/loss")) == 3
    assert service.run.ends == []
    assert service.run.config["model"] == "resnet50"
    assert service.run.config["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("error", "codes"), [(ZeroDivisionError, [1]), (KeyboardInterrupt, [1]), (None, ["preempting", 1])]
)
def test_run_that_does_not_finish_says_so(make_learner, one_run, tmp_path, at, error, codes):
    def pause(learn):
        if learn.n_steps == 2:
            learn.pause()

    end = at("after_step", pause) if error is None else at("after_loss", fail_at(2, error))
    learn = make_learner(cbs=[WandbCB(every=1), CheckpointCB(tmp_path), end])
    if error is None:
        learn.fit()
    else:
        with pytest.raises(error):
            learn.fit()
    assert one_run().ends == codes
    assert [step for step, _ in of(one_run(), "step/loss")] == [1, 2]


def test_signal_ends_the_run_as_stopped(make_learner, one_run, at):
    import signal

    interrupt = at("after_step", lambda learn: learn.n_steps == 2 and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        make_learner(cbs=[WandbCB(every=1), interrupt]).fit()
    assert one_run().ends == [255]


@pytest.mark.slow
def test_nothing_is_sent_but_by_fits(make_learner, service, at):
    logger = WandbCB(every=1)
    learn = make_learner(cbs=[logger, MetricsCB()])
    learn.validate()
    learn.predict(learn.dls.valid)
    learn.fit(train=False)
    learn.verify_resume(1)
    learn.lr_find(n_steps=10)
    assert service.runs == {}
    other = TensorLoader(*learn.dls.train.tensors, bs=2)

    def look(learn):
        if learn.training:
            learn.validate(other)
            learn.predict(other)

    learn.fit(1, cbs=[at("after_step", look)])
    (run,) = service.runs.values()
    assert len(run.entries) == 3 + 2


def test_ordinary_step_waits_for_nothing(make_learner, service, at):
    counts = []
    counter = SyncCounter()
    cbs = [WandbCB(every=1), at("after_batch", lambda learn: counts.append(counter.n), order=1000)]
    learn = make_learner(n_batches=30, n_valid=0, cbs=cbs, opt_func=partial(SGD, foreach=False))
    with counter:
        learn.fit()
    assert len(counts) == 30
    assert len(set(counts)) == 1


@pytest.mark.parametrize("cls", [WandbCB, MLflowCB])
@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["missing", "a folder"])
def test_missing_package_is_said_before_training(make_learner, monkeypatch, cls, spec):
    monkeypatch.setattr(trackers, "find_spec", lambda name: spec)
    learn = make_learner(cbs=cls())
    with pytest.raises(ImportError, match=rf'{cls.package}.*pip install "minilearn\[{cls.package}\]"'):
        learn.fit()
    assert learn.n_steps == 0


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"id": "a"}, "id='a'.*wandb.init"),
        ({"resume": "must"}, "resume='must'.*wandb.init"),
        ({"config": 3}, "config=3.*dict"),
    ],
)
def test_what_the_callback_sets_is_refused(kwargs, said):
    with pytest.raises(TypeError, match=r"WandbCB\(" + said):
        WandbCB(**kwargs)


def test_unknown_argument_is_refused_before_training(make_learner, service):
    learn = make_learner(cbs=WandbCB(projet="x"))
    with pytest.raises(TypeError, match=r"WandbCB\(projet='x'\).*project"):
        learn.fit()
    assert learn.n_steps == 0


@pytest.mark.parametrize("cls", [WandbCB, MLflowCB])
@pytest.mark.parametrize("run", ["../x", "a b", "", "x" * 200])
def test_id_of_a_stranger_is_refused(cls, run):
    cb = cls()
    with pytest.raises(ValueError, match="expected its id"):
        cb.load_state_dict(cb.state_dict() | {"_run": run})


# The real ones ----------------------------------------------------------------------------------------


class ReadCB(Callback):
    """Keep what a run of W&B has, which it forgets when it ends."""

    order = WandbCB.order + 1

    def __init__(self, logger):
        self.logger, self.run = logger, None

    def state_dict(self):
        return {}

    def cleanup_epoch(self, learn):
        run = self.logger._client
        self.run = SimpleNamespace(
            id=run.id, group=run.group, summary=dict(run.summary), config=dict(run.config)
        )


@pytest.mark.slow
def test_wandb_takes_what_is_sent_offline(make_learner, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def make(*cbs):
        logger = WandbCB("p", every=1, mode="offline", dir=str(tmp_path), tags=["t"])
        read = ReadCB(logger)
        saver = CheckpointCB(tmp_path / "saved")
        return make_learner(cbs=[logger, read, saver, MetricsCB(), *cbs]), read

    learn, first = make(StopCB(6))
    stop(learn, resume=True)
    learn, second = make()
    learn.fit(2, resume=True)
    first, second = first.run, second.run
    assert first.id != second.id
    assert first.group == second.group == first.id
    assert second.summary["loss/eval"] == learn.history[-1]["loss"]
    assert second.summary["step"] == 6
    assert second.config["settings"]["WandbCB"]["every"] == 1
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    yield SimpleNamespace(uri=uri, client=mlflow.MlflowClient(uri), mlflow=mlflow)
    patch.undo()


def runs_in(store, experiment):
    found = store.client.get_experiment_by_name(experiment)
    return store.client.search_runs([found.experiment_id]) if found else []


def history(store, run, name):
    return [(m.step, m.value) for m in store.client.get_metric_history(run.info.run_id, name)]


@pytest.mark.slow
def test_mlflow_has_steps_rows_parameters_and_status(make_learner, store):
    recorder = RecorderCB()
    cb = MLflowCB("plain", "a", every=1, uri=store.uri, tags={"kind": "test"})
    learn = make_learner(cbs=[cb, recorder, BatchSchedulerCB(OneCycleLR), MetricsCB()], opt_func=SGD)
    learn.fit(2)
    (run,) = runs_in(store, "plain")
    assert history(store, run, "step/lr") == list(enumerate(recorder.recs["lr"], 1))
    assert history(store, run, "step/loss") == list(enumerate(recorder.recs["loss"], 1))
    evals = [row["loss"] for row in learn.history if row["train"] == "eval"]
    assert history(store, run, "loss/eval") == [(3, evals[0]), (6, evals[1])]
    assert run.data.params["settings.MLflowCB.every"] == "1"
    assert run.data.params["torch"] == torch.__version__
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")
    assert run.data.tags["kind"] == "test"


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4, 5, 6, 8])
def test_mlflow_gets_each_step_and_row_of_a_resumed_fit_once(make_learner, store, tmp_path, monkeypatch, n):
    monkeypatch.setattr(loggers, "_FLUSH_S", -1.0)
    name = f"resumed {n}"

    def make(*cbs):
        saver = CheckpointCB(tmp_path / "saved", every_steps=2)
        return make_learner(cbs=[MLflowCB(name, every=1, uri=store.uri), saver, MetricsCB(), *cbs])

    with pytest.raises(StoppedError):
        make(StopCB(n)).fit(2, resume=True)
    (run,) = runs_in(store, name)
    assert run.info.status == "FAILED"
    learn = make()
    learn.fit(2, resume=True)
    (run,) = runs_in(store, name)
    assert [step for step, _ in history(store, run, "step/loss")] == [1, 2, 3, 4, 5, 6]
    for phase in ("train", "eval"):
        rows = [row["loss"] for row in learn.history if row["train"] == phase]
        assert history(store, run, f"loss/{phase}") == [(3, rows[0]), (6, rows[1])]
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_mlflow_s_own_run_is_used_and_left_open(make_learner, store):
    before = store.mlflow.get_tracking_uri()
    store.mlflow.set_tracking_uri(store.uri)
    try:
        store.mlflow.set_experiment("mine")
        with store.mlflow.start_run() as given:
            store.mlflow.log_param("optimizer", "mine")
            for _ in range(2):
                make_learner(cbs=[MLflowCB(every=1), MetricsCB()]).fit()
            assert store.client.get_run(given.info.run_id).info.status == "RUNNING"
        make_learner(cbs=[MLflowCB(every=1), MetricsCB()]).fit()
        assert len(runs_in(store, "mine")) == 2
        assert len(history(store, given, "step/loss")) == 6
        assert store.client.get_run(given.info.run_id).data.params["optimizer"] == "mine"
    finally:
        store.mlflow.set_tracking_uri(before)


def test_mlflow_s_names_have_only_what_it_allows(make_learner, store):
    class Odd:
        def reset(self):
            pass

        def update(self, preds, target):
            pass

        def compute(self):
            return 0.5

    cb = MLflowCB("odd", uri=store.uri)
    make_learner(cbs=[cb, MetricsCB(**{"f1@5 (é)": Odd()})]).fit()
    (run,) = runs_in(store, "odd")
    assert run.data.metrics["f1_5 _é_/eval"] == 0.5


@pytest.mark.parametrize(
    ("end", "status"), [("pause", "SCHEDULED"), ("signal", "KILLED"), ("error", "FAILED")]
)
def test_mlflow_s_status_says_how_the_fit_ended(make_learner, store, tmp_path, at, end, status):
    import signal

    def leave(learn):
        if learn.n_steps == 2:
            learn.pause() if end == "pause" else signal.raise_signal(signal.SIGINT)

    how = at("after_step", leave) if end != "error" else at("after_loss", fail_at(2))
    learn = make_learner(cbs=[MLflowCB(end, uri=store.uri), CheckpointCB(tmp_path), how])
    try:
        learn.fit()
    except (KeyboardInterrupt, ZeroDivisionError):
        assert end != "pause"
    (run,) = runs_in(store, end)
    assert run.info.status == status
