"""`accel validate`: how far each engine on this machine is from float64."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.devices import Device
    from accel.testing import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `accel validate`."""
    parser.description = (
        "Run the conformance suite on every device here, in float32 and in its autocast dtype, "
        "against float64 on the CPU: kernels, torch's own operators over sizes, optimizers, a "
        "whole model, ONNX Runtime where it is installed. Exit status: 0 all within their limits, "
        "1 one is out, 2 wrong usage, a missing device or unwritable output."
    )
    parser.add_argument(
        "--device", action="append", metavar="NAME", help="only this one, e.g. npu:0; repeatable"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON: a quality card of this machine"
    )
    parser.add_argument("--html", metavar="FILE", help="write the result as a self-contained page")


def run(arguments: argparse.Namespace) -> int:
    """Run the suite, print its table, and write what was asked for.

    Args:
        arguments: Of `add_arguments`.

    Returns:
        The exit status.
    """
    from accel.devices import available_devices, current_device, find_device
    from accel.errors import DeviceError
    from accel.report import check_writable, write_atomically
    from accel.testing import presentation
    from accel.testing.suite import absent_engines

    try:
        named = arguments.device
        current_device()  # a mistyped ACCEL_DEVICE is said and not passed over
        devices = [find_device(name) for name in named] if named else available_devices()
        for path in filter(None, (arguments.json, arguments.html)):
            check_writable(path)
        checks, absent = _run(devices), absent_engines()
        print(presentation.as_text(checks, absent))
        if arguments.json:
            write_atomically(arguments.json, presentation.as_json(checks, devices, absent))
        if arguments.html:
            write_atomically(arguments.html, presentation.as_html(checks, devices, absent))
            print(f"report: {arguments.html}")
    except (DeviceError, OSError, ValueError) as error:
        print(f"accel validate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accel validate: interrupted", file=sys.stderr)
        return 130
    return 0 if checks and all(check.passed for check in checks) else 1


def _run(devices: list[Device]) -> list[Check]:
    from accel.report import Progress
    from accel.testing import conformance
    from accel.testing.suite import expected_checks

    with Progress(expected_checks(devices), "validate", unit="check") as progress:
        return conformance(
            devices, on_check=lambda check: progress.advance(text=f"{check.engine} {check.name}")
        )
