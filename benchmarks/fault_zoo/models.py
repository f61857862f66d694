"""The models whose operators are made faulty: a small GPT and a CNN, briefly trained."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS, WIDTH, LAYERS, HEADS, LENGTH = 96, 128, 4, 4, 64
SEQUENCES, PADDING = 4, 8  # the last sequence begins with so many tokens of padding
IGNORED = -100  # as torch's cross entropy has it
STEPS = 60  # of training before anything is measured
ModelName = Literal["gpt", "gpt-sdpa", "gpt-tanh", "cnn"]


class Attention(nn.Module):
    """Causal self-attention [B, T, C] -> [B, T, C], by plain formulas or torch's fused kernel."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.scale = 1 / math.sqrt(WIDTH // HEADS)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Mix the places of x; `hidden` is True where one place may not see another."""
        batch, length, _ = x.shape
        split = self.qkv(x).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind()
        if self.fused:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=~hidden, scale=self.scale
            )
        else:
            scores = (query @ key.transpose(-1, -2)) * self.scale
            mixed = scores.masked_fill(hidden, -math.inf).softmax(-1) @ value
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        projected: Tensor = self.out(mixed)
        return projected


class Block(nn.Module):
    """A pre-norm transformer block [B, T, C] -> [B, T, C]."""

    def __init__(self, fused: bool, approximate: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(fused)
        self.inward, self.outward = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.gelu = nn.GELU(approximate)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Attention and a perceptron, each added to x."""
        x = x + self.attention(self.norm1(x), hidden)
        added: Tensor = x + self.outward(self.gelu(self.inward(self.norm2(x))))
        return added


class Gpt(nn.Module):
    """A decoder over `WORDS` words: tokens [B, T] and a mask [B, 1, T, T] -> logits [B, T, W]."""

    def __init__(self, fused: bool = False, approximate: str = "none") -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(fused, approximate) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" not in name and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.05)

    def forward(self, tokens: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Logits; `places` [T] are the positions, `hidden` what no place may see."""
        x = self.token(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x, hidden)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Cnn(nn.Module):
    """Images [B, 3, 16, 16] -> logits [B, 10], with batch norm and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        x = self.pool(F.relu(self.norm1(self.conv1(images))))
        x = F.relu(self.norm2(self.conv2(x))).mean((2, 3))
        logits: Tensor = self.head(x)
        return logits


class Batch(NamedTuple):
    """What a step is given: the model's inputs and the classes [N], `IGNORED` where none is."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


class Trained(NamedTuple):
    """A model after its training, with the state of its optimizer."""

    model: nn.Module
    optimizer: dict[str, Any]


def made(name: ModelName) -> nn.Module:
    """The model with its first weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if name == "cnn":
            return Cnn()
        approximate = "tanh" if name == "gpt-tanh" else "none"
        return Gpt(fused=name == "gpt-sdpa", approximate=approximate)


def batch(name: ModelName, index: int) -> Batch:
    """The batch of a step; `index` -1 is the one that is measured."""
    draw = torch.Generator().manual_seed(1000 + index)
    return _images(draw) if name == "cnn" else _sentences(draw)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as one operator over lists, as an accelerator runs it."""
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, fused=True)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy [] over the targets that are not ignored."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED)


@functools.cache
def _trained(name: ModelName) -> Trained:
    model = made(name)
    stepper = optimizer(model)
    for index in range(STEPS):
        inputs, targets = batch(name, index)
        stepper.zero_grad()
        loss_of(model(*inputs), targets).backward()
        stepper.step()
    stepper.zero_grad()
    return Trained(model, stepper.state_dict())


def trained(name: ModelName) -> Trained:
    """A copy of the trained model and of its optimizer's state; trained once per process."""
    return copy.deepcopy(_trained(name))


def _sentences(draw: torch.Generator) -> Batch:
    """A language that can be learned: each word follows from the one before, with slips."""
    words = torch.randint(1, WORDS, (SEQUENCES, LENGTH + 1), generator=draw)
    slips = torch.rand(words.shape, generator=draw) < 0.2
    for place in range(1, LENGTH + 1):
        follows = words[:, place - 1].mul(7).add(3).remainder(WORDS - 1) + 1
        words[:, place] = torch.where(slips[:, place], words[:, place], follows)
    tokens, targets = words[:, :-1].clone(), words[:, 1:].clone()
    tokens[-1, :PADDING], targets[-1, :PADDING] = 0, IGNORED
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padded = (tokens == 0)[:, None, None, :]
    others = ~torch.eye(LENGTH, dtype=torch.bool)  # a padded place sees itself: no empty row
    hidden = later | (padded & others)
    return Batch((tokens, torch.arange(LENGTH), hidden), targets.reshape(-1))


def _images(draw: torch.Generator) -> Batch:
    """Stripes of ten directions in noise."""
    targets = torch.randint(10, (16,), generator=draw)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    turn = targets[:, None, None] * (math.pi / 10)
    stripes = torch.sin(rows * torch.cos(turn) + columns * torch.sin(turn))
    noise = torch.randn(16, 3, 16, 16, generator=draw)
    return Batch((stripes[:, None] + 0.5 * noise,), targets)
