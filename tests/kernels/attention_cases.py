"""What attention is tested on: every feature with an independent statement of what it means.

Masks come with rules in plain Python (`mask_rules`), biases as whole tensors, dropout as the whole
mask of what is kept; nothing here shares code with the kernels but the constructors.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.attention import (
    Bias,
    alibi,
    causal,
    documents,
    key_lengths,
    prefix,
    relative_bias,
    window,
)
from accel_kernels import philox
from accel_kernels.masks import Mask, Sizes, as_mask
from tests.kernels.mask_rules import Ruled, table


class Case(NamedTuple):
    """One call: sizes, and by name what it uses."""

    name: str
    heads: int = 2
    key_heads: int = 2
    queries: int = 37
    keys: int = 37
    mask: str | None = None
    bias: str | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    scale: float | None = None
    segment_size: int | None = 16
    head_size: int = 16
    value_head_size: int | None = None

    @property
    def sizes(self) -> Sizes:
        return Sizes(2, self.heads, self.queries, self.keys)


def place(sizes: Sizes, i: int) -> int:
    return i + sizes.key_length - sizes.query_length


def ruled(name: str, sizes: Sizes) -> Ruled:
    """A mask and its rule, by name."""
    _, _, t, s = sizes
    random_mask = torch.rand(
        (2, sizes.heads, t, s), generator=torch.Generator().manual_seed(3)
    ) < 0.6  # fmt: skip
    random_mask[0, 0, t // 2] = False
    half_q, half_k = t // 3, s // 2
    end_q, end_k = max(half_q, t - 2), max(half_k, s - 1)

    def behind(i: int, j: int) -> int:
        return place(sizes, i) - j

    def same_document(i: int, j: int) -> bool:
        return (i < half_q and j < half_k) or (half_q <= i < end_q and half_k <= j < end_k)

    def within(i: int, j: int) -> bool:
        if i < half_q:
            return j < half_k and j <= i + half_k - half_q
        return same_document(i, j) and j - half_k <= (i - half_q) + (end_k - half_k) - (
            end_q - half_q
        )

    bounds = ([0, half_q, end_q], [0, half_k, end_k])
    masks: dict[str, tuple[Any, Any]] = {
        "causal": (causal(), lambda b, h, i, j: behind(i, j) >= 0),
        "causal top left": (causal("top_left"), lambda b, h, i, j: j <= i),
        "window": (window(6, 2), lambda b, h, i, j: -2 <= behind(i, j) <= 6),
        "window with sinks": (
            window(5, 0, sinks=3),
            lambda b, h, i, j: behind(i, j) >= 0 and (behind(i, j) <= 5 or j < 3),
        ),
        "documents": (documents(*bounds), lambda b, h, i, j: same_document(i, j)),
        "causal documents": (
            documents(*bounds, within=causal()), lambda b, h, i, j: within(i, j),
        ),
        "prefix": (
            causal() | prefix(7), lambda b, h, i, j: behind(i, j) >= 0 or j < 7,
        ),
        "key lengths": (key_lengths([s - 5, 3]), lambda b, h, i, j: j < (s - 5, 3)[b]),
        "no keys in one entry": (
            key_lengths([0, s]) & causal(),
            lambda b, h, i, j: b == 1 and behind(i, j) >= 0,
        ),
        "dense": (as_mask(random_mask), lambda b, h, i, j: bool(random_mask[b, h, i, j])),
        "dense and causal": (
            causal() & random_mask[:, :1],
            lambda b, h, i, j: behind(i, j) >= 0 and bool(random_mask[b, 0, i, j]),
        ),
    }  # fmt: skip
    return Ruled(*masks[name])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bias_tensor(name: str, sizes: Sizes) -> Tensor:
    """The learnable tensor of a bias, in float64."""
    b, h, t, s = sizes
    return {
        "alibi": lambda: numbers(h).abs(),
        "alibi by entry": lambda: numbers(b, h).abs(),
        "relative": lambda: numbers(h, 2 * 9 + 1),
        "relative, one table": lambda: numbers(1, 2 * (t + s) + 1),
        "dense": lambda: numbers(b, h, t, s),
        "dense by key": lambda: numbers(b, 1, 1, s),
    }[name]()


def bias_of(name: str, tensor: Tensor) -> Bias | Tensor:
    if name.startswith("alibi"):
        return alibi(tensor)
    return relative_bias(tensor) if name.startswith("relative") else tensor


def whole_bias(name: str, tensor: Tensor, sizes: Sizes) -> Tensor:
    """A bias as a tensor that broadcasts to `[B, H, T, S]`, differentiable."""
    _, _, t, s = sizes
    distances = torch.tensor([[j - place(sizes, i) for j in range(s)] for i in range(t)])
    distances = distances.view(t, s).to(tensor.device)
    if name.startswith("alibi"):
        slopes = tensor if tensor.dim() == 2 else tensor[None]
        return -slopes[:, :, None, None] * distances.abs().to(tensor.dtype)
    if name.startswith("relative"):
        reach = tensor.shape[1] // 2
        return tensor[:, distances.clamp(-reach, reach) + reach]
    return tensor


def kept(sizes: Sizes, p: float, seed: int) -> Tensor:
    """Factor of each probability, `[B, H, T, S]` in float64."""
    positions = torch.arange(sizes.batch * sizes.heads * sizes.query_length * sizes.key_length)
    return philox.keep_mask(seed, positions, p).view(sizes).double() / (1 - p)


@functools.cache  # a call of the rule for every element takes its time
def seen(case: Case) -> Tensor | None:
    return None if case.mask is None else table(ruled(case.mask, case.sizes).rule, case.sizes)


def mask_of(case: Case, device: torch.device) -> Mask | None:
    if case.mask is None:
        return None
    mask = ruled(case.mask, case.sizes).mask
    if "dense" not in case.mask:
        return mask
    there = torch.as_tensor(seen(case)).to(device)
    return as_mask(there) if case.mask == "dense" else causal() & there


def draw(case: Case, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Query, key and value, rounded to `dtype`."""
    value_size = case.value_head_size or case.head_size
    shapes = (
        (case.heads, case.queries, case.head_size),
        (case.key_heads, case.keys, case.head_size),
        (case.key_heads, case.keys, value_size),
    )
    return [numbers(2, *shape, seed=seed + n).to(dtype) for n, shape in enumerate(shapes)]


