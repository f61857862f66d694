"""What benchmarks/attention.py measures, and what it measures against."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import accel
from accel.attention import Mask, causal, documents, window
from accel.testing.cases import attention_formula
from accel_kernels.masks import Sizes, dense_visibility, visibility

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
LONGEST_FORMULA = 4096


@dataclass(frozen=True)
class Case:
    """One attention: sizes, dtype, mask by name, and threads if not all."""

    length: int
    mask: str = "causal"
    dtype: torch.dtype = torch.float32
    heads: int = 4
    key_heads: int | None = None
    queries: int | None = None
    head_size: int = 64
    threads: int | None = None
    backward: bool = True

    @property
    def name(self) -> str:
        """What it is, in words."""
        heads = f"{self.heads}" if self.key_heads is None else f"{self.heads}:{self.key_heads}"
        rows = "" if self.queries is None else f"{self.queries} queries, "
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{rows}{self.length} keys, {heads} heads of {self.head_size}, {dtype}, {self.mask}"

    def structure(self) -> Mask | None:
        """The mask."""
        steps = list(range(0, self.length + 1, 512))
        masks: dict[str, Callable[[], Mask | None]] = {
            "full": lambda: None,
            "causal": causal,
            "window of 512": lambda: window(511, 0),
            "documents of 512": lambda: documents(steps),
            "causal documents of 512": lambda: documents(steps, within=causal()),
        }
        return masks[self.mask]()

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Query, key and value, fresh."""
        key_heads = self.key_heads or self.heads
        shapes = (
            (1, self.heads, self.queries or self.length, self.head_size),
            (1, key_heads, self.length, self.head_size),
            (1, key_heads, self.length, self.head_size),
        )
        return [torch.randn(shape, device=device).to(self.dtype) for shape in shapes]

    def pairs(self) -> int:
        """Scores that are seen, over all heads."""
        queries = self.queries or self.length
        seen = {
            "full": queries * self.length,
            "causal": sum(min(self.length, self.length - queries + i + 1) for i in range(queries)),
            "window of 512": sum(min(512, i + 1) for i in range(self.length)),
            "documents of 512": self.length * 512,
            "causal documents of 512": self.length * 513 // 2,
        }[self.mask]
        return self.heads * seen


def forms(case: Case, device: torch.device) -> dict[str, Form]:
    """Ours by every backend that can, and every peer that is here and fits in memory."""
    mask = case.structure()
    found: dict[str, Form] = {
        "accel": lambda q, k, v: accel.segmented_attention(q, k, v, mask=mask),
    }
    given = [tensor.requires_grad_() for tensor in case.tensors(device)]
    for spec in accel.backends("segmented_attention"):
        answer = accel.explain("segmented_attention", *given, mask=mask, backend=spec.name)
        # torch's own operator is a peer already, on a CPU.
        left_out = ("reference", "sdpa") if device.type == "cpu" else ("reference",)
        if answer.chosen and spec.name not in left_out:
            found[f"accel {spec.name}"] = partial(
                accel.segmented_attention, mask=mask, backend=spec.name
            )
    return found | _sdpa(case, mask, device) | _others(case, mask, device)


def _sdpa(case: Case, mask: Mask | None, device: torch.device) -> dict[str, Form]:
    """With `is_causal` where torch has it, else with the bool mask that a user would build."""
    grouped = case.key_heads is not None
    square = case.queries is None
    if case.mask == "full" or (case.mask == "causal" and not square and case.queries == 1):
        return {"sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)}
    if case.mask == "causal" and square:
        return {
            "sdpa": lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=grouped
            )
        }
    seen = _dense(case, mask, device)
    return {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, enable_gqa=grouped
        )
    }


def _dense(case: Case, mask: Mask | None, device: torch.device) -> Tensor:
    sizes = Sizes(1, 1, case.queries or case.length, case.length)
    return dense_visibility(visibility(mask, sizes, device), sizes, device)


def _others(case: Case, mask: Mask | None, device: torch.device) -> dict[str, Form]:
    found: dict[str, Form] = {}
    if case.length <= LONGEST_FORMULA:
        seen = None if mask is None else _dense(case, mask, device)
        found["formula"] = lambda q, k, v: attention_formula(q, k, v, seen=seen)
    if device.type == "cuda":
        found |= _flex(case, mask, device)
    if device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        found |= _flash(case)
    if device.type == "cuda" and importlib.util.find_spec("xformers") is not None:
        found |= _xformers(case)
    return found


def _flex(case: Case, mask: Mask | None, device: torch.device) -> dict[str, Form]:
    """Compiled FlexAttention, its block mask made beforehand; its backward does not run on CPUs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # each case anew: recompiled too often, it would run unfused in silence
    compiled: Any = torch.compile(flex_attention, fullgraph=True)
    rules = {
        "full": None,
        "causal": lambda b, h, q, k: q >= k,
        "window of 512": lambda b, h, q, k: (q >= k) & (q - k < 512),
        "documents of 512": lambda b, h, q, k: q // 512 == k // 512,
        "causal documents of 512": lambda b, h, q, k: (q // 512 == k // 512) & (q >= k),
    }
    rule, rows = rules[case.mask], case.queries or case.length
    block = None if rule is None else create_block_mask(rule, None, None, rows, case.length, device)
    grouped = case.key_heads is not None
    return {"flex": lambda q, k, v: compiled(q, k, v, block_mask=block, enable_gqa=grouped)}


def _flash(case: Case) -> dict[str, Form]:
    """FlashAttention's own package, for what it has without packing."""
    from flash_attn import flash_attn_func

    reach = {"full": (-1, -1), "causal": (-1, -1), "window of 512": (511, 0)}.get(case.mask)
    if reach is None or case.dtype not in (torch.float16, torch.bfloat16):
        return {}
    is_causal = case.mask == "causal"

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        laid = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: Tensor = flash_attn_func(*laid, causal=is_causal, window_size=reach)
        return out.transpose(1, 2)

    return {"flash_attn": flash}


def _xformers(case: Case) -> dict[str, Form]:
    """Memory-efficient attention of xformers, for heads of one kind and masks without packing."""
    from xformers import ops

    if case.mask not in ("full", "causal") or case.key_heads is not None:
        return {}
    bias = ops.LowerTriangularMask() if case.mask == "causal" else None

    def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        laid = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: Tensor = ops.memory_efficient_attention(*laid, attn_bias=bias)
        return out.transpose(1, 2)

    return {"xformers": efficient}


BOTH = (torch.float32, torch.bfloat16)


def cases(longest: int) -> list[Case]:
    """Over length, mask, dtype and heads, up to a length; what "Done when" asks is among them."""
    found = [
        Case(length, mask, dtype, heads)
        for dtype in BOTH
        for mask in ("full", "causal")
        for heads, lengths in (
            (1, (64, 256, 512, 4096)),
            (4, (64, 128, 256, 384, 512, 1024, 2048, 8192)),
            (16, (64, 256, 512, 2048)),
        )
        for length in lengths
    ]
    found += [Case(8192, mask, dtype) for dtype in BOTH for mask in (
        "window of 512", "documents of 512", "causal documents of 512",
    )]  # fmt: skip
    found += [Case(8192, "causal", dtype, 4, head_size=128) for dtype in BOTH]
    found += [Case(40960, "full", dtype, 8, 1, queries=1, backward=False) for dtype in BOTH]
    found += [Case(40960, "full", dtype, 1, queries=1, backward=False) for dtype in BOTH]
    found += [Case(length, "causal", dtype) for dtype in BOTH for length in (1, 16)]
    return [case for case in found if case.length <= max(longest, 1)]
