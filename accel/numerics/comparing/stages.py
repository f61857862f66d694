"""The stages of a comparison, for one step of one rank of each run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accel.numerics.comparing import foreign, isolated, value_findings
from accel.numerics.comparing.alignment import aligned
from accel.numerics.comparing.attribution import attributed
from accel.numerics.comparing.comparison import (
    Attribution,
    Coverage,
    ModuleRow,
    Precondition,
    RankCell,
    Row,
    Run,
    Status,
    Unmatched,
    Verdict,
)
from accel.numerics.comparing.content import by_content
from accel.numerics.comparing.contents import Contents, gradients
from accel.numerics.comparing.divergence import rows_of
from accel.numerics.comparing.drift import Drift, History
from accel.numerics.comparing.drift import judged as drifted
from accel.numerics.comparing.evidence import Evidence
from accel.numerics.comparing.interface import RecordedStep
from accel.numerics.comparing.pairing import measured
from accel.numerics.comparing.preconditions import preconditions
from accel.numerics.comparing.renaming import in_words, renamed_modules, said, with_names
from accel.numerics.comparing.structure import Structural, is_scaling, structural
from accel.numerics.comparing.verdict import findings
from accel.numerics.comparing.wording import number_of
from accel.numerics.replaying.operators import why_nothing_to_check
from accel.numerics.storage.steps import Step

_WORST: dict[Status, int] = {"equal": 0, "rounding": 1, "carried": 2, "unknown": 3, "diverges": 4}


@dataclass(frozen=True)
class Options:
    """How to compare; see `compare`.

    Attributes:
        scale: Factor of the candidate's gradients.
        divisors: What single values of the reference and of the candidate are divided by.
        replay: Whether to replay.
        history: The steps that were compared before; this one is added.
        merged: Whether one of the steps is put together from several ranks.
        environment: Where manifests differ.
        collectives: What was found about collectives.
        kernels: Whose kernels computed the reference and the candidate; None is the CPU's.
        renamed: The reference's names of modules that the candidate names otherwise, as the steps
            so far told: later ones have other parameters, by rounding.
    """

    scale: float = 1.0
    divisors: tuple[Mapping[int, float], Mapping[int, float]] = ({}, {})
    replay: bool = True
    history: History = field(default_factory=History)
    merged: bool = False
    environment: dict[str, tuple[str, str]] = field(default_factory=dict)
    collectives: tuple[Verdict, ...] = ()
    kernels: tuple[str | None, str | None] = (None, None)
    renamed: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What was found of one step; see `Comparison` for the attributes, and `Evidence.drift`."""

    step: int
    findings: list[Verdict]
    rows: list[Row]
    preconditions: list[Precondition]
    unmatched: list[Unmatched]
    modules: list[ModuleRow]
    coverage: list[Coverage]
    attribution: Attribution | None
    notes: list[str]
    ranks: list[RankCell] = field(default_factory=list)
    drift: Drift | None = None
    lacking: Sequence[Run] = ()  # whose elements it would take to say more

    @property
    def ok(self) -> bool:
        """Whether the step agrees."""
        return self.findings[0].kind in ("same", "rounding only")


def compared(a: RecordedStep, b: RecordedStep, options: Options) -> Outcome:
    """Compare one step of one rank."""
    options.renamed.update(renamed_modules(a, b))
    names = options.renamed if isinstance(b, Step) else {}
    b = with_names(b, names)
    scales = _scaled(a, b, options.scale) if options.scale != 1.0 else {}
    for value, divisor in options.divisors[1].items():
        scales[value] = scales.get(value, 1.0) * divisor
    left, right = Contents(a, options.divisors[0]), Contents(b, scales)
    evidence = _evidence(left, right, options)
    coverage: list[Coverage] = []
    attribution: Attribution | None = None
    if options.replay:
        replays = isolated.replays(left, right, options.kernels)
        coverage = isolated.judge(evidence, replays)
        attribution = attributed(evidence, replays)
    pairs = (one.pair for one in evidence.measured)
    options.history.add(left, right, pairs, evidence.preconditions, evidence.alignment)
    evidence.preconditions += foreign.foreign(evidence)
    first = value_findings.first(evidence)
    return Outcome(
        step=b.index,
        findings=findings(evidence),
        rows=evidence.rows,
        preconditions=[*evidence.preconditions, *said(names)],
        unmatched=_unmatched(evidence),
        modules=_modules(evidence),
        coverage=coverage,
        attribution=attribution,
        notes=[*evidence.notes, *in_words(names), *_notes(a, b)],
        drift=evidence.drift,
        lacking=[] if first is None else evidence.lacking(first),
    )


