"""What is printed when a traced program has ended. No torch."""

from __future__ import annotations

from collections import Counter

from accel import report
from accel.tracing.parts import Call, Log

_MOST_LINES = 40


def to_text(log: Log) -> str:
    """The log as text: where the calls went, then the most frequent places."""
    lines = [_headline(log)]
    without = sum(call.count for call in log.calls if not call.redirected_to and call.note)
    if without:
        lines.append(
            f"{_count(without, 'call')} without an equivalent or an effect here: see the notes"
        )
    rows = [_row(call) for call in sorted(log.calls, key=lambda call: -call.count)]
    if rows:
        head = ("calls", "where", "what", "given", "redirected to", "note")
        lines.append(report.text.table(head, rows[:_MOST_LINES]))
    if len(rows) > _MOST_LINES:
        lines.append(f"and {len(rows) - _MOST_LINES} further places, in the log")
    return "\n".join([*lines, *log.notes])


def _headline(log: Log) -> str:
    devices = Counter(process.device for process in log.processes if process.device)
    total = sum(call.count for call in log.calls)
    places = len({(call.path, call.line) for call in log.calls})
    where = " and ".join(sorted(devices)) or "no device"
    lines, processes = _count(places, "line"), _count(len(log.processes), "process", "es")
    return f"CUDA calls: {total} from {lines}, in {processes}, to {where}"


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number} {thing}" + plural * (number != 1)


def _row(call: Call) -> tuple[str, ...]:
    where = f"{call.path}:{call.line}" if call.path else "no line of Python"
    return (str(call.count), where, call.api, call.given, call.redirected_to, call.note)
