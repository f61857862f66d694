"""Recording a run of ONNX Runtime, operator by operator, as if torch had run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accel.numerics.onnx_runs.exporting import Exported, export_forward
from accel.numerics.onnx_runs.lines import Lines
from accel.numerics.onnx_runs.packages import PACKAGES
from accel.numerics.onnx_runs.running import Optimization, run_onnxruntime
from accel.numerics.storage.entries import Skipped
from accel.numerics.storage.manifest import Manifest
from accel.numerics.storage.surroundings import manifest_for, versions
from accel.numerics.storage.writer import Writer

Watch = Literal["operators", "modules"]


def record_onnxruntime(
    model: nn.Module | Exported,
    args: Sequence[Any] = (),
    path: str | os.PathLike[str] = "run-onnxruntime",
    *,
    kwargs: Mapping[str, Any] | None = None,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
    optimization: Optimization = "disable_all",
    watch: Watch = "operators",
    level: Literal["sketch", "full"] = "full",
) -> None:
    """Export a model's forward, run it in ONNX Runtime on the CPU, and record the run.

    The recording has the names that a recording of torch has (`accel.numerics.record`), so that
    `accel.numerics.compare` aligns the two, and `accel.numerics.replay` judges each operator of
    ONNX Runtime against float64.

    Args:
        model: What to run: a module on the CPU, or what `export_forward` made of one.
        args: Of the module's forward; empty for what is exported already.
        path: The directory to write.
        kwargs: Keyword arguments of its forward.
        translations: As `export_forward`; None for what is exported already.
        optimization: How far ONNX Runtime may rewrite the program.
        watch: Which values are looked at: every operator's results, or only what goes into and out
            of modules, so that ONNX Runtime may fuse what is between.
        level: `full` keeps all elements, `sketch` only sketches.

    Raises:
        BackendError: A package is missing; the exporter or ONNX Runtime has no counterpart of an
            operator or dtype.
        ValueError: The forward draws random numbers, a tensor is not on the CPU, an argument is
            out of its range, or `path` is in use.
    """
    if watch not in ("operators", "modules"):
        raise ValueError(f"watch must be 'operators' or 'modules', got {watch!r}")
    if level not in ("sketch", "full"):
        raise ValueError(f"level must be 'sketch' or 'full', got {level!r}")
    if isinstance(model, Exported) and translations is not None:
        raise ValueError("translations are for a module: what is exported has been translated")
    exported = (
        model
        if isinstance(model, Exported)
        else export_forward(model, args, kwargs, translations=translations)
    )
    watched = _watched(exported, watch)
    values = run_onnxruntime(exported, optimization=optimization, watched=watched)
    manifest = _manifest(exported, optimization, watch, level)
    writer = Writer(path, manifest)
    try:
        step = writer.start_step(0)
        lines = Lines(exported, values, step, is_full=level == "full")
        step.add(*lines.all(), *_disturbed(exported, optimization, watch, values))
        step.end(lines.end())
    except BaseException as error:
        writer.finish(manifest.finished(error))
        raise
    writer.finish(manifest.finished(None))


def _watched(exported: Exported, watch: Watch) -> list[str]:
    if watch == "operators":
        return [node.name for node in exported.program.graph.nodes if node.op == "call_function"]
    found: dict[str, None] = {}
    for places in exported.places.values():
        found.update(dict.fromkeys((*places.inputs.values(), *places.outputs.values())))
    return list(found)


def _manifest(exported: Exported, optimization: Optimization, watch: Watch, level: str) -> Manifest:
    manifest = manifest_for(exported.module, level=level, steps="0")
    switches = {"optimization": optimization, "watch": watch, "threads": torch.get_num_threads()}
    return replace(
        manifest,
        framework="onnxruntime",
        versions=versions("torch", *PACKAGES),
        numerics_mode=switches,
    )


def _disturbed(
    exported: Exported, optimization: Optimization, watch: Watch, values: dict[str, Tensor]
) -> list[Skipped]:
    """Whether the outputs would have other bits if no value in between were looked at."""
    plain = run_onnxruntime(exported, optimization=optimization)
    changed = [name for name, tensor in plain.items() if not _same_bits(tensor, values[name])]
    if not changed:
        return []
    hint = "; watch='modules' lets it fuse more" if watch == "operators" else ""
    return [
        Skipped(
            what=f"the program as ONNX Runtime fuses it at optimization {optimization!r}",
            reason=f"with {watch} watched, {len(changed)} of its {len(plain)} outputs have other "
            f"bits{hint}",
        )
    ]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
