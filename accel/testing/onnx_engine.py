"""ONNX Runtime as an engine of the conformance suite: a second implementation of every forward.

It shares no kernel with torch, so that where the two agree with float64 the exported program and
both engines are right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.numerics.onnx_runs import packages, running
from accel.numerics.onnx_runs.recording import Watch, record_onnxruntime


@dataclass(frozen=True)
class OnnxEngine:
    """ONNX Runtime with one setting.

    Attributes:
        name: `onnxruntime/all`, …
        optimization: How far it may rewrite the program.
        watch: Which values are recorded.
        dtypes: What it computes in; others are not checked.
    """

    name: str
    optimization: running.Optimization
    watch: Watch
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)

    @property
    def absent(self) -> str | None:
        """Why it cannot run here, with the command that mends it; None if it can."""
        return packages.why_absent()

    def record(self, model: nn.Module, args: Sequence[Any], path: str | os.PathLike[str]) -> None:
        """Run a model's forward and record it at level `full`.

        Args:
            model: On the CPU, in one of `dtypes`.
            args: Of its forward.
            path: The recording to write.

        Raises:
            BackendError: A package is missing, or an operator has no counterpart.
            ValueError: As `record_onnxruntime`.
        """
        record_onnxruntime(
            model, args, path, optimization=self.optimization, watch=self.watch, level="full"
        )


def engines() -> list[OnnxEngine]:
    """The settings that the suite runs: nothing rewritten, and everything that may be.

    Each is there whether or not ONNX Runtime is; `absent` tells.
    """
    return [
        OnnxEngine("onnxruntime/disable_all", "disable_all", "operators"),
        OnnxEngine("onnxruntime/all", "all", "operators"),
    ]
