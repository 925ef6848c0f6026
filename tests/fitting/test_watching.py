import sys
from functools import partial

import pytest
import torch
from toolbox import at, drawn, generator, mentions
from torch import nn
from torch.nn import functional as F

from minilearn import Callback, Learner, MetricsCB, MixupCB, TensorLoader
from minilearn.fitting.watching import watched

N = 4
X = torch.randn(3 * N, 3, generator=generator())
Y = X.sum(1)
SCORES = torch.arange(3 * N) % 2


def learner_of(target, loss_func, n_out=1, model=None, **kwargs):
    model = model or drawn(nn.Linear(3, n_out))
    data = [(x, y) for x, y in zip(X.split(N), target.split(N), strict=True)]
    return Learner(model, {"train": data}, loss_func, 0.1, **{"default_cbs": False} | kwargs)


def assert_refused(learn, said, error=ValueError):
    """Check that the fit is refused before the first step."""
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(error, match=mentions(said)):
        learn.fit()
    assert learn.n_steps == 0
    assert all(a.equal(b) for a, b in zip(before, learn.model.parameters(), strict=True))


class Squared(nn.Module):
    def forward(self, preds, target):
        return ((preds - target) ** 2).mean()


class OwnSquared(nn.MSELoss):
    def forward(self, preds, target):
        return super().forward(preds * 1.0, target)


class Calls:
    def loss(self, preds, target):
        return (preds - target).abs().mean()


def scaled(preds, target, scale):
    return ((preds - target) * scale).square().mean()


def log_cosh(preds, target):
    error = preds.float() - target.float()
    return (error + F.softplus(-2 * error)).mean()


class Given(nn.Module):
    """A model whose predictions are a parameter."""

    def __init__(self, preds):
        super().__init__()
        self.preds = nn.Parameter(preds)

    def forward(self, x):
        return self.preds


def fit_given(loss_func, preds, target):
    learn = Learner(Given(preds), {"train": [(target, target)]}, loss_func, default_cbs=False)
    learn.fit()
    return learn


# What would broadcast -----------------------------------------------------------------------------

