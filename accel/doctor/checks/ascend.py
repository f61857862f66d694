"""Ascend: torch_npu, CANN, the driver, npu-smi."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.cann import DEFAULT_SCRIPTS, DOWNLOAD_PAGE, explain_cann
from accel.doctor.checks.common import (
    BUILD_PAGE,
    MINIMUM_TORCH,
    autoload_mend,
    hiding_variable,
    in_container,
    in_new_environment,
    pip,
    torch_release,
)
from accel.doctor.finding import Finding, Mend, Severity
from accel.doctor.probe import Probe
from accel.doctor.survey import Survey, autoload_enabled
from accel.doctor.torch_facts import base, release

_HEALTHY = {"ok", "-"}


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about Ascend hardware and software."""
    yield from _simulated(survey)
    yield from _tool(survey)
    yield from _health(survey)
    if survey.torch_npu and not survey.torch_npu.imported:
        yield from explain_torch_npu(survey, survey.torch_npu.probe)
    elif not survey.torch_npu_version:
        yield from _torch_npu_missing(survey)
    elif survey.torch.imported:
        yield from _patch_mismatch(survey)
        yield from _no_device(survey)


def _simulated(survey: Survey) -> Iterator[Finding]:
    """Nobody shall take the simulated chip for a real one."""
    setting = survey.machine.environment.get("ACCEL_SIMULATE")
    if setting and survey.count("npu"):
        what = "the NPU is simulated: it computes on the CPU, with no Ascend hardware"
        why = f"`accel simulate` started this process (ACCEL_SIMULATE={setting})."
        yield Finding("npu-simulated", "note", what, why, family="npu")


def severity(survey: Survey) -> Severity:
    """How bad an unusable torch_npu is.

    With plugins on it takes `import torch` down with it; with plugins off it only costs the NPU,
    and where there is none, nothing.
    """
    fatal = autoload_enabled(survey.machine) or survey.ascend.count > 0
    return "error" if fatal else "warning"


def explain_torch_npu(survey: Survey, probe: Probe) -> Iterator[Finding]:
    """Why torch_npu does not load.

    Args:
        survey: Everything known.
        probe: The process in which it did not.

    Yields:
        One finding; none where a conflict of variables, reported elsewhere, is the cause.
    """
    words = f"{probe.detail}\n{probe.traceback}"
    if "ALLOC_CONF have been set" in words:
        return
    ours, theirs = release(survey.torch_npu_version)[:2], release(survey.torch_version)[:2]
    if ours != theirs:
        yield _mismatch(survey, probe, "error")
    elif "Two accelerators cannot be used" in words:
        yield _other_accelerator(survey, probe)
    else:
        yield explain_cann(survey, probe, severity(survey))


def _mismatch(survey: Survey, probe: Probe | None, how_bad: Severity) -> Finding:
    npu, torch = survey.torch_npu_version, survey.torch_version
    what = f"torch_npu {npu} does not go with torch {torch}"
    why = (
        f"torch_npu is compiled against one release of torch and carries its number: {npu} needs "
        f"torch {base(npu)}."
    )
    if probe is not None:
        why += f" Loading it says: {probe.detail}"
    mends = [
        Mend(pip(survey, "install", f"torch-npu=={base(torch)}.*"), "the torch_npu for this torch"),
    ]
    if release(npu) >= release(MINIMUM_TORCH):
        mends.append(
            Mend(pip(survey, "install", f"torch=={base(npu)}"), "the torch for this torch_npu")
        )
    if probe is not None:
        mends.append(autoload_mend(survey))
    trace = probe.traceback if probe else ""
    return Finding("torch-npu-mismatch", how_bad, what, why, tuple(mends), traceback=trace)


def _patch_mismatch(survey: Survey) -> Iterator[Finding]:
    npu, torch = base(survey.torch_npu_version), base(survey.torch_version)
    if npu != torch:
        same_minor = release(npu)[:2] == release(torch)[:2]
        yield _mismatch(survey, None, "warning" if same_minor else "error")


def _other_accelerator(survey: Survey, probe: Probe) -> Finding:
    build = survey.working.build
    what = f"torch_npu refuses to load into a {build} of torch"
    why = (
        "One process has one accelerator, and this torch was built with another one, even if no "
        f"such device is here. {probe.detail}"
    )
    mends = (
        Mend(
            pip(survey, "install", "--force-reinstall", f"{torch_release(survey)}+cpu"),
            f"use the NPU; with the --index-url that {BUILD_PAGE} gives for CPU",
        ),
        autoload_mend(survey),
    )
    return Finding(
        "torch-npu-other-accelerator", severity(survey), what, why, mends, traceback=probe.traceback
    )


