"""NVIDIA: the build of torch against the driver and the hardware."""

from __future__ import annotations

from collections.abc import Iterator

from accel.doctor.checks.common import (
    BUILD_PAGE,
    hiding_variable,
    in_container,
    in_new_environment,
    nvidia_driver_command,
    pip,
    torch_release,
)
from accel.doctor.finding import Finding, Mend
from accel.doctor.survey import Survey
from accel.doctor.torch_facts import release

# Oldest driver branch for each CUDA major ("CUDA Compatibility", minor version compatibility).
MINIMUM_DRIVER = {11: 450, 12: 525, 13: 580}


def check(survey: Survey) -> Iterator[Finding]:
    """Findings about NVIDIA hardware, driver and build."""
    yield from _tool(survey)
    torch = survey.working
    if not torch.imported or torch.probe.outcome != "done":
        return  # what ended the probe is the cause, and has its own finding
    if survey.count("cuda") and not torch.hip:
        return
    if not survey.nvidia.count:
        yield from _no_gpu(survey)
    elif not torch.cuda:
        yield _build_without_cuda(survey)
    elif name := hiding_variable(survey, "cuda", survey.nvidia.count):
        yield _hidden(survey, name)
    elif not survey.nvidia.tool.error:
        yield _unavailable(survey)


def _no_gpu(survey: Survey) -> Iterator[Finding]:
    if survey.working.cuda:
        what = f"torch is a {survey.working.build} and no NVIDIA GPU is here"
        why = "It runs on the CPU as well; a CPU build would only be smaller."
        yield Finding("cuda-build-without-gpu", "note", what, why, family="cuda")


def _hidden(survey: Survey, name: str) -> Finding:
    what = f"{name} hides every NVIDIA GPU"
    why = f"It is {survey.machine.environment[name]!r}; {survey.nvidia.count} GPU are here."
    return Finding("devices-hidden", "error", what, why, (Mend(f"unset {name}"),), "cuda")


def _gpu_name(survey: Survey) -> str:
    gpus = survey.nvidia.gpus
    return f"{survey.nvidia.count} NVIDIA GPU ({gpus[0].name})" if gpus else "an NVIDIA GPU"


def _build_without_cuda(survey: Survey) -> Finding:
    torch = survey.working
    what = f"{_gpu_name(survey)} found, but torch {torch.version} is a {torch.build}"
    why = "torch was built without CUDA, so torch.cuda.is_available() is False whatever the driver."
    # `===` compares the text: `==` would take a local build such as +cpu again.
    wanted = torch_release(survey).replace("==", "===")
    install = pip(survey, "install", "--force-reinstall", wanted)
    if survey.count("npu"):
        why += " torch_npu works with this build and would refuse a CUDA build."
        install = in_new_environment("gpu-env", wanted)
    effect = f"the CUDA build, on Linux; elsewhere take the command from {BUILD_PAGE}"
    mends = (Mend(install, effect),)
    return Finding("torch-build-without-cuda", "error", what, why, mends, "cuda")


def _unavailable(survey: Survey) -> Finding:
    """A GPU and a CUDA build, and yet no device: the driver is missing, too old or broken."""
    facts, torch = survey.nvidia, survey.working
    if not (facts.driver or facts.nodes or facts.tool.path):
        return _driver_missing(survey)
    minimum = MINIMUM_DRIVER.get((release(torch.cuda) or (0,))[0], 0)
    if facts.driver and release(facts.driver)[0] < minimum:
        return _driver_too_old(survey, minimum)
    what = f"{_gpu_name(survey)} found, torch can use none"
    why = torch.reason or "torch gives no reason."
    mends = [Mend("sudo nvidia-modprobe -u -c=0", "makes the device nodes the runtime opens")]
    if in_container(survey):
        mends.insert(0, Mend("docker run --gpus all …", "start the container with the GPUs"))
    return Finding("cuda-unavailable", "error", what, why, tuple(mends), "cuda")


def _driver_missing(survey: Survey) -> Finding:
    what = f"{survey.nvidia.count} NVIDIA GPU on the PCI bus, no NVIDIA driver"
    why = f"torch is a {survey.working.build}; it needs the driver, which is not part of it."
    mend = Mend(nvidia_driver_command(survey), "then reboot")
    if in_container(survey):
        mend = Mend("docker run --gpus all …", "the driver comes from the host")
    return Finding("nvidia-driver-missing", "error", what, why, (mend,), "cuda")


def _driver_too_old(survey: Survey, minimum: int) -> Finding:
    cuda, driver = survey.working.cuda, survey.nvidia.driver
    major = release(cuda)[0]
    what = f"the NVIDIA driver {driver} is too old for torch's CUDA {cuda}"
    why = f"CUDA {major}.x needs driver {minimum} or newer. {survey.working.reason}".strip()
    older = [known for known, oldest in MINIMUM_DRIVER.items() if oldest <= release(driver)[0]]
    mends = [Mend(nvidia_driver_command(survey), f"install driver {minimum} or newer, then reboot")]
    if older:
        mends.append(
            Mend(
                pip(survey, "install", "--force-reinstall", torch_release(survey)),
                f"with the --index-url that {BUILD_PAGE} gives for CUDA {max(older)}.x",
            )
        )
    return Finding("nvidia-driver-too-old", "error", what, why, tuple(mends), "cuda")


def _tool(survey: Survey) -> Iterator[Finding]:
    """nvidia-smi: there, answering, readable?"""
    facts = survey.nvidia
    if facts.tool.error:
        yield _tool_failed(survey)
    elif not facts.readable:
        what = "nvidia-smi printed nothing that could be read"
        why = f"It ended well and said: {facts.tool.stdout.strip()[:200]}"
        mend = Mend("nvidia-smi", "look at it; a wrapper on PATH may shadow the real one")
        yield Finding("nvidia-smi-unreadable", "warning", what, why, (mend,), "cuda")
    elif not facts.tool.path and facts.nodes:
        what = f"{facts.nodes[0]} is here, nvidia-smi is not"
        why = "The driver is loaded, its tools are not on PATH: often not mounted in a container."
        mend = Mend("docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility …")
        if not in_container(survey):
            mend = Mend(nvidia_driver_command(survey), "installs the tools with the driver")
        yield Finding("nvidia-smi-missing", "warning", what, why, (mend,), "cuda")


def _tool_failed(survey: Survey) -> Finding:
    facts = survey.nvidia
    why = facts.tool.output[:400] or facts.tool.error
    mends = [Mend("sudo modprobe nvidia", "load the driver"), Mend(nvidia_driver_command(survey))]
    if "version mismatch" in why or "no answer" in facts.tool.error:
        mends = [Mend("sudo reboot", "the loaded driver and its libraries disagree or are stuck")]
    broken = facts.count > 0 and not survey.count("cuda")
    if broken and survey.working.reason:
        why += f" torch says: {survey.working.reason}"
    what = f"nvidia-smi does not work: {facts.tool.error}"
    return Finding(
        "nvidia-driver-failed", "error" if broken else "warning", what, why, tuple(mends), "cuda"
    )
