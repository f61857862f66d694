"""Train a small language model on the accelerator that is here, by character, on Python's manual.

On one device: python examples/train_lm.py          Stop and go on: … --checkpoint lm.pt
On several:    torchrun --nproc-per-node 2 examples/train_lm.py
"""

import argparse
import collections
import math
import os
import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import accel


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each on a normalised residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, T, width]`."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = accel.segmented_attention(q, k, v, is_causal=True)  # [B, H, T, width / H]
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        hidden: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + hidden


class LanguageModel(nn.Module):
    """A decoder-only Transformer; given targets, its output is the mean cross-entropy in nats."""

    def __init__(self, characters: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for embedding in (self.token, self.place):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor, targets: Tensor) -> Tensor:
        """Character numbers `[B, T]` and those that follow them `[B, T]`."""
        x = self.token(text) + self.place.weight[: text.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def read_text() -> tuple[Tensor, int, float]:
    """The text as character numbers, how many characters there are, and its unigram entropy."""
    topics: dict[str, str] = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    counts = collections.Counter(text)
    numbers = {character: i for i, character in enumerate(sorted(counts))}
    entropy = -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())
    return torch.tensor([numbers[character] for character in text]), len(numbers), entropy


def batch(text: Tensor, size: int, context: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random excerpts and, for each character, the next one. Depends on nothing but the seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - context, (size, 1), generator=generator)
    excerpts = text[starts + torch.arange(context + 1)]
    return excerpts[:, :-1], excerpts[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="excerpts per step and process")
    parser.add_argument("--context", type=int, default=128, help="characters per excerpt")
    parser.add_argument("--policy", help="compute=bfloat16, …; default: bfloat16 on accelerators")
    parser.add_argument("--checkpoint", type=Path, help="continue from here, and save here")
    options = parser.parse_args()
    if min(options.steps, options.batch, options.context) < 1:
        parser.error("--steps, --batch and --context must be at least 1")
    if options.checkpoint:
        accel.report.check_writable(options.checkpoint)

    device = accel.current_device()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group(device.collective_backend)
    policy = options.policy or f"compute={'float32' if device.family == 'cpu' else 'bfloat16'}"
    say = print if rank == 0 else (lambda *_: None)
    say(f"device {device}: {device.name}; {policy}; {world} process(es)")

    text, characters, entropy = read_text()
    training, validation = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    device.seed(0)
    plain = LanguageModel(characters, options.context, width=128, heads=4, layers=4)
    plain = plain.to(device.torch_device)
    model = DistributedDataParallel(plain) if world > 1 else plain
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    precision = accel.precision.Precision(plain, policy)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - step / (options.steps + 1))
    )
    parts: dict[str, Any] = {"model": plain, "optimizer": optimizer}
    parts |= {"precision": precision, "schedule": schedule}

    first = 0
    if options.checkpoint and options.checkpoint.exists():
        state = accel.load(options.checkpoint)
        if set(state) != {*parts, "step"}:
            raise SystemExit(f"{options.checkpoint} is no checkpoint of this example")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        say(f"continuing after step {(first := state['step'])}")

    tokens = options.batch * options.context * world
    left = max(options.steps - first, 0) * tokens
    with accel.report.Progress(left, "train", unit="token", enabled=rank == 0) as bar:
        for step in range(first, options.steps):
            # Every process and step has excerpts of its own, so that a resumed run sees the same.
            drawn = batch(training, options.batch, options.context, seed=step * world + rank)
            with precision.autocast():
                loss = model(*device.move(drawn))
            precision.backward(loss)
            precision.step(optimizer, max_norm=1.0)
            schedule.step()
            optimizer.zero_grad()
            bar.advance(tokens, f"step {step + 1}  loss {loss:.3f}")
            due = rank == 0 and (step % 100 == 99 or step + 1 == options.steps)
            if options.checkpoint and due:
                states = {name: part.state_dict() for name, part in parts.items()}
                beside = options.checkpoint.with_name(options.checkpoint.name + ".part")
                torch.save({**states, "step": step + 1}, beside)
                beside.replace(options.checkpoint)  # whole or not there

    with torch.no_grad(), precision.autocast():
        final = float(plain(*device.move(batch(validation, 256, options.context, seed=0))))
    say(f"unigram entropy of the text {entropy:.3f} nats; validation loss {final:.3f} nats")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
