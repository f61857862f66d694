"""The Markdown tables of docs/fault-zoo.md, out of benchmarks/results/fault_zoo.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fault_zoo import summary
from benchmarks.fault_zoo.packing import unpacked
from benchmarks.fault_zoo.recorded import FULL, SKETCH
from benchmarks.fault_zoo.rules import RULES
from benchmarks.fault_zoo.workload import PRECISIONS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fault_zoo.json"
PAGE = ROOT / "docs" / "fault-zoo.md"
BEGIN = "<!-- made by benchmarks/fault_zoo: begin -->"
END = "<!-- made by benchmarks/fault_zoo: end -->"
Document = dict[str, Any]


def load() -> Document:
    """The results."""
    return unpacked(json.loads(RESULTS.read_text()))


def tables(document: Document) -> str:
    """All tables, in Markdown."""
    return "\n\n".join(
        [
            "### Rules",
            _rules(document),
            "### Faults: the smallest strength that is named",
            _faults(document),
            "### Benign runs: operators accused in float32, autocast, bfloat16",
            _variants(document),
            "### What is missed",
            _missed(document),
            "### Kernels known to be inaccurate",
            _known(document),
            "### Not effective, so not counted",
            _ineffective(document),
        ]
    )


def written(text: str, document: Document) -> str:
    """A page with the tables between its marks.

    Raises:
        ValueError: The page lacks the marks.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no lines {BEGIN!r} and {END!r} to put tables between")
    return f"{head}{BEGIN}\n\n{tables(document)}\n\n{END}{tail}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _rules(document: Document) -> str:
    against = {rule.name: rule.against for rule in RULES}
    against |= {FULL: "float64 of its operands", SKETCH: "another machine"}
    rows = []
    for rule in summary.RULE_NAMES:
        cells: list[object] = []
        for group in summary.GROUPS:
            one = summary.tally(document, rule, group)
            cells += [
                f"{one.named} of {one.cases} ({one.share:.1%})",
                f"{one.faults} of {one.all_faults}",
                one.wrong,
                f"{one.alarms} in {one.alarmed} of {one.runs}",
            ]
        name = f"**{rule}**" if rule in (FULL, SKETCH) else rule
        rows.append([name, against[rule], *cells])
    head = ["rule", "compares with"]
    for group in summary.GROUPS:
        head += [
            f"{group}: cases named first",
            "faults named",
            "right operators accused in them",
            "false alarms in benign runs",
        ]
    return _table(head, rows)


def _faults(document: Document) -> str:
    names = list(dict.fromkeys(case["fault"] for case in document["faults"]))
    rows = []
    for name in names:
        cases = [case for case in document["faults"] if case["fault"] == name]
        strengths = {case["rank"]: case["strength"] for case in cases}
        row = [name, cases[0]["kind"], cases[0]["model"]]
        row.append(", ".join(strengths[rank] for rank in sorted(strengths)))
        for precision in PRECISIONS:
            own = [case for case in cases if case["precision"] == precision]
            row.append(summary.weakest(own, FULL))
            row.append(summary.weakest(own, SKETCH))
        rows.append(row)
    head = ["fault", "class", "model", "strengths"]
    for precision in PRECISIONS:
        head += [f"{precision}: full", "sketch"]
    return _table(head, rows)


def _variants(document: Document) -> str:
    runs: dict[tuple[str, str], dict[str, Document]] = {}
    for run in document["variants"]:
        runs.setdefault((run["variant"], run["model"]), {})[run["precision"]] = run
    rows = []
    for (name, model), by_precision in runs.items():
        cells = [
            _each(by_precision, lambda scores: scores[FULL]["false"]),
            _each(by_precision, lambda scores: scores[SKETCH]["false"]),
            _each(by_precision, lambda scores: max(scores[r.name]["false"] for r in RULES)),
        ]
        summary_of = next(iter(by_precision.values()))["summary"]
        rows.append([name, summary_of, model, *cells])
    head = ["variant", "what is otherwise", "model", "full", "sketch", "the worst other rule"]
    return _table(head, rows)


def _each(runs: dict[str, Document], count: Callable[[Document], int]) -> str:
    """A count in float32, autocast and bfloat16."""
    found = (runs.get(precision) for precision in PRECISIONS)
    return ", ".join("-" if run is None else str(count(run["rules"])) for run in found)


def _missed(document: Document) -> str:
    rows = []
    for case in summary.missed(document):
        judged = case.get("judged") or {}
        measured = " ".join(
            f"{name} {judged[name]:.3g}"
            for name in ("R", "M", "misrounding")
            if judged.get(name) is not None
        )
        rows.append([case["fault"], case["strength"], case["precision"], measured])
    if not rows:
        return "Nothing."
    return _table(["fault", "strength", "precision", "what the replay measured"], rows)


def _known(document: Document) -> str:
    rows = [
        [f"`{operator}`", dtype, f"{rms:.1f}", runs]
        for (operator, dtype), (rms, runs) in sorted(summary.known(document).items())
    ]
    return _table(["operator", "dtype", "largest R measured", "in so many benign runs"], rows)


def _ineffective(document: Document) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for case in summary.ineffective(document):
        found.setdefault((case["fault"], case["precision"]), []).append(case["strength"])
    rows = [[fault, precision, ", ".join(some)] for (fault, precision), some in found.items()]
    return _table(["fault", "precision", "strengths"], rows)
