"""What is in a batch: its inputs and target, its samples, and how its tensors are moved."""

from collections import UserDict, namedtuple
from functools import partial
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from toolbox import at, drawn, make_learner, mentions, samples
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from minilearn import Callback, DeviceCB, Learner, MetricsCB, MixupCB
from minilearn.batches import (
    inputs_and_target,
    is_pair,
    is_several,
    map_tensors,
    n_samples,
    parts_in,
    tensors_in,
    to_device,
)
from minilearn.callbacks import device

X, Y = samples(4)
Pair = namedtuple("Pair", "image label")
Triple = namedtuple("Triple", "image mask label")
META = torch.device("meta")


class Moved(namedtuple("Moved", "x y")):
    """A namedtuple that can be moved, as some libraries' graphs are."""

    def to(self, device):
        return Moved(self.x.to(device), "moved")


def packed(*lengths):
    return pack_sequence([torch.ones(n, 3) for n in lengths], enforce_sorted=False)


# Inputs and target ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y)], ids=["tuple", "list", "namedtuple"])
def test_a_pair_is_inputs_and_target(batch):
    assert is_pair(batch)
    inputs, target = inputs_and_target(batch)
    assert inputs is X
    assert target is Y


@pytest.mark.parametrize("inputs", [(X, X), [X, X, X], {"a": X}, packed(2, 1), Moved(X, X)])
def test_inputs_of_a_pair_may_be_anything(inputs):
    assert inputs_and_target((inputs, Y))[0] is inputs


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
@pytest.mark.parametrize("name", ["label", "labels", "target", "targets"])
def test_a_mapping_names_its_target(name, kind):
    inputs, target = inputs_and_target(kind({"ids": X, name: Y, "mask": X}))
    assert target is Y
    assert list(inputs) == ["ids", "mask"]
    assert inputs["ids"] is X


def test_a_mapping_without_these_names_is_inputs():
    inputs, target = inputs_and_target({"ids": X, "y": Y})
    assert list(inputs) == ["ids", "y"]
    assert target is None


@pytest.mark.parametrize("is_strict", [True, False])
def test_a_mapping_of_two_targets_is_refused(is_strict):
    with pytest.raises(ValueError, match=mentions("dict ... 'label' and 'targets' ... unpack=")):
        inputs_and_target({"label": Y, "x": X, "targets": Y}, is_strict)


@pytest.mark.parametrize("batch", [(X,), [X], X, packed(2, 1), Moved(X, Y), SimpleNamespace(x=X)])
def test_one_thing_is_inputs_without_a_target(batch):
    inputs, target = inputs_and_target(batch)
    assert inputs is (batch[0] if type(batch) in (tuple, list) else batch)
    assert target is None


@pytest.mark.parametrize("batch", [(X, X, Y), [X, X, Y], Triple(X, X, Y), (X,) * 5, ()])
def test_three_and_more_are_refused(batch):
    with pytest.raises(ValueError, match=mentions(f"{type(batch).__name__} of {len(batch)} ... unpack=")):
        inputs_and_target(batch)
    if batch:
        assert inputs_and_target(batch, is_strict=False) == (batch[0], None)


def test_several_inputs_are_a_tuple_or_a_list():
    assert [is_several(x) for x in ((X, X), [X], Pair(X, Y))] == [True] * 3
    assert [is_several(x) for x in (X, {"a": X}, packed(2), Moved(X, Y))] == [False] * 4


# Samples ----------------------------------------------------------------------------------------------


N_SAMPLES = {
    "tensor": (torch.zeros(5, 2), 5),
    "no dimension": (torch.tensor(1.0), 1),
    "array": (np.zeros((3, 2)), 3),
    "packed": (packed(4, 2, 1), 3),
    "tuple": ((torch.zeros(2, 9), torch.zeros(9)), 2),
    "list of tensors": ([torch.zeros(2, 9), torch.zeros(9)], 2),
    "list of what is none": ([{"boxes": torch.zeros(7, 4)}, {"boxes": torch.zeros(1, 4)}, {}], 3),
    "strings": (["a", "b"], 2),
    "an empty list": ([], 0),
    "dict": ({"name": "a", "x": torch.zeros(6)}, 6),
    "mapping": (UserDict(x=torch.zeros(6)), 6),
    "nested": (("a", {"b": (None, torch.zeros(4))}), 4),
    "graphs": (SimpleNamespace(num_graphs=8), 8),
    "no tensor": ("abc", None),
    "nothing": (None, None),
    "a namedtuple that is moved": (Moved(X, Y), None),
    "an empty dict": ({}, None),
}


