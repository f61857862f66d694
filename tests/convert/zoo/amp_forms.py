"""Mixed precision as programs of several years write it."""

import functools
from contextlib import nullcontext

import torch
from torch.amp import GradScaler as Scaler  # convert
from torch.cuda import amp  # keep

DEVICE = "cuda"  # convert
scaler = amp.GradScaler(init_scale=2.0**10, enabled=True)  # convert
newer = Scaler("cuda", enabled=True)  # convert
plain = torch.amp.GradScaler()  # convert


class Square(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # convert
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # convert
    def backward(ctx, g):
        return g * 2 * ctx.saved_tensors[0]


class Older(torch.autograd.Function):
    @staticmethod
    @amp.custom_fwd  # convert
    def forward(ctx, x):
        return x

    @staticmethod
    @torch.cuda.amp.custom_bwd  # convert
    def backward(ctx, g):
        return g


def step(model, x, kind, use_amp):
    with torch.cuda.amp.autocast(use_amp):  # convert
        y = model(x)
    with torch.autocast("cuda", torch.bfloat16, use_amp, True):  # convert
        y = y + model(x)
    with torch.autocast(  # convert
        device_type=DEVICE,
        enabled=use_amp,
    ):
        y = y + model(x)
    with torch.autocast(device_type=kind, dtype=torch.bfloat16):  # keep
        y = y + model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = y + model(x)
    cast = functools.partial(torch.autocast, device_type="cuda")  # convert
    context = nullcontext() if kind == "cpu" else torch.amp.autocast(kind)  # keep
    with cast(), context:
        return y


@torch.cuda.amp.autocast()  # convert
def decorated(model, x, **options):
    with torch.autocast(**options):  # flag
        if torch.is_autocast_enabled():  # flag
            return model(x).to(torch.get_autocast_gpu_dtype())  # flag
