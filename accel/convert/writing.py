"""Write converted files: each whole or not at all, with its permissions, through its links."""

from __future__ import annotations

import ast
import json
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from accel.convert.finding import FileResult


class Written(NamedTuple):
    """What became of the files that were to be written.

    Attributes:
        done: Names of the files that are written.
        failed: Names of those that are as they were, each with the reason.
        is_interrupted: Whether the user stopped it; the rest is in `failed`.
    """

    done: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    is_interrupted: bool = False


def write(files: Iterable[tuple[FileResult, Path]]) -> Written:
    """Write the changed ones of some results into their places.

    Args:
        files: Results, each with the place of its file.
    """
    waiting = [(result, place) for result, place in files if result.is_changed]
    done: list[str] = []
    failed: list[tuple[str, str]] = []
    try:
        for result, place in waiting:
            try:
                _write_one(result, place)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                failed.append((result.path, reason or str(error)))
            else:
                done.append(result.path)
    except KeyboardInterrupt:
        _settle(waiting, done, failed)
        return Written(tuple(done), tuple(failed), True)
    return Written(tuple(done), tuple(failed))


def _settle(
    waiting: Sequence[tuple[FileResult, Path]], done: list[str], failed: list[tuple[str, str]]
) -> None:
    """Look at the files that an interrupt left open: the one it came in may be written."""
    seen = {*done, *(path for path, _ in failed)}
    for result, place in waiting:
        if result.path not in seen:
            if place.read_bytes() == result.after:
                done.append(result.path)
            else:
                failed.append((result.path, "interrupted before it was written"))


def _write_one(result: FileResult, place: Path) -> None:
    problem = why_broken(result.language, result.before, result.after)
    if problem:
        raise ValueError(problem)
    target = Path(os.path.realpath(place))
    mode = stat.S_IMODE(target.stat().st_mode)
    # A rename would replace it all the same; who took the right to write away meant it.
    if not mode & 0o222:
        raise PermissionError(13, "the file is read-only: make it writable, or exclude it")
    if target.read_bytes() != result.before:
        raise ValueError("the file was changed since it was read: run again")
    replace(target, result.after)


def replace(target: Path, data: bytes) -> None:
    """Put new bytes into a file that exists: beside it first, then renamed into its place.

    Its permissions and its owner stay.

    Raises:
        OSError: It cannot be written, or not with its owner; it is as it was.
    """
    beside = target.parent / f".accel-{secrets.token_hex(8)}.part"
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _keep_owner(target, beside)
        shutil.copymode(target, beside)  # after the owner, whose change clears some bits
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _keep_owner(target: Path, beside: Path) -> None:
    old, new = target.stat(), beside.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.chown(beside, old.st_uid, old.st_gid)


def why_broken(language: str, before: bytes, after: bytes) -> str:
    """Why a converted text must not be written; "" if it may.

    The original is known to parse, or there would be no conversion; for a kind that nobody parses
    there is nothing to say.
    """
    if language == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the original's own, such as "\d" in a string
            try:
                ast.parse(after)
            except (SyntaxError, ValueError) as error:
                return f"the converted text would not parse ({error}): a bug of the converter"
    if language in ("notebook", "json") and _is_json(before) and not _is_json(after):
        return "the converted text would be no JSON: a bug of the converter"
    return ""


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
