"""Reading lines of an index that nobody vouches for: every field is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from accel.numerics.entries import PHASES, Entry, Key, ReferenceFailure, Response, RootCall, Skipped

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"blob-[0-9]{5,9}\.safetensors")
_LARGEST = 2**62
_LARGEST_FLOAT = 1e301

Line = Entry | RootCall | ReferenceFailure | Skipped


def line_of(fields: Any) -> Line:
    """Turn a parsed line of an index into what it says.

    Raises:
        ValueError: It says nothing that this version understands; the message tells why.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, got {type(fields).__name__}")
    kind = fields.get("kind")
    if kind in ("run", "truth"):
        return _entry(fields)
    if kind == "call":
        return _call(fields)
    if kind == "reference_failed":
        return ReferenceFailure(_integer(fields, "root"), _text(fields, "reason"))
    if kind == "skipped":
        return Skipped(_key(fields), _text(fields, "reason"))
    raise ValueError(f"unknown kind {kind!r}")


def _entry(fields: Mapping[str, Any]) -> Entry:
    return Entry(
        key=_key(fields),
        kind=fields["kind"],
        sequence=_integer(fields, "sequence"),
        module_class=_text(fields, "class"),
        dtype=_text(fields, "dtype"),
        shape=_shape(fields),
        digest=_matching(fields, "digest", _DIGEST),
        blob=None if fields.get("blob") is None else _matching(fields, "blob", _BLOB),
        requires_grad=_flag(fields, "requires_grad"),
        autocast=_optional_text(fields, "autocast"),
        root=_integer(fields, "root", least=-1),
        response=_response(fields),
    )


def _call(fields: Mapping[str, Any]) -> RootCall:
    arguments = fields.get("arguments")
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments must be an object, got {arguments!r:.80}")
    return RootCall(
        index=_integer(fields, "index"),
        module=_text(fields, "module"),
        call=_integer(fields, "call"),
        training=_flag(fields, "training"),
        autocast=_optional_text(fields, "autocast"),
        parameters=_matching(fields, "parameters", _DIGEST),
        arguments=arguments,
    )


def _key(fields: Mapping[str, Any]) -> Key:
    phase = fields.get("phase")
    if phase not in PHASES:
        raise ValueError(f"unknown phase {phase!r:.80}; known are {', '.join(PHASES)}")
    return Key(phase, _text(fields, "module"), _integer(fields, "call"), _text(fields, "path"))


def _shape(fields: Mapping[str, Any]) -> tuple[int, ...]:
    shape = fields.get("shape")
    if not isinstance(shape, list) or len(shape) > 64:
        raise ValueError(f"shape must be a list of at most 64 sizes, got {shape!r:.80}")
    return tuple(_integer({"shape": size}, "shape") for size in shape)


def _response(fields: Mapping[str, Any]) -> Response | None:
    value = fields.get("response")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"response must be an object, got {value!r:.80}")
    rms, worst, nonfinite = _numbers(value, "error", 3)
    return Response((rms, worst, int(nonfinite)), _pair(value, "sensitivity"))


def _pair(fields: Mapping[str, Any], name: str) -> tuple[float, float]:
    first, second = _numbers(fields, name, 2)
    return first, second


def _numbers(fields: Mapping[str, Any], name: str, count: int) -> list[float]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{name} must be {count} numbers, got {value!r:.80}")
    for number in value:
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not 0 <= number < _LARGEST_FLOAT:
            raise ValueError(f"{name} must be {count} numbers from 0, got {value!r:.80}")
    return [float(number) for number in value]


def _integer(fields: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _LARGEST:
        raise ValueError(f"{name} must be an integer from {least}, got {value!r:.80}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r:.80}")
    return value


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r:.80}")
    return value


def _matching(fields: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = _text(fields, name)
    if not pattern.fullmatch(value):
        raise ValueError(f"{name} must match {pattern.pattern}, got {value!r:.80}")
    return value
