import pytest
import torch
import torchvision
from torch import nn

from minilearn import DenseNet, densenet121


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_densenet_121_has_the_sizes_of_torchvision_s_but_for_the_stem():
    theirs = torchvision.models.densenet121(num_classes=10)
    stems = [(m.features.conv0 if hasattr(m, "features") else m.conv1) for m in (theirs, densenet121())]
    # torchvision has a norm behind its stem; here the first layer's does that.
    expected = n_parameters(theirs) - n_parameters(stems[0]) - n_parameters(theirs.features.norm0)
    assert n_parameters(densenet121()) - n_parameters(stems[1]) == expected
    assert n_parameters(densenet121()) == 6_956_298
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in densenet121().modules()) == 121


@pytest.mark.parametrize("size", [4, 9, 32])
def test_shapes(size):
    model = DenseNet((1, 2, 1), 4, n_classes=7, n_channels=1)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_layer_keeps_what_it_is_given():
    model = DenseNet((2,), 4)
    x = torch.randn(2, 8, 5, 5)
    out = model.blocks[0](x)
    assert out.shape == (2, 16, 5, 5)
    assert torch.equal(out[:, 8:], x)


def test_transition_halves_channels_height_and_width():
    model = DenseNet((1, 1), 4)
    assert model.blocks[1](torch.zeros(2, 12, 6, 6)).shape == (2, 6, 3, 3)


@pytest.mark.parametrize("kwargs", [{"depths": ()}, {"depths": (1, 0)}, {"depths": (1,), "growth": 0}])
def test_sizes_are_checked(kwargs):
    with pytest.raises(ValueError, match=r"depths=.*whole numbers >= 1"):
        DenseNet(**kwargs)


def test_gradients_reach_every_parameter():
    model = DenseNet((2, 2), 4)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
