"""Environment variables that contradict each other or the machine."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.finding import Finding, Mend, Severity
from accel.doctor.survey import TORCH_GROUP, Survey, autoload_enabled

# The order in which torch looks for allocator settings; it takes the first one that is set and
# does not mention the others (c10/core/AllocatorConfig.cpp; checked on 2.13.0).
_TORCH_ORDER = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_NPU_ALLOC = "PYTORCH_NPU_ALLOC_CONF"


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about environment variables."""
    yield from _npu_allocator(survey)
    yield from _torch_allocator(survey)
    yield from _accel_device(survey)
    yield from _two_accelerators(survey)
    yield from _autoload_off(survey)


def _npu_allocator(survey: Survey) -> Iterator[Finding]:
    environment = survey.machine.environment
    if _NPU_ALLOC not in environment or "PYTORCH_ALLOC_CONF" not in environment:
        return
    what = f"{_NPU_ALLOC} and PYTORCH_ALLOC_CONF are both set"
    why = "torch_npu ends the process when it finds both."
    if not survey.torch_npu_version:
        why += " It is not installed here, so nothing happens yet."
    mends = (Mend("unset PYTORCH_ALLOC_CONF"), Mend(f"unset {_NPU_ALLOC}"))
    how_bad: Severity = "error" if survey.torch_npu_version else "warning"
    yield Finding("alloc-conf-conflict", how_bad, what, why, mends)


def _torch_allocator(survey: Survey) -> Iterator[Finding]:
    environment = survey.machine.environment
    given = [name for name in _TORCH_ORDER if name in environment]
    ignored = [name for name in given[1:] if environment[name] != environment[given[0]]]
    if ignored:
        what = f"{given[0]} is set, so torch ignores {' and '.join(ignored)}"
        why = (
            f"torch reads {', '.join(_TORCH_ORDER)} in this order and takes the first one that is "
            f"set: {environment[given[0]]!r} is in force, {environment[ignored[0]]!r} is not."
        )
        mends = (Mend(f"unset {given[0]}"), Mend(f"unset {' '.join(ignored)}"))
        yield Finding("alloc-conf-ignored", "warning", what, why, mends)


def families(survey: Survey) -> dict[str, int]:
    """Device families that `ACCEL_DEVICE` can name here, with their device counts.

    A family that a plugin adds counts as one device: the doctor does not ask the plugin.
    """
    counts = {"cpu": 1}
    for device in survey.devices:
        kind = device.split(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    if "cuda" in counts and survey.working.hip:
        counts["rocm"] = counts["cuda"]  # Accel's name for it; torch's own is taken too
    for plugin, probe in survey.plugins.items():
        if plugin.group == "accel.devices" and probe.outcome == "done":
            counts.setdefault(str(probe.event("plugin").get("family", plugin.name)), 1)
    return counts


def _accel_device(survey: Survey) -> Iterator[Finding]:
    wanted = survey.machine.environment.get("ACCEL_DEVICE", "")
    if not wanted or not survey.working.imported:
        return
    here = families(survey)
    family, _, index = wanted.partition(":")
    in_range = not index or (index.isdecimal() and int(index) < here.get(family, 0))
    if family == "cpu" or (family in here and in_range):
        return
    names = ", ".join(f"{name} ({count})" for name, count in here.items())
    what = f"ACCEL_DEVICE={wanted} names a device that is not here"
    why = f"Families and devices that torch offers here: {names}."
    best = next((name for name in here if name != "cpu"), "cpu")
    mends = (Mend("unset ACCEL_DEVICE"), Mend(f"export ACCEL_DEVICE={best}"))
    yield Finding("accel-device-missing", "error", what, why, mends)


def _two_accelerators(survey: Survey) -> Iterator[Finding]:
    if survey.nvidia.count and survey.ascend.count:
        what = f"{survey.nvidia.count} NVIDIA GPU and {survey.ascend.count} Ascend NPU are here"
        why = (
            "One PyTorch process has one accelerator: keep an environment for each, and name the "
            "family this one is for. What the doctor says of the other is then a warning."
        )
        chosen = survey.machine.environment.get("ACCEL_DEVICE")
        mends = (Mend("export ACCEL_DEVICE=cuda"), Mend("export ACCEL_DEVICE=npu"))
        how_bad: Severity = "note" if chosen else "warning"
        yield Finding("two-accelerators", how_bad, what, why, () if chosen else mends)


def _autoload_off(survey: Survey) -> Iterator[Finding]:
    plugins = [p.name for p in survey.installed.plugins if p.group == TORCH_GROUP]
    if plugins and not autoload_enabled(survey.machine):
        what = f"TORCH_DEVICE_BACKEND_AUTOLOAD is off: torch does not load {', '.join(plugins)}"
        why = "A program reaches such a device only after importing its package itself."
        mends = (Mend("unset TORCH_DEVICE_BACKEND_AUTOLOAD", "load plugins again"),)
        yield Finding("autoload-off", "note", what, why, mends)
