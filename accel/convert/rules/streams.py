"""ACC050 to ACC059: streams, events, graphs, marks and profiles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding, Span
from accel.convert.module import Module
from accel.convert.rules import streams_objects
from accel.convert.rules.functions_calls import has_comment, has_stars, imports
from accel.convert.rules.memory_methods import is_own_method
from accel.convert.rules.streams_rules import RULES as RULES

_ACTIVITY = re.compile(r"torch\.(\w+\.)*ProfilerActivity\.(\w+)")
_OLD_PROFILERS = frozenset(
    {
        "torch.autograd.profiler.profile",
        "torch.profiler.profile",
        "torch.autograd.profiler_legacy.profile",
    }
)
# What torch's profiler calls times and memory of whatever device it recorded.
_TIMES = re.compile(r"(self_)?cuda_(time|time_total|memory_usage)")
_RUNTIME = ("cudaProfilerStart", "cudaProfilerStop")
_PROFILE = "Use torch.profiler.profile(activities=accel.profiler_activities())."


def find(module: Module) -> Iterator[Finding]:
    """`record_stream`, what only CUDA's streams have, profiler activities, older profilers."""
    yield from streams_objects.find(module)
    for call in module.all(ast.Call):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "record_stream":
            yield from _record_stream(module, call, call.func)
        for item in call.keywords:
            if item.arg == "use_cuda" and module.qualified(call.func) in _OLD_PROFILERS:
                yield _use_cuda(module, item)
    for node in module.all(ast.Attribute):
        if "cuda" in node.attr or node.attr in ("CUDA", "emit_nvtx"):
            yield from _attribute(module, node)
    for constant in module.all(ast.Constant):
        if isinstance(constant.value, str) and _TIMES.fullmatch(constant.value):
            yield from _sorted_by(module, constant)


def _attribute(module: Module, node: ast.Attribute) -> Iterator[Finding]:
    if node.attr == "CUDA":
        match = _ACTIVITY.fullmatch(module.qualified(node) or "")
        if match:
            yield _activity(module, node)
    elif node.attr == "emit_nvtx":
        if module.qualified(node) == "torch.autograd.profiler.emit_nvtx":
            yield module.flag(
                node, "ACC056", "It marks every operator for NVIDIA's profiler.", _PROFILE,
                subject="emit_nvtx",
            )  # fmt: skip
    elif node.attr in _RUNTIME and not _is_of_torch(module, node):
        yield module.flag(
            node, "ACC057", "It steers NVIDIA's profiler.", _PROFILE, subject="cudart"
        )  # fmt: skip
    elif _TIMES.fullmatch(node.attr) and _is_torchs_time(module, node):
        yield module.keep(
            node, "ACC056", "Torch's profiler gives the time or memory of any device by it."
        )


# --- streams -----------------------------------------------------------------------------------


def _record_stream(module: Module, call: ast.Call, func: ast.Attribute) -> Iterator[Finding]:
    receiver = func.value
    if module.qualified(receiver) in ("accel", "self", "super") or not imports(module, "torch"):
        return
    own = is_own_method(module, func)
    if own:
        return
    if len(call.args) != 1 or call.keywords or has_stars(call):
        return
    parts = module.target.call("record_stream", receiver, call.args[0])
    message = "A tensor on a CPU refuses record_stream; the function does what is right anywhere."
    span = module.span(call)
    gap = Span(module.span(receiver).end, module.span(call.args[0]).start)
    rest = Span(module.span(call.args[0]).end, span.end)
    if own is None:
        yield module.flag(
            call, "ACC051", "A class of the program's own has a record_stream, too.",
            "Write accel.record_stream(tensor, stream), if it is a tensor.",
            subject="record_stream",
        )  # fmt: skip
    elif parts is None:
        yield module.flag(
            call, "ACC051", f"The target {module.target.name} has nothing for record_stream.",
            "Call it on tensors of an accelerator only.", subject="target",
        )  # fmt: skip
    elif has_comment(module, gap) or has_comment(module, rest):
        yield module.flag(
            call, "ACC051", "A tensor on a CPU refuses record_stream.",
            "Write accel.record_stream(tensor, stream); a comment stands in the way here.",
            subject="record_stream",
        )  # fmt: skip
    else:
        yield module.convert(call, "ACC051", message, *parts)


