"""Which node of the tree a word of the text belongs to."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right

from accel.convert.finding import Span
from accel.convert.module import Module

_DEFINED = re.compile(rb"(?:async\s+)?(?:def|class)\s+")
_IMPORTS = (ast.Import, ast.ImportFrom)
_LISTED = (ast.Global, ast.Nonlocal)


class Places:
    """An index of a file, from bytes to nodes, made once for all words that need it."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._starts: dict[int, ast.AST] = {}
        self._ends: dict[int, ast.Attribute] = {}  # an attribute is the last word of its node
        self._enter_names()
        self._strings = self._spans(self._literals())
        self._statements = self._spans([*module.all(*_IMPORTS, *_LISTED)])
        self._others = self._spans(
            [
                *module.all(ast.ExceptHandler, ast.MatchAs, ast.MatchStar),
                *module.all(ast.MatchMapping, ast.MatchClass),
            ]
        )

    def _enter_names(self) -> None:
        source, starts, ends = self._module.source, self._starts, self._ends
        lines = source.starts
        for node in self._module.all(ast.Name):
            starts[lines[node.lineno - 1] + node.col_offset] = node
        for attribute in self._module.all(ast.Attribute):
            end = lines[attribute.end_lineno - 1] + attribute.end_col_offset  # type: ignore[operator]
            ends[end] = attribute
        for argument in self._module.all(ast.arg):
            starts[lines[argument.lineno - 1] + argument.col_offset] = argument
        for keyword in self._module.all(ast.keyword):
            starts[lines[keyword.lineno - 1] + keyword.col_offset] = keyword
        for defined in self._module.all(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            start = lines[defined.lineno - 1] + defined.col_offset
            match = _DEFINED.match(source.utf8, start)
            if match:
                starts[match.end()] = defined
            for parameter in getattr(defined, "type_params", ()):  # since 3.12
                starts[source.span(parameter).start] = parameter

    def _literals(self) -> list[ast.AST]:
        """String literals; not the pieces of f-strings, which have no place on older Pythons."""
        module = self._module
        whole = [
            node
            for node in module.all(ast.Constant)
            if isinstance(node.value, (str, bytes))
            and not isinstance(module.parent(node), ast.JoinedStr)
        ]
        return [*whole, *(j for j in module.all(ast.JoinedStr) if not self._is_format(j))]

    def _is_format(self, node: ast.JoinedStr) -> bool:
        parent = self._module.parent(node)
        return isinstance(parent, ast.FormattedValue) and parent.format_spec is node

    def _spans(self, nodes: list[ast.AST]) -> list[tuple[int, int, ast.AST]]:
        spans = ((self._module.span(node), node) for node in nodes)
        return sorted(((s.start, -s.end, node) for s, node in spans), key=lambda item: item[:2])

    def name(self, span: Span) -> ast.AST | None:
        """The node that has a name there, or the statement that lists it; None if none has."""
        node = self._starts.get(span.start) or self._ends.get(span.end)
        if node is not None:
            return node
        return self._around(self._statements, span) or self._around(self._others, span)

    def string(self, span: Span) -> ast.expr | None:
        """The innermost literal around a stretch of string."""
        found = self._around(self._strings, span)
        return found if isinstance(found, ast.expr) else None

    def _around(self, spans: list[tuple[int, int, ast.AST]], wanted: Span) -> ast.AST | None:
        # Literals and statements nest a few levels at most.
        index = bisect_right(spans, wanted.start, key=lambda item: item[0]) - 1
        for start, end, node in reversed(spans[max(0, index - 50) : index + 1]):
            if start <= wanted.start and wanted.end <= -end:
                return node
        return None
