"""Which machine is simulated, as one value that travels to child processes in `ACCEL_SIMULATE`."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

from accel.devices.chips import Chip, chip

VARIABLE = "ACCEL_SIMULATE"
MOST_DEVICES = 16  # MAX_DEVICES of runtime.h
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Machine:
    """A machine with simulated Ascend chips.

    Attributes:
        chip: A name that `accel.devices.chips.chip` knows, such as `910B2`.
        devices: How many of them.
        memory: Bytes of device memory on each; 0 for as much as the chip has. It is taken from the
            host as it is used.
        faithful: Reproduce the chip's documented numerics (`accel.simulate.operators.faithful`).
        strict: An operator on a dtype that the vendor's table does not list raises.
        poison: Fill memory that is allocated and not yet written with NaN (0x7f in integers).
        report: Path of the porting report (JSON); empty for none.

    Raises:
        ValueError: An unknown chip, or a number out of range.
    """

    chip: str = "910B2"
    devices: int = 1
    memory: int = 0
    faithful: bool = False
    strict: bool = False
    poison: bool = False
    report: str = ""

    def __post_init__(self) -> None:
        chip(self.chip)
        if not 1 <= self.devices <= MOST_DEVICES:
            raise ValueError(f"{self.devices} simulated devices: 1 to {MOST_DEVICES} are possible")
        if self.memory < 0:
            raise ValueError(f"memory={self.memory} bytes: give a positive size, or 0")
        if ";" in self.report:
            raise ValueError(f"a report path cannot hold a semicolon: {self.report!r}")

    @property
    def profile(self) -> Chip:
        """The chip's documented properties."""
        return chip(self.chip)

    @property
    def memory_bytes(self) -> int:
        """Bytes of device memory on each device."""
        return self.memory or self.profile.memory_bytes

    def to_text(self) -> str:
        """As `ACCEL_SIMULATE` holds it: `chip=910B2;devices=2`, what differs from the default."""
        default = Machine()
        differing = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != getattr(default, field.name)
        }
        return ";".join(f"{name}={_word(value)}" for name, value in differing.items()) or "on"


def parse_machine(text: str) -> Machine:
    """Read what `Machine.to_text` wrote.

    Raises:
        ValueError: An unknown name or an unreadable value, with those that are possible.
    """
    if text == "on":
        return Machine()
    kinds = {field.name: field.type for field in dataclasses.fields(Machine)}
    values: dict[str, object] = {}
    for item in text.split(";"):
        name, separator, value = item.partition("=")
        if not separator or name not in kinds:
            raise ValueError(
                f"{VARIABLE}={text!r}: {item!r} is not NAME=VALUE with a name of "
                f"{', '.join(kinds)}; `accel simulate` sets this variable"
            )
        values[name] = _value(name, str(kinds[name]), value)
    return Machine(**values)  # type: ignore[arg-type]


def parse_bytes(text: str) -> int:
    """Bytes from `8G`, `512M`, `64K` or a plain number.

    Raises:
        ValueError: Anything else.
    """
    found = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r} is no size; write 8G, 512M, 64K or a number of bytes")
    return int(found.group(1)) * _UNITS[found.group(2).upper()]


def current_machine() -> Machine | None:
    """The machine this process is to simulate; None where `ACCEL_SIMULATE` is not set."""
    text = os.environ.get(VARIABLE)
    return parse_machine(text) if text else None


def _word(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _value(name: str, kind: str, text: str) -> object:
    if kind == "bool":
        if text not in ("yes", "no"):
            raise ValueError(f"{VARIABLE}: {name}={text!r} is neither yes nor no")
        return text == "yes"
    if kind == "int":
        return parse_bytes(text)
    return text
