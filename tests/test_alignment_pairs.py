"""Names of pairs and their weights; the rows of a batch; inputs as rows."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch

from accel.alignment.inputs import row_count, select_rows, slice_rows
from accel.alignment.pairs import by_pair, check_modalities, resolve_pairs, resolve_weights
from accel.alignment.presence import find_presence

NAMES = ("text", "image", "audio")
ALL = (("text", "image"), ("text", "audio"), ("image", "audio"))


# --- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", ALL),
        ("hub:image", (("text", "image"), ("image", "audio"))),
        ("hub:text", ALL[:2]),
        ([("audio", "text")], (("audio", "text"),)),
        ((pair for pair in ALL[1:]), ALL[1:]),
        ([["image", "text"]], (("image", "text"),)),
    ],
)
def test_pairs(given, expected):
    assert resolve_pairs(NAMES, given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("every", "must be 'all', 'hub:NAME' with a NAME of text, image, audio, or a list"),
        ("hub:video", "'hub:NAME' with a NAME of text, image, audio"),
        ("hub:", "'hub:NAME'"),
        ([], "no pair to train"),
        ([("text", "text")], "two different modalities"),
        ([("text", "image", "audio")], "two different modalities"),
        (["te"], "two different modalities"),
        ([("text", "video")], "names 'video', but the modalities are text, image, audio"),
        ([("text", "image"), ("image", "text")], "image-text is given twice"),
    ],
)
def test_pairs_that_are_none(given, said):
    with pytest.raises(ValueError, match=said):
        resolve_pairs(NAMES, given)


@pytest.mark.parametrize("name", ["", "a-b", "a.b", "hub:a"])
def test_names_that_pairs_could_not_be_told_apart_by(name):
    with pytest.raises(ValueError, match="a modality may not be called"):
        check_modalities(["text", name])


def test_weights():
    assert resolve_weights(ALL, None) == dict.fromkeys(
        ("text-image", "text-audio", "image-audio"), 1.0
    )
    assert resolve_weights(ALL, "count") is None
    assert resolve_weights(ALL, {("image", "text"): 3, "audio-image": 0.5}) == {
        "text-image": 3, "text-audio": 1.0, "image-audio": 0.5,
    }  # fmt: skip
    for weights, said in (
        ("counts", "must be 'count'"),
        ({("text", "video"): 1.0}, "no pair that is trained; there are: text-image, text-audio"),
        ({"text-image": -1.0}, "finite and at least 0"),
        ({"text-image": float("nan")}, "finite and at least 0"),
        (dict.fromkeys(ALL, 0.0), "nothing is left to train"),
        ({"text-image": 1.0, "image-text": 1.0}, "names the pair text-image twice"),
    ):
        with pytest.raises(ValueError, match=said):
            resolve_weights(ALL, weights)
    assert by_pair("temperature", ALL, {}) == {}


# --- public names --------------------------------------------------------------------------------


def test_every_public_name_is_there(run_python):
    """And importing them brings in none of what only exports, plots and tables need."""
    said = run_python("""
        import sys
        from accel import alignment
        names = alignment.__all__
        assert len(set(names)) == len(names)
        assert all(getattr(alignment, name) is not None for name in names)
        heavy = {"onnx", "onnxscript", "matplotlib", "transformers", "triton"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert said.lines == ["[]"]


# --- rows ----------------------------------------------------------------------------------------


def test_rows_of_a_pair():
    presence = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]).bool()
    found = find_presence(NAMES, presence, {"text": 5, "image": 3, "audio": None})
    assert found.size == 5
    assert {name: one.tolist() for name, one in found.samples.items()} == {
        "text": [0, 1, 3], "image": [0, 2, 3], "audio": [],
    }  # fmt: skip
    both = found.rows_of(("text", "image"), "ignore")
    assert (both.both, both.aligned) == (2, True)
    assert both.x.tolist() == both.y.tolist() == [0, 2]
    assert both.x_sample.tolist() == both.y_sample.tolist() == [0, 3]
    every = found.rows_of(("text", "image"), "negative")
    assert (every.both, every.aligned, every.x, every.y) == (2, False, None, None)
    assert every.x_sample.tolist() == [0, 1, 3]
    none = found.rows_of(("text", "audio"), "ignore")
    assert none.both == 0
    assert none.x.tolist() == []


