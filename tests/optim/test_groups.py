import re
from functools import partial

import pytest
import torch
from toolbox import mentions
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, StepLR

import minilearn
from minilearn import BatchSchedulerCB, Callback
from minilearn.optim import Combined
from minilearn.optim.building import build_opt
from minilearn.optim.groups import SCHEDULE_KEYS, groups_of, set_lr
from minilearn.optim.summary import summary

SGD, AdamW, SparseAdam = torch.optim.SGD, torch.optim.AdamW, torch.optim.SparseAdam


def weight_and_bias(model):
    return [{"params": [model.weight], "weight_decay": 0.5}, [model.bias]]


def lrs(opt):
    return [group["lr"] for group in opt.param_groups]


# Building -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.3, [0.3], (0.3,)])
def test_one_group_of_all_parameters_by_default(lr):
    model = nn.Linear(3, 2)
    opt = build_opt(SGD, model, lr)
    assert lrs(opt) == [0.3]
    assert opt.param_groups[0]["params"] == list(model.parameters())


def test_each_group_has_its_lr_and_its_weight_decay():
    opt = build_opt(AdamW, nn.Linear(3, 2), [0.1, 0.2], weight_and_bias)
    assert lrs(opt) == [0.1, 0.2]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.01]  # AdamW's default


def test_a_group_s_own_lr_stands_until_another_is_asked_for(make_learner):
    def groups(model):
        return [{"params": [model.weight], "lr": 0.7}, [model.bias]]

    learn = make_learner(lr=0.1, opt_func=SGD, param_groups=groups)
    learn.fit()
    assert lrs(learn.opt) == [0.7, 0.1]
    learn.fit(lr=0.2)
    assert lrs(learn.opt) == [0.2, 0.2]


def test_lr_of_the_first_fit_is_every_group_s(make_learner):
    learn = make_learner(opt_func=SGD, param_groups=lambda m: [{"params": [*m.parameters()], "lr": 0.7}])
    learn.fit(lr=0.2)
    assert lrs(learn.opt) == [0.2]


@pytest.mark.parametrize("lr", [[0.1], [0.1, 0.2, 0.3]])
def test_another_number_of_lrs_than_groups_is_an_error(lr, make_learner):
    message = r"lr=\[.*\].*2.*group"
    learn = make_learner(param_groups=weight_and_bias)
    with pytest.raises(ValueError, match=message):
        learn.fit(lr=lr)
    learn.fit()
    with pytest.raises(ValueError, match=message):
        learn.fit(lr=lr)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), True])
def test_an_lr_is_a_finite_number_from_0_up(lr, make_learner):
    learn = make_learner()
    for _ in range(2):  # when the optimizer is built, and when it is kept
        with pytest.raises(ValueError, match=rf"lr={lr!r}.*>= 0"):
            learn.fit(lr=lr)
        learn.fit()


def test_a_left_out_parameter_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"param_groups.*bias \(1"):
        build_opt(SGD, nn.Linear(3, 2), 0.1, lambda model: [[model.weight]])


def test_a_frozen_parameter_may_be_left_out():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    opt = build_opt(SGD, model, 0.1, lambda model: [[model.weight]])
    assert opt.param_groups[0]["params"] == [model.weight]


@pytest.mark.parametrize("opt_func", [SGD, partial(SGD, fused=False)])
def test_parameters_of_a_group_may_be_a_generator_or_one_tensor(opt_func):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    opt = build_opt(
        opt_func, model, 0.1, lambda m: [{"params": m[0].parameters()}, {"params": m[1].weight}, []]
    )
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1, 0]
    assert opt.param_groups[0]["params"][0] is model[0].weight
    assert opt.param_groups[1]["params"][0] is model[1].weight


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (lambda m: m.parameters(), "a Parameter"),
        (lambda m: m.named_parameters(), "a tuple"),
        (lambda m: [{"param": [*m.parameters()], "lr": 0.1}], "'param', 'lr'"),
    ],
    ids=["parameters", "named", "misspelt"],
)
def test_what_is_no_list_of_groups_is_refused(groups, found):
    message = rf"param_groups.*{found}.*'params'"
    with pytest.raises(TypeError, match=message):
        build_opt(SGD, nn.Linear(3, 2), 0.1, groups)


def test_a_single_group_may_be_given_as_its_dict():
    opt = build_opt(SGD, nn.Linear(3, 2), 0.1, lambda m: {"params": m.parameters(), "weight_decay": 0.5})
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5]


def test_building_leaves_the_user_s_groups_as_they_are():
    model = nn.Linear(3, 2)
    groups = [{"params": list(model.parameters())}]
    build_opt(SGD, model, [0.1], lambda _: groups)
    assert list(groups[0]) == ["params"]


# Parameters beside the model's ----------------------------------------------------------------------


