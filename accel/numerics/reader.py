"""Reading a recording that nobody vouches for: truncated, tampered with or hostile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from accel.numerics.blobs import NEXT, check_regular, read_tensor
from accel.numerics.encoding import dtype_named
from accel.numerics.entries import Entry, Key, Kind, ReferenceFailure, RootCall, Skipped
from accel.numerics.manifest import INDEX, MANIFEST, Manifest, manifest_from
from accel.numerics.parsing import Line, line_of

_LARGEST_TEXT = 2**30  # bytes; an index of a million tensors takes a third of this


class Recording:
    """A recording on the disk: its index in memory, its tensors read when asked for.

    Make one with `load_recording`.

    Attributes:
        path: The directory.
        manifest: What ran, where, with which switches.
        entries: What the program computed, in execution order.
        truths: The float64 reference of it, for those tensors that have one.
        calls: The calls of the model, in order.
        failures: Why references are missing.
        skipped: Tensors that could not be recorded.
        dropped: What was left out because the run was killed while it wrote; None if nothing was.
    """

    def __init__(self, path: Path, manifest: Manifest, lines: list[Line], dropped: str | None):
        self.path, self.manifest, self.dropped = path, manifest, dropped
        found = [line for line in lines if isinstance(line, Entry)]
        found.sort(key=lambda entry: entry.sequence)
        self.entries = self._by_key(found, "run")
        self.calls = [line for line in lines if isinstance(line, RootCall)]
        self.failures = [line for line in lines if isinstance(line, ReferenceFailure)]
        failed = {failure.root for failure in self.failures}
        truths = self._by_key(found, "truth")
        self.truths = {key: entry for key, entry in truths.items() if entry.root not in failed}
        self.skipped = [line for line in lines if isinstance(line, Skipped)]

    @staticmethod
    def _by_key(entries: list[Entry], kind: Kind) -> dict[Key, Entry]:
        return {entry.key: entry for entry in entries if entry.kind == kind}

    def tensor(self, entry: Entry) -> Tensor:
        """The values of one entry, on the CPU, checked against its digest.

        Raises:
            ValueError: Its file is missing, damaged or holds something else.
        """
        if entry.blob is None:
            raise ValueError(f"{self.path}: only the digest of {entry.key} was recorded")
        path = self.path / entry.blob
        try:
            return read_tensor(path, entry.digest, dtype_named(entry.dtype), entry.shape)
        except ValueError as error:
            raise ValueError(f"{error} ({entry.key})") from error


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Open a recording.

    Everything in it is checked before it is believed, every tensor against its digest: no file
    outside the directory is read, no memory is allocated on the word of a file, nothing is
    unpickled.

    Args:
        path: The directory that `record` wrote.

    Returns:
        The recording; of a run that was killed, what it had written.

    Raises:
        ValueError: It is missing, truncated, of another schema or tampered with. The message names
            the file, the reason and the next step.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root} is no recording: there is no such directory")
    manifest_path = root / MANIFEST
    try:
        manifest = manifest_from(_text_of(manifest_path).decode())
    except (ValueError, UnicodeDecodeError) as error:
        if str(error).startswith(str(manifest_path)):
            raise
        raise ValueError(f"{manifest_path} cannot be read: {error}; {NEXT}") from error
    lines, dropped = _lines_of(root / INDEX, manifest.complete)
    if manifest.complete and len(lines) != manifest.lines:
        raise ValueError(
            f"{root / INDEX} has {len(lines)} lines where the manifest says {manifest.lines}; "
            f"{NEXT}"
        )
    recording = Recording(root, manifest, lines, dropped)
    _check_blobs(recording)
    return recording


def _check_blobs(recording: Recording) -> None:
    """Read every tensor once: a comparison by digest alone would believe a damaged file."""
    entries = [*recording.entries.values(), *recording.truths.values()]
    for entry in {entry.digest: entry for entry in entries if entry.blob is not None}.values():
        recording.tensor(entry)


def _text_of(path: Path) -> bytes:
    check_regular(path)
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise ValueError(f"{path} is larger than {_LARGEST_TEXT} bytes; {NEXT}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _lines_of(path: Path, complete: bool) -> tuple[list[Line], str | None]:
    raw = _text_of(path).split(b"\n")
    last = raw.pop()
    dropped = None
    if last and complete:
        raise ValueError(f"{path}: line {len(raw) + 1} is truncated; {NEXT}")
    if last:
        dropped = f"line {len(raw) + 1} of {path.name}, which was being written"
    return list(_parsed(path, raw)), dropped


def _parsed(path: Path, raw: list[bytes]) -> Iterator[Line]:
    for number, line in enumerate(raw, start=1):
        try:
            yield line_of(_json(line))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: line {number} is damaged: {error}; {NEXT}") from error


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
