"""From a survey to findings. One file per subject; each has `check(survey)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from accel.doctor.checks import amd, ascend, environment, nvidia, plugins, pytorch, smoke
from accel.doctor.finding import Finding
from accel.doctor.survey import Survey

# In the order in which causes come before consequences.
CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    pytorch.check,
    plugins.check,
    ascend.check,
    nvidia.check,
    amd.check,
    environment.check,
    smoke.check,
)
