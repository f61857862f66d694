"""A training run as one self-contained page: was it healthy, and what can it find."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from accel.alignment.evaluation.collapse import Collapse
from accel.alignment.evaluation.health import Health, measure_health, present_rows
from accel.alignment.evaluation.page_findings import evaluation_sections
from accel.alignment.evaluation.page_training import training_sections
from accel.alignment.evaluation.reading import Reading
from accel.alignment.evaluation.retrieval import KS, PairRetrieval, retrieve_all_pairs
from accel.alignment.evaluation.zero_shot import ZeroShot
from accel.alignment.pairs import Pair
from accel.report import Markup, html, write_atomically
from accel.report.markup import element

_STYLE = """
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:18px 20px;align-items:start;margin:10px 0}
.plots>div{min-width:0}.plots h3{font-size:.95rem;margin:0 0 4px}
.right{color:var(--good)}.wrong{color:var(--bad)}
"""


@dataclass(frozen=True)
class TrainingReport:
    """What a page is made of. Only `title` and `embeddings` are needed.

    Attributes:
        title: The heading.
        embeddings: By modality, `[N, D]` of samples that were not trained on; row i of all is
            sample i.
        labels: What each sample is called; empty: its number.
        trained: The pairs that were trained (`aligner.pairs`); None: all.
        presence: bool `[N, modalities]`, in the order of `embeddings`; None: all are there.
        groups: int64 `[N]`, identities: every sample of a group is right; None: only the sample.
        steps: Steps of `losses` and `temperatures`.
        losses: By name (`all`, `text-image`), one per step.
        temperatures: By name, one per step.
        readings: `monitor.history`.
        events: `monitor.events`.
        zero_shot: By name of the task.
        facts: Whatever else should be on the page: device, seconds, settings.
        retrieval: If it was computed already; None: `retrieve_all_pairs` of the embeddings.
        health: If it was computed already; None: `measure_health` of the embeddings.
        ks: The k of recall at k.
        shown: Samples in matrices and lists of neighbours, up to 64.
        mapped: Samples in the map.
    """

    title: str
    embeddings: Mapping[str, Tensor]
    labels: Sequence[str] = ()
    trained: Sequence[Pair] | None = None
    presence: Tensor | None = None
    groups: Tensor | None = None
    steps: Sequence[int] = ()
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    temperatures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    readings: Sequence[Reading] = ()
    events: Sequence[Collapse] = ()
    zero_shot: Mapping[str, ZeroShot] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    retrieval: Sequence[PairRetrieval] | None = None
    health: Health | None = None
    ks: Sequence[int] = KS
    shown: int = 24
    mapped: int = 150


def write_page(path: str | os.PathLike[str], report: TrainingReport) -> None:
    """Write a run as a self-contained HTML page, whole or not at all.

    Args:
        path: The page; replaced if it exists.
        report: What it shows.

    Raises:
        TypeError: Embeddings are no floating-point tensors.
        ValueError: Numbers of samples, labels or values differ; or an embedding has no direction.
        OSError: The page cannot be written.
    """
    write_atomically(path, page_of(report))


def page_of(report: TrainingReport) -> str:
    """The page, as text; see `write_page`."""
    count = _check(report)
    found = report.retrieval
    if found is None:
        found = retrieve_all_pairs(
            report.embeddings, trained=report.trained, presence=report.presence,
            groups=report.groups, ks=report.ks,
        )  # fmt: skip
    health = report.health or measure_health(report.embeddings, presence=report.presence)
    labels = report.labels or [f"sample {i}" for i in range(count)]
    body: list[object] = [_headline(report, found), html.figures(_figures(found, health, count))]
    body += training_sections(report.steps, report.losses, report.temperatures, report.readings)
    body += evaluation_sections(report, labels, found, health)
    if report.facts:
        body.append(html.section("This run", html.definitions(report.facts)))
    depth = next(iter(report.embeddings.values())).shape[1]
    subtitle = (
        f"{', '.join(report.embeddings)}: {count:,} samples that were not trained on, "
        f"{depth} dimensions"
    )
    return html.page(report.title, body, subtitle=subtitle, style=_STYLE)


def _headline(report: TrainingReport, found: Sequence[PairRetrieval]) -> Markup:
    if report.events:
        said = html.listing(str(event) for event in report.events)
        names = ", ".join(dict.fromkeys(event.modality for event in report.events))
        return html.headline("Collapse", f"The monitor warned of {names}.", said, tone="bad")
    measured = [one for one in found if one.found.queries]
    if not measured:
        return html.headline("Empty", "No pair of modalities shares a sample.", tone="warn")
    best = max(measured, key=_recall)
    k = min(best.found.recall)
    sentence = (
        f"{best.query} finds its {best.target} first in {_recall(best):.1%} of "
        f"{best.found.queries:,} cases; chance is {best.found.chance[k]:.2%}."
        if k == 1
        else f"{best.query} to {best.target}: recall at {k} is {_recall(best):.1%}."
    )
    watched = (
        element("p", f"The collapse monitor took {len(report.readings)} readings and said nothing.")
        if report.readings
        else element("p", "The run was not watched by a collapse monitor.")
    )
    return html.headline("Aligned", sentence, watched, tone="good")


def _recall(one: PairRetrieval) -> float:
    return one.found.recall[min(one.found.recall)]


def _figures(
    found: Sequence[PairRetrieval], health: Health, count: int
) -> list[tuple[object, str, html.Tone]]:
    items: list[tuple[object, str, html.Tone]] = [(f"{count:,}", "samples", "neutral")]
    for one in found[:4]:
        k = min(one.found.recall)
        emergent = "" if one.is_trained else ", emergent"
        items.append(
            (f"{_recall(one):.1%}", f"recall@{k} {one.query} → {one.target}{emergent}", "neutral")
        )
    for name, of in health.modalities.items():
        items.append((f"{of.effective_rank:.0f}", f"effective rank, {name}", "neutral"))
    return items


def _check(report: TrainingReport) -> int:
    if not report.embeddings:
        raise ValueError("a report needs the embeddings of at least one modality")
    count = len(next(iter(present_rows(report.embeddings, report.presence).values())))
    if report.labels and len(report.labels) != count:
        raise ValueError(f"there are {len(report.labels)} labels for {count} samples")
    for name, values in {**report.losses, **report.temperatures}.items():
        if len(values) != len(report.steps):
            raise ValueError(
                f"{name!r} has {len(values)} values for {len(report.steps)} steps: give one each"
            )
    if not 1 <= report.shown <= 64 or report.mapped < 1:
        raise ValueError(
            f"shown must be from 1 to 64 and mapped at least 1, got {report.shown} and "
            f"{report.mapped}"
        )
    return count
