"""A segmentation trainer with every switch that such trainers have."""

import random

import numpy as np
import torch
import torch.backends.cudnn as cudnn  # keep
from torch.cuda.amp import GradScaler, autocast  # convert
from torch.utils.data import DataLoader

AMP_DTYPE = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16  # convert


def seed_everything(seed, deterministic=False):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed(seed)  # convert
    torch.cuda.manual_seed_all(seed)  # convert
    cudnn.deterministic = deterministic  # keep
    cudnn.benchmark = not deterministic  # keep
    torch.backends.cuda.matmul.allow_tf32 = not deterministic  # convert
    torch.backends.cudnn.allow_tf32 = not deterministic  # convert


class Trainer:
    def __init__(self, model, data, amp=True):
        self.model = torch.compile(model)  # keep
        self.loader = DataLoader(data, batch_size=4, pin_memory=True)  # keep
        self.scaler = GradScaler(enabled=amp)
        self.copies = torch.cuda.Stream()  # convert
        self.amp = amp

    def batches(self):
        for x, y in self.loader:
            with torch.cuda.stream(self.copies):  # convert
                x = x.pin_memory()  # convert
            torch.cuda.current_stream().wait_stream(self.copies)  # convert
            x.record_stream(torch.cuda.current_stream())  # convert
            yield x, y

    def epoch(self, optimizer):
        torch.cuda.reset_peak_memory_stats()  # convert
        for x, y in self.batches():
            with autocast(enabled=self.amp, dtype=AMP_DTYPE):
                loss = torch.nn.functional.mse_loss(self.model(x), y)
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()
        torch.cuda.synchronize()  # convert
        return torch.cuda.max_memory_allocated() // 2**20  # convert

    @torch.no_grad()
    def evaluate(self, x):
        with torch.autocast(device_type="cuda", dtype=AMP_DTYPE, enabled=self.amp):  # convert
            return self.model(x).float()

    def state(self):
        return {
            "model": self.model.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": (torch.get_rng_state(), torch.cuda.get_rng_state()),  # convert
        }

    def restore(self, state):
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"][0])
        torch.cuda.set_rng_state(state["rng"][1])  # convert


def sample(model, n, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)  # convert
    try:
        return model(torch.randn(n, generator=generator, device="cuda"))  # convert
    except torch.cuda.OutOfMemoryError:  # convert
        torch.cuda.empty_cache()  # convert
        return None
