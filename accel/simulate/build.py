"""Compiles the stand-in runtime with this machine's C compiler, once per content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accel.errors import DeviceError

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
# No -march: a cache may be shared by machines of one architecture.
_FLAGS = ("-shared", "-fPIC", "-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra")
_LIBRARIES = ("-lpthread", "-lrt", "-ldl", "-lm")
_SECONDS = 120


def cache_directory() -> Path:
    """Where compiled runtimes are kept: `accel/` below `XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "accel" if base else Path.home() / ".cache" / "accel"


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
    target = cache_directory() / f"ascend-{_content()}"
    if not target.exists():
        compiler = _compiler()
        with _private_directory(target.parent) as scratch:
            _compile(compiler, scratch)
            # Another process may have been faster; its result is the same. A directory appears
            # whole or not at all.
            with contextlib.suppress(OSError):
                scratch.rename(target)
    _check_private(target.parent)
    _check_private(target)
    missing = [name for name in (MAIN, *OTHERS) if not (target / name).is_file()]
    if missing:
        raise DeviceError(f"{target} lacks {', '.join(missing)}: remove it, it is made anew")
    return target


def _content() -> str:
    """What the compiled code depends on, in 16 digits."""
    digest = hashlib.sha256(f"{platform.machine()} {_FLAGS} {_LIBRARIES} {OTHERS}".encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> list[str]:
    """The compiler's command: what CC says, with its options, or the first that is here."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        if shutil.which(named[0]):
            return named
        raise DeviceError(
            f"CC names the C compiler {named[0]!r}, which is not there: mend or unset CC"
        )
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise DeviceError(
        "the simulated Ascend is compiled on first use and found no C compiler (cc, gcc or clang, "
        "or the one that CC names): install one, on Debian with `apt-get install gcc libc6-dev`"
    )


@contextlib.contextmanager
def _private_directory(parent: Path) -> Iterator[Path]:
    """A new directory that only this user can enter; removed afterwards if it is still there."""
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=parent))
    except OSError as error:
        raise DeviceError(
            f"cannot keep the compiled runtime below {parent}: {error.strerror}; set "
            "XDG_CACHE_HOME to a directory of yours"
        ) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_private(target: Path) -> None:
    """Code is loaded from here, so nobody else may be able to put it there."""
    state = target.lstat()
    if target.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise DeviceError(
            f"{target} is a link, belongs to somebody else or is writable by others, and code "
            "would be loaded from it: remove it, or set XDG_CACHE_HOME to a directory of yours"
        )


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
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"the C compiler {command[0]} did not run: {error}") from error
    if result.returncode:
        raise DeviceError(
            f"the C compiler {command[0]} could not compile the simulated Ascend (on Debian "
            f"`apt-get install gcc libc6-dev` brings what it needs):\n{result.stderr.strip()}"
        )
