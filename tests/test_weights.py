import errno
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toolbox import same
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from minilearn import CheckpointCB, Learner
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.weights import plain_name, tensors_by_name, unwrapped


class Net(nn.Module):
    """What a state_dict may have: BatchNorm's whole numbers, a buffer of no dimension, one left out."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("n_seen", torch.tensor([0, 0]), persistent=False)

    def forward(self, x):
        return self.head(self.body(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Named(nn.Module):
    """A user's own modules with the names that wrappers use."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(3, 2))
        self.module.module = nn.Linear(2, 2)

    def forward(self, x):
        return self.module(x)


class Counting(nn.Module):
    def __init__(self, n=0):
        super().__init__()
        self.linear, self.n = nn.Linear(3, 2), n

    def get_extra_state(self):
        return torch.tensor(self.n)

    def set_extra_state(self, state):
        self.n = int(state)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def other(model):
    """Fill all parameters and buffers with other numbers; return the model."""
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.copy_(torch.rand(t.shape) * 100)
    return model


def copied(model):
    return {name: t.clone() for name, t in tensors_by_name(model).items()}


@pytest.fixture
def checkpoint(tmp_path, make_learner):
    """Return the checkpoint of a learner after a fit of one epoch, and its model's tensors."""

    def fit(model):
        learn = make_learner(model=model, cbs=[CheckpointCB(tmp_path / "run")])
        learn.fit()
        return checkpoints_in(tmp_path / "run")[-1], copied(model)

    return fit


# Names ------------------------------------------------------------------------------------------------


def test_plain_model_loads_what_was_saved(make_learner, path):
    model, plain = other(Net()), Net()
    make_learner(model=model).save(path)
    plain.load_state_dict(load_file(path), strict=True)
    assert same(model.state_dict(), plain.state_dict())


def test_equal_weights_are_equal_bytes(make_learner, path):
    learn, found = make_learner(model=other(Net())), set()
    for _ in range(8):
        learn.save(path)
        found.add(path.read_bytes())
    assert len(found) == 1
    assert int.from_bytes(found.pop()[:8], "little") % 8 == 0  # where the tensors begin


WRAPPED = {
    "plain": lambda: Net(),
    "compiled": lambda: torch.compile(Net()),
    "parallel": lambda: DataParallel(Net()),
    "average": lambda: AveragedModel(Net()),
    "parallel of compiled": lambda: DataParallel(torch.compile(Net())),
    "average of parallel of compiled": lambda: AveragedModel(DataParallel(torch.compile(Net()))),
    "compiled average": lambda: torch.compile(AveragedModel(Net())),
}


def with_parts(wrap_body, wrap_head):
    model = Net()
    model.body, model.head = wrap_body(model.body), wrap_head(model.head)
    return model


WRAPPED["compiled part"] = lambda: with_parts(torch.compile, lambda part: part)
WRAPPED["parts of both kinds"] = lambda: with_parts(
    DataParallel, lambda part: torch.compile(DataParallel(part))
)
WRAPPED["compiled with a compiled part"] = lambda: torch.compile(with_parts(torch.compile, torch.compile))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_file_has_the_names_of_the_plain_model(make_learner, path, name):
    model, plain = other(WRAPPED[name]()), Net()
    make_learner(model=model).save(path)
    plain.load_state_dict(load_file(path), strict=True)
    expected = {key: t for key, t in tensors_by_name(model).items() if key not in ("n_seen", "n_averaged")}
    assert same(dict(plain.state_dict()), {key: expected[key] for key in plain.state_dict()})


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_file_of_the_plain_model_is_loaded_into_wrappers(make_learner, path, name):
    plain, model = other(Net()), WRAPPED[name]()
    make_learner(model=plain).save(path)
    make_learner(model=model).load(path)
    tensors = tensors_by_name(model)
    assert all(torch.equal(tensors[key], t) for key, t in plain.state_dict().items())


