"""Which interfaces of PyTorch the vendor's tables list for a chip, and with which limits.

The tables say what was verified, not what works: one marked as not supported is "listed as
unsupported", and one that they leave out is unknown. For the 950DT the documents mark everything
that was not tested yet, `torch.nn.Linear` among it, so a cross there counts only where the other
chips have one too, and is `unverified` otherwise.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Status = Literal["supported", "unsupported", "unverified"]

# What the documents call the chips, by what people and the driver call them.
_COLUMNS = (
    (re.compile(r"(?:910B(?:[1-4](?:C|-1)?)?|A2)"), "A2"),
    (re.compile(r"(?:910_93(?:\d\d)?|910C|A3)"), "A3"),
    (re.compile(r"950(?:(?:DT|PR)(?:_\w+)?)?"), "950DT"),
)
_ALLOWED = "910B, 910B1 to 910B4, A2; 910_93, 910_9391 and the like, 910C, A3; 950, 950DT, 950PR"
_ALIASES = (
    ("torch.nn.parallel.distributed.", "torch.nn.parallel."),
    ("torch.nn.parallel.data_parallel.", "torch.nn."),
    ("torch.nn.parallel.", "torch.nn."),
)


@dataclass(frozen=True)
class Row:
    """What the tables say about one interface on one chip.

    Attributes:
        api: Its name, e.g. `torch.nn.DataParallel`.
        chip: The column: A2, A3 or 950DT.
        version: Of PyTorch, e.g. `2.13`.
        status: `supported`, `unsupported`, or `unverified` (see this module).
        dtypes: Names such as `float32` that the input may have; None where none are listed.
        excluded: Names that are ruled out where the others are not listed.
        remarks: Kinds of remarks: `cpu_fallback` (may run on the CPU), `value_range`, `argument`
            (another argument is limited), `conditional`, `other`.
    """

    api: str
    chip: str
    version: str
    status: Status
    dtypes: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    remarks: frozenset[str] = frozenset()

    def accepts(self, dtype: str) -> bool | None:
        """Say whether a dtype (`float64` or `torch.float64`) is listed; None: not stated."""
        name = dtype.removeprefix("torch.")
        if self.dtypes is not None:
            return name in self.dtypes
        return False if name in self.excluded else None

    def describe(self) -> str:
        """Return one line: what is listed, for which chip and version."""
        where = f"for {self.chip} in the tables of PyTorch {self.version}"
        if self.status != "supported":
            word = "not verified" if self.status == "unverified" else "listed as unsupported"
            return f"{self.api} is {word} {where}"
        parts = [f"{self.api} is listed as supported {where}"]
        if self.dtypes is not None:
            parts.append(f"with {', '.join(sorted(self.dtypes))}")
        elif self.excluded:
            parts.append(f"without {', '.join(sorted(self.excluded))}")
        if "cpu_fallback" in self.remarks:
            parts.append("and may run on the CPU")
        return " ".join(parts)


@dataclass(frozen=True)
class Support:
    """The tables of one PyTorch version for one chip.

    Attributes:
        chip: The column.
        version: Of PyTorch.
    """

    chip: str
    version: str

    def look_up(self, api: str) -> Row | None:
        """Return what is listed about an interface by its full name; None where nothing is."""
        found = self._entry(api)
        if found is None:
            return None
        name, entry = found
        return Row(
            api=name,
            chip=self.chip,
            version=self.version,
            status=self._status(entry),
            dtypes=_dtypes(entry, "dtypes", self.chip),
            excluded=_dtypes(entry, "without", self.chip) or frozenset(),
            remarks=frozenset(entry.get("remarks", ())),
        )

    def _entry(self, api: str) -> tuple[str, Mapping[str, Any]] | None:
        rows = _rows(self.version)
        for name in _names(api):
            if name in rows:
                return name, rows[name]
        return None

    def _status(self, entry: Mapping[str, Any]) -> Status:
        missing = entry.get("not", ())
        if self.chip not in missing:
            return "supported"
        return "unverified" if list(missing) == ["950DT"] else "unsupported"


def support(chip: str = "910B2", torch_version: str | None = None) -> Support:
    """The tables for a chip.

    Args:
        chip: A driver's or a product's name: `910B2`, `Ascend910_9391`, `950`, `A2`, …
        torch_version: Such as `2.13` or `2.13.1+cpu`; the newest by default.

    Raises:
        ValueError: There is no table for the chip or the version.
    """
    versions: list[str] = table()["versions"]
    if torch_version is None:
        return Support(column(chip), versions[0])
    version = ".".join(torch_version.split(".")[:2])
    if version not in versions:
        raise ValueError(
            f"no tables for PyTorch {torch_version!r}: there are some for {', '.join(versions)}; "
            f"give one of these, or none for the newest"
        )
    return Support(column(chip), version)


def column(chip: str) -> str:
    """Return the documents' name of a chip: A2, A3 or 950DT.

    Raises:
        ValueError: The documents do not compare it.
    """
    name = chip.strip()
    # To the driver Ascend910B is a chip of the first generation; people call those of A2 910B.
    bare = name if name == "Ascend910B" else name.removeprefix("Ascend")
    for pattern, found in _COLUMNS:
        if pattern.fullmatch(bare):
            return found
    raise ValueError(f"no support tables for the chip {chip!r}: give one of {_ALLOWED}")


def source() -> Mapping[str, str]:
    """Return where the facts are from: repository, folder, commit, date, license, changes."""
    return dict(table()["source"])


@functools.cache
def table() -> dict[str, Any]:
    """Return the data file as it stands."""
    text = resources.files(__package__).joinpath("operators.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


@functools.cache
def _rows(version: str) -> Mapping[str, Mapping[str, Any]]:
    newest: dict[str, Any] = table()["rows"]
    changes: dict[str, Any] = table()["changes"].get(version, {})
    merged = {**newest, **changes}
    return {name: entry for name, entry in merged.items() if entry is not None}


def _names(api: str) -> list[str]:
    """The name itself, and the public one of what PyTorch keeps in an inner module."""
    names = [api]
    names += [public + api[len(inner) :] for inner, public in _ALIASES if api.startswith(inner)]
    if api.startswith("torch.nn.modules."):
        names.append("torch.nn." + api.rpartition(".")[2])
    return names


def _dtypes(entry: Mapping[str, Any], field: str, chip: str) -> frozenset[str] | None:
    """One field of a row for a chip: one string for all chips, or one for each."""
    value = entry.get(field)
    text = value.get(chip) if isinstance(value, dict) else value
    return None if text is None else frozenset(text.split())
