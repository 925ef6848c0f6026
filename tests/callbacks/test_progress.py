import random
import re
import sys
from io import StringIO
from types import SimpleNamespace

import IPython.display
import pytest
from rich.console import Console
from rich.live import Live
from toolbox import NoLength, StopCB, stop

from minilearn import CancelFitException, CheckpointCB, EarlyStoppingCB, MetricsCB, ProgressCB, TensorLoader

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Each:
    """A metric that gives a list."""

    def reset(self):
        pass

    def update(self, preds, target):
        pass

    def compute(self):
        return [0.5, 1.0]


class Clock:
    """Stands in for the module `time`, and stands still unless it is told."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s

    def advance(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("progress", "progress_views", "pace"):
        monkeypatch.setattr(f"minilearn.callbacks.{module}.time", clock)
    return clock


@pytest.fixture
def draws(monkeypatch, clock):
    """Count the refreshes, as a list of the times at which they were made."""
    times = []
    refresh = Live.refresh

    def timed(self):
        times.append(clock.now_s)
        refresh(self)

    monkeypatch.setattr(Live, "refresh", timed)
    return times


@pytest.fixture
def notebook(monkeypatch):
    """Stand in for a notebook: a list of its outputs, each a list of what it showed."""
    outputs = []

    def display(shown, display_id=False):
        outputs.append([shown])
        return SimpleNamespace(update=outputs[-1].append)

    monkeypatch.setattr(IPython.display, "display", display)
    return outputs


def file():
    return Console(file=StringIO())


def terminal(width=120):
    return Console(file=StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm-256color"})


def jupyter():
    return Console(file=StringIO(), force_jupyter=True)


def shown(make_learner, console, n_epochs=2, cbs=(), metrics=None, fit=None, **kwargs):
    learn = make_learner(cbs=[metrics or MetricsCB(), ProgressCB(console=console), *cbs], **kwargs)
    learn.fit(n_epochs, **(fit or {}))
    return console.file.getvalue()


def plain(text):
    """Return the text without the codes of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def without_times(text):
    return re.sub(r"\d+\.\d s", "T", text)


def without_seconds(text):
    """Return the text without the times of a table too, which have one digit after the point."""
    return re.sub(r"\d+\.\d(?!\d)", "T", text)


# Off a terminal -------------------------------------------------------------------------------------


def test_file_gets_one_plain_line_for_each_epoch(make_learner, at):
    def round_losses(learn):
        learn.loss = learn.loss.detach() * 0 + (2.0 if learn.training else 1.5)

    cbs = [
        at("after_backward", round_losses),
        at("after_loss", lambda learn: learn.training or round_losses(learn)),
    ]
    text = shown(make_learner, file(), cbs=cbs)
    row = "train: MulticlassAccuracy A, loss 2.0000  eval: MulticlassAccuracy A, loss 1.5000  T"
    found = re.sub(r"Accuracy \d\.\d{4}", "Accuracy A", without_times(text))
    assert found == f"epoch 0 (1/2)  {row}\nepoch 1 (2/2)  {row}\n"


def test_line_is_not_wrapped_at_the_width(make_learner):
    console = Console(file=StringIO(), width=20)
    assert len(shown(make_learner, console).splitlines()) == 2


def test_lines_continue_the_epochs_of_the_learner(make_learner):
    console = file()
    learn = make_learner(n_valid=0, cbs=[MetricsCB(), ProgressCB(console=console)])
    learn.fit()
    learn.fit(2)
    starts = [line.partition("  ")[0] for line in console.file.getvalue().splitlines()]
    assert starts == ["epoch 0 (1/1)", "epoch 1 (1/2)", "epoch 2 (2/2)"]


def test_default_console_is_standard_output(make_learner, capsys):
    make_learner(cbs=[MetricsCB(), ProgressCB()]).fit()
    assert capsys.readouterr().out.startswith("epoch 0 (1/1)  train: MulticlassAccuracy ")


def every_batch(at, clock, train_s=1.0, eval_s=1.0):
    return at("before_batch", lambda learn: clock.advance(train_s if learn.training else eval_s), -10)


def test_first_import_of_rich_draws_no_random_number(make_learner, unimported):
    unimported("rich")
    before = random.getstate()
    make_learner(cbs=ProgressCB()).fit(1)
    assert "rich.style" in sys.modules
    assert random.getstate() == before


