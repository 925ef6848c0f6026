import enum
import io
import logging
import math
import random
import struct
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from torch import nn

from minilearn.checkpoints.codec import (
    LEFT,
    Loader,
    Saver,
    differences,
    digest_of,
    first_difference,
    has_state,
)

ADVICE = r"state_dict\(self\).*load_state_dict\(self, state\)"


def written_and_read(saved):
    """Take saved forms through a file; they come back as they were."""
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert first_difference(saved, read) == ""
    return read


def save(value, shared=(), module=__name__):
    return Saver(shared, module).save(value, "cb.x")


def load(saved, live=None, module=__name__):
    return Loader(torch.device("cpu"), module).load(saved, live, "cb.x")


def round_trip(value, live=None, module=__name__):
    return load(written_and_read(save(value, module=module)), live, module)


class Point(namedtuple("Point", "x y")):
    __slots__ = ()


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@dataclass(frozen=True)
class Frozen:
    mom: float
    names: list


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Meters(float):
    pass


class Slotted:
    __slots__ = ("__dict__", "n")


class Iterating(Plain):
    def __iter__(self):
        return iter(())


class Stateful:
    """Gives its state itself, under another name than its attribute's."""

    def __init__(self, n):
        self.n, self.function = n, print

    def state_dict(self):
        return {"number": self.n}

    def load_state_dict(self, state):
        self.n = state["number"]


# Round trips ------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    3,
    -(2**100),
    0.1,
    math.inf,
    1 + 2j,
    "",
    "Größe\n\0",
    b"\x00\xff",
    torch.bfloat16,
    [],
    {},
    (),
    set(),
    [1, [2, (3, {"a": [4]})]],
    {"a": {"b": ({"c": 1},)}, 2: "two", 1.5: 1, None: 0, ("x", 3): [5], b"k": 6, True: 7},
    (1, (2,), []),
    pytest.param({1, 2, "three", (4, 5)}, id="a set"),  # its repr has another order in each process
    frozenset([1, frozenset([2])]),
    Counter("abca"),
    OrderedDict(b=1, a=2),
    deque([1, 2, 3]),
    deque([1, 2, 3], maxlen=3),
    Path("a/b c"),
    torch.device("cpu"),
    torch.device("cuda", 1),
    ("left",),
    ("tensor", 3),
    ["set", [1]],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_is_the_same_after_it_was_saved_and_loaded(value):
    loaded = round_trip(value)
    assert loaded == value
    assert type(loaded) is type(value)


def test_containers_inside_keep_their_kinds():
    inner = round_trip([(1,), {2}, deque([3], 4), Counter(a=5), OrderedDict(b=6), frozenset([7])])
    assert [type(x) for x in inner] == [tuple, set, deque, Counter, OrderedDict, frozenset]
    assert inner[2].maxlen == 4


def test_ordered_dict_keeps_its_order():
    assert list(round_trip(OrderedDict(b=1, a=2, c=3))) == ["b", "a", "c"]


def test_dict_keeps_its_order():
    assert list(round_trip({"b": 1, "a": 2, 3: 3})) == ["b", "a", 3]


def test_a_shape_becomes_a_tuple():
    assert round_trip(torch.Size([2, 3])) == (2, 3)


def test_nan_stays_nan():
    assert math.isnan(round_trip(math.nan))


def test_minus_zero_stays_minus_zero():
    assert struct.pack("d", round_trip(-0.0)) == struct.pack("d", -0.0)


def test_pure_path_becomes_a_path():
    assert round_trip(PurePosixPath("a/b")) == Path("a/b")


@pytest.mark.parametrize("value", [b"", 2**5000, -(2**5000)], ids=["no bytes", "large", "large negative"])
def test_what_the_reader_has_no_code_for_is_the_same(value):
    assert round_trip(value) == value


def test_defaultdict_has_the_factory_that_is_there():
    def new():
        return 7

    loaded = round_trip(defaultdict(list, a=[1]), defaultdict(new, b=[2]))
    assert loaded == {"a": [1]}
    assert (type(loaded), loaded.default_factory) == (defaultdict, new)


def test_defaultdict_without_one_there_has_no_factory():
    loaded = round_trip(defaultdict(list, a=[1]))
    assert (type(loaded), loaded.default_factory) == (defaultdict, None)


