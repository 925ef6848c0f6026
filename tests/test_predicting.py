"""What predict, predict_batches and a learner without data take, and which samples are in a batch."""

import numpy as np
import pytest
import torch
from toolbox import (
    StopCB,
    at,
    every_rest,
    fail_at,
    make_learner,
    mentions,
    norm_net,
    rng_states,
    same,
    samples,
    stop,
    tensors_of,
    untimed_rows,
)
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from minilearn import (
    EMACB,
    BatchSizeCB,
    Callback,
    CancelValidateException,
    DataLoaders,
    DatasetLoader,
    DetectionCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    TensorLoader,
    by_length,
    set_seed,
)
from minilearn.batches import Samples

N = 10
X, Y = samples(N)
DATA = TensorDataset(X, Y)


def expected(learn, x=X):
    with torch.no_grad():
        return learn.model.eval()(x)


def pairs():
    return [(X[i : i + 4], Y[i : i + 4]) for i in range(0, N, 4)]


def state(learn):
    """Return what a refused input must leave alone."""
    return (
        learn.dls,
        learn.history,
        list(learn.history),
        learn.model.training,
        learn.unpack_func,
        learn.purpose,
    )


GIVEN = {
    "loader": lambda: TensorLoader(X, Y, bs=4),
    "torch's loader": lambda: DataLoader(DATA, 4),
    "list of batches": pairs,
    "list of inputs": lambda: [x for x, _ in pairs()],
    "generator": lambda: iter(pairs()),
    "data set": lambda: DATA,
    "subset": lambda: Subset(DATA, range(N)),
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "array of float64": lambda: X.numpy().astype(np.float64)[::-1][::-1],
    "lists of numbers": lambda: X.tolist(),
    "list of samples": lambda: list(DATA),
    "list of single inputs": lambda: list(X),
    "list of single arrays": lambda: [x.numpy() for x in X],
}


# predict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GIVEN)
def test_each_kind_of_data_is_predicted(kind):
    learn = make_learner()
    torch.testing.assert_close(learn.predict(GIVEN[kind]()), expected(learn), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["loader", "data set", "list of samples", "list of batches"])
def test_targets_come_with_the_predictions(kind):
    learn = make_learner()
    preds, targets = learn.predict(GIVEN[kind](), with_targets=True)
    assert torch.equal(targets, Y)
    assert len(preds) == N


def test_targets_that_are_not_there_are_refused():
    learn = make_learner()
    before = state(learn)
    with pytest.raises(ValueError, match=r"with_targets.*without a target"):
        learn.predict(X, with_targets=True)
    assert state(learn) == before


@pytest.mark.parametrize("kind", ["data set", "tensor", "array", "list of samples"])
def test_batches_are_as_large_as_those_of_validation(kind):
    seen = []
    learn = make_learner(cbs=at("after_predict", lambda learn: seen.append(len(learn.preds))))
    learn.predict(GIVEN[kind]())
    assert seen == [4, 4, 2]
    seen.clear()
    learn.predict(GIVEN[kind](), bs=7)
    assert seen == [7, 3]


def test_unpack_is_for_batches_and_not_for_a_tensor():
    batches = [{"x": x, "y": y} for x, y in pairs()]
    learn = make_learner(dls=DataLoaders(batches), unpack=lambda batch: (batch["x"], batch["y"]))
    assert torch.equal(learn.predict(X), expected(learn))
    _preds, targets = learn.predict(batches, with_targets=True)
    assert torch.equal(targets, Y)


def test_unpack_is_still_there_after_a_prediction_inside_a_batch():
    seen = []

    def peek(learn):
        if learn.is_nested:
            return
        before = learn.xb
        learn.predict(X[:3])
        learn.batch = learn.batch
        seen.append(torch.equal(learn.xb, before) and torch.is_tensor(learn.xb))

    learn = make_learner(unpack=lambda batch: (batch[0], batch[1]), cbs=at("before_forward", peek))
    learn.fit(1)
    assert seen
    assert all(seen)


