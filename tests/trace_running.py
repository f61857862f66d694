"""Programs under the tracing shim, as `accel convert trace` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from accel.convert.traced import TracedCall, read_log

ROOT = Path(__file__).parents[1]
# Of a run that is itself on a simulated Ascend.
_INHERITED = ("ACCEL_SIMULATE", "ACCEL_SIMULATE_PARTS", "ASCEND_HOME_PATH", "TASK_QUEUE_ENABLE")
_RUN = """
import json, sys
from accel.trace import run_command
argv, log, options = json.loads(sys.argv[1])
sys.exit(run_command(argv, log, **options))
"""


@dataclass(frozen=True)
class Traced:
    """What came of a traced program: its exit status, what was written, and the log."""

    status: int
    output: str
    errors: str
    calls: tuple[TracedCall, ...]
    notes: tuple[str, ...]

    def of(self, api: str) -> list[TracedCall]:
        """The calls of one function."""
        return [call for call in self.calls if call.api == api]


def environment_with(**changed: str) -> dict[str, str]:
    """This process's environment without a simulated Ascend, and what is changed."""
    kept = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    places = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    plain = {"OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": places}
    return {**kept, **plain, **changed}


def trace(directory: Path, *argv: str, options: object = None, **changed: str) -> Traced:
    """Run a command in a directory."""
    log = directory / "log.json"
    asked = json.dumps([argv, str(log), options or {}])
    result = subprocess.run(
        [sys.executable, "-c", _RUN, asked],
        env=environment_with(**changed),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert log.exists(), result.stderr
    notes = tuple(json.loads(log.read_text())["notes"])
    return Traced(result.returncode, result.stdout, result.stderr, read_log(log), notes)


def trace_program(directory: Path, code: str, *argv: str, **changed: str) -> Traced:
    """Run a program as `program.py`; it must end well."""
    (directory / "program.py").write_text(textwrap.dedent(code))
    result = trace(directory, sys.executable, "program.py", *argv, **changed)
    assert result.status == 0, result.errors
    return result