SAID = "loss_func= ... (4, 1) ... (4,) ... (4, 4) ... squeeze ... [None]"
JOINED = {
    "lambda": lambda preds, y: ((preds - y) ** 2).mean(),
    "partial": partial(scaled, scale=2.0),
    "partial of a partial": partial(partial(scaled), scale=2.0),
    "the other way round": lambda preds, y: (y - preds).pow(2).mean(),
    "module": Squared(),
    "subclass of torch's": OwnSquared(),
    "method": Calls().loss,
    "torch's function in a lambda": lambda preds, y: F.mse_loss(preds, y),
    "torch's function after another": lambda preds, y: F.smooth_l1_loss(preds.sigmoid(), y * 2),
    "by keyword": lambda preds, y: F.huber_loss(input=preds, target=y),
    "a copy": lambda preds, y: ((preds.clone() - y.detach().clone()) ** 2).mean(),
    "cast first": log_cosh,
    "where": lambda preds, y: torch.where(preds > 0, y, preds).mean(),
    "in place": lambda preds, y: torch.zeros(N, N).add_(preds - y).mean(),
    "maximum": lambda preds, y: torch.maximum(preds, y).mean(),
    "lerp": lambda preds, y: torch.lerp(preds, y, 0.5).mean(),
    "correlation": lambda preds, y: -((preds - preds.mean()) * (y - y.mean())).mean(),
    "relative": lambda preds, y: ((preds - y[:, None]).abs() / y.abs()).mean(),
    "cosine": lambda preds, y: 1 - F.cosine_similarity(preds, y, dim=0).mean(),
    "distance": lambda preds, y: torch.dist(preds, y),
    "product": lambda preds, y: torch.mul(preds, y).mean(),
    "weights": lambda preds, y: (F.mse_loss(preds, y.view(-1, 1), reduction="none") * y).mean(),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss_func", JOINED.values(), ids=JOINED)
def test_a_loss_that_joins_every_sample_with_every_other_one_is_refused(loss_func):
    assert_refused(
        learner_of(Y, loss_func), "loss_func= ... (4, 1) ... (4,) ... (4, 4) ... squeeze ... [None]"
    )


@pytest.mark.parametrize("loss_func", [JOINED["lambda"], JOINED["module"]])
def test_it_is_refused_in_validation_too(loss_func):
    learn = learner_of(Y, loss_func)
    with pytest.raises(ValueError, match=mentions("(4, 1) ... (4,)")):
        learn.validate(learn.dls.train)


PARTS = torch.stack([Y, Y.abs()], 1)
OTHERS = {  # target, number of outputs, loss
    "target with a dimension more": (Y[:, None], 1, lambda p, y: (p[:, 0] - y).abs().mean()),
    "one of several outputs": (Y, 2, lambda p, y: ((p[:, :1] - y) ** 2).mean()),
    "mean and spread": (Y, 2, lambda p, y: ((p[:, :1] - y) ** 2 / p[:, 1:].exp() + p[:, 1:]).mean()),
    "chunks": (Y, 2, lambda p, y: (p.chunk(2, 1)[0] - y).abs().mean()),
    "a sum that keeps the dimension": (Y, 3, lambda p, y: (p.sum(1, keepdim=True) - y).abs().mean()),
    "focal": (SCORES, 2, lambda p, y: (p.log_softmax(1).gather(1, y[:, None]) * (1 + y)).mean()),
    "weights in the target": (PARTS, 1, lambda p, y: ((p - y[:, :1]) ** 2 * y[:, 1]).mean()),
}


@pytest.mark.parametrize("case", OTHERS)
def test_it_is_refused_after_other_operations(case):
    target, n_out, loss_func = OTHERS[case]
    assert_refused(learner_of(target, loss_func, n_out), "(4, 1) ... (4,)")


def triple(preds, target):
    anchor, other = preds[:, :1], preds[:, 1:].unbind(1)[0]
    return F.relu(anchor.tanh() - other + 1).mean()


PAIRS = {  # two of the predictions for each sample
    "a slice and an index": lambda p, y: -F.logsigmoid(p[:, :1] - p[:, 1]).mean(),
    "the other way round": lambda p, y: -F.logsigmoid(p[:, 1] - p[:, :1]).mean(),
    "chunks": lambda p, y: -(p.chunk(2, 1)[0] - p.select(1, 1)).sigmoid().log().mean(),
    "after other operations": triple,
    "torch's function": lambda p, y: F.mse_loss(p[:, :1], p[:, 1]),
    "a weight that is computed": lambda p, y: (F.mse_loss(p[:, :1], y[:, None]) * p[:, :1] * p[:, 1]).mean(),
    "a sum": lambda p, y: (p[:, :1] * p.sum(1)).mean(),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", PAIRS)
def test_pairs_of_one_prediction_that_become_all_pairs_are_refused(case):
    said = "loss_func= ... (4, 1) ... (4,) ... (4, 4) ... preds[:, 0] and preds[:, 1] ... [None]"
    assert_refused(learner_of(Y, PAIRS[case], 2), said)


def test_channels_of_one_prediction_that_become_all_pairs_are_refused():
    model = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)))
    loss = lambda p, y: (p[:, :1] - p[:, 1]).square().mean()  # noqa: E731
    assert_refused(learner_of(Y, loss, model=model), "(4, 1, 2, 2) ... (4, 2, 2) ... (4, 4, 2, 2)")


def test_masks_without_the_channel_are_refused():
    model = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 1, 1))
    target = torch.zeros(3 * N, 1, 1).expand(-1, 4, 4).clone()
    model.append(nn.Upsample(4))
    loss = lambda p, y: (1 - 2 * (p.sigmoid() * y).sum() / (p.sigmoid().sum() + y.sum())).mean()  # noqa: E731
    assert_refused(learner_of(target, loss, model=model), "(4, 1, 4, 4) ... (4, 4, 4)")


def test_tensors_inside_containers_are_watched():
    class Net(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "extra": None}

    data = [(x, {"y": y, "w": y.abs()}) for x, y in zip(X.split(N), Y.split(N), strict=True)]
    loss_func = lambda out, target: (out["y"].squeeze(1) - target["y"]).abs().mean()  # noqa: E731
    Learner(drawn(Net(3, 1)), {"train": data}, loss_func, default_cbs=False).fit()
    weighted = lambda out, target: ((out["y"] - target["y"][:, None]) ** 2 * target["w"]).mean()  # noqa: E731
    assert_refused(Learner(drawn(Net(3, 1)), {"train": data}, weighted, default_cbs=False), "(4, 1) ... (4,)")


