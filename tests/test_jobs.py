"""Jobs whose batches or losses are not (inputs, class numbers), each as a newcomer would write it.

Each is compared with a loop by hand, resumed at each place of two epochs, and predicted.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from toolbox import (
    MOM_SGD,
    StopCB,
    StoppedError,
    at,
    dealt,
    every_rest,
    generator,
    mentions,
    norm_net,
    state_of,
    tensors_of,
    untimed_rows,
)
from torch import nn
from torch.nn import functional as F

from minilearn import (
    EMACB,
    CheckpointCB,
    CSVLoggerCB,
    DatasetLoader,
    DetectionCB,
    EarlyStoppingCB,
    EpochSchedulerCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    TensorLoader,
    plot_history,
    set_seed,
)
from minilearn.batches import Samples, n_samples
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in

G = generator(6)
N, BS = 10, 4
X, Y = torch.randn(N, 3, generator=G), torch.randint(2, (N,), generator=G)
W = torch.rand(N, generator=G)


# The jobs ---------------------------------------------------------------------------------------------


def net(n_out, p):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(p), nn.Linear(4, n_out))


def weighted(preds, target):
    y, w = target
    return (F.cross_entropy(preds, y, reduction="none") * w).sum() / w.sum()


weighted.count = lambda preds, target: target[1].sum()


class TwoHeads(nn.Module):
    """Classify, and estimate a number."""

    def __init__(self, p):
        super().__init__()
        self.body, self.drop = nn.Linear(3, 4), nn.Dropout(p)
        self.classes, self.number = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x):
        x = self.drop(self.body(x).tanh())
        return self.classes(x), self.number(x)


def of_both(preds, target):
    return F.cross_entropy(preds[0], target[0]) + 0.5 * F.mse_loss(preds[1], target[1])


class Detector(nn.Module):
    """Return losses in training and boxes in evaluation, from images of several sizes."""

    def __init__(self, p=0.2):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(p)
        self.box, self.label = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, images, targets=None):
        x = torch.stack([self.conv(image).tanh().mean((-1, -2)) for image in images])
        boxes, labels = self.box(self.drop(x)), self.label(x)
        if not self.training:
            rows = zip(boxes[:, None], labels.softmax(1), strict=True)
            return [{"boxes": box, "scores": scores} for box, scores in rows]
        wanted = torch.stack([target["boxes"].mean(0) for target in targets])
        classes = torch.stack([target["labels"][0] for target in targets])
        return {"loss_box": F.mse_loss(boxes, wanted), "loss_label": F.cross_entropy(labels, classes)}


class Shapes:
    """A data set of (image, target), as torchvision's are."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        rng = generator(i)
        n_boxes, height = 1 + i % 3, 4 + i % 2
        target = {"boxes": torch.rand(n_boxes, 4, generator=rng), "labels": torch.full((n_boxes,), i % 2)}
        return torch.randn(3, height, 5, generator=rng), target


def together(samples):
    return tuple(zip(*samples, strict=True))


def loaders(*tensors):
    shown = partial(TensorLoader, *tensors, bs=BS)
    return {"train": shown(shuffle=True, seed=1), "eval": shown()}


def detection():
    shown = partial(DatasetLoader, Shapes(), bs=BS, collate_fn=together)
    return {"train": shown(shuffle=True, seed=1), "eval": shown()}


@dataclass
class Job:
    """A job, and what a loop by hand does in it.

    make: makes the arguments of the learner, with dropout of p.
    loss: (model, batch) -> loss.
    inputs: batch -> what predict's model gets.
    count: batch -> what its loss is a mean over.
    """

    make: Any
    loss: Any
    inputs: Any
    count: Any = len
    cbs: Any = list
    has_loss: bool = True

    def learner(self, *cbs, seed=1, p=0.2, **kwargs):
        set_seed(seed)
        arguments = self.make(p)
        kwargs = {"lr": 0.1, "opt_func": MOM_SGD, "default_cbs": False} | kwargs
        return Learner(**arguments, cbs=[*self.cbs(), MetricsCB(), *cbs], **kwargs)


