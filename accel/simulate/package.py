"""The torch-npu package: whether one is here, whether it matches torch, how to get it. No torch."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from accel.errors import DeviceError

_RELEASED = 3  # numbers of a version that must agree: torch-npu 2.13.0 serves torch 2.13.0


def torch_version() -> str:
    """The installed torch's version without its build, such as `2.13.0`.

    Raises:
        DeviceError: There is no torch.
    """
    version = _version("torch")
    if version is None:
        raise DeviceError(
            f"torch is not installed for {sys.executable}: the simulated Ascend runs the real "
            "torch_npu on it; `pip install torch`"
        )
    return version


def installation_directory() -> Path:
    """Where `install` puts torch-npu: beside, not into, the environment's packages.

    Among them it would break a plain `import torch` wherever CANN is missing. In a virtual
    environment it is `torch-npu/` at its top; otherwise a directory of the user's.
    """
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "torch-npu"
    base = os.environ.get("XDG_DATA_HOME")
    root = Path(base) if base else Path.home() / ".local" / "share"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return root / "accel" / f"torch-npu-{tag}"


def find_torch_npu() -> Path | None:
    """The directory to put on the module path; None if torch_npu is importable as it is.

    Raises:
        DeviceError: There is none, or it is made for another torch.
    """
    wanted = torch_version()
    directory = None
    if importlib.util.find_spec("torch_npu") is None:
        directory = installation_directory()
        if not (directory / "torch_npu").is_dir():
            raise DeviceError(
                "torch-npu is not installed: `accel simulate --install` puts torch-npu "
                f"{wanted} into {directory}, outside this Python environment"
            )
    found = _version("torch-npu", directory)
    if found is None:
        raise DeviceError(
            "there is a module torch_npu without the package torch-npu (no version is recorded): "
            "remove it and call `accel simulate --install`"
        )
    if _release(found) != _release(wanted):
        raise DeviceError(
            f"torch-npu {found} does not match torch {wanted}: remove it and call "
            f"`accel simulate --install` for torch-npu {wanted}, or install torch "
            f"{'.'.join(_release(found))}"
        )
    return directory


def install() -> Path:
    """Install the torch-npu that matches the installed torch, with pip.

    Returns:
        Where it is.

    Raises:
        DeviceError: pip fails.
    """
    version = torch_version()
    target = installation_directory()
    fresh = target.with_name(f"{target.name}.new-{os.getpid()}")
    command = [
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"),
        *("--target", str(fresh), f"torch-npu=={version}"),
    ]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if subprocess.run(command).returncode:
            raise DeviceError(
                f"pip could not install torch-npu {version} (above); torch-npu exists for torch "
                "releases from 2.1 on, one each, and for Linux only"
            )
        # What worked before stays until there is something to put in its place.
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except OSError as error:
        raise DeviceError(f"cannot put torch-npu into {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def check_no_real_ascend() -> None:
    """Refuse where a real CANN or chip is: the simulated one must never stand in for it.

    Raises:
        DeviceError: One is here.
    """
    home = os.environ.get("ASCEND_HOME_PATH", "")
    nodes = sorted(glob.glob("/dev/davinci[0-9]*"))
    if home and Path(home).is_dir():
        found = f"CANN is set up here (ASCEND_HOME_PATH={home})"
    elif nodes:
        found = f"there is an Ascend chip here ({nodes[0]})"
    else:
        return
    raise DeviceError(
        f"{found}: run the program without `accel simulate`, or, to simulate all the same, in a "
        "container without the chip and with ASCEND_HOME_PATH unset"
    )


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:_RELEASED]


def _version(name: str, directory: Path | None = None) -> str | None:
    """The installed version without its build, looked up in `directory` or in the environment."""
    path = sys.path if directory is None else [str(directory)]
    for distribution in importlib.metadata.distributions(name=name, path=path):
        return str(distribution.version).split("+")[0]
    return None
