"""Processes that are ranks of the stand-in HCCL, and its calls from Python."""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
REDUCTIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3}
# Name, HCCL's number, what numpy holds it in.
TYPES = {
    "int8": (0, np.int8),
    "int16": (1, np.int16),
    "int32": (2, np.int32),
    "float16": (3, np.float16),
    "float32": (4, np.float32),
    "int64": (5, np.int64),
    "uint64": (6, np.uint64),
    "uint8": (7, np.uint8),
    "uint16": (8, np.uint16),
    "uint32": (9, np.uint32),
    "float64": (10, np.float64),
    "bfloat16": (11, np.uint16),
    "int128": (12, np.complex128),
    "hifloat8": (14, np.uint8),
    "float8_e4m3": (15, np.uint8),
    "float8_e5m2": (16, np.uint8),
    "float8_e8m0": (17, np.uint8),
}
REDUCED = ("int8", "int16", "int32", "int64", "uint8", "uint64")
REDUCED += ("float16", "bfloat16", "float32", "float64")
ROOT_INFO = 4108
CONFIG = 2416  # bytes of HcclCommConfig


class HcclError(Exception):
    """A call that failed: HCCL's code and the recorded message."""

    def __init__(self, call: str, code: int, message: str):
        super().__init__(f"{call} -> {code}: {message}")
        self.code = code


class Item(ctypes.Structure):
    """`HcclSendRecvItem`."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("dtype", ctypes.c_int32),
        ("peer", ctypes.c_uint32),
    )


def ascend_pointer(array):
    return ctypes.c_void_p(array.ctypes.data if array is not None and array.size else None)


class Rank:
    """One communicator of this process; arrays stand for device memory."""

    def __init__(self, library, rank: int, size: int, handle=None):
        self.library, self.rank, self.size = library, rank, size
        self.handle = handle if handle is not None else ctypes.c_void_p()

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code:
            raise HcclError(name, code, self.library.last_error().decode())

    def join(self, info: bytes):
        buffer = ctypes.create_string_buffer(info, ROOT_INFO)
        self.call("HcclCommInitRootInfo", self.size, buffer, self.rank, ctypes.byref(self.handle))
        return self

    def destroy(self):
        self.call("HcclCommDestroy", self.handle)

    def run(self, name, *arguments):
        """Arrays become pointers, integers 64-bit counts, names of types and roots stay 32-bit."""
        made = []
        for argument in arguments:
            if argument is None or isinstance(argument, np.ndarray):
                made.append(ascend_pointer(argument))
            elif isinstance(argument, str):
                made.append(
                    ctypes.c_uint32(
                        TYPES[argument][0] if argument in TYPES else REDUCTIONS[argument]
                    )
                )
            elif isinstance(argument, ctypes.c_uint32):
                made.append(argument)
            else:
                made.append(ctypes.c_uint64(argument))
        self.call(name, *made, self.handle, None)

    def batch(self, *items):
        """Each item: "send" or "receive", array, name of the type, other rank."""
        made = (Item * len(items))()
        for i, (kind, array, dtype, peer) in enumerate(items):
            made[i] = Item(
                int(kind == "receive"),
                ascend_pointer(array).value,
                array.size,
                TYPES[dtype][0],
                peer,
            )
        self.call("HcclBatchSendRecv", made, len(items), self.handle, None)


def root_info(library) -> bytes:
    buffer = ctypes.create_string_buffer(ROOT_INFO)
    code = library.HcclGetRootInfo(buffer)
    assert code == 0, library.last_error()
    return buffer.raw


def u32(value):
    return ctypes.c_uint32(value)


class Ranks:
    """Processes for all ranks of a communicator, made by the library at `path`."""

    def __init__(self, path: Path, size: int, *, join: bool = True, **environment: str):
        command = [sys.executable, "-m", "tests.simulate.hccl_checks", str(path)]
        self.processes = [
            subprocess.Popen(
                [*command, str(rank), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )
            for rank in range(size)
        ]
        self.everyone = range(size)
        if join:
            self.all("join", self.root_info())

    def root_info(self) -> str:
        self.start(0, "root_info")
        return self.answer(0)["value"]

    def start(self, rank: int, name: str, *arguments) -> None:
        self.processes[rank].stdin.write(json.dumps([name, arguments]) + "\n")
        self.processes[rank].stdin.flush()

    def answer(self, rank: int, seconds: float = SECONDS) -> dict:
        """What the last check of a rank came to; fails if that takes more than `seconds`."""
        output = self.processes[rank].stdout
        ready, _, _ = select.select([output], [], [], seconds)
        assert ready, f"rank {rank} gave no answer within {seconds} s"
        line = output.readline()
        assert line, f"rank {rank} has ended with {self.processes[rank].wait(10)}"
        return json.loads(line)

    def all(self, name: str, *arguments) -> None:
        """Run a check on every rank; none may fail."""
        for rank in self.everyone:
            self.start(rank, name, *arguments)
        for rank in self.everyone:
            error = self.answer(rank)["error"]
            assert error is None, f"rank {rank}: {error}"

    def kill(self, rank: int) -> None:
        """End a rank at once. Nobody collects it yet: it stays a zombie."""
        self.processes[rank].kill()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
