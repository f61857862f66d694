"""Train a small model on one document of 40,000 characters at once, within a memory budget.

    python examples/long_attention.py                 a step takes 13 seconds of one CPU core
    python examples/long_attention.py --tokens 4000   the first tenth: a hundredth of the attention

The document is the beginning of Python's own manual. Every character attends to all before it, in
one sequence. The scores of that alone would fill 6 GB, and as much again for their gradient; they
are never whole in memory, so that a step fits into a few hundred megabytes.
"""

import argparse
import collections
import math
import pydoc_data.topics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import accel
from accel.attention import Mask, causal, window

CHUNK = 4096  # characters whose hidden layer or logits are in memory together
MB = 2**20


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """A function of `[B, t, ...]`, chunk by chunk, computed again when its gradient is taken."""
    parts = zip(*(tensor.split(CHUNK, dim=1) for tensor in tensors), strict=True)
    return [checkpoint(function, *part, use_reentrant=False) for part in parts]


def rotated(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864) for query or key `[B, H, T, D]`."""
    half = x.shape[-1] // 2
    rates = 1e4 ** -(torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device).unsqueeze(1) * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    """One head of attention under a mask, and a feed-forward layer, on a residual stream."""

    def __init__(self, width: int, mask: Mask) -> None:
        super().__init__()
        self.mask = mask
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, T, width]`."""
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)  # [B, 1, T, width]
        attended = accel.segmented_attention(rotated(q), rotated(k), v, mask=self.mask)
        x = x + self.out(attended.squeeze(1))
        return x + torch.cat(in_chunks(self.feed_forward, x), dim=1)


class LanguageModel(nn.Module):
    """A layer that sees the last few characters, then one that sees all of them."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.blocks = nn.Sequential(Block(width, window(15, 0)), Block(width, causal()))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the characters that follow; both `[B, T]`."""
        summed = in_chunks(self.loss, self.blocks(self.token(text)), targets)
        return torch.stack(summed).sum() / targets.numel()

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The sum over `[B, t, width]` and `[B, t]`."""
        logits = self.head(x).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def read_text(length: int) -> tuple[Tensor, int, float]:
    """The text as character numbers, how many characters there are, and its unigram entropy."""
    topics: dict[str, str] = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))[:length]
    counts = collections.Counter(text)
    numbers = {character: i for i, character in enumerate(sorted(counts))}
    entropy = -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())
    return torch.tensor([numbers[character] for character in text]), len(numbers), entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=40_000, help="characters of the document")
    parser.add_argument("--budget", type=int, default=600, help="MB; more is an error")
    parser.add_argument("--policy", help="compute=bfloat16, …; default: bfloat16 on accelerators")
    options = parser.parse_args()
    if options.steps < 1 or options.tokens < 2:
        parser.error("--steps must be at least 1 and --tokens at least 2")

    device = accel.current_device()
    policy = options.policy or f"compute={'float32' if device.family == 'cpu' else 'bfloat16'}"
    text, characters, entropy = read_text(options.tokens + 1)
    document, following = (device.move(part.unsqueeze(0)) for part in (text[:-1], text[1:]))
    tokens = document.shape[1]
    print(f"device {device}: {device.name}; {policy}; one document of {tokens:,} characters")
    print(f"scores that are never whole: {tokens**2 * 4 / MB:,.0f} MB a layer in float32")

    device.seed(0)
    model = LanguageModel(characters, width=64).to(device.torch_device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    precision = accel.precision.Precision(model, policy)
    device.reset_peak_memory()
    before, loss = device.memory().used, math.nan
    for step in range(options.steps):
        started = time.perf_counter()
        with precision.autocast():
            value = model(document, following)
        precision.backward(value)
        precision.step(optimizer, max_norm=1.0)
        optimizer.zero_grad()
        loss = value.item()
        below = "below" if loss < entropy else "above"
        print(
            f"step {step + 1}  loss {loss:.3f} nats, {below} the unigram entropy {entropy:.3f}  "
            f"{time.perf_counter() - started:.1f} s"
        )
    used = (device.memory().peak - before) / MB
    print(f"memory over the start: {used:.0f} MB of a budget of {options.budget} MB")
    if used > options.budget:
        raise SystemExit("the budget was exceeded")


if __name__ == "__main__":
    main()
