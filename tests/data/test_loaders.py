import inspect
import multiprocessing
import os
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from toolbox import rng_states
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
)

from minilearn import Callback, DataLoaders, DatasetLoader, Learner, TensorLoader, set_seed
from minilearn.data import adapter_of, peek, to_device

TRAIN, VALID, TEST = [("train", 0)], [("valid", 0)], [("test", 0)]


# DataLoaders ------------------------------------------------------------------------------------------


def test_loaders_are_read_as_attributes_and_by_name():
    dls = DataLoaders(TRAIN, VALID, TEST)
    assert dls.train is dls["train"] is TRAIN
    assert dls.valid is dls["eval"] is dls["valid"] is VALID
    assert dls.test is dls["test"] is TEST


def test_valid_and_test_are_none_when_not_given():
    dls = DataLoaders(TRAIN)
    assert (dls.valid, dls.test, dls.classes) == (None, None, None)


def test_classes_are_kept_in_order():
    assert DataLoaders(TRAIN, classes=["shirt", "bag"]).classes == ("shirt", "bag")


def test_unknown_name_lists_the_names():
    with pytest.raises(KeyError, match=r"dls\['vaild'\].*'train'.*'eval'.*'valid'.*'test'"):
        DataLoaders(TRAIN)["vaild"]


@pytest.mark.parametrize("name", ["eval", "valid", "test"])
def test_name_of_a_loader_that_was_not_given_says_so(name):
    with pytest.raises(KeyError, match=rf"dls\['{name}'\]"):
        DataLoaders(TRAIN)[name]


@pytest.mark.parametrize("make", [lambda: DataLoaders(None), lambda: DataLoaders.of({"eval": VALID})])
def test_no_train_is_refused(make):
    with pytest.raises(ValueError, match=r"dls.*train"):
        make()


@pytest.mark.parametrize("name", ["eval", "valid"])
def test_mapping_becomes_dataloaders(name):
    dls = DataLoaders.of({"train": TRAIN, name: VALID, "test": TEST})
    assert (dls.train, dls.valid, dls.test) == (TRAIN, VALID, TEST)


def test_dataloaders_stay_the_same_object():
    dls = DataLoaders(TRAIN)
    assert DataLoaders.of(dls) is dls


def test_object_with_train_and_valid_becomes_dataloaders():
    dls = DataLoaders.of(namedtuple("Dls", "train valid")(TRAIN, VALID))
    assert (dls.train, dls.valid, dls.test) == (TRAIN, VALID, None)


def test_wrong_keys_of_a_mapping_are_named():
    with pytest.raises(ValueError, match=r"dls.*\['trian'\].*keys 'train'"):
        DataLoaders.of({"trian": TRAIN, "eval": VALID})


def test_mapping_with_both_eval_and_valid_is_refused():
    with pytest.raises(ValueError, match=r"eval.*valid"):
        DataLoaders.of({"train": TRAIN, "eval": VALID, "valid": VALID})


def test_what_holds_no_loaders_is_refused():
    with pytest.raises(TypeError, match=r"dls=3.*DataLoaders\(train, valid\).*dict"):
        DataLoaders.of(3)


@pytest.mark.parametrize(
    ("loader", "shown"),
    [
        (torch.zeros(2), r"tensor\(\[0., 0.\]\)"),
        (7, "7"),
        ("batches", "'batches'"),
    ],
)
def test_what_is_no_iterable_of_batches_is_refused(loader, shown):
    with pytest.raises(TypeError, match=rf"dls valid={shown}.*iterable.*batches"):
        DataLoaders(TRAIN, loader)


@pytest.mark.parametrize(
    ("loader", "kind"),
    [(iter(TRAIN), "list_iterator"), ((b for b in TRAIN), "generator"), (zip(TRAIN), "zip")],
)
def test_iterable_that_can_be_read_only_once_is_refused(loader, kind):
    with pytest.raises(TypeError, match=rf"dls train.*{kind}"):
        DataLoaders(loader)


def test_empty_loader_is_named():
    with pytest.raises(ValueError, match=r"valid loader.*0 batches"):
        adapter_of([]).check_not_empty("valid")


def test_loader_emptied_by_drop_last_says_why():
    with pytest.raises(ValueError, match=r"train loader.*drop_last=True"):
        adapter_of(TensorLoader(torch.zeros(3), bs=4, drop_last=True)).check_not_empty("train")


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((2,), float(i)), i) for i in range(3))


