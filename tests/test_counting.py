"""What each loss is a mean over: two batches, weighed by their counts, are the two of them as one."""

from functools import partial

import pytest
import torch
from toolbox import at, generator, make_learner, mentions
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from minilearn import DatasetLoader, Learner, MetricsCB
from minilearn.counting import Count, on_host, only_counted, zero_of

G = generator()
TOKENS = torch.tensor(
    [[0, 1, -100, 2], [-100, -100, -100, 1], [2, 2, 0, 1], [1, 0, -100, -100], [3, 3, 1, 0]]
)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0])
LOGITS, SEQUENCES = torch.randn(5, 4, generator=G), torch.randn(5, 4, 4, generator=G)  # (N, C), (N, C, T)
CLASSES = torch.tensor([0, 3, 1, 1, 2])
SIGNS = torch.tensor([[1, -1, 1], [-1, -1, 1], [1, 1, 1], [-1, 1, -1], [1, -1, -1]]).float()
VALUES, OTHERS = torch.randn(5, 3, generator=G), torch.rand(5, 3, generator=G)
SOFT = torch.rand(5, 4, generator=G).softmax(1)

CE, NLL = nn.CrossEntropyLoss, nn.NLLLoss
VALUES_LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "huber": F.huber_loss, "mse": F.mse_loss}
MODULES = {
    "l1": nn.L1Loss(),
    "smooth_l1": nn.SmoothL1Loss(),
    "huber": nn.HuberLoss(),
    "mse": nn.MSELoss(),
    "poisson_nll": nn.PoissonNLLLoss(),
    "soft_margin": nn.SoftMarginLoss(),
    "hinge_embedding": nn.HingeEmbeddingLoss(),
}


class Padded(nn.CrossEntropyLoss):
    """Cross-entropy over (N, T, C)."""

    def forward(self, preds, target):
        return super().forward(preds.transpose(1, 2), target)


class Masked(nn.Module):
    """The mean square where the target is positive."""

    def count(self, preds, target):
        return (target > 0.5).sum()

    def forward(self, preds, target):
        mask = target > 0.5
        return ((preds - target).square() * mask).sum() / mask.sum()


def masked(preds, target):
    return Masked()(preds, target)


masked.count = Masked().count


def squared_sums(preds, target):
    """A mean over samples, of any shape."""
    return (preds - target).square().sum(1).mean()


def triplet(preds, target):
    return F.triplet_margin_loss(preds, target, -target)


class PerElement(nn.MSELoss):
    """The mean of what has the reduction "none" inside."""

    def __init__(self):
        super().__init__(reduction="none")

    def forward(self, preds, target):
        return super().forward(preds, target).mean()


