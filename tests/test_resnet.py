import pytest
import torch
import torchvision
from torch import nn

from minilearn import ResNet, resnet18, resnet20
from minilearn.models.resnet import StandardizedConv2d


def n_params(model):
    return sum(p.numel() for p in model.parameters())


def images(n=2, size=32, n_channels=3):
    return torch.randn(n, n_channels, size, size, generator=torch.Generator().manual_seed(0))


# 3x3 convolutions without bias, their norms' 2 numbers a channel, and the last layer, for 10 classes.
@pytest.mark.slow
def test_resnet18_has_so_many_parameters():
    assert n_params(resnet18()) == 11_173_962


def test_resnet20_has_so_many_parameters():
    assert n_params(resnet20()) == 272_474


def test_groups_have_as_many_parameters():
    assert n_params(resnet20(norm="group")) == 272_474


def test_resnet20_is_20_layers_deep():
    kinds = [m for m in resnet20().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([m for m in kinds if getattr(m, "kernel_size", 0) != (1, 1)]) == 20


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("size", "n_classes", "n_channels"), [(32, 10, 3), (28, 7, 1), (8, 2, 3), (33, 3, 2)]
)
def test_images_become_one_number_a_class(norm, size, n_classes, n_channels):
    model = resnet20(n_classes, n_channels, norm)
    assert model(images(2, size, n_channels)).shape == (2, n_classes)


def test_each_stage_but_the_first_halves_the_image():
    model, shapes = ResNet((1, 2, 1), (4, 8, 16)), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    model(images(1))
    assert shapes == [(1, 4, 32, 32), (1, 8, 16, 16), (1, 8, 16, 16), (1, 16, 8, 8)]


@pytest.mark.slow
def test_same_weights_give_what_torchvisions_resnet18_gives():
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = resnet18()
    with torch.no_grad():
        # Both list their parameters and statistics in the order of the layers.
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            b.copy_(torch.rand_like(a) + 0.5 if a.ndim == 1 else a)
            a.copy_(b)
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        x = images(2, 8)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.slow
def test_convolutions_start_at_the_scale_of_he():
    for module in resnet18().modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_standardized_weights_have_mean_0_and_standard_deviation_1():
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 5, 3, bias=False)
    with torch.no_grad():
        conv.weight.mul_(7).add_(2)
    # Of an image of one bright pixel the output is the weights, turned around.
    weights = torch.stack([conv(_bright(channel))[0].flip(1, 2) for channel in range(3)], dim=1)
    assert weights.shape == (5, 3, 3, 3)
    assert weights.mean((1, 2, 3)).tolist() == pytest.approx([0] * 5, abs=1e-6)
    assert weights.std((1, 2, 3)).tolist() == pytest.approx([1] * 5, abs=1e-5)


def _bright(channel):
    image = torch.zeros(1, 3, 5, 5)
    image[0, channel, 2, 2] = 1
    return image


def test_standardized_convolution_keeps_bias_stride_and_padding():
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 4, 3, stride=2, padding=1)
    w = conv.weight.detach()
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    expected = nn.functional.conv2d(images(), w, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(images()), expected)


def test_with_groups_an_image_does_not_look_at_others():
    torch.manual_seed(0)
    model, x = resnet20(norm="group"), images(4, 16)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
    kinds = {type(m) for m in model.modules()}
    assert nn.BatchNorm2d not in kinds
    assert nn.Conv2d not in kinds


def test_with_batch_norm_an_image_does():
    torch.manual_seed(0)
    model, x = resnet20(), images(4, 16)
    assert not torch.allclose(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
    assert StandardizedConv2d not in {type(m) for m in model.modules()}


def test_groups_are_32_but_never_of_one_channel():
    model = ResNet((1, 1, 1, 1), (8, 16, 64, 96), norm="group")
    found = {m.num_channels: m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert found == {8: 4, 16: 8, 64: 32, 96: 16}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_all_parameters_get_gradients(norm):
    model = ResNet((1, 1), (4, 8), norm=norm)
    model(images(2, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_norm_is_one_of_two():
    with pytest.raises(ValueError, match=r"^norm='layer'.*'batch'.*'group'"):
        resnet18(norm="layer")


@pytest.mark.parametrize(("depths", "widths"), [((), ()), ((1, 2), (8,)), ((1,), (8, 16))])
def test_each_stage_has_a_depth_and_a_width(depths, widths):
    with pytest.raises(ValueError, match="stage"):
        ResNet(depths, widths)


def test_stem_of_stride_2_halves_height_and_width():
    torch.manual_seed(0)
    small, large = (ResNet((1,), (4,), stem_stride=stride) for stride in (1, 2))
    xb = torch.randn(2, 3, 16, 16)
    assert small.stem(xb).shape == (2, 4, 16, 16)
    assert large.stem(xb).shape == (2, 4, 8, 8)
    assert large(xb).shape == (2, 10)