@pytest.mark.parametrize(
    ("loader", "n"),
    [
        (TRAIN * 3, 3),
        (TensorLoader(torch.zeros(5), bs=2), 3),
        (DataLoader(Stream()), None),
        (map(id, []), None),
    ],
)
def test_n_batches_is_none_where_a_loader_does_not_know(loader, n):
    assert adapter_of(loader).n_batches == n


# TensorLoader -----------------------------------------------------------------------------------------


def loader(n=10, bs=4, shuffle=True, seed=0, epoch=0, **kwargs):
    made = TensorLoader(torch.randn(n, 3), torch.arange(n), bs=bs, shuffle=shuffle, seed=seed, **kwargs)
    made.set_epoch(epoch)
    return made


def order(**kwargs):
    return torch.cat([yb for _, yb in loader(n=50, **kwargs)]).tolist()


def test_last_batch_is_smaller():
    assert [xb.shape for xb, _ in loader()] == [(4, 3), (4, 3), (2, 3)]
    assert len(loader()) == 3


def test_drop_last_drops_the_smaller_batch():
    batches = list(loader(drop_last=True))
    assert [xb.shape for xb, _ in batches] == [(4, 3), (4, 3)]
    assert len(loader(drop_last=True)) == 2


def test_without_shuffle_the_order_is_that_of_the_tensors():
    made = loader(shuffle=False)
    assert torch.equal(torch.cat([xb for xb, _ in made]), made.tensors[0])
    assert [yb.tolist() for _, yb in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_inputs_and_targets_stay_together_when_shuffled():
    made = loader()
    for xb, yb in made:
        assert torch.equal(xb, made.tensors[0][yb])


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_sample_comes_exactly_once_an_epoch(epoch):
    shuffled = order(epoch=epoch)
    assert shuffled != list(range(50))
    assert sorted(shuffled) == list(range(50))


def test_order_is_the_same_for_the_same_seed_and_epoch():
    assert order(seed=3, epoch=5) == order(seed=3, epoch=5)


def test_order_stays_until_the_epoch_is_set():
    made = loader(n=50)
    assert torch.equal(made.order(), made.order())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"epoch": 0}, {"epoch": 1}),
        ({"seed": 0}, {"seed": 1}),
        ({"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 0}),
        ({"seed": 1, "epoch": 11}, {"seed": 11, "epoch": 1}),
        ({"seed": 5}, {"seed": 5 + 2**32}),
        ({"seed": 5}, {"seed": 5 + 2**64}),
    ],
)
def test_order_differs_by_seed_and_by_epoch(a, b):
    assert order(**a) != order(**b)


def test_order_does_not_depend_on_global_random_numbers():
    torch.manual_seed(1)
    before = order()
    torch.manual_seed(2)
    assert order() == before


def test_shuffling_draws_from_no_global_generator():
    made, before = loader(), rng_states()
    list(made)
    assert rng_states() == before


def test_seed_comes_from_set_seed_by_default():
    set_seed(12)
    assert TensorLoader(torch.zeros(3)).seed == 12


@pytest.mark.parametrize("shuffle", [False, True])
def test_changing_a_batch_in_place_leaves_the_data(shuffle):
    made = loader(shuffle=shuffle)
    before = [t.clone() for t in made.tensors]
    for batch in [*made, made.peek()]:
        for t in batch:
            t.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(made.tensors, before, strict=True))


def test_targets_are_the_last_tensor():
    assert loader(n=4).targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bs", [0, -1, 2.0, "4", None])
def test_bs_that_is_no_count_is_refused(bs):
    with pytest.raises(ValueError, match=rf"bs={bs!r}.*whole number.*>= 1"):
        TensorLoader(torch.zeros(3), bs=bs)


def test_tensors_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        TensorLoader(torch.zeros(3, 2), torch.zeros(2))


@pytest.mark.parametrize("tensors", [(), ([1, 2],), (torch.tensor(1.0),)])
def test_what_has_no_dimension_of_samples_is_refused(tensors):
    with pytest.raises(TypeError, match=r"tensors.*samples"):
        TensorLoader(*tensors)


@pytest.mark.parametrize("shuffle", [True, False])
def test_tensors_are_kept_on_the_device(shuffle):
    made = loader(shuffle=shuffle, device="meta")
    assert {t.device.type for t in made.tensors} == {"meta"}
    assert {t.device.type for batch in made for t in batch} == {"meta"}


# peek -------------------------------------------------------------------------------------------------