def extra(*shapes, name="loss_func"):
    return {"params": [nn.Parameter(torch.ones(shape)) for shape in shapes], "extra": name}


def test_extra_groups_come_last_with_the_lr():
    groups = [extra(2), extra(1, 3, name="MyCB")]
    opt = build_opt(SGD, nn.Linear(3, 2), 0.3, weight_and_bias, groups)
    assert [(len(g["params"]), g["lr"], g.get("extra")) for g in opt.param_groups] == [
        (1, 0.3, None),
        (1, 0.3, None),
        (1, 0.3, "loss_func"),
        (2, 0.3, "MyCB"),
    ]


@pytest.mark.parametrize("lr", [[0.1, 0.2], [0.1, 0.2, 0.2]])
def test_extra_groups_have_the_last_lr_of_a_list_or_their_own(lr):
    opt = build_opt(SGD, nn.Linear(3, 2), lr, weight_and_bias, [extra(2)])
    assert lrs(opt) == [0.1, 0.2, 0.2]
    set_lr(opt, [0.5, 0.6])
    assert lrs(opt) == [0.5, 0.6, 0.6]
    set_lr(opt, [0.5, 0.6, 0.7])
    assert lrs(opt) == [0.5, 0.6, 0.7]
    with pytest.raises(ValueError, match=mentions("lr=[0.5] ... 2, ... 3, ... loss")):
        set_lr(opt, [0.5])


def test_extra_parameters_that_are_known_or_frozen_are_in_no_group_of_their_own():
    model, frozen, twice = nn.Linear(3, 2), extra(2), extra(2)
    frozen["params"][0].requires_grad_(False)
    groups = [{"params": list(model.parameters()), "extra": "a"}, frozen, twice, {**twice, "extra": "b"}]
    opt = build_opt(SGD, model, 0.1, None, groups)
    assert [g.get("extra") for g in opt.param_groups] == [None, "loss_func"]


def test_extra_parameters_that_no_fused_kernel_takes_turn_it_off():
    group = {"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))], "extra": "loss_func"}
    assert not build_opt(AdamW, nn.Linear(3, 2), 0.1, None, [group]).param_groups[0]["fused"]


def test_error_of_an_opt_func_that_takes_no_groups_says_why_it_got_some():
    with pytest.raises(AttributeError) as error:
        build_opt(
            lambda params, lr: SGD([p for p in params if p.ndim], lr), nn.Linear(3, 2), 0.1, None, [extra(2)]
        )
    assert "loss_func" in error.value.__notes__[0]


def test_parameter_of_another_optimizer_may_be_left_out():
    model = nn.Linear(3, 2)
    opt = build_opt(SGD, model, 0.1, lambda m: [[m.weight]], elsewhere={id(model.bias)})
    assert len(opt.param_groups[0]["params"]) == 1


def test_summary_names_the_extra_groups():
    said = summary(build_opt(SGD, nn.Linear(3, 2), 0.3, None, [extra(2)]))
    assert "group 1 (loss_func): 1 tensor, 2 parameters" in said
    assert "extra=" not in said


# Fused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt_func", [AdamW, SGD, torch.optim.Adam, partial(SGD, momentum=0.9)])
def test_fused_is_chosen_where_torch_has_it(opt_func):
    assert build_opt(opt_func, nn.Linear(3, 2), 0.1).param_groups[0]["fused"] is True


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_a_user_s_choice_of_implementation_is_kept(choice):
    opt = build_opt(partial(AdamW, **choice), nn.Linear(3, 2), 0.1)
    assert not opt.defaults["fused"]
    assert choice.items() <= opt.defaults.items()


def test_an_optimizer_without_the_switch_is_built_without():
    assert "fused" not in build_opt(torch.optim.RMSprop, nn.Linear(3, 2), 0.1).defaults


def test_what_has_no_fused_kernel_is_built_without():
    model = nn.Linear(3, 2, dtype=torch.complex64)
    assert not build_opt(AdamW, model, 0.1).defaults["fused"]  # torch would refuse at the first step


@pytest.mark.parametrize(
    ("opt_func", "message"),
    [
        (partial(SGD, mom=0.9), "SGD has no argument 'mom': did you mean momentum?"),
        (partial(AdamW, lr=0.1, wieght_decay=0.1), "AdamW has no argument 'wieght_decay' ... weight_decay?"),
        (partial(SparseAdam, lr=0.01, weight_decay=0.1), "SparseAdam has no argument 'weight_decay'"),
        (partial(lambda params, lr: SGD(params, lr), beta=0.9), "<lambda> has no argument 'beta'"),
    ],
)
def test_argument_that_an_optimizer_has_not_is_named(make_learner, opt_func, message):
    with pytest.raises(TypeError, match=mentions(message)):
        make_learner(opt_func=opt_func)
    with pytest.raises(TypeError, match=mentions(message)):
        Combined(("weight", opt_func), AdamW)
    with pytest.raises(TypeError, match=mentions(message)):
        build_opt(opt_func, nn.Linear(3, 2), 0.1)


def test_sparse_gradients_are_not_fused_and_train(make_learner):
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    batch = (torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1]))
    learn = make_learner(model=model, dls={"train": [batch]}, opt_func=SGD)
    before = model[0].weight.detach().clone()
    learn.fit()
    assert not learn.opt.defaults["fused"]
    assert (model[0].weight != before).any(1).tolist() == [True] * 4 + [False]


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rare = (nn.Embedding(5, 3, sparse=True) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.cat([self.table(x), self.rare(x)], 1))


