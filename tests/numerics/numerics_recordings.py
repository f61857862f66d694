"""A small recording that holds every kind of line, and what the tests do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from accel.numerics import load_recording
from accel.numerics.storage.encoding import copied
from accel.numerics.storage.entries import (
    Adjoint,
    Check,
    End,
    Key,
    ModuleCall,
    Operator,
    Place,
    Ref,
    RootCall,
    Skipped,
    Source,
    Update,
    Value,
)
from accel.numerics.storage.manifest import Manifest, Revision
from accel.numerics.storage.steps import Step
from accel.numerics.storage.writer import StepWriter, Writer
from accel_kernels.sketch import sketch

MANIFEST = Manifest(
    framework="torch",
    versions={"torch": "2.13.0"},
    platform="Linux x86_64",
    device={"chip": "any", "family": "cpu", "torch_device": "cpu"},
    numerics_mode={"deterministic_algorithms": "off", "cudnn_enabled": True, "none": None},
    seed=2**63,
    arguments=("train.py", "--steps", "2"),
    revision=Revision("0" * 40, False),
    level="full",
    only=("forward:layers.0*",),
    steps="0",
    data_parallel=(1, 2),
)
X = torch.arange(6.0).reshape(2, 3)
WEIGHT = torch.ones(3, 3)


def value(number: int, tensor: torch.Tensor, **more: Any) -> Value:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Value(number, dtype, tuple(tensor.shape), sketch(tensor), **more)


def operator(number: int, reads: list[int], makes: list[int | None], **more: Any) -> Operator:
    key = Key("forward", "layers.0", 0, "", "mm", number)
    arguments = {"self": Ref(reads[0]), "others": [Ref(one) for one in reads[1:]]}
    return Operator(number, key, "aten::mm", "default", arguments, tuple(makes), **more)


def write_step(step: StepWriter) -> None:
    """Two operators, every kind of line, two kept tensors."""
    step.add(RootCall(0, True, "bfloat16", True, {"x": Ref(0), "flag": True}, {"cpu": "ab" * 32}))
    blobs = [step.keep(X.clone()), step.keep(WEIGHT.clone())]
    step.add(value(0, X, blob=blobs[0]), Source(0, "input", "0"))
    step.add(value(1, WEIGHT, blob=blobs[1]), Source(1, "parameter", "layers.0.weight"))
    place = Place("train.py", 7, "main")
    step.add(operator(0, [0, 1], [2], place=place), Value(2, "float32", (2, 3)))
    step.add(value(2, X @ WEIGHT), Value(3, "float32", (3, 2), base=2))
    step.add(value(4, X), operator(1, [2, 3], [4], writes={"self": (5,)}, place=place))
    step.add(Value(5, "float32", (2, 3), skipped="a meta tensor has no values"))
    step.add(ModuleCall("layers.0", 0, "Linear", "forward", 0, 2, {"0": 0}, {"0": 4}, True))
    step.add(Adjoint(1, 4), Update("layers.0.weight", "exp_avg", 4), Check(1, {"R": 1.5}))
    step.add(Skipped("layers.1", "it is compiled"))


def write_recording(path: Path) -> None:
    """One rank, one step."""
    one = Writer(path, MANIFEST)
    step = one.start_step(0)
    write_step(step)
    step.end(End(2, step.dropped))
    one.finish(MANIFEST.finished(None))


def the_step(path: Path) -> Step:
    return load_recording(path).ranks[0].steps[0]


def index_of(path: Path) -> Path:
    return path / "rank-0" / "step-0" / "index.jsonl"


def manifest_of(path: Path) -> Path:
    return path / "rank-0" / "manifest.json"


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in index_of(path).read_text().splitlines()]


def write_lines(path: Path, changed: list[dict[str, Any]]) -> None:
    """Write lines, with an end that counts them right."""
    for number, line in enumerate(changed):
        if line["kind"] == "end" and "lines" in line:
            line["lines"] = number
    index_of(path).write_text("".join(json.dumps(line) + "\n" for line in changed))


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads(manifest_of(path).read_text()) | changes
    manifest_of(path).write_text(json.dumps(manifest))


def reading(path: Path) -> Step:
    """The step, which must be readable."""
    step = the_step(path)
    for one in step.values.values():
        if one.blob is not None:
            step.tensor(one.id)
    return step


def kept_and_read(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    one = Writer(path, MANIFEST)
    step = one.start_step(0)
    blob = step.keep(copied(tensor))
    step.add(Value(0, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), blob=blob))
    step.end(End(0, 0))
    one.finish(MANIFEST.finished(None))
    return the_step(path).tensor(0)
