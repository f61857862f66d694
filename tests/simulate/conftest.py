"""Processes on the simulated Ascend, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = [str(ROOT), str(ROOT / "kernels")]
# Of a run that is itself on a simulated Ascend.
_INHERITED = ("ACCEL_SIMULATE", "ACCEL_SIMULATE_PARTS", "ASCEND_HOME_PATH", "TASK_QUEUE_ENABLE")

Simulate = Callable[..., "subprocess.CompletedProcess[str]"]


def overlay() -> Path:
    """The directory into which `accel simulate --install` put torch-npu."""
    return Path(sys.prefix) / "torch-npu"


def environment_with(**changed: str) -> dict[str, str]:
    """This process's environment without a simulated Ascend, and what is changed."""
    kept = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    paths = [*PLACES, str(overlay())]
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **changed}


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    """Runs `accel simulate` with arguments in an empty directory."""

    def run(
        *arguments: str, python: str = sys.executable, **changed: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "accel", "simulate", *arguments],
            env=environment_with(**changed),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
