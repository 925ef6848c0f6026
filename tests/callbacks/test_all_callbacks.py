import inspect
import os
import re
import tempfile
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_graph import TapeCB
from toolbox import Losses, OwnLoss, as_images, two_layers
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

import minilearn
from minilearn import Callback, Learner, callbacks
from minilearn.callback import Order
from minilearn.events import STEPS, events
from minilearn.optim import SWATS
from minilearn.schedules import cosine


class SavedTimeLimitCB(callbacks.TimeLimitCB):
    """One beside something that saves the fit."""

    def prepare(self, learn):
        learn.run.saved_by(lambda learn: None)


FOLDER = tempfile.TemporaryDirectory()  # removed when the tests end
os.environ |= {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
# Of the data base of MLflow.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]
FACTORIES = {
    "BatchSchedulerCB": lambda: callbacks.BatchSchedulerCB(OneCycleLR),
    "BatchSizeCB": lambda: callbacks.BatchSizeCB({0: 2}),
    "ChannelsLastCB": callbacks.ChannelsLastCB,
    "CSVLoggerCB": lambda: callbacks.CSVLoggerCB(Path(tempfile.mkdtemp(dir=FOLDER.name)) / "log.csv"),
    "CheckpointCB": lambda: callbacks.CheckpointCB(tempfile.mkdtemp(dir=FOLDER.name), every_steps=2),
    "CUDAGraphCB": TapeCB,  # on the CPU
    "CutMixCB": callbacks.CutMixCB,
    "ClosureCB": callbacks.ClosureCB,
    "CompileCB": lambda: callbacks.CompileCB(backend="eager"),  # no compiler is needed
    "DetectionCB": callbacks.DetectionCB,
    "DeviceCB": lambda: callbacks.DeviceCB("cpu"),
    "DistributedCB": callbacks.DistributedCB,
    "EMACB": lambda: callbacks.EMACB(0.9),
    "EarlyStoppingCB": callbacks.EarlyStoppingCB,
    "EpochSchedulerCB": lambda: callbacks.EpochSchedulerCB(OneCycleLR),
    "GradientAccumulationCB": lambda: callbacks.GradientAccumulationCB(2),
    "GradientClippingCB": callbacks.GradientClippingCB,
    "GradualUnfreezeCB": callbacks.GradualUnfreezeCB,
    "HooksCB": lambda: callbacks.HooksCB(lambda *args: None),
    "LRFinderCB": lambda: callbacks.LRFinderCB(n_steps=10),
    "MLflowCB": lambda: callbacks.MLflowCB("tests", every=1, uri=f"sqlite:///{FOLDER.name}/mlflow.db"),
    "MetricsCB": callbacks.MetricsCB,
    "MixedPrecisionCB": callbacks.MixedPrecisionCB,
    "MixupCB": callbacks.MixupCB,
    "MomentumCB": callbacks.MomentumCB,
    "NormStatisticsCB": callbacks.NormStatisticsCB,
    "PredictionsCB": callbacks.PredictionsCB,
    "ProfileCB": callbacks.ProfileCB,
    "ProgressCB": lambda: callbacks.ProgressCB(console=Console(file=StringIO())),
    "RecorderCB": callbacks.RecorderCB,
    "SAMCB": callbacks.SAMCB,
    "SWACB": lambda: callbacks.SWACB(0, swa_lr=0.05),
    "ScheduleCB": lambda: callbacks.ScheduleCB("lr", cosine),
    "SingleBatchCB": callbacks.SingleBatchCB,
    "StoreModuleStatsCB": callbacks.StoreModuleStatsCB,
    "TestTimeFlipCB": callbacks.TestTimeFlipCB,
    "SwitchPointsCB": callbacks.SwitchPointsCB,
    "TensorBoardCB": lambda: callbacks.TensorBoardCB(tempfile.mkdtemp(dir=FOLDER.name), every=1),
    "TerminateOnNaNCB": callbacks.TerminateOnNaNCB,
    "TransformersCB": callbacks.TransformersCB,
    "ThroughputCB": callbacks.ThroughputCB,
    "TimeLimitCB": lambda: SavedTimeLimitCB(hours=1),
    "WandbCB": lambda: callbacks.WandbCB(every=1, mode="offline", dir=FOLDER.name),
}
PACKAGES = {  # that some need; mlflow's data base is sqlalchemy's
    "MLflowCB": ("mlflow", "sqlalchemy"),
    "WandbCB": ("wandb",),
}
NEEDS = {  # of the learner
    "SwitchPointsCB": {"opt_func": SWATS},
    "CUDAGraphCB": {"opt_func": SGD},
    "TapeCB": {"opt_func": SGD},
    "DetectionCB": {"model": partial(Losses, 3, 2)},
    "GradualUnfreezeCB": {"model": partial(two_layers)},
    "TransformersCB": {"model": partial(OwnLoss, 3, 2)},
}
OF_IMAGES = ("CutMixCB", "TestTimeFlipCB")  # whose inputs have to be images
SHIPPED = {
    name: value
    for name, value in vars(callbacks).items()
    if inspect.isclass(value)
    and issubclass(value, Callback)
    and not name.startswith("Base")  # never used as they are
}


def missing(name):
    """Return the packages that a callback needs, if one lacks; a folder of wandb's logs is no package."""
    specs = [find_spec(package) for package in PACKAGES.get(name, ())]
    return "" if all(spec and spec.origin for spec in specs) else " and ".join(PACKAGES[name])


# One without a factory fails test_every_shipped_callback_has_its_part_in_each_place only.
EACH = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(bool(missing(name)), reason=f"needs {missing(name)}"),
        )
        for name in SHIPPED
        if name in FACTORIES
    ],
)


