"""The command line. One file per sub-command; none is imported before it is asked for.

Each sub-command module has `add_arguments(parser)` and `run(arguments) -> int` (the exit status),
and imports torch, if it needs it, inside `run`. One with verbs of its own has `main(argv) -> int`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from accel._version import __version__

_COMMANDS = {
    "doctor": "what is on this machine, what is wrong, and the command that mends it",
    "validate": "how far each engine on this machine is from float64",
    "record": "record a window of a program that calls accel.numerics.record",
    "compare": "say whether two recordings agree, and if not, which operator is at fault",
    "replay": "check every operator of one recording against float64",
    "simulate": "run an Ascend program where there is no Ascend",
    "convert": "rewrite CUDA-bound source for every device, and account for what is left",
}
_WITH_VERBS = frozenset({"convert"})


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of the chosen sub-command only.

    The others stay unimported: `accel doctor` must run whatever the others need.
    """
    parser = argparse.ArgumentParser(prog="accel", description="Accel: one program, every chip.")
    parser.add_argument("--version", action="version", version=f"accel {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen and name not in _WITH_VERBS:
            module = importlib.import_module(f"accel.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status: 0 all well, 1 a finding (a broken machine, an exceeded budget),
        2 wrong usage, unreadable input or unwritable output, 3 undecided. `accel convert` has its
        own, which `accel convert --help` lists.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    if chosen in _WITH_VERBS and given[0] == chosen:
        own: int = importlib.import_module(f"accel.cli.{chosen}").main(given[1:])
        return own
    arguments = _parser(chosen).parse_args(given)
    status: int = arguments.run(arguments)
    return status
