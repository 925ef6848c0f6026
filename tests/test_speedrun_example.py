from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn import CompileCB, DataLoaders, Learner, set_seed
from minilearn.data import ImageLoader, Normalize


@pytest.fixture
def script(example):
    return example("cifar10_speedrun")


def test_pooling_is_torchs(script):
    x = torch.randn(2, 3, 7, 6)
    assert torch.equal(script.HalvingMax()(x), F.max_pool2d(x, 2))


def test_whitened_patches_are_uncorrelated_with_variance_1(script):
    images = torch.randn(50, 3, 8, 8).cumsum(2).cumsum(3)  # neighbours are alike
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std()
    out = F.conv2d(images, script.whitening(images, eps=0.0)).transpose(0, 1).flatten(1)  # (24, n)
    torch.testing.assert_close(out[:12] @ out[:12].T / out.shape[1], torch.eye(12), atol=1e-3, rtol=0)
    assert torch.equal(out[12:], -out[:12])


def test_convolutions_begin_as_the_identity(script):
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(script.conv(4, 6)(x)[:, :4], x)


def test_network_has_ten_outputs_and_a_first_layer_that_stays(script):
    model = script.SpeedNet(torch.randn(20, 3, 32, 32), widths=(8, 8, 8))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert not model[0].weight.requires_grad
    biases, others = script.groups(model)
    assert len(biases["params"]) == 6
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(biases["params"]) + len(others["params"]) == len(trained)
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])


def test_triangle_rises_to_1_and_falls(script):
    at = script.triangle(100)
    assert [at(0), at(23), at(100)] == pytest.approx([0.2, 1, 0.07])
    assert all(at(i) < at(i + 1) for i in range(23))
    assert all(at(i) > at(i + 1) for i in range(23, 100))


def test_lookahead_is_its_equation(script):
    class Walk(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.w * x

    dls = DataLoaders([(torch.ones(1), torch.ones(1))] * 7)
    cbs, opt_func = script.LookaheadCB(), torch.optim.SGD
    learn = Learner(Walk(), dls, lambda p, t: -p.mean(), lr=1.0, cbs=cbs, opt_func=opt_func)
    learn.fit(1)  # w rises by 1 at each step
    slow, fast = 0.0, 0.0
    for step in range(1, 8):
        fast += 1
        if step in (5, 7):
            keep = 1.0 if step == 7 else 0.95**5 * (step / 7) ** 3
            slow += (1 - keep) * (fast - slow)
            fast = slow
    assert learn.model.w.item() == pytest.approx(fast)


def test_ten_views_are_weighted_and_moved(script):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.w * x[:, 0, 1, 1:3]  # two pixels

    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    dls = DataLoaders([(x, torch.zeros(1, 2))])
    learn = Learner(First(), dls, nn.MSELoss(), cbs=[script.TenViewsCB()], default_cbs=False)
    said = learn.predict(dls.train)
    padded = F.pad(x, (1,) * 4, mode="reflect")
    moved = [padded[:, :, i : i + 4, j : j + 4] for i in (0, 2) for j in (0, 2)]
    views = [(x, 0.5), *((view, 0.125) for view in moved)]
    views = [pair for view, weight in views for pair in ((view, weight / 2), (view.flip(-1), weight / 2))]
    expected = sum(weight * view[:, 0, 1, 1:3] for view, weight in views)
    torch.testing.assert_close(said, expected)


def test_it_learns(script, monkeypatch):
    monkeypatch.setattr(script, "CompileCB", partial(CompileCB, backend="eager"))  # no compiler is needed
    monkeypatch.setattr(script, "SpeedNet", partial(script.SpeedNet, widths=(8, 8, 8)))
    set_seed(0)
    y = torch.arange(200) % 10
    x = torch.randn(10, 3, 32, 32)[y] * 40 + 128 + 5 * torch.randn(200, 3, 32, 32)
    x = x.clamp(0, 255).to(torch.uint8)
    loader = ImageLoader(x, y, [Normalize((0.5,) * 3, (0.25,) * 3)], bs=50, shuffle=True)
    learn = script.learner(DataLoaders(loader, loader))
    learn.fit(10)
    assert learn.history[-1]["MulticlassAccuracy"] > 0.8


def test_committed_result_is_of_two_cores_and_under_40_minutes(example):
    result = example("tables").result("cifar10_speedrun")
    assert result["accuracy"]["mean"] > 0.915
    assert max(result["time_s"]) < 40 * 60
    assert result["threads"] == 2
