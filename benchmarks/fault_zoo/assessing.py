"""Runs one case or one variant and asks every rule about it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.fault_zoo import recorded
from benchmarks.fault_zoo.changes import Change, called_otherwise
from benchmarks.fault_zoo.evidence import flagged, others
from benchmarks.fault_zoo.faults import Injector, Strength
from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.recorded import FULL, SKETCH
from benchmarks.fault_zoo.traces import Place, Trace, places
from benchmarks.fault_zoo.variants import Variant, other_machine, prepared
from benchmarks.fault_zoo.workload import Precision, Workload, same_bits
from benchmarks.fault_zoo.zoo import Case, effect

Document = dict[str, Any]
Flags = dict[str, list[Place]]
Under = Callable[[], AbstractContextManager[object]]
SHOWN = 5  # places of false flags that the results name


def assess_fault(case: Case) -> Document:
    """Which rules name the faulty operator first; whether the fault changes a bit comes before."""
    found = described(case.fault, case.strength, case.precision)
    done = effect(case)
    if not done.effective:
        return {**found, "effective": False}
    altered = places(done.altered)
    under = functools.partial(Injector, case.fault, case.strength.value)
    make = functools.partial(Workload, case.fault.model, case.precision)
    flags, replayed, named = _asked(make, under, case.fault.model, case.precision)
    rules = scored({**flags, FULL: replayed.out, SKETCH: named}, altered)
    found |= {"effective": True, "altered": len(altered), "rules": rules}
    return {**found, "judged": _worst(replayed, altered)}


def assess_change(change: Change, strength: Strength, precision: Precision) -> Document:
    """The same for a program that was changed; the kernels are right, so two runs are needed."""
    found = described(change, strength, precision)
    right, wrong = Workload(change.model, precision), _changed(change, strength, precision)
    traces = Trace(), Trace()
    for workload, trace in zip((right, wrong), traces, strict=True):
        with trace:
            workload.step()
    if same_bits(right.results(), wrong.results()):
        return {**found, "effective": False}
    altered = called_otherwise(*traces)
    named = _by_sketch(lambda: _changed(change, strength, precision), nullcontext, change.model,
                       precision)  # fmt: skip
    flags = scored(flagged(traces[1], others(change.model, precision)), altered)
    for rule in (FULL, SKETCH):  # recorded arguments are in both
        flags[rule] = _score(named, altered)
    return {**found, "effective": True, "altered": len(altered), "rules": flags}


def _changed(change: Change, strength: Strength, precision: Precision) -> Workload:
    workload = Workload(change.model, precision)
    change.prepare(workload, strength.value)
    return workload


def assess_variant(variant: Variant, model: ModelName, precision: Precision) -> Document:
    """How many right operators each rule accuses."""
    make = functools.partial(prepared, variant, model, precision)
    flags, replayed, named = _asked(make, variant.around, model, precision)
    return described_run(variant.name, variant.summary, model, precision, flags, replayed, named)


def described_run(
    name: str,
    summary: str,
    model: ModelName,
    precision: Precision,
    flags: Flags,
    replayed: recorded.Replayed,
    named: list[Place],
) -> Document:
    """What a right run is, and every rule's score on it, for the results."""
    found: Document = {"variant": name, "summary": summary, "model": model, "precision": precision}
    rules = scored({**flags, FULL: replayed.out, SKETCH: named}, set())
    found |= {"operators": len(replayed.judged), "rules": rules}
    if replayed.known:
        found["known"] = [one._asdict() for one in replayed.known]
    if replayed.unchecked:
        found["unchecked"] = replayed.unchecked
    return found


def described(fault: Any, strength: Strength, precision: Precision) -> Document:
    """What a case is, for the results."""
    return {
        "fault": fault.name,
        "kind": fault.kind,
        "model": fault.model,
        "summary": fault.summary,
        "precision": precision,
        "strength": strength.label,
        "rank": fault.strengths.index(strength),
    }


def _asked(
    make: Callable[[], Workload],
    under: Under,
    model: ModelName,
    precision: Precision,
) -> tuple[Flags, recorded.Replayed, list[Place]]:
    """What every rule flags: other tools', the replay, and two sketches."""
    workload, trace = make(), Trace()
    with under(), trace:
        workload.step()
    flags = flagged(trace, others(model, precision))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        again = make()
        recorded.record(again, path, "full", under())
        if not same_bits(workload.results(), again.results()):
            raise RuntimeError("the recorded run is another one than the traced")
        replayed = recorded.replayed(path)
    return flags, replayed, _by_sketch(make, under, model, precision)


def _worst(replayed: recorded.Replayed, altered: set[Place]) -> Document:
    """R, M and the misrounding rate of the altered operator that is furthest off."""
    judged = [replayed.judged[place] for place in altered if place in replayed.judged]
    if not judged:
        return {}
    worst = max(judged, key=lambda one: (one.verdict == "out", one.M))
    fields = worst.to_dict()
    return {key: fields[key] for key in ("verdict", "R", "M", "excess", "misrounding", "reason")}


def _by_sketch(
    make: Callable[[], Workload], under: Under, model: ModelName, precision: Precision
) -> list[Place]:
    """What the sketches of this run and the other machine's name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        recorded.record(make(), path, "sketch", under())
        return by_sketch_of(other_sketches(model, precision), path)


def by_sketch_of(reference: Path, candidate: Path) -> list[Place]:
    """The operator that a comparison of two recordings names, if it does."""
    _, named = recorded.named_by_compare(reference, candidate)
    return [named] if named is not None else []


@functools.cache
def other_sketches(model: ModelName, precision: Precision) -> Path:
    """The other machine's recording at level `sketch`; made once."""
    path = Path(_folder().name, f"{model}-{precision}")
    recorded.record(Workload(model, precision), path, "sketch", other_machine())
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def scored(flags: Flags, altered: set[Place]) -> Document:
    """Of each rule whether its first flag is right, how many are, how many are not."""
    return {rule: _score(found, altered) for rule, found in flags.items()}


def _score(found: Iterable[Place], altered: set[Place]) -> Document:
    found = list(found)
    wrong = [place for place in found if place not in altered]
    score: Document = {"flags": len(found), "false": len(wrong)}
    if altered:
        score["first"] = bool(found) and found[0] in altered
    if wrong:
        score["where"] = [f"{place.operator}#{place.occurrence}" for place in wrong[:SHOWN]]
    return score
