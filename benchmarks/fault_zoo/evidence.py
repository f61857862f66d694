"""From traces to the places that each tool's rule flags."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from benchmarks.fault_zoo import rules
from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.traces import Observed, Place, Trace, in_float64
from benchmarks.fault_zoo.variants import other_machine
from benchmarks.fault_zoo.workload import Precision, Workload

Alone = dict[Place, tuple[Tensor, ...]]


class Others(NamedTuple):
    """What a run is compared with: another machine's run, and one in float64 throughout."""

    other: Trace
    other_alone: Alone
    truth: Trace


@functools.lru_cache(maxsize=2)
def others(model: ModelName, precision: Precision) -> Others:
    """For one model in one precision; made once."""
    other, truth = Trace(), Trace()
    workload = Workload(model, precision)
    with other_machine(), other:
        workload.step()
    workload = Workload(model, "float64")
    with truth:
        workload.step()
    return Others(other, alone(other), truth)


def alone(trace: Trace) -> Alone:
    """Of each call, what float64 makes of its own operands."""
    return {place: in_float64(seen.call).tensors for place, seen in trace.calls.items()}


def flagged(trace: Trace, against: Others) -> dict[str, list[Place]]:
    """The places that each rule flags, in the order in which they ran."""
    found: dict[str, list[Place]] = {rule.name: [] for rule in rules.RULES}
    for place, seen in trace.calls.items():
        evidence = list(_evidence(seen, against))
        for rule in rules.RULES:
            if any(rule.flags(one) for one in evidence):
                found[rule.name].append(place)
    return found


def _evidence(seen: Observed, against: Others) -> Iterator[rules.Evidence]:
    place = seen.place
    right = in_float64(seen.call).tensors
    other, truth = against.other.calls.get(place), against.truth.calls.get(place)
    other_alone = against.other_alone.get(place, ())
    inputs = tuple(_pairs(seen, other))
    for index, (out, exact) in enumerate(zip(seen.made.tensors, right, strict=True)):
        if not out.is_floating_point() or out.numel() == 0:
            continue
        yield rules.Evidence(
            out,
            exact,
            _at(other.made.tensors if other else (), index, out),
            _at(other_alone, index, out),
            _at(truth.made.tensors if truth else (), index, out),
            inputs,
        )


def _at(tensors: tuple[Tensor, ...], index: int, out: Tensor) -> Tensor | None:
    """The tensor at this place among the outputs, if it is one of the same shape."""
    if index < len(tensors) and tensors[index].shape == out.shape:
        return tensors[index]
    return None


def _pairs(seen: Observed, other: Observed | None) -> Iterator[tuple[Tensor, Tensor]]:
    if other is None:
        return
    for one, two in zip(seen.inputs(), other.inputs(), strict=False):
        if one.shape == two.shape and one.numel():
            yield one, two