@pytest.mark.parametrize("name", WRAPPED)
def test_module_of_the_user_is_found(name):
    model = WRAPPED[name]()
    assert type(unwrapped(model)) is Net
    assert set(tensors_by_name(model)) - {"n_averaged"} == set(tensors_by_name(Net()))


def test_own_modules_with_the_names_of_wrappers_keep_them(make_learner, path):
    model = other(Named())
    make_learner(model=model).save(path)
    names = ["module.0.bias", "module.0.weight", "module.module.bias", "module.module.weight"]
    assert sorted(load_file(path)) == names
    assert unwrapped(model) is model
    plain = Named()
    plain.load_state_dict(load_file(path), strict=True)
    assert sorted(tensors_by_name(DataParallel(plain))) == names
    assert unwrapped(DataParallel(plain)) is plain


def test_names_of_modules_are_plain_too():
    model = DataParallel(with_parts(torch.compile, nn.Sequential))
    names = [plain_name(model, name) for name, _ in model.named_modules()]
    assert names == ["", "", "body", "body", "body.0", "body.1", "head", "head.0"]


# Tensors ----------------------------------------------------------------------------------------------


def test_tied_weights_are_saved_under_both_names(make_learner, path):
    model = other(Tied())
    make_learner(model=model).save(path)
    found = load_file(path)
    assert sorted(found) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert torch.equal(found["a.weight"], found["b.weight"])
    loaded = Tied()
    make_learner(model=loaded).load(path)
    assert loaded.b.weight is loaded.a.weight
    assert torch.equal(loaded.a.weight, model.a.weight)
    assert torch.equal(loaded.b.bias, model.b.bias)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "part", "expanded"])
def test_layout_in_memory_does_not_matter(make_learner, path, layout):
    model, loaded = nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)
    if layout == "channels_last":
        model, loaded = (m.to(memory_format=torch.channels_last) for m in (model, loaded))
    elif layout == "transposed":
        model.weight = nn.Parameter(torch.randn(2, 2, 3, 4).permute(3, 2, 0, 1))
    elif layout == "part":
        model.weight = nn.Parameter(torch.randn(9, 9, 9, 9)[1:5, ::4, :2, 3:5])
    else:
        model.weight = nn.Parameter(torch.randn(4, 1, 1, 1).expand(4, 3, 2, 2))
    strides = loaded.weight.stride()
    make_learner(model=model).save(path)
    assert path.stat().st_size < 2000
    assert torch.equal(load_file(path)["weight"], model.weight)
    make_learner(model=loaded).load(path)
    assert torch.equal(loaded.weight, model.weight)
    assert loaded.weight.stride() == strides


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept(make_learner, path, dtype):
    model, loaded = other(Net()).to(dtype), Net().to(dtype)
    make_learner(model=model).save(path)
    dtypes = {t.dtype for t in load_file(path).values()}
    assert dtypes == {dtype, torch.int64}
    make_learner(model=loaded).load(path)
    assert same(loaded.state_dict(), model.state_dict())


def test_model_keeps_its_dtypes(make_learner, path):
    model, loaded = other(Net()), Net().bfloat16()
    make_learner(model=model).save(path)
    make_learner(model=loaded).load(path)
    assert torch.equal(loaded.head.weight, model.head.weight.bfloat16())
    assert loaded.body[1].num_batches_tracked.dtype is torch.int64


def test_buffer_that_is_not_persistent_is_neither_saved_nor_loaded(make_learner, path):
    model, loaded = other(Net()), Net()
    make_learner(model=model).save(path)
    assert "n_seen" not in load_file(path)
    make_learner(model=loaded).load(path)
    assert loaded.n_seen.tolist() == [0, 0]
    assert (loaded.scale, loaded.body[1].num_batches_tracked) == (
        model.scale,
        model.body[1].num_batches_tracked,
    )


