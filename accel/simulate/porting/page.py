"""A porting report as one self-contained HTML page. No torch."""

from __future__ import annotations

from accel.report import Markup, html
from accel.simulate.porting import text
from accel.simulate.porting.findings import KINDS, Report


def to_html(report: Report) -> str:
    """The page."""
    failing = any(kind.fails and report.of_kind(name) for name, kind in KINDS.items())
    good = bool(report.processes) and not failing and not report.exit_status
    body = [
        html.verdict(text.verdict(report), good=good),
        html.section("Overview", html.table(("finding", "calls", "places"), _overview(report))),
        *(_section(report, name) for name in KINDS),
        *(html.section("Notes", *report.notes) for _ in report.notes[:1]),
        html.section("Processes and memory", *_processes(report)),
        html.section(
            "Operators",
            "A click on a heading sorts. Times are the simulator's and say nothing of the chip's.",
            html.table(
                ("operator", "calls", "seconds"),
                [(one.name, one.count, one.seconds) for one in report.operators],
                sortable=True,
            ),
        ),
        html.section("Environment", html.definitions(_environment(report))),
    ]
    return html.page("Porting report", body, subtitle=text.headline(report).partition(": ")[2])


def _overview(report: Report) -> list[tuple[object, ...]]:
    return [
        (kind.title, report.calls(name), len(report.of_kind(name))) for name, kind in KINDS.items()
    ]


def _section(report: Report, name: str) -> Markup:
    found = report.of_kind(name)
    if not found:
        return Markup("")
    table = html.table(*text.rows(found), sortable=True)
    return html.section(KINDS[name].title, KINDS[name].advice, table)


def _processes(report: Report) -> list[object]:
    copied = (
        f"{way}: {count} copies, {text.size(total)}"
        for way, (count, total) in text.copies(report).items()
    )
    headers = ("process", "rank", "program", "ended by itself", "seconds", "operators", "waits")
    rows = [
        (
            one.pid, one.rank or None, one.program, "yes" if one.ended else "no", one.seconds,
            one.operators, one.synchronizations,
        )
        for one in report.processes
    ]  # fmt: skip
    parts: list[object] = [f"All copies: {'; '.join(copied)}.", html.table(headers, rows)]
    memory = text.memory_rows(report)
    if memory[1]:
        parts += ["Peak device memory:", html.table(*memory)]
    return parts


def _environment(report: Report) -> dict[str, object]:
    ended = {} if report.exit_status is None else {"exit status": report.exit_status}
    command = {"command": " ".join(report.command)} if report.command else {}
    return {
        "chip": f"{report.chip} ({report.generation})",
        "machine": report.machine,
        **command,
        **ended,
        **report.versions,
    }