# loss, preds, target; each is cut at 2 of the 5 samples
CASES = {
    "cross_entropy": (F.cross_entropy, LOGITS, CLASSES),
    "CrossEntropyLoss": (CE(), LOGITS, CLASSES),
    "classes of one byte": (CE(WEIGHT), LOGITS, CLASSES.byte()),
    "tokens": (F.cross_entropy, SEQUENCES, TOKENS),
    "tokens, CrossEntropyLoss": (CE(), SEQUENCES, TOKENS),
    "tokens, padded with 0": (CE(ignore_index=0), SEQUENCES, TOKENS.clamp(0)),
    "tokens, partial": (partial(F.cross_entropy, ignore_index=1), SEQUENCES, TOKENS.clamp(0)),
    "tokens, partial of partial": (
        partial(partial(F.cross_entropy, ignore_index=1), weight=WEIGHT),
        SEQUENCES,
        TOKENS.clamp(0),
    ),
    "class weights": (CE(WEIGHT), LOGITS, CLASSES),
    "class weights, tokens": (CE(WEIGHT), SEQUENCES, TOKENS),
    "class weights, partial": (partial(F.cross_entropy, weight=WEIGHT), LOGITS, CLASSES),
    "label smoothing": (CE(label_smoothing=0.2), SEQUENCES, TOKENS),
    "label smoothing and weights": (CE(WEIGHT, label_smoothing=0.2), SEQUENCES, TOKENS),
    "soft targets": (CE(), LOGITS, SOFT),
    "soft targets and weights": (CE(WEIGHT), LOGITS, SOFT),
    "soft targets, sequences": (CE(), SEQUENCES, SEQUENCES.softmax(1)),
    "nll_loss": (F.nll_loss, LOGITS.log_softmax(1), CLASSES),
    "NLLLoss": (NLL(WEIGHT), SEQUENCES.log_softmax(1), TOKENS),
    "NLLLoss2d": (NLL(), SEQUENCES[..., None].log_softmax(1), TOKENS[..., None]),
    "subclass": (Padded(WEIGHT), SEQUENCES.transpose(1, 2), TOKENS),
    **{f"{name}_loss": (loss, VALUES, OTHERS) for name, loss in VALUES_LOSSES.items()},
    **{type(loss).__name__: (loss, VALUES, SIGNS) for loss in MODULES.values()},
    "poisson_nll_loss": (F.poisson_nll_loss, VALUES, OTHERS),
    "soft_margin_loss": (F.soft_margin_loss, VALUES, SIGNS),
    "hinge_embedding_loss": (F.hinge_embedding_loss, VALUES, SIGNS),
    "gaussian_nll_loss": (partial(F.gaussian_nll_loss, var=2.0), VALUES, OTHERS),
    "binary_cross_entropy": (F.binary_cross_entropy, OTHERS, SIGNS.clamp(0)),
    "BCELoss": (nn.BCELoss(torch.tensor([1.0, 2.0, 3.0])), OTHERS, SIGNS.clamp(0)),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, VALUES, SIGNS.clamp(0)),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), VALUES, SIGNS.clamp(0)),
    "kl_div": (F.kl_div, LOGITS.log_softmax(1), SOFT),
    "KLDivLoss": (nn.KLDivLoss(), LOGITS.log_softmax(1), SOFT),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), LOGITS.log_softmax(1), SOFT),
    "multi_margin_loss": (F.multi_margin_loss, LOGITS, CLASSES),
    "MultiMarginLoss": (nn.MultiMarginLoss(weight=WEIGHT), LOGITS, CLASSES),
    "multilabel_margin_loss": (F.multilabel_margin_loss, LOGITS, TOKENS.clamp(-1)),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss(), LOGITS, TOKENS.clamp(-1)),
    "multilabel_soft_margin_loss": (F.multilabel_soft_margin_loss, VALUES, SIGNS.clamp(0)),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), VALUES, SIGNS.clamp(0)),
    "triplet_margin_loss": (triplet, VALUES, OTHERS),
    "own count": (Masked(), VALUES, OTHERS),
    "function with a count": (masked, VALUES, OTHERS),
    "partial of a function with a count": (partial(masked), VALUES, OTHERS),
    "function of the user's": (squared_sums, VALUES, OTHERS),
    "none inside, mean outside": (PerElement(), VALUES, OTHERS),
}
NEEDS_MORE = {  # arguments than preds and target; a function that calls them is a mean over samples
    *("CTCLoss", "CosineEmbeddingLoss", "GaussianNLLLoss", "MarginRankingLoss", "TripletMarginLoss"),
    *("TripletMarginWithDistanceLoss", "AdaptiveLogSoftmaxWithLoss", "cosine_embedding_loss", "ctc_loss"),
    *("margin_ranking_loss", "triplet_margin_with_distance_loss", "linear_cross_entropy"),
}


def counted(loss, preds, target):
    return Count(loss)(preds, target, torch.zeros(len(preds), 1))


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")  # of kl_div
@pytest.mark.parametrize("case", CASES)
def test_batches_weighed_by_their_counts_are_one_batch(case):
    loss, preds, target = CASES[case]
    parts = [(preds[:2], target[:2]), (preds[2:], target[2:])]
    counts = [counted(loss, *part) for part in parts]
    mean = sum(n * loss(*part).item() for n, part in zip(counts, parts, strict=True)) / sum(counts)
    assert mean == pytest.approx(loss(preds, target).item(), rel=1e-5)  # of float32
    assert counted(loss, preds, target) == pytest.approx(sum(counts))


