import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from toolbox import (
    StopCB,
    at,
    every_rest,
    mentions,
    noisy_learner,
    resumed_from_each_rest,
    rng_states,
    samples,
    state_of,
    stop,
    untimed_rows,
)
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from minilearn import Callback, DataLoaders, Learner, MetricsCB, SingleBatchCB, TensorLoader, set_seed
from minilearn.checkpoints.codec import first_difference
from minilearn.data import Adapter, DatasetLoader, ImageLoader, ResumableLoader, adapter_of
from minilearn.data.adapters import KINDS
from minilearn.data.adapters.iterables import StreamAdapter
from minilearn.events import cancel_exception

N, BS = 7, 3  # samples, and how many are in a batch
X = torch.arange(float(N))[:, None]
Y = torch.arange(N)  # a sample's number
SPANS = [(0, 3), (3, 6), (6, 7)]
BATCHES = [(X[a:b], Y[a:b]) for a, b in SPANS]
DATA = TensorDataset(X, Y)


# Loaders of every kind --------------------------------------------------------------------------------


class Drawing:
    """Count its passes, and draw a random number in each and one for each batch."""

    def __init__(self):
        self.n_passes, self.told = 0, []

    def __iter__(self):
        self.n_passes += 1
        return self.give(0)

    def give(self, start):
        torch.rand(())
        for xb, yb in BATCHES[start:]:
            yield xb + 0 * torch.rand(()), yb

    def set_epoch(self, epoch):
        self.told.append((epoch, self.n_passes))


class FromAny:
    """The least that a loader needs to be resumed at any batch."""

    def batches(self, start=0):
        return iter(BATCHES[start:])

    def __iter__(self):
        return self.batches()


class Indexed:
    """An index and a length, but no __iter__; beyond its length it gives nonsense."""

    def __getitem__(self, i):
        return BATCHES[i % 3]

    def __len__(self):
        return 3


class Stateful:
    """An iterable that knows where it stands."""

    def __init__(self):
        self.i = 0

    def __iter__(self):
        while self.i < len(BATCHES):
            self.i += 1
            yield BATCHES[self.i - 1]
        self.i = 0

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, state):
        self.i = state["i"]


class Laps(Stateful):
    """One whose state after a pass is that before the next one."""

    def __iter__(self):
        while True:
            self.i += 1
            yield self.batch(self.i - 1)
            if self.i % 3 == 0:
                return

    def batch(self, i):
        return BATCHES[i % 3]


class OneSource:
    """An iterable over one continuing source, such as a queue."""

    def __init__(self):
        self.source = iter(list(BATCHES))

    def __iter__(self):
        yield from self.source


class Stream(IterableDataset):
    def __iter__(self):
        return iter([*DATA])


class StatefulDataLoader(DataLoader):
    """As torchdata's: torch's DataLoader, which knows where it stands."""

    i = 0

    def __iter__(self):
        for batch in list(super().__iter__())[self.i :]:
            self.i += 1
            yield batch
        self.i = 0

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, state):
        self.i = state["i"]


def tensors(**kwargs):
    return TensorLoader(X, Y, bs=BS, seed=0, **kwargs)


def dataset(**kwargs):
    return DatasetLoader(DATA, bs=BS, seed=0, **kwargs)


def planned():
    return DatasetLoader(DATA, plan=by_spans, seed=0)


def by_spans(epoch, rng):
    return [range(*span) for span in SPANS]


def images(**kwargs):
    return ImageLoader(X.to(torch.uint8)[:, :, None, None], Y, bs=BS, seed=0, **kwargs)


def torchs(**kwargs):
    return DataLoader(DATA, **({"batch_size": BS} | kwargs))


def random_batches():
    return DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), BS, False))


INDEX, STATE, START, ONCE = "any batch", "its state", "the start", "the start, once"


@dataclass
class Kind:
    """What is expected of a kind of loader."""

    make: Callable[[], Any]
    begins: str  # where a pass can begin
    in_order: str = ""  # what predict's refusal mentions; "" if it predicts
    shards: str = ""  # what the refusal to shard mentions; "" if it shards
    n: int | None = 3


