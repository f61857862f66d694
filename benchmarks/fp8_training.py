"""Forward and backward of a Transformer block in rowwise FP8, beside bfloat16 and torchao.

    python benchmarks/fp8_training.py [--hidden 4096] [--tokens 8192] [--rounds 20]

For a GPU that multiplies in FP8. All forms are compiled and timed in turns. torchao's is left out
where torchao is not installed, and the result says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import environment
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import accel

HEAD, LENGTH, SEED = 128, 2048, 0


class Block(nn.Module):
    """Attention and a feed-forward layer of four times the width, each after a norm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.up = nn.Linear(hidden, 4 * hidden, bias=False)
        self.down = nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to the same."""
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        hidden: Tensor = self.down(F.gelu(self.up(self.second(x))))
        return x + hidden


def by_policy(policy: str, hidden: int) -> tuple[Callable[[Tensor], None], float]:
    """A step by a policy, and which share of its products is in eight bits."""
    torch.manual_seed(SEED)
    model = Block(hidden).to(accel.current_device().torch_device)
    precision = accel.precision.Precision(model, policy)
    share = precision.policy.explain(model).share
    compiled = torch.compile(model, fullgraph=True)

    def step(x: Tensor) -> None:
        model.zero_grad()
        with precision.autocast():
            loss = compiled(x).float().square().mean()
        precision.backward(loss)

    return step, share


def by_torchao(hidden: int) -> Callable[[Tensor], None]:
    """A step of torchao's rowwise recipe under bfloat16 autocast."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    torch.manual_seed(SEED)
    device = accel.current_device()
    model = Block(hidden).to(device.torch_device)
    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name("rowwise"))
    compiled = torch.compile(model, fullgraph=True)

    def step(x: Tensor) -> None:
        model.zero_grad()
        with torch.autocast(device.torch_type, torch.bfloat16):
            loss = compiled(x).float().square().mean()
        loss.backward()

    return step


def measured(
    forms: dict[str, Callable[[Tensor], None]], x: Tensor, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each form; each round calls all of them once."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for step in forms.values():
        for _ in range(3):
            step(x)
    for _ in range(rounds):
        for name, step in forms.items():
            accel.synchronize()
            begun = time.perf_counter()
            step(x)
            accel.synchronize()
            times[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = accel.current_device()
    x = torch.randn(options.tokens // LENGTH or 1, min(options.tokens, LENGTH), options.hidden)
    x = x.to(device.torch_device, torch.bfloat16)
    # Emulation, which a CPU needs, shows that the script runs; it is no measurement.
    emulate = ",emulate" if device.family == "cpu" else ""
    native = {"cuda": "scaled_mm", "npu": "npu"}.get(device.torch_type)
    chosen = {"scaled_matmul": native} if native else {}
    with accel.use_backend(**chosen):
        fp8, share = by_policy(f"fp8_rowwise{emulate}", options.hidden)
        forms = {"bf16": by_policy("bf16", options.hidden)[0], "fp8_rowwise": fp8}
        has_torchao = importlib.util.find_spec("torchao") is not None
        if has_torchao:
            forms["torchao"] = by_torchao(options.hidden)
        found = measured(forms, x, options.rounds)
    result: dict[str, Any] = {
        "hidden": options.hidden, "tokens": x.shape[0] * x.shape[1], "rounds": options.rounds,
        "backend": native or "automatic", "share_in_eight_bits": share, "torchao": has_torchao,
        "milliseconds": found,
        "times_as_fast_as_bf16": {name: found["bf16"] / time for name, time in found.items()},
    }  # fmt: skip
    print(result)
    print(f"written: {environment.write('fp8_training', result)}")


if __name__ == "__main__":
    main()
