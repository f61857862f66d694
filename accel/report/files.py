"""Output files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file: beside its place first, then renamed into it.

    Args:
        path: The file; replaced if it exists. A device such as `/dev/stdout` is written directly.
        content: Text (as UTF-8) or bytes.

    Raises:
        OSError: It cannot be written; the message names the file and the reason, and what stood at
            `path` before is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    try:
        if _is_special(target):
            target.write_bytes(data)
            return
        beside = _beside(target)
        try:
            _write_new(beside, data)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before work is done for it, that `path` can be written.

    Raises:
        OSError: It cannot; the message names the file and the reason. Nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a directory")
        if _is_special(target):
            return
        beside = _beside(target)
        try:
            _write_new(beside, b"")
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _beside(target: Path) -> Path:
    return target.parent / f".accel-{secrets.token_hex(8)}.part"


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _unwritable(path: str | os.PathLike[str], error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return OSError(f"cannot write {os.fspath(path)}: {reason}; choose another place for it")
