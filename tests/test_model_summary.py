"""learn.summary(): what it says, and that it leaves everything as it was."""

from types import SimpleNamespace

import pytest
import torch
from toolbox import OwnLoss, conv_net, drawn, make_learner, norm_net, samples
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minilearn import (
    Callback,
    DataLoaders,
    DatasetLoader,
    DetectionCB,
    Learner,
    TensorLoader,
    TransformersCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture, position_of


def layer(summary, name):
    (found,) = [layer for layer in summary.layers if layer.name == name]
    return found


def images(n=6):
    return DataLoaders(TensorLoader(torch.randn(n, 3, 6, 6), torch.arange(n) % 2, bs=4))


# What it says ---------------------------------------------------------------------------------------


def test_layers_have_their_outputs_and_parameters():
    summary = Learner(conv_net(), images()).summary()
    conv, norm, relu, last = (layer(summary, name) for name in ("0", "1", "2", "5"))
    assert (conv.kind, conv.output, conv.n_params) == ("Conv2d", "(2, 4, 6, 6)", 3 * 4 * 9)
    assert (norm.kind, norm.n_params, norm.n_calls) == ("BatchNorm2d", 8, 1)
    assert (relu.output, relu.n_params) == ("(2, 4, 6, 6)", 0)
    assert (last.output, last.n_params) == ("(2, 2)", 64 * 2 + 2)
    assert (summary.inputs, summary.outputs) == ("(2, 3, 6, 6)", "(2, 2)")
    assert summary.n_params == summary.n_trainable == 108 + 8 + (4 * 4 * 9 + 4) + 130
    assert summary.param_bytes == summary.grad_bytes == 4 * summary.n_params
    assert summary.buffer_bytes == 2 * 4 * 4 + 8  # two statistics of 4 channels, and an int64


def test_frozen_parts_need_no_gradients():
    learn = Learner(conv_net(), images())
    learn.freeze("0")
    learn.model[5].bias.requires_grad_(False)
    summary = learn.summary()
    assert summary.n_params - summary.n_trainable == 108 + 2
    assert summary.grad_bytes == 4 * summary.n_trainable
    assert layer(summary, "0").texts()[-1] == "no"
    assert layer(summary, "1").texts()[-1] == "yes"
    assert layer(summary, "5").texts()[-1] == "128 of 130"


def test_memory_of_the_optimizer_is_that_of_its_state():
    learn = make_learner(opt_func=torch.optim.Adam)
    assert learn.summary().opt_bytes is None
    assert "optimizer state not made yet" in str(learn.summary())
    learn.fit(1)
    # two moments of 8 numbers, and a count of steps for each of two parameters
    assert learn.summary().opt_bytes == 4 * (2 * 8 + 2)


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    learn = make_learner(model=model)
    summary = learn.summary()
    assert summary.n_params == sum(p.numel() for p in model.parameters()) == 9 + 3 + 3 + 8
    second = layer(summary, "2")
    assert (second.n_params, second.shares) == (3, "0")
    assert second.texts()[3] == "3 + shared: 0"


def test_layer_that_is_called_twice_is_listed_once():
    body = nn.Linear(3, 3)
    summary = make_learner(model=nn.Sequential(body, body, nn.Linear(3, 2))).summary()
    assert layer(summary, "0").n_calls == 2
    assert layer(summary, "0").texts()[2] == "(2, 3) x2"
    assert [layer.name for layer in summary.layers] == ["0", "2"]


def test_layer_whose_weights_another_reads_was_not_called():
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(2, 5, 4)
    summary = Learner(model).summary((x, x, x))
    assert layer(summary, "").output == "[(2, 5, 4), (2, 5, 5)]"
    assert layer(summary, "out_proj").n_calls == 0
    assert "not called" in str(summary)


def test_attributes_of_a_layer_may_be_anything():
    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.kinds, self.by_name = [nn.Linear, Odd], {"a": nn.Linear, ("b", 1): self}
            self.file, self.nested = open(__file__), SimpleNamespace(kind=Odd)  # noqa: SIM115

    model = Odd()
    with model.file:
        assert make_learner(model=model).summary().outputs == "(2, 2)"
        assert model.kinds == [nn.Linear, Odd]
        assert model.by_name["b", 1] is model


def test_own_parameters_of_a_container_have_a_line():
    class Scaled(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(3, 2))
            self.scale = nn.Parameter(torch.ones(2))

    summary = make_learner(model=Scaled()).summary()
    assert [(layer.name, layer.n_params) for layer in summary.layers] == [("", 2), ("0", 8)]


def test_dict_batches():
    class Named(nn.Linear):
        def forward(self, ids, mask):
            return {"logits": super().forward(ids * mask), "mask": mask}

    x, y = samples(8)
    data = [{"ids": a, "mask": torch.ones(3), "labels": b} for a, b in zip(x, y, strict=True)]
    summary = Learner(Named(3, 2), DataLoaders(DatasetLoader(data, 4))).summary()
    assert summary.inputs == "{ids: (2, 3), mask: (2, 3)}"
    assert summary.outputs == "{logits: (2, 2), mask: (2, 3)}"


def test_tuple_inputs():
    model = nn.Bilinear(3, 3, 2)
    x, y = samples(4)
    summary = Learner(model, {"train": [((x, x), y)]}).summary()
    assert (summary.inputs, summary.outputs) == ("[(4, 3), (4, 3)]", "(4, 2)")


def test_unpack_and_the_owner_of_predict_are_used():
    x, y = samples(8)
    dls = DataLoaders(TensorLoader(y, x, bs=4))
    assert Learner(nn.Linear(3, 2), dls, unpack=lambda batch: batch[::-1]).summary().outputs == "(2, 2)"
    dls = DataLoaders(TensorLoader(x, y, bs=4))
    assert Learner(OwnLoss(3, 2), dls, cbs=TransformersCB()).summary().outputs == "(2, 2)"


class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images, targets=None):
        assert not self.training
        return [{"boxes": self.head(image.mean((1, 2)))[None]} for image in images]


