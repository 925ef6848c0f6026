import math

import pytest
import torch
from torch import nn

from minilearn import MLP, GeneralReLU, StridedCNN, init_leaky


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [0, 0, 0, 1, 8]),
        ({"leak": 0.1}, [-0.2, -0.1, 0, 1, 8]),
        ({"leak": 0.0}, [0, 0, 0, 1, 8]),
        ({"sub": 0.5}, [-0.5, -0.5, -0.5, 0.5, 7.5]),
        ({"max_value": 6.0}, [0, 0, 0, 1, 6]),
        ({"max_value": 0.0}, [0, 0, 0, 0, 0]),
        ({"leak": 0.1, "sub": 0.5, "max_value": 6.0}, [-0.7, -0.6, -0.5, 0.5, 6]),
        ({"sub": 0.5, "max_value": 7.8}, [-0.5, -0.5, -0.5, 0.5, 7.5]),
    ],
)
def test_general_relu_values(kwargs, expected):
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 8.0])
    torch.testing.assert_close(GeneralReLU(**kwargs)(x), torch.tensor(expected, dtype=torch.float32))


def test_general_relu_leaves_its_input():
    x = torch.tensor([-2.0, 8.0])
    GeneralReLU(leak=0.1, sub=0.5, max_value=6.0)(x)
    assert x.tolist() == [-2, 8]


def test_general_relu_shows_its_settings():
    assert repr(GeneralReLU(0.1, 0.4, 6.0)) == "GeneralReLU(leak=0.1, sub=0.4, max_value=6.0)"


def test_cnn_layers_are_convolution_activation_batchnorm():
    block = [nn.Conv2d, GeneralReLU, nn.BatchNorm2d]
    assert [type(layer) for layer in StridedCNN()] == [*block * 4, nn.Conv2d, nn.Flatten]


def test_cnn_convolutions_are_the_documents():
    convs = [layer for layer in StridedCNN() if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [8, 16, 32, 64, 10]
    assert [conv.kernel_size for conv in convs] == [(5, 5), (3, 3), (3, 3), (3, 3), (3, 3)]
    assert {conv.stride for conv in convs} == {(2, 2)}


def test_cnn_parameter_count():
    convs = (
        (1 * 25 * 8 + 8) + (8 * 9 * 16 + 16) + (16 * 9 * 32 + 32) + (32 * 9 * 64 + 64) + (64 * 9 * 10 + 10)
    )
    norms = 2 * (8 + 16 + 32 + 64)
    assert convs + norms == 30_522
    assert sum(p.numel() for p in StridedCNN().parameters()) == 30_522


@pytest.mark.parametrize("size", range(17, 33))
def test_cnn_gives_one_value_a_class(size):
    assert StridedCNN()(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_cnn_takes_other_channels_and_classes():
    assert StridedCNN(n_classes=3, n_channels=4)(torch.zeros(2, 4, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize("leak", [0.1, 1.0])  # 1.0, since 0.1 moves the standard deviation by only 0.5 %
def test_cnn_weights_follow_kaimings_rule_for_the_leak(leak):
    torch.manual_seed(0)
    for conv in (layer for layer in StridedCNN(leak=leak) if isinstance(layer, nn.Conv2d)):
        fan_in = conv.weight[0].numel()
        expected = math.sqrt(2 / (1 + leak**2) / fan_in)
        # A standard deviation estimated from n normal numbers has a relative error of 1 / sqrt(2 n).
        assert conv.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * conv.weight.numel()))


def test_cnn_activations_have_the_leak():
    assert {layer.leak for layer in StridedCNN(leak=0.3) if isinstance(layer, GeneralReLU)} == {0.3}


def test_init_leaky_leaves_other_layers():
    linear = nn.Linear(4, 4)
    before = linear.weight.clone()
    init_leaky(linear, 0.1)
    assert torch.equal(linear.weight, before)


def test_mlp_has_relu_between_layers_only():
    assert [type(layer) for layer in MLP(8, 4, 4, 2)] == [
        nn.Flatten,
        *[nn.Linear, nn.ReLU] * 2,
        nn.Linear,
    ]


@pytest.mark.parametrize("shape", [(5, 784), (5, 1, 28, 28)])
def test_mlp_flattens_its_inputs(shape):
    assert MLP(784, 32, 10)(torch.zeros(shape)).shape == (5, 10)


def test_mlp_of_two_sizes_is_linear():
    model = MLP(3, 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), x @ model[1].weight.T + model[1].bias)


@pytest.mark.parametrize("sizes", [(), (784,)])
def test_mlp_of_too_few_sizes_is_refused(sizes):
    with pytest.raises(ValueError, match="two sizes"):
        MLP(*sizes)


@pytest.mark.parametrize("model", [MLP(4, 3, 3, 2, norm=True, dropout=0.5), StridedCNN()], ids=["mlp", "cnn"])
def test_a_slice_of_a_model_has_its_layers_and_their_names(model):
    head, tail = model[:3], model[3:]
    assert type(head) is type(tail) is nn.Sequential
    assert [*head, *tail] == list(model)
    assert [name for part in (head, tail) for name, _ in part.named_children()] == [
        name for name, _ in model.named_children()
    ]
    assert model[1] is head[1]


def test_mlp_has_norm_and_dropout_on_hidden_layers_only():
    kinds = [type(layer).__name__ for layer in MLP(4, 3, 2, norm=True, dropout=0.5)]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in MLP(4, 3, 2)] == ["Flatten", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"dropout={dropout}.*0 <= dropout < 1"):
        MLP(4, 3, 2, dropout=dropout)