ORDER, PROCESSES = "predict ... shuffle", "DatasetLoader"
KINDS_OF = {
    "tensors": Kind(tensors, INDEX),
    "tensors, shuffled": Kind(lambda: tensors(shuffle=True), INDEX),
    "tensors, some dropped": Kind(lambda: tensors(drop_last=True), INDEX, n=2),
    "images, shuffled": Kind(lambda: images(shuffle=True), INDEX),
    "dataset": Kind(dataset, INDEX),
    "dataset, shuffled": Kind(lambda: dataset(shuffle=True, drop_last=True), INDEX, n=2),
    "dataset, sampler": Kind(lambda: dataset(sampler=[4, 1, 0]), INDEX, "DatasetLoader ... sampler", n=1),
    "dataset, plan": Kind(planned, INDEX),
    "from any batch": Kind(FromAny, INDEX, n=None),
    "torch": Kind(torchs, START),
    "torch, samples": Kind(lambda: DataLoader(TensorDataset(X[:, None], Y[:, None]), None), START, n=7),
    "torch, workers": Kind(lambda: torchs(num_workers=1, persistent_workers=True), START),
    "torch, shuffled": Kind(lambda: torchs(shuffle=True), START, ORDER, PROCESSES),
    "torch, some dropped": Kind(lambda: torchs(drop_last=True), START, "drop_last ... 1 of 7", n=2),
    "torch, random batches": Kind(random_batches, START, ORDER, PROCESSES),
    "torch, subset": Kind(
        lambda: torchs(sampler=SubsetRandomSampler(range(7))),
        START,
        "SubsetRandomSampler ... Subset(dataset, indices)",
        "SubsetRandomSampler",
    ),
    "torch, listed batches": Kind(
        lambda: DataLoader(DATA, batch_sampler=[[0, 1, 2], [5, 4], [6]]), START, "predict ... sampler, list"
    ),
    "torch, stream": Kind(lambda: DataLoader(Stream(), BS), START, "", "Stream ... DatasetLoader", None),
    "torch, stream, some dropped": Kind(
        lambda: DataLoader(Stream(), BS, drop_last=True), START, "drop_last", "Stream", None
    ),
    "torch, stateful": Kind(lambda: StatefulDataLoader(DATA, BS), STATE),
    "torch, stateful, shuffled": Kind(
        lambda: StatefulDataLoader(DATA, BS, shuffle=True), STATE, ORDER, PROCESSES
    ),
    "torch, stateful, stream": Kind(lambda: StatefulDataLoader(Stream(), BS), STATE, "", "Stream", None),
    "list": Kind(lambda: list(BATCHES), INDEX),
    "tuple": Kind(lambda: tuple(BATCHES), INDEX),
    "indexed": Kind(Indexed, INDEX),
    "stateful": Kind(Stateful, STATE, "", "Stateful ... DatasetLoader", None),
    "stateful, laps": Kind(Laps, STATE, "", "Laps ... DatasetLoader", None),
    "iterable": Kind(Drawing, START, "", "Drawing ... DatasetLoader", None),
    "one source": Kind(OneSource, ONCE, "", "OneSource ... DatasetLoader", None),
    "generator": Kind(lambda: iter(list(BATCHES)), ONCE, "", "iterator ... DatasetLoader", None),
}
ALL = pytest.mark.parametrize("kind", KINDS_OF.values(), ids=KINDS_OF)


def that(condition):
    chosen = {name: kind for name, kind in KINDS_OF.items() if condition(kind)}
    return pytest.mark.parametrize("kind", chosen.values(), ids=chosen)


def ids(batches):
    return [batch[1].tolist() for batch in batches]


def whole(kind):
    """Return the samples' numbers in each batch of a pass, and leave the random numbers as they were."""
    with torch.random.fork_rng():
        set_seed(5)
        return ids(adapter_of(kind.make()).read())


def test_every_adapter_is_in_the_table():
    made = {type(adapter_of(kind.make())) for kind in KINDS_OF.values()}
    assert made == set(KINDS)


