import math
import random
from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from toolbox import conv_learner, every_rest, mentions, state_of
from torch import nn
from torch.nn import functional as F
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    CheckpointCB,
    CutMixCB,
    DataLoaders,
    GradientAccumulationCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    TensorLoader,
    TestTimeFlipCB,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in

Batch = namedtuple("Batch", "image target")
M = 0.3
ORDER = [1, 0, 2, 3]


@pytest.fixture
def fixed(monkeypatch):
    """Have m = 0.3, and every order swap the first two samples."""
    alphas = []
    monkeypatch.setattr(random, "betavariate", lambda a, b: alphas.append((a, b)) or M)
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.tensor(ORDER[:n]))
    return alphas


def record(at, *names):
    seen = []
    hook = at("after_batch", lambda x: seen.append([x.phase, *(getattr(x, name) for name in names)]))
    return seen, hook


LOSSES = {
    "cross-entropy": F.cross_entropy,
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "partial": partial(F.cross_entropy, label_smoothing=0.2),
    "nll": lambda preds, y: F.nll_loss(preds.log_softmax(1), y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_inputs_and_loss_are_mixed_in_shares_of_m(make_learner, at, fixed, name):
    seen, hook = record(at, "xb", "yb", "preds", "loss")
    learn = make_learner(n_batches=1, n_valid=0, loss_func=LOSSES[name], lr=0.0, cbs=[MixupCB(0.4), hook])
    learn.fit()
    ((_, xb, yb, preds, loss),) = seen
    x, y = learn.dls.train.tensors
    assert fixed == [(0.4, 0.4)]
    torch.testing.assert_close(xb[0], M * x[0] + (1 - M) * x[1])
    torch.testing.assert_close(xb[1], M * x[1] + (1 - M) * x[0])
    torch.testing.assert_close(xb[2:], x[2:])
    assert torch.equal(yb, y)
    expected = M * LOSSES[name](preds, y) + (1 - M) * LOSSES[name](preds, y[ORDER])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(preds, learn.model(xb))


def test_gradients_are_those_of_the_mixed_loss(make_learner, at, fixed):
    grads = []
    look = at("before_step", lambda learn: grads.append(learn.model.weight.grad.clone()))
    learn = make_learner(n_batches=1, n_valid=0, lr=0.0, cbs=[MixupCB(), look])
    learn.fit()
    x, y = learn.dls.train.tensors
    # Cross-entropy is linear in one-hot targets, so theirs may be mixed too.
    hot = F.one_hot(y, 2).float()
    mixed = [M * t + (1 - M) * t[ORDER] for t in (x, hot)]
    (expected,) = torch.autograd.grad(F.cross_entropy(learn.model(mixed[0]), mixed[1]), learn.model.weight)
    torch.testing.assert_close(grads, [expected])


def test_squared_errors_are_mixed(make_learner, at, fixed):
    seen, hook = record(at, "preds", "loss")
    learn = make_learner(n_batches=1, n_valid=0, regression=True, lr=0.0, cbs=[MixupCB(), hook])
    learn.fit()
    _, y = learn.dls.train.tensors
    ((_, preds, loss),) = seen
    torch.testing.assert_close(loss, M * F.mse_loss(preds, y) + (1 - M) * F.mse_loss(preds, y[ORDER]))


def test_metrics_of_training_compare_with_the_targets_of_the_first_images(make_learner, at, fixed):
    seen, hook = record(at, "preds", "loss")
    learn = make_learner(n_batches=1, n_valid=0, cbs=[MetricsCB(acc=MulticlassAccuracy()), MixupCB(), hook])
    learn.fit()
    _, y = learn.dls.train.tensors
    (row,) = learn.history
    assert row["acc"] == pytest.approx((seen[0][1].argmax(1) == y).float().mean().item())
    assert row["loss"] == pytest.approx(seen[0][2].item())


def test_validation_and_predict_are_not_mixed(make_learner, at):
    seen, hook = record(at, "xb", "loss")
    learn, plain = make_learner(cbs=[MixupCB(), MetricsCB(), hook]), make_learner(cbs=[MetricsCB()])
    assert learn.validate()["loss"] == plain.validate()["loss"]
    assert torch.equal(learn.predict(learn.dls.valid), plain.predict(plain.dls.valid))
    learn.fit()
    assert all(torch.equal(xb, learn.dls.valid.tensors[0]) for phase, xb, _ in seen if phase == "eval")


def test_each_batch_has_a_share_and_an_order_of_its_own(make_learner, at):
    seen, hook = record(at, "xb")
    learn = make_learner(n_batches=3, n_valid=0, cbs=[MixupCB(1.0), hook])
    learn.dls.train = TensorLoader(torch.arange(24.0).reshape(8, 3), torch.zeros(8).long(), bs=8)
    random.seed(0)
    torch.manual_seed(0)
    learn.fit(4)
    offsets = torch.stack([(xb - learn.dls.train.tensors[0])[:, 0] for _, xb in seen])
    assert len(offsets.unique(dim=0)) == 4
    assert (seen[0][1] >= 0).all()
    assert (seen[0][1] <= 23).all()


def test_lists_of_inputs_and_targets_are_batches_too(make_learner, fixed):
    learn = make_learner(cbs=MixupCB())
    learn.dls.train = [[torch.randn(4, 3), torch.tensor([0, 1, 0, 1])]]
    learn.fit()


def test_mixed_run_is_resumed_bit_for_bit(make_learner):
    assert "bit for bit" in make_learner(n_batches=4, cbs=MixupCB()).verify_resume(2)


def test_loss_in_bfloat16_is_mixed_in_float32(make_learner, at, fixed):
    seen, hook = record(at, "preds", "loss")
    learn = make_learner(n_batches=1, n_valid=0, lr=0.0, cbs=[MixedPrecisionCB(), MixupCB(), hook])
    learn.fit()
    _, y = learn.dls.train.tensors
    ((_, preds, loss),) = seen
    expected = M * F.cross_entropy(preds, y) + (1 - M) * F.cross_entropy(preds, y[ORDER])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_lr_find_does_not_mix(make_learner, monkeypatch):
    monkeypatch.setattr(random, "betavariate", None)
    make_learner(n_batches=12, cbs=MixupCB()).lr_find(n_steps=10)


@pytest.mark.parametrize("owner", ["callback", "subclass"])
def test_get_loss_of_someone_else_is_refused_before_training(make_learner, at, owner):
    class Own(Learner):
        def get_loss(self):
            self.loss = self.preds.sum()

    def get_loss(learn):
        learn.loss = learn.preds.sum()

    batches = []
    cbs = [MixupCB(0.5), at("before_batch", batches.append)]
    learn = make_learner(cbs=[*cbs, at("get_loss", get_loss)])
    if owner == "subclass":
        learn = Own(learn.model, learn.dls, cbs=cbs, default_cbs=False)
    with pytest.raises(ValueError, match=r"MixupCB\(0.5\).*loss_func.*get_loss"):
        learn.fit()
    assert batches == []
    learn.fit(train=False)  # where nothing is mixed


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.ones(4, 3).long(), r"torch.int64 of shape \(2, 3\)"),
        ([torch.ones(4, 3), torch.ones(4, 3)], "a list"),
        ({"x": torch.ones(4, 3)}, "a dict"),
    ],
)
def test_inputs_other_than_one_tensor_of_floats_are_refused_before_training(make_learner, at, inputs, found):
    batches = []
    learn = make_learner(cbs=[MixupCB(), at("before_batch", batches.append)], n_valid=0)
    if isinstance(inputs, torch.Tensor):
        learn.dls.train = TensorLoader(inputs, torch.zeros(4).long())
    else:
        learn.dls.train = [(inputs, torch.zeros(4).long())]
    with pytest.raises(TypeError, match=rf"MixupCB\(0.2\).*inputs.*{found}.*tensor.*floats"):
        learn.fit()
    assert batches == []


