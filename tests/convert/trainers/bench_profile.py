"""How long is a step? Marks for Nsight, the profiler's table, and plain clocks."""
import argparse
import statistics
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile, record_function


def build(width: int):
    layers = []
    for _ in range(3):
        layers += [torch.nn.Linear(width, width), torch.nn.LayerNorm(width), torch.nn.GELU()]
    return torch.nn.Sequential(*layers)


def one_step(model, optimizer, batch):
    torch.cuda.nvtx.range_push("forward")
    with record_function("forward"):
        loss = model(batch).square().mean()
    torch.cuda.nvtx.range_pop()
    torch.cuda.nvtx.range_push("backward")
    loss.backward()
    torch.cuda.nvtx.range_pop()
    with torch.cuda.nvtx.range("step"):
        optimizer.step()
        optimizer.zero_grad()
    return loss


def timed(fn, *args, repeat=3):
    torch.cuda.synchronize()
    times, values = [], []
    for _ in range(repeat):
        begin = time.perf_counter()
        values.append(fn(*args))
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times), [v.item() for v in values]


def main(argv):
    ap = argparse.ArgumentParser()
    ap.add_argument("--width", type=int, default=48)
    ap.add_argument("--trace", help="write a trace for chrome://tracing")
    ns = ap.parse_args(argv)
    torch.cuda.init()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    model = build(ns.width).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(16, ns.width).cuda()

    torch.cuda.reset_peak_memory_stats()
    median, losses = timed(one_step, model, optimizer, batch)
    print("median %.3f ms, peak %.1f MiB" % (median, torch.cuda.max_memory_allocated() / 2**20))
    for loss in losses:
        print(loss.hex())

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities += [ProfilerActivity.CUDA]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=False) as prof:
        loss = one_step(model, optimizer, batch)
    assert any(event.key == "forward" for event in prof.key_averages())
    if ns.trace:
        prof.export_chrome_trace(ns.trace)
    print(len(activities), "activities; last loss", loss.item().hex())


if __name__ == "__main__":
    main(sys.argv[1:])
