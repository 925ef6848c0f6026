"""Files of learn.export that somebody changed: they are refused, or predict, and run nothing."""

import io
import json
import os
import pickle
import random
import zipfile
from contextlib import suppress

import pytest
import torch
from toolbox import mentions
from torch import nn

from minilearn import load_predictor
from minilearn.inference.exporting import export
from minilearn.inference.operators import operator_of

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Return the members of a good file: name below its folder -> bytes."""
    path = tmp_path_factory.mktemp("good") / "net.pt2"
    torch.manual_seed(0)
    export(Net(), path, torch.randn(4, 1, 5, 5), ["a", "b"])
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path, members, root="net", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}" if root else name, data)
    return path


class Payload:
    """Make a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(marker):
    return pickle.dumps(Payload(marker))


def saved(marker):
    data = io.BytesIO()
    torch.save(Payload(marker), data)
    return data.getvalue()


def in_json(members, name, change):
    """Change a member of JSON in place."""
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def config(members):
    return json.loads(members[WEIGHTS])["config"]


def of_weights(change):
    def tamper(members, marker):
        in_json(members, WEIGHTS, lambda content: change(content["config"]["head.weight"]))

    return tamper


def of_graph(change):
    def tamper(members, marker):
        in_json(members, MODEL, lambda content: change(content["graph_module"]["graph"], content))

    return tamper


def of_target(target):
    return of_graph(lambda graph, _: graph["nodes"][0].update(target=target))


def argument(value):
    return of_graph(lambda graph, _: graph["nodes"][0]["inputs"][0].update(arg=value))


def adds(name, data=pickled):
    def tamper(members, marker):
        members[name] = data(marker)

    return tamper


def pickled_weight(members, marker):
    entry = config(members)["head.weight"]
    members[f"data/weights/{entry['path_name']}"] = saved(marker)
    in_json(members, WEIGHTS, lambda content: content["config"]["head.weight"].update(use_pickle=True))


def pickled_constant(kind):
    def tamper(members, marker):
        name = f"data/constants/{kind}_0"
        members[name] = pickled(marker)
        entry = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        in_json(
            members, "data/constants/model_constants_config.json", lambda c: c["config"].update(evil=entry)
        )

    return tamper


def about(**changes):
    def tamper(members, marker):
        in_json(members, "extra/minilearn.json", lambda content: content.update(changes))

    return tamper


