"""`accel record -- COMMAND`: record a window of a program, without changing the program."""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "accel record [options] -- COMMAND [ARGUMENT ...]"
    parser.epilog = (
        "COMMAND is a program that calls accel.numerics.record; the options override what it asks "
        "for. Exit status: that of COMMAND; 2 if it was not started."
    )
    parser.add_argument("--out", metavar="DIRECTORY", help="where to write the recording")
    parser.add_argument("--level", choices=("sketch", "full", "check"), help="what is kept")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="keep the elements of these operators: a module's path such as blocks.1.*, or a key "
        "such as backward:blocks.1/*; repeatable",
    )
    parser.add_argument("--steps", metavar="STEPS", help="which steps: 0,200,400-402")
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Become the command.

    Returns:
        2 where it could not be started; else not at all.
    """
    try:
        return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"accel record: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from accel.numerics.overrides import VARIABLE, Level, Overrides, parse_steps

    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        raise ValueError("no command is given: accel record [options] -- python train.py")
    level: Level | None = arguments.level
    asked = Overrides(
        path=None if arguments.out is None else os.path.abspath(arguments.out),
        level=level,
        only=None if arguments.only is None else tuple(arguments.only),
        steps=None if arguments.steps is None else parse_steps(arguments.steps),
    )
    if asked.path is not None and os.path.isdir(asked.path) and os.listdir(asked.path):
        raise ValueError(f"{arguments.out} is not empty: choose another directory")
    environment = {**os.environ, VARIABLE: asked.to_text()}
    sys.stdout.flush()
    try:
        os.execvpe(program[0], program, environment)  # the command takes this process's place
    except OSError as error:
        raise OSError(f"cannot run {program[0]!r}: {error.strerror}") from error
