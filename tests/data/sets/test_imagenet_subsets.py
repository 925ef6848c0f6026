from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets

from minilearn import imagenette, imagewoof
from minilearn.data.sets import imagenet_subsets as module

pytestmark = pytest.mark.usefixtures("no_data")


BOTH = pytest.mark.parametrize(("name", "load"), [("imagenette", imagenette), ("imagewoof", imagewoof)])


def write_set(root, name, label="-160", size=(6, 6)):
    ids = list(module._NAMES[name])
    for part in ("train", "val"):
        for i in ids:
            path = root / f"{name}2{label}" / part / i / "1.JPEG"
            path.parent.mkdir(parents=True)
            Image.new("RGB", size).save(path)


@BOTH
def test_classes_are_named_as_people_say_them(tmp_path, name, load):
    write_set(tmp_path, name, size=(9, 6))
    dls = load(size=4, root=tmp_path, bs=3)
    first = {"imagenette": ("tench", "English springer"), "imagewoof": ("Shih-Tzu", "Rhodesian ridgeback")}
    assert dls.classes[:2] == first[name]
    assert len(set(dls.classes)) == 10
    assert dls.source == f"{name}2-160, 4 px"
    assert [len(yb) for _, yb in dls.train] == [3, 3, 3, 1]
    assert next(iter(dls.train))[0].shape == (3, 3, 4, 4)


def test_names_of_imagenette_are_torchvisions():
    names = {i: kinds[0] for i, kinds in datasets.Imagenette._WNID_TO_CLASS.items()}
    ours = module._NAMES["imagenette"]
    assert {i: name.lower() for i, name in names.items()} == {i: name.lower() for i, name in ours.items()}


@pytest.mark.parametrize(
    ("there", "size", "chosen"),
    [
        (["", "-320", "-160"], 128, "-160"),
        (["", "-320", "-160"], 160, "-160"),
        (["", "-320", "-160"], 224, "-320"),
        (["", "-320", "-160"], 500, ""),
        (["-320", "-160"], 500, "-320"),
    ],
)
def test_smallest_that_is_large_enough_is_taken(tmp_path, there, size, chosen):
    for label in there:
        (tmp_path / f"imagenette2{label}").mkdir()
    (tmp_path / "imagenette2-400.txt").write_text("")
    assert module._find("imagenette", size, tmp_path, False).name == f"imagenette2{chosen}"


@BOTH
def test_data_folder_of_the_environment_is_used(tmp_path, monkeypatch, name, load):
    write_set(tmp_path / "data", name)
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path / "data"))
    assert len(load(size=4).classes) == 10


def test_missing_imagewoof_says_what_to_fetch_and_where_to_put_it(tmp_path):
    said = rf"(?s)Imagewoof.*{tmp_path}.*imagewoof2.*https://\S+/imagewoof2-160.tgz.*{tmp_path}.*root=.*imagewoof2-160.*.tgz"
    with pytest.raises(FileNotFoundError, match=said):
        imagewoof(root=tmp_path)


def test_missing_imagenette_without_download_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)Imagenette.*https"):
        imagenette(root=tmp_path, download=False)


def test_download_that_breaks_off_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    def broken(self):
        (Path(self.root) / "half").write_text("x")
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.Imagenette, "_download", broken)
    with pytest.raises(FileNotFoundError, match=r"downloading to \S+ \(no route to host\)"):
        imagenette(root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_is_torchvisions_and_is_kept(tmp_path, monkeypatch):
    def download(self):
        write_set(self._size_root.parent, "imagenette")

    monkeypatch.setattr(datasets.Imagenette, "_download", download)
    assert len(imagenette(size=4, root=tmp_path).classes) == 10
    assert (tmp_path / "imagenette2-160" / "train").is_dir()
