"""The lines of a recording: sources, values, operators and module calls of an exported program."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from accel.numerics.capture import nesting
from accel.numerics.capture.arguments import described, named
from accel.numerics.capture.schemas import Schema, schema_of
from accel.numerics.onnx_runs.boundaries import (
    Boundary,
    boundaries,
    innermost,
    is_operator,
    root_places,
)
from accel.numerics.onnx_runs.exporting import Exported
from accel.numerics.onnx_runs.places import place_of
from accel.numerics.onnx_runs.running import initializers
from accel.numerics.storage.encoding import dtype_name
from accel.numerics.storage.entries import (
    End,
    Key,
    Line,
    ModuleCall,
    Operator,
    Ref,
    RootCall,
    Skipped,
    Source,
    SourceKind,
    Value,
)
from accel.numerics.storage.writer import StepWriter
from accel_kernels.sketch import sketch

_NOT_COMPUTED = "the exported program does not compute it"
_UNINITIALISED = "memory that nothing was written to"
_NOT_WATCHED = "it was not watched, so that ONNX Runtime could fuse across it"


class Lines:
    """What a recording says of one run.

    Args:
        exported: What ran.
        values: What it computed, by the names of values in the program.
        writer: Keeps elements.
        is_full: Whether elements are kept.
    """

    def __init__(
        self, exported: Exported, values: dict[str, Tensor], writer: StepWriter, *, is_full: bool
    ) -> None:
        self._exported, self._program = exported, exported.program
        self._writer, self._is_full = writer, is_full
        self._tensors = {**self._outside(), **values}
        self._ids: dict[str, int] = {}
        self._fakes: dict[int, int] = {}  # identity of a traced tensor -> value
        self._held = dict(exported.module.named_parameters(remove_duplicate=False))
        self._tied: dict[int, str] = {}
        self._count = self._operators = 0
        self._boundaries = boundaries(exported.program, exported.module, exported.places)
        self._calls = {boundary.name: boundary for boundary in self._boundaries}
        self._places: Counter[tuple[str, int, str]] = Counter()

    def all(self) -> Iterator[Line]:
        """All lines but the last."""
        yield self._root()
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
                yield from self._source(node)
        for node in self._program.graph.nodes:
            if is_operator(node):
                yield from self._operator(node)
        for boundary in reversed(self._boundaries):
            yield from self._module(boundary)

    def end(self) -> End:
        """The last line."""
        return End(self._operators, self._writer.dropped)

    # --- where values come from -------------------------------------------------------------------

    def _outside(self) -> dict[str, Tensor]:
        """Parameters, buffers, constants and inputs: those that ONNX Runtime was given."""
        held = initializers(self._exported)
        found = {node: held[name] for node, name in self._exported.names.items() if name in held}
        onnx = {name: node for node, name in self._exported.names.items()}
        for name, tensor in self._exported.inputs.items():
            found[onnx[name]] = tensor
        return found

    def _source(self, node: torch.fx.Node) -> Iterator[Line]:
        kind, name = self._origin(node.name)
        tied = self._tied.setdefault(id(self._held.get(name, node)), node.name)
        if tied != node.name:  # a tied parameter goes by the first of its names
            self._ids[node.name] = self._fakes[id(node.meta["val"])] = self._ids[tied]
            return
        number = self._known(node.name, node.meta["val"])
        yield self._value(number, node.name, node.meta["val"], base=None, is_watched=True)
        yield Source(number, kind, name)

    def _origin(self, name: str) -> tuple[SourceKind, str]:
        signature = self._program.graph_signature
        if name in signature.inputs_to_parameters:
            return "parameter", signature.inputs_to_parameters[name]
        if name in signature.inputs_to_buffers:
            return "buffer", signature.inputs_to_buffers[name]
        places = {value: place for place, value in root_places(self._program).inputs.items()}
        return ("input", places[name]) if name in places else ("other", "")

    # --- operators --------------------------------------------------------------------------------

    def _operator(self, node: torch.fx.Node) -> Iterator[Line]:
        func: Any = node.target
        schema = schema_of(func)
        arguments = self._arguments(node, schema)
        base = next(_references(arguments), None) if schema.is_view else None
        outputs: list[int | None] = []
        for name, value in _results(node):
            if not isinstance(value, Tensor):
                outputs.append(None)
                continue
            number = self._known(name, value)
            outputs.append(number)
            is_garbage = schema.is_uninitialised
            yield self._value(number, name, value, base=base, is_watched=not is_garbage)
        boundary = self._calls[innermost(node)]
        place = (boundary.module, boundary.call, schema.short)
        yield Operator(
            id=self._operators,
            key=Key(
                "forward", boundary.module, boundary.call, "", schema.short, self._places[place]
            ),
            name=schema.name,
            overload=schema.overload,
            arguments=arguments,
            outputs=tuple(outputs),
            place=place_of(node),
        )
        self._places[place] += 1
        self._operators += 1

    def _arguments(self, node: torch.fx.Node, schema: Schema) -> dict[str, Any]:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        given = named(schema, args, kwargs)
        return {name: described(value, self._of) for name, value in given.items()}

    def _of(self, tensor: Tensor) -> int:
        return self._fakes[id(tensor)]

    # --- values -----------------------------------------------------------------------------------

    def _known(self, name: str, fake: Tensor) -> int:
        number = self._count
        self._count += 1
        self._ids[name] = self._fakes[id(fake)] = number
        return number

    def _value(
        self, number: int, name: str, fake: Tensor, *, base: int | None, is_watched: bool
    ) -> Value:
        dtype, shape = dtype_name(fake.dtype), tuple(int(size) for size in fake.shape)
        tensor = self._tensors.get(name)
        if tensor is None or not is_watched:
            reason = _NOT_WATCHED if name in self._exported.names else _NOT_COMPUTED
            reason = reason if is_watched else _UNINITIALISED
            return Value(number, dtype, shape, base=base, skipped=reason)
        if tensor.dtype != fake.dtype or tuple(tensor.shape) != shape:
            found = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
            return Value(number, dtype, shape, skipped=f"ONNX Runtime computed {found}")
        blob = self._writer.keep(tensor.contiguous()) if self._is_full else None
        digest = None if base is not None else sketch(tensor)
        return Value(number, dtype, shape, digest, blob, base=base)

    # --- module calls -----------------------------------------------------------------------------

    def _root(self) -> RootCall:
        exported = self._exported
        plain = nesting.plain_values(exported.arguments)
        return RootCall(0, exported.module.training, None, False, plain, {})

    def _module(self, boundary: Boundary) -> Iterator[Line]:
        places = boundary.places
        if places is None:
            yield Skipped(
                what=f"inputs and outputs of {boundary.module}[{boundary.call}]",
                reason="the exporter cannot follow them: the module is called in several ways",
            )
        yield ModuleCall(
            module=boundary.module,
            call=boundary.call,
            class_name=boundary.class_name,
            phase="forward",
            first=boundary.first,
            last=boundary.last,
            inputs=self._numbers({} if places is None else places.inputs),
            outputs=self._numbers({} if places is None else places.outputs),
            training=self._exported.module.training,
        )

    def _numbers(self, places: dict[str, str]) -> dict[str, int]:
        return {p: self._ids[name] for p, name in places.items() if name in self._ids}


def _results(node: torch.fx.Node) -> list[tuple[str, object]]:
    """An operator's results: the name of the value and the traced tensor."""
    value = node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return [(node.name, value)]
    names = {
        user.args[1]: (user.name, user.meta["val"])
        for user in node.users
        if user.target is operator.getitem
    }
    return [names.get(i, (f"{node.name}.{i}", item)) for i, item in enumerate(value)]


def _references(arguments: dict[str, Any]) -> Iterator[int]:
    for leaf in pytree.tree_leaves(list(arguments.values()), is_leaf=_is_reference):
        if isinstance(leaf, Ref):
            yield leaf.value


def _is_reference(value: object) -> bool:
    return isinstance(value, Ref)
