"""A porting report for a terminal. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from accel.report import text
from accel.simulate.porting.findings import KINDS, Finding, Report

_MOST = 10  # lines of one kind, and operators
_CODE = 48  # characters of a line of code


def to_text(report: Report) -> str:
    """The report: how it ended, the findings by kind in order of cost, memory, operators."""
    lines = [headline(report), "", verdict(report)]
    lines += [f"note: {note}" for note in report.notes]
    for name, kind in KINDS.items():
        found = report.of_kind(name)
        if found:
            lines += ["", f"{kind.title}: {calls(report.calls(name))}", f"  {kind.advice}"]
            lines += _indented(_table(found))
    lines += [*_copies(report), *_memory(report), *_operators(report)]
    return "\n".join(lines)


def headline(report: Report) -> str:
    """Which chip, how many processes and operators, how it ended."""
    count = sum(process.operators for process in report.processes)
    ended = "" if report.exit_status is None else f", exit status {report.exit_status}"
    plural = "" if len(report.processes) == 1 else "es"
    return (
        f"Porting report: {report.chip} ({report.generation}), {len(report.processes)} "
        f"process{plural}, {calls(count)} of operators{ended}"
    )


def verdict(report: Report) -> str:
    """One sentence: what stops the program on a chip, and how much of the rest there is."""
    if not report.processes:
        return "Nothing ran on the simulated NPU."
    failing = [name for name, kind in KINDS.items() if kind.fails and report.of_kind(name)]
    places = sum(len(report.of_kind(name)) for name in KINDS if name not in failing)
    plural = "" if places == 1 else "s"
    rest = f"{places or 'no'} place{plural} to look at for speed, dtype or accuracy"
    if not failing:
        return f"No call was refused; {rest}."
    which = ", ".join(f"{KINDS[name].title.lower()} ({report.calls(name)})" for name in failing)
    return f"Calls failed: {which}; {rest}."


def calls(count: int) -> str:
    """`1 call`, `2 calls`."""
    return f"{count} call{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def rows(found: Sequence[Finding]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Headers and rows of the findings of one kind, with the columns that hold something."""
    columns: dict[str, list[object]] = {
        "calls": [one.count for one in found],
        "copied": [size(one.bytes) if one.bytes else None for one in found],
        "where": [one.where for one in found],
        "what": [one.what for one in found],
        "line": [one.code or None for one in found],
        "why": [one.detail or None for one in found],
    }
    kept = {name: values for name, values in columns.items() if any(values)}
    return tuple(kept), list(zip(*kept.values(), strict=True))


def _table(found: Sequence[Finding]) -> Iterator[str]:
    headers, all_rows = rows(found[:_MOST])
    at = headers.index("line") if "line" in headers else -1
    shortened = [
        tuple(_short(value) if i == at else value for i, value in enumerate(row))
        for row in all_rows
    ]
    yield from text.table(headers, shortened).splitlines()
    if len(found) > _MOST:
        yield f"and {len(found) - _MOST} more places, in the JSON file and the page"


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > _CODE:
        return value[: _CODE - 1] + "…"
    return value


def copies(report: Report) -> dict[str, tuple[int, int]]:
    """Copies and bytes by direction between host and device, over all processes."""
    result = {}
    for direction in ("host to device", "device to host"):
        count = sum(process.copies.get(direction, 0) for process in report.processes)
        copied = sum(process.copied_bytes.get(direction, 0) for process in report.processes)
        result[direction] = (count, copied)
    return result


def _copies(report: Report) -> Iterator[str]:
    if report.processes:
        said = (f"{way}: {n} ({size(total)})" for way, (n, total) in copies(report).items())
        waits = sum(process.synchronizations for process in report.processes)
        yield ""
        yield f"All copies, {', '.join(said)}; the runtime waited {waits} times"


def _memory(report: Report) -> Iterator[str]:
    table = memory_rows(report)
    if table[1]:
        yield ""
        yield "Peak device memory"
        yield from _indented(text.table(*table).splitlines())


def memory_rows(report: Report) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Peak memory by process and device."""
    headers = ("process", "rank", "device", "tensors", "allocator")
    found: list[tuple[object, ...]] = [
        (
            process.pid, process.rank or None, f"npu:{one.index}", size(one.peak_tensor_bytes),
            size(one.peak_bytes),
        )
        for process in report.processes
        for one in process.devices
    ]  # fmt: skip
    return headers, found


def _operators(report: Report) -> Iterator[str]:
    if report.operators:
        yield ""
        yield "Operators by time (the simulator's, which says nothing of the chip's)"
        made = [(one.count, f"{one.seconds:.3f}", one.name) for one in report.operators[:_MOST]]
        yield from _indented(text.table(("calls", "seconds", "operator"), made).splitlines())
        if len(report.operators) > _MOST:
            yield f"  and {len(report.operators) - _MOST} more"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
