"""The contents of recorded values as a comparison needs them: sketches, distances, dtypes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch

from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.storage.entries import Operator, Ref, Value
from accel_kernels.budgets import unit_roundoff
from accel_kernels.sketch import Sketch, sketch
from accel_kernels.sketch.layout import BUCKETS, LARGEST, LEAST, NUMBERS, SQUARES

# Operators that return a workspace for their backward, in bytes, partly uninitialised.
_WITH_WORKSPACE = frozenset(
    {"mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "cudnn_batch_norm", "_batch_norm_with_update"}
)
# Why a value that was put together from several ranks has no sketch.
NO_WHOLE = "other on every rank, and the recording does not say which part of a whole it is"


class Contents:
    """The values of one step; a view stands for the value that it looks at.

    Args:
        step: The step.
        divisors: What some values are divided by before they are compared, by id: gradients of
            a scaled loss, or of the mean over a part of a batch.
    """

    def __init__(self, step: RecordedStep, divisors: Mapping[int, float] | None = None) -> None:
        self.step = step
        self._sketches: dict[int, Sketch | None] = {}
        self._divisors = dict(divisors or {})

    def value(self, number: int) -> Value:
        """A value.

        Raises:
            ValueError: The recording refers to a value that it does not describe.
        """
        try:
            return self.step.values[number]
        except KeyError:
            raise ValueError(
                f"step {self.step.index} of rank {self.step.rank} refers to value {number}, which "
                "it does not describe: the recording is damaged, record it again"
            ) from None

    def root(self, number: int) -> int:
        """The value that a view looks at, through views of views; itself if it is none."""
        seen = {number}
        while (base := self.value(number).base) is not None and base not in seen:
            seen.add(base)
            number = base
        return number

    def sketch(self, number: int) -> Sketch | None:
        """The sketch of a value, of what a view looks at, or of elements that were kept."""
        if number in self.workspaces:
            return None
        if number not in self._sketches:
            root = self._holder(number)
            found = self.value(root).sketch
            if found is None and self.step.has_tensor(root):
                found = sketch(self.step.tensor(root))
            if found is not None and root in self._divisors:
                found = scaled(found, 1.0 / self._divisors[root])
            self._sketches[number] = found
        return self._sketches[number]

    def is_alone(self, number: int) -> bool:
        """Whether a value's sketch is of the tensor by itself, not of a part at its place."""
        value = self.value(self._holder(number))
        return value.shard is None or value.shard.shape == value.shape

    @cached_property
    def workspaces(self) -> frozenset[int]:
        """Values that are no result but notes of a kernel to its own backward."""
        return frozenset(
            value
            for operator in self.step.operators
            if operator.name.rpartition("::")[2] in _WITH_WORKSPACE
            for value in operator.produced
            if self.value(value).dtype == "uint8"
        )

    def has_whole(self, number: int) -> bool:
        """Whether a value of several ranks could be put together."""
        return self.value(self._holder(number)).skipped != NO_WHOLE

    def _holder(self, number: int) -> int:
        """The first of a value and of what it looks at that has a sketch of its own."""
        while (value := self.value(number)).sketch is None and value.base is not None:
            number = value.base
        return number

    def blob(self, number: int) -> str | None:
        """The digest of the kept elements, of a view those of what it looks at."""
        return self.value(self.root(number)).blob

    def inputs(self, operator: Operator) -> list[int]:
        """The values that an operator read, in the order of its arguments."""
        return [ref for argument in operator.arguments.values() for ref in refs(argument)]


def gradients(step: RecordedStep) -> Iterator[int]:
    """The values that are proportional to the gradient that the backward began with.

    Not all that the backward makes is one: it also looks at weights again (`t` for a `mm`) and
    computes activations anew (`pow(x, 2)` in that of a cube). A value is a gradient if an operator
    of the backward computed it from one. What the backward begins with is none itself: it is 1
    whatever the loss is scaled by, unless it was given, and then it is a source.
    """
    begun = set(_begun(step))
    carrying = begun | set(step.adjoints.values())
    for operator in step.operators:
        if operator.key.phase == "backward":
            given = (value for one in operator.arguments.values() for value in refs(one))
            if not carrying.isdisjoint(given):
                carrying.update(operator.produced)
    yield from sorted(carrying - begun - step.sources.keys())


def _begun(step: RecordedStep) -> Iterator[int]:
    """What the backward begins with: ones like the loss, or gradients that it was given."""
    made = {value: one for one in step.operators for value in one.produced}
    for value in step.adjoints.values():
        maker = made.get(value)
        if value in step.sources or (maker is not None and maker.key.phase == "forward"):
            yield value
    for operator in step.operators:
        if operator.name == "aten::ones_like" and operator.key.phase == "forward":
            yield from operator.produced


def scaled(one: Sketch, factor: float) -> Sketch:
    """The sketch of a tensor times a positive factor."""
    numbers = list(one.numbers)
    numbers[:BUCKETS] = [x * factor for x in numbers[:BUCKETS]]
    numbers[LEAST] *= factor
    numbers[LARGEST] *= factor
    numbers[SQUARES] *= factor * factor
    return Sketch(struct.pack(f"<{NUMBERS}d", *numbers))


def refs(argument: object) -> Iterator[int]:
    """The values among an argument, in lists too."""
    if isinstance(argument, Ref):
        yield argument.value
    elif isinstance(argument, list):
        for item in argument:
            yield from refs(item)


def distance(a: Sketch | None, b: Sketch | None) -> float | None:
    """L2 norm of the difference over the norm of the first; None if it cannot be told.

    Returns:
        0 for equal sketches; infinity if their non-finite elements differ or the first is all
        zero; None if one is None or they are of tensors with other numbers of elements.
    """
    if a is None or b is None or a.count != b.count:
        return None
    if a.raw == b.raw:
        return 0.0
    if a.mask != b.mask:
        return math.inf
    apart = a.distance(b)
    if apart == 0.0:
        return 0.0
    return apart / a.norm if a.norm > 0.0 else math.inf


def is_same(a: Sketch | None, b: Sketch | None) -> bool:
    """Whether two sketches are equal in all their numbers."""
    return a is not None and b is not None and a.raw == b.raw


def rounding(dtype: str) -> float:
    """The unit roundoff of a dtype by its name; 0 for integers and what is not known."""
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        return 0.0
    if found.is_complex:
        found = found.to_real()
    return unit_roundoff(found) if found.is_floating_point else 0.0


def is_float(dtype: str) -> bool:
    """Whether a dtype rounds."""
    return rounding(dtype) > 0.0
