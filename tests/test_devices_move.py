"""Moving nested batches: Device.move. On a CPU the other device is `meta`."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from accel.devices import CpuDevice, batches

META = torch.device("meta")
Pair = namedtuple("Pair", "first second")


class Checked(Pair):
    """A named tuple whose constructor takes other arguments than its fields."""

    def __new__(cls, both):
        return super().__new__(cls, both, both)


class Shouting(dict):
    """A dictionary with a field and a constructor of its own."""

    def __init__(self, *, loud, **items):
        super().__init__(**items)
        self.loud = loud


@dataclasses.dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor
    label: str = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    tensor: torch.Tensor


@dataclasses.dataclass
class Counted:
    tensor: torch.Tensor
    later: Any = dataclasses.field(init=False)
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        self.made += 1


class Asked:
    """Has a method of its own for it."""

    def __init__(self, device=None):
        self.device = device

    def to(self, device):
        return Asked(device)


def to_meta(batch):
    return batches.move(batch, META, pin=False)


def one():
    return torch.arange(3.0)


@pytest.mark.parametrize("target", [META, torch.device("cpu")], ids=str)
@pytest.mark.parametrize(
    ("batch", "get"),
    [
        (one(), lambda b: b),
        ({"a": one(), "n": 1}, lambda b: b["a"]),
        ({"a": {"b": [None, (one(), "x")]}}, lambda b: b["a"]["b"][1][0]),
        ([one()], lambda b: b[0]),
        ((1, one()), lambda b: b[1]),
        (Pair(one(), None), lambda b: b.first),
        (Checked(one()), lambda b: b.second),
        (torch.max(torch.ones(2, 2), dim=0), lambda b: b.indices),
        (defaultdict(list, a=one()), lambda b: b["a"]),
        (OrderedDict(b=1, a=one()), lambda b: b["a"]),
        (UserDict(a=one()), lambda b: b["a"]),
        (Shouting(loud=True, a=one()), lambda b: b["a"]),
        (Frozen(one()), lambda b: b.tensor),
        (Slotted(one()), lambda b: b.tensor),
        (Counted(one()), lambda b: b.tensor),
        (pack_sequence([torch.ones(3), torch.ones(1)]), lambda b: b.data),
        (torch.eye(3).to_sparse(), lambda b: b),
        (torch.empty(0, 4), lambda b: b),
        (torch.ones(4, 6)[:, ::2].t(), lambda b: b),
        (one().requires_grad_(), lambda b: b),
    ],
    ids=lambda value: type(value).__name__,
)
def test_keeps_the_structure(batch, get, target):
    source = get(batch)
    result = batches.move(batch, target, pin=False)
    moved = get(result)
    assert type(result) is type(batch)
    assert moved.device.type == target.type
    assert (moved.shape, moved.dtype, moved.layout) == (source.shape, source.dtype, source.layout)
    assert moved.requires_grad == source.requires_grad
    assert get(batch) is source  # the caller's batch is as it was
    assert source.device.type == "cpu"
    if target.type == "cpu":
        assert moved is source


def test_keeps_what_a_constructor_would_lose():
    assert to_meta(defaultdict(list, a=one())).default_factory is list
    assert to_meta(Shouting(loud=True, a=one())).loud is True
    assert list(to_meta(OrderedDict(b=1, a=one()))) == ["b", "a"]
    counted = Counted(one())
    assert to_meta(counted).made == counted.made == 1
    assert not hasattr(to_meta(counted), "later")
    assert to_meta(Frozen(one(), "b")).label == "b"


def test_a_mapping_that_cannot_be_written_becomes_a_dictionary():
    moved = to_meta(MappingProxyType({"a": one()}))
    assert type(moved) is dict
    assert moved["a"].device == META


@pytest.mark.parametrize("same", [None, 3, 2.5, "text", b"b", True, {1, 2}, range(2), one, Asked])
def test_returns_the_rest_as_it_is(same):
    assert to_meta(same) is same
    assert to_meta([same])[0] is same


@pytest.mark.parametrize("empty", [{}, [], (), torch.Size([])])
def test_empty_containers(empty):
    assert to_meta(empty) == empty
    assert type(to_meta(empty)) is type(empty)


def test_an_object_with_a_method_is_asked():
    assert to_meta({"a": Asked()})["a"].device == META


def test_strides_survive():
    source = torch.ones(4, 6).t()
    assert to_meta(source).stride() == source.stride()


def test_on_a_real_device(device):
    source = {"a": torch.rand(5), "b": [torch.rand(3, 4).t(), torch.eye(3).to_sparse()]}
    there = device.move(source)
    back = CpuDevice().move(there)
    assert there["b"][0].device == device.torch_device
    assert torch.equal(back["a"], source["a"])
    assert torch.equal(back["b"][0], source["b"][0])
    assert torch.equal(back["b"][1].to_dense(), torch.eye(3))
    assert device.move(there)["a"] is there["a"]


class TestPinning:
    @pytest.fixture
    def pinned(self, monkeypatch):
        """Notes what is pinned; the copies are asynchronous if and only if they may be."""
        notes = []
        monkeypatch.setattr(batches, "_can_pin", lambda kind: True)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda t: t.numel() == 7)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: notes.append(t.numel()) or t)
        return notes

    def test_pageable_tensors_are_pinned_once(self, pinned):
        tensors = [torch.ones(2), torch.ones(7), torch.ones(0), torch.eye(3).to_sparse()]
        batches.move(tensors, META, pin=True)
        assert pinned == [2]  # not the pinned, the empty, the sparse

    def test_not_if_not_wanted_or_not_possible(self, pinned, monkeypatch):
        batches.move(torch.ones(2), META, pin=False)
        CpuDevice().move(torch.ones(2))
        monkeypatch.setattr(batches, "_can_pin", lambda kind: False)
        batches.move(torch.ones(2), META, pin=True)
        assert pinned == []

    def test_a_device_asks_for_it(self, pinned, make_family):
        calls = []
        toy = make_family("toy", torch_type="meta")()
        real = torch.Tensor.to

        def to(tensor, *arguments, **options):
            calls.append(options)
            return real(tensor, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "to", to)
            toy.move(torch.ones(2))
            toy.move(torch.ones(3), pin=False)
        assert pinned == [2]
        assert calls == [{"non_blocking": True}] * 2

    def test_no_page_locked_memory_here_is_no_error(self, monkeypatch):
        def refuse(tensor):
            raise RuntimeError("Need to provide pin_memory allocator")

        monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
        batches._can_pin.cache_clear()
        assert batches.move(torch.ones(2), META, pin=True).device == META
        batches._can_pin.cache_clear()


def test_copies_to_the_host_have_finished(monkeypatch):
    options = []
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: options.append(k) or t)
    there = torch.ones(2, device="meta")
    batches.move(there, torch.device("cpu"), pin=False)
    batches.move(there, torch.device("xpu:1"), pin=False)
    assert options == [{"non_blocking": False}, {"non_blocking": True}]
