from functools import partial

import pytest
import torch
from torch import nn

from minilearn import CheckpointCB, SwitchPointsCB
from minilearn.optim import SWATS


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


LOCAL = partial(SWATS, switch="local", threshold=0.05)


def test_points_are_those_of_the_optimizer_in_the_order_of_their_steps(make_learner):
    cb = SwitchPointsCB()
    learn = make_learner(model=model(), cbs=cb, opt_func=LOCAL, lr=0.02)
    learn.fit(5)
    assert cb.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    expected = {
        name: (int(state["switched_at"]), state["sgd_lr"].item())
        for name, p in learn.model.named_parameters()
        if "switched_at" in (state := learn.opt.state[p])
    }
    assert {name: (step, lr) for name, step, lr in cb.points} == expected
    assert [point.step for point in cb.points] == sorted(point.step for point in cb.points)
    assert len(cb.points) >= 2


def test_table_is_the_document_s(make_learner):
    cb = SwitchPointsCB()
    make_learner(model=model(), cbs=cb, opt_func=partial(SWATS, threshold=1e3), lr=0.02).fit()
    lines = cb.table().splitlines()
    assert lines[0] == "Layer       Steps  Estimated lr for SGD"
    assert [line.split()[:2] for line in lines[1:-1]] == [[name, "2"] for name in cb.names]
    assert "4 of 4 tensors" in lines[-1]


def test_timeline_has_a_bar_for_each_tensor(make_learner):
    cb = SwitchPointsCB()
    make_learner(model=model(), cbs=cb, opt_func=LOCAL, lr=0.02).fit(5)
    ax = cb.plot().axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == cb.names
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    assert [a + b for a, b in zip(*widths, strict=True)] == [15] * 4
    at = {point.name: point.step for point in cb.points}
    assert widths[0] == [at.get(name, 15) for name in cb.names]


def test_before_any_switch_there_is_an_empty_table_and_a_figure(make_learner):
    cb = SwitchPointsCB()
    make_learner(model=model(), cbs=cb, opt_func=SWATS).fit()
    assert cb.points == []
    assert "0 of 4 tensors" in cb.table().splitlines()[-1]
    assert cb.plot() is not None


def test_resumed_run_has_the_points_from_before(make_learner, tmp_path):
    def make():
        cb = SwitchPointsCB()
        learn = make_learner(model=model(), cbs=[cb, CheckpointCB(tmp_path)], opt_func=LOCAL, lr=0.02)
        return learn, cb

    learn, straight = make()
    learn.fit(4, resume=True)
    learn, cb = make()
    learn.fit(4, resume=True)
    assert cb.points == straight.points != []


def test_another_optimizer_is_refused_before_training(make_learner):
    learn = make_learner(cbs=SwitchPointsCB())
    with pytest.raises(TypeError, match=r"SwitchPointsCB\(\).*AdamW.*optim.SWATS"):
        learn.fit()
    assert learn.n_steps == 0
