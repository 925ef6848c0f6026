import pickle
import random
from copy import copy, deepcopy
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from toolbox import mentions, rng_states
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from minilearn import DataLoaders, Learner, TensorLoader, set_seed
from minilearn.data import DatasetLoader, ResumableLoader, adapter_of, peek


class Numbers(Dataset):
    """Samples (x, i), which remembers those that were read."""

    def __init__(self, n=10):
        self.n, self.reads = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads.append(i)
        return torch.tensor([float(i)]), i


class Draw:
    """A transform that keeps what it draws from."""

    def __init__(self, rng):
        self.rng = rng

    def draw(self):
        if isinstance(self.rng, torch.Generator):
            return torch.rand((), generator=self.rng).item()
        return float(self.rng.random())

    def __call__(self, x):
        return [*x, self.draw()]


class Compose(nn.Module):
    def __init__(self, *transforms):
        super().__init__()
        self.transforms = list(transforms)

    def forward(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


def from_the_global_ones(x):
    return [*x, random.random(), np.random.rand(), torch.rand(()).item()]


GENERATORS = {
    "numpy": lambda: np.random.default_rng(),
    "numpy, another kind": lambda: np.random.Generator(np.random.MT19937()),
    "numpy, old": lambda: np.random.RandomState(),
    "python": lambda: random.Random(),
    "torch": lambda: torch.Generator().manual_seed(random.randrange(2**31)),
}


class Augmented(Dataset):
    """Samples (numbers from every kind of generator, i): global ones, its own, those of nested transforms."""

    def __init__(self, n=10):
        self.n, self.rng, self.as_entry = n, np.random.default_rng(), {"rng": (random.Random(),)}
        transforms = [Draw(make()) for make in GENERATORS.values()]
        self.transform = Compose(*transforms[:2], Compose(*transforms[2:]), from_the_global_ones)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x = self.transform([self.rng.random(), self.as_entry["rng"][0].random()])
        return torch.tensor(x, dtype=torch.float64), i


class Mix:
    """A collate function that draws, from a generator of its own and from a global one."""

    def __init__(self):
        self.rng = np.random.default_rng()

    def __call__(self, samples):
        x, i = default_collate(samples)
        return x, i, torch.tensor([self.rng.random(), torch.rand(()).item(), random.random()])


def augmented(**kwargs):
    return DatasetLoader(Augmented(), **{"bs": 3, "shuffle": True, "seed": 1, "collate_fn": Mix()} | kwargs)


def read(loader, epoch=0, start=0):
    loader.set_epoch(epoch)
    return [[t.tolist() for t in batch] for batch in loader.batches(start)]


def tensors(n=10, **kwargs):
    return TensorLoader(torch.arange(n)[:, None] * 1.0, torch.arange(n), **{"bs": 3, "seed": 1} | kwargs)


def dataset(n=10, **kwargs):
    return DatasetLoader(Numbers(n), **{"bs": 3, "seed": 1} | kwargs)


def order_of(loader, epoch=0):
    return [i for batch in read(loader, epoch) for i in batch[1]]


# The order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tensors, dataset])
def test_order_is_a_pure_function_of_seed_and_epoch(make):
    first, second = make(50, shuffle=True), make(50, shuffle=True)
    orders = [order_of(first, epoch) for epoch in (0, 1, 2)]
    torch.manual_seed(5)
    assert [order_of(second, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    assert [sorted(order) for order in orders] == [list(range(50))] * 3
    assert len({tuple(order) for order in [*orders, order_of(make(50, shuffle=True, seed=2))]}) == 4


def test_order_is_the_same_for_each_kind_of_loader():
    assert order_of(tensors(50, shuffle=True), 3) == order_of(dataset(50, shuffle=True), 3)


@pytest.mark.parametrize("make", [tensors, dataset])
def test_without_shuffle_the_order_is_that_of_the_data_in_each_epoch(make):
    assert order_of(make()) == order_of(make(), 4) == list(range(10))


def test_order_says_which_samples_a_pass_gives():
    made = dataset(shuffle=True)
    made.set_epoch(2)
    assert made.order().dtype == torch.int64
    assert made.order().tolist() == order_of(made, 2)


@pytest.mark.parametrize("make", [tensors, dataset])
@pytest.mark.parametrize(
    ("n", "bs", "drop_last", "sizes"),
    [
        (10, 3, False, [3, 3, 3, 1]),
        (10, 3, True, [3, 3, 3]),
        (9, 3, False, [3, 3, 3]),
        (9, 3, True, [3, 3, 3]),
        (2, 3, False, [2]),
        (2, 3, True, []),
        (0, 3, False, []),
    ],
)
def test_sizes_of_the_batches(make, n, bs, drop_last, sizes):
    made = make(n, bs=bs, drop_last=drop_last, shuffle=True)
    assert [len(batch[1]) for batch in made] == sizes
    assert (len(made), made.bs, made.drop_last, made.n_samples) == (len(sizes), bs, drop_last, n)


@pytest.mark.parametrize("make", [tensors, dataset])
def test_default_is_64_in_order_and_the_seed_of_set_seed(make):
    set_seed(12)
    made = TensorLoader(torch.zeros(3)) if make is tensors else DatasetLoader(Numbers())
    assert (made.bs, made.shuffle, made.drop_last, made.seed, made.epoch) == (64, False, False, 12, 0)


# From any batch on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tensors, dataset, augmented])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_from_a_start_are_the_tail_of_the_pass(make, shuffle, drop_last):
    made = make(shuffle=shuffle, drop_last=drop_last)
    for epoch in (0, 2):
        whole = read(made, epoch)
        made.set_epoch(epoch)
        assert [[t.tolist() for t in batch] for batch in made] == whole
        for start in range(len(whole) + 2):
            assert read(make(shuffle=shuffle, drop_last=drop_last), epoch, start) == whole[start:]
            assert read(made, epoch, start) == whole[start:]


def test_samples_before_the_start_are_not_read():
    made = dataset(shuffle=True)
    batches = made.batches(2)
    order = made.order().tolist()
    assert made.dataset.reads == []
    next(batches)
    assert made.dataset.reads == order[6:9]
    list(batches)
    assert made.dataset.reads == order[6:]


def test_at_the_end_nothing_is_read():
    made = dataset()
    assert list(made.batches(4)) == list(made.batches(9)) == made.dataset.reads == []


def test_two_passes_at_once_do_not_disturb_each_other():
    made = augmented()
    whole, later = read(made), read(made, 1)
    made.set_epoch(0)
    first = iter(made)
    begun = [next(first)]
    made.set_epoch(1)
    second = list(made.batches(1))
    assert [[t.tolist() for t in batch] for batch in [*begun, *first]] == whole
    assert [[t.tolist() for t in batch] for batch in second] == later[1:]


def test_loader_of_ones_own_says_what_a_batch_is():
    class Squares(ResumableLoader):
        def batches(self, start=0):
            for i in range(start, len(self)):
                yield self.order()[i * self.bs : (i + 1) * self.bs] ** 2

    made = Squares(5, bs=2)
    assert [batch.tolist() for batch in made] == [[0, 1], [4, 9], [16]]
    assert [batch.tolist() for batch in made.batches(2)] == [[16]]


def test_loader_that_does_not_say_what_a_batch_is_is_told():
    class Empty(ResumableLoader):
        pass

    with pytest.raises(NotImplementedError, match=r"^Empty.*batches\(start\)"):
        iter(Empty(5))


# Augmentation -----------------------------------------------------------------------------------------


def test_augmentation_depends_only_on_seed_epoch_and_index():
    by_index = {}
    for bs, shuffle in ((3, True), (4, False), (10, True)):
        for batch in read(augmented(bs=bs, shuffle=shuffle), epoch=2):
            for x, i in zip(*batch[:2], strict=True):
                assert by_index.setdefault(i, x) == x
    assert len({tuple(x) for x in by_index.values()}) == 10


@pytest.mark.parametrize(
    ("a", "b"), [((0, 1), (1, 1)), ((0, 1), (0, 2)), ((0, 1), (1, 0)), ((1, 11), (11, 1))]
)
def test_each_number_of_a_sample_differs_by_epoch_and_by_seed(a, b):
    passes = [read(augmented(seed=seed, shuffle=False), epoch) for epoch, seed in (a, b)]
    for first, second in zip(*passes, strict=True):
        for x, y in zip(chain(*first[0]), chain(*second[0]), strict=True):
            assert x != y
        assert not set(first[2]) & set(second[2])


def test_samples_differ_in_each_number():
    (x, _, _), *_ = read(augmented(bs=10))
    for column in zip(*x, strict=True):
        assert len(set(column)) == 10


def test_each_generator_of_a_sample_draws_numbers_of_its_own():
    (x, _, z), *_ = read(augmented(bs=10))
    for sample in x:
        assert len(set(sample)) == len(sample)
    assert not set(chain(*x)) & set(z)
    assert len(set(z)) == 3


def test_collate_draws_again_for_each_batch():
    drawn = [batch[2] for batch in read(augmented())]
    assert len({tuple(z) for z in drawn}) == 4


def test_collate_draws_by_the_first_sample_of_its_batch():
    first, second, other = (read(augmented(shuffle=False, sampler=s)) for s in ([0, 1], [0, 2, 3], [1, 0]))
    assert first[0][2] == second[0][2] != other[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_batches_are_the_same_bit_for_bit_with_workers_that_stay(n_workers):
    plain = augmented()
    made = augmented(num_workers=n_workers, persistent_workers=True)
    for epoch, start in ((3, 0), (0, 0), (0, 2), (3, 1), (0, 4), (1, 0)):
        assert read(made, epoch, start) == read(plain, epoch, start)


@pytest.mark.slow
def test_batches_are_the_same_bit_for_bit_with_restarted_workers():
    made, plain = augmented(num_workers=2), augmented()
    assert read(made, 1, 1) == read(plain, 1, 1)
    assert read(made, 0) == read(plain, 0)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
def test_pass_leaves_the_random_numbers_of_the_main_process(n_workers):
    made, before = augmented(num_workers=n_workers), rng_states()
    batches = iter(made)
    for _ in batches:
        assert rng_states() == before
    assert rng_states() == before


def test_random_numbers_of_the_main_process_continue_when_a_sample_raises():
    class Broken(Augmented):
        def __getitem__(self, i):
            random.random()
            raise RuntimeError(f"sample {i}")

    made, before = DatasetLoader(Broken()), rng_states()
    with pytest.raises(RuntimeError, match="sample 0"):
        next(iter(made))
    assert rng_states() == before


GLOBAL = np.random.default_rng()


def around():
    rng = np.random.default_rng()
    return lambda: rng.random()


def as_default(rng):
    def draw(rng=rng):
        return rng.random()

    return draw


@pytest.mark.parametrize(
    "make",
    [around, lambda: as_default(random.Random()), lambda: lambda: GLOBAL.random()],
    ids=["closure", "default", "global"],
)
def test_generator_that_a_function_draws_from_is_seeded(make):
    class Holder(Numbers):
        def __getitem__(self, i):
            return self.inner()

    orders = []
    for _ in range(2):
        data = Holder(4)
        data.inner = make()
        made = DatasetLoader(data, bs=2, seed=1)
        made.set_epoch(1)
        orders.append(torch.cat(list(made)).tolist())
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 4


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("place", ["dataset", "list", "dict", "tuple", "module", "object", "collate"])
def test_generator_is_found_wherever_it_is_kept(kind, place):
    class Holder(Numbers):
        def __getitem__(self, i):
            return self.inner.draw()

    made = []
    for _ in range(2):
        draw = Draw(GENERATORS[kind]())
        data = Holder(4)
        data.inner = draw
        if place == "dataset":
            data.rng = draw.rng
        kept = {
            "list": [0, [draw]],
            "dict": {"a": {"b": draw}},
            "tuple": (draw,),
            "module": Compose(Compose(draw)),
            "object": Draw(Draw(draw)),
        }
        if place in kept:  # as an attribute of another name, because there may be more than the first
            data.deep = kept[place]
        collate = partial(_mean_and, Draw(draw.rng)) if place == "collate" else torch.tensor
        made.append([batch.tolist() for batch in DatasetLoader(data, bs=2, collate_fn=collate)])
    assert made[0] == made[1]


def _mean_and(draw, samples):
    return torch.tensor([*samples, draw.draw()])


def _add(x, rng):
    return [*x, rng.random()]


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(lambda: Draw(np.random.default_rng()), id="object"),
        pytest.param(lambda: Draw(np.random.default_rng()).__call__, id="method"),
        pytest.param(lambda: partial(_add, rng=np.random.default_rng()), id="partial"),
        pytest.param(lambda: partial(Draw(np.random.default_rng())), id="partial of an object"),
    ],
)
def test_generator_is_found_in_what_a_transform_is(transform):
    class Transformed(Numbers):
        def __getitem__(self, i):
            return torch.tensor(self.transform([float(i)]), dtype=torch.float64)

    passes = []
    for _ in range(2):
        data = Transformed()
        data.transform = transform()
        passes.append([batch.tolist() for batch in DatasetLoader(data, bs=4)])
    assert passes[0] == passes[1]


def test_generator_of_a_transform_that_comes_later_is_found():
    passes = []
    for _ in range(2):
        made = augmented(shuffle=False)
        read(made)
        made.dataset.transform = Compose(Draw(np.random.default_rng()))
        passes.append(read(made, 1))
    assert passes[0] == passes[1]


def test_objects_that_lead_back_to_themselves_are_no_obstacle():
    data = Augmented()
    data.transform.owner = [data]
    made = DatasetLoader(data, bs=3, shuffle=True, seed=1, collate_fn=Mix())
    assert read(made) == read(augmented())


def test_generators_next_to_many_samples_are_found():
    data = Augmented()
    data.samples = [Draw(None) for _ in range(1000)]
    made = DatasetLoader(data, bs=3, shuffle=True, seed=1, collate_fn=Mix())
    assert read(made) == read(augmented())


def test_collate_function_gets_the_samples():
    made = DatasetLoader(Numbers(5), bs=2, collate_fn=lambda samples: [i for _, i in samples])
    assert list(made) == [[0, 1], [2, 3], [4]]


def test_arguments_of_dataloader_are_passed_on():
    def init(worker_id):
        torch.set_num_threads(1)

    made = DatasetLoader(Numbers(), num_workers=2, prefetch_factor=3, worker_init_fn=init, timeout=50)
    inner = made._make()
    assert (inner.num_workers, inner.prefetch_factor, inner.worker_init_fn, inner.timeout) == (2, 3, init, 50)


def test_unknown_argument_is_refused_when_the_loader_is_made():
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_wrokers'"):
        DatasetLoader(Numbers(), num_wrokers=2)
    with pytest.raises(ValueError, match="persistent_workers option needs num_workers > 0"):
        DatasetLoader(Numbers(), persistent_workers=True)


# Samplers ---------------------------------------------------------------------------------------------


class BySetEpoch(Sampler):
    def __init__(self):
        self.epoch = 99

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([(i + self.epoch) % 10 for i in range(10)])

    def __len__(self):
        return 10


class Drawing(Sampler):
    """Shuffle by what it is given to draw with."""

    def __init__(self, permutation):
        self.permutation = permutation

    def __iter__(self):
        return iter(self.permutation())

    def __len__(self):
        return 10


def generator():
    return torch.Generator().manual_seed(random.randrange(2**31))


SAMPLERS = {
    "weights": lambda: WeightedRandomSampler([0.1, 2.0] * 5, 20),
    "weights and generator": lambda: WeightedRandomSampler([0.1, 2.0] * 5, 20, generator=generator()),
    "subset": lambda: SubsetRandomSampler([1, 2, 3, 5, 8]),
    "subset and generator": lambda: SubsetRandomSampler([1, 2, 3, 5, 8], generator=generator()),
    "random": lambda: RandomSampler(range(10)),
    "random and generator": lambda: RandomSampler(range(10), generator=generator()),
    "replacement": lambda: RandomSampler(range(10), replacement=True, num_samples=25),
    "python": lambda: Drawing(lambda: random.sample(range(10), 10)),
    "numpy": lambda: Drawing(lambda: np.random.permutation(10).tolist()),
    "set_epoch": BySetEpoch,
    "distributed": lambda: DistributedSampler(range(10), num_replicas=2, rank=1),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_s_order_is_a_pure_function_of_seed_and_epoch(name):
    first, second = (dataset(sampler=SAMPLERS[name]()) for _ in range(2))
    before = rng_states()
    orders = [order_of(first, epoch) for epoch in range(5)]
    assert rng_states() == before
    assert len(first) == -(-len(first.sampler) // 3)
    set_seed(7)
    assert [order_of(second, epoch) for epoch in (4, 1, 0)] == [orders[4], orders[1], orders[0]]
    assert len({tuple(order) for order in orders}) > 1
    assert read(second, 3, 1) == read(first, 3)[1:]


@pytest.mark.parametrize(
    "name", ["weights", "weights and generator", "python", "numpy", "random and generator"]
)
def test_sampler_s_order_differs_by_seed(name):
    orders = [order_of(dataset(sampler=SAMPLERS[name](), seed=seed)) for seed in range(5)]
    assert len({tuple(order) for order in orders}) > 1


def test_sampler_s_set_epoch_gets_the_epoch():
    assert order_of(dataset(sampler=BySetEpoch()), 3) == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_list_of_indices_is_a_sampler():
    made = dataset(sampler=[7, 1, 1, 0])
    assert (len(made), order_of(made), order_of(made, 1)) == (2, [7, 1, 1, 0], [7, 1, 1, 0])


@pytest.mark.parametrize("kind", GENERATORS)
def test_generator_that_a_sampler_keeps_under_another_name_is_seeded(kind):
    class Own(Drawing):
        def __init__(self):
            self.draw = Draw(GENERATORS[kind]())

        def __iter__(self):
            return iter(sorted(range(10), key=lambda i: self.draw.draw()))

    first, second = dataset(sampler=Own()), dataset(sampler=Own())
    assert [order_of(first, epoch) for epoch in (0, 1)] == [order_of(second, epoch) for epoch in (0, 1)]


class Growing(BySetEpoch):
    """A sampler whose length grows with the epoch."""

    def __len__(self):
        return 4 + self.epoch

    def __iter__(self):
        return iter(range(len(self)))


class GrowingUnseen(Growing):
    def __len__(self):
        return 4


def test_sampler_that_grows_is_named_when_the_loader_is_made():
    with pytest.raises(ValueError, match=mentions("sampler=Growing ... [4, 5, 6]")):
        dataset(sampler=(made := Growing()))
    assert made.epoch == 99  # as it was


def test_sampler_that_gives_another_number_than_it_has_is_named():
    made = dataset(sampler=(sampler := GrowingUnseen()))
    sampler.__class__ = Growing
    made.set_epoch(0)
    assert len(list(made)) == 2
    made.set_epoch(2)
    with pytest.raises(ValueError, match=mentions("sampler=Growing ... 6 ... epoch 2 ... 4")):
        list(made)


# Errors -----------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((2,), float(i)), i) for i in range(3))


@pytest.mark.parametrize("data", [Stream(), iter([1, 2]), {1, 2}])
def test_data_without_an_index_is_refused(data):
    with pytest.raises(
        TypeError,
        match=rf"^DatasetLoader\({type(data).__name__}\).*__getitem__.*state_dict.*load_state_dict",
    ):
        DatasetLoader(data)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("batch_size", 3, "bs"),
        ("batch_sampler", [[0]], "sampler"),
        ("generator", torch.Generator(), "seed"),
        ("generator", None, "seed"),
    ],
)
def test_argument_that_would_make_another_order_is_refused(name, value, instead):
    with pytest.raises(TypeError, match=rf"^DatasetLoader\({name}=\.\.\.\).*{instead}="):
        DatasetLoader(Numbers(), **{name: value})


@pytest.mark.parametrize("kwargs", [{"sampler": [1], "shuffle": True}, {"sampler": iter([1])}])
def test_sampler_with_shuffle_or_without_a_length_is_refused(kwargs):
    with pytest.raises(ValueError, match=r"^sampler=.*length.*shuffle=False"):
        DatasetLoader(Numbers(), **kwargs)


@pytest.mark.parametrize("bs", [0, -3, 2.0, None, "4"])
def test_bs_that_is_no_count_is_refused(bs):
    with pytest.raises(ValueError, match=rf"^bs={bs!r}.*whole number.*>= 1"):
        DatasetLoader(Numbers(), bs=bs)


# State ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tensors, dataset])
def test_state_is_what_the_order_depends_on(make):
    made = make(shuffle=True, drop_last=True)
    assert made.state_dict() == {"seed": 1, "n_samples": 10, "bs": 3, "shuffle": True, "drop_last": True}


@pytest.mark.parametrize("make", [tensors, dataset])
def test_loading_a_state_takes_its_seed(make):
    made, other = make(shuffle=True, seed=1), make(shuffle=True, seed=2)
    other.load_state_dict(made.state_dict())
    assert other.seed == 1
    assert read(other, 4) == read(made, 4)


@pytest.mark.parametrize("make", [tensors, dataset])
@pytest.mark.parametrize(
    ("name", "kwargs", "now", "then"),
    [
        ("n_samples", {"n": 11}, "11", "10"),
        ("bs", {"bs": 4}, "4", "3"),
        ("shuffle", {"shuffle": True}, "True", "False"),
        ("drop_last", {"drop_last": True}, "True", "False"),
    ],
)
def test_state_of_another_loader_is_refused(make, name, kwargs, now, then):
    made = make(seed=2, **kwargs)
    with pytest.raises(ValueError, match=rf"{name}={now}.*{then}"):
        made.load_state_dict(make(seed=1).state_dict())
    assert made.seed == 2


def test_state_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"n_samples=10.*None"):
        dataset().load_state_dict({"seed": 1})


# Copies -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [copy, deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_copy_made_while_workers_run_gives_the_same_batches(how):
    made = augmented(num_workers=1)
    whole = read(augmented(), 2)
    made.set_epoch(2)
    batches = iter(made)
    begun = next(batches)
    copied = how(made)
    copied.num_workers = 0
    assert copied.epoch == 2
    assert read(copied, 2) == whole
    copied.set_epoch(5)
    assert made.epoch == 2
    assert [[t.tolist() for t in batch] for batch in [begun, *batches]] == whole


def test_copy_shares_the_data_and_a_deep_one_does_not():
    made = dataset()
    list(made)
    assert copy(made).dataset is made.dataset
    assert deepcopy(made).dataset is not made.dataset


@pytest.mark.parametrize("how", [copy, deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_copy_of_a_tensor_loader_gives_the_same_batches(how):
    made = tensors(shuffle=True)
    made.set_epoch(3)
    copied = how(made)
    assert [[t.tolist() for t in batch] for batch in copied] == read(made, 3)


def samples_of(batches):
    return [x for batch in batches for x in batch[0]]


def test_resized_loader_has_the_same_order_and_the_same_samples():
    made = augmented()
    before = read(made, 2)
    resized = adapter_of(made).resized(4)
    after = read(resized, 2)
    assert type(resized) is DatasetLoader
    assert [len(batch[1]) for batch in after] == [4, 4, 2]
    assert samples_of(after) == samples_of(before)
    assert resized.dataset is made.dataset
    assert (made.bs, len(made), read(made, 2)) == (3, 4, before)


def test_resized_loader_keeps_its_settings():
    made = dataset(
        sampler=[5, 1, 7, 2, 2], drop_last=True, collate_fn=lambda samples: [i for _, i in samples]
    )
    made.set_epoch(3)
    resized = adapter_of(made).resized(2)
    assert list(resized) == [[5, 1], [7, 2]]
    assert (resized.seed, resized.epoch, resized.drop_last) == (1, 3, True)


def test_in_order_gives_the_data_s_order_with_the_same_augmentation():
    made = augmented()
    ordered = adapter_of(made).in_order()
    assert read(ordered) == read(augmented(shuffle=False))
    assert order_of(ordered) == list(range(10))
    assert made.shuffle


def test_loader_in_order_is_given_as_it_is():
    made = dataset()
    assert adapter_of(made).in_order() is made


def test_loader_with_a_sampler_has_no_order_of_the_data():
    with pytest.raises(
        ValueError,
        match=r"^predict.*DatasetLoader.*sampler",
    ):
        adapter_of(dataset(sampler=[1, 2])).in_order()


# peek -------------------------------------------------------------------------------------------------


def test_peek_is_a_batch_of_two_samples_as_the_loader_makes_them():
    x, i, _ = peek(augmented())
    assert (x.shape, i.tolist()) == ((2, 10), [0, 1])
    assert peek(dataset(bs=1))[1].tolist() == [0]
    assert peek(dataset(1))[1].tolist() == [0]
    assert peek(dataset(collate_fn=len)) == 2


def test_peek_starts_no_workers_and_reads_two_samples():
    made = dataset(num_workers=2, persistent_workers=True)
    peek(made)
    assert made.dataset.reads == [0, 1]  # those of this process
    assert made._loader is None or made._loader._iterator is None


def test_peek_leaves_random_numbers_and_the_pass_after_it():
    made, before = augmented(), rng_states()
    made.set_epoch(1)
    begun = iter(made)
    first = next(begun)
    peek(made)
    assert rng_states() == before
    assert [[t.tolist() for t in batch] for batch in [first, *begun]] == read(augmented(), 1)


def test_peek_of_an_empty_loader_is_none():
    assert peek(dataset(0)) is None


def test_peek_reads_what_the_sampler_gives():
    made = DatasetLoader(
        {10: torch.tensor(1), 20: torch.tensor(2), 30: torch.tensor(3)}, sampler=[20, 30, 10]
    )
    assert peek(made).tolist() == [2, 3]


# In the learner ---------------------------------------------------------------------------------------


class Noisy(Dataset):
    def __init__(self, n=12):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((3,), float(i)) + torch.randn(3) + random.random(), i % 2


def noisy_samples_learner(**kwargs):
    torch.manual_seed(0)
    train = DatasetLoader(Noisy(), bs=4, shuffle=True, seed=3, **kwargs)
    return Learner(
        nn.Linear(3, 2), DataLoaders(train, DatasetLoader(Noisy(4), seed=3)), lr=0.1, default_cbs=False
    )


@pytest.mark.slow
def test_learner_trains_the_same_with_and_without_workers():
    plain = noisy_samples_learner()
    with_workers = noisy_samples_learner(num_workers=1, persistent_workers=True)
    before = plain.model.weight.clone()
    for learn in (plain, with_workers):
        learn.fit(2)
    assert not torch.equal(plain.model.weight, before)
    assert torch.equal(plain.model.weight, with_workers.model.weight)


def test_learner_sets_the_epoch_of_its_life(at):
    seen = []
    learn = noisy_samples_learner()
    learn.fit(2, cbs=[at("before_train", lambda learn: seen.append(learn.dl.epoch))])
    learn.fit(1, cbs=[at("before_train", lambda learn: seen.append(learn.dl.epoch))])
    assert seen == [0, 1, 2]


def test_learner_proves_that_it_can_resume_in_the_middle_of_an_epoch():
    said = noisy_samples_learner().verify_resume(at=4)
    assert "step 4" in said
    assert "bit for bit" in said


def test_predictions_are_in_the_order_of_the_data():
    learn = Learner(nn.Identity(), {"train": [0]}, default_cbs=False)
    made = dataset(shuffle=True, drop_last=False)
    assert learn.predict(made).tolist() == [[float(i)] for i in range(10)]
    assert made.shuffle


def test_predictions_of_a_sampler_are_refused():
    learn = Learner(nn.Identity(), {"train": [0]}, default_cbs=False)
    with pytest.raises(ValueError, match=r"predict.*DatasetLoader.*sampler"):
        learn.predict(dataset(sampler=[3, 1]))


# Loaders of other kinds -------------------------------------------------------------------------------


BATCHES = [(torch.full((2,), float(i)), i) for i in range(4)]


class FromAny:
    def batches(self, start=0):
        return iter(BATCHES[start:])

    def __iter__(self):
        return self.batches()


class WithState:
    """A stream that remembers where it stands."""

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


class WithBoth(FromAny):
    def state_dict(self):
        return {"seed": 1}

    def load_state_dict(self, state):
        pass


class Generated:
    def __iter__(self):
        yield from BATCHES


class HalfAState(Generated):
    def state_dict(self):
        return {}


class OtherHalf(Generated):
    def load_state_dict(self, state):
        pass


RESUMABLE = {
    "list": lambda: BATCHES,
    "tuple": lambda: tuple(BATCHES),
    "batches": FromAny,
    "state": WithState,
    "both": WithBoth,
    "tensors": tensors,
    "dataset": dataset,
}


@pytest.mark.parametrize("make", RESUMABLE.values(), ids=RESUMABLE)
def test_loader_that_can_be_resumed_has_nothing_against_it(make):
    assert adapter_of(make()).why_not_resumable() == ""


@pytest.mark.parametrize("make", [tensors, dataset, lambda: BATCHES, FromAny, WithBoth])
@pytest.mark.parametrize("start", range(5))
def test_batches_from_a_start_are_those_after_it(make, start):
    whole, tail = list(make()), list(adapter_of(make()).read(start))
    assert str(tail) == str(whole[start:])


@pytest.mark.parametrize("make", [Generated, lambda: DataLoader(Stream(), batch_size=None)])
def test_loader_of_any_kind_can_begin(make):
    assert [i for _, i in adapter_of(make()).read(0)][:3] == [0, 1, 2]


def test_loader_with_a_state_resumes_where_it_was_loaded():
    made = WithState()
    batches = adapter_of(made).read(0)
    next(batches)
    next(batches)
    other = WithState()
    other.load_state_dict(adapter_of(made).state())
    assert [i for _, i in adapter_of(other).read(2)] == [2, 3]
    assert [i for _, i in adapter_of(other).read(0)] == [0, 1, 2, 3]


def test_loader_with_batches_and_a_state_resumes_by_its_batches():
    assert [i for _, i in adapter_of(WithBoth()).read(3)] == [3]


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda: BATCHES, None),
        (FromAny, None),
        (Generated, None),
        (HalfAState, None),
        (OtherHalf, None),
        (WithState, {"i": 0}),
        (WithBoth, {"seed": 1}),
    ],
)
def test_state_is_what_the_loader_says_of_it(make, state):
    assert adapter_of(make()).state() == state


