"""What a call of attention will touch, compute and need, told before it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from accel import dispatch
from accel.attention.plan_text import described, refusal
from accel.devices.base import Device
from accel.devices.choice import current_device, find_device
from accel.devices.registry import _registry
from accel.errors import BackendError, DeviceError
from accel_kernels.masks import Mask, visibility, visible_pairs
from accel_kernels.segmented_attention.arguments import (
    NAME,
    bias_of,
    mask_of,
    request,
    under_autocast,
)
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, sizes_of
from accel_kernels.segmented_attention.state import accumulation_dtype
from accel_kernels.segmented_attention.workspace import (
    MEASURED,
    Asked,
    Tiles,
    Workspace,
    touched,
    workspace,
)
from accel_kernels.spec import Operation, Request

Shape: TypeAlias = "Tensor | Sequence[int]"
# What a budget makes it try where the kernel's own choice does not fit.
_SEGMENTS = (2048, 1024, 512, 256, 128)


@dataclass(frozen=True)
class AttentionPlan:
    """What one call of `accel.segmented_attention` will do. Printable.

    All bytes of results and workspace are over the inputs; the gradient that is handed to the
    backward, as large as the output, belongs to the caller and counts nowhere.

    Attributes:
        device: torch device type.
        dtype: In which it is computed; autocast's, if that is on.
        shapes: Of query, key and value.
        mask: None: every query sees every key.
        needs_grad: Whether a backward is part of it.
        backend: The kernel that dispatch chooses there.
        how: By what it is chosen: `argument`, `use_backend`, `ACCEL_BACKEND` or `automatic`.
        segment_size: To be passed on to the call; None: the kernel's own choice.
        tiles: What the forward touches; None where the kernel's tiles are a library's own affair.
        backward_tiles: What the backward touches; None as `tiles`, and without a backward.
        seen_scores: Scores that the mask lets see, over batch and heads.
        full_scores: `B * H * T * S`.
        forward_flops: Of the scores seen, two for a multiplication and its addition.
        backward_flops: The same; 0 without a backward.
        full_flops: Of both directions without a mask.
        input_bytes: Query, key, value.
        result_bytes: Output, log-sum-exp, and with a backward the gradients.
        workspace_bytes: What the kernel needs besides, at its peak; None for a kernel of another
            package, which does not tell.
        score_matrix_bytes: What the plain formula would keep: scores and probabilities in the
            dtype, and in the backward the gradients of both.
        measured: Whether the prediction was held against measured peaks on this type of device.
        memory_budget: That inputs, results and workspace had to fit into; None: none.
    """

    device: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    mask: Mask | None
    needs_grad: bool
    backend: str
    how: str
    segment_size: int | None
    tiles: Tiles | None
    backward_tiles: Tiles | None
    seen_scores: int
    full_scores: int
    forward_flops: int
    backward_flops: int
    full_flops: int
    input_bytes: int
    result_bytes: int
    workspace_bytes: int | None
    score_matrix_bytes: int
    measured: bool
    memory_budget: int | None

    @property
    def skipped(self) -> float:
        """Share of the full matrix that no mask lets see, whose FLOPs are not needed; 0 to 1."""
        return 1.0 - self.seen_scores / self.full_scores if self.full_scores else 0.0

    @property
    def peak_bytes(self) -> int | None:
        """What `device.memory().peak` shows more than before the call; None if unknown."""
        return None if self.workspace_bytes is None else self.result_bytes + self.workspace_bytes

    def __str__(self) -> str:
        return described(self)


def attention_plan(
    query: Shape,
    key: Shape | None = None,
    value: Shape | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | Device | None = None,
    mask: Mask | Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    bias: Bias | Tensor | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
    needs_grad: bool = True,
    memory_budget: int | Literal["auto"] | None = None,
    backend: str | None = None,
) -> AttentionPlan:
    """Say what a call of `accel.segmented_attention` will touch, compute and need; run nothing.

    With a memory budget it chooses the largest segments that fit, the fastest, and refuses a call
    that cannot fit. Predictions are upper bounds by the kernels' own terms; on CPUs they are held
    against measured peaks.

    Args:
        query: `[B, H, T, D]`, a tensor or its shape. Nothing of a shape's size is allocated.
        key: `[B, H_kv, S, D]`; None: as the query.
        value: `[B, H_kv, S, D_v]`; None: as the key.
        dtype: Of shapes; tensors have their own.
        device: Where it will run: a name, a torch device or an accel device, which need not be
            here: then every module that a kernel needs is taken to be installed there. None: the
            tensors' device, or for shapes the current one.
        mask: As in the call; `is_causal`, `scale`, `dropout_p`, `softcap`, `bias`, `segment_size`,
            `return_lse` and `backend` too.
        is_causal: See `mask`.
        scale: See `mask`.
        dropout_p: See `mask`.
        softcap: See `mask`.
        bias: See `mask`.
        segment_size: See `mask`. Given, a budget changes nothing of it.
        return_lse: See `mask`.
        needs_grad: Whether a backward follows.
        memory_budget: Bytes for inputs, results and workspace together, or `auto`: what is free on
            the device. None: no limit.
        backend: See `mask`.

    Raises:
        TypeError: As the call; or shapes or the budget are of another type.
        ValueError: As the call.
        accel.BackendError: The named backend, or every backend, cannot serve the call there.
        accel.DeviceError: No segment size fits the budget; or the device is unknown, or not here
            and its free memory is asked for.
    """
    given = [query, query if key is None else key]
    given.append(given[1] if value is None else value)
    where = _Where(device, given)
    stand_ins = _stand_ins(given, dtype, where, mask, bias, needs_grad)
    arguments = {
        "mask": mask, "is_causal": is_causal, "scale": scale, "dropout_p": dropout_p,
        "softcap": softcap, "bias": bias, "return_lse": return_lse,
    }  # fmt: skip
    budget = _budget(memory_budget, where, given)
    options = {**arguments, "segment_size": segment_size}
    first, asked = _plan(stand_ins, options, where, needs_grad, budget, backend)
    if budget is None or _fits(first):
        return _with_tiles(first, asked)
    plans = [first]
    for size in _smaller(first, segment_size):
        options = {**arguments, "segment_size": size}
        plan, asked = _plan(stand_ins, options, where, needs_grad, budget, backend)
        if _fits(plan):
            return _with_tiles(plan, asked)
        plans.append(plan)
    if first.peak_bytes is None:
        raise BackendError(
            f"what {first.backend} needs is not known, so no memory budget can be kept with it; "
            "name one of accel's own kernels with backend=, or leave memory_budget out"
        )
    raise DeviceError(refusal(min(plans, key=lambda plan: plan.peak_bytes or math.inf)))


def _smaller(plan: AttentionPlan, segment_size: int | None) -> Iterator[int]:
    """Segment sizes to try, if the kernel that was chosen takes one."""
    spec = next(spec for spec in dispatch.backends(NAME) if spec.name == plan.backend)
    if segment_size is None and "segment_size" in spec.features:
        longest = max(plan.shapes[0][2], plan.shapes[1][2])
        yield from (size for size in _SEGMENTS if size < longest)


def _fits(plan: AttentionPlan) -> bool:
    peak, budget = plan.peak_bytes, plan.memory_budget
    return peak is not None and budget is not None and plan.input_bytes + peak <= budget


class _Where:
    """Where the call will run: the type of device, and the device if it is here."""

    def __init__(self, device: str | torch.device | Device | None, given: list[Shape]) -> None:
        self.here: Device | None = None
        tensor = next((item for item in given if isinstance(item, Tensor)), None)
        if device is None and tensor is not None and tensor.device.type != "meta":
            device = tensor.device
        if device is None:
            self.here = current_device()
        else:
            self.here = self._found(device)
        if self.here is not None:
            self.type = self.here.torch_type

    def _found(self, device: str | torch.device | Device) -> Device | None:
        try:
            return find_device(device)
        except DeviceError:
            if isinstance(device, Device):
                self.type = device.torch_type
                return None
            name = str(device).partition(":")[0]
            families = {**_registry.families}
            self.type = families[name].torch_type if name in families else name
            if self.type not in {family.torch_type for family in families.values()}:
                raise
            return None


def _budget(budget: int | Literal["auto"] | None, where: _Where, given: list[Shape]) -> int | None:
    if budget is None:
        return None
    if budget != "auto":
        if not isinstance(budget, int) or isinstance(budget, bool):
            raise TypeError(f"memory_budget must be a number of bytes or 'auto', not {budget!r}")
        if budget < 0:
            raise ValueError(f"memory_budget must be at least 0 bytes, not {budget}")
        return budget
    if where.here is None:
        raise DeviceError(
            f"the free memory of a {where.type} device that is not here is not known; pass "
            "memory_budget in bytes"
        )
    # Inputs that are there already are not free, but are no reason against the call.
    there = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in given
        if isinstance(item, Tensor) and item.device.type == where.type
    }
    return where.here.memory().free + sum(there.values())


def _stand_ins(
    given: list[Shape], dtype: torch.dtype, where: _Where, mask: Any, bias: Any, needs_grad: bool
) -> list[Tensor]:
    """Tensors of one row each that say all of the call's, on the device of its mask and bias."""
    there = next(
        (item.device for item in (mask, getattr(mask, "allowed", None), bias,
                                  getattr(bias, "tensor", None)) if isinstance(item, Tensor)),
        torch.device("cpu"),
    )  # fmt: skip
    cast = under_autocast(where.type)
    found = []
    for name, item in zip(("query", "key", "value"), given, strict=True):
        kind, step = dtype, 1
        if isinstance(item, Tensor):
            kind, step = item.dtype, item.stride(-1) if item.dim() else 1
        shape = _shape(name, item)
        if cast and kind != torch.float64:
            kind = torch.get_autocast_dtype(where.type)
        # Of a row that is not contiguous, another one: kernels that mind copy it.
        row = torch.empty(2 * shape[-1], dtype=kind, device=there)
        row = row[: shape[-1]] if step == 1 else row[::2]
        found.append(row.requires_grad_(needs_grad and kind.is_floating_point).expand(shape))
    return found


