import importlib.util
import sys
import warnings
from functools import partial

import pytest
import torch
from matplotlib.figure import Figure
from toolbox import chained, sequential
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

import minilearn.plot
from minilearn import plot_history, plot_images, plot_lines, plot_scheduler
from minilearn.schedules import constant, cosine, step_decay, triangular, warm_up

HISTORY = [
    {"accuracy": 0.5, "loss": 2.0, "epoch": 0, "train": "train", "time_s": 0.1},
    {"accuracy": 0.4, "loss": 3.0, "epoch": 0, "train": "eval", "time_s": 0.1},
    {"accuracy": 0.7, "loss": 1.0, "epoch": 1, "train": "train", "time_s": 0.1},
    {"accuracy": 0.6, "loss": 1.5, "epoch": 1, "train": "eval", "time_s": 0.1},
]


def lines(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


def test_plot_lines_has_a_panel_for_each_series():
    figure = plot_lines({"lr": [1, 2, 3], "loss": [5, 4]}, xlabel="step")
    assert isinstance(figure, Figure)
    assert [(ax.get_title(), ax.get_xlabel()) for ax in figure.axes] == [("lr", "step"), ("loss", "step")]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [5, 4]


def test_plot_lines_draws_a_line_for_each_entry_of_a_list():
    (ax,) = plot_lines({"lr": [[1, 10], [2, 20]]}).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1, 2], [10, 20]]


def test_plot_lines_has_the_size_asked_for():
    figure = plot_lines({"lr": [1], "loss": [1]}, width=5, height=2)
    assert figure.get_size_inches().tolist() == [10, 2]


def test_plot_lines_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"plot.*recorded"):
        plot_lines({})


def test_plot_history_has_a_panel_for_each_value_with_both_phases():
    figure = plot_history(HISTORY)
    assert isinstance(figure, Figure)
    assert [(ax.get_title(), ax.get_xlabel()) for ax in figure.axes] == [
        ("accuracy", "epoch"),
        ("loss", "epoch"),
    ]
    assert lines(figure.axes[1]) == {"train": [[0, 2], [1, 1]], "eval": [[0, 3], [1, 1.5]]}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["train", "eval"]


def test_plot_history_leaves_out_a_phase_without_rows():
    figure = plot_history(HISTORY[::2])
    assert list(lines(figure.axes[0])) == ["train"]


def test_plot_history_of_no_rows_is_an_error():
    with pytest.raises(ValueError, match=r"plot_history.*history.*row"):
        plot_history([])


@pytest.mark.parametrize(("n", "n_cols", "n_axes"), [(7, 3, 9), (2, 6, 2), (6, 6, 6)])
def test_plot_images_fills_a_grid(n, n_cols, n_axes):
    figure = plot_images(torch.rand(n, 1, 4, 4), n_cols=n_cols)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == n_axes
    assert [len(ax.images) for ax in figure.axes] == [1] * n + [0] * (n_axes - n)


@pytest.mark.slow
def test_plot_images_scales_each_to_its_own_range():
    images = torch.tensor([0.0, 10.0, -1.0, 1.0]).view(2, 1, 1, 2)
    figure = plot_images(images)
    assert [ax.images[0].get_array().ravel().tolist() for ax in figure.axes] == [[0, 1], [0, 1]]


def test_plot_images_takes_an_image_of_one_value():
    (ax,) = plot_images(torch.ones(1, 1, 2, 2)).axes
    assert ax.images[0].get_array().ravel().tolist() == [0] * 4


def test_plot_images_takes_three_channels():
    (ax,) = plot_images(torch.rand(1, 3, 4, 5)).axes
    assert ax.images[0].get_array().shape == (4, 5, 3)


def test_plot_images_has_titles():
    figure = plot_images(torch.rand(2, 1, 4, 4), ["bag", "coat"])
    assert [ax.get_title() for ax in figure.axes] == ["bag", "coat"]


def test_plot_images_with_a_title_missing_is_an_error():
    with pytest.raises(ValueError, match=r"1 title .*2 images"):
        plot_images(torch.rand(2, 1, 4, 4), ["bag"])


def test_plot_images_of_no_images_is_an_error():
    with pytest.raises(ValueError, match="image"):
        plot_images(torch.rand(0, 1, 4, 4))


def test_figure_shows_itself_in_a_notebook():
    assert plot_lines({"lr": [1]})._repr_png_().startswith(b"\x89PNG")


