import random
import re
import threading
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from toolbox import DecliningCB, mentions
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CancelTrainException,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    EarlyStoppingCB,
    Learner,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture, position_of
from minilearn.schedules import cosine

pytestmark = pytest.mark.slow


class Noisy(Dataset):
    """Samples with noise from every generator."""

    def __init__(self, n):
        self.x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + float(torch.rand(())) + self.rng.random()
        return self.x[i] + float(noise) / 10, int(self.x[i].sum() > 0)


class HiddenCB(DecliningCB):
    def state_dict(self):
        return {}


class FieldCB(Callback):
    """Count without a word to the training."""

    def __init__(self):
        self.seen = {}

    def after_step(self, learn):
        self.seen["n"] = self.seen.get("n", 0) + 1

    def state_dict(self):
        return {"seen": dict(self.seen)}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def full():
    """Make a learner of augmented data, dropout, BatchNorm, and callbacks with states."""

    def make(*cbs, num_workers=0, model=None, train=None):
        set_seed(3)
        loader = DatasetLoader(Noisy(20), bs=4, shuffle=True, num_workers=num_workers)
        dls = DataLoaders(train or loader, DatasetLoader(Noisy(8), bs=4))
        if model is None:
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        return Learner(model, dls, lr=0.05, cbs=[MetricsCB(), *cbs], default_cbs=False)

    return make


def held_by(learn):
    """Return all that a learner holds, with what its loaders and default callbacks are."""
    fields = ("history", "n_epochs_trained", "n_epochs", "epoch", "n_steps", "run_id", "saved_to", "n_fits")
    model = {name: t.detach().clone() for name, t in learn.model.state_dict().items()}
    opt = None if learn.opt is None else learn.opt.state_dict()
    rng = [random.getstate(), str(np.random.get_state()), torch.get_rng_state()]
    loaders = [{"epoch": dl.epoch, **dl.state_dict()} for dl in (learn.dls.train, learn.dls.valid)]
    cbs = [(id(cb), repr(sorted(vars(cb)))) for cb in learn.cbs]
    return [{name: str(getattr(learn, name)) for name in fields}, model, str(opt), rng, loaders, cbs]


def test_learner_that_can_be_resumed_passes(full):
    cbs = [BatchSchedulerCB(OneCycleLR), ScheduleCB("weight_decay", cosine), RecorderCB(), DecliningCB()]
    assert full(*cbs).verify_resume() == (
        "resumed after step 7 and in the validation of epoch 1: the same bit for bit (9 tensors of the "
        "model, the optimizer, 5 callbacks, 4 rows, random numbers); not compared, because straight runs "
        "differ in it: cbs.MetricsCB.elapsed_s, history[*].time_s"
    )


@pytest.mark.full
def test_workers_make_no_difference(full):
    said = full(RecorderCB(), num_workers=2).verify_resume(at=3, n_epochs=1)
    assert re.search(r"step 3.*bit for bit \(", said)


@pytest.mark.parametrize("at", range(1, 10))
def test_stop_may_be_anywhere_but_at_the_end(full, at):
    said = full(DecliningCB()).verify_resume(at=at, n_epochs=2)
    assert re.search(f"step {at}.*bit for bit", said)


@pytest.mark.parametrize(("at", "n_epochs"), [(None, 2), (1, 1), (4, 1), (5, 2), (9, 2), (10, 3)])
def test_epochs_go_beyond_the_stop_by_default(full, at, n_epochs):
    class LastCB(Callback):
        def after_fit(self, learn):
            lengths.append(learn.n_epochs)

    lengths = []
    full(LastCB()).verify_resume(at)
    n_resumed = 2 if at is None else 1
    assert lengths == [n_epochs] * (2 + n_resumed)  # straight runs and resumed ones


def test_stops_are_in_the_middle_of_the_second_epoch_and_in_its_validation_by_default(make_learner):
    said = "resumed after step 10 and in the validation of epoch 1: "
    assert make_learner(n_batches=7).verify_resume().startswith(said)
    assert make_learner(n_batches=2, n_valid=0).verify_resume().startswith("resumed after step 3: ")
    said = "resumed after step 3 and in the validation of epoch 0: "
    assert make_learner(n_batches=7).verify_resume(n_epochs=1).startswith(said)


