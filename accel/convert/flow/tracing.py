"""Following a value through a file to the places where it ends.

Unlike `rules.names_sinks`, which asks of one text whether it names a device at all and gives up
early, this goes on through attributes, options, tables and the file's own functions and returns
every place, because a device that is converted must be right in all of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from accel.convert.flow.calls import (
    defaulted,
    gives_default,
    is_message,
    is_path,
    parameter_of,
    spawned,
)
from accel.convert.flow.kinds import Kind as Kind
from accel.convert.flow.kinds import Sink as Sink
from accel.convert.flow.options import add_option, option_place
from accel.convert.flow.positions import position, uses_foreign
from accel.convert.flow.tables import ways
from accel.convert.flow.uses import attribute_uses, calls_of, option_uses, subscript_uses
from accel.convert.module import Module
from accel.convert.nodes import is_none
from accel.convert.scopes import FUNCTIONS, Binding

_LIMIT = 400  # places that one value is followed to
_PARSING = frozenset(
    {"split", "rsplit", "replace", "partition", "rpartition", "find", "index", "removeprefix",
     "lstrip", "rstrip", "removesuffix", "isdigit", "isdecimal", "encode", "join"}
)  # fmt: skip
_SAME = frozenset({"strip", "lower", "upper", "casefold"})


def sinks(module: Module, node: ast.AST) -> tuple[Sink, ...]:
    """Where the value of an expression goes.

    Through variables, attributes of `self`, defaults, options of a command line, parameters of the
    file's own functions, conditions and text. A value that cannot be followed ends in `unknown`.
    """
    tracer = _Tracer(module)
    tracer.follow(node, "")
    return tuple(dict.fromkeys(tracer.found))


class _Tracer:
    """One value's way."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.found: list[Sink] = []
        self._seen: set[ast.AST] = set()
        self._bindings: set[Binding] = set()

    def end(self, kind: Kind, node: ast.AST, name: str) -> None:
        """Note where it ends."""
        self.found.append(Sink(kind, node, name))

    def follow(self, node: ast.AST, name: str) -> None:
        """From an expression to what is around it."""
        if node in self._seen:
            return
        self._seen.add(node)
        if len(self._seen) > _LIMIT:
            self.end("unknown", node, name)
            return
        parent = self.module.parent(node)
        step = _STEPS.get(type(parent))
        if step is None:
            self.end("unknown", parent, name)
        else:
            step(self, node, parent, name)

    def binding(self, binding: Binding | None, name: str) -> None:
        """To all uses of a variable."""
        if binding is None or binding in self._bindings:
            return
        self._bindings.add(binding)
        if not binding.uses:
            self.end("stored", binding.scope.node, name)
        for store in binding.stores:
            if isinstance(self.module.parent(store), ast.AugAssign):
                self.end("parsing", self.module.parent(store), name)
        for use in binding.uses:
            self.follow(use, name)

    # --- what a value may stand in -------------------------------------------------------------

    def _keyword(self, node: Any, parent: Any, name: str) -> None:
        call = self.module.parent(parent)
        word = getattr(parent, "arg", None)
        if isinstance(call, ast.Call) and word is not None:
            self._argument(node, call, word, name or word)
        else:
            self.end("unknown", call, name)

    def _call(self, node: Any, parent: Any, name: str) -> None:
        if node is parent.func:
            self.end("unknown", parent, name)
        else:
            self._argument(node, parent, parent.args.index(node), name)

    def _argument(self, node: ast.AST, call: ast.Call, where: int | str, name: str) -> None:
        module = self.module
        if add_option(module, call):
            self._option(node, call, where, name)
            return
        parameter = parameter_of(module, call, where)
        if parameter is not None and parameter.uses:
            self.binding(parameter, parameter.name)
            return
        found = position(module, call, where)
        if found is not None:
            self.end("device" if found == "device_list" else found, call, name)
            return
        called = module.qualified(call.func) or ""
        if called == "builtins.dict" and isinstance(where, str):
            self._entry(node, call, where)
        elif called in ("builtins.str", "builtins.repr"):
            self.follow(call, name)
        elif called == "builtins.isinstance" or called == "builtins.bool":
            self.end("test", call, name)
        elif gives_default(call, called, where):
            self.follow(call, name)
        elif is_message(module, call, called):
            self.end("message", call, name)
        elif is_path(call, called):
            self.end("path", call, name)
        else:
            self.end("passed", call, where if isinstance(where, str) else name)

    def _option(self, node: ast.AST, call: ast.Call, where: int | str, name: str) -> None:
        place = option_place(call, where)
        if place != "default":
            self.end(place, call, name)
            return
        option, uses = option_uses(self.module, call, where)
        if not uses:
            self.end("stored", call, option)
        for use in uses:
            self.follow(use, option)

    def _assign(self, node: Any, parent: Any, name: str) -> None:
        targets = getattr(parent, "targets", None) or [parent.target]
        if node not in (getattr(parent, "value", None),):
            self.end("unknown", parent, name)  # an annotation
            return
        for target in targets:
            self._target(target, name)
        if isinstance(parent, ast.NamedExpr):
            self.follow(parent, name)

    def _target(self, target: ast.AST, name: str) -> None:
        module = self.module
        if isinstance(target, ast.Name):
            binding = module.scope(target).find(target.id)
            owner = binding.scope.node if binding else None
            if isinstance(owner, ast.ClassDef):
                self._field(owner, target)
            else:
                self.binding(binding, target.id)
        elif isinstance(target, ast.Attribute):
            self._uses(attribute_uses(module, target), target, target.attr)
        elif isinstance(target, ast.Subscript):
            word = target.slice.value if isinstance(target.slice, ast.Constant) else ""
            self._uses(subscript_uses(module, target), target, str(word))
        else:
            self.end("unknown", target, name)

    def _field(self, owner: ast.ClassDef, target: ast.Name) -> None:
        """A name of a class's body is read as an attribute, and as a dataclass's argument."""
        uses = attribute_uses(self.module, target, owner)
        self._uses(uses, owner, target.id)

    def _uses(self, uses: list[ast.expr], home: ast.AST, name: str) -> None:
        if not uses:
            self.end("stored", home, name)
        for use in uses:
            self.follow(use, name)

    def _default(self, node: Any, parent: Any, name: str) -> None:
        function = self.module.parent(parent)
        argument = defaulted(parent, node)
        if argument is None:
            self.end("unknown", parent, name)
        else:
            self.binding(self.module.walk.scopes[function].names[argument.arg], argument.arg)

    def _condition(self, node: Any, parent: Any, name: str) -> None:
        if node is getattr(parent, "test", None):
            self.end("test", parent, name)
        elif isinstance(parent, ast.expr):
            self.follow(parent, name)
        elif isinstance(parent, ast.Assert):
            self.end("message", parent, name)
        else:
            self.end("unknown", parent, name)

    def _through(self, node: Any, parent: Any, name: str) -> None:
        self.follow(parent, name)

    def _text(self, node: Any, parent: Any, name: str) -> None:
        """Part of a text: what becomes of the text says what it is for."""
        whole = parent
        while isinstance(self.module.parent(whole), (ast.FormattedValue, ast.JoinedStr, ast.BinOp)):
            whole = self.module.parent(whole)
        before = len(self.found)
        self.follow(whole, name)
        self.found[before:] = [
            sink._replace(kind="text") if sink.kind in ("passed", "stored", "return") else sink
            for sink in self.found[before:]
        ]

    def _compare(self, node: Any, parent: Any, name: str) -> None:
        none = any(is_none(side) for side in (parent.left, *parent.comparators))
        self.end("test" if none else "comparison", parent, name)

    def _attribute(self, node: Any, parent: ast.Attribute, name: str) -> None:
        outer = self.module.parent(parent)
        if isinstance(outer, ast.Call) and outer.func == parent:
            if parent.attr in ("startswith", "endswith"):
                self.end("comparison", outer, name)
            elif parent.attr in _SAME:
                self.follow(outer, name)
            elif parent.attr == "format":
                self._text(node, outer, name)
            else:
                self.end("parsing" if parent.attr in _PARSING else "unknown", outer, name)
        elif parent.attr == "type":
            self.follow(parent, name)
        else:
            self.end("test" if parent.attr == "index" else "unknown", parent, name)

    def _subscript(self, node: Any, parent: Any, name: str) -> None:
        self.end("key" if node is parent.slice else "parsing", parent, name)

    def _container(self, node: Any, parent: Any, name: str) -> None:
        """An element of a list, tuple or set."""
        module, outer = self.module, self.module.parent(parent)
        if isinstance(outer, ast.BinOp) and outer.left is parent:  # `("cuda:0",) + more`
            outer = module.parent(outer)
        if isinstance(outer, ast.Compare):
            self.end("comparison", outer, name)
        elif isinstance(outer, (ast.For, ast.comprehension)) and outer.iter is parent:
            self._loop(outer, name)
        elif isinstance(outer, ast.keyword) and isinstance(module.parent(outer), ast.Call):
            self._in_argument(node, parent, outer, name)
        elif isinstance(outer, ast.Assign) and isinstance(parent, ast.Tuple):
            self._unpacked(node, parent, outer, name)
        elif isinstance(outer, ast.Assign) and isinstance(outer.targets[0], ast.Name):
            target = outer.targets[0]
            self._elements(module.scope(target).find(target.id), target.id)
        elif isinstance(outer, ast.Call) and parent in outer.args:
            self._parametrized(parent, outer, name)
        else:
            self.end("unknown", outer, name)

    def _elements(self, binding: Binding | None, name: str) -> None:
        """To what becomes of the elements of a list that a variable holds."""
        if binding is None or binding in self._bindings:
            return
        self._bindings.add(binding)
        for use in binding.uses:
            outer = self.module.parent(use)
            if isinstance(outer, ast.Subscript) and outer.value is use:
                self.follow(outer, name)
            elif isinstance(outer, (ast.For, ast.comprehension)) and outer.iter is use:
                self._loop(outer, name)
            elif isinstance(outer, ast.keyword) and outer.arg == "device_ids":
                self.end("device", outer, name)
            elif (
                isinstance(outer, ast.Call) and self.module.qualified(outer.func) == "builtins.len"
            ):
                self.end("test", outer, name)
            else:
                self.end("unknown", outer, name)

    def _loop(self, loop: ast.For | ast.comprehension, name: str) -> None:
        target = loop.target
        if isinstance(target, ast.Name):
            self.binding(self.module.scope(target).find(target.id), target.id)
        else:
            self.end("unknown", loop, name)

    def _in_argument(self, node: Any, parent: Any, word: ast.keyword, name: str) -> None:
        call: Any = self.module.parent(word)
        if add_option(self.module, call) and word.arg == "choices":
            self.end("choice", call, name)
            return
        if position(self.module, call, word.arg or "") == "device_list":
            self.end("device", call, name)
            return
        index = parent.elts.index(node) if isinstance(parent, (ast.Tuple, ast.List)) else 0
        target = spawned(self.module, call, index) if word.arg == "args" else None
        if target is None:
            self.end("unknown", call, name)
        else:
            self.binding(target, target.name)

    def _unpacked(self, node: Any, parent: ast.Tuple, outer: ast.Assign, name: str) -> None:
        index = parent.elts.index(node)
        for target in outer.targets:
            if isinstance(target, ast.Tuple) and len(target.elts) == len(parent.elts):
                self._target(target.elts[index], name)
            else:
                self.end("unknown", outer, name)

    def _parametrized(self, parent: ast.AST, call: ast.Call, name: str) -> None:
        """`@pytest.mark.parametrize("device", [...])` gives the function's parameter its values."""
        function = self.module.parent(call)
        first = call.args[0]
        is_mark = isinstance(call.func, ast.Attribute) and call.func.attr == "parametrize"
        if is_mark and isinstance(first, ast.Constant) and isinstance(function, FUNCTIONS):
            binding = self.module.walk.scopes[function].names.get(str(first.value))
            if binding is not None:
                self.binding(binding, binding.name)
                return
        self.end("unknown", call, name)

    def _dict(self, node: Any, parent: Any, name: str) -> None:
        if node in parent.keys:
            self.end("key", parent, name)
            return
        key = parent.keys[parent.values.index(node)]
        word = key.value if isinstance(key, ast.Constant) else None
        if isinstance(word, str) and not uses_foreign(self.module):
            self._entry(node, parent, word)
        else:
            self.end("unknown", parent, name)

    def _entry(self, node: ast.AST, table: ast.Dict | ast.Call, key: str) -> None:
        """What is under a key: to where it is read, else to what is given the whole table."""
        for kind, place in ways(self.module, table, key):
            if kind == "read":
                self.follow(place, key)
            elif kind == "argument" and isinstance(place, ast.Call):
                self._argument(node, place, key, key)
            else:
                self.end(
                    "stored" if kind == "stored" else "passed",
                    place,
                    key if kind == "stored" else "",
                )

    def _return(self, node: Any, parent: Any, name: str) -> None:
        function = self.module.function_of(parent)
        calls = calls_of(self.module, function) if function else []
        if not calls:
            self.end("return", parent, getattr(function, "name", name))
        for call in calls:
            self.follow(call, getattr(function, "name", name))

    def _lambda(self, node: Any, parent: Any, name: str) -> None:
        self.end("return", parent, name)

    def _statement(self, node: Any, parent: Any, name: str) -> None:
        self.end("discarded", parent, name)

    def _raise(self, node: Any, parent: Any, name: str) -> None:
        self.end("message", parent, name)

    def _match(self, node: Any, parent: Any, name: str) -> None:
        self.end("comparison", parent, name)