MASKS = (
    "causal", "causal top left", "window", "window with sinks", "documents", "causal documents",
    "prefix", "key lengths", "no keys in one entry", "dense", "dense and causal",
)  # fmt: skip
BIASES = ("alibi", "alibi by entry", "relative", "relative, one table", "dense", "dense by key")
CASES = (
    Case("plain, one segment", segment_size=None),
    Case("plain", 4, 2, 63, 100),
    Case("causal, one segment", mask="causal", segment_size=None),
    Case("causal, one key head", 4, 1, 63, 100, mask="causal"),
    Case("causal, more queries than keys", 2, 2, 50, 23, mask="causal"),
    Case("one query, many keys", 6, 3, 1, 203, mask="causal"),
    Case("segments of one", 6, 3, 17, 17, mask="causal", segment_size=1),
    *(Case(f"mask: {name}", mask=name, keys=45) for name in MASKS),
    *(Case(f"mask: {name}, grouped", 4, 2, 33, 40, mask=name) for name in MASKS[2:]),
    *(Case(f"bias: {name}", bias=name, keys=41) for name in BIASES),
    Case("alibi, causal, grouped", 4, 2, mask="causal", bias="alibi"),
    Case("relative, window", mask="window", bias="relative"),
    Case("softcap", softcap=1.5),
    Case("softcap, causal, dense bias", mask="causal", softcap=1.5, bias="dense"),
    Case("dropout", dropout_p=0.3),
    Case("dropout, window, grouped", 4, 2, mask="window", dropout_p=0.5),
    Case("everything", 4, 2, 30, 41, mask="prefix", bias="relative", softcap=2.0, dropout_p=0.2),
    Case("value head size smaller", value_head_size=5, mask="causal"),
    Case("value head size larger", value_head_size=24, mask="window"),
    Case("negative scale", scale=-0.3, mask="causal"),
    Case("no scale", scale=0.0, mask="causal"),
    Case("head size 1", head_size=1, mask="causal"),
)