def test_epochs_may_be_given(full):
    class LastCB(Callback):
        def before_epoch(self, learn):
            epochs.append(learn.n_epochs)

    epochs = []
    full(LastCB()).verify_resume(n_epochs=3)
    # Straight, twice; until the stop in epoch 1 and from there on; the same for the stop in its validation.
    assert epochs == [3] * (3 + 3 + 2 * (2 + 2))


def test_run_of_one_step_an_epoch_is_stopped_after_it(make_learner):
    learn = make_learner(n_batches=1)
    assert learn.verify_resume().startswith("resumed after step 2 and")


@pytest.mark.parametrize("valid", [True, False])
def test_arguments_of_fit_go_on_to_it(full, valid):
    lrs, rows = [], []

    class LookCB(Callback):
        def before_fit(self, learn):
            lrs.append(learn.opt.param_groups[0]["lr"])

        def after_fit(self, learn):
            rows.append(len(learn.history))

    said = full().verify_resume(lr=0.25, valid=valid, cbs=LookCB())
    assert lrs == [0.25] * (4 + 2 * valid)
    assert rows == [2 * (1 + valid)] * (3 + valid)
    assert f", {2 * (1 + valid)} rows" in said


def test_callbacks_of_the_fit_are_copied_for_each_run(full):
    cbs = [DecliningCB(), RecorderCB()]
    assert "bit for bit" in full().verify_resume(cbs=cbs)
    assert (cbs[0].n, cbs[1].recs) == (0, {})
    with pytest.raises(RuntimeError, match=r"loss.*step 7"):
        full().verify_resume(cbs=[HiddenCB()])


# The learner stays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_fits", [0, 1, 2])
def test_learner_stays_as_it_was(full, n_fits):
    recorder, count = RecorderCB(), DecliningCB()
    learn = full(recorder, count, BatchSchedulerCB(OneCycleLR))
    for _ in range(n_fits):
        learn.fit()
    recs, before = {k: list(v) for k, v in recorder.recs.items()}, held_by(learn)
    learn.verify_resume()
    assert first_difference(before, held_by(learn)) == ""
    assert (recorder.recs, count.n) == (recs, n_fits * (5 + 2))
    assert (learn.batch, learn.is_fitting, learn.run.source) == (None, False, None)


def test_learner_trains_afterwards_as_if_nothing_had_been(full):
    ends = []
    for verify in (False, True):
        learn = full(DecliningCB(), BatchSchedulerCB(OneCycleLR))
        learn.fit()
        if verify:
            learn.verify_resume()
        learn.fit()
        end = capture(learn, position_of(learn))
        ends.append({name: end[name] for name in ("model", "opt", "rng", "fields", "position", "loaders")})
    assert first_difference(*ends) == ""


def test_learner_stays_as_it_was_when_it_fails(full):
    learn = full(HiddenCB())
    learn.fit()
    before = held_by(learn)
    with pytest.raises(RuntimeError):
        learn.verify_resume()
    assert first_difference(before, held_by(learn)) == ""


@pytest.mark.parametrize("n_fits", [1, 2])
def test_learner_that_was_trained_before_passes(full, n_fits):
    learn = full(DecliningCB(), RecorderCB(), BatchSchedulerCB(OneCycleLR), EarlyStoppingCB(patience=1))
    for _ in range(n_fits):
        learn.fit()
    assert f"{4 + 2 * n_fits} rows" in learn.verify_resume()


def test_data_is_not_copied(full, make_learner):
    learn, seen = full(), []
    look = type("LookCB", (Callback,), {"before_fit": lambda self, learn: seen.append(learn)})
    learn.verify_resume(cbs=look())
    assert all(other.model is not learn.model for other in seen)
    assert all(other.dls.train.dataset is not learn.dls.train.dataset for other in seen)
    assert all(other.dls.train.dataset.x is learn.dls.train.dataset.x for other in seen)
    learn, seen[:] = make_learner(), []
    learn.verify_resume(cbs=look())
    assert all(other.dls.train.tensors[0] is learn.dls.train.tensors[0] for other in seen)


def test_nothing_is_printed(make_learner, capsys):
    learn = make_learner(cbs=[ProgressCB(), EarlyStoppingCB()], default_cbs=True)
    learn.verify_resume()
    with pytest.raises(RuntimeError):
        learn.verify_resume(cbs=[HiddenCB()])
    assert capsys.readouterr() == ("", "")


