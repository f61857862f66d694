"""ACC060 to ACC065: the collectives' backend by name, in groups, options and comparisons."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow import Sink, sinks
from accel.convert.module import Module
from accel.convert.nodes import by_keyword, terminal_name
from accel.convert.rules.distributed_compare import comparisons, names_vendors
from accel.convert.rules.distributed_rules import RULES as RULES

# By the function's last name: where a backend stands among its positional arguments.
_GROUPS = {
    "init_process_group": 0,
    "init_distributed": 0,
    "Backend": 0,
    "is_backend_available": 0,
    "new_group": 2,
    "new_subgroups": 3,
    "new_subgroups_by_enumeration": 2,
}
_MESHES = (".init_device_mesh", ".DeviceMesh")
_BACKEND = re.compile(r"(?:^|_)backend$", re.IGNORECASE)
_PAIRS = re.compile(r"\w+:\w+(?:\s*,\s*\w+:\w+)*")
_OPEN = ("passed", "stored", "return", "comparison")
# Packages that give a backend on to torch. Others (ray.util.collective) have lists of their own.
_FRIENDS = frozenset({
    "torch", "builtins", "deepspeed", "lightning", "pytorch_lightning", "lightning_fabric",
    "accelerate", "transformers", "trl", "colossalai", "mmengine", "mmcv", "ignite", "composer",
    "fairscale", "megatron", "torchtitan", "fairseq", "detectron2", "timm", "argparse",
})  # fmt: skip
_ELSEWHERE = ("key", "path", "foreign", "parsing", "option")
_HARMLESS = ("message", "text", "test", "comparison", "help", "discarded")
_ADVICE = (
    "If it names the backend of torch.distributed, write accel.dist_backend(); for a comparison "
    "accel.is_accelerator_backend(...)."
)


def find(module: Module) -> Iterator[Finding]:
    """Everything that names the collectives' library."""
    taken: set[ast.AST] = set()
    yield from comparisons(module, taken)
    for choice in module.all(ast.IfExp):
        yield from _choice(module, choice, taken)
    for node in module.all(ast.Constant):
        if node not in taken and _names_backend(node.value):
            yield from _literal(module, node)
    yield from _imported(module)
    for call in module.all(ast.Call):
        yield from _mesh(module, call)
    references: list[ast.Attribute | ast.Name] = [*module.all(ast.Attribute)]
    references += module.all(ast.Name)
    for reference in references:
        if reference not in taken and isinstance(reference.ctx, ast.Load):
            yield from _reference(module, reference)


def _mesh(module: Module, call: ast.Call) -> Iterator[Finding]:
    """The type of device that a mesh is of: `init_device_mesh("cuda", (2, 4))`."""
    name = module.qualified(call.func) or ""
    if not name.startswith("torch.distributed") or not name.endswith(_MESHES):
        return
    kind = by_keyword(call, "device_type")
    kind = kind or (call.args[0] if call.args else None)
    if not isinstance(kind, ast.Constant) or kind.value != "cuda":
        return
    parts = module.target.call("default_device_type")
    if parts is None:
        yield module.no_target(kind, "ACC060", "backend")
    else:
        yield module.convert(kind, "ACC060", "the mesh is of the device that is there", *parts)


def _imported(module: Module) -> Iterator[Finding]:
    """Names of NCCL's that an import brings: their uses are what is judged."""
    for node in module.all(ast.ImportFrom):
        if (node.module or "").startswith("torch.distributed") and not node.level:
            for alias in node.names:
                if alias.name == "is_nccl_available":
                    message = "torch has it in every build, and its uses are converted"
                    yield module.keep(alias, "ACC063", message)
                elif alias.name == "ProcessGroupNCCL":
                    yield _own(module, alias, f"{node.module}.{alias.name}")


def _names_backend(value: object) -> bool:
    """Whether a value is NCCL, alone or in pairs with devices."""
    if not isinstance(value, str):
        return False
    text = value.lower()
    return text == "nccl" or (":nccl" in text and _PAIRS.fullmatch(text) is not None)


# --- 'nccl' if torch.cuda.is_available() else 'gloo' ---------------------------------------------


def _choice(module: Module, node: ast.IfExp, taken: set[ast.AST]) -> Iterator[Finding]:
    """The choice that `dist_backend` makes itself."""
    test, body, other = node.test, node.body, node.orelse
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, body, other = test.operand, other, body
    is_call = isinstance(test, ast.Call) and not test.args and not test.keywords
    if not is_call or module.qualified(test.func) != "torch.cuda.is_available":  # type: ignore[attr-defined]
        return
    if not (isinstance(body, ast.Constant) and isinstance(other, ast.Constant)):
        return
    if body.value != "nccl" or other.value != "gloo":
        return
    parts = module.target.call("dist_backend")
    if parts is None or any(sink.kind in _ELSEWHERE for sink in sinks(module, node)):
        return
    taken.update((body, other))
    message = "dist_backend chooses the backend of the device that is there, gloo on a CPU"
    yield module.convert(node, "ACC060", message, *parts)


# --- 'nccl' --------------------------------------------------------------------------------------


