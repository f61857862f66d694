"""Devices by number, in the manner of distributed tutorials."""
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP


class Trainer:
    def __init__(self, model, gpu_id: int):
        self.gpu_id = gpu_id
        self.model = model.to(gpu_id)  # convert
        self.model = DDP(self.model, device_ids=[gpu_id])  # convert

    def step(self, source, targets):
        source = source.to(self.gpu_id)  # convert
        targets = targets.to(self.gpu_id, non_blocking=True)  # convert
        return torch.nn.functional.mse_loss(self.model(source), targets)


def worker(rank, world_size):
    net = torch.nn.Linear(2, 2).to(rank)  # convert
    ddp = DDP(net, device_ids=[rank], output_device=rank)  # convert
    flags = torch.zeros(2, device=rank)  # convert
    total = torch.zeros(1).to(torch.cuda.current_device())  # convert
    dist.barrier(device_ids=[rank])  # convert
    return ddp, flags, total


def from_environment():
    local_rank = int(os.environ["LOCAL_RANK"])
    device_id = local_rank % max(1, world())
    net = torch.nn.Linear(2, 2).to(device_id)  # convert
    here = torch.device(local_rank)  # convert
    both = [torch.ones(1).to(i) for i in range(2)]  # convert
    return net, here, both


def world():
    return int(os.environ["WORLD_SIZE"])


def untouched(x, other, dtype, scale):
    y = x.to(other)
    y = y.to(dtype)
    y = y.to(torch.float64)  # flag
    return torch.nn.DataParallel(y), scale  # flag


if __name__ == "__main__":
    mp.spawn(worker, args=(2,), nprocs=2)
    device = 0
    first = torch.ones(3).to(device)  # convert
    second = torch.ones(3, device=0)  # convert