class Sentences(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError(i)
        return "ab" * (i + 1), i


def coded(items):
    words = [item[0] if isinstance(item, tuple) else item for item in items]
    x = nn.utils.rnn.pad_sequence([torch.tensor([float(ord(c)) for c in w]) for w in words], batch_first=True)
    return x.sum(1, keepdim=True), torch.arange(len(items))


def test_samples_are_collated_as_those_of_validation():
    dls = DataLoaders(DatasetLoader(Sentences(), 2), DatasetLoader(Sentences(), 2, collate_fn=coded))
    learn = Learner(nn.Linear(1, 3), dls, default_cbs=False)
    preds = learn.predict(Sentences())
    assert torch.equal(learn.predict(["ab", "abab", "ababab"]), preds)
    assert torch.equal(learn.predict([*Sentences()]), preds)


class Finder(nn.Module):
    """A detection model, which takes images of different sizes and finds one box in each."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.ones(()))

    def forward(self, images, targets=None):
        assert [image.ndim for image in images] == [3] * len(images)
        if targets is not None:
            return {"size": sum((self.size - len(t["boxes"])) ** 2 for t in targets)}
        return [{"boxes": torch.tensor([[0.0, 0.0, *image.shape[1:]]])} for image in images]


IMAGES = [(torch.rand(3, 4 + i, 5), {"boxes": torch.zeros(1 + i % 2, 4)}) for i in range(7)]


def apart(items):
    return tuple(zip(*items, strict=True))


@pytest.mark.parametrize("data", [IMAGES, IMAGES[:2], tuple(IMAGES), [IMAGES[1]]], ids=len)
def test_samples_of_batches_that_keep_them_apart_are_collated(data):
    dls = DataLoaders(DatasetLoader(IMAGES, 4, collate_fn=apart), DatasetLoader(IMAGES, 3, collate_fn=apart))
    learn = Learner(Finder(), dls, cbs=DetectionCB(), default_cbs=False)
    expected = [[0, 0, *image.shape[1:]] for image, _ in data]
    assert [found["boxes"][0].tolist() for found in learn.predict(data)] == expected
    learn.fit(1)
    assert [found["boxes"][0].tolist() for found in learn.predict(data)] == expected


@pytest.mark.parametrize("n", [1, 2, 3])
def test_boxes_are_of_each_image_where_a_batch_has_as_many_images_as_each_has_boxes(n):
    class FinderOfN(Finder):
        def forward(self, images):
            return [{"boxes": found["boxes"].repeat(n, 1)} for found in super().forward(images)]

    images = [image for image, _ in IMAGES]
    batches = [images[i : i + n] for i in range(0, 6, n)]
    for settings in ({"cbs": DetectionCB()}, {"unpack": lambda batch: (Samples(batch), None)}):
        found = Learner(FinderOfN(), default_cbs=False, **settings).predict(batches)
        assert [one["boxes"].tolist() for one in found] == [[[0, 0, *x.shape[1:]]] * n for x in images[:6]]
    stacked = [torch.rand(n, 3, 4, 5)] * 2  # one tensor of images
    assert len(Learner(FinderOfN(), cbs=DetectionCB(), default_cbs=False).predict(stacked)) == 2 * n


class Words(nn.Module):
    """Gives a list with as many numbers for each sample as it says."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return [row.repeat(int(row)) for row in x]


@pytest.mark.parametrize("lengths", [[1, 2, 3], [2, 1, 1], [2, 2, 3, 3, 1], [4, 2, 2, 2]])
@pytest.mark.parametrize("bs", [1, 2])
def test_lists_are_of_each_sample_if_one_batch_shows_it(bs, lengths):
    x = torch.tensor(lengths).float()[:, None]
    found = Learner(Words()).predict(list(x.split(bs)))
    assert [one.tolist() for one in found] == [[n] * n for n in lengths]


def test_dicts_are_of_each_sample_without_a_callback_for_detection():
    class Found(Words):
        def forward(self, x):
            return [{"words": words} for words in super().forward(x)]

    found = Learner(Found()).predict(list(torch.ones(3, 1).split(1)))
    assert [one["words"].tolist() for one in found] == [[1.0]] * 3


@pytest.mark.parametrize("with_targets", [True, False])
def test_batches_that_keep_samples_apart_stay_batches(with_targets):
    dls = DataLoaders(DatasetLoader(IMAGES, 4, collate_fn=apart), DatasetLoader(IMAGES, 3, collate_fn=apart))
    learn = Learner(Finder(), dls, cbs=DetectionCB(), default_cbs=False)
    batches = [apart(IMAGES[:2]), apart(IMAGES[2:])]
    given = batches if with_targets else [list(images) for images, _ in batches]
    expected = [[0, 0, *image.shape[1:]] for image, _ in IMAGES]
    assert [found["boxes"][0].tolist() for found in learn.predict(given)] == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "dl=3): expected an iterable of batches"),
        ("abc", "dl='abc')"),
        ({"x": X}, "a dict of 'x': ... [batch]"),
        (torch.zeros(()), "tensor(0.)"),
        (torch.zeros(0, 3), "(N, ...)"),
        (np.array([object()]), "object"),
        ([X[0, 0], X[0, 1]], "0 dimensions ... 2 ... 1"),
        (DataLoader(DATA, 4, shuffle=True), "shuffles"),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_the_learner_is_as_it_was(data, said):
    learn = make_learner(cbs=MetricsCB())
    learn.fit(1)
    before, numbers = state(learn), rng_states()
    for predict in (learn.predict, learn.predict_batches):
        with pytest.raises((TypeError, ValueError), match=mentions(said)):
            predict(data)
        assert state(learn) == before
    assert rng_states() == numbers


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, a, b=None):
        return self.linear(a if b is None else a + b)


