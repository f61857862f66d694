"""What a page says first: whether the embeddings are aligned, at chance, collapsed or broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from accel.alignment.evaluation.collapse import Collapse, CollapseLimits
from accel.alignment.evaluation.health import Health, ModalityHealth
from accel.alignment.evaluation.retrieval import PairRetrieval, Retrieval
from accel.report import Markup, html

# How many standard errors recall lies above chance before it counts as found: at one of three k,
# about one random order in 200 does, and all trained pairs must.
STANDARD_ERRORS = 4.0
_POINT = 0.9  # share of pairs of rows that are ties, from which a modality is one point
_TIED = 0.1  # from which the ties are worth saying where recall is not above chance
_NAMED = 5  # broken rows that are named
_LIMITS = CollapseLimits()


class _Verdict(NamedTuple):
    label: str
    tone: html.Tone
    sentence: str
    reasons: list[str]


def verdict(
    found: Sequence[PairRetrieval],
    health: Health,
    *,
    events: Sequence[Collapse] = (),
    readings: int = 0,
    broken: Mapping[str, Tensor] | None = None,
    labels: Sequence[str] = (),
) -> Markup:
    """The headline of a page.

    Args:
        found: Retrieval of all pairs.
        health: Of the rows that have a direction.
        events: What a monitor found in training.
        readings: How many readings it took.
        broken: By modality, bool `[N]`: rows without a direction.
        labels: What each sample is called; empty: its number alone.
    """
    judged = judged_pairs(found)
    failures = _failures(health, events, broken or {}, labels)
    one = failures or _of_retrieval(judged, health)
    reasons = list(one.reasons)
    if failures and judged:
        reasons.append(_best_and_worst(judged))
    if not events:
        reasons.append(
            f"The collapse monitor took {readings} readings and said nothing."
            if readings
            else "The run was not watched by a collapse monitor."
        )
    return html.headline(one.label, one.sentence, html.listing(reasons), tone=one.tone)


def judged_pairs(found: Sequence[PairRetrieval]) -> list[PairRetrieval]:
    """The pairs that a verdict rests on: those trained, or all if none was; empty ones never."""
    measured = [one for one in found if one.found.queries]
    return [one for one in measured if one.is_trained] or measured


def first_recall(one: PairRetrieval) -> float:
    """Recall at the smallest k."""
    return one.found.recall[min(one.found.recall)]


def chance_error(found: Retrieval, k: int) -> float:
    """The standard error of recall at k if the order is random: `sqrt(p (1 - p) / queries)`."""
    chance = found.chance[k]
    return math.sqrt(max(0.0, chance * (1.0 - chance)) / found.queries)


def is_above_chance(found: Retrieval) -> bool:
    """Whether recall at some k is more than `STANDARD_ERRORS` above that of a random order."""
    return any(
        recall > found.chance[k] + STANDARD_ERRORS * chance_error(found, k)
        for k, recall in found.recall.items()
        if found.chance[k] < 1.0
    )


def pair_kind(one: PairRetrieval, found: Sequence[PairRetrieval]) -> str:
    """Whether the pair was trained; if not, `emergent`, or `untrained` where no pair was at all."""
    if one.is_trained:
        return "trained"
    return "emergent" if any(other.is_trained for other in found) else "untrained"


def is_collapsed(of: ModalityHealth) -> bool:
    """Whether the embeddings of a modality are one point.

    Below `CollapseLimits.stuck_spread` not even the largest usual scale, 100, tells samples apart.
    A cone that is only narrow is no collapse: untrained encoders begin in one. Nor are two classes
    whose members are right for one another and end as two points.
    """
    return of.ties >= _POINT or 1.0 - of.mean_cosine < _LIMITS.stuck_spread


def _failures(
    health: Health,
    events: Sequence[Collapse],
    broken: Mapping[str, Tensor],
    labels: Sequence[str],
) -> _Verdict | None:
    """What makes the verdict red, all of it; the first names it."""
    points = [name for name, of in health.modalities.items() if is_collapsed(of)]
    lost = {name: of for name, of in broken.items() if bool(of.any())}
    said = []
    if points:
        said.append(f"The embeddings of {_listed(points)} are nearly one point.")
    if lost:
        said.append(f"Rows of {_listed(list(lost))} are zero, NaN or infinite.")
    if events:
        said.append(f"The monitor warned of {_listed([one.modality for one in events])}.")
    if not said:
        return None
    reasons = [_spread(name, health.modalities[name]) for name in points]
    reasons += [_lost(name, of, labels) for name, of in lost.items()]
    reasons += [str(event) for event in events]
    has_collapsed = points or any(event.rule != "finite" for event in events)
    return _Verdict("Collapsed" if has_collapsed else "Broken", "bad", " ".join(said), reasons)


def _of_retrieval(judged: Sequence[PairRetrieval], health: Health) -> _Verdict:
    if not judged:
        return _Verdict("Empty", "warn", "No pair of modalities shares a sample.", [])
    kind = "trained " if judged[0].is_trained else ""
    missed = [one for one in judged if not is_above_chance(one.found)]
    sentence = _best_and_worst(judged)
    if not missed:
        reason = f"Recall of every {kind}pair is more than {STANDARD_ERRORS:g} standard errors "
        return _Verdict("Aligned", "good", sentence, [reason + "above chance."])
    directions = ", ".join(f"{one.query} → {one.target}" for one in missed)
    reason = (
        f"Not above chance by more than {STANDARD_ERRORS:g} standard errors: {directions}. With "
        "few samples that proves little: evaluate on more."
    )
    label = "Not above chance" if len(missed) == len(judged) else "Partly aligned"
    narrow = [
        f"{_spread(name, of)} Untrained and collapsing encoders are as narrow."
        for name, of in health.modalities.items()
        if 1.0 - of.mean_cosine < _LIMITS.spread or of.ties >= _TIED
    ]
    return _Verdict(label, "warn", sentence, [reason, *narrow])


def _best_and_worst(judged: Sequence[PairRetrieval]) -> str:
    best, worst = max(judged, key=first_recall), min(judged, key=first_recall)
    said = _found(best)
    if worst is not best:
        kind = "trained pair" if worst.is_trained else "pair"
        said += f" The worst {kind}: {_found(worst)}"
    return said


def _found(one: PairRetrieval) -> str:
    k = min(one.found.recall)
    where = "first" if k == 1 else f"among the first {k}"
    error = chance_error(one.found, k)
    return (
        f"{one.query} finds its {one.target} {where} in {first_recall(one):.1%} of "
        f"{one.found.queries:,} cases; chance is {one.found.chance[k]:.2%} ± {error:.2%}."
    )


def _spread(name: str, of: ModalityHealth) -> str:
    return f"{name}: mean cosine {of.mean_cosine:.4f}, {of.ties:.1%} of the pairs of rows are ties."


def _lost(name: str, of: Tensor, labels: Sequence[str]) -> str:
    numbers = of.nonzero().flatten().tolist()
    named = [f"row {i} ({labels[i]})" if labels else f"row {i}" for i in numbers[:_NAMED]]
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return (
        f"{name}: {len(numbers)} of {len(of)} rows have no direction, {', '.join(named)}{more}. "
        "All that this page measures is of the others. Look for the first step whose loss is not "
        "finite, and for inputs that are all zero."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
