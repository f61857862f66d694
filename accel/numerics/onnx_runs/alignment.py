"""Which value of an ONNX program holds which value of the torch program it was made from.

The exporter notes on every ONNX node the node of its own graph that it translates, and torch notes
on every node of that graph the node that it comes from. Both notes have to agree.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

import torch

from accel.numerics.onnx_runs.provenance import counterparts

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

_NOTE = "pkg.torch.onnx.fx_node"


def align(
    program: ExportedProgram, translated: ExportedProgram, model: ModelProto
) -> dict[str, str]:
    """Names of values of `program` to those of `model`.

    Args:
        program: What was given to the exporter.
        translated: The exporter's own form of it.
        model: What it made.

    Returns:
        The values of `program` that `model` holds too, parameters and inputs among them.
    """
    made = _made(model)
    names = _outside(program, model)
    nodes = {node.name: node for node in translated.graph.nodes}
    for name, other in counterparts(program.graph, translated.graph).items():
        node = nodes[other]
        if node.op == "placeholder":
            names.update({name: names[other]} if other in names else {})
        elif made.get(other, "") in (other, _parent(node)):
            names[name] = other
    return names


def _made(model: ModelProto) -> dict[str, str]:
    """Every value of a program, to the exporter's node that it belongs to."""
    found = {}
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        match = re.match(r"%([\w.]+)", notes.get(_NOTE, ""))
        if match:
            found.update(dict.fromkeys(node.output, match.group(1)))
    return found


def _parent(node: torch.fx.Node) -> str | None:
    """Of one of several results, the operator that computes it."""
    source = node.args[0] if node.target is operator.getitem else None
    return source.name if isinstance(source, torch.fx.Node) else None


def _outside(program: ExportedProgram, model: ModelProto) -> dict[str, str]:
    """Parameters, buffers, constants and inputs: the exporter gives them their own names."""
    signature = program.graph_signature
    there = {value.name for value in (*model.graph.initializer, *model.graph.input)}
    own = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
        **{name: name for name in signature.user_inputs if isinstance(name, str)},
    }
    # Of a tied parameter the exporter keeps one name.
    held = {name: _memory(tensor) for name, tensor in program.state_dict.items()}
    kept = {memory: name for name, memory in held.items() if name in there}
    found = {}
    for node, name in own.items():
        known = name if name in there else kept.get(held[name]) if name in held else None
        found.update({} if known is None else {node: known})
    return found


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
