"""How each target spells what the rules want to say.

A rule asks for one of accel's flat functions by name: `function` for a reference to it, `call` for
an expression with arguments. Two names exist only here, for arguments that are a device or its name
and no index: `device_named` and `device_str_named`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
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
_OF_TORCH = re.compile(r"\btorch\.")
# Nodes that a method can be called on as they are.
_PRIMARY = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)


class Spelled(str):
    """Text of a target's that does something else than what it stands for.

    Attributes:
        caution: What that is.
    """

    caution: str

    def __new__(cls, text: str, caution: str = "") -> Spelled:
        """Text with what is to be said of it."""
        self = super().__new__(cls, text)
        self.caution = caution
        return self


def cautions(texts: Iterable[str]) -> list[str]:
    """What is to be said of some texts, once each."""
    return list(dict.fromkeys(t.caution for t in texts if isinstance(t, Spelled)))


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
        call_warnings: As `warnings`, by the number of arguments, where that makes a difference.
    """

    name: TargetName
    library: str
    spellings: Mapping[str, str]
    imports: frozenset[str]
    warnings: Mapping[str, str]
    calls: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    classes: str = ""
    call_warnings: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def function(self, name: str) -> str | None:
        """The expression for one of accel's flat functions; None if the target has none."""
        if self.name == "accel":
            return f"{self.library}.{_ALIASES.get(name, name)}"
        spelled, caution = self.spellings.get(name), self.warnings.get(name)
        return Spelled(spelled, caution) if spelled and caution else spelled

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
        function = self.function(name)
        if template is not None:
            parts = _filled(template, arguments)
        elif function is None or name in self.calls:
            return None
        else:
            parts = (f"{function}(", *_joined(arguments), ")")
        by_count = self.call_warnings.get(name, {})
        caution = by_count.get(len(arguments), self.warnings.get(name, ""))
        return _cautious(parts, caution) if caution else parts

    def text(self, name: str) -> str | None:
        """A call without arguments as one text; None if the target has none."""
        parts = self.call(name)
        if parts is None:
            return None
        texts = [part for part in parts if isinstance(part, str)]
        return Spelled("".join(texts), *said) if (said := cautions(texts)) else "".join(texts)

    def needs(self, texts: Iterable[str]) -> frozenset[str]:
        """The modules that texts of this target's need; not torch, where none names it."""
        if "torch" in self.imports and not any(_OF_TORCH.search(text) for text in texts):
            return self.imports - {"torch"}
        return self.imports

    def importable(self, name: str) -> tuple[str, str] | None:
        """The module and the name to import a function by; None where that is not possible."""
        function = self.function(name)
        if function is None or not all(part.isidentifier() for part in function.split(".")):
            return None
        if self.name == "accel":
            return "accel", function.rpartition(".")[2]
        module, _, leaf = function.rpartition(".")
        caution = self.warnings.get(name)
        return module, Spelled(leaf, caution) if caution else leaf

    def tensor_class(self, name: str) -> str | None:
        """The class for a dotted name as `torch.cuda.FloatTensor`; None if the target has none."""
        return f"{self.classes}.{name.rpartition('.')[2]}" if self.classes else None


def _cautious(parts: tuple[Part, ...], caution: str) -> tuple[Part, ...]:
    """Parts whose first text carries a caution."""
    first = next(i for i, part in enumerate(parts) if isinstance(part, str))
    return (*parts[:first], Spelled(str(parts[first]), caution), *parts[first + 1 :])


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
        table.CLASSES, table.CALL_WARNINGS,
    )  # fmt: skip
