"""Imports in every shape."""
from __future__ import annotations

import os
import torch, torch.cuda  # keep
from torch.cuda import (  # convert
    device,
    empty_cache,
    set_device,  # the process's
)
from torch.cuda import is_available, nccl  # convert
from torch.cuda.random import manual_seed_all  # convert
from torch.cuda.memory import max_memory_allocated  # convert
from torch.cuda import OutOfMemoryError as OOM  # convert

try:
    from torch.cuda.amp import GradScaler  # convert
except ImportError:
    class GradScaler:
        pass

if os.environ.get("FAST"):
    from torch.cuda.amp import autocast  # convert
else:
    from contextlib import nullcontext as autocast

try:
    from torch.amp import custom_fwd
except ImportError:
    from torch.cuda.amp import custom_fwd  # flag


def main():
    set_device(0); manual_seed_all(1)
    with device(0), autocast():
        scaler = GradScaler()
        empty_cache()
    try:
        print(max_memory_allocated(), is_available(), nccl.version())  # flag
    except OOM:
        return scaler
