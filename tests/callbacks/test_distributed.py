"""Real processes on gloo: what they train together is what one process trains alone."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import distributed_worker as worker
import pytest
import torch
from toolbox import mentions, untimed_rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minilearn import DataLoaders, DistributedCB, Learner, MetricsCB, TensorLoader, processes
from minilearn.callbacks import distributed
from minilearn.data import adapter_of
from minilearn.fitting.request import StopRequest
from minilearn.plan import Plan
from minilearn.processes import Processes

WORKER = Path(worker.__file__)
TIMEOUT_S = 120


def launch(n, what, folder, worker=WORKER):
    """Start n processes, as torchrun does; return their exit codes and what each wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(n):
        env = os.environ | {name: str(value) for name, value in shared.items()}
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(worker), what, str(folder)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
    try:
        said = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone():
    """Each case in one process."""
    return {case.__name__: case() for case in (*worker.CASES, worker.unbroken, worker.accumulated)}


@pytest.fixture(scope="module")
def two(folder):
    """Each case in two processes, and then an error in the last."""
    codes, said = launch(2, "cases", folder)
    return torch.load(folder / "cases-2.pt"), codes, said


@pytest.fixture(scope="module")
def three(folder):
    """Each case in three processes, and then a fit that is left, and one whose last process dies."""
    codes, said = launch(3, "killed", folder)
    return torch.load(folder / "cases-3.pt"), codes, said


@pytest.fixture(scope="module")
def resumed(folder, three):
    """The two fits gone on with in two processes, and then a SIGTERM to one of these."""
    codes, said = launch(2, "resumed", folder)
    return torch.load(folder / "resumed-2.pt"), codes, said


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.full)])
def several(request):
    return request.getfixturevalue({2: "two", 3: "three"}[request.param])[0]


@pytest.mark.slow
def test_each_sample_has_its_number_in_one_process(several, alone):
    for joint, single in zip(several["numbered"]["seen"], alone["numbered"]["seen"], strict=True):
        if isinstance(single[0], torch.Tensor):  # how often each was seen in training
            assert torch.equal(sum(joint), single[0])
            continue
        index, preds = (torch.cat(parts) for parts in zip(*joint, strict=True))
        order = index.argsort()
        assert torch.equal(index[order], single[0][0].sort().values)  # each once
        torch.testing.assert_close(preds[order], single[0][1][single[0][0].argsort()], rtol=1e-4, atol=1e-5)


def assert_alike(rows, others):
    assert len(rows) == len(others)
    for a, b in zip(rows, others, strict=True):
        assert a == pytest.approx(b, abs=1e-5)  # sums in another order, over 30 steps


# One process and several --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *("plain", "of_a_list", "clipped_accumulation", "beside", "sharded", "counted", "left"),
        *("planned", "named", "in_steps", "in_steps_of_a_list"),
        *("again", "again_sharded", "left_out", "rest_left_out", "rest_sharded"),
    ],
)
def test_history_and_weights_are_those_of_one_process(case, several, alone):
    assert_alike(several[case]["rows"], alone[case]["rows"])
    for name, weight in alone[case]["weights"].items():
        torch.testing.assert_close(several[case]["weights"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_parameters_beside_the_model_are_those_of_one_process_in_all(several, alone):
    [expected] = alone["beside"]["values"]
    first, *others = several["beside"]["values"]
    for values in others:
        assert all(map(torch.equal, values, first))
    for value, other in zip(first, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected[0], torch.zeros(3, 3))


def test_parameters_beside_the_model_are_refused_where_it_is_sharded():
    learn = worker.shared_learner(loss=worker.CentreLoss())
    learn.fit(1)
    with pytest.raises(ValueError, match=mentions("learn.loss_func.centres ... shard")):
        DistributedCB(shard=True)._find_extra(learn)


@pytest.mark.slow
def test_swa_and_mixed_precision_go_with_it(several, alone):
    for a, b in zip(several["averaged"]["rows"], alone["averaged"]["rows"], strict=True):
        assert a["train"] == b["train"]
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-2)  # of 3 digits in bfloat16, over 18 steps


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "clipped_accumulation", "averaged", "normed", "sharded"])
def test_all_processes_have_the_same_history(case, several):
    assert all(rows == several[case]["rows"] for rows in several[case]["all_rows"])