@pytest.mark.parametrize(
    ("opt_func", "message"),
    [
        (AdamW, "sparse gradients have table.weight, rare.weight: ... (['table.weight', 'rare.weight'], Sp"),
        (minilearn.optim.Adam, "sparse gradients have table.weight, rare.weight: expected"),
        (Combined(("table", SparseAdam), AdamW), "sparse gradients have rare.weight: expected"),
        (SparseAdam, "dense gradients have head.weight, head.bias: expected"),
    ],
)
def test_parameters_whose_gradients_an_optimizer_refuses_are_named(make_learner, opt_func, message):
    batch = (torch.tensor([0, 1]), torch.tensor([0, 1]))
    learn = make_learner(model=Table(), dls={"train": [batch]}, opt_func=opt_func)
    with pytest.raises((RuntimeError, TypeError), match=r"(?i)dense|sparse") as caught:
        learn.fit()
    assert re.search(mentions(message), "\n".join(caught.value.__notes__))


def test_a_user_s_own_function_is_called_as_it_is():
    def opt_func(params, lr):
        return SGD(params, lr, momentum=0.9)

    assert not build_opt(opt_func, nn.Linear(3, 2), 0.1).defaults["fused"]


# Setting the lr -----------------------------------------------------------------------------------


def one_cycle(opt):
    return OneCycleLR(opt, max_lr=3.0, total_steps=10)


def cyclic(opt):
    return CyclicLR(opt, base_lr=0.5, max_lr=3.0, step_size_up=4)


def lambda_lr(opt):
    return LambdaLR(opt, lambda i: 2.0**i)


KEPT = [partial(SGD, momentum=0.9), SGD, AdamW]


@pytest.mark.parametrize("opt_func", KEPT, ids=["momentum", "sgd", "adamw"])
@pytest.mark.parametrize("make_sched", [one_cycle, cyclic, lambda_lr])
def test_lr_is_exact_whatever_a_scheduler_left(make_sched, opt_func, make_learner):
    learn = make_learner(opt_func=opt_func, param_groups=weight_and_bias)
    learn.fit()
    fresh = [
        {k: v for k, v in group.items() if k not in ("params", "lr")} for group in learn.opt.param_groups
    ]
    sched = make_sched(learn.opt)
    for _ in range(3):
        learn.opt.step()
        sched.step()
    learn.fit(lr=[0.25, 0.125])
    assert lrs(learn.opt) == [0.25, 0.125]
    kept = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in learn.opt.param_groups]
    assert kept == fresh


def test_a_new_lambda_lr_starts_from_the_new_lr(make_learner):
    learn = make_learner(opt_func=SGD)
    learn.fit()
    lambda_lr(learn.opt)
    set_lr(learn.opt, 0.25)
    assert LambdaLR(learn.opt, lambda i: 1.0).get_last_lr() == [0.25]


def test_a_group_s_own_betas_outlive_a_schedule():
    def groups(model):
        return [{"params": [model.weight], "betas": (0.8, 0.95)}, [model.bias]]

    opt = build_opt(AdamW, nn.Linear(3, 2), 0.1, groups)
    one_cycle(opt)
    set_lr(opt, 0.1)
    assert [group["betas"] for group in opt.param_groups] == [(0.8, 0.95), (0.9, 0.999)]


def test_set_lr_leaves_no_key_of_a_schedule():
    opt = build_opt(SGD, nn.Linear(3, 2), 0.1)
    opt.param_groups[0].update(dict.fromkeys(SCHEDULE_KEYS, 1.0))
    set_lr(opt, 0.1)
    assert not opt.param_groups[0].keys() & set(SCHEDULE_KEYS)


def test_an_lr_that_is_a_tensor_is_set_in_place():
    lr = torch.tensor(0.1)
    opt = AdamW(nn.Linear(3, 2).parameters(), lr=lr)
    set_lr(opt, 0.5)
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_without_lr_a_kept_optimizer_keeps_its_own(make_learner):
    learn = make_learner(opt_func=SGD, lr=0.1)
    learn.fit(lr=0.2)
    learn.fit()
    assert lrs(learn.opt) == [0.2]


