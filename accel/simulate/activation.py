"""Starting the simulated Ascend in a process.

A process gets it in one of three ways:

- `accel simulate [--chip …] -- python train.py`, which also covers every Python process that the
  program starts (torchrun, multiprocessing, DataLoader workers);
- `accel.simulate.activate()` at the top of a program or a test, before torch_npu is imported;
- the pytest plugin (`accel.simulate.pytest_plugin`).

All three end in an import hook: when torch_npu is imported, the runtime is loaded before it and the
operators are registered after it. Nothing else of torch or torch_npu is replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from accel.simulate import build, library, package
from accel.simulate.machine import VARIABLE, Machine, current_machine

PACKAGE = "torch_npu"
_REMARK = "ASCEND_HOME_PATH environment variable is not set"
_STARTUP = Path(__file__).parent / "startup"


def activate(machine: Machine | None = None) -> None:
    """Simulate an Ascend in this process and in those it starts, and import torch_npu.

    Args:
        machine: What to simulate; by default one Ascend 910B2.

    Raises:
        DeviceError: It cannot be done on this machine; the message says what is missing.
        RuntimeError: torch_npu is already imported, with another runtime.
    """
    if active():
        raise RuntimeError("the simulated Ascend is already active in this process")
    if PACKAGE in sys.modules:
        raise RuntimeError("torch_npu is already imported: activate the simulated Ascend before it")
    environment = child_environment(machine or Machine())
    os.environ.update(environment)
    # As PYTHONPATH has it, so that torch_npu is found here too.
    for entry in reversed(environment["PYTHONPATH"].split(os.pathsep)):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    install_hook()
    importlib.import_module(PACKAGE)


def active() -> bool:
    """Whether this process has a simulated Ascend."""
    return library.is_loaded()


def child_environment(machine: Machine) -> dict[str, str]:
    """Environment variables with which a Python process simulates `machine`.

    Raises:
        DeviceError: torch_npu is missing or does not match, or a real Ascend is here.
        ValueError: `TASK_QUEUE_ENABLE` asks for a queue.
    """
    package.check_no_real_ascend()
    overlay = package.find_torch_npu()
    _check_task_queue()
    build.runtime_directory()
    # First, so that Python runs our sitecustomize, which calls the one it hides.
    paths = [str(_STARTUP), *(str(path) for path in (overlay, *_checkout()) if path)]
    # An empty entry is the current directory, and stays; no variable is no entry.
    inherited = os.environ["PYTHONPATH"].split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    paths += [entry for entry in inherited if entry not in paths]
    return {
        VARIABLE: machine.to_text(),
        "PYTHONPATH": os.pathsep.join(paths),
        "TASK_QUEUE_ENABLE": "0",
        # A plain `import torch` brings in torch_npu, as on a machine with CANN.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",
    }


def install_hook() -> None:
    """Load the runtime and the operators around the import of torch_npu, whenever that is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _check_task_queue() -> None:
    # With a queue, kernels written in Python overtake work that torch_npu has queued.
    asked = os.environ.get("TASK_QUEUE_ENABLE", "0")
    if asked != "0":
        raise ValueError(
            f"TASK_QUEUE_ENABLE={asked}: the simulated Ascend runs each operator when it is called "
            "and has no queue; unset it"
        )


def _checkout() -> Sequence[Path]:
    """The directories that hold accel and accel_kernels, where they are not installed."""
    homes = [Path(__file__).parents[2]]
    kernels = importlib.util.find_spec("accel_kernels")
    if kernels is not None and kernels.origin is not None:
        homes.append(Path(kernels.origin).parents[1])
    return [home for home in homes if home.name not in ("site-packages", "dist-packages")]


def _without_remark(run: Callable[[], None]) -> None:
    """Run, and leave out torch_npu's remark that CANN is not set up: here that is the purpose."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run()
    finally:
        for line in printed.getvalue().splitlines(keepends=True):
            if _REMARK not in line:
                sys.stdout.write(line)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch_npu where it is and wraps its loader."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs the real loader between loading the runtime and registering the operators."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        machine = current_machine() or Machine()
        package.check_no_real_ascend()
        _check_task_queue()
        os.environ["TASK_QUEUE_ENABLE"] = "0"
        library.load(machine)
        _without_remark(lambda: self._real.exec_module(module))
        from accel.simulate.operators import registration

        registration.register(machine)

    def __getattr__(self, name: str) -> object:
        # Resources, source and the like: as the real loader has them.
        return getattr(self._real, name)
