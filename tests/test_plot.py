import importlib.util
import sys

import pytest
import torch
from matplotlib.figure import Figure

import minilearn.plot
from minilearn import plot_history, plot_images, plot_lines

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
    with pytest.raises(ValueError, match="plot: nothing was recorded yet"):
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
    with pytest.raises(ValueError, match="plot_history: the history has no row yet"):
        plot_history([])


@pytest.mark.parametrize(("n", "n_cols", "n_axes"), [(7, 3, 9), (2, 6, 2), (6, 6, 6)])
def test_plot_images_fills_a_grid(n, n_cols, n_axes):
    figure = plot_images(torch.rand(n, 1, 4, 4), n_cols=n_cols)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == n_axes
    assert [len(ax.images) for ax in figure.axes] == [1] * n + [0] * (n_axes - n)


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
    with pytest.raises(ValueError, match="1 titles for 2 images: expected one each, or none"):
        plot_images(torch.rand(2, 1, 4, 4), ["bag"])


def test_plot_images_of_no_images_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        plot_images(torch.rand(0, 1, 4, 4))


def test_figure_shows_itself_in_a_notebook():
    assert plot_lines({"lr": [1]})._repr_png_().startswith(b"\x89PNG")


def test_drawing_does_not_use_pyplot(monkeypatch):
    spec = importlib.util.spec_from_file_location("fresh_plot", minilearn.plot.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error now
    fresh.plot_lines({"lr": [1]})
    fresh.plot_history(HISTORY)
    fresh.plot_images(torch.rand(1, 1, 4, 4))
