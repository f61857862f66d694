"""The parts of a page that show what a trained model finds: recall, matrices, map, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions
from accel.alignment.evaluation.health import Health, present_rows
from accel.alignment.evaluation.page_training import plots
from accel.alignment.evaluation.page_verdict import pair_kind
from accel.alignment.evaluation.projection_map import Center, principal_map
from accel.alignment.evaluation.ranking import nearest
from accel.alignment.evaluation.retrieval import PairRetrieval
from accel.report import Markup, html
from accel.report.heatmap import heatmap
from accel.report.markup import element, joined
from accel.report.scatter import Link, Points, scatter

if TYPE_CHECKING:
    from accel.alignment.evaluation.page import TrainingReport

_NEIGHBOURS = 5
_LISTED = 10  # samples whose neighbours are listed
_LINKED = 60  # samples whose points are linked; more hides the points


class _Share(float):
    """A share that tables show in percent, right-aligned and sorted as the number that it is."""

    def __format__(self, spec: str) -> str:
        """In percent, whatever the format that cells of tables have."""
        share = float(self)
        return f"{share:.2%}" if 0.0 < share < 0.01 else f"{share:.1%}"


def evaluation_sections(
    report: TrainingReport, labels: Sequence[str], found: Sequence[PairRetrieval], health: Health
) -> list[Markup]:
    """Every section about the embeddings of `report`; `labels` has one per sample."""
    sections = [html.section("Retrieval", *_retrieval(report, found))]
    if report.zero_shot:
        sections.append(html.section("Zero-shot classification", _zero_shot(report)))
    sections.append(html.section("Health of these embeddings", *_health(health)))
    depth = next(iter(report.embeddings.values())).shape[1]
    if len(report.embeddings) > 1 and depth > 1:
        sections += [_matrices(report, labels), _map(report, labels), _neighbours(report, labels)]
    return sections


def _retrieval(report: TrainingReport, found: Sequence[PairRetrieval]) -> list[object]:
    ks = sorted({k for one in found for k in one.found.recall})
    headers = [
        "query → target", "pair", *(name for k in ks for name in (f"recall@{k}", "chance")),
        "times chance", "median rank", "mean rank", "targets",
    ]  # fmt: skip
    rows = []
    for one in found:
        of = one.found
        if not of.queries:
            continue
        times = round(of.recall[ks[0]] / of.chance[ks[0]], 1)
        kind = html.badge(pair_kind(one, found), good=True if one.is_trained else None)
        shares = [_Share(share) for k in ks for share in (of.recall[k], of.chance[k])]
        rows.append(
            [
                f"{one.query} → {one.target}", kind, *shares, times, of.median_rank, of.mean_rank,
                of.targets,
            ]
        )  # fmt: skip
    note = (
        "Ties count against the model: a target as near as the right one ranks before it, so a "
        "collapsed model finds nothing. Chance is the same recall of a random order; times chance "
        "is of the smallest k. An emergent pair was never trained together."
    )
    table = html.table(headers, rows, sortable=True, caption="Retrieval between all modalities")
    return [table, note]


def _zero_shot(report: TrainingReport) -> Markup:
    ks = sorted({k for one in report.zero_shot.values() for k in one.accuracy})
    headers = ["task", *(f"top-{k}" for k in ks), *(f"chance, top-{k}" for k in ks),
               *(f"per class, top-{k}" for k in ks), "classes", "samples"]  # fmt: skip
    rows = [
        [
            name, *(_percent(one.accuracy.get(k)) for k in ks),
            *(_percent(one.chance.get(k)) for k in ks),
            *(_percent(one.per_class.get(k)) for k in ks), one.classes, one.samples,
        ]
        for name, one in report.zero_shot.items()
    ]  # fmt: skip
    return html.table(headers, rows, caption="Zero-shot classification")


def _percent(share: float | None) -> _Share | None:
    return None if share is None else _Share(share)


def _health(health: Health) -> list[object]:
    headers = ["modality", "mean cosine", "uniformity", "effective rank", "ties", "samples"]
    rows = [
        [name, one.mean_cosine, one.uniformity, one.effective_rank, _percent(one.ties), one.rows]
        for name, one in health.modalities.items()
    ]
    tables: list[object] = [html.table(headers, rows, caption="Spread of each modality")]
    if health.pairs:
        rows = [[name, one.alignment, one.gap, one.rows] for name, one in health.pairs.items()]
        headers = ["pair", "alignment", "modality gap", "samples"]
        tables.append(html.table(headers, rows, caption="How the modalities lie to each other"))
    return tables


def _spaced(there: Tensor, most: int) -> Tensor:
    """Up to `most` of the samples that are there, at regular distances."""
    numbers = there.nonzero().flatten()
    if len(numbers) <= most:
        return numbers
    return numbers[torch.linspace(0, len(numbers) - 1, most).round().long()]


def _rows(report: TrainingReport, name: str, numbers: Tensor) -> Tensor:
    rows = report.embeddings[name]
    return rows[numbers.to(rows.device)]


def _matrices(report: TrainingReport, labels: Sequence[str]) -> Markup:
    there = present_rows(report.embeddings, report.presence)
    cosines, names = {}, {}
    for pair in combinations(report.embeddings, 2):
        numbers = _spaced(there[pair[0]] & there[pair[1]], report.shown)
        if len(numbers):
            x, y = (directions(_rows(report, name, numbers), may_lack=True).cpu() for name in pair)
            cosines[pair], names[pair] = x @ y.T, [labels[i] for i in numbers.tolist()]
    if not cosines:
        return html.section("Similarity", "No pair of modalities shares a sample.")
    strongest = max(float(one.abs().max()) for one in cosines.values())
    limit = min(1.0, strongest) if strongest > 0 else 1.0
    drawings = [
        (
            f"{a} against {b}",
            heatmap(
                cosine.tolist(), row_labels=names[a, b], column_labels=names[a, b],
                row_title=a, column_title=b, limit=limit, cell=480 / (len(cosine) + 8),
                description=f"Cosine of {len(cosine)} samples of {a} with the same of {b}",
            ),
        )
        for (a, b), cosine in cosines.items()
    ]  # fmt: skip
    note = (
        "Cosine between samples in two modalities; partners are on the diagonal. All matrices "
        "share one colour scale, whose end is the largest value that is shown."
    )
    return html.section("Similarity", note, plots(*drawings))


def _map(report: TrainingReport, labels: Sequence[str]) -> Markup:
    there = present_rows(report.embeddings, report.presence)
    whole = torch.stack(list(there.values())).any(0)
    chosen = torch.zeros_like(whole)
    chosen[_spaced(whole, report.mapped)] = True
    numbers = {name: (of & chosen).nonzero().flatten() for name, of in there.items()}
    rows = {name: _rows(report, name, of) for name, of in numbers.items() if len(of)}
    numbers = {name: numbers[name] for name in rows}
    if not rows:
        return html.section("Map", "No sample has an embedding with a direction.")
    titles: dict[Center, str] = {
        "joint": "As they lie", "modality": "Each modality about its own mean"
    }  # fmt: skip
    drawings = [(title, _drawn(rows, numbers, labels, center)) for center, title in titles.items()]
    note = (
        "Principal components of the embeddings of all modalities. Lines link the same sample in "
        "two modalities. On the left the distance between the modalities shows, on the right what "
        "they have in common."
    )
    return html.section("Map", note, plots(*drawings))


def _drawn(
    rows: dict[str, Tensor], numbers: dict[str, Tensor], labels: Sequence[str], center: Center
) -> Markup:
    found = principal_map(rows, center=center)
    groups, place = [], {}
    for index, (name, places) in enumerate(found.places.items()):
        samples = numbers[name].tolist()
        place[index] = {sample: at for at, sample in enumerate(samples)}
        pairs = [(float(a), float(b)) for a, b in places.tolist()]
        groups.append(Points(name, pairs, [labels[i] for i in samples]))
    linked = sorted({sample for of in place.values() for sample in of})[:_LINKED]
    links = [
        Link(a, place[a][sample], b, place[b][sample])
        for sample in linked
        for a, b in combinations(place, 2)
        if sample in place[a] and sample in place[b]
    ]
    shares = [f"component {i + 1}, {share:.0%} of the variance"
              for i, share in enumerate(found.explained)]  # fmt: skip
    return scatter(
        groups, links=links, x_title=shares[0], y_title=shares[1],
        description=f"Map of {', '.join(rows)} by principal components",
    )  # fmt: skip


def _neighbours(report: TrainingReport, labels: Sequence[str]) -> Markup:
    there = present_rows(report.embeddings, report.presence)
    parts: list[Markup] = []
    for a, b in combinations(report.embeddings, 2):
        chosen = _spaced(there[a] & there[b], _LISTED)
        pool = there[b].nonzero().flatten()
        if not len(chosen):
            continue
        cosines, order = nearest(
            _rows(report, a, chosen), _rows(report, b, pool), min(_NEIGHBOURS, len(pool))
        )
        body = [
            [labels[sample], *(_neighbour(report, labels, sample, int(pool[j]), cosine)
                               for j, cosine in zip(places, values, strict=True))]
            for sample, places, values in zip(
                chosen.tolist(), order.tolist(), cosines.tolist(), strict=True
            )
        ]  # fmt: skip
        headers = [a, *(f"{b}, nearest" if i == 0 else str(i + 1) for i in range(order.shape[1]))]
        table = html.table(headers, body, row_headings=True, caption=f"{b} nearest to {a}")
        parts.append(html.disclosure(f"{a} → {b}", table, is_open=not parts))
    return html.section(
        "Nearest neighbours", *(parts or [html.paragraph("No pair of modalities shares a sample.")])
    )


def _neighbour(
    report: TrainingReport, labels: Sequence[str], sample: int, other: int, cosine: float
) -> Markup:
    groups = report.groups
    same = groups is not None and groups[sample] >= 0 and groups[sample] == groups[other]
    is_right = sample == other or bool(same)
    mark = element("span", "✓ " if is_right else "✗ ", class_="right" if is_right else "wrong")
    return joined([mark, labels[other], element("span", f" {cosine:.2f}", class_="subtitle")])