def test_long_epoch_gets_a_line_now_and_then(make_learner, at, clock):
    console = file()
    cbs = [MetricsCB(), ProgressCB(console=console, every_s=4), every_batch(at, clock, eval_s=0.5)]
    learn = make_learner(n_batches=10, n_valid=4, cbs=cbs)
    losses = []
    learn.add_cb(at("after_loss", lambda learn: losses.append(learn.loss.item())))
    learn.fit(2)
    lines = console.file.getvalue().splitlines()
    starts = [line.partition(":")[0] for line in lines]
    assert starts == [
        "epoch 0 (1/2)  train 4/10",
        "epoch 0 (1/2)  train 8/10",
        "epoch 0 (1/2)  eval 4/4",
        "epoch 0 (1/2)  train",
        "epoch 1 (2/2)  train 4/10",
        "epoch 1 (2/2)  train 8/10",
        "epoch 1 (2/2)  eval 4/4",
        "epoch 1 (2/2)  train",
    ]
    # 16 steps are left, and two validations of 4 batches, each at first a third of a step
    assert lines[0].endswith(f"loss {losses[3]:.4f}, lr 0.1  1.00 steps/s  0:00:19 left")
    assert lines[2].endswith(f"loss {losses[13]:.4f}  2.00 steps/s  0:00:12 left")  # and now of 2 s
    assert lines[4].endswith("0:00:08 left")


def test_line_says_from_which_lr_to_which_where_groups_differ(make_learner, at, clock):
    def by_part(model):
        return [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.02}]

    console = file()
    cbs = [MetricsCB(), ProgressCB(console=console, every_s=4), every_batch(at, clock)]
    make_learner(n_batches=5, cbs=cbs, param_groups=by_part).fit(1)
    assert ", lr 0.02 to 0.5  " in console.file.getvalue().splitlines()[0]


def test_lines_count_on_from_line_to_line_over_short_epochs(make_learner, at, clock):
    text = shown(make_learner, file(), n_epochs=20, cbs=[every_batch(at, clock, 2.0, 2.0)])
    assert all("  eval: " in line for line in text.splitlines())
    assert len(text.splitlines()) == 20


def test_loss_is_not_read_between_two_lines(make_learner, at, clock):
    reads = []

    class Watched:
        def __init__(self, loss):
            self.loss = loss

        def detach(self):
            reads.append(clock.now_s)
            return self.loss.detach()

    hide = at("after_backward", lambda learn: setattr(learn, "loss", Watched(learn.loss)))
    cbs = [ProgressCB(console=file()), hide, every_batch(at, clock)]
    patch = pytest.MonkeyPatch()
    patch.setattr("minilearn.callbacks.progress.Tensor", Watched)
    make_learner(n_batches=100, n_valid=0, cbs=cbs).fit()
    patch.undo()
    assert reads == [30, 60, 90]


def test_line_of_a_loader_without_a_length_has_no_total_and_time_left_from_the_second_epoch_on(
    make_learner, at, clock
):
    console = file()
    learn = make_learner(
        n_batches=10,
        n_valid=2,
        cbs=[MetricsCB(), ProgressCB(console=console, every_s=8), every_batch(at, clock)],
    )
    learn.dls.train = NoLength(learn.dls.train)
    learn.fit(3)
    lines = [line for line in console.file.getvalue().splitlines() if "  eval: " not in line]
    assert [line.partition(":")[0] for line in lines] == [f"epoch {i} ({i + 1}/3)  train 8" for i in range(3)]
    assert lines[0].endswith(" steps/s")
    assert lines[1].endswith("0:00:16 left")  # 4 s of this epoch of 12, and another
    assert lines[2].endswith("0:00:04 left")


def test_slow_start_does_not_count_once_more_is_known(make_learner, at, clock):
    start = at("before_batch", lambda learn: clock.advance(0 if learn.n_steps else 99))
    console = file()
    progress = ProgressCB(console=console, every_s=4)
    make_learner(n_batches=10, n_valid=0, cbs=[progress, start, every_batch(at, clock)]).fit(2)
    lines = console.file.getvalue().splitlines()
    assert lines[0].endswith("0.01 steps/s  0:31:40 left")
    assert lines[1].endswith("1.00 steps/s  0:00:15 left")


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8])
def test_time_left_of_a_resumed_fit_is_by_the_steps_of_this_process(make_learner, at, clock, tmp_path, n):
    def make(*cbs):
        saver = CheckpointCB(tmp_path, every_steps=1)
        return make_learner(n_batches=5, n_valid=0, cbs=[every_batch(at, clock), saver, *cbs])

    stop(make(StopCB(n)))
    console = file()
    make(ProgressCB(console=console, every_s=1)).fit(2, resume=True)
    lines = [line for line in console.file.getvalue().splitlines() if " left" in line]
    first = n - n // 6  # rests after epochs are no steps
    assert f"train {first % 5 + 1}/5" in lines[0]
    assert lines[0].endswith(f"1.00 steps/s  0:00:0{10 - first - 1} left")