def test_named_tuple_of_the_module_is_built_anew():
    loaded = round_trip(Point(1, [2]))
    assert (type(loaded), loaded) == (Point, (1, [2]))


def test_named_tuple_keeps_what_is_left_out():
    loaded = round_trip(Point(1, print), Point(0, len))
    assert loaded == Point(1, len)


# Tensors ----------------------------------------------------------------------------------------------

TENSORS = {
    "float32": torch.randn(2, 3),
    "float64": torch.randn(2, dtype=torch.float64),
    "bfloat16": torch.randn(3).bfloat16(),
    "float16": torch.randn(3).half(),
    "int64": torch.arange(4),
    "uint8": torch.arange(4, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "complex64": torch.randn(2, dtype=torch.complex64),
    "0-dim": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "nan": torch.tensor([math.nan, math.inf, -0.0]),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "strided": torch.arange(10.0)[::3],
    "expanded": torch.ones(1).expand(4),
    "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "conjugated": torch.randn(2, dtype=torch.complex64).conj().resolve_conj(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_has_the_same_bits(name):
    value = TENSORS[name]
    loaded = round_trip(value)
    assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape)
    assert loaded.contiguous().view(-1).view(torch.uint8).tolist() == (
        value.contiguous().view(-1).view(torch.uint8).tolist()
    )


def test_layout_in_memory_stays():
    value = TENSORS["channels_last"]
    assert round_trip(value).stride() == value.stride()


def test_loaded_tensor_is_one_of_its_own():
    saved = save(torch.zeros(2))
    load(saved).add_(1)
    assert saved.tolist() == [0, 0]


def test_saved_tensor_shares_its_memory():
    value = torch.zeros(2)
    assert save(value).data_ptr() == value.data_ptr()


def test_only_the_part_of_a_view_is_saved():
    file = io.BytesIO()
    torch.save(save({"part": torch.zeros(100_000)[5:8]}), file)
    assert len(file.getvalue()) < 4000


def test_tensor_of_a_graph_is_saved_without_it():
    value = torch.ones(2, requires_grad=True) * 2
    saved = save(value)
    assert not saved.requires_grad
    assert round_trip(value).tolist() == [2, 2]


def test_parameter_that_is_there_is_filled():
    live = nn.Parameter(torch.zeros(2))
    assert round_trip(nn.Parameter(torch.ones(2)), live) is live
    assert (live.tolist(), live.requires_grad) == ([1, 1], True)


@pytest.mark.parametrize("live", [None, nn.Parameter(torch.zeros(3)), torch.zeros(2)])
def test_else_a_parameter_becomes_a_tensor(live):
    loaded = round_trip(nn.Parameter(torch.ones(2)), live)
    assert (type(loaded), loaded.tolist()) == (torch.Tensor, [1, 1])
    assert live is None or not live.any()


def test_tensor_of_another_device_goes_to_the_devices_of_the_loader():
    saved = save({"x": torch.zeros(2, device="meta")})
    assert saved["x"][0] == "tensor"
    loaded = Loader(torch.device("meta"), "").load({"x": ("tensor", torch.ones(2))}, None, "")
    assert loaded["x"].device.type == "meta"


def test_tensor_of_the_cpu_stays_there():
    loaded = Loader(torch.device("meta"), "").load(save([torch.ones(2)]), None, "")
    assert loaded[0].device.type == "cpu"


# Numpy and random numbers -----------------------------------------------------------------------------

ARRAYS = [
    np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("i1", "u2", "<i4", ">i4", "i8", "f2", "f4", ">f8")
]
ARRAYS += [
    np.array([True, False]),
    np.array([1 + 2j]),
    np.zeros((2, 1, 1)),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::3],
    np.array([math.nan, -0.0]),
    np.float64(0.1),
    np.float32(0.1),
    np.int16(-3),
    np.bool_(True),
    np.complex64(1j),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{type(value).__name__} {value.dtype.str}")
def test_array_has_the_same_bits(value):
    loaded = round_trip(value)
    assert (type(loaded), loaded.dtype, loaded.shape) == (type(value), value.dtype, value.shape)
    assert loaded.tobytes() == value.tobytes()


def test_array_of_no_dimension_stays_one_where_it_is_one():
    loaded = round_trip(np.array(3.0), np.array(0.0))
    assert (type(loaded), loaded.shape, loaded) == (np.ndarray, (), 3.0)


def test_array_can_be_written_to():
    loaded = round_trip(np.zeros(2))
    loaded += 1
    assert loaded.tolist() == [1, 1]


def test_empty_array_is_the_same():
    assert round_trip(np.zeros((0, 3), "f4")).shape == (0, 3)


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([None]), np.array(["2026"], "M8[Y]"), np.random.RandomState(0)]
)
def test_array_of_no_numbers_is_refused(value):
    with pytest.raises(TypeError, match=rf"^cb.x.*(ndarray|RandomState).*{ADVICE}"):
        save(value)


