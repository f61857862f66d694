"""What the vendor's documents say an operator accepts on a chip: dtypes, ranks, CPU fallback.

The facts in `operator_dtypes.json` are from the tables of native interfaces that Ascend publishes
for PyTorch 2.13 (github.com/Ascend/pytorch, CC-BY-4.0; the file names the commit).
`ci/vendor_tables` makes the file. No torch is imported here.

The tables are not without errors (`torch.bmm` leaves out bfloat16, which works), so every answer
names the row that it is from, and the dtypes that another row of the same operator lists count too.
The documents compare Atlas A2, Atlas A3 and Ascend 950DT and no other chip.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

# Generations as `accel.devices.chips` names them, and the documents' name for each.
_DOCUMENTED = {"A2": "A2", "A3": "A3", "950": "950DT", "950DT": "950DT"}
_UNDOCUMENTED = {"910", "310P", "310B"}

Status = Literal["supported", "unsupported", "unverified"]


@dataclass(frozen=True)
class Limit:
    """What is published about one operator on one chip.

    Attributes:
        operator: The aten packet, e.g. `aten::add`.
        api: The documents' row that this is from, e.g. `torch.add`.
        arguments: Names under which the overloads take the tensor, or list of tensors, that the
            dtypes are about. An overload that takes a number there is not concerned.
        chip: The column: A2, A3 or 950DT.
        chips: The columns that the row marks as supported.
        status: `supported`; `unsupported`; or `unverified`, which is how the many crosses of 950DT
            are to be read (the documents list only what was tested there).
        dtypes: Names such as `float32` that the row lists for the chip; None where it lists none,
            or does not mark the chip as supported.
        excluded: Names that the row rules out without listing the others.
        elsewhere: Names that only other rows of the same operator list for the chip.
        remarks: Which kinds of remarks the row has: `cpu_fallback` (may run on the CPU),
            `value_range`, `argument` (another argument is limited), `conditional` (the dtypes
            depend on something else and are not given here), `other`.
        min_rank: Fewest dimensions of the input; None where not stated.
        max_rank: Most dimensions of the input; None where not stated.
    """

    operator: str
    api: str
    arguments: tuple[str, ...]
    chip: str
    chips: tuple[str, ...]
    status: Status
    dtypes: frozenset[str] | None
    excluded: frozenset[str]
    elsewhere: frozenset[str]
    remarks: frozenset[str]
    min_rank: int | None
    max_rank: int | None

    def accepts(self, dtype: str) -> bool | None:
        """Say whether a dtype (`float32` or `torch.float32`) is listed; None: not stated."""
        name = dtype.removeprefix("torch.")
        if name in self.elsewhere:
            return True
        if self.dtypes is not None:
            return name in self.dtypes
        return False if name in self.excluded else None

    def describe(self) -> str:
        """Return one line that says what is listed, and where."""
        if self.dtypes is None:
            listed = f"all but {_words(self.excluded)}" if self.excluded else "no dtypes"
        else:
            listed = _words(self.dtypes)
        also = f", and other rows {_words(self.elsewhere)}" if self.elsewhere else ""
        return f"{self.api} on {self.chip} ({self.status}) lists {listed}{also}"


def limits_for(operator: str, chip_generation: str) -> Limit | None:
    """Return what is published about an operator on a chip, or None where nothing is.

    Args:
        operator: By its full name, with or without the overload: `aten::add.Tensor`, `aten::add`.
        chip_generation: As in `accel.devices.chips.Chip.generation`: 910, 310P, 310B (of which the
            documents say nothing), A2, A3, or 950 (of which they compare the 950DT).

    Raises:
        ValueError: The operator has no namespace, or the generation is not one of these.
    """
    namespace, separator, name = operator.partition("::")
    if not separator or not name:
        raise ValueError(
            f"expected an operator with its namespace, such as aten::add, got {operator!r}"
        )
    if chip_generation not in _DOCUMENTED.keys() | _UNDOCUMENTED:
        known = ", ".join(sorted(_DOCUMENTED.keys() | _UNDOCUMENTED))
        raise ValueError(f"unknown chip generation {chip_generation!r}; known: {known}")
    if namespace != "aten" or chip_generation in _UNDOCUMENTED:
        return None
    return _limit(name.partition(".")[0], _DOCUMENTED[chip_generation])


def source() -> Mapping[str, str]:
    """Return where the facts are from: repository, folder, commit, date, license, changes."""
    return dict(_table()["source"])


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("operator_dtypes.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@functools.cache
def _limit(name: str, chip: str) -> Limit | None:
    """Read the first row, in the file's order of preference, that marks the chip as supported."""
    operator = _table()["operators"].get(name)
    if operator is None:
        return None
    apis: list[str] = operator["rows"]
    supporting = [api for api in apis if chip in _table()["rows"][api]["supported"]]
    api = (supporting or apis)[0]
    row = _table()["rows"][api]
    dtypes = _names(row, "dtypes", chip) if supporting else None
    others = (_names(_table()["rows"][other], "dtypes", chip) for other in supporting)
    listed = frozenset[str]().union(*(names for names in others if names is not None))
    low, high = row.get("rank", (None, None))
    return Limit(
        operator=f"aten::{name}",
        api=api,
        arguments=tuple(operator["arguments"]),
        chip=chip,
        chips=tuple(row["supported"]),
        status="supported" if supporting else "unverified" if chip == "950DT" else "unsupported",
        dtypes=dtypes,
        excluded=(_names(row, "without", chip) if supporting else None) or frozenset(),
        elsewhere=listed - (dtypes or frozenset()),
        remarks=frozenset(row.get("remarks", ())),
        min_rank=low,
        max_rank=high,
    )


def _names(row: dict[str, Any], field: str, chip: str) -> frozenset[str] | None:
    """Return one field of a row for a chip: one string for all chips, or one for each."""
    value = row.get(field)
    text = value.get(chip) if isinstance(value, dict) else value
    return None if text is None else frozenset(text.split())


def _words(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