# Length, resuming, state ------------------------------------------------------------------------------


@ALL
def test_number_of_batches_is_that_of_a_pass_or_not_known(kind):
    adapter = adapter_of(kind.make())
    assert adapter.n_batches == kind.n
    assert kind.n in (None, len(list(adapter.read())))


@that(lambda kind: kind.begins == INDEX)
def test_pass_from_each_batch_on_is_the_rest_of_the_whole(kind):
    adapter = adapter_of(kind.make())
    assert adapter.why_not_resumable() == ""
    assert not adapter.moves_on
    for start in range(len(whole(kind)) + 1):
        assert ids(adapter.read(start)) == whole(kind)[start:]


@that(lambda kind: kind.begins == STATE)
def test_pass_from_each_state_on_is_the_rest_of_the_whole(kind):
    for start in range(4):
        set_seed(5)
        adapter, other = adapter_of(kind.make()), adapter_of(kind.make())
        batches = adapter.read()
        begun = ids(next(batches) for _ in range(start))
        other.load_state(adapter.state())
        assert other.moves_on
        assert other.why_not_resumable() == ""
        set_seed(5)
        assert begun + ids(other.read(start)) == whole(kind)
        assert len(ids(other.read())) == 3


@that(lambda kind: kind.begins == STATE)
def test_a_state_that_is_asked_for_leaves_the_pass_and_all_random_numbers(kind):
    set_seed(5)
    adapter, seen = adapter_of(kind.make()), []
    for batch in adapter.read():
        seen.append(batch)
        before = rng_states(), adapter.state()
        assert (rng_states(), adapter.state()) == before
    assert ids(seen) == whole(kind)


@that(lambda kind: kind.begins in (START, ONCE))
def test_pass_that_begins_only_at_its_start_says_what_to_write_instead(kind):
    adapter = adapter_of(kind.make())
    assert "DatasetLoader" in adapter.why_not_resumable()
    assert adapter.state() is None
    with pytest.raises(TypeError, match=mentions("batch 2 ... DatasetLoader")):
        adapter.read(2)


@that(lambda kind: kind.begins != ONCE)
def test_each_pass_has_all_of_the_batches(kind):
    adapter, passes = adapter_of(kind.make()), []
    for _ in range(2):
        set_seed(5)
        passes.append(ids(adapter.read()))
    assert passes == [whole(kind)] * 2


# Peek -------------------------------------------------------------------------------------------------


@ALL
def test_peek_shows_a_batch_and_leaves_the_pass_and_all_random_numbers(kind):
    set_seed(5)
    plain = adapter_of(kind.make())
    seen, after = ids(plain.read()), rng_states()
    set_seed(5)
    adapter, before = adapter_of(kind.make()), rng_states()
    for _ in range(2):
        assert adapter.peek()[1].dtype == torch.int64
        assert rng_states() == before
    assert ids(adapter.read()) == seen
    assert rng_states() == after  # as if nobody had looked


@that(lambda kind: type(adapter_of(kind.make())).opens_to_peek)
def test_peek_shows_the_first_batch_of_the_pass_that_it_opens(kind):
    adapter = adapter_of(kind.make())
    seen = adapter.peek()
    assert next(adapter.read()) is seen


def test_an_iterable_is_begun_once_for_each_pass_after_its_set_epoch():
    loader = Drawing()
    adapter = adapter_of(loader)
    for epoch in (3, 4):
        adapter.peek(epoch)
        adapter.set_epoch(epoch)
        assert ids(adapter.read()) == ids(BATCHES)
    assert (loader.n_passes, loader.told) == (2, [(3, 0), (4, 1)])


def test_a_pass_that_was_opened_for_another_epoch_is_not_read():
    loader = Drawing()
    adapter = adapter_of(loader)
    adapter.peek(3)
    adapter.set_epoch(4)
    list(adapter.read())
    assert (loader.n_passes, loader.told) == (2, [(3, 0), (4, 1)])


