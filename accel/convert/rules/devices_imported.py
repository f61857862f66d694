"""Functions named `cuda` of modules and packages, which are no methods of tensors."""

from __future__ import annotations

import ast

from accel.convert.flow import is_device
from accel.convert.flow.showing import is_called, is_shown, names_value
from accel.convert.module import Module
from accel.convert.rules.devices_spelling import is_int, named_index
from accel.convert.scopes import Binding

# Packages that have something called `cuda`. Others than those of `flow.positions`, which are about
# who is given a device: triton and rmm are given none, and no xgboost.cuda is called.
_OTHER = frozenset(
    {"numba", "cupy", "pycuda", "numpy", "tensorflow", "jax", "cv2", "triton", "mxnet", "warp",
     "tvm", "taichi", "paddle", "numexpr", "rmm"}
)  # fmt: skip


def is_foreign(module: Module, call: ast.Call, receiver: ast.expr) -> bool:
    """Whether `receiver.cuda(...)` is a function of a module."""
    name, binding = module.qualified(receiver), _root(module, receiver)
    if name is None or binding is None:
        return False
    if name.partition(".")[0] in _OTHER or name in module.project.modules:
        return True
    nodes = binding.import_nodes if isinstance(receiver, ast.Name) else []
    if any(isinstance(node, ast.Import) for node in nodes):
        return True
    # `from lib import utils; utils.cuda(batch)` or `from lib import net; net.cuda(gpu)`.
    return bool(nodes) and bool(call.args) and not _names_device(module, call.args[0])


def may_be_foreign(module: Module, receiver: ast.expr, has_device: bool) -> bool:
    """Whether a receiver comes out of an import, and nothing shows that it is no module of Python.

    Args:
        module: The file.
        receiver: What `cuda` is called on.
        has_device: The call names a device.
    """
    binding = _root(module, receiver)
    name = module.qualified(receiver) or ""
    if binding is None or not binding.import_nodes or name.startswith("torch."):
        return False
    if has_device or is_shown(module, receiver) or is_called(module, receiver):
        return False
    return isinstance(receiver, ast.Name) or not names_value(receiver)


def _root(module: Module, receiver: ast.expr) -> Binding | None:
    """What the first name of a plain chain of names is bound to."""
    while isinstance(receiver, ast.Attribute):
        receiver = receiver.value
    return module.binding(receiver) if isinstance(receiver, ast.Name) else None


def _names_device(module: Module, node: ast.expr) -> bool:
    return named_index(node) or bool(is_int(module, node)) or is_device(module, node) is True
