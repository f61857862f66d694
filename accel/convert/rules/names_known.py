"""What the tree itself is known to define: proof that a word is not the platform's."""

from __future__ import annotations

import ast
import posixpath
from functools import cached_property

from accel.convert.module import Module
from accel.convert.nodes import called
from accel.convert.project import field_names, option_names

# Attributes and parameters of torch's own objects that hold one of the words. A tree that defines
# the same name proves nothing about an object of unknown origin.
TORCHS = frozenset({
    "CUDA", "MTIA", "NCCL", "cuda", "cuda_device", "cuda_memory_usage", "cuda_stream",
    "cuda_time", "cuda_time_total", "cudnn_enabled", "get_rng_state_cuda", "has_cuda",
    "has_cudnn", "has_nccl", "is_cuda", "is_cudnn_acceptable", "is_npu", "is_musa", "is_mlu",
    "musa", "mlu", "nccl", "npu", "self_cuda_memory_usage", "self_cuda_time_total", "use_cuda",
})  # fmt: skip
# Functions whose keywords become keys or attributes of what they return.
MAPPINGS = frozenset({
    "dict", "OrderedDict", "Namespace", "SimpleNamespace", "EasyDict", "edict", "ConfigDict",
    "AttrDict", "HParams", "CfgNode", "CN", "Box", "Munch",
})  # fmt: skip
# Files that torch's own folder has, and hardly another.
_TORCH = frozenset({"nn.functional", "autograd.grad_mode", "cuda.graphs", "_tensor_str"})
# Calls that give an object an attribute: the place of its name among the arguments.
_GIVEN = {
    "register_buffer": 0, "register_parameter": 0, "register_module": 0, "add_module": 0,
    "setattr": 1,
}  # fmt: skip


class Known:
    """The names of the tree, and of this file where it stands alone."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._project = module.project

    @cached_property
    def _own(self) -> frozenset[str]:
        module = self._module
        names = {node.name for node in module.all(ast.FunctionDef)}
        names |= {node.name for node in module.all(ast.AsyncFunctionDef)}
        names |= {node.name for node in module.all(ast.ClassDef)}
        names |= {node.arg for node in module.all(ast.arg)}
        names |= {n.attr for n in module.all(ast.Attribute) if not isinstance(n.ctx, ast.Load)}
        names |= {name for name, bound in module.walk.module.names.items() if not bound.imports}
        for owner in module.all(ast.ClassDef):
            names |= set(module.walk.scopes[owner].names)
        for call in module.all(ast.Call):
            place = _GIVEN.get(called(call))
            given = call.args[place] if place is not None and len(call.args) > place else None
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                names.add(given.value)
        return frozenset(names)

    @cached_property
    def _own_options(self) -> frozenset[str]:
        return frozenset(name for node in self._module.all(ast.Call) for name in option_names(node))

    @cached_property
    def _own_fields(self) -> frozenset[str]:
        return frozenset(name for node in self._module.all(ast.Call) for name in field_names(node))

    @cached_property
    def _keys(self) -> frozenset[str]:
        """Keys that this file's dictionaries are written with."""
        module = self._module
        nodes: list[ast.expr | None] = [key for d in module.all(ast.Dict) for key in d.keys]
        nodes += [s.slice for s in module.all(ast.Subscript) if isinstance(s.ctx, ast.Store)]
        values = {node.value for node in nodes if isinstance(node, ast.Constant)}
        words = {w.arg for w in module.all(ast.keyword) if called(module.parent(w)) in MAPPINGS}
        return frozenset(value for value in {*values, *words} if isinstance(value, str))

    def defines(self, name: str) -> bool:
        """Whether the tree has a function, class, parameter, variable or attribute of this name."""
        if name in self._own:
            return True
        return self._module.vendor.own(name) in self._project.names

    def has_attribute(self, name: str) -> bool:
        """As `defines`, or whether a class's body or a named tuple has an attribute of the name."""
        own = self._module.vendor.own(name)
        return self.defines(name) or name in self._own_fields or own in self._project.fields

    def has_class(self, name: str) -> bool:
        """Whether this file has a class of this name."""
        return any(node.name == name for node in self._module.all(ast.ClassDef))

    def has_option(self, name: str) -> bool:
        """Whether a command-line option of the tree is read by this name."""
        return name in self._own_options or name in self._project.options

    def has_key(self, name: str) -> bool:
        """Whether this file writes a dictionary with this key."""
        return name in self._keys

    @cached_property
    def holds_torch(self) -> bool:
        """Whether the tree is torch's own, so that its names are those of the tree."""
        return self._is_torch or "torch.nn.functional" in self._project.modules

    @cached_property
    def _is_torch(self) -> bool:
        """Whether the tree's root is the folder of torch itself."""
        return self._project.modules.keys() >= _TORCH

    def has_prefix(self, dotted: str) -> bool:
        """Whether a dotted name begins with a module of the tree."""
        parts = dotted.split(".")
        return any(self.has_module(".".join(parts[:end])) for end in range(len(parts), 0, -1))

    def has_module(self, dotted: str, level: int = 0) -> bool:
        """Whether a module of the import statement's name is a file or folder of the tree."""
        if self._is_torch and not level and dotted.partition(".")[0] == "torch":
            return dotted == "torch" or dotted.removeprefix("torch.") in self._project.packages
        folder = posixpath.dirname(self._module.path)
        for _ in range(level - 1):
            folder = posixpath.dirname(folder)
        inner = dotted.replace(".", "/")
        beside = (posixpath.join(folder, inner) if inner else folder).replace("/", ".")
        packages = self._project.packages
        if level:
            # `from . import x` in a file at the root has no name for what it imports from.
            return beside in packages or (not beside and bool(packages))
        return bool(dotted) and (dotted in packages or beside in packages)
