"""TorchScript: annotations of replaced classes, and devices that a script names itself."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.jit import annotations as script_types

from accel.tracing.patching import Function, replace
from accel.tracing.tracer import Tracer, TrueDevice, TrueGenerator

# As a graph is printed: a constant that is a device, and a call of `tensor.cuda()`.
_IN_GRAPH = re.compile(r'Device = prim::Constant\[value="(cuda(?::\d+)?)"\]|= (aten::cuda)\(')
_NOTE = "a script is not redirected: this raises if it runs"


def install_scripting(tracer: Tracer) -> None:
    """Let scripts be compiled as before, and count the CUDA devices that they name."""
    # typing gives equal annotations one object, which may hold the true class.
    public = {TrueDevice: torch.device, TrueGenerator: torch.Generator}

    def resolving(original: Function) -> Function:
        def replacement(ann: Any, *args: Any, **kwargs: Any) -> Any:
            is_replaced = ann is TrueDevice or ann is TrueGenerator
            return original(public[ann] if is_replaced else ann, *args, **kwargs)

        return replacement

    replace(script_types, "try_ann_to_type", resolving)
    replace(torch.jit, "script", lambda it: _looking(tracer, it))


def _looking(tracer: Tracer, original: Function) -> Function:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        graph = getattr(compiled, "inlined_graph", None)
        if graph is not None and tracer.target != "cuda":
            for device, call in set(_IN_GRAPH.findall(str(graph))):
                tracer.note("torch.jit.script", device or call, "", _NOTE)
        return compiled

    return replacement
