"""Ranks that hold one another's parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import Tensor

from accel.numerics.comparing.comparison import Precondition
from accel.numerics.comparing.contents import Contents
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.relations import has_same_elements
from accel.numerics.storage.entries import Shard, SourceKind, Value
from accel_kernels.sketch import Sketch, sketch

_KINDS = ("input", "parameter")
_Steps = Mapping[int, RecordedStep]
_Held = dict[tuple[SourceKind, str], Sketch]


def swapped(ours: _Steps, theirs: _Steps) -> list[Precondition]:
    """Ranks whose inputs or parameters are those of another rank in the other run.

    Sketches of parts tell places apart, so parts are recognised by their elements: least, largest,
    number and norm.
    """
    found: list[Precondition] = []
    left = {rank: _held(step) for rank, step in ours.items()}
    for rank, step in theirs.items():
        for (kind, name), held in _held(step).items():
            own = left.get(rank, {}).get((kind, name))
            if own is None or has_same_elements(own, held):
                continue
            for other, has in left.items():
                elsewhere = has.get((kind, name))
                if other == rank or elsewhere is None or not has_same_elements(elsewhere, held):
                    continue
                subject = f"{kind} {name} of rank {rank}"
                places = f"on rank {other}", f"on rank {rank}"
                words = f"what rank {other} of the reference has"
                found.append(Precondition("ranks", subject, *places, words))
    return found


def _held(step: RecordedStep) -> _Held:
    contents = Contents(step)
    return {
        (source.kind, source.name): known
        for value, source in step.sources.items()
        if source.kind in _KINDS and (known := contents.sketch(value)) is not None
    }


def exchanged(whole: RecordedStep, parts: _Steps) -> Iterator[Precondition]:
    """Parts of a run that are another rank's, where the elements of the whole were kept.

    Args:
        whole: The step of a run of one process.
        parts: The same step of all ranks of the other run.
    """
    values = {(s.kind, s.name): value for value, s in whole.sources.items()}
    for (kind, name), places in _pieces(parts).items():
        value = values.get((kind, name))
        if value is None or not whole.has_tensor(value):
            continue
        tensor = whole.tensor(value)
        for (rank, held), (other, there) in itertools.permutations(places.items(), 2):
            here, elsewhere = held.shard, there.shard
            if here is None or elsewhere is None or here.shape != tuple(tensor.shape):
                continue
            own = tensor[_slices(here, held)]
            moved = tensor[_slices(elsewhere, there)]
            if _is(own, here, held) or not _is(moved, here, held):
                continue
            yield Precondition(
                "ranks", f"{kind} {name} of rank {rank}", f"on rank {other}", f"on rank {rank}",
                f"the part that rank {other} should have",
            )  # fmt: skip


def _pieces(parts: _Steps) -> dict[tuple[SourceKind, str], dict[int, Value]]:
    found: dict[tuple[SourceKind, str], dict[int, Value]] = {}
    for rank, step in parts.items():
        for value, source in step.sources.items():
            described = step.values[value]
            if source.kind in _KINDS and described.shard is not None:
                found.setdefault((source.kind, source.name), {})[rank] = described
    return found


def _slices(shard: Shard, value: Value) -> tuple[slice, ...]:
    return tuple(
        slice(first, first + size) for first, size in zip(shard.offset, value.shape, strict=True)
    )


def _is(part: Tensor, shard: Shard, value: Value) -> bool:
    """Whether a part of a tensor is what a value holds."""
    if value.sketch is None or tuple(part.shape) != value.shape:
        return False
    return sketch(part, (shard.shape, shard.offset)).raw == value.sketch.raw
