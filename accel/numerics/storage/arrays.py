"""Recordings of other frameworks, made from NumPy arrays by name.

MindSpore, PaddlePaddle, JAX: whatever gives its tensors as NumPy arrays can be compared with a
recording of torch at the boundaries of modules. It imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accel.numerics.capture.selection import Selection
from accel.numerics.overrides import Level, overridden, steps_text
from accel.numerics.storage.entries import (
    Adjoint,
    End,
    Key,
    ModuleCall,
    RootCall,
    Source,
    SourceKind,
    Value,
)
from accel.numerics.storage.layouts import Elements
from accel.numerics.storage.manifest import Manifest, manifest_from
from accel.numerics.storage.numpy_sketch import numpy_sketch
from accel.numerics.storage.surroundings import platform_text, revision, versions
from accel.numerics.storage.writer import StepWriter, Writer
from accel_kernels.sketch import Sketch, sketch_array
from accel_kernels.sketch.native import native

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

_DTYPES = frozenset(
    {
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint64",
        "uint32", "uint8", "bool", "complex64", "complex128",
    }
)  # fmt: skip


class ArrayRecorder:
    """Records a run of another framework, step by step, from arrays that the program gives it.

        with ArrayRecorder("run-b", framework="paddle", versions={"paddle": "3.3.1"}) as recorder:
            recorder.parameter("fc.weight", weight)
            recorder.module("fc", inputs={"0": x}, outputs={"0": y})
            recorder.gradient("fc.weight", weight_gradient)
            recorder.step()

    Names are those of the torch model that it will be compared with, and so are layouts: a weight
    that another framework keeps transposed is given transposed back. The module with the empty name
    is the model itself; its inputs are the batch. An array is anything that `numpy.asarray` turns
    into numbers without copying their meaning: an array of NumPy, JAX, or ml_dtypes (bfloat16,
    float8), a tensor of PaddlePaddle on the CPU, `tensor.asnumpy()` of MindSpore.

    The environment variable `ACCEL_RECORD`, which `accel record` sets, overrides `path`, `level`
    and `only`, and no other steps than it names are recorded.

    Args:
        path: The recording's directory; it must not exist, be empty, or hold other ranks.
        framework: Who computes, in a word: `mindspore`.
        versions: Of the framework and what it computes with, by name.
        level: `sketch`, or `full` to keep the elements too.
        only: At `full`, patterns of the modules whose elements are kept, as `record` has them; all
            of them if None.
        seed: Of the framework's generator, where there is one.
        device: `chip`, `family` and `torch_device` of what computes; the CPU if None.
        numerics_mode: Switches that change numbers, by name.
        arguments: Of the program; `sys.argv` if None.
        rank: Which process.
        world: How many processes.
        cap: Bytes of kept elements beyond which no more are kept.

    Raises:
        ValueError: `path` is in use; an argument is not allowed.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        framework: str,
        versions: Mapping[str, str],
        level: Level = "sketch",
        only: Sequence[str] | None = None,
        seed: int | None = None,
        device: Mapping[str, str] | None = None,
        numerics_mode: Mapping[str, Any] | None = None,
        arguments: Sequence[str] | None = None,
        rank: int = 0,
        world: int = 1,
        cap: int | None = None,
    ) -> None:
        chosen = overridden(path=os.fspath(path), level=level, only=only, steps=None)
        if chosen.level not in ("sketch", "full"):
            raise ValueError(f"level must be 'sketch' or 'full' for arrays, got {chosen.level!r}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to below world, got {rank} and {world}")
        manifest = Manifest(
            framework=framework,
            versions={**_own_versions(), **versions},
            platform=platform_text(),
            device=dict(device or {"chip": "CPU", "family": "cpu", "torch_device": "cpu"}),
            numerics_mode=dict(numerics_mode or {}),
            seed=seed,
            arguments=tuple(map(str, sys.argv if arguments is None else arguments)),
            revision=revision(),
            level=chosen.level,
            only=tuple(chosen.only or ()),
            steps="all" if chosen.steps is None else steps_text(chosen.steps),
            rank=rank,
            world=world,
        )
        self._manifest = manifest_from(manifest.to_text().encode())  # which checks every field
        self._kept = Selection(chosen.only if chosen.level == "full" else [])
        self._steps = chosen.steps
        self._writer = Writer(chosen.path, self._manifest, cap)
        self._index = 0
        self._step: _Step | None = None
        self._closed = False

    def module(
        self,
        name: str,
        *,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        call: int = 0,
        class_name: str = "",
        training: bool = True,
    ) -> None:
        """Record one call of a module.

        Args:
            name: Its path in the torch model: `layers.0.attention`; empty for the model itself.
            inputs: Arrays by their places among its arguments: `0`, `mask`.
            outputs: Arrays by their places in what it returns: `0` if that is one tensor.
            call: How often it was called before in this step.
            class_name: Of the module.
            training: Whether it is in training mode.

        Raises:
            ValueError: This call was recorded before; an array has a dtype that no recording holds.
            TypeError: Something is no array of numbers.
        """
        if (step := self._current()) is not None:
            step.module(name, inputs, outputs, call, class_name, training)

    def parameter(self, name: str, array: Any) -> None:
        """Record a parameter as it is before the step.

        Raises:
            ValueError: It was recorded before in this step; its dtype is one that no recording
                holds.
            TypeError: It is no array of numbers.
        """
        if (step := self._current()) is not None:
            step.source(name, "parameter", array)

    def buffer(self, name: str, array: Any) -> None:
        """Record a buffer (a running mean, …) as it is before the step; see `parameter`."""
        if (step := self._current()) is not None:
            step.source(name, "buffer", array)

    def gradient(self, name: str, array: Any, *, output: str | None = None, call: int = 0) -> None:
        """Record the loss's gradient by a parameter, or by an output of a module.

        Args:
            name: The parameter's name, or the module's with `output`.
            array: Of the same shape.
            output: Which of the module's outputs; None for a parameter.
            call: Which call of the module.

        Raises:
            ValueError: That parameter or output was not recorded in this step, or has another
                shape; the dtype is one that no recording holds.
            TypeError: It is no array of numbers.
        """
        if (step := self._current()) is not None:
            step.gradient(name, array, output, call)

    def step(self) -> None:
        """End this step; what is recorded from now on is of the next."""
        if (step := self._current()) is not None:
            step.end()
        self._index, self._step = self._index + 1, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._step is not None and error is None:
            self._step.end()
        self._closed = True
        self._writer.finish(self._manifest.finished(error))

    def _current(self) -> _Step | None:
        """The step under way; None if it is not to be recorded."""
        if self._closed:
            raise ValueError("the recording has ended: record inside its `with` block")
        if self._steps is not None and self._index not in self._steps:
            return None
        if self._step is None:
            self._step = _Step(self._writer.start_step(self._index), self._kept)
        return self._step


