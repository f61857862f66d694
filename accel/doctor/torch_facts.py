"""What the torch probe told: the build, numpy, devices, smoke tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from accel.doctor.probe import Event, Probe


@dataclass(frozen=True)
class SmokeResult:
    """One matmul, forward and backward, on one device.

    Attributes:
        device: As torch names it.
        ok: Whether every number was the exact one.
        seconds: Time of the operation alone, with the device's start-up.
        detail: What went wrong.
        setting: Environment variables it was run with.
        traceback: The whole traceback or the end of the output, where there is one.
        wrong: Whether it ran and the numbers were wrong.
    """

    device: str
    ok: bool
    seconds: float = 0.0
    detail: str = ""
    setting: str = ""
    traceback: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class TorchFacts:
    """What `import torch` gives in one environment.

    Attributes:
        probe: The process that tried.
        imported: Whether the import came back.
        version: `torch.__version__`; empty if it did not import.
        file: Where it was imported from.
        cuda: CUDA version it was built for, or empty.
        hip: ROCm version it was built for, or empty.
        numpy: Version that imports, or empty.
        numpy_error: Why numpy does not import.
        device_type: Accelerator it was built for or extended with: `cuda`, `npu`, …; or empty.
        device_names: One name per device of that type.
        reason: Why there is none, in the runtime's own words.
        smoke: The CPU's smoke test; None if it was not reached.
    """

    probe: Probe
    imported: bool = False
    version: str = ""
    file: str = ""
    cuda: str = ""
    hip: str = ""
    numpy: str = ""
    numpy_error: str = ""
    device_type: str = ""
    device_names: tuple[str, ...] = ()
    reason: str = ""
    smoke: SmokeResult | None = None

    @property
    def build(self) -> str:
        """What it was built for, in words: `CPU build`, `CUDA 13.0 build`, `ROCm 7.1 build`."""
        if self.hip:
            return f"ROCm {self.hip} build"
        return f"CUDA {self.cuda} build" if self.cuda else "CPU build"

    @property
    def devices(self) -> tuple[str, ...]:
        """The accelerators it offers, as torch names them."""
        return tuple(f"{self.device_type}:{i}" for i in range(len(self.device_names)))


def text(event: Event, key: str) -> str:
    """A field of an event as a string; empty if absent."""
    value: Any = event.get(key)
    return "" if value is None else str(value)


def torch_facts(probe: Probe) -> TorchFacts:
    """Read the events of a `torch` probe.

    Args:
        probe: A finished probe, however it ended.

    Returns:
        What is known.
    """
    build, numpy, devices = (probe.event(name) for name in ("build", "numpy", "devices"))
    names = devices.get("names")
    said = devices.get("warnings")
    return TorchFacts(
        probe=probe,
        imported=bool(build),
        version=text(build, "version"),
        file=text(build, "file"),
        cuda=text(build, "cuda"),
        hip=text(build, "hip"),
        numpy=text(numpy, "version"),
        numpy_error=text(numpy, "error"),
        device_type=text(devices, "type"),
        device_names=tuple(str(name) for name in names) if isinstance(names, list) else (),
        reason=text(devices, "reason") or (str(said[0]) if isinstance(said, list) and said else ""),
        smoke=smoke_result("cpu", probe) if _reached_cpu(probe) else None,
    )


def _reached_cpu(probe: Probe) -> bool:
    return any(e.get("name") == "smoke test on cpu" for e in probe.events)


def smoke_result(device: str, probe: Probe) -> SmokeResult:
    """Judge one device's smoke test.

    Args:
        device: The device that was tried.
        probe: The process that tried it.

    Returns:
        The result; a probe that brought none is a failure.
    """
    event = probe.event("smoke")
    if event and event.get("device") == device:
        wrong = event.get("wrong") or []
        seconds = event.get("seconds")
        return SmokeResult(
            device,
            ok=event.get("ok") is True,
            seconds=seconds if isinstance(seconds, float) else 0.0,
            detail=f"wrong {', '.join(map(str, wrong))}" if wrong else "",
            setting=probe.setting,
            wrong=bool(wrong),
        )
    detail = probe.detail if probe.outcome == "raised" else f"the process {probe.ended}"
    return SmokeResult(
        device, False, detail=detail, setting=probe.setting, traceback=probe.traceback
    )


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 7, 1) of `2.7.1.post4` and of `2.7.1+cpu`; () of garbage."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def base(version: str) -> str:
    """A version without its local part and post-release: `2.7.1` of `2.7.1.post4+cpu`."""
    return ".".join(map(str, release(version)))
