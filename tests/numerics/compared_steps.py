"""Steps and recordings made in memory, operator by operator, with real sketches and elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.numerics.storage.entries import (
    Adjoint,
    End,
    Key,
    Line,
    ModuleCall,
    Operator,
    Phase,
    Place,
    Ref,
    RootCall,
    Shard,
    Source,
    Special,
    Update,
    Value,
)
from accel.numerics.storage.manifest import Manifest
from accel.numerics.storage.steps import Assembly, Step
from accel_kernels.sketch import sketch

MANIFEST = Manifest(
    framework="torch",
    versions={"torch": "2.13.0"},
    platform="Linux x86_64",
    device={"chip": "any", "family": "cpu", "torch_device": "cpu"},
    numerics_mode={"npu_matmul_hf32": False, "num_threads": 1},
    seed=0,
    arguments=("train.py", "--lr", "0.1"),
    revision=None,
    level="full",
    only=(),
    steps="0",
    complete=True,
)
Change = Callable[[Tensor], Tensor]


class Kept:
    """Stands for the files of a recording."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def tensor(self, digest: str, dtype: str, shape: Sequence[int]) -> Tensor:
        return self.tensors[digest].reshape(tuple(shape))


@dataclass(frozen=True)
class Made:
    """A value of the program: its id and its elements."""

    id: int
    tensor: Tensor


class Program:
    """Runs operators and notes them as a recorder would.

    Args:
        keep: Whether elements are kept (level `full`).
        rank: Which process.
        index: Which step.
    """

    def __init__(self, *, keep: bool = True, rank: int = 0, index: int = 0) -> None:
        self.keep, self.rank, self.index = keep, rank, index
        self.lines: list[Line] = []
        self.files = Kept()
        self._values = self._operators = 0
        self._counts: Counter[tuple[object, ...]] = Counter()

    def source(self, kind: Any, name: str, tensor: Tensor, shard: Shard | None = None) -> Made:
        made = self._value(tensor, shard=shard)
        self.lines.append(Source(made.id, kind, name))
        return made

    def op(
        self,
        name: str,
        /,
        *,
        module: str = "",
        overload: str = "default",
        phase: Phase = "forward",
        origin: str = "",
        autocast: str | None = None,
        change: Change | None = None,
        shard: Shard | None = None,
        **arguments: Any,
    ) -> Made:
        """Run `aten::name`; its first result, changed by `change` if that is given."""
        packet = getattr(torch.ops.aten, name)
        given = {key: _elements(value) for key, value in arguments.items()}
        results = getattr(packet, overload)(**given)
        results = results if isinstance(results, (tuple, list)) else (results,)
        tensors = [result.clone() for result in results if isinstance(result, Tensor)]
        if change is not None:
            tensors[0] = change(tensors[0])
        outputs = [self._value(tensor, shard=shard) for tensor in tensors]
        self.note(
            name, [made.id for made in outputs], module=module, overload=overload, phase=phase,
            origin=origin, autocast=autocast, **arguments,
        )  # fmt: skip
        return outputs[0]

    def note(
        self,
        name: str,
        outputs: Sequence[int],
        /,
        *,
        module: str = "",
        overload: str = "default",
        phase: Phase = "forward",
        origin: str = "",
        autocast: str | None = None,
        namespace: str = "aten",
        writes: Mapping[str, Sequence[int]] | None = None,
        **arguments: Any,
    ) -> Operator:
        """Note an operator without running it."""
        op = name if namespace == "aten" else f"{namespace}::{name}"
        place = (phase, module, origin, op)
        operator = Operator(
            self._operators,
            Key(phase, module, 0, origin, op, self._counts[place]),
            f"{namespace}::{name}",
            overload,
            {key: _argument(value) for key, value in arguments.items()},
            tuple(outputs),
            {key: tuple(ids) for key, ids in (writes or {}).items()},
            place=Place("model.py", self._operators, "forward"),
            autocast=autocast,
        )
        self._counts[place] += 1
        self._operators += 1
        self.lines.append(operator)
        return operator

    def value(self, tensor: Tensor, shard: Shard | None = None) -> Made:
        """A value that a noted operator makes."""
        return self._value(tensor, shard=shard)

    def view(self, of: Made, tensor: Tensor) -> Made:
        return self._value(tensor, base=of.id)

    def module(self, name: str, kind: str, inputs: Sequence[Made], outputs: Sequence[Made]) -> None:
        ids = [{str(i): made.id for i, made in enumerate(side)} for side in (inputs, outputs)]
        call = ModuleCall(name, 0, kind, "forward", 0, self._operators, *ids, training=True)
        self.lines.append(call)

    def call(self, **changes: Any) -> None:
        call = RootCall(0, True, None, True, {}, {"cpu": "ab"})
        self.lines.append(replace(call, **changes))

    def adjoint(self, of: Made, gradient: Made) -> None:
        self.lines.append(Adjoint(of.id, gradient.id))

    def update(self, name: str, value: Made, slot: str = "parameter") -> None:
        self.lines.append(Update(name, slot, value.id))

    def step(self, *, ended: bool = True) -> Step:
        assembly = Assembly()
        lines = [*self.lines, End(self._operators, 0)] if ended else self.lines
        for number, line in enumerate(lines):
            assembly.add(number, line)
        return assembly.step(self.rank, self.index, None, self.files)  # type: ignore[arg-type]

    def _value(
        self, tensor: Tensor, *, base: int | None = None, shard: Shard | None = None
    ) -> Made:
        number = self._values
        self._values += 1
        dtype = str(tensor.dtype).removeprefix("torch.")
        part = None if shard is None or shard.partial else (shard.shape, shard.offset)
        blob = None
        if self.keep:
            blob = f"{number:064x}"
            self.files.tensors[blob] = tensor.detach().clone()
        digest = None if base is not None else sketch(tensor, part)
        shape = tuple(tensor.shape)
        self.lines.append(Value(number, dtype, shape, digest, blob, base, shard))
        return Made(number, tensor)


def _elements(value: Any) -> Any:
    if isinstance(value, Made):
        return value.tensor
    return [_elements(item) for item in value] if isinstance(value, list) else value


def _argument(value: Any) -> Any:
    if isinstance(value, Made):
        return Ref(value.id)
    if isinstance(value, torch.dtype):
        return Special("dtype", str(value).removeprefix("torch."))
    return [_argument(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Rank:
    manifest: Manifest
    steps: dict[int, Step]


@dataclass(frozen=True)
class Run:
    """A recording in memory."""

    path: Path
    ranks: dict[int, Rank]


def run(*steps: Step, name: str = "run", **manifest: Any) -> Run:
    """A recording of the given steps, of one rank or several."""
    ranks: dict[int, dict[int, Step]] = {}
    for step in steps:
        ranks.setdefault(step.rank, {})[step.index] = step
    about = replace(MANIFEST, world=len(ranks), **manifest)
    return Run(Path(name), {rank: Rank(replace(about, rank=rank), s) for rank, s in ranks.items()})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
