from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minilearn import (
    MLP,
    BatchSchedulerCB,
    Callback,
    CancelFitException,
    DataLoaders,
    Learner,
    MetricsCB,
    RecorderCB,
    TensorLoader,
    set_seed,
)


def same(a, b):
    """Whether two models have bitwise the same parameters."""
    return all(p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def copy_of(model):
    copy = MLP(3, 5, 2) if isinstance(model, MLP) else nn.Linear(3, 2)
    copy.load_state_dict(model.state_dict())
    return copy


def train_by_hand(model, opt, batches, n_epochs):
    for _ in range(n_epochs):
        for x, y in batches:
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()


def rows(learn, *names):
    return [tuple(row[name] for name in names) for row in learn.history]


# A fit is torch's loop ----------------------------------------------------------------------------


@pytest.mark.parametrize("opt_func", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("default_cbs", [False, True])
def test_a_fit_is_bitwise_a_hand_written_loop(opt_func, default_cbs, make_learner):
    learn = make_learner(model=MLP(3, 5, 2), opt_func=opt_func, default_cbs=default_cbs)
    model = copy_of(learn.model)
    fused = {} if opt_func is torch.optim.RMSprop else {"fused": True}
    train_by_hand(model, opt_func(model.parameters(), 0.1, **fused), list(learn.dls.train), 2)
    learn.fit(2)
    assert same(learn.model, model)


def test_a_second_fit_keeps_the_optimizer_s_state(make_learner):
    learn = make_learner()
    model = copy_of(learn.model)
    opt = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    batches = list(learn.dls.train)
    train_by_hand(model, opt, batches, 1)
    opt.param_groups[0]["lr"] = 0.05
    train_by_hand(model, opt, batches, 2)
    learn.fit()
    learn.fit(2, lr=0.05)
    assert same(learn.model, model)


def test_reset_opt_forgets_the_optimizer_s_state(make_learner):
    learn = make_learner()
    model = copy_of(learn.model)
    for n_epochs in (1, 2):
        opt = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
        train_by_hand(model, opt, list(learn.dls.train), n_epochs)
    learn.fit()
    learn.fit(2, reset_opt=True)
    assert same(learn.model, model)


def test_stale_gradients_before_a_fit_do_not_matter(make_learner):
    clean, stale = make_learner(), make_learner()
    F.cross_entropy(stale.model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
    clean.fit()
    stale.fit()
    assert same(clean.model, stale.model)


def test_gradients_of_a_fit_that_broke_off_do_not_matter(make_learner, at):
    def interrupt(learn):
        raise KeyboardInterrupt

    clean, broken = make_learner(opt_func=torch.optim.SGD), make_learner(opt_func=torch.optim.SGD)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(cbs=at("after_backward", interrupt))
    clean.fit()
    broken.fit()
    assert same(clean.model, broken.model)


def test_the_one_liner_of_the_readme_works_as_it_stands(capsys):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 4, 4, generator=rng)
    data = TensorLoader(x, (x.mean((1, 2, 3)) > 0).long(), bs=16, shuffle=True)
    model, dls = MLP(16, 8, 2), DataLoaders(data, data)
    learn = Learner(model, dls, cbs=[BatchSchedulerCB(OneCycleLR), RecorderCB()])
    learn.fit(6)
    assert rows(learn, "epoch", "train") == [(i, phase) for i in range(6) for phase in ("train", "eval")]
    recs = learn.cbs[2].recs
    assert {name: len(values) for name, values in recs.items()} == {"lr": 24, "mom": 24, "loss": 24}
    opt = torch.optim.AdamW(MLP(16, 8, 2).parameters())
    sched = OneCycleLR(opt, max_lr=1e-3, total_steps=24)  # the default lr is the peak
    expected = []
    for _ in range(24):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        sched.step()
    assert recs["lr"] == expected
    assert learn.history[-1]["loss"] < learn.history[0]["loss"]
    assert capsys.readouterr().out.count("MulticlassAccuracy") == 12


# History, epochs, steps ---------------------------------------------------------------------------


def test_history_has_a_row_per_epoch_and_phase_that_counts_on(make_learner):
    learn = make_learner(cbs=MetricsCB())
    learn.fit(2)
    learn.fit(1, valid=False)
    learn.fit(1, train=False)
    learn.fit(1)
    assert rows(learn, "epoch", "train") == [
        *((0, "train"), (0, "eval"), (1, "train"), (1, "eval")),
        *((2, "train"), (2, "eval"), (3, "train"), (3, "eval")),
    ]


def test_a_row_has_the_mean_loss_over_samples_and_the_accuracy(make_learner):
    x = torch.tensor([[2.0], [1.0], [-1.0]])
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))  # predicts class 0 where x > 0
    valid = TensorLoader(x, torch.tensor([0, 1, 1]), bs=2)
    learn = make_learner(model=model, dls=DataLoaders(valid, valid), cbs=MetricsCB())
    row = learn.validate()
    expected = F.cross_entropy(model(x), torch.tensor([0, 1, 1])).item()
    assert row["loss"] == pytest.approx(expected, rel=1e-6)
    assert row["MulticlassAccuracy"] == pytest.approx(2 / 3)


