"""What several checks say the same way."""

from __future__ import annotations

import shlex

from accel.doctor.finding import Mend
from accel.doctor.survey import Survey, autoload_enabled
from accel.doctor.torch_facts import base

MINIMUM_TORCH = "2.11"
MINIMUM_NUMPY = "1.26"

# PyTorch's page that gives the install command for each build and platform.
BUILD_PAGE = "https://pytorch.org/get-started/locally/"

_DRIVER_COMMANDS = {
    "ubuntu": "sudo ubuntu-drivers install",
    "debian": "sudo apt install nvidia-driver",
    "fedora": "sudo dnf install akmod-nvidia",
    "arch": "sudo pacman -S nvidia",
}

_VISIBILITY = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "npu": ("ASCEND_RT_VISIBLE_DEVICES",),
}


def pip(survey: Survey, *arguments: str) -> str:
    """A pip command for the interpreter that was looked at."""
    return shlex.join([survey.machine.executable, "-m", "pip", *arguments])


def in_new_environment(name: str, *packages: str) -> str:
    """Commands, in one line, that install packages into a virtual environment of their own."""
    install = shlex.join(["python", "-m", "pip", "install", *packages])
    return f"python3 -m venv {name} && . {name}/bin/activate && {install}"


def autoload_mend(survey: Survey) -> Mend:
    """Switching plugins off; verified where torch was run that way and passed a smoke test."""
    passed = ", ".join(survey.passed())
    tried = autoload_enabled(survey.machine) and survey.retry is not None
    works = tried and survey.retry is not None and survey.retry.imported and bool(passed)
    return Mend(
        "export TORCH_DEVICE_BACKEND_AUTOLOAD=0",
        f"go on without the plugin, on {passed}" if works else "go on without the plugin",
        works if tried else None,
    )


def hiding_variable(survey: Survey, family: str, count: int) -> str:
    """The variable that hides every device of a family; empty if none does.

    CUDA, HIP and CANN all read a list of indices up to the first one that is not valid.

    Args:
        survey: Everything known.
        family: `cuda`, `rocm` or `npu`.
        count: How many devices of the family are here.

    Returns:
        The variable's name.
    """
    for name in _VISIBILITY[family]:
        value = survey.machine.environment.get(name)
        if value is not None:
            first = value.split(",")[0].strip()
            too_high = first.isdecimal() and int(first) >= count
            if not first or first.startswith("-") or too_high:
                return name
    return ""


def in_container(survey: Survey) -> bool:
    """Whether this runs in a Docker or Podman container."""
    return any(map(survey.machine.exists, ("/.dockerenv", "/run/.containerenv")))


def nvidia_driver_command(survey: Survey) -> str:
    """How this distribution installs NVIDIA's driver."""
    release = survey.machine.read("/etc/os-release") or ""
    for line in release.splitlines():
        name, _, value = line.partition("=")
        if name == "ID" and (command := _DRIVER_COMMANDS.get(value.strip('"'))):
            return command
    return "xdg-open https://www.nvidia.com/drivers"


def torch_release(survey: Survey) -> str:
    """The torch to reinstall: this release, or the oldest that is supported if there is none."""
    version = base(survey.torch_version)
    return f"torch=={version}" if version else f"torch>={MINIMUM_TORCH}"