def _scaled(a: RecordedStep, b: RecordedStep, scale: float) -> dict[int, float]:
    """What the candidate's values are divided by: its gradients, and the loss once it is scaled."""
    scales = dict.fromkeys(gradients(b), scale)
    for pair in aligned(a, b).operators:
        if pair.a.key.phase == "forward" and is_scaling(pair, scale):
            scales.update(dict.fromkeys(pair.b.produced, scale))
    return scales


def _evidence(a: Contents, b: Contents, options: Options) -> Evidence:
    alignment = aligned(a.step, b.step)
    everything = measured(a, b, alignment, by_content(a, b, alignment))
    begun, drift = drifted(preconditions(a, b), a, b, options.history)
    differing = [
        one for one in structural(a, b, alignment) if not is_scaling(one.pair, options.scale)
    ]
    if options.merged:  # sizes are those of parts
        differing = [one for one in differing if one.kind in ("dtype", "number") and _computes(one)]
    return Evidence(
        a=a,
        b=b,
        environment=options.environment,
        preconditions=begun,
        merged=options.merged,
        drift=drift,
        before=options.history.before(a.step.rank, a.step.index),
        alignment=alignment,
        structural=differing,
        measured=everything,
        rows=rows_of(a, b, alignment, everything),
        collectives=options.collectives,
    )


def _computes(one: Structural) -> bool:
    """Whether a difference is about more than memory: runs in parts have buffers of their own."""
    key = one.pair.a
    return not why_nothing_to_check(key.name, key.overload)


def _unmatched(evidence: Evidence) -> list[Unmatched]:
    found = []
    runs: tuple[tuple[Run, Contents], ...] = (("reference", evidence.a), ("candidate", evidence.b))
    for run, contents in runs:
        for one in evidence.unmatched(run):
            dtypes = tuple(contents.value(value).dtype for value in one.produced)
            found.append(Unmatched(run, one.key, one.place, dtypes))
    return found


def _modules(evidence: Evidence) -> list[ModuleRow]:
    operators = Counter(one.key.module for one in evidence.a.step.operators)
    unmatched = Counter(
        one.key.module for run in ("reference", "candidate") for one in evidence.unmatched(run)
    )
    classes = {call.module: call.class_name for call in evidence.a.step.modules}
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows:
        grouped[row.module].append(row)
    return [
        ModuleRow(
            module=module,
            module_class=classes.get(module, ""),
            operators=operators[module],
            unmatched=unmatched[module],
            forward=_largest(rows, "forward"),
            backward=_largest(rows, "backward"),
            status=worst(rows),
            faulty=sum(_is_faulty(row) for row in rows),
        )
        for module, rows in grouped.items()
    ]


def worst(rows: Sequence[Row]) -> Status:
    """The worst status of some rows; `unknown` for none."""
    return max((row.status for row in rows), key=_WORST.__getitem__, default="unknown")


def _largest(rows: Sequence[Row], phase: str) -> float | None:
    known = [row.distance for row in rows if row.phase == phase and row.distance is not None]
    return max(known, default=None)


def _is_faulty(row: Row) -> bool:
    return any(
        one is not None and one.verdict == "faulty" for one in (row.reference, row.candidate)
    )


def _notes(a: RecordedStep, b: RecordedStep) -> list[str]:
    notes = []
    for name, step in (("reference", a), ("candidate", b)):
        if step.end is None:
            notes.append(f"the {name}'s step {step.index} was cut short: what is there is compared")
        elif step.end.dropped:
            dropped = number_of(step.end.dropped, "tensor")
            notes.append(f"the {name} did not keep {dropped}: its size cap")
        reasons = Counter(one.reason for one in step.skipped)
        for reason, count in reasons.most_common(3):
            first = next(one.what for one in step.skipped if one.reason == reason)
            notes.append(f"the {name} skipped {count} ({first}, …): {reason}")
    return notes
