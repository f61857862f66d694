"""Words that sentences of a comparison share: numbers with their nouns, short names."""

from __future__ import annotations

from collections.abc import Sequence

from accel.numerics.comparing.comparison import Row
from accel.numerics.storage.entries import OUTSIDE, Key, Place


def number_of(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 operator`, `3 operators`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def ending(count: int) -> str:
    """What a verb ends in after so many things: one differs, two differ."""
    return "s" if count == 1 else ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names: `a, b and c`; `a, b, … (7 in all)`."""
    if len(names) > most:
        return f"{', '.join(names[:most])}, … ({len(names)} in all)"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def operator_in_words(key: Key, place: Place | None = None) -> str:
    """An operator by its short name, its module and its source line.

    Such as `addmm in blocks.0.mlp (model.py:12)`, `the 2nd mm in the backward of addmm in
    blocks.0.mlp`, `_foreach_add_ of the optimizer AdamW`.
    """
    op = key.op.rpartition("::")[2]
    name = op if key.k == 0 else f"the {_ordinal(key.k + 1)} {op}"
    line = "" if place is None else f" ({place.file}:{place.line})"
    return f"{name} {_where(key)}{line}"


def _where(key: Key) -> str:
    if key.phase == "optimizer":
        return f"of the optimizer {key.module}"
    if key.phase == "collective":
        return "between ranks"
    times = f", in its {_ordinal(key.call + 1)} call" if key.call else ""
    module = {"": "the model itself", OUTSIDE: "no module"}.get(key.module, key.module)
    inside = f"in {module}{times}"
    if key.phase == "recompute":
        return f"recomputed {inside}"
    return inside if key.phase == "forward" else f"in the backward of {_origin(key)}{inside}"


def _origin(key: Key) -> str:
    """The forward operator, or autograd's node, that a backward operator is of."""
    op, _, k = key.origin.partition("/")[0].partition("#")
    if not op:
        return ""
    return f"{op} " if k in ("", "0") else f"the {_ordinal(int(k) + 1)} {op} "


def _ordinal(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{last or 'th'}"


def row_in_words(row: Row) -> str:
    """A value by the operator that made it, or by its own name."""
    if row.key is None or row.aligned == "content":
        is_noun = row.op in ("gradient", "parameter", "state")
        return f"the {row.name}" if is_noun else row.name
    output = row.name.rpartition(" output ")[2] if " output " in row.name else ""
    found = operator_in_words(row.key, row.place)
    return f"output {output} of {found}" if output else found
