"""Writing a recording: append-only, content-addressed, readable up to the last flush if killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from accel.numerics.blobs import read_tensor
from accel.numerics.encoding import decoded, digest_of, encoded
from accel.numerics.manifest import INDEX, MANIFEST, Manifest
from accel.report import write_atomically

_BUFFER = 32 * 2**20  # bytes of tensors that wait for their file


class _Jsonable(Protocol):
    def to_json(self) -> dict[str, object]: ...


class Writer:
    """One recording on its way to the disk.

    A tensor's file is complete before the index names it: a killed run loses what was buffered and
    nothing else.

    Args:
        path: A directory that does not exist or is empty.
        manifest: Written at once, not yet complete.

    Raises:
        ValueError: `path` exists and is not an empty directory; nothing is touched.
        OSError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        self.path = Path(path)
        self.failed = False
        self._blobs: dict[str, str] = {}
        self._waiting: dict[str, Tensor] = {}
        self._lines: list[str] = []
        self._size = self._count = self._written = 0
        check_new(self.path)
        with self._clear_errors():
            self.path.mkdir(exist_ok=True)
            (self.path / INDEX).touch(exist_ok=False)
            self._write_manifest(manifest)

    def keep(self, tensor: Tensor) -> tuple[str, str]:
        """Store a tensor, once for all tensors of its dtype, shape and bytes.

        Args:
            tensor: Contiguous, on the CPU, and the writer's own from now on.

        Returns:
            Its digest and the name of its file.
        """
        stored = encoded(tensor)
        digest = digest_of(stored, tensor.dtype, tuple(tensor.shape))
        if digest not in self._blobs:
            self._blobs[digest] = self._blob_name()
            self._waiting[digest] = stored
            self._size += stored.nbytes
        blob = self._blobs[digest]
        if self._size >= _BUFFER:
            self.flush()
        return digest, blob

    def kept(self, digest: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A tensor that was kept, from memory or back from the disk."""
        if digest in self._waiting:
            return decoded(self._waiting[digest], dtype, shape)
        return read_tensor(self.path / self._blobs[digest], digest, dtype, shape)

    def add(self, line: _Jsonable) -> None:
        """Append one line to the index; it is on the disk after the next `flush`."""
        self._lines.append(json.dumps(line.to_json(), separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Write what is buffered: the tensors first, then the lines that name them.

        Raises:
            OSError: It cannot be written; nothing more is written after that.
        """
        if self.failed:
            return
        with self._clear_errors():
            if self._waiting:
                self._write_blob()
            if self._lines:
                with (self.path / INDEX).open("a", encoding="utf-8") as file:
                    file.write("".join(self._lines))
                self._written += len(self._lines)
                self._lines.clear()

    def finish(self, manifest: Manifest) -> None:
        """Write everything that is buffered, then the final manifest in place of the first."""
        self.flush()
        if not self.failed:
            with self._clear_errors():
                self._write_manifest(replace(manifest, lines=self._written))

    def _blob_name(self) -> str:
        return f"blob-{self._count:05d}.safetensors"

    def _write_blob(self) -> None:
        name = self._blob_name()
        beside = self.path / f".{name}.part"
        try:
            beside.write_bytes(save(self._waiting))
            beside.replace(self.path / name)
        finally:
            beside.unlink(missing_ok=True)
        self._waiting.clear()
        self._size, self._count = 0, self._count + 1

    def _write_manifest(self, manifest: Manifest) -> None:
        write_atomically(self.path / MANIFEST, manifest.to_text())

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = True
            raise OSError(
                f"cannot write the recording {self.path}: {error.strerror or error}; "
                "free space or choose another place, and record again"
            ) from error


def check_new(path: Path) -> None:
    """Check that a recording may be made at `path`.

    Raises:
        ValueError: Something is there that is not an empty directory.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise ValueError(
                f"{path} exists and is not empty: a recording is never overwritten; choose another "
                "path or delete it first"
            )
    elif path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists and is not a directory: choose another path")