def test_buffer_that_is_in_the_file_is_loaded_whether_persistent_or_not(make_learner, path):
    model, loaded = Net(), Net()
    model.register_buffer("n_seen", torch.tensor([3, 4]))
    make_learner(model=model).save(path)
    make_learner(model=loaded).load(path)
    assert loaded.n_seen.tolist() == [3, 4]


def test_parameters_stay_what_they_are(make_learner, path):
    model, loaded = other(Net()), Net()
    loaded.head.weight.requires_grad_(False)
    params = list(loaded.parameters())
    make_learner(model=model).save(path)
    make_learner(model=loaded).load(path)
    assert all(a is b for a, b in zip(params, loaded.parameters(), strict=True))
    assert (loaded.head.weight.requires_grad, loaded.head.bias.requires_grad) == (False, True)
    assert all(p.is_leaf and p.grad is None for p in loaded.parameters())


def test_file_says_that_it_is_of_torch(make_learner, path):
    make_learner(model=Net()).save(path)
    with safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"format": "pt"}.items()


def test_path_may_be_text(make_learner, path):
    make_learner(model=Net()).save(str(path))
    make_learner(model=Net()).load(str(path))


def test_optimizer_stays_as_it_is(make_learner, path):
    learn = make_learner(model=Net())
    learn.fit()
    before = {name: t.clone() for name, t in learn.opt.state[learn.model.head.weight].items()}
    make_learner(model=other(Net())).save(path)
    learn.load(path)
    assert same(learn.opt.state[learn.model.head.weight], before)


def test_state_that_is_no_tensor_is_refused(make_learner, path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"n": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(TypeError, match=r"^_extra_state.*dict.*safetensors.*checkp"):
        make_learner(model=Extra(3, 2)).save(path)
    assert not path.exists()


def test_extra_state_that_is_a_tensor_is_loaded(make_learner, path):
    loaded = Counting()
    make_learner(model=Counting(5)).save(path)
    make_learner(model=loaded).load(path)
    assert loaded.n == 5


# From a checkpoint ------------------------------------------------------------------------------------


def test_checkpoint_gives_all_tensors_of_the_model(make_learner, checkpoint):
    file, tensors = checkpoint(other(Net()))
    loaded = Net()
    make_learner(model=loaded).load(file)
    assert same(copied(loaded), tensors)


@pytest.mark.parametrize(("saved", "loaded"), [(Net, WRAPPED["parallel"]), (WRAPPED["parallel"], Net)])
def test_checkpoint_goes_into_and_out_of_wrappers(make_learner, checkpoint, saved, loaded):
    file, tensors = checkpoint(other(saved()))
    model = loaded()
    make_learner(model=model).load(file)
    assert same(copied(model), tensors)


def test_checkpoint_of_tied_weights(make_learner, checkpoint):
    file, tensors = checkpoint(other(Tied()))
    loaded = Tied()
    make_learner(model=loaded).load(file)
    assert loaded.a.weight is loaded.b.weight
    assert same(copied(loaded), tensors)


@pytest.mark.parametrize("value", [{"weight": torch.zeros(2, 3)}, [1], torch.zeros(2)])
def test_other_file_of_torch_is_no_checkpoint(make_learner, tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt.*checkpoint"):
        make_learner(model=nn.Linear(3, 2)).load(tmp_path / "model.pt")


def test_checkpoint_that_is_cut_short_is_named(make_learner, checkpoint):
    file, _ = checkpoint(Net())
    file.write_bytes(file.read_bytes()[:-100])
    model = Net()
    before = copied(model)
    with pytest.raises(ValueError, match=r"epoch-0001-train-000000\.pt.*cut short"):
        make_learner(model=model).load(file)
    assert same(copied(model), before)


# What is of another model -----------------------------------------------------------------------------


def two(n=2, **more):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, n))
    for name, part in more.items():
        model.add_module(name, part)
    return model


