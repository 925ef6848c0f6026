import inspect
import math
import pickle
import re
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from references import REFERENCES
from toolbox import mentions
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from minilearn import RecorderCB, optim
from minilearn.optim import OPTIMIZERS, ranges, set_lr


class Hyperparameter(NamedTuple):
    usual: float  # given where an optimizer has no default
    other: float  # than any default
    ends: tuple  # the last values that are allowed
    beyond: tuple  # the first ones that are not
    expected: str  # in the message


SHARE = {"usual": 0.9, "other": 0.6, "ends": (0, 0.0, 0.999999), "beyond": (-1e-9, -1, 1, 1.0, 1.5)}
FROM_0 = {"ends": (0, 0.0, 3, 1e6), "beyond": (-1e-9, -1), "expected": ">= 0"}
ABOVE_0 = {"ends": (1e-30, 1), "beyond": (0, 0.0, -1e-9), "expected": "> 0"}
HYPERPARAMETERS = {
    "lr": Hyperparameter(usual=0.1, other=0.03, **FROM_0),
    "wd": Hyperparameter(usual=0.0, other=0.2, **FROM_0),
    "weight_decay": Hyperparameter(usual=0.0, other=0.2, **FROM_0),
    "eps": Hyperparameter(1e-5, 1e-3, **ABOVE_0),
    "threshold": Hyperparameter(1e-9, 1e3, **ABOVE_0),  # the other: all switch at their second step
    "sgd_scale": Hyperparameter(None, 0.5, (None, 1e-30, 1), (0, 0.0, -1e-9), "> 0"),
    "final_lr": Hyperparameter(0.1, 0.01, **ABOVE_0),
    "gamma": Hyperparameter(1e-3, 0.5, **ABOVE_0),
    "betas": Hyperparameter(
        *((0.9, 0.999), (0.6, 0.5), ((0, 0.0), (0.999999, 0.999999))),
        *(((-1e-9, 0.5), (0.5, 1), (1.5, 0.5), (0.5,)), "two numbers, 0 <= beta < 1"),
    ),
    "switch": Hyperparameter("global", "local", ("global", "local"), ("both",), "'global' ... 'local'"),
    **{
        name: Hyperparameter(False, True, (True, False), (), "True ... False")
        for name in ("amsgrad", "amsbound", "nesterov")
    },
    **{
        name: Hyperparameter(**SHARE, expected=f"0 <= {name} < 1")
        for name in ("mom", "momentum", "sqr_mom", "beta1", "beta2")
    },
}
NO_NUMBERS = (math.nan, math.inf, -math.inf, True, False, "0.1", None, 1j, (0.1,))
# What other optimizers have, here and in torch.
FOREIGN = (
    *("wd", "weight_decay", "mom", "momentum", "sqr_mom", "alpha", "beta1", "beta2", "betas", "eps"),
    *("dampening", "nesterov"),
)
SHAPES = ((2, 3), (), (4,), (0,), (1, 2, 1))

FOREACH = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "single"])


def hyperparameters(name):
    """Return name -> default of an optimizer's hyperparameters, as its signature has them."""
    parameters = list(inspect.signature(OPTIMIZERS[name]).parameters.values())
    assert [parameters[0].name, parameters[-1].name] == ["params", "foreach"]
    return {p.name: p.default for p in parameters[1:-1]}


def unknown(name):
    return sorted(hyperparameters(name).keys() - HYPERPARAMETERS.keys())


# One without them fails test_every_optimizer_has_its_part_in_each_place only, which says what to add.
TESTABLE = [name for name in OPTIMIZERS if name in REFERENCES and not unknown(name)]
EACH = pytest.mark.parametrize("name", TESTABLE)
EACH_HYPERPARAMETER = pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in TESTABLE for key in hyperparameters(name)]
)


def make(name, params, **given):
    """Make an optimizer of the registry; what it requires and is not given has its usual value."""
    required = [key for key, default in hyperparameters(name).items() if default is inspect.Parameter.empty]
    return OPTIMIZERS[name](params, **{key: HYPERPARAMETERS[key].usual for key in required} | given)


