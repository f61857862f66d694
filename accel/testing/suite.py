"""The conformance suite: is every engine on this machine as close to float64 as it should be?

An engine is a device together with what computes on it: a kernel of an operation, torch's own
operators, an optimizer's implementation, a whole model by the automatic choice. Each result is
judged as `accel.numerics.replay` judges an operator: by what rounding its inputs and results must
cost. No tolerance is chosen anywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from accel.attention import segmented_attention
from accel.devices import CpuDevice, Device, available_devices, use_device
from accel.dispatch import backends, explain, use_backend
from accel.numerics import replay
from accel.precision import Precision
from accel.testing import onnx_engine
from accel.testing.cases import (
    ATTENTION_CASES,
    AttentionCase,
    attention_formula,
    transformer_inputs,
)
from accel.testing.checks import Check, of_many, of_stability, raised
from accel.testing.operators import check_operator, operator_cases
from accel.testing.stability import measure_stability
from accel_kernels.spec import KernelSpec

_ADAMW = ("foreach", "fused")
_SHORT = 15  # tokens; the exporter takes seconds where attention has several segments
_MODEL = ("transformer forward", "transformer gradients")


def conformance(
    devices: Sequence[Device] | None = None,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Run the suite.

    Args:
        devices: Which to run on; all that are here if None.
        dtypes: What to compute in; float32 and each device's autocast dtype if None.
        on_check: Called with each check as it is done, for a progress bar.

    Returns:
        One `Check` per computation, engine and dtype. A computation that raises is a failed check.

    Raises:
        ValueError: `ACCEL_BACKEND` is set, which would take the choice of engines from the suite.
    """
    if os.environ.get("ACCEL_BACKEND"):
        raise ValueError("the suite chooses every engine itself: unset ACCEL_BACKEND")
    checks = []
    for check in _checks(available_devices() if devices is None else devices, dtypes):
        checks.append(check)
        if on_check is not None:
            on_check(check)
    return checks


def expected_checks(devices: Sequence[Device]) -> int:
    """How many checks the suite will make on these devices, for a progress bar."""
    total = 0
    for device in devices:
        for dtype in _dtypes(device):
            total += sum(len(_able(case, device, dtype)) for case in ATTENTION_CASES)
            total += len(list(operator_cases(dtype))) + len(_MODEL)
            total += len(_other_engines(device, dtype))
        total += len(_ADAMW)
    return total


