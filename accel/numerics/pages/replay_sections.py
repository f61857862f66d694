"""The sections of a replay's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accel.numerics.comparing.given import described
from accel.numerics.pages.elements import examined
from accel.numerics.pages.plots import Measure, Spot, regions, strip_plot, thinned, thinned_by_phase
from accel.numerics.pages.replay_entries import TONES, Entry
from accel.numerics.pages.words import MOST_ROWS, VALUES, link_to, percent
from accel.numerics.replaying.judged import VERDICTS
from accel.numerics.replaying.walk import Replay
from accel.report import Markup, html, svg
from accel.report.explorer import Cell, Column, Labelled, explorer
from accel.report.html import Tone
from accel.report.markup import element, joined, number

_MOST_POINTS = 700
_MOST_OPENED = 12
_MOST_EVIDENCE = 8
_WORDS = {
    "within": "within their limits",
    "exact": "exact, as they must be",
    "known": "known to be inaccurate, as measured",
    "out": "out of their limits",
    "unchecked": "not checked",
}


def headline(replay: Replay, entries: Sequence[Entry]) -> Markup:
    """The outcome in a sentence, with the operators that it rests on."""
    label, tone = _outcome(replay)
    out = [entry for entry in entries if entry.judged.verdict == "out"]
    facts: dict[str, object] = {}
    if out:
        code = element("code", out[0].name)
        facts["operator"] = element("a", code, href=link_to(out[0].position))
        facts["source line"] = element("code", _place(out[0]))
    evidence = [f"{entry.name}: {entry.judged.reason}" for entry in out[:_MOST_EVIDENCE]]
    if len(out) > _MOST_EVIDENCE:
        evidence.append(f"and {len(out) - _MOST_EVIDENCE} more")
    body = [html.definitions(facts)] if facts else []
    body += [html.listing(evidence)] if evidence else []
    return html.headline(label, replay.sentence, *body, tone=tone)


def _outcome(replay: Replay) -> tuple[str, Tone]:
    if replay.out:
        return "faulty operator", "bad"
    if replay.ok and replay.counts["known"]:
        return "right, or known inaccurate kernels", "warn"
    return ("all checked are right", "good") if replay.ok else ("nothing checked", "neutral")


def _place(entry: Entry) -> str:
    if entry.operator is None or entry.operator.place is None:
        return "not known"
    return str(entry.operator.place)


def figures(replay: Replay) -> Markup:
    """How many operators got each verdict."""
    counts = replay.counts
    items: list[tuple[object, str, Tone]] = [
        (counts[verdict], _WORDS[verdict], TONES[verdict] if counts[verdict] else "neutral")
        for verdict in VERDICTS
    ]
    views = sum(one.judged.kind == "view" for one in replay.operators)
    same: list[tuple[object, str, Tone]] = []
    if replay.by_signature:
        words = "of these, judged by another operator of the same signature"
        same = [(replay.by_signature, words, "neutral")]
    return html.figures([*items, *same, (views, "views, which compute nothing", "neutral")])


def flagged(entries: Sequence[Entry]) -> list[Markup]:
    """Operators out of their limits, element by element."""
    out = [entry for entry in entries if entry.judged.verdict == "out"]
    if not out:
        return []
    said = "In execution order."
    if len(out) > _MOST_OPENED:
        said += f" The first {_MOST_OPENED} of {len(out)}; all are in the table of operators."
    shown = [
        html.disclosure(
            joined([html.label("out", "bad"), " ", element("code", entry.name)]),
            details(entry),
            *_elements(entry),
            is_open=i == 0,
        )
        for i, entry in enumerate(out[:_MOST_OPENED])
    ]
    return [html.section("Operators out of their limits", said, joined(shown), anchor="flagged")]


def _elements(entry: Entry) -> list[Markup]:
    if entry.operator is None or entry.recorded is None:
        return [element("p", "No elements are listed: the recording cannot be read any more.",
                        class_="note")]  # fmt: skip
    return examined(entry.operator, entry.recorded, entry.judged.output or "0")


def details(entry: Entry) -> Markup:
    """What opens under one operator."""
    judged = entry.judged
    facts: dict[str, object] = {
        "verdict": html.label(*entry.label),
        "because": judged.reason or "it is within its limits",
        "source line": element("code", _place(entry)),
        "module": entry.one.key.module or "(the model itself)",
        "outputs": entry.outputs,
    }
    if entry.is_measured:
        facts["R"] = _held(judged.R, judged.limit_R)
        facts["M"] = f"{_held(judged.M, judged.limit_M)}, at flat index {judged.at}"
        if judged.limit_excess is not None:
            facts["M before rounding"] = _held(judged.excess, judged.limit_excess)
        facts["judged by output"] = judged.output
    if judged.nonfinite:
        facts["non-finite on one side"] = judged.nonfinite
    if judged.misrounding:
        most = judged.limit_misrounding
        facts["misrounded"] = (
            f"{percent(judged.misrounding)}, explained {percent(judged.expected)}"
            + ("" if most is None else f", limit {percent(most)}")
        )
    if entry.accumulated is not None:
        facts["from float64 in all"] = f"{number(entry.accumulated)} u"
    return joined([html.definitions(facts), _arguments(entry)])


def _held(value: float, most: float | None) -> str:
    """A measure and what it was held to."""
    said = "not held to a limit" if most is None else f"limit {number(most)}"
    return f"{number(value)}, {said}"


def _arguments(entry: Entry) -> Markup:
    if entry.operator is None or entry.recorded is None:
        return Markup("")
    given = described(entry.operator, entry.recorded.values)
    rows = list(given.items())
    if not rows:
        return Markup("")
    return html.table(("argument", "given"), rows, row_headings=True, caption="Arguments")


def depth(entries: Sequence[Entry]) -> Markup:
    """The accumulated error over execution order, of the first step that has it."""
    # Views and copies have the error of what they look at.
    known = [e for e in entries if e.accumulated is not None and e.judged.verdict != "exact"]
    if not known:
        said = (
            "Not computed: the whole step was not replayed in float64. `accel replay --chained` "
            "(chained=True in Python) does so."
        )
        return html.section("Error against depth", said, anchor="depth")
    first = known[0].rank, known[0].step
    known = [entry for entry in known if (entry.rank, entry.step) == first]
    said = (
        "How far the run has strayed from the same graph computed in float64 throughout, as "
        "relative L2 distance in units of u, the unit roundoff of each value's dtype. The line at "
        "1 u is the floor: rounding the float64 result once can cost as much."
        + (f" Rank {first[0]}, step {first[1]}." if _is_several(entries) else "")
    )
    plots = [
        plot
        for phase in ("forward", "backward")
        for plot in _depth([entry for entry in known if entry.one.key.phase == phase], phase)
    ]
    return html.section("Error against depth", said, *plots, anchor="depth")


def _depth(entries: Sequence[Entry], phase: str) -> list[Markup]:
    if not entries:
        return []
    shown, every = thinned(entries, lambda entry: entry.accumulated, _MOST_POINTS)
    errors = [entry.accumulated for entry in shown]
    worst = max(shown, key=lambda entry: entry.accumulated or 0.0)
    out = next((i for i, entry in enumerate(shown) if entry.judged.verdict == "out"), None)
    floor = svg.Series("floor: one rounding of float64, 1 u", [1.0] * len(shown), "steps",
                       tone="muted")  # fmt: skip
    plot = svg.error_plot(
        [svg.Series("the run", errors, "line", [e.judged.verdict for e in shown]), floor],
        x_labels=[entry.name for entry in shown],
        x_title=f"{phase} in execution order" + (f"; of every {every} the worst" * (every > 1)),
        y_title="distance from float64 in u",
        mark=out,
        mark_label="first out of its limits",
        regions=regions([entry.one.key.module for entry in shown]),
        description=f"{phase}: distance from float64 of {len(entries)} operators; at most "
        f"{number(worst.accumulated)} u, at {worst.name}.",
        height=300,
    )
    return [element("h3", phase.capitalize()), plot]


def strip(entries: Sequence[Entry]) -> Markup:
    """R and M of every measured operator."""
    known = [entry for entry in entries if entry.is_measured]
    if not known:
        said = "No operator was measured: a recording at level full or check is needed."
        return html.section("Isolated errors", said, anchor="isolated")
    shown, thinning = thinned_by_phase(
        known, lambda entry: entry.one.key.phase, lambda entry: entry.share, _MOST_POINTS
    )
    spots = [Spot(e.name, e.one.key.module, e.judged.verdict) for e in shown]
    title = f"operators in execution order{thinning}"
    said = (
        "Every operator's error against float64 from its own recorded inputs, over what rounding "
        "its output and the noise of its inputs must cost. R is the root mean square, M the "
        "largest element. What is above a dashed line is out; the line of a known kernel is its "
        "own bound. 16-bit outputs are held to what rounding cannot explain "
        "and to how many are misrounded instead of M, so they have no line there."
    )
    out = [e.judged.verdict == "out" for e in shown]
    r = Measure([e.judged.R for e in shown], [e.limits[0] for e in shown], out)
    m = Measure([e.judged.M for e in shown], [e.limits[1] for e in shown], out)
    drawn = (
        strip_plot("R", spots, {"the run": r}, ""),
        strip_plot("M", spots, {"the run": m}, title),
    )
    plots = joined(drawn)
    return html.section("Isolated errors", said, plots, anchor="isolated")


def _is_several(entries: Sequence[Entry]) -> bool:
    return len({(entry.rank, entry.step) for entry in entries}) > 1


_COLUMNS = (
    Column("Operator", "code", "phase:module/operator#count"),
    Column("#", "number", "place in execution order"),
    Column("Verdict", "label", has_choices=True),
    Column("Phase", "text", has_choices=True, hidden=True),
    Column("Kind", "text", has_choices=True),
    Column("Dtype", "text"),
    Column("R", "number", "rms error over the yardstick"),
    Column("M", "number", "largest error over the yardstick"),
    Column("Misrounded", "number", "share of elements that are not the float64 result rounded"),
    Column("In all, u", "number", "distance from the chained float64 run"),
    Column("Why", "text"),
)
_WHERE = (
    Column("Rank", "number", has_choices=True),
    Column("Step", "number", has_choices=True),
)


def operators(entries: Sequence[Entry]) -> Markup:
    """Every operator, sortable and filterable."""
    several, shown = _is_several(entries), entries[:MOST_ROWS]
    columns = (*_COLUMNS, *(_WHERE if several else ()))
    table = explorer(
        columns,
        [_cells(entry)[: len(columns)] for entry in shown],
        name=VALUES,
        caption="Every operator",
        details=[details(entry) for entry in shown],
        marked=[i for i, entry in enumerate(shown) if entry.judged.verdict == "out"],
    )
    said = "In execution order. A heading sorts, a name opens its details."
    if len(shown) < len(entries):
        said += f" The first {len(shown)} of {len(entries)} operators; the JSON has all."
    return html.section("Every operator", said, table, anchor="values")


def _cells(entry: Entry) -> list[Cell]:
    judged = entry.judged
    return [
        entry.name,
        entry.one.id,
        Labelled(*entry.label),
        entry.one.key.phase,
        judged.kind,
        judged.dtype,
        judged.R if entry.is_measured else None,
        judged.M if entry.is_measured else None,
        judged.misrounding if entry.is_measured and judged.misrounding else None,
        entry.accumulated,
        judged.reason,
        entry.rank,
        entry.step,
    ]


def coverage(replay: Replay) -> Markup:
    """What was checked and what was not, by kind and by operator."""
    kinds = [
        (kind, *(counts[verdict] for verdict in VERDICTS))
        for kind, counts in sorted(replay.counts_by_kind.items())
    ]
    table = html.table(("kind", *(_WORDS[v] for v in VERDICTS)), kinds, sortable=True,
                       row_headings=True, caption="Verdicts by kind of operator")  # fmt: skip
    unchecked = Counter(
        (one.judged.name, one.judged.reason or "")
        for one in replay.operators
        if one.judged.verdict == "unchecked"
    )
    said = "What was not checked is not said to be right."
    if not unchecked:
        return html.section("Coverage", table, anchor="coverage")
    rows = [(name, count, why) for (name, why), count in unchecked.most_common()]
    why = html.table(("operator", "times", "why it was not checked"), rows, row_headings=True,
                     sortable=True, caption="Operators that were not checked")  # fmt: skip
    opened = html.disclosure(f"Not checked ({sum(unchecked.values())})", why, is_open=True)
    return html.section("Coverage", table, said, opened, anchor="coverage")
