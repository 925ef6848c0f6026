"""Figures of data and predictions: what they show is right, and nothing is changed for it."""

import pytest
import torch
from matplotlib.figure import Figure
from sklearn import metrics
from toolbox import conv_net, drawn, generator, make_learner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from minilearn import (
    Callback,
    DataLoaders,
    DatasetLoader,
    DeviceCB,
    Learner,
    MetricsCB,
    RecorderCB,
    TensorLoader,
    TransformersCB,
    confusion_matrix,
    plot_confusion,
    plot_top_losses,
    show_batch,
    show_results,
    top_losses,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture, position_of
from minilearn.data import HorizontalFlip, ImageLoader, Normalize

N = 22
PIXELS = torch.randint(0, 256, (N, 3, 6, 6), generator=generator(1)).to(torch.uint8)
TARGETS = torch.randint(0, 2, (N,), generator=generator(2))
NORM = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
INPUTS = NORM(PIXELS, torch.zeros(N, 0))


class Images(Dataset):
    """Bytes with a transform, as those of torchvision."""

    def __init__(self, transform=None):
        self.transform = transform or v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(NORM.mean, NORM.std)]
        )

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.transform(PIXELS[i]), TARGETS[i]


LOADERS = {
    "TensorLoader": lambda **kwargs: TensorLoader(INPUTS, TARGETS, device="cpu", **kwargs),
    "ImageLoader": lambda **kwargs: ImageLoader(PIXELS, TARGETS, [NORM], **kwargs),
    "DatasetLoader": lambda **kwargs: DatasetLoader(Images(), **kwargs),
    "DatasetLoader of a part": lambda **kwargs: DatasetLoader(Subset(Images(), range(N)), **kwargs),
    "DataLoader": lambda bs, **kwargs: DataLoader(Images(), batch_size=bs, **kwargs),
    "batches": lambda **kwargs: [(INPUTS[i : i + 8], TARGETS[i : i + 8]) for i in range(0, N, 8)],
}
EACH_LOADER = pytest.mark.parametrize("kind", LOADERS)


def loaders(kind, shuffle=False, **kwargs):
    """Return DataLoaders of one kind, whose batches of 8 are the normalized images."""
    transform = NORM if kind in ("TensorLoader", "batches") else None
    make = LOADERS[kind]
    return DataLoaders(make(bs=8, shuffle=True), make(bs=8, shuffle=shuffle), transform=transform, **kwargs)


def learner(kind="TensorLoader", **kwargs):
    names = {name: kwargs.pop(name) for name in ("shuffle", "classes") if name in kwargs}
    return Learner(
        drawn(conv_net()), loaders(kind, **names), cbs=DeviceCB("cpu"), default_cbs=False, **kwargs
    )


def of_scores(batches, loss_func=None):
    """Make a learner whose predictions are its inputs."""
    return Learner(nn.Identity(), {"train": batches, "eval": batches}, loss_func)


def predicted(learn):
    """Return the scores of all images, by hand."""
    learn.model.eval()
    with torch.no_grad():
        preds = learn.model(INPUTS)
    learn.model.train()
    return preds


def drawn_images(figure):
    return [torch.as_tensor(ax.images[0].get_array().data) for ax in figure.axes if ax.images]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.images]


# Confusion ------------------------------------------------------------------------------------------


@EACH_LOADER
@pytest.mark.parametrize("shuffle", [False, True])
def test_confusion_is_that_of_sklearn(kind, shuffle):
    learn = learner(kind, shuffle=shuffle)
    expected = metrics.confusion_matrix(TARGETS, predicted(learn).argmax(1))
    assert confusion_matrix(learn).tolist() == expected.tolist()
    ax = plot_confusion(learn).axes[0]
    assert ax.images[0].get_array().tolist() == expected.tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "target")


@pytest.mark.parametrize("n_classes", [2, 3, 7, 50])
def test_confusion_of_predictions_is_that_of_sklearn(n_classes):
    rng = generator(n_classes)
    target = torch.randint(0, n_classes, (200,), generator=rng)
    scores = torch.randn(200, n_classes, generator=rng)
    expected = metrics.confusion_matrix(target, scores.argmax(1), labels=range(n_classes))
    assert confusion_matrix(scores, target).tolist() == expected.tolist()
    by_number = confusion_matrix(scores.argmax(1).numpy(), target.tolist(), n_classes)
    assert by_number.tolist() == expected.tolist()
    shares = plot_confusion(scores, target, normalize=True).axes[0].images[0].get_array()
    normalized = metrics.confusion_matrix(target, scores.argmax(1), labels=range(n_classes), normalize="true")
    torch.testing.assert_close(torch.as_tensor(shares.data).double(), torch.as_tensor(normalized))


