"""What a guarded block, function or condition holds: CUDA's own features, or any device's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from accel.convert.module import Module
from accel.convert.tables.packages import PROVIDERS, known_packages

# Functions whose answer decides whether CUDA is used.
GUARDS = frozenset({"torch.cuda.is_available", "torch.cuda.device_count"})
# Names that only NVIDIA's stack gives a meaning: torch's, and those of packages.
_ONLY_CUDA = {
    "DataParallel": "DataParallel, which serves CUDA only",
    "data_parallel": "data_parallel, which serves CUDA only",
    "CUDAGraph": "<CUDA> graphs",
    "make_graphed_callables": "<CUDA> graphs",
    "cudart": "the CUDA runtime",
    "load_inline": "a CUDA extension",
    "CUDAExtension": "a CUDA extension",
    "CUDA_HOME": "a CUDA extension",
    **{name: said for package in known_packages() for name, said in package.only_cuda},
}
# Files of a CUDA extension, and how it is compiled.
_SOURCE = re.compile(r"\.cuh?$|_cuda\.(?:c|cc|cpp|h)$|^-?D?WITH_CUDA|^-gencode")
_VENDOR = re.compile(r"(?:^|[._])(?:gpu|cuda)(?:$|[._])")
# Texts that ask for CUDA; of the tools that `sweep.words` knows only those that programs look for.
_STRINGS = {
    **{name: f"ONNX Runtime's provider for {said}" for name, said in PROVIDERS.items()},
    "onnxruntime-gpu": "ONNX Runtime for CUDA",
    "nvidia-smi": "nvidia-smi",
    "nvcc": "a CUDA compiler",
}
# Names of compiled functions, and of modules that hold them.
_EXTENSION = re.compile(
    r"_cuda$|_cuda_(?:kernel|ext|op|forward|backward)|^_?(?:C|ext|plugin)$|_(?:plugin|ext)$"
)
# The same of what is taken from them, and of the packages that have kernels.
_KERNEL = re.compile(
    "|".join(
        [
            _EXTENSION.pattern,
            "_cuda_impl|^cuda_(?:kernel|ext|op|impl|forward|backward)",
            *(name for package in known_packages() for name in package.kernels),
        ]
    )
)
# The same of functions that are called; a mere `kernel` is mostly a tensor.
_CALLED = re.compile(r"fused|_kernels?$|custom_op|_cuda(?:_|$)")
# Names that only say whether CUDA is wanted or there.
_PLAIN = re.compile(
    r"^_?(?:use|using|no|has|with|is|want|enable|disable|have|on|to|if|test|supports?)_cuda(?:_|$)",
    re.IGNORECASE,
)
_TF32 = re.compile(r"allow_tf32|cudnn|set_float32_matmul_precision")


class Content(NamedTuple):
    """What was found.

    Attributes:
        only_cuda: A feature that CUDA alone has; "" for none.
        kernel: A custom kernel's or fused implementation's name; "" for none.
    """

    only_cuda: str
    kernel: str


def content(module: Module, nodes: Iterable[ast.AST]) -> Content:
    """What is within some statements or expressions, but for what has a guard of its own there."""
    only, kernel = "", ""
    for inner in _unguarded(module, nodes):
        name = _name(inner)
        only = only or _ONLY_CUDA.get(name, "") or _other(module, inner)
        if not kernel and name and _is_kernel(module, inner, name):
            kernel = name
    return Content(only, kernel)


def _unguarded(module: Module, nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    stack = [*nodes]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.If) and asks_for_cuda(module, node.test):
            stack += [node.test, *node.orelse]
        else:
            stack += ast.iter_child_nodes(node)


def asks_for_cuda(module: Module, test: ast.AST) -> bool:
    """Whether a condition asks for CUDA itself: its devices, their number, a tensor's place."""
    for node in ast.walk(test):
        if isinstance(node, ast.Attribute) and node.attr == "is_cuda":
            return True
        if isinstance(node, ast.Call) and module.qualified(node.func) in GUARDS:
            return True
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if any(isinstance(side, ast.Constant) and side.value == "cuda" for side in sides):
                return True
    return False


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.alias):
        root = node.name.partition(".")[0]
        return root if root in _ONLY_CUDA else node.name.rpartition(".")[2]
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0]
    return ""


