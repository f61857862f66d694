"""The part of a recording that a comparison looks at.

`accel.numerics.storage.reader` satisfies it, and so does anything made in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from accel.numerics.storage.entries import (
    Check,
    End,
    Key,
    ModuleCall,
    Operator,
    RootCall,
    Skipped,
    Source,
    Update,
    Value,
)
from accel.numerics.storage.manifest import Manifest


class RecordedStep(Protocol):
    """One step of one rank; see `accel.numerics.storage.reader.Step` for the attributes."""

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def operators(self) -> tuple[Operator, ...]: ...  # noqa: D102
    @property
    def values(self) -> Mapping[int, Value]: ...  # noqa: D102
    @property
    def sources(self) -> Mapping[int, Source]: ...  # noqa: D102
    @property
    def modules(self) -> tuple[ModuleCall, ...]: ...  # noqa: D102
    @property
    def calls(self) -> tuple[RootCall, ...]: ...  # noqa: D102
    @property
    def adjoints(self) -> Mapping[int, int]: ...  # noqa: D102
    @property
    def updates(self) -> tuple[Update, ...]: ...  # noqa: D102
    @property
    def checks(self) -> Mapping[int, Check]: ...  # noqa: D102
    @property
    def skipped(self) -> tuple[Skipped, ...]: ...  # noqa: D102
    @property
    def end(self) -> End | None: ...  # noqa: D102
    @property
    def producers(self) -> Mapping[int, int]: ...  # noqa: D102
    @property
    def by_key(self) -> Mapping[Key, Operator]: ...  # noqa: D102

    def tensor(self, value: int, /) -> Tensor:
        """The elements of a value; ValueError if they were not kept."""

    def has_tensor(self, value: int, /) -> bool:
        """Whether they were."""


class RecordedRank(Protocol):
    """One rank of a run."""

    @property
    def manifest(self) -> Manifest:
        """Where and how it ran."""

    @property
    def steps(self) -> Mapping[int, RecordedStep]:
        """By step index."""


class RecordedRun(Protocol):
    """A recording."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """Where it is."""

    @property
    def ranks(self) -> Mapping[int, RecordedRank]:
        """By rank."""