def test_confusion_of_maps_leaves_out_what_the_loss_ignores():
    scores = torch.randn(2, 3, 4, 4, generator=generator())
    target = torch.randint(0, 3, (2, 4, 4), generator=generator())
    target[0, 0] = 2
    model = nn.Identity()
    learn = Learner(
        model, {"train": [(scores, target)], "eval": [(scores, target)]}, nn.CrossEntropyLoss(ignore_index=2)
    )
    kept = target != 2
    expected = metrics.confusion_matrix(target[kept], scores.argmax(1)[kept], labels=range(3))
    assert confusion_matrix(learn).tolist() == expected.tolist()
    target[1] = -100
    kept = target != -100
    expected = metrics.confusion_matrix(target[kept], scores.argmax(1)[kept], labels=range(3))
    assert confusion_matrix(scores, target).tolist() == expected.tolist()


def test_confusion_has_the_names_of_the_classes():
    learn = learner(classes=["cat", "dog"])
    for figure in (plot_confusion(learn), plot_confusion(predicted(learn), TARGETS, ["cat", "dog"])):
        ax = figure.axes[0]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    assert [t.get_text() for t in plot_confusion(predicted(learn), TARGETS).axes[0].get_xticklabels()] == [
        "0",
        "1",
    ]
    # names of classes that are not there have a row all the same
    ax = plot_confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), ["a", "b", "c"]).axes[0]
    assert ax.images[0].get_array().shape == (3, 3)
    assert [text.get_text() for text in ax.texts] == ["1", "1"]


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        (torch.randn(4), torch.zeros(4).long(), r"float32 \(4,\).*int64 \(4,\).*threshold"),
        (torch.randn(4, 1, 1), torch.zeros(4).long(), r"\(4, 1, 1\)"),
        (torch.randn(4, 2), torch.zeros(4), r"torch.float32 \(4,\)"),
        (torch.randn(4, 2), torch.zeros(3).long(), r"\(4, 2\).*\(3,\)"),
        (torch.randn(4, 2), torch.tensor([0, 1, 2, 1]), r"targets run from 0 to 2.*0 to 1"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), r"predictions run from -1 to 0"),
        (torch.randn(2, 2), torch.tensor([-100, -100]), "no target counts"),
    ],
)
def test_what_is_no_class_is_an_error(preds, target, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion(preds, target)


def test_confusion_of_what_is_no_tensor_is_an_error():
    with pytest.raises(TypeError, match=r"NoneType"):
        plot_confusion(torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"1 names, and there are 2 classes"):
        plot_confusion(torch.tensor([0, 1]), torch.tensor([0, 1]), ["a"])


# The largest losses ---------------------------------------------------------------------------------


@EACH_LOADER
@pytest.mark.parametrize("shuffle", [False, True])
def test_top_losses_are_those_by_hand(kind, shuffle):
    learn = learner(kind, shuffle=shuffle)
    losses = F.cross_entropy(predicted(learn), TARGETS, reduction="none")
    order = losses.argsort(descending=True)[:5]
    found = top_losses(learn, n=5)
    assert [one.loss for one in found] == pytest.approx(losses[order].tolist(), rel=1e-5)
    assert [one.index for one in found] == order.tolist()
    for one, i in zip(found, order.tolist(), strict=True):
        torch.testing.assert_close(one.inputs, INPUTS[i])
        assert int(one.target) == TARGETS[i]
        # torchvision normalizes with other roundings
        torch.testing.assert_close(one.pred, predicted(learn)[i], rtol=1e-4, atol=1e-4)


WEIGHT = torch.tensor([1.0, 7.0])


class OwnLoss(nn.Module):
    def forward(self, preds, target):
        return (preds.softmax(1)[range(len(target)), target]).mean()


def own_loss(preds, target):
    return F.cross_entropy(preds, target).sqrt()


@pytest.mark.parametrize(
    ("loss_func", "by_hand"),
    [
        (F.cross_entropy, None),
        (nn.CrossEntropyLoss(weight=WEIGHT), lambda p, t: F.cross_entropy(p, t, WEIGHT, reduction="none")),
        (nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"),
         lambda p, t: F.cross_entropy(p, t, label_smoothing=0.2, reduction="none")),
        (own_loss, lambda p, t: F.cross_entropy(p, t, reduction="none").sqrt()),
        (OwnLoss(), lambda p, t: p.softmax(1)[range(len(t)), t]),
        (lambda p, t: F.mse_loss(p, F.one_hot(t, 2).float()),
         lambda p, t: F.mse_loss(p, F.one_hot(t, 2).float(), reduction="none").mean(1)),
    ],
    ids=["function", "weighted", "sum", "own", "own module", "lambda"],
)  # fmt: skip
def test_loss_of_a_sample_is_that_of_any_loss(loss_func, by_hand):
    learn = learner(loss_func=loss_func)
    by_hand = by_hand or (lambda p, t: F.cross_entropy(p, t, reduction="none"))
    expected = by_hand(predicted(learn), TARGETS).sort(descending=True).values
    assert [one.loss for one in top_losses(learn, n=N)] == pytest.approx(
        expected.tolist(), rel=1e-4, abs=1e-6
    )
    if isinstance(loss_func, nn.CrossEntropyLoss):
        assert loss_func.reduction in ("mean", "sum")  # of the learner's own


def test_loss_of_elements_is_their_mean_over_those_that_count():
    scores = torch.randn(5, 3, 4, generator=generator())
    target = torch.randint(0, 3, (5, 4), generator=generator())
    target[1, :3] = -100
    learn = of_scores([(scores, target)], F.cross_entropy)
    each = torch.stack([F.cross_entropy(s[None], t[None]) for s, t in zip(scores, target, strict=True)])
    found = top_losses(learn)
    assert [one.loss for one in found] == pytest.approx(each.sort(descending=True).values.tolist())
    regression = make_learner(regression=True, loss_func=nn.MSELoss())
    x, y = regression.dls.valid.tensors
    expected = (regression.model(x) - y).square().mean(1).sort(descending=True).values
    assert [one.loss for one in top_losses(regression)] == pytest.approx(expected.tolist(), rel=1e-5)


def test_loss_that_is_not_finite_is_the_largest():
    preds = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [9.0, 0.0], [0.0, torch.inf]])
    target = torch.ones(4).long()
    learn = Learner(
        nn.Identity(),
        {"train": [(preds, target)], "eval": [(preds[:2], target[:2]), (preds[2:], target[2:])]},
    )
    found = top_losses(learn, n=3)
    assert [one.loss != one.loss for one in found] == [True, True, False]
    assert found[2].loss == pytest.approx(9.0, abs=1e-3)


