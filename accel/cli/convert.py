"""`accel convert`: CUDA-bound PyTorch source becomes code that runs on every device."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from accel.cli import converting
from accel.convert import sweep
from accel.convert.finding import TreeResult
from accel.convert.options import Options
from accel.convert.pages import lines
from accel.convert.pages.summary import status
from accel.convert.rules import RULES
from accel.convert.rules.user_rules import read as read_rules
from accel.convert.tables import support
from accel.convert.tree import convert_input, convert_walk
from accel.convert.walking import Omitted, discover
from accel.report import Progress, check_writable

_MANY = 200  # files from which a progress bar is worth its line
_USAGE = """accel convert [--write | --check | --report] PATH ... [options]
       accel convert rules [ID]
       accel convert trace [options] -- COMMAND [ARGUMENT ...]"""
_EPILOG = """
Without a mode it prints a diff and writes nothing. A directory called `rules` or `trace` is given
as `./rules`. Exit status, the first that holds: 2 wrong usage, an unreadable path, an unwritable
file, or a refusal to write; 4 files that could not be read or parsed, which stay as they are; 1
conversions are pending, under --check; 3 items for a human remain; 0 nothing is left; 130
interrupted.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command, or one of its verbs.

    Args:
        argv: What follows `accel convert`.

    Returns:
        The exit status; see `accel convert --help`.
    """
    verbs = {"rules": _rules, "trace": _trace}
    try:
        if argv and argv[0] in verbs:
            return verbs[argv[0]](argv[1:])
        return _convert(_parsed(argv))
    except (ValueError, OSError, RuntimeError) as error:
        converting.note([f"accel convert: {error}"])
        return 2
    except KeyboardInterrupt:
        print("\naccel convert: interrupted; nothing is written", file=sys.stderr)
        return 130


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments: paths may stand among the options, and anything after `--`."""
    before, after = _split(argv)
    arguments = _parser().parse_intermixed_args(before)
    arguments.paths = [*(arguments.paths or ()), *after]
    return arguments


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("accel convert", usage=_USAGE, epilog=_EPILOG)
    parser.description = "CUDA-bound PyTorch source becomes code that runs on every device."
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="*", help="files and directories; `-` for standard input")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--write", action="store_true", help="write the files, each as a whole")
    modes.add_argument("--check", action="store_true", help="list what is pending, for CI")
    add("--report", action="store_true", help="say whether it can be moved, and what hinders it")
    add("--format", choices=("text", "json", "sarif", "html"), help="of the report (default text)")
    add("--output", metavar="FILE", help="write the report there")
    add("--all", action="store_true", help="list in the report's text what is kept, too")
    add("--target", choices=("accel", "torch", "npu"), default="accel",
        help="what the output calls (default accel)")  # fmt: skip
    add("--from", dest="source", choices=("cuda", "npu", "musa", "mlu"), default="cuda",
        help="what the input is bound to (default cuda)")  # fmt: skip
    add("--chip", default="910B2", help="the Ascend chip whose limits count (default 910B2)")
    add("--select", metavar="IDS", default="", help="only these rules convert, as ACC012,ACC05")
    add("--ignore", metavar="IDS", default="", help="these rules do not convert")
    add("--rules", metavar="FILE", help="rules of your own, as JSON")
    add("--exclude", metavar="GLOB", action="append", default=[], help="leave such names out")
    add("--trace-log", metavar="FILE", help="a log of `accel convert trace`, for the report")
    add("--jobs", metavar="N", type=int, default=0, help="processes (default 0: as many as help)")
    add("--force", action="store_true", help="write over changes that are not committed")
    add("--quiet", action="store_true", help="print errors only")
    return parser


