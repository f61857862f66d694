"""Running an exported program in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from accel.errors import BackendError
from accel.numerics.onnx_runs.exporting import Exported
from accel.numerics.onnx_runs.packages import check_present

Optimization = Literal["disable_all", "basic", "extended", "all"]
OPTIMIZATIONS: tuple[Optimization, ...] = get_args(Optimization)
_LEVELS = {
    "disable_all": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def run_onnxruntime(
    exported: Exported,
    *,
    optimization: Optimization = "disable_all",
    watched: Collection[str] = (),
) -> dict[str, Tensor]:
    """Run an exported program once.

    Args:
        exported: By `export_forward`.
        optimization: How far ONNX Runtime may rewrite the program. Across a value that is watched
            it fuses nothing.
        watched: Values of `exported.program` to return besides its outputs.

    Returns:
        The program's outputs and the watched values, by their names in `exported.program`.

    Raises:
        BackendError: ONNX Runtime is missing, or has no kernel for an operator or dtype.
        ValueError: There is no such optimization.
    """
    check_present()
    if optimization not in _LEVELS:
        raise ValueError(
            f"optimization must be one of {', '.join(OPTIMIZATIONS)}, got {optimization!r}"
        )
    outputs = [value.name for value in exported.model.graph.output]
    asked = {exported.names[name] for name in watched if name in exported.names}
    given = {value.name for value in exported.model.graph.input}
    given |= {value.name for value in exported.model.graph.initializer}
    asked = {name for name in asked if name not in given} | set(outputs)
    arrays = _run(exported, optimization, sorted(asked))
    known = {onnx: name for name, onnx in exported.names.items()}
    return {known[name]: tensor for name, tensor in arrays.items() if name in known}


def initializers(exported: Exported) -> dict[str, Tensor]:
    """Parameters, buffers and constants as the ONNX program holds them, by their names there.

    What has no NumPy dtype (bfloat16) is left out: ONNX Runtime does not run it on the CPU.
    """
    from onnx import numpy_helper

    found = {}
    for initializer in exported.model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.dtype.kind in "biufc":
            found[initializer.name] = torch.from_numpy(array.copy())
    return found


def _run(exported: Exported, optimization: str, asked: list[str]) -> dict[str, Tensor]:
    import onnx
    import onnxruntime

    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    has = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in asked if n not in has)
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = getattr(levels, _LEVELS[optimization])
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = {name: tensor.numpy() for name, tensor in exported.inputs.items()}
        results = session.run(asked, inputs)
    # Its exceptions have no common class but this one; numpy has no bfloat16.
    except Exception as error:
        raise _refused(exported, error) from error
    return {
        name: torch.from_numpy(result.copy()) for name, result in zip(asked, results, strict=True)
    }


def _refused(exported: Exported, error: BaseException) -> BackendError:
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in exported.module.parameters()})
    first = str(error).strip().splitlines()[0]
    return BackendError(
        f"ONNX Runtime cannot run {type(exported.module).__name__} with parameters in "
        f"{', '.join(dtypes) or 'no dtype'} on the CPU ({first}); it has kernels for float32"
    )
