"""Two processes on gloo: a GAN with a second optimizer, mixed images, transformers on a length plan."""

from importlib.util import find_spec
from pathlib import Path

import distributed_jobs_worker as worker
import pytest
import torch
from test_distributed import assert_alike, launch
from toolbox import same, tensors_of
from torch.nn import functional as F
from torch.optim import SGD

pytestmark = [pytest.mark.slow, pytest.mark.full]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def two(folder):
    codes, said = launch(2, "cases", folder, Path(worker.__file__))
    assert codes == [0, 0], said
    return torch.load(folder / "cases.pt")


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


# A second optimizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [worker.adversarial, worker.beside_others], ids=lambda case: case.__name__)
def test_a_second_optimizer_trains_as_in_one_process(case, two, tmp_path):
    alone, found = case(tmp_path), two[case.__name__]
    assert_alike(found["rows"], alone["rows"])
    assert_close(found["weights"], alone["weights"])
    first, second = found["critics"]
    assert same(first, second)
    assert_close(first, alone["critics"][0])
    for codes in found.get("codes", []):
        torch.testing.assert_close(codes, alone["codes"][0], rtol=1e-4, atol=1e-5)


def test_a_second_optimizer_is_resumed_bit_for_bit(two):
    straight, resumed = two["adversarial"], two["adversarial_resumed"]
    assert resumed["rows"] == straight["rows"]
    assert same(resumed["weights"], straight["weights"])
    assert all(map(same, resumed["critics"], straight["critics"]))


# Mixed images -----------------------------------------------------------------------------------------


def test_cut_images_of_all_shards_are_one_batch(two):
    found, model = two["mixed"], worker.images()
    opt, losses = SGD(model.parameters(), 0.02), []
    for shards in found["steps"]:
        opt.zero_grad()
        total = 0
        for x, y, other, share in filter(None, shards):
            preds = model(x)
            loss = share * F.cross_entropy(preds, y, reduction="sum")
            total = total + loss + (1 - share) * F.cross_entropy(preds, other, reduction="sum")
        n = sum(len(shard[0]) for shard in shards if shard)
        (total / n).backward()
        opt.step()
        losses.append((total.item(), n))
    assert [n for _, n in losses] == [9, 9, 9, 1] * 2
    assert_close(found["weights"], tensors_of(model))
    for epoch, row in enumerate(found["rows"]):
        part = losses[4 * epoch : 4 * epoch + 4]
        assert row["loss"] == pytest.approx(sum(total for total, _ in part) / 28, abs=1e-5)


def test_mixtures_of_each_process_are_resumed_bit_for_bit(two):
    straight, resumed = (two["mixed_resumed"][name] for name in ("straight", "resumed"))
    for step, other in zip(straight["steps"][6:], resumed["steps"], strict=True):
        for shard, again in zip(step, other, strict=True):
            assert (shard is None) == (again is None)
            if shard:
                assert shard[3] == again[3]
                assert all(map(torch.equal, shard[:3], again[:3]))
    assert resumed["rows"] == straight["rows"]
    assert same(resumed["weights"], straight["weights"])


# A plan of lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        worker.by_lengths,
        pytest.param(
            worker.by_lengths_of_theirs,
            marks=pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers"),
        ),
    ],
    ids=lambda case: case.__name__,
)
def test_batches_by_length_have_the_means_over_tokens_of_one_process(case, two, tmp_path):
    alone, found = case(tmp_path), two[case.__name__]
    assert len(alone) == 4
    for name, expected in alone.items():
        assert_alike(found[name]["rows"], expected["rows"])
        assert_close(found[name]["weights"], expected["weights"])