# What means to broadcast --------------------------------------------------------------------------


def cox(preds, target):
    at_risk = target[:, None] <= target
    return (torch.logsumexp(preds.view(1, -1).masked_fill(~at_risk, -9.0), 1) - preds[:, 0]).mean()


def contrast(preds, target):
    same = (target == target[:, None]).float()
    return (torch.cdist(preds, preds) * same).mean()


MEANT = {
    "squeezed": lambda p, y: ((p.squeeze(1) - y) ** 2).mean(),
    "indexed": lambda p, y: ((p[:, 0] - y) ** 2).mean(),
    "flattened": lambda p, y: ((p.flatten() - y) ** 2).mean(),
    "like the target": lambda p, y: ((p.view_as(y) - y) ** 2).mean(),
    "target with the dimension": lambda p, y: ((p - y[:, None]) ** 2).mean(),
    "unsqueezed": lambda p, y: F.mse_loss(p, y.unsqueeze(-1)),
    "every pair, by None": lambda p, y: ((p - y[None]) ** 2).mean(),
    "every pair, by view": lambda p, y: ((p - y.view(1, -1)) ** 2).mean(),
    "every pair, by einsum": lambda p, y: torch.einsum("ni,m->nm", p, y).mean().square(),
    "every pair of preds": lambda p, y: F.relu(1 - (p - p.T) * torch.sign(y[:, None] - y)).mean(),
    "every pair of targets": lambda p, y: (p[:, 0] * (y == y[:, None]).float().sum(1)).mean(),
    "Cox": cox,
    "contrastive": contrast,
    "matrix product": lambda p, y: (p.T @ y).square().mean(),
    "numbers": lambda p, y: ((p[:, 0] * 2.0 - y + 1) ** 2).mean(),
    "moments": lambda p, y: (p.mean() - y.mean()) ** 2 + (p.std() - y.std()) ** 2,
}


def squared_distances(preds, target):
    norms = preds.square().sum(1, keepdim=True)
    return (norms + preds.square().sum(1) - 2 * preds @ preds.T).mean() + (2 * norms - norms.T).mean()


def similar(preds, target):
    z = F.normalize(preds, dim=1)
    logits = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -9.0)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(1))


MEANT_PAIRS = {
    "indexed alike": lambda p, y: -F.logsigmoid(p[:, 0] - p[:, 1]).mean(),
    "sliced alike": lambda p, y: -F.logsigmoid(p[:, :1] - p[:, 1:]).mean(),
    "by None": lambda p, y: (p[:, 0][:, None] - p[:, 1][None, :]).square().mean(),
    "by one None": lambda p, y: (p[:, 0][:, None] - p[:, 1]).square().mean(),
    "by None in the index": lambda p, y: (p[:, 0, None] - p[:, 1]).square().mean(),
    "by unsqueeze": lambda p, y: (p[:, 0].unsqueeze(1) - p[:, 1]).square().mean(),
    "with None on the other": lambda p, y: (p[:, :1] - p[:, 1][None]).square().mean(),
    "transposed": lambda p, y: (p[:, :1] - p[:, 1:].T).square().mean(),
    "of one output": lambda p, y: F.softplus(p[:, :1] - p[:, 0]).mean(),
    "of one output, flattened": lambda p, y: (lambda s: F.softplus(s - s.flatten()).mean())(p[:, 1:].tanh()),
    "distances": lambda p, y: torch.cdist(p, p).mean(),
    "distances by norms": squared_distances,
    "similarities": similar,
    "outer product": lambda p, y: torch.outer(p[:, 0], p[:, 1]).mean(),
    "broadcast to outputs": lambda p, y: (p - p.mean(0)).square().mean() + (p - p[:, :1]).square().mean(),
}


@pytest.mark.parametrize("loss_func", MEANT_PAIRS.values(), ids=MEANT_PAIRS)
def test_a_loss_of_pairs_that_means_it_trains_as_by_hand(loss_func):
    assert_trains_as_by_hand(learner_of(Y, loss_func, 2, opt_func=torch.optim.SGD), loss_func, 2)


def test_one_output_of_which_every_pair_is_compared_trains_as_by_hand():
    loss_func = lambda p, y: F.softplus((p - p.squeeze(1)) * torch.sign(y - y[:, None])).mean()  # noqa: E731
    assert_trains_as_by_hand(learner_of(Y, loss_func, opt_func=torch.optim.SGD), loss_func, 1)


