"""Two processes on gloo, with optimizers that are more than one call: what they train is what one trains."""

import re
from pathlib import Path

import distributed_optimizers_worker as worker
import pytest
import torch
from test_distributed import assert_alike, launch
from toolbox import mentions
from torch.optim import AdamW

from minilearn import EMACB, DistributedCB

pytestmark = pytest.mark.slow
SCRIPT = Path(worker.__file__)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    pytest.importorskip("schedulefree")
    folder = tmp_path_factory.mktemp("processes")
    codes, said = launch(2, "cases", folder, SCRIPT)
    assert codes == [0, 0], said
    return torch.load(folder / "cases-2.pt")


@pytest.mark.parametrize("case", worker.CASES, ids=lambda case: case.__name__)
def test_history_and_weights_are_those_of_one_process(case, two):
    alone = case()
    found = two[case.__name__]
    assert_alike(found["rows"], alone["rows"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-5)


def test_muon_on_shards_steps_whole_matrices(two):
    """torch's Muon iterates in bfloat16, so sums in another order change a step by a few percent."""
    found = two["muon_sharded"]
    assert max(found["whole"]) < 0.1
    assert min(found["alone"]) > 0.3


# Tensor parallelism ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    codes, said = launch(2, "parallel", folder, SCRIPT)
    assert codes == [0, 0], said
    return torch.load(folder / "parallel-2.pt"), torch.load(folder / "refused-2.pt"), folder


@pytest.mark.full
@pytest.mark.parametrize("case", worker.PARALLEL, ids=lambda case: case.__name__)
def test_a_parallel_model_is_trained_like_a_whole_one(case, parallel):
    alone, found = case(), parallel[0][case.__name__]
    assert_alike(found["rows"], alone["rows"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert all(rows == found["rows"] for rows in found["all_rows"])


@pytest.mark.full
def test_a_parallel_model_in_bf16_differs_by_its_rounding(parallel):
    alone, found = worker.parallel_in_bf16(), parallel[0]["parallel_in_bf16"]
    for a, b in zip(found["rows"], alone["rows"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)


@pytest.mark.full
def test_each_process_has_a_part_and_predicts_all(parallel):
    alone, found = worker.parallel(), parallel[0]["parallel"]
    # Of 112 + 136 + 16 + 27 numbers, half of the first two layers but for the second one's 8 biases.
    assert found["n_here"] == 56 + 64 + 8 + 16 + 27
    assert found["row"] == pytest.approx(alone["row"], abs=1e-5)
    torch.testing.assert_close(found["preds"], alone["preds"], rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_a_parallel_run_is_resumed_bit_for_bit(parallel):
    straight, resumed = parallel[0]["parallel_unbroken"], parallel[0]["parallel_resumed"]
    assert straight["rows"] == resumed["rows"]
    for name, weight in straight["weights"].items():
        assert torch.equal(weight, resumed["weights"][name])


@pytest.mark.full
def test_one_process_resumes_a_parallel_run(parallel, tmp_path):
    straight = parallel[0]["parallel_unbroken"]
    paths = sorted((parallel[2] / "tp").glob("epoch-0001-train-*.pt"))
    learn = worker.parallel_learner(EMACB(0.9), worker.saver(tmp_path), worker.PauseCB(False), opt_func=AdamW)
    learn.fit(2, resume=paths[2])
    assert_alike(worker.said(learn)["rows"], straight["rows"])


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing ... made no parameter a DTensor"),
        ("apart", "apart ... left 4.weight different in the processes"),
        ("another", "returned another Sequential: expected the model, changed in place"),
    ],
)
def test_functions_that_do_something_else_are_refused(name, message, parallel):
    assert re.search(mentions(message), parallel[1][name])


def test_one_way_to_divide_a_model_is_given():
    with pytest.raises(ValueError, match=mentions("parallelize=..., shard=True) ... only one")):
        DistributedCB(shard=True, parallelize=worker.tensor_parallel)
    with pytest.raises(ValueError, match=mentions("parallelize=..., static_graph=True) ... only one")):
        DistributedCB(static_graph=True, parallelize=worker.tensor_parallel)