def test_array_with_more_than_numbers_is_refused():
    with pytest.raises(TypeError, match=r"cb.x.*MaskedArray"):
        save(np.ma.array([1, 2], mask=[False, True]))


GENERATORS = {
    "torch": (
        lambda seed: torch.Generator().manual_seed(seed),
        lambda g: torch.rand(3, generator=g).tolist(),
    ),
    "python": (random.Random, lambda g: [g.random(), g.gauss(0, 1)]),
    "PCG64": (np.random.default_rng, lambda g: g.normal(size=3).tolist()),
    "Philox": (lambda seed: np.random.Generator(np.random.Philox(seed)), lambda g: g.random(3).tolist()),
    "MT19937": (lambda seed: np.random.Generator(np.random.MT19937(seed)), lambda g: g.random(3).tolist()),
}


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_goes_on(name, is_there):
    make, draw = GENERATORS[name]
    generator, live = make(1), make(2) if is_there else None
    draw(generator)  # of python's, a gauss keeps its second number
    saved = written_and_read(save(generator))
    expected = draw(generator)
    loaded = load(saved, live)
    assert draw(loaded) == expected
    assert not is_there or loaded is live


# What is there keeps its identity ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "live"),
    [
        ([1, 2], [3]),
        ([], [1, 2]),
        ([1, 2], [3, 4, 5]),
        ({"a": 1}, {"b": 2}),
        ({"a": [1]}, {"a": [2, 3], "b": 4}),
    ],
)
def test_list_or_dict_that_is_there_gets_the_contents(value, live):
    assert round_trip(value, live) is live
    assert live == value


def test_lists_and_dicts_inside_keep_their_identity():
    inner_list, inner_dict = [0], {"b": 0}
    live = {"a": [inner_list, 5], "t": (inner_dict,)}
    loaded = round_trip({"a": [[1, 2]], "t": ({"b": 1},)}, live)
    assert loaded == {"a": [[1, 2]], "t": ({"b": 1},)}
    assert loaded["a"][0] is inner_list
    assert loaded["t"][0] is inner_dict


def test_items_of_a_deque_keep_their_identity():
    inner = [0]
    loaded = round_trip(deque([[1]]), deque([inner]))
    assert loaded[0] is inner
    assert inner == [1]


def test_dict_gets_the_order_of_the_saved_one():
    live = {"a": 0, "b": 0}
    round_trip({"b": 1, "a": 2}, live)
    assert list(live) == ["b", "a"]


@pytest.mark.parametrize(("value", "live"), [([1], {"a": 1}), ({"a": 1}, [1]), ([1], (1,)), ({"a": 1}, None)])
def test_what_is_of_another_kind_is_replaced(value, live):
    before = repr(live)
    assert round_trip(value, live) == value
    assert repr(live) == before


def test_list_under_two_names_becomes_two_where_two_were_saved():
    one = []
    live = Plain(best=one, last=one)
    loaded = round_trip(Plain(best=[1], last=[2]), live)
    assert (loaded.best, loaded.last) == ([1], [2])


def test_list_under_two_names_stays_one_where_one_was_saved():
    one, value = [], [1, 2]
    loaded = round_trip(Plain(best=value, last=value), Plain(best=one, last=one))
    assert loaded.best is loaded.last is one
    assert one == [1, 2]


# What is left out -------------------------------------------------------------------------------------

