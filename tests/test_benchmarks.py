import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minilearn import optim, set_seed
from minilearn.provenance import device_name, provenance

CPU = torch.device("cpu")
FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name):
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))  # as `python benchmarks/...` has it
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


MEASURED = load("measured")
ABOUT = {
    "device": "some CPU, 2 cores",
    "threads": 2,
    "torch": "2.9",
    "python": "3.12",
    "command": "python it",
}


def result_of(*tables, **own):
    return {**ABOUT, **own, "tables": [{"device": ABOUT["device"], **table} for table in tables]}


@pytest.fixture(scope="module")
def overhead():
    return load("overhead")


@pytest.fixture
def optimizers():
    return load("optimizers")


@pytest.fixture(scope="module")
def accuracy(overhead):
    generator = torch.Generator().manual_seed(0)
    ys = torch.randint(10, (40, 64), generator=generator)
    xs = torch.randn(10, 784, generator=generator)[ys] + 7 * torch.randn(40, 64, 784, generator=generator)
    batches = list(zip(xs, ys, strict=True))

    def run(name):
        set_seed(0)
        return getattr(overhead, name)(batches, CPU)

    return run


def test_task_can_be_learned_but_not_at_once(accuracy):
    assert 0.3 < accuracy("same_work") < 0.98


def test_minilearn_does_the_work_of_the_same_loop(accuracy):
    assert accuracy("minilearn") == accuracy("same_work")


def test_minilearn_is_as_accurate_as_the_usual_loop(accuracy):
    # The usual loop plans its schedule for one step more, which changes the lr of each step a little.
    assert accuracy("minilearn") == pytest.approx(accuracy("usual"), abs=0.02)


@pytest.mark.parametrize("loop", ["same_work", "usual", "minilearn"])
def test_loop_is_repeatable(loop, accuracy):
    assert accuracy(loop) == accuracy(loop)


def test_overhead_measures_each_loop_in_each_round_that_counts(overhead):
    times_us = overhead.measure(CPU, n_steps=3, rounds=2)["times_us"]
    assert list(times_us) == ["same", "usual", "minilearn"]
    assert all(len(us) == 2 and min(us) > 0 for us in times_us.values())


def test_overhead_says_the_median_and_the_range_of_the_ratios_of_the_same_round(overhead):
    times_us = {"same": [2.0, 4.0, 1.0], "usual": [4.0, 4.0, 4.0], "minilearn": [3.0, 2.0, 1.0]}
    said = overhead.said(result_of({"times_us": times_us}, rounds=3, steps=5))
    assert said.splitlines() == [
        "some CPU, 2 cores, 2 threads, torch 2.9, 3 rounds of 5 steps",
        "  same           2.0 us a step  (min 1.0, max 4.0)",
        "  usual          4.0 us a step  (min 4.0, max 4.0)",
        "  minilearn      2.0 us a step  (min 1.0, max 3.0)",
        "  minilearn / same   1.000  (median of 3 ratios; min 0.500, max 1.500)",
        "  minilearn / usual  0.500  (median of 3 ratios; min 0.250, max 0.750)",
    ]


def test_a_result_has_each_devices_table_and_where_it_comes_from(tmp_path, monkeypatch, capsys):
    harness = load("harness")
    monkeypatch.setattr(sys, "argv", ["it.py", "--steps", "3", "--rounds", "2", "--out", str(tmp_path)])
    harness.run("Doc.", "it", lambda device, n_steps, rounds: {"n": n_steps * rounds}, said_of_it, 9, 9)
    found = json.loads((tmp_path / "it.json").read_text())
    assert found.keys() == {"benchmark", *provenance(), "seeds", "steps", "rounds", "tables"}
    assert found["tables"][0] == {"device": device_name("cpu"), "n": 6}
    assert len(found["tables"]) == 1 + torch.cuda.is_available()
    assert capsys.readouterr().out == "it: 3 x 2\n"


def said_of_it(result):
    return f"{result['benchmark']}: {result['steps']} x {result['rounds']}"


# Optimizers ---------------------------------------------------------------------------------------