def others(name):
    return {key: HYPERPARAMETERS[key].other for key in hyperparameters(name)}


def usuals(name):
    """Return all hyperparameters of `make(name, params)`."""
    group = make(name, new_params()).param_groups[0]
    return {key: group[key] for key in hyperparameters(name)}


def new_params(shapes=SHAPES, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)) for shape in shapes
    ]


def new_grad(shape, i, dtype=torch.float64):
    """Return the gradient of step i: of many sizes, and one of them 0."""
    rng = torch.Generator().manual_seed(i)
    grad = torch.randn(shape, generator=rng, dtype=torch.float64)
    grad = grad * 10.0 ** torch.randint(-5, 3, shape, generator=rng)
    if grad.numel() > 1:
        grad.view(-1)[0] = 0
    return grad.to(dtype)


def run(opt, params, steps=range(5), each=lambda: None):
    for i in steps:
        for p in params:
            p.grad = new_grad(p.shape, i, p.dtype)
        opt.step()
        each()


def expected(name, p, steps, lrs, **given):
    lr = given.pop("lr", None)
    if "base_lr" in inspect.signature(REFERENCES[name]).parameters:
        given["base_lr"] = lr
    return REFERENCES[name](p.detach(), [new_grad(p.shape, i) for i in steps], lrs, **given)


def assert_close(actual, wanted):
    # In float64 a sum of 50 such steps is right to about 1e-14.
    torch.testing.assert_close([p.detach() for p in actual], list(wanted), rtol=1e-12, atol=1e-12)


def equal(params, others):
    return all(a.equal(b) for a, b in zip(params, others, strict=True))


def copies(params):
    return [p.detach().clone() for p in params]


# The registry -------------------------------------------------------------------------------------


def test_registry_has_every_optimizer_of_the_package():
    found = {
        name: cls
        for name, cls in vars(optim).items()
        if inspect.isclass(cls) and issubclass(cls, optim.Optimizer) and cls is not optim.Optimizer
    }
    assert found == OPTIMIZERS


FOLDER = Path(__file__).parent
# Where the property that defines an optimizer is tested, unless in test_defining_properties.py
DEFINED_IN = {"SWATS": "test_swats.py", "AdaBound": "test_swats.py"}


def missing_parts(name):
    """Return what is still to be added for an optimizer of the registry, and where."""
    missing = []
    if name not in REFERENCES:
        missing.append("its equation: tests/optim/references.py, REFERENCES")
    if keys := sorted(hyperparameters(name).keys() - ranges.HYPERPARAMETERS):
        missing.append(f"the ranges of {', '.join(keys)}: minilearn/optim/ranges.py, HYPERPARAMETERS")
    if keys := unknown(name):
        missing.append(f"values of {', '.join(keys)}: tests/optim/{Path(__file__).name}, HYPERPARAMETERS")
    file = DEFINED_IN.get(name, "test_defining_properties.py")
    if not re.search(rf"\b{name}\b", (FOLDER / file).read_text()):
        missing.append(f"the property that defines it: tests/optim/{file}")
    if f'"{name}": (' not in (FOLDER.parents[1] / "benchmarks" / "optimizers.py").read_text():
        missing.append("torch's counterpart: benchmarks/optimizers.py, PAIRS")
    if name not in optim.__all__:
        missing.append("its export: minilearn/optim/__init__.py, __all__")
    doc = inspect.getdoc(OPTIMIZERS[name]) or ""
    parts = ("::", "Args:", "omentum", "Source:", "Differs:", *hyperparameters(name))
    if absent := [part for part in parts if part not in doc]:
        missing.append(f"in its docstring: {', '.join(absent)}")
    return missing


def test_every_optimizer_has_its_part_in_each_place():
    missing = {name: parts for name in OPTIMIZERS if (parts := missing_parts(name))}
    said = [f"{name} has no\n    " + "\n    ".join(parts) for name, parts in missing.items()]
    assert not said, "\n".join(said)


