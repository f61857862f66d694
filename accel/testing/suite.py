"""The conformance suite: how far every engine on this machine is from float64.

An engine is a device together with what computes on it: a kernel of an operation, an optimizer's
implementation, or a whole model by the automatic choice. Each result is measured against float64 on
the CPU and held to the budget that an independent implementation in the same dtype allows: plain
formulas on the CPU, and for the model a CPU run without oneDNN and with the reference attention.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.devices import (
    CpuDevice,
    Device,
    available_devices,
    numerics_mode,
    use_device,
    use_numerics_mode,
)
from accel.dispatch import backends, explain, use_backend
from accel.numerics import Comparison, compare, record
from accel.precision import Precision
from accel.testing.cases import (
    ATTENTION_CASES,
    AttentionCase,
    Transformer,
    attention_formula,
    transformer_inputs,
)
from accel_kernels import budgets
from accel_kernels.budgets import Budget, Deviation
from accel_kernels.spec import KernelSpec

_ADAMW = ("foreach", "fused")
_NAMES = ("out", "grad query", "grad key", "grad value")


@dataclass(frozen=True)
class Check:
    """One computation on one engine.

    Attributes:
        name: What was computed.
        engine: What computed it: `cpu/sdpa`, `cuda:0/fused`, …
        dtype: What it computed in.
        tensor: The result that uses most of its budget; the errors below are its own.
        error: Relative rms error against float64.
        reference_error: That of the independent implementation.
        budget: The largest error allowed.
        reason: Why it failed; None if it passed.
    """

    name: str
    engine: str
    dtype: str
    tensor: str
    error: float
    reference_error: float
    budget: float
    reason: str | None

    @property
    def share(self) -> float:
        """The part of the budget that the error uses up; infinite if nothing was computed."""
        return self.error / self.budget if math.isfinite(self.error) else math.inf


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
        dtypes = _dtypes(device)
        total += 2 * len(dtypes) + len(_ADAMW)
        for dtype in dtypes:
            total += sum(len(_able(case, device, dtype)) for case in ATTENTION_CASES)
    return total


def _checks(devices: Sequence[Device], dtypes: Sequence[torch.dtype] | None) -> Iterator[Check]:
    for device in devices:
        for dtype in _dtypes(device) if dtypes is None else dtypes:
            for case in ATTENTION_CASES:
                yield from _attention(case, device, dtype)
            yield from _transformer(device, dtype)
        yield from _adamw(device)


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
    *inputs, grad = case.inputs(dtype)

    def formula(*tensors: Tensor) -> Tensor:
        return attention_formula(*tensors, is_causal=case.is_causal)

    truth = _with_gradients(formula, [t.double() for t in inputs], grad.double())
    independent = _with_gradients(formula, inputs, grad)
    there = [tensor.to(device.torch_device) for tensor in (*inputs, grad)]
    options = {"is_causal": case.is_causal, "segment_size": case.segment_size}
    for spec in _able(case, device, dtype):
        engine = f"{device}/{spec.name}"
        try:
            kernel = spec.load()
            actual = _with_gradients(
                lambda *t, kernel=kernel: kernel(*t, **options)[0], there[:3], there[3]
            )
        # A vendor's kernel may fail in any way; the other checks go on.
        except Exception as error:
            yield _raised(case.name, engine, dtype, error)
            continue
        yield _judge(case.name, engine, dtype, (_NAMES, actual, independent, truth), spec.tolerance)


def _with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _judge(
    name: str,
    engine: str,
    dtype: torch.dtype,
    results: tuple[Sequence[str], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    tolerance: float = budgets.FACTOR,
) -> Check:
    names, actual, independent, truth = results
    references = [budgets.deviation(i, t) for i, t in zip(independent, truth, strict=True)]
    floor = budgets.typical(references)
    measured = [
        (
            tensor,
            budgets.deviation(a, t),
            reference,
            budgets.budget(reference, dtype, floor=floor, factor=tolerance),
        )
        for tensor, a, t, reference in zip(names, actual, truth, references, strict=True)
    ]
    return _worst(name, engine, dtype, measured)


def _raised(name: str, engine: str, dtype: torch.dtype, error: Exception) -> Check:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    text = str(dtype).removeprefix("torch.")
    infinite = float("inf")
    return Check(name, engine, text, "-", infinite, infinite, infinite, f"raised {line}")


def _worst(
    name: str,
    engine: str,
    dtype: torch.dtype,
    measured: Sequence[tuple[str, Deviation, Deviation, Budget]],
) -> Check:
    """The check of the tensor that exceeds its budget, or else uses most of it.

    Last come those that are zero but for rounding (a key's bias: a softmax does not see it), whose
    relative errors are larger than 1 and say little.
    """

    def rank(item: tuple[str, Deviation, Deviation, Budget]) -> tuple[bool, bool, float]:
        _, error, _, allowed = item
        exceeded = allowed.exceeded_by(error) is not None
        return exceeded, allowed.rms < 1.0, error.rms / allowed.rms

    tensor, error, reference, allowed = max(measured, key=rank)
    return Check(
        name=name,
        engine=engine,
        dtype=str(dtype).removeprefix("torch."),
        tensor=tensor,
        error=error.rms,
        reference_error=reference.rms,
        budget=allowed.rms,
        reason=allowed.exceeded_by(error),
    )


def _transformer(device: Device, dtype: torch.dtype) -> Iterator[Check]:
    """Forward and backward of a small Transformer, each module against float64."""
    engine = f"{device}/automatic"
    names = ("transformer forward", "transformer gradients")
    try:
        comparison = _compared(device, dtype)
    except Exception as error:
        yield from (_raised(name, engine, dtype, error) for name in names)
        return
    for name in names:
        forward = name == names[0]
        entries = [e for e in comparison.entries if (e.measured.key.phase == "forward") == forward]
        measured = [
            (str(e.measured.key), e.measured.error_candidate, e.measured.error_reference, e.allowed)
            for e in entries
            if e.measured.error_candidate and e.measured.error_reference and e.allowed
        ]
        check = _worst(name, engine, dtype, measured)
        reasons = [e.reason for e in entries if e.status in ("out", "unchecked")]
        if comparison.missing or comparison.extra:
            reasons.append("two runs of one model recorded different tensors")
        yield dataclasses.replace(check, reason=reasons[0] if reasons else None)


def _compared(device: Device, dtype: torch.dtype) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = Path(folder, "reference"), Path(folder, "candidate")
        with _independent():
            _record(reference, CpuDevice(), dtype)
        _record(candidate, device, dtype)
        return compare(reference, candidate)


@contextlib.contextmanager
def _independent() -> Iterator[None]:
    """Another implementation of everything on the CPU: no oneDNN, no fused attention."""
    mode = dataclasses.replace(numerics_mode(), mkldnn_enabled=False)
    with use_numerics_mode(mode), use_backend(segmented_attention="reference"):
        yield


def _record(path: Path, device: Device, dtype: torch.dtype) -> Transformer:
    model, text = transformer_inputs()
    model.to(device.torch_device)
    precision = Precision(model, f"compute={str(dtype).removeprefix('torch.')}")
    with use_device(device), record(model, path):
        with precision.autocast():
            loss = model.loss(device.move(text))
        precision.backward(loss)
    return model


def _adamw(device: Device) -> Iterator[Check]:
    """One AdamW step on the Transformer's parameters, by each implementation the device has."""
    model, text = transformer_inputs()
    with _independent():
        model.loss(text).backward()
    parameters = [p.detach() for p in model.parameters()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    names = [name for name, _ in model.named_parameters()]
    truth = _updates(parameters, gradients, torch.float64, CpuDevice(), foreach=False)
    independent = _updates(parameters, gradients, torch.float32, CpuDevice(), foreach=False)
    for name in _ADAMW:
        engine = f"{device}/{name}"
        try:
            actual = _updates(parameters, gradients, torch.float32, device, **{name: True})
        except Exception as error:
            yield _raised("AdamW step", engine, torch.float32, error)
            continue
        yield _judge("AdamW step", engine, torch.float32, (names, actual, independent, truth))


def _updates(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    dtype: torch.dtype,
    device: Device,
    **options: Any,
) -> list[Tensor]:
    """What one step changes, in float64 on the CPU: the parameters themselves would hide it."""
    copies = [p.to(device.torch_device, dtype, copy=True).requires_grad_() for p in parameters]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient.to(device.torch_device, dtype)
    torch.optim.AdamW(copies, lr=0.01, weight_decay=0.1, **options).step()
    return [
        copy.detach().to("cpu", torch.float64) - before.double()
        for copy, before in zip(copies, parameters, strict=True)
    ]
