"""ACC119: code that is bound to another vendor's devices than the run converts from."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.options import SourceName
from accel.convert.rule import Example, Rule
from accel.convert.rules.packages_imports import why_optional

RULE = "ACC119"
SUBJECT = "code for "  # and the vendor's name
_NAMES: tuple[SourceName, ...] = ("npu", "musa", "mlu")
_TAKE_DEVICES = ("to", "device")
_HEAD = "import torch\nimport torch_npu\n\n"

RULES = (
    Rule(
        id=RULE,
        name="other-vendor",
        title="Code that is bound to another vendor's devices",
        why="A program for torch_npu, torch_musa or torch_mlu has no word of CUDA, and yet runs on "
        "one kind of device only. It is converted when the run is told so: --from npu, musa or "
        "mlu. One finding stands for all such places of a file.",
        ascend="Code for torch_npu runs there, and nowhere else.",
        action="flag",
        effort="review",
        examples=tuple(
            Example(before=text, after=text)
            for text in (
                f"{_HEAD}torch.npu.set_device(0)\nx = torch.ones(2).npu()\n",
                "import torch\n\nmodel = torch.nn.Linear(2, 2).to('mlu:0')\n",
            )
        ),
        kept=(
            "import torch\n\n\ndef npu(x):\n    return x\n\n\nnpu(torch.ones(2))\n",
            "import torch\n\ntry:\n    import torch_npu\nexcept ImportError:\n    pass\n",
            "import torch\n\nif kind == 'npu':\n    torch.npu.synchronize()\n",
            "import torch\n\nHAS = hasattr(torch, 'npu') and torch.npu.is_available()\n",
            "import torch\n\ndevices = ['npu', 'musa', 'mlu']\n",
        ),
    ),
)


def find(module: Module) -> Iterator[Finding]:
    """The first place of each vendor, with the number of all."""
    if module.options.source != "cuda":
        return
    for name in _NAMES:
        if name == module.options.target or name.encode() not in module.source.utf8:
            continue
        places = sorted(_places(module, name), key=lambda node: module.span(node))
        if places:
            number = len(places)
            yield module.flag(
                places[0],
                RULE,
                f"bound to {name}, at {number} {'place' if number == 1 else 'places'} of this file",
                f"Run again with --from {name}, which converts it.",
                subject=f"{SUBJECT}{name}",
            )


def _places(module: Module, name: str) -> list[ast.AST]:
    found: list[ast.AST] = []
    found += (node for node in module.all(ast.Import, ast.ImportFrom) if _brings(node, name))
    found += (node for node in module.all(ast.Attribute) if _is_vendors(module, node, name))
    found += (node for node in module.all(ast.Constant) if _is_device(module, node, name))
    return [node for node in found if not _is_asked_for(module, node, name)]


def _brings(node: ast.AST, name: str) -> bool:
    """Whether an import needs the vendor's package."""
    roots = (f"torch_{name}", f"torch.{name}")
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    else:
        return False
    return any(one == root or one.startswith(f"{root}.") for one in names for root in roots)


def _is_vendors(module: Module, node: ast.Attribute, name: str) -> bool:
    """Whether this is `torch.npu`, `torch_npu.x` or the method of `x.npu()`."""
    qualified = module.qualified(node) or ""
    if qualified == f"torch.{name}" or qualified.rpartition(".")[0] == f"torch_{name}":
        return True
    outer = module.parent(node)
    is_called = isinstance(outer, ast.Call) and outer.func is node
    return node.attr == name and is_called and not qualified and name not in module.project.methods


def _is_device(module: Module, node: ast.Constant, name: str) -> bool:
    """Whether a string names the vendor's device where a device is taken."""
    if not isinstance(node.value, str) or node.value.partition(":")[0] != name:
        return False
    outer = module.parent(node)
    if isinstance(outer, ast.keyword):
        return outer.arg == "device"
    if not isinstance(outer, ast.Call) or node not in outer.args[:1]:
        return False
    return isinstance(outer.func, ast.Attribute) and outer.func.attr in _TAKE_DEVICES


def _is_asked_for(module: Module, node: ast.AST, name: str) -> bool:
    """Whether a program asks before it does this: then it runs without the vendor too."""
    if why_optional(module, node):
        return True
    for outer in module.ancestors(node):
        if isinstance(outer, (ast.If, ast.IfExp)):
            question = outer.test
        elif isinstance(outer, ast.BoolOp):  # hasattr(torch, "npu") and torch.npu.is_available()
            question = outer.values[0]
        else:
            continue
        inside = any(inner is node for inner in ast.walk(question))
        if not inside and name in module.text(question).lower():
            return True
    return False