@pytest.mark.parametrize("case", N_SAMPLES)
def test_samples(case):
    part, n = N_SAMPLES[case]
    assert n_samples(part) == n


# What is in it ----------------------------------------------------------------------------------------


def test_parts_are_found_however_nested():
    batch = (X, {"a": [Y, "name"], "b": Pair(X, packed(2))}, UserDict(c=3))
    assert [type(part) for part in parts_in(batch)] == [torch.Tensor] * 2 + [str] + [torch.Tensor] * 2 + [int]
    assert [len(t) for t in tensors_in(batch)] == [4, 4, 4, 2]


def test_tensors_are_mapped_in_their_places():
    batch = (X, {"a": [Y, "name"]}, Pair(X, None), UserDict(b=Y), packed(2, 1), Moved(X, Y))
    mapped = map_tensors(lambda t: t + 1, batch)
    assert torch.equal(mapped[0], X + 1)
    assert torch.equal(mapped[1]["a"][0], Y + 1)
    assert mapped[1]["a"][1] == "name"
    assert isinstance(mapped[2], Pair)
    assert torch.equal(mapped[3]["b"], Y + 1)
    assert isinstance(mapped[4], PackedSequence)
    assert torch.equal(mapped[4].data, torch.full((3, 3), 2.0))
    assert torch.equal(mapped[4].batch_sizes, packed(2, 1).batch_sizes)
    assert isinstance(mapped[5], Moved)
    assert torch.equal(mapped[5].y, Y + 1)


def test_batches_are_moved_and_keep_their_form():
    own = SimpleNamespace(to=lambda device: ("own", device))
    batch = (X, [Y], {"a": X}, Pair(X, "name"), UserDict(b=X), packed(2, 1), own, Moved(X, Y))
    moved = to_device(batch, META)
    assert [type(part) for part in moved[:6]] == [torch.Tensor, list, dict, Pair, dict, PackedSequence]
    assert {t.device for t in tensors_in(moved[:6])} == {META}
    assert moved[3].label == "name"
    assert moved[6] == ("own", META)
    assert moved[7].y == "moved"
    assert to_device("text", META) == "text"


def test_a_tensor_that_is_there_is_not_copied():
    assert to_device([X], torch.device("cpu"))[0] is X


# xb and yb --------------------------------------------------------------------------------------------


def learner(batches, *cbs, loss=F.cross_entropy, model=None, cls=Learner, **kwargs):
    batches = batches if isinstance(batches, list) else [batches]
    model = model or drawn(nn.Linear(3, 2))
    return cls(model, {"train": batches, "eval": batches}, loss, cbs=cbs, default_cbs=False, **kwargs)


@pytest.mark.parametrize("event", ["before_batch", "before_forward", "after_predict", "after_batch"])
def test_inputs_and_target_can_be_read_at_each_event(event):
    seen = []
    learner((X, Y), at(event, lambda x: seen.append((x.xb, x.yb)))).fit(valid=False)
    assert seen[0][0] is X
    assert seen[0][1] is Y


@pytest.mark.parametrize("kind", [tuple, list, Pair._make])
@pytest.mark.parametrize("order", [-150, 0])  # before DeviceCB and after it
def test_what_a_hook_sets_is_in_a_pair_too(kind, order):
    def change(learn):
        learn.xb = learn.xb + 1
        learn.yb = 1 - learn.yb

    def look(learn):
        seen.append((learn.xb, learn.yb, learn.batch))

    seen, batch = [], kind((X, Y))
    learn = learner([batch], at("before_batch", change, order), DeviceCB("cpu"), at("after_predict", look))
    learn.fit(valid=False)
    for inputs, target in (seen[0][:2], seen[0][2]):
        assert torch.equal(inputs, X + 1)
        assert torch.equal(target, 1 - Y)
    assert type(seen[0][2]) is type(batch)
    assert batch[0] is X  # the loader's own stays as it was


def test_what_a_hook_sets_stays_until_the_batch_is_assigned():
    seen = []

    def change(learn):
        learn.xb = {"input": learn.xb["input"] + 1}

    def assign(learn):
        seen.append(learn.xb["input"])
        assert torch.equal(learn.batch["input"], X)  # a mapping has no place for it
        learn.batch = learn.batch
        seen.append(learn.xb["input"])

    cbs = [at("before_batch", change), at("after_forward", lambda x: x.again()), at("after_batch", assign)]
    learner({"input": X, "label": Y}, *cbs).fit(valid=False)
    assert torch.equal(seen[0], X + 1)
    assert torch.equal(seen[1], X)


