"""What layers get: BatchNorm and batches of one sample, and inputs of another dtype than the weights."""

import pickle
from copy import deepcopy

import pytest
import torch
from toolbox import NoLength, at, conv_net, drawn, mentions, norm_net
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from minilearn import (
    EMACB,
    BatchSizeCB,
    DataLoaders,
    DatasetLoader,
    Learner,
    MixedPrecisionCB,
    TensorLoader,
)

X = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
DATA = TensorDataset(X, Y)


def batches(*sizes):
    return [(x, y) for x, y in zip(X.split(list(sizes)), Y.split(list(sizes)), strict=True)]


def learner_of(train, model=None, valid=None, **kwargs):
    return Learner(drawn(model or norm_net()), DataLoaders(train, valid), default_cbs=False, **kwargs)


def assert_refused(learn, said):
    with pytest.raises(ValueError, match=mentions(said)):
        learn.fit()
    assert learn.n_steps == 0
    assert not any(m._forward_pre_hooks for m in learn.model.modules())


# BatchNorm and batches of one sample --------------------------------------------------------------

ONES = {
    "TensorLoader": lambda: TensorLoader(X, Y, bs=16),
    "TensorLoader that shuffles": lambda: TensorLoader(X, Y, bs=4, shuffle=True),
    "DatasetLoader": lambda: DatasetLoader(DATA, bs=16),
    "DataLoader": lambda: DataLoader(DATA, 16),
    "DataLoader that shuffles": lambda: DataLoader(DATA, 8, shuffle=True),
    "DataLoader with a BatchSampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, False)
    ),
    "list": lambda: batches(16, 16, 1),
    "list with it in the middle": lambda: batches(16, 1, 16),
    "tuple": lambda: tuple(batches(32, 1)),
    "batches of one": lambda: TensorLoader(X, Y, bs=1),
}


class ByImage(nn.Sequential):
    """A net of images of 6 x 6 pixels, all of one value."""

    def forward(self, x):
        return super().forward(x[:, :, None, None].expand(-1, -1, 6, 6))


def one_value(*layers):
    return ByImage(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), *layers, nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("make", ONES.values(), ids=ONES)
def test_a_batch_of_one_for_a_batchnorm_is_refused_before_the_first_step(make):
    assert_refused(learner_of(make()), "one sample ... 1, a BatchNorm1d ... drop_last=True")


def test_the_loaders_name_and_the_layers_are_said():
    assert_refused(learner_of(batches(32, 1)), "train loader, a list ... BatchNorm1d")
    assert_refused(learner_of(DataLoader(DATA, 16)), "train loader, a DataLoader ... BatchNorm1d")


@pytest.mark.parametrize(
    "model",
    [
        lambda: one_value(nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (4, 1)), nn.BatchNorm1d(4), nn.Flatten()),
        lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), nn.Linear(4, 2)),
    ],
    ids=["2d of one pixel", "1d of one position", "lazy", "without statistics", "nested"],
)
def test_each_batchnorm_that_gets_one_value_is_refused(model):
    model = model()
    model(X[:2])  # lazy layers become what they are
    assert_refused(learner_of(TensorLoader(X, Y, bs=16), model), "one sample ... BatchNorm")


