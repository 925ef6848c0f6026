"""Samplers with a state of their own: a resumed run reads the samples that the straight one reads."""

from functools import partial

import numpy as np
import pytest
import torch
from test_hidden_state import same_after_a_stop
from toolbox import dealt, generator, make_learner, samples
from torch.utils.data import SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from minilearn import Callback, DataLoaders, DatasetLoader

pytestmark = pytest.mark.slow

N = 16
STOPS = (1, 2, 4, 5, 6, 8, 11)


class Sampler:
    """Give an order that `draw` makes of what this object keeps."""

    def __init__(self, kept, draw):
        self.kept, self.draw = kept, draw

    def __len__(self):
        return N

    def __iter__(self):
        return iter(self.draw(self))


def permuted(number):
    return torch.randperm(N, generator=generator(int(number))).tolist()


def by_count(sampler):
    sampler.kept += 1
    return permuted(sampler.kept)


def by_last_order(sampler):
    sampler.kept = [sampler.kept[i] for i in permuted(3)]
    return sampler.kept


def by_tuple(sampler):
    sampler.kept = (*sampler.kept, 1)
    return permuted(len(sampler.kept))


def by_tensor(sampler):
    sampler.kept += 1
    return permuted(int(sampler.kept.sum()))


def by_text(sampler):
    sampler.kept += "a"
    return permuted(len(sampler.kept))


def by_new_attribute(sampler):
    sampler.n = getattr(sampler, "n", 0) + 1
    return permuted(sampler.n)


def by_global_numbers(sampler):
    return torch.randperm(N).tolist()


OWN = {
    "count": (lambda: 0, by_count),
    "float": (lambda: 0.0, by_count),
    "list": (lambda: list(range(N)), by_last_order),
    "tuple": (tuple, by_tuple),
    "tensor": (lambda: torch.zeros(2), by_tensor),
    "array": (lambda: np.zeros(2), by_tensor),
    "text": (str, by_text),
    "attribute made late": (lambda: None, by_new_attribute),
    "none": (lambda: None, by_global_numbers),
}


class WithState(Sampler):
    def __init__(self):
        super().__init__({"n": 0}, WithState._draw)

    def _draw(self):
        self.kept["n"] += 1
        return permuted(self.kept["n"])

    def state_dict(self):
        return dict(self.kept)

    def load_state_dict(self, state):
        self.kept = dict(state)


def script(make, *own):
    """Return a function that makes a learner whose samples the sampler chooses. own: sampler -> callback."""

    def made(*cbs):
        sampler = make()
        learn = make_learner(cbs=[*(one(sampler) for one in own), *cbs])
        data = TensorDataset(*samples(N))
        learn.dls = DataLoaders(DatasetLoader(data, 4, sampler=sampler, seed=0), learn.dls.valid)
        return learn

    return made


@pytest.mark.parametrize("kind", OWN)
def test_state_of_a_sampler_is_resumed(tmp_path, kind):
    make, draw = OWN[kind]
    same_after_a_stop(script(lambda: Sampler(make(), draw)), tmp_path, stops=dealt(STOPS))


def test_state_dict_of_a_sampler_is_resumed(tmp_path):
    same_after_a_stop(script(WithState), tmp_path, stops=dealt(STOPS))


class WeighCB(Callback):
    """Change the weights of a sampler, step by step."""

    def __init__(self, sampler):
        self.sampler = sampler

    def state_dict(self):
        return {}

    def after_step(self, learn):
        self.sampler.weights[learn.n_steps % N] += 5.0


class ShareCB(Callback):
    """The same, by the tensor itself, which is the sampler's too."""

    def __init__(self, sampler):
        self.weights = sampler.weights

    def after_step(self, learn):
        self.weights[learn.n_steps % N] += 5.0


class ReplaceCB(Callback):
    """Replace the indices from which a sampler draws."""

    def __init__(self, sampler):
        self.sampler = sampler

    def state_dict(self):
        return {}

    def after_epoch(self, learn):
        self.sampler.indices = [(i + 3) % N for i in self.sampler.indices][::-1]


@pytest.mark.filterwarnings("ignore:ReplaceCB has sampler")  # which it has changed by then
@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: WeightedRandomSampler(torch.ones(N), N), WeighCB),
        (lambda: WeightedRandomSampler(torch.ones(N), N), ShareCB),
        (partial(SubsetRandomSampler, list(range(N))), ReplaceCB),
    ],
)
def test_sampler_that_a_callback_changes_is_resumed(tmp_path, make, own):
    same_after_a_stop(script(make, own), tmp_path, stops=dealt(STOPS))


def test_verify_resume_knows_samplers():
    make, draw = OWN["count"]
    assert "bit for bit" in script(lambda: Sampler(make(), draw))().verify_resume()
