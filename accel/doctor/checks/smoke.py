"""Smoke tests that did not pass."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.common import BUILD_PAGE, pip, torch_release
from accel.doctor.finding import Finding, Mend
from accel.doctor.survey import Survey
from accel.doctor.torch_facts import SmokeResult


def check(survey: Survey) -> Iterator[Finding]:
    """One finding for each device that fails."""
    for result in survey.smoke:
        if result.wrong:
            yield _wrong(result)
        elif not result.ok:
            yield _failed(survey, result)


def _family(result: SmokeResult) -> str:
    return result.device.split(":")[0]


def _wrong(result: SmokeResult) -> Finding:
    what = f"{result.device} computes wrong numbers"
    why = (
        f"A 4x6 by 6x5 product of small integers, exact in any format, came back with a "
        f"{result.detail}. The chip, its memory or its libraries are faulty."
    )
    mends = (Mend("sudo reboot", "then run the doctor again; if it stays, have the chip replaced"),)
    return Finding("smoke-wrong-result", "error", what, why, mends, _family(result))


def _failed(survey: Survey, result: SmokeResult) -> Finding:
    what = f"{result.device} fails its smoke test"
    return Finding(
        "smoke-failed",
        "error",
        what,
        result.detail,
        (_mend(survey, result),),
        _family(result),
        result.traceback,
    )


def _mend(survey: Survey, result: SmokeResult) -> Mend:
    said = f"{result.detail}\n{result.traceback}".lower()
    tool = "npu-smi info" if result.device.startswith("npu") else "nvidia-smi"
    if "no kernel image" in said:
        return Mend(
            pip(survey, "install", "--force-reinstall", torch_release(survey)),
            f"this build has no code for this chip: use an --index-url from {BUILD_PAGE}",
        )
    if "out of memory" in said or "busy or unavailable" in said:
        return Mend(tool, "names the processes that hold the device: stop one")
    if result.device == "cpu":
        return Mend(
            pip(survey, "install", "--force-reinstall", torch_release(survey)), "reinstall torch"
        )
    return Mend("accel doctor --json", "has the whole traceback under findings")