def test_top_losses_have_predictions_targets_losses_and_numbers():
    learn = learner(classes=["cat", "dog"])
    first = top_losses(learn, n=2)[0]
    figure = plot_top_losses(learn, n=2)
    names = ["cat", "dog"]
    pred, target = names[int(first.pred.argmax())], names[int(first.target)]
    said = pred if pred == target else f"{pred}, is {target}"
    assert titles(figure)[0] == f"{said}\nloss {first.loss:.3g}  #{first.index}"
    assert isinstance(figure, Figure)


def test_loss_that_a_callback_computes_has_to_be_given():
    class LossCB(Callback):
        def get_loss(self, learn):
            learn.loss = F.cross_entropy(learn.preds, learn.yb)

    learn = Learner(conv_net(), loaders("TensorLoader"), cbs=LossCB())
    with pytest.raises(ValueError, match=r"loss_func="):
        plot_top_losses(learn)
    assert len(top_losses(learn, loss_func=F.cross_entropy)) == 9


def test_loss_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match=r"one number"):
        top_losses(learner(loss_func=lambda preds, target: preds))


# Images ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@EACH_LOADER
def test_normalize_is_undone(kind):
    learn = learner(kind)
    expected = (PIXELS / 255).permute(0, 2, 3, 1)
    images = drawn_images(show_results(learn, n=10))  # of two batches
    assert len(images) == 10
    for i, image in enumerate(images):
        torch.testing.assert_close(image, expected[i], atol=1e-5, rtol=0)
    images = drawn_images(plot_top_losses(learn, n=3))
    for image, one in zip(images, top_losses(learn, n=3), strict=True):
        torch.testing.assert_close(image, expected[one.index], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["ImageLoader", "DatasetLoader", "DataLoader"])
