import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import MLP, BatchSchedulerCB, Learner, MetricsCB, StridedCNN, set_seed, shapes


def tensors(dls):
    return [*dls.train.tensors, *dls.valid.tensors]


def small(**kwargs):
    return shapes(n_train=300, n_valid=200, **kwargs)


def test_same_seed_draws_bitwise_the_same():
    assert all(torch.equal(a, b) for a, b in zip(tensors(small()), tensors(small()), strict=True))


def test_same_seed_gives_the_same_order():
    assert torch.equal(small(seed=3).train.order(), small(seed=3).train.order())


def test_other_seed_draws_other_images_in_another_order():
    a, b = small(seed=0), small(seed=1)
    assert not any(torch.equal(s, t) for s, t in zip(tensors(a), tensors(b), strict=True))
    assert not torch.equal(a.train.order(), b.train.order())


def test_drawing_leaves_the_global_generator():
    before = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_and_types_of_batches():
    dls = shapes(bs=8, n_train=20, n_valid=10)
    assert [(xb.shape, yb.shape) for xb, yb in dls["eval"]] == [
        ((8, 1, 28, 28), (8,)),
        ((2, 1, 28, 28), (2,)),
    ]
    xb, yb = next(iter(dls["train"]))
    assert (xb.dtype, yb.dtype, len(dls["train"])) == (torch.float32, torch.int64, 3)


def test_all_ten_classes_are_in_both_sets():
    dls = small()
    assert len(dls.classes) == 10
    assert min(dls.train.targets.bincount(minlength=10)) > 0
    assert min(dls.valid.targets.bincount(minlength=10)) > 0
    assert max(*dls.train.targets, *dls.valid.targets) == 9


def test_images_are_normalized():
    xs = torch.cat([small().train.tensors[0], small().valid.tensors[0]])
    assert xs.mean().item() == pytest.approx(0, abs=1e-4)
    assert xs.std().item() == pytest.approx(1, abs=1e-4)


def test_no_image_comes_twice_so_validation_is_new():
    xs = torch.cat([small().train.tensors[0], small().valid.tensors[0]])
    assert len(xs.flatten(1).unique(dim=0)) == 500


def test_images_are_kept_on_the_device():
    assert {t.device.type for t in tensors(small(device="meta"))} == {"meta"}


def eval_accuracy(model, lr):
    dls = shapes(bs=64, n_train=3_000, n_valid=500)
    learn = Learner(model, dls, lr=lr, cbs=[MetricsCB(), BatchSchedulerCB(OneCycleLR)], default_cbs=False)
    learn.fit(3)
    return learn.history[-1]["MulticlassAccuracy"]


@pytest.mark.slow
def test_linear_model_fails_where_the_cnn_learns():
    set_seed(0)
    assert eval_accuracy(MLP(784, 10), lr=1e-2) < 0.4  # measured: 0.27 to 0.31 over three seeds
    assert eval_accuracy(StridedCNN(), lr=5e-2) > 0.5  # 0.60 to 0.65
