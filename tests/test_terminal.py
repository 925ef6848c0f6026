"""What is left in a terminal, a file and a CI's log by a fit, with bars of others around and inside it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, track
from terminals import Screen, Terminal, terminal
from toolbox import at, make_learner

from minilearn import EarlyStoppingCB, MetricsCB, ProgressCB, ThroughputCB

ROW = r"\d\.\d{4}"
TABLE = [
    r"MulticlassAccuracy      loss     epoch     train    time_s",
    rf" +{ROW}    {ROW}         0     train +\d+\.\d",
    rf" +{ROW}    {ROW}         0      eval +\d+\.\d",
]
LINES = [
    rf"epoch 0 \(1/1\)  train: MulticlassAccuracy {ROW}, loss {ROW}",
    rf"  eval: MulticlassAccuracy {ROW}, loss {ROW}  \d\.\d s",
]


def fit(*cbs, console=None, n_epochs=1):
    make_learner(cbs=[MetricsCB(), ProgressCB(console=console), *cbs]).fit(n_epochs)


def check(screen, patterns):
    assert len(screen.lines) == len(patterns), screen.lines
    for line, pattern in zip(screen.lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), screen.lines
    assert not screen.is_cursor_hidden


# A terminal -------------------------------------------------------------------------------------------


def test_the_table_is_all_that_a_fit_leaves(monkeypatch):
    with terminal(80, monkeypatch) as screen:
        print("before")
        fit()
        print("after")
    assert "epochs" in screen.written
    check(screen, ["before", *TABLE, "after"])


@pytest.mark.parametrize("event", ["before_train", "after_loss", "before_validate", "after_epoch"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_rows_so_far(monkeypatch, event, error):
    def fail(learn):
        raise error

    with terminal(80, monkeypatch) as screen:
        print("before")
        with pytest.raises(error):
            fit(at(event, fail))
        print("after")
    n = {"before_validate": 2, "after_epoch": 3}.get(event, 0)
    check(screen, ["before", *TABLE[:n], "after"])


def test_what_a_callback_prints_is_above_the_bars(monkeypatch):
    with terminal(80, monkeypatch) as screen:
        fit(at("after_batch", lambda learn: print("batch", learn.batch_idx)))
    check(screen, ["batch 0", "batch 1", "batch 2", "batch 0", *TABLE])  # rows may wait a tenth of a second


def test_a_warning_is_above_the_bars(monkeypatch):
    def warn(learn):
        print("Careful.", file=sys.stderr)

    with terminal(80, monkeypatch) as screen:
        fit(at("before_validate", warn))
    check(screen, ["Careful.", *TABLE])


@pytest.mark.parametrize("width", [40, 60])
def test_what_is_shown_has_its_place_in_a_narrow_terminal(monkeypatch, width):
    def name_more(learn):
        learn.log("regularization", 0.5, 4)

    with terminal(width, monkeypatch) as screen:
        fit(at("after_loss", name_more), ThroughputCB())
    words = " ".join(screen.lines).split()
    assert all(len(line) <= width for line in screen.lines)
    assert "MulticlassAccuracy" in words
    assert words.count("regularization") == words.count("samples_per_s") == 2
    assert all(line.startswith(("epoch 0  ", "  ")) for line in screen.lines)
    assert not [line for line in screen.lines if re.search(r"loss$|per_s$|mb$", line)]  # names without values
    for bar in re.findall(r"(?:epochs|train|eval) [━╺╸ ][^\r\n]*", screen.written):
        assert len(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", bar)) <= width


# Bars of others ---------------------------------------------------------------------------------------


@pytest.fixture
def tqdm():
    return pytest.importorskip("tqdm", reason="needs tqdm, of the extra test").tqdm


def test_a_fit_inside_a_bar_of_tqdm_leaves_only_lines_above_it(monkeypatch, tqdm):
    with terminal(70, monkeypatch) as screen:
        print("before")
        for _ in tqdm(range(2), desc="runs"):
            fit()
        print("after")
    check(screen, ["before", *LINES, *LINES, r"runs: 100%\|.*\| 2/2 .*", "after"])
    assert "\x1b[?25l" not in screen.written


def test_a_bar_of_tqdm_in_a_file_is_left_alone(monkeypatch, tqdm, tmp_path):
    with (tmp_path / "log").open("w") as log:
        bar = tqdm(range(2), file=log)
        with terminal(80, monkeypatch) as screen:
            fit()
    with terminal(80, monkeypatch) as other:  # now its file is closed
        fit()
    assert bar.n == 0
    check(screen, TABLE)
    check(other, TABLE)


def test_what_a_fit_says_at_its_end_is_above_a_bar_of_tqdm(monkeypatch, tqdm):
    with terminal(130, monkeypatch) as screen:
        for _ in tqdm(range(1), desc="runs"):
            fit(EarlyStoppingCB("train/loss", patience=1, min_delta=10.0), n_epochs=3)
    assert screen.lines[-2].startswith("Stopped after epoch 1: train/loss was not better for 1 epoch than")
    assert screen.lines[-1].startswith("runs: 100%")


def test_bars_make_way_for_a_bar_of_tqdm_in_the_loader(monkeypatch, tqdm):
    learn = make_learner(n_batches=20, cbs=[MetricsCB(), ProgressCB()])
    batches = learn.dls.train

    class Shown:
        def __len__(self):
            return len(batches)

        def __iter__(self):
            return iter(tqdm(batches, desc="mine", miniters=1, mininterval=0))

    with terminal(70, monkeypatch) as screen:
        print("before")
        learn.dls.train = Shown()
        learn.fit(2)
        print("after")
    mine, (train, valid) = r"mine: 100%\|.*\| 20/20 .*", LINES
    of_two = [train.replace("0 \\(1/1", f"{i} \\({i + 1}/2") for i in range(2)]
    check(screen, ["before", mine, of_two[0], valid, mine, of_two[1], valid, "after"])


def test_bars_make_way_for_one_that_a_callback_prints(monkeypatch):
    def draw(learn):
        print(f"\rmine: {learn.batch_idx}", end="", flush=True)

    with terminal(70, monkeypatch) as screen:
        fit(at("after_batch", draw), at("after_train", lambda learn: print()))
    assert screen.lines[0] == "mine: 2"
    assert [bool(re.fullmatch(LINES[i], line)) for i, line in enumerate(screen.lines[1:])] == [True, True]


def test_a_stream_kept_from_a_fit_can_be_written_to_later(monkeypatch):
    kept = []
    with terminal(80, monkeypatch) as screen:
        fit(at("before_train", lambda learn: kept.append(sys.stderr)))
        print("late", file=kept[0], flush=True)
    check(screen, [*TABLE, "late"])


def test_a_fit_inside_track_of_rich_leaves_only_lines_above_it(monkeypatch):
    with terminal(70, monkeypatch) as screen:
        print("before")
        for _ in track(range(2), "runs"):
            fit()
        print("after")
    check(screen, ["before", *LINES, *LINES, r"runs ━+ 100% .*", "after"])


def test_a_fit_inside_a_live_display_of_another_console_leaves_only_lines_above_it(monkeypatch):
    with terminal(70, monkeypatch) as screen, Live("dashboard", console=Console()):
        fit()
    check(screen, [*LINES, "dashboard"])


def test_a_fit_inside_the_live_display_of_its_console_leaves_only_rows(monkeypatch):
    with terminal(70, monkeypatch) as screen:
        console = Console()
        with Progress(console=console) as progress:
            for _ in progress.track(range(2), description="runs"):
                fit(console=console)
    rows = LINES if "epochs" not in screen.written else TABLE  # rich before 14.1 nests no display
    check(screen, [*rows, *rows, r"runs ━+ 100% .*"])


# No terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", "unknown")])
def test_a_terminal_that_moves_no_cursor_gets_lines(monkeypatch, name, value):
    with terminal(70, monkeypatch) as screen:
        monkeypatch.setenv(name, value)
        fit()
    assert "\x1b" not in screen.written
    assert screen.written.count("\r\n") == 1


def test_a_log_gets_plain_lines_also_where_colors_are_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many CIs
    monkeypatch.setattr("rich._console", None)
    fit()
    said = capsys.readouterr().out
    assert re.fullmatch("".join([LINES[0], LINES[1], "\n"]), said)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from toolbox import make_learner
from minilearn import EarlyStoppingCB, MetricsCB, ProgressCB
make_learner(cbs=[MetricsCB(), ProgressCB()]).fit()
"""


@pytest.mark.full
def test_processes_in_a_terminal_and_under_nohup(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color"}
    used, screen = Terminal(62), Screen(62)
    streams = {"stdin": used.end, "stdout": used.end, "stderr": used.end}
    subprocess.run([sys.executable, script], check=True, env=env, **streams)
    screen.feed(used.close())
    check(screen, TABLE)

    used = Terminal(62)
    streams = {"stdin": used.end, "stdout": used.end, "stderr": used.end}
    subprocess.run(["nohup", sys.executable, script], check=True, cwd=tmp_path, env=env, **streams)
    used.close()
    assert re.fullmatch("".join([LINES[0], LINES[1], "\n"]), (tmp_path / "nohup.out").read_text())
