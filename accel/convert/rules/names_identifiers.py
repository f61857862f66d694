"""Words in code: proof that a name is the program's own, or a flag."""

from __future__ import annotations

import ast

from accel.convert.module import Module
from accel.convert.nodes import called, is_self
from accel.convert.rules.functions_table import MODULES, lookup
from accel.convert.rules.names_known import MAPPINGS, TORCHS, Known
from accel.convert.rules.names_verdict import (
    KEY,
    MODULE,
    OPTION,
    OWN_ATTRIBUTE,
    OWN_NAME,
    Verdict,
    unknown,
)
from accel.convert.scopes import Binding
from accel.convert.tokens import PATTERN

# Packages whose objects hold the attributes that a program gives them.
_CONTAINERS = frozenset({
    "builtins", "argparse", "types", "easydict", "yacs", "omegaconf", "ml_collections", "addict",
    "box", "attrdict", "munch", "dataclasses", "optparse", "simple_parsing",
})  # fmt: skip
# Parts of torch.cuda whose names settings have, too: they say nothing unless they are called.
_SETTINGS = frozenset({
    "amp", "device", "graph", "graphs", "memory", "nvtx", "profiler", "random", "seed", "stream",
    "temperature",
})  # fmt: skip
# What torch's own tree has in C++ only; that also fills the module torch itself.
_COMPILED = ("torch._C.", "torch.ops.")