LEFT_OUT = {
    "function": test_nan_stays_nan,
    "lambda": lambda: 0,
    "built-in function": len,
    "method": "x".join,
    "bound method": Plain().__init__,
    "partial": partial(print, 1),
    "class": Plain,
    "module": math,
    "logger": logging.getLogger("x"),
    "weak reference": weakref.ref(Plain),
    "text in memory": io.StringIO(),
    "bytes in memory": io.BytesIO(),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_belongs_to_the_program_is_left_out(name):
    value = LEFT_OUT[name]
    assert save(value) == LEFT
    assert save([value, 1]) == [LEFT, 1]


def test_open_file_is_left_out(tmp_path):
    with open(tmp_path / "log", "w") as file:
        assert save(file) == LEFT


def test_what_is_left_out_stays_as_it_is_there():
    live = {"function": len, "n": 0, "inner": [len, 0]}
    loaded = round_trip({"function": print, "n": 1, "inner": [print, 2]}, live)
    assert loaded == {"function": len, "n": 1, "inner": [len, 2]}


def test_entry_that_was_left_out_and_is_not_there_is_missing():
    assert round_trip({"function": print, "n": 1}, {}) == {"n": 1}


def test_attribute_that_was_left_out_stays():
    live = Plain(function=len, n=0)
    loaded = round_trip(Plain(function=print, n=1), live)
    assert (loaded.function, loaded.n) == (len, 1)


def test_item_that_was_left_out_and_is_not_there_is_none():
    assert round_trip([1, print], [0]) == [1, None]


def test_shared_objects_are_left_out_wherever_they_are():
    shared, model = [1], nn.Linear(1, 1)
    value = {"a": shared, "b": (shared, [1]), "model": model, "weight": model.weight}
    saved = save(value, [shared, model, model.weight])
    assert saved == {"a": LEFT, "b": ("tuple", [LEFT, [1]]), "model": LEFT, "weight": LEFT}


# Objects ----------------------------------------------------------------------------------------------


def test_object_of_the_module_is_built_anew():
    loaded = round_trip(Plain(a=1, b=[Plain(c=torch.ones(1))], d=(2,)))
    assert type(loaded) is type(loaded.b[0]) is Plain
    assert (loaded.a, loaded.b[0].c.item(), loaded.d) == (1, 1, (2,))


def test_frozen_dataclass_of_the_module_is_built_anew():
    assert round_trip(Frozen(0.5, ["a"])) == Frozen(0.5, ["a"])


def test_object_that_is_there_gets_the_attributes():
    names = []
    live = Plain(names=names, n=0, other=5)
    assert round_trip(Plain(names=["a"], n=1), live) is live
    assert vars(live) == {"names": ["a"], "n": 1, "other": 5}
    assert live.names is names


def test_object_of_another_class_is_replaced():
    live = Frozen(0.5, [])
    loaded = round_trip(Plain(a=1), live)
    assert (type(loaded), loaded.a) == (Plain, 1)
    assert live == Frozen(0.5, [])


def test_object_of_another_module_is_loaded_into_the_one_that_is_there():
    live = Plain(a=0)
    assert round_trip(Plain(a=1), live, module="math") is live
    assert live.a == 1


def test_object_of_another_module_is_not_built():
    saved = save(Plain(a=1), module="math")
    with pytest.raises(ValueError, match=rf"^cb.x.*Plain.*None.*{ADVICE}"):
        load(saved, module="math")


def test_name_in_the_module_that_is_no_class_is_not_called():
    saved = ("object", "pi", {})
    with pytest.raises(ValueError, match=r"cb.x.*pi.*5"):
        load(saved, 5, module="math")


def test_object_with_state_is_loaded_by_itself():
    live = Stateful(0)
    assert save(Stateful(3)) == ("state", "Stateful", {"number": 3})
    assert round_trip(Stateful(3), live) is live
    assert live.n == 3


def test_object_with_state_that_is_not_there_is_not_built():
    saved = save({"best": [Stateful(3)]})
    with pytest.raises(ValueError, match=r"^cb.x.best\[0\].*Stateful.*None"):
        load(saved, {"best": []})


def test_object_with_state_is_not_loaded_into_another_kind():
    with pytest.raises(ValueError, match=r"Stateful.*<.*Plain object"):
        load(save(Stateful(3)), Plain())


def test_optimizer_and_module_are_objects_with_state():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    assert round_trip(model, other) is other
    assert torch.equal(model.weight, other.weight)
    opts = [torch.optim.Adam(m.parameters()) for m in (model, other)]
    model(torch.ones(1, 2)).sum().backward()
    opts[0].step()
    round_trip(opts[0], opts[1])
    assert torch.equal(opts[1].state[other.weight]["exp_avg"], opts[0].state[model.weight]["exp_avg"])


@pytest.mark.parametrize(
    ("value", "needs"),
    [
        (Plain(a=1), set()),
        ([Stateful(1), {"b": Stateful(2)}], {"cb.x[0]", "cb.x[1].b"}),
        (Plain(inner=Stateful(1)), {"cb.x.inner"}),
        ([1, (torch.ones(1), Counter("a"))], set()),
    ],
)
def test_saver_says_what_can_be_loaded_only_into_what_is_there(value, needs):
    saver = Saver([], __name__)
    saver.save(value, "cb.x")
    assert saver.needs == needs


def test_saver_says_that_objects_of_other_modules_are_needed():
    saver = Saver([], "math")
    saver.save({"a": [Plain(b=Plain())]}, "cb.x")
    assert saver.needs == {"cb.x.a[0]", "cb.x.a[0].b"}


@pytest.mark.parametrize(("value", "expected"), [(Stateful(1), True), (nn.ReLU(), True), (Plain(), False)])
def test_state_needs_both_methods(value, expected):
    assert has_state(value) is expected
    assert has_state(Plain(state_dict=dict)) is False
    assert has_state(Plain(state_dict=dict, load_state_dict=3)) is False


def test_member_of_an_enum_is_the_same():
    before = dict(vars(Mode.FAST))
    loaded, after = round_trip(Mode.SLOW, Mode.FAST), dict(vars(Mode.FAST))
    vars(Mode.FAST).update(before)
    assert after == before
    assert loaded is Mode.SLOW
    assert round_trip(Mode.SLOW) is Mode.SLOW


def slotted():
    value = Slotted()
    value.n = 3
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Meters(3), id="a number with a class"),
        pytest.param(ValueError("why"), id="an error"),
        pytest.param(slotted(), id="slots"),
    ],
)
def test_object_with_more_than_attributes_is_refused(value):
    with pytest.raises(TypeError, match=rf"^cb.x .*{ADVICE}"):
        save(value)


