"""The rule of `accel.numerics`: each operator of one run is replayed in float64 and judged."""

from __future__ import annotations

from accel.numerics.replaying.judged import Judged
from accel.numerics.replaying.judging import judge_call
from benchmarks.fault_zoo.traces import Place, Trace

OURS = "accel.numerics"


def judged(trace: Trace) -> dict[Place, Judged]:
    """The verdict on each call, in the order in which they ran."""
    found = {}
    for place, seen in trace.calls.items():
        call, made = seen.call, seen.made
        found[place] = judge_call(call.func, call.args, call.kwargs, made.returned, made.written)
    return found
