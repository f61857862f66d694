"""What each operator adds to the loss difference, as a waterfall."""

from __future__ import annotations

from accel.numerics.comparing.comparison import Attribution, Comparison
from accel.report import Markup, html
from accel.report.bars import waterfall
from accel.report.markup import number

_MOST = 12


def losses(comparison: Comparison) -> Markup:
    """The loss attribution, or why there is none."""
    found = comparison.attribution
    if found is None or not found.contributions:
        return html.section("Loss attribution", _absent(comparison), anchor="loss")
    body: list[object] = [_said(found)]
    if found.linear is False:
        body.append(
            "Predicted and recorded do not agree, so the difference is not linear in the "
            "operators' own errors, or comes from elsewhere (inputs, attributes): what is drawn "
            "here is no attribution of the recorded difference."
        )
    parts, rest = _parts(found)
    drawing = waterfall(
        parts,
        title=f"Contributions to the loss, {found.of}",
        total="predicted in all",
        actual=found.actual if found.linear is not False else None,
        actual_name="recorded",
    )
    if rest:
        body.append(
            f"The {_MOST} largest of {len(found.contributions)}; the others are drawn as one."
        )
    return html.section("Loss attribution", *body, drawing, anchor="loss")


def _absent(comparison: Comparison) -> str:
    if comparison.levels == ("sketch", "sketch"):
        return (
            "Not known from sketches: the operators' own errors and the gradients of their outputs "
            "are needed. Record at level full to have them."
        )
    return "No operator that was replayed has a recorded gradient, so nothing is attributed."


def _said(found: Attribution) -> str:
    actual = "is not known" if found.actual is None else f"is {number(found.actual)}"
    return (
        "Each operator's own error, times the recorded gradient of the loss at its output, is "
        f"what it adds to the loss. The recorded difference ({found.of}) {actual}; the operators "
        f"together predict {number(found.predicted)}. The loss is {found.loss:.6g}."
    )


def _parts(found: Attribution) -> tuple[list[tuple[str, float]], int]:
    shown = [(str(key), value) for key, value in found.contributions[:_MOST]]
    others = found.contributions[_MOST:]
    if others:
        shown.append((f"{len(others)} others", sum(value for _, value in others)))
    return shown, len(others)