# What cannot be saved ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (range(3), r"cb.x.*range"),
        ({"a": [1, iter([])]}, r"cb.x.a\[1\].*list_iterator"),
        ({"not a name": object()}, r"cb.x\['not a name'\].*object"),
        ({3: slice(1)}, r"cb.x\[3\].*slice"),
        ((1, {2: bytearray()}), r"cb.x\[1\]\[2\].*bytearray"),
        (Plain(inner=Plain(values=(x for x in ()))), r"cb.x.inner.values.*generator"),
        (Iterating(), r"cb.x.*Iterating"),
        (Stateful(range(2)), r"cb.x.number.*range"),
        (deque([range(2)]), r"cb.x\[0\].*range"),
        (Point(1, range(2)), r"cb.x.y.*range"),
        ({"a": {"b": type("Text", (str,), {})("x")}}, r"cb.x.a.b.*Text"),
        ([type("List", (list,), {})()], r"cb.x\[0\].*List"),
    ],
)
def test_path_of_what_cannot_be_saved_is_named(value, said):
    with pytest.raises(TypeError, match=rf"^{said}.*{ADVICE}"):
        save(value)


@pytest.mark.parametrize("key", [Point(1, 2), frozenset([1]), (1, (2,)), np.int64(3), Path("a"), Plain])
def test_key_that_is_no_text_or_number_is_refused(key):
    with pytest.raises(TypeError, match=r"^cb.x.a.*key.*text"):
        save({"a": {key: 1}})


def test_cycle_is_named():
    cycle = {"a": [1]}
    cycle["a"].append(cycle)
    with pytest.raises(TypeError, match=rf"^cb.x.a\[1\].*itself.*{ADVICE}"):
        save(cycle)


def test_object_that_leads_back_to_itself_is_named():
    node = Plain()
    node.next = Plain(previous=node)
    with pytest.raises(TypeError, match=r"cb.x.next.previous"):
        save(node)


def test_the_same_object_twice_is_no_cycle():
    one = [1]
    assert save([one, one, {"a": one}]) == [[1], [1], {"a": [1]}]


def test_advice_may_be_another():
    with pytest.raises(TypeError, match=r"^x.*range.*list"):
        Saver([], "", "make it a list").save(range(3), "x")


# Differences ------------------------------------------------------------------------------------------

