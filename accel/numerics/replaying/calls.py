"""One operator's call, made again in float64 on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Special

# A tensor, a scalar, None, a dtype, device, layout or memory format, or a list of these.
Given = Any
Function = Callable[..., Any]

# Arguments that say where and how memory lies, which the CPU decides for itself.
_DROPPED = frozenset({"layout", "pin_memory", "generator", "non_blocking"})
# A softmax of float16 that returns float32, which is nothing in float64; an index without checks.
_SWITCHED_OFF = frozenset({"half_to_float", "unsafe"})
# They update these arguments without saying so in their schemas.
_SILENT = ("running_mean", "running_var")


@dataclass(frozen=True)
class Call:
    """An operator and what it was given.

    Attributes:
        name: `aten::addmm`.
        overload: `default`, `Tensor`, …
        arguments: By the names of its schema: tensors, scalars, None, dtypes, lists of these.
        written: Names of the arguments that it writes to.
    """

    name: str
    overload: str
    arguments: Mapping[str, Given]
    written: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return [tensor for value in self.arguments.values() for tensor in tensors_in(value)]


@dataclass(frozen=True)
class Results:
    """What a call produced.

    Attributes:
        outputs: What it returned, flattened, without arguments that it wrote to; None for what is
            no tensor.
        written: The arguments that it wrote to, afterwards.
    """

    outputs: tuple[Tensor | None, ...]
    written: Mapping[str, tuple[Tensor, ...]]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name: `0` for the first output, `exp_avgs.2` for a written one."""
        for index, output in enumerate(self.outputs):
            if output is not None:
                yield str(index), output
        for name, tensors in self.written.items():
            for index, tensor in enumerate(tensors):
                yield (name if len(tensors) == 1 else f"{name}.{index}"), tensor


def tensors_in(value: Given) -> Iterator[Tensor]:
    """The tensors of one argument."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def mapped(value: Given, change: Callable[[Given], Given]) -> Given:
    """One argument with `change` applied to everything in it that is no list."""
    if isinstance(value, (list, tuple)) and not isinstance(value, Special):
        return [mapped(item, change) for item in value]
    return change(value)


def overload_of(name: str, overload: str) -> torch._ops.OpOverload:
    """The operator of this torch that a recording names.

    Raises:
        CannotReplayError: This torch has no such operator.
    """
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), short, None) if short else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise CannotReplayError(f"torch {torch.__version__} has no operator {name} here")
    found = getattr(packet, overload, None) if overload in packet.overloads() else None
    if not isinstance(found, torch._ops.OpOverload):
        raise CannotReplayError(f"torch {torch.__version__} has no {name}.{overload}")
    return found


def call_of(
    name: str, overload: str, arguments: Mapping[str, Given], written: Sequence[str] = ()
) -> Call:
    """A call from a recording's words.

    Args:
        name: `aten::addmm`.
        overload: `default`, `Tensor`, …
        arguments: By the schema's names; `Special`s are turned into what they name.
        written: The arguments that it wrote to, beside those of its schema.

    Raises:
        CannotReplayError: An argument is opaque, means nothing to this torch or is unknown to its
            schema.
    """
    given = {key: mapped(value, _special) for key, value in arguments.items()}
    try:
        schema = overload_of(name, overload)._schema
    except CannotReplayError:  # its reference may be here nevertheless
        return Call(name, overload, given, tuple(written))
    unknown = given.keys() - {a.name for a in schema.arguments}
    if unknown:
        raise CannotReplayError(
            f"{name}.{overload} of torch {torch.__version__} has no argument {min(unknown)!r:.40}"
        )
    declared = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    # Some update statistics without declaring it; the recorder knows them.
    writes = dict.fromkeys([*declared, *written])
    return Call(name, overload, given, tuple(name for name in writes if name in given))


def bound(
    op: torch._ops.OpOverload,
    args: Sequence[Given],
    kwargs: Mapping[str, Given],
    written: Sequence[str] = (),
) -> Call:
    """The call that a dispatch mode sees; `written` as in `call_of`."""
    schema = op._schema
    given = {a.name: value for a, value in zip(schema.arguments, args, strict=False)}
    given.update(kwargs)
    return call_of(str(schema.name), schema.overload_name or "default", given, written)


def _special(value: Given) -> Given:
    if not isinstance(value, Special):
        return value
    kind, text = value
    try:
        if kind in ("dtype", "layout", "memory_format"):
            return _member(kind, text)
        if kind == "device":
            return torch.device("cpu")
        if kind == "generator":
            return None
        if kind in ("float", "complex"):
            return float(text) if kind == "float" else complex(text)
    except ValueError as error:
        raise CannotReplayError(f"its {kind} {text!r:.40} means nothing here") from error
    raise CannotReplayError(f"its argument {text!r:.60} cannot be given again")


_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _member(kind: str, text: str) -> Given:
    found = getattr(torch, text, None) if text.isidentifier() else None
    if not isinstance(found, _KINDS[kind]):
        raise ValueError(f"torch has no {kind} {text!r:.40}")
    return found


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that stands for `dtype` in a replay."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def widened(call: Call) -> dict[str, Given]:
    """The arguments of a call in float64 on the CPU; what may be written to is copied."""
    copied = {*call.written, *_SILENT}

    def widen(name: str) -> Callable[[Given], Given]:
        def change(value: Given) -> Given:
            if isinstance(value, Tensor):
                there = value.detach().to("cpu", wide(value.dtype))
                return there.clone() if name in copied else there
            if isinstance(value, torch.dtype):
                return wide(value)
            return torch.device("cpu") if isinstance(value, torch.device) else value

        return change

    return {
        name: False if name in _SWITCHED_OFF else mapped(value, widen(name))
        for name, value in call.arguments.items()
        if name not in _DROPPED
    }


def results_of(function: Function, call: Call, arguments: Mapping[str, Given]) -> Results:
    """Call `function` on (copied) arguments, without gradients and outside autocast.

    Raises:
        CannotReplayError: The function refuses them.
    """
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), _in_float64(call):
            returned = function(**arguments)
    except CannotReplayError:
        raise
    except Exception as error:  # whatever it is, it is the replay's and not the program's
        raise CannotReplayError(f"its float64 replay failed: {first_line(error):.200}") from error
    written = {name: tuple(tensors_in(arguments[name])) for name in call.written}
    known = {id(tensor) for tensors in written.values() for tensor in tensors}
    outputs = tuple(
        item if isinstance(item, Tensor) else None
        for item in flattened(returned)
        if id(item) not in known
    )
    return Results(outputs, written)


def first_line(error: Exception) -> str:
    """What an exception says first, or else its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _in_float64(call: Call) -> Iterator[None]:
    """Where no argument says otherwise (integers times 0.5), results are float64 too."""
    if any(t.is_floating_point() or t.is_complex() for t in call.tensors):
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def flattened(returned: Given) -> Iterator[Given]:
    """What an operator returned, one by one; nothing for one that returns nothing."""
    if isinstance(returned, (list, tuple)):
        for item in returned:
            yield from [item] if item is None else flattened(item)
    elif returned is not None:
        yield returned