class _Step:
    """One step of a recording of arrays."""

    def __init__(self, writer: StepWriter, kept: Selection) -> None:
        self._writer, self._kept = writer, kept
        self._count = self._roots = 0
        self._sources: dict[str, Value] = {}
        self._outputs: dict[tuple[str, int], dict[str, Value]] = {}

    def module(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        call: int,
        class_name: str,
        training: bool,
    ) -> None:
        _check_name("a module's name", name, empty=True)
        if type(call) is not int or call < 0:
            raise ValueError(f"call must be an integer from 0, got {call!r}")
        if (name, call) in self._outputs:
            raise ValueError(
                f"call {call} of module {name!r} was recorded before in this step: count the calls "
                "of a module with call=0, 1, …, and end a step with step()"
            )
        arrays = [_named(what, one) for what, one in (("inputs", inputs), ("outputs", outputs))]
        key = Key("forward", name, call, "", "", 0)
        given, made = (
            {place: self._value(one, key) for place, one in each.items()} for each in arrays
        )
        lines: list[Source | RootCall] = []
        if not name:
            lines = [Source(value.id, "input", key) for key, value in given.items()]
            lines.append(RootCall(self._roots, training, None, training, {}, {}))
            self._roots += 1
        here = {key: value.id for key, value in given.items()}, {k: v.id for k, v in made.items()}
        line = ModuleCall(name, call, class_name, "forward", 0, 0, *here, training)
        self._writer.add(*given.values(), *made.values(), *lines, line)
        self._outputs[name, call] = made

    def source(self, name: str, kind: SourceKind, array: Any) -> None:
        _check_name(f"a {kind}'s name", name)
        if name in self._sources:
            raise ValueError(
                f"{kind} {name!r} was recorded before in this step: end a step with step()"
            )
        value = self._value(_array(name, array), Key("forward", _module_of(name), 0, "", "", 0))
        self._writer.add(value, Source(value.id, kind, name))
        self._sources[name] = value

    def gradient(self, name: str, array: Any, output: str | None, call: int) -> None:
        known = self._sources if output is None else self._outputs.get((name, call), {})
        of = known.get(name if output is None else output)
        if of is None:
            what = f"parameter {name!r}"
            if output is not None:
                what = f"output {output!r} of call {call} of module {name!r}"
            raise ValueError(f"{what} was not recorded in this step: record it before its gradient")
        found = _array(f"the gradient of {name}", array)
        if found.shape != of.shape:
            raise ValueError(
                f"the gradient of {name} must have its shape {list(of.shape)}, got "
                f"{list(found.shape)}"
            )
        module = _module_of(name) if output is None else name
        value = self._value(found, Key("backward", module, call, "", "", 0))
        self._writer.add(value, Adjoint(of.id, value.id))

    def end(self) -> None:
        self._writer.end(End(0, self._writer.dropped))

    def _value(self, array: NDArray[Any], key: Key) -> Value:
        number, self._count = self._count, self._count + 1
        dtype, shape = array.dtype.name, tuple(map(int, array.shape))
        blob = None
        if self._kept.takes(key):
            blob = self._writer.keep(_elements(array, dtype, shape))
        return Value(number, dtype, shape, _sketch(array), blob)