def test_fields_of_the_loop_are_those_of_the_docstring(make_learner, at):
    seen = []

    def look(learn):
        seen.append((learn.phase, learn.training, learn.epoch, learn.batch_idx, learn.n_steps))

    learn = make_learner(n_batches=2)
    learn.fit(2, cbs=at("before_batch", look))
    assert seen == [
        *(("train", True, 0, 0, 0), ("train", True, 0, 1, 1), ("eval", False, 0, 0, 2)),
        *(("train", True, 1, 0, 2), ("train", True, 1, 1, 3), ("eval", False, 1, 0, 4)),
    ]
    assert (learn.n_epochs, learn.epoch_steps, learn.total_steps, learn.n_epochs_trained) == (2, [2, 2], 4, 2)


def test_a_fit_counts_its_own_epochs_and_steps_from_0(make_learner, at):
    seen = []
    learn = make_learner(n_batches=2, n_valid=0)
    for _ in range(2):
        learn.fit(cbs=at("before_step", lambda learn: seen.append((learn.epoch, learn.n_steps))))
    assert seen == [(0, 0), (0, 1)] * 2


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]), strict=True)


def test_a_loader_without_length_leaves_the_plan_open(make_learner):
    learn = make_learner(dls={"train": DataLoader(Stream(), batch_size=2)})
    learn.fit(2)
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([None, None], None, 4)


class EpochLoader(list):
    def __init__(self, batches):
        super().__init__(batches)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_set_epoch_gets_the_epoch_of_the_learner_s_life(make_learner):
    loader = EpochLoader([(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))])
    learn = make_learner(dls={"train": loader, "eval": loader})
    learn.fit(2)
    learn.fit(1, train=False)
    learn.validate()
    learn.fit(2)
    assert loader.epochs == [0, 1, 2, 3]


def test_set_epoch_reaches_the_sampler_too(make_learner):
    class Sampler(torch.utils.data.SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs += (epoch,)

    data = TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    sampler = Sampler(data)
    make_learner(dls={"train": DataLoader(data, sampler=sampler)}).fit(2)
    assert sampler.epochs == (0, 1)


def test_the_same_seed_gives_the_same_weights(make_learner):
    models = []
    for _ in range(2):
        set_seed(1)
        x, y = torch.randn(16, 3), torch.arange(16) % 2
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2))
        learn = make_learner(model=model, dls={"train": TensorLoader(x, y, bs=4, shuffle=True)})
        learn.fit(2)
        models.append(model)
    assert same(*models)


def test_looking_at_a_batch_before_training_draws_no_random_numbers(make_learner):
    x, y = torch.randn(16, 3), torch.arange(16) % 2
    firsts = []
    dls = {"train": DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)}
    set_seed(2)
    expected = next(iter(dls["train"]))[0]
    set_seed(2)
    learn = make_learner(dls=dls)
    set_seed(2)
    learn.model.register_forward_pre_hook(lambda _, args: firsts.append(args[0]))
    learn.fit()
    assert firsts[0].equal(expected)


