import pytest
import torch
from toolbox import make_learner
from torch import nn

from minilearn import Callback, CheckpointCB
from minilearn.optim.groups import by_layer


class Net(nn.Module):
    """Two blocks with a BatchNorm each, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).relu())


WITHOUT_GRADIENT = {"stem.0.bias", "body.0.bias"}  # the BatchNorm behind it takes the mean away


class WithToken(nn.Module):
    """A parameter of its own, as a vision transformer has, a body and a head."""

    def __init__(self):
        super().__init__()
        self.token, self.body, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.body(x + self.token))


def make(model=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    return make_learner(shuffle=True, model=Net() if model is None else model, **kwargs)


def trained(learn):
    return [name for name, p in learn.model.named_parameters() if p.requires_grad]


def parts_of(learn):
    """The names of the parts with a parameter that is trained."""
    return list(dict.fromkeys(name.split(".")[0] for name in trained(learn)))


def weights_of(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def changed(module, before):
    return {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}


def norms(learn):
    return learn.model.stem[1].training, learn.model.body[1].training


# What is frozen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ((), ["head"]),
        (("stem",), ["body", "head"]),
        (("stem", "head"), ["body"]),
        (("body.0",), ["stem", "body", "head"]),
        ((nn.Sequential,), ["head"]),
        ((nn.BatchNorm1d, "head"), ["stem", "body"]),
        ((nn.modules.batchnorm._BatchNorm,), ["stem", "body", "head"]),
    ],
)
def test_parts_that_are_left_to_train(which, left):
    learn = make()
    learn.freeze(*which)
    assert parts_of(learn) == left


def test_name_of_an_inner_module_freezes_it_alone():
    learn = make()
    learn.freeze("body.0", "stem")
    assert trained(learn) == ["body.1.weight", "body.1.bias", "head.weight", "head.bias"]


def test_freezing_adds_up():
    learn = make()
    learn.freeze("stem")
    learn.freeze("head")
    assert parts_of(learn) == ["body"]


def test_weights_and_statistics_of_frozen_parts_are_the_same_bit_for_bit_after_a_fit():
    learn = make(opt_func=torch.optim.AdamW)  # its weight decay would shrink them without a gradient
    learn.freeze("stem")
    before = weights_of(learn.model)
    learn.fit(2)
    moved = {name for name in before if not name.startswith("stem")}
    assert changed(learn.model, before) == moved
    assert learn.model.stem[1].num_batches_tracked == 0


def test_frozen_norm_uses_its_statistics_in_training(at):
    seen = []
    learn = make(cbs=[at("before_batch", lambda learn: seen.append((learn.training, *norms(learn))))])
    learn.freeze("stem")
    learn.fit()
    assert seen == [(True, False, True)] * 3 + [(False, False, False)]
    assert norms(learn) == (False, True)


def test_last_child_is_the_last_one_with_parameters():
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Identity()))
    learn.freeze()
    assert trained(learn) == ["2.weight", "2.bias"]


def test_other_modules_stay_in_training_mode():
    learn = make(nn.Sequential(nn.Dropout(), nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)))
    learn.freeze()
    assert all(module.training for module in learn.model.modules())


def test_parameters_of_the_model_itself_are_frozen_with_all_but_the_last_child():
    learn = make(WithToken())
    learn.freeze()
    assert trained(learn) == ["head.weight", "head.bias"]


@pytest.mark.slow
def test_compiled_model_is_frozen_by_the_names_of_the_plain_one():
    learn = make(torch.compile(Net()))
    learn.freeze()
    assert [name for name, p in learn.model._orig_mod.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    learn.unfreeze("stem.0")
    assert [p.requires_grad for p in learn.model._orig_mod.stem.parameters()] == [True, True, False, False]
    assert not learn.model._orig_mod.stem[1].training


def test_shared_module_is_known_by_each_of_its_names():
    model = nn.Sequential()
    model.a = model.b = nn.Linear(3, 3)
    model.head = nn.Linear(3, 2)
    learn = make(model)
    learn.freeze("b")
    assert trained(learn) == ["head.weight", "head.bias"]


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("stme", r"^which='stme'.*Net.*'stem'"),
        ("body.2", r"^which='body.2'.*Net.*'body.1'"),
        ("x", r"^which='x'.*Net.*stem, stem.0, stem.1, body, body.0, body.1, head"),
        ("", r"^which=''.*Net.*stem, "),
        (
            nn.Conv2d,
            r"^which=<class '.*Conv2d'>.*Net.*BatchNorm1d, Linear, Sequential",
        ),
    ],
)
def test_what_the_model_has_not_is_refused_with_what_it_has(method, wanted, message):
    learn = make()
    with pytest.raises(ValueError, match=message):
        getattr(learn, method)("stem", wanted)
    assert parts_of(learn) == ["stem", "body", "head"]
    assert norms(learn) == (True, True)


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
def test_what_is_neither_name_nor_class_is_refused_with_what_to_write(method):
    with pytest.raises(TypeError, match=r"which=2\): .*names of modules, such as 'layer1'"):
        getattr(make(), method)("stem", 2)


def test_names_of_a_compiled_model_are_those_of_the_plain_one():
    learn = make(torch.compile(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
    with pytest.raises(ValueError, match=r"^which='x'.*Sequential.*0, 1"):
        learn.freeze("x")


def test_long_list_of_names_is_cut():
    learn = make(nn.Sequential(*[nn.Linear(3, 3) for _ in range(30)]))
    with pytest.raises(ValueError, match=r", 18, 19$"):
        learn.freeze("x")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), r"Linear.*0"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), r"Sequential.*1"),
    ],
)
def test_model_without_a_last_child_is_refused(model, message):
    with pytest.raises(
        ValueError,
        match=rf"freeze\(\).*{message}",
    ):
        make(model).freeze()


def test_compiled_model_is_called_by_the_name_of_the_plain_one():
    learn = make(torch.compile(nn.Sequential(nn.Linear(3, 2))))
    with pytest.raises(ValueError, match=r"^which='x'.*Sequential"):
        learn.freeze("x")
    with pytest.raises(ValueError, match=r"Sequential.*1"):
        learn.freeze()


def test_fit_with_all_frozen_is_refused():
    learn = make()
    learn.freeze("stem", "body", "head")
    with pytest.raises(ValueError, match=r"Net.*frozen"):
        learn.fit()


# Training again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "parts", "modes"),
    [
        ((), ["stem", "body", "head"], (True, True)),
        (("body",), ["body", "head"], (False, True)),
        ((nn.BatchNorm1d,), ["stem", "body", "head"], (True, True)),
    ],
)
def test_parts_that_are_trained_again(which, parts, modes):
    learn = make()
    learn.freeze()
    assert norms(learn) == (False, False)
    learn.unfreeze(*which)
    assert parts_of(learn) == parts
    assert norms(learn) == modes
    before = weights_of(learn.model)
    learn.fit()
    moved = changed(learn.model, before)
    assert set(trained(learn)) - WITHOUT_GRADIENT <= moved
    assert ("stem.1.running_mean" in moved, "body.1.running_mean" in moved) == modes


@pytest.mark.parametrize("twice", [False, True])
def test_unfreeze_undoes_freeze_even_of_twice(twice):
    learn = make()
    for _ in range(1 + twice):
        learn.freeze()
    learn.unfreeze()
    assert len(trained(learn)) == 10
    assert norms(learn) == (True, True)


def test_norm_that_the_user_put_in_evaluation_mode_stays_in_it():
    learn = make()
    learn.model.stem[1].eval()
    learn.freeze()
    learn.unfreeze()
    assert norms(learn) == (False, True)
    before = weights_of(learn.model)
    learn.fit()
    assert norms(learn) == (False, True)
    assert "stem.1.running_mean" not in changed(learn.model, before)


def test_norm_that_the_user_put_in_evaluation_mode_after_unfreeze_stays_in_it():
    learn = make()
    learn.freeze()
    learn.unfreeze()
    learn.model.stem[1].eval()
    learn.unfreeze()
    assert norms(learn) == (False, True)


def test_norm_that_is_unfrozen_by_name_alone_moves_its_statistics_again():
    learn = make()
    learn.freeze("stem")
    learn.unfreeze("stem.1")
    assert trained(learn)[:2] == ["stem.1.weight", "stem.1.bias"]
    assert norms(learn) == (True, True)


def test_unfreeze_of_what_was_never_frozen_changes_no_mode():
    learn = make()
    learn.model.eval()
    learn.unfreeze()
    assert not any(module.training for module in learn.model.modules())


@pytest.mark.parametrize(
    "call", [lambda learn: learn.freeze(), lambda learn: (learn.freeze(), learn.unfreeze())]
)
def test_norms_alone_change_their_mode(call):
    learn = make()
    learn.model.body.eval()
    before = {name: module.training for name, module in learn.model.named_modules()}
    call(learn)
    after = {name: module.training for name, module in learn.model.named_modules()}
    assert {name for name in before if before[name] != after[name]} <= {"stem.1"}


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda learn: (learn.model.eval(), learn.freeze()), id="eval, freeze"),
        pytest.param(lambda learn: (learn.freeze(), learn.model.eval()), id="freeze, eval"),
        pytest.param(lambda learn: (learn.freeze(), learn.model.train()), id="freeze, train"),
    ],
)
def test_frozen_statistics_stay_whatever_mode_the_whole_model_is_put_in(prepare):
    learn = make()
    prepare(learn)
    before = weights_of(learn.model)
    learn.fit()
    assert {name for name in changed(learn.model, before) if not name.startswith("head")} == set()


def test_model_that_was_in_evaluation_mode_is_left_in_it():
    learn = make()
    learn.model.eval()
    learn.freeze()
    learn.fit()
    learn.unfreeze()
    assert not any(module.training for module in learn.model.modules())


# Modules that come later ------------------------------------------------------------------------------


class InsertCB(Callback):
    """Put a BatchNorm behind the first layer, at some event, once."""

    def __init__(self, event, mode=True):
        self.mode, self.seen = mode, []
        setattr(self, event, self._insert)

    def _insert(self, learn):
        if not any(isinstance(m, nn.BatchNorm1d) for m in learn.model):
            learn.model.insert(1, nn.BatchNorm1d(4, affine=False).train(self.mode))

    def after_predict(self, learn):
        self.seen += [(learn.training, m.training) for m in learn.model if isinstance(m, nn.BatchNorm1d)]


EARLY = ["prepare", "before_fit", "before_epoch", "before_train"]
LATE = ["after_step", "after_train", "before_validate", "after_validate", "after_epoch", "after_fit"]


@pytest.mark.parametrize("event", [*EARLY, *LATE])
def test_module_that_comes_in_a_fit_takes_the_mode_of_the_model(event):
    cb = InsertCB(event)
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=cb)
    for _ in range(2):
        learn.fit(2)
        assert learn.model[1].training
    wrong = [mode for training, mode in cb.seen if training != mode]
    assert len(wrong) <= (event == "before_validate")  # one batch, before modes are set again
    assert learn.model[1].num_batches_tracked >= (12 if event in EARLY else 6)


@pytest.mark.parametrize("event", [*EARLY, *LATE])
def test_module_that_comes_in_evaluation_mode_keeps_it(event):
    cb = InsertCB(event, mode=False)
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=cb)
    for _ in range(2):
        learn.fit(2)
        assert not learn.model[1].training
    assert not any(mode for _, mode in cb.seen)


def test_module_that_comes_into_a_model_in_evaluation_mode_is_left_in_it():
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=(cb := InsertCB("prepare")))
    learn.model.eval()
    for _ in range(2):
        learn.fit()
        assert [m.training for m in learn.model.modules()] == [False] * 4
    assert {mode == training for training, mode in cb.seen} == {True}


def test_module_that_comes_at_the_end_into_a_model_in_evaluation_mode_is_left_in_it():
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=InsertCB("after_fit"))
    learn.model.eval()
    learn.fit()
    assert [m.training for m in learn.model.modules()] == [False] * 4


def test_module_that_is_replaced_trains_in_every_fit():
    class SurgeryCB(Callback):
        def prepare(self, learn):
            learn.model.body[1] = nn.BatchNorm1d(4)

    learn = make(Net(), cbs=SurgeryCB())
    for _ in range(2):
        learn.fit(reset_opt=True)
        assert learn.model.body[1].training
        assert learn.model.body[1].num_batches_tracked == 3


@pytest.mark.parametrize("run", ["validate", "predict"])
def test_module_that_comes_for_a_pass_without_training_is_in_training_mode_after_it(run):
    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=(cb := InsertCB("prepare")))
    learn.validate() if run == "validate" else learn.predict(learn.dls.valid)
    assert learn.model[1].training
    assert cb.seen == [(False, False)]


def test_norm_that_comes_in_prepare_may_be_frozen_there():
    class FreezeCB(InsertCB):
        def prepare(self, learn):
            self._insert(learn)
            learn.freeze("1")

    learn = make(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), cbs=FreezeCB("before_fit"))
    learn.fit()
    assert learn.model[1].num_batches_tracked == 0
    learn.remove_cb(learn.cbs[0])
    learn.unfreeze()
    learn.fit()
    assert learn.model[1].num_batches_tracked == 3


# The optimizer ----------------------------------------------------------------------------------------


def test_optimizer_s_state_is_kept_while_its_parameters_are_frozen():
    learn = make(opt_func=torch.optim.Adam)
    learn.fit()
    weight = learn.model.stem[0].weight
    steps, avg = learn.opt.state[weight]["step"].item(), learn.opt.state[weight]["exp_avg"].clone()
    learn.freeze()
    learn.fit()
    assert learn.opt.state[weight]["step"].item() == steps == 3
    assert torch.equal(learn.opt.state[weight]["exp_avg"], avg)
    learn.unfreeze()
    learn.fit()
    assert learn.opt.state[weight]["step"].item() == 6
    assert learn.opt.state[learn.model.head.weight]["step"].item() == 9


def test_what_was_frozen_when_the_optimizer_was_made_is_trained_after_unfreeze():
    learn = make(opt_func=torch.optim.SGD)
    learn.freeze()
    learn.fit()
    opt = learn.opt
    assert set(opt.state) <= set(learn.model.head.parameters())
    learn.unfreeze()
    before = weights_of(learn.model)
    learn.fit()
    assert learn.opt is opt
    assert set(before) - changed(learn.model, before) <= WITHOUT_GRADIENT


# In a fit ---------------------------------------------------------------------------------------------


class FreezeCB(Callback):
    """Call methods of the learner at an event of an epoch: {(event, epoch): (name, *args)}."""

    def __init__(self, calls):
        self.calls = calls

    def _call(self, learn, event):
        if call := self.calls.get((event, learn.epoch)):
            getattr(learn, call[0])(*call[1:])

    def before_epoch(self, learn):
        self._call(learn, "before_epoch")

    def before_train(self, learn):
        self._call(learn, "before_train")

    def before_batch(self, learn):
        if learn.training and learn.batch_idx == 1:
            self._call(learn, "before_batch")

    def before_validate(self, learn):
        self._call(learn, "before_validate")

    def after_epoch(self, learn):
        self._call(learn, "after_epoch")


class WatchCB(Callback):
    """Keep the weights at the end of each epoch, and the modes of the norms at each batch."""

    order = 50

    def __init__(self):
        self.weights, self.modes = [], []

    def state_dict(self):
        return {}

    def before_epoch(self, learn):
        self.modes.append([])

    def after_predict(self, learn):
        self.modes[-1].append(norms(learn))

    def after_epoch(self, learn):
        self.weights.append(weights_of(learn.model))


@pytest.mark.parametrize(
    ("event", "first"),
    [("before_epoch", 0), ("before_train", 0), ("before_batch", 1), ("before_validate", 3)],
)
def test_callback_freezes_in_the_middle_of_a_fit(event, first):
    watch = WatchCB()
    learn = make(cbs=[FreezeCB({(event, 1): ("freeze", "stem")}), watch])
    learn.fit(3)
    assert watch.modes[0] == [(True, True)] * 3 + [(False, False)]
    assert watch.modes[1] == [(True, True)] * first + [(False, True)] * (3 - first) + [(False, False)]
    assert watch.modes[2] == [(False, True)] * 3 + [(False, False)]
    assert norms(learn) == (False, True)
    stem = {name for name in watch.weights[0] if name.startswith("stem")}
    assert changed(learn.model, watch.weights[1]) == set(watch.weights[1]) - stem
    assert (changed(learn.model, watch.weights[0]) & stem == set()) == (first == 0)


@pytest.mark.parametrize(
    ("event", "first"),
    [("before_epoch", 0), ("before_train", 0), ("before_batch", 1), ("before_validate", 3)],
)
def test_callback_unfreezes_in_the_middle_of_a_fit(event, first):
    watch = WatchCB()
    learn = make(cbs=[FreezeCB({(event, 1): ("unfreeze",)}), watch])
    learn.freeze("stem")
    before = weights_of(learn.model)
    learn.fit(3)
    assert watch.modes[0] == [(False, True)] * 3 + [(False, False)]
    assert watch.modes[1] == [(False, True)] * first + [(True, True)] * (3 - first) + [(False, False)]
    assert watch.modes[2] == [(True, True)] * 3 + [(False, False)]
    assert norms(learn) == (True, True)
    assert all(
        torch.equal(t, watch.weights[0][name]) for name, t in before.items() if name.startswith("stem")
    )
    assert changed(learn.model, watch.weights[1]) == set(before)


def test_callback_freezes_and_unfreezes_in_one_fit():
    watch = WatchCB()
    calls = {("before_epoch", 0): ("freeze",), ("after_epoch", 0): ("unfreeze",)}
    learn = make(cbs=[FreezeCB(calls), watch])
    learn.model.body[1].eval()
    learn.fit(2)
    assert watch.modes[0] == [(False, False)] * 4
    assert watch.modes[1] == [(True, False)] * 3 + [(False, False)]
    assert norms(learn) == (True, False)


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
def test_mode_that_a_callback_chose_stays_after_a_fit_that_broke_off(method, at):
    def act(learn):
        getattr(learn, method)()
        raise RuntimeError("broke off")

    learn = make(cbs=[at("before_batch", act)])
    if method == "unfreeze":
        learn.freeze()
    with pytest.raises(RuntimeError, match="broke off"):
        learn.fit()
    assert norms(learn) == ((False, False) if method == "freeze" else (True, True))


def test_what_is_frozen_behind_the_backward_pass_takes_no_step(at):
    def act(learn):
        if learn.n_steps == 1:
            learn.freeze("stem")
            kept.update(weights_of(learn.model.stem))

    kept = {}
    learn = make(cbs=[at("after_backward", act)], opt_func=torch.optim.SGD)
    learn.fit()
    assert changed(learn.model.stem, kept) == set()


def test_freezing_in_a_validation_inside_of_training_holds_for_the_next_batch(at):
    watch = WatchCB()

    def validate(learn):
        if learn.n_steps == 1:
            learn.validate()

    def freeze(learn):
        if learn.is_nested:
            learn.freeze("stem")

    learn = make(cbs=[at("after_step", validate), at("after_validate", freeze), watch])
    learn.fit()
    assert [modes for modes in watch.modes[0] if modes != (False, False)] == [
        (True, True),
        *[(False, True)] * 2,
    ]


# Going on with a fit ----------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stand for the end of a process."""


