"""Running a worker script in several processes that form a group."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from accel.simulate import active
from tests import preloaded

ROOT = Path(__file__).parents[1]
SECONDS = 300  # a launch takes 5 to 15, on a machine that does nothing else


class Ended(NamedTuple):
    """How a rank ended."""

    code: int
    text: str


def launch(worker: Path, ranks: int, *arguments: str, **environment: str) -> list[Ended]:
    """Run `worker` in as many processes; how each ended.

    With variables of its own each starts an interpreter, else it is forked with torch imported.
    """
    if environment or active():
        return _started(worker, ranks, *arguments, **environment)
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, str(rank)) for rank in range(ranks)]
        processes = [
            preloaded.start(worker, output, arguments, **_variables(rank, ranks))
            for rank, output in enumerate(outputs)
        ]
        try:
            for process in processes:
                process.join(SECONDS)
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.join()
        if None in codes:
            raise TimeoutError(f"ranks still ran after {SECONDS} s: exit codes {codes}")
        return [Ended(code, out.read_text()) for code, out in zip(codes, outputs, strict=True)]


def _variables(rank: int, ranks: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def _started(worker: Path, ranks: int, *arguments: str, **environment: str) -> list[Ended]:
    inherited = environment.pop("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), inherited])
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), *arguments],
            env={**os.environ, **_variables(rank, ranks), "PYTHONPATH": paths, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        texts = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [Ended(p.returncode, text) for p, text in zip(processes, texts, strict=True)]


def launched_well(worker: Path, ranks: int, *arguments: str, **environment: str) -> None:
    """The same of scenarios that end well."""
    for rank, (code, text) in enumerate(launch(worker, ranks, *arguments, **environment)):
        assert code == 0, f"rank {rank}:\n{text}"


@contextmanager
def process_group(store: Path, backend: str = "gloo", seconds: float = 60) -> Iterator[None]:
    """In a worker: the group of all processes of the launch."""
    from torch import distributed

    distributed.init_process_group(
        backend, init_method=f"file://{store}", rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]), timeout=timedelta(seconds=seconds),
    )  # fmt: skip
    try:
        yield
    finally:
        distributed.destroy_process_group()
