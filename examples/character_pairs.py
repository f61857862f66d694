"""Three views of one character, made here: its Unicode name, its glyph, and the name in tones.

The names come with Python, the font (DejaVu Sans) with matplotlib, and the sound from a rule, so
that nothing is downloaded: 5,749 characters. Some look alike, as Latin A, Greek Alpha and Cyrillic
A do: whoever takes those for negatives of each other trains on errors. `groups` says which.
"""

import math
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, BASELINE, FONT_SIZE = 32, 26, 24  # pixels of a glyph's picture
RATE, CHORD, LONGEST = 4000, 64, 48  # samples per second and per letter, letters that are heard
LETTERS = " -ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"  # all that names are made of
SILENCE = len(LETTERS)
BUCKETS = 16384  # of features of names


class Characters(NamedTuple):
    """What `read_characters` returns; row i of everything is one character.

    Attributes:
        names: As the Unicode standard has them.
        features: `[N, F]` int64, of the names; see `hashed_features`.
        glyphs: `[N, 1, 32, 32]` float32, ink from 0 to 1.
        spellings: `[N, L]` int64, places in `LETTERS`, then `SILENCE`.
        groups: `[N]` int64, equal where the glyphs are.
    """

    names: list[str]
    features: Tensor
    glyphs: Tensor
    spellings: Tensor
    groups: Tensor


def read_characters() -> Characters:
    """Every character of DejaVu Sans that has a name and leaves ink.

    Raises:
        ImportError: matplotlib, or Pillow which comes with it, is not installed.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    path = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    names, pictures = [], []
    for character in map(chr, sorted(FT2Font(path).get_charmap())):
        picture = Image.new("L", (SIDE, SIDE))
        place = SIDE // 2, BASELINE  # of the middle of the glyph's baseline ("ms")
        ImageDraw.Draw(picture).text(place, character, fill=255, font=font, anchor="ms")
        if unicodedata.name(character, "") and picture.getbbox():
            names.append(unicodedata.name(character))
            pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    pixels = torch.stack(pictures)
    glyphs = pixels.view(-1, 1, SIDE, SIDE) / 255
    groups = torch.unique(pixels, dim=0, return_inverse=True)[1]
    return Characters(names, hashed_features(names), glyphs, spell(names), groups)


def split(groups: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train with, and rows held out, no glyph of which is among the former.

    Args:
        groups: `[N]` int64, from 0.
        held_out: How many; glyphs that look alike stay together.
        seed: Decides which.
    """
    sizes = torch.bincount(groups)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    whole = int((sizes[order].cumsum(0) <= held_out).sum())
    chosen, others = order[:whole], order[whole:]
    missing = held_out - int(sizes[chosen].sum())
    chosen = torch.cat([chosen, others[sizes[others] == 1][:missing]])
    is_out = torch.isin(groups, chosen)
    return (~is_out).nonzero().flatten(), is_out.nonzero().flatten()


def spell(names: Iterable[str]) -> Tensor:
    """Places of the letters in `LETTERS`, `[N, L]` int64, filled up with `SILENCE`."""
    rows = [torch.tensor([LETTERS.index(letter) for letter in name[:LONGEST]]) for name in names]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=SILENCE)


def sound(spellings: Tensor) -> Tensor:
    """The waveform of spelled names: for each letter two tones at once, as telephone keys have.

    Args:
        spellings: `[B, L]` int64.

    Returns:
        `[B, 64 L]` float32, 4,000 samples per second, each letter fading in and out.
    """
    letter = torch.arange(len(LETTERS))[:, None]
    time = torch.arange(CHORD) / RATE
    low, high = 250.0 + 125.0 * (letter // 7), 1125.0 + 125.0 * (letter % 7)  # hertz
    chords = torch.sin(math.tau * low * time) + torch.sin(math.tau * high * time)
    chords = torch.cat([chords * torch.hann_window(CHORD), torch.zeros(1, CHORD)])
    return chords[spellings].flatten(1) / 2


def augmented(data: Characters, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch: glyphs turned, resized and moved a little, sounds with a delay and noise."""
    turn, size, right, down = (torch.rand(4, len(rows), generator=generator) - 0.5).unbind()
    cosine, sine = torch.cos(0.16 * turn), torch.sin(0.16 * turn)
    maps = torch.stack([cosine, -sine, right / 4, sine, cosine, down / 4], dim=1)
    maps, glyphs = (maps * (1 + 0.2 * size[:, None])).view(-1, 2, 3), data.glyphs[rows]
    grid = F.affine_grid(maps, list(glyphs.shape), align_corners=False)
    pictures = F.grid_sample(glyphs, grid, align_corners=False)
    sounds = sound(data.spellings[rows])
    delays = torch.randint(CHORD, (len(rows), 1), generator=generator)
    sounds = sounds.gather(1, (torch.arange(sounds.shape[1]) - delays) % sounds.shape[1])
    sounds += 0.05 * torch.randn(sounds.shape, generator=generator)
    return {"text": data.features[rows], "image": pictures, "audio": sounds}


def hashed_features(names: Iterable[str], buckets: int = BUCKETS) -> Tensor:
    """Numbers of a name's words, pairs of neighbouring words and three-letter parts of words.

    Args:
        names: Upper or lower case, words between spaces and hyphens.
        buckets: Numbers are from 1 to `buckets - 1`; two features may share one.

    Returns:
        `[N, F]` int64, filled up with 0.
    """
    rows = []
    for name in names:
        words = name.replace("-", " ").split()
        pairs = [" ".join(pair) for pair in zip(["<", *words], [*words, ">"], strict=True)]
        parts = [f"<{word}>"[i : i + 3] for word in words for i in range(len(word))]
        features = [f"word {one}" for one in words] + pairs + [f"part {one}" for one in parts]
        rows.append(
            torch.tensor([zlib.crc32(one.encode()) % (buckets - 1) + 1 for one in features])
        )
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