def test_random_numbers_that_others_drew_after_a_peek_stay_drawn():
    adapter = adapter_of(Drawing())
    adapter.peek()
    torch.rand(5)
    before = rng_states()
    next(adapter.read())
    assert rng_states() == before


def test_a_stream_s_own_generator_is_as_if_nobody_had_looked():
    generators = []
    for look in (False, True):
        loader = DataLoader(Stream(), BS, generator=torch.Generator().manual_seed(3))
        adapter = adapter_of(loader)
        if look:
            adapter.peek()
            assert torch.equal(loader.generator.get_state(), torch.Generator().manual_seed(3).get_state())
        list(adapter.read())
        generators.append(loader.generator.get_state().tolist())
    assert generators[0] == generators[1]


@pytest.mark.parametrize("make", [list, lambda: iter([]), lambda: DatasetLoader(DATA, sampler=[])])
def test_peek_of_what_is_empty_is_none_and_its_pass_is_empty(make):
    adapter = adapter_of(make())
    assert adapter.peek() is None
    assert list(adapter.read()) == []


def test_a_copy_of_an_adapter_has_no_opened_pass():
    adapter = adapter_of(Drawing())
    adapter.peek()
    copied = deepcopy(adapter)
    assert ids(copied.read()) == ids(adapter.read()) == ids(BATCHES)
    assert (adapter.loader.n_passes, copied.loader.n_passes) == (1, 2)


def test_an_iterator_is_read_once():
    adapter = adapter_of(iter(BATCHES))
    list(adapter.read())
    with pytest.raises(RuntimeError, match=mentions("list_iterator ... once")):
        adapter.read()


class Bad(Dataset):
    """Samples of which the first ones are bad."""

    def __init__(self, n_bad):
        self.n_bad = n_bad

    def __len__(self):
        return N

    def __getitem__(self, i):
        return None if i < self.n_bad else DATA[i]


def good(samples):
    samples = [sample for sample in samples if sample is not None]
    return torch.utils.data.default_collate(samples) if samples else None


@pytest.mark.parametrize("make", [DatasetLoader, DataLoader])
@pytest.mark.parametrize(("n_bad", "seen"), [(0, [0, 1]), (2, [2]), (3, [3, 4]), (N, None)])
def test_peek_looks_for_a_batch_that_is_not_left_out(make, n_bad, seen):
    batch = adapter_of(make(Bad(n_bad), BS, collate_fn=good)).peek()
    assert (None if batch is None else batch[1].tolist()) == seen


# Order ------------------------------------------------------------------------------------------------


@that(lambda kind: not kind.in_order)
def test_in_order_each_sample_comes_once_in_the_order_of_the_data(kind):
    loader = kind.make()
    ordered = adapter_of(adapter_of(loader).in_order()).read()
    assert torch.cat([batch[1].reshape(-1) for batch in ordered]).tolist() == list(range(N))


@that(lambda kind: kind.in_order)
def test_an_order_that_is_not_known_and_samples_left_out_are_refused(kind):
    with pytest.raises(ValueError, match=mentions(kind.in_order)):
        adapter_of(kind.make()).in_order()


def test_in_order_leaves_the_loader_as_it_was():
    loader = tensors(shuffle=True, drop_last=True).part_of(0, 2)
    before = dict(vars(loader))
    adapter_of(loader).in_order()
    assert vars(loader) == before


class Reversed(ResumableLoader):
    def order(self):
        return torch.arange(self.n_samples).flip(0)


class Says:
    """An iterable that says how it gives its samples."""

    def __init__(self, **fields):
        vars(self).update(fields)

    def __iter__(self):
        return iter(BATCHES)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (Reversed(N, BS), "Reversed ... order of its own"),
        (Says(shuffle=True), "Says shuffles"),
        (Says(drop_last=True), "Says ... drop_last"),
        (torchs(num_workers=2, in_order=False), "in_order=False"),
        (torchs(sampler=DistributedSampler(DATA, 2, 0)), "DistributedSampler"),
        (DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, True)), "1 of 7"),
    ],
    ids=["order of its own", "shuffles", "drops", "as ready", "distributed", "dropped by the batch sampler"],
)
def test_what_says_that_its_order_is_another_is_refused(loader, said):
    with pytest.raises(ValueError, match=mentions(f"predict ... {said}")):
        adapter_of(loader).in_order()