def test_a_batch_that_is_assigned_is_unpacked_again():
    seen = []
    cbs = [
        at("before_batch", lambda x: (x.xb, setattr(x, "batch", (x.xb + 1, x.yb)))),
        at("after_predict", lambda x: seen.append(x.xb)),
    ]
    learner((X, Y), *cbs).fit(valid=False)
    assert torch.equal(seen[0], X + 1)


def test_what_a_hook_puts_into_a_list_in_place_counts():
    seen, batch = [], [X, Y]
    cbs = [
        at("before_batch", lambda x: (x.xb, x.batch.__setitem__(0, X + 1))),
        at("after_predict", lambda x: seen.append(x.xb)),
    ]
    learner([batch], *cbs).fit(valid=False)
    assert torch.equal(seen[0], X + 1)


def test_a_list_that_a_hook_makes_longer_is_no_pair():
    learn = learner([[X, Y]], at("before_batch", lambda x: x.batch.append(Y)))
    with pytest.raises(ValueError, match=mentions("list of 3 ... unpack=")):
        learn.fit(valid=False)


def test_an_owner_of_unpack_that_is_added_in_a_batch_unpacks_it():
    class OneMoreCB(Callback):
        def unpack(self, learn):
            learn.xb, learn.yb = learn.batch[0] + 1, learn.batch[1]

    def add(learn):
        assert torch.equal(learn.xb, X)
        learn.add_cb(OneMoreCB())

    seen = []
    look = at("after_predict", lambda x: seen.append(x.xb))
    learner((X, Y), at("before_batch", add), look).fit(valid=False)
    assert torch.equal(seen[0], X + 1)


def test_a_validation_in_a_batch_leaves_its_inputs():
    def change(learn):
        if learn.training:
            learn.xb = {"input": learn.xb["input"] + 1}

    def look(learn):
        if learn.training:
            learn.validate()
            seen.append(learn.xb["input"])

    seen = []
    learner({"input": X, "label": Y}, at("before_batch", change), at("after_predict", look)).fit(valid=False)
    assert torch.equal(seen[0], X + 1)


def test_the_batch_is_moved(monkeypatch):
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cuda"))  # there is somewhere to move
    seen = []
    learn = learner((X, Y), DeviceCB("cpu"), at("after_predict", lambda x: seen.append(x.batch)))
    monkeypatch.setattr(device, "to_device", lambda batch, device: (batch[0] + 1, batch[1]))
    learn.fit(valid=False)
    assert torch.equal(seen[0][0], X + 1)
    assert seen[0][1] is Y


class OfNames(nn.Linear):
    def forward(self, ids, mask):
        return super().forward(ids * mask)


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
@pytest.mark.parametrize("cbs", [[], [DeviceCB("cpu")]])
def test_a_mapping_gives_the_model_keywords(kind, cbs):
    model = OfNames(3, 2)
    batch = kind({"ids": X, "mask": torch.ones(3), "labels": Y})
    learn = learner([batch], MetricsCB(), *cbs, model=model, lr=0.0)
    learn.fit()
    expected = F.cross_entropy(model(X, torch.ones(3)), Y).item()
    assert learn.history[0]["loss"] == pytest.approx(expected)
    assert learn.predict([kind({"ids": X, "mask": torch.ones(3)})]).shape == (4, 2)
    pair = (kind({"ids": X, "mask": torch.ones(3)}), Y)
    assert learn.validate([pair])["loss"] == pytest.approx(expected)


# Three and more, and unpack= --------------------------------------------------------------------------

unpacked: list = []  # what by_last had


def test_three_are_refused_before_training_and_predicted_by_the_first():
    batches = []
    learn = learner((X, X, Y), at("before_batch", batches.append))
    for run in (learn.fit, learn.validate):
        with pytest.raises(ValueError, match=mentions("tuple of 3 ... unpack=")):
            run()
    assert batches == []
    torch.testing.assert_close(learn.predict([(X, X, Y)]), learn.model(X).detach())


def by_last(batch):
    unpacked.append(batch)
    return batch[0] + batch[1], batch[2]


def test_unpack_says_what_a_batch_is():
    learn = learner((X, X, Y), MetricsCB(), unpack=by_last, lr=0.0)
    learn.fit()
    assert learn.history[0]["loss"] == pytest.approx(F.cross_entropy(learn.model(2 * X), Y).item())
    torch.testing.assert_close(learn.predict([(X, X, Y)]), learn.model(2 * X).detach())


class Subclass(Learner):
    def unpack(self):
        self.xb, self.yb = by_last(self.batch)


class UnpackCB(Callback):
    def unpack(self, learn):
        learn.xb, learn.yb = by_last(learn.batch)