ELEMENTWISE = {
    *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "poisson_nll_loss", "soft_margin_loss"),
    *("hinge_embedding_loss", "gaussian_nll_loss", "binary_cross_entropy"),
    *("binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "kl_div", "KLDivLoss"),
    *(type(loss).__name__ for loss in MODULES.values()),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
@pytest.mark.parametrize("case", sorted(ELEMENTWISE))
def test_a_mean_over_elements_counts_elements_in_batches_of_other_shapes(case):
    loss, preds, target = CASES[case]
    preds, target = preds.flatten(), target.flatten()
    parts = [(preds[:4].view(2, 2), target[:4].view(2, 2)), (preds[4:][None], target[4:][None])]
    counts = [counted(loss, *part) for part in parts]
    mean = sum(n * loss(*part).item() for n, part in zip(counts, parts, strict=True)) / sum(counts)
    assert mean == pytest.approx(loss(preds, target).item(), rel=1e-5)


@pytest.mark.parametrize(("preds", "target"), [((4, 1), (4, 3)), ((4, 3), (4, 1)), ((3,), (4, 3))])
def test_a_mean_over_elements_counts_those_after_broadcasting(preds, target):
    assert counted(nn.L1Loss(), torch.zeros(preds), torch.zeros(target)) == 12


def test_every_loss_of_torch_is_in_this_list():
    modules = {name for name in dir(nn) if name.endswith(("Loss", "Loss2d"))}
    functions = {n for n in dir(F) if n.endswith(("_loss", "_entropy", "_logits", "_div")) and n[0] != "_"}
    known = {*CASES, *NEEDS_MORE, "LinearCrossEntropyLoss"}
    assert modules | functions <= known


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="needs torch 2.14")
@pytest.mark.parametrize("kwargs", [{}, {"ignore_index": 1}, {"weight": WEIGHT}])
def test_cross_entropy_with_a_layer_inside_counts_targets(kwargs):
    loss, target = nn.LinearCrossEntropyLoss(3, 4, **kwargs), torch.tensor([0, 1, -100, 1, 2])
    target = target if not kwargs.get("ignore_index") else target.clamp(0)
    parts = [(VALUES[:1], target[:1]), (VALUES[1:], target[1:])]
    counts = [counted(loss, *part) for part in parts]
    mean = sum(n * loss(*part).item() for n, part in zip(counts, parts, strict=True)) / sum(counts)
    assert mean == pytest.approx(loss(VALUES, target).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss])
def test_weights_of_elements_are_what_the_loss_divides_by(loss):
    assert counted(partial(loss, weight=OTHERS), VALUES, VALUES) == pytest.approx(OTHERS.sum().item())


@pytest.mark.slow
def test_a_compiled_loss_is_that_loss():
    # Only made: compiling takes seconds, and the count needs none of it.
    for loss in (F.cross_entropy, CE(ignore_index=0), Masked(), masked):
        count, compiled = (counted(f, SEQUENCES, TOKENS) for f in (loss, torch.compile(loss)))
        assert count == compiled
    assert counted(torch.compile(partial(F.cross_entropy, ignore_index=0)), SEQUENCES, TOKENS.clamp(0)) == 10


@pytest.mark.parametrize("loss", [CE(reduction="sum"), partial(F.cross_entropy, reduction="sum")])
def test_a_sum_counts_samples(loss):
    count = Count(loss)
    assert count.is_sum
    assert count(SEQUENCES, TOKENS, None) == 5
    assert not Count(CE()).is_sum


def test_samples_of_what_is_no_tensor():
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])
    assert counted(squared_sums, torch.zeros(5), packed) == 2
    assert counted(F.mse_loss, {"a": torch.zeros(4)}, {"a": torch.zeros(4)}) == 4  # preds that are no tensor
    assert Count(squared_sums)(None, None, (torch.zeros(7, 2), 1)) == 7
    assert Count(squared_sums)(None, object(), torch.zeros(3)) == 3


def test_a_batch_that_does_not_tell_its_samples_is_refused():
    with pytest.raises(TypeError, match=mentions("object and str ... learn.loss_count")):
        Count(squared_sums)(None, "abc", object())


def test_a_count_that_is_not_summed_is_refused():
    def loss(preds, target):
        return (preds - target).square().mean()

    loss.count = lambda preds, target: target > 0
    with pytest.raises(ValueError, match=mentions("(5, 3) ... sum it")):
        counted(loss, VALUES, OTHERS)


def test_on_the_cpu_a_count_is_a_number():
    for count in (torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0, requires_grad=True), 3):
        assert on_host(count) == 3
        assert not isinstance(on_host(count), torch.Tensor)


def test_a_count_on_a_device_stays_there_and_has_no_graph():
    count = on_host(torch.ones(1, device="meta", requires_grad=True))
    assert count.shape == ()
    assert not count.requires_grad


@pytest.mark.parametrize("first", [CE(), CE(ignore_index=7)])
def test_another_loss_within_a_pass_counts_what_it_does_not_ignore(first):
    def swap(learn):
        if learn.batch_idx == 2:
            learn.loss_func = CE(ignore_index=1)

    found, expected = [], []
    look = at("after_batch", lambda learn: found.append(learn.loss_count))
    learn = make_learner(4, 0, loss_func=first, cbs=[at("before_batch", swap), look])
    learn.fit()
    for _, target in learn.dls.train:
        expected.append((target != 1).sum().item() if len(expected) >= 2 else len(target))
    assert found == expected
    assert found[2:] != [4, 4]


