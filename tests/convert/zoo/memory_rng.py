"""Seeds, states, generators and page-locked memory."""

import torch
from torch.utils.data import DataLoader


def seed(n):
    torch.manual_seed(n)
    torch.cuda.manual_seed(n)  # convert
    torch.cuda.manual_seed_all(n)  # convert
    return torch.Generator(device="cuda").manual_seed(n), torch.Generator("cuda:1")  # convert


def save():
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),  # convert keep
        "first": torch.cuda.default_generators[0],  # convert
    }


def load(states):
    torch.set_rng_state(states["cpu"])
    torch.cuda.set_rng_state_all(states["cuda"])  # convert keep


def probe(f):
    with torch.random.fork_rng(devices=[0]):  # convert
        f()
    with torch.random.fork_rng([], device_type="cpu"):
        f()


def loader(data, device):
    first = DataLoader(data, pin_memory=True)  # keep
    second = DataLoader(data, pin_memory=True, pin_memory_device="cuda")  # convert keep
    third = DataLoader(data, pin_memory=True, pin_memory_device=device)  # keep flag
    host = torch.empty(3, pin_memory=True)  # convert
    return first, second, third, host.pin_memory()  # convert


class Batch:
    def pin_memory(self):
        self.x = self.x.pin_memory()  # convert
        return self
