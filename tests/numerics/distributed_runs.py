"""Starting two processes of `distributed_worker.py`, and what they and one process recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

WORKER = Path(__file__).with_name("distributed_worker.py")
ROOT = Path(__file__).parents[2]
SECONDS = 120  # a launch takes 5 to 10, on a machine that does nothing else


class Ended(NamedTuple):
    """How a rank ended."""

    code: int
    text: str


def launch(out: Path, *scenarios: str) -> list[Ended]:
    """Run scenarios in two processes, one after the other; how both ended."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(out), *scenarios],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": paths,
                "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = []
    try:
        for process in processes:
            text, _ = process.communicate(timeout=SECONDS)
            ended.append(Ended(process.returncode, text))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return ended


def launched_well(out: Path, *scenarios: str) -> Path:
    """The same of scenarios that end well."""
    for rank, (code, text) in enumerate(launch(out, *scenarios)):
        assert code == 0, f"rank {rank}:\n{text}"
    return out


def answers(out: Path, scenario: str) -> list[dict[str, list[str]]]:
    """What the ranks wrote of a scenario besides the recording."""
    return [json.loads((out / f"{scenario}-{rank}.json").read_text()) for rank in range(2)]
