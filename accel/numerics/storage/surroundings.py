"""What a manifest says of the machine, the switches and the program, found out."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from accel._version import __version__
from accel.numerics.storage.manifest import Manifest, Revision

if TYPE_CHECKING:
    from torch import nn

_GIT_MAY_TAKE = 5.0  # seconds


def manifest_for(
    model: nn.Module,
    *,
    level: str,
    only: Sequence[str] = (),
    steps: str,
    rank: int = 0,
    world: int = 1,
    data_parallel: tuple[int, int] | None = None,
    seed: int | None = None,
    arguments: Sequence[str] | None = None,
) -> Manifest:
    """The manifest of a recording of `model` that is about to begin.

    Args:
        model: Its parameters' device is recorded.
        level: `sketch`, `full` or `check`.
        only: Patterns of the operators whose elements are kept.
        steps: Which steps are asked for, in words.
        rank: Which process.
        world: How many processes.
        data_parallel: Which of how many replicas the process belongs to.
        seed: `torch.initial_seed()` if None.
        arguments: `sys.argv` if None.

    Raises:
        ValueError: The model is on the meta device.
    """
    import torch

    from accel import devices

    return Manifest(
        framework="torch",
        versions=versions("torch", "torch_npu"),
        platform=platform_text(),
        device=_device(model),
        numerics_mode=devices.numerics_mode().to_dict(),
        seed=torch.initial_seed() if seed is None else seed,
        arguments=tuple(str(a) for a in (sys.argv if arguments is None else arguments)),
        revision=revision(),
        level=level,
        only=tuple(only),
        steps=steps,
        rank=rank,
        world=world,
        data_parallel=data_parallel,
    )


def versions(*modules: str) -> dict[str, str]:
    """Versions of python, accel and those of `modules` that are loaded."""
    found = {"python": platform.python_version(), "accel": __version__}
    for name in modules:
        if name in sys.modules:
            version = getattr(sys.modules[name], "__version__", None)
            found[name] = metadata.version(name) if version is None else str(version)
    return found


def platform_text() -> str:
    """`Linux 6.1 x86_64`."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def revision() -> Revision | None:
    """Which commit the working directory is at; None where git or a repository is missing."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit):
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    return Revision(commit, None if changes is None else changes != "")


def _git(*arguments: str) -> str | None:
    """What git prints; None if it cannot tell (no git, no repository, no commit, too slow)."""
    # No lock is taken and nothing that the repository's settings name is started.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_MAY_TAKE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _device(model: nn.Module) -> dict[str, str]:
    import torch

    from accel import devices

    first = next(iter([*model.parameters(), *model.buffers()]), None)
    place = torch.device("cpu") if first is None else first.device
    if place.type == "meta":
        raise ValueError("the model is on the meta device and computes nothing: load its weights")
    device = devices.find_device(place)
    # The index tells nothing about the chip, and differs between ranks that agree.
    kind = re.sub(r":\d+$", "", str(place))
    return {"chip": device.name, "family": device.family, "torch_device": kind}
