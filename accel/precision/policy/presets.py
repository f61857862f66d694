"""Recipes that are known to train, by name.

All keep parameters in float32 and compute what is not in eight bits in bfloat16 (`fp16`: float16).
In eight bits: both operands of the three products of each linear layer, except the output head and
the router of a mixture of experts, as DeepSeek-V3 keeps them (arXiv 2412.19437, section 3.3.1);
embeddings, norms and the products of attention are no linear layers.
"""

from __future__ import annotations

from types import MappingProxyType

import torch

from accel.precision.policy.policy import Policy
from accel.precision.policy.rule import Rule

_KEPT = (
    Rule(torch.bfloat16, type="head", optional=True),
    Rule(torch.bfloat16, name="router|gate|*.router|*.gate", type="linear", optional=True),
)


def _eight_bits(
    activations: str, *, weights: str | None = None, gradients: str | None = None
) -> Policy:
    rules = list(_KEPT)
    if gradients is not None:
        rules.append(Rule(gradients, type="linear", role="gradient"))
    if weights is not None:
        rules.append(Rule(weights, type="linear", role="weight"))
    return Policy(torch.bfloat16, rules=[*rules, Rule(activations, type="linear")])


PRESETS = MappingProxyType(
    {
        "bf16": Policy(torch.bfloat16),
        "fp16": Policy(torch.float16),
        # The scale of this step's tensor; E4M3 forward, E5M2 for gradients: TransformerEngine's
        # Float8CurrentScaling with Format.HYBRID, and arXiv 2209.05433, section 3.
        "fp8_tensorwise": _eight_bits("float8_e4m3fn", gradients="float8_e5m2"),
        # torchao.float8's recipe "rowwise": E4M3 throughout, scales that are powers of two.
        "fp8_rowwise": _eight_bits("float8_e4m3fn:row:pow2"),
        # DeepSeek-V3, arXiv 2412.19437 section 3.3.2: E4M3 throughout, activations and gradients
        # in tiles of 1x128, weights in blocks of 128x128, float32 scales. Left out: the powers of
        # two and the E5M6 of some activations that it stores (3.3.3).
        "fp8_block": _eight_bits("float8_e4m3fn:1x128", weights="float8_e4m3fn:128x128"),
        # OCP MX 1.0 section 5; E4M3 also for gradients and scales rounded so that nothing
        # saturates: arXiv 2506.08027.
        "mxfp8": _eight_bits("float8_e4m3fn:1x32"),
        # MindSpeed's hif8: tensorwise, the largest magnitude at 15, of gradients at 224, where
        # HiFloat8 still has 3 and 2 bits of mantissa (arXiv 2409.16626 section 3).
        "hif8": _eight_bits("hifloat8:target=15", gradients="hifloat8:target=224"),
        # TransformerEngine's DelayedScaling with its defaults: HYBRID, the largest of 1024 steps,
        # margin 0.
        "fp8_delayed": _eight_bits(
            "float8_e4m3fn:delayed=1024", gradients="float8_e5m2:delayed=1024"
        ),
    }
)
