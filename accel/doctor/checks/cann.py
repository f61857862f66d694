"""CANN: installed, sourced, whole?"""

from __future__ import annotations

from accel.doctor.ascend import CannFacts
from accel.doctor.checks.common import autoload_mend, in_container, pip
from accel.doctor.finding import Finding, Mend, Severity
from accel.doctor.probe import Probe
from accel.doctor.survey import Survey, autoload_enabled

# Since CANN 8.5, and before.
DEFAULT_SCRIPTS = (
    "/usr/local/Ascend/cann/set_env.sh",
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
)
DOWNLOAD_PAGE = "https://www.hiascend.com/cann"
# Libraries of the kernel driver's package, not of CANN.
_DRIVER_LIBRARIES = ("libascend_hal.so", "libdrvdsmi_host.so", "libdcmi.so")


def explain_cann(survey: Survey, probe: Probe, how_bad: Severity) -> Finding:
    """Why torch_npu of the right version does not load.

    Args:
        survey: Everything known.
        probe: The process in which it did not load.
        how_bad: Severity of the finding.

    Returns:
        The finding.
    """
    cann = survey.ascend.cann
    consequence = _consequence(survey, probe)
    if cann.home and not cann.home_exists:
        parts = _path_missing(survey, cann)
    elif any(library in probe.detail for library in _DRIVER_LIBRARIES):
        parts = _driver_missing(survey)
    elif not cann.home and cann.scripts:
        parts = _not_sourced(cann)
    elif not cann.home:
        parts = _not_installed(survey)
    elif _names_cann(probe):
        parts = _incomplete(cann)
    else:
        parts = _unknown(survey)
    finding, what, why, mends = parts
    return Finding(
        finding,
        how_bad,
        what,
        f"{why} {consequence}",
        _ordered(survey, mends),
        family="" if autoload_enabled(survey.machine) else "npu",
        traceback=probe.traceback,
    )


_Parts = tuple[str, str, str, tuple[Mend, ...]]


def _consequence(survey: Survey, probe: Probe) -> str:
    what = probe.detail if probe.outcome == "raised" else f"the process {probe.ended}"
    if autoload_enabled(survey.machine):
        return f"torch loads torch_npu by itself, so `import torch` fails: {what}"
    return f"`import torch_npu` fails: {what}"


def _ordered(survey: Survey, mends: tuple[Mend, ...]) -> tuple[Mend, ...]:
    """Where an NPU was seen, first what makes it usable; elsewhere what does without."""
    without = _ways_without_npu(survey)
    return (*mends, *without) if survey.ascend.count else (*without, *mends)


def _ways_without_npu(survey: Survey) -> tuple[Mend, ...]:
    remove = Mend(pip(survey, "uninstall", "torch-npu"), "if this machine has no NPU")
    if not autoload_enabled(survey.machine):
        return (remove,)
    return (autoload_mend(survey), remove)


def _not_installed(survey: Survey) -> _Parts:
    what = f"torch_npu {survey.torch_npu_version} is installed, CANN is not"
    why = "torch_npu needs Huawei's CANN toolkit; there is none in the usual places."
    mends = (
        Mend(
            f"source {DEFAULT_SCRIPTS[0]}",
            f"after installing CANN from {DOWNLOAD_PAGE} (before CANN 8.5: {DEFAULT_SCRIPTS[1]})",
        ),
    )
    return "torch-npu-without-cann", what, why, mends


def _not_sourced(cann: CannFacts) -> _Parts:
    where = cann.scripts[0].removesuffix("/set_env.sh")
    version = f"CANN {cann.version}" if cann.version else "CANN"
    what = f"{version} is installed in {where} but not sourced in this shell"
    why = "ASCEND_HOME_PATH is unset, so the loader does not find CANN's libraries."
    return "cann-not-sourced", what, why, (Mend(f"source {cann.scripts[0]}"),)


def _path_missing(survey: Survey, cann: CannFacts) -> _Parts:
    what = f"ASCEND_HOME_PATH points to {cann.home}, which does not exist"
    why = "CANN was moved, removed or upgraded after this shell sourced it."
    script = cann.scripts[0] if cann.scripts else DEFAULT_SCRIPTS[0]
    effect = "" if cann.scripts else f"after installing CANN from {DOWNLOAD_PAGE}"
    return "cann-path-missing", what, why, (Mend(f"source {script}", effect),)


def _driver_missing(survey: Survey) -> _Parts:
    what = "the libraries of the Ascend driver are missing"
    why = (
        "CANN is there, but the NPU driver's own libraries below /usr/local/Ascend/driver are not."
    )
    mend = Mend(
        "export LD_LIBRARY_PATH=/usr/local/Ascend/driver/lib64/driver:$LD_LIBRARY_PATH",
        f"after installing the driver from {DOWNLOAD_PAGE}",
    )
    if in_container(survey):
        mend = Mend(
            "docker run -v /usr/local/Ascend/driver:/usr/local/Ascend/driver …",
            "start the container with the host's driver",
        )
    return "ascend-driver-missing", what, why, (mend,)


def _incomplete(cann: CannFacts) -> _Parts:
    what = f"CANN in {cann.home} is incomplete or only partly sourced"
    why = "ASCEND_HOME_PATH is set, yet something torch_npu needs is missing."
    if not cann.opp:
        why += " ASCEND_OPP_PATH is unset."
    elif not cann.opp_exists:
        why += f" ASCEND_OPP_PATH points to {cann.opp}, which does not exist."
    script = next((s for s in cann.scripts), f"{cann.home}/set_env.sh")
    effect = f"in a fresh shell; if it is missing or does not help, reinstall from {DOWNLOAD_PAGE}"
    return "cann-incomplete", what, why, (Mend(f"source {script}", effect),)


def _unknown(survey: Survey) -> _Parts:
    what = f"torch_npu {survey.torch_npu_version} does not load"
    why = "CANN is there and sourced, and the versions match."
    mend = Mend(
        pip(
            survey,
            "install",
            "--force-reinstall",
            "--no-deps",
            f"torch-npu=={survey.torch_npu_version}",
        ),
        "reinstall it",
    )
    return "torch-backend-failed", what, why, (mend,)


def _names_cann(probe: Probe) -> bool:
    """Whether the failure is about a file or variable that CANN provides."""
    words = f"{probe.detail}\n{probe.traceback}"
    return "cannot open shared object" in words or "ASCEND_" in words or "set_env.sh" in words
