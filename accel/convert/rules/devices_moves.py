"""ACC001, ACC010: `x.cuda(...)`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import cast

from accel.convert.finding import Edit, Finding, Span
from accel.convert.flow.evidence import (
    instance_class,
    is_tensor_or_module,
    is_torch_class,
    method_of,
)
from accel.convert.flow.positions import is_location
from accel.convert.flow.showing import is_shown
from accel.convert.module import Module
from accel.convert.rule import Example, Rule
from accel.convert.rules.devices_imported import is_foreign, may_be_foreign
from accel.convert.rules.devices_spelling import (
    attribute_span,
    device_call,
    place_of,
)
from accel.convert.rules.devices_spelling import call as device_of_place
from accel.convert.rules.devices_storages import may_be_storage

RULES = (
    Rule(
        id="ACC001",
        name="tensor-cuda",
        title="Tensor.cuda() and Module.cuda()",
        why="It moves to NVIDIA devices only. `.to(accel.device(...))` moves to the device that "
        "is there, the same one on CUDA; without a number to the current one, as before. "
        "`non_blocking` and `memory_format` keep their meaning. A storage, and what a function for "
        "`map_location` is given, takes the device by its name only: `.to(device=...)`.",
        ascend="`.to('npu:0')` is what torch_npu's own `.npu(0)` does.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nx = torch.ones(2).cuda()\n",
                after="import torch\nimport accel\n\nx = torch.ones(2).to(accel.device())\n",
            ),
            Example(
                before="import torch\n\ndef put(batch, args):\n"
                "    return batch.cuda(args.gpu, non_blocking=True)\n",
                after="import torch\nimport accel\n\ndef put(batch, args):\n"
                "    return batch.to(accel.device(args.gpu), non_blocking=True)\n",
            ),
            Example(
                before="import torch\n\nnet = torch.nn.Linear(2, 2).cuda('cuda:1')\n"
                "x = torch.ones(2).cuda(non_blocking=True)\ny = x.cuda(None, True)\n",
                after="import torch\nimport accel\n\n"
                "net = torch.nn.Linear(2, 2).to(accel.device(1))\n"
                "x = torch.ones(2).to(accel.device(), non_blocking=True)\n"
                "y = x.to(accel.device(None), non_blocking=True)\n",
            ),
            Example(
                before="import torch\n\nimages = [im.cuda() for im in batch]\n"
                "loss = (a + b).cuda(  # where it is needed\n    rank,\n    )\n",
                after="import torch\nimport accel\n\n"
                "images = [im.to(accel.device()) for im in batch]\n"
                "loss = (a + b).to(  # where it is needed\n    accel.device(rank),\n    )\n",
            ),
            Example(
                before="import torch\n\nload = reader(lambda s, loc: s.cuda())\n"
                "s = x.untyped_storage().cuda(1)\n",
                after="import torch\nimport accel\n\n"
                "load = reader(lambda s, loc: s.to(device=accel.device()))\n"
                "s = x.untyped_storage().to(device=accel.device(1))\n",
            ),
        ),
        kept=(
            "import torch\n\nclass Remote:\n    def cuda(self):\n        return 1\n\n"
            "r = Remote()\nr.cuda()\n",
            "from numba import cuda\n\n@cuda.jit\ndef kernel(x):\n    i = cuda.grid(1)\n",
            "import pycuda.driver as cuda\n\ncuda.init()\n",
            "import torch\n\nif args.cuda:\n    print(1)\n",
            "import torch\n\ncfg.cuda = True\nuse_cuda = opt.cuda\n",
            "import torch\n\nclass Net(torch.nn.Module):\n    def cuda(self, device=None):\n"
            "        return super().cuda(device)\n",
            "import backends\n\nbackends.cuda()\n",
            "import torch\n\nname = 'x'\nname.cuda()\n",
            "import torch\n\ny = torch.Tensor.cuda(x)\n",
            "import torch\nfrom lib import utils\n\nbatch = utils.cuda(batch)\n",
            "import torch\n\nys = list(map(torch.Tensor.cuda, xs))\n",
            "import torch\n\nclass Net(torch.nn.Module):\n    def fast(self):\n"
            "        return torch.nn.Module.cuda(self)\n",
            "import torch\n\nx.cuda(*where)\n",
            "import torch\n\nx.cuda(**where)\n",
            "import torch\n\nclass Stage(torch.nn.Module):\n    def cuda(self):\n"
            "        self.table = 1\n        return self\n\nstage = Stage()\nstage.cuda()\n",
            "import torch\nimport tvm\n\ntarget = tvm.target.cuda()\n",
            "import torch\nfrom lib import backends\n\nbackends.cuda()\n",
            "import torch\nimport lib.tools\n\nlib.tools.cuda()\n",
            "import torch\n\ntry:\n    torch.zeros(1).cuda()\n    HAS = True\n"
            "except (RuntimeError, AssertionError):\n    HAS = False\n",
            "import pytest\nimport torch\n\nwith pytest.raises(RuntimeError):\n    x.cuda()\n",
        ),
    ),
    Rule(
        id="ACC010",
        name="own-cuda-method",
        title="A cuda() of a class of the program's own",
        why="What `cuda()` does there is the program's to say; `.to(...)` would not call it.",
        ascend="Give the class a `to(device)` that does the same for any device.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nclass Batch:\n    def cuda(self):\n        return self\n\n"
                "b = Batch().cuda()\n",
                after="import torch\n\nclass Batch:\n    def cuda(self):\n        return self\n\n"
                "b = Batch().cuda()\n",
            ),
        ),
    ),
)
_DEFINED = re.compile(rb"\bdef\s+(\w+)")


def find(module: Module) -> Iterator[Finding]:
    """Calls of `.cuda`."""
    for call in module.all(ast.Call):
        func = call.func
        if isinstance(func, ast.Attribute) and func.attr == "cuda":
            yield from () if _in_location(module, call) else (_call(module, call, func),)
    for owner in module.all(ast.ClassDef):
        method = method_of(owner, "cuda")
        if method is not None:
            yield module.flag(
                _name_span(module, method),
                "ACC010",
                f"The class {owner.name} has a cuda() of its own.",
                "Give it a `to(device)` that does the same for any device, and call that.",
            )
    for node in module.all(ast.Attribute):
        if node.attr == "cuda" and _is_value(module, node):
            yield module.flag(
                attribute_span(module, node),
                "ACC010",
                "The method cuda() is passed on as a function.",
                "Pass `lambda x: x.to(device)` with the device that is meant.",
            )


def _in_location(module: Module, call: ast.Call) -> bool:
    """Within a function that says where `torch.load` puts what it reads: another family's."""
    return any(isinstance(o, ast.Lambda) and is_location(module, o) for o in module.ancestors(call))


