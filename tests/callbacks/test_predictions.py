import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from toolbox import at, drawn, mentions, samples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from minilearn import DeviceCB, Learner, MixedPrecisionCB, TensorLoader

# Models whose output is an object -----------------------------------------------------------------

Pair = namedtuple("Pair", ["logits", "features"])


class TypedPair(NamedTuple):
    logits: Tensor
    features: Tensor | None = None


class PickyPair(Pair):
    def __new__(cls, *, logits, features):
        return super().__new__(cls, logits, features)


class Output(dict):
    """A dict whose items are attributes too."""

    __getattr__ = dict.__getitem__


class Shared(dict):
    """A dict that is its own __dict__."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Model(OrderedDict):
    """Like the outputs of transformers: a mapping whose items are attributes, of which some are None."""

    def __init__(self, *, logits, features=None):
        super().__init__(logits=logits, features=features)
        self.logits, self.features = logits, features

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *args, **kwargs):
        if hasattr(self, "features"):  # it is made, and theirs refuses this
            raise Exception("update")
        super().update(*args, **kwargs)

    def __reduce__(self):
        return _make_model, (self.logits, self.features)


def _make_model(logits, features):
    return Model(logits=logits, features=features)


@dataclass
class Plain:
    logits: Tensor
    features: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: Tensor
    features: Any = None


@dataclass
class Checked:
    """Its constructor makes a field, and refuses a second call with it."""

    logits: Tensor
    features: Any = dataclasses.field(init=False)

    def __post_init__(self):
        self.features = self.logits * 2


class Items(list):
    """A list with names."""

    logits = property(lambda self: self[0])
    features = property(lambda self: self[1])


class User(UserDict):
    logits = property(lambda self: self["logits"])
    features = property(lambda self: self["features"])


def defaults(logits, features):
    return defaultdict(list, logits=logits, features=features)


KINDS = {
    "namedtuple": Pair,
    "NamedTuple": TypedPair,
    "namedtuple with a constructor of its own": lambda a, b: PickyPair(logits=a, features=b),
    "dict": lambda a, b: {"logits": a, "features": b},
    "subclass of dict": lambda a, b: Output(logits=a, features=b),
    "dict that is its own __dict__": lambda a, b: Shared(logits=a, features=b),
    "like ModelOutput": lambda a, b: Model(logits=a, features=b),
    "OrderedDict": lambda a, b: OrderedDict(logits=a, features=b),
    "defaultdict": defaults,
    "UserDict": lambda a, b: User(logits=a, features=b),
    "dataclass": Plain,
    "frozen dataclass": Frozen,
    "dataclass that makes a field": lambda a, b: Checked(a),
    "SimpleNamespace": lambda a, b: SimpleNamespace(logits=a, features=b),
    "subclass of list": lambda a, b: Items([a, b]),
    "nested": lambda a, b: Plain(a, {"features": Pair(a, (b,))}),
    "with None": lambda a, b: Frozen(a, None),
    "with a name": lambda a, b: Plain(a, "classes"),
}


class Net(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.head = drawn(nn.Linear(3, 2))
        self.make = make

    def forward(self, x):
        return self.make(self.head(x), x * 2)


def logits_of(out):
    return out["logits"] if type(out) in (dict, OrderedDict, defaultdict) else out.logits


def leaves(value):
    """Return the classes and the leaves of an output, for comparisons."""
    if isinstance(value, Tensor):
        return value
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, SimpleNamespace):
        parts = vars(value)
    elif hasattr(value, "keys"):
        parts = dict(value)
    elif isinstance(value, tuple | list):
        parts = dict(enumerate(value))
    else:
        return value
    return type(value), {key: leaves(part) for key, part in parts.items()}


def assert_same(a, b):
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b)
    if isinstance(a, tuple):
        assert a[0] is b[0]
        assert a[1].keys() == b[1].keys()
        for key in a[1]:
            assert_same(a[1][key], b[1][key])
    elif not isinstance(a, Tensor):
        assert a == b


def learner_of(make, **kwargs):
    x, y = samples(10)
    loss = kwargs.pop("loss_func", lambda out, target: F.cross_entropy(logits_of(out), target))
    return Learner(Net(make), {"train": TensorLoader(x, y, bs=4)}, loss, **{"default_cbs": False} | kwargs), x


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_predictions_keep_the_class_of_the_models_output(make):
    learn, x = learner_of(make)
    with torch.no_grad():
        expected = learn.model(x)
    got = learn.predict(TensorLoader(x, bs=4))
    assert_same(leaves(got), leaves(expected))
    assert torch.equal(logits_of(got), logits_of(expected))


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_outputs_keep_their_class_under_mixed_precision(make):
    seen = []

    def loss(out, target):
        seen.append(out)
        return F.cross_entropy(logits_of(out), target)

    learn, x = learner_of(make, loss_func=loss, cbs=[MixedPrecisionCB()])
    learn.fit()
    assert type(seen[0]) is type(learn.model(x))
    assert {logits_of(out).dtype for out in seen} == {torch.float32}


def test_attributes_of_a_dicts_subclass_are_kept_under_mixed_precision():
    def make(logits, features):
        out = Output(logits=logits)
        vars(out)["note"] = "kept"
        return out

    notes = []
    learn, _ = learner_of(
        make, cbs=[MixedPrecisionCB(), at("after_loss", lambda learn: notes.append(vars(learn.preds)))]
    )
    learn.fit()
    assert notes == [{"note": "kept"}] * 3


def test_mapping_that_cannot_be_written_to_becomes_a_dict():
    learn, x = learner_of(lambda a, b: MappingProxyType({"logits": a}))
    assert type(learn.predict(TensorLoader(x, bs=4))) is dict


def test_one_number_per_batch_gives_one_for_each_batch():
    learn, x = learner_of(lambda a, b: {"logits": a, "aux": a.sum()})
    assert learn.predict(TensorLoader(x, bs=4))["aux"].shape == (3,)


def test_an_item_per_sample_gives_a_list_of_all_samples():
    learn, x = learner_of(lambda a, b: [{"boxes": row[:i]} for i, row in enumerate(a)])
    got = learn.predict(TensorLoader(x, bs=4))
    assert [item["boxes"].shape[0] for item in got] == [0, 1, 2, 2, 0, 1, 2, 2, 0, 1]
    learn, x = learner_of(lambda a, b: [f"text {i}" for i in range(len(a))])
    assert len(learn.predict(TensorLoader(x, bs=4))) == 10


def test_as_many_outputs_as_samples_are_joined_as_outputs():
    learn, x = learner_of(lambda a, b: [a] * len(a))
    assert [t.shape for t in learn.predict(TensorLoader(x[:8], bs=4))] == [(8, 2)] * 4


def test_arrays_are_joined():
    learn, x = learner_of(lambda a, b: a.numpy())
    assert isinstance(got := learn.predict(TensorLoader(x, bs=4)), np.ndarray)
    assert got.shape == (10, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: {"logits": a, "n": len(a)}, r"preds\['n'\].*int"),
        (lambda a, b: {"logits": a} | ({"more": a} if len(a) == 2 else {}), r"preds.*logits.*more"),
        (lambda a, b: a if len(a) == 4 else (a,), r"preds.*Tensor and tuple"),
        (lambda a, b: pack_sequence([*a]), r"preds.*PackedSequence"),
        (lambda a, b: torch.distributions.Normal(a, 1.0), r"preds.*Normal"),
    ],
    ids=["number", "keys", "kinds", "packed", "object"],
)
def test_outputs_that_cannot_be_joined_are_refused(make, message):
    learn, x = learner_of(make)
    with pytest.raises(TypeError, match=message + ".*expected tensors"):
        learn.predict(TensorLoader(x, bs=4))


def test_sequences_of_another_length_in_each_batch_are_refused():
    learn = Learner(nn.Linear(3, 2), {"train": [samples(4)]}, default_cbs=False)
    with pytest.raises(ValueError, match=mentions("preds of shapes (4, 5, 2), (4, 6, 2) ... one length")):
        learn.predict([torch.zeros(4, 5, 3), torch.zeros(4, 6, 3)])


# Batches that are objects -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Plain, Frozen, Pair, SimpleNamespace], ids=lambda c: c.__name__)
def test_batches_keep_their_class_on_the_device(make):
    x, y = samples(4)
    learn, _ = learner_of(Pair, cbs=[DeviceCB("cpu")], unpack=lambda batch: (batch.logits, batch.features))
    learn.dls = {"train": [make(logits=x, features=y)]}
    learn.fit()
    assert learn.n_steps == 1
