"""The report for a terminal: at most 100 columns, the verdict first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from accel.convert.finding import FileResult, Finding, TreeResult
from accel.convert.keeping import is_switched_off
from accel.convert.pages.runs import Trace
from accel.convert.pages.summary import Group, Summary, Unread
from accel.convert.pages.words import ACTIONS, EFFORTS, WIDTH, count, cut, percent, sentence, wrap
from accel.report import text

HOW_TO_REPORT = (
    "This is a bug of the converter, and no fault of yours. Look at these lines yourself, and "
    "report them with the version (accel --version): a line as small as it can be that shows it."
)
_PLACES = 8  # of a group, before "and more"
_REASONS = 3  # of a group; every finding has its own below


def to_text(
    tree: TreeResult, summary: Summary, trace: Trace | None = None, *, has_kept: bool = False
) -> str:
    """The whole report.

    Args:
        tree: The run.
        summary: What it comes to.
        trace: What a traced run of the program saw, if there was one.
        has_kept: Whether the findings at the end hold what is kept, most of which is no matter.

    Returns:
        Lines, with a newline at the end.
    """
    parts = [
        *_head(tree, summary),
        *missing(summary),
        *_sections(summary),
        *(_traced(trace) if trace else ()),
        *_ledger(summary),
        *_files(tree, has_kept),
    ]
    return "\n".join(parts) + "\n"


def verdict(summary: Summary) -> str:
    """The verdict in one sentence."""
    word = summary.verdict.upper()
    joint = " " if summary.verdict == "no-go" else ": "
    return f"{word}{joint}{sentence(summary.sentence)}"


def _head(tree: TreeResult, summary: Summary) -> Iterator[str]:
    yield from wrap(verdict(summary))
    yield ""
    kinds = ", ".join(f"{number:,} {language}" for language, number in summary.files.items())
    yield from wrap(
        f"{', '.join(tree.roots)}: {count(sum(summary.files.values()), 'file')}"
        f"{f' ({kinds})' if kinds else ''}, {count(summary.lines, 'line')}; "
        f"target {tree.target}, chip {tree.chip}."
    )
    yield from wrap("; ".join(_counts(summary)) + ".")
    if summary.omitted:
        said = "; ".join(f"{one.path}: {one.reason}" for one in summary.omitted[:_PLACES])
        more = len(summary.omitted) - _PLACES
        said += f"; and {more} more" if more > 0 else ""
        yield from wrap(sentence(f"Left out: {said}"))


def _counts(summary: Summary) -> Iterator[str]:
    if summary.sites:
        yield (
            f"{summary.actions['convert']:,} of {count(summary.sites, 'site')} convert by "
            f"themselves ({summary.share})"
        )
        yield f"for a human: {summary.actions['flag']:,}"
    if summary.switched_off:
        yield f"switched off in this run: {summary.switched_off:,}"
    kept = summary.actions["keep"] - summary.switched_off
    yield f"right as they are, and kept: {count(kept, 'place')}"


def missing(summary: Summary) -> Iterator[str]:
    """Tokens that no rule accounts for, loudly; nothing where there are none."""
    if not summary.missing:
        return
    yield ""
    yield f"!! {count(len(summary.missing), 'TOKEN')} THAT NO RULE ACCOUNTS FOR"
    yield from wrap(HOW_TO_REPORT, "   ")
    for path, entry in summary.missing:
        yield cut(f"   {path}:{entry.line}: {entry.token} ({entry.kind})", WIDTH)


def _sections(summary: Summary) -> Iterator[str]:
    yield from _blockers(summary)
    yield from _heading("Work")
    rows = [(one.effort, one.sites, one.lines, one.files, EFFORTS[one.effort]) for one in
            summary.work]  # fmt: skip
    yield text.table(("class", "sites", "lines", "files", "meaning"), rows)
    yield from _unread(summary.unread)
    yield from _section("For a human", summary.human)
    yield from _section("Operators and dtypes with limits on the chip", summary.operators)
    yield from _section("Packages and extensions", summary.packages)
    for language, found in summary.elsewhere.items():
        yield from _section(f"Other files: {language}", found)


def _heading(title: str) -> Iterator[str]:
    yield ""
    yield title
    yield "-" * len(title)


def _blockers(summary: Summary) -> Iterator[str]:
    if not summary.blockers:
        yield from _heading("Blockers")
    yield from _section("Blockers", summary.blockers)
    for conflict in summary.conflicts:
        yield from wrap(sentence(conflict), "  ", first="! ")
    if not summary.blockers and not summary.conflicts:
        yield "None."


def _section(title: str, groups: Sequence[Group]) -> Iterator[str]:
    if not groups:
        return
    yield from _heading(title)
    advised: dict[str, str] = {}  # what a piece of advice was first given for
    for group in groups:
        yield from _group(group, advised)


def _group(group: Group, advised: dict[str, str]) -> Iterator[str]:
    title = f"{group.subject}: {count(len(group.places), 'place')} [{', '.join(group.rules)}]"
    yield from wrap(title, "  ", first="")
    for reason in group.reasons[:_REASONS]:
        yield from wrap(sentence(reason), "    ", first="  = ")
    for place in group.places[:_PLACES]:
        yield cut(f"    {place.path}:{place.finding.line}: {place.finding.snippet}", WIDTH)
    more = len(group.places) - _PLACES
    if more > 0:
        yield f"    and {more:,} more below"
    if group.named_at:
        more = len(group.named_at) - _PLACES
        said = ", ".join(group.named_at[:_PLACES]) + (f" and {more:,} more" if more > 0 else "")
        yield from wrap(f"named at {said}", "    ", first="  < ")
    for advice in group.advice:
        first = advised.setdefault(advice, group.subject)
        said = advice if first == group.subject else f"as for {first}"
        yield from wrap(said, "    ", first="  > ")


def _unread(unread: Sequence[Unread]) -> Iterator[str]:
    if unread:
        yield from _heading("Files not read or parsed; they stay as they are")
        for one in unread:
            yield from wrap(f"{one.path}: {one.error}", "  ", first="")


def _traced(trace: Trace) -> Iterator[str]:
    yield from _heading("Seen as the program ran")
    yield from wrap(trace.sentence)
    for call in trace.unseen:
        given = f", given {call.given}" if call.given else ""
        said = f"{call.name} ({count(call.times, 'call')}{given})"
        yield cut(f"    {call.path}:{call.line}: {said}", WIDTH)
    if trace.idle:
        yield from wrap(
            f"At {len(trace.idle):,} of {count(trace.sites, 'site')} of those files no call was "
            "logged: the line did not run, or what it says reaches CUDA at another one."
        )
        for place in islice(trace.idle, _PLACES):
            yield cut(f"    {place.path}:{place.finding.line}: {place.finding.snippet}", WIDTH)
        if len(trace.idle) > _PLACES:
            yield f"    and {len(trace.idle) - _PLACES:,} more"


def _ledger(summary: Summary) -> Iterator[str]:
    yield from _heading("Ledger: every token that names CUDA or a package of it")
    whole = sum(summary.tokens.values())
    rows = [
        (ACTIONS.get(action, "MISSING: a bug"), number, percent(number, whole) if number else "-")
        for action, number in summary.tokens.items()
    ]
    yield text.table(("tokens", "count", "share"), rows)


def _files(tree: TreeResult, has_kept: bool) -> Iterator[str]:
    shown = [(file, found) for file in tree.files if (found := _listed(file, has_kept))]
    if any(file.findings for file in tree.files):
        yield from _heading("Every finding" if has_kept else "Every site")
        if not has_kept:
            yield "Places that are right as they are, and kept, are not listed: --all lists them."
    for file, found in shown:
        yield from _file(file, found)


def _listed(file: FileResult, has_kept: bool) -> list[Finding]:
    return [
        one for one in file.findings if has_kept or one.action != "keep" or is_switched_off(one)
    ]


def _file(file: FileResult, found: Sequence[Finding]) -> Iterator[str]:
    yield ""
    yield cut(f"{file.path} ({file.language}, {count(file.lines, 'line')})", WIDTH)
    advised: dict[str, int] = {}  # the line at which a piece of advice was given
    for _, same in groupby(found, key=_likeness):
        finding, *others = same
        yield from _finding(finding, 1 + len(others), advised)


def _likeness(finding: Finding) -> tuple[object, ...]:
    return finding.line, finding.rule, finding.action, finding.message, finding.advice


def _finding(finding: Finding, times: int, advised: dict[str, int]) -> Iterator[str]:
    mark = "!" if finding.blocker else " "
    effort = f", {finding.effort}" if finding.action != "keep" else ""
    again = f" ({times} times)" if times > 1 else ""
    yield from wrap(
        f"{finding.rule} {ACTIONS[finding.action]}{effort}: {finding.message}{again}",
        "         ",
        first=f"{mark}{finding.line:>6}  ",
    )
    if finding.snippet and finding.action != "keep":
        yield f"         | {cut(finding.snippet, WIDTH - 11)}"
    if finding.advice:
        at = advised.setdefault(finding.advice, finding.line)
        said = finding.advice if at == finding.line else f"as at line {at}"
        yield from wrap(said, "           ", first="         > ")
