"""`torch.nn.functional.scaled_dot_product_attention`, where the request fits it exactly.

What it cannot do exactly, it would do by another rule (causal masking of unequal lengths is aligned
at the top left; a scale that is not positive gives NaN with its CPU kernel) or in quadratic memory
(a structured mask as a tensor, a head size that is not contiguous, dropout on the CPU): the spec
refuses these. And it never runs torch's `MATH` kernel, which keeps all scores: where torch has no
other for a call, this raises.

Its kernels multiply what a row must not see by zero, so that a NaN or an infinity in such a value
gives NaN there: never another number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from accel_kernels.masks import Mask, visibility
from accel_kernels.segmented_attention.call import Bias, Dropout, sizes_of
from accel_kernels.segmented_attention.state import accumulation_dtype

_FUSED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
]
# As `_fused_sdp_choice` numbers them: the kernel of plain operators, and none.
_KEEPS_ALL_SCORES = (0, -1)


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
    segment_size: int | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by torch's own operator.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`; `H` is a multiple of `H_kv`.
        value: `[B, H_kv, S, D]`.
        mask: Causal masks of equal lengths, where both alignments are one, or bool tensors; not
            both, which together would be a new tensor of all pairs.
        scale: Of the scores, positive; `1/sqrt(D)` if None.
        dropout: None: torch draws by its own generator.
        softcap: None: it has none.
        bias: None or `dense`, without a gradient and without a causal mask beside it.
        segment_size: None: torch cuts the keys as it likes.
        return_lse: False: torch does not tell it.

    Returns:
        `out` `[B, H, T, D]` in the query's dtype, and None.

    Raises:
        RuntimeError: torch has no kernel for this call that keeps less than all scores.
    """
    for name, given in (("dropout", dropout), ("softcap", softcap), ("segment_size", segment_size)):
        assert given is None, f"the spec refuses {name}"  # noqa: S101
    assert not return_lse, "the spec refuses return_lse"  # noqa: S101
    is_causal = mask is not None and mask.kinds() == {"causal"}
    assert not is_causal or bias is None, "the spec refuses structure with a tensor"  # noqa: S101
    added = None if is_causal else _added(query, key, mask, bias)
    seen = None
    if added is not None and query.device.type != "cpu":
        added, seen = _without_empty_rows(added)
    out = _attention(query, key, value, added, is_causal=is_causal, scale=scale)
    return out if seen is None else torch.where(seen, out, 0.0), None


def _added(query: Tensor, key: Tensor, mask: Mask | None, bias: Bias | None) -> Tensor | None:
    """Mask and bias as the one tensor that torch takes: bool, or floating with -inf."""
    allowed = None
    if mask is not None:
        seen = visibility(mask, sizes_of(query, key), query.device)
        assert seen.dense is not None, "the spec refuses structured masks"  # noqa: S101
        assert seen.intervals is None, "the spec refuses structure with a tensor"  # noqa: S101
        allowed = seen.dense
    if bias is None:
        return allowed
    # torch takes the query's dtype and float32; a sum with float32 scores is the same from either.
    numbers = bias.tensor
    if numbers.dtype != query.dtype:
        numbers = numbers.to(accumulation_dtype(query.dtype))
    return numbers if allowed is None else torch.where(allowed, numbers, -torch.inf)


def _without_empty_rows(added: Tensor) -> tuple[Tensor, Tensor]:
    """See all keys where a row sees none, and which rows see some, `[.., T, 1]`.

    The CPU kernel gives zeros for a row that sees none; what each CUDA kernel gives is its own
    affair. The output of such rows is replaced, so that no gradient comes from them either.
    """
    if added.dtype == torch.bool:
        seen = added.any(-1, keepdim=True)
        return added | ~seen, seen
    seen = (added != -torch.inf).any(-1, keepdim=True)
    return torch.where(seen, added, 0.0), seen


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """The operator of torch, but not with the kernel that keeps all scores."""
    grouped = False
    if query.shape[1] != key.shape[1]:  # decided here: torch takes no symbolic truth
        grouped = True

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, added, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )

    if _traced():
        with sdpa_kernel(_FUSED):
            return attention()
    # Asking which kernel torch will take costs microseconds; forbidding one, 70 of them.
    choice = torch._fused_sdp_choice(
        query, key, value, added, 0.0, is_causal, scale=scale, enable_gqa=grouped
    )
    if choice in _KEEPS_ALL_SCORES:
        raise RuntimeError(
            f"sdpa: on {query.device.type}, in {query.dtype} and with shapes {tuple(query.shape)} "
            f"and {tuple(key.shape)}, torch has no kernel that keeps less than all scores (or "
            "torch.nn.attention.sdpa_kernel forbids it); take another backend: accel.explain "
            "names those that can serve the call"
        )
    return attention()


def _traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )
