"""Fine-tuning of a frozen encoder, written where people have CUDA, MPS or nothing."""
from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn

os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "1"


def get_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def pick() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    elif torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass
class TrainingArguments:
    lr: float = 3e-2
    max_steps: int = 5
    fp16: bool = False
    device: str = field(default_factory=get_device)
    tags: dict = field(default_factory=lambda: {"cuda": "gpu", "mps": "apple", "cpu": "host"})

    def __post_init__(self):
        if self.fp16 and not self.device.startswith("cuda"):
            raise ValueError("fp16 needs a GPU, got %r" % self.device)
        print("running on", self.tags.get(self.device, "another chip"))


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, r: int = 2, device: Optional[torch.device] = None):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.linspace(-1, 1, base.in_features * r).view(r, -1).to(device or pick()))
        self.b = nn.Parameter(torch.zeros(base.out_features, r, device=device or pick()))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Tensor:
        if x.device != self.device:
            x = x.to(self.device)
        return self.base(x) + x @ self.a.T @ self.b.T


def free(device: str | torch.device):
    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    elif kind == "mps":
        torch.mps.empty_cache()


def main(args: TrainingArguments):
    torch.manual_seed(8)
    model = nn.Sequential(LoRA(nn.Linear(12, 16).to(args.device)), nn.Softplus(), LoRA(nn.Linear(16, 4).to(args.device)))
    trainable = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(trainable, lr=args.lr, foreach=None)
    device_type = args.device.split(":")[0]
    ctx = torch.autocast(device_type, dtype=torch.float16) if args.fp16 else contextlib.nullcontext()
    for step in range(args.max_steps):
        x = torch.randn(20, 12)
        with ctx:
            loss = nn.functional.poisson_nll_loss(model(x), x[:, :4].abs().to(args.device))
        loss.backward()
        opt.step()
        opt.zero_grad()
        print({"step": step, "loss": loss.item().hex()})
    free(args.device)


if __name__ == "__main__":
    main(TrainingArguments())