@pytest.mark.parametrize("batch", [((X, X), Y), {"a": X, "b": X, "target": Y}], ids=["pair", "dict"])
def test_a_pair_of_the_two_inputs_is_not_taken_for_an_input_and_its_target(batch):
    learn = make_learner(model=TwoInputs(), dls={"train": [batch]})
    for given in ([(X, X)], list(zip(X, X, strict=True))):
        for predict in (learn.predict, learn.predict_batches):
            with pytest.raises(ValueError, match=mentions("2 inputs ... ((a, b), None)")):
                predict(given)
    both, one = learn.predict([((X, X), None)]), learn.predict([((X,), Y)])
    assert torch.equal(both, expected(learn, 2 * X))
    assert torch.equal(one, expected(learn))


def test_bs_beside_a_loader_is_refused():
    with pytest.raises(ValueError, match=mentions("bs=3 ... own batches")):
        make_learner().predict(TensorLoader(X, bs=2), bs=3)


def test_an_error_of_the_model_leaves_the_learner_as_it_was():
    learn = make_learner()
    before = state(learn)
    with pytest.raises(RuntimeError, match="shapes") as caught:
        learn.predict(torch.zeros(4, 5))
    assert state(learn) == before
    assert caught.value.__notes__ == ["minilearn: in Learner.predict, predict batch 0"]


@pytest.mark.parametrize("name", ["predict", "validate"])
def test_an_error_of_a_loader_names_what_was_called(name):
    class Broken:
        def __iter__(self):
            yield X, Y
            raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        getattr(make_learner(), name)(Broken())
    assert caught.value.__notes__ == [f"minilearn: in Learner.{name}, after {name} batch 0"]


def test_predictions_beside_bf16_and_ema():
    learn = make_learner(cbs=[MixedPrecisionCB(torch.bfloat16), EMACB(0.9)])
    learn.fit(1)
    assert torch.equal(learn.predict(X), learn.predict(TensorLoader(X, bs=4)))


# Without data -----------------------------------------------------------------------------------------


def test_a_learner_without_data_loads_predicts_and_validates(tmp_path):
    trained = make_learner(cbs=MetricsCB())
    trained.fit(1)
    trained.save(tmp_path / "model.safetensors")
    learn = Learner(nn.Linear(3, 2), cbs=MetricsCB(), default_cbs=False)
    learn.load(tmp_path / "model.safetensors")
    assert torch.equal(learn.predict(X), trained.predict(X))
    row, other = learn.validate(TensorLoader(X, Y, bs=4)), trained.validate(TensorLoader(X, Y, bs=4))
    assert {name: row[name] for name in ("loss", "MulticlassAccuracy")} == {
        name: other[name] for name in ("loss", "MulticlassAccuracy")
    }
    assert learn.validate(DATA)["loss"] == pytest.approx(row["loss"])
    assert learn.history == []


