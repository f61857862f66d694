"""Compiles the stand-in runtime with this machine's C compiler, once per content."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from accel.errors import DeviceError
from accel_kernels import compiled

SOURCES = Path(__file__).parent / "runtime"
MAIN = "libascendcl.so"
# torch_npu is linked against these too, or opens them; each is empty and refers to MAIN, which has
# the functions.
OTHERS = (
    "libhccl.so",
    "libhcomm.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
)
_FLAGS = (*compiled.FLAGS, "-O2")
_LIBRARIES = ("-lpthread", "-lrt", "-ldl", "-lm")
_WHAT = "the simulated Ascend"


def runtime_directory() -> Path:
    """The directory that holds the compiled runtime, which is made if it is not there.

    Raises:
        DeviceError: This is no Linux, there is no C compiler, it fails, or the cache directory
            cannot be used.
    """
    if sys.platform != "linux":
        raise DeviceError(
            f"the simulated Ascend needs Linux, as torch_npu does; this is {sys.platform}: "
            "run it in a Linux container"
        )
    settings = f"{_FLAGS} {_LIBRARIES} {OTHERS}"
    name = f"ascend-{compiled.content_digest(settings, sorted(SOURCES.iterdir()))}"
    with _device_errors():
        return compiled.kept_directory(
            name, (MAIN, *OTHERS), lambda scratch: _compile(_compiler(), scratch)
        )


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except compiled.CompileError as error:
        raise DeviceError(str(error)) from error


def _compiler() -> list[str]:
    return compiled.find_compiler(_WHAT)


def _compile(compiler: list[str], scratch: Path) -> None:
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    main = scratch / MAIN
    _run(*compiler, *_FLAGS, *sources, f"-Wl,-soname,{MAIN}", "-o", str(main), *_LIBRARIES)
    empty = scratch / "empty.c"
    empty.write_text("typedef int nothing;\n")
    for name in OTHERS:
        linked = ("-Wl,--no-as-needed", str(main), f"-Wl,-soname,{name}")
        _run(*compiler, "-shared", "-fPIC", str(empty), *linked, "-o", str(scratch / name))


def _run(*command: str) -> None:
    compiled.run_compiler(_WHAT, command)
