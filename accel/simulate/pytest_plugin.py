"""Tests on a simulated Ascend: `pytest --simulate-ascend 910B2` (an entry point of this package).

The option activates the simulator before tests are collected, for this process and for those that
tests start; plain runs are not touched. The fixture `simulated_ascend` is the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from accel.errors import DeviceError
from accel.simulate import Machine, activate, active
from accel.simulate.machine import parse_bytes

if TYPE_CHECKING:
    import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("accel", "simulated Ascend (accel)")
    group.addoption(
        "--simulate-ascend",
        metavar="CHIP",
        help="run on a simulated Ascend of this chip, such as 910A, 910B2, 910_9391 or 950",
    )
    group.addoption(
        "--simulate-devices", metavar="N", type=int, default=1, help="how many chips (default 1)"
    )
    group.addoption(
        "--simulate-memory", metavar="SIZE", default="0", help="memory of each, such as 8G"
    )
    group.addoption(
        "--simulate-faithful", action="store_true", help="reproduce the chip's documented numerics"
    )
    group.addoption(
        "--simulate-poison", action="store_true", help="fill unwritten device memory with NaN"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Activate the simulator if it is asked for."""
    chip = config.getoption("--simulate-ascend")
    if chip is None or active():
        return
    try:
        activate(
            Machine(
                chip=chip,
                devices=config.getoption("--simulate-devices"),
                memory=parse_bytes(config.getoption("--simulate-memory")),
                faithful=config.getoption("--simulate-faithful"),
                poison=config.getoption("--simulate-poison"),
            )
        )
    except (DeviceError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> Any:
    """Name the simulated chip above the results."""
    if not active():
        return None
    import torch

    npu = torch.get_device_module("npu")
    return f"simulated Ascend: {npu.device_count()} x {npu.get_device_name(0)}"


@pytest.fixture
def simulated_ascend() -> torch.device:
    """The first simulated chip; a test that asks for it is skipped in a run without one."""
    if not active():
        pytest.skip("needs pytest --simulate-ascend CHIP")
    import torch

    return torch.device("npu", 0)
