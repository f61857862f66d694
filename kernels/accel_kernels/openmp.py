"""The threads that torch computes with, for compiled code of this package.

A thread of its own would share a core with one of torch's, which spins for some milliseconds after
each of torch's operators, in case that another follows.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from pathlib import Path

import torch

TEAM_HEADER = Path(__file__).parent / "native" / "team.h"
"""What a library includes that `use_torch_threads` is called with."""

_RUNTIMES = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*\.so[^/]*$")


@functools.cache
def team_starter() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch uses.

    `GOMP_parallel(function, data, threads, flags)` runs `function(data)` on each thread of a team,
    the caller among them; LLVM's and Intel's runtimes have it too.

    Returns:
        None where torch has no such runtime, or it cannot be told from another one.
    """
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if _RUNTIMES.search(line)}
    home = str(Path(torch.__file__).parent)  # wheels bring their own, in torch/lib or torch.libs
    own = {path for path in paths if path.startswith((f"{home}/", f"{home}.libs/"))}
    found = own or paths
    if len(found) != 1:
        return None
    function = getattr(ctypes.CDLL(found.pop()), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


def use_torch_threads(library: ctypes.CDLL) -> None:
    """Let a compiled library, which includes `team.h`, compute on torch's threads."""
    library.accel_use_team.argtypes = (ctypes.c_void_p,)
    library.accel_use_team.restype = None
    library.accel_use_team(team_starter())
