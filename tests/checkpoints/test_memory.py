"""State kept in memory: back in the same objects, whatever was done to them."""

from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from minilearn.checkpoints.memory import Memory


def kept(*values, shared=()):
    memory = Memory(shared)
    memory.keep(*values)
    return memory


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1, [2]], lambda v: (v[1].append(3), v.pop(0))),
        ({"a": {"b": 1}}, lambda v: (v["a"].clear(), v.update(c=2))),
        ({1, 2}, lambda v: v.clear()),
        (deque([1, 2], 3), lambda v: v.extend([3, 4])),
        (OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
        (defaultdict(list, a=[1]), lambda v: v["b"].append(1)),
        (([1], 2), lambda v: v[0].append(2)),
        (SimpleNamespace(n=1, log=[1]), lambda v: (setattr(v, "n", 2), v.log.append(2))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contents_are_back_in_the_same_object(value, change):
    before, memory = repr(value), kept(value)
    change(value)
    assert repr(value) != before
    memory.put_back()
    assert repr(value) == before


def test_arrays_and_tensors_are_filled_in_place():
    array, tensor = np.arange(3.0), torch.arange(3.0)
    view, part = array[1:], tensor[1:]
    memory = kept(array, tensor)
    array += 1
    tensor += 1
    memory.put_back()
    assert view.tolist() == part.tolist() == [1, 2]


def test_class_is_left_as_it_is():
    class Own(nn.Linear):
        n = 1

    holder = SimpleNamespace(kinds=[Own, nn.Linear], made=[1])
    memory = kept(holder)
    holder.kinds.pop()
    holder.made.append(2)
    memory.put_back()
    assert (holder.kinds, holder.made, Own.n) == ([Own, nn.Linear], [1], 1)


def test_tensor_that_is_expanded_or_read_only_does_not_fail():
    array, tensor = np.ones(3), torch.ones(1).expand(3)
    array.flags.writeable = False
    kept(array, tensor, torch.ones(2, 1).expand(2, 3), torch.ones(2, 2).sum(0)).put_back()


def test_gradient_and_its_flag_are_back():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    p.grad = grad = torch.ones(2)
    memory = kept(p, q)
    grad += 1
    p.grad, q.grad = None, torch.ones(2)
    p.requires_grad_(False)
    memory.put_back()
    assert p.grad is grad
    assert grad.tolist() == [1, 1]
    assert q.grad is None
    assert p.requires_grad


def test_module_has_its_parts_parameters_and_modes_again():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    parts, weight = list(model), model[0].weight
    values = [t.clone() for t in (weight, model[1].running_mean)]
    memory = kept(model)
    model[1].train()
    model(torch.randn(4, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 2))
    model[0] = nn.Identity()
    model.append(nn.ReLU()).eval()
    memory.put_back()
    assert list(model) == parts
    assert model[0].weight is weight
    assert all(map(torch.equal, (weight, model[1].running_mean), values))
    assert [m.training for m in model.modules()] == [True, True, False]


def test_object_in_a_circle_and_under_two_names_is_kept_once():
    a = SimpleNamespace(n=1)
    a.me, a.other = a, [a]
    memory = kept([a, a])
    a.n, a.other = 2, None
    memory.put_back()
    assert a.n == 1
    assert a.other == [a]


def test_many_shared_parts_take_no_time():
    value = []
    for _ in range(60):  # 2 ** 60 ways through it
        value = [value, value]
    kept(value).put_back()


def test_shared_objects_are_left_alone():
    shared = [1]
    memory = kept({"shared": shared}, shared=[shared])
    shared.append(2)
    memory.put_back()
    assert shared == [1, 2]


def test_fields_that_came_since_are_gone():
    value = SimpleNamespace(a=1, b=[1])
    memory = Memory([])
    memory.keep_fields(value)
    value.c, value.b = 1, None
    del value.a
    memory.put_back()
    assert value == SimpleNamespace(a=1, b=[1])


def test_failure_of_one_object_comes_after_all_the_others():
    class Odd:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("on purpose")

    value = [1]
    memory = kept(Odd(), value)
    value.append(2)
    with pytest.raises(RuntimeError, match="on purpose"):
        memory.put_back()
    assert value == [1]