def test_what_is_missing_of_an_optimizer_is_named_with_its_place(monkeypatch):
    class New(optim.Optimizer):
        def __init__(self, params, lr, heat=1.0, foreach=None):
            """Never made."""

    monkeypatch.setitem(OPTIMIZERS, "New", New)
    assert [part.split(", ")[0] for part in missing_parts("New")] == [
        "its equation: tests/optim/references.py",
        "the ranges of heat: minilearn/optim/ranges.py",
        "values of heat: tests/optim/test_all_optimizers.py",
        "the property that defines it: tests/optim/test_defining_properties.py",
        "torch's counterpart: benchmarks/optimizers.py",
        "its export: minilearn/optim/__init__.py",
        "in its docstring: ::",
    ]


@EACH
def test_docstring_says_whether_it_has_momentum(name):
    doc = inspect.getdoc(OPTIMIZERS[name])
    assert ("Momentum: " in doc) != ("No momentum" in doc)


@EACH
def test_docstring_names_its_state(name):
    params = new_params()
    opt = make(name, params)
    run(opt, params, range(1))
    doc = inspect.getdoc(OPTIMIZERS[name])
    assert ("State: " in doc) != ("no state" in doc)
    said = doc.partition("State: ")[2].split("Source:")[0]
    keys = set(opt.state[params[0]])
    assert {key for key in keys if re.search(rf"\b{key}\b", said)} == keys
    assert bool(keys) == bool(said)


@EACH
def test_repr_says_name_and_hyperparameters(name):
    text = repr(make(name, new_params()))
    assert text.startswith(f"{name} (")
    for key, value in usuals(name).items():
        assert f"    {key}: {value}\n" in text


# Its equation -------------------------------------------------------------------------------------


@FOREACH
@EACH
def test_it_is_its_reference_by_default(name, foreach):
    params, start = new_params(), new_params()
    opt = make(name, params, foreach=foreach)
    run(opt, params, range(50))
    required = {
        key: HYPERPARAMETERS[key].usual
        for key, default in hyperparameters(name).items()
        if default is inspect.Parameter.empty
    }
    assert_close(params, [expected(name, p, range(50), [0.1] * 50, **required) for p in start])


@FOREACH
@EACH
def test_it_is_its_reference_at_other_hyperparameters(name, foreach):
    params, start = new_params(), new_params()
    run(make(name, params, **others(name), foreach=foreach), params, range(50))
    assert_close(params, [expected(name, p, range(50), [0.03] * 50, **others(name)) for p in start])


