"""Optimizers of torch and of other packages: stopped and resumed, they end where a straight run does."""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from test_benchmarks import load
from toolbox import StopCB, every_rest, make_learner, mentions, only_at_the_end, same, stop, tensors_of
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from minilearn import BatchSchedulerCB, Callback, set_seed

pytestmark = pytest.mark.slow


def net():
    set_seed(0)  # numpy's and python's generators too: an optimizer may draw from them
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def learner(*cbs, opt_func, **kwargs):
    kwargs = {"model": net(), "n_batches": 4, "n_valid": 0, "shuffle": True, "lr": 1e-2} | kwargs
    return make_learner(cbs=cbs, opt_func=opt_func, **kwargs)


def check_resumed(folder, make, stops=(6,)):
    """Assert that runs that were stopped and resumed end as a straight one. make: callbacks -> learner."""
    straight = make()
    straight.fit(2)
    for n in stops:
        stop(make(every_rest(folder / str(n)), StopCB(n)))
        learn = make(only_at_the_end(folder / str(n)))
        learn.fit(2, resume=True)
        assert same(tensors_of(straight.model), tensors_of(learn.model))
    return straight, learn


# torch's ----------------------------------------------------------------------------------------------

OF_TORCH = [
    name
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
]
OTHERWISE = ("Muon", "SparseAdam")  # they need matrices only, sparse gradients


@pytest.mark.parametrize("name", [name for name in OF_TORCH if name not in OTHERWISE])
def test_optimizer_of_torch_is_resumed(tmp_path, name):
    check_resumed(tmp_path, partial(learner, opt_func=getattr(torch.optim, name)), stops=(1, 6))


def test_sparse_adam_is_resumed(tmp_path):
    def make(*cbs):
        torch.manual_seed(0)
        learn = learner(*cbs, opt_func=torch.optim.SparseAdam, model=Embedded())
        for loader in (learn.dls.train,):
            loader.tensors = (loader.tensors[0].abs().long() % 3, loader.tensors[1])
        return learn

    check_resumed(tmp_path, make)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2, sparse=True)

    def forward(self, x):
        return self.table(x).sum(1)


