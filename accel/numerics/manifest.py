"""The manifest of a recording: what ran, where, with which switches; written first and last."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

import torch
from torch import nn

from accel import devices
from accel._version import __version__

SCHEMA = 1
MANIFEST, INDEX = "manifest.json", "index.jsonl"


@dataclass(frozen=True)
class Manifest:
    """What is known of a run besides its tensors.

    Attributes:
        schema: Version of the format.
        framework: Who computed: `torch` here.
        versions: Of python, torch, accel and, if loaded, torch_npu.
        platform: Operating system and processor.
        device: `chip`, `family` and `torch_device` of the model's parameters.
        numerics_mode: Every switch that changes numbers (`accel.devices.NumericsMode`).
        seed: Of torch's default generator.
        arguments: The program's arguments.
        gradients: Whether gradients were to be recorded.
        reference: Whether float64 truths were to be recorded.
        lines: Of the index, once the recording is complete.
        complete: Whether the recording ended as planned.
        error: What ended it otherwise; None if nothing did or the process was killed.
    """

    schema: int
    framework: str
    versions: dict[str, str]
    platform: str
    device: dict[str, str]
    numerics_mode: dict[str, Any]
    seed: int
    arguments: list[str]
    gradients: bool
    reference: bool
    lines: int = 0
    complete: bool = False
    error: str | None = None

    def finished(self, error: BaseException | None) -> Manifest:
        """The manifest of the recording's end."""
        said = None if error is None else f"{type(error).__name__}: {error}"
        return replace(self, complete=error is None, error=said)

    def to_text(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def manifest_for(
    model: nn.Module,
    *,
    seed: int | None,
    arguments: Sequence[str] | None,
    gradients: bool,
    reference: bool,
) -> Manifest:
    """The manifest of a recording of `model` that is about to begin."""
    return Manifest(
        schema=SCHEMA,
        framework="torch",
        versions=_versions(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        device=_device(model),
        numerics_mode=devices.numerics_mode().to_dict(),
        seed=torch.initial_seed() if seed is None else seed,
        arguments=[str(a) for a in (sys.argv if arguments is None else arguments)],
        gradients=gradients,
        reference=reference,
    )


def manifest_from(text: str) -> Manifest:
    """Read a manifest that nobody vouches for.

    Raises:
        ValueError: It is not one; the message tells why.
    """
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, got {type(fields).__name__}")
    if fields.get("schema") != SCHEMA:
        raise ValueError(
            f"it has schema {fields.get('schema')!r:.40} and this accel ({__version__}) reads "
            f"schema {SCHEMA}: read it with the accel that wrote it"
        )
    return Manifest(**{name: _checked(fields, name, kind) for name, kind in _KINDS.items()})


_KINDS: dict[str, str] = {
    "schema": "int", "framework": "str", "versions": "texts", "platform": "str",
    "device": "texts", "numerics_mode": "dict", "seed": "int", "arguments": "list",
    "gradients": "bool", "reference": "bool", "lines": "int", "complete": "bool", "error": "str?",
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "str": (str,), "texts": (dict,), "dict": (dict,), "list": (list,),
    "bool": (bool,), "str?": (str, type(None)),
}  # fmt: skip


def _checked(fields: dict[str, Any], name: str, kind: str) -> Any:
    value: Any = fields.get(name)
    right = isinstance(value, _TYPES[kind]) and not (kind == "int" and isinstance(value, bool))
    if right and kind == "texts":
        right = all(isinstance(item, str) for item in value.values())
    if right and kind == "list":
        right = all(isinstance(item, str) for item in value)
    if not right or (name not in fields and kind != "str?"):
        raise ValueError(f"its {name} must be of kind {kind}, got {value!r:.80}")
    return value


def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "accel": __version__,
    }
    if "torch_npu" in sys.modules:
        versions["torch_npu"] = metadata.version("torch_npu")
    return versions


def _device(model: nn.Module) -> dict[str, str]:
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    place = torch.device("cpu") if first is None else first.device
    if place.type == "meta":
        raise ValueError("the model is on the meta device and computes nothing: load its weights")
    device = devices.find_device(place)
    # The index tells nothing about the chip, and differs between ranks that agree.
    kind = re.sub(r":\d+$", "", str(place))
    return {"chip": device.name, "family": device.family, "torch_device": kind}
