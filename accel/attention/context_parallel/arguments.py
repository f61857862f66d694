"""Checking a call of context parallel attention, and saying what every rank must be given alike."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.attention.context_parallel.kernels import of_length
from accel.attention.context_parallel.pairs import Whole, home_of
from accel.attention.context_parallel.ranks import METHODS, RankGrid
from accel.attention.context_parallel.sharding import SequenceLayout
from accel.attention.context_parallel.ulysses import check_heads
from accel_kernels.masks import visibility
from accel_kernels.segmented_attention.arguments import bias_of, mask_of, request
from accel_kernels.segmented_attention.call import Call, Dropout, sizes_of


class Options(NamedTuple):
    """The arguments besides tensors and ranks, as given."""

    method: str | None
    mask: Any
    is_causal: Any
    scale: Any
    dropout_p: Any
    dropout_seed: Any
    softcap: Any
    bias: Any
    segment_size: Any
    return_lse: Any
    backend: Any


def whole_call(
    grid: RankGrid,
    tensors: tuple[Tensor, Tensor, Tensor],
    layout: SequenceLayout,
    key_layout: SequenceLayout,
    options: Options,
) -> Whole:
    """Check what can be checked on this rank, and put the call together."""
    if options.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {options.method!r}")
    for name, one in (("layout", layout), ("key_layout", key_layout)):
        if not isinstance(one, SequenceLayout):
            raise TypeError(f"{name} must be a SequenceLayout, not {type(one).__name__}")
        grid.check_layout(one, name)
    query, key, value = tensors
    request(query, key, value)  # of what is here; the rest is of the whole
    for name, tensor, one in (("query", query, layout), ("key", key, key_layout)):
        if tensor.shape[2] != one.lengths[grid.rank]:
            raise ValueError(
                f"rank {grid.rank} holds {one.lengths[grid.rank]} positions of the layout, but "
                f"{name} is {tuple(tensor.shape)}; cut it out with shard"
            )
    check_heads(query.shape[1], key.shape[1], grid.ulysses_size)
    lengths = (layout.length, key_layout.length, key_layout.length)
    longer = [of_length(tensor, n) for tensor, n in zip(tensors, lengths, strict=True)]
    request(
        *longer, mask=options.mask, is_causal=options.is_causal, scale=options.scale,
        dropout_p=options.dropout_p, dropout_seed=options.dropout_seed, softcap=options.softcap,
        bias=options.bias, segment_size=options.segment_size,
    )  # fmt: skip
    sizes = sizes_of(longer[0], longer[1])
    dropout = None
    if options.dropout_p > 0.0:
        seed = 0 if options.dropout_seed is None else int(options.dropout_seed)
        dropout = Dropout(options.dropout_p, seed, sizes[1:])
    call = Call(
        mask_of(options.mask, options.is_causal),
        1.0 / math.sqrt(query.shape[3]) if options.scale is None else float(options.scale),
        options.softcap,
        bias_of(options.bias),
        dropout,
        options.segment_size,
        bool(options.return_lse),
    )
    return Whole(sizes, layout, key_layout, call)


def terms_of(
    whole: Whole, tensors: tuple[Tensor, Tensor, Tensor], options: Options
) -> dict[str, str]:
    """What every rank must be given alike, in words."""
    bias, dropout = whole.call.bias, whole.call.dropout
    differentiable = [*tensors, *([] if bias is None else [bias.tensor])]
    tracked = [t.requires_grad and torch.is_grad_enabled() for t in differentiable]
    terms = {
        name: f"{tensor.dtype} {[*tensor.shape[:2], tensor.shape[3]]} (batch, heads, head size)"
        for name, tensor in zip(("query", "key", "value"), tensors, strict=True)
    }
    return {
        **terms,
        "the kind of device": tensors[0].device.type,
        "requires_grad of query, key, value and bias": str(tracked),
        "method": str(options.method),
        "layout": _brief(str(whole.layout)),
        "key_layout": _brief(str(whole.key_layout)),
        "mask": _mask_term(whole, tensors[0].device),
        "scale": str(whole.call.scale),
        "softcap": str(options.softcap),
        "dropout_p": str(options.dropout_p),
        "dropout_seed": str(
            None if options.dropout_seed is None or dropout is None else dropout.seed
        ),
        "bias": "None" if bias is None else f"{bias.kind} {tuple(bias.tensor.shape)}",
        "return_lse": str(options.return_lse),
        "backend": str(options.backend),
    }


def _brief(text: str) -> str:
    """A long text by its beginning and its digest."""
    if len(text) <= 200:
        return text
    return f"{text[:150]}… ({hashlib.blake2b(text.encode(), digest_size=8).hexdigest()})"


def _mask_term(whole: Whole, device: torch.device) -> str:
    """The mask, and what it hides where it has no text that says so."""
    mask = whole.call.mask
    if mask is None or mask.key() is not None:
        return _brief(str(None if mask is None else mask.key()))
    seen = visibility(mask, whole.sizes, home_of(mask, device))
    found = [repr(mask)]
    if seen.intervals is not None:
        content = seen.intervals.cpu().contiguous().numpy().tobytes()
        found.append(hashlib.blake2b(content, digest_size=8).hexdigest())
    if seen.dense is not None:  # too large to be hashed every time
        found.append(f"{int(seen.dense.sum())} True")
    return " ".join(found)
