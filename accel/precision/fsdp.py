"""A policy as FSDP2 takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from accel.precision.policy import Policy

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed.fsdp import MixedPrecisionPolicy


def mixed_precision_policy(policy: Policy | str) -> MixedPrecisionPolicy:
    """The `mp_policy` that makes `fully_shard` gather parameters in the policy's compute dtype.

    It halves what the ranks exchange. It says nothing of operators (softmax and norms would run in
    16 bits), so train under `Precision.autocast` all the same; and layers in eight bits then
    quantize a weight that has been rounded to 16 bits before. Without it FSDP2 gathers float32, and
    results are those of one process.

    Args:
        policy: A policy or its text. Gradients are reduced in float32, whatever it says.

    Raises:
        ValueError: The text is not understood, or the policy computes in float16, whose gradients
            FSDP2 casts before anything could scale them.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = Policy.parse(policy) if isinstance(policy, str) else policy
    if policy.compute == torch.float16:
        raise ValueError(
            "FSDP2 would gather float16 parameters and reduce unscaled float16 gradients: compute "
            "in bfloat16, or leave mp_policy away and let autocast compute in float16"
        )
    narrow = policy.compute != policy.params
    return MixedPrecisionPolicy(
        param_dtype=policy.compute if narrow else None,
        reduce_dtype=torch.float32,
        output_dtype=policy.output if policy.output != policy.compute else None,
        cast_forward_inputs=narrow,
    )