def _name_span(module: Module, method: ast.FunctionDef | ast.AsyncFunctionDef) -> Span:
    """The method's name behind its `def`."""
    start = module.span(method).start
    match = re.compile(rb"(?:async\s+)?def\s+(\w+)").match(module.source.utf8, start)
    return Span(*match.span(1)) if match else module.span(method)


def _is_value(module: Module, node: ast.Attribute) -> bool:
    """The method itself, as in `map(torch.Tensor.cuda, batch)`."""
    parent = module.parent(node)
    if isinstance(parent, ast.Call) and parent.func is node:
        return False
    return module.qualified(node) in ("torch.Tensor.cuda", "torch.nn.Module.cuda")


def _call(module: Module, call: ast.Call, func: ast.Attribute) -> Finding:
    name = attribute_span(module, func)
    receiver = func.value
    refusal = _refusal(module, receiver)
    if refusal:
        return module.flag(
            name, "ACC010", refusal, "Give it a `to(device)` that does the same for any device."
        )
    if _is_unbound(module, receiver):
        return module.flag(
            name,
            "ACC010",
            "The method cuda() is called as a function.",
            "Write `tensor.to(accel.device(index))`.",
        )
    if is_foreign(module, call, receiver):
        return module.keep(name, "ACC010", "It is a function of another package.")
    if may_be_foreign(module, receiver, bool(call.args)):
        return module.flag(
            name,
            "ACC010",
            f"{module.text(receiver)} is imported: its cuda() may be a function of a module's.",
            "If it is a tensor or module, write `.to(accel.device())`.",
        )
    edits = _edits(module, call)
    if edits is None:
        return module.flag(
            name,
            "ACC001",
            "The arguments of cuda() cannot be told apart.",
            "Write `.to(accel.device(index), non_blocking=...)`.",
        )
    texts = [part for edit in edits for part in edit.parts if isinstance(part, str)]
    needs = None if any("(" in text for text in texts) else frozenset[str]()
    message = "It moves to the device that is there."
    return module.edit(name, "ACC001", message, Edit(name, ("to",)), *edits, imports=needs)


