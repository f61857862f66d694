"""C code of this package, compiled with this machine's compiler on first use, once per content.

What is compiled is kept in a directory that only this user can write to, because code is loaded
from there. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# No -march: a cache may be shared by machines of one architecture.
FLAGS = ("-shared", "-fPIC", "-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra")
_SECONDS = 120


class CompileError(OSError):
    """There is no C compiler, it fails, or its results cannot be kept; says what to do."""


def cache_directory() -> Path:
    """Where compiled code is kept: `accel/` below `XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "accel" if base else Path.home() / ".cache" / "accel"


def content_digest(settings: str, sources: Sequence[Path]) -> str:
    """What compiled code depends on (machine, settings, sources), in 16 hexadecimal digits."""
    digest = hashlib.sha256(f"{platform.machine()} {settings}".encode())
    for path in sources:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler(what: str) -> list[str]:
    """The compiler's command: what CC says, with its options, or the first that is here.

    Raises:
        CompileError: There is none, or CC names one that is not there.
    """
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        if shutil.which(named[0]):
            return named
        raise CompileError(
            f"CC names the C compiler {named[0]!r}, which is not there: mend or unset CC"
        )
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise CompileError(
        f"{what} is compiled on first use and found no C compiler (cc, gcc or clang, "
        "or the one that CC names): install one, on Debian with `apt-get install gcc libc6-dev`"
    )


def run_compiler(what: str, command: Sequence[str]) -> None:
    """Run the compiler; `what` says what it compiles.

    Raises:
        CompileError: It does not start, does not end or fails; its own words are quoted.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"the C compiler {command[0]} did not run: {error}") from error
    if result.returncode:
        raise CompileError(
            f"the C compiler {command[0]} could not compile {what} (on Debian "
            f"`apt-get install gcc libc6-dev` brings what it needs):\n{result.stderr.strip()}"
        )


def kept_directory(name: str, files: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The directory of that name in the cache, which is made if it is not there.

    Args:
        name: Says by a digest what is in it: what is found under it is believed.
        files: What it must hold.
        make: Writes them into an empty directory.

    Raises:
        CompileError: The cache cannot be used, others could write to it, or a file is missing.
    """
    target = cache_directory() / name
    if not target.exists():
        with _private_directory(target.parent) as scratch:
            make(scratch)
            # Another process may have been faster; its result is the same. A directory appears
            # whole or not at all.
            with contextlib.suppress(OSError):
                scratch.rename(target)
    _check_private(target.parent)
    _check_private(target)
    missing = [name for name in files if not (target / name).is_file()]
    if missing:
        raise CompileError(f"{target} lacks {', '.join(missing)}: remove it, it is made anew")
    return target


def compiled_library(
    source: Path, what: str, flags: Sequence[str] = (), shared: Sequence[Path] = ()
) -> Path:
    """The shared library made of one C file.

    Args:
        source: The C file; what it includes of its own directory is named `*.h`.
        what: Names it in errors: "the sketch of tensors".
        flags: The compiler's options besides `FLAGS`; libraries (`-lm`) too.
        shared: Headers of other directories that it includes by their names.

    Raises:
        CompileError: It cannot be compiled or kept, or this is no POSIX system.
    """
    if os.name != "posix":
        raise CompileError(f"{what} is compiled on POSIX systems only, and this is {os.name}")
    settings = (*FLAGS, *flags)
    sources = [source, *sorted(source.parent.glob("*.h")), *shared]
    places = [f"-I{place}" for place in dict.fromkeys(path.parent for path in shared)]
    library = f"{source.stem}.so"

    def make(scratch: Path) -> None:
        target = ["-o", str(scratch / library)]
        run_compiler(what, [*find_compiler(what), *FLAGS, *places, str(source), *target, *flags])

    name = f"{source.stem}-{content_digest(str(settings), sources)}"
    return kept_directory(name, [library], make) / library


@contextlib.contextmanager
def _private_directory(parent: Path) -> Iterator[Path]:
    """A new directory that only this user can enter; removed afterwards if it is still there."""
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=parent))
    except OSError as error:
        raise CompileError(
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
        raise CompileError(
            f"{target} is a link, belongs to somebody else or is writable by others, and code "
            "would be loaded from it: remove it, or set XDG_CACHE_HOME to a directory of yours"
        )
