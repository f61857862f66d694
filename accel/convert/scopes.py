"""Scopes and bindings of a file: which name means what, where.

Written here because the libraries that do it give wrong answers where it matters (a parameter named
`torch` taken for the module) or cost a hundred times the parse.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(eq=False)
class Binding:
    """One name of one scope, with everything that is ever bound to it there.

    Attributes:
        name: The name.
        scope: Where it lives.
        values: The expressions assigned to it, in order.
        imports: The dotted names imported as it.
        parameter: It is a parameter of its function.
        definitions: Functions and classes of that name.
        is_opaque: Something else binds it too: a loop, `with`, unpacking, `+=`, `del`.
        uses: Where it is read.
        stores: Where it is written, if by a name.
        import_nodes: The statements that import it.
    """

    name: str
    scope: Scope
    values: list[ast.expr] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    parameter: ast.arg | None = None
    definitions: list[ast.AST] = field(default_factory=list)
    is_opaque: bool = False
    uses: list[ast.Name] = field(default_factory=list)
    stores: list[ast.Name] = field(default_factory=list)
    import_nodes: list[ast.Import | ast.ImportFrom] = field(default_factory=list)


@dataclass(eq=False)
class Scope:
    """A module, class, function or comprehension.

    Attributes:
        node: Its syntax.
        parent: The scope around it.
        names: What is bound in it.
        declared: Names that `global` or `nonlocal` sends elsewhere.
        stars: Modules of which all names are imported here.
    """

    node: ast.AST
    parent: Scope | None
    names: dict[str, Binding] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)

    def bind(self, name: str) -> Binding:
        """The binding of a name that this scope writes, made if need be."""
        how = self.declared.get(name)
        if how == "global":
            scope = self.module
        elif how == "nonlocal":
            found = self.parent.find(name) if self.parent else None
            scope = found.scope if found else self
        else:
            scope = self
        binding = scope.names.get(name)
        if binding is None:
            binding = scope.names[name] = Binding(name, scope)
        return binding

    @property
    def module(self) -> Scope:
        """The outermost scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def find(self, name: str) -> Binding | None:
        """The binding that a name read in this scope means; None for builtins and unknown ones."""
        if self.declared.get(name) == "global":
            return self.module.names.get(name)
        scope: Scope | None = self
        while scope is not None:
            # Functions within a class do not see the names of its body.
            if scope is self or not isinstance(scope.node, ast.ClassDef):
                binding = scope.names.get(name)
                if binding is not None:
                    return binding
            scope = scope.parent
        return None