def _sketch(array: NDArray[Any]) -> Sketch:
    flat = array.reshape(-1)  # which is in row-major order
    return numpy_sketch(flat) if native() is None else sketch_array(flat)


def _elements(array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> Elements:
    return Elements(dtype, shape, memoryview(array.tobytes()), array.dtype.itemsize)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _named(what: str, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"{what} must be a dict of arrays by name, as {{'0': array}}, got "
            f"{type(arrays).__name__}"
        )
    for name in arrays:
        _check_name(f"a name among {what}", name)
    return {name: _array(f"{what}[{name!r}]", array) for name, array in arrays.items()}


def _check_name(what: str, name: object, empty: bool = False) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be text, got {name!r:.80}")
    if not name and not empty:
        raise ValueError(f"{what} must not be empty")


def _array(name: str, given: Any) -> NDArray[Any]:
    """An array in this machine's row-major little-endian layout, if a recording can hold it."""
    import numpy as np

    if not hasattr(given, "__array__") or isinstance(given, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a NumPy array or turn into one, got {type(given).__name__}: give "
            "numpy.asarray(…) of it"
        )
    array: NDArray[Any] = np.asarray(given)
    if array.dtype.name == "uint16":
        raise ValueError(
            f"{name} is uint16, which may be bfloat16 (PaddlePaddle gives it so) or a number: give "
            "array.view(ml_dtypes.bfloat16) or array.astype('int32')"
        )
    if array.dtype.name not in _DTYPES:
        raise TypeError(
            f"{name} has dtype {array.dtype.name}, which no recording holds: convert it to one of "
            f"{', '.join(sorted(_DTYPES))}"
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def _own_versions() -> dict[str, str]:
    return versions("numpy")
