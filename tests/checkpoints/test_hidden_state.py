"""State that no state_dict tells of, and values that are one object: a resumed run is the straight one."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from toolbox import (
    StopCB,
    at,
    every_rest,
    generator,
    make_learner,
    noisy_learner,
    only_at_the_end,
    same,
    stop,
    tensors_of,
    untimed_rows,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from minilearn import Callback, CheckpointCB, Learner, MetricsCB
from minilearn.checkpoints.drawing import _functions_in as functions_in
from minilearn.checkpoints.snapshot import Savers

pytestmark = pytest.mark.slow
STOPS = (2, 6)  # in the first epoch, and in the second


def same_after_a_stop(make, folder, n_epochs=2, stops=STOPS):
    """Assert that runs which were stopped and resumed end as a straight one; return the learners.

    make: callbacks -> learner, as a script makes it.
    """
    straight, ends = make(MetricsCB()), []
    straight.fit(n_epochs)
    for n in stops:
        stop(make(MetricsCB(), every_rest(folder / str(n)), StopCB(n)), n_epochs)
        learn = make(MetricsCB(), only_at_the_end(folder / str(n)))
        learn.fit(n_epochs, resume=True)
        assert same(tensors_of(learn.model), tensors_of(straight.model)), f"stopped at rest {n}"
        assert untimed_rows(learn) == untimed_rows(straight)
        ends.append(learn)
    return straight, ends


def scripted(*own, **kwargs):
    """Return a function that makes a learner with the callbacks that the functions `own` make."""
    return lambda *cbs: make_learner(
        **{"cbs": [*(make() for make in own), *cbs], "opt_func": SGD, "shuffle": True, "n_batches": 4}
        | {name: value() if name in ("model", "loss_func") else value for name, value in kwargs.items()}
    )


def tilt(learn, by):
    """Change the step by a number, so that a wrong one shows in the weights."""
    for p in learn.model.parameters():
        p.grad.mul_(1 + 0.01 * float(by))


# Generators of functions ------------------------------------------------------------------------------

DRAWS = {
    "numpy": (lambda: np.random.default_rng(0), lambda rng: rng.random()),
    "numpy's older": (lambda: np.random.RandomState(0), lambda rng: rng.random()),
    "python": (lambda: random.Random(0), lambda rng: rng.random()),
    "torch": (lambda: torch.Generator().manual_seed(0), lambda rng: torch.rand((), generator=rng).item()),
}
GLOBAL = np.random.default_rng(0)


def of_unpack(draw):
    return {"unpack": lambda batch: (batch[0] + draw(), batch[1])}


def of_loss(draw):
    return {"loss_func": lambda preds, target: (1 + draw()) * F.cross_entropy(preds, target)}


def of_metric(draw):
    return {"cbs": [MetricsCB(drawn=lambda preds, target: preds.mean() + draw())]}


def of_hook(draw):
    return {"cbs": [at("before_step", lambda learn: tilt(learn, draw()))]}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("use", [of_unpack, of_loss, of_metric, of_hook])
def test_generator_that_a_function_draws_from_is_resumed(tmp_path, use, kind):
    made, draw = DRAWS[kind]

    def make(*cbs):
        given = use(partial(draw, made()))
        own = given.pop("cbs", [])
        rest = [cb for cb in cbs if not (own and isinstance(own[0], MetricsCB) and isinstance(cb, MetricsCB))]
        return make_learner(cbs=[*own, *rest], n_batches=4, **given)

    same_after_a_stop(make, tmp_path)


def test_global_generator_of_unpack_is_resumed(tmp_path):
    def make(*cbs):
        GLOBAL.bit_generator.state = np.random.default_rng(0).bit_generator.state
        return make_learner(cbs=cbs, unpack=lambda batch: (batch[0] + GLOBAL.random(), batch[1]))

    same_after_a_stop(make, tmp_path)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + GLOBAL.random()


def test_global_generator_of_a_method_is_resumed(tmp_path):
    def make(*cbs):
        GLOBAL.bit_generator.state = np.random.default_rng(0).bit_generator.state
        torch.manual_seed(0)
        return make_learner(cbs=cbs, model=Noisy(3, 2))

    same_after_a_stop(make, tmp_path)


def test_functions_in_what_a_callback_keeps_twice_are_found_once():
    def count(preds, target):
        return len(target)

    knot = [count]
    knot += [knot, {"again": knot, "count": count}]
    assert list(functions_in([knot, knot], set())) == [count]


@pytest.mark.parametrize(("n", "found"), [(64, 1), (65, 0)])
def test_functions_in_a_long_container_are_not_looked_for(n, found):
    assert len(list(functions_in([0] * (n - 1) + [make_learner], set()))) == found


# One object under two names ---------------------------------------------------------------------------


class TwoNamesCB(Callback):
    """Change what one name says, and train by what the other says."""

    def __init__(self, make, grow, read):
        self.a = make()
        self.b = self.a
        self.grow, self.read = grow, read

    def before_step(self, learn):
        self.grow(self.a)
        tilt(learn, self.read(self.b))


@dataclass
class Plain:
    n: float = 0.0
    seen: list = field(default_factory=list)

    def grow(self):
        self.n += 1


ONE_OBJECT = {
    "deque": (partial(deque, [1]), lambda x: x.append(1), len),
    "full deque": (partial(deque, [1], maxlen=3), lambda x: x.append(x[-1] + 1), sum),
    "set": (lambda: {0}, lambda x: x.add(len(x)), len),
    "Counter": (Counter, lambda x: x.update("a"), lambda x: x["a"]),
    "OrderedDict": (OrderedDict, lambda x: x.update({len(x): 1}), len),
    "defaultdict": (partial(defaultdict, int), lambda x: x.update({len(x): 1}), len),
    "array": (partial(np.zeros, 2), lambda x: x.__iadd__(1), np.sum),
    "tensor in place": (partial(torch.zeros, 2), lambda x: x.add_(1), torch.sum),
    "tensor with a gradient": (
        lambda: torch.zeros(2, requires_grad=True),
        lambda x: x.data.add_(1),
        lambda x: x.detach().sum(),
    ),
    "list of arrays": (lambda: [np.zeros(2)], lambda x: x[0].__iadd__(1), lambda x: x[0].sum()),
    "object": (Plain, Plain.grow, lambda x: x.n),
    "torch's generator": (
        generator,
        lambda x: torch.rand(1, generator=x),
        lambda x: torch.rand((), generator=x),
    ),
    "python's generator": (partial(random.Random, 0), lambda x: x.random(), lambda x: x.random()),
    "numpy's generator": (partial(np.random.default_rng, 0), lambda x: x.random(), lambda x: x.random()),
    "module": (partial(nn.Linear, 1, 1), lambda x: x.bias.data.add_(1), lambda x: x.bias.detach()),
}


@pytest.mark.parametrize("kind", ONE_OBJECT)
def test_two_names_of_one_object_stay_one(tmp_path, kind):
    def cb():
        torch.manual_seed(0)
        return TwoNamesCB(*ONE_OBJECT[kind])

    _, ends = same_after_a_stop(scripted(cb), tmp_path)
    for learn in ends:
        found = learn.cbs[0] if isinstance(learn.cbs[0], TwoNamesCB) else learn.cbs[1]
        assert found.a is found.b


class GrowCB(Callback):
    def __init__(self, x):
        self.x = x

    def before_step(self, learn):
        self.x += 1


class ReadCB(Callback):
    def __init__(self, x):
        self.x = x

    def before_step(self, learn):
        tilt(learn, self.x.sum())


@pytest.mark.parametrize("make", [partial(torch.zeros, 2), partial(np.zeros, 2)])
def test_object_that_two_callbacks_share_stays_one(tmp_path, make):
    def script(*cbs):
        x = make()
        return scripted(lambda: GrowCB(x), lambda: ReadCB(x))(*cbs)

    same_after_a_stop(script, tmp_path)


@pytest.mark.parametrize("make", [partial(torch.zeros, 2), partial(np.zeros, 2)])
def test_object_that_only_a_function_shares_stays_one(tmp_path, make):
    def script(*cbs):
        x = make()

        def loss(preds, target):
            return F.cross_entropy(preds * (1 + 0.01 * float(x.sum())), target)

        return scripted(lambda: GrowCB(x), loss_func=lambda: loss)(*cbs)

    same_after_a_stop(script, tmp_path)


class LateCB(Callback):
    """Give an object a second name in the fit, or take it away."""

    def __init__(self, joins, make=None):
        make = make or partial(torch.zeros, 1)
        self.a, self.joins = make(), joins
        self.b = make() if joins else self.a

    def before_step(self, learn):
        if learn.n_steps == 1:
            self.b = self.a if self.joins else self.a.clone()
        self.a += 1
        tilt(learn, self.b.sum())


@pytest.mark.parametrize("joins", [True, False])
def test_names_that_join_or_part_in_the_fit_do_so_in_the_resumed_one(tmp_path, joins):
    same_after_a_stop(scripted(partial(LateCB, joins)), tmp_path, stops=(1, 2, 3, 6))


class SeesCB(Callback):
    """Train by what a name of a model's tensor says."""

    def __init__(self, get, late):
        self.get, self.late, self.seen = get, late, None

    def before_fit(self, learn):
        if not self.late:
            self.seen = self.get(learn.model)

    def before_step(self, learn):
        if self.late and learn.n_steps == 1:
            self.seen = self.get(learn.model)
        if self.seen is not None:
            tilt(learn, self.seen.detach().abs().sum())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "get",
    [
        lambda m: m.weight,
        lambda m: m.weight.data,
        lambda m: m.weight.detach()[0],
        lambda m: m.weight.detach()[:, 1:],
        lambda m: m.weight.detach().T,
        lambda m: m.bias.detach().view(2, 1),
    ],
)
def test_name_of_a_models_tensor_is_still_one(tmp_path, get, late):
    same_after_a_stop(scripted(partial(SeesCB, get, late)), tmp_path)


