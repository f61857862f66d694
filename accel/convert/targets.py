"""How each target spells what the rules want to say.

A rule asks for one of accel's flat functions by name: `function` for a reference to it, `call` for
an expression with arguments. Two names exist only here, for arguments that are a device or its name
and no index: `device_named` and `device_str_named`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from accel.convert import targets_npu, targets_torch
from accel.convert.finding import Span
from accel.convert.options import TargetName

Part = str | Span | ast.AST
# An argument: a node, a span, text, or several of them, as in `("enabled=", node)`.
Argument = Part | tuple[Part, ...]

# An argument by its number, all of them, or `{enabled X}`: the argument `enabled=`, and X.
_HOLE = re.compile(r"\{(\d|\*|enabled [\w.()]+)\}")
_ALIASES = {"device_named": "device", "device_str_named": "device_str"}
# Nodes that a method can be called on as they are.
_PRIMARY = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)


@dataclass(frozen=True)
class Target:
    """One vocabulary.

    Attributes:
        name: As on the command line.
        library: What this library is called in the file, for the target `accel`.
        spellings: A dotted name, or another expression, for each of accel's functions that the
            target has as a reference; unused for `accel`.
        imports: What the output must import.
        warnings: By function: what the target's spelling does differently, e.g. raises on a CPU.
        calls: Templates by function and number of arguments (-1: any), for what is no plain call.
        classes: The module with tensor classes of the names that torch.cuda's have; "" if none.
    """

    name: TargetName
    library: str
    spellings: Mapping[str, str]
    imports: frozenset[str]
    warnings: Mapping[str, str]
    calls: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    classes: str = ""

    def function(self, name: str) -> str | None:
        """The expression for one of accel's flat functions; None if the target has none."""
        if self.name == "accel":
            return f"{self.library}.{_ALIASES.get(name, name)}"
        return self.spellings.get(name)

    def call(self, name: str, *arguments: Argument) -> tuple[Part, ...] | None:
        """The parts of a call of one of accel's flat functions, for `module.convert`.

        Args:
            name: Of the function.
            *arguments: In the order of accel's function; a keyword as `("dtype=", node)`.

        Returns:
            None if the target has no spelling with so many arguments.
        """
        templates = self.calls.get(name, {})
        template = templates.get(len(arguments), templates.get(-1))
        if template is not None:
            return _filled(template, arguments)
        function = self.function(name)
        if function is None or name in self.calls:
            return None
        return (f"{function}(", *_joined(arguments), ")")

    def importable(self, name: str) -> tuple[str, str] | None:
        """The module and the name to import a function by; None where that is not possible."""
        function = self.function(name)
        if function is None or not all(part.isidentifier() for part in function.split(".")):
            return None
        if self.name == "accel":
            return "accel", function.rpartition(".")[2]
        module, _, leaf = function.rpartition(".")
        return module, leaf

    def tensor_class(self, name: str) -> str | None:
        """The class for a dotted name as `torch.cuda.FloatTensor`; None if the target has none."""
        return f"{self.classes}.{name.rpartition('.')[2]}" if self.classes else None

    def caution(self, text: str) -> str:
        """What is to be said of a replacement's text: the warning of the first function in it."""
        for name, warning in self.warnings.items():
            spelled = [self.spellings.get(name, ""), *self.calls.get(name, {}).values()]
            # Up to its first hole a template is what stands in the text.
            if any(head and head in text for head in (_HOLE.split(s)[0] for s in spelled)):
                return warning
        return ""


def _filled(template: str, arguments: tuple[Argument, ...]) -> tuple[Part, ...]:
    parts: list[Part] = []
    pieces = _HOLE.split(template)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            parts.append(piece)
        elif piece.startswith("enabled "):
            condition, arguments = _enabled(piece.partition(" ")[2], arguments)
            parts += condition
        elif piece == "*":
            parts += [", ", *_joined(arguments)] if arguments else []
        else:
            argument = arguments[int(piece)]
            wrapped = pieces[index + 1].startswith(".") and _needs_parentheses(argument)
            parts += ["(", *_flat(argument), ")"] if wrapped else _flat(argument)
    return tuple(part for part in parts if part != "")


def _enabled(
    condition: str, arguments: tuple[Argument, ...]
) -> tuple[list[Part], tuple[Argument, ...]]:
    """A condition joined to the argument `enabled=`, if it is given, and the other arguments."""
    for index, argument in enumerate(arguments):
        parts = _flat(argument)
        if parts[0] == "enabled=":
            rest = arguments[:index] + arguments[index + 1 :]
            given = parts[1]
            if isinstance(given, ast.Constant) and given.value is True:
                return [condition], rest
            if isinstance(given, (*_PRIMARY, ast.Constant, ast.Compare)):
                return [given, f" and {condition}"], rest
            return ["(", given, f") and {condition}"], rest
    return [condition], arguments


def _needs_parentheses(argument: Argument) -> bool:
    return isinstance(argument, ast.AST) and not isinstance(argument, _PRIMARY)


def _joined(arguments: tuple[Argument, ...]) -> list[Part]:
    parts: list[Part] = []
    for argument in arguments:
        if parts:
            parts.append(", ")
        parts += _flat(argument)
    return parts


def _flat(argument: Argument) -> list[Part]:
    if isinstance(argument, tuple) and not isinstance(argument, Span):
        return [*argument]
    return [argument]


def target_of(name: TargetName, library: str) -> Target:
    """A target, for a file that calls this library by a name."""
    if name == "accel":
        return Target("accel", library, {}, frozenset({"accel"}), {})
    table = targets_torch if name == "torch" else targets_npu
    return Target(
        name, library, table.SPELLINGS, frozenset(table.IMPORTS), table.WARNINGS, table.CALLS,
        table.CLASSES,
    )  # fmt: skip
