"""What learners, loaders and callbacks say in a terminal and in a notebook."""

import math
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from toolbox import make_learner, samples
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from minilearn import (
    Callback,
    DataLoaders,
    DatasetLoader,
    DeviceCB,
    EarlyStoppingCB,
    Learner,
    MetricsCB,
    MixupCB,
    ProgressCB,
    RecorderCB,
    TensorLoader,
    balanced,
)
from minilearn.arguments import brief
from minilearn.data import ImageLoader, Normalize, ResumableLoader
from minilearn.notebook import curve, loader_text

X, Y = samples(10)


class Tags(HTMLParser):
    """Check that each tag is closed, and keep the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "polyline":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def text_of(html):
    """Return the text of HTML whose tags are all closed."""
    parser = Tags()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return " ".join(parser.text)


# The learner ----------------------------------------------------------------------------------------


def test_learner_says_its_model_data_optimizer_and_epochs():
    learn = make_learner(n_batches=3, cbs=MetricsCB())
    assert repr(learn) == (
        "Learner(Linear, 8 parameters on cpu; train 3 batches, valid 1 batch; AdamW; 0 epochs trained)"
    )
    learn.model.bias.requires_grad_(False)
    learn.fit(1)
    assert "8 parameters, 2 frozen on cpu" in repr(learn)
    assert repr(learn).endswith("AdamW; 1 epoch trained)")


def test_learner_in_a_notebook_has_its_newest_rows():
    learn = make_learner(cbs=[MetricsCB(), EarlyStoppingCB(patience=2)])
    learn.fit(3)
    text = text_of(learn._repr_html_())
    assert "EarlyStoppingCB('loss', patience=2)" in text
    assert f"{learn.history[-1]['loss']:.4f}" in text
    assert f"{learn.history[0]['loss']:.4f}" not in text  # of six rows, four


def test_learner_without_data():
    assert repr(Learner(nn.Linear(3, 2))) == (
        "Learner(Linear, 8 parameters on cpu; no data; AdamW; 0 epochs trained)"
    )
    assert "0 parameters" in repr(Learner(nn.LazyLinear(3)))


def test_learner_whose_init_failed():
    learn = Learner.__new__(Learner)
    assert repr(learn) == "Learner(?; ?; ?; ?; ?)"
    assert text_of(learn._repr_html_())


@pytest.mark.parametrize(
    "name", ["model", "_dls", "opt", "history", "_cbs", "plan", "n_epochs_trained", "scopes"]
)
@pytest.mark.parametrize("odd", [None, 3, "<script>", object()])
def test_learner_with_an_odd_attribute(name, odd):
    learn = make_learner(cbs=MetricsCB())
    learn.fit(1)
    vars(learn)[name] = odd
    assert repr(learn).startswith("Learner(")
    assert "<script>" not in learn._repr_html_()


def test_loader_without_a_length():
    class Endless:
        def __iter__(self):
            return iter([(X, Y)])

    assert "train of unknown length" in repr(Learner(nn.Linear(3, 2), {"train": Endless()}))


def test_nothing_is_read_to_show_it(monkeypatch):
    class Watched(TensorDataset):
        def __getitem__(self, i):
            raise AssertionError("read")

        __getitems__ = None

    data = Watched(X, Y)
    recorder = RecorderCB()
    learn = make_learner(cbs=[MetricsCB(), recorder])
    learn.fit(1)
    learn.dls = DataLoaders(DatasetLoader(data, 4, shuffle=True), DataLoader(data, 4))
    shown = [learn, learn.dls, *learn.cbs]

    def refuse(self, *args):
        raise AssertionError("this waits for the device")

    before = torch.get_rng_state()
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__repr__", "__str__", "__float__", "__bool__"):
            patch.setattr(Tensor, name, refuse)
        texts = [repr(one) for one in shown]
        htmls = [one._repr_html_() for one in shown if one is not recorder]
    assert not any("(...)" in text or "?" in text for text in texts + htmls)
    assert torch.equal(torch.get_rng_state(), before)


# Loaders --------------------------------------------------------------------------------------------


def test_loaders_say_what_they_give():
    assert repr(TensorLoader(X, Y, bs=4, shuffle=True)) == (
        "TensorLoader((10, 3) float32, (10,) int64, bs=4, shuffle=True)"
    )
    assert repr(DatasetLoader(TensorDataset(X, Y), 4, drop_last=True)) == (
        "DatasetLoader(TensorDataset of 10, bs=4, drop_last=True)"
    )
    assert repr(DatasetLoader(TensorDataset(X, Y), 5, sampler=[1, 2])) == (
        "DatasetLoader(TensorDataset of 10, bs=5, sampler=list)"
    )
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    loader = ImageLoader(images, torch.zeros(2), [Normalize([0.5], [0.5])], bs=2)
    assert repr(loader) == "ImageLoader((2, 1, 4, 4) uint8, (2,) float32, bs=2, augment=['Normalize'])"
    assert repr(TensorLoader(X, bs=4).part_of(1, 2)) == "TensorLoader((10, 3) float32, bs=4, shard=1 of 2)"
    assert repr(TensorLoader(X.to("meta"), bs=4)) == "TensorLoader((10, 3) float32 on meta, bs=4)"


def test_loader_with_a_plan_names_it():
    loader = DatasetLoader(TensorDataset(X, Y), plan=balanced(Y.tolist(), bs=4))
    assert repr(loader).startswith("DatasetLoader(TensorDataset of 10, plan=balanced(")


def test_loaders_of_a_task_have_a_line_each():
    dls = DataLoaders(TensorLoader(X, Y), {"clean": [(X, Y)], "shifted": DataLoader(TensorDataset(X, Y), 4)})
    assert repr(dls).splitlines() == [
        "DataLoaders",
        "  train: TensorLoader((10, 3) float32, (10,) int64, bs=64)",
        "  clean: list of 1 batches",
        "  shifted: DataLoader(TensorDataset of 10, batch_size=4)",
    ]
    assert repr(DataLoaders.of(None)) == "DataLoaders without a loader"
    text = text_of(DataLoaders(TensorLoader(X, Y), classes=["<a>", "b"], source="<i>")._repr_html_())
    assert "2 names" in text
    assert "<i>" in text  # which the parser took for text


@pytest.mark.parametrize("kind", [ResumableLoader, TensorLoader, DatasetLoader, ImageLoader, DataLoaders])
def test_loader_whose_init_failed(kind):
    loader = kind.__new__(kind)
    assert repr(loader) == f"{kind.__name__}(...)"
    assert text_of(loader._repr_html_()) == f"{kind.__name__}(...)"


def test_subclass_of_a_loader_shows_itself_by_its_name():
    class Mine(ResumableLoader):
        def batches(self, start=0):
            yield X, Y

    assert repr(Mine(1200, bs=1)) == "Mine(1,200 samples, bs=1)"
    assert pickle.loads(pickle.dumps(TensorLoader(X))).n_samples == 10


def test_any_loader_has_a_text():
    class Odd:
        @property
        def dataset(self):
            raise RuntimeError("odd")

    assert loader_text(Odd()) == "Odd"
    assert loader_text(range(3)) == "range()"


# Callbacks ------------------------------------------------------------------------------------------


def test_callback_says_how_it_was_made():
    assert repr(ProgressCB(quiet=True)) == "ProgressCB(quiet=True)"
    assert repr(DeviceCB("cpu")) == "DeviceCB('cpu')"
    assert repr(RecorderCB(lr="pg.lr", norm=len)) == "RecorderCB(lr='pg.lr', norm=len)"
    assert repr(pickle.loads(pickle.dumps(ProgressCB(quiet=True)))) == "ProgressCB()"


def test_callback_in_a_notebook_says_what_it_does_and_when():
    class NoteCB(Callback):
        """Note <b>it</b>.

        More."""

        def __init__(self, name):
            self.name = name

        def after_step(self, learn):
            pass

    html = NoteCB("<script>")._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert text_of(html) == "NoteCB('<script>') Note <b>it</b>. Runs at: after_step"


def test_repr_of_a_users_callback_never_fails():
    class NoteCB(Callback):
        def __init__(self):
            raise RuntimeError("odd")

        def __repr__(self):
            return f"NoteCB({self.missing})"

    assert repr(NoteCB.__new__(NoteCB)) == "NoteCB(...)"
    assert "NoteCB(...)" in text_of(NoteCB.__new__(NoteCB)._repr_html_())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, "1.5"),
        ("a", "'a'"),
        (nn.Linear(3, 2), "Linear"),
        (torch.zeros(3), "Tensor"),
        (np.zeros(3), "ndarray"),
        (len, "len"),
        (nn.Linear, "Linear"),
        (torch.device("cpu"), "'cpu'"),
        (torch.float16, "torch.float16"),
        ([1, (2,), {"a": nn.ReLU()}], "[1, (2,), {'a': ReLU}]"),
        (list(range(9)), "list of 9"),
        ("x" * 1000, "a str"),
    ],
)
def test_arguments_are_brief(value, expected):
    assert brief(value) == expected


# The recorder ---------------------------------------------------------------------------------------


def points(html):
    return [
        [tuple(map(float, point.split(","))) for point in line.split()]
        for line in re.findall(r'points="([^"]*)"', html)
    ]


def test_recorder_has_a_curve_for_each_record():
    recorder = RecorderCB()
    make_learner(cbs=recorder, n_batches=5).fit(1)
    assert repr(recorder) == "RecorderCB(lr, mom, loss: 5 steps)"
    html = recorder._repr_html_()
    assert f"{recorder.recs['loss'][-1]:.4g}" in text_of(html)
    of_loss = points(html)[2]
    assert len(of_loss) == 5
    lowest, highest = (of_loss.index(pick(of_loss, key=lambda point: -point[1])) for pick in (min, max))
    losses = recorder.recs["loss"]
    assert (lowest, highest) == (losses.index(min(losses)), losses.index(max(losses)))


def test_recorder_counts_steps_in_a_fit(at):
    recorder, seen = RecorderCB(), []
    look = at("after_step", lambda learn: seen.append((repr(recorder), recorder._repr_html_())), 51)
    make_learner(cbs=[recorder, look], n_batches=3).fit(1)
    assert [text for text, _ in seen] == [f"RecorderCB(lr, mom, loss: {n} steps)" for n in (1, 2, 3)]
    assert len(recorder.recs["loss"]) == 3


def test_recorder_of_odd_values_has_no_curve():
    recorder = RecorderCB(name=lambda cb: "<b>", both=lambda cb: torch.ones(2))
    make_learner(cbs=recorder).fit(1)
    html = recorder._repr_html_()
    assert "<b>" not in html
    assert "svg" not in html
    assert "<b>" in text_of(html)
    assert text_of(RecorderCB()._repr_html_()) == "RecorderCB()"


def test_curve_of_many_values_has_few_points():
    (line,) = points(curve([float(i) for i in range(100_000)]))
    assert len(line) == 200
    assert line[0] == (2.0, 38.0)
    assert line[-1] == (158.0, 2.0)


def test_curve_has_gaps_where_values_are_not_finite():
    found = points(curve([1.0, 2.0, math.nan, 3.0, math.inf, 1.0, 2.0]))
    assert [len(line) for line in found] == [2, 2, 2]
    assert found[1][0] == found[1][1]  # a point


@pytest.mark.parametrize("values", [[], [1.0], [math.nan] * 5])
def test_curve_of_no_line_is_nothing(values):
    assert curve(values) == ""


def test_curve_of_a_constant_is_flat():
    (line,) = points(curve([3, 3, 3]))
    assert {y for _, y in line} == {38.0}


def test_mixup_says_its_alpha():
    assert repr(MixupCB(0.3)) == "MixupCB(0.3)"


def test_callback_does_not_show_a_secret():
    class SlackCB(Callback):
        def __init__(self, channel, api_key="", token=None):
            pass

    assert repr(SlackCB("#runs", api_key="abc", token="xyz")) == "SlackCB('#runs', api_key=..., token=...)"
