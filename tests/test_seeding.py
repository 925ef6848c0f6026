import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from minilearn import Learner, StridedCNN, TensorLoader, set_seed, shapes
from minilearn.seeding import kept_rng


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_same_seed_repeats_python_numpy_and_torch():
    set_seed(1)
    first = draws()
    set_seed(1)
    assert draws() == first


def test_other_seed_gives_other_numbers():
    set_seed(1)
    first = draws()
    set_seed(2)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def tensor_loader(tensors):
    return TensorLoader(*tensors, bs=32, shuffle=True)


def torch_loader(tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=32, shuffle=True)


def trained_weights(make_loader, seed):
    set_seed(seed)
    tensors = shapes(n_train=128, n_valid=1, seed=0).train.tensors
    learn = Learner(StridedCNN(), {"train": make_loader(tensors)}, lr=1e-2, default_cbs=False)
    learn.fit(2)
    return learn.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("make_loader", [tensor_loader, torch_loader])
def test_same_seed_trains_bitwise_the_same_weights(make_loader):
    a, b = (trained_weights(make_loader, seed=7) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("make_loader", [tensor_loader, torch_loader])
def test_other_seed_trains_other_weights(make_loader):
    a, b = (trained_weights(make_loader, seed) for seed in (7, 8))
    assert not any(torch.equal(a[name], b[name]) for name in a if name.endswith(("weight", "bias")))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed={seed}"):
        set_seed(seed)


def test_refused_seed_changes_no_generator():
    set_seed(1)
    first = draws()
    set_seed(1)
    with pytest.raises(ValueError, match="seed=-1"):
        set_seed(-1)
    assert draws() == first


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seed_at_the_ends_of_the_range_is_taken(seed):
    set_seed(seed)
    assert torch.initial_seed() == seed


@pytest.fixture
def torch_flags(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_sets_torchs_flags(deterministic):
    set_seed(0, deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


@pytest.mark.usefixtures("torch_flags")
def test_deterministic_keeps_the_users_cublas_setting(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_seed(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_kept_rng_puts_every_generator_back():
    set_seed(3)
    expected = draws()
    set_seed(3)
    with kept_rng():
        assert draws() == expected
        set_seed(4)
    assert draws() == expected


def test_kept_rng_puts_every_generator_back_after_an_error():
    set_seed(3)
    expected = draws()
    set_seed(3)
    with pytest.raises(ZeroDivisionError), kept_rng():
        draws()[0] / 0
    assert draws() == expected


def test_kept_rng_puts_back_the_generators_it_is_given():
    generator = torch.Generator().manual_seed(5)
    expected = generator.get_state()
    with kept_rng(generator):
        torch.rand(3, generator=generator)
    assert torch.equal(generator.get_state(), expected)
