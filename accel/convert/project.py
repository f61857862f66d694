"""What one file may know of the others: constants, and classes with methods of telling names."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from accel.convert.reexports import Brought, Homes, Through, brought, passed_on, through

# Methods that a class of the user's may define itself, so that a call is none of torch's.
TELLING_METHODS = frozenset(
    {"cuda", "npu", "musa", "mlu", "is_cuda", "to", "record_stream", "pin_memory"}
)
# Functions and methods that declare a command-line option: argparse's, optparse's, click's, absl's.
OPTION_MAKERS = frozenset({
    "add_argument", "add_option", "option", "argument", "Option", "DEFINE_bool", "DEFINE_boolean",
    "DEFINE_string", "DEFINE_integer", "DEFINE_enum", "DEFINE_float", "DEFINE_list",
})  # fmt: skip


@dataclass(frozen=True)
class Project:
    """An index over a tree's Python files; picklable, and empty for a file on its own.

    Attributes:
        constants: Strings and integers assigned once at module level, by file and name.
        methods: Names among `TELLING_METHODS` that some class of the tree defines.
        names: Every function, class, parameter, module-level variable and attribute name that the
            tree itself defines.
        options: Names under which command-line options are read, `use_cuda` for `--use-cuda`.
        modules: Files by dotted module name, `pkg.utils` for `pkg/utils.py`.
        wanted: What files import from one another, by the last part of the module's name and the
            name, which is `*` for all.
        fields: Attributes that class bodies and named tuples of the tree give.
        passed: What of torch's modules a file passes on to others, by file and name.
    """

    constants: Mapping[tuple[str, str], str | int] = field(default_factory=dict)
    methods: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    modules: Mapping[str, str] = field(default_factory=dict)
    wanted: frozenset[tuple[str, str]] = frozenset()
    fields: frozenset[str] = frozenset()
    passed: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @cached_property
    def packages(self) -> frozenset[str]:
        """Modules and folders by every name that an import may have for them.

        `pkg`, `pkg.utils` and `utils` for `src/pkg/utils.py`, since any folder may be on the path.
        """
        found: set[str] = set()
        for name in self.modules:
            parts = name.split(".")
            for start in range(len(parts)):
                found.update(".".join(parts[start:end]) for end in range(start + 1, len(parts) + 1))
        return frozenset(found)

    def is_wanted(self, path: str, name: str) -> bool:
        """Whether some file imports a name from this one, as far as the modules' names say."""
        stem = posixpath.basename(path).removesuffix(".py")
        return (stem, name) in self.wanted or (stem, "*") in self.wanted

    @cached_property
    def _homes(self) -> Homes:
        return Homes(self.modules)

    def through(self, path: str, name: str) -> Through | None:
        """What a dotted name, seen from a file, is of torch's by way of another file."""
        return through(path, name, self._homes, self.passed) if self.passed else None

    def constant(self, path: str, name: str) -> str | int | None:
        """The constant that an imported dotted name means, seen from a file; None if unknown."""
        return next(
            (self.constants[h] for h in _homes(self, path, name) if h in self.constants), None
        )


def _homes(project: Project, path: str, name: str) -> list[tuple[str, str]]:
    """The files and the name that `module.name` may mean in a file, the likeliest first."""
    module, _, leaf = name.rpartition(".")
    dots = len(module) - len(module.lstrip("."))
    if dots or name.startswith("."):
        dots = dots or len(name) - len(name.lstrip("."))
        folder = posixpath.dirname(path)
        for _ in range(dots - 1):
            folder = posixpath.dirname(folder)
        inner = module.lstrip(".").replace(".", "/")
        base = posixpath.join(folder, inner) if inner else folder
        return [(f"{base}.py", leaf), (f"{base}/__init__.py", leaf)]
    # Absolute names, or beside the file as scripts have it.
    beside = posixpath.join(posixpath.dirname(path), module.replace(".", "/"))
    known = project.modules.get(module, "")
    return [(known, leaf), (f"{beside}.py", leaf), (f"{beside}/__init__.py", leaf)]


def index(files: Mapping[str, bytes]) -> Project:
    """Index the Python files of a tree.

    Args:
        files: Contents by path with forward slashes. What cannot be parsed adds nothing.
    """
    constants: dict[tuple[str, str], str | int] = {}
    methods: set[str] = set()
    names: set[str] = set()
    options: set[str] = set()
    modules: dict[str, str] = {}
    wanted: set[tuple[str, str]] = set()
    fields: set[str] = set()
    levels: dict[str, Brought] = {}
    for path, data in files.items():
        dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        modules.setdefault(dotted, path)
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError):
            continue  # the run itself reports the file
        _constants(path, tree, constants)
        levels[path] = brought(tree)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
                if isinstance(node, ast.ClassDef):
                    methods.update(_telling(node))
                    fields.update(_variables(node.body))
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Call):
                options.update(option_names(node))
                fields.update(field_names(node))
            elif isinstance(node, ast.ImportFrom) and node.module:
                stem = node.module.rpartition(".")[2]
                wanted.update((stem, alias.name) for alias in node.names)
        names.update(_variables(tree.body))
    return Project(
        constants, frozenset(methods), frozenset(names), frozenset(options), modules,
        frozenset(wanted), frozenset(fields), passed_on(levels, Homes(modules)),
    )  # fmt: skip


def option_names(call: ast.Call) -> Iterator[str]:
    """Under which names a program reads the option that `add_argument` and its like declare."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in OPTION_MAKERS:
        return
    for keyword in call.keywords:
        if keyword.arg == "dest" and isinstance(keyword.value, ast.Constant):
            yield str(keyword.value.value)
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            text = argument.value.partition("/")[0]  # click's --cuda/--no-cuda
            yield text.lstrip("-").replace("-", "_")


def field_names(call: ast.Call) -> Iterator[str]:
    """The attributes of what `namedtuple("Run", ["epochs", "use_cuda"])` makes."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("namedtuple", "NamedTuple") or len(call.args) < 2:
        return
    given = call.args[1]
    items = given.elts if isinstance(given, (ast.List, ast.Tuple)) else [given]
    for item in items:
        # `NamedTuple` has pairs of a name and a type.
        first = item.elts[0] if isinstance(item, ast.Tuple) and item.elts else item
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield from first.value.replace(",", " ").split()


def _variables(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module's or class's own level assigns, also within `if` and `try`."""
    stack: list[ast.AST] = [*body]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.ExceptHandler)):
            stack.extend(ast.iter_child_nodes(node))


def _constants(path: str, tree: ast.Module, constants: dict[tuple[str, str], str | int]) -> None:
    times: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        times[target.id] = times.get(target.id, 0) + 1
        if isinstance(value, ast.Constant) and type(value.value) in (str, int):
            constants[path, target.id] = value.value  # type: ignore[assignment]
    for name, count in times.items():
        if count > 1:
            constants.pop((path, name), None)


def _telling(node: ast.ClassDef) -> set[str]:
    defined = {
        item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    return defined & TELLING_METHODS