def _shape(name: str, given: Shape) -> tuple[int, ...]:
    if isinstance(given, Tensor):
        return tuple(given.shape)
    numbers = tuple(given)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise TypeError(f"{name} must be a tensor or a shape (B, H, T, D), not {given!r}")
    if len(numbers) != 4 or min(numbers) < 0:
        raise ValueError(f"{name} must be a shape (B, H, T, D) of four sizes, not {numbers}")
    return numbers


def _plan(
    stand_ins: list[Tensor],
    options: dict[str, Any],
    where: _Where,
    needs_grad: bool,
    budget: int | None,
    backend: str | None,
) -> tuple[AttentionPlan, Asked]:
    """A plan but for its tiles, which are only counted once it is the one."""
    query, key, value = stand_ins
    # Autocast was applied to their dtypes; here it would make tensors of the whole size.
    with torch.set_grad_enabled(needs_grad), torch.autocast(query.device.type, enabled=False):
        asked = request(query, key, value, **options)._replace(device=where.type)
    name, how = _chosen(asked, backend, where)
    call = _call(options, query)
    sizes = sizes_of(query, key)
    seen = visibility(call.mask, sizes, query.device)
    demand = Asked(
        sizes, key.shape[1], query.shape[3], value.shape[3], query.dtype, call, seen, needs_grad
    )
    pairs, shapes = visible_pairs(seen, sizes), (query.shape, key.shape, value.shape)
    product = query.shape[3] + value.shape[3]
    both = product + (3 * query.shape[3] + 2 * value.shape[3] if needs_grad else 0)
    plan = AttentionPlan(
        device=where.type,
        dtype=query.dtype,
        shapes=(tuple(shapes[0]), tuple(shapes[1]), tuple(shapes[2])),
        mask=call.mask,
        needs_grad=needs_grad,
        backend=name,
        how=how,
        segment_size=call.segment_size,
        tiles=None,
        backward_tiles=None,
        seen_scores=pairs,
        full_scores=math.prod(sizes),
        forward_flops=2 * pairs * product,
        backward_flops=2 * pairs * (both - product),
        full_flops=2 * math.prod(sizes) * both,
        input_bytes=query.dtype.itemsize * sum(t.numel() for t in stand_ins),
        result_bytes=_result_bytes(demand),
        workspace_bytes=_over_results(demand, workspace(name, demand)),
        score_matrix_bytes=math.prod(sizes) * query.dtype.itemsize * (4 if needs_grad else 2),
        measured=(name, where.type) in MEASURED,
        memory_budget=budget,
    )
    return plan, demand


