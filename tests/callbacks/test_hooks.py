import math

import pytest
import torch
from matplotlib.colors import to_hex
from toolbox import syncs_in_fit, untimed_rows
from torch import nn

from minilearn import (
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    HooksCB,
    MetricsCB,
    RecorderCB,
    StoreModuleStatsCB,
)
from minilearn.callbacks.hooks import ModuleStats


def small_net():
    """Modules named 0, 1, 1.0, 1.1 and 2."""
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))


def nothing(*args):
    pass


class Calls:
    """A function for HooksCB that keeps what it is called with."""

    def __init__(self):
        self.args = []

    def __call__(self, *args):
        self.args.append(args)

    @property
    def names(self):
        return [name for _, name, *_ in self.args]


def n_hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def by_hand(make_learner, *cbs, bias=(0.0,), n_batches=1, **kwargs):
    """Make a learner whose Linear and ReLU give known values: x + bias of the inputs -1, 0, 2 and 5."""
    model = nn.Sequential(nn.Linear(1, len(bias)), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor(bias))
    batch = (torch.tensor([[-1.0], [0.0], [2.0], [5.0]]), torch.zeros(4, len(bias)))
    return make_learner(model=model, dls={"train": [batch] * n_batches}, lr=0.0, cbs=list(cbs), **kwargs)


# Which modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "names"),
    [
        (None, ["0", "1.0", "1.1", "2"]),
        (nn.Linear, ["0", "1.1", "2"]),
        ((nn.ReLU, nn.Sequential), ["", "1", "1.0"]),
        (nn.Module, ["", "0", "1", "1.0", "1.1", "2"]),
        (lambda module: getattr(module, "out_features", 0) == 4, ["0", "1.1"]),
    ],
    ids=["those without modules inside", "class", "tuple", "base class", "function"],
)
def test_chosen_modules_are_called_by_their_names(make_learner, which, names):
    model, calls = small_net(), Calls()
    cb = HooksCB(calls, which)
    make_learner(model=model, n_batches=1, cbs=[cb]).fit()
    assert cb.names == names
    assert sorted(calls.names) == sorted(names)
    modules = dict(model.named_modules())
    assert all(module is modules[name] for _, name, module, *_ in calls.args)


def test_model_without_modules_inside_is_chosen_itself(make_learner):
    calls = Calls()
    make_learner(n_batches=1, cbs=[HooksCB(calls)]).fit()
    assert calls.names == [""]