def assert_trains_as_by_hand(learn, loss_func, n_out):
    model = drawn(nn.Linear(3, n_out))
    opt = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    for x, y in learn.dls.train:
        loss_func(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    learn.fit()
    assert torch.equal(learn.model.weight, model.weight)


@pytest.mark.parametrize("loss_func", MEANT.values(), ids=MEANT)
def test_a_loss_that_means_it_trains_as_by_hand(loss_func):
    assert_trains_as_by_hand(learner_of(Y, loss_func, opt_func=torch.optim.SGD), loss_func, 1)


def test_quantiles_of_one_target_broadcast_on_purpose():
    q = torch.tensor([0.1, 0.5, 0.9])
    pinball = lambda p, y: torch.maximum(q * (y - p), (q - 1) * (y - p)).mean()  # noqa: E731
    learn = learner_of(Y[:, None], pinball, n_out=3)
    learn.fit()
    assert learn.n_steps == 3


def test_heads_of_an_ensemble_broadcast_on_purpose():
    class Heads(nn.Linear):
        def forward(self, x):
            return super().forward(x).T[..., None]  # (heads, N, 1)

    learn = learner_of(Y[:, None], lambda p, y: ((p - y) ** 2).mean(), model=drawn(Heads(3, 5)))
    learn.fit()
    assert learn.n_steps == 3


def test_only_the_first_batch_is_watched(monkeypatch):
    seen = []
    monkeypatch.setattr("minilearn.learner.watched", lambda learn: (seen.append(1), watched(learn))[1])
    learner_of(Y, MEANT["squeezed"]).fit(2)
    assert seen == [1]


# Owners of get_loss -------------------------------------------------------------------------------


class OwnCB(Callback):
    def __init__(self, loss):
        self.loss = loss

    def get_loss(self, learn):
        learn.loss = self.loss(learn.preds, learn.yb)


class CallsCB(Callback):
    def get_loss(self, learn):
        learn.loss = learn.loss_func(learn.preds, learn.batch[1])


class OwnLearner(Learner):
    def get_loss(self):
        self.loss = JOINED["lambda"](self.preds, self.yb)


@pytest.mark.parametrize(
    "cb", [OwnCB(JOINED["lambda"]), OwnCB(Squared()), CallsCB()], ids=["function", "module", "loss_func"]
)
def test_callbacks_that_own_the_loss_are_watched_too(cb):
    assert_refused(learner_of(Y, JOINED["lambda"], cbs=[cb]), "CB.get_loss joins ... (4, 1) ... (4,)")


def test_a_subclass_that_owns_the_loss_is_watched_too():
    data = [(x, y) for x, y in zip(X.split(N), Y.split(N), strict=True)]
    learn = OwnLearner(drawn(nn.Linear(3, 1)), {"train": data}, default_cbs=False)
    assert_refused(learn, "OwnLearner.get_loss joins ... (4, 1) ... (4,)")


def test_an_owner_that_reads_no_target_may_have_any_batch():
    class TripletCB(Callback):
        def predict(self, learn):
            learn.preds = [learn.model(x) for x in learn.batch]

        def get_loss(self, learn):
            a, b, c = learn.preds
            learn.loss = F.triplet_margin_loss(a, b, c)

    parts = [X.split(N), X.flip(0).split(N), (-X).split(N)]
    batches = list(zip(*parts, strict=True))
    learn = Learner(drawn(nn.Linear(3, 2)), {"train": batches}, cbs=[TripletCB()], default_cbs=False)
    learn.fit()
    assert learn.n_steps == 3


# What torch.compile makes -------------------------------------------------------------------------


def backend(graph, inputs):
    calls.append(1)
    return graph.forward


calls = []
compiled = torch.compile(MEANT["squeezed"], backend=backend, fullgraph=True)


class OfCompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.compile(Squared(), backend=backend, fullgraph=True)

    def forward(self, preds, target):
        return self.inner(preds[:, 0], target)


# torch.compile looks at .grad of what is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize(
    "loss_func",
    [compiled, partial(compiled), lambda p, y: compiled(p, y), OfCompiled()],
    ids=["itself", "partial", "named by a function", "in a module"],
)
def test_compiled_losses_are_compiled_in_the_first_batch(loss_func):
    calls.clear()
    torch.compiler.reset()
    learn = learner_of(Y, loss_func)
    learn.fit()
    assert len(calls) == 1
    assert learn.n_steps == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_losses_that_are_found_too_late_run_without_compiling_in_the_first_batch():
    calls.clear()
    torch.compiler.reset()
    hidden = {"loss": compiled}
    learn = learner_of(Y, lambda p, y: hidden["loss"](p, y))
    learn.fit()
    assert len(calls) == 1
    assert learn.n_steps == 3