# Kinds of batches ---------------------------------------------------------------------------------

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1])


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, a, b):
        return self.linear(a + b)


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "inputs", [(X, X), [X, X], Pair(X, X), {"a": X, "b": X}], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("default_cbs", [False, True])
def test_nested_inputs_are_the_model_s_arguments(inputs, default_cbs, make_learner):
    learn = make_learner(model=Sum(), dls={"train": [(inputs, Y)]}, default_cbs=default_cbs)
    linear = copy_of(learn.model.linear)
    train_by_hand(linear, torch.optim.AdamW(linear.parameters(), 0.1, fused=True), [(2 * X, Y)], 1)
    learn.fit()
    assert same(learn.model.linear, linear)


def test_float_targets_train_by_mean_squared_error(make_learner):
    learn = make_learner(regression=True, opt_func=torch.optim.SGD, n_batches=1)
    (x, y), weight = next(iter(learn.dls.train)), learn.model.weight.detach().clone()
    residual = learn.model(x).detach() - y  # (4, 1)
    learn.fit()
    assert learn.loss_func is F.mse_loss
    torch.testing.assert_close(learn.model.weight, weight - 0.1 * (2 * residual * x).mean(0, keepdim=True))


def test_a_callback_may_own_get_loss_and_call_the_learner_s(make_learner):
    class Half(MetricsCB):
        def get_loss(self, learn):
            learn.get_loss()
            learn.loss = learn.loss / 2

    plain, half = make_learner(cbs=MetricsCB()), make_learner(cbs=Half())
    assert half.validate()["loss"] == pytest.approx(plain.validate()["loss"] / 2)


# validate -----------------------------------------------------------------------------------------


def test_validate_returns_a_row_and_leaves_the_learner_as_it_was(make_learner):
    learn = make_learner(cbs=MetricsCB())
    learn.fit()
    history, dls, model = list(learn.history), learn.dls, copy_of(learn.model)
    row = learn.validate()
    assert {k: v for k, v in row.items() if k != "time_s"} == {
        k: v for k, v in history[1].items() if k != "time_s"
    }
    assert learn.history == history
    assert learn.dls is dls
    assert same(learn.model, model)


def test_validate_takes_another_loader(make_learner):
    learn = make_learner(cbs=MetricsCB())
    assert learn.validate(learn.dls.train)["loss"] != learn.validate()["loss"]
    assert learn.validate([(X, Y)])["loss"] == pytest.approx(F.cross_entropy(learn.model(X), Y).item())


def test_validate_before_any_fit_builds_no_optimizer(make_learner):
    learn = make_learner(cbs=MetricsCB())
    learn.validate()
    assert learn.opt is None
    assert all(p.grad is None for p in learn.model.parameters())


def test_validate_without_metrics_gives_an_empty_row(make_learner):
    assert make_learner().validate() == {}


def test_validate_runs_without_gradients_and_fit_with(make_learner, at):
    seen = []
    learn = make_learner(
        n_batches=1, cbs=at("after_predict", lambda learn: seen.append(learn.preds.requires_grad))
    )
    learn.fit()
    learn.validate()
    assert seen == [True, False, False]


INSIDE = [
    *("before_fit", "before_epoch", "before_train", "before_batch", "after_predict", "after_loss"),
    *("after_backward", "before_step", "after_step", "after_batch", "after_train", "before_validate"),
    *("after_validate", "after_epoch", "after_fit", "cleanup_batch", "cleanup_train", "cleanup_epoch"),
]