@FOREACH
@EACH_HYPERPARAMETER
def test_each_single_hyperparameter_matters(name, key, foreach):
    if key in ("switch", "sgd_scale"):
        pytest.skip("for several tensors together, or for a schedule: see test_swats.py")
    # What is of SGD's phase matters in it.
    beside = {"threshold": 1e3, "switch": "local"} if key in ("threshold", "nesterov") else {}
    other = beside | {key: HYPERPARAMETERS[key].other}
    params, start = new_params(), new_params()
    run(make(name, params, **other, foreach=foreach), params)
    given = usuals(name) | other
    assert_close(params, [expected(name, p, range(5), [given["lr"]] * 5, **given) for p in start])
    usual = new_params()
    run(make(name, usual, **beside | {key: HYPERPARAMETERS[key].usual}), usual)
    assert not equal(params, usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_foreach_is_bitwise_the_same(name, dtype):
    both = []
    for foreach in (True, False):
        params = new_params(dtype=dtype)
        run(make(name, params, **others(name), foreach=foreach), params, range(10))
        both.append(params)
    assert equal(*both)


@EACH
def test_foreach_takes_mixed_dtypes(name):
    both = []
    for foreach in (True, False):
        params = new_params(dtype=torch.float32) + new_params() + new_params(dtype=torch.float32)
        run(make(name, params, **others(name), foreach=foreach), params, range(10))
        assert {p.dtype for p in params} == {torch.float32, torch.float64}
        both.append(params)
    assert equal(*both)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EACH
def test_it_runs_in_half_precision(name, dtype):
    both = []
    for foreach in (True, False):
        (p,) = params = [nn.Parameter(torch.linspace(-1, 1, 9).to(dtype))]
        opt = make(name, params, foreach=foreach)
        for i in range(3):
            p.grad = torch.linspace(-1, 2, 9).to(dtype) * (i + 1)
            opt.step()
        assert all(v.dtype is dtype for v in opt.state[p].values() if isinstance(v, torch.Tensor) and v.ndim)
        both.append(p.detach())
    # torch rounds a number to the dtype first in one of them: a few units in the last place of p.
    torch.testing.assert_close(*both, rtol=0, atol=8 * torch.finfo(dtype).eps)


@FOREACH
@EACH
def test_whole_numbers_are_as_good_as_floats(name, foreach):
    given = {
        key: 0 for key in usuals(name) if any(type(x) is int and x == 0 for x in HYPERPARAMETERS[key].ends)
    } | {"lr": 1}
    both = []
    for kind in (int, float):
        params = new_params()
        run(make(name, params, **{k: kind(v) for k, v in given.items()}, foreach=foreach), params)
        both.append(params)
    assert equal(*both)


@FOREACH
@EACH
def test_lr_0_moves_nothing_at_first(name, foreach):
    params, start = new_params(), new_params()
    run(make(name, params, **others(name) | {"lr": 0}, foreach=foreach), params)
    assert equal(params, start)


# Convergence --------------------------------------------------------------------------------------


def quadratic(p):
    """A bowl ten times as steep in one direction, least (0) at (1, -2); 24.5 at the start, (4, 0)."""
    return 0.5 * (p[0] - 1) ** 2 + 5 * (p[1] + 2) ** 2


def rosenbrock(p):
    """A bent valley, least (0) at (1, 1); 24.2 at the start, (-1.2, 1), and about 4 on its floor near by."""
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def descend(name, f, start, lr, n_steps):
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    opt = make(name, [p], lr=lr, foreach=False)
    for _ in range(n_steps):
        opt.zero_grad()
        f(p).backward()
        opt.step()
    return f(p).item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "start", "n_steps", "factor"),
    [(quadratic, (4.0, 0.0), 150, 1e3), (rosenbrock, (-1.2, 1.0), 300, 6)],
    ids=["quadratic", "rosenbrock"],
)
@EACH
def test_it_descends_at_the_best_of_three_lrs(name, f, start, n_steps, factor):
    first = f(torch.tensor(start, dtype=torch.float64)).item()
    # The largest lr that suits each: SGD's step grows with the gradient, Adam's does not.
    last = [descend(name, f, start, lr, n_steps) for lr in (1e-3, 3e-2, 1e-1)]
    assert min(value for value in last if math.isfinite(value)) < first / factor