def _convert(arguments: argparse.Namespace) -> int:
    is_report = bool(arguments.report or arguments.format or arguments.output or arguments.all)
    if is_report and arguments.write:
        raise ValueError("a report is made before anything is written: leave out --write")
    if arguments.trace_log and not is_report:
        raise ValueError("--trace-log is part of a report: give --report too")
    options = _options(arguments)
    if arguments.output:
        check_writable(arguments.output)
    calls = None
    if arguments.trace_log:
        from accel.convert.traced import read_log

        calls = read_log(arguments.trace_log)
    tree, omitted = _tree(arguments, options)
    quiet: bool = arguments.quiet
    given = {Path(path).as_posix() for path in arguments.paths}
    if not quiet:
        converting.note(f"{one.path}: {one.reason}" for one in omitted if one.path in given)
    if is_report:
        converting.print_report(
            tree, omitted, kind=arguments.format or "text", output=arguments.output, calls=calls,
            has_kept=arguments.all, quiet=quiet,
        )  # fmt: skip
    elif arguments.write:
        failed = converting.write(tree, force=arguments.force, quiet=quiet)
        if failed:
            return failed
    elif arguments.check:
        converting.print_check(tree, quiet=quiet)
    else:
        converting.print_diff(tree, quiet=quiet)
    return status(tree, check=arguments.check)


def _options(arguments: argparse.Namespace) -> Options:
    rules = Path(arguments.rules).read_text("utf-8") if arguments.rules else ""
    read_rules(rules)  # a wrong file is refused before any other is read
    return Options(
        target=arguments.target,
        source=arguments.source,
        chip=_chip(arguments.chip),
        select=_identifiers("--select", arguments.select, has_own=bool(rules)),
        ignore=_identifiers("--ignore", arguments.ignore, has_own=bool(rules)),
        user_rules=rules,
    )


def _chip(given: str) -> str:
    name = given.removeprefix("Ascend")
    support(name)  # says which chips have a table
    return name


def _identifiers(option: str, given: str, *, has_own: bool) -> tuple[str, ...]:
    """Ids and prefixes of rules that exist."""
    known = [rule.id for rule in RULES]
    asked = tuple(part.strip().upper() for part in given.split(",")) if given else ()
    for one in asked:
        is_own = has_own and one.startswith("USR")
        if not one or not (is_own or any(name.startswith(one) for name in known)):
            near = difflib.get_close_matches(one, known, n=3, cutoff=0.5)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ValueError(
                f"{option}: no rule's id begins with {one!r}{hint}; `accel convert rules` lists all"
            )
    return asked


def _tree(
    arguments: argparse.Namespace, options: Options
) -> tuple[TreeResult, tuple[Omitted, ...]]:
    if "-" in arguments.paths:
        if arguments.paths != ["-"]:
            raise ValueError("`-` is standard input, and stands alone")
        return convert_input(sys.stdin.buffer.read(), options), ()
    walk = discover(arguments.paths, exclude=arguments.exclude, language_of=sweep.language_of)

    def bar(total: int) -> Progress:
        is_shown = total >= _MANY and not arguments.quiet
        return Progress(total, "accel convert", unit="file", enabled=is_shown)

    return convert_walk(walk, options, jobs=arguments.jobs, progress=bar), walk.omitted


# --- verbs -------------------------------------------------------------------------------------


def _rules(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("accel convert rules", description="List or show the rules.")
    parser.add_argument("rule", metavar="ID", nargs="?", help="a rule, such as ACC012")
    asked: str | None = parser.parse_args(list(argv)).rule
    text = lines.rule_text(asked.upper()) if asked else lines.rule_table()
    converting.say(f"{text}\n")
    return 0


def _trace(argv: Sequence[str]) -> int:
    from accel import trace

    parser = argparse.ArgumentParser(
        "accel convert trace",
        usage="accel convert trace [--log FILE] [--simulate [CHIP]] -- COMMAND [ARGUMENT ...]",
        description="Run a program as it is, with its CUDA calls sent to the device here, and log "
        "them; `accel convert --report --trace-log FILE` adds the log to the report.",
        epilog="Exit status: the command's own; 2 if it was not started.",
    )
    parser.add_argument("--log", metavar="FILE", default="accel-trace.json",
                        help="default accel-trace.json")  # fmt: skip
    parser.add_argument("--simulate", metavar="CHIP", nargs="?", const="910B2",
                        help="on a simulated Ascend, or several: 910B2:2")  # fmt: skip
    parser.add_argument("--no-claim", action="store_true",
                        help="on a CPU, do not say that CUDA is available")  # fmt: skip
    before, command = _split(argv)
    arguments = parser.parse_args(before)
    return trace.run_command(
        command, arguments.log, arguments.simulate, claim_cuda=not arguments.no_claim
    )