def test_detection_models():
    data = [(torch.randn(3, 4, 4), {"boxes": torch.ones(1, 4)}) for _ in range(4)]
    dl = DatasetLoader(data, 2, collate_fn=lambda found: tuple(zip(*found, strict=True)))
    summary = Learner(Boxes(), DataLoaders(dl), cbs=DetectionCB()).summary()
    assert summary.outputs == "[{boxes: (1, 4)}, {boxes: (1, 4)}]"
    assert layer(summary, "head").n_calls == 2


def test_lazy_layers_are_made_in_a_copy():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    learn = make_learner(model=model)
    summary = learn.summary()
    assert (summary.n_params, summary.outputs) == (3 * 4 + 4 + 8 + 10, "(2, 2)")
    assert "lazy" in str(summary)
    assert type(model[0]) is nn.LazyLinear
    assert nn.parameter.is_lazy(model[0].weight)
    learn.fit(1)
    assert type(model[0]) is nn.Linear
    assert "lazy" not in str(learn.summary())


def test_lazy_layers_without_a_batch_have_no_size():
    summary = Learner(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))).summary()
    assert (summary.n_params, layer(summary, "0").is_made) == (10, False)
    assert "not made yet" in str(summary)


def test_model_on_another_device():
    summary = make_learner(model=norm_net().to("meta")).summary()
    assert (summary.device, summary.outputs) == ("meta", "(2, 2)")


def test_without_data_no_output_is_known():
    summary = Learner(nn.Linear(3, 2)).summary()
    assert (summary.n_params, summary.outputs, layer(summary, "").output) == (8, "", "")
    assert "example=" in str(summary)
    assert Learner(nn.Linear(3, 2)).summary(torch.ones(5, 3)).outputs == "(5, 2)"


def test_compiled_and_wrapped_models_are_the_plain_ones():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(3, 2))
    compiled = torch.compile(model, backend=backend)
    learn = make_learner(model=compiled)
    assert [layer.name for layer in learn.summary().layers] == ["0"]
    assert learn.model is compiled
    model.compile(backend=backend)
    kept = model._compiled_call_impl
    assert make_learner(model=model).summary().outputs == "(2, 2)"
    assert model._compiled_call_impl is kept
    assert not calls


def test_table_and_html_say_the_same():
    class Odd(nn.Linear):
        pass

    Odd.__name__ = "<b>&"
    summary = make_learner(model=Odd(3, 2)).summary()
    text, html = str(summary), summary._repr_html_()
    assert repr(summary) == text
    assert text.splitlines()[1].split() == ["layer", "kind", "output", "parameters", "trainable"]
    assert max(map(len, text.splitlines()[:3])) <= 80
    assert "<b>&" in text
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert "8 parameters: 8 trainable, 0 frozen" in html


def test_nothing_is_printed(capsys):
    make_learner().summary()
    assert capsys.readouterr().out == ""


# Errors ---------------------------------------------------------------------------------------------