def test_drop_last_that_drops_nothing_is_in_order():
    loader = DataLoader(TensorDataset(X[:6], Y[:6]), BS, drop_last=True)
    assert adapter_of(loader).in_order() is loader


# Shards -----------------------------------------------------------------------------------------------


def joined(loader, n):
    """Return the samples' numbers in each batch, joined from n shards, each read as its process would."""
    shards = [adapter_of(adapter_of(loader()).shard(rank, n)) for rank in range(n)]
    read = [[(batch, shard.sizes(i)) for i, batch in enumerate(shard.read())] for shard in shards]
    for batch in zip(*read, strict=True):
        sizes = [size for _, size in batch]
        assert sum(own for own, _ in sizes) == sizes[0][1]
        assert max(own for own, _ in sizes) - min(own for own, _ in sizes) <= 1
        assert all(len(part[1]) for part, _ in batch)  # all have to take part in a step
    return [
        torch.cat([part[1][:own] for part, (own, _) in batch]).tolist() for batch in zip(*read, strict=True)
    ]


@pytest.mark.slow
@that(lambda kind: not kind.shards)
@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.full), 3])
def test_shards_have_each_sample_once(kind, n):
    assert joined(kind.make, n) == whole(kind)


@that(lambda kind: kind.shards)
def test_what_may_give_other_batches_in_each_process_is_not_sharded(kind):
    with pytest.raises(TypeError, match=mentions(kind.shards)):
        adapter_of(kind.make()).shard(0, 2)


def test_batches_that_come_as_they_are_ready_are_not_sharded():
    with pytest.raises(TypeError, match=mentions("DatasetLoader")):
        adapter_of(torchs(num_workers=2, in_order=False)).shard(0, 2)


@that(lambda kind: not kind.shards)
def test_a_shard_is_not_sharded_again(kind):
    once = adapter_of(adapter_of(kind.make()).shard(1, 2))
    set_seed(5)
    first = ids(once.read())
    set_seed(5)
    assert ids(adapter_of(once.shard(1, 2)).read()) == first


@that(lambda kind: not kind.shards)
def test_another_shard_of_a_shard_is_that_of_the_whole(kind):
    once = adapter_of(adapter_of(kind.make()).shard(1, 2))
    other = adapter_of(adapter_of(kind.make()).shard(0, 2))
    assert ids(adapter_of(once.shard(0, 2)).read()) == ids(other.read())


@that(lambda kind: not kind.shards and not kind.in_order)
def test_predictions_of_a_shard_are_those_of_the_whole(kind):
    ordered = adapter_of(adapter_of(adapter_of(kind.make()).shard(1, 2)).in_order()).read()
    assert torch.cat([batch[1].reshape(-1) for batch in ordered]).tolist() == list(range(N))


@that(lambda kind: not kind.shards)
def test_a_shard_is_resumed_as_the_whole_is(kind):
    adapter = adapter_of(kind.make())
    shard = adapter_of(adapter.shard(1, 2))
    assert shard.why_not_resumable() == adapter.why_not_resumable()
    assert shard.moves_on == adapter.moves_on
    assert shard.n_batches == adapter.n_batches
    if kind.begins == INDEX:
        assert ids(shard.read(1)) == ids(shard.read())[1:]


