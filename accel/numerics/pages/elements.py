"""The worst elements of one replayed operator, and how often errors of each size occur."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.numerics.comparing.comparison import Element
from accel.numerics.comparing.details import ulp
from accel.numerics.comparing.wording import number_of
from accel.numerics.replaying import references
from accel.numerics.replaying.calls import widened
from accel.numerics.replaying.recorded import RecordedStep, call_from, results_from
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Operator
from accel.report import Markup, html
from accel.report.bars import histogram
from accel.report.markup import element

_WORST = 16
_EDGES = (0.0, *(2.0**power for power in range(-1, 22)))


def histogram_of(bins: tuple[tuple[float, int], ...]) -> Markup:
    """The drawing of (lower edge, count) of errors in units in the last place."""
    named = [("0" if edge == 0.0 else f"≥ {edge:g}", count) for edge, count in bins]
    named[0] = (f"< {_EDGES[1]:g}", named[0][1])
    title = "error against float64, in units in the last place (counts on a logarithmic scale)"
    return histogram(named, title=title)


def table_of(elements: tuple[Element, ...], columns: dict[str, str]) -> Markup:
    """The worst elements.

    Args:
        elements: The elements, worst first.
        columns: Headings by what they show: `reference`, `candidate`, `exact`.
    """
    digits = {"reference": 9, "candidate": 9, "exact": 12}
    rows = [
        (
            ",\u00a0".join(map(str, one.index)) or "(scalar)",
            *(_digits(getattr(one, name), digits[name]) for name in columns),
            one.ulps,
        )
        for one in elements
    ]
    return html.table(("index", *columns.values(), "ulp"), rows, caption="The worst elements")


def _digits(value: float | None, count: int) -> str | None:
    return None if value is None else f"{value:.{count}g}"


def examined(operator: Operator, step: RecordedStep, output: str) -> list[Markup]:
    """Replay an operator once more and show one of its results element by element.

    Args:
        operator: The operator.
        step: Its step.
        output: Which result: `0`, or the name of an argument that it wrote to.
    """
    try:
        recorded = results_from(operator, step.tensor)
        replayed = references.replayer(call_from(operator, step.tensor), recorded)
        truth = dict(replayed(widened(call_from(operator, step.tensor))).named()).get(output)
        actual = dict(recorded.named()).get(output)
    except (CannotReplayError, ValueError) as error:
        return [element("p", f"No elements are listed: {error}.", class_="note")]
    if truth is None or actual is None or truth.shape != actual.shape:
        return [element("p", "No elements are listed: there is no truth of its shape.",
                        class_="note")]  # fmt: skip
    if not actual.is_floating_point():
        return [element("p", "No elements are listed: it is not of real floating point numbers.",
                        class_="note")]  # fmt: skip
    ulps = _ulps(actual, truth)
    worst = _worst(actual, truth, ulps)
    title = f"The {number_of(len(worst), 'element')} furthest from float64"
    columns = {"candidate": "the run", "exact": "float64"}
    return [histogram_of(_bins(ulps)), element("h4", title), table_of(worst, columns)]


def _ulps(actual: Tensor, truth: Tensor) -> Tensor:
    """Distance of the run's elements from the truth in units in the last place."""
    wide = actual.to(torch.float64)
    finite = wide.isfinite() & truth.isfinite()
    same = (wide == truth) | (wide.isnan() & truth.isnan())
    apart = (wide - truth).abs() / ulp(truth.where(finite, 1.0), actual.dtype)
    return apart.where(finite, torch.inf).where(~same, 0.0).reshape(-1)


def _bins(ulps: Tensor) -> tuple[tuple[float, int], ...]:
    edges = torch.tensor(_EDGES, dtype=torch.float64)
    bins = (torch.bucketize(ulps, edges, right=True) - 1).clamp_(0, len(_EDGES) - 1)
    counts = torch.bincount(bins, minlength=len(_EDGES)).tolist()
    last = max((i for i, count in enumerate(counts) if count), default=0)
    return tuple(zip(_EDGES[: last + 1], map(int, counts), strict=False))


def _worst(actual: Tensor, truth: Tensor, ulps: Tensor) -> tuple[Element, ...]:
    values, exact = actual.reshape(-1), truth.reshape(-1)
    found = []
    for flat in ulps.topk(min(_WORST, len(ulps))).indices.tolist():
        index = torch.unravel_index(torch.tensor(flat), truth.shape)
        place = tuple(int(i) for i in index)
        found.append(
            Element(place, None, float(values[flat]), float(exact[flat]), float(ulps[flat]))
        )
    return tuple(found)