def test_drawing_does_not_use_pyplot(monkeypatch):
    spec = importlib.util.spec_from_file_location("minilearn.fresh_plot", minilearn.plot.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error now
    fresh.plot_lines({"lr": [1]})
    fresh.plot_history(HISTORY)
    fresh.plot_images(torch.rand(1, 1, 4, 4))
    fresh.plot_scheduler(cosine(3), 3)


# Schedulers -----------------------------------------------------------------------------------------


class Memory:
    """A function for LambdaLR that has a state of its own, which torch saves with the scheduler."""

    def __init__(self):
        self.n_calls, self.steps = 0, []

    def __call__(self, step):
        self.n_calls += 1
        self.steps.append(step)
        return 0.5**step


def nested(opt):
    return ChainedScheduler([sequential(opt), ExponentialLR(opt, 0.9)])


SCHEDS = {
    "StepLR": lambda opt: StepLR(opt, 2, 0.5),
    "MultiStepLR": lambda opt: MultiStepLR(opt, [1, 4], 0.5),
    "ConstantLR": lambda opt: ConstantLR(opt, 0.5, 3),
    "LinearLR": lambda opt: LinearLR(opt, 0.1, 1.0, 5),
    "ExponentialLR": lambda opt: ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: PolynomialLR(opt, 7, 2),
    "CosineAnnealingLR": lambda opt: CosineAnnealingLR(opt, 12),
    "CosineAnnealingWarmRestarts": lambda opt: CosineAnnealingWarmRestarts(opt, 3, 2),
    "CyclicLR": lambda opt: CyclicLR(opt, 0.01, 0.1, step_size_up=3),
    "CyclicLR with a function": lambda opt: CyclicLR(
        opt, 0.01, 0.1, step_size_up=3, scale_fn=lambda cycle: 1 / cycle
    ),
    "OneCycleLR": lambda opt: OneCycleLR(opt, [0.5] * len(opt.param_groups), total_steps=12),
    "LambdaLR": lambda opt: LambdaLR(opt, cosine(12)),
    "LambdaLR with a state": lambda opt: LambdaLR(opt, Memory()),
    "MultiplicativeLR": lambda opt: MultiplicativeLR(opt, lambda step: 0.9),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "ChainedScheduler of SequentialLR": nested,
}
EACH_SCHED = pytest.mark.parametrize("name", SCHEDS)


MOMENTUM_SGD = partial(SGD, momentum=0.9)


def two_groups(opt_func=MOMENTUM_SGD):
    """Return an optimizer of two groups, at lr 0.1 and 0.02."""
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    return opt_func([{"params": [first]}, {"params": [second], "lr": 0.02}], lr=0.1)


def train(opt, sched, n_steps):
    """Take steps as a loop by hand does, and return the lrs of both groups that each used."""
    lrs = []
    for _ in range(n_steps):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        lrs.append([float(group["lr"]) for group in opt.param_groups])
        opt.step()
        sched.step()
    return lrs


def snapshot(opt, sched):
    """Return all there is to a scheduler and its optimizer, as text and by identity."""
    groups = [
        {k: v for k, v in group.items() if not isinstance(v, torch.Tensor)} for group in opt.param_groups
    ]
    tensors = [v for group in opt.param_groups for v in group.values() if isinstance(v, torch.Tensor)]
    weights = [p for group in opt.param_groups for p in group["params"]]
    return {
        "groups": [list(group) for group in opt.param_groups],
        "values": repr([{**group, "params": None} for group in groups]),
        "opt": repr(opt.state_dict()),
        "sched": repr(sched.state_dict()),
        "last": repr(sched.get_last_lr()),
        "tensors": [(id(v), v.item()) for v in tensors],
        "weights": [(id(p), p.tolist(), None if p.grad is None else p.grad.tolist()) for p in weights],
        "step": opt.step,
    }


def drawn(figure):
    return [[line.get_ydata().tolist() for line in ax.lines] for ax in figure.axes]


@EACH_SCHED
@pytest.mark.parametrize("n_before", [0, 3], ids=["new", "advanced"])
@pytest.mark.parametrize("opt_func", [MOMENTUM_SGD, AdamW], ids=["SGD", "AdamW"])
def test_lrs_drawn_are_those_that_training_then_uses(name, n_before, opt_func):
    opt = two_groups(opt_func)
    sched = SCHEDS[name](opt)
    train(opt, sched, n_before)
    (lines,) = drawn(plot_scheduler(sched, n_steps=9))
    assert list(zip(*lines, strict=True)) == [tuple(lrs) for lrs in train(opt, sched, 9)]


@EACH_SCHED
@pytest.mark.parametrize("n_before", [0, 3], ids=["new", "advanced"])
@pytest.mark.parametrize("opt_func", [MOMENTUM_SGD, AdamW], ids=["SGD", "AdamW"])
def test_drawing_a_scheduler_leaves_it_and_its_optimizer_as_they_were(name, n_before, opt_func):
    opt = two_groups(opt_func)
    sched = SCHEDS[name](opt)
    train(opt, sched, n_before)
    before = snapshot(opt, sched)
    plot_scheduler(sched, n_steps=9)
    assert snapshot(opt, sched) == before


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "LambdaLR"])
def test_lr_that_is_a_tensor_is_drawn_and_put_back_in_place(name):
    opt = two_groups(partial(AdamW, foreach=False))
    for group in opt.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    sched = SCHEDS[name](opt)
    before = snapshot(opt, sched)
    (lines,) = drawn(plot_scheduler(sched, n_steps=9))
    assert snapshot(opt, sched) == before
    assert len(before["tensors"]) >= 2
    expected = two_groups()
    expected = train(expected, SCHEDS[name](expected), 9)
    assert list(zip(*lines, strict=True)) == [pytest.approx(lrs, rel=1e-5) for lrs in expected]  # float32