@pytest.mark.parametrize(
    "train", [lambda learn: learn.fit(1), lambda learn: learn.lr_find(), lambda learn: learn.verify_resume()]
)
def test_training_without_data_is_refused(train):
    with pytest.raises(ValueError, match="no data"):
        train(Learner(nn.Linear(3, 2), default_cbs=False))


def test_validating_nothing_is_refused():
    with pytest.raises(ValueError, match="no valid loader"):
        Learner(nn.Linear(3, 2)).validate()


def test_data_may_be_given_later():
    learn = Learner(nn.Linear(3, 2), default_cbs=False)
    learn.dls = DataLoaders(TensorLoader(X, Y))
    learn.fit(1)
    assert learn.n_steps == 1


# predict_batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GIVEN)
def test_batches_are_predicted_one_at_a_time(kind):
    learn = make_learner()
    found = list(learn.predict_batches(GIVEN[kind]()))
    assert torch.cat([index for index, _ in found]).tolist() == [*range(N)]
    assert torch.allclose(torch.cat([preds for _, preds in found]), expected(learn))
    assert len(found) == 3


def test_targets_come_with_the_batches():
    found = [*make_learner().predict_batches(DATA, with_targets=True, bs=6)]
    assert [len(index) for index, _, _ in found] == [6, 4]
    assert torch.equal(torch.cat([targets for _, _, targets in found]), Y)


def test_a_plan_may_give_the_samples_in_any_order():
    plan = by_length([1 + i % 3 for i in range(N)], tokens=6)
    learn = make_learner()
    preds = torch.zeros(N, 2)
    for index, part in learn.predict_batches(DatasetLoader(DATA, plan=plan)):
        preds[index] = part
    assert torch.allclose(preds, expected(learn))


def test_only_one_batch_is_read_ahead():
    read = []

    def give():
        for i, batch in enumerate(pairs()):
            read.append(i)
            yield batch

    batches = make_learner().predict_batches(give())
    next(batches)
    assert read == [0]


def test_leaving_the_loop_early_restores_the_learner():
    learn = make_learner(model=norm_net(), cbs=MetricsCB())
    learn.fit(1)
    learn.model.train()
    before, cbs, rows = state(learn), learn.cbs, untimed_rows(learn)
    for _ in learn.predict_batches(X, bs=2):
        assert torch.is_grad_enabled()
        assert learn.model.training  # as it was
        break
    assert state(learn) == before
    assert learn.cbs == cbs
    assert learn.scopes == []
    learn.fit(1)
    assert untimed_rows(learn)[: len(rows)] == rows