ADVICE = "DatasetLoader ... TensorLoader"


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((X, Y, torch.ones(4)), "(4,) ... 7 targets"),
        ((X, Y, torch.tensor(1.0)), "() ... 7 targets"),
        ((X[:5], Y), "(5, 1) ... 7 targets"),
        (({"x": X, "mask": torch.ones(3)}, Y), "(3,) ... 7 targets"),
        ({"x": X, "labels": Y, "weights": torch.ones(2)}, "(2,) ... 7 targets"),
        ((X, Y.tolist()), "no tensor"),
        ((X, Y, "a name"), "a str"),
        ((torch.nn.utils.rnn.pack_sequence([X[:4], X[:3]]), Y[:2]), "2 targets"),
        ("no tensor", "no tensor"),
    ],
)
def test_batches_are_cut_only_where_each_tensor_has_the_target_s_rows(batch, said):
    with pytest.raises(TypeError, match=mentions(f"cut by rows ... {said} ... {ADVICE}")):
        adapter_of([batch]).shard(0, 2)
    with pytest.raises(TypeError, match=mentions(f"{said} ... {ADVICE}")):
        list(adapter_of([BATCHES[0], batch]).shard(0, 2))


@pytest.mark.parametrize(
    "batch", [(X, Y), [X, Y], {"x": X, "labels": Y}, ((X, {"m": X}), Y), X, (X, Y, None)]
)
def test_batches_are_cut_however_nested(batch):
    parts = [next(iter(adapter_of([batch]).shard(rank, 2))) for rank in range(2)]
    assert [type(part) for part in parts] == [type(batch)] * 2
    assert joined(lambda: [(batch, Y)], 2) == [Y.tolist()]


def test_distributed_sampler_has_its_shard_already():
    data = TensorDataset(X[:6], Y[:6])
    for wrap in (
        lambda sampler: DataLoader(data, BS, sampler=sampler),
        lambda sampler: DataLoader(data, batch_sampler=BatchSampler(sampler, BS, False)),
    ):
        loaders = [wrap(DistributedSampler(data, 2, rank)) for rank in range(2)]
        assert [adapter_of(x).shard(rank, 2) is x for rank, x in enumerate(loaders)] == [True, True]


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (DistributedSampler(range(8), 2, 0), "num_replicas=2, rank=0 ... process 1 of 2"),
        (DistributedSampler(range(8), 4, 1), "num_replicas=4, rank=1 ... process 1 of 2"),
        (DistributedSampler(range(7), 2, 1), "1 of 7 samples twice ... drop_last=True"),
    ],
)
def test_distributed_sampler_that_gives_another_shard_or_a_sample_twice_is_refused(sampler, said):
    with pytest.raises(ValueError, match=mentions(said)):
        adapter_of(DataLoader(range(len(sampler.dataset)), 2, sampler=sampler)).shard(1, 2)


def test_distributed_sampler_that_drops_the_rest_is_taken():
    loader = DataLoader(DATA, 2, sampler=DistributedSampler(DATA, 2, 1, drop_last=True))
    assert adapter_of(loader).shard(1, 2) is loader


def test_dataset_loader_with_a_distributed_sampler_would_be_sharded_twice():
    with pytest.raises(ValueError, match=mentions("DistributedSampler ... without this sampler")):
        adapter_of(dataset(sampler=DistributedSampler(DATA, 2, 0))).shard(0, 2)


def test_a_loader_of_ones_own_may_shard_itself():
    class Own(FromAny):
        def part_of(self, rank, n):
            return [rank, n]

    assert adapter_of(Own()).shard(1, 3) == [1, 3]


# Parts ------------------------------------------------------------------------------------------------


class ByEpoch(SequentialSampler):
    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_samplers_are_told_the_epoch_wherever_they_are():
    sampler, stream = ByEpoch(DATA), Stream()
    stream.set_epoch = Drawing.set_epoch.__get__(told := Drawing())
    for loader in (torchs(sampler=sampler), DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, False))):
        sampler.epoch = -1
        adapter_of(loader).set_epoch(4)
        assert sampler.epoch == 4
    adapter_of(DataLoader(stream)).set_epoch(5)
    assert told.told == [(5, 0)]


@that(lambda kind: kind.begins != ONCE)
def test_head_is_read_while_a_pass_is_under_way_and_leaves_it(kind):
    set_seed(5)
    adapter = adapter_of(kind.make())
    batches = adapter.read()
    first = ids([next(batches)])
    with torch.random.fork_rng():
        assert len(list(adapter.head(2))) == min(2, len(whole(kind)))
    assert first + ids(batches) == whole(kind)