class ViewCB(Callback):
    """Keep a part of a tensor beside the whole, which comes first or last."""

    def __init__(self, whole_first):
        whole = torch.zeros(6)
        if whole_first:
            self.whole = whole
        self.part = whole[2:4]
        self.whole = whole

    def before_step(self, learn):
        self.whole += 1
        tilt(learn, self.part.sum())


@pytest.mark.parametrize("whole_first", [True, False])
def test_view_stays_a_view(tmp_path, whole_first):
    same_after_a_stop(scripted(partial(ViewCB, whole_first)), tmp_path)


class ShufflesCB(Callback):
    """Begin with the tensor of the data, and replace it with another."""

    def __init__(self, x):
        self.x = x

    def before_epoch(self, learn):
        self.x = self.x.flip(0)


def test_tensor_that_was_replaced_is_not_written_over(tmp_path):
    x = torch.arange(4.0)
    make = scripted(lambda: ShufflesCB(x))
    stop(make(every_rest(tmp_path), StopCB(6)), 2)
    learn = make(every_rest(tmp_path))
    learn.fit(2, resume=True)
    assert x.tolist() == [0, 1, 2, 3]


# Plain attributes -------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model that is scaled by a number, which is a function of what it keeps."""

    def __init__(self, make, grow, read):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.grow, self.read = nn.Linear(3, 2), grow, read
        self.part = nn.Identity()
        self.part.kept = make()

    def forward(self, x):
        if self.training:
            self.part.kept = self.grow(self.part.kept)
        return self.body(x) * (1 + 0.01 * float(self.read(self.part.kept)))