@pytest.mark.parametrize(
    ("which", "shown"),
    [(nn.Conv2d, r"<class '.*Conv2d'>"), ((), r"\(\)"), (lambda module: False, r"<function .*<lambda> .*>")],
    ids=["class", "no class", "function"],
)
@pytest.mark.parametrize("make", [lambda which: HooksCB(nothing, which), StoreModuleStatsCB])
def test_no_module_chosen_is_an_error_that_names_the_kinds_there_are(make_learner, at, which, shown, make):
    batches = []
    learn = make_learner(model=small_net(), cbs=[make(which), at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=rf"^which={shown}.*Linear, ReLU, Sequential"):
        learn.fit()
    assert batches == []


def test_modules_are_chosen_again_for_each_fit(make_learner):
    calls = Calls()
    learn = make_learner(model=small_net(), n_batches=1, cbs=[cb := HooksCB(calls, nn.ReLU)])
    learn.fit()
    learn.model[1][0] = nn.Tanh()
    learn.model.append(nn.ReLU())
    learn.fit()
    assert calls.names == ["1.0", "3"]
    assert cb.names == ["3"]


# When it is called ------------------------------------------------------------------------------------


def test_function_gets_learner_name_module_inputs_and_output(make_learner, at):
    calls, seen = Calls(), []
    learn = make_learner(
        n_batches=1, cbs=[at("after_predict", lambda learn: seen.append((learn.xb, learn.preds)))]
    )
    learn.fit(valid=False, cbs=[HooksCB(calls)])
    ((got, name, module, inputs, output),) = calls.args
    ((xb, preds),) = seen
    assert (got, name, module) == (learn, "", learn.model)
    assert type(inputs) is tuple
    assert len(inputs) == 1
    assert inputs[0] is xb
    assert output is preds


def test_called_once_for_each_forward_in_training_only(make_learner):
    calls = Calls()
    learn = make_learner(model=small_net(), n_batches=3, n_valid=2, cbs=[HooksCB(calls, nn.ReLU)])
    learn.fit(2)
    assert calls.names == ["1.0"] * 6
    learn.validate()
    learn.predict(learn.dls.valid)
    learn.fit(train=False)
    assert len(calls.args) == 6


def test_not_called_in_validation_or_prediction_inside_training(make_learner, at):
    def look(learn):
        seen.append(learn.validate()["loss"])
        seen.append(learn.predict(learn.dls.valid).shape)

    calls, seen = Calls(), []
    learn = make_learner(n_batches=3, cbs=[MetricsCB(), HooksCB(calls), at("after_step", look)])
    learn.fit(valid=False)
    assert len(calls.args) == 3
    assert len(seen) == 6


def test_module_used_twice_in_a_forward_is_called_twice(make_learner):
    relu, calls = nn.ReLU(), Calls()
    model = nn.Sequential(nn.Linear(3, 2), relu, nn.Linear(2, 2), relu)
    stats = StoreModuleStatsCB(nn.ReLU)
    make_learner(model=model, n_batches=3, cbs=[HooksCB(calls, nn.ReLU), stats]).fit()
    assert calls.names == ["1"] * 6
    assert len(stats.stats["1"].means) == len(stats.stats["1"].hists) == 6


def test_value_that_the_function_returns_is_not_read(make_learner):
    plain, hooked = make_learner(), make_learner()
    plain.fit()
    hooked.fit(cbs=[HooksCB(lambda learn, name, module, inputs, output: output * 0)])
    assert torch.equal(plain.model.weight, hooked.model.weight)


def test_function_computes_no_graph_and_leaves_the_models(make_learner):
    def function(learn, name, module, inputs, output):
        kept.append(output.mean())
        modes.append((torch.is_grad_enabled(), output.requires_grad))

    kept, modes = [], []
    make_learner(n_batches=2, cbs=[HooksCB(function)]).fit(valid=False)
    assert [t.requires_grad for t in kept] == [False, False]
    assert modes == [(False, True)] * 2


def test_error_in_the_function_reaches_the_user_with_a_note(make_learner):
    def broken(*args):
        raise KeyError("mine")

    learn = make_learner(cbs=[HooksCB(broken)])
    with pytest.raises(KeyError, match="mine") as error:
        learn.fit()
    assert error.value.__notes__ == ["minilearn: in Learner.predict, epoch 0 of 1, train batch 0, step 0"]
    assert n_hooks(learn.model) == 0


def test_cancel_in_the_function_is_one(make_learner):
    def cancel(learn, *args):
        if learn.batch_idx == 1:
            raise CancelEpochException

    learn = make_learner(n_batches=3, cbs=[HooksCB(cancel)])
    learn.fit(2)
    assert learn.n_steps == 2
    assert n_hooks(learn.model) == 0


# What it leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: HooksCB(nothing), StoreModuleStatsCB], ids=["HooksCB", "stats"])
@pytest.mark.parametrize(
    ("event", "order", "error"),
    [
        (None, 0, None),
        ("predict", 0, ZeroDivisionError),
        ("before_fit", -1, ZeroDivisionError),
        ("before_fit", 1, ZeroDivisionError),
        ("before_fit", 1, CancelFitException),
        ("after_step", 0, KeyboardInterrupt),
        ("after_step", 0, CancelFitException),
        ("after_loss", 0, CancelBatchException),
        ("after_epoch", 0, ZeroDivisionError),
        ("cleanup_fit", -1, ZeroDivisionError),
    ],
)
def test_hooks_are_gone_however_the_fit_ended_and_the_users_own_are_not(
    make_learner, at, make, event, order, error
):
    def end(learn):
        seen.append(n_hooks(learn.model))
        raise error

    seen, own = [], []
    model = small_net()
    model[0].register_forward_hook(lambda *args: own.append(args))
    learn = make_learner(model=model, n_batches=2, cbs=[make(), *([at(event, end, order)] if event else [])])
    try:
        learn.fit()
    except (ZeroDivisionError, KeyboardInterrupt) as e:
        assert type(e) is error  # noqa: PT017  some ends are no error
    if event:
        assert seen[0] == (1 if (event, order) == ("before_fit", -1) else 5)
    assert n_hooks(model) == 1
    n = len(own)
    model(torch.ones(1, 3))
    assert len(own) == n + 1


def test_second_fit_hooks_each_module_once(make_learner):
    calls = Calls()
    learn = make_learner(n_batches=2, cbs=[HooksCB(calls)])
    learn.fit()
    learn.fit()
    assert len(calls.args) == 4
    assert n_hooks(learn.model) == 0


def test_error_of_the_model_leaves_no_hooks(make_learner):
    class Broken(nn.Linear):
        def forward(self, x):
            raise ZeroDivisionError

    model = nn.Sequential(nn.Linear(3, 2), Broken(2, 2))
    with pytest.raises(ZeroDivisionError):
        make_learner(model=model, cbs=[HooksCB(nothing), StoreModuleStatsCB()]).fit()
    assert n_hooks(model) == 0


@pytest.mark.parametrize("make", [lambda: HooksCB(nothing), StoreModuleStatsCB], ids=["HooksCB", "stats"])
def test_training_is_bitwise_what_it_is_without(make_learner, make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    state, runs = {k: v.clone() for k, v in model.state_dict().items()}, []
    for cbs in ([], [make()]):
        torch.manual_seed(1)
        model.load_state_dict(state)
        recorder = RecorderCB()
        learn = make_learner(model=model, n_batches=5, cbs=[*cbs, recorder, MetricsCB()])
        learn.fit(3)
        rows = untimed_rows(learn)
        runs.append((recorder.recs, rows, [t.tolist() for t in model.state_dict().values()]))
    assert runs[0] == runs[1]


def test_lr_find_calls_hooks_and_leaves_stats(make_learner, at):
    names, n = [], []
    stats = StoreModuleStatsCB()
    watch = HooksCB(lambda learn, name, *args: names.append(name))
    learn = make_learner(
        n_batches=2, cbs=[watch, stats, at("before_batch", lambda learn: n.append(n_hooks(learn.model)))]
    )
    learn.fit(valid=False)
    before = {name: [t.clone() for t in s.means] for name, s in stats.stats.items()}
    learn.lr_find(n_steps=10, diverge=1e9)
    assert n == [2] * 2 + [1] * 10
    assert names == [""] * 12
    assert {name: len(s.means) for name, s in stats.stats.items()} == {"": 2}
    assert all(torch.equal(a, b) for a, b in zip(stats.stats[""].means, before[""], strict=True))
    assert n_hooks(learn.model) == 0


@pytest.mark.parametrize("value", [None, "mean", 3], ids=["none", "text", "number"])
def test_function_that_cannot_be_called_is_refused(value):
    with pytest.raises(
        TypeError,
        match=rf"^HooksCB\(function={value!r}\).*\(learn, name, module, inputs, output\)",
    ):
        HooksCB(value)


@pytest.mark.parametrize("which", ["Linear", 3, [nn.Linear]], ids=["text", "number", "list"])
def test_which_is_a_class_a_tuple_or_a_function(which):
    for make in (lambda: HooksCB(nothing, which), lambda: StoreModuleStatsCB(which)):
        with pytest.raises(TypeError, match=r"^which=.*class.*modules.*tuple.*function"):
            make()


def test_module_in_the_place_of_its_class_is_refused():
    with pytest.raises(TypeError, match=r"^which=ReLU.*class.*modules.*tuple"):
        HooksCB(nothing, nn.ReLU())


# The statistics ---------------------------------------------------------------------------------------


def test_statistics_are_those_worked_by_hand(make_learner):
    cb = StoreModuleStatsCB(bounds=(-4.0, 4.0), n_bins=4)  # edges -4, -2, 0, 2, 4
    by_hand(make_learner, cb, n_batches=2).fit()
    assert list(cb.stats) == ["0", "1"]
    linear, relu = cb.stats.values()  # of -1, 0, 2, 5 and of 0, 0, 2, 5
    assert (linear.kind, relu.kind) == ("Linear", "ReLU")
    assert [t.tolist() for t in linear.means] == [1.5, 1.5]
    assert [t.tolist() for t in relu.means] == [1.75, 1.75]
    # The mean of squares is 30/4 and 29/4.
    assert [t.tolist() for t in linear.stds] == pytest.approx([math.sqrt(30 / 4 - 1.5**2)] * 2)
    assert [t.tolist() for t in relu.stds] == pytest.approx([math.sqrt(29 / 4 - 1.75**2)] * 2)
    # A value on an edge counts in the bin above it; 5 counts in the last one.
    assert [t.tolist() for t in linear.hists] == [[0.0, 0.25, 0.25, 0.5]] * 2
    assert [t.tolist() for t in relu.hists] == [[0.0, 0.0, 0.5, 0.5]] * 2


def test_values_beyond_the_bounds_count_in_the_outer_bins(make_learner):
    cb = StoreModuleStatsCB(nn.Linear, bounds=(-0.5, 0.5), n_bins=5)
    by_hand(make_learner, cb, bias=(100.0, -100.0, 0.0)).fit()
    # Each 4 of 12 are far above and far below; -1 is below, 2 and 5 above, and 0 is in the middle.
    assert cb.stats["0"].hists[0].tolist() == pytest.approx([5 / 12, 0, 1 / 12, 0, 6 / 12])
    assert cb.stats["0"].means[0].item() == pytest.approx(18 / 12)  # these are not clamped


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3, 5), (2, 3, 4)])
def test_statistics_are_torchs_over_all_dimensions(make_learner, shape):
    class Given(nn.Module):
        def forward(self, x):
            return made

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.given, self.linear = Given(), nn.Linear(3, 2)

        def forward(self, x):
            self.given(x)
            return self.linear(x)

    made = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    cb = StoreModuleStatsCB(Given)
    make_learner(model=Model(), n_batches=1, cbs=[cb]).fit()
    stats = cb.stats["given"]
    assert stats.means[0].item() == pytest.approx(made.mean().item(), rel=1e-6)
    assert stats.stds[0].item() == pytest.approx(made.std(correction=0).item(), rel=1e-6)
    hist = torch.histogram(made.clamp(-5, 5), 50, range=(-5.0, 5.0)).hist / made.numel()
    assert torch.allclose(stats.hists[0], hist)
    assert (made.abs() > 5).any()
    assert stats.hists[0].shape == (50,)
    assert stats.hists[0].sum().item() == pytest.approx(1.0)