JOBS = {
    "sample weights": Job(
        lambda p: {
            "model": net(2, p),
            "dls": loaders(X, Y, W),
            "loss_func": weighted,
            "unpack": lambda batch: (batch[0], (batch[1], batch[2])),
        },
        lambda model, batch: weighted(model(batch[0]), batch[1:]),
        lambda batch: batch[0],
        lambda batch: batch[2].sum().item(),
    ),
    "autoencoder": Job(
        lambda p: {
            "model": net(3, p),
            "dls": loaders(X),
            "unpack": lambda batch: (batch[0], batch[0]),
        },
        lambda model, batch: F.mse_loss(model(batch[0]), batch[0]),
        lambda batch: batch[0],
        lambda batch: len(batch[0]),
    ),
    "autoencoder of bare tensors": Job(
        lambda p: {
            "model": net(3, p),
            "dls": {"train": list(X.split(BS)), "eval": list(X.split(BS))},
            "unpack": lambda batch: (batch, batch),
        },
        lambda model, batch: F.mse_loss(model(batch), batch),
        lambda batch: batch,
    ),
    "several targets": Job(
        lambda p: {
            "model": TwoHeads(p),
            "dls": loaders(X, Y, W[:, None]),
            "loss_func": of_both,
            "unpack": lambda batch: (batch[0], batch[1:]),
        },
        lambda model, batch: of_both(model(batch[0]), batch[1:]),
        lambda batch: batch[0],
        lambda batch: len(batch[0]),
    ),
    "detection": Job(
        lambda p: {"model": Detector(p), "dls": detection()},
        lambda model, batch: sum(model(*batch).values()),
        lambda batch: batch[0],
        lambda batch: len(batch[0]),
        cbs=lambda: [DetectionCB()],
        has_loss=False,
    ),
}
EACH = pytest.mark.parametrize("name", JOBS)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def joined(outputs):
    """Join the predictions of several batches as `predict` does."""
    first = outputs[0]
    if isinstance(first, list):
        return [item for output in outputs for item in output]
    if isinstance(first, tuple):
        return tuple(map(torch.cat, zip(*outputs, strict=True)))
    return torch.cat(outputs)


