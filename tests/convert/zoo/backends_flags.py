"""Flags of the back ends."""

import torch
import torch.backends.cudnn as cudnn  # keep
from torch.nn.attention import SDPBackend, sdpa_kernel

cudnn.benchmark = True  # keep
cudnn.deterministic, cudnn.enabled = False, True  # keep
torch.backends.cuda.matmul.allow_tf32 = True  # convert
torch.backends.cudnn.allow_tf32 = True  # convert
torch.set_float32_matmul_precision("high")  # keep
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # keep
torch.backends.cuda.enable_mem_efficient_sdp(False)  # keep


def attend(f):
    was = torch.backends.cuda.matmul.allow_tf32  # keep
    with torch.backends.cuda.sdp_kernel(enable_math=False):  # flag
        f()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):  # keep
        f()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):  # flag
        f()
    torch.backends.cuda.cufft_plan_cache.clear()  # flag
    return was, torch.compile(f, mode="max-autotune-no-cudagraphs")  # keep