def test_each_pair_is_one_of_ours_and_one_of_torch_s(optimizers):
    # That every optimizer has one: tests/optim/test_all_optimizers.py.
    for name, makers in optimizers.PAIRS.items():
        ours, theirs = (make([nn.Parameter(torch.zeros(2))], lr=1e-3, foreach=True) for make in makers)
        assert type(ours) is optim.OPTIMIZERS[name]
        assert type(theirs).__module__.startswith("torch.optim.")


def test_optimizers_have_a_row_for_each_optimizer_and_model(optimizers, monkeypatch):
    monkeypatch.setattr(
        optimizers, "MODELS", {"one layer": lambda: nn.Linear(3, 2), "two": lambda: nn.Bilinear(2, 2, 2)}
    )
    table = optimizers.measure(CPU, n_steps=2, rounds=3)
    for row in table["rows"]:
        for of in ("ours_us", "torch_us"):
            assert len(row[of]) == 3
            assert min(row[of]) > 0
    header, columns, *rows = optimizers.said(result_of(table, rounds=3, steps=2)).splitlines()
    assert header == "some CPU, 2 cores, 2 threads, torch 2.9, 3 rounds of 2 steps, foreach"
    assert columns.split() == [
        *("optimizer", "parameters", "tensors", "ours", "us", "torch", "us", "ratio", "min", "max")
    ]
    assert [row[:40].split() for row in rows] == [
        [name, *model] for name in optimizers.PAIRS for model in (["one", "layer", "2"], ["two", "2"])
    ]