@EACH
def test_it_is_a_loop_by_hand(name):
    job = JOBS[name]
    learn = job.learner()
    learn.fit(2)
    set_seed(1)
    arguments = job.make(0.2)
    model, dls = arguments["model"], arguments["dls"]
    opt = MOM_SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        if hasattr(dls["train"], "epoch"):
            dls["train"].epoch = epoch
        model.train()
        means = []
        for batch in dls["train"]:
            loss = job.loss(model, batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            means.append((loss.item(), job.count(batch)))
        expected = sum(loss * n for loss, n in means) / sum(n for _, n in means)
        assert learn.history[2 * epoch]["loss"] == pytest.approx(expected, rel=1e-6)
    assert_equal(tensors_of(learn.model), tensors_of(model))  # a fused step rounds in another way
    model.eval()
    if job.has_loss:
        means = [(job.loss(model, batch).item(), job.count(batch)) for batch in dls["eval"]]
        expected = sum(loss * n for loss, n in means) / sum(n for _, n in means)
        assert learn.history[-1]["loss"] == pytest.approx(expected, rel=1e-6)
    else:
        assert all("loss" not in row for row in learn.history[1::2])
    with torch.no_grad():
        assert_equal(learn.predict(dls["eval"]), joined([model(job.inputs(batch)) for batch in dls["eval"]]))


@EACH
def test_accumulated_batches_are_a_mean_over_what_they_count(name):
    job = JOBS[name]
    learn = job.learner(GradientAccumulationCB(3), p=0.0)
    learn.fit(1)
    other = job.learner(p=0.0)
    model, opt = other.model, MOM_SGD(other.model.parameters(), lr=0.1)
    batches = list(other.dls.train)
    losses = [job.loss(model, batch) * job.count(batch) for batch in batches]
    (sum(losses) / sum(job.count(batch) for batch in batches)).backward()
    opt.step()
    assert_equal(tensors_of(learn.model), tensors_of(model))


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("beside", [False, True])
def test_it_is_resumed_bit_for_bit(tmp_path, name, beside):
    cbs = [GradientAccumulationCB(2), MixedPrecisionCB(), GradientClippingCB(), EMACB(0.5)] * beside
    job = JOBS[name]
    straight = job.learner(*deepcopy(cbs))
    straight.fit(2)
    expected = state_of(straight)
    saver = every_rest(tmp_path / "all")
    learn = job.learner(*deepcopy(cbs), saver)
    learn.fit(2)
    assert first_difference(expected, state_of(learn, "CheckpointCB")) == ""
    paths = checkpoints_in(tmp_path / "all")
    assert len(paths) >= 8
    for i, path in dealt([*enumerate(paths)]):
        at_end = CheckpointCB(tmp_path / str(i), every_epochs=9)
        learn = job.learner(*deepcopy(cbs), at_end, seed=50 + i)
        learn.fit(2, resume=path)
        assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", path.name


@pytest.mark.slow
@EACH
def test_it_verifies_and_finds_an_lr(name):
    learn = JOBS[name].learner()
    assert "bit for bit" in learn.verify_resume()
    assert len(learn.lr_find(n_steps=12, diverge=math.inf).losses) == 12


# Detection --------------------------------------------------------------------------------------------


def test_images_alone_are_predicted():
    learn = JOBS["detection"].learner()
    images = [Shapes()[i][0] for i in range(N)]
    model = learn.model.eval()
    for size in (1, 2, 3):  # two are no pair
        batches = [images[i : i + size] for i in range(0, N, size)]
        assert_equal(learn.predict(batches), [row for batch in batches for row in model(batch)])
    assert_equal(learn.predict([torch.stack(images[::2])]), model(torch.stack(images[::2])))


@pytest.mark.slow
def test_a_model_of_torchvision_trains_and_predicts():
    detection = pytest.importorskip("torchvision.models.detection")
    set_seed(0)
    backbone = nn.Conv2d(3, 4, 3, stride=4)
    backbone.out_channels = 4
    sizes = detection.anchor_utils.AnchorGenerator(((4, 8),), ((1.0,),))
    more = {"min_size": 16, "max_size": 32, "box_detections_per_img": 3, "rpn_post_nms_top_n_train": 10}
    head = detection.faster_rcnn.TwoMLPHead(4 * 7 * 7, 8)
    model = detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=sizes,
        box_head=head,
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(8, 2),
        **more,
    )
    boxes = {"boxes": torch.tensor([[1.0, 1.0, 9.0, 12.0]]), "labels": torch.tensor([1])}
    samples = [(torch.rand(3, 16, 16, generator=G), boxes) for _ in range(6)]
    shown = partial(DatasetLoader, samples, bs=2, collate_fn=together)
    kwargs = {"lr": 1e-3, "default_cbs": False, "cbs": [DetectionCB(), MetricsCB()]}
    learn = Learner(model, {"train": shown(shuffle=True, seed=0), "eval": shown()}, **kwargs)
    learn.fit(1)
    assert ["loss" in row for row in learn.history] == [True, False]
    found = learn.predict(learn.dls.valid)
    assert [sorted(row) for row in found] == [["boxes", "labels", "scores"]] * 6
    assert "bit for bit" in learn.verify_resume()


@pytest.mark.parametrize("batch", [[X], X, [[torch.ones(3, 4, 4)] * 3]])
def test_training_without_targets_is_refused(batch):
    learn = JOBS["detection"].learner()
    learn.dls.train = [batch] if isinstance(batch, torch.Tensor) else batch
    with pytest.raises(ValueError, match=mentions("DetectionCB ... (images, targets) ... collate_fn=")):
        learn.fit()


def detector_learner(*cbs, model=None, **kwargs):
    model = Detector(p=0.0) if model is None else model
    return Learner(model, detection(), lr=0.0, cbs=[DetectionCB(), *cbs], default_cbs=False, **kwargs)


def test_each_loss_has_its_mean_over_the_images_in_rows_of_training():
    learn = detector_learner(MetricsCB(), opt_func=torch.optim.SGD)
    learn.fit()
    sums = {"loss_box": 0.0, "loss_label": 0.0}
    sizes = []
    for images, targets in learn.dls.train:
        sizes.append(len(images))
        for name, loss in learn.model.train()(images, targets).items():
            sums[name] += loss.item() * len(images)
    assert len(set(sizes)) == 2  # the last batch is smaller
    train, valid = learn.history
    for name, total in sums.items():
        assert train[name] == pytest.approx(total / N, rel=1e-6)
        assert name not in valid
    assert train["loss"] == pytest.approx(train["loss_box"] + train["loss_label"], rel=1e-6)


class NamedLosses(Detector):
    """Call the losses otherwise."""

    def __init__(self, *names):
        super().__init__(p=0.0)
        self.names = names

    def forward(self, images, targets=None):
        found = super().forward(images, targets)
        return dict(zip(self.names, found.values(), strict=False)) if self.training else found


