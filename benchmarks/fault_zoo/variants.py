"""Benign variants: right runs that round otherwise; to accuse one is a false alarm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.fault_zoo import kernels
from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.workload import Precision, Workload

GPT: tuple[ModelName, ...] = ("gpt",)
CNN: tuple[ModelName, ...] = ("cnn",)
FUSED: tuple[ModelName, ...] = ("gpt-sdpa",)
Around = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Variant:
    """A right way to run a step.

    Attributes:
        name: Short and unique.
        summary: What is other than in the plain run.
        models: On which models it is run.
        around: What it runs within.
        prepare: What is done to the workload before.
    """

    name: str
    summary: str
    models: tuple[ModelName, ...]
    around: Around = nullcontext
    prepare: Callable[[Workload], None] = lambda workload: None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_onednn() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def other_machine() -> AbstractContextManager[object]:
    """All right kernels at once, without oneDNN: the other machine of rules that need one."""
    stack = contextlib.ExitStack()
    stack.enter_context(_without_onednn())
    stack.enter_context(kernels.Replacer(kernels.ALL))
    return stack


def _replaced(table: dict[str, kernels.RightKernel]) -> Around:
    return lambda: kernels.Replacer(table)


def _channels_last(workload: Workload) -> None:
    workload.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (images,) = workload.batch.inputs
    inputs = (images.to(memory_format=torch.channels_last),)
    workload.batch = workload.batch._replace(inputs=inputs)
    # torch's fused AdamW walks the memory of weights and moments side by side.
    for parameter, state in workload.optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def _compiled(workload: Workload) -> None:
    compiled = torch.compile(workload.model, backend="aot_eager", dynamic=False)
    workload.call = compiled


def _foreach(workload: Workload) -> None:
    for group in workload.optimizer.param_groups:
        group["fused"], group["foreach"] = False, True


def _one_by_one(workload: Workload) -> None:
    for group in workload.optimizer.param_groups:
        group["fused"], group["foreach"] = False, False


VARIANTS = (
    Variant("again", "the same once more", (*GPT, *FUSED, *CNN)),
    Variant("two threads", "two threads instead of one", (*GPT, *FUSED, *CNN), lambda: _threads(2)),
    Variant("oneDNN off", "torch's own kernels", (*GPT, *FUSED, *CNN), _without_onednn),
    Variant("split-K", "products in four parts of K", GPT, _replaced(kernels.SPLIT_K)),
    Variant("online softmax", "a running maximum", GPT, _replaced(kernels.ONLINE_SOFTMAX)),
    Variant("one-pass norm", "the variance in one pass", GPT, _replaced(kernels.ONE_PASS_NORM)),
    Variant("other sums", "sums in another order", GPT, _replaced(kernels.OTHER_SUMS)),
    Variant("other formulas", "powers of two, erfc", GPT, _replaced(kernels.OTHER_FORMULAS)),
    Variant(
        "composed norm backward",
        "layer norm's gradients in float32",
        GPT,
        _replaced(kernels.OTHER_BACKWARD),
    ),
    Variant("all kernels", "all of these, without oneDNN", (*GPT, *CNN), other_machine),
    Variant("fused attention", "torch's flash kernel for the CPU", FUSED),
    Variant(
        "composed attention",
        "the same call by torch's plain formulas",
        FUSED,
        lambda: sdpa_kernel(SDPBackend.MATH),
    ),
    Variant("channels last", "another memory format", CNN, prepare=_channels_last),
    Variant(
        "aot_eager", "torch.compile's traced graph, run eagerly", (*GPT, *CNN), prepare=_compiled
    ),
    Variant("foreach AdamW", "the optimizer by lists", GPT, prepare=_foreach),
    Variant("plain AdamW", "the optimizer tensor by tensor", GPT, prepare=_one_by_one),
)


def prepared(variant: Variant, model: ModelName, precision: Precision) -> Workload:
    """A workload of this variant; run its step within `variant.around()`."""
    workload = Workload(model, precision)
    variant.prepare(workload)
    return workload