def test_nothing_that_is_kept_holds_a_graph(make_learner):
    cb = StoreModuleStatsCB()
    make_learner(model=small_net(), cbs=[cb]).fit()
    kept = [t for s in cb.stats.values() for t in (*s.means, *s.stds, *s.hists)]
    assert len(kept) == 4 * 3 * 3
    assert not any(t.requires_grad for t in kept)
    assert {tuple(t.shape) for t in kept} == {(), (50,)}


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (6, [0])])
def test_every_so_many_steps_are_recorded_over_epochs(make_learner, every, steps):
    cb, means = StoreModuleStatsCB(every=every), []
    watch = HooksCB(lambda learn, name, module, inputs, output: means.append(output.mean()))
    make_learner(n_batches=3, lr=0.5, cbs=[cb, watch]).fit(2)
    assert [t.item() for t in cb.stats[""].means] == [means[step].item() for step in steps]
    assert len(cb.stats[""].stds) == len(cb.stats[""].hists) == len(steps)
    assert len({t.item() for t in means}) == 6


def test_stats_are_those_of_the_last_fit_with_training(make_learner):
    cb = StoreModuleStatsCB()
    learn = make_learner(model=small_net(), n_batches=3, cbs=[cb])
    learn.fit()
    first = cb.stats
    learn.fit(2)
    assert cb.stats is not first
    assert {name: len(s.means) for name, s in cb.stats.items()} == dict.fromkeys(["0", "1.0", "1.1", "2"], 6)
    assert {len(s.means) for s in first.values()} == {3}
    last = cb.stats
    learn.validate()
    learn.predict(learn.dls.valid)
    learn.fit(train=False)
    assert cb.stats is last
    assert {len(s.hists) for s in last.values()} == {6}


