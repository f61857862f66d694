"""What every result file states: machine, versions, commit and command."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import accel

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """The machine and the software that a result was measured with."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "accel", "kernels", "benchmarks/*.py"],
        capture_output=True,
        text=True,
    )
    simulated = {"simulated": os.environ["ACCEL_SIMULATE"]} if accel.simulate.active() else {}
    return {
        "commit": commit.stdout.strip() or None,
        "changed_since_commit": bool(changed.stdout.strip()),
        "command": " ".join(["python", Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "device": accel.current_device().name,
        **simulated,  # the device computes on the host
        "host": accel.devices.CpuDevice().name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "accel": accel.__version__,
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the description of the machine."""
    path = RESULTS / f"{name}.json"
    document = {"environment": describe(), **result}
    accel.report.write_atomically(path, json.dumps(document, indent=1) + "\n")
    return path
