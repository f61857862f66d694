"""The models whose operators `replay_population.py` judges, with optimizers of every sort.

Sizes are odd on purpose. Each gives a loss from nothing but its seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Model(nn.Module):
    """A model that draws its batch itself."""

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        raise NotImplementedError


class Decoder(Model):
    """A language model; with `modern`, RMS norms, gated layers and fused attention."""

    def __init__(self, modern: bool, width: int = 96, heads: int = 6, vocabulary: int = 101):
        super().__init__()
        norm = nn.RMSNorm if modern else nn.LayerNorm
        self.modern, self.heads = modern, heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(63, width))
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.gate = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        """One layer of causal attention, fused or spelled out."""
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.project(x).view(shape).permute(2, 0, 3, 1, 4)
        if self.modern:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            out = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v
        mixed: Tensor = self.out(out.transpose(1, 2).reshape(x.shape))
        return mixed

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        text = torch.randint(101, (8, 64))
        x = self.embedding(text[:, :-1]) + self.position
        x = x + self.attend(self.norms[0](x))
        y = self.norms[1](x)
        hidden = F.silu(self.gate(y)) * self.up(y) if self.modern else F.gelu(self.up(y))
        logits = self.head(self.norms[2](x + self.down(hidden))).float()
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class Classifier(Model):
    """Convolutions, batch and group norms, pools, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 17, 3, padding=1), nn.Conv2d(17, 32, 3, stride=2)
        self.third = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm1, self.norm2 = nn.BatchNorm2d(17), nn.BatchNorm2d(32)
        self.norm3 = nn.GroupNorm(4, 32)
        self.head = nn.Linear(32, 11)

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        x = F.max_pool2d(F.relu(self.norm1(self.first(torch.randn(9, 3, 33, 33).to(dtype)))), 2)
        x = F.leaky_relu(self.norm2(self.second(x)), 0.1)
        x = F.hardswish(self.norm3(self.third(x)))
        logits = self.head(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.1))
        return F.cross_entropy(logits.float(), torch.randint(11, (9,)), label_smoothing=0.1)


class Denoiser(Model):
    """Transposed convolutions, interpolation, instance norms, sines of a time."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.exit, self.time = nn.Conv2d(32, 1, 1), nn.Linear(8, 32)
        self.group, self.instance = nn.GroupNorm(8, 32), nn.InstanceNorm2d(16, affine=True)

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        image, noise = torch.randn(2, 5, 1, 28, 28).to(dtype)
        angle = (torch.rand(5) * 1000)[:, None] * torch.exp(-1.7 * torch.arange(4))
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1).to(dtype))
        first = F.silu(self.entry(image))
        x = F.mish(self.group(self.down(first)) + time[:, :, None, None])
        x = F.avg_pool2d(F.interpolate(x, scale_factor=2.0, mode="bilinear"), 2)
        out = self.exit(torch.cat([self.instance(self.up(x)), first], 1)).float()
        return F.mse_loss(out, noise.float()) + 0.1 * F.smooth_l1_loss(out, noise.float())


class Recurrent(Model):
    """A GRU step by step; several elementwise losses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 40, padding_idx=0)
        self.cell, self.head = nn.GRUCell(40, 33), nn.Linear(33, 50)

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        text = torch.randint(50, (13, 7))
        state = torch.zeros(13, 33).to(dtype)
        for x in self.embedding(text).unbind(1):
            state = self.cell(x, state)
        logits = self.head(state).float()
        odds = F.binary_cross_entropy_with_logits(logits, torch.rand(13, 50))
        return F.nll_loss(F.log_softmax(logits, -1), text[:, 0]) + odds


class Contrastive(Model):
    """A wide layer, batch norm, many activations, norms, standard deviations, log-sum-exp."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle, self.last = (
            nn.Linear(2000, 300),
            nn.Linear(300, 300),
            nn.Linear(300, 64),
        )
        self.norm, self.slope = nn.BatchNorm1d(300), nn.PReLU()
        self.scale = nn.Parameter(torch.tensor(2.3))

    def embed(self, x: Tensor) -> Tensor:
        """Normalized embeddings."""
        x = F.elu(self.norm(self.slope(self.middle(torch.tanh(self.wide(x))))))
        normalized: Tensor = F.normalize(self.last(x), dim=-1)
        return normalized * self.scale.exp()

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        one, other = (self.embed(torch.randn(101, 2000).to(dtype)) for _ in range(2))
        logits, target = (one @ other.t()).float(), torch.arange(101)
        extra: Tensor = one.std() + one.norm() + torch.sigmoid(one).var() + F.softplus(other).mean()
        extra = extra + torch.logsumexp(one, 0).mean() + one.abs().cumsum(0).sqrt().mean()
        return F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target) + 0.01 * extra


class Encoder(Model):
    """torch's own encoder layer, with padding and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(70, 96), nn.Linear(96, 70)
        self.layer = nn.TransformerEncoderLayer(96, 6, 200, 0.1, "gelu", batch_first=True)

    def loss(self, dtype: torch.dtype) -> Tensor:
        """The loss of a random batch."""
        text = torch.randint(70, (6, 37))
        logits = self.head(self.layer(self.embedding(text), src_key_padding_mask=text > 65))
        return F.cross_entropy(logits.flatten(0, 1).float(), text.flatten(), ignore_index=3)


@dataclass(frozen=True)
class Case:
    """A model and the optimizer that trains it."""

    name: str
    build: Callable[[], Model]
    optimizer: Optimizer


OPTIM = torch.optim
CASES = (
    Case("decoder", lambda: Decoder(False), lambda p: OPTIM.AdamW(p, lr=1e-3, foreach=True)),
    Case("modern decoder", lambda: Decoder(True), lambda p: OPTIM.AdamW(p, lr=1e-3, fused=True)),
    Case(
        "classifier", Classifier,
        lambda p: OPTIM.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    ),
    Case("denoiser", Denoiser, lambda p: OPTIM.Adam(p, lr=1e-3, foreach=False, amsgrad=True)),
    Case("recurrent", Recurrent, lambda p: OPTIM.RMSprop(p, lr=1e-3)),
    Case("contrastive", Contrastive, lambda p: OPTIM.Adagrad(p, lr=1e-2)),
    Case("encoder", Encoder, lambda p: OPTIM.NAdam(p, lr=1e-3)),
)  # fmt: skip
