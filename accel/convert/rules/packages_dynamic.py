"""Names of CUDA that are put together or looked up when the program runs, and tools it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rules.functions_table import lookup
from accel.convert.rules.packages_imports import about, is_local, is_reference
from accel.convert.sweep.words import TOOLS
from accel.convert.tables.packages import PROVIDERS, imported

_ATTRIBUTE = {f"builtins.{name}" for name in ("getattr", "hasattr", "setattr", "delattr")}
_IMPORTERS = {"importlib.import_module", "builtins.__import__", "importlib.util.find_spec"}
_RUNNERS = {"builtins.exec", "builtins.eval", "builtins.compile"}
_PROCESSES = (
    "subprocess.",
    "os.system",
    "os.popen",
    "os.exec",
    "shutil.which",
    "asyncio.create_subprocess_",
)
_PRINTERS = frozenset({"print", "info", "debug", "warning", "write", "log", "format", "emojis"})
_ROOTS = ("torch", "torch.cuda", "torch.backends", "torch.version")


def find(module: Module) -> Iterator[Finding]:
    """Every place of this kind."""
    for call in module.all(ast.Call):
        name = module.qualified(call.func) or ""
        if name in _ATTRIBUTE:
            yield from _attribute(module, call, name.rpartition(".")[2])
        elif name in _IMPORTERS and call.args:
            yield from _import(module, call, name)
        elif name in _RUNNERS and call.args:
            yield from _text(module, call, name.rpartition(".")[2])
        elif name.startswith(_PROCESSES):
            yield from _process(module, call, name)
        else:
            yield from _patch(module, call)
    for node in module.all(ast.Attribute, ast.Name):
        if module.qualified(node) == "torch.version.cuda" and is_reference(module, node):
            yield _version(module, node)
    for constant in module.all(ast.Constant):
        if constant.value in PROVIDERS:
            yield module.flag(
                constant, "ACC100", f"{constant.value} is ONNX Runtime's way to NVIDIA devices",
                "Name CANNExecutionProvider before CPUExecutionProvider, with onnxruntime-cann.",
                subject="onnxruntime-gpu",
            )  # fmt: skip


# --- getattr and the like ----------------------------------------------------------------------


def _attribute(module: Module, call: ast.Call, function: str) -> Iterator[Finding]:
    if len(call.args) < 2:
        return
    root = module.qualified(call.args[0]) or ""
    name = module.constant(call.args[1])
    if root not in _ROOTS:
        return
    whole = f"{root}.{name}"
    touches = root == "torch.cuda" or whole.startswith("torch.cuda") or module.speaks(whole)
    if not touches:
        return
    if function == "hasattr":
        yield module.keep(
            call, "ACC108", "asks which release of torch this is, not which device", subject=whole
        )
    elif function == "getattr" and isinstance(name, str):
        yield _getattr(module, call, whole)
    else:
        yield module.flag(
            call, "ACC108", f"{function} on {root} with a name that is known at run time only",
            "Write the functions out, or look the name up in torch.get_device_module().",
            subject=root,
        )  # fmt: skip


def _getattr(module: Module, call: ast.Call, name: str) -> Finding:
    """`getattr(torch.cuda, "synchronize")`, or `getattr(torch, "cuda").synchronize`."""
    node: ast.expr = call
    while lookup(name) is None and isinstance(outer := module.parent(node), ast.Attribute):
        node, name = outer, f"{name}.{outer.attr}"
    known = lookup(name)
    spelled = module.target.function(known.function) if known and known.function else None
    if (
        known
        and known.kind == "function"
        and not known.is_called
        and spelled
        and len(call.args) == 2
    ):
        return module.convert(
            node, "ACC108", f"{name} under a constant name; it acts on any device so", spelled,
            subject=name,
        )  # fmt: skip
    return module.flag(
        call, "ACC108", f"{name} is looked up by name",
        "Write it out, so that it can be converted, or look it up in torch.get_device_module().",
        subject=name,
    )  # fmt: skip


# --- imports, programs and patches by name -----------------------------------------------------


def _import(module: Module, call: ast.Call, function: str) -> Iterator[Finding]:
    name = module.constant(call.args[0])
    if not isinstance(name, str) or is_local(module, name):
        return
    if function == "importlib.util.find_spec":
        if module.speaks(name):
            yield module.keep(call, "ACC108", f"asks whether {name} is installed", subject=name)
        return
    package = imported(name)
    if package:
        yield about(module, call, package, optional="")
    elif name == "torch.cuda" or name.startswith("torch.cuda."):
        yield module.flag(
            call, "ACC108", f"{name} is imported by name",
            "Import it plainly, so that what is used of it can be converted.", subject=name,
        )  # fmt: skip


def _text(module: Module, call: ast.Call, function: str) -> Iterator[Finding]:
    text = module.constant(call.args[0])
    if isinstance(text, str) and module.speaks(text):
        yield module.flag(
            call, "ACC109", f"{function} of a text that names <CUDA>",
            "Write the code out, so that it can be converted.", subject=function,
        )  # fmt: skip


def _patch(module: Module, call: ast.Call) -> Iterator[Finding]:
    """`mock.patch("torch.cuda.is_available")`: the converted code asks something else."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = call.func.id if isinstance(call.func, ast.Name) else name
    if name not in ("patch", "setattr", "delattr", "multiple", "attrgetter") or not call.args:
        return
    text = module.constant(call.args[0])
    if isinstance(text, str) and text.startswith("torch.cuda"):
        yield module.flag(
            call, "ACC108", f"{text} is replaced or looked up by name",
            "Replace what the converted code calls instead.", subject=text,
        )  # fmt: skip


# --- tools and versions ------------------------------------------------------------------------


def _process(module: Module, call: ast.Call, name: str) -> Iterator[Finding]:
    texts = [
        inner.value
        for argument in [*call.args, *(word.value for word in call.keywords)]
        for inner in ast.walk(module.value_of(argument))
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    ]
    words = {word.rpartition("/")[2] for text in texts for word in text.split()}
    tool = next((tool for tool in TOOLS if tool in words), None)
    if tool:
        yield module.flag(
            call, "ACC106", f"{name} runs {tool}, which knows NVIDIA devices only",
            f"Ask torch (accel.device_count, accel.mem_get_info, accel.utilization). {TOOLS[tool]}",
            subject=tool,
        )  # fmt: skip


def _version(module: Module, node: ast.expr) -> Finding:
    for outer in module.ancestors(node):
        if isinstance(outer, ast.Call):
            name = outer.func.attr if isinstance(outer.func, ast.Attribute) else ""
            name = outer.func.id if isinstance(outer.func, ast.Name) else name
            if name in _PRINTERS:
                return module.keep(node, "ACC107", "printed only; it is None where <CUDA> is not")
        if isinstance(outer, ast.stmt):
            break
    return module.flag(
        node, "ACC107", "torch.version.cuda is None in builds without <CUDA>",
        "See what is decided by it: a feature of <CUDA>'s keeps the check, anything else asks "
        "accel.is_available().",
        subject="torch.version.cuda",
    )  # fmt: skip