# DataLoaders ------------------------------------------------------------------------------------------


@that(lambda kind: not isinstance(adapter_of(kind.make()), StreamAdapter))  # which are refused
def test_dls_give_the_user_s_own_loader_and_keep_its_adapter(kind):
    loader = kind.make()
    dls = DataLoaders(loader, loader)
    assert dls.train is dls.valid is loader
    assert dls.adapter_of(loader) is dls.adapters["train"] is dls.adapters["valid"]
    assert dls.with_valid([]).adapters["train"] is dls.adapters["train"]


def test_a_loader_that_is_set_gets_an_adapter_and_one_that_is_none_has_none():
    dls = DataLoaders([1], [2])
    dls.train, dls.valid = [3], None
    assert (dls.train, dls.valid, list(dls.adapters)) == ([3], None, ["train"])
    assert list(dls.adapters["train"].read()) == [3]


class Countdown(Adapter):
    """A kind of one's own: a number, from which it counts down."""

    def read(self, start=0):
        return iter(BATCHES[start : self.loader])

    def peek(self, epoch=None):
        return BATCHES[0]

    def why_not_resumable(self):
        return ""


def test_an_adapter_of_ones_own_is_given_in_the_loader_s_place():
    dls = DataLoaders(Countdown(2))
    assert (dls.train, type(dls.adapter_of(dls.train))) == (2, Countdown)
    seen = []
    watch = type("Watch", (Callback,), {"before_batch": lambda self, learn: seen.append(learn.yb.tolist())})
    Learner(torch.nn.Linear(1, N), dls, cbs=watch(), default_cbs=False).fit(2)
    assert seen == ids(BATCHES[:2]) * 2


# In the learner ---------------------------------------------------------------------------------------


class SeenCB(Callback):
    def __init__(self):
        self.seen = {True: [], False: []}

    def before_batch(self, learn):
        self.seen[learn.training].append(learn.yb.tolist())


def learner(dls, *cbs):
    set_seed(0)
    return Learner(torch.nn.Linear(1, N), dls, lr=0.01, cbs=[MetricsCB(), *cbs], default_cbs=False)


def test_a_fit_begins_each_pass_of_an_iterable_once():
    train, valid = Drawing(), Drawing()
    learn = learner(DataLoaders(train, valid), seen := SeenCB())
    learn.fit(2)
    assert (train.n_passes, valid.n_passes) == (2, 2)
    assert train.told == [(0, 0), (1, 1)]
    assert seen.seen[True] == seen.seen[False] == ids(BATCHES) * 2
    learn.validate()
    learn.fit(1)
    assert (train.n_passes, valid.n_passes) == (3, 4)
    assert train.told[2:] == [(2, 2)]