# Schedules ----------------------------------------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda opt: LambdaLR(opt, lambda i: 1 / (i + 1)),
    "StepLR": lambda opt: StepLR(opt, 3, 0.5),
    "CosineAnnealingLR": lambda opt: CosineAnnealingLR(opt, 10),
    "OneCycleLR": lambda opt: OneCycleLR(opt, 0.3, total_steps=13, cycle_momentum=False),
    "SequentialLR": lambda opt: SequentialLR(
        opt, [LinearLR(opt, 0.1, total_iters=4), CosineAnnealingLR(opt, 8)], [4]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@EACH
def test_torch_s_schedulers_drive_it(name, scheduler):
    params, start, theirs = new_params(), new_params(), new_params()
    lrs = []
    for opt, of in (
        (make(name, params, **others(name)), params),
        (torch.optim.SGD(theirs, lr=others(name)["lr"]), theirs),
    ):
        sched, used = SCHEDULERS[scheduler](opt), []
        for i in range(12):
            used.append(opt.param_groups[0]["lr"])
            run(opt, of, [i])
            sched.step()
        lrs.append(used)
    assert lrs[0] == lrs[1]
    assert len(set(lrs[0])) > 2
    assert_close(params, [expected(name, p, range(12), lrs[0], **others(name)) for p in start])


@EACH_HYPERPARAMETER
def test_a_hyperparameter_edited_by_hand_takes_effect(name, key):
    params, given = new_params(), new_params()
    opt = make(name, params)
    opt.param_groups[0][key] = HYPERPARAMETERS[key].other
    if (name, key) == ("AdaBound", "lr"):
        opt.param_groups[0]["base_lr"] = HYPERPARAMETERS["lr"].other  # else final_lr follows
    run(opt, params)
    run(make(name, given, **{key: HYPERPARAMETERS[key].other}), given)
    assert equal(params, given)


# State --------------------------------------------------------------------------------------------


def through_a_file(state):
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("through", [deepcopy, through_a_file])
@FOREACH
@EACH
def test_state_dict_continues_bitwise_in_a_fresh_optimizer(name, foreach, through):
    params = new_params()
    opt = make(name, params, **others(name), foreach=foreach)
    run(opt, params, range(5))
    other = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = make(name, other)  # the hyperparameters come with the state
    fresh.load_state_dict(through(opt.state_dict()))
    assert fresh.param_groups[0]["foreach"] is foreach
    for opt, of in ((opt, params), (fresh, other)):
        run(opt, of, range(5, 10))
    assert equal(params, other)


@pytest.mark.parametrize("copy", [deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@FOREACH
@EACH
def test_a_copy_continues_bitwise_and_independently(name, foreach, copy):
    params = new_params()
    opt = make(name, params, **others(name), foreach=foreach)
    run(opt, params, range(5))
    other = copy(opt)
    its = other.param_groups[0]["params"]
    run(opt, params, range(5, 10))
    assert not equal(params, its)
    run(other, its, range(5, 10))
    assert equal(params, its)


@EACH
def test_a_copied_optimizer_takes_a_group_as_the_first_does(name):
    opt = deepcopy(make(name, new_params()))
    late = new_params()
    opt.add_param_group({"params": late, **others(name)})
    run(opt, late)
    alone = new_params()
    run(make(name, alone, **others(name)), alone)
    assert equal(late, alone)


@EACH
def test_loaded_state_is_cast_to_the_parameters_dtype(name):
    params, start = new_params(), new_params()
    opt = make(name, params, **others(name))
    run(opt, params, range(5))
    other = [nn.Parameter(p.detach().float()) for p in params]
    fresh = make(name, other)
    fresh.load_state_dict(opt.state_dict())
    tensors = [v for p in other for v in fresh.state[p].values() if isinstance(v, torch.Tensor)]
    assert all(v.dtype is torch.float32 for v in tensors)
    run(fresh, other, range(5, 10))
    wanted = [expected(name, p, range(10), [0.03] * 10, **others(name)) for p in start]
    # float32, of sums of values up to 100
    torch.testing.assert_close(other, [nn.Parameter(w.float()) for w in wanted], rtol=1e-4, atol=1e-4)


@FOREACH
@EACH
def test_state_lives_only_in_the_optimizer(name, foreach):
    params = new_params()
    before = [dict(vars(p)) for p in params]
    opt = make(name, params, foreach=foreach)
    places = [p.data_ptr() for p in params]
    run(opt, params)
    assert [vars(p) for p in params] == before
    assert [p.data_ptr() for p in params] == places
    assert vars(opt).keys() == vars(torch.optim.SGD(params, 0.1)).keys()


@FOREACH
@EACH
def test_state_is_the_parameter_s_own(name, foreach):
    params = new_params()
    opt = make(name, params, foreach=foreach)
    run(opt, params)
    taken = {t.data_ptr() for p in params for t in (p, p.grad) if t.numel()}
    for p in params:
        for value in opt.state[p].values():
            if isinstance(value, torch.Tensor):
                assert value.ndim == 0 or (value.shape, value.dtype) == (p.shape, p.dtype)
                assert value.data_ptr() not in taken


# Gradients ----------------------------------------------------------------------------------------


@FOREACH
@EACH
def test_without_a_gradient_nothing_is_done(name, foreach):
    params = new_params()
    start = copies(params)
    opt = make(name, params, **others(name), foreach=foreach)
    run(opt, params[1:])
    assert params[0].equal(start[0])  # its weights do not decay either
    assert not params[1].equal(start[1])
    assert params[0] not in opt.state


@FOREACH
@EACH
def test_a_parameter_that_joins_late_or_rests_counts_its_own_steps(name, foreach):
    params, start = new_params(), new_params()
    opt = make(name, params, **others(name), foreach=foreach)
    when = [range(20), range(4, 20), [0, 1, 7, 8, 19], range(3), [19]]
    for i in range(20):
        opt.zero_grad()
        run(opt, [p for p, steps in zip(params, when, strict=True) if i in steps], [i])
    wanted = [
        expected(name, p, steps, [0.03] * len(steps), **others(name))
        for p, steps in zip(start, when, strict=True)
    ]
    assert_close(params, wanted)


@FOREACH
@EACH
def test_a_frozen_parameter_stays(name, foreach):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    weight, bias = copies(model.parameters())
    opt = make(name, model.parameters(), **others(name), foreach=foreach)
    for _ in range(2):
        opt.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        opt.step()
    assert model.bias.equal(bias)
    assert model.bias not in opt.state
    assert not model.weight.equal(weight)


@FOREACH
@EACH
def test_gradients_stay_as_they_are(name, foreach):
    params = new_params()
    opt = make(name, params, **others(name), foreach=foreach)

    def check():
        assert [p.grad is grad for p, grad in zip(params, grads, strict=True)] == [True] * len(params)
        assert equal(grads, before)

    for i in range(3):
        grads = [new_grad(p.shape, i) for p in params]
        before = copies(grads)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        opt.step()
        check()


@FOREACH
@EACH
def test_a_step_leaves_no_graph(name, foreach):
    params = new_params()
    opt = make(name, params, **others(name), foreach=foreach)
    for _ in range(2):
        loss = sum((p**3).sum() for p in params)
        for p, grad in zip(params, torch.autograd.grad(loss, params, create_graph=True), strict=True):
            p.grad = grad  # has a graph itself
        opt.step()
    tensors = [v for p in params for v in opt.state[p].values() if isinstance(v, torch.Tensor)]
    assert [v.requires_grad for v in tensors] == [False] * len(tensors)
    assert all(p.is_leaf and p.requires_grad for p in params)
    assert torch.is_grad_enabled()


@FOREACH
@EACH
def test_sparse_gradients_are_refused_before_anything_is_changed(name, foreach):
    dense, table = nn.Linear(3, 2), nn.Embedding(5, 3, sparse=True)
    params = [*dense.parameters(), *table.parameters()]
    opt = make(
        name,
        [{"params": dense.parameters()}, {"params": table.parameters()}],
        **others(name),
        foreach=foreach,
    )
    dense(table(torch.tensor([1, 2]))).sum().backward()
    before = copies(params)
    with pytest.raises(
        TypeError,
        match=rf"^{name}.*\(5, 3\).*torch\.sparse_coo.*dense.*sparse=True",
    ):
        opt.step()
    assert equal(params, before)
    assert not opt.state


@EACH
def test_complex_parameters_are_refused(name):
    real, pair = new_params(), nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    message = rf"^{name}.*\(3,\).*torch\.complex64.*real.*torch\.complex"
    with pytest.raises(TypeError, match=message):
        make(name, [*real, pair])
    opt = make(name, real)
    with pytest.raises(TypeError, match=message):
        opt.add_param_group({"params": [pair]})
    assert [group["params"] for group in opt.param_groups] == [real]


# Groups -------------------------------------------------------------------------------------------


@FOREACH
@EACH
def test_groups_are_optimizers_of_their_own(name, foreach):
    params, alone = new_params(), new_params()
    groups = [{"params": params[:2], **others(name)}, {"params": params[2:], "name": "rest"}]
    run(make(name, groups, foreach=foreach), params)
    run(make(name, alone[:2], **others(name), foreach=foreach), alone[:2])
    run(make(name, alone[2:], foreach=foreach), alone[2:])
    assert equal(params, alone)


@FOREACH
@EACH
def test_a_group_added_late_starts_like_a_fresh_optimizer(name, foreach):
    params, alone = new_params(), new_params()
    opt = make(name, params[:2], foreach=foreach)
    run(opt, params[:2], range(5))
    opt.add_param_group({"params": params[2:], **others(name)})
    run(opt, params, range(5, 10))
    run(make(name, alone[:2], foreach=foreach), alone[:2], range(10))
    run(make(name, alone[2:], **others(name), foreach=foreach), alone[2:], range(5, 10))
    assert equal(params, alone)


@EACH
def test_a_group_has_its_own_foreach(name):
    params = new_params()
    opt = make(name, [{"params": params[:2], "foreach": False}, {"params": params[2:]}])
    lists, singles = [], []
    update, update_all = opt.update, opt.update_all
    opt.update = lambda p, *rest: (singles.append(p), update(p, *rest))
    opt.update_all = lambda of, *rest: (lists.append(of), update_all(of, *rest))
    run(opt, params, range(1))
    assert [id(p) for p in singles] == [id(p) for p in params[:2]]
    assert [[id(p) for p in of] for of in lists] == [[id(p) for p in params[2:]]]


@pytest.mark.parametrize("key", ["name", "initial_lr", "layers"])
@EACH
def test_keys_that_are_no_hyperparameters_pass(name, key):
    params = new_params()
    opt = make(name, [{"params": params, key: "kept"}])
    run(opt, params)
    assert opt.param_groups[0][key] == opt.state_dict()["param_groups"][0][key] == "kept"


# Refused ------------------------------------------------------------------------------------------


def assert_refused(error, message, name, params, group):
    """Check that a group is refused by the constructor and by add_param_group, which then did nothing."""
    with pytest.raises(error, match=message):
        make(name, [{"params": params[2:]}, {"params": params[:2], **group}])
    opt = make(name, params[2:])
    run(opt, params[2:], range(1))
    before, given = deepcopy(opt.state_dict()), {"params": params[:2], **group}
    with pytest.raises(error, match=message):
        opt.add_param_group(given)
    assert given == {"params": params[:2], **group}
    assert opt.param_groups[0]["params"] == params[2:]
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0, equal_nan=True)
    opt.add_param_group({"params": params[:2]})
    run(opt, params, range(1))


@EACH_HYPERPARAMETER
def test_a_value_out_of_range_is_refused(name, key):
    hyperparameter = HYPERPARAMETERS[key]
    allowed = {(type(value), repr(value)) for value in hyperparameter.ends}
    for value in (*hyperparameter.beyond, *NO_NUMBERS):
        if (type(value), repr(value)) in allowed:
            continue
        message = mentions(f"{key}={value!r} ... {hyperparameter.expected}")
        with pytest.raises(ValueError, match=message):
            make(name, new_params(), **{key: value})
        assert_refused(ValueError, message, name, new_params(), {key: value})


@EACH_HYPERPARAMETER
def test_the_ends_of_its_range_are_allowed(name, key):
    for value in HYPERPARAMETERS[key].ends:
        assert make(name, new_params(), **{key: value}).param_groups[0][key] == value
        assert make(name, [{"params": new_params(), key: value}]).param_groups[0][key] == value


@pytest.mark.parametrize("key", FOREIGN)
@EACH
def test_another_optimizer_s_hyperparameter_is_refused(name, key):
    own = hyperparameters(name)
    if key not in own:
        message = rf"{key}=0\.5.*{name}.*{', '.join(own)}$"
        assert_refused(TypeError, message, name, new_params(), {key: 0.5})


@EACH_HYPERPARAMETER
def test_a_misspelt_hyperparameter_is_refused_with_the_right_one(name, key):
    wrong = key + key[-1]
    message = rf"{wrong}=0\.5.*{name}.*{key}\?.*{', '.join(hyperparameters(name))}$"
    assert_refused(TypeError, message, name, new_params(), {wrong: 0.5})


@EACH
def test_no_parameters_at_all_is_torch_s_error(name):
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        make(name, [])


# As torch has it ----------------------------------------------------------------------------------


@EACH
def test_closure_is_called_once_with_gradients_on_and_its_value_returned(name):
    params, alone = new_params(), new_params()
    opt, calls = make(name, params), []

    def closure():
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert calls == [True]
    assert loss.item() == sum((p**2).sum() for p in alone).item()
    for p in alone:
        p.grad = 2 * p.detach()
    assert make(name, alone).step() is None
    assert equal(params, alone)  # the step was taken with the closure's gradients


@EACH
def test_hooks_run_around_the_step(name):
    params = new_params()
    opt, seen = make(name, params), []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append((o, copies(params))))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append((o, copies(params))))
    start = copies(params)
    run(opt, params, range(1))
    (first, before), (last, after) = seen
    assert first is last is opt
    assert equal(before, start)
    assert equal(after, params)
    assert not equal(before, after)