def test_fit_without_training_records_nothing(make_learner):
    cb = StoreModuleStatsCB(nn.Conv2d)  # which is not there: nothing is chosen, and nothing is said
    learn = make_learner(cbs=[cb])
    learn.fit(train=False)
    assert cb.stats == {}


def test_new_module_stats_are_empty_and_share_nothing():
    a, b = ModuleStats("ReLU"), ModuleStats("ReLU")
    a.means.append(1)
    assert (b.means, b.stds, b.hists) == ([], [], [])


class Odd(nn.Module):
    """Give what is not one tensor of floats."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"tuple": (x, x), "dict": {"x": x}, "integers": x.long(), "bools": x > 0, "none": None}[
            self.kind
        ]


class AllKinds(nn.Module):
    def __init__(self):
        super().__init__()
        kinds = ("tuple", "dict", "integers", "bools", "none")
        self.odd = nn.ModuleDict({kind: Odd(kind) for kind in kinds})
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        for module in self.odd.values():
            module(x)
        return self.linear(x)


def test_what_is_not_one_tensor_of_floats_is_skipped(make_learner):
    cb = StoreModuleStatsCB()
    make_learner(model=AllKinds(), n_batches=2, cbs=[cb]).fit()
    n = {name: len(s.means) for name, s in cb.stats.items()}
    odd = dict.fromkeys(["odd.tuple", "odd.dict", "odd.integers", "odd.bools", "odd.none"], 0)
    assert n == odd | {"linear": 2}
    assert len(cb.plot_stats().axes[0].lines) == 1
    assert [ax.get_title() for ax in cb.plot_hists().axes[:-1]] == ["linear Linear"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_of_other_floats_are_computed_in_float32(make_learner, dtype):
    class Cast(nn.Module):
        def forward(self, x):
            return x.to(dtype)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cast, self.linear = Cast(), nn.Linear(300, 1)

        def forward(self, x):
            return self.linear(self.cast(x).float())

    x = torch.rand(8, 300, generator=torch.Generator().manual_seed(0))
    cb = StoreModuleStatsCB(Cast, bounds=(0.0, 1.0), n_bins=3)
    make_learner(model=Model(), dls={"train": [(x, torch.zeros(8, 1))]}, cbs=[cb]).fit()
    stats, seen = cb.stats["cast"], x.to(dtype).float()
    assert {t.dtype for t in (stats.means[0], stats.stds[0], stats.hists[0])} == {torch.float32}
    assert torch.equal(stats.means[0], seen.mean())
    assert torch.equal(stats.stds[0], seen.std(correction=0))
    assert torch.equal(stats.hists[0], torch.histc(seen, 3, 0, 1) / 2400)
    if dtype is not torch.float64:
        assert stats.means[0] != x.to(dtype).mean()  # which is rounded to half precision


def test_activations_are_not_changed_in_place(make_learner):
    given = []

    def keep(learn, name, module, inputs, output):
        given.append((output, output.clone()))

    class FirstCB(HooksCB):
        order = -1

    learn = make_learner(n_batches=1, cbs=[FirstCB(keep), StoreModuleStatsCB(bounds=(-0.1, 0.1))])
    learn.fit(valid=False)
    ((output, before),) = given
    assert torch.equal(output, before)
    assert (before.abs() > 0.1).any()


def syncs(make_learner, n_batches, *cbs):
    learn = make_learner(model=small_net(), n_batches=n_batches, cbs=cbs)
    return syncs_in_fit(learn)


def test_no_step_waits_for_the_device(make_learner, monkeypatch):
    def waits(self, *args, **kwargs):
        raise AssertionError("this waits for the device")

    cb = StoreModuleStatsCB()
    for name in ("tolist", "numpy", "cpu"):  # these wait without an operation of their own
        monkeypatch.setattr(torch.Tensor, name, waits)
    assert syncs(make_learner, 20, cb) == syncs(make_learner, 20) == syncs(make_learner, 2, cb)
    assert len(cb.stats["0"].means) == 2


def test_counter_sees_a_wait_at_each_module_of_a_step(make_learner):
    cb = HooksCB(lambda learn, name, module, inputs, output: output.mean().item())
    assert syncs(make_learner, 20, cb) == syncs(make_learner, 20) + 80


# Arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2, -2), (math.nan, 1.0), (0.0, math.nan)])
def test_bounds_are_low_and_high(bounds):
    with pytest.raises(ValueError, match=r"^bounds=\(.*, .*\).*\(low, high\).*low < high"):
        StoreModuleStatsCB(bounds=bounds)


@pytest.mark.parametrize("bounds", [(-math.inf, 1.0), (0.0, math.inf)])
def test_bounds_are_finite(bounds):
    with pytest.raises(ValueError, match=r"^bounds=\(.*, .*\).*\(low, high\)"):
        StoreModuleStatsCB(bounds=bounds)


@pytest.mark.parametrize("name", ["every", "n_bins"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "5", None])
def test_every_and_n_bins_are_counts(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value!r}.*whole number.*>= 1"):
        StoreModuleStatsCB(**{name: value})


def test_whole_numbers_are_good_bounds(make_learner):
    cb = StoreModuleStatsCB(nn.Linear, bounds=(-4, 4), n_bins=4)
    by_hand(make_learner, cb).fit()
    assert cb.stats["0"].hists[0].tolist() == [0.0, 0.25, 0.25, 0.5]


# Pictures ---------------------------------------------------------------------------------------------


def drawn(make_learner, model=None, n_epochs=1, **kwargs):
    cb = StoreModuleStatsCB(**kwargs)
    make_learner(model=model or small_net(), n_batches=3, cbs=[cb]).fit(n_epochs)
    return cb


NAMES = ["0 Linear", "1.0 ReLU", "1.1 Linear", "2 Linear"]


def test_plot_of_stats_has_a_line_for_each_module(make_learner):
    cb = drawn(make_learner, n_epochs=2)
    figure = cb.plot_stats()
    means, stds = figure.axes
    ylabels = means.get_ylabel(), stds.get_ylabel()
    assert ylabels == ("mean of activations", "standard deviation of activations")
    assert figure.legends[0].get_title().get_text() == "module"
    assert {ax.get_xlabel() for ax in figure.axes} == {"step"}
    assert [line.get_label() for line in means.lines] == NAMES
    assert [text.get_text() for text in figure.legends[0].get_texts()] == NAMES
    for ax, of in ((means, "means"), (stds, "stds")):
        expected = [[t.item() for t in getattr(s, of)] for s in cb.stats.values()]
        assert [list(line.get_ydata()) for line in ax.lines] == expected
        assert {len(line.get_ydata()) for line in ax.lines} == {6}
    colours = [to_hex(line.get_color()) for line in means.lines]
    assert colours == [to_hex(line.get_color()) for line in stds.lines]
    assert (colours[0], colours[-1]) == ("#440154", "#fde725")  # the ends of viridis
    assert len(set(colours)) == 4


def test_plot_of_one_module_is_one_line(make_learner):
    figure = drawn(make_learner, model=nn.Linear(3, 2)).plot_stats()
    assert [len(ax.lines) for ax in figure.axes] == [1, 1]


def test_plot_of_hists_has_a_panel_for_each_module(make_learner):
    cb = drawn(make_learner, bounds=(-2.0, 3.0), n_bins=7)
    figure = cb.plot_hists()
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == NAMES
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("step", "activation")
    assert bar.get_ylabel() == "share of activations"
    assert [text.get_text() for text in bar.get_yticklabels()][:2] == ["1e-5 or less", "1e-4"]
    for ax, stats in zip(panels, cb.stats.values(), strict=True):
        (image,) = ax.images
        hists = torch.stack(stats.hists)  # (3 steps, 7 bins)
        assert image.get_array().shape == (7, 3)
        assert torch.allclose(torch.tensor(image.get_array()), hists.T.clamp_min(1e-5).log10())
        assert tuple(image.get_extent()) == (0, 3, -2.0, 3.0)
        assert image.origin == "lower"
        assert image.get_clim() == (-5, 0)


@pytest.mark.parametrize(
    ("n_cols", "shape", "n_off"), [(4, (1, 4), 0), (3, (2, 3), 2), (2, (2, 2), 0), (9, (1, 4), 0)]
)
def test_panels_are_in_rows_of_n_cols(make_learner, n_cols, shape, n_off):
    *axes, _ = drawn(make_learner).plot_hists(n_cols=n_cols).axes  # the last is the colour bar
    spec = axes[0].get_subplotspec().get_gridspec()
    assert (spec.nrows, spec.ncols) == shape
    assert [ax.axison for ax in axes] == [True] * 4 + [False] * n_off


def test_size_of_a_panel_can_be_given(make_learner):
    cb = drawn(make_learner)
    assert cb.plot_stats(width=3, height=2).get_size_inches().tolist() == [6, 2]
    assert cb.plot_hists(n_cols=2, width=3, height=2).get_size_inches().tolist() == [6, 4]


def test_axis_says_so_when_not_every_step_was_recorded(make_learner):
    cb = drawn(make_learner, every=2)
    assert {ax.get_xlabel() for ax in cb.plot_stats().axes} == {"record, one every 2 steps"}
    assert cb.plot_hists().get_supxlabel() == "record, one every 2 steps"


@pytest.mark.parametrize("plot", ["plot_stats", "plot_hists"])
def test_plot_before_training_is_an_error(make_learner, plot):
    cb = StoreModuleStatsCB()
    learn = make_learner(cbs=[cb])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^plot.*train"):
            getattr(cb, plot)()
        learn.fit(train=False)


@pytest.mark.slow
@pytest.mark.parametrize("plot", ["plot_stats", "plot_hists"])
def test_plot_draws_in_a_file(make_learner, tmp_path, plot):
    path = tmp_path / "a.png"
    getattr(drawn(make_learner), plot)().savefig(path, dpi=20)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [("_stem", "head"), ("_stem", "_head")], ids=["one", "all"])
def test_legend_has_modules_of_private_names_too(make_learner, names):
    class Private(nn.Module):
        def __init__(self):
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(3, 2))

        def forward(self, x):
            return sum(getattr(self, name)(x) for name in names)

    figure = drawn(make_learner, model=Private()).plot_stats()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{name} Linear" for name in names]
