"""GradualUnfreezeCB: what is trained in which epoch, and at which lr."""

from functools import partial

import pytest
import torch
from toolbox import (
    MOM_SGD,
    at,
    dealt,
    drawn,
    every_rest,
    fail_at,
    generator,
    mentions,
    noisy_learner,
    samples,
    state_of,
    tensors_of,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    CheckpointCB,
    GradientAccumulationCB,
    GradientClippingCB,
    GradualUnfreezeCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    RecorderCB,
    ScheduleCB,
    TensorLoader,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.optim import Combined, by_layer, is_matrix
from minilearn.schedules import cosine


class Net(nn.Module):
    """Four layers, a BatchNorm and a parameter of the model itself."""

    def __init__(self, p=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.stem, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(p)
        self.body, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(self.drop(self.norm(self.stem(x)) + self.shift)))


def net(p=0.0):
    return drawn(Net(p), generator(2))


def learner(*cbs, model=None, seed=None, **kwargs):
    x, y = samples(12)
    dls = {"train": TensorLoader(x, y, bs=4), "eval": TensorLoader(x, y, bs=6)}
    if seed is not None:
        torch.manual_seed(seed)
    kwargs = {"lr": 0.1, "opt_func": MOM_SGD, "default_cbs": False, "param_groups": by_layer} | kwargs
    return Learner(model or net(), dls, cbs=cbs, **kwargs)


def assert_close(model, other):
    # A fused step rounds in another way.
    torch.testing.assert_close(tensors_of(model), tensors_of(other), rtol=1e-5, atol=1e-6)


def watch_lrs(seen):
    return at("before_step", lambda learn: seen.append(lrs_of(learn)))


def trained_parts(learn):
    return {name.split(".")[0] for name, p in learn.model.named_parameters() if p.requires_grad}


# What is trained when ---------------------------------------------------------------------------------

HEAD = {"head"}
ALL = {"shift", "stem", "norm", "body", "head"}
TABLES = {
    "each epoch": (1, [HEAD, HEAD | {"body"}, HEAD | {"body", "norm"}, ALL, ALL]),
    "every two": (2, [HEAD, HEAD, HEAD | {"body"}, HEAD | {"body"}, HEAD | {"body", "norm"}]),
    "the head, then all": ({1: None}, [HEAD, ALL, ALL]),
    "names": (
        {1: "body", 3: ["stem", "norm"]},
        [{"shift", "head"}] + [{"shift", "head", "body"}] * 2 + [ALL],
    ),
    "a part of a part": ({2: "body.0"}, [ALL - {"body"}] * 2 + [ALL]),
    "classes": ({1: nn.BatchNorm1d}, [ALL - {"norm"}, ALL]),
    "names, then the rest": ({1: "body", 2: None}, [HEAD, HEAD | {"body"}, ALL]),
}


@pytest.mark.parametrize("name", TABLES)
def test_parts_are_trained_from_their_epoch_on(name):
    epochs, expected = TABLES[name]
    seen, weights = [], []

    def watch(learn):
        seen.append(trained_parts(learn))
        weights.append(tensors_of(learn.model))

    learn = learner(GradualUnfreezeCB(epochs), at("before_train", watch))
    learn.fit(len(expected))
    assert seen == expected
    weights.append(tensors_of(learn.model))
    for parts, before, after in zip(expected, weights, weights[1:], strict=False):
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == parts  # a frozen BatchNorm keeps its statistics too


def test_what_a_fit_does_not_reach_stays_frozen():
    learn = learner(GradualUnfreezeCB())
    learn.fit(2)
    assert trained_parts(learn) == {"head", "body"}
    learn.unfreeze()
    learn.fit(2)  # which begins again
    assert trained_parts(learn) == {"head", "body"}


# A loop by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fine_tuning_is_a_loop_by_hand(momentum):
    learn = learner(GradualUnfreezeCB({1: None}, lr_div=2.0), opt_func=partial(SGD, momentum=momentum))
    learn.fit(3)
    model = net()
    parts = [[model.shift], *(part.parameters() for part in (model.stem, model.norm, model.body, model.head))]
    lrs = [0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1]
    opt = SGD([{"params": p, "lr": lr} for p, lr in zip(parts, lrs, strict=True)], momentum=momentum)
    for epoch in range(3):
        for p in model.parameters():
            p.requires_grad = epoch > 0
        model.head.requires_grad_(True)
        model.norm.train(epoch > 0)
        for x, y in learn.dls.train:
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
    expected = tensors_of(model)
    for name, t in tensors_of(learn.model).items():
        torch.testing.assert_close(
            t, expected[name], rtol=1e-5, atol=1e-6
        )  # a fused step rounds in another way


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_unfreezing_between_two_fits_is_a_loop_by_hand_with_a_fused_sgd_too(dampening):
    opt_func = partial(SGD, momentum=0.9, dampening=dampening)
    learn = learner(opt_func=opt_func, param_groups=None)
    learn.freeze("stem", "norm", "body")
    learn.fit(1)
    learn.unfreeze()
    learn.fit(1)
    model = net()
    opt = opt_func(model.parameters(), lr=0.1)
    for epoch in range(2):
        for part in (model.stem, model.norm, model.body):
            part.requires_grad_(epoch > 0)
        model.norm.train(epoch > 0)
        for x, y in learn.dls.train:
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
    assert_close(learn.model, model)


# lrs --------------------------------------------------------------------------------------------------


def lrs_of(learn):
    return [group["lr"] for group in learn.opt.param_groups]


FALLING = pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1])


