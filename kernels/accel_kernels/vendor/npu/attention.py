"""`npu_fusion_attention`, its second and third forms, and their gradients.

`attention_out = dropout(softmax(mask(scale * (pse + query key^T)))) value`, `scale` 1 by default.

Layouts: BNSD, BSND, BSH, SBH, and TND with cumulated lengths. `atten_mask` is 1 where a score is
left out. A row of which everything is masked gives zeros, `softmax_max` the least float32 and
`softmax_sum` 0. A `sink` is one more score per head, without a value; it counts in both.
Under TND, tokens of sequences that take no part (lengths 0 at the end) give zeros too.

Dropout: the kept positions are drawn as one `torch.rand` per sequence from a CPU `torch.Generator`
that is seeded by a hash of (seed, offset), which the forward returns and the gradient takes: both
draw the same mask. It is not the mask that hardware draws. With `seed=0` the forward takes a seed
from torch's default generator.

float64 inputs are computed in float64, with float64 statistics; others in float32.

Source: op-plugin's pages of `npu_fusion_attention` and `_v3`; MindSpeed's page on `pse_type`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel_kernels.vendor.npu import fusion_core
from accel_kernels.vendor.npu.fusion_call import (
    FusionCall,
    check_arguments,
    shapes_of,
    statistics_shape,
)
from accel_kernels.vendor.npu.values import refuse, require_choice, require_shape

UNLIMITED = 2147483647

Forward = tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]


def _refuse_common(
    operator: str,
    padding_mask: Tensor | None,
    inner_precise: int,
    dropout_mask: Tensor | None = None,
) -> None:
    if padding_mask is not None:
        raise ValueError(f"{operator}: padding_mask is not supported by the operator; give None")
    require_choice(operator, "inner_precise", inner_precise, (0, 1, 2))
    if dropout_mask is not None:
        why = "no document gives the order of its bits; give seed and offset"
        refuse(operator, "dropout_mask", tuple(dropout_mask.shape), why)


def _refuse_second_form(
    operator: str,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    q_start_idx: Sequence[int] | None,
    kv_start_idx: Sequence[int] | None,
) -> None:
    for name, tensor in (("query_rope", query_rope), ("key_rope", key_rope)):
        if tensor is not None:
            refuse(operator, name, tuple(tensor.shape), "no document defines it")
    for name, start in (("q_start_idx", q_start_idx), ("kv_start_idx", kv_start_idx)):
        if start:
            refuse(operator, name, start, "it belongs to pse_type 2 and 3")


def _run(
    call: FusionCall, query: Tensor, key: Tensor, value: Tensor, seed: int, offset: int
) -> Forward:
    check_arguments(call, query, key, value)
    shapes = shapes_of(call, query, key, value)
    if call.keep_prob < 1.0 and seed == 0:
        seed = int(torch.randint(1, 2**62, ()))
    out, maximum, total = fusion_core.forward(call, shapes, (query, key, value), seed, offset)
    return out, maximum, total, query.new_empty(0), seed, offset, shapes.numels


def _run_gradient(
    call: FusionCall,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    saved: dict[str, Tensor | None],
    seed: int,
    offset: int,
) -> fusion_core.Gradients:
    query, key, value, dy = tensors
    check_arguments(call, query, key, value)
    shapes = shapes_of(call, query, key, value)
    given = [tensor for tensor in saved.values() if tensor is not None]
    if len(given) != len(saved):
        missing = [name for name, tensor in saved.items() if tensor is None]
        raise ValueError(f"{call.operator}: give {missing} as the forward returned them")
    maximum, total, out = given
    if dy.shape != out.shape or dy.shape[:-1] != query.shape[:-1]:
        raise ValueError(f"{call.operator}: dy {list(dy.shape)}, attention_in {list(out.shape)}")
    stats_shape = statistics_shape(call, shapes, query)
    require_shape(call.operator, "softmax_max", maximum, stats_shape)
    require_shape(call.operator, "softmax_sum", total, stats_shape)
    if call.keep_prob < 1.0 and seed == 0:
        raise ValueError(f"{call.operator}: seed=0; give the seed that the forward returned")
    return fusion_core.backward(
        call, shapes, (query, key, value), dy, (maximum, total, out), seed, offset
    )


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> Forward:
    """Attention with the operator's own masks; see the module for the formula.

    Args:
        query: In `input_layout`, for example `[B, N, S, D]`.
        key: Like the query; its heads may be a divisor of the query's.
        value: Like the key; its head size may be smaller.
        head_num: Heads of the query.
        input_layout: BNSD, BSND, BSH, SBH or TND, in letters of either size.
        pse: Added to the scores before they are scaled: `[B, N, Sq, Skv]`, `[B, N, 1, Skv]` or
            `[1, N, Sq, Skv]`.
        padding_mask: The operator supports only None.
        atten_mask: bool or uint8, 1 where left out: `[B, N, Sq, Skv]`, `[B, 1, Sq, Skv]`,
            `[1, 1, Sq, Skv]` or `[Sq, Skv]`; the fixed triangle for modes 2, 3, 4, 6, 7 and 8.
        scale: Of the scores; 1, not 1/sqrt(D).
        keep_prob: Share of probabilities that dropout keeps.
        pre_tockens: Keys kept before a query; modes 0 (top left) and 4, 7, 8 (bottom right).
        next_tockens: Keys kept after a query, likewise.
        inner_precise: 0, 1 or 2; changes nothing here.
        prefix: Columns always kept, a number for each sequence; modes 5 and 6.
        actual_seq_qlen: Ends of the sequences in a TND query.
        actual_seq_kvlen: Ends of the sequences in a TND key.
        sparse_mode: 0 mask as given, 1 the whole mask, 2 causal from the top left, 3 from the
            bottom right, 4 band, 5 prefix with a whole mask, 6 prefix with the compressed mask,
            7 and 8 TND pieces cut from 3 and 2.
        gen_mask_parallel: Changes nothing here.
        sync: Changes nothing here.
        softmax_layout: "TND" for statistics in the order of their shape.
        sink: `[N]`, float32.
        dropout_mask: Not available.
        seed: Of dropout; 0 for a random one.
        offset: Of dropout.

    Returns:
        attention_out; softmax_max and softmax_sum, `[B, N, Sq, 8]` or `[T, N, 8]`, float32
        (float64 for float64); softmax_out, empty; seed; offset; numels of the dropout mask.

    Raises:
        ValueError: If an argument is outside what the documents allow or contradicts another.
        TypeError: If a dtype does.
        NotImplementedError: If the documents do not say what an argument means.
    """
    name = "npu_fusion_attention"
    _refuse_common(name, padding_mask, inner_precise, dropout_mask)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale, keep_prob, pre_tockens,
        next_tockens, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, sink,
    )  # fmt: skip
    return _run(call, query, key, value, seed, offset)


def npu_fusion_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, pse and sink (the last two empty where not given).

    `softmax_max`, `softmax_sum` and `attention_in` are used as given, so those merged over a ring
    of devices work. `softmax_in` and `numels` are not needed.
    """
    name = "npu_fusion_attention_grad"
    _refuse_common(name, padding_mask, inner_precise)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale_value, keep_prob, pre_tockens,
        next_tockens, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, sink,
    )  # fmt: skip
    saved = {"softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": attention_in}
    return _run_gradient(call, (query, key, value, dy), saved, seed, offset)