class Walk:
    """One walk over a tree: parents, nodes by type, scopes.

    Attributes:
        parents: Of every node but the root.
        nodes: All nodes of a type in the order of the walk (that of the text, nearly).
        scopes: The scope that each scope-making node opens, and the one that each name is read in.
        module: The outermost scope.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.parents: dict[ast.AST, ast.AST] = {}
        self.nodes: dict[type[ast.AST], list[ast.AST]] = {}
        self.scopes: dict[ast.AST, Scope] = {}
        self.module = Scope(tree, None)
        self.scopes[tree] = self.module
        self._reads: list[tuple[ast.Name, Scope]] = []
        self._declare(tree, self.module)
        for statement in tree.body:
            self._visit(statement, tree, self.module)
        for node, scope in self._reads:
            binding = scope.find(node.id)
            if binding is not None:
                binding.uses.append(node)

    def _visit(self, node: ast.AST, parent: ast.AST, scope: Scope) -> None:
        self.parents[node] = parent
        kind = type(node)
        known = self.nodes.get(kind)
        if known is None:
            self.nodes[kind] = [node]
        else:
            known.append(node)
        if kind is ast.Name:
            self._name(node, scope)  # type: ignore[arg-type]
            return
        if kind is ast.Constant:
            return
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, node, scope)
            return
        for name in node._fields:
            value = getattr(node, name, None)
            if value.__class__ is list:
                for item in value:
                    if isinstance(item, ast.AST):
                        self._visit(item, node, scope)
            elif isinstance(value, ast.AST) and not isinstance(value, _LEAVES):
                self._visit(value, node, scope)

    def _all(self, nodes: list[ast.AST], parent: ast.AST, scope: Scope) -> None:
        for node in nodes:
            self._visit(node, parent, scope)

    def _name(self, node: ast.Name, scope: Scope) -> None:
        self.scopes[node] = scope
        if type(node.ctx) is ast.Load:
            self._reads.append((node, scope))
            return
        binding = scope.bind(node.id)
        binding.stores.append(node)
        value = self._value_of(node)
        if value is None:
            binding.is_opaque = True
        else:
            binding.values.append(value)

    def _value_of(self, node: ast.Name) -> ast.expr | None:
        """The expression that an assignment gives to a name; None where it cannot be told."""
        parent = self.parents[node]
        if isinstance(parent, ast.Assign) and node in parent.targets:
            return parent.value
        if isinstance(parent, (ast.AnnAssign, ast.NamedExpr)) and parent.target is node:
            return parent.value
        outer = self.parents[parent] if isinstance(parent, ast.Tuple) else None
        if isinstance(outer, ast.Assign) and parent in outer.targets:
            return _paired(cast("ast.Tuple", parent), node, outer.value)
        return None

    # --- what opens a scope or binds otherwise -------------------------------------------------

    def _declare(self, node: ast.AST, scope: Scope) -> None:
        """Read `global` and `nonlocal` before the names, since they hold for the whole body."""
        stack = list(getattr(node, "body", []))
        while stack:
            child = stack.pop()
            if isinstance(child, (ast.Global, ast.Nonlocal)):
                how = "global" if isinstance(child, ast.Global) else "nonlocal"
                scope.declared.update(dict.fromkeys(child.names, how))
            elif isinstance(child, ast.stmt) and not isinstance(
                child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            ):
                for name in ("body", "orelse", "finalbody"):
                    stack.extend(getattr(child, name, ()))
                for handler in getattr(child, "handlers", ()):
                    stack.extend(handler.body)
                for case in getattr(child, "cases", ()):
                    stack.extend(case.body)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        scope.bind(node.name).definitions.append(node)
        self._all([*node.decorator_list], node, scope)
        self._signature(node.args, node, scope)
        if node.returns is not None:
            self._visit(node.returns, node, scope)
        inner = Scope(node, scope)
        self.scopes[node] = inner
        self._parameters(node.args, inner)
        self._declare(node, inner)
        self._all([*node.body], node, inner)

    def _lambda(self, node: ast.Lambda, scope: Scope) -> None:
        self._signature(node.args, node, scope)
        inner = Scope(node, scope)
        self.scopes[node] = inner
        self._parameters(node.args, inner)
        self._visit(node.body, node, inner)

    def _signature(self, arguments: ast.arguments, node: ast.AST, scope: Scope) -> None:
        """Defaults and annotations are read outside the function."""
        self.parents[arguments] = node
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        for argument in every:
            self.parents[argument] = arguments
            self.nodes.setdefault(ast.arg, []).append(argument)
            if argument.annotation is not None:
                self._visit(argument.annotation, argument, scope)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._visit(default, arguments, scope)

    def _parameters(self, arguments: ast.arguments, scope: Scope) -> None:
        for argument in (
            *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
            *(extra for extra in (arguments.vararg, arguments.kwarg) if extra),
        ):  # fmt: skip
            scope.bind(argument.arg).parameter = argument

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        scope.bind(node.name).definitions.append(node)
        self._all([*node.decorator_list, *node.bases, *node.keywords], node, scope)
        inner = Scope(node, scope)
        self.scopes[node] = inner
        self._all([*node.body], node, inner)

    def _comprehension(self, node: ast.AST, scope: Scope) -> None:
        inner = Scope(node, scope)
        self.scopes[node] = inner
        generators: list[ast.comprehension] = node.generators  # type: ignore[attr-defined]
        for index, generator in enumerate(generators):
            self.parents[generator] = node
            # The first iterable is read outside.
            self._visit(generator.iter, generator, inner if index else scope)
            self._visit(generator.target, generator, inner)
            self._all([*generator.ifs], generator, inner)
        for name in ("key", "value", "elt"):
            part = getattr(node, name, None)
            if part is not None:
                self._visit(part, node, inner)

    def _named(self, node: ast.NamedExpr, scope: Scope) -> None:
        """`:=` binds outside the comprehension it is in."""
        self._visit(node.value, node, scope)
        home = scope
        while isinstance(home.node, COMPREHENSIONS) and home.parent is not None:
            home = home.parent
        self._visit(node.target, node, home)

    def _assign(self, node: ast.AST, scope: Scope) -> None:
        """Values are read before targets are written."""
        for name in ("value", "annotation"):
            part = getattr(node, name, None)
            if part is not None:
                self._visit(part, node, scope)
        targets = getattr(node, "targets", None) or [node.target]  # type: ignore[attr-defined]
        self._all([*targets], node, scope)

    def _import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            binding = scope.bind(alias.asname or alias.name.partition(".")[0])
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            binding.imports.append(name)
            binding.import_nodes.append(node)

    def _import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                scope.stars.append(module)
                continue
            binding = scope.bind(alias.asname or alias.name)
            dot = "" if module.endswith(".") else "."
            binding.imports.append(f"{module}{dot}{alias.name}")
            binding.import_nodes.append(node)

    def _except(self, node: ast.ExceptHandler, scope: Scope) -> None:
        if node.type is not None:
            self._visit(node.type, node, scope)
        if node.name:
            scope.bind(node.name).is_opaque = True
        self._all([*node.body], node, scope)

    def _nothing(self, node: ast.AST, scope: Scope) -> None:
        """`global` and `nonlocal` were read before."""

    def _capture(self, node: ast.AST, scope: Scope) -> None:
        """A `match` pattern that binds a name."""
        name = getattr(node, "name", None) or getattr(node, "rest", None)
        if name:
            scope.bind(name).is_opaque = True
        for field_name in node._fields:
            value = getattr(node, field_name)
            items = value if isinstance(value, list) else [value]
            self._all([item for item in items if isinstance(item, ast.AST)], node, scope)


def _paired(targets: ast.Tuple, name: ast.Name, value: ast.expr) -> ast.expr | None:
    """What `a, b = x, y` gives to one of its names."""
    if not isinstance(value, ast.Tuple) or len(value.elts) != len(targets.elts):
        return None
    if any(isinstance(item, ast.Starred) for item in (*value.elts, *targets.elts)):
        return None
    return value.elts[targets.elts.index(name)]


_LEAVES = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
_HANDLERS: dict[type[ast.AST], Callable[[Walk, Any, Scope], None]] = {
    ast.FunctionDef: Walk._function,
    ast.AsyncFunctionDef: Walk._function,
    ast.Lambda: Walk._lambda,
    ast.ClassDef: Walk._class,
    ast.ListComp: Walk._comprehension,
    ast.SetComp: Walk._comprehension,
    ast.DictComp: Walk._comprehension,
    ast.GeneratorExp: Walk._comprehension,
    ast.NamedExpr: Walk._named,
    ast.Assign: Walk._assign,
    ast.AnnAssign: Walk._assign,
    ast.AugAssign: Walk._assign,
    ast.Import: Walk._import,
    ast.ImportFrom: Walk._import_from,
    ast.ExceptHandler: Walk._except,
    ast.Global: Walk._nothing,
    ast.Nonlocal: Walk._nothing,
    ast.MatchAs: Walk._capture,
    ast.MatchStar: Walk._capture,
    ast.MatchMapping: Walk._capture,
}
