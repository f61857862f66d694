"""Benign variants that another engine computes: ONNX Runtime, and a simulated Ascend."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from accel.numerics import Recording, load_recording
from accel.numerics.onnx_runs import export_forward, record_onnxruntime, why_absent
from accel.numerics.replaying.calls import overload_of
from accel.numerics.replaying.recorded import Tensors, call_from, inputs_of, results_from
from accel.numerics.replaying.refusals import CannotReplayError
from benchmarks.fault_zoo import evidence, recorded
from benchmarks.fault_zoo.assessing import Document, by_sketch_of, described_run, other_sketches
from benchmarks.fault_zoo.faults import Call
from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.traces import Made, Observed, Trace, computes
from benchmarks.fault_zoo.workload import Precision, Workload

ROOT = Path(__file__).parents[2]
ONNX, ASCEND = "ONNX Runtime", "simulated Ascend"
SUMMARIES = {ONNX: "the exported forward", ASCEND: "torch_npu on a stand-in for CANN"}


def assess_onnxruntime(model: ModelName, precision: Precision) -> Document:
    """The exported forward, run by ONNX Runtime; for a precision without autocast."""
    absent = why_absent()
    if absent:
        raise RuntimeError(f"{absent}; install onnx, onnxruntime and onnxscript")
    with tempfile.TemporaryDirectory() as folder:
        path, sketches = Path(folder, "run"), Path(folder, "sketches")
        workload = Workload(model, precision)
        exported = export_forward(workload.model.eval(), workload.batch.inputs)
        record_onnxruntime(exported, path=path, level="full")
        record_onnxruntime(exported, path=sketches, level="sketch")
        return _assessed(ONNX, path, sketches, model, precision)


def assess_ascend(model: ModelName, precision: Precision) -> Document:
    """A step on a simulated Ascend, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, sketches = Path(folder, "full"), Path(folder, "sketch")
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("on_ascend.py"))]
        subprocess.run([*command, folder, model, precision], check=True, cwd=ROOT)
        return _assessed(ASCEND, path, sketches, model, precision)


def _assessed(
    name: str, path: Path, sketches: Path, model: ModelName, precision: Precision
) -> Document:
    trace = trace_of(load_recording(path))
    flags = evidence.flagged(trace, evidence.others(model, precision))
    replayed = recorded.replayed(path)
    named = by_sketch_of(other_sketches(model, precision), sketches)
    return described_run(name, SUMMARIES[name], model, precision, flags, replayed, named)


def trace_of(recording: Recording) -> Trace:
    """What rules of other tools need, out of a full recording."""
    trace = Trace()
    (step,) = recording.ranks[min(recording.ranks)].steps.values()
    by_id = recorded.places(recording)
    tensors = Tensors(step)
    for operator in step.operators:
        place = by_id[operator.id]
        try:
            func = overload_of(operator.name, operator.overload)
            if not computes(func):
                continue
            if not all(map(tensors.has, [*inputs_of(operator), *operator.produced])):
                continue  # such as what ONNX Runtime computes on its way and does not give
            given = call_from(operator, tensors.of)
        except CannotReplayError:
            continue  # an operator of the device's own, which other tools do not know either
        call = Call(func, (), dict(given.arguments))
        results = results_from(operator, tensors.of)
        made = Made(results.outputs, dict(results.written))
        if all(isinstance(tensor, torch.Tensor) for tensor in made.tensors):
            trace.calls[place] = Observed(place, call, made)
    return trace
