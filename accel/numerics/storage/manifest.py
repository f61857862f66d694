"""The manifest of one rank: what ran, where, with which switches; written first and last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from accel._version import __version__
from accel.numerics.storage import fields as f

SCHEMA = 2
MANIFEST, INDEX = "manifest.json", "index.jsonl"
LEVELS = ("sketch", "full", "check")


class Revision(NamedTuple):
    """Which version of the program ran.

    Attributes:
        commit: Of the git repository of its working directory.
        dirty: Whether tracked files had changes; None if that could not be found out.
    """

    commit: str
    dirty: bool | None


@dataclass(frozen=True)
class Manifest:
    """What is known of a rank besides what it computed.

    Attributes:
        framework: Who computed: `torch`, `mindspore`, …
        versions: Of python, the framework, accel, …
        platform: Operating system and processor.
        device: `chip`, `family` and `torch_device` of the model's parameters.
        numerics_mode: Every switch that changes numbers (`accel.devices.NumericsMode`).
        seed: Of the framework's default generator; None if it is not known.
        arguments: The program's arguments.
        revision: Of the program; None without git.
        level: `sketch`, `full` or `check`.
        only: Patterns of the operators whose elements are kept; empty for all.
        steps: Which steps were asked for, in words: `every 200`, `3-5`.
        rank: Which process.
        world: How many processes.
        data_parallel: Which of how many replicas the process belongs to; None if there is one.
        complete: Whether the recording ended as planned.
        error: What ended it otherwise; None if nothing did or the process was killed.
        schema: Version of the format.
    """

    framework: str
    versions: dict[str, str]
    platform: str
    device: dict[str, str]
    numerics_mode: dict[str, Any]
    seed: int | None
    arguments: tuple[str, ...]
    revision: Revision | None
    level: str
    only: tuple[str, ...]
    steps: str
    rank: int = 0
    world: int = 1
    data_parallel: tuple[int, int] | None = None
    complete: bool = False
    error: str | None = None
    schema: int = SCHEMA

    def finished(self, error: BaseException | None) -> Manifest:
        """The manifest of the recording's end."""
        said = None if error is None else f"{type(error).__name__}: {error}"
        return replace(self, complete=error is None, error=said)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        fields = asdict(self)
        fields["revision"] = None if self.revision is None else self.revision._asdict()
        return {"schema": fields.pop("schema"), **fields}

    def to_text(self) -> str:
        """The file's text.

        Raises:
            ValueError: A field holds what JSON has no word for.
        """
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def manifest_from(text: bytes) -> Manifest:
    """Read a manifest that nobody vouches for.

    Raises:
        ValueError: It is not one; the message tells why.
    """
    fields = f.object_of(text)
    if fields.get("schema") != SCHEMA or isinstance(fields.get("schema"), float):
        raise ValueError(
            f"it has schema {f.shown(fields.get('schema'))} and this accel ({__version__}) reads "
            f"schema {SCHEMA}: read it with the accel that wrote it"
        )
    rank, world = f.integer(fields, "rank"), f.integer(fields, "world")
    if rank >= world:
        raise ValueError(f"rank must be below world, got {rank} and {world}")
    return Manifest(
        framework=f.text(fields, "framework"),
        versions=f.texts(fields, "versions"),
        platform=f.text(fields, "platform"),
        device=f.texts(fields, "device"),
        numerics_mode=f.plain(f.mapping(fields, "numerics_mode")),
        seed=_seed(fields),
        arguments=_texts(fields, "arguments"),
        revision=f.optional(fields, "revision", _revision),
        level=f.one_of(fields, "level", LEVELS),
        only=_texts(fields, "only"),
        steps=f.text(fields, "steps"),
        rank=rank,
        world=world,
        data_parallel=f.optional(fields, "data_parallel", _member),
        complete=f.flag(fields, "complete"),
        error=f.optional(fields, "error", f.text),
    )


def _seed(fields: Mapping[str, Any]) -> int | None:
    seed = f.scalar(fields.get("seed"))
    if seed is not None and type(seed) is not int:
        raise ValueError(f"seed must be an integer or null, got {f.shown(seed)}")
    return seed


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = f.listing(fields, name)
    for item in found:
        if type(item) is not str:
            raise ValueError(f"{name} must hold texts, got {f.shown(item)}")
        f.plain_text(item)
    return tuple(found)


def _revision(fields: Mapping[str, Any], name: str) -> Revision:
    found = f.mapping(fields, name)
    return Revision(f.text(found, "commit"), f.optional(found, "dirty", f.flag))


def _member(fields: Mapping[str, Any], name: str) -> tuple[int, int]:
    found = f.listing(fields, name)
    if len(found) != 2:
        raise ValueError(f"{name} must be an index and a count, got {f.shown(found)}")
    index, count = (f.integer({name: item}, name) for item in found)
    if index >= count:
        raise ValueError(f"{name} must have an index below its count, got {f.shown(found)}")
    return index, count