def test_normalize_of_a_loader_is_undone(kind):
    images = drawn_images(show_batch(LOADERS[kind](bs=8), n=8))
    for i, image in enumerate(images):
        torch.testing.assert_close(image, (PIXELS[i] / 255).permute(1, 2, 0), atol=1e-5, rtol=0)


@pytest.mark.slow
@EACH_LOADER
def test_batch_is_one_of_the_training_data_with_its_targets(kind):
    learn = learner(kind, classes=["cat", "dog"])
    figure = show_batch(learn, n=8)
    expected = (PIXELS / 255).permute(0, 2, 3, 1)
    for image, title in zip(drawn_images(figure), titles(figure), strict=True):
        (i,) = [i for i in range(N) if torch.allclose(image, expected[i], atol=1e-4)]
        assert title == ["cat", "dog"][TARGETS[i]]
    assert titles(show_batch(learn.dls, n=8)) == titles(figure) or kind == "DataLoader"
    assert len(titles(show_batch(learn.dls.train, n=99))) == 8


@pytest.mark.slow
def test_images_without_normalize_are_scaled_only_if_they_have_to_be():
    x = torch.rand(4, 1, 5, 5)
    (found, *_) = drawn_images(show_batch(TensorLoader(x, bs=4)))
    assert torch.equal(found[:, :, 0] if found.ndim == 3 else found, x[0, 0])
    (found, *_) = drawn_images(show_batch(TensorLoader(9 * x - 3, bs=4)))
    assert (float(found.min()), float(found.max())) == (0, 1)


def test_grey_images_show_dark_as_dark():
    ax = show_batch(TensorLoader(torch.rand(1, 1, 5, 5), bs=4)).axes[0]
    assert ax.images[0].get_cmap().name == "gray"
    assert ax.images[0].get_clim() == (0, 1)


def test_image_among_other_inputs_is_found():
    batch = ({"pixel_values": INPUTS[:4], "ids": torch.arange(4)}, TARGETS[:4])
    assert len(drawn_images(show_batch([batch]))) == 4
    learn = Learner(conv_net(), DataLoaders([(TARGETS, INPUTS)]), unpack=lambda batch: batch[::-1])
    assert titles(show_batch(learn, n=3)) == [str(int(y)) for y in TARGETS[:3]]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor([1, 0]), ["dog", "cat"]),
        (torch.tensor([5, 0]), ["5", "cat"]),
        (torch.tensor([0.25, 1.0]), ["0.25", "1"]),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ["1, 2", "3, 4"]),
        (torch.zeros(2, 6, 6), ["", ""]),
        (["a", "b"], ["", ""]),
    ],
)
def test_titles_say_what_a_target_is(target, expected):
    figure = show_batch([(INPUTS[:2], target)], classes=["cat", "dog"])
    assert titles(figure) == expected


def test_results_without_targets_have_the_predictions():
    learn = learner(classes=["cat", "dog"])
    names = [["cat", "dog"][i] for i in predicted(learn).argmax(1)[:3]]
    assert titles(show_results(learn, INPUTS, n=3)) == names
    assert titles(show_results(learn, [(x,) for x in INPUTS], n=3)) == names


