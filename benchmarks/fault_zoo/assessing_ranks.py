"""Cases of collectives: two processes run them, every rule is asked about both."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist

import accel
from accel.numerics.recorder import Level
from benchmarks.fault_zoo import collectives, evidence, recorded
from benchmarks.fault_zoo.assessing import Document, Flags, Under, described, scored
from benchmarks.fault_zoo.collectives import DataParallel
from benchmarks.fault_zoo.faults import Fault, Injector, Strength
from benchmarks.fault_zoo.recorded import FULL, SKETCH
from benchmarks.fault_zoo.traces import Place, Trace
from benchmarks.fault_zoo.variants import other_machine
from benchmarks.fault_zoo.workload import PRECISIONS, Precision, same_bits

LEVELS: dict[str, Level] = {FULL: "full", SKETCH: "sketch"}
FOUND = "found.json"


def assess_collectives(
    names: tuple[str, ...] | None = None,
    ranks: tuple[int, ...] = (0, 1, 2),
    precisions: tuple[Precision, ...] = PRECISIONS,
    *,
    others: bool = True,
) -> list[Document]:
    """All cases of collectives, or those with these names, strengths and precisions.

    `others` is whether other tools' rules are asked too.
    """
    found: list[Document] = []

    def collect(folder: Path) -> None:
        found.extend(json.loads((folder / FOUND).read_text()))

    collectives.on_two_ranks(_all, names, ranks, precisions, others, after=collect)
    return found


def _all(
    folder: Path,
    names: tuple[str, ...] | None,
    ranks: tuple[int, ...],
    precisions: tuple[Precision, ...],
    others: bool = True,
) -> None:
    found = []
    for precision in precisions:
        bench = _Bench(folder / precision, precision, others)
        found.append(bench.benign())
        for fault in collectives.FAULTS:
            if names is None or fault.name in names:
                found += [bench.case(fault, fault.strengths[rank]) for rank in ranks]
    if dist.get_rank() == 0:
        (folder / FOUND).write_text(json.dumps(found))


class _Bench:
    """One precision: what runs are compared with, and the comparison."""

    def __init__(self, folder: Path, precision: Precision, others: bool) -> None:
        self.folder, self.precision = folder, precision
        folder.mkdir(exist_ok=True)
        self.others = _others(precision) if others else None
        for level in LEVELS.values():
            self._record(f"other-{level}", level, other_machine)
        self.right = _run(precision, nullcontext, Trace()).results()

    def benign(self) -> Document:
        """The right run, as a variant."""
        return {
            "variant": "two ranks",
            "summary": "data parallel on two processes, gradients averaged by gloo",
            "model": "gpt",
            "precision": self.precision,
            "rules": scored(self._flags("right", nullcontext), set()),
        }

    def case(self, fault: Fault, strength: Strength) -> Document:
        """One fault at one strength."""
        found = described(fault, strength, self.precision)
        injector = Injector(fault, strength.value)
        wrong = _run(self.precision, lambda: injector, Trace()).results()
        changed = not same_bits(self.right, wrong)
        everywhere = _gathered((changed, [tuple(one) for one in injector.altered]))
        altered = {Place(*one) for _, some in everywhere for one in some}
        if not (altered and any(one for one, _ in everywhere)):
            return {**found, "effective": False}
        name = f"{fault.name}-{strength.label}".replace("/", "-").replace(" ", "-")
        flags = self._flags(name, lambda: Injector(fault, strength.value))
        rules = scored(flags, altered)
        return {**found, "effective": True, "altered": len(altered), "rules": rules}

    def _flags(self, name: str, under: Under) -> Flags:
        """What each rule flags on either rank, in the order of the first."""
        flags = {} if self.others is None else self._other_flags(under, self.others)
        for rule, level in LEVELS.items():
            path = self._record(f"{name}-{level}", level, under)
            dist.barrier()
            named = None
            if dist.get_rank() == 0:
                kind, named = recorded.named_by_compare(self.folder / f"other-{level}", path)
                if level == "full" and kind == "cannot decide":
                    named = None  # only collectives were kept: no accusation
            flags[rule] = [named] if named is not None else []
        return flags

    def _other_flags(self, under: Under, others: evidence.Others) -> Flags:
        trace = Trace()
        _run(self.precision, under, trace)
        everywhere = _gathered(evidence.flagged(trace, others))
        order = {place: index for index, place in enumerate(trace.calls)}
        return {
            rule: sorted(
                {place for one in everywhere for place in one[rule]}, key=order.__getitem__
            )
            for rule in everywhere[0]
        }

    def _record(self, name: str, level: Level, under: Under) -> Path:
        path = self.folder / name
        workload = DataParallel(self.precision)
        member = (dist.get_rank(), collectives.RANKS)
        with (
            under(),
            accel.numerics.record(
                workload.model,
                path,
                level=level,
                only=["collective:*"] if level == "full" else None,
                data_parallel=member,
            ),
        ):
            workload.step()
        dist.barrier()
        return path


def _others(precision: Precision) -> evidence.Others:
    other, truth = Trace(), Trace()
    _run(precision, other_machine, other)
    _run("float64", nullcontext, truth)
    return evidence.Others(other, evidence.alone(other), truth)


def _run(precision: Precision, under: Under, trace: Trace) -> DataParallel:
    workload = DataParallel(precision)
    with under(), trace:
        workload.step()
    return workload


def _gathered(value: Any) -> list[Any]:
    """What every rank has, by rank."""
    everywhere: list[Any] = [None] * collectives.RANKS
    dist.all_gather_object(everywhere, value)
    return everywhere