class KillCB(Callback):
    def __init__(self, at):
        self.at = at

    def state_dict(self):
        return {}

    def before_step(self, learn):
        if learn.n_steps == self.at:
            raise KilledError


def same_run(calls, first, at, tmp_path, n_epochs=4):
    """Train straight through, and again but killed at a step and gone on with; return both learners."""
    runs = []
    for kill in (None, at):
        folder = tmp_path / str(kill)
        for start in range(1 if kill is None else 2):
            cbs = [FreezeCB(calls), CheckpointCB(folder, every_steps=1, every_epochs=1)]
            learn = make(opt_func=torch.optim.AdamW)
            first(learn)
            if kill is not None and start == 0:
                with pytest.raises(KilledError):
                    learn.fit(n_epochs, cbs=[*cbs, KillCB(at)], resume=folder)
            else:
                if start == 1:
                    with torch.no_grad():
                        for p in learn.model.parameters():
                            p.zero_()
                learn.fit(n_epochs, cbs=cbs, resume=folder)
        runs.append(learn)
    return runs


def assert_same(a, b):
    assert changed(a.model, b.model.state_dict()) == set()
    assert trained(a) == trained(b)
    assert [m.training for m in a.model.modules()] == [m.training for m in b.model.modules()]
    states = [learn.opt.state_dict()["state"] for learn in (a, b)]
    assert states[0].keys() == states[1].keys()
    for i, state in states[0].items():
        assert all(torch.equal(t, states[1][i][name]) for name, t in state.items())