_STEPS: dict[type[ast.AST], Callable[[_Tracer, Any, Any, str], None]] = {
    ast.keyword: _Tracer._keyword,
    ast.Call: _Tracer._call,
    ast.Assign: _Tracer._assign,
    ast.AnnAssign: _Tracer._assign,
    ast.NamedExpr: _Tracer._assign,
    ast.arguments: _Tracer._default,
    ast.IfExp: _Tracer._condition,
    ast.If: _Tracer._condition,
    ast.While: _Tracer._condition,
    ast.Assert: _Tracer._condition,
    ast.BoolOp: _Tracer._through,
    ast.UnaryOp: _Tracer._through,
    ast.FormattedValue: _Tracer._text,
    ast.BinOp: _Tracer._text,
    ast.Compare: _Tracer._compare,
    ast.Attribute: _Tracer._attribute,
    ast.Subscript: _Tracer._subscript,
    ast.List: _Tracer._container,
    ast.Tuple: _Tracer._container,
    ast.Set: _Tracer._container,
    ast.Dict: _Tracer._dict,
    ast.Return: _Tracer._return,
    ast.Lambda: _Tracer._lambda,
    ast.Expr: _Tracer._statement,
    ast.Raise: _Tracer._raise,
    ast.Match: _Tracer._match,
    ast.MatchValue: _Tracer._match,
}
