"""What a line of a recording's index says: tensors, calls of the model, failed references."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Phase = Literal["parameter", "input", "forward", "input_gradient", "gradient", "parameter_gradient"]
Kind = Literal["run", "truth"]

VALUE_PHASES: tuple[Phase, ...] = ("input", "forward")
GRADIENT_PHASES: tuple[Phase, ...] = ("input_gradient", "gradient", "parameter_gradient")
PHASES: tuple[Phase, ...] = ("parameter", *VALUE_PHASES, *GRADIENT_PHASES)


class Key(NamedTuple):
    """Which tensor of a run an entry is; two recordings are aligned by it.

    Attributes:
        phase: `parameter` (and buffer, as the recording began), `input` and `forward` (a module's
            inputs and outputs), `input_gradient` and `gradient` (the gradients of those), or
            `parameter_gradient` (what one step's backward adds to a parameter's gradient).
        module: Path of the module, empty for the root.
        call: How often this module was called before; for parameter gradients, the step.
        path: Place in the module's inputs or outputs (`0`, `logits`, `past.1`), or the parameter.
    """

    phase: Phase
    module: str
    call: int
    path: str

    def __str__(self) -> str:
        return f"{self.phase} of {self.module or '(root)'}, call {self.call}, {self.path}"


@dataclass(frozen=True)
class Response:
    """What the recorder measured of a gradient beside its float64 truth.

    The truth is computed from the float64 values of the forward. An engine is not to be blamed for
    the rounding of those: where an input of a ReLU changes its sign, a whole gradient changes. So
    the error of the run's gradient is that against a second float64 backward, through a graph in
    which every module's output has the run's own value.

    Errors are relative to the gradient's scale: its own size, or, if that is larger, the size of
    its change under a random relative change of 1 in every gradient before it. A bias in front of a
    normalisation has a gradient that is zero but for rounding; its scale is not.

    Attributes:
        error: Of the run's gradient: rms and largest, relative to the scale, and how many elements
            are not finite on one side only, as in `accel_kernels.budgets.Deviation`.
        sensitivity: The scale over the truth's own size, by rms and by the largest element.
    """

    error: tuple[float, float, int]
    sensitivity: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Its part of the line of the index."""
        return {"error": list(self.error), "sensitivity": list(self.sensitivity)}


@dataclass(frozen=True)
class Entry:
    """One recorded tensor.

    Attributes:
        key: Which tensor it is.
        kind: `run` for what the program computed, `truth` for the float64 reference of it.
        sequence: Its place in execution order.
        module_class: Name of the module's class.
        dtype: Of the tensor, as torch names it without `torch.`.
        shape: Of the tensor.
        digest: SHA-256 of dtype, shape and bytes; see docs/recording-format.md.
        blob: File that holds the values; None if only the digest was recorded.
        requires_grad: Whether autograd followed the tensor.
        autocast: The dtype of the autocast in force, or None.
        root: Index of the call of the model that it belongs to; -1 before the first.
        response: Of the float64 truth of a gradient; None for everything else.
    """

    key: Key
    kind: Kind
    sequence: int
    module_class: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    blob: str | None
    requires_grad: bool = False
    autocast: str | None = None
    root: int = -1
    response: Response | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of the index."""
        return {
            "kind": self.kind,
            "sequence": self.sequence,
            **self.key._asdict(),
            "class": self.module_class,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "digest": self.digest,
            "blob": self.blob,
            "requires_grad": self.requires_grad,
            "autocast": self.autocast,
            "root": self.root,
            "response": None if self.response is None else self.response.to_json(),
        }


@dataclass(frozen=True)
class RootCall:
    """One outermost call of the model, or of a part of it that was called on its own.

    Attributes:
        index: How many there were before.
        module: Path of the module that was called, empty for the model itself.
        call: Its call index.
        training: Whether it was in training mode.
        autocast: The dtype of the autocast in force, or None.
        parameters: Digest of all its parameters and buffers at that moment.
        arguments: Its arguments that are plain values (flags, sizes), by name or position.
    """

    index: int
    module: str
    call: int
    training: bool
    autocast: str | None
    parameters: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line of the index."""
        return {
            "kind": "call",
            "index": self.index,
            "module": self.module,
            "call": self.call,
            "training": self.training,
            "autocast": self.autocast,
            "parameters": self.parameters,
            "arguments": self.arguments,
        }


@dataclass(frozen=True)
class ReferenceFailure:
    """Why the float64 reference of one call of the model is missing or incomplete."""

    root: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The line of the index."""
        return {"kind": "reference_failed", "root": self.root, "reason": self.reason}


@dataclass(frozen=True)
class Skipped:
    """A tensor that could not be recorded, and why."""

    key: Key
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The line of the index."""
        return {"kind": "skipped", **self.key._asdict(), "reason": self.reason}