def nothing(learn):
    pass


def freeze(learn):
    learn.freeze()


# With 3 steps an epoch: in epoch 1, whose hooks run again; between two epochs; in epoch 2; before epoch 3.
@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 6, 7, 9])
@pytest.mark.parametrize(
    ("calls", "first"),
    [
        pytest.param({("before_epoch", 1): ("freeze", "stem")}, nothing, id="freeze"),
        pytest.param({("before_batch", 1): ("freeze",)}, nothing, id="freeze in a batch"),
        pytest.param({("before_epoch", 1): ("unfreeze",)}, freeze, id="unfreeze"),
        pytest.param({("before_validate", 1): ("unfreeze", "stem")}, freeze, id="unfreeze in an epoch"),
        pytest.param(
            {("before_epoch", 1): ("unfreeze",), ("before_epoch", 3): ("freeze", "body")},
            freeze,
            id="unfreeze, and freeze when it continues",
        ),
    ],
)
def test_fit_goes_on_bit_for_bit_where_a_callback_freezes_and_unfreezes(calls, first, at, tmp_path):
    assert_same(*same_run(calls, first, at, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("at", [6, 7, 9])
def test_fit_goes_on_bit_for_bit_where_what_was_frozen_before_is_unfrozen_after(at, tmp_path):
    calls = {("before_epoch", 1): ("freeze",), ("before_epoch", 3): ("unfreeze",)}
    assert_same(*same_run(calls, nothing, at, tmp_path))


@pytest.mark.slow
def test_norm_that_a_resumed_fit_found_frozen_can_be_unfrozen_after_it(tmp_path):
    straight, resumed = same_run({("before_epoch", 1): ("freeze",)}, nothing, 7, tmp_path)
    assert norms(straight) == norms(resumed) == (False, False)
    straight.unfreeze()
    resumed.unfreeze()
    assert norms(straight) == norms(resumed) == (True, True)


def frozen_then_all(folder, kill=None):
    """The script of a fine-tuning, head first; `kill`: in which fit, before which step."""
    cbs = [[KillCB(kill[1])] if kill and kill[0] == i else None for i in range(2)]
    learn = make(opt_func=torch.optim.AdamW, cbs=[CheckpointCB(folder, every_steps=1)])
    learn.freeze()
    learn.fit(1, resume=folder, cbs=cbs[0])
    learn.unfreeze()
    learn.fit(2, resume=folder, lr=0.01, cbs=cbs[1])
    return learn


@pytest.mark.slow
@pytest.mark.parametrize("kill", [(0, 2), (1, 0), (1, 1), (1, 4)])
def test_script_of_two_fits_goes_on_bit_for_bit(kill, tmp_path):
    straight = frozen_then_all(tmp_path / "straight")
    with pytest.raises(KilledError):
        frozen_then_all(tmp_path / "killed", kill)
    again = frozen_then_all(tmp_path / "killed")
    assert_same(straight, again)
    assert (again.n_epochs_trained, again.n_fits) == (3, 2)


# by_layer ---------------------------------------------------------------------------------------------


def named(groups, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


def test_group_for_each_child_with_parameters_from_inputs_to_outputs():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    groups = by_layer(model)
    assert [list(group) for group in groups] == [["params", "name"]] * 2
    assert named(groups, model) == {
        "0": ["0.weight", "0.bias"],
        "2": ["2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"],
    }


def test_parameters_of_the_model_itself_come_first_under_no_name():
    model = WithToken()
    groups = by_layer(model)
    assert [group["name"] for group in groups] == ["", "body", "head"]
    assert named(groups, model)[""] == ["token"]


def test_model_without_children_is_one_group():
    model = nn.Linear(3, 2)
    assert named(by_layer(model), model) == {"": ["weight", "bias"]}


def test_shared_parameters_are_in_the_first_group_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2] = model[0]
    assert named(by_layer(model), model) == {"0": ["0.weight", "0.bias"], "1": ["1.bias"]}


def test_compiled_model_has_the_groups_of_the_plain_one():
    model = Net()
    groups, plain = by_layer(torch.compile(model)), by_layer(model)
    assert [group["name"] for group in groups] == ["stem", "body", "head"]
    for group, other in zip(groups, plain, strict=True):
        assert all(p is q for p, q in zip(group["params"], other["params"], strict=True))


def test_frozen_parameters_are_in_their_group():
    model = Net()
    model.stem.requires_grad_(False)
    assert [group["name"] for group in by_layer(model)] == ["stem", "body", "head"]


def test_each_layer_is_trained_at_its_lr():
    learn = make(param_groups=by_layer, lr=[0.0, 0.1, 0.2], opt_func=torch.optim.SGD)
    before = weights_of(learn.model)
    learn.fit()
    assert [(group["name"], group["lr"]) for group in learn.opt.param_groups] == [
        ("stem", 0.0),
        ("body", 0.1),
        ("head", 0.2),
    ]
    moved = {name.split(".")[0] for name in changed(learn.model, before) & set(trained(learn))}
    assert moved == {"body", "head"}


def test_one_lr_is_that_of_each_layer_and_fit_sets_them_one_by_one():
    learn = make(param_groups=by_layer, lr=0.3)
    learn.fit()
    assert [group["lr"] for group in learn.opt.param_groups] == [0.3] * 3
    learn.fit(lr=[0.1, 0.2, 0.4])
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.2, 0.4]


def test_another_number_of_lrs_than_layers_is_refused():
    with pytest.raises(ValueError, match=r"lr=\[0.1, 0.2\].*3.*group"):
        make(param_groups=by_layer, lr=[0.1, 0.2]).fit()


def test_freeze_and_groups_by_layer_work_together():
    learn = make(param_groups=by_layer, lr=[0.1, 0.2, 0.3])
    learn.freeze()
    learn.fit()
    learn.unfreeze()
    before = weights_of(learn.model)
    learn.fit()
    assert changed(learn.model, before) == set(before)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.2, 0.3]
