"""Writing a recording: append-only, content-addressed, readable up to the last line if killed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel.numerics.storage.entries import End, Line
from accel.numerics.storage.layouts import Elements, safetensors_parts
from accel.numerics.storage.lines import Encoder
from accel.numerics.storage.manifest import INDEX, MANIFEST, Manifest
from accel.report import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

BUFFER = 32 * 2**20  # bytes of tensors that wait for their file
_LINES_BUFFER = 4 * 2**20  # bytes of lines that wait for it with them
_MOST_TENSORS = 20_000  # in one file: its header stays below 4 MiB


class Writer:
    """The recording of one rank on its way to the disk.

    After the first OSError nothing more is written and nothing more is raised: `failed` tells.

    Args:
        path: The recording. May exist if it holds nothing but recordings of other ranks.
        manifest: Written at once, not yet complete; its rank names the directory.
        cap: Bytes of kept tensors, over all steps, beyond which no further tensor is kept.

    Attributes:
        path: The recording.
        directory: The rank's part of it.
        failed: Whether something could not be written.

    Raises:
        ValueError: `path` or the rank's directory is in use; nothing is touched.
        OSError: It cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], manifest: Manifest, cap: int | None = None
    ) -> None:
        if cap is not None and (type(cap) is not int or cap < 0):
            raise ValueError(f"cap must be a number of bytes or None, got {cap!r}")
        self.path = Path(path)
        self.directory = self.path / f"rank-{manifest.rank}"
        self.failed = False
        self._cap, self._kept = cap, 0
        self._steps: dict[int, StepWriter] = {}
        text = manifest.to_text()
        with self.clear_errors():
            check_new(self.path, manifest.rank)
            self.path.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(exist_ok=True)
            write_atomically(self.directory / MANIFEST, text)

    def start_step(self, index: int) -> StepWriter:
        """Begin a step.

        Raises:
            ValueError: It was begun before.
            OSError: It cannot be written.
        """
        if index in self._steps:
            raise ValueError(f"step {index} was recorded before: number the steps apart")
        self._steps[index] = StepWriter(self, index)
        return self._steps[index]

    def finish(self, manifest: Manifest) -> None:
        """Write everything that is buffered, then the final manifest in place of the first.

        Raises:
            OSError: It cannot be written.
        """
        for step in self._steps.values():
            step.close()
        if not self.failed:
            with self.clear_errors():
                write_atomically(self.directory / MANIFEST, manifest.to_text())

    def admit(self, size: int) -> bool:
        """Count a tensor of `size` bytes as kept, unless that exceeds the cap."""
        if self._cap is not None and self._kept + size > self._cap:
            return False
        self._kept += size
        return True

    @contextlib.contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Turn an OSError into one that names the recording and the next step."""
        try:
            yield
        except OSError as error:
            self.failed = True
            raise OSError(
                f"cannot write the recording {self.path}: {error.strerror or error}; "
                "free space or choose another place, and record again"
            ) from error


class StepWriter:
    """One step of one rank on its way to the disk.

    Lines are on the disk when `add` returns, unless tensors wait: then they wait with them, at most
    32 MiB of tensors and 4 MiB of lines, so that no line names a tensor that is not on the disk.

    Args:
        writer: Of the rank.
        index: Which step.

    Attributes:
        dropped: How many tensors were not kept because of the cap.
    """

    def __init__(self, writer: Writer, index: int) -> None:
        self.dropped = 0
        self._writer = writer
        self._directory = writer.directory / f"step-{index}"
        self._encoder = Encoder()
        self._lock = threading.Lock()  # the backward pass may run in a thread of its own
        self._known: set[str] = set()
        self._waiting: dict[str, Elements] = {}
        self._waiting_bytes = self._blobs = self._length = 0
        self._lines = bytearray()
        self._file = -1
        if not writer.failed:
            with writer.clear_errors():
                self._directory.mkdir()
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._directory / INDEX, flags, 0o666)

    def add(self, *entries: Line) -> None:
        """Append lines, in one write.

        Raises:
            OSError: They cannot be written; none of them is.
        """
        with self._lock:
            if self._file < 0:
                return
            lines = self._encoder.lines_of(*entries)
            if not self._waiting:
                self._append(lines)
                return
            self._lines += lines
            if len(self._lines) >= _LINES_BUFFER:
                self._flush()

    def keep(self, tensor: Tensor | Elements) -> str | None:
        """Store a tensor, once for all of its dtype, shape and bytes in this step.

        Args:
            tensor: Contiguous, on the CPU, and the writer's own from now on.

        Returns:
            Its digest; None if the cap is reached or the recording has failed.

        Raises:
            OSError: What waited cannot be written.
        """
        elements = _elements_of(tensor)
        digest = elements.digest
        with self._lock:
            if self._file < 0:
                return None
            if digest in self._known:
                return digest
            if not self._writer.admit(elements.data.nbytes):
                self.dropped += 1
                return None
            self._known.add(digest)
            self._waiting[digest] = elements
            self._waiting_bytes += elements.data.nbytes
            if self._waiting_bytes >= BUFFER or len(self._waiting) >= _MOST_TENSORS:
                self._flush()
        return digest

    def end(self, end: End) -> None:
        """Append the last line; nothing can be added after it.

        Raises:
            OSError: It cannot be written.
        """
        self.add(end)
        self.close()

    def close(self) -> None:
        """Write what waits, and leave the step as it is: without a last line, it did not end.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            if self._file >= 0:
                try:
                    self._flush()
                finally:
                    self._close_file()

    def _flush(self) -> None:
        if self._waiting:
            self._write_blob()
        if self._lines:
            self._append(self._lines)
            self._lines = bytearray()

    def _append(self, lines: bytes | bytearray) -> None:
        with self._failing():
            written = os.write(self._file, lines)
            try:
                while written < len(lines):  # the disk is full, or lines of 2 GiB
                    written += os.write(self._file, memoryview(lines)[written:])
            except OSError:
                os.ftruncate(self._file, self._length)
                raise
            self._length += len(lines)

    def _write_blob(self) -> None:
        name = f"blob-{self._blobs:05d}.safetensors"
        beside = self._directory / f".{name}.part"
        with self._failing():
            try:
                _write_parts(beside, safetensors_parts(self._waiting))
                beside.replace(self._directory / name)
            finally:
                beside.unlink(missing_ok=True)
        self._waiting.clear()
        self._waiting_bytes, self._blobs = 0, self._blobs + 1

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            with self._writer.clear_errors():
                yield
        except OSError:
            self._close_file()
            self._waiting.clear()
            raise

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._encoder, self._known = Encoder(), set()  # a long run has many steps


def _elements_of(tensor: Tensor | Elements) -> Elements:
    if isinstance(tensor, Elements):
        return tensor
    # Recordings of NumPy arrays are written where there is no torch.
    from accel.numerics.storage.encoding import elements_of

    return elements_of(tensor)


def _write_parts(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    with path.open("wb", buffering=0) as file:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[file.write(rest) :]


def check_new(path: Path, rank: int) -> None:
    """Check that a rank's recording may be made at `path`.

    Raises:
        ValueError: Something is there that is neither an empty directory nor recordings of other
            ranks.
    """
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        if names and not all(name.startswith("rank-") for name in names):
            raise ValueError(
                f"{path} exists and is not empty: a recording is never overwritten; choose another "
                "path or delete it first"
            )
        own = path / f"rank-{rank}"
        if own.is_symlink() or (own.exists() and (not own.is_dir() or any(own.iterdir()))):
            raise ValueError(
                f"{own} exists and is not empty: a recording is never overwritten; choose another "
                "path or delete it first"
            )
    elif (path.exists() or path.is_symlink()) and not path.is_dir():  # now another rank made it
        raise ValueError(f"{path} exists and is not a directory: choose another path")