def in_place(grow):
    def grown(x):
        grow(x)
        return x

    return grown


ATTRIBUTES = {
    "float": (lambda: 0.0, lambda n: n + 1, float),
    "None at first": (lambda: None, lambda n: (n or 0) + 1, lambda n: n or 0),
    "text": (str, lambda n: n + "a", len),
    "tuple": (tuple, lambda n: (*n, 1), len),
    "replaced tensor": (lambda: torch.zeros(2), lambda n: n + 1, torch.sum),
    "random.Random": (lambda: random.Random(0), lambda n: n, lambda n: n.random()),
    "RandomState's heir": (lambda: np.random.default_rng(0), lambda n: n, lambda n: n.random()),
    "torch.Generator": (generator, lambda n: n, lambda n: torch.rand((), generator=n)),
    **{name: (make, in_place(grow), read) for name, (make, grow, read) in ONE_OBJECT.items()},
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attribute_of_a_module_is_resumed(tmp_path, kind):
    def model():
        torch.manual_seed(0)
        return Net(*ATTRIBUTES[kind])

    same_after_a_stop(scripted(model=model), tmp_path)


class Loss:
    """A loss that is a plain object with a counter."""

    def __init__(self):
        self.n = 0

    def __call__(self, preds, target):
        self.n += torch.is_grad_enabled()
        return F.cross_entropy(preds, target) * (1 + 0.01 * self.n)

    def method(self, preds, target, weight=1.0):
        return self(preds, target) * weight


class ModuleLoss(Loss, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.n = 0

    __call__ = nn.Module.__call__

    def forward(self, preds, target):
        return Loss.__call__(self, preds, target)


@pytest.mark.parametrize(
    "loss",
    [
        Loss,
        ModuleLoss,
        lambda: Loss().method,
        lambda: partial(Loss().method, weight=0.5),
        lambda: partial(Loss()),
    ],
    ids=["object", "module", "method", "partial method", "partial"],
)
def test_counter_of_a_loss_is_resumed(tmp_path, loss):
    same_after_a_stop(scripted(loss_func=loss), tmp_path)


class OwnLossLearner(Learner):
    """A learner whose loss is a method of its own, and counts."""

    n_losses = 0

    def own_loss(self, preds, target):
        self.n_losses += self.training
        return F.cross_entropy(preds, target) * (1 + 0.01 * self.n_losses)


def test_loss_that_is_a_method_of_the_learner_is_resumed_as_its_field(tmp_path):
    def make(*cbs):
        learn = noisy_learner(*cbs, cls=OwnLossLearner)
        learn.loss_func = learn.own_loss
        return learn

    straight, _ = same_after_a_stop(make, tmp_path)
    assert straight.n_losses == 6
    assert "loss_func" not in Savers(straight).attributes(straight)  # which would be all of the learner


class CountingSGD(SGD):
    def __init__(self, params, lr, make=int, grow=lambda n: n + 1, read=float):
        super().__init__(params, lr)
        self.kept, self.grow, self.read = make(), grow, read

    def step(self, closure=None):
        self.kept = self.grow(self.kept)
        for group in self.param_groups:
            group["lr"] = 0.1 / (1 + abs(float(self.read(self.kept))))
        return super().step(closure)


@pytest.mark.parametrize("kind", [name for name in ATTRIBUTES if name != "module"])
def test_attribute_of_an_optimizer_is_resumed(tmp_path, kind):
    make, grow, read = ATTRIBUTES[kind]
    opt_func = partial(CountingSGD, make=make, grow=grow, read=read)
    same_after_a_stop(scripted(opt_func=opt_func), tmp_path)


class CriticCB(Callback):
    """Keep a module and an optimizer, both of which count, and train by what they say."""

    def __init__(self, make):
        torch.manual_seed(0)
        self.net = make()
        self.opt = CountingSGD(self.net.parameters(), 0.1)

    def before_step(self, learn):
        out = self.net(learn.xb).mean()
        self.opt.zero_grad()
        out.backward()
        self.opt.step()
        tilt(learn, out.detach() + self.opt.kept)


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.mean = 0.9 * self.mean + x.mean().detach()
        return self.body(x) + self.mean


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 1),
        Hidden,
        lambda: Net(*ATTRIBUTES["float"]),
        lambda: Net(*ATTRIBUTES["torch.Generator"]),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    ],
)
def test_module_and_optimizer_of_a_callback_are_resumed(tmp_path, make):
    same_after_a_stop(scripted(partial(CriticCB, make)), tmp_path)


