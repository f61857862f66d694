"""`replay`: every operator of one recording judged by its float64 replay, on any CPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from accel.numerics.replaying.calls import first_line
from accel.numerics.replaying.chaining import chained_errors
from accel.numerics.replaying.judged import Judged, Verdict
from accel.numerics.replaying.judging import judge
from accel.numerics.replaying.known import kernels_of
from accel.numerics.replaying.operators import is_view, kind_of, why_nothing_to_check
from accel.numerics.replaying.recorded import (
    RecordedStep,
    Tensors,
    call_from,
    inputs_of,
    is_checkable,
    results_from,
    signature_of,
)
from accel.numerics.replaying.refusals import CannotReplayError
from accel.numerics.storage.entries import Key, Operator
from accel.numerics.storage.reader import Recording, load_recording
from accel.report import Progress


@dataclass(frozen=True)
class JudgedOperator:
    """One recorded operator and the verdict on it.

    Attributes:
        id: In its step.
        key: Its name in the recording.
        judged: The verdict.
        is_checkable: Whether there is something to check; not in views, random numbers, …
        judged_by: The operator of the same signature that was judged in its place (level `check`),
            whose verdict is not counted twice: this one is `unchecked`.
    """

    id: int
    key: Key
    judged: Judged
    is_checkable: bool = True
    judged_by: Key | None = None


@dataclass(frozen=True)
class StepReplay:
    """The replay of one step of one rank.

    Attributes:
        rank: Which process.
        index: Which step.
        operators: Every operator of the step, in execution order, with its verdict.
        errors: Of each value the accumulated error of the run: the rms of its difference from the
            same graph computed in float64 throughout, over the rms of that; empty unless asked for.
    """

    rank: int
    index: int
    operators: tuple[JudgedOperator, ...]
    errors: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Replay:
    """What the replay of a recording found.

    Attributes:
        path: The recording.
        steps: By rank and step.
    """

    path: str
    steps: tuple[StepReplay, ...]

    @cached_property
    def operators(self) -> tuple[JudgedOperator, ...]:
        """Every operator of every step."""
        return tuple(operator for step in self.steps for operator in step.operators)

    @cached_property
    def counts(self) -> Counter[Verdict]:
        """How many operators got each verdict; views compute nothing and are not counted."""
        return sum(self.counts_by_kind.values(), Counter[Verdict]())

    @cached_property
    def counts_by_kind(self) -> dict[str, Counter[Verdict]]:
        """The same for each family of operators."""
        found: dict[str, Counter[Verdict]] = {}
        for operator in self.operators:
            if operator.judged.kind == "view":
                continue
            found.setdefault(operator.judged.kind, Counter())[operator.judged.verdict] += 1
        return found

    @cached_property
    def replayed(self) -> int:
        """How many operators were judged themselves."""
        return sum(n for verdict, n in self.counts.items() if verdict != "unchecked")

    @cached_property
    def by_signature(self) -> int:
        """How many were not, but another of the same signature was (level `check`)."""
        return sum(one.judged_by is not None for one in self.operators)

    @cached_property
    def not_checked(self) -> int:
        """How many were judged neither way, though there is something to check in them."""
        return sum(
            one.is_checkable and one.judged_by is None and one.judged.verdict == "unchecked"
            for one in self.operators
        )

    @cached_property
    def nothing_to_check(self) -> int:
        """How many compute nothing that is determined: views, random numbers, collectives."""
        return len(self.operators) - self.replayed - self.by_signature - self.not_checked

    @property
    def out(self) -> tuple[JudgedOperator, ...]:
        """The operators that are out of the limits, in execution order."""
        return tuple(one for one in self.operators if one.judged.verdict == "out")

    @property
    def ok(self) -> bool:
        """Whether something was checked and nothing is out of the limits."""
        checked = self.counts["within"] + self.counts["exact"] + self.counts["known"]
        return checked > 0 and not self.out

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        covered = self._covered
        if not self.replayed:
            return f"Nothing could be replayed: {covered}."
        if not self.out:
            known = self.counts["known"]
            kernels = "kernel" if known == 1 else "kernels"
            but = f", but {known} known inaccurate {kernels}" if known else ""
            return f"Every operator computed what its inputs say{but}: {covered}."
        first, several = self.out[0], len(self.out) > 1
        subject = f"{len(self.out)} operators are" if several else "1 operator is"
        name = f"first {first.key}" if several else str(first.key)
        return (
            f"{subject} out of {'their' if several else 'its'} limits, {name}: "
            f"{first.judged.reason}; {covered}."
        )

    @property
    def _covered(self) -> str:
        whole = self.replayed + self.by_signature + self.not_checked
        others = [
            (self.by_signature, "judged by another of the same signature"),
            (self.not_checked, "not checked"),
        ]
        said = "".join(f", {count} {how}" for count, how in others if count)
        return f"{self.replayed} of {whole} operators were checked{said}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "path": self.path,
            "ok": self.ok,
            "sentence": self.sentence,
            "counts": dict(self.counts),
            "replayed": self.replayed,
            "by_signature": self.by_signature,
            "not_checked": self.not_checked,
            "nothing_to_check": self.nothing_to_check,
            "kinds": {kind: dict(counts) for kind, counts in self.counts_by_kind.items()},
            "steps": [
                {
                    "rank": step.rank,
                    "step": step.index,
                    "operators": [
                        {
                            "id": o.id,
                            "judged_by": None if o.judged_by is None else str(o.judged_by),
                            **o.judged.to_dict(),
                        }
                        for o in step.operators
                    ],
                    "errors": {str(value): error for value, error in step.errors.items()},
                }
                for step in self.steps
            ],
        }


def replay(
    recording: Recording | str | os.PathLike[str],
    *,
    ranks: Collection[int] | None = None,
    steps: Collection[int] | None = None,
    only: Callable[[Operator], bool] | None = None,
    chained: bool = False,
    progress: bool = False,
) -> Replay:
    """Replay every recorded operator in float64 on the CPU and judge it.

    Each operator is judged from its own recorded inputs, so that no error is blamed on an operator
    after the one that made it; no second run, no accelerator and no tolerance is needed. What was
    not kept (`level="sketch"`) and what has no reference is counted as not checked. Online verdicts
    of `level="check"` are taken over.

    Args:
        recording: A recording at level `full` or `check`, or its path.
        ranks: Which ranks; all if None.
        steps: Which steps; all if None.
        only: Which operators; all if None.
        chained: Whether to compute the whole graph in float64 too, from the step's sources on, and
            give every value's accumulated error.
        progress: Show how far it is on standard error.

    Raises:
        ValueError: There is no such rank or step, or the recording is damaged.
    """
    source = recording if isinstance(recording, Recording) else load_recording(recording)
    chosen = list(_chosen(source, ranks, steps))
    total = sum(len(step.operators) for step in chosen) * (2 if chained else 1)
    found = []
    with Progress(total, "replay", unit="operator", enabled=progress) as bar:
        for step in chosen:
            manifest = source.ranks[step.rank].manifest
            kernels = kernels_of(manifest.device, manifest.numerics_mode.get("environment"))
            operators = tuple(
                replayed(step, only, lambda one: bar.advance(text=str(one.key)), kernels)
            )
            errors = chained_errors(step, bar.advance) if chained else {}
            found.append(StepReplay(step.rank, step.index, operators, errors))
    return Replay(str(source.path), tuple(found))


def _chosen(
    recording: Recording, ranks: Collection[int] | None, steps: Collection[int] | None
) -> Iterator[Any]:
    missing = sorted(set(ranks or ()) - set(recording.ranks))
    if missing:
        raise ValueError(
            f"{recording.path} has no rank {missing[0]}; it has {sorted(recording.ranks)}"
        )
    for rank, found in recording.ranks.items():
        if ranks is not None and rank not in ranks:
            continue
        lacking = sorted(set(steps or ()) - set(found.steps))
        if lacking:
            raise ValueError(
                f"{recording.path} has no step {lacking[0]} of rank {rank}; "
                f"it has {sorted(found.steps)}"
            )
        for index in found.steps:
            if steps is None or index in steps:
                yield found.steps[index]


def replayed(
    step: RecordedStep,
    only: Callable[[Operator], bool] | None = None,
    on_operator: Callable[[JudgedOperator], None] = lambda one: None,
    device_type: str | None = None,
) -> Iterator[JudgedOperator]:
    """Judge the operators of one step, in order.

    Args:
        step: The step.
        only: Which operators; all if None.
        on_operator: Called with each, for a progress bar.
        device_type: Whose kernels ran; see `known.kernels_of`. None is the CPU's.
    """
    tensors = Tensors(step)
    checks = getattr(step, "checks", {})
    judged_by: dict[Hashable, Key] = {}
    for operator in step.operators:
        check = checks.get(operator.id)
        if check is not None:
            judged_by[signature_of(operator, step.values)] = operator.key
        if only is not None and not only(operator):
            continue
        judged = _judged(operator, tensors, device_type)
        if judged.verdict == "unchecked" and check is not None:
            judged = replace(Judged.from_dict(check.fields), operator=str(operator.key))
        one = JudgedOperator(operator.id, operator.key, judged, is_checkable(operator))
        if checks and check is None and one.is_checkable and judged.verdict == "unchecked":
            same = judged_by.get(signature_of(operator, step.values))
            one = one if same is None else _judged_by(one, same)
        on_operator(one)
        yield one


def _judged_by(one: JudgedOperator, key: Key) -> JudgedOperator:
    reason = f"{key}, of the same signature, was judged in its place"
    return replace(one, judged=replace(one.judged, reason=reason), judged_by=key)


def _judged(operator: Operator, tensors: Tensors, device_type: str | None) -> Judged:
    key = str(operator.key)
    kind = kind_of(operator.name, operator.overload)
    unchecked = Judged(key, operator.name, kind, "unchecked")
    if is_view(operator.name, operator.overload):
        return replace(unchecked, verdict="exact", reason="a view computes nothing")
    if not all(map(tensors.has, inputs_of(operator))) or not any(
        map(tensors.has, operator.produced)
    ):
        reason = why_nothing_to_check(operator.name, operator.overload)
        return replace(unchecked, reason=reason or "its inputs or outputs were not kept")
    try:
        call = call_from(operator, tensors.of)
    except CannotReplayError as error:
        return replace(unchecked, reason=str(error))
    except ValueError:  # the recording is damaged
        raise
    except Exception as error:
        return replace(unchecked, reason=f"its call cannot be made: {first_line(error):.200}")
    results = results_from(_as_kept(operator, tensors), tensors.of)
    return judge(call, results.outputs, results.written, key, device_type=device_type)


def _as_kept(operator: Operator, tensors: Tensors) -> Operator:
    """The operator without results that were not kept (what another engine does not give)."""
    outputs = tuple(v if v is not None and tensors.has(v) else None for v in operator.outputs)
    written = {name: v for name, v in operator.writes.items() if all(map(tensors.has, v))}
    return replace(operator, outputs=outputs, writes=written)
