"""What an optimizer keeps from one fit to the next: the table of docs/how-to/fit-again.md, cell for cell."""

from functools import cache, partial
from pathlib import Path

import pytest
import torch
from callbacks.test_scheduler import CASES, N_EPOCHS, PER_EPOCH, TOTAL, UNITS, torchs_own_loop
from toolbox import at, make_learner
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from minilearn import BatchSchedulerCB, RecorderCB
from minilearn.optim import OPTIMIZERS
from minilearn.optim.groups import SCHEDULE_KEYS

OURS = {f"our {name}": cls for name, cls in OPTIMIZERS.items()}
OPTS = {
    "SGD": partial(SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": AdamW,
    "RMSprop": partial(torch.optim.RMSprop, momentum=0.5),
    **OURS,
}
CHANGED = {"weight_decay": 0.25, "wd": 0.25, "foreach": False}  # SGDAlternate has nothing else
KEPT_LR, X, LEARNERS_LR = 0.02, 0.03, 0.01


def halving(opt):
    return LambdaLR(opt, lambda step: 0.5 ** (step + 1))


FITS = {
    "`fit(n)`": {},
    "`fit(n, lr=x)`": {"lr": X},
    "`fit(n, reset_opt=True)`": {"reset_opt": True},
    "`fit(n, cbs=scheduler)`": {"cbs": halving},
    "`fit(n, lr=x, cbs=scheduler)`": {"lr": X, "cbs": halving},
}


def cells():
    """Return the page's table: (what, fit, cell)."""
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "fit-again.md").read_text()
    lines = text.split("<!-- kept -->\n")[1].split("\n\n")[0].splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert rows[0][1:] == list(FITS)
    return [(row[0], fit, cell) for row in rows[2:] for fit, cell in zip(rows[0][1:], row[1:], strict=True)]


def values(group):
    return {key: value for key, value in group.items() if key != "params"}


def opt_state_of(opt):
    return [
        {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
        for state in opt.state.values()
    ]


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(torch.as_tensor(x[k]), torch.as_tensor(y[k])) for k in x)
        for x, y in zip(a, b, strict=True)
    )


@cache
def second_fit(opt, fit):
    """Return the optimizer as built, before the second fit, and at that fit's first step."""
    learn = make_learner(opt_func=OPTS[opt], lr=LEARNERS_LR)
    found = {}
    learn.fit(cbs=at("before_batch", lambda learn: found.setdefault("built", values(group_of(learn)))))
    group = group_of(learn)
    cycles = bool(group.get("momentum", group.get("betas")))
    step_by_hand(learn.opt, OneCycleLR(learn.opt, 3.0, total_steps=10, cycle_momentum=cycles))
    group["lr"] = KEPT_LR
    wd = next(name for name in ("weight_decay", "wd", "foreach") if name in group)
    group[wd] = CHANGED[wd]
    found["before"] = values(group)
    found["state before"], found["opt"] = opt_state_of(learn.opt), learn.opt

    def look(learn):
        found.setdefault("now", values(group_of(learn)))
        found.setdefault("state now", opt_state_of(learn.opt))
        found.setdefault("new", learn.opt is not found["opt"])

    kwargs = dict(FITS[fit])
    cbs = [BatchSchedulerCB(kwargs.pop("cbs"))] if "cbs" in kwargs else []
    learn.fit(cbs=[*cbs, at("before_step", look)], **kwargs)
    return found, wd


def step_by_hand(opt, sched):
    """Take steps of a scheduler of the user's own, on gradients that are None."""
    for _ in range(3):
        opt.step()
        sched.step()


