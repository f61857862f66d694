"""Building a `Pairing`: who is whose partner, and which negatives are none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from accel.alignment.options import check_choice, check_not_negative
from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.pairing import ABSENT, DUPLICATES, Duplicates, Guide, Pairing

MarginStrategy = Literal["absolute", "relative"]
MARGIN_STRATEGIES: tuple[MarginStrategy, ...] = ("absolute", "relative")

# Sample numbers of rows that have no partner. Numbers may repeat, so one does for all rows of a
# side, of all ranks; the two sides' differ.
X_ALONE = torch.iinfo(torch.int64).max - 1
Y_ALONE = torch.iinfo(torch.int64).max


def aligned_pairs(n: int, device: torch.device | str | None = None, first: int = 0) -> Pairing:
    """Row i of x belongs to row i of y.

    In a loss over several ranks equal numbers make partners, on whichever ranks they are: with
    `first` 0 everywhere, row i of one rank would be the partner of row i of every other. There give
    `first=accel.alignment.first_sample(n)`, or the loss no pairing at all.

    Args:
        n: Rows of either side.
        device: Of the embeddings.
        first: The number of the first row.

    Raises:
        ValueError: `n` or `first` is negative.
    """
    if n < 0:
        raise ValueError(f"aligned_pairs needs a number of rows, not {n}")
    if first < 0:
        raise ValueError(
            f"aligned_pairs numbers rows from first on, which must be at least 0, not {first}: "
            "negative numbers stand for absent rows"
        )
    sample = torch.arange(first, first + n, device=device)
    return Pairing(sample, sample)


def matched_pairs(x_sample: Tensor, y_sample: Tensor) -> Pairing:
    """Rows with equal numbers belong together: five captions of an image, for instance.

    Args:
        x_sample: `[N]` int64; in any order, and numbers may repeat. Below 0: the row is absent,
            neither anchor nor negative.
        y_sample: `[M]` int64.

    Raises:
        TypeError: They are not int64.
        ValueError: They have not one dimension.
    """
    for name, sample in (("x_sample", x_sample), ("y_sample", y_sample)):
        check_numbers(name, sample)
    return Pairing(x_sample.clamp(min=ABSENT), y_sample.clamp(min=ABSENT))


def grouped(
    pairing: Pairing,
    x_group: Tensor,
    y_group: Tensor | None = None,
    duplicates: Duplicates = "positive",
) -> Pairing:
    """Say which rows show the same thing, so that they are not each other's negatives.

    Args:
        pairing: Any.
        x_group: `[N]` int64, an identity for each row; below 0: the row is like no other.
            `identities` makes them of text or bytes.
        y_group: `[M]` int64; as `x_group` if None.
        duplicates: What pairs of one group are that are no partners: `positive`, left out
            (`ignore`), or `negative` after all.

    Raises:
        TypeError: The groups are not int64.
        ValueError: They do not fit the pairing, or `duplicates` is none of the three.
    """
    y_group = x_group if y_group is None else y_group
    sides = (("x_group", x_group, pairing.x_sample), ("y_group", y_group, pairing.y_sample))
    for name, group, sample in sides:
        check_numbers(name, group)
        if group.shape != sample.shape:
            raise ValueError(
                f"{name} must name a group for each of {len(sample)} rows, not for {len(group)}; "
                "a row below 0 is in no group"
            )
    check_choice("duplicates", duplicates, DUPLICATES)
    return pairing._replace(x_group=x_group, y_group=y_group, duplicates=duplicates)


def identities(items: Iterable[str | bytes], device: torch.device | str | None = None) -> Tensor:
    """Numbers for `grouped`, equal for equal items: `[N]` int64, not negative.

    They are 63 bits of a hash (BLAKE2b), so that every process finds the same.

    Raises:
        TypeError: An item is neither text nor bytes.
    """
    numbers = []
    for item in items:
        if not isinstance(item, (str, bytes)):
            raise TypeError(f"identities are made of text or bytes, not of {item!r}")
        data = item.encode() if isinstance(item, str) else item
        digest = hashlib.blake2b(data, digest_size=8).digest()
        numbers.append(int.from_bytes(digest, "little") >> 1)
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def guided(
    pairing: Pairing,
    guide_x: Tensor,
    guide_y: Tensor,
    margin: float = 0.0,
    strategy: MarginStrategy = "absolute",
) -> Pairing:
    """Leave out negatives that a frozen model finds about as similar as the partner.

    As in GISTEmbed (arXiv 2402.16829, section 3) with the margins of sentence-transformers' GIST
    losses: out is a negative whose cosine similarity to the anchor, by the guide, is above
    `partner's - margin`, or above `partner's - |partner's| * margin` if relative. With margin 0 an
    exact duplicate is on the threshold, where rounding decides: give a small margin, or `grouped`.

    Args:
        pairing: Any. Of several partners of a row, the first counts.
        guide_x: `[N, E]`, in the dtype of the embeddings that are trained; of any length, as the
            rows are normalised here.
        guide_y: `[M, E]`.
        margin: How much less similar than the partner is still too similar.
        strategy: Whether the margin is of similarity or of a share of the partner's.

    Raises:
        TypeError: `margin` is no number.
        ValueError: Shapes do not fit, `margin` is negative or the strategy unknown.
    """
    check_choice("strategy", strategy, MARGIN_STRATEGIES)
    check_not_negative("margin", margin)
    sizes = len(pairing.x_sample), len(pairing.y_sample)
    if guide_x.dim() != 2 or guide_y.dim() != 2 or (len(guide_x), len(guide_y)) != sizes:
        raise ValueError(
            f"the guide needs a row for each of {sizes[0]} and {sizes[1]} rows, not "
            f"{tuple(guide_x.shape)} and {tuple(guide_y.shape)}"
        )
    with torch.no_grad():
        x, y = (F.normalize(guide, dim=-1) for guide in (guide_x, guide_y))
        thresholds = [
            _threshold(similarity, has_partner, margin, strategy)
            for similarity, has_partner in partner_similarities(x, y, pairing)
        ]
    return pairing._replace(guide=Guide(x, y, *thresholds))


def with_negatives(pairing: Pairing, count: int, *, side: Literal["x", "y"] = "y") -> Pairing:
    """Append rows that are nobody's partner: hard negatives, for all anchors of the other side.

    Append their embeddings to the same side, in place of `y`: `torch.cat([y, negatives])`. Give
    groups and a guide after this, for these rows too.

    Args:
        pairing: Any without groups and guide.
        count: How many.
        side: Where they are.

    Raises:
        ValueError: The pairing has groups or a guide already, `count` is negative or the side
            unknown.
    """
    if side not in ("x", "y") or count < 0:
        raise ValueError(f"with_negatives needs a count and side 'x' or 'y', not {count}, {side!r}")
    if pairing.x_group is not None or pairing.guide is not None:
        raise ValueError(
            "the pairing has groups or a guide, which do not know the rows to append: call "
            "with_negatives first, then grouped and guided"
        )
    if side == "x":
        more = pairing.x_sample.new_full((count,), X_ALONE)
        return pairing._replace(x_sample=torch.cat([pairing.x_sample, more]))
    more = pairing.y_sample.new_full((count,), Y_ALONE)
    return pairing._replace(y_sample=torch.cat([pairing.y_sample, more]))


def partner_similarities(
    x: Tensor, y: Tensor, pairing: Pairing | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The product of each row with its first partner, and whether it has one; of both sides.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        pairing: None: row i belongs to row i.

    Returns:
        For x and for y: `[N]` in float32 (float64 for float64), 0 without partner, and `[N]` bool.
    """
    dtype = accumulation_dtype(x.dtype)
    if pairing is None:
        products = (x.to(dtype) * y.to(dtype)).sum(-1)
        here = torch.ones_like(products, dtype=torch.bool)
        return (products, here), (products, here)
    found = []
    for one, other, mine, theirs in (
        (x, y, pairing.x_sample, pairing.y_sample),
        (y, x, pairing.y_sample, pairing.x_sample),
    ):
        rows, here = _first_partners(mine, theirs)
        products = one.new_zeros(len(one), dtype=dtype)
        if len(other):
            products = (one.to(dtype) * other.to(dtype)[rows]).sum(-1).masked_fill(~here, 0.0)
        found.append((products, here))
    return found[0], found[1]


def _first_partners(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row the first of the others with its number, and whether there is one."""
    if not len(theirs):
        return torch.zeros_like(mine), torch.zeros_like(mine, dtype=torch.bool)
    numbers, order = torch.sort(theirs, stable=True)
    place = torch.searchsorted(numbers, mine).clamp(max=len(theirs) - 1)
    return order[place], (numbers[place] == mine) & (mine != ABSENT)


def _threshold(
    similarity: Tensor, has_partner: Tensor, margin: float, strategy: MarginStrategy
) -> Tensor:
    width = similarity.abs() * margin if strategy == "relative" else margin
    return (similarity - width).masked_fill(~has_partner, torch.inf)


def check_numbers(name: str, numbers: Tensor) -> None:
    """Refuse what is no int64 `[N]`."""
    if not isinstance(numbers, Tensor) or numbers.dtype != torch.int64:
        kind = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
        raise TypeError(f"{name} must be an int64 tensor, not {kind}")
    if numbers.dim() != 1:
        raise ValueError(f"{name} must be [N], a number for each row, not {tuple(numbers.shape)}")
