"""The parts of a page that show a run over its steps: loss, temperature, health."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from accel.alignment.evaluation.health import ModalityHealth
from accel.alignment.evaluation.reading import Reading
from accel.report import Markup, html
from accel.report.curves import Curve, line_plot
from accel.report.markup import element, joined

_MEASURES: tuple[tuple[str, str, Callable[[ModalityHealth], float]], ...] = (
    ("Mean cosine", "1 is one point", lambda one: one.mean_cosine),
    ("Effective rank", "directions in use", lambda one: one.effective_rank),
    ("Uniformity", "0 is one point, lower is more even", lambda one: one.uniformity),
)
_PAIR_MEASURES = (
    ("alignment", "Alignment", "squared distance of partners; 2 is unrelated"),
    ("gap", "Modality gap", "distance between the modalities' means"),
)


def plots(*drawings: tuple[str, Markup]) -> Markup:
    """Titled drawings, two in a row where there is room."""
    boxes = (element("div", element("h3", title), drawing) for title, drawing in drawings)
    return element("div", joined(boxes), class_="plots")


def training_sections(
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],
    temperatures: Mapping[str, Sequence[float]],
    readings: Sequence[Reading],
) -> list[Markup]:
    """Loss and temperature over steps, and what the monitor measured; what is empty is left out."""
    sections = []
    drawn = [
        (title, _over_steps(title.lower(), steps, curves))
        for title, curves in (
            ("Loss", losses),
            ("Temperatures, as scales (1 / temperature)", temperatures),
        )
        if curves and len(steps)
    ]
    if drawn:
        sections.append(html.section("Training", plots(*drawn)))
    if readings:
        explained = (
            "What the collapse monitor measured of the embeddings during training. A loss can look "
            "perfect while all embeddings become one point; these curves cannot."
        )
        sections.append(html.section("Health during training", explained, _health(readings)))
    return sections


def _over_steps(what: str, steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Markup:
    drawn = [Curve(name, steps, values) for name, values in curves.items()]
    return line_plot(drawn, x_title="step", description=f"{what} over steps")


def _health(readings: Sequence[Reading]) -> Markup:
    names = tuple(dict.fromkeys(name for one in readings for name in one.modalities))
    steps = [one.step for one in readings]
    drawings = []
    for title, meaning, measure in _MEASURES:
        curves = [
            Curve(
                name,
                steps,
                [
                    measure(one.modalities[name]) if name in one.modalities else None
                    for one in readings
                ],
            )
            for name in names
        ]
        drawings.append((title, _measured(title, meaning, curves)))
    for key, title, meaning in _PAIR_MEASURES:
        of = [getattr(one, key) for one in readings]
        pairs = tuple(dict.fromkeys(pair for one in of for pair in one))
        curves = [Curve(pair, steps, [_known(one.get(pair)) for one in of]) for pair in pairs]
        curves = [one for one in curves if any(value is not None for value in one.values)]
        if curves:
            drawings.append((title, _measured(title, meaning, curves)))
    return plots(*drawings)


def _measured(title: str, meaning: str, curves: Sequence[Curve]) -> Markup:
    drawing = line_plot(
        curves, x_title="step", height=180, description=f"{title} over steps: {meaning}"
    )
    return joined([drawing, element("p", meaning, class_="subtitle")])


def _known(value: float | None) -> float | None:
    """NaN, which alignment is where partners are not known, is a gap and no finding."""
    return None if value is None or value != value else value