def test_watching_does_not_import_what_compiles(monkeypatch):
    learn = learner_of(Y, MEANT["squeezed"])
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr("torch.compiler.set_stance", None)
    learn.validate(learn.dls.train)


# Kinds of targets ---------------------------------------------------------------------------------

BITS = SCORES[:, None]
KINDS = {  # target, number of outputs, loss, what is said
    "BCE of class numbers": (
        BITS,
        1,
        F.binary_cross_entropy_with_logits,
        "int64 ... float32 ... target.float()",
    ),
    "BCE module": (BITS, 1, nn.BCEWithLogitsLoss(), "int64 ... target.float()"),
    "BCE of bytes": (BITS.byte(), 1, nn.BCEWithLogitsLoss(), "uint8 ... target.float()"),
    "BCE of bools": (BITS.bool(), 1, nn.BCEWithLogitsLoss(), "bool ... target.float()"),
    "BCE of bools in a lambda": (
        BITS.bool(),
        1,
        lambda p, y: F.binary_cross_entropy_with_logits(p, y),
        "bool ... target.float()",
    ),
    "BCE in a partial": (
        BITS,
        1,
        partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([2.0])),
        "int64",
    ),
    "BCE of probabilities": (
        BITS,
        1,
        lambda p, y: F.binary_cross_entropy(p.sigmoid(), y),
        "int64 ... float()",
    ),
    "BCE of float64": (
        BITS.double(),
        1,
        lambda p, y: F.binary_cross_entropy(p.sigmoid(), y),
        "float64 ... float32 ... float()",
    ),
    "Huber of class numbers": (BITS, 1, nn.HuberLoss(), "int64 ... float()"),
    "Huber of float64": (Y[:, None].double(), 1, F.huber_loss, "float64 ... float()"),
    "L1 of bools": (BITS.bool(), 1, nn.L1Loss(), "bool ... float()"),
    "(N,) outputs for classes": (
        SCORES,
        1,
        lambda p, y: F.cross_entropy(p[:, 0], y),
        "(4,) ... (4,) ... (N, C) ... binary_cross_entropy_with_logits",
    ),
    "one-hot class numbers": (F.one_hot(SCORES, 2), 2, F.cross_entropy, "int64 ... (4, 2) ... argmax(1)"),
    "float class numbers": (SCORES.float(), 2, nn.CrossEntropyLoss(), "float32 ... (4,) ... target.long()"),
    "bool class numbers": (SCORES.bool(), 2, nn.CrossEntropyLoss(), "bool ... target.long()"),
    "class numbers from one in a lambda": (
        SCORES + 1,
        2,
        lambda p, y: F.cross_entropy(p, y),
        "from 1 to 2 ... 2 outputs",
    ),
    "(N, 1) class numbers in a lambda": (
        BITS,
        2,
        lambda p, y: F.cross_entropy(p, y, label_smoothing=0.1),
        "(4, 1) ... (4,) ... target.squeeze(1)",
    ),
    "too few outputs for a subclass": (
        SCORES * 2,
        2,
        type("Smooth", (nn.NLLLoss,), {"forward": lambda self, p, y: F.nll_loss(p.log_softmax(1), y)})(),
        "from 0 to 2 ... 2 outputs",
    ),
}


@pytest.mark.parametrize("loss_func", [F.cross_entropy, lambda p, y: F.cross_entropy(p, y)])
def test_classes_in_the_last_dimension_are_refused_with_both_cures(loss_func):
    batches = {"train": [(torch.randn(4, 3, 2), torch.randint(5, (4, 3)))]}
    learn = Learner(nn.Linear(2, 5), batches, loss_func=loss_func)
    cure = "F.cross_entropy(preds.flatten(0, 1), target.flatten())"
    with pytest.raises(
        ValueError, match=mentions(f"(4, 3) ... (4, 3, 5) ... (4, 5) ... {cure} ... -100 ... dimension 1")
    ):
        learn.fit()
    learn.loss_func = lambda preds, target: F.cross_entropy(preds.flatten(0, 1), target.flatten())
    learn.fit()