@pytest.mark.slow
@pytest.mark.parametrize("console", [file, terminal])
def test_fit_that_resumes_between_training_and_validation_is_shown(
    make_learner, at, clock, tmp_path, console
):
    def make(*cbs):
        saver = CheckpointCB(tmp_path, every_steps=1)
        return make_learner(cbs=[MetricsCB(), every_batch(at, clock), saver, *cbs])

    stop(make(StopCB(3)))  # after the last step of the epoch
    make(ProgressCB(console=console(), every_s=1)).fit(2, resume=True)


@pytest.mark.parametrize("console", [file, terminal, jupyter])
def test_quiet_one_shows_nothing_and_keeps_metrics_and_device(
    make_learner, notebook, capsys, tmp_path, console
):
    console = console()

    def make():
        cbs = [ProgressCB(console=console, quiet=True), EarlyStoppingCB("train/loss", 1, min_delta=10.0)]
        return make_learner(cbs=[*cbs, CheckpointCB(tmp_path)], default_cbs=True)

    learn = make()
    learn.fit(3, resume=True)
    make().fit(3, resume=True)
    learn.validate()
    assert [type(cb).__name__ for cb in learn.cbs][:3] == ["DeviceCB", "MetricsCB", "ProgressCB"]
    assert "MulticlassAccuracy" in learn.history[-1]
    said = capsys.readouterr().out
    assert (console.file.getvalue(), notebook) == ("", [])
    assert said.startswith("This fit was cut short") or not said


def test_quiet_one_draws_no_plot():
    with pytest.raises(ValueError, match=r"plot=True, quiet=True"):
        ProgressCB(plot=True, quiet=True)


# In a terminal --------------------------------------------------------------------------------------


def test_terminal_shows_the_time_left_of_the_phase_and_of_the_fit(make_learner, at, clock):
    text = plain(shown(make_learner, terminal(), cbs=[every_batch(at, clock, 100.0, 10.0)], n_batches=10))
    left = re.findall(r"(epochs|train|eval) [^\n]*?(\d+/\d+) +(-:--:--|\d+:\d\d:\d\d)", text)
    assert ("train", "1/10", "0:15:00") in left
    assert ("epochs", "0/2", "0:32:47") in left  # 19 steps, and two validations of a third of a step
    assert ("epochs", "1/2", "0:15:10") in left  # 9 steps, and a validation of 10 s
    assert ("epochs", "1/2", "0:00:10") in left


def test_terminal_shows_header_and_rows(make_learner):
    text = plain(shown(make_learner, terminal()))
    assert text.count("MulticlassAccuracy      loss     epoch     train    time_s") == 1
    rows = re.findall(r"\d\.\d{4}  +\d\.\d{4}  +(\d)  +(train|eval)  +\d+\.\d", text)
    assert rows == [("0", "train"), ("0", "eval"), ("1", "train"), ("1", "eval")]


def test_terminal_shows_bars_loss_and_speed(make_learner, at, clock):
    tick = at("before_batch", lambda learn: clock.advance(0.5))
    text = plain(shown(make_learner, terminal(), cbs=[tick]))
    assert re.search(r"epochs .*0/2", text)
    assert re.search(r"train .*2/3.* loss \d\.\d{4}  2.00 steps/s", text)
    assert re.search(r"eval .*1/1", text)


def codes_of_cursor(text):
    return re.findall(r"\x1b\[\?25[lh]", text)


def test_cursor_is_shown_again_after_the_fit(make_learner):
    assert codes_of_cursor(shown(make_learner, terminal())) == [HIDE, SHOW]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["before_epoch", "after_loss", "before_validate", "after_epoch"])
def test_cursor_is_shown_again_after_an_error(make_learner, at, error, event):
    def fail(learn):
        raise error

    console = terminal()
    with pytest.raises(error):
        shown(make_learner, console, cbs=[at(event, fail)])
    assert codes_of_cursor(console.file.getvalue()) == [HIDE, SHOW]