@pytest.mark.parametrize("order", [-60, 0, 100])
@pytest.mark.parametrize("event", INSIDE)
def test_validate_inside_a_fit_changes_nothing_of_it(event, order, make_learner, at):
    plain, inside = make_learner(cbs=MetricsCB()), make_learner(cbs=MetricsCB())
    found = []

    def validate(learn):
        if not running:  # this hook runs in its own validate too
            running.append(event)
            found.append(learn.validate([(X, Y)]))
            running.clear()

    running = []
    plain.fit(2)
    inside.fit(2, cbs=at(event, validate, order))
    assert found[0]["train"] == "eval"
    names = ("MulticlassAccuracy", "loss", "epoch", "train")
    assert rows(inside, *names) == rows(plain, *names)
    assert same(inside.model, plain.model)
    assert inside.n_steps == plain.n_steps


def test_fields_are_those_of_the_batch_after_a_validate_inside_it(make_learner, at):
    def look(learn):
        names = ("dl", "training", "batch", "batch_idx", "preds", "loss")
        before = [getattr(learn, name) for name in names]
        learn.validate([(X, Y), (X, Y)])
        assert all(getattr(learn, name) is value for name, value in zip(names, before, strict=True))
        assert learn.model.training
        assert torch.is_grad_enabled()
        looked.append(True)

    looked = []
    make_learner().fit(valid=False, cbs=at("after_step", look))
    assert len(looked) == 3


def test_a_failing_validate_leaves_the_learner_usable(make_learner):
    learn = make_learner()
    dls = learn.dls
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        learn.validate([(torch.ones(4, 7), Y)])
    assert learn.dls is dls
    assert not learn.is_fitting
    learn.fit()


# predict ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dl",
    [
        [(X[:2], Y[:2]), (X[2:], Y[2:])],
        [X[:2], X[2:]],
        DataLoader(TensorDataset(X), batch_size=3),
        DataLoader(TensorDataset(X, Y), batch_size=3),
        TensorLoader(X, Y, bs=3),
    ],
    ids=["pairs", "inputs alone", "dataset of inputs", "dataset", "tensor loader"],
)
@pytest.mark.parametrize("default_cbs", [False, True])
def test_predict_gives_all_predictions_in_the_loader_s_order(dl, default_cbs, make_learner):
    learn = make_learner(default_cbs=default_cbs)
    preds = learn.predict(dl)
    assert preds.equal(torch.cat([learn.model(X[:3]), learn.model(X[3:])]))
    assert not preds.requires_grad
    assert learn.history == []


def test_predict_is_in_evaluation_mode(make_learner):
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2))
    assert make_learner(model=model).predict([X]).equal(model[1](X))


def test_predict_takes_inputs_that_are_a_dict(make_learner):
    model = Sum()
    assert make_learner(model=model).predict([{"a": X, "b": X}]).equal(model.linear(2 * X))


def test_predictions_that_are_nested_keep_their_form(make_learner):
    class Two(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"one": out, "two": (out + 1, out + 2)}

    model = Two(3, 2)
    preds = make_learner(model=model).predict([X[:2], X[2:]])
    one = nn.Linear.forward(model, X)
    assert preds["one"].equal(one)
    assert [p.equal(one + i) for i, p in enumerate(preds["two"], 1)] == [True, True]


def test_predict_inside_a_fit_changes_nothing_of_it(make_learner, at):
    plain, inside = make_learner(cbs=MetricsCB()), make_learner(cbs=MetricsCB())
    plain.fit()
    inside.fit(cbs=at("after_step", lambda learn: learn.predict([X])))
    assert rows(inside, "loss") == rows(plain, "loss")
    assert same(inside.model, plain.model)


def test_predict_of_an_empty_loader_is_an_error(make_learner):
    with pytest.raises(ValueError, match=r"given loader.*0 batches"):
        make_learner().predict([])


def test_a_subclass_that_owns_predict_still_has_predict_of_a_loader():
    class Doubled(Learner):
        def predict(self):
            self.preds = 2 * self.model(self.xb)

    class Child(Doubled):
        pass

    model = nn.Linear(3, 2)
    for cls in (Doubled, Child):
        learn = cls(model, {"train": [(X, Y)]}, default_cbs=False)
        assert learn.predict([X]).equal(2 * model(X))
    learn.fit()


# Modes --------------------------------------------------------------------------------------------


