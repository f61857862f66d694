"""The safetensors files of a step: tensors read back, every claim checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from accel.numerics.storage import fields as f
from accel.numerics.storage.encoding import decoded, dtype_named
from accel.numerics.storage.layouts import NATIVE, WIDTHS, digest_of, stored_layout

NEXT = "record it again or copy the directory again"
_NAME = re.compile(r"blob-[0-9]{5,9}\.safetensors")
_LARGEST_HEADER = 16 * 2**20  # bytes; `writer` puts far fewer tensors into a file
_STORED = {code: dtype for dtype, code in NATIVE.items()}


class _Place(NamedTuple):
    """Where a file holds a tensor."""

    path: Path
    dtype: str  # as safetensors names it
    shape: list[int]
    begin: int
    size: int


class Blobs:
    """The tensors that a directory holds, by their digests; its files are read when asked for.

    Args:
        directory: Of one step.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, _Place] | None = None
        self._damaged: list[ValueError] = []

    def tensor(self, digest: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, on the CPU, if it is what it is said to be.

        Raises:
            ValueError: It is not; the message names the file and the reason.
        """
        if self._places is None:
            self._places = self._indexed()
        if digest in self._places:
            return _read(self._places[digest], digest, dtype, shape)
        if self._damaged:
            raise self._damaged[0]
        raise ValueError(f"no file of {self._directory} holds tensor {digest[:12]}…; {NEXT}")

    def _indexed(self) -> dict[str, _Place]:
        found: dict[str, _Place] = {}
        for path in sorted(self._directory.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            try:
                found.update(_places_in(path))
            except ValueError as error:  # another file may hold what is asked for
                self._damaged.append(error)
        return found


def _places_in(path: Path) -> dict[str, _Place]:
    """What a safetensors file says that it holds, checked against its size.

    Raises:
        ValueError: It is none; the message names the file and the reason.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            begin, header = _header(file, path.stat().st_size)
        end = path.stat().st_size - begin
        return {
            name: _place(path, f.mapping(header, name), begin, end)
            for name in header
            if name != "__metadata__"
        }
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; {NEXT}") from error


def _header(file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Where the elements begin, and the JSON object before them."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"its header of {length} bytes is too large for a file of {size}")
    return 8 + length, f.object_of(file.read(length))


def _place(path: Path, said: Mapping[str, Any], begin: int, end: int) -> _Place:
    dtype, shape = f.text(said, "dtype"), f.sizes(said, "shape")
    if dtype not in _STORED:
        raise ValueError(f"it holds dtype {f.shown(dtype)}, which no recording does")
    offsets = f.sizes(said, "data_offsets")
    if len(offsets) != 2:
        raise ValueError(f"data_offsets must be two numbers, got {list(offsets)}")
    first, last = offsets
    if not first <= last <= end:
        raise ValueError(f"it has {end} bytes of elements and says {first} to {last}")
    if last - first != math.prod(shape) * WIDTHS[_STORED[dtype]]:
        raise ValueError(f"{last - first} bytes are no {dtype} {list(shape)}")
    return _Place(path, dtype, list(shape), begin + first, last - first)


def _read(place: _Place, digest: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    path = place.path
    try:
        kind = dtype_named(dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    expected = stored_layout(dtype, shape, kind.itemsize)
    if (place.dtype, place.shape) != expected:
        raise ValueError(
            f"{path} holds {place.dtype} {place.shape} as tensor {digest[:12]}… where the index "
            f"says {dtype} {list(shape)}, which is {expected[0]} {expected[1]}; {NEXT}"
        )
    data = bytearray(place.size)  # not more than the file has
    try:
        with path.open("rb") as file:
            file.seek(place.begin)
            count = file.readinto(data)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if count != place.size or digest_of(dtype, shape, memoryview(data)) != digest:
        raise ValueError(f"{path}: tensor {digest[:12]}… has other bytes than recorded; {NEXT}")
    return decoded(data, kind, shape)


def check_regular(path: Path) -> None:
    """Check that `path` is a plain file.

    Raises:
        ValueError: It is missing, a symbolic link, a directory or a device.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which no recording holds; {NEXT}")
    if not path.is_file():
        raise ValueError(f"{path} is missing or no plain file; {NEXT}")
