"""Reading a recording that nobody vouches for: truncated, tampered with or hostile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from accel.numerics.storage.blobs import NEXT, Blobs, check_regular
from accel.numerics.storage.lines import LONGEST
from accel.numerics.storage.manifest import INDEX, MANIFEST, Manifest, manifest_from
from accel.numerics.storage.parsing import Parser
from accel.numerics.storage.steps import Assembly, LineError, Step
from accel.report import Progress

_LARGEST_MANIFEST = 2**20  # bytes
_LARGEST_INDEX = 2**31  # bytes; an index of a million operators takes half of this
_RANK, _STEP = re.compile(r"rank-(0|[1-9][0-9]{0,8})"), re.compile(r"step-(0|[1-9][0-9]{0,17})")


class Steps(Mapping[int, Step]):
    """The steps of one rank, by their numbers in ascending order; each is read when asked for.

    Args:
        rank: Which process.
        directory: Of the rank.
        complete: Whether the recording ended as planned, so that every step must have.
    """

    def __init__(self, rank: int, directory: Path, complete: bool) -> None:
        self._rank, self._complete = rank, complete
        self._paths = _numbered(directory, _STEP)
        self._read: dict[int, Step] = {}

    def __getitem__(self, index: int) -> Step:
        """The step with this number.

        Raises:
            KeyError: It was not recorded.
            ValueError: It is damaged; the message names the file, the line, the reason and the
                next step.
        """
        if index not in self._read:
            self._read[index] = read_step(
                self._paths[index], self._rank, index, complete=self._complete
            )
        return self._read[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, index: object) -> bool:
        return index in self._paths


class RankRecording:
    """What one process recorded.

    Attributes:
        path: Its directory.
        manifest: What ran, where, with which switches.
        steps: By their numbers.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path
        self.manifest = _read_manifest(path / MANIFEST, rank)
        self.steps = Steps(rank, path, self.manifest.complete)


class Recording:
    """A recording on the disk; its steps and tensors are read when asked for.

    Make one with `load_recording`.

    Attributes:
        path: The directory.
        ranks: By rank, in ascending order.
    """

    def __init__(self, path: Path, ranks: dict[int, RankRecording]) -> None:
        self.path, self.ranks = path, ranks

    @property
    def manifest(self) -> Manifest:
        """Of the first rank that is there."""
        return next(iter(self.ranks.values())).manifest

    @cached_property
    def missing_ranks(self) -> tuple[int, ...]:
        """Ranks that ran and are not in the directory, at most the first thousand."""
        world = range(self.manifest.world)
        return tuple([rank for rank in world[: len(self.ranks) + 1000] if rank not in self.ranks])

    def verify(self, progress: bool = False) -> int:
        """Read everything: every line of every step, and every kept tensor against its digest.

        Args:
            progress: Show how far it is on standard error.

        Returns:
            How many tensors were checked.

        Raises:
            ValueError: Something is damaged; the message names the file and the reason.
        """
        steps = [(rank, index) for rank in self.ranks.values() for index in rank.steps]
        count = 0
        with Progress(len(steps), "verify", enabled=progress) as bar:
            for rank, index in steps:
                count += _verify(rank.steps[index])
                bar.advance()
        return count


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Open a recording.

    Everything in it is checked before it is believed: the manifests now, a step when it is asked
    for, a tensor against its digest when it is asked for (`Recording.verify` checks all). No file
    outside the directory is read, no memory is allocated on the word of a file, nothing is
    unpickled.

    Args:
        path: The directory that `record` wrote; directories of ranks copied into one are a
            recording too.

    Returns:
        The recording; of a run that was killed, what it had written.

    Raises:
        ValueError: It is missing, truncated, of another schema or tampered with. The message names
            the file, the reason and the next step.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root} is no recording: there is no such directory")
    found = _numbered(root, _RANK)
    if not found:
        _explain_no_ranks(root)
    recording = Recording(
        root, {rank: RankRecording(directory, rank) for rank, directory in found.items()}
    )
    for rank, one in recording.ranks.items():
        if one.manifest.world != recording.manifest.world:
            raise ValueError(
                f"{one.path / MANIFEST} says that {one.manifest.world} processes ran and others "
                f"say {recording.manifest.world}: rank {rank} is of another run; {NEXT}"
            )
    return recording


def _explain_no_ranks(root: Path) -> None:
    if _RANK.fullmatch(root.name) and (root / MANIFEST).exists():
        raise ValueError(f"{root} is one rank of a recording: give the directory {root.parent}")
    if (root / MANIFEST).exists():
        raise ValueError(
            f"{root / MANIFEST} has no place in a recording of schema 2: an older accel wrote it; "
            "record it again"
        )
    raise ValueError(f"{root} is no recording: no directory rank-0, rank-1, … is in it")


def _numbered(directory: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Directories by their numbers, in ascending order."""
    found: dict[int, Path] = {}
    for path in directory.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if path.is_symlink() or not path.is_dir():
            raise ValueError(f"{path} is no directory, or a symbolic link; {NEXT}")
        found[int(match[1])] = path
    return dict(sorted(found.items()))


def _read_manifest(path: Path, rank: int) -> Manifest:
    with _opened(path, _LARGEST_MANIFEST) as file:
        text = file.read(_LARGEST_MANIFEST + 1)
    try:
        manifest = manifest_from(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; {NEXT}") from error
    if manifest.rank != rank:
        raise ValueError(
            f"{path} says that it is rank {manifest.rank} and lies in the directory of rank "
            f"{rank}; {NEXT}"
        )
    return manifest


def read_step(directory: Path, rank: int, index: int, *, complete: bool) -> Step:
    """Read one step.

    Args:
        directory: Of the step.
        rank: Which process.
        index: Which step.
        complete: Whether it must have ended.

    Raises:
        ValueError: It is damaged; the message names the file, the line, the reason and the next
            step.
    """
    path = directory / INDEX
    assembly = Assembly()
    try:
        dropped = _read_lines(path, assembly)
        step = assembly.step(rank, index, dropped, Blobs(directory))
    except LineError as error:
        raise ValueError(f"{path}: {error}; {NEXT}") from error
    if complete and step.end is None:
        raise ValueError(
            f"{path} is truncated: the manifest says that the recording is complete, and this step "
            f"has no end; {NEXT}"
        )
    return step


def _read_lines(path: Path, assembly: Assembly) -> str | None:
    """Read all lines of an index; what was dropped at its end, if anything was."""
    parser, number = Parser(), 0
    with _opened(path, _LARGEST_INDEX) as file:
        while line := file.readline(LONGEST + 2):
            number += 1
            if not line.endswith(b"\n") and len(line) <= LONGEST:
                if parser.ended:
                    raise LineError(number, "it comes after the end of the step")
                return f"line {number} of {path.name}, which was being written"
            try:
                entry = parser.line(line.removesuffix(b"\n"))
                if entry is not None:
                    assembly.add(number, entry)
            except ValueError as error:
                raise LineError(number, error) from error
    return None


def _opened(path: Path, largest: int) -> BinaryIO:
    check_regular(path)
    try:
        if path.stat().st_size > largest:
            raise ValueError(f"{path} is larger than {largest} bytes; {NEXT}")
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _verify(step: Step) -> int:
    kept = {value.blob: value for value in step.values.values() if value.blob is not None}
    for value in kept.values():
        step.tensor(value.id)
    return len(kept)