# Reductions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [CE(reduction="none"), partial(F.cross_entropy, reduction="none")])
def test_a_loss_of_each_element_is_refused_before_training(loss, at):
    batches = []
    learn = make_learner(loss_func=loss, cbs=at("before_batch", batches.append))
    for run in (learn.fit, learn.validate):
        with pytest.raises(ValueError, match=mentions("reduction='none' ... reduction='mean'")):
            run()
    assert batches == []


def test_a_function_that_gives_a_loss_of_each_sample_is_refused(at):
    def loss(preds, target):
        return F.cross_entropy(preds, target, reduction="none")

    steps = []
    learn = make_learner(loss_func=loss, cbs=at("before_step", steps.append))
    with pytest.raises(ValueError, match=mentions("(4,) ... one number ... loss.mean()")):
        learn.fit()
    assert steps == []


def test_a_loss_with_none_inside_and_a_mean_outside_trains():
    learn = make_learner(loss_func=PerElement(), regression=True)
    learn.fit()
    assert learn.n_steps == 3


def test_a_loss_changed_between_fits_is_counted_as_it_is_then():
    loss = CE()
    learn = make_learner(loss_func=loss)
    learn.fit()
    loss.reduction, loss.weight = "mean", torch.tensor([3.0, 3.0])
    learn.fit()
    assert learn.loss_count == 12
    loss.reduction = "sum"
    learn.fit()
    assert learn.mean.count.is_sum


# Nothing counted --------------------------------------------------------------------------------------


def test_a_loss_of_nothing_is_0_with_gradients_of_0():
    preds = {"a": torch.tensor([1.0, torch.inf, torch.nan], requires_grad=True), "b": torch.zeros(2, 0)}
    loss = zero_of(preds)
    loss.backward()
    assert loss == 0
    assert torch.equal(preds["a"].grad, torch.zeros(3))
    with pytest.raises(TypeError, match=mentions("list ... floats")):
        zero_of([torch.zeros(3).long()])


@pytest.mark.parametrize("n", [0, 2])
def test_gradients_where_nothing_is_counted_on_a_device_are_0(n):
    preds = torch.ones(3, requires_grad=True)
    only_counted([preds, torch.ones(2)], torch.tensor(n))
    (preds.sum() / torch.tensor(float(n))).backward()
    assert torch.equal(preds.grad, torch.full((3,), 0.5 if n else 0.0))


UNSAFE = {"label smoothing": CE(label_smoothing=0.1), "class weights": CE(torch.tensor([0.0, 1.0, 1.0, 1.0]))}


@pytest.mark.parametrize("case", ["plain", *UNSAFE])
def test_a_loss_is_called_safe_only_if_its_gradients_over_nothing_are_0(case):
    # Targets that are ignored, and with class weights those of a class that weighs 0.
    loss = UNSAFE.get(case, CE())
    preds, target = LOGITS.clone().requires_grad_(), torch.full((5,), 0 if case == "class weights" else -100)
    loss(preds, target).backward(torch.zeros(()))
    assert preds.grad.isfinite().all() or not Count(loss).is_safe
    assert Count(CE()).is_safe


# Where the first dimension of the target is not the samples ----------------------------------------------


class Spoken(torch.utils.data.Dataset):
    """Samples of two frames, with one to three labels each."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.full((2, 3), float(i)), torch.full((1 + i % 3,), i % 2)


def as_time_first(samples):
    return torch.stack([x for x, _ in samples], 1), torch.cat([labels[:1] for _, labels in samples])


def as_joined(samples):
    """Put the labels of all samples one after the other, as torch's CTC loss takes them."""
    return torch.stack([x for x, _ in samples]), torch.cat([labels for _, labels in samples])


@pytest.mark.parametrize("collate", [as_joined, as_time_first])
@pytest.mark.parametrize("torchs", [False, True])
def test_the_loader_says_which_are_the_samples(collate, torchs):
    def loss(preds, target):
        return preds.sum() / 1000 + target.float().mean()

    make = DataLoader if torchs else DatasetLoader
    loader = make(Spoken(), 3, collate_fn=collate)
    counts = []
    count = at("after_forward", lambda learn: counts.append(learn.loss_count))
    metrics = MetricsCB(mean_target=lambda preds, target: target.float().mean())
    dls = {"train": loader, "eval": loader}
    learn = Learner(nn.Linear(3, 1), dls, loss_func=loss, lr=0.0, cbs=[metrics, count])
    learn.fit(1)
    assert counts == [3, 3, 1] * 2
    means = [target.float().mean().item() for _, target in loader]
    expected = sum(n * mean for n, mean in zip((3, 3, 1), means, strict=True)) / 7
    for row in learn.history:
        assert row["mean_target"] == pytest.approx(expected)
