"""What must be equal before errors mean anything: parameters, inputs, arguments, environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from accel.numerics.encoding import dtype_named
from accel.numerics.entries import Entry, Key, RootCall
from accel.numerics.reader import Recording
from accel_kernels import budgets


@dataclass(frozen=True)
class Difference:
    """One thing that differs before any module has computed.

    Attributes:
        kind: `parameters`, `input` or `arguments`.
        module: The module it belongs to.
        text: What differs, in words.
    """

    kind: str
    module: str
    text: str


@dataclass(frozen=True)
class Preconditions:
    """What was found before any error was measured.

    Attributes:
        differences: What makes the runs incomparable, in the order in which it matters.
        notes: What differs without making them so.
        comparable: Indices of the calls that had the same parameters, inputs and arguments, bit
            for bit: their float64 references must agree.
    """

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    comparable: frozenset[int]


def preconditions(reference: Recording, candidate: Recording) -> Preconditions:
    """Compare what the two runs began with."""
    differences: list[Difference] = []
    notes: list[str] = []
    for key, a in reference.entries.items():
        b = candidate.entries.get(key)
        if b is None or a.digest == b.digest or not _is_start(key, reference):
            continue
        kind = "parameters" if key.phase == "parameter" else "input"
        note = _rounded(reference, candidate, a, b)
        if note is not None:
            notes.append(f"{_name(key)} {note}")
        else:
            text = f"{_name(key)} {_difference(reference, candidate, a, b)}"
            differences.append(Difference(kind, key.module, text))
    comparable = []
    for a_call, b_call in zip(reference.calls, candidate.calls, strict=False):
        differences += _call_differences(a_call, b_call)
        if _is_same_call(reference, candidate, a_call, b_call):
            comparable.append(a_call.index)
        elif a_call.index > 0 and a_call.parameters != b_call.parameters:
            notes.append(f"parameters differ by training from call {a_call.index} on")
    order = ("parameters", "input", "arguments")
    differences.sort(key=lambda one: order.index(one.kind))
    return Preconditions(tuple(differences), _first_of_kind(notes), frozenset(comparable))


def environment_differences(a: Recording, b: Recording) -> dict[str, tuple[Any, Any]]:
    """Versions, chip, switches and seed where they differ, by name."""
    left, right = _environment(a), _environment(b)
    names = [*left, *(name for name in right if name not in left)]
    return {n: (left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)}


def _environment(recording: Recording) -> dict[str, Any]:
    manifest = recording.manifest
    flat: dict[str, Any] = {"platform": manifest.platform, "seed": manifest.seed}
    flat |= {f"version of {name}": value for name, value in manifest.versions.items()}
    flat |= dict(manifest.device)
    flat |= {f"switch {name}": value for name, value in manifest.numerics_mode.items()}
    if recording.calls:
        flat["autocast"] = recording.calls[0].autocast
    return flat


def _is_start(key: Key, recording: Recording) -> bool:
    """Whether an entry is something that a run begins with, not something it computed."""
    if key.phase == "parameter":
        return True
    return key.phase == "input" and (key.module, key.call) in {
        (call.module, call.call) for call in recording.calls
    }


def _name(key: Key) -> str:
    place = f"{key.module}.{key.path}".strip(".")
    if key.phase == "parameter":
        return place
    return f"input {key.path} of call {key.call} of {key.module or 'the model'}"


def _values(
    reference: Recording, candidate: Recording, a: Entry, b: Entry
) -> tuple[Tensor, Tensor] | None:
    if a.blob is None or b.blob is None:
        return None
    return reference.tensor(a), candidate.tensor(b)


def _rounded(reference: Recording, candidate: Recording, a: Entry, b: Entry) -> str | None:
    """What to say of values that differ only by being held in a coarser dtype; None if more."""
    left, right = dtype_named(a.dtype), dtype_named(b.dtype)
    if a.dtype == b.dtype or a.shape != b.shape:
        return None
    if not (left.is_floating_point and right.is_floating_point):
        return None
    values = _values(reference, candidate, a, b)
    coarse = max(budgets.unit_roundoff(left), budgets.unit_roundoff(right))
    if values is None:
        return f"is {b.dtype} against {a.dtype}; whether it is otherwise equal is not recorded"
    if budgets.deviation(values[1], values[0].double()).rms > 2 * coarse:
        return None
    return f"is rounded to {b.dtype} against {a.dtype}"


def _difference(reference: Recording, candidate: Recording, a: Entry, b: Entry) -> str:
    if a.shape != b.shape:
        return f"has shape {list(b.shape)} against {list(a.shape)}"
    values = _values(reference, candidate, a, b)
    if values is None:
        return "differs (only digests were recorded)"
    left, right = values
    if left.dim() >= 2 and left.shape[-1] == left.shape[-2] and left.mT.equal(right):
        return "is transposed"
    if not left.is_floating_point() or left.dtype != right.dtype:
        return f"differs in {int((left != right).sum())} of {left.numel()} elements"
    return f"differs by {budgets.deviation(right, left.double()).rms:.3g} (relative rms)"


def _call_differences(a: RootCall, b: RootCall) -> list[Difference]:
    found = []
    if a.module != b.module:
        text = f"call {a.index} is of {b.module or 'the model'} against {a.module or 'the model'}"
        found.append(Difference("arguments", a.module, text))
    if a.training != b.training:
        mode = "training" if b.training else "eval"
        text = f"call {a.index} is in {mode} mode, the reference's is not"
        found.append(Difference("arguments", a.module, text))
    if a.arguments != b.arguments:
        text = f"call {a.index} has arguments {b.arguments} against {a.arguments}"
        found.append(Difference("arguments", a.module, text))
    return found


def _is_same_call(reference: Recording, candidate: Recording, a: RootCall, b: RootCall) -> bool:
    if a.parameters != b.parameters or _call_differences(a, b):
        return False
    inputs = (
        (entry.digest, candidate.entries.get(key))
        for key, entry in reference.entries.items()
        if (key.phase, key.module, key.call) == ("input", a.module, a.call)
    )
    return all(other is not None and other.digest == digest for digest, other in inputs)


def _first_of_kind(notes: list[str]) -> tuple[str, ...]:
    """At most four notes, since a model of a thousand parameters gives a thousand."""
    if len(notes) <= 4:
        return tuple(notes)
    return (*notes[:3], f"and {len(notes) - 3} more of this kind")
