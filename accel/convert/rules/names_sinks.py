"""Where the text of a string goes, as far as that proves that it names no device.

Unlike `flow.tracing`, which gathers all places that a value reaches, since a conversion must suit
each of them, this gives one answer, by which a word is kept for good: so it follows plain variables
alone, whose uses must agree, and tells kinds of text apart (errors, commands, searches, exports)
that would all be `unknown` or `passed` there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from accel.convert.module import Module
from accel.convert.nodes import called
from accel.convert.project import OPTION_MAKERS

Sink = Literal[
    "docstring", "message", "help", "option", "key", "attribute", "export", "annotation",
    "command", "default", "comparison", "path", "table", "list", "error", "search",
    "unknown",
]  # fmt: skip

_DEEPEST = 3  # variables that are followed from where they are assigned to where they are read
_HELP = frozenset({"help", "description", "epilog", "usage", "metavar", "prog", "short_help"})
_MESSAGES = frozenset({"reason", "msg", "message", "desc", "title", "suptitle", "xlabel", "ylabel"})
_PRINTERS = frozenset({
    "print", "pprint", "input", "warn", "warn_once", "deprecated", "fail", "skip", "skipTest",
    "skipif", "skipIf", "skipUnless", "xfail", "exit", "error", "critical", "exception", "debug",
    "info", "warning", "log", "fatal", "print_rank_0", "echo", "secho", "warning_once",
    "info_once",
})  # fmt: skip
_WRITERS = frozenset({"sys.stderr.write", "sys.stdout.write"})
_COMMANDS = frozenset({
    "os.system", "os.popen", "subprocess.run", "subprocess.call", "subprocess.Popen",
    "subprocess.check_call", "subprocess.check_output", "subprocess.getoutput",
    "subprocess.getstatusoutput", "builtins.exec", "builtins.eval", "builtins.compile",
})  # fmt: skip
# Methods whose result is shown to people.
_SHOWN = frozenset({"__repr__", "__str__", "__format__", "extra_repr", "_repr_html_"})
_TYPES = frozenset({
    "Optional", "Union", "List", "Dict", "Tuple", "Type", "Sequence", "Callable", "Iterable",
    "Iterator", "Mapping", "ClassVar", "dict", "list", "tuple", "type", "set", "frozenset",
})  # fmt: skip
_TELLING = ("Error", "Exception", "Warning", "Exit", "docstr", "docstring")
# Methods of a string whose result still is the text.
_SAME_TEXT = frozenset({
    "format", "join", "strip", "rstrip", "lstrip", "lower", "upper", "title", "center", "ljust",
    "rjust", "replace", "encode", "format_map",
})  # fmt: skip
# Functions whose arguments are, or become part of, the text that they return or gather.
_GATHERERS = frozenset({
    "format", "join", "dedent", "indent", "cleandoc", "fill", "str", "colorstr", "colored",
    "append", "extend", "style",
})  # fmt: skip
_SEARCHES = frozenset(
    {"startswith", "endswith", "find", "rfind", "index", "count", "search", "match", "fullmatch"}
)
# As these, with what is looked for first.
_PARTERS = frozenset({
    "partition", "removeprefix", "removesuffix", "replace", "rpartition", "rsplit", "split",
})  # fmt: skip
# Of `re`: what they look for comes first.
_PATTERNS = frozenset({
    "compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub", "subn",
})  # fmt: skip
# Tests that an error is raised, and what it says.
_RAISED = frozenset({"raises", "warns", "assertRaisesRegex", "assertWarnsRegex", "deprecated_call"})
_SAID = frozenset({"match", "expected_regex"})
# Functions that make files and folders, whose names these arguments are part of.
_FILES = frozenset({"mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "mktemp"})
_PARTS = frozenset({"prefix", "suffix"})
_TABLE = 40  # strings: a list of so many is a vocabulary, and none of them a choice
# What a list of the names of layers, keys or columns to treat differently is called.
_LISTS = re.compile(
    r"(?:ignored?|excluded?|skip(?:ped)?|frozen|freeze|drop(?:ped)?)_"
    r"(?:layers|keys|names|columns|fields|modules|params|parameters|buffers|weights|attributes)"
)
_BY_NAME = frozenset({"getattr", "hasattr", "setattr", "delattr", "attrgetter"})
_BY_KEY = frozenset({"get", "pop", "setdefault", "has_key", "__getitem__", "move_to_end"})


class Sinks:
    """Follows strings through a file."""

    def __init__(self, module: Module) -> None:
        self._module = module

    def of(self, node: ast.expr) -> Sink:
        """Where a literal goes; `unknown` where that cannot be told or is not one of these."""
        return "table" if node in self._tabled else self._of(node, 0)

    @cached_property
    def _tabled(self) -> frozenset[ast.AST]:
        """The strings of long tables."""
        found: set[ast.AST] = set()
        for table in self._module.all(ast.List, ast.Tuple, ast.Set, ast.Dict):
            if len(_entries(table)) >= _TABLE:
                texts = [node for node in _flat(table) if isinstance(node, ast.Constant)]
                if all(isinstance(text.value, str) for text in texts):
                    found.update(texts)
        return frozenset(found)

    def _of(self, node: ast.AST, depth: int) -> Sink:
        child = node
        for parent in self._module.ancestors(node):
            found = self._step(child, parent, depth)
            if found == "through":
                child = parent
                continue
            return found
        return "unknown"

    def _step(self, child: ast.AST, parent: ast.AST, depth: int) -> Sink | Literal["through"]:
        if isinstance(parent, ast.Expr):
            return "docstring" if child is parent.value and _is_text(child) else "unknown"
        if isinstance(parent, (ast.Assert, ast.Raise)):
            return "unknown" if child is getattr(parent, "test", None) else "message"
        if isinstance(parent, ast.Return):
            function = self._module.function_of(parent)
            return "message" if getattr(function, "name", "") in _SHOWN else "unknown"
        if isinstance(parent, ast.Subscript):
            if child is not parent.slice:
                return "unknown"
            if self._is_type(parent):
                return "annotation"
            return "unknown" if self._is_torchs(parent.value) else "key"
        if isinstance(parent, ast.Dict):
            return "key" if child in parent.keys else "through"
        if isinstance(parent, ast.Tuple) and isinstance(self._module.parent(parent), ast.Subscript):
            return "through"
        if isinstance(parent, (ast.arg, ast.FunctionDef, ast.AsyncFunctionDef)):
            return "annotation" if self._annotates(child, parent) else "unknown"
        if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            return self._assigned(child, parent, depth)
        if isinstance(parent, ast.keyword):
            return self._keyword(parent, depth)
        if isinstance(parent, ast.Call):
            return self._argument(child, parent, depth)
        if isinstance(parent, ast.Compare):
            return self._compared(child, parent)
        if isinstance(parent, ast.Attribute):
            return "through" if parent.attr in _SAME_TEXT else "unknown"
        if isinstance(parent, _THROUGH):
            return "unknown" if child is getattr(parent, "test", None) else "through"
        return "unknown"

    def _annotates(self, child: ast.AST, parent: ast.AST) -> bool:
        if isinstance(parent, ast.arg):
            return child is parent.annotation
        return child is getattr(parent, "returns", None)

    def _is_torchs(self, node: ast.expr) -> bool:
        return (self._module.qualified(node) or "").partition(".")[0] == "torch"

    def _is_type(self, node: ast.Subscript) -> bool:
        name = (self._module.qualified(node.value) or "").rpartition(".")[2]
        return name in (
            "Optional",
            "Union",
            "List",
            "Dict",
            "Tuple",
            "Type",
            "Sequence",
            "Callable",
        )

    def _assigned(self, child: ast.AST, parent: ast.stmt, depth: int) -> Sink:
        if child is getattr(parent, "annotation", None):
            return "annotation"
        targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]  # type: ignore[attr-defined]
        word = getattr(targets[0], "id", "") or getattr(targets[0], "attr", "")
        if _LISTS.fullmatch(word):
            return "list"
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            return "unknown"
        if targets[0].id == "__all__":
            return "export"
        if targets[0].id in ("__doc__", "__version__", "__author__"):
            return "docstring"
        return self._uses(targets[0], depth)

    def _uses(self, name: ast.Name, depth: int) -> Sink:
        """Where a variable goes: one place if all its uses agree."""
        binding = self._module.scope(name).find(name.id)
        if binding is None or depth >= _DEEPEST or not binding.uses:
            return "unknown"
        found = {self._of(use, depth + 1) for use in binding.uses}
        found -= {"docstring"}
        if found <= {"message", "help"} and found:
            return "message"
        return found.pop() if len(found) == 1 else "unknown"

    def _keyword(self, keyword: ast.keyword, depth: int) -> Sink | Literal["through"]:
        call = self._module.parent(keyword)
        name = called(call)
        if name in _FILES and keyword.arg in _PARTS:
            return "path"
        if name in _RAISED and keyword.arg in _SAID:
            return "error"
        if name not in OPTION_MAKERS and _LISTS.fullmatch(keyword.arg or ""):
            return "list"
        if keyword.arg in _HELP:
            return "help"
        if keyword.arg in _MESSAGES:
            return "message"
        if name in OPTION_MAKERS:
            if keyword.arg == "dest":
                return "option"
            return "default" if keyword.arg in ("default", "const", "choices") else "unknown"
        if isinstance(call, ast.Call) and (name in _GATHERERS or _prints(name)):
            return "message" if _prints(name) else "through"
        return "unknown"

    def _argument(self, child: ast.AST, call: ast.Call, depth: int) -> Sink | Literal["through"]:
        if child is call.func:
            # `"…".format(…)`: the call is the text, and so is what a list was made into.
            return "through" if called(call) in _SAME_TEXT else "unknown"
        name = called(call)
        qualified = self._module.qualified(call.func) or ""
        if qualified in _COMMANDS:
            return "command"
        if qualified in _WRITERS or _prints(name):
            return "message"
        if name in OPTION_MAKERS:
            return "option"
        position = call.args.index(child) if child in call.args else -1
        if name in _SEARCHES and any(self._is_error(one) for one in (call.func, *call.args)):
            return "error"
        if name in _RAISED and position == 1:
            return "error"
        if name in _SEARCHES or (name in _PARTERS and position == 0):
            return "search"
        if qualified.startswith("re.") and name in _PATTERNS:
            return "search"
        if name in _FILES and position in (0, 1):
            return "path"
        if name in _BY_NAME and call.args and self._is_torchs(call.args[0]):
            return "unknown"
        if name in _BY_NAME:
            return "attribute" if position == (0 if name == "attrgetter" else 1) else "unknown"
        if name in _BY_KEY and isinstance(call.func, ast.Attribute):
            return "key" if position == 0 else "unknown"
        if name in _GATHERERS:
            if name in ("append", "extend") and isinstance(call.func, ast.Attribute):
                base = call.func.value
                return self._uses(base, depth) if isinstance(base, ast.Name) else "unknown"
            return "through"
        return "unknown"

    def _compared(self, child: ast.AST, parent: ast.Compare) -> Sink:
        if any(self._is_error(side) for side in (parent.left, *parent.comparators)):
            return "error"
        membership = len(parent.ops) == 1 and isinstance(parent.ops[0], (ast.In, ast.NotIn))
        if membership and child is parent.left:
            return "key" if _is_mapping_like(parent.comparators[0]) else "comparison"
        return "comparison"

    def _is_error(self, node: ast.expr) -> bool:
        """Whether an expression is the text of an exception that is caught here."""
        node = self._module.value_of(node)
        while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Call) and called(node) in ("str", "repr") and node.args:
                node = node.args[0]
            elif isinstance(node, ast.Call):
                node = node.func
            else:
                node = node.value
        return isinstance(node, ast.Name) and any(
            isinstance(outer, ast.ExceptHandler) and outer.name == node.id
            for outer in self._module.ancestors(node)
        )


_THROUGH = (
    ast.BinOp, ast.JoinedStr, ast.FormattedValue, ast.IfExp, ast.List, ast.Tuple, ast.Set,
    ast.Starred, ast.BoolOp, ast.NamedExpr,
)  # fmt: skip


def _prints(name: str) -> bool:
    return name in _PRINTERS or name.startswith("print") or name.endswith(_TELLING)


def _entries(table: ast.AST) -> list[ast.expr]:
    """The entries of a literal that are text, or tuples and lists of it, by themselves."""
    values = table.values if isinstance(table, ast.Dict) else getattr(table, "elts", ())
    return [one for one in values if isinstance(one, (ast.Constant, ast.Tuple, ast.List))]


def _flat(node: ast.AST) -> Iterator[ast.AST]:
    """What a table holds directly: not what its calls and comparisons hold."""
    for inner in ast.iter_child_nodes(node):
        yield inner
        if isinstance(inner, (ast.Tuple, ast.List)):
            yield from _flat(inner)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, (ast.Constant, ast.JoinedStr))


def _is_mapping_like(node: ast.expr) -> bool:
    """Whether the right side of `in` holds names: a dictionary, options, arguments."""
    text = ast.unparse(node).lower()
    return text.endswith(
        ("cfg", "config", "kwargs", "args", "opt", "options", "params", "__dict__")
    )
