"""Plans of batches: by length, mixed, balanced, and users' own, which resume, shard and replay."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from toolbox import (
    StopCB,
    at,
    dealt,
    every_rest,
    make_learner,
    mentions,
    norm_net,
    same,
    samples,
    stop,
    tensors_of,
    untimed_rows,
)
from torch import nn
from torch.utils.data import TensorDataset

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    BatchSizeCB,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    balanced,
    by_length,
    mix,
    set_seed,
)
from minilearn.data import adapter_of

N = 40
X, Y = samples(N)
DATA = TensorDataset(X, Y)
LENGTHS = [1 + i % 7 for i in range(N)]


def growing(epoch, rng):
    """Give batches of random sizes, more of them in each epoch."""
    order = rng.permutation(N)
    return np.split(order, np.sort(rng.choice(np.arange(2, N, 2), 2 + 2 * epoch, replace=False)))


def lists(plan, epoch=0, seed=0):
    return [[*map(int, batch)] for batch in plan(epoch, np.random.default_rng(seed))]


def loader(plan=growing, data=DATA, **kwargs):
    return DatasetLoader(data, plan=plan, **{"seed": 0} | kwargs)


def numbers(**kwargs):
    """Return a loader of the samples' numbers."""
    return loader(**{"data": range(N)} | kwargs)


def ids(batches):
    return [batch.tolist() for batch in batches]


def learner(*cbs, seed=1, plan=growing, **kwargs):
    set_seed(seed)
    valid = DatasetLoader(DATA, 16)
    model = norm_net(0.3)
    return Learner(model, DataLoaders(loader(plan, seed=None), valid), lr=0.1, cbs=cbs, default_cbs=False)


# The loader -------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_plan():
    batches = numbers(plan=lambda epoch, rng: [[3], (1, 2), range(4, 7), torch.tensor([9, 9])])
    assert ids(batches) == [[3], [1, 2], [4, 5, 6], [9, 9]]
    assert len(batches) == 4


def test_a_plan_may_be_a_generator_function():
    def plan(epoch, rng):
        yield [epoch]
        yield rng.permutation(3)

    assert len(ids(numbers(plan=plan))[1]) == 3


def test_epochs_differ_in_order_and_length_and_are_the_same_again():
    one, other = numbers(), numbers()
    seen = []
    for epoch in range(3):
        one.set_epoch(epoch)
        seen.append(ids(one))
        assert len(one) == len(seen[-1]) == 3 + 2 * epoch
    other.set_epoch(1)
    assert ids(other) == seen[1] != seen[0]
    assert ids(numbers(seed=1)) != seen[0]


@pytest.mark.slow
def test_workers_read_the_same_batches():
    assert ids(numbers(num_workers=2)) == ids(numbers())


def test_a_pass_begins_at_any_batch():
    whole = ids(numbers())
    for start in range(len(whole) + 1):
        assert ids(numbers().batches(start)) == whole[start:]


