"""Two models in plain torch, that run wherever torch does, and one training step of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, CONTEXT, BATCH = 97, 128, 8


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, T, width]`."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        hidden: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + hidden


class Gpt(nn.Module):
    """A decoder-only Transformer of 0.8 million parameters by default; returns its loss."""

    def __init__(
        self, tokens: int = TOKENS, context: int = CONTEXT, width: int = 128, layers: int = 4
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, max(width // 64, 2)) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, text: Tensor) -> Tensor:
        """Token numbers `[B, T + 1]` to the mean cross-entropy of each but the first."""
        x = self.token(text[:, :-1])
        logits = self.head(self.norm(self.blocks(x + self.place.weight[: x.shape[1]])))
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class Gate(nn.Module):
    """Three layers on one input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.shift = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, width]`."""
        out: Tensor = torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)) + self.shift(x)
        return out


class Branches(nn.Module):
    """Tensors that are used inside and outside of a module; returns its loss.

    The gradient of each is a sum of four, and a full backward hook on the module changes in which
    order they are added. msprobe's FAQ says of a network of this kind that its hooks change the
    gradients' bits.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.entry, self.head = nn.Linear(width, width), nn.Linear(width, 1)
        self.layers = nn.ModuleList(Gate(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width]` to the mean square of the outputs."""
        x = self.entry(x)
        for layer in self.layers:
            x = x + layer(x)
        out: Tensor = self.head(x)
        return (out**2).mean()


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model with seeded parameters and a batch for it."""
    torch.manual_seed(0)
    if name == "gpt":
        return Gpt(), torch.randint(TOKENS, (BATCH, CONTEXT + 1))
    if name == "branches":
        return Branches(), torch.randn(32, 64)
    raise ValueError(f"unknown model {name!r}; known are gpt and branches")


def stepper(
    model: nn.Module, batch: Tensor
) -> tuple[Callable[[], list[Tensor]], torch.optim.Optimizer]:
    """A function that makes one step and returns the gradients, and the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        model(batch).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        return gradients

    return step, optimizer
