from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn import Callback, CompileCB, DataLoaders, Learner, set_seed
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
    biases, others, filters = script.groups(model)
    assert [len(group["params"]) for group in (biases, others, filters)] == [9, 2, 9]
    assert len([p for p in model.parameters() if p.requires_grad]) == 20
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])


def test_block_adds_two_convolutions_to_the_first(script):
    block = script.Block(4, 6)
    x = torch.randn(5, 4, 8, 8)
    for p in block.others.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(block(x), F.silu(block.halving(x)))
    assert block(x).shape == (5, 6, 4, 4)


def test_orthogonalized_has_the_matrixs_directions_and_singular_values_near_1(script):
    u, _, v = torch.linalg.svd(torch.randn(8, 40), full_matrices=False)
    matrix = u * torch.linspace(2, 0.2, 8) @ v
    found = script.orthogonalized(matrix).float()
    values = u.T @ found @ v.T  # diagonal, for each singular value moves on its own
    assert ((values.diagonal() > 0.5) & (values.diagonal() < 1.3)).all()
    assert (values - values.diagonal().diag()).abs().max() < 0.05  # of bfloat16
    assert torch.equal(found, script.orthogonalized(1024 * matrix).float())  # a power of 2: no rounding


def test_muon_is_its_equation(script):
    p = nn.Parameter(torch.randn(4, 2, 3, 3))
    opt = script.Muon([{"params": [p], "lr": 0.1, "filter_momentum": 0.6}], lr=1.0)
    average, expected = torch.zeros_like(p), p.detach().clone()
    for _ in range(3):
        p.grad = torch.randn_like(p)
        average = 0.6 * average + p.grad
        ahead = p.grad.add(average, alpha=0.6)  # rounded as there, else bfloat16 may make more of it
        update = script.orthogonalized(ahead.flatten(1)).view(p.shape).float()
        expected = expected * 2 / expected.norm() - 0.1 * update
        opt.step()
    torch.testing.assert_close(p.detach(), expected)


def test_muon_takes_a_closure_and_leaves_what_has_no_gradient(script):
    values, direction = torch.randn(4, 8), torch.randn(4, 8)
    mine, other, frozen = (nn.Parameter(values.clone()) for _ in range(3))
    group = {"lr": 0.1, "filter_momentum": 0.6}
    opt = script.Muon([{"params": [mine, frozen], **group}], lr=1.0)

    def closure():
        loss = (mine * direction).sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == (values * direction).sum().item()
    other.grad = direction.clone()
    script.Muon([{"params": [other], **group}], lr=1.0).step()
    assert torch.equal(mine, other)
    assert torch.equal(frozen, values)


def test_muon_is_sgd_in_other_groups(script):
    mine, torchs = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.85, "nesterov": True, "weight_decay": 0.1}
    opts = [script.Muon([mine], **options), torch.optim.SGD([torchs], **options)]
    for _ in range(3):
        mine.grad = torch.randn(3, 2)
        torchs.grad = mine.grad.clone()
        for opt in opts:
            opt.step()
    assert torch.equal(mine, torchs)


def test_whitening_is_trained_for_some_epochs(script):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    biases = [model[0].bias.item()]

    class Note(Callback):
        def after_epoch(self, learn):
            biases.append(model[0].bias.item())

    dls = DataLoaders([(torch.ones(2, 1), torch.ones(2, 1))])
    Learner(model, dls, nn.MSELoss(), cbs=[script.FreezeCB("0", 2), Note()]).fit(4)
    assert len(set(biases[:3])) == 3
    assert len(set(biases[2:])) == 1


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


@pytest.mark.full
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


def test_committed_result_is_92_percent_on_two_cores_in_under_40_minutes(example):
    result = example("tables").result("cifar10_speedrun")
    assert result["accuracy"]["mean"] >= 0.92
    assert max(result["time_s"]) < 40 * 60
    assert (result["n"], result["threads"]) == (3, 2)