@pytest.mark.parametrize("alpha", [0, -0.1, math.nan, "0.2", None, True])
def test_alpha_is_a_positive_number(alpha):
    with pytest.raises(ValueError, match=rf"^MixupCB\(alpha={alpha!r}\).*> 0"):
        MixupCB(alpha)


# CutMixCB ---------------------------------------------------------------------------------------------


@pytest.fixture
def cut(monkeypatch):
    """Fix the share and the centre (row, column), and have every order swap the first two samples."""

    def fix(share, *centre):
        left = list(centre)
        monkeypatch.setattr(random, "betavariate", lambda a, b: share)
        monkeypatch.setattr(random, "randrange", lambda size: left.pop(0))
        monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.tensor(ORDER[:n]))

    return fix


def cut_learner(*cbs, size=(6, 8), n_batches=1, **kwargs):
    """Make a learner of images of this size, four in a batch."""
    rng = torch.Generator().manual_seed(0)
    n = 4 * n_batches
    x, y = torch.randn(n, 3, *size, generator=rng), torch.randint(2, (n,), generator=rng)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 2))
    dls = {"train": TensorLoader(x, y, bs=4), "eval": TensorLoader(x, y, bs=4)}
    return Learner(model, dls, cbs=cbs, **{"lr": 0.0, "default_cbs": False} | kwargs)


