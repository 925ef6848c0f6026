"""What a checkpoint of a stranger may do: set numbers and tensors that the reading class has as its state."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from toolbox import StopCB, every_rest, make_learner, stop
from torch.optim.lr_scheduler import CosineAnnealingLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    CSVLoggerCB,
    EarlyStoppingCB,
    MetricsCB,
    RecorderCB,
    TensorBoardCB,
)
from minilearn.checkpoints.codec import Loader, Saver
from minilearn.checkpoints.snapshot import checkpoints_in, read
from minilearn.checkpoints.trust import has_place
from minilearn.files import read_torch, write_torch

OUT = "/home/victim/.bashrc"
CPU = torch.device("cpu")


@dataclass
class Config:
    n: int = 0
    path: str = "out/log.txt"


class PlainCB(Callback):
    """A user's callback: all its attributes are state."""

    n_seen = 0

    def __init__(self, path="log.csv"):
        self.path, self.file, self.folder = path, "out/log.txt", Path("out")
        self.files, self.by_name, self.parts = ["a.csv"], {"log": "out/a.csv"}, ("a.csv", 1)
        self.config, self.space = Config(), SimpleNamespace(path="a.csv")
        self.queue, self.last, self.n = deque(["a.csv"], 3), None, 0
        self.paths = [Path("a"), Path("b")]

    @cached_property
    def double(self):
        return 2 * self.n

    def after_step(self, learn):
        self.n += 1
        self.n_seen += 1
        _ = self.double

    def helper(self):
        """Do something."""


class NamedCB(Callback):
    """A user's callback that names its state, and leaves loading to Callback."""

    def __init__(self):
        self.n, self.keep, self.path = 0, 2, "log.csv"

    def state_dict(self):
        return {"n": self.n}

    def after_step(self, learn):
        self.n += 1


def rewritten(folder, change):
    """Change the newest checkpoint of a folder, as a stranger may."""
    path = checkpoints_in(folder)[-1]
    saved = read_torch(path)
    change(saved)
    write_torch(path, saved)


