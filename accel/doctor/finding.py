"""What the doctor reports: a finding, and the commands that mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Mend:
    """One way out.

    Attributes:
        command: To be typed as it stands.
        effect: What it does, where the command does not say it.
        verified: True where the doctor ran with it and saw it work; None where it cannot try.
    """

    command: str
    effect: str = ""
    verified: bool | None = None


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found.

    Attributes:
        id: Stable name, listed in docs/doctor.md.
        severity: `error` where something that was found cannot be used, `warning` where it can
            but will surprise, `note` for what is worth knowing. What works is in the report's
            smoke tests.
        what: One line.
        why: The cause and what it leads to.
        mends: Ways out, the best first.
        family: The device family it concerns, where it concerns one only.
        traceback: The whole traceback, where there is one; shown in the JSON document only.
    """

    id: str
    severity: Severity
    what: str
    why: str = ""
    mends: tuple[Mend, ...] = ()
    family: str = ""
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON types."""
        return asdict(self)
