"""Third-party plugins of PyTorch and of Accel."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.ascend import explain_torch_npu
from accel.doctor.checks.common import autoload_mend, pip
from accel.doctor.finding import Finding, Mend
from accel.doctor.machine import Plugin
from accel.doctor.probe import Probe
from accel.doctor.survey import TORCH_GROUP, Survey


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about entry points and the metadata that declares them."""
    yield from _metadata(survey)
    if not survey.working.imported:
        return  # torch itself is the cause, and has its own finding
    failed = {plugin: probe for plugin, probe in survey.plugins.items() if probe.outcome != "done"}
    for plugin, probe in failed.items():
        if plugin.group != TORCH_GROUP:
            yield _accel_plugin(survey, plugin, probe)
        elif plugin.distribution == "torch-npu":
            yield from explain_torch_npu(survey, probe)
        else:
            yield _torch_backend(survey, plugin, probe)
    if not survey.torch.imported and not any(p.group == TORCH_GROUP for p in failed):
        yield _together(survey)


def _metadata(survey: Survey) -> Iterator[Finding]:
    for broken in survey.installed.broken:
        path, _, reason = broken.partition(": ")
        fatal = not survey.torch.imported
        why = f"{reason}. `import torch` reads the entry points of every installed package."
        mends = (Mend(f"rm -r {path}", "then install that package again"),)
        what = f"unreadable package metadata: {path}"
        yield Finding("metadata-broken", "error" if fatal else "warning", what, why, mends)


def _describe(probe: Probe) -> str:
    words = f"; {probe.detail}" if probe.detail and probe.outcome != "crashed" else ""
    return f"The process that loaded it {probe.ended} at the step `{probe.stage}`{words}."


def _torch_backend(survey: Survey, plugin: Plugin, probe: Probe) -> Finding:
    what = f"`import torch` fails: its plugin {plugin.name} ({plugin.distribution}) is broken"
    mends = (
        autoload_mend(survey),
        Mend(pip(survey, "install", "--upgrade", plugin.distribution), "mend the plugin"),
        Mend(pip(survey, "uninstall", plugin.distribution), "remove the plugin"),
    )
    why = f"torch loads every plugin of the group {TORCH_GROUP} at the end of its import. "
    return Finding(
        "torch-backend-failed",
        "error",
        what,
        why + _describe(probe),
        mends,
        traceback=probe.traceback,
    )


def _together(survey: Survey) -> Finding:
    """Each plugin loads alone, all together do not."""
    names = [p.name for p in survey.installed.plugins if p.group == TORCH_GROUP]
    what = f"`import torch` fails with its plugins ({', '.join(names) or 'none can be read'})"
    probe = survey.torch.probe
    why = f"Without them it works; each alone loads. {_describe(probe)}"
    mends = (autoload_mend(survey),)
    return Finding("torch-backend-failed", "error", what, why, mends, traceback=probe.traceback)


def _accel_plugin(survey: Survey, plugin: Plugin, probe: Probe) -> Finding:
    what = f"the {plugin.group} plugin {plugin.name} ({plugin.distribution}) does not load"
    why = f"{_describe(probe)} Accel works without it; what it adds is missing."
    mends = (
        Mend(pip(survey, "install", "--upgrade", plugin.distribution), "mend it"),
        Mend(pip(survey, "uninstall", plugin.distribution), "remove it"),
    )
    return Finding("accel-plugin-failed", "error", what, why, mends, traceback=probe.traceback)