def _refusal(module: Module, receiver: ast.expr) -> str:
    """Why a receiver's `cuda` is none of torch's; nothing if it is."""
    own = instance_class(module, receiver)
    if own is not None:
        if method_of(own, "cuda"):
            return f"The class {own.name} has a cuda() of its own."
        return "" if is_torch_class(module, own) is not False else f"{own.name} is no module."
    if isinstance(receiver, ast.Call) and module.qualified(receiver.func) == "builtins.super":
        return "The class has a cuda() of its own."
    known = is_tensor_or_module(module, receiver)
    if known is False:
        return "It is called on what is no tensor and no module."
    if known or module.vendor.own("cuda") not in module.project.methods:
        return ""
    if not is_shown(module, receiver) and not _is_part(module, receiver):
        return "Classes of this program have a cuda() of their own, and this may be one."
    return ""


def _is_part(module: Module, receiver: ast.expr) -> bool:
    """Whether it is `self.x` within the only `cuda` of a program: what that moves is torch's.

    In a program of several files the parts may be of another class that moves itself.
    """
    if not isinstance(receiver, ast.Attribute) or len(module.project.modules) > 1:
        return False
    own = [method for owner in module.all(ast.ClassDef) if (method := method_of(owner, "cuda"))]
    is_self = isinstance(receiver.value, ast.Name) and receiver.value.id == "self"
    return is_self and len(own) == 1 and module.function_of(receiver) is own[0]


def _is_unbound(module: Module, receiver: ast.expr) -> bool:
    """`torch.Tensor.cuda(x)`, or `Net.cuda(self)` of a class of this file."""
    name = module.qualified(receiver) or ""
    if name in ("torch.Tensor", "torch.nn.Module", "torch.nn.modules.Module"):
        return True
    binding = module.binding(receiver) if isinstance(receiver, ast.Name) else None
    return binding is not None and any(isinstance(d, ast.ClassDef) for d in binding.definitions)


def _edits(module: Module, call: ast.Call) -> list[Edit] | None:
    """What becomes of the arguments; None if they cannot be told."""
    words = {word.arg: word for word in call.keywords}
    if None in words or any(isinstance(a, ast.Starred) for a in call.args):
        return None
    if len(call.args) > 3 or not words.keys() <= {"device", "non_blocking", "memory_format"}:
        return None
    place = call.args[0] if call.args else None
    if "device" in words:
        place = words["device"].value
    func = cast("ast.Attribute", call.func)
    prefix = "device=" if may_be_storage(module, func.value) else ""
    edits = _at_current(module, call, prefix) if place is None else _wrap(module, place)
    if edits is None:
        return None
    named = [*zip(call.args[1:], ("non_blocking=", "memory_format="), strict=False)]
    if prefix and call.args:
        named.append((call.args[0], prefix))
    for argument, word in named:
        at = _before(module, call, argument)
        if at is None:
            return None
        edits.append(Edit(Span(at, at), (word,)))
    return edits


def _before(module: Module, call: ast.Call, argument: ast.expr) -> int | None:
    """The byte before an argument and the parentheses around it; None behind an odd comment."""
    index = call.args.index(argument)
    last = module.span(call.args[index - 1] if index else call.func).end
    at, text = module.span(argument).start, module.source.utf8
    opening = text[last:at].count(b"(") - (0 if index else 1)
    if opening and b"#" in text[last:at]:
        return None
    for _ in range(opening):
        at = text.rindex(b"(", last, at)
    return at


def _at_current(module: Module, call: ast.Call, prefix: str) -> list[Edit] | None:
    """The current device as a first argument."""
    parts = module.target.call("device")
    if parts is None:
        return None
    pieces = (prefix, *_pieces(module, parts)) if prefix else _pieces(module, parts)
    if call.keywords:
        start = module.span(call.keywords[0]).start
        return [Edit(Span(start, start), (*pieces, ", "))]
    return [Edit(_between(module, call), pieces)]


def _wrap(module: Module, place: ast.expr) -> list[Edit] | None:
    """The device of an argument."""
    named = place_of(module, place)
    name = module.qualified(place.func) if isinstance(place, ast.Call) else None
    if name in ("torch.device", "accel.device"):
        return []  # that call is converted where it stands
    if named is not None:
        parts = device_of_place(module, "device", named)
    elif name == "torch.cuda.current_device":
        parts = module.target.call("device")
    else:
        parts = device_call(module, place)
    return None if parts is None else [Edit(module.span(place), _pieces(module, parts))]


def _pieces(module: Module, pieces: tuple[str | Span | ast.AST, ...]) -> tuple[str | Span, ...]:
    return tuple(p if isinstance(p, (str, Span)) else module.span(p) for p in pieces)


def _between(module: Module, call: ast.Call) -> Span:
    """The inside of the empty parentheses, just before they close."""
    end = module.span(call).end - 1
    return Span(end, end)