@pytest.mark.parametrize("case", KINDS)
def test_targets_of_a_kind_that_the_loss_does_not_take_are_refused(case):
    target, n_out, loss_func, said = KINDS[case]
    assert_refused(learner_of(target, loss_func, n_out), said)


def test_masks_of_one_channel_are_refused_with_what_to_write():
    preds, target = torch.zeros(2, 3, 5, 5), torch.zeros(2, 1, 5, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"\(2, 1, 5, 5\).*\(2, 5, 5\); target.squeeze\(1\)"):
        fit_given(F.cross_entropy, preds, target)
    with pytest.raises(ValueError, match=r"float32.*\(2, 5, 5\).*target.long\(\)"):
        fit_given(F.cross_entropy, preds, target.squeeze(1).float())


def test_ignored_class_numbers_are_ignored_in_an_own_function_too():
    def loss_func(preds, target):
        return F.cross_entropy(preds, target, None, None, 255)

    target = SCORES.clone()
    target[0] = 255
    learn = learner_of(target, loss_func, 2)
    learn.fit()
    assert learn.n_steps == 3


@pytest.mark.parametrize("loss_func", [nn.MSELoss(), F.smooth_l1_loss, nn.BCEWithLogitsLoss()])
def test_targets_of_float64_that_the_loss_takes_are_not_refused(loss_func):
    try:
        loss_func(torch.zeros(4, 1, requires_grad=True), torch.ones(4, 1).double()).backward()
    except RuntimeError:
        pytest.skip(f"torch {torch.__version__} takes none in its backward")
    learn = learner_of(Y[:, None].double(), loss_func)
    learn.fit()
    assert learn.n_steps == 3


def test_targets_that_are_no_tensor_are_left_to_torch():
    def loss_func(preds, target):
        return F.cross_entropy(preds, target.tolist())

    with pytest.raises(TypeError, match="Tensor, not list"):
        learner_of(SCORES, loss_func, 2).fit()


def test_a_batch_without_its_dimension_is_left_to_torch():
    assert fit_given(F.cross_entropy, torch.zeros(2), torch.tensor(1)).n_steps == 1


# Subclasses of torch's losses ---------------------------------------------------------------------


class FromOne(nn.CrossEntropyLoss):
    def forward(self, preds, target):
        return super().forward(preds, target - 1)


class FirstOutput(nn.L1Loss):
    def forward(self, preds, target):
        return super().forward(preds[:, 0], target)


class OneHot(nn.CrossEntropyLoss):
    def forward(self, preds, target):
        return super().forward(preds, target.argmax(1))


class OfMask(nn.BCEWithLogitsLoss):
    def forward(self, preds, target):
        return super().forward(preds, (target[:, None] > 0).float())


class Spread(nn.GaussianNLLLoss):
    def forward(self, preds, target):
        return super().forward(preds[:, 0], target, preds[:, 1].exp())


class LogSoftmax(nn.NLLLoss):
    def forward(self, preds, target):
        return super().forward(preds.log_softmax(1), target[:, 0])


class Sampled(nn.KLDivLoss):
    def forward(self, preds, target):
        return super().forward(preds.log_softmax(1), F.one_hot(target, 2).float())


class Relabelled(nn.HuberLoss):
    def forward(self, preds, target):
        return super().forward(preds[:, 0], target.float())


SUBCLASSES = {
    "classes from one": (FromOne(), SCORES + 1, 2),
    "first output": (FirstOutput(), Y, 1),
    "one-hot": (OneHot(), F.one_hot(SCORES, 2), 2),
    "masks of numbers": (OfMask(), Y, 1),
    "mean and spread": (Spread(), Y, 2),
    "class numbers (N, 1)": (LogSoftmax(), BITS, 2),
    "distributions": (Sampled(reduction="batchmean"), SCORES, 2),
    "Huber of class numbers": (Relabelled(), SCORES, 1),
}