def absent_engines() -> dict[str, str]:
    """Engines that cannot run here, and what would bring them."""
    found = {engine.name: engine.absent for engine in onnx_engine.engines()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _checks(devices: Sequence[Device], dtypes: Sequence[torch.dtype] | None) -> Iterator[Check]:
    for device in devices:
        for dtype in _dtypes(device) if dtypes is None else dtypes:
            for case in ATTENTION_CASES:
                yield from _attention(case, device, dtype)
            for operator in operator_cases(dtype):
                yield check_operator(operator, device, dtype)
            yield from _transformer(device, dtype)
            for engine in _other_engines(device, dtype):
                yield _exported(engine, dtype)
        for name in _ADAMW:
            yield _adamw(name, device)


def _dtypes(device: Device) -> list[torch.dtype]:
    return list(dict.fromkeys((torch.float32, device.autocast_dtype)))


def _able(case: AttentionCase, device: Device, dtype: torch.dtype) -> list[KernelSpec]:
    """The kernels that can serve a case on a device."""
    inputs = [tensor.to(device.torch_device).requires_grad_() for tensor in case.inputs(dtype)[:3]]
    options = {"is_causal": case.is_causal, "segment_size": case.segment_size}
    return [
        spec
        for spec in backends("segmented_attention")
        if explain("segmented_attention", *inputs, backend=spec.name, **options).chosen
    ]


def _attention(case: AttentionCase, device: Device, dtype: torch.dtype) -> Iterator[Check]:
    """Outputs and gradients of every kernel, against the plain formula in float64."""
    there = [tensor.to(device.torch_device) for tensor in case.inputs(dtype)[:3]]
    options = {"is_causal": case.is_causal, "segment_size": case.segment_size}

    def formula(*tensors: Tensor, is_causal: bool, segment_size: int | None) -> Tensor:
        return attention_formula(*tensors, is_causal=is_causal)

    for spec in _able(case, device, dtype):
        engine = f"{device}/{spec.name}"
        try:
            found = measure_stability(
                partial(segmented_attention, backend=spec.name), there, options, reference=formula
            )
        # A vendor's kernel may fail in any way; the other checks go on.
        except Exception as error:
            yield raised(case.name, engine, dtype, error)
            continue
        yield of_stability(case.name, engine, dtype, found)


def _transformer(device: Device, dtype: torch.dtype) -> Iterator[Check]:
    """Logits, loss and gradients of a small Transformer by the automatic choice."""
    engine = f"{device}/automatic"
    model, text = transformer_inputs()
    precision = Precision(model, f"compute={str(dtype).removeprefix('torch.')}")
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(parameters: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        logits = torch.func.functional_call(model, dict(parameters), (text[:, :-1],))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        return {"logits": logits, "loss": loss}

    def automatic(parameters: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        with use_device(device), precision.autocast():
            return run(parameters, text)

    def formula(parameters: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        with use_backend(segmented_attention="reference"):
            return run(parameters, text)

    given = {name: p.to(device.torch_device) for name, p in parameters.items()}
    try:
        model.to(device.torch_device)
        found = measure_stability(
            automatic, (given, text.to(device.torch_device)), {}, reference=formula, compute=dtype
        )
    except Exception as error:
        yield from (raised(name, engine, dtype, error) for name in _MODEL)
        return
    for name in _MODEL:
        part = [one for one in found if ("gradient" in one.name) == ("gradient" in name)]
        yield of_stability(name, engine, dtype, part)


def _adamw(name: str, device: Device) -> Check:
    """Two AdamW steps by one implementation: parameters and what they changed by."""
    engine, dtype = f"{device}/{name}", torch.float32
    model, _ = transformer_inputs()
    generator = torch.Generator().manual_seed(1)
    parameters = [p.detach() for p in model.parameters()]
    gradients = [1e-3 * torch.randn(p.shape, generator=generator) for p in parameters]

    def step(parameters: list[Tensor], gradients: list[Tensor], **options: Any) -> list[Any]:
        copies = [p.clone() for p in parameters]
        optimizer = torch.optim.AdamW(copies, lr=0.01, weight_decay=0.1, **options)
        for copy, gradient in zip(copies, gradients, strict=True):
            copy.grad = gradient.clone()
        for _ in range(2):
            optimizer.step()
        states = [optimizer.state[copy] for copy in copies]
        return [copies, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]]

    there = [[t.to(device.torch_device) for t in tensors] for tensors in (parameters, gradients)]
    try:
        found = measure_stability(
            lambda p, g: step(p, g, **{name: True}), there, {},
            reference=lambda p, g: step(p, g, foreach=False), gradients=False,
        )  # fmt: skip
    except Exception as error:
        return raised("AdamW steps", engine, dtype, error)
    return of_stability("AdamW steps", engine, dtype, found)


def _other_engines(device: Device, dtype: torch.dtype) -> list[onnx_engine.OnnxEngine]:
    """Engines beside torch that run here; they compute on the CPU."""
    if not isinstance(device, CpuDevice):
        return []
    return [e for e in onnx_engine.engines() if dtype in e.dtypes and e.absent is None]


def _exported(engine: onnx_engine.OnnxEngine, dtype: torch.dtype) -> Check:
    """Every operator of an exported forward, judged by its replay."""
    name = "operators of the exported transformer"
    # Of operators that both engines have: exported, our attention is a loop of its own.
    model, text = transformer_inputs(layers=1, attention=attention_formula)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "run")
            engine.record(model.eval().to(dtype), (text[:, :_SHORT],), path)
            found = [one.judged for one in replay(path).operators]
    except Exception as error:
        return raised(name, engine.name, dtype, error)
    return of_many(name, engine.name, dtype, found)