CODE = "__import__('os').mkdir('MARKER')"
REFUSED = {
    "pickled weight": pickled_weight,
    **{f"pickled {kind}": pickled_constant(kind) for kind in ("tensor", "custom_obj", "opaque_obj")},
    "pickled weight without its mark": of_weights(lambda e: e.update(path_name="../../models/model.json")),
    "weight elsewhere": of_weights(lambda e: e.update(path_name="/etc/passwd")),
    "legacy program": adds("serialized_exported_program.json"),
    "legacy state": adds("serialized_state_dict.pt"),
    "legacy constants": adds("serialized_constants.pt"),
    "pickle of torch.save": adds("data.pkl"),
    "torchscript": adds("code/__torch__.py"),
    "compiled code": adds("data/aotinductor/model/model.so"),
    "custom object": adds("data/constants/custom_obj_0"),
    "opaque object": adds("data/constants/opaque_obj_0"),
    "second model": adds("models/other.json"),
    "foreign extra file": adds("extra/other.py"),
    "name that climbs": adds("../evil.py"),
    "load_library": of_target("torch.ops.load_library"),
    "file of another": of_target("torch.ops.aten.from_file.default"),
    "memory of another": of_target("torch.ops.aten.set_.source_Storage_storage_offset"),
    "as_strided": of_target("torch.ops.aten.as_strided.default"),
    "higher order": of_target("torch.ops.higher_order.cond"),
    "other namespace": of_target("torch.ops.prims.add.default"),
    "attribute getter": of_target("_operator.attrgetter"),
    "method caller": of_target("_operator.methodcaller"),
    "function of os": of_target("os.system"),
    "function of builtins": of_target("builtins.eval"),
    "attribute of an operator": of_target("torch.ops.aten.conv2d.__class__"),
    "no such overload": of_target("torch.ops.aten.conv2d.other"),
    "graph argument": argument({"as_graph": {"name": "g", "graph": {}}}),
    "custom argument": argument({"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}),
    "operator argument": argument({"as_operator": "os.system"}),
    "argument of two kinds": argument({"as_int": 1, "as_float": 2.0}),
    "text for a number": argument({"as_int": CODE}),
    "changes a buffer": of_graph(
        lambda graph, content: content["graph_module"]["signature"]["output_specs"].append(
            {"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "norm.running_mean"}}
        )
    ),
    "offset outside": of_weights(lambda e: e["tensor_meta"].update(storage_offset={"as_int": 10**6})),
    "stride outside": of_weights(
        lambda e: e["tensor_meta"].update(strides=[{"as_int": 9}, {"as_int": 10**9}])
    ),
    "size outside": of_weights(lambda e: e["tensor_meta"].update(sizes=[{"as_int": 2}, {"as_int": 999}])),
    "negative size": of_weights(lambda e: e["tensor_meta"].update(sizes=[{"as_int": -2}, {"as_int": -3}])),
    "size as an expression": of_weights(
        lambda e: e["tensor_meta"].update(sizes=[{"as_expr": {"expr_str": CODE}}, {"as_int": 3}])
    ),
    "unknown dtype": of_weights(lambda e: e["tensor_meta"].update(dtype=99)),
    "no model": lambda members, marker: members.pop(MODEL),
    "no weights": lambda members, marker: members.pop(WEIGHTS),
    "no description": lambda members, marker: members.pop("extra/minilearn.json"),
    "model that is no JSON": adds(MODEL),
    "deep JSON": adds(MODEL, lambda marker: b"[" * 10**5),
    "numbers of another order": adds("byteorder", lambda marker: b"big"),
    "classes that are a number": about(classes=3),
    "other number of classes": about(classes=["a", "b", "c"]),
    "foreign transform": about(transform={"kind": "os.system"}),
    "transform of text": about(transform={"kind": "pixels", "mean": [CODE], "std": [1], "size": [5, 5]}),
    "other format": about(format=2),
}
HARMLESS = {  # what torch.export.load unpickles or evaluates, and nothing here reads
    "sample inputs": adds("data/sample_inputs/model.pt", saved),
    "guards": of_graph(lambda graph, content: content.update(guards_code=[CODE])),
    "range of a size": of_graph(
        lambda graph, content: content.update(range_constraints={CODE: {"min_val": 0, "max_val": 9}})
    ),
    "value of a size": of_graph(
        lambda graph, content: graph.update(sym_int_values={CODE: {"as_expr": {"expr_str": CODE}}})
    ),
    "where a node came from": of_graph(
        lambda graph, content: graph["nodes"][0]["metadata"].update(nn_module_stack=CODE, torch_fn=CODE)
    ),
    "form of the call": of_graph(
        lambda graph, content: content["graph_module"].update(
            module_call_graph=[{"fqn": "", "signature": {"in_spec": CODE, "out_spec": CODE}}]
        )
    ),
}


@pytest.fixture
def tampered(members, tmp_path, monkeypatch):
    """Return a function: how a file is changed -> its path, after which no payload may have run."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "MARKER"

    def make(tamper):
        changed = dict(members)
        tamper(changed, marker)
        return written(tmp_path / "net.pt2", changed)

    yield make
    assert not marker.exists()


def test_payload_runs_where_it_is_unpickled(tmp_path):
    pickle.loads(pickled(tmp_path / "MARKER"))
    assert (tmp_path / "MARKER").is_dir()


@pytest.mark.parametrize("how", REFUSED)
def test_changed_file_is_refused_with_its_path(tampered, how):
    path = tampered(REFUSED[how])
    with pytest.raises(ValueError, match=mentions("net.pt2")):
        load_predictor(path)(torch.zeros(2, 1, 5, 5))


@pytest.mark.parametrize("how", HARMLESS)
def test_what_is_not_read_changes_nothing(tampered, how, members, tmp_path):
    x = torch.randn(3, 1, 5, 5)
    changed = load_predictor(tampered(HARMLESS[how]))(x)
    good = load_predictor(written(tmp_path / "good.pt2", members))(x)
    assert [(p.label, p.probability) for p in changed] == [(p.label, p.probability) for p in good]


def test_name_that_is_there_twice_is_refused(members, tmp_path):
    path = written(tmp_path / "net.pt2", members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"net/{MODEL}", members[MODEL])
    with pytest.raises(ValueError, match="twice"):
        load_predictor(path)


def test_two_folders_are_refused(members, tmp_path):
    path = written(tmp_path / "net.pt2", members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"other/{MODEL}", members[MODEL])
    with pytest.raises(ValueError, match="folders"):
        load_predictor(path)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_file_is_refused_or_predicts(members, tmp_path, seed):
    path = written(tmp_path / "net.pt2", members)
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(3):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if seed % 2 else data[: rng.randrange(len(data))])
    with suppress(ValueError):
        load_predictor(path)(torch.zeros(2, 1, 5, 5))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt2"):
        load_predictor(tmp_path / "none.pt2")


@pytest.mark.parametrize(
    "target", ["torch.ops.aten.add_.Tensor", "torch.ops.aten.conv2d.default", "_operator.mul"]
)
def test_operator_is_found(target):
    assert callable(operator_of(target))


def test_check_of_a_value_is_left_out():
    assert operator_of("torch.ops.aten._assert_scalar.default") is None
