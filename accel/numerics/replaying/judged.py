"""What was found of one operator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verdict = Literal["within", "out", "exact", "unchecked", "known"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Judged:
    """One operator, judged by its float64 replay.

    Attributes:
        operator: Its key in the recording, or its name.
        name: Its full name, `aten::addmm`.
        kind: Its family: `matmul`, `normalization`, …
        verdict: `within` the limits; `out` of them; `exact`, equal to the last bit where that is
            required; `unchecked`, with the reason; `known`, a kernel on the list of inaccurate
            ones and within the error measured there.
        R: Rms error in units of the yardstick (see `yardstick`); of the worst result.
        M: Largest error of an element, likewise.
        excess: Largest error that rounding to a 16-bit output cannot explain, in noise of the
            compute precision; 0 for wider outputs.
        misrounding: Share of elements that are not the truth rounded; 0 for wider outputs.
        expected: The share that noise of the compute precision explains.
        nonfinite: Elements that are NaN or infinite on one side only.
        reason: Why it is out, known or unchecked; None otherwise.
        output: The worst result: `0` for the first output, or the name of an argument it wrote to.
        dtype: Of that result.
        at: Flat index of its worst element.
        milliseconds: What the replay cost.
        limit_R: What R was held to; None where it was not, as for exact results. Of a `known` one
            the bound of its kernel, and R and M are by the noise that this bound is for.
        limit_M: What M was held to; a 16-bit output is held to `limit_excess` instead.
        limit_excess: What `excess` was held to.
        limit_misrounding: What `misrounding` was held to.
    """

    operator: str
    name: str
    kind: str
    verdict: Verdict
    R: float = 0.0
    M: float = 0.0
    excess: float = 0.0
    misrounding: float = 0.0
    expected: float = 0.0
    nonfinite: int = 0
    reason: str | None = None
    output: str | None = None
    dtype: str | None = None
    at: int | None = None
    milliseconds: float = 0.0
    limit_R: float | None = None  # noqa: N815
    limit_M: float | None = None  # noqa: N815
    limit_excess: float | None = None
    limit_misrounding: float | None = None

    @property
    def share(self) -> float | None:
        """The largest measure over the limit that it was held to; None if it was held to none."""
        pairs = (
            (self.R, self.limit_R),
            (self.M, self.limit_M),
            (self.excess, self.limit_excess),
            (self.misrounding, self.limit_misrounding),
        )
        return max((value / most for value, most in pairs if most), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; infinite numbers become null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Judged:
        """The reverse of `to_dict`.

        Raises:
            ValueError: A field is missing, unknown or of another type.
        """
        given = dict(fields)
        for field in dataclasses.fields(cls):
            value = given.get(field.name, field.default)
            if value is None and field.type == "float":
                value = math.inf
            if not _fits(value, str(field.type)):
                raise ValueError(f"{field.name}={value!r:.60} is no {field.type}")
            given[field.name] = value
        unknown = given.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"a judged operator has no field {min(unknown)!r:.60}")
        return cls(**given)


def _fits(value: object, kind: str) -> bool:
    if kind == "Verdict":
        return value in VERDICTS
    if "None" in kind and value is None:
        return True
    if isinstance(value, bool):
        return False
    if kind.startswith("float"):
        return isinstance(value, (int, float))
    return isinstance(value, int if kind.startswith("int") else str)
