r"""A policy as one line of text.

    policy    = statement { ";" statement }             a newline also separates
    statement = settings | rule | map                   settings only as the first statement
    settings  = part { "," part }
    part      = PRESET | "emulate" | ("params" | "compute" | "output") "=" DTYPE
    rule      = selector ["?"] "=" FORMAT               "?": the rule may match nothing
    selector  = [NAME] ["<" TYPE ">"] ["/" ROLE] ["@" GEMM]
    map       = "{" entry { "," entry } "}"
    entry     = TYPE ["/" ROLE] ["@" GEMM] ["?"] ":" FORMAT

    NAME      a glob, `|` between alternatives; in double quotes, with JSON's escapes, where it
              holds other characters than letters, digits and _ . * ? [ ] ! | -
    TYPE      linear, conv, embedding, norm, attention, head, or the name of a class
    ROLE      input, weight, gradient
    GEMM      forward, data_gradient, weight_gradient
    DTYPE     float32, bfloat16, float16 (f32, fp32, bf16, f16, fp16)
    FORMAT    DTYPE, or (float8_e4m3fn | float8_e5m2 | hifloat8) {":" RECIPE}, short e4m3, e5m2
              and hif8
    RECIPE    tensor, row, 1x128, 128x128, 1x32, pow2, delayed=STEPS, target=NUMBER, epsilon=NUMBER
    PRESET    a name of `accel.precision.policy.PRESETS`; its rules come after those of the text

The settings are google-deepmind/jmp's: params defaults to float32, compute to params, output to
compute. `str(policy)` writes what `parse` reads as the same policy, with a rule for each entry of a
map and the rules of a preset in place of its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from accel.precision.operand import OperandFormat
from accel.precision.policy.formats import DTYPES, dtype_name, dtype_named, has_eight_bits, near
from accel.precision.policy.policy import Policy
from accel.precision.policy.presets import PRESETS
from accel.precision.policy.rule import PLAIN_NAME, Rule, like_a_setting

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TAIL = r"(?:\s*/\s*(?P<role>\w+))?(?:\s*@\s*(?P<gemm>\w+))?\s*(?P<optional>\?)?\s*"
_RULE = re.compile(
    rf"(?P<name>{_QUOTED}|{PLAIN_NAME})?(?:\s*<\s*(?P<type>\w+)\s*>)?{_TAIL}=(?P<format>.*)",
    re.DOTALL,
)
_ENTRY = re.compile(rf"(?P<quote>['\"]?)(?P<type>\w+)(?P=quote){_TAIL}:(?P<format>.*)", re.DOTALL)
_JMP = {"p": "params", "c": "compute", "o": "output"}
_KEYS = ("params", "compute", "output")
_EXPECTED = (
    f"write compute=NAME, where NAME is one of {', '.join(DTYPES)}, a preset "
    f"({', '.join(PRESETS)}), or rules such as head=float32 or <linear>=float8_e4m3fn:row"
)


def parse_policy(text: str) -> Policy:
    """Read the notation of this module.

    Raises:
        TypeError: It is no text.
        ValueError: It is not understood.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"a policy is text such as 'compute=bfloat16', not {text!r}; Policy.load reads a file"
        )
    try:
        statements = [part.strip() for part in _split(text, ";\n") if part.strip()]
        settings: dict[str, Any] = {}
        if statements and _is_settings(statements[0]):
            settings = _settings(statements.pop(0))
        rules = [rule for statement in statements for rule in _rules(statement)]
        if not (settings or rules):
            raise ValueError(_EXPECTED)
        return combine(settings, rules)
    except ValueError as error:
        raise ValueError(f"the policy {text!r} is not understood: {error}") from None


def combine(settings: dict[str, Any], rules: list[Rule]) -> Policy:
    """A policy of settings as read and rules; a preset's are taken where those say nothing.

    Args:
        settings: `preset` (a name), `params`, `compute`, `output` (dtypes), `emulate`; none is
            needed.
        rules: Those of a preset that match as one of these does are left out.

    Raises:
        ValueError: As `Policy`.
    """
    settings = dict(settings)
    if "preset" in settings:
        base = PRESETS[settings.pop("preset")]
        settings = {"params": base.params, "compute": base.compute, **settings}
        taken = {rule.selector for rule in rules}
        rules = [*rules, *_rules_of_preset(base, settings["compute"], taken)]
    return Policy(rules=rules, **settings)


def _rules_of_preset(base: Policy, compute: torch.dtype, taken: set[str]) -> Iterator[Rule]:
    """Those that are not taken; what it keeps in its own compute dtype follows another one."""
    for rule in base.rules:
        if rule.selector not in taken:
            kept = rule.format.dtype == base.compute
            yield replace(rule, format=OperandFormat(dtype=compute)) if kept else rule


