"""Which modules can be recorded: those whose computation hooks see."""

from __future__ import annotations

import torch
from torch import nn


def recordable(model: nn.Module) -> nn.Module:
    """The module whose tree is watched.

    Raises:
        TypeError: `model` is no module.
        ValueError: Hooks would not see what it computes, or it has parameters to come.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record takes a torch.nn.Module, got {type(model).__name__}")
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # names without `module.`, to align with a run on one device
    for name, module in model.named_modules():
        kind = _unseen_kind(module)
        if kind is not None:
            raise ValueError(
                f"{name or 'the model'} is {kind}: hooks do not see what it computes; record the "
                "plain module"
            )
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"the parameter {lazy[0]} is not there yet: call the lazy model once, then record it"
        )
    return model


def _unseen_kind(module: nn.Module) -> str | None:
    # Not by isinstance: importing torch._dynamo takes seconds.
    if type(module).__module__.startswith("torch._dynamo"):
        return "compiled (torch.compile)"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled (module.compile())"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted (torch.jit)"
    if isinstance(module, nn.DataParallel):
        return "replicated (nn.DataParallel)"
    return None