def test_default_callbacks_take_part_but_for_the_progress(make_learner):
    learn = make_learner(default_cbs=True)
    before = learn.cbs
    assert "2 callbacks, 4 rows" in learn.verify_resume()
    assert learn.cbs == before


def test_progress_with_a_console_is_left_out(make_learner):
    text = StringIO()
    learn = make_learner(cbs=[ProgressCB(console=Console(file=text, force_terminal=True)), MetricsCB()])
    assert "bit for bit" in learn.verify_resume()
    assert text.getvalue() == ""


@pytest.mark.parametrize("trained", [False, True])
def test_checkpoints_of_the_learner_are_left_alone(make_learner, tmp_path, trained):
    learn = make_learner(cbs=[CheckpointCB(tmp_path / "a", every_steps=1)])
    if trained:
        learn.fit()
    before = [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("a/*"))]
    run_id, n_fits, saved_to = learn.run_id, learn.n_fits, learn.saved_to
    assert "bit for bit" in learn.verify_resume()
    assert [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("a/*"))] == before
    assert (learn.run_id, learn.n_fits, learn.saved_to) == (run_id, n_fits, saved_to)
    learn.fit()
    assert learn.n_fits == n_fits + 1


@pytest.mark.parametrize("kind", [ProgressCB, CheckpointCB])
def test_progress_and_checkpoints_of_the_fit_are_left_out_too(make_learner, tmp_path, capsys, kind):
    cb = CheckpointCB(tmp_path / "a") if kind is CheckpointCB else ProgressCB()
    assert "bit for bit" in make_learner(cbs=[MetricsCB()]).verify_resume(cbs=[cb])
    assert not (tmp_path / "a").exists()
    assert capsys.readouterr() == ("", "")


# What is found ----------------------------------------------------------------------------------------


class Remembering(Dataset):
    """A dataset whose samples depend on how many were read before."""

    def __init__(self):
        self.n_read = torch.zeros(1)
        self.counts = {}

    def __len__(self):
        return 16

    def __getitem__(self, i):
        self.counts[i] = self.counts.get(i, 0) + 1
        return torch.full((3,), float(self.counts[i] + i)), i % 2


def test_dataset_with_memory_is_found(full):
    learn = full(train=DatasetLoader(Remembering(), bs=4))
    message = r"batch.*step 6.*seed, epoch.*index"
    with pytest.raises(RuntimeError, match=message):
        learn.verify_resume(at=6)


def test_dataset_that_the_straight_runs_share_is_found(full):
    class Sharing(Remembering):
        def __getitem__(self, i):
            Remembering.total += 1
            return torch.full((3,), float(Remembering.total)), i % 2

    Remembering.total = 0
    message = r"^two straight runs.*batch.*step 0.*dataset.*generator"
    with pytest.raises(RuntimeError, match=message):
        full(train=DatasetLoader(Sharing(), bs=4)).verify_resume()


@pytest.mark.parametrize("at", [1, 3])
def test_callback_that_hides_state_is_found(full, at):
    message = rf"loss.*step {at}.*random numbers.*checkpoint"
    with pytest.raises(RuntimeError, match=message):
        full(HiddenCB()).verify_resume(at=at)


def test_callback_that_changes_the_step_from_hidden_state_is_found(full):
    class ShrinkCB(HiddenCB):
        def after_loss(self, learn):
            pass

        def before_step(self, learn):
            self.n += 1
            torch._foreach_div_([p.grad for p in learn.model.parameters()], self.n**2)
            learn.model[3].bias.grad.neg_() if self.n % 2 else None

    message = r"weights.*step 2.*optimizer.*callback"
    with pytest.raises(RuntimeError, match=message):
        full(ShrinkCB()).verify_resume(at=2)


def test_state_that_only_the_end_shows_is_found(full):
    message = r"cbs\.FieldCB\.seen\.n: 5.*3"
    with pytest.raises(RuntimeError, match=message):
        full(FieldCB()).verify_resume(at=2)