def policy_text(policy: Policy) -> str:
    """What `parse_policy` reads back as the same policy."""
    parts = [] if policy.params == torch.float32 else [f"params={dtype_name(policy.params)}"]
    if policy.compute != policy.params or not policy.rules:
        parts.append(f"compute={dtype_name(policy.compute)}")
    if policy.output != policy.compute:
        parts.append(f"output={dtype_name(policy.output)}")
    if policy.emulate:
        parts.append("emulate")
    settings = [",".join(parts)] if parts else []
    return "; ".join([*settings, *map(str, policy.rules)])


def dtype_or_error(key: str, name: str) -> torch.dtype:
    """The dtype with this name.

    Raises:
        ValueError: There is none.
    """
    dtype = dtype_named(name)
    if dtype is None:
        hint = near(name, DTYPES)
        if has_eight_bits(name) or name in PRESETS:
            hint = (
                "; eight bits are for the operands of products: write a preset such as fp8_rowwise,"
                " or a rule such as <linear>=float8_e4m3fn:row"
            )
        raise ValueError(f"{key} is one of {', '.join(DTYPES)}, not {name!r}{hint}")
    return dtype


def preset_or_error(name: str) -> str:
    """The name, if a preset has it.

    Raises:
        ValueError: None has.
    """
    if name not in PRESETS:
        if name.endswith((".toml", ".json")):
            raise ValueError(f"{name!r} looks like a file, which Policy.load reads; {_EXPECTED}")
        raise ValueError(
            f"{name!r} is no preset: {', '.join(PRESETS)} are{near(name, PRESETS)}; {_EXPECTED}"
        )
    return name


def _is_settings(statement: str) -> bool:
    """Whether a first statement speaks of the policy and not of modules."""
    if statement.startswith(("{", '"', "<", "/", "@")):
        return False
    first, _, _ = statement.partition(",")
    key, equals, _ = (part.strip() for part in first.partition("="))
    return not equals or like_a_setting(key)


def _settings(statement: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in statement.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = _JMP.get(key, key)
        if not equals and key == "emulate":
            entry: tuple[str, Any] = ("emulate", True)
        elif not equals:
            entry = ("preset", preset_or_error(key))
        elif key in _KEYS:
            entry = (key, dtype_or_error(key, value))
        else:
            raise ValueError(
                f"{part.strip()!r} is no setting: {', '.join(_KEYS)} take a dtype{near(key, _KEYS)}"
                f"; {_EXPECTED}"
            )
        if entry[0] in found:
            raise ValueError(f"{entry[0]} is given twice; {_EXPECTED}")
        found[entry[0]] = entry[1]
    return found


def _rules(statement: str) -> Iterator[Rule]:
    if statement.startswith("{"):
        yield from _map(statement)
        return
    match = _RULE.fullmatch(statement)
    if match is None or statement.startswith(("=", "?=")):
        raise ValueError(
            f"{statement!r} is no rule: write NAME=FORMAT, <TYPE>=FORMAT or "
            "NAME<TYPE>/ROLE@GEMM=FORMAT, with NAME in double quotes where it holds other "
            "characters than letters, digits and _ . * ? [ ] ! | -"
        )
    name = match["name"] or "*"
    if not name.startswith('"') and like_a_setting(name):
        raise ValueError(
            f"{statement!r} comes too late for a setting: settings are the first statement, with "
            f"commas between them, as in params=float32,compute=bfloat16; a module named {name} is "
            f'written in quotes: "{name}"'
        )
    yield _rule(match, _unquoted(name) if name.startswith('"') else name)


def _unquoted(name: str) -> str:
    try:
        return str(json.loads(name))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the name {name} is no string of JSON, whose escapes it takes ({error.msg}): write a "
            "backslash twice"
        ) from None


def _map(statement: str) -> Iterator[Rule]:
    if not statement.endswith("}"):
        raise ValueError(f"the map {statement!r} does not end with a brace")
    seen: set[str] = set()
    for entry in _split(statement[1:-1], ","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            raise ValueError(
                f"{entry.strip()!r} is no entry of a map: write {{linear: fp16, conv: bf16}}"
            )
        rule = _rule(match, "*")
        if rule.selector in seen:
            raise ValueError(f"the map gives {rule.selector} twice")
        seen.add(rule.selector)
        yield rule


def _rule(match: re.Match[str], name: str) -> Rule:
    return Rule(
        match["format"].strip().strip("'\""),
        name=name,
        type=match["type"] or "",
        role=match["role"],  # type: ignore[arg-type]  # Rule checks it
        gemm=match["gemm"],  # type: ignore[arg-type]
        optional=match["optional"] is not None,
    )


def _split(text: str, separators: str) -> Iterator[str]:
    """The parts between separators that stand neither in double quotes nor in braces."""
    start, depth, quoted, escaped = 0, 0, False, False
    for position, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
        elif depth == 0 and character in separators:
            yield text[start:position]
            start = position + 1
    if quoted or depth:
        raise ValueError("a quotation mark is not closed" if quoted else "braces do not match")
    yield text[start:]
