"""ACC073 to ACC079: random states, generators, page-locked memory."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding, Span
from accel.convert.module import Module
from accel.convert.rules import functions_calls as calls
from accel.convert.rules.functions_amp import is_cuda
from accel.convert.rules.memory_methods import is_own_method
from accel.convert.rules.memory_rules import RULES as RULES

_FORKS = frozenset({"torch.random.fork_rng", "torch.fork_rng"})
_GENERATORS = frozenset({"torch.Generator", "torch._C.Generator"})
_INDEXED = re.compile(r"cuda(?::(\d+))?")
# Functions of torch that make tensors, which on a CPU alone refuse pin_memory=True.
_FACTORIES = frozenset(
    f"torch.{name}"
    for name in (
        "arange", "as_tensor", "empty", "empty_like", "empty_permuted", "empty_strided", "eye",
        "full", "full_like", "linspace", "logspace", "normal", "ones", "ones_like", "rand",
        "randint", "randn", "randperm", "tensor", "zeros", "zeros_like",
    )
)  # fmt: skip
_NEW = frozenset({"new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"})


def find(module: Module) -> Iterator[Finding]:
    """Calls about random states of devices and about page-locked memory."""
    for call in module.all(ast.Call):
        name = module.qualified(call.func)
        if name in _FORKS:
            yield from _fork(module, call)
        elif name in _GENERATORS:
            yield from _generator(module, call)
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "pin_memory":
            yield from _pin(module, call, call.func)
        for item in call.keywords:
            if item.arg == "pin_memory":
                yield from _pin_option(module, call, item)
            elif item.arg == "pin_memory_device":
                yield from _pin_device(module, call, item)


# --- random states -----------------------------------------------------------------------------


def _fork(module: Module, call: ast.Call) -> Iterator[Finding]:
    known = {"devices", "enabled", "device_type"}
    kind = calls.argument(call, 4, "device_type")
    odd = len(call.args) > 2 or any(item.arg not in known for item in call.keywords)
    if kind is not None and not is_cuda(module, kind):
        return  # a device that the program chose
    edits = None if odd or calls.has_stars(call) else _fork_edits(module, call, kind)
    if edits is None:
        yield module.flag(
            call.func, "ACC074", "torch.random.fork_rng is about CUDA's random states by default.",
            "Write accel.fork_rng(devices), or give the device_type.", subject="fork_rng",
        )  # fmt: skip
        return
    yield module.edit(
        call.func, "ACC074", "fork_rng keeps the random states of the device that is here.",
        *edits, subject="fork_rng",
    )  # fmt: skip


def _fork_edits(module: Module, call: ast.Call, kind: ast.expr | None) -> tuple[Edit, ...] | None:
    spelled = module.target.function("fork_rng")
    if spelled is None:
        edit = calls.templated(module, call.func, "fork_rng", without=kind)
        return None if edit is None else (edit,)
    whole = Edit(module.span(call.func), (spelled,))
    if kind is None:
        return (whole,)
    dropped = calls.without_argument(module, call, kind)
    return None if dropped is None else (whole, dropped)


def _generator(module: Module, call: ast.Call) -> Iterator[Finding]:
    """Only a written device: a variable is converted where it gets its value."""
    given = calls.argument(call, 0, "device")
    if not isinstance(given, ast.Constant) or not isinstance(given.value, str):
        return
    match = _INDEXED.fullmatch(given.value)
    if match is None:
        return
    parts = module.target.call("generator", *([match.group(1)] if match.group(1) else []))
    gap = Span(module.span(call.func).end, module.span(call).end)
    if parts is None or calls.has_comment(module, gap) or len(call.args) + len(call.keywords) > 1:
        yield module.flag(
            call, "ACC075", "The generator is one of <CUDA>'s.",
            "Write accel.generator(), which is of the device that is here.", subject="generator",
        )  # fmt: skip
        return
    yield module.convert(
        call, "ACC075", "The generator is one of the device that is here.", *parts,
        subject="generator",
    )  # fmt: skip


# --- page-locked memory ------------------------------------------------------------------------


def _pin(module: Module, call: ast.Call, func: ast.Attribute) -> Iterator[Finding]:
    receiver = func.value
    own = is_own_method(module, func)
    if module.qualified(receiver) == "accel" or not calls.imports(module, "torch") or own:
        return
    span = module.span(call)
    device = calls.argument(call, 0, "device")
    count = len(call.args) + len(call.keywords)
    if count and not (count == 1 and device is not None):
        return  # none of torch's
    if own is None:
        yield module.flag(
            call, "ACC077", "A class of the program's own has a pin_memory, too.",
            "Write accel.pin_memory(tensor), if it is a tensor.", subject="pin_memory",
        )  # fmt: skip
        return
    parts = module.target.call("pin_memory", receiver)
    message = "pin_memory() raises where there is no accelerator; the function returns the tensor."
    lost = calls.has_comment(module, Span(module.span(receiver).end, span.end))
    if parts is None or lost or (device is not None and not is_cuda(module, device)):
        yield module.flag(
            call, "ACC077", "pin_memory() raises where there is no accelerator.",
            "Write accel.pin_memory(tensor).", subject="pin_memory",
        )  # fmt: skip
        return
    yield module.convert(call, "ACC077", message, *parts, subject="pin_memory")


def _pin_option(module: Module, call: ast.Call, item: ast.keyword) -> Iterator[Finding]:
    if not isinstance(item.value, ast.Constant) or item.value.value is not True:
        return
    name = module.qualified(call.func)
    is_new = isinstance(call.func, ast.Attribute) and call.func.attr in _NEW
    if name in _FACTORIES or (is_new and calls.imports(module, "torch")):
        parts = module.target.call("is_available")
        if parts is None:
            yield module.flag(
                item, "ACC078", "A new tensor cannot be page-locked without an accelerator.",
                "Give True only where there is one.", subject="target",
            )  # fmt: skip
            return
        yield module.convert(
            item.value, "ACC078", "A new tensor is page-locked only where there is an accelerator.",
            *parts,
        )  # fmt: skip
    elif calls.imports(module, "torch"):
        yield module.keep(
            item, "ACC078", "A loader locks pages only where there is an accelerator, for any."
        )


def _pin_device(module: Module, call: ast.Call, item: ast.keyword) -> Iterator[Finding]:
    value = item.value
    if isinstance(value, ast.Constant) and value.value in ("", None):
        yield module.keep(item, "ACC079", "The device that is here is the default.")
        return
    named = value.value if isinstance(value, ast.Constant) else None
    if isinstance(named, str) and named != "cuda" and _INDEXED.fullmatch(named):
        return  # converted as any device's name is
    edit = calls.without_argument(module, call, value) if is_cuda(module, value) else None
    if edit is None:
        yield module.flag(
            item, "ACC079", "The loader's memory is locked for one kind of device.",
            "Leave pin_memory_device out: the device that is here is the default.",
            subject="pin_memory_device",
        )  # fmt: skip
        return
    yield module.edit(
        item, "ACC079", "The device that is here is the default.", edit, imports=frozenset()
    )