def test_a_loss_that_is_called_like_a_column_of_the_row_has_another_name():
    learn = detector_learner(MetricsCB(), model=NamedLosses("loss", "epoch"))
    learn.fit()
    row = learn.history[0]
    assert row["epoch"] == 0
    assert row["loss"] == pytest.approx(row["model_loss"] + row["model_epoch"], rel=1e-6)


def test_the_only_loss_has_no_column_beside_the_loss():
    learn = detector_learner(MetricsCB(), model=NamedLosses("loss_ctc"))
    learn.fit()
    assert sorted(learn.history[0]) == ["epoch", "loss", "time_s", "train"]


def test_losses_are_not_logged_without_rows():
    learn = detector_learner()
    learn.fit()
    assert learn.history == []


def test_a_monitor_may_name_a_loss_and_a_wrong_name_is_found_in_the_first_epoch():
    stop = EarlyStoppingCB("train/loss_box", mode="min", patience=1, min_delta=1e-3)
    learn = detector_learner(MetricsCB(), stop)
    learn.fit(5)
    assert learn.epoch == 1  # lr=0: nothing becomes better
    learn = detector_learner(MetricsCB(), EarlyStoppingCB("train/box_regression", mode="min"))
    with pytest.raises(ValueError, match=mentions("train/box_regression ... loss_box, loss_label")):
        learn.fit(5)
    assert learn.epoch == 0


def test_a_model_that_gives_no_losses_is_refused():
    class Wrong(Detector):
        def forward(self, images, targets=None):
            return [{"boxes": torch.ones(1, 4)} for _ in images]

    learn = JOBS["detection"].learner()
    learn.model = Wrong()
    with pytest.raises(TypeError, match=mentions("gave a list ... dict of losses")):
        learn.fit()


def test_samples_are_one_input_and_count_themselves():
    part = Samples([torch.ones(3, 4), torch.ones(3, 5)])
    assert n_samples(part) == 2
    assert n_samples([*part]) == 3

    class Mean(nn.Linear):
        def forward(self, images):
            return torch.stack([super(Mean, self).forward(image.mean()[None]) for image in images])

    data = [([*part], torch.ones(2, 1))]
    learn = Learner(Mean(1, 1), {"train": data}, unpack=lambda batch: (Samples(batch[0]), batch[1]))
    learn.fit()
    assert learn.predict(data).shape == (2, 1)


# No loss in validation --------------------------------------------------------------------------------


class Count:
    """The number of samples that were predicted."""

    def reset(self):
        self.n = 0

    def update(self, preds, target):
        self.n += len(preds)

    def compute(self):
        return self.n


def only_in_training(learn):
    if learn.training:
        learn.loss = F.cross_entropy(learn.preds, learn.yb)


def lossless(*cbs, **kwargs):
    cbs = [at("get_loss", only_in_training), *cbs]
    return Learner(norm_net(), loaders(X, Y), cbs=cbs, **{"default_cbs": False, "lr": 0.1} | kwargs)


def test_a_validation_without_a_loss_has_a_row_without_one(tmp_path, capsys):
    log = CSVLoggerCB(tmp_path / "log.csv")
    learn = lossless(MetricsCB(n=Count()), log, default_cbs=True)
    learn.fit(2)
    train, valid = learn.history[-2:]
    assert sorted(train) == ["epoch", "loss", "n", "time_s", "train"]
    assert sorted(valid) == ["epoch", "n", "time_s", "train"]
    assert valid["n"] == N
    assert "loss" not in learn.validate()
    said = capsys.readouterr().out
    assert "eval: n 10" in said
    lines = (tmp_path / "log.csv").read_text().splitlines()
    loss = lines[0].split(",").index("loss")
    assert [line.split(",")[loss] != "" for line in lines[1:]] == [True, False] * 2
    plot_history(learn.history)


def test_metrics_of_a_detector_are_those_of_the_validation():
    seen = []

    class Boxes(Count):
        def update(self, preds, target):
            super().update(preds, target)
            seen.append((sorted(preds[0]), sorted(target[0])))

    job = JOBS["detection"]
    set_seed(1)
    learn = Learner(**job.make(0.0), cbs=[DetectionCB(), MetricsCB(n=Boxes())], default_cbs=False)
    learn.fit()
    assert [sorted(row) for row in learn.history] == [
        ["epoch", "loss", "loss_box", "loss_label", "time_s", "train"],
        ["epoch", "n", "time_s", "train"],
    ]
    assert learn.history[1]["n"] == N
    assert set(map(str, seen)) == {str((["boxes", "scores"], ["boxes", "labels"]))}


