"""ONNX Runtime as an independent engine: a model's forward, exported, run and recorded.

The exported program is the list of operators that torch itself would run, and the exporter notes on
every ONNX node which of them it belongs to. A run's values are recorded under the names of those
operators, so that it is compared with a run of torch, and replayed in float64, like any other.
"""

from accel.numerics.onnx_runs.exporting import Exported as Exported
from accel.numerics.onnx_runs.exporting import export_forward as export_forward
from accel.numerics.onnx_runs.packages import why_absent as why_absent
from accel.numerics.onnx_runs.recording import record_onnxruntime as record_onnxruntime
from accel.numerics.onnx_runs.running import OPTIMIZATIONS as OPTIMIZATIONS
from accel.numerics.onnx_runs.running import run_onnxruntime as run_onnxruntime

__all__ = [
    "OPTIMIZATIONS",
    "Exported",
    "export_forward",
    "record_onnxruntime",
    "run_onnxruntime",
    "why_absent",
]
