"""torch and numpy themselves."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.common import MINIMUM_NUMPY, MINIMUM_TORCH, pip, torch_release
from accel.doctor.finding import Finding, Mend
from accel.doctor.probe import Probe
from accel.doctor.survey import Survey
from accel.doctor.torch_facts import release


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about torch and numpy, apart from any device."""
    if survey.working.imported:
        yield from _too_old(survey)
        yield from _after_import(survey)
    elif "No module named 'torch'" in survey.torch.probe.detail:
        yield _missing(survey)
    else:
        yield _broken(survey, survey.torch.probe)
    yield from _numpy(survey)


def _missing(survey: Survey) -> Finding:
    recorded = survey.installed.versions.get("torch")
    arguments = ["--force-reinstall"] if recorded else []
    why = "This Python finds no package named torch."
    if recorded:
        why += f" Its metadata says {recorded} is installed: the installation is damaged."
    mend = Mend(pip(survey, "install", *arguments, torch_release(survey)))
    return Finding("torch-missing", "error", "torch is not installed", why, (mend,))


def _broken(survey: Survey, probe: Probe) -> Finding:
    """Torch does not import, and switching plugins off (if there are any) does not help."""
    reinstall = Mend(
        pip(survey, "install", "--force-reinstall", torch_release(survey)), "reinstall torch"
    )
    look = Mend(
        f"{survey.machine.executable} -X faulthandler -c 'import torch; print(torch.__file__)'",
        "see for yourself where it stops",
    )
    slow = Mend("accel doctor --timeout 300", "if the disk is only slow")
    finding, verb, mends = {
        "hung": ("torch-hangs", "does not finish", (slow, look, reinstall)),
        "crashed": ("torch-crashes", "kills the process", (reinstall, look)),
        "exited": ("torch-broken", "leaves the process", (look, reinstall)),
        "garbled": ("torch-garbled", "gives no result", (look, reinstall)),
        "refused": ("python-refused", "could not be tried", (look,)),
    }.get(probe.outcome, ("torch-broken", "fails", (reinstall, look)))
    why = f"The process that tried it {probe.ended} at the step `{probe.stage}`."
    if probe.detail and probe.outcome != "crashed":
        why += f" Its last words: {probe.detail}"
    what = f"`import torch` {verb}"
    return Finding(finding, "error", what, why, mends, traceback=probe.traceback)


def _too_old(survey: Survey) -> Iterator[Finding]:
    version = survey.torch_version
    if release(version) < release(MINIMUM_TORCH):
        what = f"torch {version} is older than {MINIMUM_TORCH}"
        why = "Accel uses functions of torch.accelerator and torch.nn that older releases lack."
        mend = Mend(pip(survey, "install", "--upgrade", f"torch>={MINIMUM_TORCH}"))
        yield Finding("torch-too-old", "error", what, why, (mend,))


def _after_import(survey: Survey) -> Iterator[Finding]:
    """Torch imports, but what follows in the same process goes wrong."""
    probe = survey.working.probe
    if probe.outcome == "done" and probe.detail:
        what = f"Python is killed by {probe.detail} when a program that imported torch ends"
        why = "All results had come in by then, but launchers see a failed process."
        mend = Mend("accel doctor --json", "has the whole output")
        yield Finding("torch-exit-crash", "warning", what, why, (mend,), traceback=probe.traceback)
    elif probe.outcome != "done" and probe.stage == "counting devices":
        what = f"torch {probe.ended} while counting its devices"
        why = f"The driver or the runtime below torch is broken. Last words: {probe.detail}"
        mend = Mend("accel doctor --json", "has the whole traceback")
        if probe.outcome in {"hung", "crashed"}:
            mend = Mend("sudo reboot", "a driver in this state rarely recovers by itself")
        yield Finding("device-count-failed", "error", what, why, (mend,), traceback=probe.traceback)


def _numpy(survey: Survey) -> Iterator[Finding]:
    version = survey.working.numpy or survey.installed.versions.get("numpy", "")
    error = survey.working.numpy_error
    mend = (Mend(pip(survey, "install", "--upgrade", f"numpy>={MINIMUM_NUMPY}")),)
    if not version or "No module named 'numpy'" in error:
        why = "Recordings, checkpoints and `Tensor.numpy()` need it."
        yield Finding("numpy-missing", "error", "numpy is not installed", why, mend)
    elif error:
        force = Mend(pip(survey, "install", "--force-reinstall", f"numpy>={MINIMUM_NUMPY}"))
        yield Finding("numpy-broken", "error", f"numpy {version} does not import", error, (force,))
    elif release(version) < release(MINIMUM_NUMPY):
        what = f"numpy {version} is older than {MINIMUM_NUMPY}"
        yield Finding("numpy-too-old", "error", what, "Accel is tested from that release on.", mend)
