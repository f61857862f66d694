"""Time and peak memory of contrastive losses, forward and backward, beside OpenCLIP's.

Embeddings of one width in float32, normalised, with a learnable scale (and bias). The forms are
timed in turns, so that whatever else the machine does meets all of them; ratios are medians over
the turns. Memory is measured in a fresh process each, over inputs and gradients, together with the
time of that one run. Where a form whose memory grows with the square of the batch does not fit, it
is extrapolated from its longest run by the square, and marked so.

OpenCLIP's are `loss.py` of the PyPI package open-clip-torch, installed by ci/setup. The sigmoid
loss in chunks, which its main branch has (`chunk_size`) and the package has not, is written here,
with the least that autograd then keeps: the logits of every chunk, once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import environment
import torch
from torch import Tensor

import accel
from accel.alignment import contrastive_loss
from accel_kernels.contrastive_loss import SPECS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.kernels.contrastive_peers import open_clip_losses

SEED, CHUNK = 0, 512
Kind = Literal["softmax", "sigmoid"]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def chunked_sigmoid(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The plain form of the sigmoid loss, chunk after chunk of the rows of x.

    All pairs as negatives; a positive's loss is `softplus(-z) = softplus(z) - z`.
    """
    total = torch.zeros((), device=x.device)
    for start in range(0, len(x), CHUNK):
        logits = (scale * x[start : start + CHUNK]) @ y.T
        logits += bias
        total = total + torch.nn.functional.softplus(logits).sum()
        total = total - logits.diagonal(start).sum()
    return total / len(x)


def ours(kind: Kind, backend: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """This library's loss by one backend."""
    return contrastive_loss(
        x, y, scale=scale, bias=bias if kind == "sigmoid" else None, kind=kind, backend=backend
    )


def forms(kind: Kind, backends: list[str]) -> dict[str, Loss]:
    """By name; the first is what others are compared with."""
    peers = open_clip_losses()
    found: dict[str, Loss] = {}
    if kind == "softmax":
        clip = peers.ClipLoss()
        found["OpenCLIP"] = lambda x, y, scale, bias: clip(x, y, scale)
    else:
        siglip = peers.SigLipLoss()
        found["OpenCLIP"] = siglip
        found["OpenCLIP in chunks"] = chunked_sigmoid
    for name in backends:
        found[name] = partial(ours, kind, name)
    return found


def inputs(rows: int, dim: int) -> list[Tensor]:
    """Pairs that a model has begun to align, scale and bias, with gradients of zero."""
    where = accel.current_device().torch_device
    made = torch.Generator().manual_seed(SEED)
    x = torch.nn.functional.normalize(torch.randn(rows, dim, generator=made), dim=1)
    y = torch.nn.functional.normalize(x + torch.randn(rows, dim, generator=made) / dim**0.5, dim=1)
    leaves = [t.to(where).requires_grad_() for t in (x, y, torch.tensor(20.0), torch.tensor(-10.0))]
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    return leaves


def timed(loss: Loss, leaves: list[Tensor]) -> tuple[float, float]:
    """Seconds of a forward and backward, and the loss."""
    device = accel.current_device()
    device.synchronize()
    begun = time.perf_counter()
    value = loss(*leaves)
    value.backward()
    device.synchronize()
    return time.perf_counter() - begun, float(value.detach())


def times(kind: Kind, rows: int, options: argparse.Namespace, bar: Any) -> list[dict[str, Any]]:
    """Each form in turn, over and over; the first turn does not count."""
    chosen, leaves = forms(kind, options.backends), inputs(rows, options.dim)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    values = {}
    for turn in range(options.rounds + 1):
        for name, loss in chosen.items():
            taken, values[name] = timed(loss, leaves)
            if turn:
                seconds[name].append(taken)
            bar.advance(text=f"{kind} {rows} {name}")
    first = next(iter(chosen))
    return [
        {
            "kind": kind,
            "form": name,
            "rows": rows,
            "seconds": statistics.median(found),
            "over_open_clip": statistics.median(
                own / other for own, other in zip(found, seconds[first], strict=True)
            ),
            "loss": values[name],
        }
        for name, found in seconds.items()
    ]


def peak(kind: Kind, form: str, rows: int, options: argparse.Namespace) -> dict[str, float]:
    """Peak bytes over inputs and gradients, and seconds, in this process."""
    device = accel.current_device()
    loss = forms(kind, options.backends)[form]
    timed(loss, inputs(64, options.dim))  # kernels and libraries load on first use
    leaves = inputs(rows, options.dim)
    device.synchronize()
    device.reset_peak_memory()
    before = device.memory().used
    seconds, value = timed(loss, leaves)
    return {"extra_bytes": device.memory().peak - before, "seconds": seconds, "loss": value}


def memory(kind: Kind, options: argparse.Namespace, bar: Any) -> list[dict[str, Any]]:
    """Every form at every size, in a process of its own."""
    found: list[dict[str, Any]] = []
    for name in forms(kind, options.backends):
        longest: dict[str, Any] | None = None
        for rows in sorted({*options.sizes, *options.long}):
            bar.advance(text=f"memory of {kind} {rows} {name}")
            row = {"kind": kind, "form": name, "rows": rows}
            if name not in options.backends and rows > max(options.sizes):
                assert longest is not None  # noqa: S101
                grown = longest["extra_bytes"] * (rows / longest["rows"]) ** 2
                found.append({**row, "extra_bytes": int(grown), "extrapolated": True})
                continue
            command = [
                sys.executable, __file__, "--measure", kind, name, str(rows), "--dim",
                str(options.dim), "--backends", *options.backends,
            ]  # fmt: skip
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            longest = {**row, **json.loads(result.stdout), "extrapolated": False}
            found.append(longest)
    plain = {(row["form"], row["rows"]): row["extra_bytes"] for row in found}
    for row in found:
        if row["form"] in options.backends:
            row["share_of"] = {
                peer: row["extra_bytes"] / plain[peer, row["rows"]] for peer in forms(kind, [])
            }
    return found


def parsed() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--long", type=int, nargs="*", default=[32768, 65536], help="ours alone")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["softmax", "sigmoid"])
    kind = accel.current_device().torch_device.type
    here = [
        spec.name
        for spec in SPECS
        if kind in spec.devices
        and not spec.missing
        and (not spec.absent or not spec.absent(torch.float32))
    ]
    parser.add_argument("--backends", nargs="+", default=here)
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "FORM", "ROWS"), help="its own")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.measure:
        kind, form, rows = options.measure
        print(json.dumps(peak(kind, form, int(rows), options)))
        return
    counts = [len(forms(kind, options.backends)) for kind in options.kinds]
    runs = len(options.sizes) * (options.rounds + 1) + len({*options.sizes, *options.long})
    result: dict[str, Any] = {"dim": options.dim, "rounds": options.rounds, "chunk": CHUNK}
    result |= {"memory": [], "times": []}
    with accel.report.Progress(sum(counts) * runs, "contrastive loss", unit="run") as bar:
        for kind in options.kinds:
            result["memory"] += memory(kind, options, bar)
            for rows in options.sizes:
                result["times"] += times(kind, rows, options, bar)
    for part in ("memory", "times"):
        for row in result[part]:
            print(row)
    print(f"written: {environment.write('contrastive_loss', result)}")


if __name__ == "__main__":
    main()