def npu_fusion_attention_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Sequence[int] | None = None,
    kv_start_idx: Sequence[int] | None = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> Forward:
    """`npu_fusion_attention` with `pse_type`: 0 adds `pse` after scaling, 1 before it."""
    name = "npu_fusion_attention_v2"
    _refuse_common(name, padding_mask, inner_precise, dropout_mask)
    _refuse_second_form(name, query_rope, key_rope, q_start_idx, kv_start_idx)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale, keep_prob, pre_tokens,
        next_tokens, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, sink,
        pse_type,
    )  # fmt: skip
    return _run(call, query, key, value, seed, offset)


def npu_fusion_attention_grad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    inner_precise: int = 0,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Sequence[int] | None = None,
    kv_start_idx: Sequence[int] | None = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, pse, query_rope and key_rope (both empty), and sink."""
    name = "npu_fusion_attention_grad_v2"
    _refuse_common(name, padding_mask, inner_precise)
    _refuse_second_form(name, query_rope, key_rope, q_start_idx, kv_start_idx)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale_value, keep_prob, pre_tokens,
        next_tokens, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, sink,
        pse_type,
    )  # fmt: skip
    saved = {"softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": attention_in}
    grads = _run_gradient(call, (query, key, value, dy), saved, seed, offset)
    empty = query.new_empty(0)
    return grads.query, grads.key, grads.value, grads.pse, empty, empty.clone(), grads.sink


def npu_fusion_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`npu_fusion_attention` with lengths as 1-d tensors, and seed and offset as `[1]` int64."""
    name = "npu_fusion_attention_v3"
    _refuse_common(name, padding_mask, inner_precise)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale, keep_prob, pre_tockens,
        next_tockens, prefix, _ends(name, "actual_seq_qlen", actual_seq_qlen),
        _ends(name, "actual_seq_kvlen", actual_seq_kvlen), sparse_mode, softmax_layout, sink,
    )  # fmt: skip
    out, maximum, total, empty, seed, offset, _ = _run(call, query, key, value, 0, 0)
    return out, maximum, total, empty, torch.tensor([seed]), torch.tensor([offset])


def npu_fusion_attention_grad_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    seed: Tensor | None = None,
    offset: Tensor | None = None,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, pse and sink; see `npu_fusion_attention_grad`."""
    name = "npu_fusion_attention_grad_v3"
    _refuse_common(name, padding_mask, inner_precise)
    call = FusionCall(
        name, head_num, input_layout.upper(), pse, atten_mask, scale_value, keep_prob, pre_tockens,
        next_tockens, prefix, _ends(name, "actual_seq_qlen", actual_seq_qlen),
        _ends(name, "actual_seq_kvlen", actual_seq_kvlen), sparse_mode, softmax_layout, sink,
    )  # fmt: skip
    saved = {"softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": attention_in}
    numbers = [0 if tensor is None else int(tensor) for tensor in (seed, offset)]
    return _run_gradient(call, (query, key, value, dy), saved, numbers[0], numbers[1])


def _ends(operator: str, name: str, lengths: Tensor | None) -> list[int] | None:
    if lengths is None:
        return None
    if lengths.ndim != 1 or lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{operator}: {name} is {lengths.ndim}-d {lengths.dtype}; give one dimension of int64"
        )
    return [int(length) for length in lengths.tolist()]
