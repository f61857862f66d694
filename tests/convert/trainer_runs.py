"""Runs many programs, each in a fork of one process that has torch: `trainer_runs.py runs.json`.

Importing torch, and what an optimizer brings in, takes longer than a small training. The file
names the runs as `Run` has them and receives what came of each. At most two run at a time, and the
ranks of one run together.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).with_name("cuda_on_cpu.py")
SECONDS = 280
_kept: dict[str, Any] = {}


@dataclass
class Run:
    """A program to run, and afterwards what came of it.

    Attributes:
        program: Its file.
        arguments: Its arguments.
        stand_in: Whether it runs in `cuda_on_cpu.py`.
        watched: Whether calls of torch.cuda from the program itself are noted.
        ranks: How many processes of it; above 0 they get torchrun's environment variables.
        status: The highest exit status.
        output: What they wrote, rank by rank.
        reached: The calls that were noted, as `line: name`.
    """

    program: str
    arguments: list[str] = field(default_factory=list)
    stand_in: bool = False
    watched: bool = False
    ranks: int = 0
    status: int = -1
    output: str = ""
    reached: list[str] = field(default_factory=list)


def run_all(runs: list[Run], directory: Path, environment: dict[str, str]) -> list[Run]:
    """Run them in a process of their own, with one thread each."""
    listed = directory / "runs.json"
    listed.write_text(json.dumps([asdict(run) for run in runs]))
    process = subprocess.Popen(
        [sys.executable, __file__, str(listed)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what it forks ends with it
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        raise RuntimeError(printed)
    return [Run(**one) for one in json.loads(listed.read_text())]


def _watch(program: str, reached: list[str]) -> None:
    """Note what the program's own lines call in torch.cuda, and `.cuda()`."""

    def look(frame: Any, event: str, called: Any) -> None:
        if event == "call" and frame.f_back is not None:
            caller, name = frame.f_back, frame.f_code.co_name
            module = frame.f_globals.get("__name__", "")
        elif event == "c_call":
            caller, name = frame, called.__name__
            module = getattr(called, "__module__", "") or ""
        else:
            return
        if caller.f_code.co_filename == program and (
            name == "cuda" or f"{module}.".startswith("torch.cuda.")
        ):
            reached.append(f"{caller.f_lineno}: {module}.{name}")

    sys.setprofile(look)


def _in_child(run: Run, rank: int, port: int, home: Path) -> int:
    """Run the program, and return its exit status."""
    output = os.open(home / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(output, standard)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(home)
    if run.ranks:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run.ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    sys.argv = [run.program, *run.arguments]
    if run.stand_in:
        runpy.run_path(str(STAND_IN))["install"]()
    reached: list[str] = []
    status = 0
    try:
        if run.watched:
            _watch(run.program, reached)
        # Kept: a DDP model that is freed waits for threads that may wait for this one.
        _kept.update(runpy.run_path(run.program, run_name="__main__"))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.setprofile(None)
    (home / f"{rank}.json").write_text(json.dumps(reached))
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return status


def _start(run: Run, home: Path) -> list[int]:
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(max(run.ranks, 1)):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _in_child(run, rank, port, home)
            finally:  # whatever happens, it does not go on as its parent
                os._exit(status)
        children.append(child)
    return children


def _finish(run: Run, children: list[int], home: Path) -> None:
    run.status = max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256 for child in children)
    run.output = "".join(written.read_text() for written in sorted(home.glob("*.txt")))
    for noted in sorted(home.glob("*.json")):
        run.reached += json.loads(noted.read_text())


def main(listed: Path) -> None:
    """Run what a file lists, and write there what came of it."""
    for name in ("torch", "torch._dynamo", "torch.distributed", "accel", "accel.devices.functions"):
        importlib.import_module(name)
    runs = [Run(**one) for one in json.loads(listed.read_text())]
    begun: list[tuple[Run, list[int], Path]] = []
    for number, run in enumerate(runs):
        home = listed.parent / f"run-{number}"
        begun.append((run, _start(run, home), home))
        if len(begun) == 2:
            _finish(*begun.pop(0))
    for one in begun:
        _finish(*one)
    listed.write_text(json.dumps([asdict(run) for run in runs]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
