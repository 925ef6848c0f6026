"""Several optimizers as one: each parameter is trained as by its own optimizer, and everything sees one."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from toolbox import (
    StopCB,
    drawn,
    every_rest,
    generator,
    make_learner,
    mentions,
    noisy_learner,
    resumed_from_each_rest,
    same,
    samples,
    stop,
    tensors_of,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Muon
from torch.optim import lr_scheduler as schedulers

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    Callback,
    DataLoaders,
    EpochSchedulerCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    ScheduleCB,
    TensorLoader,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.optim import OPTIMIZERS, Combined, by_layer, is_matrix
from minilearn.schedules import cosine

MUON_AND_ADAMW = Combined((is_matrix, partial(Muon, lr=0.02)), AdamW)


def net():
    return drawn(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


def learner(*cbs, opt_func=MUON_AND_ADAMW, **kwargs):
    return make_learner(**{"model": net(), "n_batches": 4, "cbs": cbs, "opt_func": opt_func} | kwargs)


def by_hand(muon, adamw, n_epochs=2, max_norm=None, n_accumulated=1, sched=lambda opt: None):
    """Train with two optimizers in a plain loop; return the model."""
    learn = learner()
    model = learn.model
    weights, biases = ([p for p in model.parameters() if p.ndim == ndim] for ndim in (2, 1))
    opts = [muon(weights), adamw(biases)]
    scheds = [sched(opt) for opt in opts]
    for _ in range(n_epochs):
        for i, (x, y) in enumerate(learn.dls.train):
            (F.cross_entropy(model(x), y) / n_accumulated).backward()
            if (i + 1) % n_accumulated:
                continue
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            for opt, one in zip(opts, scheds, strict=True):
                opt.step()
                opt.zero_grad()
                if one is not None:
                    one.step()
    return model


# Training -------------------------------------------------------------------------------------------


def test_it_is_the_loop_with_two_optimizers():
    learn = learner(lr=3e-3)
    learn.fit(2)
    expected = by_hand(partial(Muon, lr=0.02), partial(AdamW, lr=3e-3, fused=True))
    assert same(tensors_of(learn.model), tensors_of(expected))


def test_clipping_is_of_all_parts_together():
    learn = learner(GradientClippingCB(0.1), lr=3e-3)
    learn.fit(2)
    expected = by_hand(partial(Muon, lr=0.02), partial(AdamW, lr=3e-3, fused=True), max_norm=0.1)
    assert same(tensors_of(learn.model), tensors_of(expected))
    assert not same(tensors_of(learn.model), tensors_of(by_hand(partial(Muon, lr=0.02), AdamW)))


def test_accumulated_gradients_step_all_parts():
    learn = learner(GradientAccumulationCB(2), lr=3e-3)
    learn.fit(2)
    muon, adamw = partial(Muon, lr=0.02), partial(AdamW, lr=3e-3, fused=True)
    expected = by_hand(muon, adamw, n_accumulated=2)
    assert same(tensors_of(learn.model), tensors_of(expected))
    assert learn.n_steps == 4


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_ours_are_parts_like_torchs(name):
    kind = OPTIMIZERS[name]
    learn = learner(opt_func=Combined((is_matrix, kind), partial(SGD, momentum=0.9)), lr=0.01)
    learn.fit(2)
    expected = by_hand(partial(kind, lr=0.01), partial(SGD, lr=0.01, momentum=0.9, fused=True))
    assert same(tensors_of(learn.model), tensors_of(expected))


class Watched(SGD):
    def zero_grad(self, set_to_none=True):
        Watched.n = getattr(Watched, "n", 0) + 1
        super().zero_grad(set_to_none)


def test_a_part_clears_gradients_in_its_own_way():
    Watched.n = 0
    learn = learner(opt_func=Combined((is_matrix, Watched), SGD))
    learn.fit()
    assert Watched.n == 4
    assert learn.model[0].bias.grad is None


class HeadCB(Callback):
    def __init__(self):
        self.scale = nn.Parameter(torch.ones(2, 2))

    def extra_params(self, learn):
        return [self.scale]

    def after_predict(self, learn):
        learn.preds = learn.preds @ self.scale


def test_parameters_outside_the_model_are_the_last_part_s():
    cb = HeadCB()
    learn = learner(cb, lr=[0.02, 0.1])
    learn.fit()
    groups = learn.opt.param_groups
    assert [group["part"] for group in groups] == ["Muon", "AdamW", "AdamW"]
    assert [group["lr"] for group in groups] == [0.02, 0.1, 0.1]
    assert groups[2]["params"] == [cb.scale]


# Which ----------------------------------------------------------------------------------------------


def parts_of(opt_func, model=None, **kwargs):
    learn = learner(opt_func=opt_func, **({"model": model} if model else {}), **kwargs)
    learn.fit()
    names = {id(p): name for name, p in learn.model.named_parameters()}
    return [[group["part"], *(names[id(p)] for p in group["params"])] for group in learn.opt.param_groups]


@pytest.mark.parametrize(
    "which", ["2", ["2.weight", "2.bias"], lambda name, p: name[0] == "2", lambda p: p.shape[0] == 2]
)
def test_a_part_chooses_by_name_or_parameter(which):
    expected = [["SGD", "2.weight", "2.bias"], ["AdamW", "0.weight", "0.bias"]]
    assert parts_of(Combined((which, SGD), AdamW)) == expected


def test_groups_are_divided_among_the_parts():
    opt_func = Combined((is_matrix, partial(Muon, lr=0.02)), AdamW)
    learn = learner(opt_func=opt_func, param_groups=by_layer, lr=3e-3)
    learn.fit()
    found = [(group["part"], group["name"], group["lr"]) for group in learn.opt.param_groups]
    assert found == [("Muon", "0", 0.02), ("Muon", "2", 0.02), ("AdamW", "0", 3e-3), ("AdamW", "2", 3e-3)]


def test_two_parts_of_a_class_have_two_names():
    assert [name for name, *_ in parts_of(Combined(("0", SGD), ("2", partial(SGD, momentum=0.9))))] == [
        "SGD",
        "SGD 2",
    ]


def test_the_rest_may_be_empty():
    assert parts_of(Combined((lambda p: True, SGD), AdamW)) == [["SGD", *dict(net().named_parameters())]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (((is_matrix, Muon), ("0", SGD), AdamW), "several parts choose 0.weight: expected one"),
        (((is_matrix, Muon), ("0.bias", SGD)), "no part chooses 2.bias: expected an opt_func"),
        (
            ((is_matrix, Muon), ("head", SGD), AdamW),
            "part 1 (SGD) chooses no parameter, of 0.weight, 0.bias, 2.weight, 2.bias",
        ),
    ],
)
def test_parameters_without_one_part_are_named(parts, message):
    learn = learner(opt_func=Combined(*parts))
    with pytest.raises(ValueError, match=mentions(message)):
        learn.fit()
    assert learn.n_epochs_trained == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((AdamW,), "1 part: expected two or more"),
        ((AdamW, SGD), "part 0 of Combined"),
        (((is_matrix, Muon), 3), "part 1 of Combined is 3"),
        (((is_matrix, 0.02), AdamW), "part 0 of Combined"),
        (((3, Muon), AdamW), "part 0 of Combined chooses by 3"),
        ((([], Muon), AdamW), "chooses by []"),
        (((nn.Linear, Muon), AdamW), "chooses by <class"),
        (((is_matrix, SGD([torch.zeros(1)], 0.1)), AdamW), "part 0 of Combined"),
    ],
)
def test_parts_of_another_form_are_refused(parts, message):
    with pytest.raises(TypeError, match=mentions(message)):
        Combined(*parts)


def test_a_part_that_needs_a_closure_is_refused():
    with pytest.raises(TypeError, match="LBFGS"):
        learner(opt_func=Combined((is_matrix, Muon), torch.optim.LBFGS)).fit()


def test_a_part_that_is_no_optimizer_of_torch_is_refused():
    with pytest.raises(TypeError, match=mentions("object: expected a torch.optim.Optimizer")):
        learner(opt_func=Combined((is_matrix, lambda params, lr: object()), SGD)).fit()


# lr -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "of_fit", "expected"),
    [
        (3e-3, None, [0.02, 3e-3]),
        ([0.1, 0.2], None, [0.1, 0.2]),
        (3e-3, 0.5, [0.5, 0.5]),
        (3e-3, [0.5, 0.6], [0.5, 0.6]),
    ],
)
@pytest.mark.parametrize("n_before", [0, 1])
def test_each_part_has_its_lr(lr, of_fit, expected, n_before):
    learn = learner(lr=lr)
    for _ in range(n_before):
        learn.fit()
    learn.fit(lr=of_fit)
    assert [group["lr"] for group in learn.opt.param_groups] == expected


BOTH_HAVE_AN_LR = Combined((is_matrix, partial(Muon, lr=0.02)), partial(AdamW, lr=0.003))


def test_an_lr_that_no_part_takes_is_refused():
    with pytest.raises(ValueError, match=mentions("lr=0.5 ... lr=0.02 of Muon, lr=0.003 of AdamW")):
        Learner(net(), lr=0.5, opt_func=BOTH_HAVE_AN_LR)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, [0.02, 0.003]), ({"lr": 0.003}, [0.02, 0.003]), ({"lr": [0.1, 0.2]}, [0.1, 0.2])],
    ids=["none", "one that a part has", "one for each"],
)
def test_parts_that_all_have_an_lr_need_none_of_the_learner(given, expected):
    learn = Learner(net(), learner().dls, opt_func=BOTH_HAVE_AN_LR, **given)
    learn.fit()
    assert [group["lr"] for group in learn.opt.param_groups] == expected


def test_lrs_that_do_not_match_the_parts_are_refused():
    with pytest.raises(ValueError, match="expected one number, or 2, one per parameter group"):
        learner(lr=[0.1, 0.2, 0.3]).fit()


SCHEDULERS = {
    "OneCycleLR": BatchSchedulerCB(schedulers.OneCycleLR),
    "CyclicLR": BatchSchedulerCB(schedulers.CyclicLR, base_lr=1e-4),
    "CosineAnnealingLR": BatchSchedulerCB(schedulers.CosineAnnealingLR),
    "CosineAnnealingWarmRestarts": BatchSchedulerCB(schedulers.CosineAnnealingWarmRestarts, T_0=4),
    "LambdaLR": BatchSchedulerCB(schedulers.LambdaLR, lr_lambda=[lambda i: 1 / (i + 1), lambda i: 1.0]),
    "MultiplicativeLR": BatchSchedulerCB(schedulers.MultiplicativeLR, lr_lambda=lambda i: 0.9),
    "StepLR": BatchSchedulerCB(schedulers.StepLR, step_size=2),
    "MultiStepLR": BatchSchedulerCB(schedulers.MultiStepLR, milestones=[2, 5]),
    "ConstantLR": BatchSchedulerCB(schedulers.ConstantLR),
    "LinearLR": BatchSchedulerCB(schedulers.LinearLR),
    "ExponentialLR": BatchSchedulerCB(schedulers.ExponentialLR, gamma=0.9),
    "PolynomialLR": BatchSchedulerCB(schedulers.PolynomialLR),
    "ReduceLROnPlateau": EpochSchedulerCB(schedulers.ReduceLROnPlateau, patience=0),
    "ScheduleCB": ScheduleCB("lr", cosine),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_both_parts(name):
    cb, lrs = SCHEDULERS[name], []

    class LrCB(Callback):
        def before_step(self, learn):
            lrs.append([group["lr"] for group in learn.opt.param_groups])
            of_parts = [group["lr"] for opt in learn.opt.parts for group in opt.param_groups]
            assert of_parts == lrs[-1]

    monitored = [] if name != "ReduceLROnPlateau" else [MetricsCB()]
    learn = learner(cb, LrCB(), *monitored, lr=3e-3)
    learn.fit(2)
    assert len(lrs) == 8
    assert [group["lr"] for group in learn.opt.param_groups] == [0.02, 3e-3]
    if isinstance(cb, BatchSchedulerCB):
        assert [cb.preview(learn, 2, group=i) for i in (0, 1)] == [list(of) for of in zip(*lrs, strict=True)]


def test_a_schedule_of_each_part_is_the_one_it_would_have_alone():
    learn = learner(BatchSchedulerCB(schedulers.OneCycleLR), lr=3e-3)
    learn.fit(2)

    expected = by_hand(partial(Muon, lr=0.02), partial(AdamW, lr=3e-3, fused=True), sched=one_cycle)
    assert same(tensors_of(learn.model), tensors_of(expected))


def one_cycle(opt):
    """Make OneCycleLR of 8 steps, which is stepped 7 times: not after the last step."""
    sched = schedulers.OneCycleLR(opt, opt.param_groups[0]["lr"], 8, cycle_momentum=False)
    step, n = sched.step, iter(range(7))
    sched.step = lambda: step() if next(n, None) is not None else None
    return sched


def test_momentum_is_cycled_only_where_torch_can_in_all_parts():
    cycled = learner(
        BatchSchedulerCB(schedulers.OneCycleLR),
        opt_func=Combined((is_matrix, Muon), partial(SGD, momentum=0.9)),
    )
    moms = set()

    class MomCB(Callback):
        def before_step(self, learn):
            moms.add(tuple(round(group["momentum"], 3) for group in learn.opt.param_groups))

    cycled.add_cb(MomCB())
    cycled.fit(2)
    assert {a for a, _ in moms} == {b for _, b in moms}
    assert len(moms) > 2
    with pytest.raises(ValueError, match=mentions("cycle_momentum=True ... in all of its groups")):
        learner(BatchSchedulerCB(schedulers.OneCycleLR, cycle_momentum=True)).fit()


# What else sees it ----------------------------------------------------------------------------------


def test_summary_names_the_parts(capsys):
    learn = learner(lr=3e-3)
    learn.fit()
    learn.opt_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CombinedOptimizer: 2 groups, 4 tensors, 26 parameters"
    assert [line for line in lines if line.startswith("group")] == [
        "group 0 (Muon): 2 tensors, 20 parameters",
        "group 1 (AdamW): 2 tensors, 6 parameters",
    ]
    assert "momentum_buffer like the parameter" in lines[3]
    assert "exp_avg, exp_avg_sq like the parameter; step 4" in lines[6]


def test_frozen_layers_keep_their_parts():
    learn = learner()
    learn.freeze("0")
    learn.fit()
    before = tensors_of(learn.model)
    assert same(
        {k: v for k, v in before.items() if k[0] == "0"},
        {k: v for k, v in tensors_of(net()).items() if k[0] == "0"},
    )
    learn.unfreeze()
    learn.fit()
    assert not torch.equal(before["0.weight"], learn.model[0].weight)
    assert [len(group["params"]) for group in learn.opt.param_groups] == [2, 2]


def test_lr_find_leaves_it_as_it_was():
    learn = learner()
    learn.fit()
    before = deepcopy(learn.opt.state_dict())
    learn.lr_find(n_steps=12)
    assert first_difference(before, learn.opt.state_dict()) == ""


def test_groups_are_added_to_the_part_they_name():
    learn = learner()
    learn.fit()
    new = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="expected one of 'Muon', 'AdamW'"):
        learn.opt.add_param_group({"params": [new]})
    learn.opt.add_param_group({"params": [new], "part": "Muon", "lr": 0.5})
    assert [group["lr"] for group in learn.opt.param_groups] == [0.02, 0.5, 0.1]
    new.grad = torch.eye(2)
    learn.opt.step()
    assert new.abs().sum() > 0
    with pytest.raises(ValueError, match="more than one parameter group"):
        learn.opt.add_param_group({"params": [new], "part": "AdamW"})


def test_it_works_without_a_learner():
    model = net()
    opt = Combined((is_matrix, Muon), AdamW)(model.named_parameters(), lr=0.1)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.1]
    model(torch.ones(2, 3)).sum().backward()
    assert opt.step(lambda: 3.0) == 3.0
    other = Combined((is_matrix, Muon), AdamW)(net().parameters(), lr=0.5)
    groups = other.param_groups[0], other.parts[1].param_groups[0]
    other.load_state_dict(deepcopy(opt.state_dict()))
    assert first_difference(other.state_dict(), opt.state_dict()) == ""
    assert other.param_groups[0] is groups[0] is other.parts[0].param_groups[0]
    assert other.param_groups[1] is groups[1]
    copied = deepcopy(opt)
    assert first_difference(copied.state_dict(), opt.state_dict()) == ""
    assert copied.param_groups[0] is copied.parts[0].param_groups[0]
    with pytest.raises(ValueError, match=mentions("['Muon', 'AdamW'], and this one is of ['SGD', 'AdamW']")):
        Combined((is_matrix, SGD), AdamW)(net().parameters()).load_state_dict(opt.state_dict())


# Resuming -------------------------------------------------------------------------------------------


class Odd(SGD):
    """Keep something in every place where an optimizer can."""

    n = 0

    def step(self, closure=None):
        self.n += 1
        self.state["n"] = self.state.get("n", 0) + 1
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            group["lr"] = 0.1 / (self.n + self.state["n"] + group["seen"])
        return super().step(closure)


RESUMED = {
    "Muon and AdamW": (MUON_AND_ADAMW, lambda: [BatchSchedulerCB(schedulers.OneCycleLR)]),
    "accumulated, clipped, averaged, in bf16": (
        MUON_AND_ADAMW,
        lambda: [GradientAccumulationCB(2), GradientClippingCB(0.5), EMACB(0.9), MixedPrecisionCB()],
    ),
    "ours": (Combined((is_matrix, OPTIMIZERS["SWATS"]), OPTIMIZERS["AdaBound"]), lambda: []),
    "odd": (Combined((is_matrix, Odd), Odd), lambda: []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_it_resumes_from_each_step_of_two_epochs(tmp_path, name):
    opt_func, more = RESUMED[name]

    def make(*cbs):
        return noisy_learner(*more(), *cbs, opt_func=opt_func, lr=3e-3, n_train=4, n_valid=2)

    assert list(resumed_from_each_rest(make, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_it_passes_verify_resume(name):
    opt_func, more = RESUMED[name]
    said = noisy_learner(*more(), opt_func=opt_func, lr=3e-3, n_train=4).verify_resume()
    assert "not compared" not in said


def test_a_run_of_other_parts_is_refused(tmp_path):
    stop(learner(every_rest(tmp_path), StopCB(2), opt_func=Combined((is_matrix, SGD), AdamW)))
    learn = learner(every_rest(tmp_path), opt_func=Combined((is_matrix, Odd), AdamW))
    before = tensors_of(learn.model)
    with pytest.raises(ValueError, match=mentions("group 0 ... in SGD, but here it is in Odd")):
        learn.fit(2, resume=True)
    assert same(before, tensors_of(learn.model))


def test_weights_of_lower_precision_keep_the_state_s_own(tmp_path):
    """Torch casts a state to the dtype of its parameter when it is loaded."""

    def make(*cbs):
        x, y = samples(16)
        dls = DataLoaders(TensorLoader(x.bfloat16(), y, bs=4, shuffle=True, seed=0))
        model = drawn(nn.Linear(3, 2), generator(1)).bfloat16()
        return Learner(
            model, dls, cbs=cbs, lr=0.1, opt_func=Combined((is_matrix, Wide), Wide), default_cbs=False
        )

    straight = make()
    straight.fit(2)
    stop(make(every_rest(tmp_path), StopCB(3)))
    learn = make(every_rest(tmp_path))
    learn.fit(2, resume=True)
    assert same(tensors_of(straight.model), tensors_of(learn.model))
    assert {s["avg"].dtype for s in learn.opt.state.values()} == {torch.float32}


class Wide(SGD):
    """Keep an average in float32."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                avg = self.state[p].setdefault("avg", torch.zeros_like(p, dtype=torch.float32))
                avg.lerp_(p.grad.float(), 0.3)
                p.add_(avg.to(p.dtype), alpha=-group["lr"])
