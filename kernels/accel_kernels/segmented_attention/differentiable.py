"""From a kernel's two plain functions to one that torch can differentiate, map, trace and export.

A kernel says how to compute a forward and a backward. Autograd, second derivatives, `torch.func`,
and the operator for traced code are the same for all of them and written here once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from accel_kernels.masks import visibility
from accel_kernels.segmented_attention.arguments import under_autocast
from accel_kernels.segmented_attention.call import Call, sizes_of
from accel_kernels.segmented_attention.formula import whole_attention


class Gradients(NamedTuple):
    """Of a call's tensors, each in its shape and dtype; `bias` is None if the call has none."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None


Forward = Callable[[Tensor, Tensor, Tensor, Call], "tuple[Tensor, Tensor]"]
Backward = Callable[
    [Tensor, "Tensor | None", Tensor, Tensor, Tensor, Tensor, Tensor, Call], Gradients
]

_implementations: dict[str, Implementation] = {}


@dataclass(frozen=True)
class Implementation:
    """A kernel as two functions that know nothing of autograd.

    Attributes:
        name: The kernel's, as in its spec.
        forward: `(query, key, value, call)` to `out` `[B, H, T, D_v]` in the query's dtype and
            `lse` `[B, H, T]` in float32 (float64 for float64).
        backward: `(grad_out, grad_lse, query, key, value, out, lse, call)` to `Gradients`;
            `grad_lse` is None where nobody used the log-sum-exp.
    """

    name: str
    forward: Forward
    backward: Backward

    def __post_init__(self) -> None:
        _implementations[self.name] = self


def implementation(name: str) -> Implementation:
    """A kernel by name, imported if it is one of this package's.

    Raises:
        ValueError: No such kernel, or it brings its own autograd.
    """
    if name not in _implementations:
        from accel_kernels.segmented_attention import SPECS

        for spec in SPECS:
            if spec.name == name:
                spec.load()
    if name not in _implementations:
        raise ValueError(f"segmented_attention has no implementation called {name!r}")
    return _implementations[name]


def run(
    kernel: Implementation, query: Tensor, key: Tensor, value: Tensor, call: Call
) -> tuple[Tensor, Tensor | None]:
    """Compute a call, differentiably in query, key, value and bias, through output and lse.

    Args:
        kernel: Computes it.
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        call: Its other arguments.

    Returns:
        `out` `[B, H, T, D_v]`, and `lse` `[B, H, T]` or None if the call does not return it.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        # One operator, which traces, exports, counts FLOPs and computes nothing on fakes.
        from accel_kernels.segmented_attention.operators import call_operator

        if not torch.compiler.is_compiling():
            from accel_kernels.segmented_attention.flops import register_flops

            register_flops()
        out, lse = call_operator(kernel.name, query, key, value, call)
    elif (
        _tracked(query, key, value, call)
        or torch._C._are_functorch_transforms_active()
        or (kernel.name != "reference" and _has_tangent(query, key, value, call))
    ):
        bias = None if call.bias is None else call.bias.tensor
        # A tensor inside the call would be kept alive by it, and be an input to functorch besides.
        bare = with_bias(call, _NO_BIAS)
        transformed = torch._C._are_functorch_transforms_active()
        function = SegmentedAttention if transformed else DirectAttention
        out, lse = function.apply(kernel, bare, query, key, value, bias)
    else:
        out, lse = kernel.forward(query, key, value, call)
    return out, lse if call.return_lse else None


def _tracked(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    if not torch.is_grad_enabled():
        return False
    wanted = query.requires_grad or key.requires_grad or value.requires_grad
    return wanted or (call.bias is not None and call.bias.tensor.requires_grad)


def _has_tangent(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    """Whether forward-mode AD is on: a kernel that reads memory would drop the tangents."""
    if forward_ad._current_level < 0:
        return False
    given = (query, key, value) if call.bias is None else (query, key, value, call.bias.tensor)
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in given)


_NO_BIAS = torch.empty(0, device="cpu")


def with_bias(call: Call, bias: Tensor | None) -> Call:
    """The call with another bias tensor, in the place of its own."""
    if call.bias is None or bias is None or bias is call.bias.tensor:
        return call
    return call._replace(bias=call.bias._replace(tensor=bias))


def _held(call: Call) -> list[Tensor]:
    """The tensors of mask and seed."""
    found = [] if call.mask is None else call.mask.tensors()
    if call.dropout is not None and isinstance(call.dropout.seed, Tensor):
        found.append(call.dropout.seed)
    return found


def gradients(
    kernel: Implementation,
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a backward returns for query, key, value and bias; differentiable where that is asked.

    Args:
        kernel: As `run`; `query`, `key` and `value` too.
        call: With or without its bias tensor.
        grad_out: As `out`.
        grad_lse: As `lse`; None: zeros.
        query: See `kernel`.
        key: See `kernel`.
        value: See `kernel`.
        bias: The bias tensor, if there is one.
        out: What the forward returned.
        lse: What the forward returned.
    """
    kind = query.device.type
    off = torch.autocast(kind, enabled=False) if under_autocast(kind) else nullcontext()
    with off:
        legacy = _in_legacy_vmap(grad_out, grad_lse)
        if torch.is_grad_enabled() and legacy:
            raise RuntimeError(
                "segmented_attention has no second derivative of gradients that are computed with "
                "is_grads_batched=True: torch drops it there. Compute them one by one, or with "
                "torch.func.vmap"
            )
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            found: tuple[Tensor, Tensor, Tensor, Tensor | None] = SegmentedAttentionBackward.apply(
                kernel, call, grad_out, grad_lse, query, key, value, bias, out, lse
            )
            return found
        call = with_bias(call, bias)
        if legacy:
            # Which knows nothing of autograd functions, but calls any operator once an entry.
            from accel_kernels.segmented_attention.operators import call_backward_operator

            return call_backward_operator(
                kernel.name, grad_out, grad_lse, query, key, value, out, lse, call
            )
        return kernel.backward(grad_out, grad_lse, query, key, value, out, lse, call)


