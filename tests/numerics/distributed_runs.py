"""Starting two processes of `distributed_worker.py`, and what they and one process recorded."""

from __future__ import annotations

import json
from pathlib import Path

from tests import process_groups
from tests.process_groups import Ended

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(out: Path, *scenarios: str) -> list[Ended]:
    """Run scenarios in two processes, one after the other; how both ended."""
    return process_groups.launch(WORKER, 2, str(out), *scenarios)


def launched_well(out: Path, *scenarios: str) -> Path:
    """The same of scenarios that end well."""
    for rank, (code, text) in enumerate(launch(out, *scenarios)):
        assert code == 0, f"rank {rank}:\n{text}"
    return out


def answers(out: Path, scenario: str) -> list[dict[str, list[str]]]:
    """What the ranks wrote of a scenario besides the recording."""
    return [json.loads((out / f"{scenario}-{rank}.json").read_text()) for rank in range(2)]