@pytest.fixture
def make_learner(make_learner):
    """As the one of conftest; for a callback that needs images, on images of one row of three pixels."""

    def make(cbs=(), images=False, **kwargs):
        for cb in cbs:
            kwargs |= NEEDS.get(type(cb).__name__, {})
        if not images and not any(type(cb).__name__ in OF_IMAGES for cb in cbs):
            return make_learner(cbs=cbs, **kwargs)
        learn = make_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), cbs=cbs, **kwargs)
        as_images(learn.dls)
        return learn

    return make


def hooks_of(cls):
    return [name for name in events() if hasattr(cls, name)]


def missing_parts(name):
    """Return what is still to be added for a callback of the package, and where."""
    missing = []
    if name not in FACTORIES:
        missing.append(f"factory: tests/callbacks/{Path(__file__).name}, FACTORIES")
    if name not in callbacks.__all__:
        missing.append("export: minilearn/callbacks/__init__.py, __all__")
    if name not in minilearn.__all__ and name != "PredictionsCB":  # learn.predict's own
        missing.append("export: minilearn/__init__.py, __all__")
    return missing


def test_every_shipped_callback_has_its_part_in_each_place():
    missing = {name: parts for name in SHIPPED if (parts := missing_parts(name))}
    said = [f"{name} has no\n    " + "\n    ".join(parts) for name, parts in missing.items()]
    assert not said, "\n".join(said)
    assert FACTORIES.keys() <= SHIPPED.keys()


@EACH
def test_order_is_one_of_the_table_and_of_its_class(name):
    assert SHIPPED[name].order in set(Order)
    assert "order" not in vars(FACTORIES[name]())


def test_each_place_of_the_table_is_one_of_a_shipped_callback_or_the_users():
    used = {cls.order for cls in SHIPPED.values()}
    assert sorted(used | {Order.DEFAULT, Order.RESTORE}) == sorted(Order)  # the last is private


@EACH
def test_it_has_a_hook(name):
    assert hooks_of(SHIPPED[name])


def said_after(doc, word):
    """Return the names after "Runs at:" or "Owns:", to the end of the sentence or to the order."""
    said = re.search(rf"{word}: (.*?)(\.( |$)|; order )", " ".join(doc.split()))
    names, prefix = [], ""
    for name in re.split("(?:[,;]| and) ", said[1]) if said else ():
        names.append(prefix + name if name.startswith("_") else name)  # before_fit, _train
        prefix = names[-1].partition("_")[0]
    return names


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("Runs at: before_fit. Reads: loss.", ["before_fit"]),
        (
            "Runs at: prepare; after_step,\n    after_fit; order 3, late.",
            ["prepare", "after_step", "after_fit"],
        ),
        (
            "Runs at: before_fit, _train and _step; at_rest.",
            ["before_fit", "before_train", "before_step", "at_rest"],
        ),
        ("Reads: loss.", []),
    ],
)
def test_hooks_are_read_from_a_docstring(said, names):
    assert said_after(f"Do it.\n\n{said}", "Runs at") == names


@EACH
def test_docstring_says_when_it_runs(name):
    doc, cls = inspect.getdoc(SHIPPED[name]), SHIPPED[name]
    hooks = {hook for hook in hooks_of(cls) if hook not in STEPS}
    hooks |= {hook for hook in ("prepare", "release") if getattr(cls, hook) is not getattr(Callback, hook)}
    said = said_after(doc, "Runs at")
    assert set(said) == hooks
    assert len(said) == len(hooks)
    order = re.search(r"Runs at: [^.]*order\s(-?\d+)", doc)
    assert int(order[1] if order else Order.DEFAULT) == cls.order


@EACH
def test_docstring_says_which_steps_it_owns(name):
    made, cls = FACTORIES[name](), SHIPPED[name]
    owned = {step for step in STEPS if hasattr(made, step)}
    assert set(said_after(inspect.getdoc(cls), "Owns")) == owned


@EACH
def test_repr_begins_with_its_name(name):
    assert repr(FACTORIES[name]()).startswith(f"{name}(")