# The optimizer's life -----------------------------------------------------------------------------


def test_reset_opt_makes_a_new_optimizer(make_learner):
    learn = make_learner(lr=0.1)
    learn.fit(lr=0.2)
    old = learn.opt
    learn.fit(reset_opt=True)
    assert learn.opt is not old
    assert lrs(learn.opt) == [0.1]
    assert next(iter(learn.opt.state.values()))["step"].item() == 3


def test_a_scheduler_s_fit_leaves_lr_and_momentum_as_before_it(make_learner):
    learn = make_learner(opt_func=partial(SGD, momentum=0.7))
    learn.fit(2, cbs=BatchSchedulerCB(OneCycleLR))
    assert {"lr": 0.1, "momentum": 0.7}.items() <= learn.opt.param_groups[0].items()
    assert not learn.opt.param_groups[0].keys() & set(SCHEDULE_KEYS)


def test_a_bare_class_trains_as_torch_s_sgd_does(make_learner, bare_sgd):
    weights = []
    for opt_func in (bare_sgd, SGD):
        learn = make_learner(opt_func=opt_func)
        learn.fit(2)
        learn.fit(lr=0.05)
        weights.append(learn.model.weight)
    torch.testing.assert_close(*weights)


def test_a_bare_class_is_its_own_group(bare_sgd):
    opt = bare_sgd([], lr=0.1, wd=0.2)
    assert groups_of(opt) == [{"params": [], "lr": 0.1, "wd": 0.2}]
    set_lr(opt, 0.5)
    assert opt.lr == 0.5


def test_an_lr_that_is_a_text_is_refused(make_learner):
    with pytest.raises(ValueError, match=r"lr='0.1'.*>= 0"):
        make_learner(lr="0.1").fit()


def test_a_bare_class_without_lr_is_refused_by_name():
    class Opt:
        def __init__(self, params, lr):
            self.eta = lr

    with pytest.raises((TypeError, ValueError), match=r"Opt.*lr"):
        set_lr(Opt([], 0.1), 0.5)


def test_the_first_fit_s_lr_reaches_a_bare_class_under_any_name(make_learner):
    class Opt:
        def __init__(self, params, eta):
            self.params, self.eta = list(params), eta

        def step(self):
            pass

        def zero_grad(self):
            pass

    learn = make_learner(opt_func=Opt)
    learn.fit(lr=0.3)
    assert learn.opt.eta == 0.3


# Optimizers that cannot be stepped ----------------------------------------------------------------


def test_a_step_that_needs_more_than_a_closure_is_refused_before_training(make_learner):
    class Needy(SGD):
        def step(self, closure, direction):
            pass

    with pytest.raises(TypeError, match=r"Needy\.step.*closure, direction.*callback"):
        make_learner(opt_func=Needy).fit()


def test_lbfgs_trains_where_a_callback_owns_the_step(make_learner):
    class Closure(Callback):
        def step(self, learn):
            learn.opt.step(lambda: learn.loss)

    learn = make_learner(opt_func=partial(torch.optim.LBFGS, max_iter=1), cbs=Closure())
    before = learn.model.weight.detach().clone()
    learn.fit()
    assert not learn.model.weight.equal(before)


@pytest.mark.parametrize("missing", ["step", "zero_grad"])
def test_an_optimizer_without_step_or_zero_grad_is_refused(missing, make_learner):
    class Half:
        def __init__(self, params, lr):
            self.lr = lr

    setattr(Half, "zero_grad" if missing == "step" else "step", lambda self: None)
    with pytest.raises(TypeError, match=r"opt_func.*Half.*step\(\).*zero_grad"):
        make_learner(opt_func=Half).fit()


def test_a_step_with_optional_arguments_is_accepted(make_learner, bare_sgd):
    class Optional(bare_sgd):
        def step(self, closure=None, *rest, **options):
            super().step()

    make_learner(opt_func=Optional).fit()


def test_a_wrapper_that_passes_everything_on_can_be_stepped(make_learner):
    class Wrapper:
        def __init__(self, params, lr):
            self.inner = SGD(params, lr)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    learn = make_learner(opt_func=Wrapper)
    learn.fit()
    learn.fit(lr=0.2)
    assert lrs(learn.opt.inner) == [0.2]


def test_an_optimizer_that_had_a_torch_scheduler_can_be_stepped(make_learner):
    learn = make_learner(opt_func=SGD)
    learn.fit()
    StepLR(learn.opt, 1)  # wraps opt.step
    learn.fit()


def test_two_fits_with_a_scheduler_run(make_learner):
    learn = make_learner(cbs=BatchSchedulerCB(OneCycleLR))
    learn.fit()
    learn.fit()
    assert learn.n_epochs_trained == 2