def test_lrs_fall_with_the_depth_in_the_fit_and_are_as_before_after_it():
    seen = []
    learn = learner(GradualUnfreezeCB(lr_div=2), watch_lrs(seen))
    for _ in range(2):  # the second fit does not divide again
        seen.clear()
        learn.fit(4)
        assert seen[0] == seen[-1] == FALLING
        assert lrs_of(learn) == [0.1] * 5
    learn.fit(4, lr=0.2)
    assert seen[-1] == pytest.approx([0.2 / 16, 0.2 / 8, 0.2 / 4, 0.2 / 2, 0.2])
    learn.fit(4, lr=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert seen[-1] == pytest.approx([0.1 / 16, 0.2 / 8, 0.3 / 4, 0.4 / 2, 0.5])
    assert lrs_of(learn) == [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize("schedule", [lambda: BatchSchedulerCB(OneCycleLR), lambda: ScheduleCB("lr", cosine)])
def test_schedules_start_from_the_divided_lrs(schedule):
    seen = []
    learn = learner(
        GradualUnfreezeCB({1: None}, lr_div=2),
        schedule(),
        watch_lrs(seen),
    )
    learn.fit(3)
    assert max(row[-1] for row in seen) == pytest.approx(0.1, rel=0.05)
    for row in seen:
        assert row == pytest.approx([row[-1] / 2 ** (4 - i) for i in range(5)], rel=1e-6)
    assert lrs_of(learn) == [0.1] * 5


def test_lrs_are_put_back_after_an_error():
    learn = learner(GradualUnfreezeCB(lr_div=2), at("after_step", fail_at(2)), BatchSchedulerCB(OneCycleLR))
    with pytest.raises(ZeroDivisionError):
        learn.fit(2)
    assert lrs_of(learn) == [0.1] * 5


def test_the_recorder_has_the_divided_lrs():
    learn = learner(GradualUnfreezeCB(lr_div=2), recorder := RecorderCB(lr="pg.lr"))
    learn.fit(1)
    assert recorder.recs["lr"][0] == pytest.approx(0.1 / 16)


def test_parameters_of_the_loss_keep_their_lr():
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, preds, target):
            return super().forward(preds * self.scale, target)

    seen = []
    learn = learner(GradualUnfreezeCB(lr_div=2), watch_lrs(seen), loss_func=Scaled())
    learn.fit(1)
    assert seen[0] == pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1, 0.1])