def _literal(module: Module, node: ast.Constant) -> Iterator[Finding]:
    ends = sinks(module, node)
    kinds = {sink.kind for sink in ends}
    if kinds <= {"message", "text", "help", "discarded"}:
        return  # words for people: names keeps them
    if kinds == {"choice"}:
        yield module.keep(node, "ACC065", "one of an option's choices: it is what users type")
        return
    if names_vendors(module.parent(node)):
        yield module.keep(node, "ACC065", "one of several vendors' backends that are named here")
        return
    if not _is_for_groups(module, node, ends):
        yield _unfollowed(module, node)
        return
    pairs = ":" in str(node.value)
    parts = module.target.call("dist_backend", *([node] if pairs else []))
    rule = "ACC061" if _is_default(module, node) else "ACC060"
    if parts is None:
        yield module.no_target(node, rule, "backend")
    elif isinstance(module.parent(node), (ast.MatchValue, ast.JoinedStr)):
        yield module.flag(node, "ACC065", "a backend in a place that holds constants only", _ADVICE)
    else:
        message = "dist_backend gives the backend of the device that is there, gloo on a CPU"
        yield module.convert(node, rule, message, *parts)


def _unfollowed(module: Module, node: ast.Constant) -> Finding:
    shown, parent = repr(node.value), module.parent(node)
    listed = isinstance(parent, (ast.List, ast.Tuple, ast.Set))
    if listed and isinstance(module.parent(parent), ast.Compare):
        message = f"{shown} is one of the backends that are allowed here; other vendors' are not"
        return module.flag(node, "ACC065", message, "Allow accel.dist_backend() as well.")
    message = f"{shown} is used in a way that cannot be followed to a process group"
    return module.flag(node, "ACC065", message, _ADVICE)


def _is_for_groups(module: Module, node: ast.AST, ends: tuple[Sink, ...]) -> bool:
    """Whether a value reaches process groups, or what is called a backend, and nothing else."""
    positive = False
    # Only torch.distributed itself takes its backends in any case.
    is_lower = isinstance(node, ast.Constant) and str(node.value).islower()
    for sink in ends:
        named = is_lower and sink.kind in _OPEN and _BACKEND.search(sink.name) is not None
        if _is_group(module, node, sink) or (named and not _is_foreign(module, sink)):
            positive = True
        elif sink.kind not in _HARMLESS:
            return False
    return positive


def _is_foreign(module: Module, sink: Sink) -> bool:
    """Whether a value goes to a package that is not known to give it on to torch."""
    if sink.kind != "passed" or not isinstance(sink.node, ast.Call):
        return False
    name = module.qualified(sink.node.func) or ""
    root = name.partition(".")[0]
    return bool(root) and root not in _FRIENDS and root not in module.project.packages


def _is_group(module: Module, node: ast.AST, sink: Sink) -> bool:
    """Whether a value ends as the backend of a call that makes a process group."""
    call = sink.node
    if not isinstance(call, ast.Call):
        return False
    leaf = (module.qualified(call.func) or "").rpartition(".")[2] or _attribute(call.func)
    place = _GROUPS.get(leaf)
    if place is None:
        return False
    argument = by_keyword(call, "backend")
    if argument is None and len(call.args) > place:
        argument = call.args[place]
    if argument is None:
        return False
    return any(
        part is node or terminal_name(part) == sink.name != "" for part in ast.walk(argument)
    )


def _attribute(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_default(module: Module, node: ast.AST) -> bool:
    parent = module.parent(node)
    return isinstance(parent, ast.keyword) and parent.arg == "default"


# --- Backend.NCCL, is_nccl_available, ProcessGroupNCCL -------------------------------------------


def _reference(module: Module, node: ast.Attribute | ast.Name) -> Iterator[Finding]:
    last = node.attr if isinstance(node, ast.Attribute) else node.id
    if "nccl" not in last.lower():
        return
    name = module.qualified(node) or ""
    if not name.startswith("torch."):
        return
    leaf = name.rpartition(".")[2]
    if leaf == "is_nccl_available":
        yield from _available(module, node)
    elif name.endswith("Backend.NCCL"):
        yield from _member(module, node)
    elif leaf == "ProcessGroupNCCL":
        yield _own(module, node, name)


def _available(module: Module, node: ast.Attribute | ast.Name) -> Iterator[Finding]:
    parent = module.parent(node)
    parts = module.target.call("is_accelerator_backend_available")
    function = module.target.function("is_accelerator_backend_available")
    message = "asks for the collectives of the device that is there"
    if function is not None:
        yield module.convert(node, "ACC063", message, function)
    elif parts is not None and isinstance(parent, ast.Call) and parent.func is node:
        yield module.convert(parent, "ACC063", message, *parts)
    else:
        yield module.no_target(node, "ACC063", "backend")


def _member(module: Module, node: ast.Attribute | ast.Name) -> Iterator[Finding]:
    if not _is_for_groups(module, node, sinks(module, node)):
        message = "Backend.NCCL is used in a way that cannot be followed to a process group"
        yield module.flag(node, "ACC065", message, _ADVICE)
        return
    parts = module.target.call("dist_backend")
    if parts is None:
        yield module.no_target(node, "ACC060", "backend")
    else:
        message = "dist_backend gives the backend of the device that is there, gloo on a CPU"
        yield module.convert(node, "ACC060", message, *parts)


def _own(module: Module, node: ast.AST, name: str) -> Finding:
    return module.flag(
        node,
        "ACC064",
        f"{name} is <NCCL> itself, with options that no other backend has",
        "Make the group by init_process_group(accel.dist_backend()) and leave its options out, or "
        "keep the line behind `if backend == 'nccl'`.",
        effort="rewrite",
        subject="nccl",
    )
