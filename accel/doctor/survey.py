"""Collect everything the findings are drawn from, independent probes at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from accel.doctor.ascend import AscendFacts, survey_ascend
from accel.doctor.machine import Installed, Machine, Plugin
from accel.doctor.nvidia import AmdFacts, NvidiaFacts, survey_amd, survey_nvidia
from accel.doctor.probe import AUTOLOAD_OFF, Probe, Prober, Progress
from accel.doctor.torch_facts import SmokeResult, TorchFacts, smoke_result, torch_facts

TORCH_GROUP = "torch.backends"
_PARALLEL = 4  # each probe imports torch: more at once on a small machine only slows all


@dataclass(frozen=True)
class Survey:
    """Everything that was learnt about a machine.

    Attributes:
        machine: The machine.
        installed: Distributions and entry points.
        nvidia: NVIDIA hardware and driver.
        amd: AMD hardware.
        ascend: Ascend hardware, driver and CANN.
        torch: `import torch` exactly as the user's program would do it.
        retry: The same without backend plugins, where the first one failed and has plugins.
        torch_npu: torch and then torch_npu, where the user switched off loading it by itself.
        plugins: One probe per entry point that was tried.
        smoke: Smoke tests of all devices, the CPU first.
    """

    machine: Machine
    installed: Installed
    nvidia: NvidiaFacts
    amd: AmdFacts
    ascend: AscendFacts
    torch: TorchFacts
    retry: TorchFacts | None
    torch_npu: TorchFacts | None
    plugins: Mapping[Plugin, Probe]
    smoke: tuple[SmokeResult, ...]

    @property
    def working(self) -> TorchFacts:
        """The torch that imports: the user's own, or else the one without plugins."""
        return self.torch if self.torch.imported or self.retry is None else self.retry

    @property
    def torch_version(self) -> str:
        """Version of torch, from torch itself or else from its metadata."""
        return self.working.version or self.installed.versions.get("torch", "")

    @property
    def torch_npu_version(self) -> str:
        """Version of torch_npu, empty if it is not installed."""
        return self.installed.versions.get("torch-npu", "")

    @property
    def devices(self) -> tuple[str, ...]:
        """Accelerators that torch offers, whether or not they pass their smoke test."""
        extra = self.torch_npu.devices if self.torch_npu else ()
        return tuple(dict.fromkeys((*self.working.devices, *extra)))

    def count(self, device_type: str) -> int:
        """How many devices of a type torch offers."""
        return sum(device.startswith(f"{device_type}:") for device in self.devices)

    def passed(self) -> tuple[str, ...]:
        """The devices that pass their smoke test."""
        return tuple(result.device for result in self.smoke if result.ok)


def autoload_enabled(machine: Machine) -> bool:
    """Whether `import torch` loads backend plugins; torch's own rule, any value but 1 is off."""
    return machine.environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1"


def take_survey(machine: Machine, timeout: float, progress: Progress) -> Survey:
    """Look at everything.

    Args:
        machine: Where.
        timeout: Seconds for each probe.
        progress: Called with the name of each probe as it starts.

    Returns:
        What was found; nothing on the machine makes this raise.
    """
    prober = Prober(machine, timeout, progress)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            return _look(prober, pool)
        except BaseException:  # Ctrl-C: leaving the pool would wait for every probe's time limit
            pool.shutdown(wait=False, cancel_futures=True)
            machine.stop()
            raise


def _look(prober: Prober, pool: ThreadPoolExecutor) -> Survey:
    machine = prober.machine
    nvidia = pool.submit(survey_nvidia, machine, prober.timeout)
    ascend = pool.submit(survey_ascend, machine, prober.timeout)
    installed = machine.installed()
    torch = torch_facts(prober.run("torch"))
    retry, torch_npu, backends = _second_look(prober, pool, torch, installed)
    works = retry if retry is not None and retry.imported else torch
    overrides = AUTOLOAD_OFF if works is retry else {}
    plugins = _accel_plugins(prober, pool, installed, overrides) if works.imported else {}
    smoke = _smoke_tests(prober, pool, works, torch_npu, overrides)
    return Survey(
        machine=machine,
        installed=installed,
        nvidia=nvidia.result(),
        amd=survey_amd(machine),
        ascend=ascend.result(),
        torch=torch,
        retry=retry,
        torch_npu=torch_npu,
        plugins={**backends, **plugins},
        smoke=smoke,
    )


def _second_look(
    prober: Prober, pool: ThreadPoolExecutor, torch: TorchFacts, installed: Installed
) -> tuple[TorchFacts | None, TorchFacts | None, dict[Plugin, Probe]]:
    """Where plugins are to blame or were switched off, find out what each of them does."""
    backends = [plugin for plugin in installed.plugins if plugin.group == TORCH_GROUP]
    if not autoload_enabled(prober.machine):
        if not torch.imported or "torch-npu" not in installed.versions:
            return None, None, {}
        return None, torch_facts(prober.run("torch", "torch_npu")), {}
    if torch.imported or not (backends or installed.broken):
        return None, None, {}
    retry = pool.submit(prober.run, "torch", overrides=AUTOLOAD_OFF)
    if len(backends) == 1 and not installed.broken:
        return torch_facts(retry.result()), None, {backends[0]: torch.probe}  # it can be no other
    probes = _run_plugins(prober, pool, backends, AUTOLOAD_OFF)
    return torch_facts(retry.result()), None, probes


def _accel_plugins(
    prober: Prober, pool: ThreadPoolExecutor, installed: Installed, overrides: Mapping[str, str]
) -> dict[Plugin, Probe]:
    ours = [plugin for plugin in installed.plugins if plugin.group != TORCH_GROUP]
    return _run_plugins(prober, pool, ours, overrides)


def _run_plugins(
    prober: Prober,
    pool: ThreadPoolExecutor,
    plugins: list[Plugin],
    overrides: Mapping[str, str],
) -> dict[Plugin, Probe]:
    started = {
        plugin: pool.submit(
            prober.run, "plugin", plugin.group, plugin.name, plugin.value, overrides=overrides
        )
        for plugin in plugins
    }
    return {plugin: future.result() for plugin, future in started.items()}


def _smoke_tests(
    prober: Prober,
    pool: ThreadPoolExecutor,
    works: TorchFacts,
    torch_npu: TorchFacts | None,
    overrides: Mapping[str, str],
) -> tuple[SmokeResult, ...]:
    asked = [(device, ()) for device in works.devices]
    extra = torch_npu.devices if torch_npu else ()
    wanted = [*asked, *((device, ("torch_npu",)) for device in extra if (device, ()) not in asked)]
    started = [
        (device, pool.submit(prober.run, "smoke", device, *modules, overrides=overrides))
        for device, modules in wanted
    ]
    cpu = () if works.smoke is None else (works.smoke,)
    return (*cpu, *(smoke_result(device, future.result()) for device, future in started))