def test_random_numbers_at_the_end_are_compared(full):
    class DrawCB(HiddenCB):
        def after_loss(self, learn):
            pass

        def after_fit(self, learn):
            torch.rand(self.n)

        def after_step(self, learn):
            self.n += 1

    with pytest.raises(RuntimeError, match=r"rng\.torch"):
        full(DrawCB()).verify_resume()


def test_callbacks_of_the_fit_are_compared_at_the_end(full):
    with pytest.raises(RuntimeError, match=r"cbs\.FieldCB\.seen\.n: 10.*3"):
        full().verify_resume(cbs=FieldCB())


class WithMemory(nn.Module):
    """A model that counts its calls, not in a buffer."""

    def __init__(self):
        super().__init__()
        self.linear, self.n_calls = nn.Linear(3, 2), 0

    def forward(self, x):
        self.n_calls += self.training
        return self.linear(x) * self.n_calls


def test_model_with_state_in_a_plain_attribute_passes(full):
    assert "bit for bit" in full(model=WithMemory()).verify_resume()


def test_model_with_the_same_state_in_a_buffer_passes(full):
    model = WithMemory()
    del model.n_calls
    model.register_buffer("n_calls", torch.zeros((), dtype=torch.int64), persistent=False)
    assert "(3 tensors" in full(model=model).verify_resume()


def test_runs_that_are_never_alike_are_found(full):
    class EntropyCB(Callback):
        def after_loss(self, learn):
            if learn.n_steps == 1:
                learn.loss = learn.loss * (1 + random.SystemRandom().random())

    message = r"^two straight runs.*loss.*step 1"
    with pytest.raises(RuntimeError, match=message):
        full(EntropyCB()).verify_resume()


def test_runs_of_another_length_are_found(full):
    class CutCB(Callback):
        def before_fit(self, learn):
            runs.append(learn)

        def after_step(self, learn):
            if len(runs) == 2 and learn.n_steps == 3:
                raise CancelTrainException

    runs = []
    with pytest.raises(RuntimeError, match=r"^two straight runs.*step 2"):
        full(CutCB()).verify_resume()


def test_what_differs_between_straight_runs_is_said_and_not_compared(full):
    class ClockCB(Callback):
        def __init__(self):
            self.marks, self.n = [], 0

        def after_step(self, learn):
            self.n += 1
            self.marks.append(random.SystemRandom().random())

    said = full(ClockCB()).verify_resume()
    assert said.endswith("in it: cbs.ClockCB.marks[*], cbs.MetricsCB.elapsed_s, history[*].time_s")


def test_where_all_is_compared_nothing_more_is_said(make_learner):
    said = make_learner().verify_resume()
    parts = ("step 4", "bit for bit", "2 tensors", "optimizer", "0 callbacks", "0 rows", "random numbers)")
    assert re.fullmatch(mentions(" ... ".join(("", *parts))), said)


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, -1, 1.0, True, "2"])
def test_at_is_a_number_of_steps(make_learner, at):
    with pytest.raises(ValueError, match=rf"^verify_resume\(at={at!r}\).*>= 1"):
        make_learner().verify_resume(at=at)


@pytest.mark.parametrize("at", [3, 7])
def test_at_beyond_the_fit_is_refused(make_learner, at):
    message = rf"^verify_resume\(at={at}\).*3 steps.*n_epochs=1"
    with pytest.raises(ValueError, match=message):
        make_learner(n_batches=3).verify_resume(at=at, n_epochs=1)


def test_epochs_of_a_loader_without_length_are_to_be_given(make_learner):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.ones(3), torch.tensor(0))] * 8)

    learn = make_learner(dls={"train": DataLoader(Stream(), 4)})
    with pytest.raises(ValueError, match=r"train loader.*n_epochs"):
        learn.verify_resume()


def test_loader_that_cannot_be_resumed_is_refused(make_learner):
    data = TensorDataset(torch.ones(12, 3), torch.zeros(12, dtype=torch.int64))
    learn = make_learner(dls={"train": DataLoader(data, 4)})
    with pytest.raises(ValueError, match=r"dls.train.*DataLoader"):
        learn.verify_resume()


def test_callback_that_cannot_be_saved_is_refused(make_learner):
    class StreamCB(Callback):
        def before_fit(self, learn):
            self.numbers = iter([1])

    with pytest.raises(TypeError, match=r"^StreamCB\.numbers.*list_iterator"):
        make_learner(cbs=[StreamCB()]).verify_resume()