class Identifiers:
    """Judges the names of a file."""

    def __init__(self, module: Module, known: Known) -> None:
        self._module = module
        self._known = known

    def judge(self, node: ast.AST, word: str) -> Verdict:
        """What a node's name is, by the node that has it.

        Args:
            node: As `Places.name` found it.
            word: The whole name in the text; of a statement that lists names, the one meant.
        """
        if isinstance(node, ast.Name):
            return self._alike(node) or self._name(node)
        if isinstance(node, ast.Attribute):
            return self._alike(node) or self._attribute(node)
        if isinstance(node, ast.arg):
            return Verdict(OWN_NAME, f"{word} is a parameter of this program's own function")
        if isinstance(node, ast.keyword):
            return self._keyword(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._import(node, word)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            return Verdict(OWN_NAME, f"{word} is a {kind} that this program defines")
        if isinstance(node, ast.MatchClass):
            return self._pattern(word)
        return Verdict(OWN_NAME, f"{word} is a variable of this program")

    def _pattern(self, word: str) -> Verdict:
        """An attribute in a `case Device(cuda=x)`."""
        if self._known.has_attribute(word) and word not in TORCHS:
            return Verdict(OWN_ATTRIBUTE, f"{word} is an attribute that this tree defines")
        return unknown(
            f"{word} is an attribute in a pattern, and this tree does not define it",
            "If it is a setting of this program's own, it may stay; if it is torch's, ask the "
            "device in another way.",
        )

    # --- what may be torch.cuda ----------------------------------------------------------------

    def _alike(self, node: ast.Name | ast.Attribute) -> Verdict | None:
        """`x.cuda.synchronize()`: whatever else is called `cuda`, this may be torch's module."""
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name != "cuda" or self._is_known(node):
            return None
        names, outer = [], self._module.parent(node)
        inner: ast.AST = node
        while isinstance(outer, ast.Attribute) and isinstance(outer.ctx, ast.Load):
            names.append(outer.attr)
            inner, outer = outer, self._module.parent(outer)
        is_called = isinstance(outer, ast.Call) and outer.func is inner
        if not names or (names[-1] in _SETTINGS and not is_called):
            return None
        full = f"torch.cuda.{names[0]}"
        if full not in MODULES and lookup(full) is None:
            return None
        return unknown(
            f"{self._module.text(inner)} may be {'.'.join(['torch.cuda', *names])}: it is read "
            "from an object of unknown kind",
            "If the object is torch or torch.cuda, import torch in this file, write the name in "
            "full, and convert again; if it is this program's own, it may stay.",
        )

    def _is_known(self, node: ast.Name | ast.Attribute) -> bool:
        """Whether the file itself says what is called `cuda` here, and it is not torch's."""
        if isinstance(node, ast.Attribute):
            owner = self._module.qualified(node.value)
            if owner is not None and not owner.startswith("builtins."):
                return True  # a module's, which is judged by its name
            values = self._module.attribute_values(node)
            return bool(values) and all(map(self._is_own, values))
        binding = self._module.scope(node).find(node.id)
        if binding is None or binding.parameter or binding.is_opaque:
            return False
        if binding.imports or binding.definitions:
            return True
        return bool(binding.values) and all(map(self._is_own, binding.values))

    def _is_own(self, value: ast.expr | None) -> bool:
        """Whether a value is a literal, or what a class of this tree makes."""
        if isinstance(value, ast.Call):
            return isinstance(value.func, ast.Name) and self._known.has_class(value.func.id)
        return isinstance(value, (ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.Set))

    # --- names ---------------------------------------------------------------------------------

    def _name(self, node: ast.Name) -> Verdict:
        name = node.id
        binding = self._module.scope(node).find(name)
        if binding is None:
            return self._unbound(name)
        if binding.imports:
            return self._imported(binding)
        if binding.parameter:
            return Verdict(OWN_NAME, f"{name} is a parameter of this program's own function")
        if binding.definitions:
            return Verdict(OWN_NAME, f"{name} is a function or class that this file defines")
        return Verdict(OWN_NAME, f"{name} is a variable that this file assigns")

    def _unbound(self, name: str) -> Verdict:
        stars = self._module.walk.module.stars
        if stars and self._known.defines(name):
            return Verdict(OWN_NAME, f"{name} comes from this tree by an import of all names")
        return unknown(
            f"{name} is used, and nothing in this file binds it",
            "Find where the name comes from (an import of all names, exec, another cell of a "
            "notebook) and whether it is one of the platform's.",
        )

    def _imported(self, binding: Binding) -> Verdict:
        line = binding.import_nodes[0].lineno
        return Verdict(MODULE, f"{binding.name} is what line {line} imports, which is judged there")

    # --- attributes ----------------------------------------------------------------------------

    def _attribute(self, node: ast.Attribute) -> Verdict:
        qualified = self._module.qualified(node)
        if qualified is not None and not qualified.startswith("builtins."):
            return self._of_module(node, qualified)
        return self._of_object(node)

    def _of_module(self, node: ast.Attribute, qualified: str) -> Verdict:
        root = qualified.lstrip(".").partition(".")[0]
        if root == "torch" and not self._known.holds_torch:
            return unknown(
                f"{qualified} is torch's, and no rule knows what other devices have for it",
                "Read its documentation; if only <CUDA> has it, keep it behind a device's test.",
            )
        if isinstance(node.ctx, ast.Store):
            return Verdict(OWN_ATTRIBUTE, f"this line sets the attribute {node.attr} itself")
        owner = qualified.rpartition(".")[0]
        is_filled = owner == "torch" and not self._known.has_attribute(node.attr)
        if self._known.holds_torch and (is_filled or f"{owner}.".startswith(_COMPILED)):
            return Verdict(MODULE, f"{node.attr} is of torch's compiled part, which goes with it")
        level = len(owner) - len(owner.lstrip("."))
        in_tree = level > 0 or self._known.has_prefix(owner)
        is_vendors = PATTERN.fullmatch(root) and not level and self._is_vendors(owner)
        if in_tree and not is_vendors:
            if self._known.has_attribute(node.attr):
                return Verdict(OWN_ATTRIBUTE, f"{node.attr} is defined by this tree's own {owner}")
            return unknown(
                f"{node.attr} is read from this tree's {owner}, which does not define it",
                "Look for a compiled extension or an import of all names behind that module.",
            )
        is_own = self._known.has_attribute(node.attr) and node.attr not in TORCHS
        if is_own and not is_vendors:
            return Verdict(OWN_ATTRIBUTE, f"{node.attr} is an attribute that this tree defines")
        return unknown(
            f"{qualified} belongs to the package {root}, which this tree does not hold",
            f"See whether {root} runs on other devices, and what it calls this there.",
        )

    def _is_vendors(self, owner: str) -> bool:
        """Whether `cuda.bindings` is NVIDIA's package, though this tree has a folder `cuda`."""
        names = owner.split(".")
        known = [end for end in range(len(names)) if self._known.has_module(".".join(names[:end]))]
        following = names[known[-1]] if known else ""
        return not (self._known.has_attribute(following) or self._known.has_module(owner))

    def _of_object(self, node: ast.Attribute) -> Verdict:
        name = node.attr
        if self._is_own_self(node):
            return Verdict(OWN_ATTRIBUTE, f"{name} is an attribute of this program's own class")
        package = self._package_of(node.value)
        if package and not isinstance(node.ctx, ast.Store):
            return unknown(
                f"{name} is read from an object that {package} made, which this tree does not hold",
                f"See whether {package} runs on other devices, and what it calls this there.",
            )
        parent = self._module.parent(node)
        is_called = isinstance(parent, ast.Call) and parent.func is node
        if isinstance(node.ctx, ast.Store):
            return Verdict(OWN_ATTRIBUTE, f"this line sets the attribute {name} itself")
        if self._known.has_option(name) and not is_called:
            return Verdict(OPTION, f"{name} is the value of a command-line option of this tree")
        could_be_torchs = name in TORCHS and (is_called or name.startswith("is_"))
        if self._known.has_attribute(name) and not could_be_torchs:
            return Verdict(OWN_ATTRIBUTE, f"{name} is an attribute that this tree defines")
        if self._known.has_key(name) and name not in TORCHS:
            return Verdict(KEY, f"{name} is a key of a dictionary that this file makes")
        return unknown(
            f"{name} is read from an object of unknown kind, and this tree does not define it",
            "If it is a setting of this program's own (a configuration file, an argument), it may "
            "stay; if it is torch's, ask the device in another way.",
        )

    def _package_of(self, node: ast.expr) -> str:
        """What made an object, where a function of another package did; "" if that is not known."""
        value = self._module.value_of(node)
        if not isinstance(value, ast.Call):
            return ""
        qualified = self._module.qualified(value.func) or ""
        root = qualified.partition(".")[0]
        if not root or root in _CONTAINERS or self._known.has_prefix(qualified):
            return ""
        return qualified

    def _is_own_self(self, node: ast.Attribute) -> bool:
        if not is_self(node.value):
            return False
        owner = self._module.class_of(node)
        if owner is None:
            return False
        return (owner, node.attr) in self._module.attributes or (
            node.attr in self._module.walk.scopes[owner].names
        )

    # --- arguments and imports -----------------------------------------------------------------

    def _keyword(self, node: ast.keyword) -> Verdict:
        name = str(node.arg)
        call = self._module.parent(node)
        if isinstance(call, ast.ClassDef):
            return Verdict(OWN_NAME, f"{name} is an argument of this program's own class statement")
        function = called(call)
        qualified = self._module.qualified(call.func) if isinstance(call, ast.Call) else None
        if function in MAPPINGS:
            return Verdict(KEY, f"{name} is a key of a dictionary that this program makes")
        if qualified and qualified.startswith("torch.") and not self._known.holds_torch:
            return unknown(
                f"{name} is an argument of {qualified}, and no rule knows it",
                "See the function's documentation for what it takes on other devices.",
            )
        if function in ("set_defaults", "Argument") and self._known.has_option(name):
            return Verdict(OPTION, f"{name} is a command-line option of this tree")
        if self._known.has_attribute(name) or self._known.has_option(name):
            return Verdict(
                OWN_NAME, f"{name} is an argument that a function or class of this tree takes"
            )
        return unknown(
            f"{name} is an argument of {function or 'a function'}, which this tree does not define",
            "See the documentation of the function for what it takes on other devices.",
        )

    def _import(self, node: ast.Import | ast.ImportFrom, word: str) -> Verdict:
        for alias in node.names:
            if alias.asname == word:
                return Verdict(
                    OWN_NAME, f"{word} is the name that this file gives to what it imports"
                )
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        wanted = next((n for n in names if word in n.split(".")), names[0])
        listed = isinstance(node, ast.ImportFrom) and word not in wanted.split(".")
        if wanted.partition(".")[0] == "torch" and not level and not self._known.holds_torch:
            return unknown(
                f"{word} is imported from {wanted}, of which no rule knows what other devices have",
                "Import it where <CUDA> is used only, or find its like in torch.accelerator.",
            )
        if self._known.has_module(wanted, level):
            dotted = f"{wanted}.{word}" if wanted else word
            if not listed or self._known.defines(word) or self._known.has_module(dotted, level):
                return Verdict(
                    MODULE, f"{word} is imported from this tree's own {wanted or 'package'}"
                )
        shown = "." * level + wanted
        dotted = f"{shown}{word}" if shown.endswith(".") else f"{shown}.{word}"
        through = self._module.project.through(self._module.path, dotted)
        if listed and through is not None:
            return Verdict(
                MODULE, f"{word} comes from {through.home}, and is judged where it is used"
            )
        return unknown(
            f"{word} is imported from {shown}, which is not among the files that were given",
            "If it is another package, see whether it runs on other devices; if it is compiled "
            "from <CUDA> sources, it needs a replacement.",
        )
