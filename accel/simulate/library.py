"""The compiled runtime as Python sees it: loading, settings, counters, memory views."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.simulate import build
from accel.simulate.machine import Machine


class _Config(ctypes.Structure):
    """`SimConfig` of runtime.h."""

    _fields_ = (
        ("soc_name", ctypes.c_char_p),
        ("devices", ctypes.c_int32),
        ("cube_cores", ctypes.c_int32),
        ("vector_cores", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("l2_bytes", ctypes.c_int64),
        ("memory_bytes", ctypes.c_uint64),
    )


class _Counters(ctypes.Structure):
    """`SimCounters` of runtime.h."""

    _fields_ = (
        ("copies", ctypes.c_uint64 * 4),
        ("copied_bytes", ctypes.c_uint64 * 4),
        ("synchronizations", ctypes.c_uint64),
        ("operators", ctypes.c_uint64),
    )


class RuntimeTensor(ctypes.Structure):
    """`SimTensor` of operators.c: one input or output of an operator started from C++."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("dtype", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
    )


OperatorHandler = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.POINTER(RuntimeTensor),
    ctypes.c_int,
    ctypes.POINTER(RuntimeTensor),
    ctypes.c_char_p,
)

_JIT_COMPILE = 10  # ACL_OP_JIT_COMPILE of aclCompileOpt: torch_npu asks for the chip's default
DIRECTIONS = ("host to host", "host to device", "device to host", "device to device")


@dataclass(frozen=True)
class Counters:
    """What the runtime did in this process so far.

    Attributes:
        copies: Number of copies by direction (`DIRECTIONS`).
        copied_bytes: Bytes by direction.
        synchronizations: Times the host waited for a stream, an event or a device.
        operators: Operators that torch_npu started from its own C++.
    """

    copies: dict[str, int]
    copied_bytes: dict[str, int]
    synchronizations: int
    operators: int


class Runtime:
    """The loaded runtime. One per process: `load` makes it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        # Called for every operand of every operator: prototypes make it cheap.
        self.bytes_at: Callable[[int, int, bytes], int | None] = library.sim_bytes
        library.sim_bytes.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
        library.sim_bytes.restype = ctypes.c_void_p
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        library.sim_peak_bytes.restype = ctypes.c_uint64
        library.sim_note_copy.argtypes = (ctypes.c_int, ctypes.c_uint64)

    def host_address(self, pointer: int, size: int) -> int:
        """The host's view of `size` bytes of device memory at `pointer`.

        Raises:
            RuntimeError: They are not inside one live allocation.
        """
        found = self.bytes_at(pointer, size, b"operator")
        if not found:
            raise RuntimeError(self.last_error())
        return found

    def last_error(self) -> str:
        """The calling thread's last error."""
        return bytes(self._library.aclGetRecentErrMsg()).decode(errors="replace")

    def set_error(self, message: str) -> None:
        """Make `message` the calling thread's last error."""
        self._library.sim_set_error(message.encode())

    def set_operator_handler(self, handler: Any) -> None:
        """Run operators that torch_npu starts from C++ with `handler`."""
        self._library.sim_set_operator_handler(handler)

    def note_copy(self, direction: int, size: int) -> None:
        """Count a copy that an operator made itself."""
        self._library.sim_note_copy(direction, size)

    def note_synchronization(self) -> None:
        """Count a wait of the host for the device."""
        self._library.sim_note_synchronization()

    def counters(self) -> Counters:
        """What happened so far."""
        raw = _Counters()
        self._library.sim_read_counters(ctypes.byref(raw))
        return Counters(
            copies=dict(zip(DIRECTIONS, raw.copies, strict=True)),
            copied_bytes=dict(zip(DIRECTIONS, raw.copied_bytes, strict=True)),
            synchronizations=raw.synchronizations,
            operators=raw.operators,
        )

    def peak_bytes(self, device: int) -> int:
        """Most bytes of device memory that were allocated at once."""
        return int(self._library.sim_peak_bytes(device))


_runtime: Runtime | None = None


def load(machine: Machine) -> Runtime:
    """Compile (once), load and configure the runtime, before torch_npu is imported.

    Raises:
        DeviceError: It cannot be compiled (see `build.runtime_directory`).
        RuntimeError: It is loaded already.
    """
    global _runtime
    if _runtime is not None:
        raise RuntimeError("the simulated Ascend is already loaded in this process")
    directory = build.runtime_directory()
    library = _open(directory / build.MAIN)
    for name in build.OTHERS:
        _open(directory / name)
    runtime = Runtime(library)
    profile = machine.profile
    config = _Config(
        soc_name=profile.soc_name.encode(),
        devices=machine.devices,
        cube_cores=profile.cube_cores,
        vector_cores=profile.vector_cores,
        poison=machine.poison,
        l2_bytes=profile.l2_bytes,
        memory_bytes=machine.memory_bytes,
    )
    if library.sim_configure(ctypes.byref(config)) != 0:
        raise RuntimeError(runtime.last_error())
    library.aclSetCompileopt(_JIT_COMPILE, b"enable" if profile.jit_compile else b"disable")
    _runtime = runtime
    return runtime


def is_loaded() -> bool:
    """Whether this process has the runtime."""
    return _runtime is not None


def current_runtime() -> Runtime:
    """The runtime of this process.

    Raises:
        RuntimeError: None is loaded.
    """
    if _runtime is None:
        raise RuntimeError("no simulated Ascend is loaded: start with `accel simulate -- …`")
    return _runtime


def _open(path: Path) -> ctypes.CDLL:
    # Global, so that torch_npu's undefined symbols are found here.
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