class Both(Optimizer):
    """Two optimizers as one: the first for matrices, the second for the rest."""

    def __init__(self, params, lr, matrices, others):
        params = [p for group in params for p in (group["params"] if isinstance(group, dict) else [group])]
        self.parts = [
            matrices([p for p in params if p.ndim == 2], lr),
            others([p for p in params if p.ndim != 2], lr),
        ]
        super().__init__(params, {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class OwnMatricesCB(Callback):
    """Train the matrices with an optimizer of this callback's."""

    def __init__(self, opt_func):
        self.opt_func, self.opt = opt_func, None

    def prepare(self, learn):
        if self.opt is None:
            self.opt = self.opt_func([p for p in learn.model.parameters() if p.ndim == 2], 0.02)

    def after_step(self, learn):
        self.opt.step()

    def before_batch(self, learn):
        self.opt.zero_grad()


def rest(model):
    return [{"params": [p for p in model.parameters() if p.ndim != 2]}]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9's Muon")
@pytest.mark.parametrize("way", ["one optimizer", "a callback's optimizer"])
@pytest.mark.parametrize("others", ["AdamW", "SGD", "RMSprop"])
def test_muon_and_another_optimizer_are_resumed(tmp_path, way, others):
    others = getattr(torch.optim, others)
    if way == "one optimizer":
        make = partial(learner, opt_func=partial(Both, matrices=torch.optim.Muon, others=others))
    else:

        def make(*cbs):
            return learner(OwnMatricesCB(torch.optim.Muon), *cbs, opt_func=others, param_groups=rest)

    check_resumed(tmp_path, make, stops=(1, 6))


# Groups and states of other forms -----------------------------------------------------------------------


class OddSGD(SGD):
    """Keep something odd: `keep(opt)` at each step."""

    keep = None

    def step(self, closure=None):
        type(self).keep(self)
        return super().step(closure)


def count_in_groups(opt):
    for group in opt.param_groups:
        group["step"] = group.get("step", 0) + 1
        group["lr"] = 0.1 / group["step"]


def tensor_in_groups(opt):
    for group in opt.param_groups:
        group.setdefault("n", torch.zeros(1)).add_(1)
        group["lr"] = 0.1 / float(group["n"])


def list_in_groups(opt):
    for group in opt.param_groups:
        group.setdefault("seen", []).append(1)
        group["lr"] = 0.1 / len(group["seen"])


def nested_in_groups(opt):
    for group in opt.param_groups:
        own = group.setdefault("own", {"n": {"a": 0}})
        own["n"]["a"] += 1
        group["lr"] = 0.1 / own["n"]["a"]


def only_one_group(opt):
    group = opt.param_groups[-1]
    group["k"] = group.get("k", 0) + 1
    group["lr"] = 0.1 / group["k"]


def number_in_state(opt):
    opt.state["n"] = opt.state.get("n", 0) + 1
    opt.param_groups[0]["lr"] = 0.1 / opt.state["n"]


def tensor_in_state(opt):
    opt.state["n"] = opt.state.get("n", torch.zeros(())) + 1
    opt.param_groups[0]["lr"] = 0.1 / float(opt.state["n"])


def dict_in_state(opt):
    own = opt.state.setdefault("own", {"n": [0]})
    own["n"][0] += 1
    opt.param_groups[0]["lr"] = 0.1 / own["n"][0]


class Kept:
    def __init__(self):
        self.n = torch.zeros(())


def object_in_state(opt):
    p = opt.param_groups[0]["params"][0]
    own = opt.state[p].setdefault("own", Kept())
    own.n += 1
    opt.param_groups[0]["lr"] = 0.1 / float(own.n)


def attribute(opt):
    opt.n = getattr(opt, "n", 0) + 1
    opt.param_groups[0]["lr"] = 0.1 / opt.n


def drawn_by_numpy(opt):
    opt.param_groups[0]["lr"] = 0.1 * np.random.random()


ODD = [
    *(count_in_groups, tensor_in_groups, list_in_groups, nested_in_groups, only_one_group),
    *(number_in_state, tensor_in_state, dict_in_state, object_in_state, attribute, drawn_by_numpy),
]


@pytest.mark.parametrize("keep", ODD)
@pytest.mark.parametrize("n_groups", [1, 2])
def test_what_the_first_step_adds_is_resumed(tmp_path, keep, n_groups):
    opt_func = type("Odd", (OddSGD,), {"keep": staticmethod(keep), "__module__": __name__})
    groups = (
        None if n_groups == 1 else lambda model: [list(layer.parameters()) for layer in (model[0], model[2])]
    )
    check_resumed(tmp_path, partial(learner, opt_func=opt_func, param_groups=groups), stops=(1, 6))


class Elsewhere:
    pass


def test_state_that_no_resumed_run_could_make_is_named(tmp_path):
    from fractions import Fraction  # of no module of this optimizer

    def keep(opt):
        opt.state[opt.param_groups[0]["params"][0]]["own"] = made.pop() if made else Fraction(1)

    made = []
    opt_func = type("Odd", (OddSGD,), {"keep": staticmethod(keep)})
    learn = learner(every_rest(tmp_path), opt_func=opt_func)
    with pytest.raises(TypeError, match=r"opt\.state\[0\]\.own"):
        learn.fit()
    assert learn.n_steps == 1


# lr ---------------------------------------------------------------------------------------------------


class PlannedSGD(SGD):
    def __init__(self, params, n_steps=10, lr=1e-3):
        super().__init__(params, lr)


class SecondSGD(SGD):
    def __init__(self, params, momentum=0.0, **kwargs):
        super().__init__(params, momentum=momentum, **kwargs)


class KeywordSGD(SGD):
    def __init__(self, params, *, lr=1e-3, n_steps=10):
        super().__init__(params, lr)


class NamedSGD(SGD):
    def __init__(self, params, n_steps=10, learning_rate=1e-3):
        super().__init__(params, learning_rate)


class OtherNameSGD(SGD):
    def __init__(self, params, eta):
        super().__init__(params, eta)


class ScaledSGD(SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr / 2)


def planned(params, n_steps=10, lr=1e-3):
    return SGD(params, lr)


@pytest.mark.parametrize(
    ("opt_func", "expected"),
    [
        (PlannedSGD, 0.05),
        (partial(PlannedSGD, n_steps=3), 0.05),
        (KeywordSGD, 0.05),
        (NamedSGD, 0.05),
        (OtherNameSGD, 0.05),
        (ScaledSGD, 0.025),
        (planned, 0.05),
        (lambda params, rate: SGD(params, rate), 0.05),
        (lambda params, *args: SGD(params, *args), 0.05),
        (lambda params, **kwargs: SGD(params, **kwargs), 0.05),
        (SecondSGD, 0.05),
        (partial(SecondSGD, momentum=0.5), 0.05),
        (lambda params, lr: SGD(params, 0.3), 0.3),
        (partial(SGD, momentum=0.9), 0.05),
        (torch.optim.Adagrad, 0.05),
    ],
)
@pytest.mark.parametrize("n_groups", [1, 2])
def test_lr_is_the_learners_wherever_the_optimizer_takes_it(opt_func, expected, n_groups):
    groups = (
        None if n_groups == 1 else lambda model: [list(layer.parameters()) for layer in (model[0], model[2])]
    )
    learn = learner(opt_func=opt_func, param_groups=groups, lr=0.05)
    learn.fit()
    assert [group["lr"] for group in learn.opt.param_groups] == [expected] * n_groups


def test_preview_gives_the_lr_in_the_same_way():
    schedule = BatchSchedulerCB(torch.optim.lr_scheduler.CosineAnnealingLR)
    learn = learner(schedule, opt_func=PlannedSGD, lr=0.05)
    assert schedule.preview(learn)[0] == 0.05


class LosesSGD(SGD):
    def __init__(self, params, n_planned=10, rate=1e-3):
        super().__init__(params, rate)


def test_optimizer_that_takes_the_lr_for_something_else_is_refused():
    learn = learner(opt_func=LosesSGD, lr=0.05)
    with pytest.raises(ValueError, match=r"LosesSGD was given lr=0\.05, but has lr=0\.001 in group 0"):
        learn.fit()
    learn = learner(
        opt_func=LosesSGD, lr=0.05, param_groups=lambda m: [{"params": m.parameters(), "lr": 0.001}]
    )
    learn.fit()  # the group's own


# pytorch_optimizer's ------------------------------------------------------------------------------------

HAS_PACKAGE = importlib.util.find_spec("pytorch_optimizer") is not None
NOT_BY_THE_LEARNER = {  # what the package wants of the caller besides (params, lr), or another package
    *("adahessian", "alig", "bsam", "sophiah"),  # a closure, or gradients of gradients
    *("adalomo", "adammini", "lomo"),  # the model
    *(
        "adago",
        "adamuon",
        "distributedmuon",
        "muon",
        "muonclip",
        "normuon",
        "spectralsphere",
    ),  # groups of its form
    *("demo", "magma", "ranger21"),  # einops, an optimizer, a number of steps
    "scalableshampoo",  # its state has objects of another module; see the next test
}


@pytest.mark.skipif(not HAS_PACKAGE, reason="needs pytorch_optimizer, pip install minilearn[optimizers]")
@pytest.mark.filterwarnings("ignore")
def test_optimizers_of_pytorch_optimizer_are_resumed(tmp_path):
    import pytorch_optimizer

    names = sorted(set(pytorch_optimizer.get_supported_optimizers()) - NOT_BY_THE_LEARNER)
    assert len(names) >= 40
    odd = {}
    for name in names:
        opt_func = pytorch_optimizer.load_optimizer(name)
        try:
            check_resumed(tmp_path / name, partial(learner, opt_func=opt_func))
        except Exception as error:
            odd[name] = f"{type(error).__name__}: {error}"
    assert odd == {}


@pytest.mark.full
@pytest.mark.skipif(not HAS_PACKAGE, reason="needs pytorch_optimizer, pip install minilearn[optimizers]")
@pytest.mark.filterwarnings("ignore")
def test_most_optimizers_of_pytorch_optimizer_pass_verify_resume():
    rows = load("pytorch_optimizers").measure()
    trained = [row for row in rows if not row["training"]]
    odd = {row["name"]: row["resuming"] for row in trained if row["resuming"]}
    assert len(trained) - len(odd) >= 100
    assert odd.keys() == {"sara", "scalableshampoo"}
    assert "opt._mask_indices, which the checkpoint lacks" in odd["sara"]  # a cache, by tensor
    assert "opt.state[0].graft is an object" in odd["scalableshampoo"]


WRAPPERS = ("Lookahead", "OrthoGrad", "PCGrad", "TRAC")


@pytest.mark.skipif(not HAS_PACKAGE, reason="needs pytorch_optimizer, pip install minilearn[optimizers]")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_pytorch_optimizer_are_resumed(tmp_path, name):
    import pytorch_optimizer

    wrapper = getattr(pytorch_optimizer, name)
    check_resumed(
        tmp_path, partial(learner, opt_func=lambda params, lr: wrapper(torch.optim.AdamW(params, lr)))
    )


@pytest.mark.skipif(not HAS_PACKAGE, reason="needs pytorch_optimizer, pip install minilearn[optimizers]")
@pytest.mark.filterwarnings("ignore")
def test_optimizer_whose_state_cannot_be_made_again_is_named(tmp_path):
    import pytorch_optimizer

    learn = learner(every_rest(tmp_path), opt_func=pytorch_optimizer.load_optimizer("scalableshampoo"))
    with pytest.raises(TypeError, match=r"ScalableShampoo: opt\.state"):
        learn.fit()
    assert learn.n_steps == 1


@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_an_lr_in_a_partial_is_not_replaced_without_a_word(lr):
    learn = make_learner(opt_func=partial(AdamW, lr=0.5), lr=lr)
    if lr == 0.5:
        learn.fit()
        assert learn.opt.param_groups[0]["lr"] == 0.5
        return
    with pytest.raises(ValueError, match=mentions("lr=0.5 ... lr=0.001 ... Learner(..., lr=0.5)")):
        learn.fit()
