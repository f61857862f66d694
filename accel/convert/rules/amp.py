"""ACC040 to ACC044: mixed precision, whose functions here stay disabled on a CPU."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Edit, Finding
from accel.convert.module import Module
from accel.convert.rules.amp_dtypes import CUDA_AUTOCAST, default_dtype
from accel.convert.rules.amp_rules import RULES as RULES
from accel.convert.rules.amp_sources import sources
from accel.convert.rules.functions_amp import GENERIC, Generic, Use, is_cuda, use
from accel.convert.rules.functions_calls import argument, brought, mentions, templated
from accel.convert.rules.functions_plan import is_moved

_APEX = "apex.amp"
_ADVICE = (
    "Leave the device type out and call accel's function, which stays off on a CPU, unless a CPU "
    "named on purpose is to compute in lower precision"
)
_APEX_ADVICE = (
    "Leave initialize() out, run the forward under autocast() (opt_level O1; O2 and O3 keep the "
    "model in float16), and replace scale_loss() by GradScaler: scaler.scale(loss).backward(), "
    "scaler.step(optimizer), scaler.update(); before clipping scaler.unscale_(optimizer)."
)
# Torch's questions about the autocast of a kind of device, or of CUDA's alone.
_GPU_QUESTIONS = {
    "torch.get_autocast_dtype": "torch.get_autocast_dtype(accel.default_device_type())",
    "torch.set_autocast_dtype": "torch.set_autocast_dtype(accel.default_device_type(), dtype)",
    "torch.get_autocast_gpu_dtype": "torch.get_autocast_dtype(accel.default_device_type())",
    "torch.set_autocast_gpu_dtype": "torch.set_autocast_dtype(accel.default_device_type(), dtype)",
    "torch.is_autocast_enabled": "torch.is_autocast_enabled(accel.default_device_type())",
    "torch.set_autocast_enabled": "torch.set_autocast_enabled(accel.default_device_type(), flag)",
}
# How many arguments they have without a device type, which comes first; -1: it must be given.
_MOST_ARGUMENTS = {
    "torch.get_autocast_dtype": -1,
    "torch.set_autocast_dtype": -1,
    "torch.is_autocast_enabled": 0,
    "torch.set_autocast_enabled": 1,
    "torch.get_autocast_gpu_dtype": 0,
    "torch.set_autocast_gpu_dtype": 1,
}


def find(module: Module) -> Iterator[Finding]:
    """Torch's amp functions with a device type, apex.amp, and questions about CUDA's autocast."""
    if not mentions(module, b"autocast", b"GradScaler", b"custom_", b"apex"):
        return
    yield from _for_amp(module)
    nodes: list[ast.Attribute | ast.Name] = [*module.all(ast.Attribute), *brought(module)]
    for node in nodes:
        if not isinstance(node.ctx, ast.Load):
            continue
        name = module.qualified(node)
        if name is None:
            continue
        generic = GENERIC.get(name)
        if generic is not None:
            yield from _generic(module, node, name, generic)
        elif name in _GPU_QUESTIONS:
            yield from _question(module, node, name)
        elif name in CUDA_AUTOCAST:
            yield from default_dtype(module, node)
        elif name.startswith(_APEX):
            yield from _apex(module, node, name)


def _generic(module: Module, node: ast.expr, name: str, generic: Generic) -> Iterator[Finding]:
    if isinstance(node, ast.Name) and not _is_imported(module, node) and not _is_call(module, node):
        return  # an alias that stands somewhere else as a value
    found = use(module, node, generic)
    if found.meaning == "cuda":
        yield from _converted(module, node, name, generic, found)
    elif found.meaning in ("hidden", "lost"):
        yield module.flag(
            node, "ACC041", f"{name} is called with arguments that cannot be taken apart.",
            f"Write {generic.function}(...) of accel without the device type.", subject=name,
        )  # fmt: skip
    elif found.meaning == "variable" and found.given is not None:
        yield _variable(module, node, name, generic, found.given)


def _is_imported(module: Module, node: ast.Name) -> bool:
    binding = module.binding(node)
    return binding is not None and bool(binding.imports)


def _is_call(module: Module, node: ast.expr) -> bool:
    parent = module.parent(node)
    return isinstance(parent, ast.Call) and parent.func is node


def _converted(
    module: Module, node: ast.expr, name: str, generic: Generic, found: Use
) -> Iterator[Finding]:
    message = f"{generic.function} follows the device that is here."
    if isinstance(node, ast.Name) and is_moved(module, node):
        if found.edits:
            yield module.edit(
                node, "ACC041", message, *found.edits, imports=frozenset(), subject=name
            )  # fmt: skip
        return
    spelled = module.target.function(generic.function)
    if spelled is not None:
        whole = Edit(module.span(node), (spelled,))
        yield module.edit(node, "ACC041", message, whole, *found.edits, subject=name)
        return
    edit = templated(module, node, generic.function, generic.following, found.given)
    if edit is not None:
        yield module.edit(node, "ACC041", message, edit, subject=name)
        return
    yield module.flag(
        node, "ACC041", f"The target {module.target.name} has nothing for this use of {name}.",
        "Convert to the target accel, or write this by hand.", subject="target",
    )  # fmt: skip


def _variable(
    module: Module, node: ast.expr, name: str, generic: Generic, given: ast.expr
) -> Finding:
    """A device type that the program finds out: right as it is, if it is right on a CPU."""
    texts = sources(module).by_call.get(module.parent(node), [])
    if not texts:
        return module.keep(
            node, "ACC042",
            "The device type is a variable, which no converted text of this file reaches while a "
            "CPU is here: torch takes any device's.", subject=name,
        )  # fmt: skip
    lines = sorted({module.source.line_of(module.span(text).start) for text in texts})
    said = ", ".join(map(str, lines))
    return module.flag(
        node, "ACC042",
        f"{module.text(given)} may be the cuda of line {said}, for which {name} was switched off "
        "without <CUDA>; for cpu it is on.", f"{_ADVICE} (here: accel.{generic.function}(...)).",
        subject=name,
    )  # fmt: skip


def _for_amp(module: Module) -> Iterator[Finding]:
    """The texts that are only given to amp functions of the program's own."""
    for text in sources(module).only:
        yield module.flag(
            text, "ACC042",
            "It reaches torch's amp, which was switched off for it without <CUDA>; for cpu it is "
            "on.",
            _ADVICE + ".", subject="torch.autocast",
        )  # fmt: skip


def _question(module: Module, node: ast.expr, name: str) -> Iterator[Finding]:
    parent = module.parent(node)
    if not isinstance(parent, ast.Call) or parent.func is not node:
        return
    place: ast.expr = node
    if len(parent.args) + len(parent.keywords) > _MOST_ARGUMENTS[name]:
        kind = argument(parent, 0, "device_type")
        if kind is None or not is_cuda(module, kind):
            return
        place = parent
    yield module.flag(
        place, "ACC044", f"{name} is about CUDA's autocast alone here.",
        f"Write {_GPU_QUESTIONS[name]}; on a CPU it then asks the CPU's.", subject=name,
    )  # fmt: skip


def _apex(module: Module, node: ast.expr, name: str) -> Iterator[Finding]:
    if isinstance(module.parent(node), ast.Attribute) or not name.startswith(f"{_APEX}."):
        return
    yield module.flag(
        node, "ACC043", f"{name} is NVIDIA's; torch has the same.", _APEX_ADVICE,
        effort="rewrite", subject=_APEX,
    )  # fmt: skip