def test_terminal_is_drawn_at_most_ten_times_a_second(make_learner, at, draws, clock):
    tick = at("before_batch", lambda learn: clock.advance(0.01))
    shown(make_learner, terminal(), n_epochs=1, cbs=[tick], n_batches=200, n_valid=100)
    assert 20 < len(draws) <= 10 * clock.now_s + 8  # those at begin and end of fit and phases
    in_train = [time for time in draws if 0.2 < time < 1.8]
    assert max(sum(start <= time < start + 1 for time in in_train) for start in in_train) <= 10


@pytest.mark.slow
def test_short_epochs_are_drawn_at_most_ten_times_a_second(make_learner, at, draws, clock):
    tick = at("before_batch", lambda learn: clock.advance(0.001))
    shown(make_learner, terminal(), n_epochs=100, cbs=[tick])
    assert len(draws) <= 10 * clock.now_s + 4


def test_drawing_takes_no_more_than_its_share(make_learner, at, monkeypatch, clock):
    draws = []

    def slow(self):
        draws.append(clock.now_s)
        clock.advance(0.05)

    console = terminal()
    monkeypatch.setattr(Live, "refresh", slow)
    tick = at("before_batch", lambda learn: clock.advance(0.1))
    shown(make_learner, console, n_epochs=1, cbs=[tick], n_batches=300, n_valid=0)
    assert len(draws) <= 12


def test_loss_is_read_only_when_drawn(make_learner, at, monkeypatch, clock):
    class Watched:
        def __init__(self, loss):
            self.loss = loss

        def detach(self):
            reads.append(clock.now_s)
            return self.loss.detach()

    reads = []
    monkeypatch.setattr("minilearn.callbacks.progress.Tensor", Watched)
    tick = at("before_batch", lambda learn: clock.advance(0.01))
    hide = at("after_backward", lambda learn: setattr(learn, "loss", Watched(learn.loss)))
    make_learner(n_batches=100, n_valid=0, cbs=[tick, hide, ProgressCB(console=terminal())]).fit()
    assert 5 <= len(reads) <= 11


@pytest.mark.parametrize("console", [file, terminal, jupyter])
def test_loader_without_length_works(make_learner, notebook, console):
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(console=console())])
    learn.dls.train = NoLength(learn.dls.train)
    learn.fit(2)
    assert len(learn.history) == 4


def test_bar_of_a_loader_without_length_shows_no_total(make_learner, at, clock):
    console = terminal()
    tick = at("before_batch", lambda learn: clock.advance(1))
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(console=console), tick])
    learn.dls.train = NoLength(learn.dls.train)
    learn.fit(2)
    totals = re.findall(r"train [^\w/]*(\d+/\S+)", plain(console.file.getvalue()))
    assert {"1/?", "2/?"} <= set(totals)
    assert {total.partition("/")[2] for total in totals} == {"?"}


@pytest.mark.parametrize("console", [file, terminal, jupyter])
def test_fit_without_validation_or_training_works(make_learner, notebook, console):
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(console=console())])
    learn.fit(2, valid=False)
    learn.fit(2, train=False)
    assert [row["train"] for row in learn.history] == ["train", "train", "eval", "eval"]


@pytest.mark.parametrize("console", [file, terminal, jupyter])
def test_fit_without_rows_works(make_learner, notebook, console):
    learn = make_learner(cbs=[ProgressCB(console=console())])
    learn.fit(2)
    assert learn.history == []


@pytest.mark.parametrize(
    ("console", "expected"), [(file, "each_0 0.5000, each_1 1.0000"), (terminal, "0.5000    1.0000")]
)
def test_metric_that_gives_a_list_is_shown(make_learner, console, expected):
    assert expected in plain(shown(make_learner, console(), metrics=MetricsCB(each=Each())))


@pytest.mark.parametrize("console", [file, terminal])
def test_validate_inside_a_batch_is_not_shown(make_learner, at, clock, console):
    def validate(learn):
        if learn.training:
            learn.validate()

    tick = at("before_batch", lambda learn: clock.advance(0.2 if learn.training else 0.0))
    texts = [
        plain(shown(make_learner, console(), cbs=[tick, *more], n_batches=5, n_valid=2))
        for more in ([], [at("after_step", validate)])
    ]
    assert without_seconds(texts[0]) == without_seconds(texts[1])