def _with_tiles(plan: AttentionPlan, asked: Asked) -> AttentionPlan:
    found = touched(plan.backend, asked)
    if found is None:
        return plan
    backward = found[1] if asked.needs_grad else None
    return dataclasses.replace(plan, tiles=found[0], backward_tiles=backward)


def _call(options: dict[str, Any], query: Tensor) -> Call:
    dropout = Dropout(options["dropout_p"], 0) if options["dropout_p"] > 0.0 else None
    scale = options["scale"]
    return Call(
        mask_of(options["mask"], options["is_causal"]),
        1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        options["softcap"],
        bias_of(options["bias"]),
        dropout,
        options["segment_size"],
        options["return_lse"],
    )


def _chosen(asked: Request, backend: str | None, where: _Where) -> tuple[str, str]:
    """The kernel that dispatch chooses, and how; elsewhere as if all modules were installed."""
    specs = tuple(dispatch.backends(NAME))
    if where.here is None:
        specs = tuple(dataclasses.replace(spec, requires=(), absent=None) for spec in specs)
    found = dispatch.explain_request(Operation(NAME, request, specs), asked, backend)
    if found.chosen is None:
        raise BackendError(f"no kernel can serve this call.\n{found}")
    return found.chosen, found.how


def _forward_results(asked: Asked) -> int:
    """Output and log-sum-exp."""
    wide = accumulation_dtype(asked.dtype).itemsize
    return asked.rows * (asked.value_size * asked.element + wide)


def _result_bytes(asked: Asked) -> int:
    found = _forward_results(asked)
    if asked.needs_grad:
        found += asked.gradients * asked.element
        bias = asked.call.bias
        if bias is not None and bias.tensor.requires_grad:
            found += bias.tensor.numel() * bias.tensor.element_size()
    return found


def _over_results(asked: Asked, needed: Workspace | None) -> int | None:
    """The workspace at the peak of both directions, beyond all results."""
    if needed is None:
        return None
    results = _result_bytes(asked)
    peak = max(_forward_results(asked) + needed.forward, results + needed.backward)
    return peak - results
