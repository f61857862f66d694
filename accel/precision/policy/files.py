"""A policy in a file, TOML or JSON.

Keys are those of the notation (`accel.precision.policy.notation`):

    preset = "fp8_rowwise"          # all keys may be left out, but not all of them
    params = "float32"
    compute = "bfloat16"
    output = "bfloat16"
    emulate = true

    [[rules]]                       # in order; the first match wins
    name = "*.mlp.*"                # name, type, role and gemm say which; all may be left out
    type = "linear"
    role = "weight"
    gemm = "forward"
    format = "float8_e4m3fn:row"
    optional = true                 # it may match nothing

    [types]                         # rules by type alone, after the others
    conv = "bfloat16"

JSON has the same keys: an object, with a list of objects under `rules` and an object under `types`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accel.precision.policy.formats import dtype_name, format_text, near
from accel.precision.policy.lines import Place, json_lines, toml_lines
from accel.precision.policy.notation import combine, dtype_or_error, preset_or_error
from accel.precision.policy.policy import Policy
from accel.precision.policy.rule import Rule
from accel.report.files import write_atomically

_Value = TypeVar("_Value")
_DTYPES = ("params", "compute", "output")
_TOP = ("preset", *_DTYPES, "emulate", "rules", "types")
_OF_A_RULE = ("name", "type", "role", "gemm", "format", "optional")


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """See `Policy.load`."""
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no text in UTF-8: {error}") from None
    return _Document(place, text).policy()


def save_policy(policy: Policy, path: str | os.PathLike[str]) -> None:
    """See `Policy.save`."""
    place = Path(path)
    text = (_as_json if _is_json(place) else _as_toml)(policy)
    write_atomically(place, text)


class _Document:
    """A file while it is read; its text tells in which line something wrong stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self.is_json = _is_json(path)
        self.lines: dict[Place, int] = {}

    def policy(self) -> Policy:
        values = self._json() if self.is_json else self._toml()
        if not isinstance(values, dict):
            raise ValueError(
                f"{self.path}: a policy is an object with keys {', '.join(_TOP)}, not a "
                f"{type(values).__name__}"
            )
        self._check_keys((), values, _TOP)
        settings = dict(self._settings(values))
        rules = [*self._rules(values.get("rules", [])), *self._types(values.get("types", {}))]
        if not (settings or rules):
            raise ValueError(f"{self.path} says nothing: give one of {', '.join(_TOP)}")
        return self._at((), partial(combine, settings, rules))

    def _json(self) -> Any:
        try:
            values = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise ValueError(self._syntax(str(error.lineno), error.msg)) from None
        except RecursionError:
            raise ValueError(f"{self.path}: its lists or objects are nested too deep") from None
        for place, line in json_lines(self.text):
            if place in self.lines:
                raise ValueError(
                    f"{self.path}, line {line}: {place[-1]!r} is given twice, first in line "
                    f"{self.lines[place]}: remove one"
                )
            self.lines[place] = line
        return values

    def _toml(self) -> Any:
        if sys.version_info < (3, 11):
            raise ValueError(
                f"{self.path}: Python reads TOML from 3.11 on, and this is "
                f"{sys.version_info[0]}.{sys.version_info[1]}: write the policy as JSON"
            )
        import tomllib

        try:
            values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r" \(at line (\d+), column \d+\)", str(error))
            words = str(error).replace(found[0] if found else "", "")
            raise ValueError(self._syntax(found[1] if found else "", words)) from None
        except RecursionError:
            raise ValueError(f"{self.path}: its lists or tables are nested too deep") from None
        self.lines = dict(toml_lines(self.text))
        return values

    def _settings(self, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key in _DTYPES:
            if key in values:
                text = self._typed((key,), values[key], str, "text")
                yield key, self._at((key,), partial(dtype_or_error, key, text))
        if "preset" in values:
            text = self._typed(("preset",), values["preset"], str, "text")
            yield "preset", self._at(("preset",), partial(preset_or_error, text))
        if "emulate" in values:
            yield "emulate", self._typed(("emulate",), values["emulate"], bool, "true or false")

    def _rules(self, tables: Any) -> Iterator[Rule]:
        what = "a list of rules" if self.is_json else "tables headed [[rules]]"
        for number, table in enumerate(self._typed(("rules",), tables, list, what)):
            place: Place = ("rules", number)
            self._typed(place, table, dict, f"a rule with keys {', '.join(_OF_A_RULE)}")
            self._check_keys(place, table, _OF_A_RULE)
            if "format" not in table:
                raise self._error(place, "the rule gives no format")
            for key, value in table.items():
                is_flag = key == "optional"
                words = "true or false" if is_flag else "text"
                self._typed((*place, key), value, bool if is_flag else str, words)
                # Alone at first, so that an error has the line of this key.
                self._at((*place, key), partial(Rule, **{"format": "float32", key: value}))
            yield self._at(place, partial(Rule, **table))

    def _types(self, table: Any) -> Iterator[Rule]:
        for key, value in self._typed(("types",), table, dict, "a table of types").items():
            place: Place = ("types", key)
            self._typed(place, value, str, "the text of a format")
            yield self._at(place, partial(Rule, value, type=key))

    def _check_keys(self, place: Place, table: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                raise self._error(
                    (*place, key),
                    f"unknown key {key!r}{near(key, known)}; known: {', '.join(known)}",
                )

    def _typed(self, place: Place, value: Any, kind: type[_Value], words: str) -> _Value:
        if not isinstance(value, kind):
            raise self._error(place, f"{_dotted(place)} must be {words}, not {value!r}")
        return value

    def _at(self, place: Place, make: Callable[[], _Value]) -> _Value:
        try:
            return make()
        except ValueError as error:
            raise self._error(place, str(error)) from None

    def _syntax(self, line: str, words: str) -> str:
        """What a parser said, with the line it is about; both formats quote their texts."""
        if not line:
            return f"{self.path}: {words}"
        text = self.text.split("\n")[int(line) - 1].strip()
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        quoted = f" in `{shown}`; text stands in double quotes" if text else ""
        return f"{self.path}, line {line}: {words}{quoted}"

    def _error(self, place: Place, words: str) -> ValueError:
        """With the line of a key, or of the nearest that holds it."""
        start = f"{self.path}"
        # The first of several TOML tables with a name that no policy has is where its key stands.
        places = [*_outwards(place), (*place, 0)]
        line = next((self.lines[p] for p in places if p in self.lines), None)
        if line is not None:
            start += f", line {line}"
        elif place:
            start += f", {_dotted(place)}"
        return ValueError(f"{start}: {words}")


def _outwards(place: Place) -> Iterator[Place]:
    while place:
        yield place
        place = place[:-1]


def _dotted(place: Place) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return words.removeprefix(".")


def _is_json(path: Path) -> bool:
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"a policy's file ends in .toml or .json, not as {path.name!r} does")
    return path.suffix == ".json"


def _values(policy: Policy) -> dict[str, Any]:
    return {
        "params": dtype_name(policy.params),
        "compute": dtype_name(policy.compute),
        "output": dtype_name(policy.output),
        "emulate": policy.emulate,
        "rules": [_rule_values(rule) for rule in policy.rules],
    }


def _rule_values(rule: Rule) -> dict[str, Any]:
    given = {
        "name": rule.name if rule.name != "*" else None,
        "type": rule.type or None,
        "role": rule.role,
        "gemm": rule.gemm,
        "format": format_text(rule.format),
        "optional": rule.optional or None,
    }
    return {key: value for key, value in given.items() if value is not None}


def _as_json(policy: Policy) -> str:
    return json.dumps(_values(policy), indent=2, ensure_ascii=False) + "\n"


def _as_toml(policy: Policy) -> str:
    values = _values(policy)
    rules = values.pop("rules")
    tables = [_toml_table(values), *("[[rules]]\n" + _toml_table(rule) for rule in rules)]
    return "\n".join(tables)


def _toml_table(values: dict[str, Any]) -> str:
    # JSON's strings and truth values are TOML's, but for one character that TOML wants escaped.
    words = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    return "".join(f"{key} = {word}\n".replace("\x7f", "\\u007f") for key, word in words.items())
