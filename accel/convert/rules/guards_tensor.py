"""ACC036: `t.is_cuda`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow import instance_class
from accel.convert.module import Module
from accel.convert.rule import Example, Rule
from accel.convert.rules.devices_spelling import converted
from accel.convert.rules.guards_branches import other_branches
from accel.convert.rules.guards_content import calls_extension, content, guarded

_T = "import torch\n"
_A = "import torch\nimport accel\n"
RULES = (
    Rule(
        id="ACC036",
        name="is-cuda",
        title="Tensor.is_cuda",
        why="It is False for tensors on every other accelerator; `accel.on_accelerator(t)` asks "
        "whether the tensor is on one. Before CUDA kernels of the program's own it stays.",
        ascend="It is True for tensors on npu.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\ndef f(x):\n    return x.half() if x.is_cuda else x\n",
                _A + "\ndef f(x):\n    return x.half() if accel.on_accelerator(x) else x\n",
            ),
            Example(
                _T + "\nassert not (a + b).is_cuda\n",
                _A + "\nassert not accel.on_accelerator(a + b)\n",
            ),
        ),
        kept=(
            _T + "import roi_align\n\nclass F(torch.autograd.Function):\n"
            "    @staticmethod\n    def forward(ctx, x):\n        if not x.is_cuda:\n"
            "            return x\n        return roi_align.forward_cuda(x)\n",
            _T + "\nclass Box:\n    def __init__(self):\n        self.is_cuda = False\n\n"
            "b = Box()\nprint(b.is_cuda)\n",
            _T + "\nif args.is_cuda:\n    print(1)\n",
            _T + "\nbatch.is_cuda = True\n\nif batch.is_cuda:\n    print(1)\n",
            "import types\nimport torch\n\nb = types.SimpleNamespace(is_cuda=False)\n"
            "print(b.is_cuda)\n",
            _T + "from ._ext import cuda_forward\n\ndef f(x):\n    if x.is_cuda:\n"
            "        return cuda_forward(x)\n    return ref(x)\n",
            _T + "\ndef f(x):\n    if x.is_cuda:\n        return _kern[(1,)](x)\n"
            "    return ref(x)\n",
            _T + "\ndef f(x, net):\n    if x.is_cuda and len(ids) > 1:\n"
            "        return torch.nn.parallel.data_parallel(net, x, ids)\n    return net(x)\n",
            _T + "import corr_ext\n\ndef corr(x):\n    assert x.is_cuda\n"
            "    return corr_ext.forward(x)\n",
        ),
    ),
)
_SETTINGS = re.compile(r"^(?:args|opts?|options?|cfg|config|conf|flags|hparams|FLAGS)$")


def find(module: Module) -> Iterator[Finding]:
    """Reads of `is_cuda`."""
    for node in module.all(ast.Attribute):
        if node.attr == "is_cuda" and isinstance(node.ctx, ast.Load):
            yield _read(module, node)


def _read(module: Module, node: ast.Attribute) -> Finding:
    word = module.attribute_span(node)
    if _is_own(module, node):
        return module.keep(word, "ACC036", "It is an attribute of the program's own.")
    function = module.function_of(node)
    kernel = calls_extension(module, function) if function is not None else ""
    if kernel:
        return module.keep(word, "ACC036", f"It guards the compiled <CUDA> function {kernel}.")
    held = content(module, guarded(module, node) or ())
    if held.only_cuda or held.kernel:
        return module.flag(
            word,
            "ACC036",
            f"It guards {held.only_cuda or held.kernel}: another device must not take this branch.",
            "See what other devices do here; write a branch for them if the other does not serve.",
        )
    other = other_branches(module, node)
    if other:
        return module.flag(
            word,
            "ACC036",
            f"The program has a branch of its own for {other} beside this one.",
            "Put one for other accelerators behind them: accel.on_accelerator(tensor).",
        )
    parts = module.target.call("on_accelerator", node.value)
    parent = module.parent(node)
    is_called = isinstance(parent, ast.Call) and parent.func is node
    if parts is None or is_called:
        return module.flag(
            word, "ACC036", "It asks for <CUDA>'s tensors only.", "Compare `tensor.device.type`."
        )
    message = "It asks whether the tensor is on an accelerator."
    return converted(module, node, "ACC036", message, *parts)


def _is_own(module: Module, node: ast.Attribute) -> bool:
    """Whether the program defines such an attribute of its own."""
    if isinstance(node.value, ast.Name) and _SETTINGS.match(node.value.id):
        return True
    made = module.value_of(node.value)
    if isinstance(made, ast.Call) and any(word.arg == "is_cuda" for word in made.keywords):
        return True  # SimpleNamespace(is_cuda=...)
    base = module.text(node.value)
    if any(_is_set(one) and module.text(one.value) == base for one in module.all(ast.Attribute)):
        return True
    owner = instance_class(module, node.value)
    if owner is None:
        return False
    methods = {item.name for item in owner.body if isinstance(item, ast.FunctionDef)}
    return "is_cuda" in methods or bool(module.attributes.get((owner, "is_cuda")))


def _is_set(node: ast.Attribute) -> bool:
    return node.attr == "is_cuda" and isinstance(node.ctx, ast.Store)