def modes(model):
    return [module.training for module in model.modules()]


def with_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize(
    "run",
    [lambda learn: learn.fit(), lambda learn: learn.validate(), lambda learn: learn.predict([X])],
    ids=["fit", "validate", "predict"],
)
def test_modules_are_left_in_the_modes_in_which_they_were_found(run, evaluate, make_learner):
    model = with_norm().train(not evaluate)
    model[1].train(evaluate)
    before = modes(model)
    run(make_learner(model=model))
    assert modes(model) == before


def test_modules_are_in_their_modes_after_an_error(make_learner, at):
    model = with_norm()
    model[1].eval()
    with pytest.raises(ZeroDivisionError):
        make_learner(model=model, cbs=at("after_validate", lambda learn: 1 / 0)).fit()
    assert modes(model) == [True, True, False, True]


def test_a_norm_put_into_evaluation_stays_so_in_training(make_learner, at):
    model, seen = with_norm(), []
    model[1].eval()
    model[1].running_mean.fill_(0.5)
    learn = make_learner(model=model, cbs=at("after_predict", lambda learn: seen.append(modes(model))))
    learn.fit(2)
    train, valid = [True, True, False, True], [False] * 4
    assert seen == [train, train, train, valid] * 2
    assert model[1].running_mean.tolist() == [0.5] * 4


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(make_learner, at):
    model, seen = with_norm().eval(), []
    learn = make_learner(model=model, cbs=at("after_predict", lambda learn: seen.append(modes(model))))
    learn.fit(valid=False)
    assert seen == [[True] * 4] * 3


# A fit that ends early ----------------------------------------------------------------------------


def test_a_cancelled_fit_leaves_a_learner_that_can_fit_again(make_learner, at):
    def stop(learn):
        raise CancelFitException

    learn = make_learner(cbs=MetricsCB())
    learn.fit(5, cbs=at("after_train", stop))
    assert rows(learn, "epoch", "train") == [(0, "train")]
    assert not learn.is_fitting
    learn.fit()
    assert rows(learn, "epoch", "train")[1:] == [(1, "train"), (1, "eval")]


def test_a_fit_without_a_valid_loader_only_trains(make_learner):
    learn = make_learner(n_valid=0, cbs=MetricsCB())
    learn.fit()
    assert rows(learn, "train") == [("train",)]


def test_lr_find_gives_a_suggestion_and_leaves_the_model(make_learner):
    learn = make_learner(cbs=MetricsCB())
    model = copy_of(learn.model)
    finder = learn.lr_find(n_steps=60)
    assert 1e-6 < finder.suggestion < 10
    assert same(learn.model, model)
    assert learn.opt is None


# What a first user met ------------------------------------------------------------------------------


def test_a_replaced_layer_needs_a_new_optimizer(make_learner):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    learn = make_learner(model=model)
    learn.fit()
    model[2] = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"2.weight, 2.bias \(2.*reset_opt"):
        learn.fit()
    before = model[2].weight.detach().clone()
    learn.fit(reset_opt=True)
    assert not torch.equal(before, model[2].weight)


@pytest.mark.parametrize("value", [1e-2, 1, 0])
def test_an_lr_in_the_place_of_train_is_refused(make_learner, value):
    with pytest.raises(TypeError, match=rf"fit\(train={value}\).*True.*False.*lr"):
        make_learner().fit(1, value)


def test_a_validate_inside_training_keeps_the_modes_of_modules(make_learner, at):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    modes = []
    learn = make_learner(
        model=model,
        cbs=[
            at("before_train", lambda learn: learn.model[1].eval()),
            at("after_batch", lambda learn: learn.training and learn.validate()),
            at("before_batch", lambda learn: learn.training and modes.append(learn.model[1].training)),
        ],
    )
    learn.fit()
    assert len(modes) > 1
    assert not any(modes)


