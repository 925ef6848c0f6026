from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from minilearn.optim import OPTIMIZERS, by_layer
from minilearn.optim.summary import summary


def stepped(opt, model, n=1):
    for _ in range(n):
        model(torch.ones(2, 3)).sum().backward()
        opt.step()
    return summary(opt).splitlines()


def test_new_optimizer_has_hyperparameters_and_no_state():
    opt = AdamW(nn.Linear(3, 2).parameters(), lr=0.1)
    assert summary(opt).splitlines() == [
        "AdamW: 1 group, 2 tensors, 8 parameters",
        "group 0: 2 tensors, 8 parameters",
        "  lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, decoupled_weight_decay=True",
        "  state: none",
    ]


def test_state_is_told_with_its_count_and_memory():
    model = nn.Linear(3, 2)
    lines = stepped(AdamW(model.parameters()), model, n=3)
    # 8 numbers of 4 bytes, twice, and a count of 4 bytes for each of two tensors.
    assert lines[-1] == "  state: exp_avg, exp_avg_sq like the parameter; step 3; 72 bytes"


def test_groups_have_their_names_and_own_hyperparameters():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    lines = summary(
        SGD([{**group, "lr": 0.1 * i} for i, group in enumerate(by_layer(model))], 0.1)
    ).splitlines()
    assert lines[0] == "SGD: 2 groups, 4 tensors, 11 parameters"
    assert [line for line in lines if line.startswith("group")] == [
        "group 0 (0): 2 tensors, 8 parameters",
        "group 1 (1): 2 tensors, 3 parameters",
    ]
    assert [line.split(",")[0] for line in lines if "lr=" in line] == ["  lr=0", "  lr=0.1"]


def test_what_a_schedule_left_is_apart():
    opt = SGD(nn.Linear(3, 2).parameters(), lr=0.1, momentum=0.9)
    OneCycleLR(opt, max_lr=1.0, total_steps=10)
    left = next(line for line in summary(opt).splitlines() if "of a schedule" in line)
    assert left.startswith("  of a schedule: initial_lr=0.04, max_lr=1, min_lr=")


def test_state_of_some_parameters_and_steps_that_differ_are_told():
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)])
    opt = AdamW(model.parameters())
    for layers in ((0,), (0, 1)):
        opt.zero_grad()
        sum(model[i](torch.ones(1, 3)).sum() for i in layers).backward()
        opt.step()
    assert summary(opt).splitlines()[-1].endswith("step 1 to 2 of 4 of them; 144 bytes")


@pytest.mark.parametrize(("n", "said"), [(125, "1.0 kB"), (125_000, "1.0 MB")])
def test_memory_has_a_unit(n, said):
    p = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    opt = SGD([p], 0.1, momentum=0.9)
    p.grad = torch.ones_like(p)
    opt.step()
    assert summary(opt).splitlines()[-1] == f"  state: momentum_buffer like the parameter; {said}"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_optimizers_are_told_too(name):
    model = nn.Linear(3, 2)
    lines = stepped(OPTIMIZERS[name](model.parameters(), 0.1), model)
    assert lines[0] == f"{name}: 1 group, 2 tensors, 8 parameters"
    assert lines[2].startswith("  lr=0.1, ")


def test_lr_that_is_a_tensor_is_a_number_here():
    opt = AdamW(nn.Linear(3, 2).parameters(), lr=torch.tensor(0.5))
    assert "  lr=0.5, " in summary(opt)


def test_bare_class_is_told_as_far_as_it_can_be(bare_sgd):
    assert summary(bare_sgd([nn.Parameter(torch.zeros(2))], 0.1)).splitlines() == [
        "BareSGD: 1 group, 1 tensor, 2 parameters",
        "group 0: 1 tensor, 2 parameters",
        "  lr=0.1, wd=0",
        "  state: unknown",
    ]


def test_learner_prints_it(make_learner, capsys):
    learn = make_learner(opt_func=partial(SGD, momentum=0.9))
    learn.opt_summary()
    assert "no optimizer" in capsys.readouterr().out
    learn.fit()
    learn.opt_summary()
    assert capsys.readouterr().out == summary(learn.opt) + "\n"