def test_one_cycle_is_drawn_to_its_very_end_and_no_further():
    opt = two_groups()
    sched = SCHEDS["OneCycleLR"](opt)
    (lines,) = drawn(plot_scheduler(sched, n_steps=12))
    assert lines[0][-1] == min(lines[0]) == pytest.approx(0.5 / 25 / 1e4)
    before = snapshot(opt, sched)
    with pytest.raises(ValueError, match="Tried to step 13 times"):
        plot_scheduler(sched, n_steps=20)
    assert snapshot(opt, sched) == before


def test_function_that_fails_half_way_leaves_all_as_it_was():
    opt = two_groups()
    sched = LambdaLR(opt, lambda step: 1 / (3 - step))
    before = snapshot(opt, sched)
    with pytest.raises(ZeroDivisionError):
        plot_scheduler({"good": cosine(3), "bad": sched}, n_steps=9)
    assert snapshot(opt, sched) == before


def test_drawing_takes_no_step_of_the_optimizer():
    opt = two_groups()
    sched = StepLR(opt, 1)
    opt.register_step_pre_hook(lambda *args: pytest.fail("the optimizer was stepped"))
    plot_scheduler(sched, n_steps=3)


def test_scheduler_is_asked_for_the_steps_drawn_and_no_more():
    asked = []
    sched = LambdaLR(two_groups(), lambda step: asked.append(step) or 1.0)
    plot_scheduler(sched, n_steps=3)
    assert asked[::2] == [0, 1, 2]  # 0 when it was made, and each for both groups


def test_drawing_gives_no_warning_and_leaves_the_filters():
    sched = StepLR(two_groups(), 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        plot_scheduler(sched, n_steps=5)
        assert warnings.filters == filters
    assert caught == []


def test_scheduler_warns_after_the_drawing_as_before_it():
    sched = StepLR(two_groups(), 1)
    plot_scheduler(sched, n_steps=5)
    with pytest.warns(UserWarning, match="`lr_scheduler.step..` before `optimizer.step..`"):
        sched.step()


def test_scheduler_of_several_groups_has_a_line_for_each():
    opt = two_groups()
    (lines,) = drawn(plot_scheduler(StepLR(opt, 2, 0.5), n_steps=5))
    assert lines == [[0.1, 0.1, 0.05, 0.05, 0.025], [0.02, 0.02, 0.01, 0.01, 0.005]]


def test_single_step_of_a_scheduler_is_the_lr_there_is():
    opt = two_groups()
    opt.param_groups.pop()
    assert drawn(plot_scheduler(StepLR(opt, 1), n_steps=1)) == [[[0.1]]]


def test_function_is_drawn_step_by_step():
    figure = plot_scheduler(warm_up(4), n_steps=6)
    assert isinstance(figure, Figure)
    assert drawn(figure) == [[[0, 0.25, 0.5, 0.75, 1, 1]]]


def test_axis_says_whether_it_is_an_lr_or_a_multiplier():
    figure = plot_scheduler({"own": StepLR(two_groups(), 1), "function": constant()}, n_steps=2)
    labels = [(ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes]
    assert labels == [("own", "step", "lr"), ("function", "step", "multiplier")]


def halving(step):
    return 0.5**step


def test_named_function_is_the_title():
    assert [ax.get_title() for ax in plot_scheduler(halving, 3).axes] == ["halving"]
    assert [ax.get_title() for ax in plot_scheduler(StepLR(two_groups(), 1), 3).axes] == [""]


@pytest.mark.parametrize("schedule", [cosine(3), triangular(3)])
def test_function_of_schedules_has_no_inner_name_as_its_title(schedule):
    assert plot_scheduler(schedule, 3).axes[0].get_title() in ("", "cosine", "triangular")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "n_axes", "size"), [(1, 1, [4, 3]), (2, 2, [8, 3]), (4, 4, [16, 3]), (5, 8, [16, 6])]
)
def test_mapping_has_a_panel_each_and_the_others_are_off(n, n_axes, size):
    figure = plot_scheduler({f"{i} th": step_decay(i + 1, 0.5) for i in range(n)}, n_steps=3)
    assert len(figure.axes) == n_axes
    assert [ax.get_title() for ax in figure.axes] == [f"{i} th" for i in range(n)] + [""] * (n_axes - n)
    assert [ax.axison for ax in figure.axes] == [True] * n + [False] * (n_axes - n)
    assert drawn(figure)[:n] == [[[1, 0.5, 0.25]], [[1, 1, 0.5]], *[[[1, 1, 1]]] * 3][:n]
    assert figure.get_size_inches().tolist() == size