class Tokens(nn.Module):
    """A net whose BatchNorm sees several rows of each sample."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(1), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.norm(x.reshape(-1, 1)).view_as(x))


def frozen():
    model = norm_net()
    model[1].eval()
    return model


@pytest.mark.parametrize(
    ("model", "make"),
    [
        (lambda: ByImage(*conv_net()), ONES["TensorLoader"]),
        (lambda: one_value(nn.GroupNorm(1, 4)), ONES["TensorLoader"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), ONES["DataLoader"]),
        (Tokens, ONES["TensorLoader"]),
        (frozen, ONES["list"]),
        (norm_net, lambda: TensorLoader(X, Y, bs=16, drop_last=True)),
        (norm_net, lambda: DataLoader(DATA, 16, drop_last=True)),
        (norm_net, lambda: DatasetLoader(DATA, bs=16, drop_last=True)),
        (norm_net, lambda: TensorLoader(X, Y, bs=11)),
        (norm_net, lambda: batches(31, 2)),
    ],
    ids=[
        *("2d of pixels", "GroupNorm", "LayerNorm", "rows of a sample", "in evaluation mode"),
        *("drop_last", "DataLoader with drop_last", "DatasetLoader with drop_last", "even", "two"),
    ],
)
def test_what_works_with_a_batch_of_one_is_not_refused(model, make):
    learn = learner_of(make(), model())
    learn.fit()
    assert learn.n_steps
    assert not any(m._forward_pre_hooks for m in learn.model.modules())


def test_batches_of_one_in_validation_are_not_refused():
    learn = learner_of(TensorLoader(X[:32], Y[:32], bs=16), valid=TensorLoader(X, Y, bs=16), cbs=[EMACB()])
    learn.fit()
    learn.validate(batches(32, 1))
    assert learn.predict(TensorLoader(X, bs=16)).shape == (33, 2)


def test_batches_of_one_in_validation_are_refused_where_it_measures_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    train = TensorLoader(X[:32], Y[:32], bs=16)
    assert_refused(learner_of(train, model, valid=TensorLoader(X, Y, bs=16)), "valid loader ... one sample")


def test_a_batchnorm_with_a_forward_of_its_own_is_not_refused():
    class Safe(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) if len(x) > 1 else x

    learn = learner_of(TensorLoader(X, Y, bs=16), nn.Sequential(Safe(3), nn.Linear(3, 2)))
    learn.fit()
    assert learn.n_steps == 3


def test_a_batch_size_that_changes_is_looked_at_when_it_does():
    learn = learner_of(TensorLoader(X[:25], Y[:25], bs=5), cbs=[BatchSizeCB({1: 8})])
    with pytest.raises(ValueError, match=mentions("one sample ... drop_last=True")):
        learn.fit(2)
    assert learn.n_steps == 5  # those of the first epoch


def test_unknown_sizes_are_left_to_torch():
    learn = learner_of(NoLength(batches(32, 1)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        learn.fit()


def test_sizes_of_batches_are_known_without_reading():
    class Unread(TensorDataset):
        def __getitem__(self, i):
            raise AssertionError

    for loader in (DataLoader(Unread(X, Y), 16, shuffle=True), DatasetLoader(Unread(X, Y), bs=16)):
        assert DataLoaders(loader).adapters["train"].smallest() == 1
    drop = DataLoader(Unread(X, Y), 16, drop_last=True)
    assert DataLoaders(drop).adapters["train"].smallest() == 16
    assert DataLoaders(DataLoader(Unread(X, Y), 11)).adapters["train"].smallest() == 11
    assert DataLoaders(NoLength(batches(33))).adapters["train"].smallest() is None


@pytest.mark.parametrize("n", [2, 4])
def test_shares_of_several_processes_are_looked_at(n):
    whole = DataLoaders(TensorLoader(X[:32], Y[:32], bs=n)).adapters["train"]
    sharded = whole.shard(0, n)
    assert DataLoaders(sharded).adapters["train"].smallest() == 1


# Inputs of another dtype --------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, layer=None):
        super().__init__()
        self.words, self.head = layer or nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.words(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def images(dtype):
    return (X[:32, :, None, None] * 10).expand(-1, -1, 6, 6).to(dtype)


LINEAR = "0, a Linear"
SEQUENCES = X[:32].double().view(8, 4, 3)
DTYPES = {
    "float64": (X.double(), lambda: nn.Linear(3, 2), "the model, a Linear ... float64 ... x.float()"),
    "float64 for a layer": (X.double(), norm_net, f"{LINEAR} ... float64 ... float32 ... x.float()"),
    "float16": (X.half(), norm_net, f"{LINEAR} ... float16 ... x.float()"),
    "numbers": (X.long(), norm_net, f"{LINEAR} ... int64 ... x.float()"),
    "bools": (X > 0, norm_net, f"{LINEAR} ... bool ... x.float()"),
    "images of bytes": (images(torch.uint8), conv_net, "0, a Conv2d ... uint8 ... float32 ... x.float()"),
    "images of float64": (images(torch.float64), conv_net, "0, a Conv2d ... float64 ... x.float()"),
    "float32 for float64": (X, lambda: norm_net().double(), f"{LINEAR} ... float32 ... x.to(torch.float64)"),
    "float32 for bfloat16": (
        X,
        lambda: norm_net().bfloat16(),
        f"{LINEAR} ... float32 ... x.to(torch.bfloat16) ... MixedPrecisionCB",
    ),
    "sequences of float64": (SEQUENCES, Recurrent, "gru, a GRU ... float64 ... x.float()"),
    "words as floats": ((X > 0).float(), Words, "words, an embedding ... float32 ... x.long()"),
    "words as bytes": ((X > 0).byte(), lambda: Words(nn.Embedding(5, 3)), "words ... uint8 ... x.long()"),
}


@pytest.mark.parametrize("case", DTYPES)
def test_inputs_of_another_dtype_are_refused_with_what_to_write(case):
    x, model, said = DTYPES[case]
    loader = TensorLoader(x, Y[: len(x)], bs=8)
    assert_refused(learner_of(loader, model()), said)
    learn = learner_of(loader, model())
    with pytest.raises(ValueError, match=mentions(said)):
        learn.validate(loader)


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.head(input=self.norm(input=x))


def test_inputs_by_name_are_checked_too():
    assert_refused(learner_of(TensorLoader(X, Y, bs=16), ByName()), "norm, a BatchNorm1d ... drop_last=True")
    learn = learner_of(TensorLoader(X[:32].double(), Y[:32], bs=16), ByName())
    learn.model.norm.double()
    assert_refused(learn, "head, a Linear ... float64 ... x.float()")


class Casts(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize(
    ("x", "model", "cbs"),
    [
        (X.double(), lambda: Casts(3, 2), []),
        (X.double(), lambda: nn.Linear(3, 2).double(), []),
        (X, lambda: nn.Linear(3, 2), [MixedPrecisionCB()]),
        (X.bfloat16(), lambda: nn.Linear(3, 2), [MixedPrecisionCB()]),
        ((X > 0).int(), Words, []),
        ((X > 0).long(), Words, []),
    ],
    ids=["cast in the model", "a model of float64", "autocast", "autocast of bfloat16", "int32", "int64"],
)
def test_inputs_that_work_are_not_refused(x, model, cbs):
    learn = learner_of(TensorLoader(x, Y, bs=8), model(), cbs=cbs)
    learn.fit()
    assert learn.n_steps == 5


def test_hooks_are_gone_after_the_first_batch_and_after_an_error():
    seen = []

    def look(learn):
        seen.append(sum(len(m._forward_pre_hooks) for m in learn.model.modules()))

    def fail(learn):
        raise ZeroDivisionError

    learn = learner_of(TensorLoader(X, Y, bs=11), cbs=[at("before_batch", look)])
    learn.fit(2)
    assert seen == [2, 0, 0, 0, 0, 0]  # of the two Linear layers
    learn = learner_of(TensorLoader(X, Y, bs=11), cbs=[at("after_predict", fail)])
    with pytest.raises(ZeroDivisionError):
        learn.fit()
    look(learn)
    assert seen[-1] == 0


@pytest.mark.parametrize(
    "copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_made_in_the_first_batch_check_nothing(copied):
    copies = []
    copy = at("before_batch", lambda learn: copies.append(copied(learn.model)))
    learner_of(TensorLoader(X[:22], Y[:22], bs=11), cbs=[copy]).fit()
    assert copies[0].double()(X.double()).shape == (33, 2)
    copies[0](X[:2].double())


@pytest.mark.slow
def test_a_compiled_model_is_not_watched():
    seen = []
    model = norm_net()
    model.compile(backend="eager")
    look = at("before_batch", lambda learn: seen.append(any(m._forward_pre_hooks for m in model.modules())))
    learner_of(TensorLoader(X[:22], Y[:22], bs=11), model, cbs=[look]).fit()
    assert seen == [False] * 2