class Unregistered(nn.Module):
    """Layers in a plain list, which only param_groups knows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.layers = [nn.Linear(3, 3), nn.Linear(3, 2)]

    def forward(self, x):
        for layer in (self.first, *self.layers):
            x = layer(x)
        return x


def listed(model):
    return [{"params": [p for layer in (model.first, *model.layers) for p in layer.parameters()]}]


def test_layers_in_a_plain_list_are_resumed(tmp_path):
    def model():
        torch.manual_seed(0)
        return Unregistered()

    straight, ends = same_after_a_stop(scripted(model=model, param_groups=listed), tmp_path)
    for learn in ends:
        for a, b in zip(learn.model.layers, straight.model.layers, strict=True):
            assert same(tensors_of(a), tensors_of(b))


def test_parameter_of_a_closure_is_resumed(tmp_path):
    def script(*cbs):
        scale = nn.Parameter(torch.ones(2))

        def loss(preds, target):
            return F.cross_entropy(preds * scale, target)

        def groups(model):
            return [[*model.parameters(), scale]]

        return scripted(loss_func=lambda: loss, param_groups=groups)(*cbs)

    same_after_a_stop(script, tmp_path)


def test_dropout_that_a_callback_changes_is_resumed_and_the_scripts_is_not_written_over(tmp_path):
    def change(learn):
        learn.model[0].p = 0.1 + 0.05 * learn.n_steps

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2), nn.Linear(3, 2))

    make = scripted(lambda: at("after_step", change), model=model)
    straight, ends = same_after_a_stop(make, tmp_path)
    assert [learn.model[0].p for learn in ends] == [straight.model[0].p] * len(STOPS)
    learn = make(MetricsCB(), every_rest(tmp_path / "2"))
    learn.model[1].p = 0.7  # no run changed it
    with pytest.warns(UserWarning, match=r"1\.p=0\.7 here, but 0\.2 .*the one here is used"):
        learn.fit(2, resume=tmp_path / "2")
    assert (learn.model[0].p, learn.model[1].p) == (straight.model[0].p, 0.7)


# Frozen modules ---------------------------------------------------------------------------------------


class TeacherCB(Callback):
    def __init__(self, make=None, seed=0, ema=False):
        torch.manual_seed(seed)
        self.teacher = (make or frozen)()
        self.ema = ema

    def before_step(self, learn):
        tilt(learn, sum(p.detach().abs().mean() for p in self.teacher.parameters()))
        if self.ema:
            for p in self.teacher.parameters():
                p.data.mul_(0.9)


def frozen():
    return nn.Linear(300, 300).requires_grad_(False)


TEACHERS = {
    "frozen": frozen,
    "in a list": lambda: nn.ModuleList([frozen(), frozen()]),
    "without gradients": lambda: nn.Linear(300, 300),
    "in half precision": lambda: frozen().to(torch.bfloat16),
    "with BatchNorm": lambda: nn.Sequential(frozen(), nn.BatchNorm1d(300)).eval(),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_teacher_is_not_in_checkpoints_and_is_still_used(tmp_path, kind):
    make = scripted(partial(TeacherCB, TEACHERS[kind]))
    same_after_a_stop(make, tmp_path)
    assert max(path.stat().st_size for path in (tmp_path / "2").iterdir()) < 100_000


def test_teacher_that_changes_is_in_checkpoints(tmp_path):
    same_after_a_stop(scripted(partial(TeacherCB, ema=True)), tmp_path)


@pytest.mark.filterwarnings("ignore:TeacherCB has seed")
def test_other_teacher_is_refused_before_training(tmp_path):
    stop(scripted(TeacherCB)(every_rest(tmp_path), StopCB(2)))
    learn = scripted(partial(TeacherCB, seed=1))(every_rest(tmp_path))
    before = tensors_of(learn.model)
    with pytest.raises(ValueError, match=r"TeacherCB\.teacher\.weight is not what it was.*same weights"):
        learn.fit(2, resume=True)
    assert learn.n_steps == 0
    assert same(before, tensors_of(learn.model))


# Found after the first batch --------------------------------------------------------------------------


class KeepsCB(Callback):
    def __init__(self, event, make):
        self.kept, self.event, self.make = None, event, make

    def _keep(self, event):
        if event == self.event:
            self.kept = self.make()

    def after_predict(self, learn):
        self._keep("after_predict")

    def after_step(self, learn):
        self._keep("after_step")

    def after_batch(self, learn):
        self._keep("after_batch")


@pytest.mark.parametrize("event", ["after_predict", "after_step", "after_batch"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.distributions.Normal(0.0, 1.0),
        lambda: range(3),
        lambda: iter([1]),
        lambda: bytearray(b"x"),
        lambda: {"a": [{1: slice(1)}]},
        lambda: nn.Linear(1, 1),
        lambda: Fraction(1, 2),
        lambda: memoryview(b"x"),
        lambda: np.array(["x"]),
    ],
)
def test_what_cannot_be_stored_is_named_after_the_first_batch(tmp_path, event, make):
    learn = make_learner(n_batches=20, n_valid=0, cbs=[KeepsCB(event, make), CheckpointCB(tmp_path)])
    with pytest.raises(TypeError, match=r"KeepsCB\.kept"):
        learn.fit()
    assert learn.n_steps <= 2


def test_trial_writes_nothing(tmp_path):
    names = []
    look = at("after_batch", lambda learn: names.append([p.name for p in tmp_path.glob("*.pt")]))
    make_learner(n_batches=4, n_valid=0, cbs=[look, CheckpointCB(tmp_path)]).fit()
    assert names == [[]] * 4