def test_panel_has_the_size_asked_for():
    figure = plot_scheduler({"a": constant(), "b": constant()}, 3, width=5, height=2)
    assert figure.get_size_inches().tolist() == [10, 2]


def test_axis_begins_at_0_or_below_it():
    figure = plot_scheduler({"high": lambda step: 5 + step, "low": lambda step: step - 3}, n_steps=3)
    assert [ax.get_ylim()[0] for ax in figure.axes] == [0, pytest.approx(-3.1)]
    assert figure.axes[1].get_ylim()[1] < 0


@pytest.mark.parametrize("wrapped", [lambda sched: sched, lambda sched: {"a": cosine(3), "b": sched}])
@pytest.mark.parametrize(
    "sched",
    [None, 0.5, [cosine(3)], "cosine", ReduceLROnPlateau(two_groups())],
    ids=["None", "number", "list", "text", "plateau"],
)
def test_what_has_no_course_of_its_own_is_refused(sched, wrapped):
    with pytest.raises(
        TypeError,
        match=r"^plot_scheduler\(.*\).*scheduler.*torch.*minilearn.schedules",
    ) as caught:
        plot_scheduler(wrapped(sched), n_steps=3)
    assert repr(sched) in str(caught.value)


@pytest.mark.parametrize("sched", [OneCycleLR, partial(OneCycleLR, max_lr=0.1)])
def test_what_has_still_to_be_made_is_refused(sched):
    with pytest.raises(TypeError, match=r"plot_scheduler\(.*scheduler.*torch"):
        plot_scheduler(sched, n_steps=3)


def test_a_schedule_that_was_not_called_is_refused():
    with pytest.raises(TypeError, match=r"constant.*constant"):
        plot_scheduler(constant, n_steps=3)


@pytest.mark.parametrize("sched", [cosine, partial(cosine, low=0.0), partial(cosine, n_steps=4)])
def test_a_function_of_n_steps_is_drawn_as_what_it_makes(sched):
    (line,) = drawn(plot_scheduler(sched, n_steps=4))[0]
    assert line == [cosine(4)(step) for step in range(4)]


@pytest.mark.parametrize(
    ("sched", "n_steps", "message"),
    [
        ({}, 3, r"plot_scheduler\(sched=\{\}, n_steps=3\).*schedule.*step"),
        (cosine(3), 0, r"plot_scheduler\(.*=0\).*schedule.*step"),
        (cosine(3), -1, r"plot_scheduler\(.*=-1\).*schedule.*step"),
    ],
)
def test_nothing_to_draw_is_refused(sched, n_steps, message):
    with pytest.raises(ValueError, match=message):
        plot_scheduler(sched, n_steps)


def test_plot_history_gives_a_phase_one_color_in_all_panels():
    rows = [{"loss": 1.0, "epoch": 0, "train": phase} for phase in ("train", "clean", "shifted")]
    for row in rows[1:]:
        row["f1"] = 0.5  # of validation only
    colors = [
        {line.get_label(): line.get_color() for line in ax.get_lines()} for ax in plot_history(rows).axes
    ]
    assert colors[0].keys() == {"train", "clean", "shifted"}
    assert len(set(colors[0].values())) == 3
    assert colors[1] == {name: colors[0][name] for name in ("clean", "shifted")}