def test_a_whole_batch_is_not_copied():
    everybody = find_presence(NAMES, None, dict.fromkeys(NAMES, 4))
    rows = everybody.rows_of(("image", "audio"), "ignore")
    assert (rows.both, rows.x, rows.y, rows.aligned) == (4, None, None, True)


@pytest.mark.parametrize(
    ("presence", "counts", "kind", "said"),
    [
        (None, {"text": 4, "image": 5}, ValueError, "different batch sizes: text 4, image 5"),
        (None, {"video": 4}, ValueError, "holds 'video', but the modalities are text, image"),
        ([[1, 1, 1]], {"text": 1}, TypeError, r"must be a bool tensor \[B, 3\], not list"),
        (torch.ones(2, 3), {"text": 1}, TypeError, "not torch.float32"),
        (torch.ones(2, 3, dtype=torch.bool, device="meta"), {}, TypeError, "CPU, not on meta"),
        (torch.ones(2, 2, dtype=torch.bool), {}, ValueError, r"\[B, 3\], columns in the order"),
        (torch.ones(3, dtype=torch.bool), {}, ValueError, r"not \(3,\)"),
        (
            torch.tensor([[True, True, False]] * 4), {"text": 4, "image": 3}, ValueError,
            "'image' has 3 rows; give one for each of 4 samples, or only for the 4 that have it",
        ),
        (
            torch.tensor([[True, True, False]] * 4), {"text": 4}, ValueError,
            "4 samples have 'image', but the batch holds none of it",
        ),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(presence, counts, kind, said):
    with pytest.raises(kind, match=said):
        find_presence(NAMES, presence, counts)


# --- inputs --------------------------------------------------------------------------------------


class Named(NamedTuple):
    ids: torch.Tensor
    mask: torch.Tensor


@dataclass
class Waves:
    samples: torch.Tensor
    rate: int


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (dict, UserDict)):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Waves):
        return same(one.samples, other.samples) and one.rate == other.rate
    return one == other


T = torch.arange(8).reshape(4, 2)


@dataclass(frozen=True)
class Masked:
    """A field that the constructor does not take."""

    samples: torch.Tensor
    mask: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", self.samples > 3)


def test_fields_that_the_constructor_does_not_take_are_chosen_as_well():
    given = Masked(T)
    object.__setattr__(given, "mask", T > 4)  # by whoever made it
    found = select_rows(given, torch.tensor([2, 0]))
    assert torch.equal(found.samples, T[[2, 0]])
    assert torch.equal(found.mask, T[[2, 0]] > 4)
    assert torch.equal(slice_rows(given, 1, 3).mask, T[1:3] > 4)


@pytest.mark.parametrize(
    ("inputs", "chosen"),
    [
        (T, T[[2, 0]]),
        (["a", "b", "c", "d"], ["c", "a"]),
        (np.arange(4), np.array([2, 0])),
        ({"ids": T, "pad": 0, "kind": "x"}, {"ids": T[[2, 0]], "pad": 0, "kind": "x"}),
        (UserDict(ids=T), UserDict(ids=T[[2, 0]])),
        ((T, [T, ["p", "q", "r", "s"]][1]), (T[[2, 0]], ["r", "p"])),
        (Named(T, T > 3), Named(T[[2, 0]], (T > 3)[[2, 0]])),
        (Waves(T, 16000), Waves(T[[2, 0]], 16000)),
        (Named(T, torch.tensor(3)), Named(T[[2, 0]], torch.tensor(3))),
    ],
    ids=["tensor", "list", "array", "mapping", "own mapping", "tuple", "named", "dataclass", "[]"],
)
def test_inputs_are_rows(inputs, chosen):
    assert row_count(inputs) == 4
    found = select_rows(inputs, torch.tensor([2, 0]))
    assert type(found) is type(inputs)
    assert same(found, chosen)
    assert row_count(select_rows(inputs, torch.zeros(0, dtype=torch.int64))) == 0
    assert same(slice_rows(inputs, 1, 3), select_rows(inputs, torch.tensor([1, 2])))


def test_what_has_no_rows():
    thing = object()
    for inputs in (thing, "text", torch.tensor(1.0), None, {}, ()):
        assert row_count(inputs) is None
        assert select_rows(inputs, torch.tensor([0])) is inputs or inputs in ({}, ())
    with pytest.raises(ValueError, match=r"parts of one input have \[3, 4\] rows"):
        row_count({"ids": T, "mask": T[:3]})
