"""Processes that begin with torch imported: forked from one that has done nothing else.

For tests that need a process but not its start. What is about starting (imports, variables that are
read then, a simulated Ascend) starts an interpreter of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest


def start(
    script: Path, output: Path, arguments: Sequence[str] = (), *, cwd: Path | None = None,
    strict: bool = False, **environment: str,
) -> BaseProcess:  # fmt: skip
    """Run `script` with one thread; what it writes goes to `output`.

    Args:
        script: A Python file, run as `__main__`.
        output: Where its standard output and error go.
        arguments: Its arguments.
        cwd: Where it runs, if not here.
        strict: Whether warnings are errors.
        **environment: Variables beside those of this process.
    """
    process: BaseProcess = _server().Process(
        target=_run,
        args=(
            str(script), str(output), list(arguments), str(cwd or Path.cwd()), strict,
            {**os.environ, **environment},
        ),
    )  # fmt: skip
    process.start()
    return process


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with pytest.MonkeyPatch.context() as patch:  # libgomp reads it when it is loaded
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _run(
    script: str, output: str, arguments: list[str], cwd: str, strict: bool,
    environment: dict[str, str],
) -> None:  # fmt: skip
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    if strict:
        warnings.simplefilter("error")
    runpy.run_path(script, run_name="__main__")
    atexit._run_exitfuncs()  # a forked process ends without them