class Noisy:
    """Add noise to a sample's number."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return i + random.random() / 2


def test_a_sample_that_comes_twice_is_augmented_twice():
    twice = DatasetLoader(Noisy(), plan=lambda epoch, rng: [[5], [5, 5]], seed=0)
    values = torch.cat(list(twice)).tolist()
    assert len(set(values)) == 3
    assert torch.cat(list(twice.batches(1))).tolist() == values[1:]


def test_shards_of_a_batch_make_the_batch():
    plan = [[1, 2, 3], [4], [5, 6]]
    whole = numbers(plan=lambda epoch, rng: plan)
    shards = [whole.part_of(rank, 2) for rank in range(2)]
    assert [ids(shard) for shard in shards] == [[[1], [4], [5]], [[2, 3], [4], [6]]]
    assert [[shard.sizes(i) for i in range(3)] for shard in shards] == [
        [(1, 3), (0, 1), (1, 2)],  # an empty shard takes part with a sample of another one
        [(2, 3), (1, 1), (1, 2)],
    ]


def test_the_random_numbers_of_a_plan_are_its_own():
    own = np.random.default_rng(5)

    def plan(epoch, rng):
        return [[random.randrange(N), np.random.randint(N), int(torch.randint(N, ())), own.integers(N)]]

    random.seed(3)
    before = random.getstate()
    first = ids(numbers(plan=plan))
    assert random.getstate() == before
    random.seed(7)
    assert ids(numbers(plan=plan)) == first


def forgetful():
    seen = []

    def plan(epoch, rng):
        seen.append(0)
        return [[len(seen)]]

    return plan


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        (lambda e, rng: None, TypeError, "None ... list of batches"),
        (lambda e, rng: [3, 4], TypeError, "batch 0 is 3 ... list of indices"),
        (lambda e, rng: [[1], "ab"], TypeError, "batch 1 is 'ab'"),
        (lambda e, rng: [[0.5]], TypeError, "batch 0 is [0.5] ... whole numbers"),
        (lambda e, rng: [[[1, 2]]], TypeError, "batch 0 is [[1, 2]]"),
        (lambda e, rng: [[True, False]], TypeError, "batch 0 is [True, False]"),
        (lambda e, rng: [[1], []], ValueError, "batch 1 is empty"),
        (lambda e, rng: [], ValueError, "no batch"),
        (lambda e, rng: [[1], [N]], ValueError, f"batch 1 has index {N} ... < {N}"),
        (lambda e, rng: [[1, -1]], ValueError, "batch 0 has index -1"),
        (forgetful(), ValueError, "again ... state"),
        ([[1, 2]], TypeError, "[[1, 2]] ... function of (epoch, rng)"),
        (by_length([1, 2], 8), ValueError, f"2 samples ... {N}"),
    ],
)
def test_plans_that_cannot_be_read_are_refused_with_the_value(plan, error, said):
    with pytest.raises(error, match=mentions(said)):
        loader(plan)


@pytest.mark.parametrize("more", [{"bs": 64}, {"shuffle": True}, {"drop_last": True}, {"sampler": [1]}])
def test_arguments_that_a_plan_replaces_are_refused(more):
    with pytest.raises(ValueError, match=f"{next(iter(more))}.*plan"):
        loader(**more)


def test_batch_size_and_order_of_a_plan_cannot_be_changed():
    with pytest.raises(TypeError, match="plan"):
        make_learner(dls=DataLoaders(loader()), cbs=BatchSizeCB({0: 2, 1: 4})).fit(2)
    assert "plan" in adapter_of(loader()).why_no_order()
    with pytest.raises(ValueError, match="plan"):
        make_learner().predict(loader(lambda epoch, rng: [[0, 1], [1, 2]]))


def test_predictions_of_a_plan_are_in_the_order_of_the_data():
    learn = make_learner()
    plans = by_length(LENGTHS, 14), lambda epoch, rng: [range(3), range(3, N)]
    for preds, targets in (learn.predict(loader(plan), with_targets=True) for plan in plans):
        torch.testing.assert_close(preds, learn.predict(X))
        assert torch.equal(targets, Y)


# Training ---------------------------------------------------------------------------------------------


def test_steps_are_planned_for_each_epoch():
    seen = []

    def scheduler(opt, total_steps):
        seen.append(total_steps)
        return torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)

    learn = learner(BatchSchedulerCB(lambda opt: scheduler(opt, learn.total_steps)))
    learn.fit(2)
    assert learn.epoch_steps == [3, 5]
    assert (learn.n_steps, seen[-1]) == (8, 8)
    learn.fit(1)
    assert learn.epoch_steps == [7]
    assert learn.n_steps == 7


def test_steps_are_not_asked_of_a_plan_that_says_how_many():
    class Counted:
        n_batches, asked = 2, []

        def __call__(self, epoch, rng):
            self.asked.append(epoch)
            return [[0, 1], [2, 3]]

    learn = learner(plan=Counted())
    learn.fit(3)
    assert learn.epoch_steps == [2, 2, 2]
    assert sorted(set(Counted.asked)) == [0, 1, 2]
    assert Counted.asked.count(2) == 1


def test_training_is_that_of_a_loop_by_hand():
    learn = make_learner(dls=DataLoaders(loader()), opt_func=torch.optim.SGD)
    model = nn.Linear(3, 2)
    model.load_state_dict(learn.model.state_dict())
    learn.fit(2)
    opt, batches = torch.optim.SGD(model.parameters(), 0.1), loader()
    for epoch in range(2):
        batches.set_epoch(epoch)
        for xb, yb in batches:
            opt.zero_grad()
            nn.functional.cross_entropy(model(xb), yb).backward()
            opt.step()
    assert torch.equal(model.weight, learn.model.weight)


def test_accumulated_batches_of_a_length_plan_are_one_batch_of_all_tokens():
    sequences = [torch.arange(1 + i % 9) % 5 for i in range(32)]

    def collate(items):
        x = nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=5)
        return x, torch.where(x == 5, -100, (x + 1) % 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 5)

        def forward(self, x):
            return self.embed(x).transpose(1, 2)

    plan = by_length([len(s) for s in sequences], tokens=30)
    assert plan.n_batches > 4
    weights = []
    for of_batches in (plan, lambda epoch, rng: [range(32)]):
        train = DatasetLoader(sequences, plan=of_batches, collate_fn=collate, seed=0)
        n = len(train)
        set_seed(0)
        cbs = [GradientAccumulationCB(n)] * (n > 1)
        learn = Learner(
            Net(), DataLoaders(train), lr=1.0, opt_func=torch.optim.SGD, cbs=cbs, default_cbs=False
        )
        learn.fit(1)
        assert learn.n_steps == 1
        weights.append(learn.model.embed.weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


MORE = (EMACB, lambda: GradientAccumulationCB(2), lambda: GradientClippingCB(1))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), MORE])
def test_a_fit_resumes_at_every_rest(tmp_path, more):
    def made(*cbs, seed=1):
        return learner(MetricsCB(), *(make() for make in more), *cbs, seed=seed)

    rests = []
    straight = made(at("at_rest", rests.append))
    straight.fit(2)
    assert len(rests) > 9  # 3 + 5 batches, the end of each epoch and of the fit, and validation without EMA
    for n in dealt(range(1, len(rests))):
        stop(made(every_rest(tmp_path / str(n)), StopCB(n)))
        learn = made(every_rest(tmp_path / str(n)), seed=9)
        learn.fit(2, resume=True)
        assert same(tensors_of(learn.model), tensors_of(straight.model)), f"stopped at rest {n}"
        assert untimed_rows(learn) == untimed_rows(straight)


def test_a_loader_stands_at_the_epoch_of_the_state_it_takes():
    saved, resumed = loader(), loader(seed=9)
    saved.set_epoch(2)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.state_dict() == saved.state_dict()
    assert len(resumed) == len(saved) == 7


def sized(epoch, rng):
    """Give a random number of batches."""
    return np.array_split(rng.permutation(N), rng.integers(2, 9))


@pytest.mark.slow
def test_steps_of_a_resumed_fit_are_planned_with_its_seed_and_first_epoch(tmp_path):

    straight = learner(CheckpointCB(tmp_path / "a", keep=9), plan=sized)
    straight.fit(2)
    straight.fit(3)
    first = learner(every_rest(tmp_path / "b"), plan=sized)
    first.fit(2)
    stop(first, 3, cbs=[StopCB(6)])
    resumed = learner(every_rest(tmp_path / "b"), seed=9, plan=sized)
    resumed.fit(2, resume=True)
    resumed.fit(3, resume=True)
    assert resumed.epoch_steps == straight.epoch_steps
    assert torch.equal(resumed.model[0].weight, straight.model[0].weight)


@pytest.mark.slow
def test_another_plan_is_refused_when_resuming(tmp_path):
    stop(learner(every_rest(tmp_path), StopCB(2)))
    with pytest.raises(ValueError, match="plan"):
        learner(every_rest(tmp_path), plan=lambda epoch, rng: growing(epoch, rng)[::-1]).fit(2, resume=True)
    other = learner(every_rest(tmp_path))
    other.dls.train = DatasetLoader(DATA, 8)
    with pytest.raises(ValueError, match="steps in its epochs"):
        other.fit(2, resume=True)


@pytest.mark.slow
def test_verify_resume_and_lr_find():
    learn = learner(MetricsCB(), EMACB())
    assert "same bit for bit" in learn.verify_resume()
    assert len(learn.lr_find(n_steps=20).lrs) > 5


# By length --------------------------------------------------------------------------------------------


def test_batches_by_length_fit_their_budget_and_have_each_sample_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 500)
    plan = by_length(lengths, tokens=400)
    seen = [lists(plan, epoch, epoch) for epoch in range(3)]
    for batches in seen:
        assert sorted(i for batch in batches for i in batch) == [*range(500)]
        assert max(max(lengths[batch]) * len(batch) for batch in batches) <= 400
        assert len(batches) == plan.n_batches
    padding = 1 - lengths.sum() / sum(max(lengths[batch]) * len(batch) for batch in seen[0])
    in_order = [lengths[i : i + 4] for i in range(0, 500, 4)]
    assert padding < 0.08 < 1 - lengths.sum() / sum(max(part) * len(part) for part in in_order)
    assert seen[0] != seen[1]
    assert {*map(frozenset, seen[0])} != {*map(frozenset, seen[1])}  # not only in another order


def test_batches_by_length_without_shuffling_begin_with_the_shortest():
    plan = by_length([4, 1, 2, 1], tokens=4, shuffle=False)
    assert lists(plan) == [[1, 3], [2], [0]] or lists(plan) == [[1, 3, 2], [0]]
    assert lists(plan) == lists(plan, 5, 5)


def test_max_bs_limits_short_samples():
    assert max(map(len, lists(by_length([1] * 20, tokens=100, max_bs=6)))) == 6


@pytest.mark.parametrize(
    ("lengths", "tokens", "said"),
    [
        ([1, 9, 2], 8, "sample 1 has length 9 ... tokens=8"),
        ([1, -2], 8, "sample 1 has length -2"),
        ([], 8, "[]"),
        ([1.5], 8, "[1.5] ... whole number"),
        ([[1], [2, 3]], 8, "lengths=[[1], [2, 3]]"),
        ("ab", 8, "'ab'"),
    ],
)
def test_wrong_lengths_are_refused(lengths, tokens, said):
    with pytest.raises((TypeError, ValueError), match=mentions(said)):
        by_length(lengths, tokens)


# Shares -----------------------------------------------------------------------------------------------


def test_a_mix_has_each_data_set_by_its_weight():
    a, b = list(range(10)), list(range(100, 200))
    dataset, plan = mix([(a, 3), (b, 1)], bs=8, n_batches=10)
    drawn = [int(dataset[i]) for batch in lists(plan) for i in batch]
    assert len(dataset) == 110
    assert Counter(value >= 100 for value in drawn) == {False: 60, True: 20}
    counts = Counter(value for value in drawn if value < 100)
    assert counts == dict.fromkeys(range(10), 6)  # all of a small one before any of them again
    assert len({value for value in drawn if value >= 100}) == 20
    assert lists(plan, seed=1) != lists(plan)


def test_a_mix_without_shuffling_keeps_each_order():
    dataset, plan = mix([(list(range(4)), 1), (list(range(100, 104)), 1)], bs=4, shuffle=False)
    drawn = [dataset[i] for batch in lists(plan) for i in batch]
    assert [value for value in drawn if value < 100] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "parts", [[], [([1], 0)], [([1], "a")], [[1, 2]], [(5, 1)], [([], 1)], [([1], 1), ([2], 1e-9)]]
)
def test_wrong_mixes_are_refused(parts):
    with pytest.raises((TypeError, ValueError), match="mix"):
        mix(parts)


@pytest.mark.parametrize("targets", [[0] * 35 + [1] * 5, ["a"] * 35 + ["b"] * 5, torch.arange(40) // 35])
def test_classes_are_balanced(targets):
    plan = balanced(targets, bs=8)
    drawn = lists(plan)
    assert [len(batch) for batch in drawn] == [8] * 5
    assert Counter(i >= 35 for batch in drawn for i in batch) == {False: 20, True: 20}
    assert set(Counter(i for batch in drawn for i in batch if i >= 35).values()) == {4}


def test_targets_that_are_no_classes_are_refused():
    with pytest.raises(TypeError, match="classes"):
        balanced([0.5, 1.0])