# With the rest ----------------------------------------------------------------------------------------

BESIDE = {
    "alone": list,
    "one cycle": lambda: [BatchSchedulerCB(OneCycleLR)],
    "others": lambda: [
        *(GradientAccumulationCB(2), GradientClippingCB(0.5), MixedPrecisionCB(), EMACB(0.5)),
        ScheduleCB("lr", cosine),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_a_run_of_two_fits_is_resumed_bit_for_bit_from_each_place(tmp_path, name):
    def run(saver, seed, resume=None):
        learn = learner(MetricsCB(), saver, model=net(0.3), seed=seed)
        unfreeze = GradualUnfreezeCB({1: "body", 2: None}, lr_div=2.6)
        learn.fit(3, cbs=[unfreeze, *BESIDE[name]()], resume=resume)
        learn.fit(1, resume=None if resume is None else True)
        return learn

    straight = run(every_rest(tmp_path / "all"), 1)
    assert lrs_of(straight) == [0.1] * 5
    expected = state_of(straight, "CheckpointCB")
    paths = checkpoints_in(tmp_path / "all")
    assert len(paths) > 8
    for i, path in dealt(list(enumerate(paths))):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / "run.json").write_bytes((tmp_path / "all" / "run.json").read_bytes())
        resumed = run(CheckpointCB(folder, every_epochs=9), 50 + i, True)
        assert first_difference(expected, state_of(resumed, "CheckpointCB")) == "", path.name


@pytest.mark.slow
def test_it_verifies():
    assert "bit for bit" in noisy_learner(GradualUnfreezeCB({1: None})).verify_resume()


def test_lr_find_trains_the_head_and_leaves_everything_as_it_was():
    learn = learner(GradualUnfreezeCB({9: None}, lr_div=2))
    before = tensors_of(learn.model)
    seen = []
    learn.add_cb(at("before_step", lambda x: seen.append(trained_parts(x))))
    assert len(learn.lr_find(n_steps=12).losses) >= 11
    assert seen[-1] == HEAD
    assert trained_parts(learn) == ALL
    after = tensors_of(learn.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cb", "kwargs", "message"),
    [
        (GradualUnfreezeCB({3: None}), {}, "epoch 3 is never reached ... 3"),
        (GradualUnfreezeCB({1: "boddy"}), {}, "'boddy' ... did you mean 'body'"),
        (GradualUnfreezeCB(), {"model": nn.Sequential(nn.Linear(3, 2))}, "last child ... has 1"),
        (GradualUnfreezeCB(lr_div=2), {"param_groups": None}, "lr_div=2 ... 1 group ... by_layer"),
    ],
)
def test_what_cannot_be_is_refused_before_training(cb, kwargs, message):
    learn = learner(cb, at("before_batch", fail_at(0)), **kwargs)
    with pytest.raises(ValueError, match=mentions(message)):
        learn.fit(3)


@pytest.mark.parametrize(
    "epochs",
    [{}, {0: "body"}, {1: []}, {1: 3}, {1: ["body", None]}, {"1": "body"}, {1: int}, [1]],
)
def test_tables_are_checked(epochs):
    with pytest.raises(ValueError, match=r"^GradualUnfreezeCB\(epochs=.*expected"):
        GradualUnfreezeCB(epochs)


def test_two_are_refused():
    with pytest.raises(ValueError, match="expected one of them"):
        learner(GradualUnfreezeCB(), GradualUnfreezeCB({1: "body"}))


def test_lrs_by_depth_are_refused_for_an_optimizer_of_parts():
    learn = learner(GradualUnfreezeCB(lr_div=2), opt_func=Combined((is_matrix, SGD), SGD))
    with pytest.raises(ValueError, match=mentions("lr_div=2 ... Combined")):
        learn.fit()
