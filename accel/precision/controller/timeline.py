"""The drawing of a controller's log: one lane per operand that changed, coloured by its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from accel.precision.controller.decision import Decision, Operand
from accel.precision.controller.log_reader import Replay
from accel.report.axes import CHAR, line, text_at
from accel.report.markup import Markup, element, joined

_LANE, _BAR, _WIDTH, _LABEL = 30.0, 18.0, 1080.0, 46
# In eight bits cool colours, above them warm ones: a colour says what it costs.
_FP8 = ("--s0,#0969da", "--s3,#1a7f37", "--s4,#8250df", "--s5,#b3196e")
_WIDE = ("--s1,#d1590a", "--bad,#c6202b")


class Span(NamedTuple):
    """How long an operand was in a format.

    Attributes:
        start: First step.
        stop: One past the last.
        rung: Number of the format.
    """

    start: int
    stop: int
    rung: int


def spans_of(log: Replay, operand: Operand) -> list[Span]:
    """The formats of an operand over time; a decision after step `n` holds from `n + 1` on."""
    spans, start, rung = [], 0, log.start[operand]
    for one in log.decisions:
        if one.operand == operand and one.after != rung:
            spans.append(Span(start, one.step + 1, rung))
            start, rung = one.step + 1, one.after
    spans.append(Span(start, max(log.step + 1, start + 1), rung))
    return spans


def timeline(log: Replay) -> Markup:
    """Lanes of the operands that a decision speaks of, over the steps."""
    shown = list(dict.fromkeys(one.operand for one in log.decisions))
    names = _names(log, shown)
    left = 24.0 + CHAR * max((min(len(str(one)), _LABEL) for one in shown), default=8)
    stop = max(log.step + 1, 1)
    keys, top = _legend(names, left)
    bottom = top + _LANE * len(shown)

    def x(step: float) -> float:
        return left + (_WIDTH - 20.0 - left) * step / stop

    parts = [*keys, *_axis(stop, bottom, x(0), x(stop))]
    for number, operand in enumerate(shown):
        middle = top + _LANE * (number + 0.5)
        parts.append(_label(operand, left - 10, middle))
        rungs = next(one.rungs for one in log.operands if one.operand == operand)
        for span in spans_of(log, operand):
            name = rungs[span.rung].name
            parts.append(_bar(span, name, names[name], x(span.start), x(span.stop), middle))
        parts += [
            _mark(one, x(one.step + 1), middle) for one in log.decisions if one.operand == operand
        ]
    said = "; ".join(map(str, log.decisions)) or "no operand changed its format"
    drawing = element(
        "svg", joined(parts), xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 44:.0f}", role="img", aria_label=said,
    )  # fmt: skip
    return element("figure", drawing, class_="drawing")


def _names(log: Replay, shown: Sequence[Operand]) -> dict[str, str]:
    """The colour of each format's name."""
    rungs = [rung for one in log.operands if one.operand in shown for rung in one.rungs]
    narrow = dict.fromkeys(rung.name for rung in rungs if rung.is_fp8)
    wide = dict.fromkeys(rung.name for rung in rungs if not rung.is_fp8)
    colours = {name: _FP8[i % len(_FP8)] for i, name in enumerate(narrow)}
    return colours | {name: _WIDE[min(i, len(_WIDE) - 1)] for i, name in enumerate(wide)}


def _legend(names: dict[str, str], left: float) -> tuple[list[Markup], float]:
    parts: list[Markup] = []
    x, y = left, 16.0
    for name, colour in names.items():
        need = 24 + len(name) * CHAR + 20
        if x + need > _WIDTH and x > left:
            x, y = left, y + 20
        parts += [_rectangle(x, y - 10, 14, 12, colour), text_at(name, x + 20, y)]
        x += need
    return parts, y + 14


def _axis(stop: int, bottom: float, left: float, right: float) -> list[Markup]:
    scale = 10 ** max(len(str(stop)) - 2, 0)
    step = next(n * scale for n in (1, 2, 5, 10, 20, 50, 100) if stop <= n * scale * 12)
    parts = [line(left, bottom, right, bottom, "--line", "#d1d9e0")]
    for at in range(0, stop + 1, step):
        x = left + (right - left) * at / stop
        parts.append(line(x, bottom, x, bottom + 4, "--line", "#d1d9e0"))
        parts.append(text_at(str(at), x, bottom + 17, anchor="middle", muted=True))
    parts.append(text_at("optimizer step", (left + right) / 2, bottom + 35, anchor="middle"))
    return parts


def _label(operand: Operand, x: float, middle: float) -> Markup:
    name = str(operand)
    shown = name if len(name) <= _LABEL else "…" + name[-(_LABEL - 1) :]
    label = text_at(shown, x, middle + 4, anchor="end")
    return element("g", element("title", name), label)


def _bar(span: Span, name: str, colour: str, left: float, right: float, middle: float) -> Markup:
    title = element("title", f"{name}\nsteps {span.start} to {span.stop - 1}")
    return _rectangle(left, middle - _BAR / 2, max(right - left, 1.0), _BAR, colour, title)


def _mark(one: Decision, x: float, middle: float) -> Markup:
    """A line where something was decided; a cross where the budget refused."""
    title = element("title", str(one))
    if one.kind == "refuse":
        d = f"M{x - 5:.1f} {middle - 5:.1f}l10 10m0 -10l-10 10"
    else:
        d = f"M{x:.1f} {middle - _BAR / 2 - 4:.1f}v{_BAR + 8:.0f}"
    return element("path", title, d=d, style="stroke:var(--text,#1c2128);stroke-width:2;fill:none")


def _rectangle(
    x: float, y: float, width: float, height: float, colour: str, *children: Markup
) -> Markup:
    return element(
        "rect", *children, x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}",
        height=f"{height:.0f}", style=f"fill:var({colour});fill-opacity:.8",
    )  # fmt: skip