def test_error_of_the_model_says_what_to_do():
    learn = make_learner(model=nn.Linear(7, 2))
    before = dict(vars(learn.model))
    with pytest.raises(RuntimeError) as caught:
        learn.summary()
    assert "learn.summary(example=...)" in caught.value.__notes__[-1]
    assert vars(learn.model) == before
    assert not learn.model._forward_hooks


def test_in_a_batch_is_an_error(at):
    with pytest.raises(RuntimeError, match=r"summary.*batch"):
        make_learner(cbs=at("after_loss", lambda learn: learn.summary())).fit(1)


# What it leaves as it was ---------------------------------------------------------------------------


class Counting(nn.Module):
    """Change an attribute, a list, a plain tensor and a parameter in each forward."""

    def __init__(self):
        super().__init__()
        self.n, self.seen, self.total = 0, [], torch.zeros(3)
        self.embed = nn.Embedding(4, 3, max_norm=0.5)  # which scales its weights down in place
        self.inner = norm_net(0.5)

    def forward(self, x):
        self.n += 1
        self.seen.append(len(x))
        self.total += x.detach().sum(0)
        return self.inner(x + self.embed(torch.zeros(len(x), dtype=torch.int64)))


def noisy(sample):
    return sample[0] + torch.randn(3), sample[1]


class Noisy(TensorDataset):
    def __getitem__(self, i):
        return noisy(super().__getitem__(i))


LOADERS = {
    "TensorLoader": lambda x, y: TensorLoader(x, y, bs=4, shuffle=True),
    "DatasetLoader": lambda x, y: DatasetLoader(Noisy(x, y), 4, shuffle=True),
    "DataLoader": lambda x, y: DataLoader(Noisy(x, y), 4, shuffle=True),
    "DataLoader with a generator": lambda x, y: DataLoader(
        Noisy(x, y), 4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "batches": lambda x, y: [(x[:4], y[:4]), (x[4:], y[4:])],
}


class NoteCB(Callback):
    """Own predict, and count its calls."""

    def __init__(self):
        self.n = 0

    def predict(self, learn):
        self.n += 1
        learn.preds = learn.model(learn.xb) + 0.01 * torch.rand(1)


def trained(kind, look):
    """Return the whole state after two fits, where `look` is called before, in and after them."""
    set_seed(0)
    x, y = samples(12)
    model = Counting()
    note = NoteCB()
    at_epoch = type("LookCB", (Callback,), {"before_epoch": lambda self, learn: look(learn)})()
    learn = Learner(model, DataLoaders(LOADERS[kind](x, y)), cbs=[note, at_epoch], default_cbs=False)
    look(learn)
    learn.fit(2)
    look(learn)
    learn.fit(1)
    look(learn)
    rng = torch.get_rng_state()
    own = SimpleNamespace(n=model.n, seen=model.seen, total=model.total, calls=note.n)
    return capture(learn, position_of(learn)), rng, vars(own)


@pytest.mark.parametrize("kind", LOADERS)
def test_training_is_bit_for_bit_as_without_it(kind):
    state, rng, own = trained(kind, lambda learn: learn.summary())
    expected, expected_rng, expected_own = trained(kind, lambda learn: None)
    for name in ("model", "opt", "rng", "loaders", "cbs", "fields", "position"):
        assert first_difference(state[name], expected[name]) == ""
    assert torch.equal(rng, expected_rng)
    assert torch.equal(own.pop("total"), expected_own.pop("total"))
    assert own == expected_own


def test_learner_and_modules_are_the_same_objects_as_before():
    learn = make_learner(model=drawn(Counting()), cbs=NoteCB())
    learn.fit(1)
    learn.model.inner.eval()
    learn.model.inner[1].train()
    handle = learn.model.register_forward_hook(lambda module, args, output: None)
    modules = {name: (id(m), m.training, dict(vars(m))) for name, m in learn.model.named_modules()}
    tensors = {
        name: (id(t), t.clone())
        for name, t in [*learn.model.named_parameters(), *learn.model.named_buffers()]
    }
    fields = {name: id(value) for name, value in vars(learn).items()}
    hooks = list(learn.model._forward_hooks)
    learn.summary()
    assert {name: id(value) for name, value in vars(learn).items()} == fields
    for name, module in learn.model.named_modules():
        key, training, attributes = modules[name]
        assert (id(module), module.training) == (key, training)
        assert vars(module).keys() == attributes.keys()
    for name, t in [*learn.model.named_parameters(), *learn.model.named_buffers()]:
        assert id(t) == tensors[name][0]
        assert torch.equal(t, tensors[name][1])
    assert list(learn.model._forward_hooks) == hooks
    handle.remove()