def group_of(learn):
    return learn.opt.param_groups[0]


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize(("what", "fit", "cell"), cells())
def test_cell_of_the_table_holds(opt, what, fit, cell):
    found, wd = second_fit(opt, fit)
    built, before, now = found["built"], found["before"], found["now"]
    left = sorted(now.keys() & set(SCHEDULE_KEYS))
    match what.split()[0], cell:
        case "averages", "kept":
            assert not found["new"]
            assert same(found["state now"], found["state before"])
        case "averages", "new":
            assert found["new"]
            assert found["state now"] == []
        case "lr", _:
            expected = {"kept": KEPT_LR, "x": X, "as built": LEARNERS_LR}
            expected |= {"the schedule's, from the kept one": KEPT_LR / 2, "the schedule's, from x": X / 2}
            assert now["lr"] == expected[cell]
        case "momentum", _:
            names = sorted(now.keys() & {"momentum", "betas"})
            assert [now[name] for name in names] == [
                {"kept": before, "as built": built}[cell][name] for name in names
            ]
            assert not names or [before[name] for name in names] != [built[name] for name in names]
        case "`initial_lr`,", "kept":
            assert left == sorted(before.keys() & set(SCHEDULE_KEYS)) != []
        case "`initial_lr`,", "removed":
            assert left == []
        case "`initial_lr`,", "the new schedule's":
            assert left == ["initial_lr"]
            assert now["initial_lr"] == (X if "lr=x" in fit else KEPT_LR)
        case "other", _:
            assert now[wd] == {"kept": CHANGED[wd], "as built": built[wd]}[cell]
            assert built[wd] != CHANGED[wd]
        case _:
            raise AssertionError(f"no check for {what!r}: {cell!r}")


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
@pytest.mark.parametrize("first", ["ours", "torch's"])
@pytest.mark.parametrize("name", CASES)
def test_kept_optimizer_under_a_new_schedule_gets_the_lr_asked_for_at_each_step(
    make_learner, name, first, unit
):
    scheduler_f, kwargs, filled = CASES[name]
    if name == "ReduceLROnPlateau":
        if unit is BatchSchedulerCB:
            pytest.skip("what it watches is measured once an epoch")
        kwargs = {"patience": 0, "factor": 0.5, "threshold": 1e9, "monitor": "train/loss"}  # halves always
    if "max_lr" in (filled(3) if filled else {}):
        kwargs = kwargs | {"max_lr": 0.1}
    learn = make_learner(n_batches=PER_EPOCH, n_valid=0, default_cbs=True, lr=0.7, opt_func=AdamW)
    learn.fit(2, cbs=BatchSchedulerCB(OneCycleLR, max_lr=5.0))
    if first == "torch's":
        step_by_hand(learn.opt, OneCycleLR(learn.opt, max_lr=5.0, total_steps=50))
    opt, recorder = learn.opt, RecorderCB()
    learn.fit(N_EPOCHS, lr=0.1, cbs=[unit(scheduler_f, **kwargs), recorder])
    assert learn.opt is opt
    by_hand = {key: value for key, value in kwargs.items() if key != "monitor"}
    by_hand |= filled(TOTAL[unit]) if filled else {}
    values = [1.0] * N_EPOCHS if name == "ReduceLROnPlateau" else None
    expected = torchs_own_loop(lambda opt: scheduler_f(opt, **by_hand), unit, values)
    assert list(zip(recorder.recs["lr"], recorder.recs["mom"], strict=True)) == expected


# Groups that do not fit -------------------------------------------------------------------------------


def test_layer_that_was_removed_needs_a_new_optimizer(make_learner):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    learn = make_learner(model=model)
    learn.fit()
    del model[1]
    with pytest.raises(ValueError, match=r"2 tensors.*group 0.*\(2, 2\).*reset_opt"):
        learn.fit()
    learn.fit(reset_opt=True)


def test_parameters_beside_the_model_may_be_trained_on(make_learner):
    extra = torch.nn.Parameter(torch.zeros(2))
    learn = make_learner(param_groups=lambda model: [{"params": [*model.parameters(), extra]}])
    learn.fit()
    learn.fit()


@pytest.mark.parametrize(
    ("scheduler_f", "kwargs"),
    [
        (OneCycleLR, {"max_lr": [0.1, 0.2, 0.3]}),
        (LambdaLR, {"lr_lambda": [abs] * 3}),
        (CASES["CyclicLR"][0], {"base_lr": [0.1] * 3, "max_lr": 0.2}),
    ],
)
def test_scheduler_for_another_number_of_groups_is_refused(make_learner, scheduler_f, kwargs):
    groups = {"param_groups": lambda model: [{"params": [p]} for p in model.parameters()]}
    learn = make_learner(opt_func=partial(SGD, momentum=0.9), **groups)
    learn.fit()
    with pytest.raises(ValueError, match=r"3 values.*2 parameter groups"):
        learn.fit(cbs=BatchSchedulerCB(scheduler_f, **kwargs))
    assert learn.n_steps == 0
