"""What the conformance suite computes: formulas, inputs and a small model, all on fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel.attention import segmented_attention


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of one attention call. `segment_size` cuts even these short lengths into segments."""

    name: str
    heads: int
    key_heads: int
    queries: int
    keys: int
    is_causal: bool
    head_size: int = 16
    batch: int = 2
    segment_size: int | None = None

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, value and the gradient of the output, rounded to `dtype`, on the CPU."""
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int, length: int) -> Tensor:
            shape = (self.batch, heads, length, self.head_size)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        return (
            draw(self.heads, self.queries),
            draw(self.key_heads, self.keys),
            draw(self.key_heads, self.keys),
            draw(self.heads, self.queries),
        )


ATTENTION_CASES = (
    AttentionCase("full attention", 4, 4, 100, 63, is_causal=False),
    AttentionCase("causal attention", 4, 4, 100, 100, is_causal=True),
    AttentionCase("causal attention in segments", 4, 4, 63, 100, True, segment_size=32),
    AttentionCase("grouped causal attention", 6, 2, 65, 65, is_causal=True),
)


def attention_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    seen: Tensor | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Attention as its definition says, with the whole score matrix, in the inputs' dtype.

    In float64 the truth of the suite, in other dtypes its independent implementation.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        is_causal: Aligned at the bottom right.
        scale: `1 / sqrt(D)` if None.
        seen: bool, broadcasts to `[B, H, T, S]`: which keys a query sees.
        softcap: `softcap * tanh(score / softcap)`.
        bias: Added to the capped scores; broadcasts to `[B, H, T, S]`.
        kept: Factor of the probabilities, `[B, H, T, S]`: 0, or 1 over the share that is kept.
    """
    scores = _scores(query, key, scale, softcap, bias)
    if is_causal:
        rows, columns = scores.shape[-2:]
        below = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~below.tril(columns - rows), -math.inf)
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    # A row that sees no key is all NaN in a softmax; its attention is zero.
    probability = torch.softmax(scores, -1).nan_to_num(0.0)
    if kept is not None:
        probability = probability * kept.to(probability.dtype)
    return probability @ value.repeat_interleave(query.shape[1] // key.shape[1], 1)


def _scores(
    query: Tensor, key: Tensor, scale: float | None, softcap: float | None, bias: Tensor | None
) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores if bias is None else scores + bias


class Transformer(nn.Module):
    """A decoder in today's form: RMS norms, grouped heads, a gated feed-forward layer.

    Args:
        tokens: Size of the vocabulary.
        width: Of the residual stream.
        layers: Number of blocks.
        attention: Called as `attention(query, key, value, is_causal=True)`.
    """

    def __init__(
        self,
        tokens: int = 61,
        width: int = 48,
        layers: int = 2,
        attention: Callable[..., Tensor] = segmented_attention,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(_Block(width, attention) for _ in range(layers)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Token numbers `[B, T]` to logits `[B, T, tokens]`."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(text))))
        return logits

    def loss(self, text: Tensor) -> Tensor:
        """Mean cross-entropy of each token given those before it, in float32 or float64."""
        logits = self(text[:, :-1])
        logits = logits.float() if logits.dtype != torch.float64 else logits
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class _Block(nn.Module):
    heads, key_heads, head_size = 4, 2, 12

    def __init__(self, width: int, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, self.heads * self.head_size)
        self.key = nn.Linear(width, self.key_heads * self.head_size)
        self.value = nn.Linear(width, self.key_heads * self.head_size)
        self.out = nn.Linear(self.heads * self.head_size, width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            projection(y).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = self.attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        hidden: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + hidden


_in_segments: Callable[..., Tensor] = partial(segmented_attention, segment_size=16)


def transformer_inputs(
    layers: int = 2,
    attention: Callable[..., Tensor] = _in_segments,
) -> tuple[Transformer, Tensor]:
    """The model with its seeded parameters, and token numbers `[3, 34]`, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(layers=layers, attention=attention)
        text = torch.randint(61, (3, 34))
    return model, text
