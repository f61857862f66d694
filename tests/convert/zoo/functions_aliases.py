"""Every name that the module may have in a file, and what is something else of that name."""

import torch
import torch.cuda as gpu  # keep
import torch.cuda.nvtx as marks  # keep
from torch import cuda, nn  # convert
from torch.cuda import current_device as here  # convert
from torch.cuda import synchronize  # convert

import numba.cuda  # flag
from accelerators import cuda as vendor  # flag

api = torch.cuda  # keep
wait = torch.cuda.synchronize  # convert


def report():
    synchronize()
    wait()
    print(gpu.memory_allocated() / 2**20, cuda.max_memory_cached())  # convert
    print(api.get_device_name(here()), torch.cuda.get_device_capability())  # convert
    gpu.reset_max_memory_allocated()  # convert
    with gpu.device(0), marks.range("report"):  # convert
        gpu.empty_cache(); cuda.ipc_collect()  # convert
    return f"{torch.cuda.current_device()} of {cuda.device_count():>2d}"  # convert


def local():
    from torch.cuda import mem_get_info, memory_stats as stats  # convert

    return mem_get_info(), stats()


def shadowed(torch, gpu):
    torch.cuda.synchronize()  # flag
    gpu.synchronize()
    return nn.Linear(2, 2)


class Board:
    cuda = None  # keep

    def synchronize(self):
        self.cuda.synchronize()  # keep


def run(steps):
    try:
        for _ in range(steps):
            report()
    except torch.cuda.OutOfMemoryError:  # convert
        torch.cuda.empty_cache()  # convert
    vendor.synchronize()


def only_there():
    torch.cuda.synchronize = print  # flag
    helper(torch.cuda)  # flag
    print(torch.cuda.get_arch_list(), torch.cuda.nccl.version())  # flag
    torch.cuda._sleep(10)  # flag
    return torch.cuda.cudart().cudaProfilerStart()  # flag
