"""Run a program that was written for CUDA on what is here, and log where it asked for CUDA.

`accel convert trace [--simulate CHIP] [--log FILE] -- python train.py` runs it; docs/trace.md says
what is redirected. No torch is imported here: the program's own processes do that.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel.report import check_writable, write_atomically
from accel.simulate.activation import child_environment as simulated_environment
from accel.simulate.child import run_child
from accel.simulate.machine import VARIABLE as SIMULATE
from accel.simulate.machine import Machine
from accel.tracing import parts
from accel.tracing.settings import VARIABLE, Settings
from accel.tracing.summary import to_text

_HOME = Path(__file__).parent
_STARTUP = _HOME / "tracing" / "startup"
# It is done by ours: see there.
_STARTUP_OF_SIMULATOR = _HOME / "simulate" / "startup"


def run_command(
    argv: Sequence[str],
    log: str | None = None,
    simulate: str | None = None,
    *,
    claim_cuda: bool = True,
) -> int:
    """Run a program with its CUDA calls redirected, print a summary, and write the log.

    Args:
        argv: The program and its arguments, such as `["python", "train.py"]`.
        log: Where to write the log (JSON); None for the summary alone.
        simulate: An Ascend chip to simulate, such as `910B2`, or several as `910B2:2`; None for
            what is here.
        claim_cuda: On a CPU, answer `torch.cuda.is_available()` with True and `device_count()` with
            1, so that the program takes its CUDA branches. False: as torch without CUDA does.

    Returns:
        The program's exit status; 128 + N if signal N ended it.

    Raises:
        ValueError: No program is given, or an unknown chip.
        DeviceError: The Ascend cannot be simulated here.
        OSError: The program cannot be started, or the log not be written.
    """
    if not argv:
        raise ValueError("no program is given: accel convert trace [options] -- python train.py")
    if log is not None:
        check_writable(log)
    with tempfile.TemporaryDirectory(prefix="accel-trace-") as directory:
        settings = Settings(parts.new_stem(directory), os.getcwd(), claim_cuda)
        status = run_child(argv, {**os.environ, **_environment(settings, simulate)})
        found, notes = parts.take_parts(settings.stem)
    merged = parts.merge(
        found, notes, command=argv, directory=settings.directory, exit_status=status
    )
    print(f"\n{to_text(merged)}", file=sys.stderr)
    if log is not None:
        write_atomically(log, merged.to_text())
        print(f"log: {log}", file=sys.stderr)
    return status


def _environment(settings: Settings, simulate: str | None) -> dict[str, str]:
    added = {} if simulate is None else simulated_environment(_machine(simulate))
    inherited = added.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    # An empty entry is the current directory, and stays; no variable is no entry.
    entries = inherited.split(os.pathsep) if inherited else []
    first = [str(_STARTUP), *(str(home) for home in _checkout())]
    left_out = {*first, str(_STARTUP_OF_SIMULATOR)}
    path = [*first, *(entry for entry in entries if entry not in left_out)]
    return {**added, VARIABLE: settings.to_text(), "PYTHONPATH": os.pathsep.join(path)}


def _machine(simulate: str) -> Machine:
    if os.environ.get(SIMULATE):
        raise ValueError(
            f"an Ascend is simulated already ({SIMULATE}={os.environ[SIMULATE]}): leave out "
            f"--simulate {simulate}"
        )
    chip, separator, devices = simulate.partition(":")
    if separator and not devices.isdecimal():
        raise ValueError(f"{simulate!r}: write a chip, such as 910B2, or CHIP:DEVICES as 910B2:2")
    return Machine(chip, int(devices or 1))


def _checkout() -> list[Path]:
    """The directories that hold accel and accel_kernels, where they are not installed."""
    homes = [_HOME.parent]
    kernels = importlib.util.find_spec("accel_kernels")
    if kernels is not None and kernels.origin is not None:
        homes.append(Path(kernels.origin).parents[1])
    return [home for home in homes if home.name not in ("site-packages", "dist-packages")]
