"""What the plots of both pages share: thinning, regions by module, the strip of one measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from accel.numerics.storage.entries import OUTSIDE, Phase
from accel.report import Markup, svg
from accel.report.regions import Region

_MOST_REGIONS = 28
_LEAST = 60  # operators of an optimizer that are always shown
_T = TypeVar("_T")


class Spot(NamedTuple):
    """One position of a plot: its name, the module that it lies in, and what a tooltip adds."""

    name: str
    module: str
    note: str


def thinned(
    items: Sequence[_T], height: Callable[[_T], float | None], most: int
) -> tuple[list[_T], int]:
    """At most so many items that points can be told apart: the highest of neighbours.

    Returns:
        The items, and of how many neighbours each is the highest.
    """
    every = -(-len(items) // most) or 1
    runs = (items[i : i + every] for i in range(0, len(items), every))
    return [max(run, key=lambda item: _sortable(height(item))) for run in runs], every


def thinned_by_phase(
    items: Sequence[_T],
    phase: Callable[[_T], Phase],
    height: Callable[[_T], float | None],
    most: int,
) -> tuple[list[_T], str]:
    """Likewise, an optimizer's many equal operators in at most a third of the width.

    Returns:
        The items in their order, and what was left out, in words.
    """
    network = [item for item in items if phase(item) != "optimizer"]
    optimizer = [item for item in items if phase(item) == "optimizer"]
    shown, every = thinned(network, height, most)
    last, each = thinned(optimizer, height, max(_LEAST, len(shown) // 2) if network else most)
    said = f"; of every {every} the nearest to its limits" if every > 1 else ""
    said += f"; of every {each} of the optimizer's the nearest" if each > 1 else ""
    kept = set(map(id, [*shown, *last]))
    return [item for item in items if id(item) in kept], said


def _sortable(value: float | None) -> float:
    return -1.0 if value is None else math.inf if math.isnan(value) else value


def regions(modules: Sequence[str]) -> list[Region]:
    """Runs of neighbours in the same module, as deep in the tree as there is room for."""
    deepest = max((module.count(".") + 1 for module in modules), default=1)
    for level in range(deepest, 0, -1):
        found = _runs(modules, level)
        if len(found) <= _MOST_REGIONS:
            return found
    return _runs(modules, 1)


def _runs(modules: Sequence[str], level: int) -> list[Region]:
    found: list[Region] = []
    for i, module in enumerate(modules):
        name = "outside" if module == OUTSIDE else ".".join(module.split(".")[:level]) or "model"
        if found and found[-1].name == name:
            found[-1] = found[-1]._replace(stop=i + 1)
        else:
            found.append(Region(i, i + 1, name))
    return found


class Measure(NamedTuple):
    """One measure of one run's operators, each with its limit and whether it is at fault."""

    values: Sequence[float | None]
    limits: Sequence[float | None]
    faulty: Sequence[bool]


def strip_plot(
    measure: str, spots: Sequence[Spot], runs: Mapping[str, Measure], x_title: str
) -> Markup:
    """One measure of isolated errors over execution order, with its limits.

    Args:
        measure: `R` or `M`.
        spots: The operators.
        runs: The measure of each run; operators at fault are drawn in the colour of limits.
        x_title: What is written under it.
    """
    notes = [spot.note for spot in spots]
    series = [svg.Series(name, run.values, notes=notes) for name, run in runs.items()]
    faulty = [_largest([*runs.values()], i) for i in range(len(spots))]
    count = sum(value is not None for value in faulty)
    if count:
        series.append(svg.Series(f"at fault ({count})", faulty, notes=notes, tone="limit"))
    return svg.error_plot(
        [*series, *_limits(measure, runs)],
        x_labels=[spot.name for spot in spots],
        x_title=x_title,
        y_title=measure,
        regions=regions([spot.module for spot in spots]),
        description=f"{measure} of {len(spots)} replayed operators in execution order; {count} of "
        "them are at fault.",
        height=190,
    )


def _largest(runs: Sequence[Measure], position: int) -> float | None:
    known = [run.values[position] for run in runs if run.faulty[position]]
    return max((value for value in known if value is not None), default=None)


def _limits(measure: str, runs: Mapping[str, Measure]) -> list[svg.Series]:
    """One line, or one for each run where their dtypes, and so their limits, differ."""
    columns = list(zip(*(run.limits for run in runs.values()), strict=True))
    if any(len({limit for limit in column if limit is not None}) > 1 for column in columns):
        return [
            svg.Series(f"limit of {measure}, {name}", run.limits, "steps", tone="limit")
            for name, run in runs.items()
        ]
    known = [next((limit for limit in column if limit is not None), None) for column in columns]
    return [svg.Series(f"limit of {measure}", known, "steps", tone="limit")]