def _is_kernel(module: Module, node: ast.AST, name: str) -> bool:
    qualified = module.qualified(node) or ""
    if _PLAIN.search(name) or f"{qualified}.".startswith("torch._C."):
        return False
    if _KERNEL.search(name):
        return not isinstance(getattr(node, "ctx", None), ast.Store)
    parent = module.walk.parents.get(node)
    if isinstance(parent, ast.Subscript) and parent.value is node:
        return _is_launch(module, parent)
    is_called = isinstance(parent, ast.Call) and parent.func is node
    if not is_called or qualified.startswith("torch."):
        return False
    # What comes from `._ext` and the like is compiled, whatever it is called.
    owners = qualified.split(".")[:-1]
    return _CALLED.search(name) is not None or any(_is_extension(owner) for owner in owners)


def _is_launch(module: Module, node: ast.Subscript) -> bool:
    """`kernel[grid](...)`, as Triton's and Numba's kernels are launched."""
    parent = module.walk.parents.get(node)
    grid = node.slice
    named = isinstance(grid, ast.Name) and "grid" in grid.id
    return (
        isinstance(parent, ast.Call)
        and parent.func is node
        and (named or isinstance(grid, (ast.Tuple, ast.Lambda)))
    )


def _other(module: Module, node: ast.AST) -> str:
    if isinstance(node, ast.Attribute) and module.qualified(node) == "torch.version.cuda":
        return "torch.version.cuda"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        first = node.value.strip().partition(" ")[0]
        return "a CUDA extension" if _SOURCE.search(first) else _STRINGS.get(first, "")
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [alias.name for alias in node.names]
        names.append(getattr(node, "module", None) or "")
        own = [name for name in names if not name.startswith("torch")]
        return f"the import of {own[0]}" if any(_VENDOR.search(name) for name in own) else ""
    return ""


def only_switches(body: list[ast.stmt], module: Module) -> bool:
    """Whether statements do nothing but set TF32 or cuDNN switches."""
    return bool(body) and all(
        isinstance(statement, (ast.Assign, ast.Expr)) and _TF32.search(module.text(statement))
        for statement in body
    )


def calls_extension(module: Module, function: ast.AST) -> str:
    """The compiled function that a wrapper calls; "" if it calls none.

    Such a call ends in `_cuda`, or its module is one of `_C`, `_ext`, `*_cuda*`.
    """
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        text = node.func
        while isinstance(text, ast.Attribute):
            if _is_extension(text.attr):
                return text.attr
            text = text.value
        if isinstance(text, ast.Name) and _is_extension(text.id):
            return text.id
    return ""


def _is_extension(name: str) -> bool:
    if _PLAIN.search(name) or name == "is_cuda":
        return False
    return _EXTENSION.search(name) is not None


def guarded(module: Module, test: ast.expr) -> list[ast.AST] | None:
    """What runs if an expression, alone or among others, is true; None if it is no guard."""
    node: ast.AST = test
    parent = module.parent(node)
    while isinstance(parent, (ast.BoolOp, ast.Compare)):
        node, parent = parent, module.parent(parent)
    if isinstance(parent, ast.If) and parent.test is node:
        return list(parent.body)
    if isinstance(parent, ast.IfExp) and parent.test is node:
        return [parent.body]
    return None


def guarded_after(module: Module, test: ast.expr) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """What runs only if the condition `not test` does not hold.

    Returns:
        The statements of its `else`, and those behind an early return or raise.
    """
    node: ast.AST = test
    while isinstance(module.parent(node), ast.Compare):
        node = module.parent(node)
    parent = module.parent(node)
    if not (isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)):
        return [], []
    node, parent = parent, module.parent(parent)
    while isinstance(parent, ast.BoolOp) and isinstance(parent.op, ast.Or):
        node, parent = parent, module.parent(parent)
    if not isinstance(parent, ast.If) or parent.test is not node:
        return [], []
    outer = module.parent(parent)
    blocks = [getattr(outer, name, None) for name in ("body", "orelse", "finalbody")]
    block = next((b for b in blocks if isinstance(b, list) and parent in b), [])
    after = block[block.index(parent) + 1 :] if block and leaves(parent) else []
    return list(parent.orelse), after


def leaves(statement: ast.If) -> bool:
    """Whether what a condition guards ends by leaving the block around it."""
    last = statement.body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        func = last.value.func
        return isinstance(func, ast.Attribute) and func.attr in ("exit", "_exit", "skip")
    return isinstance(last, (ast.Return, ast.Raise, ast.Continue, ast.Break))
