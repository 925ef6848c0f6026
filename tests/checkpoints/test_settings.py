"""What a resumed fit takes from the checkpoint and what from the script, and that each difference is said."""

import linecache
import math
import re
import warnings
from copy import copy, deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import (
    StopCB,
    StoppedError,
    at,
    conv_learner,
    drawn,
    every_rest,
    make_learner,
    samples,
    scripted,
    stop,
    two_groups,
)
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler as torchs
from torch.utils.data import DataLoader, TensorDataset

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    Callback,
    ChannelsLastCB,
    CheckpointCB,
    CompileCB,
    CSVLoggerCB,
    DataLoaders,
    DatasetLoader,
    EarlyStoppingCB,
    EpochSchedulerCB,
    GradientClippingCB,
    MetricsCB,
    MixupCB,
    RecorderCB,
    ScheduleCB,
    TensorLoader,
    TerminateOnNaNCB,
    TestTimeFlipCB,
)
from minilearn.checkpoints.settings import arguments_of, described
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.data.adapters import adapter_of
from minilearn.data.fingerprint import fingerprint
from minilearn.files import read_torch, write_torch
from minilearn.warning import warn


class KeptCB(Callback):
    """A user's callback; all its attributes are state."""

    def __init__(self, value=None, *values, key=None, **more):
        self.value, self.values, self.key, self.more = value, values, key, more


class PrivateCB(Callback):
    """It keeps what it was given under another name."""

    def __init__(self, value):
        self._kept = value


class OwnCB(Callback):
    """Its state is a count, so that a setting is the script's."""

    def __init__(self, value):
        self.value, self.n = value, 0

    def state_dict(self):
        return {"n": self.n}


def by_ten(step):
    return 0.1


def by_two(step):
    return 0.5


def resumed(folder, before, now, n_epochs=2, **kwargs):
    """Stop a run with the callbacks `before`, resume it with those of `now`; return learner and warnings."""
    stop(make_learner(cbs=[*before, every_rest(folder), StopCB(6)], **kwargs))
    learn = make_learner(cbs=[*now, every_rest(folder)], **kwargs)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(n_epochs, resume=True)
    return learn, [str(warning.message) for warning in found]


