"""The dtypes that a recording may name, and runs whose tensors are equal and of other dtypes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accel.numerics import ArrayRecorder, Comparison, compare, record
from accel.numerics.storage.dtypes import DTYPES, FLOATS, INTEGERS
from accel.numerics.storage.encoding import dtype_named
from tests.numerics.numerics_recordings import index_of, lines_in, write_lines

ROOT = Path(__file__).parents[2]


def test_every_dtype_of_this_torch_is_known() -> None:
    found = [one for one in vars(torch).values() if isinstance(one, torch.dtype)]
    assert {str(one).removeprefix("torch.") for one in found} <= DTYPES
    assert all(one.is_floating_point == (str(one)[6:] in FLOATS) for one in found)


def test_a_dtype_that_this_torch_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="has no dtype 'float7'"):
        dtype_named("float7")


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs" / "recording-format.md").read_text()
    (said,) = re.findall(r"\nA `dtype` is one of.*?Any other is refused", page, re.DOTALL)
    words = set(re.findall(r"[a-z]+[0-9a-z_]+", " ".join(re.findall(r"`([^`]+)`", said))))
    spans = {f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)}
    assert (words - {"dtype"}) | spans == DTYPES


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    path, batch = tmp_path_factory.mktemp("runs") / "a", torch.ones(3, 4)

    def step() -> None:
        model(batch).square().mean().backward()
        optimizer.step()

    step()  # so that the optimizer has a state
    with record(model, path):
        step()
    return path


def with_dtype(reference: Path, path: Path, kind: str, dtype: str, most: int = 99) -> Comparison:
    """The same recording, in which values of a kind have another dtype."""
    shutil.copytree(reference, path)
    lines = lines_in(path)
    named = [one["value"] for one in lines if one["kind"] == "source" and one["of"] == kind]
    assert named
    for line in lines:
        if line["kind"] == "value" and line["id"] in named[:most]:
            line["dtype"] = dtype
    write_lines(path, lines)
    return compare(reference, path)


def test_the_same_is_the_same(reference: Path, tmp_path: Path) -> None:
    assert with_dtype(reference, tmp_path / "b", "parameter", "float32").verdict.kind == "same"


@pytest.mark.parametrize("dtype", ["../../etc", "float99", "os", ""])
def test_no_comparison_of_what_is_no_dtype(reference: Path, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype must be one that torch names") as caught:
        with_dtype(reference, tmp_path / "b", "parameter", dtype)
    assert str(index_of(tmp_path / "b")) in str(caught.value)


def test_parameters_in_a_narrower_dtype_are_another_switch(reference: Path, tmp_path: Path) -> None:
    found = with_dtype(reference, tmp_path / "b", "parameter", "bfloat16")
    assert found.exit_status == 1
    assert found.verdict.sentence == (
        "the parameters have other dtypes: bfloat16 in the candidate, float32 in the reference"
    )
    back = compare(tmp_path / "b", reference)
    assert back.exit_status == 1
    assert "float32 in the candidate, bfloat16 in the reference" in back.verdict.sentence


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("parameter", "int64"), ("buffer", "bfloat16"), ("input", "float64"), ("state", "float16")],
)
def test_equal_elements_in_another_dtype_are_a_difference(
    reference: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    found = with_dtype(reference, tmp_path / "b", kind, dtype, most=1)
    assert found.exit_status == 1
    assert found.verdict.kind == "different weight/input"
    assert found.verdict.sentence.startswith(f"the {kind} ")
    assert found.verdict.sentence.endswith(f"of dtype {dtype}, in the reference float32")


def test_without_sketches_dtypes_are_compared_all_the_same(tmp_path: Path) -> None:
    for name, dtype in (("a", np.float32), ("b", np.float16)):
        with ArrayRecorder(tmp_path / name, framework="numpy", versions={}) as recorder:
            recorder.parameter("fc.weight", np.ones(4, dtype))
            recorder.module("fc", inputs={"0": np.ones(4)}, outputs={"0": np.ones(4)})
        lines = lines_in(tmp_path / name)
        for line in lines:
            if line["kind"] == "value" and line["dtype"].startswith("float") and line["id"] == 0:
                line.pop("sketch")
        write_lines(tmp_path / name, lines)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.exit_status == 1
    assert found.verdict.sentence.endswith("is of dtype float16, in the reference float32")


def test_integers_of_another_width_are_only_mentioned(tmp_path: Path) -> None:
    for name, dtype in (("a", np.int64), ("b", np.int32)):
        with ArrayRecorder(tmp_path / name, framework="numpy", versions={}) as recorder:
            recorder.module("", inputs={"0": np.arange(4, dtype=dtype)}, outputs={"0": np.ones(4)})
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.ok
    assert [one.decisive for one in found.preconditions] == [False]
    assert "of dtype int32, in the reference int64" in str(found.preconditions[0])
    assert {"int32", "int64"} <= set(INTEGERS)
    assert json.loads(found.to_json())["preconditions"]