BOXES = {  # share, centre, and rows and columns of the rectangle by hand, in an image of 6 x 8
    "inside": (0.75, (3, 4), (2, 4), (2, 6)),  # half of sqrt(0.25) of 6 and 8 is 1.5 and 2
    "at the corner": (0.75, (0, 0), (0, 1), (0, 2)),
    "at the other": (0.75, (5, 7), (4, 6), (5, 8)),
    "none": (1.0, (3, 4), (3, 3), (4, 4)),
    "all": (0.0, (3, 4), (0, 6), (0, 8)),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_rectangle_of_another_image_is_pasted(at, cut, name):
    share, centre, (top, bottom), (left, right) = BOXES[name]
    cut(share, *centre)
    seen, hook = record(at, "xb", "yb", "preds", "loss")
    learn = cut_learner(CutMixCB(), hook)
    learn.fit(valid=False)
    ((_, xb, yb, preds, loss),) = seen
    x, y = learn.dls.train.tensors
    expected = x.clone()
    for i, j in ((0, 1), (1, 0)):
        for row in range(top, bottom):
            for column in range(left, right):
                expected[i, :, row, column] = x[j, :, row, column]
    assert torch.equal(xb, expected)
    assert torch.equal(yb, y)
    m = 1 - (bottom - top) * (right - left) / 48
    by_hand = m * F.cross_entropy(preds, y) + (1 - m) * F.cross_entropy(preds, y[ORDER])
    torch.testing.assert_close(loss, by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("size", [(6, 8), (5, 5), (1, 9)])
def test_rectangles_and_shares_are_those_of_torchvision(at, cut, monkeypatch, share, size):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    seen, hook = record(at, "xb")
    for row in range(size[0]):
        for column in range(size[1]):
            cut(share, row, column)
            cb = CutMixCB()
            learn = cut_learner(cb, hook, size=size)
            x, shares = learn.dls.train.tensors[0], []
            learn.add_cb(at("after_loss", lambda learn, cb=cb, shares=shares: shares.append(cb._share)))
            learn.fit(valid=False)
            theirs = transforms.CutMix(num_classes=2)
            centre = iter([torch.tensor([column]), torch.tensor([row])])
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randint", lambda *args, centre=centre, **kwargs: next(centre))
                patch.setattr(theirs, "_dist", SimpleNamespace(sample=lambda shape: torch.tensor(share)))
                box, lam = (params := theirs.make_params([x]))["box"], params["lam_adjusted"]
            left, top, right, bottom = box
            expected = x.clone()
            expected[..., top:bottom, left:right] = x[ORDER][..., top:bottom, left:right]
            assert torch.equal(seen[-1][1], expected)
            assert shares == [pytest.approx(lam)]


def test_gradients_of_cut_images_are_those_of_mixed_targets(at, cut):
    cut(0.75, 3, 4)
    grads = []
    look = at("before_step", lambda learn: grads.append(learn.model[1].weight.grad.clone()))
    learn = cut_learner(CutMixCB(), look)
    learn.fit(valid=False)
    x, y = learn.dls.train.tensors
    mixed = x.clone()
    mixed[..., 2:4, 2:6] = x[ORDER][..., 2:4, 2:6]
    hot = F.one_hot(y, 2).float()
    loss = F.cross_entropy(learn.model(mixed), hot * 5 / 6 + hot[ORDER] / 6)
    (expected,) = torch.autograd.grad(loss, learn.model[1].weight)
    torch.testing.assert_close(grads, [expected])


def test_the_images_of_the_loader_are_left_as_they_are(cut):
    cut(0.0, 3, 4)
    learn = cut_learner(CutMixCB())
    batch = [t.clone() for t in learn.dls.train.tensors]
    kept = batch[0].clone()
    learn.dls.train = [batch]
    learn.fit(valid=False)
    assert torch.equal(batch[0], kept)


def test_areas_are_uniform_with_alpha_1_and_the_share_is_that_of_the_pixels():
    shares = []

    class Count(CutMixCB):
        def mixed(self, xb, order, share):
            mixed, m = super().mixed(xb, order, share)
            assert (mixed == xb).float().mean().item() >= m - 1e-6
            shares.append(m)
            return mixed, m

    random.seed(0)
    torch.manual_seed(0)
    learn = cut_learner(Count(), size=(16, 16), n_batches=25)
    learn.fit(8, valid=False)
    assert len(shares) == 200
    # In the mean a quarter to a third of the image is cut, as the rectangle lies partly outside of it.
    assert 0.55 < sum(shares) / len(shares) < 0.85
    assert min(shares) < 0.3
    assert max(shares) > 0.97


def test_validation_is_not_cut(at):
    seen, hook = record(at, "xb")
    learn = cut_learner(CutMixCB(), hook)
    learn.fit()
    assert torch.equal(seen[-1][1], learn.dls.valid.tensors[0])
    assert torch.equal(learn.predict(learn.dls.valid), cut_learner().predict(learn.dls.valid))


@pytest.mark.slow
def test_a_run_with_cut_images_is_resumed_bit_for_bit(tmp_path):
    def make(cb, seed=1):
        random.seed(seed)
        more = [MetricsCB(), MixedPrecisionCB(), GradientAccumulationCB(2)]
        return conv_learner(CutMixCB(), *more, cb, seed=seed)

    straight = make(every_rest(tmp_path / "all"))
    straight.fit(2)
    for i, path in enumerate(checkpoints_in(tmp_path / "all")):
        learn = make(CheckpointCB(tmp_path / str(i), every_epochs=9), seed=50 + i)
        learn.fit(2, resume=path)
        assert first_difference(state_of(straight), state_of(learn)) == "", path.name


@pytest.mark.parametrize("cbs", [(MixupCB(), CutMixCB()), (CutMixCB(), CutMixCB()), (MixupCB(), MixupCB())])
def test_two_that_mix_are_refused(cbs):
    with pytest.raises(ValueError, match=mentions("expected one of them ... mixed")):
        cut_learner(*cbs)


@pytest.mark.parametrize("inputs", [torch.ones(4, 3), torch.ones(4, 3, 8), [torch.ones(4, 3, 4, 4)] * 2])
def test_what_is_no_image_cannot_be_cut(inputs):
    learn = cut_learner(CutMixCB())
    learn.dls.train = [(inputs, torch.zeros(4).long())]
    with pytest.raises(TypeError, match=mentions("CutMixCB(1.0) ... images (N, C, H, W)")):
        learn.fit()


def both(preds, target):
    return F.cross_entropy(preds, target[0]) + F.l1_loss(preds.mean((1, 2, 3)), target[1])


PIXELS = torch.zeros(4, 6, 6).long()


@pytest.mark.parametrize(
    ("target", "loss_func", "shape"),
    [
        (PIXELS, F.cross_entropy, (4, 6, 6)),
        (torch.zeros(4, 3, 6, 6), F.l1_loss, (4, 3, 6, 6)),
        ((PIXELS, torch.zeros(4)), both, (4, 6, 6)),
    ],
)
def test_cutting_refuses_targets_that_are_maps_of_the_images(target, loss_func, shape):
    dls = DataLoaders([(torch.zeros(4, 3, 6, 6), target)])
    said = mentions(f"CutMixCB(1.0) ... {shape} ... one target for each image ... MixupCB")
    with pytest.raises(ValueError, match=said):
        Learner(nn.Conv2d(3, 3, 1), dls, loss_func, cbs=CutMixCB()).fit()
    Learner(nn.Conv2d(3, 3, 1), dls, loss_func, cbs=MixupCB()).fit()


def test_several_targets_are_mixed_in_one_order(fixed, at):
    def loss_func(preds, target):
        seen.append(target)
        return both(preds, target)

    seen = []
    target = torch.arange(4 * 36).reshape(4, 6, 6) % 3, torch.arange(4.0)
    dls = DataLoaders([(torch.randn(4, 3, 6, 6), target)])
    losses, hook = record(at, "preds", "loss")
    Learner(nn.Conv2d(3, 3, 1), dls, loss_func, lr=0.0, cbs=[MixupCB(0.4), hook]).fit()
    other = seen[-1]
    assert torch.equal(other[0], target[0][ORDER])
    assert torch.equal(other[1], target[1][ORDER])
    _, preds, loss = losses[0]
    torch.testing.assert_close(loss, M * both(preds, target) + (1 - M) * both(preds, other))


# TestTimeFlipCB ---------------------------------------------------------------------------------------


class Record(nn.Module):
    """A model that sees left from right, and keeps its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seen = nn.Linear(1 * 2 * 3, 2), []

    def forward(self, x):
        self.seen.append(x)
        return self.linear(x.flatten(1))


def of_images(cbs, n=8, n_valid=4, **kwargs):
    x = torch.randn(n + n_valid, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum((1, 2, 3)) > 0).long()
    dls = DataLoaders(TensorLoader(x[:n], y[:n], bs=4), TensorLoader(x[n:], y[n:], bs=4))
    return Learner(Record(), dls, **{"cbs": cbs, "default_cbs": False, "lr": 0.1} | kwargs)


def mean_of_both(learn, xb):
    with torch.no_grad():
        return (learn.model(xb) + learn.model(xb.flip(3))) / 2


def test_predictions_are_the_mean_of_an_image_and_its_mirror_image(at):
    seen, hook = record(at, "preds", "loss", "batch")
    learn = of_images([TestTimeFlipCB(), MetricsCB(acc=MulticlassAccuracy()), hook])
    xb, yb = learn.dls.valid.tensors
    expected = mean_of_both(learn, xb)
    row = learn.validate()
    torch.testing.assert_close(learn.predict(learn.dls.valid), expected)
    _, preds, loss, batch = seen[0]
    torch.testing.assert_close(preds, expected)
    torch.testing.assert_close(loss, F.cross_entropy(expected, yb))
    assert row["acc"] == pytest.approx((expected.argmax(1) == yb).float().mean().item())
    assert torch.equal(batch[0], xb)  # put back


@pytest.mark.parametrize("make", [list, tuple, lambda batch: batch[0]], ids=["list", "tuple", "inputs alone"])
def test_predict_flips_batches_of_any_kind(make):
    learn = of_images(TestTimeFlipCB())
    xb, yb = learn.dls.valid.tensors
    batches = [make((xb[:2], yb[:2])), make((xb[2:], yb[2:]))]
    torch.testing.assert_close(learn.predict(batches), mean_of_both(learn, xb))


def test_batches_that_are_namedtuples_are_flipped():
    learn = of_images(TestTimeFlipCB())
    xb, yb = learn.dls.valid.tensors
    torch.testing.assert_close(learn.predict([Batch(xb, yb)]), mean_of_both(learn, xb))


class Heads(nn.Module):
    """A model that sees left from right, and gives what `make` makes of a map (N, 2, H, W)."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.make = nn.Conv2d(1, 2, 3, padding=1), make

    def forward(self, x):
        return self.make(self.conv(x))


MAPS = {
    "map": lambda x: x,
    "map of one channel": lambda x: x[:, 0],
    "smaller map": lambda x: x[..., ::2],
    "tuple": lambda x: (x, x[:, 0], x.mean((2, 3))),
    "dict": lambda x: {"map": x, "scores": x.mean((2, 3))},
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_mirrored_back(name):
    def flipped(part):
        return part.flip(-1) if part.ndim > 2 else part

    learn = Learner(Heads(MAPS[name]), cbs=TestTimeFlipCB())
    xb = torch.randn(4, 1, 2, 3)
    with torch.no_grad():
        plain, other = learn.model(xb), learn.model(xb.flip(3))
    found = learn.predict(xb)
    assert type(found) is type(plain)
    if isinstance(plain, torch.Tensor):
        plain, other, found = [plain], [other], [found]
    for key in plain if isinstance(plain, dict) else range(len(plain)):
        torch.testing.assert_close(found[key], (plain[key] + flipped(other[key])) / 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.argmax(1),
        lambda x: x.mean((2, 3)).argmax(1),
        lambda x: x.flatten(2),
        lambda x: [{"boxes": part.flatten(1), "labels": torch.ones(2).long()} for part in x],
        lambda x: {"map": x, "name": "x"},
    ],
    ids=["classes of pixels", "classes", "sequences", "boxes", "text"],
)
def test_predictions_without_a_mean_are_refused(make):
    learn = Learner(Heads(make), cbs=TestTimeFlipCB())
    with pytest.raises(TypeError, match=mentions("TestTimeFlipCB() ... predictions ... maps of the image")):
        learn.predict(torch.randn(4, 1, 2, 3))


def test_predictions_in_float64_stay_so():
    learn = of_images(TestTimeFlipCB())
    learn.model.double()
    xb, yb = learn.dls.valid.tensors
    preds = learn.predict([(xb.double(), yb)])
    assert preds.dtype == torch.float64


def test_training_is_untouched():
    learn, plain = of_images(TestTimeFlipCB()), of_images([])
    learn.fit(2)
    plain.fit(2)
    assert len(plain.model.seen) == 2 * (2 + 1)
    assert len(learn.model.seen) == 2 * (2 + 2)
    assert torch.equal(learn.model.linear.weight, plain.model.linear.weight)


def test_batch_is_put_back_when_the_model_fails(at):
    def predict(learn):
        seen.append(learn.xb)
        if len(seen) == 2:
            raise ZeroDivisionError
        learn.preds = learn.model(learn.xb)

    seen, left = [], []
    learn = of_images(
        [TestTimeFlipCB(), at("predict", predict), at("cleanup_batch", lambda x: left.append(x.xb))]
    )
    with pytest.raises(ZeroDivisionError):
        learn.fit(train=False)
    assert left[0] is seen[0]
    assert torch.equal(seen[1], seen[0].flip(3))


def test_mean_is_of_float32_in_mixed_precision(at):
    learn = of_images([MixedPrecisionCB(), TestTimeFlipCB()])
    xb, _ = learn.dls.valid.tensors
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = (learn.model(xb).float() + learn.model(xb.flip(3)).float()) / 2
    preds = learn.predict(learn.dls.valid)
    assert preds.dtype == torch.float32
    assert torch.equal(preds, expected)


def test_inputs_that_are_no_images_are_refused_before_the_first_batch(make_learner, at):
    batches = []
    learn = make_learner(cbs=[TestTimeFlipCB(), at("before_batch", batches.append)])
    with pytest.raises(TypeError, match=r"inputs.*torch.float32.*shape \(2, 3\).*images \(N, C"):
        learn.fit()
    assert batches == []


def test_lr_find_trains_as_ever(make_learner):
    make_learner(n_batches=12, cbs=TestTimeFlipCB()).lr_find(n_steps=10)  # no images
