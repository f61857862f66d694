"""Record a Transformer block in PyTorch, and write its weights for the other frameworks.

python examples/foreign/record_torch.py --out run-torch --weights weights.npz
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

import accel

WIDTH, HEADS, TOKENS, BATCH = 64, 4, 32, 4


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a normalised residual stream, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.activation = nn.GELU()
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From `[B, T, WIDTH]` to `[B, T, 10]`."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.down(self.activation(self.up(self.norm2(x))))
        logits: Tensor = self.head(x)
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="run-torch", help="the recording's directory")
    parser.add_argument("--weights", default="weights.npz", help="the file to write")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--level", choices=["sketch", "full"], default="sketch")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Block()
    batch, targets = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, TOKENS, 10)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.savez(options.weights, **arrays, batch=batch.numpy(), targets=targets.numpy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with accel.numerics.record(model, options.out, level=options.level, steps=range(options.steps)):
        for step in range(options.steps):
            loss = (model(batch) - targets).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {step}: loss {loss.item():.7f}")


if __name__ == "__main__":
    main()