@pytest.mark.slow
def test_each_sample_is_seen_once_an_epoch_by_one_process(several):
    valid, train = ([ids for seen in several["plain"]["seen"] for ids in seen[part]] for part in (0, 1))
    assert sorted(train) == sorted(2 * [*range(worker.N_TRAIN)])
    assert sorted(valid) == sorted(2 * [*range(worker.N_TRAIN, worker.N_TRAIN + worker.N_VALID)])


@pytest.mark.slow
def test_predict_gives_all_samples_in_order_in_each_process(several, alone):
    torch.testing.assert_close(several["plain"]["preds"], alone["plain"]["preds"], rtol=1e-4, atol=1e-5)
    assert several["plain"]["row"] == pytest.approx(alone["plain"]["row"], abs=1e-5)


@pytest.mark.slow
def test_random_numbers_differ_from_process_to_process(several):
    seeds = several["plain"]["seeds"]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.slow
def test_gradients_are_joined_once_a_step_not_at_each_batch(several):
    alike = several["clipped_accumulation"]["alike"]
    assert len(alike["step"]) == 6
    assert all(alike["step"])
    assert len(alike["accumulating"]) == 14  # 3, 3 and 1 of each epoch's 10 batches
    assert not any(alike["accumulating"])


@pytest.mark.slow
def test_gradients_of_another_forward_are_those_of_the_joint_batch(several):
    assert several["again"]["alike"]["step"] == [True] * 20


@pytest.mark.slow
def test_rest_of_an_epoch_takes_its_step_in_all_processes(several, alone):
    n_steps = alone["rest_left_out"]["n_steps"][0]
    assert several["rest_left_out"]["n_steps"] == [n_steps] * len(several["rest_left_out"]["n_steps"])


@pytest.mark.slow
def test_batchnorm_has_the_same_statistics_in_all_processes(several):
    first, *others = several["normed"]["statistics"]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_lr_find_finds_what_one_process_finds(several, alone):
    assert several["found"]["losses"] == pytest.approx(alone["found"]["losses"], rel=1e-3)


@pytest.mark.slow
def test_sharded_each_process_has_its_part(several):
    n_here = several["sharded"]["n_here"]
    assert sum(n_here) == 6 * 16 + 16 + 16 * 3 + 3
    assert max(n_here) < sum(n_here)


# When it goes wrong -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(two):
    _, codes, said = two
    assert codes == [1, 1]
    assert "ValueError: a broken sample" in said[1][1]
    assert re.search("minilearn.*process 1.*ValueError: a broken sample", said[0][1])


@pytest.mark.full
def test_the_death_of_one_process_ends_all(three):
    _, codes, _ = three
    assert codes == [1, 1, 9]


@pytest.mark.full
def test_processes_that_are_out_of_sync_are_ended(folder):
    codes, said = launch(2, "apart", folder)
    assert codes == [1, 1]
    assert re.search("out of sync.*loop.*process 1.*epoch 0", said[1][1])
    assert re.search(r"minilearn.*process 1.*RuntimeError: DistributedCB\(\)", said[0][1])
    assert "cleanup_fit failed too" not in said[1][1]


def parts():
    """Return what DistributedCB hears and says through."""
    return {"stop": StopRequest(), "processes": Processes()}


@pytest.fixture
def at_rest(monkeypatch):
    """A function that has another process come to rest somewhere, which all that came before it hear of."""
    asked = []

    def ask(values):
        asked.append(values)
        return lambda: [max(pair) for pair in zip(*asked, strict=True)]

    def come(**place):
        cb = DistributedCB()
        cb.n_processes = 2
        learn = SimpleNamespace(**place, **parts(), where=lambda: "some place")
        cb.at_rest(learn)
        if cb._asked is not None:
            cb._hear(learn)

    monkeypatch.setattr(distributed, "ask", ask)
    monkeypatch.setattr(distributed, "fail", lambda rank, error: None)
    return come


IN_TRAINING = {
    "epoch": 1,
    "batch_idx": 3,
    "n_steps": 7,
    "scopes": ["fit", "epoch", "train"],
    "training": True,
}
AFTER_EPOCH = IN_TRAINING | {"scopes": ["fit"], "training": False}