def of_kind(learn, kind=PlainCB):
    return next(cb for cb in learn.cbs if isinstance(cb, kind))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Stop a run of callbacks, rewrite its checkpoint, and resume it; return the learner."""
    monkeypatch.chdir(tmp_path)

    def run(change, *makers):
        def cbs():
            return [*[make() for make in makers], MetricsCB(), every_rest("run")]

        stop(make_learner(cbs=[*cbs(), StopCB(6)]))
        rewritten(Path("run"), change)
        given = make_learner(cbs=cbs())
        given.fit(2, resume=True)
        return given

    return run


# Paths ------------------------------------------------------------------------------------------------

PLACES = {
    "path": OUT,
    "file": OUT,
    "folder": ("path", "/home/victim"),
    "files": ["a.csv", OUT],
    "by_name": {"log": "../a.csv"},
    "parts": ("tuple", ["other.csv", 1]),
    "config": ("object", "Config", {"n": 3, "path": "other/log.txt"}),
    "space": ("object", "SimpleNamespace", {"path": "~/.profile"}),
    "queue": ("deque", [OUT], 3),
    "last": "../../x",
    "paths": [("path", "a"), ("path", "/c")],
    "later": ("path", "c"),  # an attribute that is not there yet
    "later text": OUT,
    "windows": "C:\\Users\\victim",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_checkpoint_sets_no_path_of_a_callback(run, name):
    attribute = name.replace(" ", "_")

    def change(saved):
        saved["cbs"]["PlainCB"][attribute] = PLACES[name]
        saved["settings"] = {}

    with pytest.warns(UserWarning, match=rf"PlainCB\.{attribute}.*no path.*load_state_dict"):
        learn = run(change, PlainCB)
    cb, new = of_kind(learn), PlainCB()
    assert getattr(cb, attribute, None) == getattr(new, attribute, None)
    assert cb.n == 6  # everything else continues


@pytest.mark.slow
@pytest.mark.parametrize("name", ["path", "file", "folder"])
def test_checkpoint_sets_no_path_of_a_learner(tmp_path, name):
    def make(*cbs):
        learn = make_learner(cbs=[every_rest(tmp_path), *cbs])
        learn.path, learn.file, learn.folder = "log.csv", "out/log.txt", Path("out")
        return learn

    stop(make(StopCB(2)))
    rewritten(tmp_path, lambda saved: saved["own"].update({name: PLACES[name]}))
    learn = make()
    with pytest.warns(UserWarning, match=rf"learn\.{name}.*no path"):
        learn.fit(2, resume=True)
    assert (learn.path, learn.file, learn.folder) == ("log.csv", "out/log.txt", Path("out"))


def test_existing_file_is_not_named(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")

    def change(saved):
        saved["cbs"]["PlainCB"]["last"] = "thesis.tex"

    with pytest.warns(UserWarning, match=r"PlainCB\.last.*no path"):
        assert of_kind(run(change, PlainCB)).last is None


STATE = ["warm-up", "eval/loss", "best so far: 0.5", "v 1.5", "", "a\nb", "été", "x" * 10_000]


@pytest.mark.slow
@pytest.mark.parametrize("text", STATE)
def test_other_text_is_state(run, text):
    def change(saved):
        saved["cbs"]["PlainCB"]["last"] = text
        saved["cbs"]["PlainCB"]["texts"] = {"a": [text]}

    cb = of_kind(run(change, PlainCB))
    assert (cb.last, cb.texts) == (text, {"a": [text]})


@pytest.mark.parametrize(
    ("value", "live"),
    [
        (Path("a"), Path("a")),
        ([Path("a"), "b/c.txt"], [Path("a"), "b/c.txt"]),
        ({"x": {"y": "/z"}}, {"x": {"y": "/z"}}),
        (Config(2, "/a"), Config(1, "/a")),
        (3, Path("a")),
        (None, "a/b"),
        (torch.zeros(2), "a/b"),
        ({"/a/b": 1}, {}),  # a key
    ],
)
def test_path_that_is_the_present_one_is_no_difference(value, live):
    assert not has_place(Saver([], __name__).save(value, "x"), live)


# Names ------------------------------------------------------------------------------------------------

# callback -> what a stranger adds to its state
NAMES = {
    "a log's path": (lambda: CSVLoggerCB("log.csv"), {"path": ("path", OUT)}),
    "a setting": (NamedCB, {"keep": 1}),
    "text": (NamedCB, {"path": "b.csv"}),
    "a method": (PlainCB, {"helper": 1}),
    "a hook": (PlainCB, {"after_step": 1}),
    "a later hook": (PlainCB, {"after_fit": 1, "state_dict": 2}),
    "a special name": (PlainCB, {"__class__": 1}),
    "an order": (PlainCB, {"order": 5}),
    "a declaration": (PlainCB, {"in_evaluation": False}),
    "the state's own methods": (PlainCB, {"load_state_dict": [1]}),
    "a run outside": (lambda: TensorBoardCB("logs"), {"_run": "../other"}),
    "a run below": (lambda: TensorBoardCB("logs"), {"_run": "a/b"}),
    "the folder above": (lambda: TensorBoardCB("logs"), {"_run": ".."}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
def test_name_that_is_not_state_is_refused(run, what):
    make, added = NAMES[what]
    if "run" in what or "above" in what:
        pytest.importorskip("tensorboard")

    name = type(make()).__name__
    with pytest.raises(ValueError, match=rf"{name}.*(not part of|expected the name)"):
        run(lambda saved: saved["cbs"][name].update(added), make)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CheckpointCB, EarlyStoppingCB])
@pytest.mark.parametrize(
    "added", [{"folder": ("path", "/")}, {"keep": 1}, {"at_rest": 1}, {"_report": 1}, {"order": 1}]
)
def test_class_that_loads_its_state_itself_takes_only_that(run, kind, added):
    learn = run(lambda saved: saved["cbs"][kind.__name__].update(added), EarlyStoppingCB)
    [name] = added
    assert vars(of_kind(learn, kind)).get(name) not in added.values()


@pytest.mark.parametrize(
    "name", ["model", "opt", "history", "run", "loss_func", "fit", "_fit", "lr", "__class__"]
)
def test_field_of_the_learner_is_refused(run, name):
    with pytest.raises(ValueError, match=rf"learn\.{name}.*own"):
        run(lambda saved: saved["own"].update({name: 1}))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["fields", "mean"])
@pytest.mark.parametrize("name", ["model", "run", "count", "add"])
def test_other_parts_set_only_their_own_names(run, part, name):
    learn = run(lambda saved: saved[part].update({name: 1}))
    assert learn.model is not 1  # noqa: F632
    assert (callable(learn.mean.add), learn.mean.count != 1, learn.run != 1) == (True, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "optimizer", "get_lr", "extra"])
def test_scheduler_takes_only_its_own_state(run, name):
    def make():
        return BatchSchedulerCB(CosineAnnealingLR)

    with pytest.raises(ValueError, match=rf"BatchSchedulerCB.*{name}.*state"):
        run(lambda saved: saved["cbs"]["BatchSchedulerCB"]["sched"].update({name: 1}), make)


def test_number_of_the_class_is_state(run):
    def change(saved):
        assert saved["cbs"]["PlainCB"]["n_seen"] == 4

    cb = of_kind(run(change, PlainCB))
    assert (cb.n_seen, cb.double) == (6, 2)


# Objects ----------------------------------------------------------------------------------------------


class Deletes:
    """Do harm when the last reference goes."""

    ran: ClassVar = []

    def __del__(self):
        self.ran.append(1)


OBJECTS = {
    "of another package": (__name__, ("object", "Popen", {"pid": 1})),
    "of the standard library": (__name__, ("object", "TemporaryDirectory", {"name": "/"})),
    "with __del__": (__name__, ("object", "Deletes", {})),
    "a function": (__name__, ("object", "rewritten", {})),
    "an imported class": (__name__, ("object", "Path", {"_raw": "/"})),
    "an imported class of torch": (__name__, ("object", "CosineAnnealingLR", {"step": 1})),
    "nothing": (__name__, ("object", "Missing", {})),
    "a method of it": (__name__, ("object", "PlainCB", {"helper": 1})),
    "its class": (__name__, ("object", "Config", {"__class__": 1})),
}


@pytest.mark.parametrize("what", OBJECTS)
def test_object_that_could_do_harm_is_not_made(what):
    assert all([Popen, TemporaryDirectory])  # imported here
    module, saved = OBJECTS[what]
    with pytest.raises(ValueError, match=r"x.*the checkpoint (has|sets)"):
        Loader(CPU, module).load(saved, None, "x")
    assert Deletes.ran == []


@pytest.mark.parametrize("name", ["test", "seed", "Generator", "BitGenerator", "random", "lib", "missing"])
def test_only_a_random_generator_is_made(name):
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        Loader(CPU, "").load(("numpy.Generator", {"bit_generator": name, "state": 1}), None, "x")


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"])
def test_random_generators_are_made(kind):
    rng = np.random.Generator(getattr(np.random, kind)(3))
    rng.random()
    again = Loader(CPU, "").load(Saver([], "").save(rng, "x"), None, "x")
    assert rng.random() == again.random()


# Other files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["run", "fit", "position", "fields", "history", "model", "opt", "cbs", "rng"]
)
def test_checkpoint_without_a_part_is_refused(run, name):
    with pytest.raises(ValueError, match=rf"\.pt.*no '{name}'"):
        run(lambda saved: saved.pop(name), RecorderCB)


def test_name_of_a_run_may_be_set(tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path)])
    learn.run_id = "mine"
    learn.fit()
    assert read(learn.saved_to)["run"] == learn.run_id == "mine"