class Odd:
    """What fails in whatever way it is looked at."""

    def __getattribute__(self, name):
        raise RuntimeError("odd")

    def __repr__(self):
        raise RuntimeError("odd")

    __str__ = __format__ = __len__ = __iter__ = __bool__ = __eq__ = __hash__ = __repr__


def both(shown):
    """Return the text and the HTML of something that shows itself, of which neither may be long or unsafe."""
    text, html = repr(shown), shown._repr_html_()
    assert len(text) < 300
    for unsafe in ("<script", "http:", "https:", "src=", "href="):
        assert unsafe not in html
    return text, html


@pytest.mark.slow
@EACH
def test_it_shows_itself_before_in_and_after_a_fit(make_learner, at, name):
    cbs = with_metrics(name)
    cb, learn = cbs[0], make_learner(cbs=cbs)
    seen = []

    def look(learn):
        seen.append((*both(cb), *both(learn), *both(learn.dls)))

    looks = [
        at(event, look, order)
        for event in ("before_fit", "before_batch", "after_step", "cleanup_fit")
        for order in (-1999, 1999)
    ]
    look(learn)
    learn.fit(1, cbs=looks)
    look(learn)
    assert len(seen) > 4
    for text, html, of_learner, _, _, _ in seen:
        assert text.startswith((name, type(cb).__name__))
        assert name in html
        assert of_learner.startswith("Learner(")
    assert "in fit, epoch 0 of 1, train batch 0" in seen[3][2]
    assert "in fit" not in seen[-1][2]


@EACH
def test_it_shows_itself_after_a_fit_that_failed(make_learner, at, name):
    def fail(learn):
        raise RuntimeError("failed on purpose")

    cbs = with_metrics(name)
    cb, learn = cbs[0], make_learner(cbs=cbs)
    with pytest.raises(RuntimeError, match="on purpose"):
        learn.fit(1, cbs=at("before_batch", fail, 1999))
    assert both(cb)[0].startswith((name, type(cb).__name__))
    assert "in fit" not in both(learn)[0]


@EACH
def test_it_shows_itself_whatever_its_attributes_are(name):
    cb = FACTORIES[name]()
    empty = Callback.__new__(type(cb))
    assert both(empty)[0].startswith((name, type(cb).__name__))
    for attribute in list(vars(cb)):
        odd = FACTORIES[name]()
        vars(odd)[attribute] = Odd()
        assert both(odd)[0].startswith((name, type(cb).__name__))
    given = FACTORIES[name]()
    given._given = (Odd(), "<script>"), {"x": Odd()}
    both(given)


@EACH
def test_it_trains_two_epochs_with_the_defaults(make_learner, name, capsys):
    learn = make_learner(cbs=[FACTORIES[name]()], default_cbs=True, opt_func=SGD)
    weight = next(learn.model.parameters())
    before = weight.detach().clone()
    learn.fit(2)
    assert learn.epoch == 1
    assert torch.equal(weight, before) is (name == "PredictionsCB")  # it leaves each batch early


def with_metrics(name):
    """Return the callback, beside a MetricsCB for what it may watch."""
    return [FACTORIES[name](), *([] if name == "MetricsCB" else [callbacks.MetricsCB()])]


@EACH
def test_it_fits_twice(make_learner, name):
    learn = make_learner(cbs=with_metrics(name))
    learn.fit()
    learn.fit(2)
    assert learn.n_epochs_trained == 3


@EACH
def test_it_is_gone_after_the_fit_it_was_given_to(make_learner, name):
    learn = make_learner(images=name in OF_IMAGES, **NEEDS.get(name, {}))
    learn.fit(cbs=with_metrics(name))
    assert learn.cbs == ()


@EACH
def test_it_takes_the_place_of_a_default_of_its_kind(make_learner, name):
    cb = FACTORIES[name]()
    learn = make_learner(cbs=[cb], default_cbs=True)
    assert [other for other in learn.cbs if type(other) is type(cb)] == [cb]


@EACH
def test_it_validates(make_learner, name):
    cbs = [callbacks.MetricsCB()] if name != "MetricsCB" else []
    learn = make_learner(cbs=cbs, images=name in OF_IMAGES, **NEEDS.get(name, {}))
    learn.add_cb(FACTORIES[name]())
    assert ("loss" in learn.validate()) is (name not in ("PredictionsCB", "DetectionCB"))


@EACH
def test_lr_find_leaves_it_as_it_was(make_learner, name):
    cb = FACTORIES[name]()
    learn = make_learner(cbs=[cb])
    before = {key: value for key, value in vars(cb).items() if not callable(value)}
    if name in ("LRFinderCB", "PredictionsCB"):
        pytest.skip("ends each batch or the fit itself")
    learn.lr_find(n_steps=10)
    assert {key: value for key, value in vars(cb).items() if not callable(value)} == before
    assert learn.cbs == (cb,)


def test_no_callback_knows_the_learner():
    for cls in SHIPPED.values():
        assert "Learner" not in vars(inspect.getmodule(cls))
    assert issubclass(Learner, minilearn.CallbackHost)