def is_watched(*grads: Tensor | None) -> bool:
    """Whether a backward is differentiated or mapped, so that `gradients` has to see to it."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or _in_legacy_vmap(*grads)
    )


def _in_legacy_vmap(*tensors: Tensor | None) -> bool:
    """Whether one is what `is_grads_batched=True` makes of many, and has no memory to read."""
    return any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


class SegmentedAttention(torch.autograd.Function):
    """A call of a kernel; its inputs are kernel, call, query, key, value and bias tensor."""

    @staticmethod
    def forward(
        kernel: Implementation,
        call: Call,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Computed by the kernel."""
        return kernel.forward(query, key, value, with_bias(call, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """What the backward needs."""
        ctx.kernel, ctx.call, query, key, value, bias = inputs
        ctx.save_for_backward(query, key, value, bias, *output)
        ctx.set_materialize_grads(False)
        # The call's own tensors are not saved by autograd, which would notice a change.
        ctx.versions = [(t, t._version) for t in _held(ctx.call) if not t.is_inference()]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        """Gradients of the inputs."""
        if any(tensor._version != version for tensor, version in ctx.versions):
            raise RuntimeError(
                "segmented_attention: a tensor of the mask, or dropout_seed, was changed in place "
                "between forward and backward, which would need it as it was; give a copy"
            )
        query, key, value, bias, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        if not ctx.call.return_lse:
            grad_lse = None
        found = gradients(
            ctx.kernel, ctx.call, grad_out, grad_lse, query, key, value, bias, out, lse
        )
        return (None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """There is none."""
        raise NotImplementedError(
            "segmented_attention has no forward-mode derivative (jvp): take it in reverse mode, by "
            "torch.func.vjp or jacrev, or of torch's own attention"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One call for a mapped dimension."""
        return _mapped(SegmentedAttention, info, in_dims, inputs, (2,))


class DirectAttention(SegmentedAttention):
    """The same outside `torch.func`, whose form has torch look at signatures in every call."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        kernel: Implementation,
        call: Call,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Computed by the kernel."""
        output = kernel.forward(query, key, value, with_bias(call, bias))
        SegmentedAttention.setup_context(ctx, (kernel, call, query, key, value, bias), output)
        return output


class SegmentedAttentionBackward(torch.autograd.Function):
    """The gradients of a call, themselves differentiable: through the formula's derivatives."""

    @staticmethod
    def forward(
        kernel: Implementation,
        call: Call,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Computed by the kernel."""
        call = with_bias(call, bias)
        found = kernel.backward(grad_out, grad_lse, query, key, value, out, lse, call)
        return found.query, found.key, found.value, found.bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """What the backward needs."""
        ctx.call = inputs[1]
        ctx.save_for_backward(*inputs[2:8])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the inputs."""
        given = ctx.saved_tensors
        present = [i for i, tensor in enumerate(given) if tensor is not None]

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            filled: list[Any] = [None] * len(given)
            for place, tensor in zip(present, tensors, strict=True):
                filled[place] = tensor
            return _formula_gradients(ctx.call, *filled)

        derivative: Any = torch.func.vjp(gradients, *(given[i] for i in present))
        _, pull = derivative
        # The formula's outputs: gradients of query, key, value and, if there is one, bias.
        found = pull(tuple(grad for grad in grads if grad is not None))
        result: list[Any] = [None] * len(given)
        for place, grad in zip(present, found, strict=True):
            result[place] = grad
        # Output and log-sum-exp are functions of the others, whose derivatives include theirs.
        return (None, None, *result, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One call for a mapped dimension."""
        return _mapped(SegmentedAttentionBackward, info, in_dims, inputs, (4, 2))


def _formula_gradients(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """First derivatives by the formula; for a row that sees no key the log-sum-exp has none."""
    inputs = (query, key, value) if bias is None else (query, key, value, bias)

    def attention(q: Tensor, k: Tensor, v: Tensor, b: Tensor | None = None) -> Any:
        out, lse = whole_attention(q, k, v, with_bias(call, b))
        return out, lse

    derivative: Any = torch.func.vjp(attention, *inputs)
    (_, lse), pull = derivative
    weight = torch.zeros_like(lse) if grad_lse is None else grad_lse
    found: tuple[Tensor, ...] = pull((grad_out, weight))
    return found


def _mapped(
    function: Any,
    info: Any,
    in_dims: tuple[Any, ...],
    inputs: tuple[Any, ...],
    query_places: tuple[int, ...],
) -> Any:
    """One call for a whole mapped dimension, folded into the batch; or one per entry.

    Folding is right where nothing but the tensors of queries and keys knows of the batch.
    """
    call: Call = inputs[1]
    if call.dropout is not None and info.randomness != "same":
        raise RuntimeError(
            "segmented_attention with dropout_p under vmap: pass randomness='same', or map over a "
            "batch dimension instead, whose entries have dropouts of their own"
        )
    size = info.batch_size
    query = inputs[query_places[0]]
    tensors = [
        tensor if dim is None or not isinstance(tensor, Tensor) else tensor.movedim(dim, 0)
        for tensor, dim in zip(inputs, in_dims, strict=True)
    ]
    if call.bias is None and not _knows_the_batch(call, query, in_dims, query_places, inputs):
        return _folded(function, size, tensors, in_dims)
    parts = [
        function.apply(
            *(
                item[n] if isinstance(item, Tensor) and dim is not None else item
                for item, dim in zip(tensors, in_dims, strict=True)
            )
        )
        for n in range(size)
    ]
    joined = [None if part[0] is None else torch.stack(part) for part in zip(*parts, strict=True)]
    return tuple(joined), tuple(None if part is None else 0 for part in joined)


def _folded(function: Any, size: int, tensors: list[Any], in_dims: tuple[Any, ...]) -> Any:
    folded = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
        if not isinstance(tensor, Tensor):
            folded.append(tensor)
        else:
            whole = tensor.expand(size, *tensor.shape) if dim is None else tensor
            folded.append(whole.flatten(0, 1))
    outputs = [
        None if out is None else out.unflatten(0, (size, -1)) for out in function.apply(*folded)
    ]
    return tuple(outputs), tuple(None if out is None else 0 for out in outputs)


def _knows_the_batch(
    call: Call, query: Tensor, in_dims: Any, places: tuple[int, ...], inputs: tuple[Any, ...]
) -> bool:
    if call.dropout is not None:
        return True
    if call.mask is None:
        return False
    at, key = places[0], inputs[places[0] + 1]
    batch = query.shape[0] if in_dims[at] is None else query.movedim(in_dims[at], 0).shape[1]
    whole = query if in_dims[at] is None else query.movedim(in_dims[at], 0)[0]
    other = key if in_dims[at + 1] is None else key.movedim(in_dims[at + 1], 0)[0]
    seen = visibility(call.mask, sizes_of(whole, other), query.device)
    sizes = [t.shape[at] for t, at in ((seen.intervals, 2), (seen.dense, 0)) if t is not None]
    return batch == 0 or any(size != 1 for size in sizes)