def _torch_npu_missing(survey: Survey) -> Iterator[Finding]:
    if not survey.ascend.count or survey.count("npu"):
        return
    what = f"{survey.ascend.count} Ascend NPU found, torch_npu is not installed"
    why = "PyTorch reaches an NPU only through torch_npu, and CANN below it."
    version = base(survey.torch_version)
    wanted = f"torch-npu=={version}.*" if version else "torch-npu"
    install, effect = pip(survey, "install", wanted), ""
    if survey.working.cuda or survey.working.hip:
        why += f" It refuses to load into this {survey.working.build}: use a second environment."
        install = in_new_environment("npu-env", f"{torch_release(survey)}+cpu", wanted)
        effect = f"with the --index-url that {BUILD_PAGE} gives for CPU"
    cann = survey.ascend.cann
    if not cann.home:
        install = f"source {(cann.scripts or DEFAULT_SCRIPTS)[0]} && {install}"
    if not (cann.home or cann.scripts):
        effect = "; ".join(filter(None, [f"after installing CANN from {DOWNLOAD_PAGE}", effect]))
    yield Finding("torch-npu-missing", "error", what, why, (Mend(install, effect),), family="npu")


def _no_device(survey: Survey) -> Iterator[Finding]:
    """torch_npu loads: are there NPUs, and does it see them?"""
    if survey.count("npu"):
        return
    reason = (survey.torch_npu or survey.working).reason
    if not survey.ascend.count:
        what = "torch_npu loads, but no NPU is on this machine"
        yield Finding("npu-not-found", "note", what, "Fine for building; programs run on the CPU.")
    elif name := hiding_variable(survey, "npu", survey.ascend.count):
        what = f"{name} hides every NPU"
        why = f"It is {survey.machine.environment[name]!r}; {survey.ascend.count} NPU are here."
        yield Finding("devices-hidden", "error", what, why, (Mend(f"unset {name}"),), "npu")
    else:
        what = f"{survey.ascend.count} NPU found, torch_npu can use none"
        why = reason or "torch_npu gives no reason; often the user lacks access to /dev/davinci*."
        mends = (
            Mend("sudo usermod -aG HwHiAiUser $USER", "then log in again"),
            Mend("npu-smi info", "shows health, and who holds the NPU"),
        )
        yield Finding("npu-unavailable", "error", what, why, mends, "npu")


def _tool(survey: Survey) -> Iterator[Finding]:
    """npu-smi: there, answering, readable?"""
    facts = survey.ascend
    usable = bool(survey.count("npu"))
    if facts.tool.error:
        why = facts.tool.output[:400] or facts.tool.error
        mends = [Mend("export LD_LIBRARY_PATH=/usr/local/Ascend/driver/lib64:$LD_LIBRARY_PATH")]
        if in_container(survey) or "-8020" in why or "-8005" in why:
            mends.insert(0, Mend("docker ps", "another container may hold the NPU: stop it"))
        how_bad: Severity = "error" if facts.count and not usable else "warning"
        what = f"npu-smi does not work: {facts.tool.error}"
        yield Finding("npu-smi-failed", how_bad, what, why, tuple(mends), "npu")
    elif not facts.readable:
        what = "npu-smi printed no table that could be read"
        why = f"It ended well and said: {facts.tool.stdout.strip()[:200] or 'nothing'}"
        mend = Mend("npu-smi info", "look at it; a truncated driver installation does this")
        yield Finding("npu-smi-unreadable", "warning", what, why, (mend,), "npu")
    elif not facts.tool.path and facts.nodes:
        what = f"{facts.nodes[0]} is here, npu-smi is not"
        why = "The driver is loaded, its tools are not on PATH: often not mounted in a container."
        mend = Mend("docker run -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi …")
        if not in_container(survey):
            mend = Mend("export PATH=/usr/local/sbin:/usr/local/bin:$PATH", "where it is installed")
        yield Finding("npu-smi-missing", "warning", what, why, (mend,), "npu")


def _health(survey: Survey) -> Iterator[Finding]:
    for npu in survey.ascend.npus:
        if npu.health.lower() not in _HEALTHY:
            what = f"NPU {npu.card} chip {npu.chip} ({npu.name}) reports health {npu.health}"
            why = "Work on it may fail or give wrong numbers, even if one small matmul passes."
            mend = Mend(f"npu-smi info -t health -i {npu.card} -c {npu.chip}", "names the fault")
            yield Finding("npu-unhealthy", "error", what, why, (mend,), "npu")
