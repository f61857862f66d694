"""A controller's log as a page: what changed when and why, and the numbers that led to it."""

from __future__ import annotations

import os

from accel.precision.controller.decision import Operand
from accel.precision.controller.judge import percent
from accel.precision.controller.log_reader import Replay, replay
from accel.precision.controller.timeline import timeline
from accel.report import Markup, html, svg, write_atomically

_HEADERS = ("step", "operand", "change", "from", "to", "reason", "above FP8")
_PLOTTED = 12  # operands whose measurements are drawn
_POINTS = 300  # readings of each, thinned where there are more


def write_page(
    log: str | os.PathLike[str], path: str | os.PathLike[str], *, partial: bool = False
) -> None:
    """Replay a log and write it as a self-contained HTML page.

    Args:
        log: The log.
        path: The page.
        partial: Accept a log without an end.

    Raises:
        ValueError: See `replay`.
        OSError: A file cannot be read or written.
    """
    write_atomically(path, page_of(replay(log, partial=partial)))


def page_of(log: Replay) -> str:
    """The page, as text."""
    changed = list(dict.fromkeys(one.operand for one in log.decisions))
    rows = [
        [one.step, str(one.operand), one.kind, *one.formats, one.reason, percent(one.share)]
        for one in log.decisions
    ]
    body: list[object] = [
        html.figures(_figures(log)),
        html.section("Formats over time", timeline(log)) if rows else "No operand changed.",
    ]
    if rows:
        table = html.table(_HEADERS, rows, sortable=True, caption="Decisions and their reasons")
        body.append(html.section("Decisions", table))
    body += [_measured(log, operand) for operand in changed[:_PLOTTED]]
    settings = html.definitions(log.config.to_dict())
    body.append(html.section("Configuration", settings))
    end = "complete" if log.is_complete else "of a run that goes on or was broken off"
    subtitle = f"{len(log.operands)} operands, {log.step + 1} steps; the log is {end}"
    return html.page("Precision controller", body, subtitle=subtitle)


def _figures(log: Replay) -> list[tuple[object, str, html.Tone]]:
    kinds = [one.kind for one in log.decisions]
    refused = kinds.count("refuse")
    share = percent(log.decisions[-1].share if log.decisions else 0.0)
    return [
        (kinds.count("promote"), "promotions", "neutral"),
        (kinds.count("demote"), "ways back", "neutral"),
        (refused, "refused by the budget", "warn" if refused else "neutral"),
        (share, "of the FLOPs above FP8 after the last change", "neutral"),
    ]


def _measured(log: Replay, operand: Operand) -> Markup:
    """The error of an operand in each of its formats, against the limits of the policy's."""
    one = next(item for item in log.operands if item.operand == operand)
    steps = [step for step, readings in log.readings.items() if operand in readings]
    steps = steps[:: max(-(-len(steps) // _POINTS), 1)]
    series = []
    for number, rung in enumerate(one.rungs):
        found = [log.readings[step][operand].get(number) for step in steps]
        if rung.is_fp8 and any(found):
            values = [item.error if item else None for item in found]
            notes = [f"{percent(item.underflow)} vanish" if item else "" for item in found]
            series.append(svg.Series(rung.name, values, notes=notes))
    for times, name in ((log.config.promote, "leaves above"), (log.config.demote, "returns below")):
        limit = [times * one.rungs[0].floor] * len(steps)
        series.append(svg.Series(f"{one.rungs[0].name} {name}", limit, "steps", tone="limit"))
    plot = svg.error_plot(
        series, x_labels=[str(step) for step in steps], x_title="reading after step",
        description=f"Relative error of {operand} by format",
    )  # fmt: skip
    return html.section(str(operand), plot)
