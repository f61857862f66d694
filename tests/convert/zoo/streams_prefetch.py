"""A prefetcher, a timer, and profiles."""

import torch
from torch.autograd import profiler as old
from torch.profiler import ProfilerActivity, profile


class Prefetcher:
    def __init__(self, loader):
        self.loader = iter(loader)
        self.stream = torch.cuda.Stream()  # convert
        self.preload()

    def preload(self):
        self.batch = next(self.loader, None)
        if self.batch is None:
            return
        with torch.cuda.stream(self.stream):  # convert
            self.batch = self.batch.pin_memory().to("cuda", non_blocking=True)  # convert

    def next(self):
        torch.cuda.current_stream().wait_stream(self.stream)  # convert
        batch = self.batch
        batch.record_stream(torch.cuda.current_stream())  # convert
        self.preload()
        return batch


def time_it(f):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # convert
    start.record()
    torch.cuda.nvtx.range_push("f")  # convert
    f()
    torch.cuda.nvtx.range_pop()  # convert
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def trace(f, path):
    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():  # convert
        kinds += [ProfilerActivity.CUDA]  # convert
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as p:  # convert
        f()
    print(p.key_averages().table(sort_by="cuda_time_total"))  # keep
    with old.profile(use_cuda=True), old.emit_nvtx():  # flag
        f()
    launch(path, torch.cuda.current_stream().cuda_stream)  # convert


def capture(f):
    graph = torch.cuda.CUDAGraph()  # flag
    with torch.cuda.graph(graph):  # flag
        f()
    return torch.cuda.make_graphed_callables(f, ())  # flag