T = torch.tensor
SAME = [
    (math.nan, math.nan),
    ([1, {"a": 2.5}], [1, {"a": 2.5}]),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (T([math.nan, 1.0]), T([math.nan, 1.0])),
    (torch.arange(6.0).view(2, 3).t(), torch.arange(6.0).view(2, 3).t().contiguous()),
    (torch.zeros(0), torch.zeros(0)),
    (T(1.5).bfloat16(), T(1.5).bfloat16()),
    (nn.Parameter(T([1.0])), T([1.0])),
    ("x", "x"),
    (None, None),
    (b"x", b"x"),
]


@pytest.mark.parametrize(("a", "b"), SAME, ids=range(len(SAME)))
def test_same_forms_have_no_difference(a, b):
    assert list(differences({"x": a}, {"x": b})) == []
    assert first_difference(a, b) == ""


one_bit_more = T([1.0, np.nextafter(np.float32(2), np.float32(3)), 3.0])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 2, [("", "1 and 2")]),
        (1, 1.0, [("", "1 and 1.0")]),
        (1, True, [("", "1 and True")]),
        (None, 0, [("", "None and 0")]),
        (0.1, 0.1 + 2**-56, [("", "0.1 and 0.10000000000000002")]),
        (1.0, math.nan, [("", "1.0 and nan")]),
        ("a", b"a", [("", "'a' and b'a'")]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", "2 and 3")]),
        ({"a": 1}, {}, [("a", "only in the first")]),
        ({}, {2: 1}, [("2", "only in the second")]),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, [("a.b", "only in the first"), ("a.c", "only in the second")]),
        ([1, 2], [1], [("", "[1, 2] and [1]")]),
        (("set", [1]), ("set", [2]), [("[1][0]", "1 and 2")]),
        ([1, 2, 3], [0, 2, 4], [("[0]", "1 and 0"), ("[2]", "3 and 4")]),
        ({"a": [1]}, {"a": {"b": 1}}, [("a", "[1] and {'b': 1}")]),
        (T([1.0, 2.0, 3.0]), one_bit_more, [("", "1 of 3 numbers differ")]),
        (T([1, 2, 3]), T([0, 0, 0]), [("", "3 of 3 numbers differ")]),
        (T([1.0]), T([1.0]).double(), [("", "(1,) torch.float32 and (1,) torch.float64")]),
        (T([1.0]), T([[1.0]]), [("", "(1,) torch.float32 and (1, 1) torch.float32")]),
        (T([1.0]), 1.0, [("", "(1,) torch.float32 and 1.0")]),
        (1.0, T(1.0), [("", "1.0 and () torch.float32")]),
        (T([1.0]), None, [("", "(1,) torch.float32 and None")]),
    ],
)
def test_each_difference_is_named(a, b, expected):
    assert list(differences(a, b)) == expected
    path, how = expected[0]
    assert first_difference(a, b) == f"{path}: {how}"


def test_long_values_are_cut():
    assert first_difference("a" * 100, "b") == f": '{'a' * 76}... and 'b'"
    assert first_difference("a" * 78, "b") == f": '{'a' * 76}... and 'b'"
    assert first_difference("a" * 77, "b") == f": '{'a' * 77}' and 'b'"


def test_sign_of_zero_is_a_difference():
    assert first_difference(0.0, -0.0) == ": 0.0 and -0.0"


@pytest.mark.parametrize(
    ("a", "b", "n"), [([0.0, 1.0], [-0.0, 1.0], 1), ([math.nan, 1.0], [math.nan, 2.0], 1)]
)
def test_numbers_that_differ_in_a_bit_are_counted(a, b, n):
    assert first_difference(T(a), T(b)) == f": {n} of 2 numbers differ"


def test_conjugate_is_compared_by_its_values():
    value = T([1 + 2j])
    assert first_difference(value.conj(), T([1 - 2j])) == ""
    assert first_difference(value.conj(), value) != ""


def test_order_of_a_set_is_no_difference():
    # Both numbers have the same place in a table of 8, so the one that came first is the first.
    assert list({8, 0}) != list({0, 8})
    assert first_difference(save({8, 0}), save({0, 8})) == ""


def test_one_number_of_a_larger_tensor_has_a_digest():
    part = torch.arange(3.0).reshape(1, 3)[:, 1]
    assert part.stride() == (3,)
    assert digest_of(part) == digest_of(torch.ones(1)) != digest_of(torch.zeros(1))
