"""Small models for the tests of recordings, and how to run them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel.numerics import load_recording, record
from accel.numerics.storage.steps import Step


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 63), nn.ReLU(inplace=True), nn.Linear(63, 100), nn.ReLU(inplace=True),
            nn.Linear(100, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 32, 2, batch_first=True), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Shared(nn.Module):
    """A block that is called three times, under a checkpoint if asked, and tied weights."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.inward, self.first, self.last = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(24, 12)
        self.block = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.LayerNorm(24))
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for _ in range(3):
            if self.reentrant is None:
                x = x + self.block(x)
            else:
                x = x + checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(x) + self.first(x)


class Encoder(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1)
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        heads = self.attend(*split.permute(2, 0, 3, 1, 4))
        return self.out(heads.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 63), nn.GELU(), nn.Linear(63, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, words: int = 50, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Case(NamedTuple):
    """A model, its input and its loss."""

    model: Callable[[], nn.Module]
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]


def _classes(count: int, *shape: int) -> Callable[[Tensor], Tensor]:
    targets = torch.arange(torch.Size(shape).numel()).mul(7).remainder(count)
    return lambda out: F.cross_entropy(out.float().reshape(-1, count), targets)


def _squares(out: Tensor) -> Tensor:
    return (out.float() - 0.5).square().mean()


def case(name: str) -> Case:
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    tokens = torch.randint(50, (3, 16), generator=draw)
    return {
        "mlp": lambda: Case(Mlp, normal(33, 20), _classes(5, 33)),
        "cnn": lambda: Case(Cnn, normal(8, 3, 16, 16), _classes(10, 8)),
        "lstm": lambda: Case(Lstm, normal(9, 13, 16), _classes(7, 9)),
        "shared": lambda: Case(Shared, normal(17, 12), _squares),
        "reentrant": lambda: Case(lambda: Shared(True), normal(17, 12), _squares),
        "checkpoint": lambda: Case(lambda: Shared(False), normal(17, 12), _squares),
        "encoder": lambda: Case(Encoder, normal(5, 11, 32), _classes(4, 5)),
        "dropout": lambda: Case(lambda: Encoder(0.1), normal(5, 11, 32), _classes(4, 5)),
        "autoencoder": lambda: Case(Autoencoder, normal(4, 1, 16, 16), _squares),
        "language": lambda: Case(LanguageModel, tokens, _classes(50, 3, 16)),
    }[name]()


def made(model: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return model()


def step(model: nn.Module, one: Case, *, autocast: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = one.loss(model(one.inputs))
    loss.backward()
    return loss.detach()


def recorded(
    path: Path,
    one: Case,
    *,
    model: nn.Module | None = None,
    autocast: bool = False,
    steps: int = 1,
    rate: float = 0.01,
    **options: Any,
) -> Step:
    """Record `steps` steps of training with SGD; the first step as it was recorded."""
    model = made(one.model) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), rate)
    with record(model, path, **options):
        for _ in range(steps):
            optimizer.zero_grad()
            step(model, one, autocast=autocast)
            optimizer.step()
    return first_step(path)


def first_step(path: Path) -> Step:
    """Step 0 of rank 0 of a recording."""
    return load_recording(path).ranks[0].steps[0]


def names(step: Step, phase: str = "") -> list[str]:
    """The names of a step's operators, of one phase or all."""
    return [str(o.key) for o in step.operators if o.key.phase.startswith(phase)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny: a second thread only waits. Import it to use it."""
    with threads(1):
        yield


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
