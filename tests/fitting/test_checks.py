from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn import Callback, Learner
from minilearn.counting import is_cross_entropy
from minilearn.fitting.checks import check_targets, infer_loss

X = torch.ones(4, 3)
Y = torch.tensor([0, 1, 0, 1])


def fit_on(*batches, model=None, **kwargs):
    dls = {"train": list(batches)}
    learn = Learner(model or nn.Linear(3, 2), dls, default_cbs=False, **kwargs)
    before = [p.detach().clone() for p in learn.model.parameters()]
    try:
        learn.fit()
    finally:
        learn.trained = any(not a.equal(b) for a, b in zip(before, learn.model.parameters(), strict=True))
    return learn


# Model, loss, optimizer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model": nn.Linear}, r"model=<class '.*Linear'>.*instance.*nn.Module"),
        ({"model": torch.sin}, r"model=<built-in .*>.*instance.*nn.Module"),
        (
            {"loss_func": nn.CrossEntropyLoss},
            r"loss_func.*CrossEntropyLoss.*CrossEntropyLoss\(\)",
        ),
        ({"loss_func": "mse"}, r"loss_func='mse'.*\(preds, target\) -> loss"),
        (
            {"opt_func": torch.optim.SGD([nn.Parameter(X)], 0.1)},
            r"opt_func.*SGD.*\(params, lr\)",
        ),
        ({"opt_func": "adam"}, r"opt_func.*str.*\(params, lr\)"),
    ],
    ids=["model class", "function", "loss class", "loss name", "optimizer", "optimizer name"],
)
def test_a_wrong_kind_of_argument_is_an_error_when_the_learner_is_made(kwargs, message):
    with pytest.raises(TypeError, match=message):
        Learner(**{"model": nn.Linear(3, 2), "dls": {"train": [(X, Y)]}} | kwargs)


@pytest.mark.parametrize("dls", [{}, {"eval": [(X, Y)]}, {"train": None}])
def test_dls_without_train_is_an_error(dls):
    with pytest.raises(ValueError, match=r"dls.*train"):
        Learner(nn.Linear(3, 2), dls)


def test_dls_of_another_kind_is_an_error():
    with pytest.raises(TypeError, match=r"dls=\[\].*DataLoaders\(train, valid\).*dict"):
        Learner(nn.Linear(3, 2), [])


# Fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [0, -1, 2.5, "3", None, 1.0])
def test_fit_takes_a_whole_number_of_epochs(n_epochs, make_learner):
    with pytest.raises(ValueError, match=rf"fit\(n_epochs={n_epochs!r}\).*whole number.*1"):
        make_learner().fit(n_epochs)


def test_a_fit_that_does_nothing_is_an_error(make_learner):
    with pytest.raises(ValueError, match=r"fit\(train=False\).*validation"):
        make_learner().fit(train=False, valid=False)
    with pytest.raises(ValueError, match=r"fit\(train=False\).*validation"):
        make_learner(n_valid=0).fit(train=False)


def test_a_fit_inside_a_fit_is_an_error(make_learner, at):
    learn = make_learner(cbs=at("after_batch", lambda learn: learn.fit()))
    with pytest.raises(RuntimeError, match="fit inside"):
        learn.fit()


def test_validate_without_a_loader_is_an_error(make_learner):
    with pytest.raises(ValueError, match=r"validate\(\).*validate\(dl\)"):
        make_learner(n_valid=0).validate()


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(3, 2).requires_grad_(False)], ids=["none", "frozen"])
def test_a_model_without_trainable_parameters_is_an_error(model):
    with pytest.raises(ValueError, match=r"(ReLU|Linear).*gradient"):
        fit_on((X, Y), model=model)


def test_a_frozen_model_can_be_validated(make_learner):
    make_learner(model=nn.Linear(3, 2).requires_grad_(False)).fit(train=False)


# Loaders ------------------------------------------------------------------------------------------


def test_an_empty_train_loader_is_an_error():
    with pytest.raises(ValueError, match=r"train loader.*0 batches"):
        fit_on()


def test_an_empty_valid_loader_is_an_error(make_learner):
    learn = make_learner(dls={"train": [(X, Y)], "eval": []})
    for evaluate in (learn.fit, learn.validate):
        with pytest.raises(ValueError, match=r"(valid|given) loader.*0 batches"):
            evaluate()
    learn.fit(valid=False)