@pytest.mark.parametrize(
    ("place", "other", "how"),
    [
        (IN_TRAINING, {"n_steps": 5}, "step 5 ... 7"),
        (IN_TRAINING, {"epoch": 0, "batch_idx": 2}, "epoch 0 ... 1, batch 2 ... 3"),
        (IN_TRAINING, {"scopes": ["fit", "epoch", "validate"], "training": False}, "loop"),
        (IN_TRAINING, AFTER_EPOCH, "loop"),
        (AFTER_EPOCH, {"scopes": []}, "loop"),
    ],
)
def test_where_processes_are_out_of_sync_is_said(place, other, how, at_rest):
    at_rest(**place)
    at_rest(**place)
    with pytest.raises(RuntimeError, match=mentions(f"{how} ... process 0")):
        at_rest(**(place | other))


def test_in_a_loop_no_one_waits(monkeypatch):
    heard = []
    monkeypatch.setattr(distributed, "ask", lambda values: lambda: heard.append(values) or values)
    cb = DistributedCB()
    cb.n_processes = 2
    for fields, n_heard in ((IN_TRAINING, 0), (IN_TRAINING, 1), (AFTER_EPOCH, 3), (IN_TRAINING, 3)):
        cb.at_rest(SimpleNamespace(**fields, **parts()))
        assert len(heard) == n_heard


@pytest.mark.full
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_processes_go_on_from_a_checkpoint_of_three(kind, resumed, alone):
    found = resumed[0][kind]
    assert_alike(found["rows"], alone["unbroken"]["rows"])
    for name, weight in alone["unbroken"]["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("shard", [None, True])
def test_two_processes_resume_while_three_were_accumulating(shard, resumed, alone):
    found = resumed[0][f"accumulating-{shard}"]
    assert_alike(found["rows"], alone["accumulated"]["rows"])
    for name, weight in alone["accumulated"]["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_a_pause_that_one_process_asks_for_is_one_of_all(resumed):
    found = resumed[0]["paused"]
    assert found["asked"] == [[True, 0, 15, True]] * 2  # the step after it: the other one has to hear of it
    assert found["rows"] == found["straight"]["rows"]
    for name, weight in found["straight"]["weights"].items():
        assert torch.equal(found["weights"][name], weight)


@pytest.mark.full
def test_a_signal_to_one_process_stops_all_after_the_same_step(resumed, folder):
    _, codes, _ = resumed
    assert codes == [128 + signal.SIGTERM] * 2
    assert len(list((folder / "signalled").glob("epoch-0001-train-*.pt"))) == 1


@pytest.mark.full
def test_a_signal_of_the_scheduler_to_any_process_stops_all_and_the_run_resumes(tmp_path, alone):
    for what in ("SIGUSR1 to 0", "SIGUSR1 to 1"):
        codes, _ = launch(2, what, tmp_path)
        assert codes == [128 + signal.SIGUSR1] * 2
        assert len(list((tmp_path / what).glob("epoch-0001-train-*.pt"))) == 1
    codes, written = launch(2, "after SIGUSR1", tmp_path)
    assert codes == [0, 0], written
    for found in torch.load(tmp_path / "after SIGUSR1-2.pt").values():
        assert_alike(found["rows"], alone["unbroken"]["rows"])


@pytest.mark.slow
def test_only_the_first_process_shows_progress(two):
    _, _, said = two
    assert "epoch 0 (1/2)" in said[0][0]
    assert "epoch 0" not in said[1][0]


# In one process -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_torchrun_it_changes_nothing(alone):
    learn = worker.shared_learner()
    learn.remove_cb(learn.cbs[-1])
    learn.fit(2)
    rows = untimed_rows(learn)
    assert rows == alone["plain"]["rows"][:4]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("n_samples", "bs"), [(20, 4), (83, 9), (10, 16), (9, 8)])
def test_parts_are_the_whole_and_differ_by_at_most_a_sample(n, n_samples, bs):
    whole = TensorLoader(torch.arange(n_samples), bs=bs, shuffle=True, seed=1)
    parts = [adapter_of(whole).shard(rank, n) for rank in range(n)]
    for i, (batch, *of_parts) in enumerate(zip(whole, *parts, strict=True)):
        sizes = [part.sizes(i) for part in parts]
        assert {joint for _, joint in sizes} == {len(batch[0])}
        assert max(own for own, _ in sizes) - min(own for own, _ in sizes) <= 1
        kept = [part[0][:own] for part, (own, _) in zip(of_parts, sizes, strict=True)]
        assert torch.equal(torch.cat(kept), batch[0])
        assert all(len(part[0]) for part in of_parts)  # all have to take part in a step


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_dataloader_that_shuffles_cannot_be_divided(shuffle):
    loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2, shuffle=shuffle)
    if shuffle:
        with pytest.raises(TypeError, match="DatasetLoader"):
            adapter_of(loader).shard(0, 2)
    else:
        assert [batch[0].tolist() for batch in adapter_of(loader).shard(1, 2)] == [[1], [3], [4]]