NO_IMAGES = {
    "vectors": lambda: make_learner(),
    "five channels": lambda: Learner(
        nn.Sequential(nn.Flatten(), nn.LazyLinear(2)),
        DataLoaders(*[TensorLoader(torch.zeros(4, 5, 3, 3), torch.zeros(4).long())] * 2),
    ),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
@pytest.mark.parametrize("plot", [plot_top_losses, show_batch, show_results])
def test_inputs_that_are_no_images_are_an_error_with_their_shape(kind, plot):
    shape = {"vectors": r"\(4, 3\)", "five channels": r"\(4, 5, 3, 3\)"}[kind]
    with pytest.raises(ValueError, match=rf"{plot.__name__}.*{shape}.*\(N, 1 or 3, H, W\)"):
        plot(NO_IMAGES[kind]())


def test_images_of_several_sizes_are_an_error():
    batches = [(torch.rand(2, 3, n, n), torch.zeros(2).long()) for n in (4, 5)]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*\(3, 5, 5\).*one size"):
        show_results(Learner(model, {"train": batches, "eval": batches}))


@pytest.mark.parametrize("plot", [plot_confusion, plot_top_losses, show_results])
def test_without_data_is_an_error(plot):
    with pytest.raises(
        ValueError, match=rf"{plot.__name__}: .*no valid loader.*{plot.__name__}\(learn, dl\)"
    ):
        plot(Learner(conv_net()))


def test_batch_without_data_is_an_error():
    for nothing in (Learner(conv_net()), DataLoaders.of(None)):
        with pytest.raises(ValueError, match=r"show_batch: there is no train loader"):
            show_batch(nothing)
    with pytest.raises(ValueError, match=r"show_batch: .*no batch"):
        show_batch([])


@pytest.mark.parametrize("plot", [plot_confusion, plot_top_losses])
def test_without_targets_is_an_error(plot):
    with pytest.raises(ValueError, match=rf"{plot.__name__}: .*without a target"):
        plot(learner(), INPUTS)


def test_several_processes_are_an_error():
    class TwoCB(DeviceCB):
        def prepare(self, learn):
            learn.processes.are(0, 2)

    learn = Learner(conv_net(), loaders("TensorLoader"), cbs=TwoCB("cpu"), default_cbs=False)
    with pytest.raises(RuntimeError, match=r"plot_confusion over 2 processes"):
        plot_confusion(learn)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("plot", [plot_top_losses, show_batch, show_results])
def test_number_of_images_is_checked(plot, n):
    with pytest.raises((ValueError, TypeError), match=rf"n={n!r}"):
        plot(learner(), n=n)


# What they leave as it was --------------------------------------------------------------------------


class Noisy(Images):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.01 * torch.randn(x.shape), y


OF_NOISE = {
    "DatasetLoader": lambda: DatasetLoader(Noisy(), 8, shuffle=True),
    "DataLoader": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "generator": lambda: DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "ImageLoader": lambda: ImageLoader(PIXELS, TARGETS, [NORM, HorizontalFlip()], bs=8, shuffle=True),
}


def state_after(kind, look):
    """Return the state after two fits, with `look` before, between and after them."""
    torch.manual_seed(0)
    recorder = RecorderCB()
    dls = DataLoaders(OF_NOISE[kind](), OF_NOISE[kind]())
    learn = Learner(drawn(conv_net(0.5)), dls, cbs=[MetricsCB(), recorder], default_cbs=False)
    for _ in range(2):
        look(learn)
        learn.fit(1)
    look(learn)
    state = capture(learn, position_of(learn))
    for row in state["history"]:
        row.pop("time_s")
    state["cbs"]["MetricsCB"].pop("elapsed_s")
    return state, torch.get_rng_state(), learn


def look_at_all(learn):
    for plot in (plot_confusion, plot_top_losses, show_batch, show_results):
        figure = plot(learn)
        assert isinstance(figure, Figure)
    show_batch(learn.dls)
    show_batch(learn.dls.train)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["DatasetLoader", *(pytest.param(kind, marks=pytest.mark.full) for kind in [*OF_NOISE][1:])]
)
def test_training_is_bit_for_bit_as_without_them(kind):
    state, rng, learn = state_after(kind, look_at_all)
    expected, expected_rng, _ = state_after(kind, lambda learn: None)
    for name in ("model", "opt", "rng", "loaders", "cbs", "fields", "history"):
        assert first_difference(state[name], expected[name]) == ""
    assert torch.equal(rng, expected_rng)
    assert all(module.training for module in learn.model.modules())


@pytest.mark.slow
def test_figures_are_made_without_pyplot_and_print_nothing(capsys):
    from matplotlib import pyplot

    look_at_all(learner())
    assert pyplot.get_fignums() == []
    assert capsys.readouterr().out == ""


def test_models_that_compute_their_loss_are_shown():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = drawn(conv_net())

        def forward(self, x, labels=None):
            return {"logits": self.net(x), "loss": None}

    learn = Learner(Own(), loaders("TensorLoader"), cbs=TransformersCB())
    assert confusion_matrix(learn).sum() == N
    assert len(titles(show_results(learn, n=4))) == 4