class Fixing(Learner):
    """Change the batch first, and then do as always."""

    def unpack(self):
        self.batch = by_last(self.batch)
        super().unpack()


OWNERS = {
    "function": {"unpack": by_last},
    "callback": {"cbs": [UnpackCB()]},
    "subclass": {"cls": Subclass},
    "subclass that assigns the batch": {"cls": Fixing},
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("event", [None, "before_batch"])
def test_an_owner_unpacks_each_batch_once(owner, event):
    def note(learn):
        seen.append(learn.xb)

    kwargs, seen = dict(OWNERS[owner]), []
    cbs = [*kwargs.pop("cbs", []), *([at(event, note)] if event else []), at("after_forward", note)]
    learn = learner([(X, X, Y)] * 2, *cbs, **kwargs)
    unpacked.clear()
    learn.fit(valid=False)
    assert len(unpacked) == 1 + 2  # one to look at before training
    assert len(seen) == (4 if event else 2)
    for inputs in seen:
        assert torch.equal(inputs, 2 * X)


@pytest.mark.parametrize("owner", ["function", "callback", "subclass"])
def test_what_a_hook_sets_is_not_put_into_a_batch_that_an_owner_unpacks(owner):
    # A pair may be (target, inputs) to it.
    def change(learn):
        learn.xb = learn.xb + 1
        seen.append((learn.xb, learn.batch))

    class Swap(Learner):
        def unpack(self):
            self.yb, self.xb = self.batch

    def swap(learn):
        learn.yb, learn.xb = learn.batch

    kwargs = {"unpack": lambda batch: (batch[1], batch[0])} if owner == "function" else {}
    cbs, seen = [at("unpack", swap)] if owner == "callback" else [], []
    cls = Swap if owner == "subclass" else Learner
    learner((Y, X), *cbs, at("before_batch", change), cls=cls, **kwargs).fit(valid=False)
    assert torch.equal(seen[0][0], X + 1)
    assert seen[0][1][0] is Y
    assert seen[0][1][1] is X


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"cbs": [UnpackCB()]}, "Learner(unpack=...).unpack ... UnpackCB.unpack"),
        ({"cls": Subclass}, "Subclass.unpack ... Subclass(unpack=...).unpack"),
    ],
)
def test_unpack_beside_another_owner_is_an_error(kwargs, names):
    make = partial(learner, (X, X, Y), *kwargs.pop("cbs", []), unpack=by_last, **kwargs)
    with pytest.raises(ValueError, match=mentions(f"unpack has 2 owners ... {names} ... one")):
        make()


def test_unpack_beside_an_owner_that_comes_later_is_an_error_before_training():
    batches = []
    learn = learner((X, X, Y), at("before_batch", batches.append), unpack=by_last)
    for run in (learn.fit, learn.validate):
        with pytest.raises(ValueError, match="UnpackCB"):
            run(cbs=UnpackCB())
    learn.fit(valid=False)
    assert len(batches) == 1


@pytest.mark.parametrize("gives", [None, X, (X,), (X, X, Y), {"a": X, "b": Y}])
def test_unpack_that_gives_something_else_is_refused(gives):
    learn = learner((X, X, Y), unpack=lambda batch: gives)
    with pytest.raises(ValueError, match=mentions(f"{type(gives).__name__} ... (inputs, target)")):
        learn.fit()


def test_an_unpack_that_fails_is_tried_again():
    def failing(batch):
        raise KeyError("label")

    learn = learner((X, Y), unpack=failing)
    learn.batch = (X, Y)
    for _ in range(2):
        with pytest.raises(KeyError):
            _ = learn.xb


# Targets that are missing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "found"), [((X,), "tuple of 1"), (X, "Tensor"), ({"ids": X, "y": Y}, "'ids', 'y'")]
)
def test_a_target_that_is_missing_is_refused_before_training(batch, found):
    batches = []
    learn = learner([batch], at("before_batch", batches.append))
    with pytest.raises(ValueError, match=mentions(f"{found} ... loss_func needs ... unpack=")):
        learn.fit()
    assert batches == []


def test_a_callback_that_needs_a_target_is_named():
    class NeedyCB(Callback):
        needs_target = True

    get_loss = at("get_loss", lambda x: setattr(x, "loss", x.preds.square().mean()))
    with pytest.raises(ValueError, match=mentions("NeedyCB ... needs")):
        learner((X,), get_loss, NeedyCB()).fit()
    learn = learner((X,), get_loss)
    learn.fit()
    assert learn.n_steps == 1


def test_mixing_reads_the_peeked_inputs():
    learn = make_learner(cbs=MixupCB())
    learn.fit()
    assert learn.n_steps == 3