def test_broken_validation_batches_are_refused_before_training(make_learner, at):
    batch = (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    steps = []
    learn = make_learner(dls={"train": [batch], "eval": [{"x": 1}]}, cbs=at("before_step", steps.append))
    with pytest.raises(ValueError, match=r"dict.*'x'"):
        learn.fit()
    assert steps == []


def test_predictions_are_in_the_order_of_the_data(make_learner):
    x = torch.arange(30.0).view(10, 3)
    loader = TensorLoader(x, torch.zeros(10, dtype=torch.long), bs=4, shuffle=True)
    model = nn.Linear(3, 2)
    preds = make_learner(model=model).predict(loader)
    torch.testing.assert_close(preds, model(x).detach())
    assert loader.shuffle
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 4, shuffle=True)
    with pytest.raises(ValueError, match=r"DataLoader.*shuffle"):
        make_learner(model=model).predict(shuffled)


def test_targets_that_a_callback_changes_are_checked_as_changed(make_learner, at):
    x, y = torch.randn(12, 3), torch.arange(12) % 6
    dls = {"train": TensorLoader(x, y, bs=4)}

    def relabel(learn):
        learn.batch = (learn.batch[0], learn.batch[1] % 2)

    make_learner(dls=dls, cbs=at("before_batch", relabel)).fit()
    with pytest.raises(ValueError, match=r"targets.*0.*5.*2 outputs"):
        make_learner(dls=dls).fit()


@pytest.mark.parametrize("loss_func", [nn.MSELoss(), nn.L1Loss(), F.smooth_l1_loss, F.huber_loss])
def test_losses_that_would_broadcast_are_refused(make_learner, loss_func):
    dls = {"train": [(torch.randn(4, 3), torch.randn(4))]}
    with pytest.raises(ValueError, match=r"preds.*\(4, 1\).*targets \(4,\)"):
        make_learner(model=nn.Linear(3, 1), dls=dls, loss_func=loss_func).fit()


@pytest.mark.parametrize(("step", "field"), [("predict", "preds"), ("get_loss", "loss")])
def test_a_step_that_returns_what_it_should_set_is_an_error(make_learner, step, field):
    cb = type("MyCB", (Callback,), {step: lambda self, learn: torch.zeros(())})()
    with pytest.raises(TypeError, match=rf"MyCB.{step}.*learn.{field}"):
        make_learner(cbs=cb).fit()


def test_callbacks_are_not_assigned(make_learner):
    with pytest.raises(AttributeError, match="cbs"):
        make_learner().cbs = []


def test_no_graph_is_kept_after_a_fit(make_learner):
    learn = make_learner()
    learn.fit(valid=False)
    assert (learn.batch, learn.preds, learn.loss.grad_fn) == (None, None, None)