def test_an_error_in_the_loop_restores_the_learner():
    learn = make_learner()
    before = state(learn)

    def fail():
        for _ in learn.predict_batches(X, bs=2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state(learn) == before


def test_an_empty_batch_has_no_numbers_and_shifts_none():
    batches = [(X[:2], Y[:2]), (X[:0], Y[:0]), (X[2:4], Y[2:4])]
    found = [index.tolist() for index, _ in make_learner().predict_batches(batches)]
    assert [index for index in found if index] == [[0, 1], [2, 3]]


def test_a_callback_may_predict_batches_in_a_fit():
    class PredictCB(Callback):
        def after_step(self, learn):
            for _index, _preds in learn.predict_batches(X, bs=4):
                pass

    learns = [make_learner(shuffle=True, model=norm_net(0.3), cbs=cbs) for cbs in ([], [PredictCB()])]
    learns[1].model.load_state_dict(learns[0].model.state_dict())
    for learn in learns:
        set_seed(3)
        learn.dls.train.seed = 0
        learn.fit(2)
    assert torch.equal(learns[0].model[0].weight, learns[1].model[0].weight)


# learn.index ------------------------------------------------------------------------------------------


class WatchCB(Callback):
    """Note whether the numbers of the samples are those of the rows."""

    def __init__(self, x=X):
        self.x, self.seen, self.wrong = x, [], []

    def state_dict(self):
        return {}

    def before_batch(self, learn):
        index = learn.index
        self.seen.append(index.tolist())
        if not torch.equal(self.x[index], learn.xb):
            self.wrong.append((learn.epoch, learn.phase, learn.batch_idx))


KNOWN = {
    "tensors": lambda: TensorLoader(X, Y, bs=4, seed=0),
    "tensors, shuffled": lambda: TensorLoader(X, Y, bs=4, shuffle=True, seed=0),
    "data set": lambda: DatasetLoader(DATA, 4, shuffle=True, drop_last=True, seed=0),
    "data set, sampler": lambda: DatasetLoader(DATA, 4, sampler=[3, 1, 3, 2, 0], seed=0),
    "data set, plan": lambda: DatasetLoader(DATA, plan=by_length([1] * N, 4), seed=0),
    "torch": lambda: DataLoader(DATA, 4),
    "torch, shuffled": lambda: DataLoader(DATA, 4, shuffle=True),
    "torch, shuffled, workers": lambda: DataLoader(DATA, 2, shuffle=True, num_workers=2),
    "torch, workers that stay": lambda: DataLoader(
        DATA, 2, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
    ),
    "torch, weighted": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0, 2.0] * 5, 12)),
    "torch, random batches": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 3, False)
    ),
    "torch, listed": lambda: DataLoader(DATA, 4, sampler=[5, 4, 1, 0, 2]),
    "torch, listed batches": lambda: DataLoader(DATA, batch_sampler=[[1, 2], [9, 0, 3]]),
    "torch, shards": lambda: DataLoader(DATA, 4, sampler=DistributedSampler(DATA, 1, 0, shuffle=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KNOWN)
def test_index_says_which_samples_are_in_the_batch(kind):
    learn = make_learner(dls=DataLoaders(KNOWN[kind](), KNOWN[kind]()), cbs=(watch := WatchCB()))
    learn.fit(2)
    assert watch.wrong == []
    assert len({str(seen) for seen in watch.seen}) > 1


class IterLoader:
    def __iter__(self):
        return iter(pairs())


class StreamOfAll(IterableDataset):
    def __iter__(self):
        return iter([*DATA])


class OwnIterLoader(DataLoader):
    def __iter__(self):
        return iter(list(super().__iter__()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pairs, "list"),
        (IterLoader, "IterLoader"),
        (lambda: DataLoader(StreamOfAll(), 4), "DataLoader"),
        (lambda: DataLoader(DATA, 4, shuffle=True, num_workers=2, in_order=False), "in_order=False"),
        (lambda: OwnIterLoader(DATA, 4, shuffle=True), "OwnIterLoader"),
    ],
)
def test_index_that_is_not_known_is_refused(make, said):
    learn = make_learner(dls=DataLoaders(make()), cbs=WatchCB())
    with pytest.raises(ValueError, match=mentions(f"learn.index: ... {said}")):
        learn.fit(1)


def test_index_outside_a_batch_is_refused():
    learn = make_learner(
        dls=DataLoaders(KNOWN["tensors"]()), cbs=at("before_train", lambda learn: learn.index)
    )
    with pytest.raises(RuntimeError, match=r"learn\.index outside a batch"):
        learn.fit(1)
    with pytest.raises(RuntimeError, match=r"learn\.index outside a batch"):
        learn.index  # noqa: B018


@pytest.mark.slow
def test_index_is_that_of_the_running_pass_though_others_read_the_loader():
    class NestedCB(Callback):
        def after_step(self, learn):
            before = learn.index
            learn.validate(learn.dls.train, cbs=WatchCB())
            assert torch.equal(learn.index, before)
            learn.validate(learn.dls.train, cbs=at("after_batch", cancel))
            assert torch.equal(learn.index, before)

    def cancel(learn):
        raise CancelValidateException

    dls = DataLoaders(KNOWN["torch, shuffled"](), KNOWN["torch, shuffled, workers"]())
    learn = make_learner(dls=dls, cbs=[watch := WatchCB(), NestedCB(), BatchSizeCB({1: 5})])
    learn.fit(2)
    assert watch.wrong == []
    assert max(map(len, watch.seen)) == 5


def test_noting_what_a_sampler_gives_changes_no_random_number():
    set_seed(3)
    loader = DataLoader(DATA, 4, shuffle=True)
    plain = [torch.cat([x, torch.rand(len(x), 1)], 1) for _ in range(2) for x, _ in loader]
    set_seed(3)
    adapter = DataLoaders(loader).adapters["train"]
    noted = [torch.cat([x, torch.rand(len(x), 1)], 1) for _ in range(2) for x, _ in adapter.read()]
    assert all(map(torch.equal, plain, noted))