@pytest.mark.slow
def test_rows_with_no_loss_are_resumed(tmp_path):
    def make(cb):
        set_seed(1)
        return lossless(MetricsCB(n=Count()), cb)

    straight = make(every_rest(tmp_path / "all"))
    straight.fit(1)
    for i, path in enumerate(checkpoints_in(tmp_path / "all")):
        learn = make(CheckpointCB(tmp_path / str(i)))
        learn.fit(1, resume=path)
        assert untimed_rows(learn) == untimed_rows(straight), path.name


def test_a_fit_that_stops_in_a_validation_without_a_loss_is_resumed(tmp_path):
    set_seed(1)
    learn = lossless(MetricsCB(), every_rest(tmp_path), StopCB(5))
    with pytest.raises(StoppedError):
        learn.fit(1)
    set_seed(1)
    again = lossless(MetricsCB(), every_rest(tmp_path))
    again.fit(1, resume=True)
    assert ["loss" in row for row in again.history] == [True, False]


@pytest.mark.parametrize(
    "make", [lambda: EarlyStoppingCB(), lambda: EpochSchedulerCB(torch.optim.lr_scheduler.ReduceLROnPlateau)]
)
def test_a_monitor_of_a_loss_that_is_not_there_says_so(make):
    with pytest.raises(ValueError, match=mentions("monitor='loss' ... eval batches have no loss")):
        lossless(MetricsCB(), make()).fit(3)


def test_a_monitor_may_name_the_training():
    learn = lossless(MetricsCB(), EarlyStoppingCB("train/loss", patience=1, min_delta=9.0))
    learn.fit(3)
    assert learn.epoch == 1


def test_batches_with_a_loss_and_batches_without_are_a_mean_over_the_first():
    def get_loss(learn):
        if learn.training or learn.batch_idx == 1:
            learn.loss = F.cross_entropy(learn.preds, learn.yb)

    learn = Learner(norm_net(), loaders(X, Y), cbs=[at("get_loss", get_loss), MetricsCB()], default_cbs=False)
    learn.fit()
    expected = F.cross_entropy(learn.model.eval()(X[BS : 2 * BS]), Y[BS : 2 * BS]).item()
    assert learn.history[-1]["loss"] == pytest.approx(expected, rel=1e-6)


# Messages ---------------------------------------------------------------------------------------------


def test_three_parts_without_unpack_are_refused_with_what_to_write():
    learn = Learner(norm_net(), loaders(X, Y, W), default_cbs=False)
    with pytest.raises(ValueError, match=mentions("tuple of 3 ... unpack= ... (batch[0], batch[1:])")):
        learn.fit()


def test_a_loss_over_predictions_gets_none_from_unpack():
    def spread(preds, target):
        assert target is None
        return preds.var(0).mean()

    learn = Learner(nn.Linear(3, 3), loaders(X, Y), spread, unpack=lambda batch: (batch[0], None))
    assert learn.validate()["loss"] == pytest.approx(
        sum(len(x) * spread(learn.model(x), None).item() for x in X.split(BS)) / N
    )
    learn.fit()
    assert set(learn.history[-1]) == {"loss", "epoch", "train", "time_s"}
    assert learn.verify_resume(at=2)


def test_unpack_without_a_target_is_refused_for_a_loss_that_needs_one():
    def learner(loss_func, **kwargs):
        unpack = lambda batch: (batch[0], None)  # noqa: E731
        return Learner(nn.Linear(3, 3), loaders(X, Y), loss_func, unpack=unpack, **kwargs)

    for loss_func in (None, F.cross_entropy, nn.MSELoss()):
        with pytest.raises(ValueError, match=mentions("unpack= ... without a target ... loss_func needs")):
            learner(loss_func).fit()
    with pytest.raises(ValueError, match=mentions("without a target ... MixupCB")):
        learner(lambda preds, target: preds.mean(), cbs=MixupCB()).fit()


def test_inputs_alone_without_unpack_are_refused_with_what_to_write():
    learn = Learner(nn.Linear(3, 3), loaders(X), default_cbs=False)
    with pytest.raises(ValueError, match=mentions("without a target ... unpack= ... (inputs, inputs)")):
        learn.fit()
