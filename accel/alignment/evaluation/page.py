"""A training run as one self-contained page: was it healthy, and what can it find."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from accel.alignment.evaluation.collapse import Collapse
from accel.alignment.evaluation.health import Health, broken_rows, measure_health, present_rows
from accel.alignment.evaluation.page_findings import evaluation_sections
from accel.alignment.evaluation.page_training import training_sections
from accel.alignment.evaluation.page_verdict import (
    first_recall,
    is_collapsed,
    pair_kind,
    verdict,
)
from accel.alignment.evaluation.reading import Reading
from accel.alignment.evaluation.retrieval import KS, PairRetrieval, retrieve_all_pairs
from accel.alignment.evaluation.zero_shot import ZeroShot
from accel.alignment.pairs import Pair
from accel.report import html, write_atomically

_TILES = 4  # pairs of each kind, trained and emergent, that have a figure at the top
_STYLE = """
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:18px 20px;align-items:start;margin:10px 0}
.plots>div{min-width:0}.plots h3{font-size:.95rem;margin:0 0 4px}
.scroll table{font-size:.82rem}.scroll th,.scroll td{padding:5px 7px}
.right{color:var(--good)}.wrong{color:var(--bad)}
"""


@dataclass(frozen=True)
class TrainingReport:
    """What a page is made of. Only `title` and `embeddings` are needed.

    Attributes:
        title: The heading.
        embeddings: By modality, `[N, D]` of samples that were not trained on; row i of all is
            sample i, also where it is absent (see `presence`). Rows that are there and zero or not
            finite are counted and named, and left out of every figure that the page measures.
        labels: What each sample is called, as text; empty: its number.
        trained: The pairs that were trained (`aligner.pairs`); None: all.
        presence: By modality, bool `[N]`; or bool `[N, modalities]` with columns in the order of
            `embeddings`, which cannot be checked. None: all are there.
        groups: int64 `[N]`, identities: every sample of a group is right; None: only the sample.
        steps: Steps of `losses` and `temperatures`.
        losses: By name (`all`, `text-image`), one per step.
        temperatures: By name, what `Temperature` and `aligner.temperatures` give, one per step:
            the scale that cosines are multiplied by, 1 / temperature.
        readings: `monitor.history`.
        events: `monitor.events`.
        zero_shot: By name of the task.
        facts: Whatever else should be on the page: device, seconds, settings.
        retrieval: If it was computed already; None: `retrieve_all_pairs` of the embeddings.
        health: If it was computed already; None: `measure_health` of the embeddings.
        ks: The k of recall at k.
        shown: Samples in each matrix of cosines, up to 64.
        mapped: Samples in the map.
    """

    title: str
    embeddings: Mapping[str, Tensor]
    labels: Sequence[str] = ()
    trained: Sequence[Pair] | None = None
    presence: Tensor | Mapping[str, Tensor] | None = None
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
        TypeError: Embeddings are no floating-point tensors, labels are no text, or groups no
            tensor.
        ValueError: Numbers of samples, labels or values differ.
        OSError: The page cannot be written.
    """
    write_atomically(path, page_of(report))


def page_of(report: TrainingReport) -> str:
    """The page, as text; see `write_page`."""
    count = _check(report)
    broken = broken_rows(report.embeddings, report.presence)
    if any(bool(of.any()) for of in broken.values()):
        there = present_rows(report.embeddings, report.presence)
        report = replace(report, presence={name: of & ~broken[name] for name, of in there.items()})
    found = _found(report)
    health = report.health
    if health is None:
        health = measure_health(report.embeddings, presence=report.presence)
    labels = report.labels or [f"sample {i}" for i in range(count)]
    body: list[object] = [
        verdict(
            found, health, events=report.events, readings=len(report.readings), broken=broken,
            labels=report.labels,
        ),
        html.figures(_figures(found, health, count)),
    ]  # fmt: skip
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


def _found(report: TrainingReport) -> Sequence[PairRetrieval]:
    if report.retrieval is not None:
        return report.retrieval
    presence = report.presence
    if isinstance(presence, Mapping):
        presence = torch.stack(list(present_rows(report.embeddings, presence).values()), dim=1)
    return retrieve_all_pairs(
        report.embeddings, trained=report.trained, presence=presence, groups=report.groups,
        ks=report.ks,
    )  # fmt: skip


def _figures(
    found: Sequence[PairRetrieval], health: Health, count: int
) -> list[tuple[object, str, html.Tone]]:
    items: list[tuple[object, str, html.Tone]] = [(f"{count:,}", "samples", "neutral")]
    for is_trained in (True, False):
        for one in _best_and_worst([one for one in found if one.is_trained == is_trained]):
            kind = "" if is_trained else f", {pair_kind(one, found)}"
            name = f"recall@{min(one.found.recall)} {one.query} → {one.target}{kind}"
            items.append((f"{first_recall(one):.1%}", name, "neutral"))
    for name, of in health.modalities.items():
        if of.rows < 2:
            continue  # it has no mean cosine
        collapsed = is_collapsed(of)
        # Of one point the effective rank is that of its rounding errors.
        rank = "" if collapsed else f"; effective rank {of.effective_rank:.0f}"
        tone: html.Tone = "bad" if collapsed else "neutral"
        mean = round(of.mean_cosine, 3) + 0.0  # which turns -0 into 0
        items.append((f"{mean:.3f}", f"mean cosine, {name}{rank}", tone))
    return items


def _best_and_worst(found: Sequence[PairRetrieval]) -> list[PairRetrieval]:
    """Up to `_TILES` of the pairs that share samples, best and worst, in their order."""
    measured = [one for one in found if one.found.queries]
    if len(measured) <= _TILES:
        return measured
    order = sorted(range(len(measured)), key=lambda i: first_recall(measured[i]))
    chosen = {*order[: _TILES // 2], *order[-_TILES // 2 :]}
    return [measured[i] for i in sorted(chosen)]


def _check(report: TrainingReport) -> int:
    if not report.embeddings:
        raise ValueError("a report needs the embeddings of at least one modality")
    count = len(next(iter(present_rows(report.embeddings, report.presence).values())))
    _check_samples(report, count)
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


def _check_samples(report: TrainingReport, count: int) -> None:
    labels, groups = report.labels, report.groups
    is_text = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not is_text or not all(isinstance(label, str) for label in labels):
        raise TypeError(
            f"labels must be a sequence of str, what each sample is called, got {type(labels)}"
            f"{' of other values' if is_text else ''}: numbers that say which samples are the same "
            "are groups"
        )
    if labels and len(labels) != count:
        raise ValueError(f"there are {len(labels)} labels for {count} samples")
    if groups is None:
        return
    if not isinstance(groups, Tensor):
        raise TypeError(f"groups must be an int64 tensor [{count}], got {type(groups).__name__}")
    if groups.dtype != torch.int64 or list(groups.shape) != [count]:
        raise ValueError(f"groups must be int64 [{count}], got {groups.dtype} {list(groups.shape)}")
