"""Formats of operands as text: `bfloat16`, `float8_e4m3fn:row:pow2`, and which of them exist."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch

from accel.precision.operand import OperandFormat
from accel_kernels.fp8.formats import BLOCKS, E4M3, E5M2, FORMATS, HIF8, Format, Scaling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# jmp's short names, and those that the field's articles use.
SHORT = {
    "f32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "e4m3": E4M3.name,
    "e5m2": E5M2.name,
    "hif8": HIF8.name,
}
_OPTIONS = "pow2, delayed=STEPS, target=NUMBER, epsilon=NUMBER"


def near(given: str, known: Iterable[str]) -> str:
    """Words that propose the names most like what was given; empty where none is."""
    known = list(known)
    if has_eight_bits(given) and E4M3.name in known:  # of which there is more than one
        return f" (did you mean {E4M3}:row or {E5M2}:row?)"
    found = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def has_eight_bits(name: str) -> bool:
    """Whether a name is meant for eight-bit numbers: a format's, or `fp8` and the like."""
    return SHORT.get(name, name) in FORMATS or name in ("fp8", "float8", "f8")


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_named(text: str) -> torch.dtype | None:
    """The dtype with this full or short name; None where a policy knows no such name."""
    return DTYPES.get(SHORT.get(text, text))


def parse_format(text: str) -> OperandFormat:
    """Read a dtype, or an eight-bit format with its recipe.

    Args:
        text: `NAME`, or for eight bits `NAME[:GRANULARITY][:OPTION]...`; options are `pow2`
            (scales are powers of two), `delayed=STEPS`, `target=NUMBER` (what the largest
            magnitude becomes) and `epsilon=NUMBER` (the least magnitude taken for a block).

    Raises:
        ValueError: It is not of that form, or the format has no such recipe.
    """
    head, *options = (part.strip() for part in text.split(":"))
    name = SHORT.get(head, head)
    if name in DTYPES:
        if options:
            raise ValueError(
                f"{text!r}: {name} has no scales, so nothing may follow it; a granularity or an "
                f"option belongs to {', '.join(FORMATS)}"
            )
        return OperandFormat(dtype=DTYPES[name])
    if name not in FORMATS:
        raise ValueError(
            f"{head!r} is no format of a policy: write one of "
            f"{', '.join([*DTYPES, *FORMATS])}{near(head, [*DTYPES, *FORMATS, *SHORT])}"
        )
    return _with_recipe(text, FORMATS[name], options)


def _with_recipe(text: str, number: Format, options: list[str]) -> OperandFormat:
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key in BLOCKS and not equals:
            key, value = "granularity", key
        elif key not in ("delayed", "target", "epsilon", "pow2") or bool(equals) == (key == "pow2"):
            raise ValueError(
                f"{text!r}: {option!r} is no part of an eight-bit format: write one of "
                f"{', '.join(BLOCKS)}, or {_OPTIONS}"
                f"{near(key, [*BLOCKS, 'pow2', 'delayed=', 'target=', 'epsilon='])}"
            )
        if key in values:
            raise ValueError(f"{text!r} gives {key} twice")
        values[key] = value
    granularity = values.get("granularity", "tensor")
    power_of_two = "pow2" in values or granularity == "1x32"
    try:
        scaling = Scaling(
            number,
            granularity,  # type: ignore[arg-type]  # a key of BLOCKS
            "power_of_two" if power_of_two else "float32",
            target=_number(text, values, "target", 0.0),
            epsilon=_number(text, values, "epsilon", Scaling.epsilon),
        )
        return checked(OperandFormat(scaling=scaling, history=_steps(text, values)))
    except ValueError as error:
        quoted = str(error) if repr(text) in str(error) else f"{text!r}: {error}"
        raise ValueError(quoted) from None


def _number(text: str, values: dict[str, str], key: str, default: float) -> float:
    try:
        number = float(values[key]) if key in values else default
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0.0 or (key in values and number == 0.0):
        raise ValueError(f"{text!r}: {key} must be a positive number, not {values[key]!r}")
    return number


def _steps(text: str, values: dict[str, str]) -> int:
    given = values.get("delayed")
    if given is None:
        return 0
    if not (given.isascii() and given.isdecimal() and int(given) >= 1):
        raise ValueError(f"{text!r}: delayed must be a number of steps from 1 on, not {given!r}")
    return int(given)


def checked(given: OperandFormat) -> OperandFormat:
    """The same format, if a policy can have it.

    Raises:
        ValueError: The dtype is none that a policy computes in, or the format and the recipe do
            not go together.
    """
    if (given.dtype is None) == (given.scaling is None):
        raise ValueError(f"an operand has either a dtype or a scaling, not {given}")
    scaling = given.scaling
    if scaling is None:
        if given.dtype not in DTYPES.values():
            raise ValueError(
                f"a policy computes in one of {', '.join(DTYPES)}, not in {given.dtype}; eight "
                f"bits need scales: {', '.join(FORMATS)}"
            )
        if given.history:
            raise ValueError(f"delayed scaling needs eight bits, not {given.dtype}")
        return given
    _check_recipe(scaling, given.history)
    return given


def _check_recipe(scaling: Scaling, history: int) -> None:
    name, blocks = str(scaling.format), scaling.granularity
    if FORMATS.get(name) != scaling.format:
        raise ValueError(f"{name!r} is no eight-bit format of a policy: {', '.join(FORMATS)} are")
    if scaling.format == HIF8 and blocks == "1x32":
        raise ValueError(
            f"MX blocks hold {E4M3} or {E5M2}, not hifloat8: write {E4M3}:1x32, or hifloat8 with "
            "another granularity"
        )
    if blocks == "1x32" and scaling.scales != "power_of_two":
        raise ValueError("1x32 blocks (MX) have power-of-two scales (E8M0); float32 ones do not go")
    if isinstance(history, bool) or not isinstance(history, int) or history < 0:
        raise ValueError(f"delayed scaling looks back a whole number of steps, not {history!r}")
    if history and blocks != "tensor":
        raise ValueError(
            f"delayed scaling has one scale for the tensor, so it does not go with {blocks}: write "
            f"{name}:delayed={history}, or {name}:{blocks} for current scaling"
        )


def format_text(given: OperandFormat) -> str:
    """What `parse_format` reads back as the same format."""
    if given.scaling is None:
        assert given.dtype is not None, "checked() has seen it"  # noqa: S101
        return dtype_name(given.dtype)
    scaling = given.scaling
    parts = [scaling.format.name]
    if scaling.granularity != "tensor":
        parts.append(scaling.granularity)
    if scaling.scales == "power_of_two" and scaling.granularity != "1x32":
        parts.append("pow2")
    if given.history:
        parts.append(f"delayed={given.history}")
    if scaling.target:
        parts.append(f"target={_shortest(scaling.target)}")
    if scaling.epsilon != Scaling.epsilon:
        parts.append(f"epsilon={_shortest(scaling.epsilon)}")
    return ":".join(parts)


def _shortest(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