def test_plain_dataloader_is_told_what_to_write():
    assert adapter_of(DataLoader(TensorDataset(torch.zeros(3)))).why_not_resumable() == (
        "a torch DataLoader draws its order and its workers' seeds again at each pass: write "
        "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), which takes its other arguments too"
    )


def test_dataloader_with_a_collate_function_of_its_own_is_told_to_pass_it_on():
    class OfLists(DataLoader):
        """As torch_geometric's, which collates graphs."""

        def __init__(self, dataset):
            super().__init__(dataset, collate_fn=list)

    loader = OfLists([{1}, {2}])
    assert "num_workers=2, collate_fn=loader.collate_fn)" in adapter_of(loader).why_not_resumable()
    assert list(DatasetLoader(loader.dataset, bs=2, collate_fn=loader.collate_fn)) == [[{1}, {2}]]


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (DataLoader(Stream()), "an IterableDataset"),
        (Generated(), "a Generated"),
        (HalfAState(), "a HalfAState"),
        (OtherHalf(), "a OtherHalf"),
        (map(int, "12"), "a map"),
    ],
)
def test_stream_that_does_not_tell_its_position_is_told_what_to_have(made, kind):
    assert adapter_of(made).why_not_resumable() == (
        f"{kind} does not tell its position: expected a TensorLoader, a DatasetLoader, a list of batches, "
        "or a class with __getitem__ and __len__, with batches(start), or with state_dict() and "
        "load_state_dict()"
    )
