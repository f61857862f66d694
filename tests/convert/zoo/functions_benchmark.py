"""A benchmark that asks the device everything."""

import argparse
import gc
import time
from contextlib import contextmanager

import torch
from torch.cuda import Event, Stream, memory_stats, reset_peak_memory_stats  # convert

MB = 1024.0 * 1024.0


@contextmanager
def measured(name, stream=None):
    gc.collect()
    torch.cuda.empty_cache()  # convert
    reset_peak_memory_stats()
    start, end = Event(enable_timing=True), Event(enable_timing=True)
    torch.cuda.nvtx.range_push(name)  # convert
    start.record(stream)
    yield
    end.record(stream)
    torch.cuda.nvtx.range_pop()  # convert
    torch.cuda.synchronize()  # convert
    print(name, start.elapsed_time(end), memory_stats().get("num_alloc_retries"))


def describe(index):
    properties = torch.cuda.get_device_properties(index)  # convert
    major, minor = torch.cuda.get_device_capability(index)  # convert
    free, total = torch.cuda.mem_get_info(index)  # convert
    lines = [
        f"{properties.name}: {torch.cuda.get_device_name(index)}",  # convert
        "sm %d%d, %.1f of %.1f" % (major, minor, free / MB, total / MB),
        f"bf16 {torch.cuda.is_bf16_supported()}",  # convert
        torch.cuda.memory_summary(index, abbreviated=True),  # convert
    ]
    return "\n".join(lines)


def sweep(sizes):
    side = Stream(priority=-1)
    for size in sizes:
        with measured(f"size {size}", side), torch.cuda.stream(side):  # convert
            x = torch.randn(size, size, device="cuda")  # convert
            x @ x
        side.wait_stream(torch.cuda.default_stream())  # convert
        peak = torch.cuda.max_memory_allocated() / MB  # convert
        cached = torch.cuda.memory_cached() / MB  # convert
        top = torch.cuda.max_memory_reserved(device=None) / MB  # convert
        torch.cuda.reset_max_memory_cached()  # convert
        yield size, peak, cached, top


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--fraction", type=float, default=0.9)
    options = parser.parse_args()
    if not torch.cuda.is_available():  # convert
        raise SystemExit("no device")
    torch.cuda.init()  # convert
    torch.cuda.set_per_process_memory_fraction(options.fraction)  # convert
    for index in range(torch.cuda.device_count()):  # convert
        with torch.cuda.device(index):  # convert
            assert torch.cuda.current_device() == index  # convert
            print(describe(index), torch.cuda.utilization())  # convert
    begin = time.time()
    for row in sweep(options.sizes):
        print(*row)
    torch.cuda.ipc_collect()  # convert
    print(time.time() - begin, torch.cuda.can_device_access_peer(0, 1))  # convert
    print(torch.cuda.list_gpu_processes(), torch.cuda.temperature())  # flag


if __name__ == "__main__":
    main()