# --- profiles ----------------------------------------------------------------------------------


def _activity(module: Module, node: ast.Attribute) -> Finding:
    """`ProfilerActivity.CUDA`, in a list or appended to one."""
    parent = module.parent(node)
    if isinstance(parent, (ast.List, ast.Tuple, ast.Set)) and _is_activities(module, parent):
        kinds = {_kind(module, element) for element in parent.elts}
        is_list = isinstance(parent, ast.List) or isinstance(module.parent(parent), ast.keyword)
        if kinds <= {"CPU", "CUDA"} and is_list and not has_comment(module, module.span(parent)):
            arguments = () if "CPU" in kinds else (("cpu=False",),)
            parts = module.target.call("profiler_activities", *arguments)
            if parts is not None:
                return module.convert(parent, "ACC055", "What can be recorded here.", *parts)
    edit = _appended(module, node, parent)
    if edit:
        return module.edit(parent, "ACC055", "What can be recorded here.", *edit)
    return module.flag(
        node, "ACC055", "It records <CUDA>'s activity; other devices have members of their own.",
        "Write accel.profiler_activities(), or accel.profiler_activities(cpu=False).",
        subject="profiler_activities",
    )  # fmt: skip


def _kind(module: Module, node: ast.expr) -> str:
    match = _ACTIVITY.fullmatch(module.qualified(node) or "")
    return match.group(2) if match else ""


def _is_activities(module: Module, parent: ast.List | ast.Tuple | ast.Set) -> bool:
    outer = module.parent(parent)
    return isinstance(parent, ast.List) or (
        isinstance(outer, ast.keyword) and outer.arg == "activities"
    )


def _appended(module: Module, node: ast.Attribute, parent: ast.AST) -> tuple[Edit, ...]:
    """`activities.append(ProfilerActivity.CUDA)` becomes `activities.extend(...)`."""
    if not (
        isinstance(parent, ast.Call)
        and parent.args == [node]
        and isinstance(parent.func, ast.Attribute)
        and parent.func.attr in ("append", "add")
    ):
        return ()
    parts = module.target.call("profiler_activities", ("cpu=False",))
    name = Span(module.span(parent.func.value).end, module.span(parent.func).end)
    method = parent.func.attr
    if parts is None or module.source.text(name) != f".{method}":
        return ()
    many = ".extend" if method == "append" else ".update"
    text = "".join(part for part in parts if isinstance(part, str))
    return Edit(name, (many,)), Edit(module.span(node), (text,))


def _use_cuda(module: Module, item: ast.keyword) -> Finding:
    if isinstance(item.value, ast.Constant) and not item.value.value:
        return module.keep(item, "ACC056", "The profiler is asked for the CPU alone.")
    return module.flag(
        item, "ACC056", "The older profiler records <CUDA> beside the CPU.", _PROFILE,
        subject="use_cuda",
    )  # fmt: skip


def _sorted_by(module: Module, constant: ast.Constant) -> Iterator[Finding]:
    parent = module.parent(constant)
    if isinstance(parent, ast.keyword) and parent.arg in ("sort_by", "metric"):
        yield module.keep(
            constant, "ACC056", "Torch's profiler reads it as the time or memory of any device."
        )


def _is_torchs_time(module: Module, node: ast.Attribute) -> bool:
    is_own = node.attr in module.project.names or not isinstance(node.ctx, ast.Load)
    return not is_own and _imports_profiler(module)


def _imports_profiler(module: Module) -> bool:
    return (
        imports(module, "torch.profiler")
        or imports(module, "torch.autograd")
        or any(
            (module.qualified(node) or "").startswith(
                ("torch.profiler.", "torch.autograd.profiler")
            )
            for node in module.all(ast.Attribute)
        )
    )


def _is_of_torch(module: Module, node: ast.Attribute) -> bool:
    """Whether it hangs on `torch.cuda.cudart()`, which is flagged with it."""
    inner = node.value.func if isinstance(node.value, ast.Call) else node.value
    return (module.qualified(inner) or "").startswith("torch.cuda.")