class Noisy(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.rand(2) + np.random.rand() + random.random(), i


class Pids(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        return torch.zeros(1), os.getpid()


class ByKey(Dataset):
    def __init__(self, keys):
        self.values = {key: (torch.full((2,), float(i)), i) for i, key in enumerate(keys)}

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        return self.values[key]


class ByPair(ByKey):
    def __getitem__(self, key):
        row, column = key
        return super().__getitem__((row, column))


class Batches:
    def __iter__(self):
        yield from ((torch.full((4, 1), float(i)), torch.rand(4)) for i in range(3))


PLAIN = TensorDataset(torch.arange(10.0), torch.arange(10))
NAMES = [f"image{i}" for i in range(6)]


def generator():
    return torch.Generator().manual_seed(3)


def plain_shuffled():
    return DataLoader(PLAIN, batch_size=3, shuffle=True)


def own_generator():
    return DataLoader(PLAIN, batch_size=3, shuffle=True, generator=generator())


def own_generator_in_the_sampler():
    return DataLoader(PLAIN, batch_size=3, sampler=RandomSampler(PLAIN, generator=generator()))


class OwnRandomNumbers(Sampler):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(10).tolist())

    def __len__(self):
        return 10


def sampler_with_random_numbers_of_its_own():
    return DataLoader(PLAIN, batch_size=3, sampler=OwnRandomNumbers())


def names_as_keys_with_a_generator():
    return DataLoader(ByKey(NAMES), batch_size=2, sampler=SubsetRandomSampler(NAMES, generator=generator()))


def names_as_keys_with_a_generator_in_the_batch_sampler():
    sampler = SubsetRandomSampler(NAMES, generator=generator())
    return DataLoader(ByKey(NAMES), batch_sampler=BatchSampler(sampler, batch_size=2, drop_last=False))


def no_batch_size_with_a_generator():
    return DataLoader(
        PLAIN, batch_size=None, sampler=RandomSampler(PLAIN, generator=generator()), generator=generator()
    )


def tensor_loader():
    return loader()


@pytest.mark.parametrize(
    "make",
    [
        plain_shuffled,
        own_generator,
        own_generator_in_the_sampler,
        sampler_with_random_numbers_of_its_own,
        names_as_keys_with_a_generator,
        names_as_keys_with_a_generator_in_the_batch_sampler,
        no_batch_size_with_a_generator,
        tensor_loader,
    ],
)
def test_peek_leaves_the_order_of_the_next_pass(make):
    passes = []
    for look in (False, True):
        set_seed(0)
        made = make()
        if look:
            assert peek(made) is not None
        passes.append([yb.tolist() for _, yb in made])
    assert passes[0] == passes[1]


@pytest.mark.parametrize("made", [DataLoader(Noisy(), batch_size=3, shuffle=True), Batches(), loader()])
def test_peek_leaves_all_random_numbers(made):
    before = rng_states()
    peek(made)
    assert rng_states() == before


def test_peek_of_a_dataloader_is_a_batch_of_two_samples():
    xb, yb = peek(DataLoader(PLAIN, batch_size=3))
    assert (xb.tolist(), yb.tolist()) == ([0.0, 1.0], [0, 1])


def test_peek_uses_the_collate_function():
    assert peek(DataLoader(PLAIN, batch_size=3, collate_fn=len)) == 2


@pytest.mark.parametrize("n", [5, 1])
def test_peek_starts_no_workers(n):
    _, pids = peek(DataLoader(Pids(n), batch_size=2, num_workers=2))
    assert set(pids.tolist()) == {os.getpid()}


def test_peek_of_a_list_is_its_first_batch():
    assert peek(TRAIN) is TRAIN[0]


def test_peek_of_an_iterable_leaves_its_batches():
    batches = Batches()
    assert peek(batches)[0].tolist() == [[0.0]] * 4
    assert [xb[0].item() for xb, _ in batches] == [0, 1, 2]


def test_peek_of_an_iterable_dataset_is_its_first_batch():
    xb, yb = peek(DataLoader(Stream(), batch_size=2))
    assert (xb.tolist(), yb.tolist()) == ([[0, 0], [1, 1]], [0, 1])


@pytest.mark.parametrize(
    ("dataset", "keys"),
    [(ByKey, NAMES), (ByKey, [10, 11]), (ByPair, [(0, 1), (2, 3)])],
    ids=["names", "from 10", "pairs"],
)
def test_peek_asks_the_loader_when_the_keys_do_not_count_from_0(dataset, keys):
    _, yb = peek(DataLoader(dataset(keys), batch_size=2, sampler=keys))
    assert yb.tolist() == [0, 1]


@pytest.mark.parametrize("made", [[], DataLoader(Pids(0), batch_size=2)])
def test_peek_of_an_empty_loader_is_none(made):
    assert peek(made) is None


def test_peek_of_a_tensor_loader_is_its_first_samples():
    _, yb = peek(loader())
    assert yb.tolist() == [0, 1]


# with_batch_size --------------------------------------------------------------------------------------


def as_batch(samples):
    return torch.stack([x for x, _ in samples]), [i for _, i in samples]


def in_each_worker(worker_id):
    pass


# Each argument of DataLoader that has nothing to do with the size -> (a value, what it needs beside it)
SETTINGS = {
    "sampler": (SubsetRandomSampler([3, 1, 4]), {}),
    "num_workers": (2, {}),
    "collate_fn": (as_batch, {}),
    "pin_memory": (True, {}),
    "drop_last": (True, {}),
    "timeout": (30.0, {}),
    "worker_init_fn": (in_each_worker, {}),
    "multiprocessing_context": (multiprocessing.get_context("spawn"), {"num_workers": 1}),
    "generator": (torch.Generator(), {}),
    "prefetch_factor": (3, {"num_workers": 1}),
    "persistent_workers": (True, {"num_workers": 1}),
    "in_order": (False, {}),
}


def test_every_setting_of_dataloader_has_a_case():
    arguments = inspect.signature(DataLoader).parameters.keys()
    assert arguments - {"dataset", "batch_size", "shuffle", "batch_sampler", "pin_memory_device"} == set(
        SETTINGS
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_resized_dataloader_keeps_each_setting(name):
    value, needed = SETTINGS[name]
    plain = DataLoader(PLAIN, 3)
    made = DataLoader(PLAIN, 3, **{name: value}, **needed)
    resized = adapter_of(made).resized(5)
    assert getattr(resized, name) == getattr(made, name) == value != getattr(plain, name)
    assert resized.batch_size == 5
    assert resized.dataset is PLAIN
    assert (made.batch_size, made.batch_sampler.batch_size) == (3, 3)


@pytest.mark.parametrize("name", ["num_workers", "collate_fn", "drop_last", "worker_init_fn", "generator"])
def test_resized_dataloader_of_a_stream_keeps_each_setting(name):
    value, needed = SETTINGS[name]
    resized = adapter_of(DataLoader(Stream(), 3, **{name: value}, **needed)).resized(2)
    assert getattr(resized, name) == value != getattr(DataLoader(Stream(), 3), name)
    assert resized.batch_size == 2


@pytest.mark.parametrize(("drop_last", "n"), [(False, [2, 1]), (True, [2])])
def test_resized_stream_drops_the_last_batch_as_it_did(drop_last, n):
    resized = adapter_of(DataLoader(Stream(), 3, drop_last=drop_last)).resized(2)
    assert [len(yb) for _, yb in resized] == n


@pytest.mark.parametrize(("drop_last", "n"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_resized_dataloader_drops_the_last_batch_as_its_batch_sampler_did(drop_last, n):
    batches = BatchSampler(RandomSampler(PLAIN), 3, drop_last)
    resized = adapter_of(DataLoader(PLAIN, batch_sampler=batches)).resized(4)
    assert [len(yb) for _, yb in resized] == n
    assert resized.batch_sampler.sampler is batches.sampler


def test_resized_dataloader_uses_its_settings():
    made = DataLoader(PLAIN, 3, sampler=[9, 1, 5], collate_fn=as_batch)
    assert [yb for _, yb in adapter_of(made).resized(2)] == [[9, 1], [5]]


@pytest.mark.parametrize("drop_last", [False, True])
def test_resized_tensor_loader_is_the_same_but_for_its_size(drop_last):
    made = loader(epoch=3, seed=7, drop_last=drop_last)
    resized = adapter_of(made).resized(3)
    assert vars(resized) == vars(made) | {"bs": 3}
    assert all(a is b for a, b in zip(resized.tensors, made.tensors, strict=True))
    assert torch.equal(resized.order(), made.order())
    assert (made.bs, len(resized)) == (4, 3 if drop_last else 4)


def test_resized_tensor_loader_has_an_epoch_of_its_own():
    made = loader(epoch=3)
    adapter_of(made).resized(3).set_epoch(5)
    assert made.epoch == 3


def test_subclass_of_tensor_loader_stays_one_when_it_is_resized():
    class Doubled(TensorLoader):
        def __iter__(self):
            return ((2 * x,) for (x,) in super().__iter__())

    resized = adapter_of(Doubled(torch.ones(3), bs=2)).resized(3)
    assert [x.tolist() for (x,) in resized] == [[2.0, 2.0, 2.0]]


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        ([1, 2], r"\[1, 2\]"),
        (TRAIN * 20, "a list"),
        (DataLoader(PLAIN, batch_size=None), "<.*DataLoader.*>"),
        (DataLoader(Stream(), batch_size=None), "<.*DataLoader.*>"),
        (DataLoader(PLAIN, batch_sampler=[[0], [1]]), "<.*DataLoader.*>"),
        (Batches(), "<.*Batches.*>|a Batches"),
    ],
    ids=["list", "long list", "samples", "stream of samples", "list of batches", "own class"],
)
def test_loader_without_a_batch_size_cannot_be_resized(made, shown):
    with pytest.raises(
        TypeError,
        match=rf"({shown}).*TensorLoader.*DatasetLoader.*DataLoader.*batch_size",
    ):
        adapter_of(made).resized(2)


def test_class_of_ones_own_with_a_batch_sampler_cannot_be_resized():
    class Own:
        dataset, batch_sampler = PLAIN, BatchSampler(range(10), 3, False)

        def __iter__(self):
            return iter(TRAIN)

    with pytest.raises(TypeError, match=r"TensorLoader.*DatasetLoader"):
        adapter_of(Own()).resized(2)


# to_device --------------------------------------------------------------------------------------------

META = torch.device("meta")


def test_to_device_moves_tensors_however_nested():
    pair = namedtuple("pair", "x n")
    batch = ([torch.zeros(1)], {"ids": (torch.zeros(2), "text")}, pair(torch.zeros(3), 7))
    images, words, moved = to_device(batch, META)
    assert type(images) is list
    assert type(moved) is pair
    assert images[0].device == words["ids"][0].device == moved.x.device == META
    assert (words["ids"][1], moved.n) == ("text", 7)


def test_to_device_keeps_a_tensor_that_is_there():
    x = torch.zeros(1)
    assert to_device(x, x.device) is x


def test_to_device_asks_a_batch_class_of_the_users_own():
    class Graph:
        def to(self, device):
            return device

    assert to_device([Graph()], META) == [META]


class Coins(torch.utils.data.Dataset):
    """Samples that are drawn when they are read, with labels that nothing can predict."""

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return torch.randn(4), int(torch.randint(2, ()))


def coins(**kwargs):
    return DatasetLoader(Coins(), bs=100, **kwargs)


def drawn_by(loader):
    return next(iter(loader))[0]


def test_samples_that_are_drawn_differ_by_the_role_of_their_loader():
    set_seed(3)
    train, valid, other, test = (coins() for _ in range(4))
    assert torch.equal(drawn_by(train), drawn_by(valid))
    before = drawn_by(train)
    DataLoaders(train, {"a": valid, "b": other}, test)
    draws = [drawn_by(loader) for loader in (train, valid, other, test)]
    assert torch.equal(draws[0], before)
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    set_seed(3)  # a second start of the script draws the same
    again = [coins() for _ in range(4)]
    DataLoaders(again[0], {"a": again[1], "b": again[2]}, again[3])
    assert all(torch.equal(draw, drawn_by(loader)) for draw, loader in zip(draws, again, strict=True))


def test_a_seed_that_is_given_and_a_role_that_is_taken_stay():
    train, valid = coins(seed=1), coins(seed=1)
    dls = DataLoaders(train, valid)
    assert torch.equal(drawn_by(train), drawn_by(valid))
    both = coins()
    before = drawn_by(both)
    DataLoaders(both, both)
    assert torch.equal(drawn_by(both), before)
    dls.valid = both
    assert torch.equal(drawn_by(both), before)


def test_a_loader_given_to_validate_draws_other_samples_than_training():
    set_seed(3)
    learn = Learner(nn.Linear(4, 2), DataLoaders(coins()), default_cbs=False)
    seen = []
    look = type("Look", (Callback,), {"before_batch": lambda self, learn: seen.append(learn.batch[0])})
    learn.validate(coins(), cbs=look())
    assert not torch.equal(seen[0], drawn_by(learn.dls.train))