def test_step_time_is_of_one_step_and_takes_them_all(optimizers, monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(optimizers.time, "perf_counter", lambda: next(clock))
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    opt = optim.SGD([p], lr=0.125)
    assert optimizers.step_time_us(opt, 4, CPU) == 0.5 / 4 * 1e6
    assert p.item() == 0.5  # 1 - 4 * 0.125


def test_ratio_is_the_median_over_the_rounds_that_count(optimizers, monkeypatch):
    # Ours and theirs change places each round; the first round, (9, 9), warms up.
    times = iter([9.0, 9.0, 1.0, 2.0, 4.0, 12.0, 1.0, 4.0])
    monkeypatch.setattr(optimizers, "PAIRS", {"SGD": optimizers.PAIRS["SGD"]})
    monkeypatch.setattr(optimizers, "MODELS", {"one": lambda: nn.Linear(3, 2)})
    monkeypatch.setattr(optimizers, "step_time_us", lambda opt, n_steps, device: next(times))
    table = optimizers.measure(CPU, n_steps=1, rounds=3)
    row = optimizers.said(result_of(table, rounds=3, steps=1)).splitlines()[-1]
    # ours 1, 12, 1; theirs 2, 4, 4; ratios 0.5, 3, 0.25
    assert row.split() == ["SGD", "one", "2", "1.0", "4.0", "0.50", "0.25", "3.00"]


# Speed tools, 90 %, checkpoints, kills ------------------------------------------------------------


@pytest.mark.slow
def test_speed_tools_measure_each_variant_and_say_its_gain(monkeypatch):
    module = load("speed_tools")
    monkeypatch.setattr(module, "variants", lambda device: {module.PLAIN: [], "a tool": []})
    table = module.measure(CPU, n_steps=1, rounds=2, bs=2)
    assert {name: len(ms) for name, ms in table["times_ms"].items()} == {module.PLAIN: 2, "a tool": 2}
    table["times_ms"] = {module.PLAIN: [4.0, 8.0], "a tool": [2.0, 8.0]}
    header, plain, tool = module.said(result_of(table, rounds=2, steps=1)).splitlines()
    assert header == "some CPU, 2 cores, 2 threads, torch 2.9, ResNet-20, 2 rounds of 1 x 2"
    assert plain.endswith("gain 1.00 (min 1.00, max 1.00)")
    assert re.split("  +", tool.strip()) == [
        *("a tool", "5.0 ms a batch", "(min 2.0, max 8.0)", "gain 1.50 (min 1.00, max 2.00)")
    ]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Run gpu.py with the given parts; give its exit code and gpu.json."""
    load("peers")
    module = load("gpu")

    def run(parts, *args):
        monkeypatch.setattr(module, "parts_of", lambda call, device, peers: parts(module.Part))
        monkeypatch.setattr(sys, "argv", ["gpu.py", "cifar10", "--smoke", "--out", str(tmp_path), *args])
        code = None
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        return code, json.loads((tmp_path / "gpu.json").read_text())["parts"]

    return run


@pytest.mark.slow
def test_parts_of_a_gpu_call_end_as_is_said(gpu, tmp_path):
    (tmp_path / "writes.py").write_text("import sys; open(sys.argv[1] + '/a.json', 'w').write('{}')")

    def parts(part):
        return {
            "good": part((str(tmp_path / "writes.py"), "{out}"), result="a.json"),
            "broken": part(("-c", "raise SystemExit('no such thing')")),
            "silent": part(("-c", "pass"), result="b.json"),
        }

    code, found = gpu(parts)
    assert code == 1
    ends = {name: part["end"] for name, part in found.items()}
    assert ends == {
        "good": "done",
        "broken": "exit code 1: no such thing",
        "silent": "wrote no b.json",
    }


@pytest.mark.slow
def test_a_second_gpu_call_runs_what_is_missing(gpu, tmp_path):
    def counts(part):
        script = f"open({str(tmp_path / 'n')!r}, 'a').write('x')"
        return {"first": part(("-c", script)), "second": part(("-c", "raise SystemExit(1)"))}

    assert gpu(counts)[0] == 1
    assert gpu(counts)[0] == 1
    assert (tmp_path / "n").read_text() == "x"


@pytest.mark.slow
def test_a_gpu_part_without_time_is_skipped_and_one_that_takes_long_is_stopped(gpu, monkeypatch):
    def parts(part):
        endless = ("-c", "import time; print('it trains', flush=True); time.sleep(60)")
        return {"long": part(endless, takes_rest=True), "late": part(("-c", "pass"))}

    monkeypatch.setattr(sys.modules["gpu"], "END_S", 59.0)  # of the call's minute
    code, found = gpu(parts, "--minutes", "1")
    assert code == 1
    assert "when the call's time was up" in found["long"]["end"]
    assert "skipped" in found["late"]["end"]


@pytest.mark.full
def test_gpu_runs_a_few_steps_of_each_part(tmp_path, write_cifar, monkeypatch):
    write_cifar(tmp_path / "data", n_train=80, n_valid=20)
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [
        sys.executable,
        FOLDER / "gpu.py",
        "--smoke",
        "--out",
        tmp_path / "out",
        "--work",
        tmp_path / "work",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "gpu.log").read_text()[-2000:]


def test_ninety_keeps_the_tries_below_90_percent_and_stops_at_the_first_above(monkeypatch):
    module = load("ninety")
    work = importlib.import_module("work")
    monkeypatch.setattr(work, "torchvision_sets", lambda: ([0] * 6000, [0] * 10))
    accuracies = {4: 0.89, 5: 0.91}
    monkeypatch.setattr(module, "run_one", lambda way, n, seed: (accuracies[n] + seed / 100, 2.0 + seed))
    found = module.measure([0, 1], [6, 5, 4])
    assert [tried["epochs"] for tried in found["tries"]] == [4, 5]
    assert found["tries"][0]["ways"]["by hand"] == {"accuracies": [0.89, 0.9], "times_s": [2.0, 3.0]}
    lines = module.said({**ABOUT, **found, "seeds": [0, 1]}).splitlines()
    assert lines[1] == "Fashion-MNIST, 6,000 images for training, 10 for validation, n = 2"
    assert lines[2] == "  4 epochs  minilearn   0.8950 ± 0.0071     2.5 s  (min 2.0, max 3.0)"
    assert lines[-1] == "minilearn's mean accuracy is 0.9 or more with 5 epochs"


def test_pytorch_optimizers_says_counts_and_reasons():
    rows = [
        {"name": name, "how": how, "training": training, "resuming": resuming}
        for name, how, training, resuming in (
            ("adam", "", "", ""),
            ("alig", "ClosureCB()", "", ""),
            ("lomo", "", "AttributeError: no", ""),
            ("sara", "", "", "RuntimeError: " + 99 * "x"),
        )
    ]
    result = result_of(pytorch_optimizer="4.1.0", optimizers=rows)
    assert load("pytorch_optimizers").said(result).splitlines() == [
        "pytorch_optimizer 4.1.0, torch 2.9: 4 classes",
        "  train                     3",
        "  resume bit for bit        2",
        "  of these with more        1",
        "  with more: alig: ClosureCB()",
        "  does not train: lomo: AttributeError: no",
        "  is not resumed: sara: RuntimeError: " + 63 * "x" + "...",
    ]


def test_checkpoint_says_its_share_and_size(monkeypatch):
    module = load("checkpoint")
    monkeypatch.setattr(module, "WIDTH", 50)
    table = module.measure(CPU, n_steps=2, rounds=1)
    assert table["file_bytes"] > table["tensor_bytes"] > 12 * table["parameters"]
    table |= {"without_s": [3.0, 1.0], "checkpoint_s": [1.0, 1.0], "idle_s": [1e-6, 3e-6]}
    lines = module.said(result_of(table, rounds=2, steps=2)).splitlines()
    assert lines[0].endswith("million parameters, AdamW, 2 rounds")
    share, idle = (re.split("  +", line.strip()) for line in lines[3:5])
    assert share == ["share, one every 2 steps", "37.50 %", "(min 25.00, max 50.00)"]
    assert idle == ["a step without one", "2.00 us", "(min 1.00, max 3.00)"]


@pytest.mark.full
@pytest.mark.slow
def test_killed_runs_resume_bit_for_bit(tmp_path):
    code = "import kill; kill.N_EPOCHS = 4; kill.main()"  # half as many as in the committed result
    command = [sys.executable, "-c", code, "--kills", "2", "--out", tmp_path]
    said = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    lines = said.stdout.splitlines()
    assert lines[1].startswith("2 kills in ")
    values = dict(line.rsplit(maxsplit=1) for line in lines[2:])
    assert values["torn files"] == values["runs with a difference"] == "0"
    found = json.loads((tmp_path / "kill.json").read_text())
    assert (found["threads"], found["processes"]) == (1, 1)  # those of a training, not of the script
    assert sum(len(run["kills"]) for run in found["runs"]) == 2
    assert load("kill").said(found) == said.stdout.rstrip()


@pytest.mark.parametrize("run", [{"torn": [0, 1]}, {"differences": ["model.0: other values"]}])
def test_kill_fails_after_a_torn_file_or_a_difference_and_writes_its_result(tmp_path, monkeypatch, run):
    module = load("kill")
    runs = [{"seed": 0, "kills": [["while writing"], []], "torn": [0, 0], "differences": [], **run}]
    monkeypatch.setattr(module, "measure", lambda *_: {"steps": 128, "seeds": [0], "runs": runs})
    monkeypatch.setattr(sys, "argv", ["kill.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        module.main()
    found = module.totals(json.loads((tmp_path / "kill.json").read_text()))
    assert (found["kills"], found["while writing"], found["torn"] + found["different"]) == (2, 1, 1)


# Many processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distributed():
    return load("distributed")


def test_an_exchange_is_the_nodes_and_then_the_networks(distributed):
    # 8 in a node: 7/8 of the bytes over NVLink. 16: and half of an eighth over the network.
    assert distributed.exchange_s(360e9, 8) == 7 / 8
    assert distributed.exchange_s(360e9, 16) == pytest.approx(7 / 8 + 360 / 8 / 2 / 40)
    assert distributed.exchange_s(1e9, 1) == 0


def test_plan_says_what_limits(distributed):
    model = distributed.Model("small", 1e9, 400e9, False, 64)  # 1 ms a sample
    rows = {row[0]: row for row in distributed.plan(model)}
    # 8 GPUs: 8 samples each; the all-reduce of 4 GB, twice, takes 19.4 ms.
    assert rows["8"][1:6] == ("DDP", "8", "8.0", "8.00", "19.4")
    assert rows["8"][6] == "16.0"
    assert rows["8"][-1] == "the exchange of gradients"
    assert rows["1024"][-1] == "a batch of 64: less than a sample for each"
    large = distributed.Model("large", 10e9, 400e12, False, 4096)
    assert distributed.plan(large)[0][1:7] == ("shard=...", "512", "512000.0", "60.00", "194.4", "20.0")


def test_page_has_the_plan_as_it_is_computed(distributed):
    assert distributed.plans() in (MEASURED.DOCS / "many_gpus.md").read_text()


@pytest.mark.full
@pytest.mark.slow
def test_one_process_and_two_are_measured_with_a_thread_each(distributed):
    found = distributed.measure(rounds=1, steps=3, bs=8)
    assert (found["threads"], found["processes"]) == (1, [1, 2])
    n_steps = {n: [len(round_["steps_s"]) for round_ in each] for n, each in found["each"].items()}
    assert n_steps == {"1": [3], "2": [3]}
    assert len(found["each"]["2"][0]["reduces_s"]) == 20
    said = distributed.said({**ABOUT, **found, "rounds": 1, "steps": 3, "bs": 8})
    assert said.startswith("some CPU, 2 cores, 1 thread a process, torch 2.9, gloo\n")
    assert re.search(r"all-reduce +\d+\.\d\d ms .* for 1\.0\d MB of gradients", said)


def test_gain_is_the_median_of_the_ratios_of_the_same_round(distributed):
    one = [{"steps_s": [step_s] * 3} for step_s in (2.0, 3.0, 8.0)]
    two = [{"steps_s": [step_s] * 3, "reduces_s": [0.001]} for step_s in (2.0, 2.0, 4.0)]
    found = {"each": {"1": one, "2": two}, "parameters": 250_000, "rounds": 3, "steps": 3, "bs": 8}
    lines = distributed.said({**ABOUT, **found}).splitlines()
    assert lines[4].split() == ["gain", "1.50", "(min", "1.00,", "max", "2.00)"]
    assert lines[5].endswith("for 1.00 MB of gradients")


# Pages --------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path):
    """Return a folder with results of overhead and kill, and the peers' as they are committed."""
    times_us = {"same": [2.0, 4.0], "usual": [4.0, 4.0], "minilearn": [3.0, 2.0]}
    overhead = result_of({"times_us": times_us}, benchmark="overhead", rounds=2, steps=5)
    run = {"seed": 0, "kills": [["while writing"], []], "torn": [0, 0], "differences": []}
    kill = {**ABOUT, "benchmark": "kill", "threads": 1, "steps": 128, "runs": [run]}
    (tmp_path / "measured").mkdir()
    for found in (overhead, kill):
        (tmp_path / "measured" / f"{found['benchmark']}.json").write_text(json.dumps(found))
    (tmp_path / "peers.json").write_text((MEASURED.DOCS / "peers.json").read_text())
    return tmp_path


def test_page_is_made_of_the_command_and_what_the_result_says(docs):
    page = "Before.\n\n<!-- result: kill -->\nold\n<!-- end -->\n\nAfter.\n"
    assert MEASURED.made(page, docs) == (
        "Before.\n\n<!-- result: kill -->\n"
        "    $ python it\n"
        "    some CPU, 2 cores, 1 thread, torch 2.9, python 3.12\n"
        "    2 kills in 1 run of up to 128 steps\n"
        "      while a checkpoint was written   1\n"
        "      before the first checkpoint      0\n"
        "    torn files                         0\n"
        "    runs with a difference             0\n"
        "<!-- end -->\n\nAfter.\n"
    )


def test_a_missing_result_is_named_with_the_command_that_makes_it(docs, monkeypatch):
    (docs / "measured.md").write_text("<!-- result: ninety -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["measured.py", "--docs", str(docs)])
    with pytest.raises(SystemExit, match=r"ninety\.json.*missing.*python benchmarks/ninety\.py --runs 3"):
        MEASURED.main()


def test_a_result_under_the_name_of_another_is_an_error(docs):
    (docs / "measured" / "kill.json").rename(docs / "measured" / "ninety.json")
    with pytest.raises(ValueError, match=r"ninety.*kill"):
        MEASURED.result("ninety", docs)


def test_headline_has_the_ratios_of_overhead_and_the_counts_of_kill(docs):
    found = MEASURED.headline(docs)
    assert found["overhead"]["same"] == {"median": 1.0, "min": 0.5, "max": 1.5}
    assert found["overhead"]["usual"] == {"median": 0.625, "min": 0.5, "max": 0.75}
    assert (found["overhead"]["command"], found["overhead"]["device"]) == ("python it", "some CPU, 2 cores")
    about = {key: ABOUT[key] for key in ("command", "device", "torch")}
    counts = {"kills": 2, "runs": 1, "torn": 0, "different": 0}
    assert found["kill"] == {**about, "threads": 1, **counts}


def test_headline_has_minilearn_and_the_quickest_other_framework(docs):
    for workload, title in (("loop", "Ignite"), ("fashion", "skorch")):
        found = MEASURED.headline(docs)["peers"][workload]
        assert found["minilearn"]["title"] == "minilearn"
        assert found["next"]["title"] == title
        assert found["next"]["rounds_behind"] <= found["rounds"]
        assert found["minilearn"]["ratio"].keys() == {"median", "min", "max"}


def test_headline_has_each_command_and_device(docs):
    _, _, step, peers, kills = MEASURED.made("<!-- result: headline -->\n<!-- end -->", docs).splitlines()[
        1:-1
    ]
    loop = MEASURED.headline(docs)["peers"]["loop"]
    for row, figures, command, device in (
        (step, ("1.00 (0.50 to 1.50)", "0.62 (0.50 to 0.75)"), "python it", "some CPU, 2 cores"),
        (peers, ("0.87", "Ignite, 1.23"), loop["command"], loop["device"]),
        (kills, ("2 kills", "0 torn", "0 of 1 runs"), "python it", "some CPU, 2 cores"),
    ):
        assert [part for part in (*figures, f"`{command}`", device) if part not in row] == []


def test_comparison_of_readme_has_all_frameworks_and_the_counts_of_kill(docs):
    found = MEASURED.compared(docs)
    speed, lines, kills = MEASURED.made("<!-- result: compared -->\n<!-- end -->", docs).splitlines()[1:-1]
    assert "takes 0.87 of the time" in speed
    assert [t for t, ratio in found["ratio"].items() if f"{t} {ratio:.2f}" not in speed] == [
        "minilearn",  # whose ratio is in the text above
        "usual loop by hand",
    ]
    assert f"are {found['lines']['minilearn']} lines" in lines
    assert f"{found['lines']['usual loop by hand']} by hand" in lines
    assert next(iter(found["lines"])) == "minilearn"
    assert "2 times" in kills


def test_lines_of_a_framework_are_code_only(tmp_path):
    path = tmp_path / "with_it.py"
    path.write_text(
        '"""It."""\n\nSETTINGS = {\n    "loop": "as it is",\n}\n\n\ndef loop():\n    """Do."""\n'
        "    # why\n    return 1  # because\n"
    )
    assert MEASURED.n_lines(path) == 2


def test_each_result_has_its_place_on_one_page():
    texts = [(MEASURED.DOCS / page).read_text() for page in MEASURED.PAGES]
    places = re.findall(r"<!-- result: ([\w/]+) -->", "".join(texts))
    assert sorted(places) == sorted([*MEASURED.COMMANDS, *MEASURED.TEXTS])


@pytest.mark.parametrize("page", MEASURED.PAGES)
def test_committed_page_is_made_of_the_committed_results(page):
    text = (MEASURED.DOCS / page).read_text()
    assert MEASURED.made(text) == text


@pytest.mark.parametrize("name", MEASURED.COMMANDS)
def test_committed_result_says_where_it_comes_from_and_has_the_command_that_makes_it(name):
    found = MEASURED.result(name)
    assert found.keys() >= {*provenance(), *([] if name == "gpu/gpu" else ["seeds"])}  # several benchmarks
    assert found["command"] == MEASURED.COMMANDS[name]


def test_no_committed_kill_tore_a_file_or_changed_a_run():
    found = load("kill").totals(MEASURED.result("kill"))
    assert found["kills"] >= 100
    assert (found["torn"], found["different"]) == (0, 0)