def test_validate_of_its_own_shows_its_row(make_learner):
    console = file()
    make_learner(cbs=[MetricsCB(), ProgressCB(console=console)]).validate()
    assert re.fullmatch(r"eval: .*loss \d\.\d{4}  T\n", without_times(console.file.getvalue()))


def test_validate_of_a_trained_model_shows_its_epoch_and_each_set(make_learner):
    console = file()
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(console=console)])
    learn.fit(2)
    learn.dls.valid = {"clean": learn.dls.valid, "shifted": learn.dls.valid}
    row = learn.validate()
    lines = [line[: line.index(":")] for line in console.file.getvalue().splitlines()[2:]]
    assert lines == ["epoch 1  clean", "epoch 1  shifted"]
    assert row["train"] == "eval"


def test_validate_on_another_loader_leaves_the_progress_of_the_fit(make_learner, at):
    console = file()
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(console=console)])
    other = TensorLoader(*learn.dls.train.tensors, bs=2)
    learn.fit(2, cbs=[at("after_epoch", lambda learn: learn.validate(other))])
    assert [line[:13] for line in console.file.getvalue().splitlines()] == ["epoch 0 (1/2)", "epoch 1 (2/2)"]


# In a notebook --------------------------------------------------------------------------------------


def test_notebook_shows_one_output_with_the_table(make_learner, notebook):
    assert shown(make_learner, jupyter()) == ""
    (output,) = notebook
    html = output[-1].data
    assert html.count("<tr>") == 5
    assert "<th>MulticlassAccuracy</th><th>loss</th><th>epoch</th><th>train</th>" in html
    assert re.findall(r"<td>(\d)</td><td>(train|eval)</td>", html) == [
        ("0", "train"),
        ("0", "eval"),
        ("1", "train"),
        ("1", "eval"),
    ]


def test_notebook_shows_bars_that_are_gone_in_the_end(make_learner, notebook):
    shown(make_learner, jupyter())
    html = [shown.data for shown in notebook[0]]
    assert "epochs" in html[1]
    assert "0/2" in html[1]
    assert "epochs" not in html[-1]


def test_there_are_two_bars_at_any_time(make_learner, at, clock, notebook):
    shown(make_learner, jupyter(), cbs=[at("before_batch", lambda learn: clock.advance(1))])
    bars = [
        re.findall(r"^ *(epochs|train|eval) ", html.data.partition("<pre>")[2], re.M) for html in notebook[0]
    ]
    assert {tuple(names) for names in bars[1:-1]} == {("epochs", "train"), ("epochs", "eval")}


def test_notebook_escapes_what_it_shows(make_learner, notebook):
    shown(make_learner, jupyter(), metrics=MetricsCB(**{"<b>": Each()}))
    html = notebook[0][-1].data
    assert "<th>&lt;b&gt;_0</th>" in html
    assert "<b>" not in html


def test_notebook_keeps_the_rows_after_an_error(make_learner, at, notebook):
    def fail(learn):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shown(make_learner, jupyter(), cbs=[at("after_train", fail, 99)])
    assert "<td>train</td>" in notebook[0][-1].data


@pytest.mark.slow
@pytest.mark.parametrize("fit", [{}, {"valid": False}], ids=["with validation", "without"])
def test_plot_is_drawn_again_after_each_epoch(make_learner, notebook, fit):
    cb = ProgressCB(plot=True, console=jupyter())
    make_learner(cbs=[MetricsCB(), cb]).fit(3, **fit)
    _, figures = notebook
    assert [len(figure.axes[1].lines[0].get_xdata()) for figure in figures] == [1, 2, 3]
    assert [ax.get_title() for ax in figures[0].axes] == ["MulticlassAccuracy", "loss"]


@pytest.mark.parametrize("console", [file, terminal])
def test_plot_outside_a_notebook_is_refused(make_learner, console):
    learn = make_learner(cbs=[MetricsCB(), ProgressCB(plot=True, console=console())])
    with pytest.raises(ValueError, match=r"ProgressCB\(plot=True\).*notebook"):
        learn.fit()
    assert learn.n_steps == 0


def test_the_epoch_that_a_callback_ended_the_fit_in_is_shown(make_learner, at):
    def stop(learn):
        raise CancelFitException

    console = Console(file=StringIO())
    shown(make_learner, console, cbs=[at("after_validate", stop)])
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1
    assert "eval: " in lines[0]
