import math
import os
import shutil

import pytest
import torch
from toolbox import StopCB, StoppedError, at, every_rest, fail_at, names_in, noisy_learner, scripted, state_of

from minilearn import EMACB, CheckpointCB
from minilearn.checkpoints import best as module
from minilearn.checkpoints.best import best_name
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import read


def goods(folder):
    """Return the epochs whose checkpoint is kept as one of the best."""
    return [int(name[len("best-epoch-") : -3]) for name in names_in(folder) if name.startswith("best-")]


def saver(folder, k=2, mode="min", **kwargs):
    return CheckpointCB(folder, monitor="score", mode=mode, keep_best=k, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "values", "k", "kept"),
    [
        ("min", [3, 1, 2, 4], 1, [1]),
        ("min", [3, 1, 2, 4], 2, [1, 2]),
        ("min", [3, 1, 2, 4], 3, [0, 1, 2]),
        ("min", [3, 1, 2, 4], 9, [0, 1, 2, 3]),
        ("max", [3, 1, 2, 4], 2, [0, 3]),
        ("min", [1, 1, 1, 1], 2, [0, 1]),  # of equal ones, the earlier
        ("min", [math.nan, 2, math.nan, 1], 3, [1, 3]),
        ("min", [4, 3, 2, 1], 2, [2, 3]),
        ("max", [-math.inf, math.nan, -math.inf, 0], 2, [0, 3]),
    ],
)
def test_the_best_epochs_are_kept_beside_the_newest(make_learner, tmp_path, mode, values, k, kept):
    weights = []
    keep = at("after_epoch", lambda learn: weights.append(learn.model.weight.detach().clone()))
    make_learner(cbs=[scripted(values), keep, saver(tmp_path, k, mode)]).fit(4)
    newest = ["epoch-0003-train-000000.pt", "epoch-0004-train-000000.pt"]
    assert names_in(tmp_path) == [*map(best_name, kept), "best.pt", *newest]
    for epoch in kept:
        saved = read(tmp_path / best_name(epoch))
        assert saved["position"]["epoch"] == epoch + 1
        assert torch.equal(saved["model"]["weight"], weights[epoch])
    best = min(kept, key=lambda epoch: values[epoch] if mode == "min" else -values[epoch])
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / best_name(best)).read_bytes()


def test_best_takes_no_place_of_its_own(make_learner, tmp_path):
    make_learner(cbs=[scripted([2, 1, 3]), saver(tmp_path)]).fit(3)
    assert os.path.samefile(tmp_path / "best.pt", tmp_path / best_name(1))


def test_best_is_a_copy_where_there_are_no_links(make_learner, tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError("not here")

    monkeypatch.setattr(module.os, "link", no_links)
    make_learner(cbs=[scripted([2, 1, 3]), saver(tmp_path)]).fit(3)
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / best_name(1)).read_bytes()
    assert [name for name in names_in(tmp_path) if name.endswith(".part")] == []


def test_one_that_dropped_out_stays_until_no_checkpoint_needs_it(make_learner, tmp_path):
    seen = []
    look = at("before_epoch", lambda learn: seen.append(goods(tmp_path)))
    cbs = [scripted([4, 3, 2, 1]), saver(tmp_path, every_epochs=2), look]
    make_learner(cbs=cbs).fit(4)
    assert seen == [[], [0], [0, 1], [0, 1, 2]]
    assert goods(tmp_path) == [2, 3]


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("n", range(1, 2 * (3 + 1 + 1) + 1))
@pytest.mark.parametrize("every", [{"every_epochs": 1}, {"every_steps": 2}, {"every_epochs": 3}])
def test_run_that_is_stopped_and_resumed_keeps_the_same(tmp_path, n, every):
    values = [0.4, 0.1, 0.3, 0.2]

    def make(folder, seed, *cbs):
        return noisy_learner(scripted(values), saver(folder, **every), *cbs, seed=seed, n_valid=1)

    straight = make(tmp_path / "straight", 1)
    straight.fit(4)
    stopped = make(tmp_path / "run", 1, StopCB(n + 5))
    with pytest.raises(StoppedError):
        stopped.fit(4, resume=True)
    learn = make(tmp_path / "run", 2)
    learn.fit(4, resume=True)
    assert goods(tmp_path / "run") == goods(tmp_path / "straight") == [1, 3]
    assert first_difference(state_of(straight), state_of(learn, "StopCB")) == ""
    for epoch in (1, 3):
        a, b = (read(tmp_path / name / best_name(epoch)) for name in ("straight", "run"))
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


@pytest.mark.slow
def test_each_of_them_can_be_resumed_from_and_loaded(make_learner, tmp_path):
    learn = make_learner(cbs=[scripted([3, 1, 2]), saver(tmp_path / "a", 3)])
    learn.fit(3)
    for epoch in range(3):
        path = tmp_path / "a" / best_name(epoch)
        again = make_learner(cbs=[scripted([3, 1, 2]), saver(tmp_path / f"from {epoch}", 3)])
        again.fit(3, resume=path)
        assert torch.equal(again.model.weight, learn.model.weight)
        again.load(path)
        assert torch.equal(again.model.weight.data, read(path)["model"]["weight"])