@EACH
def test_hooks_run_around_state_dict_and_its_loading(name):
    opt, seen = make(name, new_params()), []
    opt.register_state_dict_pre_hook(lambda o: seen.append("before saving"))
    opt.register_state_dict_post_hook(lambda o, state: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda o, state: seen.append("before loading"))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before saving", "saved", "before loading", "loaded"]


@EACH
def test_zero_grad_drops_or_clears(name):
    params = new_params()
    opt = make(name, params)
    run(opt, params, range(1))
    opt.zero_grad(set_to_none=False)
    assert [p.grad.any().item() for p in params] == [False] * len(params)
    opt.zero_grad()
    assert [p.grad for p in params] == [None] * len(params)


@EACH
def test_parameters_may_come_from_a_generator_or_with_names(name):
    results = []
    for given in (list, iter, lambda params: [(f"p{i}", p) for i, p in enumerate(params)]):
        params = new_params()
        opt = make(name, given(params))
        run(opt, params)
        results.append(params)
    assert opt.param_groups[0]["param_names"] == ["p0", "p1", "p2", "p3", "p4"]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


# In a learner -------------------------------------------------------------------------------------


@EACH
def test_it_trains_in_a_learner_over_two_fits(name, make_learner, at):
    grads, recorder = [], RecorderCB()
    learn = make_learner(
        opt_func=lambda params, lr: make(name, params, lr=lr),
        lr=0.02,
        cbs=[recorder, at("after_backward", lambda learn: grads.append(learn.model.weight.grad.clone()))],
    )
    start = learn.model.weight.detach().clone()
    learn.fit(2)
    assert type(learn.opt) is OPTIMIZERS[name]
    opt = learn.opt
    set_lr(opt, 0.01)
    learn.fit()
    assert learn.opt is opt
    assert recorder.recs["lr"] == [0.02] * 6 + [0.01] * 3
    given = usuals(name)
    momentum = [given[key] for key in ("mom", "momentum", "beta1") if key in given]
    momentum += [given["betas"][0]] if "betas" in given else []
    assert recorder.recs.get("mom", []) == [*momentum] * 9
    given.pop("lr")
    wanted = REFERENCES[name](start, grads, recorder.recs["lr"], **given)
    # float32, of values about 1
    torch.testing.assert_close(learn.model.weight.detach(), wanted, rtol=1e-5, atol=1e-5)


@EACH
def test_a_learner_s_groups_have_hyperparameters_of_their_own(name, make_learner):
    def groups(model):
        return [{"params": [model.weight], **others(name)}, [model.bias]]

    learn = make_learner(opt_func=lambda params, lr: make(name, params, lr=lr), param_groups=groups)
    learn.fit()
    first, second = learn.opt.param_groups
    assert {key: first[key] for key in others(name)} == others(name)
    assert {key: second[key] for key in others(name)} == usuals(name) | {"lr": 0.1}
