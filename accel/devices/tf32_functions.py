"""One call for the reduced inner precision of float32 products: TF32 on NVIDIA, HF32 on Ascend."""

from __future__ import annotations

import torch

from accel.devices.choice import current_family
from accel.devices.switches import SWITCHES


def allow_tf32(allow: bool = True, *, matmul: bool = True, conv: bool = True) -> None:
    """Let float32 products round their operands to TF32, or on Ascend to HF32.

    For `torch.backends.cuda.matmul.allow_tf32 = True` and `torch.backends.cudnn.allow_tf32 = True`,
    which it sets on every machine, so that a CPU keeps the numbers that it had with them. HF32 has
    11 bits of mantissa, TF32 10. `accel.use_numerics_mode` sets the same switches for a block.

    Args:
        allow: False for full float32.
        matmul: Of matrix products. torch's default is full float32.
        conv: Of convolutions. The default of cuDNN and of Ascend is the reduced one.
    """
    on_npu = current_family().family == "npu"
    if matmul:
        torch.backends.cuda.matmul.allow_tf32 = allow
        if on_npu:
            SWITCHES["npu_matmul_hf32"].set(allow)
    if conv:
        torch.backends.cudnn.allow_tf32 = allow
        if on_npu:
            SWITCHES["npu_conv_hf32"].set(allow)
