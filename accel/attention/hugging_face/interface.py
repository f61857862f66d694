"""Segmented attention for every model that goes through transformers' attention interface.

Everything that the library hands to an attention function is either part of the result or an error
that names it: windows, caps, sinks and biases that a backend drops without a word are the commonest
fault of such adapters. Masks come as structure (`transformers_masks`), so that nothing of the size
`[T, S]` is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.attention.api import segmented_attention
from accel.attention.hugging_face import masks
from accel.attention.hugging_face.structured_mask import StructuredMask
from accel_kernels.masks import Dense, Mask, Sizes, causal, documents, prefix, window

# Names that transformers itself reads something into.
_TAKEN = ("eager", "sdpa", "flash", "flex", "paged", "kernel", "|", "/")
# What transformers passes along and what has had its effect elsewhere: on rotary embeddings and
# masks, on what else is returned, or on how fast other kernels run.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "seq_idx",
        "use_cache",
    }
)


class _Options(NamedTuple):
    """Of `segmented_attention`, for every call of one registration."""

    backend: str | None
    segment_size: int | None


def attention_for_transformers(
    model: Any = None,
    *,
    name: str = "accel",
    backend: str | None = None,
    segment_size: int | None = None,
) -> str:
    """Register segmented attention with transformers, under a name for `attn_implementation`.

        name = accel.attention_for_transformers()
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=name)

    Args:
        model: A model that is to change to it at once; every part of it must go through
            transformers' attention interface.
        name: What it is called. Registered again, the last registration holds.
        backend: A kernel's name, which then runs or raises; None to choose at each call.
        segment_size: Keys per segment; the backend's own choice if None.

    Returns:
        The name.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: The name means something to transformers already, or a part of the model
            computes attention on its own and would go on doing so.
    """
    transformers = _transformers()
    if not name or any(word in name for word in _TAKEN):
        raise ValueError(f"name {name!r} is empty or holds one of {', '.join(_TAKEN)}; try 'accel'")
    options = _Options(backend, segment_size)
    transformers.AttentionInterface.register(name, functools.partial(_forward, options=options))
    transformers.AttentionMaskInterface.register(name, structured_mask)
    if model is not None:
        own = [
            type(part).__name__
            for part in model.modules()
            if isinstance(part, transformers.PreTrainedModel)
            and not part._can_set_attn_implementation()
        ]
        if own:
            raise ValueError(
                f"{own[0]} computes attention on its own, not through transformers' attention "
                "interface, so no other attention can be set"
            )
        model.set_attn_implementation(name)
    return name


def _transformers() -> Any:
    try:
        import transformers
        from transformers import masking_utils
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "attention_for_transformers needs transformers 5: "
            "pip install 'accel-torch[transformers]'",
            name=error.name,
        ) from error
    if not hasattr(masking_utils, "sliding_window_bidirectional_overlay"):
        raise ImportError(
            f"attention_for_transformers needs transformers 5, not {transformers.__version__}"
        )
    return transformers


def structured_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    allow_is_causal_skip: bool = False,
    **_: Any,
) -> StructuredMask | Mask:
    """A mask function of transformers (`masking_utils.sdpa_mask`'s arguments) as structure.

    Args:
        batch_size: B.
        q_length: T.
        kv_length: S.
        q_offset: Position of the first query; a tensor of one number with a static cache.
        kv_offset: Position of the first key.
        mask_function: Of batch entry, head, query position and key position; causal if None.
        attention_mask: Padding, bool `[B, N]` by position, True where there is a token.
        local_size: Keys of a window or chunk within `mask_function`.
        use_vmap: Whether `mask_function` takes single indices only.
        device: Of the model's inputs.
        config: Of the model.
        allow_is_causal_skip: Whether `mask_function` is causal, or a causal window or chunk of
            `local_size`, and nothing else.
        **_: What other implementations of the interface need.

    Returns:
        Something that passes for a bool tensor `[B, 1, T, S]`; a mask as such in compiled code,
        where tensors that are none cannot be made.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    function = mask_function or causal_mask_function
    device = torch.device(device)
    sizes = Sizes(batch_size, 1, q_length, kv_length)

    def band(first: int, number: int) -> Tensor:
        found: Tensor = sdpa_mask(
            batch_size,
            number,
            kv_length,
            q_offset + first,
            kv_offset,
            mask_function=function,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return found

    with torch.no_grad():
        places = torch.arange(q_length, device=device).unsqueeze(0) + q_offset
        ends_together = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
        grid = masks.Grid(sizes, places, -kv_offset, ends_together)
        if torch.compiler.is_compiling():
            plain = allow_is_causal_skip and local_size == getattr(config, "sliding_window", None)
            mask = masks.traced(function, grid, band, local_size if plain else None)
        else:
            mask = _recognised(function, grid, band, device)
        shown = masks.padding(attention_mask, kv_offset, sizes)
        if shown is not None:
            mask = shown if mask is None else mask & shown
        if torch.compiler.is_compiling():
            return prefix(kv_length) if mask is None else mask
        mask = masks.settled(mask, sizes, device)
    return StructuredMask(mask, sizes, device, local_size)


def _recognised(
    function: Callable[..., Any], grid: masks.Grid, band: masks.Band, device: torch.device
) -> Mask | None:
    """The structure of a mask function, by its name or from its values."""
    sizes = grid.sizes
    try:
        mask = masks.structure(function, grid)
    except masks.Unrecognised:
        return masks.scanned(band, sizes, device)
    if masks.agrees(mask, band, sizes, device):
        return mask
    masks.warn_once(
        f"transformers' {function.__qualname__} is not what it was; its values are read"
    )
    return masks.scanned(band, sizes, device)


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Mask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    output_attentions: bool | None = None,
    *,
    options: _Options,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: `[B, H, T, D]` in, `[B, T, H, D_v]` out, no weights.

    `s_aux` is one more key of score `s_aux[h]` and value zero for each head (the sinks of gpt-oss):
    it multiplies the output by `exp(lse) / (exp(lse) + exp(s_aux))`, the sigmoid of `lse - s_aux`,
    which has its gradient through the log-sum-exp.
    """
    _refuse(output_attentions, others)
    if query.shape[0] == 1 and key.shape[0] > 1:  # learned queries, the same for every entry
        query = query.expand(key.shape[0], -1, -1, -1)
    mask, bias = _mask_and_bias(module, query, key, attention_mask, is_causal, sliding_window)
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        mask = _packed(mask, query, cu_seq_lens_q, cu_seq_lens_k)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    attend: Any = functools.partial(
        segmented_attention,
        query,
        key,
        value,
        mask=mask,
        scale=scaling,
        dropout_p=dropout if getattr(module, "training", True) else 0.0,
        softcap=softcap,
        bias=bias,
        segment_size=options.segment_size,
        backend=options.backend,
    )
    if s_aux is None:
        out = attend()
    else:
        state = attend(return_lse=True)
        out = _with_sink(state.out, state.lse, s_aux)
    return out.transpose(1, 2).contiguous(), None


def _with_sink(out: Tensor, lse: Tensor, sink: Tensor) -> Tensor:
    """One more key of score `sink[h]` and value zero: `[B, H, T, D_v]` in the same dtype."""
    if sink.numel() != out.shape[1]:
        raise ValueError(
            f"s_aux must hold a number for each of {out.shape[1]} heads, not {tuple(sink.shape)}"
        )
    kept = torch.sigmoid(lse - sink.reshape(1, -1, 1).to(lse.dtype))
    return (out * kept.unsqueeze(-1)).to(out.dtype)


def _refuse(output_attentions: bool | None, others: dict[str, Any]) -> None:
    if output_attentions:
        raise ValueError(
            "output_attentions=True asks for the [T, S] probabilities, which segmented attention "
            "never holds; load the model with attn_implementation='eager' to see them"
        )
    for name, given in others.items():
        if given is not None and name not in _WITHOUT_EFFECT:
            raise TypeError(
                f"the model passes {name} to attention, which segmented attention does not know "
                "and will not drop; load it with attn_implementation='eager'"
            )


def _mask_and_bias(
    module: Any,
    query: Tensor,
    key: Tensor,
    given: Tensor | Mask | None,
    is_causal: bool | None,
    sliding_window: int | None,
) -> tuple[Mask | None, Tensor | None]:
    """What the call's mask says, in this package's terms; transformers' other arguments if None."""
    if isinstance(given, Mask):
        return given, None
    queries, keys = query.shape[2], key.shape[2]
    if isinstance(given, StructuredMask):
        # By its sizes: compiled code takes it for no tensor.
        _check_window(given, keys, sliding_window)
        if given.sizes[2:] != (queries, keys):
            raise ValueError(
                f"the mask was made for {given.sizes[2]} queries and {given.sizes[3]} keys, and "
                f"attention is called with {queries} and {keys}"
            )
        return given.mask, None
    if given is None or given.dim() == 2:
        implied = _implied(module, queries, keys, is_causal, sliding_window)
        if given is None:
            return implied, None
        sizes = Sizes(query.shape[0], 1, queries, keys)
        shown = masks.padding(_tokens(given, keys), 0, sizes)
        return (shown if implied is None else implied & shown if shown else implied), None
    if given.dim() != 4:
        raise ValueError(f"attention_mask must be [B, S] or [B, 1, T, S], not {tuple(given.shape)}")
    if given.dtype == torch.bool:
        return Dense(given), None
    if not given.dtype.is_floating_point:
        raise TypeError(f"a 4-D attention_mask is bool or added to scores, not {given.dtype}")
    allowed = given > torch.finfo(given.dtype).min
    return Dense(allowed), torch.where(allowed, given, 0.0).to(query.dtype)


def _implied(
    module: Any, queries: int, keys: int, is_causal: bool | None, sliding_window: int | None
) -> Mask | None:
    """Without a mask, as transformers' fused attentions have it: causal if the module is.

    A window holds its query, `sliding_window` keys in all if causal, and as many on both sides.
    """
    asked = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if asked and queries not in (1, keys):
        raise ValueError(
            f"causal attention of {queries} queries over {keys} keys without attention_mask: where "
            "the queries stand is not known"
        )
    if sliding_window is not None and keys > sliding_window:
        return window(sliding_window - 1, 0 if asked else sliding_window - 1)
    return causal() if asked and queries > 1 else None


def _tokens(padding: Tensor, keys: int) -> Tensor:
    if padding.shape[1] != keys:
        raise ValueError(f"attention_mask is {tuple(padding.shape)}, and there are {keys} keys")
    return padding.bool()


def _check_window(mask: StructuredMask, keys: int, sliding_window: int | None) -> None:
    """Bidirectional models count the window with the query's own place here, and without there."""
    if sliding_window is None or keys <= sliding_window:
        return
    if mask.local_size not in (sliding_window, sliding_window - 1):
        raise ValueError(
            f"the model asks for sliding_window={sliding_window}, but its mask holds "
            f"{'none' if mask.local_size is None else mask.local_size}"
        )


def _packed(
    mask: Mask | None, query: Tensor, cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None
) -> Mask:
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together")
    if query.shape[0] != 1:
        raise ValueError(
            f"packed sequences (cu_seq_lens_q) need a batch of one row, not {query.shape[0]}"
        )
    if mask is not None and mask.kinds() <= {"causal", "window"}:
        return documents(cu_seq_lens_q, cu_seq_lens_k, within=mask)
    own = documents(cu_seq_lens_q, cu_seq_lens_k)
    return own if mask is None else mask & own