# Each: the value then, the value now, the name in the warning, and whose value is used.
VALUES = {
    "number": (1, 2, "value", "then"),
    "float": (0.1, 0.2, "value", "then"),
    "None": (None, 3, "value", "then"),
    "to None": (3, None, "value", "then"),
    "flag": (True, False, "value", "then"),
    "text": ("a", "b", "value", "then"),
    "tuple": ((0.9, 0.99), (0.9, 0.999), "value", "then"),
    "list": ([1, 2], [1, 3], "value", "then"),
    "longer list": ([1], [1, 2], "value", "then"),
    "dict": ({"a": 1}, {"a": 2}, "value", "then"),
    "nested": ({"a": [1, (2, {"b": None})]}, {"a": [1, (2, {"b": 0})]}, "value", "then"),
    "set": ({1, 2}, {1, 3}, "value", "then"),
    "tensor": (torch.zeros(3), torch.ones(3), "value", "then"),
    "array": (np.zeros(3), np.ones(3), "value", "then"),
    "dtype": (torch.float32, torch.float64, "value", "then"),
    "path": (Path("a"), Path("b"), "value", "now"),
    "paths": ([Path("a")], [Path("b")], "value", "now"),
    "text of a path": ("out/a.csv", "out/b.csv", "value", "now"),
    "function": (by_ten, by_two, "value", "now"),
    "lambda": (lambda x: 0.9 * x, lambda x: 0.5 * x, "value", "now"),
    "partial": (partial(math.pow, 2), partial(math.pow, 3), "value", "now"),
    "class": (nn.ReLU, nn.Tanh, "value", "now"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", VALUES)
def test_changed_setting_is_warned_of_with_the_one_that_is_used(tmp_path, what):
    then, now, name, used = VALUES[what]
    learn, said = resumed(tmp_path, [KeptCB(then)], [KeptCB(now)])
    assert len(said) == 1
    assert re.search(rf"KeptCB has {name}=.* here, but .* in the resumed run", said[0])
    expected = {"then": then, "now": now}[used]
    if isinstance(expected, torch.Tensor | np.ndarray):
        assert bool((learn.cbs[0].value == expected).all())
    else:
        assert learn.cbs[0].value == expected
    assert ("one here is used" in said[0]) is (used == "now")


@pytest.mark.slow
@pytest.mark.parametrize("what", VALUES)
def test_same_setting_is_not_warned_of(tmp_path, what):
    then = VALUES[what][0]
    assert resumed(tmp_path, [KeptCB(deepcopy(then))], [KeptCB(deepcopy(then))])[1] == []


@pytest.mark.parametrize(
    "make", [PrivateCB, OwnCB, lambda x: KeptCB(0, x), lambda x: KeptCB(key=x), partial(KeptCB)]
)
def test_setting_is_known_wherever_it_is_kept(tmp_path, make):
    learn, said = resumed(tmp_path, [make(0.25)], [make(0.75)])
    assert len(said) == 1
    assert "0.75" in said[0]
    assert "0.25" in said[0]
    if make is OwnCB:
        assert "one here is used" in said[0]
        assert learn.cbs[0].value == 0.75
    if make is PrivateCB:
        assert "which is used" in said[0]
        assert learn.cbs[0]._kept == 0.25


def test_keyword_of_many_is_named(tmp_path):
    _, said = resumed(tmp_path, [KeptCB(gamma=0.1)], [KeptCB(gamma=0.1, power=2)])
    assert [re.search(r"power=2 here, but '<not given>'", text) is not None for text in said] == [True]


def test_attribute_that_the_script_sets_counts(tmp_path):
    now = KeptCB(1)
    now.value = 5
    _, said = resumed(tmp_path, [KeptCB(1)], [now])
    assert len(said) == 1
    assert "value=5" in said[0]


def test_attribute_that_training_changes_is_no_setting(tmp_path):
    class CountsCB(Callback):
        def __init__(self, n=0, where="begin"):
            self.n, self.where = n, where

        def after_step(self, learn):
            self.n, self.where = self.n + 1, f"step {self.n}"

    learn, said = resumed(tmp_path, [CountsCB()], [CountsCB()])
    assert (said, learn.cbs[0].n, learn.cbs[0].where) == ([], 6, "step 5")


# Schedules --------------------------------------------------------------------------------------------

STEP, Plateau = BatchSchedulerCB, torchs.ReduceLROnPlateau
SCHEDULES = {
    "gamma": (partial(STEP, torchs.ExponentialLR), {"gamma": 0.9}, {"gamma": 0.5}),
    "step_size": (partial(STEP, torchs.StepLR), {"step_size": 2}, {"step_size": 3}),
    "milestones": (partial(STEP, torchs.MultiStepLR), {"milestones": [1]}, {"milestones": [2]}),
    "eta_min": (partial(STEP, torchs.CosineAnnealingLR), {}, {"eta_min": 1e-3}),
    "pct_start": (partial(STEP, torchs.OneCycleLR), {"pct_start": 0.2}, {"pct_start": 0.3}),
    "power": (partial(STEP, torchs.PolynomialLR), {"power": 1.0}, {"power": 2.0}),
    "factor": (partial(STEP, torchs.ConstantLR), {"factor": 0.5}, {"factor": 0.25}),
    "lr_lambda": (partial(STEP, torchs.LambdaLR), {"lr_lambda": by_ten}, {"lr_lambda": by_two}),
    "patience": (partial(EpochSchedulerCB, torchs.ReduceLROnPlateau), {"patience": 1}, {"patience": 2}),
    "schedule": (partial(ScheduleCB, "lr"), {"schedule": by_ten}, {"schedule": by_two}),
    "table": (partial(ScheduleCB, "lr"), {"schedule": {1: 0.1}}, {"schedule": {1: 0.2}}),
    "base": (partial(ScheduleCB, "lr", by_ten), {"base": 1.0}, {"base": 2.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_changed_schedule_is_warned_of(tmp_path, name):
    make, then, now = SCHEDULES[name]
    _, said = resumed(tmp_path, [make(**then), MetricsCB()], [make(**now), MetricsCB()])
    word = "schedule" if name == "table" else name
    assert any(re.search(rf"(SchedulerCB|ScheduleCB) has {word}=", text) for text in said)


def test_lr_of_the_resumed_schedule_is_the_one_that_is_said(tmp_path):
    lrs = []

    class Lrs(Callback):
        def state_dict(self):
            return {}

        def before_step(self, learn):
            lrs.append(learn.opt.param_groups[0]["lr"])

    make = partial(BatchSchedulerCB, torchs.ExponentialLR)
    _, said = resumed(tmp_path, [make(gamma=0.5)], [make(gamma=0.1), Lrs()])
    assert "0.5 in the resumed run, which is used" in said[0]
    assert lrs[-1] == pytest.approx(0.1 * 0.5**5)


# Monitors ---------------------------------------------------------------------------------------------


def two_metrics():
    rows = scripted([5.0, 4.0, 3.0, 2.0])
    return MetricsCB(score=rows.metrics["score"], other=scripted([0.1, 0.2, 0.3, 0.4]).metrics["score"])


MONITORS = [
    (("score", "min"), ("other", "max")),
    (("score", "min"), ("score", "max")),
    (("score", "min"), ("eval/score", "min")),
    (("loss", None), ("other", "max")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("then", "now"), MONITORS)
def test_best_value_is_not_compared_with_that_of_another_monitor(tmp_path, then, now):
    def make(monitor, mode):
        return CheckpointCB(tmp_path, every_minutes=1e-9, keep=99, monitor=monitor, mode=mode)

    stop(make_learner(cbs=[two_metrics(), make(*then), StopCB(6)]))
    (tmp_path / "best.pt").unlink()
    learn = make_learner(cbs=[two_metrics(), make(*now)])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(2, resume=True)
    said = " ".join(str(warning.message) for warning in found)
    assert ("monitor=" in said, "mode=" in said) == (then[0] != now[0], then[1] != now[1])
    assert (tmp_path / "best.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "best"),
    [
        (lambda name, mode: EarlyStoppingCB(name, mode=mode), lambda cb: cb.best),
        (
            lambda name, mode: EpochSchedulerCB(torchs.ReduceLROnPlateau, monitor=name, mode=mode),
            lambda cb: None,
        ),
    ],
)
def test_others_that_monitor_begin_again_too(tmp_path, make, best):
    before, now = [make("score", "min"), two_metrics()], [make("other", "max"), two_metrics()]
    learn, said = resumed(tmp_path, before, now)
    assert "monitor='other'" in " ".join(said)
    cb = next(cb for cb in learn.cbs if type(cb) is type(now[0]))
    assert cb.monitor.name == "other"
    assert best(cb) in (None, 0.2, 0.1)


# The model --------------------------------------------------------------------------------------------


def net():
    return drawn(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def resumed_model(folder, then, now, path=None):
    learn = make_learner(model=net(), cbs=[every_rest(folder), StopCB(6)])
    then(learn)
    stop(learn)
    learn = make_learner(model=net(), cbs=[every_rest(folder)])
    now(learn)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(2, resume=True)
    return learn, [str(warning.message) for warning in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (
            lambda learn: learn.freeze("0"),
            lambda learn: None,
            "'0.bias' only in the resumed",
        ),
        (lambda learn: None, lambda learn: learn.freeze("0"), "'0.bias' only here"),
        (
            lambda learn: learn.freeze("0"),
            lambda learn: learn.freeze("2"),
            "only here; '0.weight'",
        ),
        (
            lambda learn: learn.freeze(),
            lambda learn: learn.freeze("0"),
            "'1.bias' only in the resumed",
        ),
        (
            lambda learn: learn.model[1].eval(),
            lambda learn: None,
            "mode: '1' only in the resumed",
        ),
        (lambda learn: None, lambda learn: learn.model[1].eval(), "mode: '1' only here"),
    ],
)
def test_other_frozen_layers_are_warned_of(tmp_path, then, now, said):
    learn, texts = resumed_model(tmp_path, then, now)
    assert any(said in text for text in texts)
    straight = make_learner(model=net())
    then(straight)
    assert [p.requires_grad for p in learn.model.parameters()] == [
        p.requires_grad for p in straight.model.parameters()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_dtype_in_the_file_are_refused(tmp_path, dtype):
    stop(make_learner(model=net(), cbs=[every_rest(tmp_path), StopCB(6)]))
    path = checkpoints_in(tmp_path)[-1]
    saved = read_torch(path)
    saved["model"] = {k: t.to(dtype) if t.is_floating_point() else t for k, t in saved["model"].items()}
    write_torch(path, saved)
    learn = make_learner(model=net(), cbs=[every_rest(tmp_path)])
    before = learn.model[0].weight.clone()
    with pytest.raises(
        ValueError, match=rf"0\.weight is {dtype} in the file, and torch.float32 in the model"
    ):
        learn.fit(2, resume=True)
    assert torch.equal(learn.model[0].weight, before)


def test_model_of_another_dtype_is_refused(tmp_path):
    def doubled(*cbs):
        learn = make_learner(model=net().double(), cbs=[every_rest(tmp_path), *cbs])
        for loader in (learn.dls.train, learn.dls.valid):
            loader.tensors = (loader.tensors[0].double(), loader.tensors[1])
        return learn

    stop(make_learner(model=net(), cbs=[every_rest(tmp_path), StopCB(6)]))
    with (
        pytest.warns(UserWarning, match="the data differ"),
        pytest.raises(ValueError, match=r"0\.weight is torch.float32 in the file, and torch.float64"),
    ):
        doubled().fit(2, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_warned_of(tmp_path, value):
    stop(make_learner(model=net(), cbs=[every_rest(tmp_path), StopCB(6)]))
    path = checkpoints_in(tmp_path)[-1]
    saved = read_torch(path)
    saved["model"]["2.weight"][0, 0] = value
    write_torch(path, saved)
    with pytest.warns(UserWarning, match=r"2\.weight .*nan or infinite.*earlier checkpoint"):
        make_learner(model=net(), cbs=[every_rest(tmp_path)]).fit(2, resume=True)


class Scaled(nn.Module):
    """A module, and a loss, with a number, text and a tuple of its own."""

    def __init__(self, scale=2.0, how="sum", sizes=(1, 2), place="/data/a"):
        super().__init__()
        self.scale, self.how, self.sizes, self.place = scale, how, sizes, place

    def forward(self, preds, target=None):
        return self.scale * (preds if target is None else F.cross_entropy(preds, target))


def of_parts(*parts):
    return drawn(nn.Sequential(nn.Linear(3, 2), *parts))


def summed(batch):
    return batch[0], batch[1]


def weighed(weight):
    return lambda preds, target: weight * F.cross_entropy(preds, target)


PROGRAMS = {
    "Dropout": (lambda: of_parts(nn.Dropout(0.1)), lambda: of_parts(nn.Dropout(0.9)), r"1\.p=0\.9 .* 0\.1 "),
    "a layer": (lambda: of_parts(nn.ReLU()), lambda: of_parts(nn.GELU()), r"1\.class='GELU' .* 'ReLU' "),
    "a number": (lambda: of_parts(Scaled()), lambda: of_parts(Scaled(3.0)), r"1\.scale=3\.0 .* 2\.0 "),
    "text": (lambda: of_parts(Scaled()), lambda: of_parts(Scaled(how="mean")), "1.how='mean' .* 'sum' "),
    "a tuple": (lambda: of_parts(Scaled()), lambda: of_parts(Scaled(sizes=(1, 3))), r"\[1, 3\] .* \[1, 2\] "),
}
LOSSES = {
    "a function": (F.cross_entropy, F.multi_margin_loss, "multi_margin_loss.* here, but .*cross_entropy"),
    "a class": (
        nn.CrossEntropyLoss(),
        nn.MultiMarginLoss(),
        "'MultiMarginLoss' here, but 'CrossE",
    ),
    "a keyword": (
        *(partial(F.cross_entropy, label_smoothing=0.1), partial(F.cross_entropy, label_smoothing=0.3)),
        "label_smoothing",
    ),
    "a number": (nn.MultiMarginLoss(margin=1.0), nn.MultiMarginLoss(margin=2.0), "margin=2.0 .* 1.0 "),
    "a module's own": (Scaled(), Scaled(3.0), "the loss has scale=3.0 here, but 2.0 "),
    "what it closes over": (weighed(1.0), weighed(2.0), "the learner has loss_func="),
}


def resumed_other(folder, then, now, n_epochs=2):
    """Stop a run, resume it with another learner; return what is warned of."""
    stop(make_learner(cbs=[every_rest(folder), StopCB(6)], **then))
    learn = make_learner(cbs=[every_rest(folder)], **now)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(n_epochs, resume=True)
    return [str(warning.message) for warning in found]


@pytest.mark.slow
@pytest.mark.parametrize("what", PROGRAMS)
def test_other_module_of_equal_shapes_is_warned_of(tmp_path, what):
    then, now, text = PROGRAMS[what]
    [said] = resumed_other(tmp_path / "a", {"model": then()}, {"model": now()})
    assert re.search(rf"the model has .*{text}in the resumed run, and the one here is used", said)
    assert resumed_other(tmp_path / "b", {"model": then()}, {"model": then()}) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", LOSSES)
def test_another_loss_is_warned_of(tmp_path, what):
    then, now, text = LOSSES[what]
    said = resumed_other(tmp_path / "a", {"loss_func": then}, {"loss_func": now})
    assert re.search(text, said[0])
    assert said[0].endswith("and the one here is used")
    assert resumed_other(tmp_path / "b", {"loss_func": then}, {"loss_func": deepcopy(then)}) == []


def test_another_unpack_is_warned_of(tmp_path):
    [said] = resumed_other(tmp_path, {"unpack": summed}, {"unpack": lambda batch: batch})
    assert re.search("the learner has unpack=.*lambda.* here, but .*summed", said)


def test_many_modules_that_differ_are_counted(tmp_path):
    then, now = (of_parts(*(nn.Dropout(p) for _ in range(9))) for p in (0.1, 0.2))
    said = resumed_other(tmp_path, {"model": then}, {"model": now})
    assert len(said) == 4
    assert "6 more differences" in said[-1]


def test_a_place_in_a_module_is_no_setting(tmp_path):
    then, now = of_parts(Scaled(place="/data/a")), of_parts(Scaled(place="/mnt/a"))
    assert resumed_other(tmp_path, {"model": then}, {"model": now}) == []


def test_what_training_changes_in_a_module_is_no_setting_of_the_next_fit(tmp_path):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = 0

        def forward(self, x):
            self.n += 1
            return x

    def script(*cbs):
        learn = make_learner(model=of_parts(Counted()), cbs=[every_rest(tmp_path), *cbs])
        learn.fit(1, resume=True)
        learn.fit(2, resume=True)

    with pytest.raises(StoppedError):
        script(StopCB(6))
    script()


def test_dropout_that_training_changed_is_said_to_be_the_runs_own(tmp_path):
    def change(learn):
        learn.model[1].p = 0.1 + 0.05 * learn.n_steps

    def learner(p, *cbs):
        return make_learner(model=of_parts(nn.Dropout(p)), cbs=[at("after_step", change), *cbs])

    stop(learner(0.1, every_rest(tmp_path), StopCB(6)))
    with pytest.warns(UserWarning, match=r"1\.p=0\.9 here, but 0\.1 .*changed it in training"):
        learner(0.9, every_rest(tmp_path)).fit(2, resume=True)


def test_checkpoint_without_settings_of_loss_and_modules_is_read_without_a_warning(tmp_path):
    stop(make_learner(model=of_parts(Scaled()), cbs=[every_rest(tmp_path), StopCB(6)]))
    path = checkpoints_in(tmp_path)[-1]
    saved = read_torch(path)
    for key in ("the learner", "the modules of the model"):
        saved["settings"].pop(key)
    write_torch(path, saved)
    make_learner(model=of_parts(Scaled(3.0)), unpack=summed, cbs=[every_rest(tmp_path)]).fit(2, resume=path)


# The optimizer ----------------------------------------------------------------------------------------

OPTIMIZERS = {
    "weight_decay": ({"weight_decay": 0.1}, {"weight_decay": 0.2}),
    "momentum": ({"momentum": 0.9}, {"momentum": 0.8}),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.9}),
    "maximize": ({}, {"maximize": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_changed_hyperparameter_is_warned_of_and_that_of_the_file_is_used(tmp_path, name):
    then, now = ({"opt_func": partial(optim.SGD, **kwargs)} for kwargs in OPTIMIZERS[name])
    stop(make_learner(cbs=[every_rest(tmp_path), StopCB(6)], **then))
    learn = make_learner(cbs=[every_rest(tmp_path)], **now)
    with pytest.warns(UserWarning, match=rf"group 0 of the optimizer has {name}=.*which is used"):
        learn.fit(2, resume=True)
    assert learn.opt.param_groups[0][name] == OPTIMIZERS[name][0].get(name, False)


def line_of(caught):
    """Return the text of the line with which a warning is shown."""
    return linecache.getline(caught[0].filename, caught[0].lineno).strip()


def test_warning_has_the_line_that_called_fit(tmp_path):
    stop(make_learner(cbs=[every_rest(tmp_path), StopCB(6)]))
    learn = make_learner(cbs=[every_rest(tmp_path)], lr=0.3)
    with pytest.warns(UserWarning, match="lr=") as caught:
        learn.fit(2, resume=True)
    assert line_of(caught) == "learn.fit(2, resume=True)"


def test_warning_from_a_with_has_its_line(monkeypatch):
    learn = make_learner()
    monkeypatch.setattr(type(learn), "_keep", lambda self, given: warn("careful"))
    with pytest.warns(UserWarning, match="careful") as caught, learn.extra_cbs(None):
        pass
    assert line_of(caught).startswith("with pytest.warns(UserWarning")


def test_second_group_is_named(tmp_path):
    model = partial(lambda: net())
    stop(make_learner(model=model(), param_groups=two_groups, cbs=[every_rest(tmp_path), StopCB(6)]))
    learn = make_learner(model=model(), param_groups=two_groups, cbs=[every_rest(tmp_path)])
    with pytest.warns(UserWarning, match=r"group 1 of the optimizer has lr=0\.3"):
        learn.fit(2, resume=True, lr=[0.1, 0.3])


# Data -------------------------------------------------------------------------------------------------


def dls_of(classes=None, x_add=0.0, y_roll=0, names=("train", "valid")):
    x, y = samples(16)
    x_train, y_train = (x + x_add, y.roll(y_roll)) if "train" in names else (x, y)
    return DataLoaders(TensorLoader(x_train, y_train, bs=4), TensorLoader(x, y, bs=4), classes=classes)


@pytest.mark.parametrize(
    ("then", "now", "name"),
    [
        (("cat", "dog"), ("dog", "cat"), "'dog' is class 0 here, and was 1"),
        (("a", "b", "c"), ("a", "c", "b"), "'c' is class 1 here, and was 2"),
        (("b", "c"), ("a", "b"), "'b' is class 1 here, and was 0"),
        (["x", "y"], ["y", "z"], "'y' is class 0 here, and was 1"),
    ],
)
def test_classes_in_another_order_are_refused_before_training(tmp_path, then, now, name):
    stop(make_learner(dls=dls_of(then), cbs=[every_rest(tmp_path), StopCB(6)]))
    learn = make_learner(dls=dls_of(now), cbs=[every_rest(tmp_path)])
    with pytest.raises(ValueError, match=rf"\.pt.*classes.*{name}.*renamed"):
        learn.fit(2, resume=True)
    assert learn.n_epochs_trained == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("now", "said"),
    [
        (partial(dls_of, ("cat", "hound")), r"classes=\['cat', 'hound'\]"),
        (partial(dls_of, ("cat", "dog", "eel")), "classes="),
        (partial(dls_of, None), "classes=None"),
        (partial(dls_of, ("cat", "dog"), 0.5), r"train\.digest="),
        (partial(dls_of, ("cat", "dog"), 0.0, 1), r"train\.digest="),
    ],
)
def test_other_data_are_warned_of(tmp_path, now, said):
    stop(make_learner(dls=dls_of(("cat", "dog")), cbs=[every_rest(tmp_path), StopCB(6)]))
    with pytest.warns(UserWarning, match=rf"the data differ.*{said}"):
        make_learner(dls=now(), cbs=[every_rest(tmp_path)]).fit(2, resume=True)


class Folder:
    """A data set as torchvision makes them from a folder."""

    def __init__(self, root="/data", names=("a", "b"), n=4):
        self.samples = [(f"{root}/{names[i % 2]}/{i}.png", i % 2) for i in range(n)]
        self.classes, self.cache = list(names), {}

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return torch.zeros(3), self.samples[i][1]


x, y = samples(200)
DIFFERENT = {
    "a sample": (lambda: TensorLoader(x, y, bs=4), lambda: TensorLoader(x + (x == x[0]), y, bs=4)),
    "a target": (lambda: TensorDataset(x, y), lambda: TensorDataset(x, 1 - y)),
    "the number": (lambda: TensorDataset(x, y), lambda: TensorDataset(x[1:], y[1:])),
    "the dtype": (lambda: TensorDataset(x, y), lambda: TensorDataset(x.double(), y)),
    "the order": (lambda: TensorDataset(x, y), lambda: TensorDataset(x.flip(0), y.flip(0))),
    "a name": (Folder, lambda: Folder(names=("a", "c"))),
    "a file more": (Folder, lambda: Folder(n=5)),
    "a part": (
        lambda: torch.utils.data.Subset(TensorDataset(x, y), [0, 1]),
        lambda: torch.utils.data.Subset(TensorDataset(x, y), [0, 2]),
    ),
    "what is inside": (
        lambda: torch.utils.data.ConcatDataset([TensorDataset(x), TensorDataset(y)]),
        lambda: torch.utils.data.ConcatDataset([TensorDataset(x), TensorDataset(1 - y)]),
    ),
    "an array": (lambda: [(np.zeros(3), 1)], lambda: [(np.ones(3), 1)]),
}


def print_of(data):
    if isinstance(data, TensorLoader | list):
        return fingerprint(adapter_of(data))
    wrap = DatasetLoader if isinstance(data, Folder) else DataLoader
    return fingerprint(adapter_of(wrap(data, 2)))


@pytest.mark.parametrize("what", DIFFERENT)
def test_fingerprint_tells_data_apart(what):
    a, b = DIFFERENT[what]
    assert print_of(a()) == print_of(a())
    assert print_of(a()) != print_of(b())


def test_folder_of_data_may_be_moved():
    assert print_of(Folder("/data")) == print_of(Folder("/mnt/other"))


def test_fingerprint_does_not_depend_on_what_a_data_set_remembers():
    used = Folder()
    used.cache[0], used.n_read = "x", 3
    assert print_of(used) == print_of(Folder())


class Spoken(torch.utils.data.Dataset):
    """A data set that draws its samples; it counts what it gave."""

    def __init__(self, noise=0.6, hours=range(12), voices=("a", "b"), kind="words", root="/data"):
        self.noise, self.hours, self.voices, self.kind, self.root = noise, hours, list(voices), kind, root
        self.n_read, self.last = 0, ""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        self.n_read, self.last = self.n_read + 1, str(i)
        return torch.full((3,), float(i)), i % 2


def spoken(folder, *cbs, inside=False, **kwargs):
    sets = Spoken(**kwargs), Spoken()
    wrapped = [torch.utils.data.ConcatDataset([one]) if inside else one for one in sets]
    dls = DataLoaders(*(DatasetLoader(one, bs=4, seed=0) for one in wrapped))
    return make_learner(dls=dls, cbs=[every_rest(folder), *cbs])


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [("noise", 0.1), ("hours", range(12, 24)), ("voices", ["a", "c"]), ("kind", "digits"), ("noise", None)],
)
def test_other_number_of_a_data_set_is_warned_of_with_both_values(tmp_path, name, value, inside):
    stop(spoken(tmp_path, StopCB(6), inside=inside))
    learn = spoken(tmp_path, inside=inside, **{name: value})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(2, resume=True)
    [said] = [str(warning.message) for warning in found]
    where = r"datasets\[0\]\." if inside else ""
    assert re.search(rf"the data differ.*: train\.{where}{name}=.* here, .* there", said)
    assert str(list(value) if name == "voices" else value) in said


@pytest.mark.slow
def test_what_reading_changes_in_a_data_set_and_its_place_are_no_settings(tmp_path):
    def script(*cbs, root="/data"):
        learn = spoken(tmp_path, *cbs, root=root)
        if cbs:
            learn.predict(learn.dls.valid)  # only the first time
        learn.fit(1, resume=True)
        learn.fit(2, resume=True)

    with pytest.raises(StoppedError):
        script(StopCB(6))
    script(root="/mnt/data")


def test_checkpoint_without_numbers_of_the_data_is_read_without_a_warning(tmp_path):
    stop(spoken(tmp_path, StopCB(6)))
    path = checkpoints_in(tmp_path)[-1]
    saved = read_torch(path)
    saved["settings"].pop("the attributes of the data")
    write_torch(path, saved)
    spoken(tmp_path, noise=0.1).fit(2, resume=path)


# Callbacks that come and go ---------------------------------------------------------------------------

COME_AND_GO = {
    "CSVLoggerCB": lambda folder: CSVLoggerCB(folder / "log.csv"),
    "GradientClippingCB": lambda folder: GradientClippingCB(1.0),
    "RecorderCB": lambda folder: RecorderCB(lr="pg.lr"),
    "TerminateOnNaNCB": lambda folder: TerminateOnNaNCB(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COME_AND_GO)
def test_logger_or_clipping_may_be_added_with_a_warning(tmp_path, name):
    learn, said = resumed(tmp_path / "run", [MetricsCB()], [MetricsCB(), COME_AND_GO[name](tmp_path)])
    assert [name in text and "new" in text for text in said] == [True]
    assert learn.n_epochs_trained == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", COME_AND_GO)
def test_logger_or_clipping_may_be_left_out_with_a_warning(tmp_path, name):
    learn, said = resumed(tmp_path / "run", [MetricsCB(), COME_AND_GO[name](tmp_path)], [MetricsCB()])
    assert [name in text and "not among" in text for text in said] == [True]
    assert learn.n_epochs_trained == 2


def test_mixing_may_be_left_out_with_a_warning(tmp_path):
    _, said = resumed(tmp_path / "run", [MixupCB(0.4)], [])
    assert ["MixupCB" in text for text in said] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("make", [ChannelsLastCB, partial(CompileCB, backend="eager"), TestTimeFlipCB])
def test_one_without_a_state_that_changes_numbers_is_told_of_too(tmp_path, make):
    def learner(cbs, folder):
        return conv_learner(*cbs, MetricsCB(), every_rest(folder), seed=1)

    for there, here, said in (([make()], [], "not among the callbacks here$"), ([], [make()], "is new")):
        folder = tmp_path / said.split()[0]
        stop(learner([*there, StopCB(2)], folder))
        with pytest.warns(UserWarning, match=said):
            learner(here, folder).fit(2, resume=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the lr, which the scheduler has changed by then
@pytest.mark.parametrize("make", [partial(EMACB, 0.9), partial(BatchSchedulerCB, torchs.OneCycleLR), KeptCB])
def test_callback_that_the_run_depends_on_is_refused(tmp_path, make):
    for there, here in (([make(max_lr=1.0)] if make is None else [make()], []), ([], [make()])):
        folder = tmp_path / ("left out" if there else "added")
        stop(make_learner(cbs=[*there, every_rest(folder), StopCB(6)]))
        with pytest.raises(ValueError, match=r"\.pt.*state of \w+CB"):
            make_learner(cbs=[*here, every_rest(folder)]).fit(2, resume=True)


def test_users_logger_may_declare_that_it_comes_and_goes(tmp_path):
    class MineCB(Callback):
        may_come_and_go = True

        def __init__(self):
            self.n = 0

    _, said = resumed(tmp_path, [MineCB()], [])
    assert ["MineCB" in text for text in said] == [True]


def test_log_that_was_added_has_no_lr_of_a_later_epoch(tmp_path):
    log = tmp_path / "log.csv"
    before, now = [MetricsCB(), EpochSchedulerCB(torchs.ExponentialLR, gamma=0.1)], [MetricsCB()]
    now += [EpochSchedulerCB(torchs.ExponentialLR, gamma=0.1), CSVLoggerCB(log)]
    resumed(tmp_path / "run", before, now)
    lines = [line.split(",") for line in log.read_text().splitlines()]
    lrs = [line[lines[0].index("lr")] for line in lines[1:]]
    assert lrs[:2] == ["", ""]
    assert [float(lr) for lr in lrs[2:]] == pytest.approx([0.01, 0.01])


# Arguments --------------------------------------------------------------------------------------------


def test_arguments_are_kept_out_of_state_and_copies():
    cb = KeptCB(1, 2, key=3, more=4)
    assert arguments_of(cb) == {"value": 1, "values": [2], "key": 3, "more": 4}
    assert cb.state_dict().keys() == {"value", "values", "key", "more"}
    for copied in (copy(cb), deepcopy(cb)):
        assert copied.state_dict() == cb.state_dict()
        assert arguments_of(copied)["value"] == 1


def test_callback_that_takes_no_arguments_says_so():
    class PlainCB(Callback):
        pass

    with pytest.raises(TypeError, match=r"PlainCB\(\) takes no arguments, 2 given"):
        PlainCB(1, x=2)


def test_callback_may_be_a_module_too():
    class ModuleCB(Callback, nn.Module):
        def __init__(self, n):
            nn.Module.__init__(self)
            self.head = nn.Linear(n, 1)

    assert arguments_of(ModuleCB(3)) == {"n": 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: object(),
        lambda: open,
        lambda: lambda x, y=[1]: x,
        lambda: partial(nn.Linear, 3),
        lambda: nn.Linear(1, 1),
        lambda: {"a": {1: [torch.zeros(2), Path("x"), None, 1e400, b"x", 3 + 4j]}},
        lambda: list(range(1000)),
        lambda: "x" * 10_000,
        lambda: 10**1000,
        lambda: np.float64(0.5),
        lambda: {"b", "a", "c"},
    ],
)
def test_description_is_plain_and_the_same_each_time(tmp_path, make):
    first, second = described(make()), described(make())
    assert repr(first) == repr(second)
    assert " at 0x" not in repr(first)
    write_torch(tmp_path / "x.pt", first)
    assert repr(read_torch(tmp_path / "x.pt")) == repr(first)


def test_function_is_told_apart_by_what_it_closes_over():
    def times(factor):
        return lambda x: factor * x

    assert described(times(2)) == described(times(2))
    assert described(times(2)) != described(times(3))
