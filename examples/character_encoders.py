"""Encoders of a name, a glyph and a sound: small enough to train on a CPU in two minutes."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextEncoder(nn.Module):
    """A bag of hashed features, and what a small network makes of it.

    Args:
        buckets: Numbers that features may have; 0 is none.
        width: Of the output.
        dropout: Share of the features that are left out in training, so that none is relied on.
    """

    def __init__(self, buckets: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.bag = nn.EmbeddingBag(buckets, width, mode="sum", padding_idx=0)
        self.mix = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        nn.init.normal_(self.bag.weight, std=0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Of features `[B, F]` int64 the embeddings `[B, width]`."""
        if self.training:
            is_out = torch.rand(features.shape, device=features.device) < self.dropout
            features = features.masked_fill(is_out, 0)
        count = (features > 0).sum(1, keepdim=True).clamp(min=1)
        x: Tensor = self.bag(features) / count.sqrt()
        mixed: Tensor = self.mix(x)
        return x + mixed


class Convolution(nn.Sequential):
    """A 3x3 convolution, normalised and rectified; stride 2 halves the sides."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(width, width), Convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, width, H, W]`."""
        change: Tensor = self.second(self.first(x))
        return x + change


class ImageEncoder(nn.Sequential):
    """Of glyphs `[B, 1, 32, 32]` the embeddings `[B, width]`.

    The last layer sees all places apart, for where a stroke is says what it is.
    """

    def __init__(self, width: int, channels: int = 32, dropout: float = 0.2) -> None:
        super().__init__(
            Convolution(1, channels, stride=2),
            Convolution(channels, 2 * channels, stride=2),
            Residual(2 * channels),
            Convolution(2 * channels, 4 * channels, stride=2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * channels * 4 * 4, width),
        )


class Spectrogram(nn.Module):
    """The logarithm of the energy in bands of a waveform.

    It is a convolution with windowed waves, which every device has: no complex numbers.

    Args:
        window: Samples that a frame is made of; frames are half of it apart.
        bands: From the lowest that the window tells from a constant.
    """

    waves: Tensor

    def __init__(self, window: int, bands: int) -> None:
        super().__init__()
        self.window = window
        turns = torch.arange(1, bands + 1)[:, None] * torch.arange(window) / window
        waves = torch.cat([torch.cos(math.tau * turns), torch.sin(math.tau * turns)])
        self.register_buffer("waves", (waves * torch.hann_window(window))[:, None])

    def forward(self, sound: Tensor) -> Tensor:
        """Of `[B, samples]` the frames `[B, bands, 2 samples / window + 1]`, about 0 to 3."""
        hop = self.window // 2
        padded = F.pad(sound[:, None], (hop, hop))
        cosine, sine = F.conv1d(padded, self.waves, stride=hop).chunk(2, dim=1)
        return torch.log1p(cosine.square() + sine.square())


class AudioEncoder(nn.Module):
    """A spectrogram, convolutions over time, and the largest and the mean of what they find.

    Args:
        width: Of the output.
        channels: Of the first convolutions; the last has twice as many.
    """

    def __init__(self, width: int, channels: int = 64) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(window=64, bands=32)
        layers: list[nn.Module] = []
        for inputs, outputs, size, stride in (
            (32, channels, 4, 2),
            (channels, channels, 5, 1),
            (channels, 2 * channels, 5, 2),
        ):
            convolution = nn.Conv1d(inputs, outputs, size, stride, size // 2, bias=False)
            layers += [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(4 * channels, width)

    def forward(self, sound: Tensor) -> Tensor:
        """Of `[B, samples]` the embeddings `[B, width]`."""
        found = self.convolutions(self.spectrogram(sound))
        embeddings: Tensor = self.head(torch.cat([found.amax(2), found.mean(2)], dim=1))
        return embeddings


def encoders_of_characters(buckets: int, width: int) -> dict[str, nn.Module]:
    """An encoder for each modality of `character_pairs`, all with outputs of one width."""
    image = ImageEncoder(width)
    image.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    return {"text": TextEncoder(buckets, width), "image": image, "audio": AudioEncoder(width)}
