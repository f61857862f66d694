"""AMD: the build of torch against the kernel driver."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.common import BUILD_PAGE, hiding_variable, pip, torch_release
from accel.doctor.finding import Finding, Mend
from accel.doctor.survey import Survey


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about AMD hardware, driver and build."""
    torch, gpus = survey.working, max(survey.amd.kfd_gpus, survey.amd.pci)
    if not torch.imported or (torch.hip and survey.count("cuda")):
        return
    if not torch.hip:
        yield from _build_without_rocm(survey)
    elif not gpus:
        what = f"torch is a {torch.build} and no AMD GPU is here"
        yield Finding("rocm-build-without-gpu", "note", what, "It runs on the CPU.", family="rocm")
    elif not survey.machine.exists("/dev/kfd"):
        what = "an AMD GPU is here, the compute driver is not: /dev/kfd is missing"
        why = f"torch is a {torch.build}; it talks to the GPU through /dev/kfd."
        mend = Mend("sudo modprobe amdgpu", "after installing ROCm's kernel driver")
        yield Finding("rocm-driver-missing", "error", what, why, (mend,), "rocm")
    elif name := hiding_variable(survey, "rocm", gpus):
        what = f"{name} hides every AMD GPU"
        why = f"It is {survey.machine.environment[name]!r}."
        yield Finding("devices-hidden", "error", what, why, (Mend(f"unset {name}"),), "rocm")
    else:
        what = "an AMD GPU and its driver are here, torch can use none"
        why = torch.reason or "torch gives no reason; often the user lacks access to /dev/kfd."
        mend = Mend("sudo usermod -aG render,video $USER", "then log in again")
        yield Finding("rocm-unavailable", "error", what, why, (mend,), "rocm")


def _build_without_rocm(survey: Survey) -> Iterator[Finding]:
    """A warning only: the kernel driver lists graphics in the processor that ROCm cannot use."""
    if survey.amd.kfd_gpus:
        what = f"an AMD GPU is here, torch {survey.torch_version} is a {survey.working.build}"
        why = "torch uses an AMD GPU only in its ROCm build, if ROCm supports that GPU."
        mend = Mend(
            pip(survey, "install", "--force-reinstall", torch_release(survey)),
            f"with the --index-url that {BUILD_PAGE} gives for ROCm",
        )
        yield Finding("torch-build-without-rocm", "warning", what, why, (mend,), "rocm")