def test_a_generator_cannot_be_divided():
    class Stream:
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match=r"Stream.*process"):
        adapter_of(Stream()).shard(0, 2)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"shard=3\).*True.*classes.*modules"):
        DistributedCB(shard=3)
    with pytest.raises(ValueError, match=r"timeout_s=0.*> 0"):
        DistributedCB(timeout_s=0)
    with pytest.raises(TypeError, match=r"\(backend='glo'\).*shard.*DistributedDataParallel.*dev"):
        DistributedCB(backend="glo")
    with pytest.raises(TypeError, match=r"\(static_graph=True\).*fully_shard.*mesh"):
        DistributedCB(shard=True, static_graph=True)
    DistributedCB(static_graph=True)


def test_a_class_that_the_model_lacks_is_refused_with_one_process_too():
    learn = worker.shared_learner(shard=nn.LSTM)
    with pytest.raises(ValueError, match=r"LSTM"):
        learn.fit(1)


def test_several_processes_without_it_are_warned_of(monkeypatch):
    learn = worker.shared_learner()
    learn.remove_cb(learn.cbs[-1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match=r"WORLD_SIZE.*2.*DistributedCB"):
        learn.fit(1)


def test_waiting_for_others_in_vain_says_so(monkeypatch):
    def init(backend, timeout, store, rank, world_size):
        raise RuntimeError("wait timeout")

    monkeypatch.setattr(processes, "_meeting_place", lambda timeout: (None, 0, 2))
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="wait timeout") as caught:
        worker.shared_learner().fit(1)
    assert re.search("process 0 of 2.*600 s", "".join(caught.value.__notes__))


def test_a_script_that_ends_leaves_the_group(tmp_path):
    script = """
        import atexit, torch
        from minilearn import processes
        atexit.register(lambda: print("in the group:", torch.distributed.is_initialized()))
        processes.join(torch.device("cpu"), timeout_s=60)
        print("in the group:", torch.distributed.is_initialized())
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", dedent(script)]
    said = subprocess.run(command, env=os.environ | of_one, capture_output=True, text=True, timeout=TIMEOUT_S)
    lines = [line for line in said.stdout.splitlines() if "Gloo" not in line]
    assert lines == ["in the group: True", "in the group: False"], said.stderr


def test_a_metric_that_cannot_be_joined_is_refused_before_training():
    class Own:
        reset = update = compute = None

    cb = DistributedCB()
    metrics = MetricsCB()
    metrics.metrics = {"own": Own()}
    learn = Learner(
        nn.Linear(2, 2), DataLoaders([(torch.zeros(2, 2), torch.zeros(2).long())]), cbs=[cb, metrics]
    )
    cb.n_processes = 2
    with pytest.raises(TypeError, match=r"metric own.*Own"):
        cb.before_fit(learn)


class Generated:
    """A loader that may give other batches in each process."""

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("phases", [("train",), ("train", "eval"), ("eval",)])
def test_loaders_that_cannot_be_divided_are_refused_before_training(phases):
    good = TensorLoader(torch.zeros(4, 2), torch.zeros(4).long(), bs=2)
    cb = DistributedCB()
    for train, valid in ((good, good), (good, Generated()), (Generated(), good)):
        learn = Learner(nn.Linear(2, 2), DataLoaders(train, valid), cbs=cb, default_cbs=False)
        learn.plan = Plan(1, phases, 1, [2])
        cb.n_processes = 2
        bad = [x for name, x in (("train", train), ("eval", valid)) if name in phases and x is not good]
        with (
            pytest.raises(TypeError, match=mentions("Generated ... DatasetLoader")) if bad else nullcontext()
        ):
            cb.before_fit(learn)
        cb.release(learn)