def test_index_is_right_in_a_resumed_run(tmp_path):
    def new(*cbs):
        return make_learner(dls=DataLoaders(KNOWN["tensors, shuffled"]()), cbs=cbs)

    new(straight := WatchCB()).fit(2)
    stop(new(every_rest(tmp_path), StopCB(5)))
    new(every_rest(tmp_path), resumed := WatchCB()).fit(2, resume=True)
    assert resumed.seen == straight.seen[4:]
    assert resumed.wrong == []


def test_index_follows_another_batch_size_and_a_nested_pass():
    seen = []

    class NestedCB(Callback):
        def after_step(self, learn):
            before = learn.index
            learn.validate()
            seen.append(torch.equal(learn.index, before))

    dls = DataLoaders(KNOWN["tensors, shuffled"](), KNOWN["tensors"]())
    learn = make_learner(dls=dls, cbs=[watch := WatchCB(), BatchSizeCB({1: 5}), NestedCB()])
    learn.fit(2)
    assert watch.wrong == []
    assert max(map(len, watch.seen)) == 5
    assert all(seen)


def test_mixing_does_not_change_the_index():
    watch = WatchCB()
    make_learner(dls=DataLoaders(KNOWN["tensors"]()), cbs=[watch, MixupCB()]).fit(1, valid=False)
    assert watch.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_index_of_shards_has_each_sample_once():
    for make in (KNOWN["tensors, shuffled"], KNOWN["torch"], KNOWN["data set, plan"]):
        dls = DataLoaders(make())
        shards = [dls.adapter_of(dls.adapters["train"].shard(rank, 2)) for rank in range(2)]
        whole = dls.adapters["train"]
        for i in range(2):
            joint = torch.cat([shard.index(i) for shard in shards])
            assert torch.equal(joint, whole.index(i))


def test_index_cannot_be_set():
    with pytest.raises(TypeError, match="index"):
        make_learner().index = 3


def test_nothing_is_computed_unless_the_index_is_read(monkeypatch):
    monkeypatch.setattr(TensorLoader, "index_of", fail_at(0))
    make_learner(shuffle=True).fit(1)


# Between two batches ------------------------------------------------------------------------------------


def test_a_loop_over_predictions_may_do_anything_with_the_learner():
    learn = make_learner(3)
    row, alone = learn.validate(), [preds for _, preds in learn.predict_batches(X, bs=2)]
    seen = []
    pairs = zip(learn.predict_batches(X, bs=2), learn.predict_batches(X[:3], bs=2), strict=False)
    for (_, a), (index, b) in pairs:
        assert (learn.purpose, learn.scopes, learn.model.training) == (None, [], True)
        assert torch.is_grad_enabled()
        found = learn.validate()
        assert found["loss"] == row["loss"] if "loss" in row else found == row
        seen.append((a, index.tolist()))
        torch.testing.assert_close(b, a[: len(b)])
    assert [index for _, index in seen] == [[0, 1], [2]]
    torch.testing.assert_close([a for a, _ in seen], alone[:2])
    learn.fit()
    assert learn.n_steps == 3


@pytest.mark.parametrize("event", ["after_train", "after_step", "after_batch"])
def test_a_pass_that_is_kept_open_in_a_fit_changes_nothing(event):
    def trained(*cbs):
        learn = make_learner(3, shuffle=True, cbs=[MetricsCB(), *cbs])
        learn.fit(2)
        return learn

    kept = []

    def hold(learn):
        if not learn.is_nested:
            kept.append(learn.predict_batches(X, bs=2))
            next(kept[-1])

    plain, learn = trained(), trained(at(event, hold))
    assert untimed_rows(learn) == untimed_rows(plain)
    assert same(tensors_of(learn.model), tensors_of(plain.model))
    assert len(kept) > 1


@pytest.mark.parametrize("n", [0, 1])
def test_a_hook_that_cancels_the_pass_ends_the_loop(n):
    def cancel(learn):
        if learn.batch_idx == n:
            raise CancelValidateException

    learn = make_learner(cbs=[at("before_batch", cancel)])
    found = list(learn.predict_batches(X, bs=2))
    assert [index.tolist() for index, _ in found] == [[0, 1]][:n]
    assert learn.scopes == []
