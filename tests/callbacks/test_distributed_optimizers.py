"""Two processes on gloo, with optimizers that are more than one call: what they train is what one trains."""

from pathlib import Path

import distributed_optimizers_worker as worker
import pytest
import torch
from test_distributed import assert_alike, launch

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
