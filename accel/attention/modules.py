"""`torch.nn.MultiheadAttention` on segmented attention: the same parameters, the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import Parameter

from accel.attention.api import segmented_attention
from accel_kernels.masks import Dense, Mask, as_mask, causal, key_lengths


class MultiheadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2.2), memory `O(T + S)`.

    Arguments, names and shapes of parameters, initial values, and results are those of
    `torch.nn.MultiheadAttention`, whose state dict loads. It differs where that would need the
    `[T, S]` weights: `need_weights` is False by default and True raises. Rows that may see no key
    give zeros (before the output projection) where torch gives NaN.
    """

    # torch's TransformerEncoderLayer takes a fused path of its own, around this module, if True.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        num_kv_heads: int | None = None,
        mask: Mask | None = None,
        backend: str | None = None,
    ) -> None:
        """Make the parameters.

        Args:
            embed_dim: E, the width of query and output; each head has `E / num_heads`.
            num_heads: Of the query.
            dropout: Probability of dropout of the attention's probabilities, in training.
            bias: Whether the four projections have one.
            add_bias_kv: Must be False: it adds a learned key and value after the last.
            add_zero_attn: Must be False: it adds a zero key and value after the last.
            kdim: Width of the key; E if None.
            vdim: Width of the value; E if None.
            batch_first: Whether tensors are `[B, T, E]` rather than `[T, B, E]`.
            device: Of the parameters.
            dtype: Of the parameters.
            num_kv_heads: Fewer heads of key and value, each for `num_heads / num_kv_heads` of the
                query's (grouped-query attention, arXiv 2305.13245); `num_heads` if None.
            mask: Applied in every call, such as `accel.attention.causal()`.
            backend: A kernel's name, which then runs or raises; None to choose at each call.

        Raises:
            ValueError: Sizes do not divide, or one of the two that must be False is not.
        """
        super().__init__()
        if add_bias_kv or add_zero_attn:
            name = "add_bias_kv" if add_bias_kv else "add_zero_attn"
            raise ValueError(
                f"{name}=True is not supported, since it shifts every position from the end; "
                "append the key and the value before the call"
            )
        groups = num_heads if num_kv_heads is None else num_kv_heads
        _check_sizes(embed_dim, num_heads, groups)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first = dropout, batch_first
        self.mask, self.backend = mask, backend
        self._make_parameters(bias, {"device": device, "dtype": dtype})

    def _make_parameters(self, bias: bool, factory: dict[str, Any]) -> None:
        width, narrow = self.embed_dim, self.num_kv_heads * self.head_dim
        rows = (width, narrow, narrow)
        together = self.kdim == self.vdim == width
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        columns = (width, self.kdim, self.vdim)
        self.in_proj_weight: Parameter | None
        self.register_parameter(
            "in_proj_weight",
            Parameter(torch.empty(sum(rows), width, **factory)) if together else None,
        )
        for name, m, n in zip(names, rows, columns, strict=True):
            made = None if together else Parameter(torch.empty(m, n, **factory))
            self.register_parameter(name, made)
        self.in_proj_bias: Parameter | None
        self.register_parameter(
            "in_proj_bias", Parameter(torch.empty(sum(rows), **factory)) if bias else None
        )
        self.out_proj = nn.Linear(width, width, bias=bias, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values, drawn as torch's own module draws them; the output's weight is kept."""
        for weight in (self.in_proj_weight, *self._apart()):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def _apart(self) -> tuple[Any, Any, Any]:
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.embed_dim}, heads={self.num_heads}/{self.num_kv_heads}, mask={self.mask}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        mask: Mask | Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: `[T, B, E]`, or `[B, T, E]` with `batch_first`, or `[T, E]` without a batch.
            key: `[S, B, kdim]`, likewise.
            value: `[S, B, vdim]`, likewise.
            key_padding_mask: `[B, S]` or `[S]`; bool, True for a key that is *not* seen, as in
                torch's module, or floating: added to the scores, -inf hides.
            need_weights: Must be False.
            attn_mask: `[T, S]` or `[B * num_heads, T, S]`; bool, True for a key that is *not* seen,
                as in torch's module, or floating: added to the scores. Quadratic: prefer `mask`.
            average_attn_weights: Without effect, as weights are not returned.
            is_causal: Query `i` sees keys up to `i`. An `attn_mask` beside it must say the same and
                then is not used.
            mask: A mask of `accel.attention`, or a bool tensor that broadcasts to `[B, H, T, S]`,
                True for a key that *is* seen, unlike the other two.

        Returns:
            The output, in the query's shape, and None in place of the weights.

        Raises:
            ValueError: `need_weights`, shapes that do not fit, an `attn_mask` that is not causal
                beside `is_causal`, or `is_causal` where there are not as many queries as keys.
            TypeError: A mask is neither bool nor floating.
        """
        if need_weights:
            raise ValueError(
                "need_weights=True asks for the [T, S] weights, which segmented attention never "
                "holds; torch.nn.MultiheadAttention loads the same state dict and returns them"
            )
        query, key, value, batched = self._batch_first(query, key, value)
        heads = self._project(query, key, value)
        batch, lengths = query.shape[0], (query.shape[1], key.shape[1])
        if is_causal:
            _check_causal(attn_mask, lengths)
            attn_mask = None
        padded, shifts = _padding(key_padding_mask, batch, lengths[1])
        hidden, biases = _dense(attn_mask, batch, self.num_heads, lengths)
        given = [self.mask, mask, causal() if is_causal else None, padded, hidden]
        out = segmented_attention(
            *heads,
            mask=_all(given),
            bias=biases if shifts is None else shifts if biases is None else biases + shifts,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _batch_first(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        dims = {tensor.dim() for tensor in given}
        if dims not in ({2}, {3}):
            raise ValueError(
                "query, key and value must all have three dimensions, or two without a batch, not "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in given)}"
            )
        widths = (self.embed_dim, self.kdim, self.vdim)
        for name, tensor, width in zip(("query", "key", "value"), given, widths, strict=True):
            if tensor.shape[-1] != width:
                raise ValueError(f"{name} must be {width} wide, not {tensor.shape[-1]}")
        if dims == {2}:
            query, key, value = (tensor.unsqueeze(0) for tensor in given)
        elif self.batch_first:
            query, key, value = given
        else:
            query, key, value = (tensor.transpose(0, 1) for tensor in given)
        return query, key, value, dims == {3}

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, H, T, D]`, and twice `[B, H_kv, S, D]`."""
        narrow = self.num_kv_heads * self.head_dim
        rows = (self.embed_dim, narrow, narrow)
        together = self.in_proj_weight
        weights: Any = self._apart() if together is None else together.split(rows)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(rows)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v


def replace_attention(module: nn.Module) -> int:
    """Put a `MultiheadAttention` in the place of each of torch's within a module, in place.

    Parameters are the same objects, so that an optimiser keeps what it has. A caller that asks for
    weights, as the default of torch's module does, gets an error from then on.

    Args:
        module: Any module with `torch.nn.MultiheadAttention` in it; it is not itself replaced.

    Returns:
        How many.

    Raises:
        ValueError: One of them has `add_bias_kv` or `add_zero_attn`; none is replaced then.
    """
    found = [
        (parent, name, child, _like(child))
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.MultiheadAttention)
    ]
    for parent, name, _, own in found:
        setattr(parent, name, own)
    for encoder in module.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            # Nested tensors, which padding would be turned into, go through torch's own alone.
            encoder.use_nested_tensor = False
    return len(found)


def _like(other: nn.MultiheadAttention) -> MultiheadAttention:
    own = MultiheadAttention(
        other.embed_dim,
        other.num_heads,
        other.dropout,
        other.in_proj_bias is not None,
        other.bias_k is not None,
        other.add_zero_attn,
        other.kdim,
        other.vdim,
        other.batch_first,
        device="meta",
    )
    for name, parameter in other.named_parameters(recurse=False):
        own.register_parameter(name, parameter)
    own.out_proj = other.out_proj
    return own.train(other.training)


def _check_sizes(embed_dim: int, num_heads: int, groups: int) -> None:
    if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}, both at least 1"
        )
    if groups < 1 or num_heads % groups:
        raise ValueError(f"num_heads {num_heads} must be a multiple of num_kv_heads {groups}")


def _check_causal(attn_mask: Tensor | None, lengths: tuple[int, int]) -> None:
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"is_causal=True does not say how {lengths[0]} queries stand to {lengths[1]} keys; "
            "give mask=accel.attention.causal('top_left') or causal('bottom_right')"
        )
    if attn_mask is None or torch.compiler.is_compiling():
        return
    hides = attn_mask if attn_mask.dtype == torch.bool else attn_mask == -torch.inf
    later = torch.ones(lengths, dtype=torch.bool, device=attn_mask.device).triu(1)
    added = attn_mask.dtype != torch.bool and bool((attn_mask * ~hides).nan_to_num().any())
    if added or not torch.equal(hides.expand(*hides.shape[:-2], *lengths), later.expand_as(hides)):
        raise ValueError("is_causal=True, but attn_mask is not the causal mask; leave one out")


def _padding(given: Tensor | None, batch: int, keys: int) -> tuple[Mask | None, Tensor | None]:
    """Key padding as a mask, and what it adds to the scores, `[B, 1, 1, S]`."""
    if given is None:
        return None, None
    padding = given.unsqueeze(0) if given.dim() == 1 else given
    if padding.shape != (batch, keys):
        raise ValueError(f"key_padding_mask must be [{batch}, {keys}], not {tuple(given.shape)}")
    hides, bias = _hides_and_adds("key_padding_mask", padding)
    shown = None
    if not torch.compiler.is_compiling():
        counts = (~hides).sum(1)
        after = torch.arange(keys, device=hides.device) >= counts.unsqueeze(1)
        shown = key_lengths(counts.tolist()) if torch.equal(after, hides) else None
    mask = Dense(~hides[:, None, None]) if shown is None else shown
    return mask, None if bias is None else bias[:, None, None]


def _dense(
    given: Tensor | None, batch: int, heads: int, lengths: tuple[int, int]
) -> tuple[Mask | None, Tensor | None]:
    """`attn_mask` as a mask, and what it adds to the scores, `[B or 1, H or 1, T, S]`."""
    if given is None:
        return None, None
    if given.shape not in (lengths, (batch * heads, *lengths)):
        raise ValueError(
            f"attn_mask must be {list(lengths)} or {[batch * heads, *lengths]}, not "
            f"{list(given.shape)}"
        )
    shape = (1, 1) if given.dim() == 2 else (batch, heads)
    hides, bias = _hides_and_adds("attn_mask", given.reshape(*shape, *lengths))
    return Dense(~hides), bias


def _hides_and_adds(name: str, given: Tensor) -> tuple[Tensor, Tensor | None]:
    """Which keys are hidden, bool; and what is added to the others, None if it is only zeros."""
    if given.dtype == torch.bool:
        return given, None
    if not given.dtype.is_floating_point:
        raise TypeError(
            f"{name} must be bool, True for what is not seen, or floating, not {given.dtype}"
        )
    hides = given == -torch.inf
    bias = given.masked_fill(hides, 0.0)
    known = not (torch.compiler.is_compiling() or given.requires_grad)
    return hides, None if known and not bool(bias.any()) else bias


def _all(masks: list[Mask | Tensor | None]) -> Mask | None:
    found: Mask | None = None
    for mask in masks:
        if mask is not None:
            found = as_mask(mask) if found is None else found & as_mask(mask)
    return found