def test_an_iterable_to_validate_on_is_begun_only_when_its_pass_comes(at):
    valid, begun = Drawing(), []
    learn = learner(DataLoaders(BATCHES, valid))
    learn.fit(1, cbs=at("after_train", lambda learn: begun.append(valid.n_passes)))
    assert (begun, valid.n_passes) == ([0], 1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_a_fit_that_validates_on_an_iterable_is_resumed_bit_for_bit(n, tmp_path):
    def made(*cbs):
        return noisy_learner(*cbs, dls=lambda: DataLoaders(tensors(shuffle=True), Drawing()), model=net)

    def net():
        return torch.nn.Sequential(torch.nn.Linear(1, N), torch.nn.Dropout(0.3))

    straight = made(every_rest(tmp_path / "straight"))
    straight.fit(2)
    stop(made(every_rest(tmp_path / "stopped"), StopCB(n)))
    resumed = made(every_rest(tmp_path / "stopped"))
    torch.rand(7)
    resumed.fit(2, resume=True)
    left_out = "CheckpointCB"
    assert first_difference(state_of(straight, left_out), state_of(resumed, left_out)) == ""


class DrawingLaps(Laps):
    def batch(self, i):
        x, y = samples(4, rng=torch.Generator().manual_seed(i))
        return x + torch.rand(()), y


@pytest.mark.slow
@pytest.mark.parametrize("names", [["train"], ["valid"], ["train", "valid"]])
def test_a_fit_on_passes_that_end_by_themselves_is_resumed_bit_for_bit(names, tmp_path):
    def make(*cbs):
        loaders = {name: TensorLoader(*samples(12), bs=4, seed=0) for name in ("train", "valid")}
        dls = DataLoaders(**loaders | {name: DrawingLaps() for name in names})
        return noisy_learner(MetricsCB(), *cbs, dls=dls)

    runs = [*resumed_from_each_rest(make, tmp_path, n_rests=2 * (3 + 3 + 1) + 1)]
    plain = make()
    plain.fit(2)
    assert untimed_rows(plain) == untimed_rows(runs[0][0])  # checkpoints change nothing


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", "train", "epoch", "fit"])
def test_checkpoints_of_a_pass_that_is_cancelled_lose_no_batch_of_a_stream(scope, tmp_path):
    def cancel(learn):
        if learn.training and learn.batch_idx == 1:
            raise cancel_exception(scope)

    seen = []
    for cbs in ([], [every_rest(tmp_path)]):
        dls = DataLoaders(DrawingLaps(), TensorLoader(*samples(8), bs=4, seed=0))
        learn = noisy_learner(*cbs, at("after_loss", cancel), dls=dls)
        learn.fit(2)
        learn.fit(1)
        seen.append((dls.train.i, learn.model[0].weight.tolist()))
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_checkpoints_of_a_fit_in_steps_lose_no_batch_of_a_stream(tmp_path):
    seen = []
    for cbs in ([], [every_rest(tmp_path)]):
        dls = DataLoaders(DrawingLaps(), TensorLoader(*samples(8), bs=4, seed=0))
        learn = noisy_learner(*cbs, dls=dls)
        learn.fit(n_steps=4, epoch_steps=2)
        learn.fit(n_steps=4, epoch_steps=2)
        seen.append((dls.train.i, learn.model[0].weight.tolist()))
    assert seen[0] == seen[1]
    assert seen[0][0] == 8


def test_one_source_loses_no_batch():
    learn = learner(DataLoaders(OneSource(), BATCHES), seen := SeenCB())
    learn.fit(1)
    assert seen.seen[True] == ids(BATCHES)


def test_a_fit_of_an_iterable_draws_the_random_numbers_that_a_plain_loop_draws():
    learn = learner({"train": Drawing()})
    before = torch.get_rng_state()
    learn.fit(2)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    for _ in range(2):
        list(Drawing())
    assert torch.equal(torch.get_rng_state(), after)


def test_a_pass_that_a_failed_fit_opened_is_read_by_the_next_one(at):
    train = OneSource()
    learn = learner({"train": train}, seen := SeenCB())
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=at("before_fit", lambda learn: 1 / 0))
    learn.fit(1)
    assert seen.seen[True] == ids(BATCHES)


def test_single_batch_takes_the_batch_that_was_peeked():
    train = Drawing()
    learner({"train": train}, seen := SeenCB(), SingleBatchCB()).fit(2)
    assert (train.n_passes, seen.seen[True]) == (2, ids(BATCHES[:1]) * 2)


def test_validate_and_predict_take_an_iterator():
    learn = learner({"train": BATCHES})
    assert learn.validate(iter(BATCHES))["loss"] == pytest.approx(learn.validate(BATCHES)["loss"])
    assert torch.equal(learn.predict(batch for batch in BATCHES), learn.predict(BATCHES))


def test_predictions_are_of_all_samples_though_training_drops_some():
    loader = tensors(shuffle=True, drop_last=True)
    learn = learner({"train": loader})
    assert torch.equal(learn.predict(loader), learn.model(X).detach())


class Short(Says):
    def __len__(self):
        return self.n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_length_that_is_wrong_is_warned_of(n):
    learn = learner({"train": Short(n=n)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit(1)
    right = mentions(f"Short ... {n} batches ... 3")
    assert [bool(re.search(right, str(one.message))) for one in said] == [True] * (n != 3)
