"""One Python file as the rules see it: its tree, what names mean, and how to say a finding."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TypeVar, cast

from accel.convert.finding import Action, Edit, Effort, Finding, Parts, Span
from accel.convert.fstrings import NEEDED, fix_positions, forbidden_quotes, requoted
from accel.convert.naming import library_name
from accel.convert.nodes import is_self
from accel.convert.options import Options
from accel.convert.project import Project
from accel.convert.scopes import FUNCTIONS, Binding, Scope, Walk
from accel.convert.source import Source
from accel.convert.targets import Target, cautions, target_of
from accel.convert.tokens import speaks
from accel.convert.vendors import Vendor, vendor_of

Node = TypeVar("Node", bound=ast.AST)
_LAST_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+\Z")
_DEEPEST = 12  # aliases of aliases that are followed


class Module:
    """A parsed file.

    Attributes:
        source: Its text.
        path: As the run names it.
        options: What the run is asked to do.
        project: What is known of the other files.
        tree: The syntax tree.
        walk: Parents, nodes by type, scopes.
        target: How the output spells things; use `module.target.call(...)`.
        vendor: What the input is bound to; the tree is in CUDA's words whatever it is.
    """

    def __init__(
        self, source: Source, path: str, options: Options, project: Project | None = None
    ) -> None:
        """Parse a file.

        Raises:
            SyntaxError: It is not Python 3.
        """
        self.source = source
        self.path = path
        self.options = options
        self.project = project or Project()
        try:
            # As text, where a coding line counts no more.
            self.tree = ast.parse(source.utf8.decode("utf-8"))
        except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes, depth
            raise SyntaxError(f"cannot be parsed: {error}") from error
        self.vendor: Vendor = vendor_of(options.source)
        self.vendor.exchange(self.tree)
        self.walk = Walk(self.tree)
        if NEEDED:
            for joined in self.all(ast.JoinedStr):
                if not _is_format(joined, self.parent(joined)):
                    fix_positions(source, joined)
        self.target: Target = target_of(options.target, self.library_name)
        self._qualified: dict[ast.expr, str | None] = {}

    # --- the tree ------------------------------------------------------------------------------

    def all(self, *kinds: type[Node]) -> list[Node]:
        """All nodes of these types."""
        if len(kinds) == 1:
            return cast("list[Node]", self.walk.nodes.get(kinds[0], []))
        return [
            node for kind in kinds for node in cast("list[Node]", self.walk.nodes.get(kind, []))
        ]

    def parent(self, node: ast.AST) -> ast.AST:
        """The node around this one."""
        return self.walk.parents[node]

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """From the parent outwards; the module is last."""
        while node in self.walk.parents:
            node = self.walk.parents[node]
            yield node

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that a node is in (itself, if it is one)."""
        while not isinstance(node, ast.stmt):
            node = self.walk.parents[node]
        return node

    def function_of(self, node: ast.AST) -> ast.AST | None:
        """The innermost function (or lambda) around a node."""
        return next((outer for outer in self.ancestors(node) if isinstance(outer, FUNCTIONS)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The innermost class around a node."""
        return next((o for o in self.ancestors(node) if isinstance(o, ast.ClassDef)), None)

    def span(self, node: ast.AST) -> Span:
        """The bytes of a node, without parentheses around it."""
        return self.source.span(node)

    def text(self, node: ast.AST) -> str:
        """The text of a node."""
        return self.source.text(self.source.span(node))

    def attribute_span(self, node: ast.Attribute) -> Span:
        """The bytes of the attribute's own name, the last word of the expression."""
        end = self.span(node).end
        match = _LAST_WORD.search(self.source.utf8, self.span(node.value).end, end)
        return Span(match.start() if match else end, end)

    # --- names ---------------------------------------------------------------------------------

    def scope(self, node: ast.AST) -> Scope:
        """The scope that a node is read in."""
        known = self.walk.scopes
        while node not in known:
            node = self.walk.parents[node]
        return known[node]

    def binding(self, name: ast.Name) -> Binding | None:
        """What a name means; None for builtins and names that come from nowhere."""
        return self.walk.scopes[name].find(name.id)

    def qualified(self, node: ast.AST) -> str | None:
        """The dotted name of what an expression is, through imports and local aliases.

        `torch.cuda.synchronize` for `c.synchronize` after `import torch.cuda as c`;
        `builtins.x` for a name that nothing binds; `utils.DEVICE` after `from utils import
        DEVICE`, with leading dots as in the import. None for everything that is not a plain chain
        of names, or that has more than one meaning. Another vendor's names are read as
        torch.cuda's, see `vendors.py`.
        """
        name = self._resolve(node, 0)
        return self.vendor.canonical(name) if name and self.vendor.renames else name

    def _resolve(self, node: ast.AST, depth: int) -> str | None:
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return None
        known = self._qualified.get(node, "")
        if known != "":
            return known
        found: str | None = None
        if isinstance(node, ast.Attribute):
            base = self._resolve(node.value, depth)
            found = f"{base}.{node.attr}" if base else None
        elif depth < _DEEPEST:
            found = self._name(node, depth)
        self._qualified[node] = found
        return found

    def _name(self, name: ast.Name, depth: int) -> str | None:
        binding = self.binding(name)
        if binding is None:
            return self._unbound(name)
        if binding.is_opaque or binding.parameter or binding.definitions:
            return None
        if binding.imports:
            plain = all(_stands_for_missing(value) for value in binding.values)
            return binding.imports[0] if plain and len(set(binding.imports)) == 1 else None
        if len(binding.values) == 1:
            return self._resolve(binding.values[0], depth + 1)
        return None

    def _unbound(self, name: ast.Name) -> str | None:
        stars = [star for scope in self.scopes_out(name) for star in scope.stars]
        if not stars:
            return f"builtins.{name.id}"
        return f"{stars[0]}.{name.id}" if len(stars) == 1 else None

    def scopes_out(self, node: ast.AST) -> Iterator[Scope]:
        """The scopes around a node, from the inside."""
        scope: Scope | None = self.scope(node)
        while scope is not None:
            yield scope
            scope = scope.parent

    def value_of(self, node: ast.expr) -> ast.expr:
        """The one expression that a name stands for, through aliases; the node itself if not."""
        for _ in range(_DEEPEST):
            if not isinstance(node, ast.Name):
                break
            binding = self.binding(node)
            if binding is None or binding.is_opaque or binding.parameter or binding.imports:
                break
            if binding.definitions or len(binding.values) != 1:
                break
            node = binding.values[0]
        return node

    def constant(self, node: ast.expr) -> str | int | None:
        """The string or integer that an expression is, through names and other files' constants."""
        node = self.value_of(node)
        if isinstance(node, ast.Constant):
            value = node.value
            return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None
        name = self.qualified(node)
        found = self.project.constant(self.path, name) if name else None
        return self.vendor.read(found) if isinstance(found, str) else found

    @cached_property
    def attributes(self) -> dict[tuple[ast.ClassDef, str], list[ast.expr | None]]:
        """What `self.x` and names of the class body are given; None for what is no expression."""
        found: dict[tuple[ast.ClassDef, str], list[ast.expr | None]] = {}
        for node in self.all(ast.Attribute):
            if isinstance(node.ctx, ast.Load) or not isinstance(node.value, ast.Name):
                continue
            owner = self.class_of(node)
            if owner is None or not is_self(node.value):
                continue
            parent = self.parent(node)
            value: ast.expr | None = None
            if (isinstance(parent, ast.Assign) and node in parent.targets) or (
                isinstance(parent, ast.AnnAssign) and parent.target is node
            ):
                value = parent.value
            found.setdefault((owner, node.attr), []).append(value)
        for owner in self.all(ast.ClassDef):
            for name, binding in self.walk.scopes[owner].names.items():
                values = found.setdefault((owner, name), [])
                values.extend(binding.values)
                if binding.is_opaque:
                    values.append(None)
        return found

    def attribute_values(self, node: ast.Attribute) -> list[ast.expr | None]:
        """What is ever assigned to the `self.x` that this is, in its class; empty if unknown."""
        owner = self.class_of(node)
        if owner is None or not isinstance(node.value, ast.Name) or node.value.id != "self":
            return []
        return self.attributes.get((owner, node.attr), [])

    @cached_property
    def library_name(self) -> str:
        """What this library is called in the output: `accel`, unless the file uses that name."""
        return library_name(self.walk, self.project.names)

    def speaks(self, text: str) -> bool:
        """Whether a text has a word of the platform that is converted from."""
        return speaks(text, self.options.source)

    # --- findings ------------------------------------------------------------------------------

    def convert(
        self,
        node: ast.AST | Span,
        rule: str,
        message: str,
        *parts: str | Span | ast.AST,
        imports: frozenset[str] | None = None,
        effort: Effort = "auto",
        subject: str = "",
    ) -> Finding:
        """A finding that replaces a node by parts.

        Args:
            node: What is replaced and accounted for.
            rule: The rule's id.
            message: Why, in one sentence.
            *parts: The replacement: text, and nodes or spans of the original, in which other
                findings' edits still apply.
            imports: What the text needs; the target's own imports if None.
            effort: Who has work with it.
            subject: What it is about.
        """
        span = node if isinstance(node, Span) else self.span(node)
        pieces: Parts = tuple(
            part if isinstance(part, (str, Span)) else self.span(part) for part in parts
        )
        return self._converting(
            span, rule, message, (Edit(span, pieces),), imports, effort, subject
        )

    def edit(
        self,
        node: ast.AST | Span,
        rule: str,
        message: str,
        *edits: Edit,
        imports: frozenset[str] | None = None,
        effort: Effort = "auto",
        subject: str = "",
    ) -> Finding:
        """A finding that accounts for a node and makes several edits, within it or elsewhere."""
        return self._converting(node, rule, message, edits, imports, effort, subject)

    def keep(self, node: ast.AST | Span, rule: str, message: str, *, subject: str = "") -> Finding:
        """A finding that says why a node is right as it is."""
        return self._finding(node, rule, "keep", message, subject=subject)

    def flag(
        self,
        node: ast.AST | Span,
        rule: str,
        message: str,
        advice: str,
        *,
        effort: Effort = "review",
        blocker: bool = False,
        subject: str = "",
    ) -> Finding:
        """A finding for a human."""
        return self._finding(
            node, rule, "flag", message, advice=advice, effort=effort, blocker=blocker,
            subject=subject,
        )  # fmt: skip

    def _converting(
        self,
        node: ast.AST | Span,
        rule: str,
        message: str,
        edits: tuple[Edit, ...],
        imports: frozenset[str] | None,
        effort: Effort,
        subject: str,
    ) -> Finding:
        """A finding with edits; one that keeps the node if they would leave the text as it is."""
        texts = [part for edit in edits for part in edit.parts if isinstance(part, str)]
        said = [caution for caution in cautions(texts) if caution not in message]
        real = tuple(edit for edit in edits if self._text_of(edit) != self.source.text(edit.span))
        if edits and not real:
            message = f"It is already what the target {self.target.name} has for it."
        if said:
            message = "; ".join([message.rstrip("."), *said])
        if edits and not real:
            return self.keep(node, rule, message, subject=subject)
        needs = self.target.needs(texts) if imports is None else imports
        return self._finding(
            node, rule, "convert", message, edits=real, imports=needs,
            effort="review" if cautions(texts) else effort, subject=subject,
        )  # fmt: skip

    def _text_of(self, edit: Edit) -> str:
        """What an edit puts in place of its span, if nothing else is edited there."""
        return "".join(p if isinstance(p, str) else self.source.text(p) for p in edit.parts)

    @cached_property
    def _fstrings(self) -> list[tuple[Span, frozenset[str]]]:
        """F-strings and the quotes that their expressions cannot have, outer before inner."""
        return [
            (self.span(joined), forbidden_quotes(self.source, joined))
            for joined in self.all(ast.JoinedStr)
            if not _is_format(joined, self.parent(joined))
        ]

    def _quoted(self, edit: Edit) -> Parts:
        """The parts of an edit with quotes that its place allows."""
        around = [quotes for span, quotes in self._fstrings if _is_inside(span, edit.span)]
        if not around:
            return edit.parts
        forbidden = frozenset().union(*around)
        return tuple(p if isinstance(p, Span) else requoted(p, forbidden) for p in edit.parts)

    def no_target(self, node: ast.AST | Span, rule: str, what: str = "device") -> Finding:
        """A flag for what the target has no call for."""
        return self.flag(
            node,
            rule,
            f"The target {self.target.name} has no call for this.",
            f"Convert to the target accel, or write the {what} by hand.",
            subject="target",
        )

    def _finding(
        self,
        node: ast.AST | Span,
        rule: str,
        action: Action,
        message: str,
        *,
        edits: tuple[Edit, ...] = (),
        imports: frozenset[str] = frozenset(),
        advice: str = "",
        effort: Effort = "auto",
        blocker: bool = False,
        subject: str = "",
    ) -> Finding:
        span = node if isinstance(node, Span) else self.span(node)
        line = self.source.line_of(span.start)
        message, advice, subject = map(self.vendor.spoken, (message, advice, subject))
        if edits and self._fstrings:
            edits = tuple(Edit(edit.span, self._quoted(edit)) for edit in edits)
        return Finding(
            rule, action, span, line, self.source.column_of(span.start), message, advice, edits,
            imports, effort, blocker, self.source.line_text(line).strip(), subject,
        )  # fmt: skip


def _stands_for_missing(node: ast.expr) -> bool:
    """`except ImportError: apex = None`, or `= False`, leaves the import's meaning."""
    return isinstance(node, ast.Constant) and node.value in (None, False)


def _is_format(joined: ast.JoinedStr, parent: ast.AST) -> bool:
    """Whether it is the format specification of another f-string's expression."""
    return isinstance(parent, ast.FormattedValue) and parent.format_spec is joined


def _is_inside(outer: Span, inner: Span) -> bool:
    return outer.contains(inner) and outer != inner