@pytest.mark.parametrize(
    ("saved", "model", "said"),
    [
        (
            two(5),
            two(),
            r"1.weight.*\(5, 4\).*\(2, 4\).*1.bias.*\(5,\)",
        ),
        (
            two(),
            two(extra=nn.Linear(1, 2)),
            r"extra.weight \(2, 1\).*model.*extra.bias \(2,\)",
        ),
        (
            two(extra=nn.Linear(1, 2)),
            two(),
            r"extra\.\w+ \S+.*file; extra\.\w+.*file",
        ),
        (
            two(),
            nn.Linear(3, 4),
            r"weight \(4, 3\).*model.*bias.*file.*3 more",
        ),
        (nn.Linear(3, 4), nn.Linear(3, 4, bias=False), r"bias \(4,\).*file"),
        (nn.Linear(1, 4), nn.Linear(3, 4), r"weight.*\(4, 1\).*file.*\(4, 3\).*model"),
        (
            nn.Linear(3, 1),
            nn.Linear(3, 4),
            r"weight.*\(1, 3\).*bias.*\(1,\).*file.*\(4,\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_is_changed(make_learner, path, saved, model, said):
    make_learner(model=saved).save(path)
    before = copied(other(model))
    with pytest.raises(ValueError, match=rf"/model\.safetensors.*{said}"):
        make_learner(model=model).load(path)
    assert same(copied(model), before)


@pytest.mark.parametrize(("n", "ending"), [(3, "model$"), (4, "model; 1 more$")])
def test_three_differences_are_named_and_the_others_counted(make_learner, path, n, ending):
    model = nn.Module()
    for i in range(n):
        model.register_buffer(f"b{i}", torch.zeros(1))
    empty = nn.Module()
    empty.register_parameter("w", nn.Parameter(torch.zeros(1)))
    model.register_parameter("w", nn.Parameter(torch.zeros(1)))
    make_learner(model=empty).save(path)
    with pytest.raises(ValueError, match=rf"b0 .*; b1 .*; b2 \(1,\).*{ending}"):
        make_learner(model=model).load(path)


def test_checkpoint_of_another_model_is_refused(make_learner, checkpoint):
    file, _ = checkpoint(two())
    model = Net()
    before = copied(model)
    with pytest.raises(ValueError, match=r"\.pt.*scale \(\).*model.*body\.0\.w"):
        make_learner(model=model).load(file)
    assert same(copied(model), before)


# Broken files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.005, 0.1, 0.5, 0.9, 0.999])
def test_file_that_is_cut_short_is_named(make_learner, path, share):
    make_learner(model=Net()).save(path)
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    model = Net()
    before = copied(model)
    with pytest.raises(ValueError, match=r"model\.safetensors.*cut short"):
        make_learner(model=model).load(path)
    assert same(copied(model), before)


def json_header(contents):
    """Return where the JSON in the contents of a safetensors file ends, and what it is."""
    end = 8 + int.from_bytes(contents[:8], "little")
    return end, contents[8:end]


def at_data(share):
    def damage(contents):
        end, _ = json_header(contents)
        place = end + int(share * (len(contents) - end - 1))
        return contents[:place] + bytes([contents[place] ^ 1]) + contents[place + 1 :]

    return damage


def in_header(old, new):
    return lambda contents: contents.replace(old, new, 1)


DAMAGE = {
    "the first bit": at_data(0),
    "a bit in the middle": at_data(0.5),
    "the last bit": at_data(1),
    "zeros": lambda b: b[:-40] + bytes(40),
    "the dtype": in_header(b'"I64"', b'"F64"'),
    "the shape": in_header(b'"shape":[4,3]', b'"shape":[3,4]'),
    "two names": lambda b: (
        b.replace(b'"head.bias"', b'"HEAD.bias"')
        .replace(b'"body.0.bias"', b'"head.bias"')
        .replace(b'"HEAD', b'"body.0')
    ),
    "the checksum": lambda b: b.replace(b'"sha256":"', b'"sha256":"0', 1).replace(b'0"', b'"', 1),
    "the numbers of another file": None,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_file_that_was_changed_is_refused(make_learner, path, tmp_path, what):
    make_learner(model=Net()).save(path)
    contents = path.read_bytes()
    if what == "the numbers of another file":
        make_learner(model=other(Net())).save(tmp_path / "other.safetensors")
        end, _ = json_header(contents)
        changed = contents[:end] + (tmp_path / "other.safetensors").read_bytes()[end:]
    else:
        changed = DAMAGE[what](contents)
    assert changed != contents
    path.write_bytes(changed)
    model = Net()
    before = copied(model)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        make_learner(model=model).load(path)
    assert same(copied(model), before)


def test_flipped_bit_is_named_a_damage(make_learner, path):
    make_learner(model=Net()).save(path)
    path.write_bytes(at_data(0.5)(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged.*checksum"):
        make_learner(model=Net()).load(path)


NAMES = ["a.pt", "a.pth", "a.bin", "a.ckpt", "a", "a.PT", "a.tar", "a.safetensors.pt", "a.zip"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_whatever_the_name_is(make_learner, tmp_path, name):
    model, loaded = other(Net()), Net()
    make_learner(model=model).save(tmp_path / name)
    make_learner(model=loaded).load(tmp_path / name)
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["a.safetensors", "a", "a.bin"])
def test_checkpoint_under_another_name_is_loaded(make_learner, checkpoint, tmp_path, name):
    file, tensors = checkpoint(other(Net()))
    file.rename(tmp_path / name)
    model = Net()
    make_learner(model=model).load(tmp_path / name)
    assert same(copied(model), tensors)


@pytest.mark.parametrize("kind", ["a checkpoint", "a file of torch"])
def test_checkpoint_is_not_written_over(make_learner, checkpoint, tmp_path, kind):
    file, _ = checkpoint(Net())
    if kind == "a file of torch":
        file = tmp_path / "mine.pt"
        torch.save(Net().state_dict(), file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=rf"{file.name}.*lost"):
        make_learner(model=Net()).save(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.bool])
def test_checksum_is_of_any_dtype(make_learner, path, dtype):
    model = nn.Linear(3, 2)
    model.register_buffer("odd", torch.ones(3, dtype=dtype))
    model.register_buffer("empty", torch.ones(0, dtype=dtype))
    make_learner(model=model).save(path)
    make_learner(model=model).load(path)


@pytest.mark.parametrize("contents", [b"PK\x03\x04" + bytes(100), b"\xff" * 100, bytes(8) + b"{}"])
def test_file_of_another_kind_is_named(make_learner, path, contents):
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        make_learner(model=Net()).load(path)


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt", "folder"])
def test_file_that_is_not_there_is_named(make_learner, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name}"):
        make_learner(model=Net()).load(tmp_path / name)


def test_file_of_others_is_loaded(make_learner, path):
    model, loaded = other(Net()), Net()
    save_file({name: t.clone() for name, t in model.state_dict().items()}, path)
    make_learner(model=loaded).load(path)
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_old_file_is_whole_when_saving_fails(make_learner, path, monkeypatch, name):
    model = other(Net())
    make_learner(model=model).save(path)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match=r"No space left on device.*'.*/model\.safeten"):
        make_learner(model=Net()).save(path)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert same(load_file(path), dict(model.state_dict()))


def test_folder_that_is_not_there_is_named(make_learner, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/model\.safetensors"):
        make_learner(model=Net()).save(tmp_path / "none" / "model.safetensors")


def test_learner_loads_what_it_saved(path):
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 2
    learn = Learner(Net(), {"train": batches}, default_cbs=False)
    learn.save(path)
    before = copied(learn.model)
    learn.fit()
    assert not same(copied(learn.model), before)
    learn.load(path)
    assert all(torch.equal(before[name], t) for name, t in learn.model.state_dict().items())