def test_a_dataset_in_the_place_of_a_loader_is_refused():
    dataset = torch.utils.data.TensorDataset(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(TypeError, match=r"dls train.*TensorDataset.*DataLoader"):
        DataLoaders(dataset)


def test_gradients_are_cleared_after_each_step(make_learner, at):
    seen = []
    look = at("after_batch", lambda learn: seen.append([p.grad for p in learn.model.parameters()]))
    make_learner(n_batches=2, n_valid=0, cbs=[look]).fit()
    assert seen == [[None, None]] * 2


def test_an_optimizer_s_own_zero_grad_is_called(make_learner):
    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append(type(self).__name__)
            super().zero_grad(set_to_none)

    calls = []
    make_learner(opt_func=Own).fit()
    assert calls == ["Own"] * 3


def test_a_zero_grad_that_was_put_on_the_optimizer_is_called(make_learner, at):
    def put(learn):
        learn.opt.zero_grad = lambda: calls.append(1)

    calls = []
    make_learner(cbs=[at("before_fit", put)]).fit()
    assert calls == [1] * 3


# What is set between fits and in hooks ------------------------------------------------------------


def lr_of(learn):
    return learn.opt.param_groups[0]["lr"]


def test_lr_that_is_set_between_fits_acts_once(make_learner):
    learn = make_learner(lr=0.1)
    learn.fit()
    learn.lr = 0.3
    learn.fit()
    assert lr_of(learn) == learn.lr == 0.3
    learn.opt.param_groups[0]["lr"] = 0.5  # by hand, later
    learn.fit()
    assert lr_of(learn) == 0.5


def test_lr_that_is_set_before_the_first_fit_is_the_optimizers(make_learner):
    learn = make_learner(lr=0.1)
    learn.lr = 0.3
    learn.fit()
    assert lr_of(learn) == 0.3


def test_lr_of_the_fit_rules_over_one_that_was_set(make_learner):
    learn = make_learner(lr=0.1)
    learn.fit()
    learn.lr = 0.3
    learn.fit(lr=0.2)
    learn.fit()
    assert lr_of(learn) == 0.2


def test_lr_that_is_set_in_a_hook_is_refused_with_what_to_write(make_learner, at):
    def change(learn):
        learn.lr = 0.2

    with pytest.raises(RuntimeError, match=r"learn\.lr = 0\.2 .*ScheduleCB\('lr'.*pg\['lr'\]"):
        make_learner(cbs=at("after_step", change)).fit()


@pytest.mark.parametrize(
    ("name", "value"),
    [("opt_func", torch.optim.SGD), ("param_groups", lambda model: [{"params": model.parameters()}])],
)
def test_new_maker_beside_a_kept_optimizer_is_refused(make_learner, name, value):
    learn = make_learner()
    learn.fit()
    setattr(learn, name, value)
    with pytest.raises(ValueError, match=rf"{name} .*reset_opt=True"):
        learn.fit()
    learn.fit(reset_opt=True)
    learn.fit()


def test_optimizer_of_the_users_own_is_kept_whatever_the_makers_are(make_learner):
    learn = make_learner()
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.1)
    learn.opt_func = torch.optim.AdamW
    learn.fit()
    assert type(learn.opt) is torch.optim.SGD


def test_dls_takes_what_the_constructor_takes(make_learner):
    learn = make_learner(n_batches=3)
    train = learn.dls.train
    learn.dls = {"train": train}
    assert isinstance(learn.dls, DataLoaders)
    assert (learn.dls.train, learn.dls.valid) == (train, None)
    with pytest.raises((TypeError, ValueError), match="train"):
        learn.dls = 7


def test_loss_that_was_inferred_is_inferred_again_from_other_data(make_learner):
    learn = make_learner()
    learn.fit()
    assert learn.loss_func is F.cross_entropy
    x = torch.randn(8, 3)
    learn.dls = {"train": [(x, x[:, :2])]}
    learn.fit()
    assert learn.loss_func is F.mse_loss


def test_loss_that_was_given_stays_with_other_data(make_learner):
    learn = make_learner(loss_func=F.cross_entropy)
    learn.fit()
    x = torch.randn(8, 3)
    learn.dls = {"train": [(x, x[:, :2].softmax(1))]}
    learn.fit()
    assert learn.loss_func is F.cross_entropy


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pred", r"learn\.preds"),
        ("n_stpes", r"learn\.n_steps"),
        ("bacth", r"learn\.batch"),
        ("epochh", r"learn\.epoch"),
        ("stop_training", "CancelFitException"),
        ("should_stop", "CancelFitException"),
    ],
)
@pytest.mark.parametrize("event", ["after_predict", "after_epoch"])
def test_field_that_looks_like_one_of_ours_is_warned_of_once(make_learner, at, name, advice, event):
    learn = make_learner(cbs=at(event, lambda learn: setattr(learn, name, True)), n_batches=3)
    with pytest.warns(UserWarning, match=rf"learn\.{name} .*{advice}") as said:
        learn.fit(3)
    assert len(said) == 1
    learn.fit(2)  # where a warning would be an error


@pytest.mark.parametrize("name", ["losses", "batches", "my_notes", "_pred", "ema"])
def test_other_fields_are_the_users_business(make_learner, at, name):
    learn = make_learner(cbs=at("after_predict", lambda learn: setattr(learn, name, 1)))
    learn.fit()  # any warning is an error here
    assert getattr(learn, name) == 1
