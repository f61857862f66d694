"""`accel simulate -- COMMAND`: run an Ascend program where there is no Ascend."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.simulate.porting.findings import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "accel simulate [options] -- COMMAND [ARGUMENT ...]"
    parser.epilog = (
        "Exit status: that of COMMAND, 128 + N if signal N killed it; 2 if it was not started or "
        "its report cannot be written."
    )
    parser.add_argument("--chip", default="910B2", help="simulated chip (default 910B2)")
    parser.add_argument("--list-chips", action="store_true", help="list the chips and leave")
    parser.add_argument(
        "--devices", metavar="N", type=int, default=1, help="how many chips (default 1)"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", default="0", help="memory of each, such as 8G (default: all)"
    )
    parser.add_argument(
        "--faithful", action="store_true", help="reproduce the chip's documented numerics"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="an operator on a dtype that the vendor's tables do not list raises",
    )
    parser.add_argument("--report", metavar="FILE", help="write the porting report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write it as a self-contained page")
    parser.add_argument(
        "--install",
        action="store_true",
        help="first install the torch-npu that matches torch, outside this Python environment",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        Its exit status; 2 where it could not be started or its report cannot be written.
    """
    from accel.errors import DeviceError

    try:
        return _run(arguments)
    except (DeviceError, ValueError, OSError) as error:
        print(f"accel simulate: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from accel.simulate import package

    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if arguments.list_chips:
        return _list_chips()
    if arguments.install:
        print(f"torch-npu is in {package.install()}", file=sys.stderr)
        if not program:
            return 0
    if not program:
        raise ValueError("no command is given: accel simulate [options] -- python train.py")
    return _simulate(arguments, program)


def _simulate(arguments: argparse.Namespace, program: Sequence[str]) -> int:
    from accel.report import check_writable
    from accel.simulate.activation import child_environment
    from accel.simulate.child import run_child
    from accel.simulate.machine import Machine, parse_bytes
    from accel.simulate.porting import parts

    outputs = [path for path in (arguments.report, arguments.html) if path]
    for path in outputs:
        check_writable(path)
    machine = Machine(
        chip=arguments.chip,
        devices=arguments.devices,
        memory=parse_bytes(arguments.memory),
        faithful=arguments.faithful,
        strict=arguments.strict,
        report=os.path.abspath(outputs[0]) if outputs else "",
    )
    environment = {**os.environ, **child_environment(machine)}
    if not outputs:
        return run_child(program, environment)
    stem = environment[parts.VARIABLE] = parts.new_stem(outputs[0])
    try:
        status = run_child(program, environment)
    finally:
        found, notes = parts.take_parts(stem)
    report = parts.merge(machine, found, notes, command=program, exit_status=status)
    _write(arguments, report)
    return status


def _write(arguments: argparse.Namespace, report: Report) -> None:
    from accel.report import write_atomically
    from accel.simulate.porting import page, parts, text

    print(f"\n{text.to_text(report)}", file=sys.stderr)
    if arguments.report:
        parts.write_report(arguments.report, report)
    if arguments.html:
        write_atomically(arguments.html, page.to_html(report))
        print(f"\nreport: {arguments.html}", file=sys.stderr)


def _list_chips() -> int:
    from accel import report
    from accel.devices.chips import CHIPS

    rows = [
        (
            one.soc_name.removeprefix("Ascend"), one.generation, one.memory_bytes >> 30,
            "yes" if one.bfloat16 else "no", "yes" if one.fp8 else "no",
        )
        for one in CHIPS.values()
    ]  # fmt: skip
    print(report.text.table(("chip", "generation", "memory in GiB", "bfloat16", "float8"), rows))
    return 0
