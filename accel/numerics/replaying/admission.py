"""Which recorded calls may run at all: a recording is data, and may have been tampered with.

Only operators that compute tensors from tensors run, with their checks on, and none whose
arguments ask for much more memory than its recorded results took.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from accel.numerics.replaying.calls import Call, Given, Results, mapped, overload_of, tensors_in
from accel.numerics.replaying.refusals import CannotReplayError

_NAMESPACES = ("aten::", "prims::")
# Of the arguments that are strings in torch's schemas; the others choose a way to compute.
_WORDS = frozenset(
    {
        "reduce", "activation", "algorithm", "approximate", "mode", "ord", "rounding_mode",
        "interpolation", "driver", "p", "pad_mode", "UPLO", "side", "padding", "equation",
        "indexing", "norm", "padding_side",
    }
)  # fmt: skip
# They change how a tensor lies in memory, talk to the host, or trust what they are given.
_REFUSED = re.compile(
    r"(from_file|save|set_|set_data|_?resize.*|_?_?backward|requires_grad_|retain_grad|rename_?"
    r"|record_stream|_?pin_memory|share_memory_|warn|_?print|_?assert.*|_functional_assert.*"
    r"|_nested_.*|_use_cudnn.*|_cudnn_init.*|_validate_.*|_?_?.*_tensor_unsafe|_coalesced_"
    r"|_make_dep_token|_lazy_clone|_debug_.*|_test_.*|_linalg_check_errors)"
)
_FREE = 2**20  # elements that any call may make
_FEW = 2**10  # a number that asks for no more than _FREE, even squared (`eye`)
_TIMES = 4  # as many as recorded


def admit(call: Call, recorded: Results) -> None:
    """Refuse a call that must not run on the word of a recording.

    Args:
        call: An operator of torch.
        recorded: What the recording says that it produced.

    Raises:
        CannotReplayError: It reads or writes files, changes memory or has other effects, computes
            no tensor, is no operator of torch's own namespaces, or asks for outputs much larger
            than those recorded.
    """
    if not call.name.startswith(_NAMESPACES):
        raise CannotReplayError(f"{call.name} is no operator of torch's own")
    short = call.name.partition("::")[2]
    if _REFUSED.fullmatch(short):
        raise CannotReplayError(f"{call.name} has effects beside its results and is not run")
    op = overload_of(call.name, call.overload)
    for name, value in call.arguments.items():
        if name not in _WORDS and any(isinstance(item, str) for item in _items(value)):
            raise CannotReplayError(f"its argument {name} is a text and may name a file: not run")
    if not call.written and not any("Tensor" in str(r.type) for r in op._schema.returns):
        raise CannotReplayError("it computes no tensor")
    _limit_size(op, call, recorded)


def _limit_size(op: torch._ops.OpOverload, call: Call, recorded: Results) -> None:
    most = _FREE + _TIMES * sum(t.numel() for _, t in recorded.named())
    most += _TIMES * sum(t.numel() for t in call.tensors)
    by_scalars = max((_asked(value) for value in call.arguments.values()), default=0.0)
    if by_scalars <= _FEW and _by_tensors(call) <= _FREE * _TIMES:
        return
    size = _size_without_elements(op, call)
    if size is None and by_scalars > _FREE:
        raise CannotReplayError("how large its results are cannot be told before it runs: not run")
    if size is not None and size > most:
        raise CannotReplayError(
            f"it asks for {size:.3g} elements, many more than were recorded: not run"
        )


def _items(value: Given) -> Iterator[Given]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _asked(value: Given) -> float:
    """The most elements that numbers of one argument may ask for: their product."""
    numbers = [
        abs(float(item))
        for item in _items(value)
        if isinstance(item, (int, float)) and not isinstance(item, bool)
    ]
    product = math.prod(max(1.0, number) for number in numbers)
    return product if math.isfinite(product) else math.inf


def _by_tensors(call: Call) -> float:
    """The most elements that its two largest tensors give together by broadcasting."""
    sizes = sorted((t.numel() for t in call.tensors), reverse=True)
    return float(math.prod(sizes[:2])) if len(sizes) > 1 else 0.0


def _size_without_elements(op: torch._ops.OpOverload, call: Call) -> float | None:
    """How many elements its results have, by torch's shape rules; None if it has none for it."""

    def empty(value: Given) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_like(value, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    try:
        given = {
            name: mapped(value, empty)
            for name, value in call.arguments.items()
            if name not in ("pin_memory", "generator", "non_blocking", "layout")
        }
        if any(a.name == "device" for a in op._schema.arguments):
            given["device"] = torch.device("meta")
        with torch.no_grad():
            returned = op(**given)
    except Exception:  # no rule for it, or it refuses: the caller decides what that means
        return None
    return float(sum(t.numel() for t in tensors_in(returned)))
