"""What `accel convert` does with a converted tree: a diff, a check, written files, a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel.convert import git, writing
from accel.convert.finding import TreeResult
from accel.convert.pages import diff, lines, naming, page, runs, sarif, structured, text
from accel.convert.pages.summary import Summary, summarize
from accel.convert.pages.words import count, plain
from accel.convert.walking import Omitted, place_of
from accel.report import write_atomically

if TYPE_CHECKING:
    from accel.convert.traced import TracedCall

_NAMED = 5  # files that a refusal names


def print_report(
    tree: TreeResult,
    omitted: Sequence[Omitted],
    *,
    kind: str,
    output: str | None,
    calls: Sequence[TracedCall] | None,
    has_kept: bool,
    quiet: bool,
) -> None:
    """Print or write the report.

    Args:
        tree: The run.
        omitted: What the walk left out.
        kind: `text`, `json`, `sarif` or `html`.
        output: The file it goes to; None for standard output.
        calls: A tracing log.
        has_kept: Whether the text lists what is kept.
        quiet: Whether the verdict is not repeated where the report is not read.

    Raises:
        OSError: The file cannot be written.
    """
    trace = None if calls is None else runs.merge(tree, calls)
    if kind in ("text", "html"):  # for people, who open the files from here
        omitted = naming.omitted_from_here(tree, omitted)
        trace = trace and naming.trace_from_here(tree, trace)
        tree = naming.tree_from_here(tree)
    summary = summarize(tree, omitted)
    document = _document(kind, tree, summary, trace, has_kept)
    if output is None:
        say(document)
    else:
        write_atomically(output, document.encode("utf-8", "replace"))
    if quiet or (output is None and kind == "text"):
        return
    note([text.verdict(summary), *text.missing(summary)])
    if output is not None:
        note([f"report: {output}"])


def _document(
    kind: str, tree: TreeResult, summary: Summary, trace: runs.Trace | None, has_kept: bool
) -> str:
    if kind == "json":
        return structured.to_json(tree, summary, trace)
    if kind == "sarif":
        return sarif.to_sarif(tree, summary)
    if kind == "html":
        return page.to_html(tree, summary, trace)
    return text.to_text(tree, summary, trace, has_kept=has_kept)


def print_diff(tree: TreeResult, *, quiet: bool) -> None:
    """Print the change as a diff, and beside it what is for a human."""
    if quiet:
        return
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for file in tree.files:
        patch = diff.unified(file, lines.name_from_here(tree, file.path))
        say(diff.coloured(patch) if is_coloured else patch)
    note(lines.finding_lines(tree, {"flag"}))
    changed = sum(file.is_changed for file in tree.files)
    _conclude(tree, "would change" + ("; --write writes them" if changed else ""), changed)


def print_check(tree: TreeResult, *, quiet: bool) -> None:
    """Print what is pending, and what is for a human."""
    if quiet:
        return
    say("".join(f"{line}\n" for line in lines.finding_lines(tree, {"convert", "flag"})))
    _conclude(tree, "would change", sum(file.is_changed for file in tree.files))


def write(tree: TreeResult, *, force: bool, quiet: bool) -> int:
    """Write the changed files; standard input's conversion goes to standard output.

    Args:
        tree: The run.
        force: Whether changes that are not committed may be written over.
        quiet: Whether nothing but errors is printed.

    Returns:
        0; 2 where some file could not be written; 130 if interrupted.

    Raises:
        ValueError: Nothing may be written, and nothing is.
    """
    if tree.roots == ("-",):
        say(tree.files[0].after)
        return 0
    if tree.conflicts:
        raise ValueError("; ".join(tree.conflicts))
    pairs = [(file, place_of(tree.roots, file.path)) for file in tree.files if file.is_changed]
    if pairs and not force:
        _ask_git(tree, [place for _, place in pairs], quiet=quiet)
    written = writing.write(pairs)
    if not quiet:
        say("".join(f"{line}\n" for line in lines.finding_lines(tree, {"flag"})))
        _conclude(tree, "are written", len(written.done))
    if not written.failed:
        return 0
    note(f"accel convert: written: {path}" for path in written.done)
    note(f"accel convert: not written: {path}: {reason}" for path, reason in written.failed)
    return 130 if written.is_interrupted else 2


def _ask_git(tree: TreeResult, places: Sequence[Path], *, quiet: bool) -> None:
    """Refuse to write over what could not be had back."""
    found = git.state(tree.roots, places)
    if found.problem:
        raise ValueError(f"{found.problem}; mend that, or write all the same with --force")
    if found.modified:
        more = len(found.modified) - _NAMED
        named = ", ".join(found.modified[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(
            f"changes are not committed in {named}: commit or stash them, so that the conversion "
            "can be looked at and taken back; or write all the same with --force"
        )
    if found.unprotected and not quiet:
        number = count(len(found.unprotected), "file")
        note([f"accel convert: git has no copy of {number} that will be written over"])


def _conclude(tree: TreeResult, what: str, changed: int) -> None:
    done, flagged = (
        sum(one.action == action for file in tree.files for one in file.findings)
        for action in ("convert", "flag")
    )
    note(f"! {conflict}" for conflict in tree.conflicts)
    note(
        [
            f"accel convert: {changed:,} of {count(len(tree.files), 'file')} {what}; "
            f"{count(done, 'site')} converted, {flagged:,} for a human"
        ]
    )


def say(said: str | bytes) -> None:
    """Print to a reader that may have left: `accel convert . | head` is no error."""
    data = said.encode("utf-8", "replace") if isinstance(said, str) else said
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What is left in the buffer must not be tried again as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(said: Iterable[str]) -> None:
    """Print lines to standard error; what they quote cannot steer the terminal."""
    for line in said:
        print(plain(line), file=sys.stderr)
