"""ACC096: memory formats that an Ascend refuses."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow.evidence import instance_class, is_torch_class
from accel.convert.module import Module
from accel.convert.rule import Example, Rule
from accel.convert.rules import operators_dtypes as dtypes

_T = "import torch\n\n"
_TEXT = _T + "x = x.to(device, memory_format=torch.channels_last)\n"
RULES = (
    Rule(
        id="ACC096",
        name="channels-last",
        title="The memory format channels_last on the device",
        why="It is a layout that makes convolutions fast on some devices and is refused on others. "
        "It changes no values, so a program loses nothing but speed without it.",
        ascend="torch_npu raises `Only contiguous_format or preserve_format is supported` for "
        "`.to(memory_format=torch.channels_last)`, `.contiguous(...)`, `.clone(...)` and new "
        "tensors on the device; it has internal formats of its own. What has the format on the "
        "CPU may be moved.",
        action="flag",
        effort="review",
        examples=(Example(before=_TEXT, after=_TEXT),),
        kept=(
            _T + "is_last = x.is_contiguous(memory_format=torch.channels_last)\n",
            _T + "if fmt == torch.channels_last:\n    pass\n",
            _T + "x = x.to(memory_format=torch.contiguous_format)\n",
            _T + "x = torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last)\n",
            _T + "net = torch.nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last)\n",
            _T + "x = x.cpu().contiguous(memory_format=torch.channels_last)\n",
            _T + "x = x.to('cpu', memory_format=torch.channels_last)\n",
            _T + "x = torch.empty(1, 2, 3, 4, memory_format=torch.channels_last)\n",
            "channels_last = True\nimport torch\n\nprint(channels_last)\n",
        ),
    ),
)
_FORMATS = frozenset({"torch.channels_last", "torch.channels_last_3d"})


def reference(module: Module, node: ast.expr, name: str) -> Iterator[Finding]:
    """What to say where a name is read: nothing, unless it is a format that may meet the device."""
    if name in _FORMATS and not _is_asked(module, node) and not _is_on_host(module, node):
        yield module.flag(
            node,
            "ACC096",
            f"On the device torch_npu refuses {name}",
            "Make the format an option, and torch.contiguous_format on Ascend: the values are the "
            "same.",
            subject=name,
        )


def _is_asked(module: Module, node: ast.expr) -> bool:
    """Whether the format is only compared with."""
    parent = module.parent(node)
    call = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    if isinstance(call, ast.Call):
        return isinstance(call.func, ast.Attribute) and call.func.attr == "is_contiguous"
    return isinstance(parent, (ast.Compare, ast.MatchValue))


def _is_on_host(module: Module, node: ast.expr) -> bool:
    """Whether the call that is given the format plainly works on the CPU."""
    parent = module.parent(node)
    call = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    if not isinstance(call, ast.Call):
        return False
    devices = [word.value for word in call.keywords if word.arg == "device"]
    if isinstance(call.func, ast.Attribute) and call.func.attr == "to":
        devices += [one for one in call.args if not _is_dtype(module, one)]
    if devices:
        return any(dtypes.is_cpu(module, one) for one in devices)
    if not isinstance(call.func, ast.Attribute) or not dtypes.is_tensor_method(module, call.func):
        return dtypes.made_on_cpu(module, call)
    receiver = call.func.value
    return dtypes.from_cpu(module, receiver) or _is_new_module(module, receiver)


def _is_dtype(module: Module, node: ast.expr) -> bool:
    return (module.qualified(node) or "").startswith("torch.")


def _is_new_module(module: Module, node: ast.expr) -> bool:
    """`Net().to(memory_format=...)`: a module that is made here is on the CPU."""
    if not isinstance(node, ast.Call):
        return False
    own = instance_class(module, node)
    name = module.qualified(node.func) or ""
    is_class = name.startswith("torch.nn.") and name.rpartition(".")[2][:1].isupper()
    is_model = is_class or name.startswith("torchvision.models.")
    return is_model or (own is not None and bool(is_torch_class(module, own)))