@pytest.mark.parametrize("case", SUBCLASSES)
@pytest.mark.parametrize("default_cbs", [False, True])
def test_subclasses_that_change_their_arguments_train_as_by_hand(case, default_cbs, capsys):
    loss_func, target, n_out = SUBCLASSES[case]
    learn = learner_of(target, loss_func, n_out, opt_func=torch.optim.SGD, default_cbs=default_cbs)
    assert_trains_as_by_hand(learn, loss_func, n_out)


def test_the_mean_of_a_subclass_that_reshapes_counts_samples():
    learn = learner_of(Y, FirstOutput(), cbs=[MetricsCB()])
    loader = TensorLoader(X, Y, bs=5)  # 5, 5 and 2
    expected = F.l1_loss(learn.model(X)[:, 0], Y).item()
    assert learn.validate(loader)["loss"] == pytest.approx(expected, rel=1e-6)


def test_no_accuracy_is_inferred_for_a_subclass_that_changes_the_targets():
    learn = learner_of(SCORES + 1, FromOne(), 2, cbs=[MetricsCB()])
    learn.fit()
    assert "MulticlassAccuracy" not in learn.history[0]


# What a loss gives --------------------------------------------------------------------------------

LOSSES = {
    "None": (lambda p, y: None, "learn.loss is None"),
    "tuple": (lambda p, y: (p.mean(), p.sum()), "tuple ... loss[0]"),
    "list": (lambda p, y: [p.mean()], "list ... loss[0]"),
    "dict": (lambda p, y: {"total": p.mean(), "aux": 1}, "dict ... loss['total']"),
    "float": (lambda p, y: p.mean().item(), "float ... item()"),
    "int": (lambda p, y: 0, "int 0 ... item()"),
    "array": (lambda p, y: p.mean().detach().numpy(), "float32 ... numpy()"),
    "text": (lambda p, y: "loss", "str 'loss'"),
}


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("default_cbs", [False, True])
def test_a_loss_that_is_no_tensor_is_refused_with_what_to_write(case, default_cbs, capsys):
    loss_func, said = LOSSES[case]
    learn = learner_of(Y, loss_func, default_cbs=default_cbs)
    assert_refused(learn, f"{said} ... tensor of one number" if case == "None" else said, TypeError)


@pytest.mark.parametrize(
    "loss_func",
    [
        lambda p, y: p.mean().detach(),
        lambda p, y: torch.tensor(p.mean().item()),
        lambda p, y: (p.argmax(1) == y).float().mean(),
        torch.no_grad()(lambda p, y: p.mean()),
    ],
    ids=["detached", "made of a number", "argmax", "no_grad"],
)
def test_a_loss_without_a_gradient_is_refused(loss_func):
    assert_refused(learner_of(Y, loss_func), "no gradient ... detach()")


def test_a_hook_may_make_the_loss_of_what_loss_func_returns():
    def choose(learn):
        learn.loss = learn.loss[0]

    learn = learner_of(Y, lambda p, y: (p.mean(), "extra"), cbs=[at("after_loss", choose)])
    learn.fit()
    assert learn.n_steps == 3


def test_a_hook_may_ask_for_the_loss_without_gradients():
    def look(learn):
        with torch.no_grad():
            learn.again()

    learn = learner_of(Y, MEANT["squeezed"], cbs=[at("after_forward", look)])
    learn.fit()
    assert learn.n_steps == 3


@pytest.mark.parametrize("name", ["loss_func", "model", "opt_func"])
def test_a_class_set_between_fits_is_refused(name):
    learn = learner_of(Y[:, None], nn.MSELoss())
    learn.fit()
    setattr(learn, name, {"loss_func": nn.L1Loss, "model": nn.Linear, "opt_func": "adam"}[name])
    with pytest.raises(TypeError, match=name):
        learn.fit() if name == "loss_func" else learn.validate(learn.dls.train)


def test_a_complex_loss_is_refused():
    assert_refused(learner_of(Y, lambda p, y: torch.fft.fft(p[:, 0]).sum()), "complex64 ... loss.real")


def test_mixed_losses_are_checked_too():
    assert_refused(learner_of(Y, lambda p, y: {"a": p.mean()}, cbs=[MixupCB()]), "loss['a']", TypeError)


def test_mixed_batches_are_watched_too():
    assert_refused(learner_of(Y, JOINED["lambda"], cbs=[MixupCB()]), "(4, 1) ... (4,)")