def test_callback_that_cannot_be_copied_is_named(make_learner):
    class LockCB(Callback):
        def __init__(self):
            self.lock = threading.Lock()

        def state_dict(self):
            return {}

    message = r"^verify_resume.*LockCB\(\).*\(cannot pickle '_thread.lock'"
    with pytest.raises(TypeError, match=message):
        make_learner(cbs=[DecliningCB(), LockCB()]).verify_resume()


def test_learner_that_cannot_be_copied_is_refused(make_learner):
    learn = make_learner(cbs=[DecliningCB()])
    learn.model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^verify_resume.*learner.*copied"):
        learn.verify_resume()


def test_misspelt_argument_of_fit_is_refused(make_learner):
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        make_learner().verify_resume(epochs=3)


# What is trained, wherever it is ----------------------------------------------------------------------


class HidesCB(Callback):
    """Train something of its own, of which no checkpoint has anything, and which changes nothing else."""

    def __init__(self, make):
        torch.manual_seed(0)
        self.kept = make()
        params = [p for _, x in self._all() for p in (x.parameters() if isinstance(x, nn.Module) else [x])]
        self.opt = torch.optim.SGD(params, 0.1)

    def _all(self):
        kept = self.kept
        if isinstance(kept, dict):
            return list(kept.items())
        return list(enumerate(kept)) if isinstance(kept, list | tuple) else [("", kept)]

    def state_dict(self):
        return {}

    def after_step(self, learn):
        for _, x in self._all():
            (x(learn.xb) if isinstance(x, nn.Module) else x).square().mean().backward()
        self.opt.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 1),
        lambda: nn.Parameter(torch.ones(2)),
        lambda: [nn.Linear(3, 1)],
        lambda: (nn.Linear(3, 1), nn.Linear(3, 2)),
        lambda: {"a": nn.Linear(3, 1)},
        lambda: [nn.Parameter(torch.ones(2))],
        lambda: nn.Sequential(nn.BatchNorm1d(3)),
        lambda: nn.ModuleDict({"a": nn.Linear(3, 1)})["a"],
    ],
)
@pytest.mark.parametrize("at", [None, 2])
def test_what_is_trained_and_in_no_checkpoint_is_found(make_learner, make, at):
    with pytest.raises(RuntimeError, match=r"HidesCB\.(kept|opt).*lacks"):
        make_learner(n_batches=4, n_valid=2, cbs=[HidesCB(make)]).verify_resume(at)


class PeeksCB(HiddenCB):
    """Change training by what was seen in validation, or in the first epoch; no checkpoint has it."""

    def __init__(self, when):
        self.n, self.when = 0, when

    def after_loss(self, learn):
        is_here = not learn.training if self.when == "validation" else learn.training and learn.epoch == 0
        self.n += is_here
        if learn.training and learn.epoch:
            learn.loss = learn.loss * (1 + self.n)


@pytest.mark.parametrize("when", ["validation", "the first epoch"])
def test_stops_of_a_later_epoch_find_what_the_first_one_does_not_show(make_learner, when):
    learn = make_learner(n_batches=4, n_valid=2, cbs=[PeeksCB(when)])
    with pytest.raises(RuntimeError, match="loss of step"):
        learn.verify_resume()


class LostInValidationCB(Callback):
    """Count batches of validation; a resumed run begins to count again."""

    def __init__(self):
        self.n, self.seen = 0, []

    def before_validate(self, learn):
        self.n = 0

    def after_batch(self, learn):
        self.n += not learn.training

    def after_validate(self, learn):
        self.seen.append(self.n)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_stop_in_validation_finds_what_one_in_training_does_not(make_learner):
    learn = make_learner(n_batches=4, n_valid=4, cbs=[LostInValidationCB()])
    assert "after step 2" in learn.verify_resume(at=2)
    with pytest.raises(RuntimeError, match=r"in the validation of epoch 1.*seen.*4 and"):
        learn.verify_resume()


def test_validation_that_begins_again_is_resumed(full, make_learner):
    learn = full(RecorderCB())
    dls = DataLoaders(learn.dls.train, DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8).long()), 4))
    learn.dls = dls
    assert "in the validation of epoch 1" in learn.verify_resume()