class Unsized:
    """An iterable without a length, of as many batches as each pass is told."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __iter__(self):
        return iter([(X, Y)] * self.passes.pop(0))


def test_a_loader_without_length_that_is_empty_is_an_error(make_learner):
    with pytest.raises(ValueError, match=r"loader.*batch"):
        make_learner(dls={"train": Unsized(0)}).fit()


def test_a_loader_that_runs_empty_is_an_error_that_says_the_epoch(make_learner):
    learn = make_learner(dls={"train": Unsized(2, 0)})
    with pytest.raises(ValueError, match=r"train loader.*epoch 1"):
        learn.fit(2)


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (X, "a Tensor"),
        ((X, X, Y), "a tuple of 3"),
        ([X], "a list of 1"),
        ({"x": X, "y": Y}, "a dict with 'x', 'y'"),
    ],
)
def test_a_batch_that_is_not_inputs_and_target_is_an_error(batch, found):
    with pytest.raises(ValueError, match=rf"loader.*{found}.*batches \(inputs, target\)"):
        fit_on(batch)


def test_no_batch_is_an_error(make_learner):
    with pytest.raises(ValueError, match=r"loader.*batch"):
        make_learner(dls={"train": Unsized(0, 0)}).fit(1)


def test_a_batch_of_another_kind_goes_where_a_callback_owns_predict_and_get_loss():
    class Dict(Callback):
        def predict(self, learn):
            learn.preds = learn.model(learn.batch["x"])

        def get_loss(self, learn):
            learn.loss = F.cross_entropy(learn.preds, learn.batch["y"])

    assert fit_on({"x": X, "y": Y}, cbs=Dict()).trained


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_targets_infer_cross_entropy(dtype):
    assert infer_loss(Y.to(dtype)) is F.cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float_targets_infer_mean_squared_error(dtype):
    assert infer_loss(Y.to(dtype)) is F.mse_loss


@pytest.mark.parametrize(
    ("target", "kind"), [(Y > 0, "torch.bool"), (Y + 0j, "torch.complex64"), ({"a": Y}, "dict")]
)
def test_other_targets_infer_no_loss(target, kind):
    with pytest.raises(ValueError, match=rf"targets.*{kind}.*loss_func"):
        fit_on((X, target))


def test_target_that_is_no_tensor_is_said_to_be_none():
    with pytest.raises(ValueError, match=r"ndarray.*torch.as_tensor"):
        fit_on((X, Y.numpy()))


def test_a_loss_that_is_given_is_used():
    learn = fit_on((X, Y > 0), loss_func=lambda preds, target: F.cross_entropy(preds, target.long()))
    assert learn.trained


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Y.int(), r"torch.int32.*torch.int64.*target.long\(\)"),
        (Y[:, None], r"\(4, 1\).*\(4, 2\).*\(4,\).*target.squeeze\(1\)"),
        (Y[:, None].expand(-1, 3), r"\(4, 3\).*\(4, 2\).*\(4,\)"),
    ],
)
def test_class_numbers_of_another_kind_or_shape_are_an_error(target, said):
    with pytest.raises(ValueError, match=said):
        fit_on((X, target))


def test_class_numbers_may_be_bytes_and_have_more_dimensions():
    check_targets(nn.CrossEntropyLoss(), torch.zeros(4, 2), Y.to(torch.uint8), None)
    check_targets(nn.CrossEntropyLoss(), torch.zeros(4, 2, 3, 3), torch.zeros(4, 3, 3).long(), None)


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss_func", [None, nn.CrossEntropyLoss(), partial(F.cross_entropy, reduction="mean")]
)
@pytest.mark.parametrize(("target", "low", "high"), [([1, 2, 1, 2], 1, 2), ([-1, 0, 1, 1], -1, 1)])
def test_targets_out_of_range_are_an_error(target, low, high, loss_func):
    message = rf"targets.*{low}.*{high}.*2 outputs.*0.*1"
    with pytest.raises(ValueError, match=message):
        fit_on((X, torch.tensor(target)), loss_func=loss_func)


def test_targets_of_a_loader_in_memory_are_all_looked_at_before_the_first_step(make_learner):
    learn = make_learner(n_batches=3)
    learn.dls.train.targets[-1] = 2
    before = learn.model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"targets.*0.*2.*2 outputs"):
        learn.fit()
    assert learn.model.weight.equal(before)


@pytest.mark.parametrize(
    ("loss_func", "ignored"),
    [
        (F.cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=9), 9),
        (partial(F.cross_entropy, ignore_index=7), 7),
    ],
)
def test_ignored_targets_are_not_out_of_range(loss_func, ignored):
    check_targets(loss_func, torch.zeros(4, 2), torch.tensor([0, 1, ignored, 1]), None)
    check_targets(loss_func, torch.zeros(4, 2), torch.full((4,), ignored), None)
    with pytest.raises(ValueError, match=r"targets.*0.*3"):
        check_targets(loss_func, torch.zeros(4, 2), torch.tensor([0, 1, ignored, 3]), None)


def test_targets_of_pixels_are_checked_too():
    preds, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    check_targets(F.cross_entropy, preds, target, None)
    target[0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"targets.*0.*3.*3 outputs"):
        check_targets(F.cross_entropy, preds, target, None)


def test_probabilities_as_targets_are_left_to_torch():
    check_targets(F.cross_entropy, torch.zeros(4, 2), torch.full((4, 2), 0.5), None)


def test_float_targets_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"preds.*\(4, 1\).*targets \(4,\).*shape"):
        fit_on((X, Y.float()), model=nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("loss_func", "expected"),
    [
        (F.cross_entropy, True),
        (F.nll_loss, True),
        (nn.NLLLoss(), True),
        (partial(partial(F.cross_entropy, label_smoothing=0.1), reduction="sum"), True),
        (F.mse_loss, False),
        (nn.BCEWithLogitsLoss(), False),
        (lambda preds, target: preds.sum(), False),
    ],
)
def test_is_cross_entropy_knows_losses_over_class_numbers(loss_func, expected):
    assert is_cross_entropy(loss_func) is expected
