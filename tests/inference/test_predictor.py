"""learn.export, and what reads its files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import drawn, make_learner, mentions
from torch import nn

from minilearn import (
    DataLoaders,
    Learner,
    StridedCNN,
    TensorLoader,
    fashion_mnist,
    image_folder,
    load_predictor,
    set_seed,
    shapes,
)
from minilearn.data import Normalize
from minilearn.inference.exporting import export


def cnn(n_channels=3, n_classes=2):
    return nn.Sequential(
        nn.Conv2d(n_channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).append(nn.Linear(4, n_classes))


@pytest.fixture
def folder(tmp_path):
    """Return a folder of pictures: dark ones and bright ones, of several sizes."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 4), ("val", 3)):
        for kind, low in (("dark", 0), ("light", 128)):
            (tmp_path / "pets" / part / kind).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(low, low + 100, (20 + i, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / part / kind / f"{i}.png")
    return tmp_path / "pets"


@pytest.fixture
def pets(folder, tmp_path, monkeypatch):
    """Return a learner of pictures, its exported file's predictor, and the paths of its validation set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    set_seed(0)
    learn = Learner(cnn(), image_folder(folder, size=16, bs=4), lr=1e-2)
    learn.fit(2)
    learn.export(tmp_path / "pets.pt2")
    paths = sorted((folder / "val").rglob("*.png"))
    return learn, load_predictor(tmp_path / "pets.pt2"), paths


def probabilities(predictions):
    return torch.stack([p.probabilities for p in predictions])


@pytest.mark.slow
def test_pictures_have_the_numbers_of_learn_predict(pets):
    learn, predictor, paths = pets
    expected = learn.predict(learn.dls.valid).softmax(1)
    for bs, tolerance in ((4, 1e-6), (1, 1e-5), (64, 1e-5)):
        found = probabilities(predictor(paths, bs=bs))
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_label_is_the_name_of_the_likeliest_class(pets):
    _, predictor, paths = pets
    for prediction in predictor(paths):
        i = int(prediction.probabilities.argmax())
        assert prediction.label == ["dark", "light"][i]
        assert prediction.probability == prediction.probabilities[i].item()
        assert prediction.probabilities.sum().item() == pytest.approx(1)


@pytest.mark.slow
def test_one_picture_is_the_same_in_each_form(pets):
    _, predictor, paths = pets
    image = Image.open(paths[0])
    array = np.asarray(image)
    expected = predictor(paths[0])
    forms = [str(paths[0]), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for form in forms:
        found = predictor(form)
        assert found.label == expected.label
        torch.testing.assert_close(found.probabilities, expected.probabilities)
    assert [p.label for p in predictor([paths[0], image])] == 2 * [expected.label]


@pytest.mark.slow
def test_floats_are_the_inputs_of_the_model(pets):
    learn, predictor, _ = pets
    x, _ = next(iter(learn.dls.valid))
    torch.testing.assert_close(probabilities(predictor(x)), learn.predict(x).softmax(1))
    torch.testing.assert_close(probabilities(predictor(x.numpy())), learn.predict(x).softmax(1))


@pytest.mark.slow
def test_another_process_needs_neither_the_source_nor_the_data(pets, tmp_path):
    _, predictor, paths = pets
    code = "import sys, minilearn; p = minilearn.load_predictor(sys.argv[1])(sys.argv[2]); print(*p[:2])"
    words = [sys.executable, "-W", "ignore", "-c", code, tmp_path / "pets.pt2", paths[0]]
    repo = Path(__file__).parents[2]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(repo)})
    assert done.stdout.split() == [predictor(paths[0]).label, str(predictor(paths[0]).probability)], (
        done.stderr
    )


@pytest.mark.slow
def test_what_cannot_be_read_is_refused(pets, tmp_path):
    _, predictor, _ = pets
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        predictor(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor("none.png")
    with pytest.raises(ValueError, match=mentions("(2, 5, 16, 16) ... (N, 3, 16, 16)")):
        predictor(torch.zeros(2, 5, 16, 16))
    with pytest.raises(ValueError, match="no image"):
        predictor([])
    with pytest.raises(ValueError, match="expected bytes"):
        predictor([np.zeros((4, 4, 3), dtype=np.float32)])


@pytest.mark.slow
def test_data_sets_of_bytes_know_their_transform(write_idx, tmp_path):
    dls = fashion_mnist(8, root=write_idx(tmp_path))
    learn = Learner(StridedCNN(), dls)
    learn.export(tmp_path / "a.pt2")
    pixels = torch.stack([torch.full((1, 28, 28), value, dtype=torch.uint8) for value in (0, 255)])
    found = probabilities(load_predictor(tmp_path / "a.pt2")(pixels))
    first, second = (dls.valid.tensors[0][i : i + 1] for i in (0, 1))  # images of one value each
    torch.testing.assert_close(
        found, learn.predict(torch.cat([first, second])).softmax(1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_predictor_without_a_transform_takes_only_inputs(tmp_path):
    learn = Learner(StridedCNN(), shapes(16, n_train=32, n_valid=16))
    learn.export(tmp_path / "a.pt2")
    x = learn.dls.valid.tensors[0]
    predictor = load_predictor(tmp_path / "a.pt2")
    torch.testing.assert_close(probabilities(predictor(x)), learn.predict(x).softmax(1))
    with pytest.raises(ValueError, match="transform=Normalize"):
        predictor(np.zeros((28, 28), dtype=np.uint8))


@pytest.mark.slow
def test_grey_images_by_a_transform_that_is_given(tmp_path):
    learn = Learner(StridedCNN(), shapes(16, n_train=32, n_valid=16))
    learn.export(tmp_path / "a.pt2", transform=Normalize([0.3], [0.4]))
    predictor = load_predictor(tmp_path / "a.pt2")
    pixels = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    expected = learn.predict((pixels[:, None] / 255 - 0.3) / 0.4).softmax(1)
    for form in (
        pixels[:, None],
        pixels.numpy()[..., None],
        list(pixels),
        [Image.fromarray(x.numpy()) for x in pixels],
    ):
        torch.testing.assert_close(probabilities(predictor(form)), expected, rtol=1e-5, atol=1e-6)


def test_model_without_classes_gives_its_output(tmp_path):
    learn = make_learner(regression=True)
    learn.export(tmp_path / "a.pt2")
    x = torch.randn(7, 3)
    torch.testing.assert_close(load_predictor(tmp_path / "a.pt2")(x), learn.predict(x))


def test_several_inputs_and_outputs(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Embedding(5, 2)

        def forward(self, x, ids):
            return self.a(x) + self.b(ids), x.shape[0] * self.a(x)

    model, inputs = drawn(Net()), (torch.randn(4, 3), torch.tensor([0, 4, 1, 1]))
    export(model, tmp_path / "a.pt2", inputs)
    found = load_predictor(tmp_path / "a.pt2")(inputs, bs=2)
    expected = [model(*(x[i : i + 2] for x in inputs)) for i in (0, 2)]
    for part, parts in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(part, torch.cat(parts))


@pytest.mark.slow
def test_inputs_by_name(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Embedding(5, 2)

        def forward(self, ids, x):
            return self.a(x) + self.b(ids)

    model = drawn(Net())
    batch = {"x": torch.randn(4, 3), "ids": torch.tensor([0, 4, 1, 1]), "labels": torch.randn(4, 2)}
    learn = Learner(model, {"train": [batch]})
    learn.export(tmp_path / "a.pt2")
    predictor = load_predictor(tmp_path / "a.pt2")
    expected = model(batch["ids"], batch["x"])
    torch.testing.assert_close(predictor({"ids": batch["ids"], "x": batch["x"]}), expected)
    torch.testing.assert_close(predictor((batch["x"], batch["ids"])), expected)  # in the order of the example
    with pytest.raises(ValueError, match=mentions("'y' ... ['x', 'ids']")):
        predictor({"y": batch["x"], "ids": batch["ids"]})


@pytest.mark.slow
def test_learner_stays_as_it_was(tmp_path):
    learn = make_learner()
    learn.fit(1)
    before = {name: (t.clone(), t.requires_grad) for name, t in learn.model.named_parameters()}
    mode = learn.model.training
    learn.export(tmp_path / "a.pt2")
    assert learn.model.training is mode
    for name, t in learn.model.named_parameters():
        assert torch.equal(t, before[name][0])
        assert t.requires_grad is before[name][1]


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Inverting(nn.Linear):
    def forward(self, x):
        return super().forward(x) @ torch.linalg.inv(self.weight)


class Naming(nn.Linear):
    def forward(self, x):
        return {"scores": super().forward(x)}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Branching(3, 3), "Branching ... x.sum() > 0"),
        (Inverting(3, 3), "Inverting ... linalg_inv"),
        (Naming(3, 3), "Naming ... dict"),
    ],
)
def test_what_cannot_be_exported_says_which_part_and_writes_nothing(model, said, tmp_path):
    with pytest.raises(ValueError, match=mentions(said)):
        export(model, tmp_path / "a.pt2", torch.randn(4, 3))
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_checked(tmp_path):
    learn = make_learner()
    with pytest.raises(ValueError, match=r"\.pt2"):
        learn.export(tmp_path / "a.onnx")
    with pytest.raises(TypeError, match="Normalize"):
        learn.export(tmp_path / "a.pt2", transform=3)
    with pytest.raises(ValueError, match="3 classes"):
        learn.export(tmp_path / "a.pt2", classes=["a", "b", "c"])
    with pytest.raises(TypeError, match="example"):
        learn.export(tmp_path / "a.pt2", "x")
    with pytest.raises(TypeError, match="Normalize"):
        DataLoaders(TensorLoader(torch.zeros(4, 3)), transform=3)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.9 warns of itself
def test_torch_reads_the_file_too(tmp_path):
    learn = make_learner()
    learn.export(tmp_path / "a.pt2")
    x = torch.randn(5, 3)
    torch.testing.assert_close(torch.export.load(tmp_path / "a.pt2").module()(x), learn.predict(x))


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "convnext_tiny", "swin_t", "densenet121"]
)
def test_models_of_torchvision(name, tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    model, x = getattr(models, name)(num_classes=7).eval(), torch.randn(3, 3, 224, 224)
    export(model, tmp_path / "a.pt2", x)
    with torch.no_grad():
        torch.testing.assert_close(load_predictor(tmp_path / "a.pt2")(x, bs=3), model(x), rtol=0, atol=1e-6)
