"""What a recording says of one step: values, operators, module calls, gradients.

docs/recording-format.md describes the same for other frameworks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from accel_kernels.sketch import Sketch

Phase = Literal["forward", "backward", "recompute", "optimizer", "collective"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "recompute", "optimizer", "collective")
SourceKind = Literal["parameter", "buffer", "input", "state", "other"]
SOURCE_KINDS: tuple[SourceKind, ...] = ("parameter", "buffer", "input", "state", "other")

OUTSIDE = "(outside)"  # the module path of operators that run in no module call: the loss, …


class Key(NamedTuple):
    """Which operator of a step this is; two recordings are aligned by it.

    Attributes:
        phase: `forward`; `backward`; `recompute` (a forward that runs again in the backward);
            `optimizer`; `collective`.
        module: Path of the innermost module call it runs in, empty for the root, `OUTSIDE` for
            none; for `backward` that of the forward operator; for `optimizer` the optimizer's
            class name.
        call: How often that module was called before in this step.
        origin: For `backward` the forward operator as `addmm#0`, or the name of an autograd node
            that no operator made (`AccumulateGrad.weight`, `MyFunctionBackward#0`); else empty.
        op: The operator's name: `addmm`, with its namespace unless that is aten
            (`npu::npu_rms_norm`).
        k: How often this op ran before at this place.
    """

    phase: Phase
    module: str
    call: int
    origin: str
    op: str
    k: int

    def __str__(self) -> str:
        call = f"[{self.call}]" if self.call else ""
        origin = f"{self.origin}/" if self.origin else ""
        return f"{self.phase}:{self.module}{call}/{origin}{self.op}#{self.k}"


class Ref(NamedTuple):
    """A tensor among an operator's arguments: the id of its value."""

    value: int


class Special(NamedTuple):
    """An argument that JSON has no word for.

    Attributes:
        kind: `dtype`, `device`, `layout`, `memory_format`, `float` (`inf`, `-inf`, `nan`),
            `complex`, `generator` or `opaque`.
        text: `bfloat16`, `cpu`, `strided`, …
    """

    kind: str
    text: str


# bool | int | float | str | None | Ref | Special | list of these
Argument = Any


class Shard(NamedTuple):
    """Which part of a whole tensor a process holds.

    Attributes:
        shape: Of the whole.
        offset: Where the part begins in it.
        partial: Whether the parts are addends of the whole instead of pieces.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    partial: bool = False


@dataclass(frozen=True)
class Value:
    """The contents of one tensor at one time.

    Attributes:
        id: Its number in the step.
        dtype: As torch names it, without `torch.`.
        shape: Of the tensor.
        sketch: Its digest that distances can be estimated from; None for a view of another value
            and for what could not be recorded.
        blob: SHA-256 digest under which its elements are kept; None if they are not.
        base: For a view, the value that it looks at.
        shard: Which part of a whole it is, where that is known.
        skipped: Why there is no sketch, where there should be one.
    """

    id: int
    dtype: str
    shape: tuple[int, ...]
    sketch: Sketch | None = None
    blob: str | None = None
    base: int | None = None
    shard: Shard | None = None
    skipped: str | None = None


class Place(NamedTuple):
    """A line of the recorded program."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


@dataclass(frozen=True)
class Operator:
    """One operator that ran.

    Attributes:
        id: Its place in execution order, from 0 in each step; operators and values are counted
            apart.
        key: Which operator it is.
        name: The operator's full name: `aten::addmm`.
        overload: `default`, `Tensor`, `out`, …
        arguments: What it was given, by the names of its schema and in their order; tensors are
            `Ref`s to the values before it ran.
        outputs: The values it returned, flattened; None for what is no tensor. A returned argument
            that it wrote to is not repeated: it is under `writes`.
        writes: Of each argument that it wrote to, the values afterwards (one, or as many as the
            list has tensors).
        place: The line of the program that asked for it, where that is known.
        autocast: The dtype of the autocast in force, or None.
    """

    id: int
    key: Key
    name: str
    overload: str
    arguments: dict[str, Argument]
    outputs: tuple[int | None, ...] = ()
    writes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    place: Place | None = None
    autocast: str | None = None

    @property
    def produced(self) -> tuple[int, ...]:
        """Ids of all values that exist because of it."""
        new = [value for value in self.outputs if value is not None]
        return (*new, *(value for values in self.writes.values() for value in values))


@dataclass(frozen=True)
class Source:
    """A value that no recorded operator produced.

    Attributes:
        value: Its id.
        kind: A `parameter` or `buffer` of the model, an `input` of a call of the model, the
            `state` of an optimizer, or `other` (a mask made before the step, …).
        name: The parameter's or buffer's name, the path among the inputs (`0`, `mask`), …
    """

    value: int
    kind: SourceKind
    name: str


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, its inputs and outputs by their places (`0`, `logits`, `past.1`)."""

    module: str
    call: int
    class_name: str
    phase: Literal["forward", "recompute"]
    first: int  # id of the first operator that ran in it (or would have)
    last: int  # one past the id of the last
    inputs: dict[str, int]
    outputs: dict[str, int]
    training: bool = False


@dataclass(frozen=True)
class RootCall:
    """An outermost call of the model: what is not a tensor among its circumstances."""

    index: int
    training: bool
    autocast: str | None
    gradients: bool  # whether grad mode was on
    arguments: dict[str, Argument]
    generators: dict[str, str]  # digest of each random generator's state, by name, before the call


@dataclass(frozen=True)
class Adjoint:
    """The gradient of the loss with respect to a value (parameter, module or operator output)."""

    of: int
    value: int


@dataclass(frozen=True)
class Update:
    """A parameter or a piece of optimizer state after the optimizer's step.

    Attributes:
        name: The parameter's name.
        slot: `parameter`, `exp_avg`, …
        value: Its id.
    """

    name: str
    slot: str
    value: int


@dataclass(frozen=True)
class Check:
    """What level `check` found when it replayed an operator in the run; see `replaying.Judged`."""

    operator: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """Something that could not be recorded, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class End:
    """The last line of a step.

    Attributes:
        operators: How many operators ran.
        dropped: How many tensors were not kept because the size cap was reached.
    """

    operators: int
    dropped: int


Line = Operator | Value | Source | ModuleCall | RootCall | Adjoint | Update | Check | Skipped | End