def test_without_another_checkpoint_the_newest_of_the_best_is_resumed_from(make_learner, tmp_path):
    def make(*cbs):
        return make_learner(cbs=[scripted([1, 2, 3]), saver(tmp_path, every_steps=99), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(7))).fit(3)
    learn = make()
    learn.fit(3, resume=True)
    assert learn.run.source.path.name == best_name(1)
    assert learn.n_epochs_trained == 3


def test_fewer_in_the_resumed_run_remove_the_worst(make_learner, tmp_path):
    def make(k, *cbs):
        return make_learner(cbs=[scripted([3, 1, 2, 4]), saver(tmp_path, k), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(3, at("before_batch", fail_at(9))).fit(4)
    assert goods(tmp_path) == [0, 1, 2]
    make(1).fit(4, resume=True)
    assert 0 not in goods(tmp_path)
    assert 1 in goods(tmp_path)


def test_another_monitor_in_the_resumed_run_removes_none(make_learner, tmp_path):
    def make(monitor, *cbs):
        cb = CheckpointCB(tmp_path, monitor=monitor, mode="min", keep_best=1)
        return make_learner(cbs=[scripted([1, 2, 3]), cb, *cbs])

    with pytest.raises(ZeroDivisionError):
        make("score", at("before_batch", fail_at(4))).fit(3)
    with pytest.warns(UserWarning, match="monitor"):
        make("train/loss").fit(3, resume=True)
    assert goods(tmp_path)[0] == 0


def test_averaged_weights_are_in_each_of_them(tmp_path):
    learn = noisy_learner(scripted([2, 1]), EMACB(0.5), saver(tmp_path, 2), n_valid=1)
    learn.fit(2)
    for epoch in (0, 1):
        saved = read(tmp_path / best_name(epoch))
        assert not torch.equal(saved["best"]["0.weight"], saved["model"]["0.weight"])


@pytest.mark.parametrize("k", [2, None])
def test_folder_with_those_of_another_run_is_refused(make_learner, tmp_path, k):
    make_learner(cbs=[scripted([2, 1]), saver(tmp_path / "a")]).fit(2)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / best_name(1), tmp_path / "b")
    with pytest.raises(ValueError, match=r"best-epoch-0001\.pt.*another run"):
        make_learner(cbs=[scripted([2, 1]), saver(tmp_path / "b", k)]).fit(2)


def test_damaged_one_is_set_aside(make_learner, tmp_path):
    def make(*cbs):
        return make_learner(cbs=[scripted([1, 2, 3]), saver(tmp_path), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(4))).fit(3)
    path = tmp_path / best_name(0)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:100])
    with (
        pytest.warns(UserWarning, match=r"best-epoch-0000\.pt is damaged"),
        pytest.warns(UserWarning, match=r"best-epoch-0000\.pt .* place"),
    ):
        make().fit(3, resume=True)
    assert {best_name(1), best_name(2)} <= {*names_in(tmp_path)}
    assert (tmp_path / f"{best_name(0)}.damaged").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deleted", "kept", "best"),
    [
        ([best_name(0)], [1, 2], 1),
        ([best_name(1)], [0, 2], 1),
        ([best_name(0), best_name(1)], [2, 3], 1),
        ([best_name(1), "best.pt"], [0, 2], 0),
        ([best_name(0), best_name(1), "best.pt"], [2, 3], 2),
    ],
)
def test_in_a_resumed_run_good_epochs_take_the_places_of_those_deleted(
    make_learner, tmp_path, deleted, kept, best
):
    def make(*cbs):
        return make_learner(cbs=[scripted([2, 1, 3, 4]), saver(tmp_path), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(7))).fit(4)
    assert goods(tmp_path) == [0, 1]
    for name in deleted:
        (tmp_path / name).unlink()
    with pytest.warns(UserWarning, match=r"place") as warned:
        make().fit(4, resume=True)
    (said,) = (str(one.message) for one in warned)
    assert all(name in said for name in deleted if name != "best.pt")
    assert goods(tmp_path) == kept
    assert read(tmp_path / "best.pt")["position"]["epoch"] == best + 1


def test_without_a_monitor_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"keep_best=2 without monitor"):
        CheckpointCB(tmp_path, keep_best=2)


def test_state_of_a_stranger_names_no_other_file(tmp_path):
    cb = saver(tmp_path)
    state = cb.state_dict() | {"bests": {"kept": [], "dropped": ["/../../x"]}}
    with pytest.raises(ValueError, match="x"):
        cb.load_state_dict(state)


def test_it_is_beside_checkpoints_at_each_rest(make_learner, tmp_path):
    cb = every_rest(tmp_path, monitor="score", mode="min", keep_best=2)
    make_learner(cbs=[scripted([3, 1, 2, 4]), cb]).fit(4)
    assert goods(tmp_path) == [1, 2]
