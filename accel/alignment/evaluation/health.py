"""How embeddings are spread: what tells a collapsed model from a trained one, in linear memory.

Every measure is of directions: rows are divided by their lengths first, in float32, or float64 for
float64. None keeps an `[N, N]` matrix; what is quadratic in time says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accel.alignment.evaluation.directions import directions, tie_tolerance
from accel.alignment.pairs import Pair, pair_name

CHUNK = 1024  # rows of a tile


class ModalityHealth(NamedTuple):
    """The spread of one modality's embeddings; NaN where one row has none.

    Attributes:
        rows: How many.
        mean_cosine: See the function of that name.
        uniformity: See the function of that name.
        effective_rank: See the function of that name; of the centred rows.
        ties: Share of the pairs of rows that no ranking can tell apart.
    """

    rows: int
    mean_cosine: float
    uniformity: float
    effective_rank: float
    ties: float


class PairHealth(NamedTuple):
    """How two modalities lie to each other.

    Attributes:
        rows: How many samples have both.
        alignment: See `alignment_distance`.
        gap: See `modality_gap`.
    """

    rows: int
    alignment: float
    gap: float


class Health(NamedTuple):
    """The health of every modality and of every pair, by name: `text`, `text-image`."""

    modalities: dict[str, ModalityHealth]
    pairs: dict[str, PairHealth]


def mean_cosine(embeddings: Tensor) -> float:
    """The mean cosine of two different rows: 1 if all point one way, about 0 if spread evenly.

    Args:
        embeddings: `[N, D]`, floating point.

    Returns:
        `(|sum of the unit rows|^2 - N) / (N (N - 1))`, which is that mean, in linear time; NaN for
        fewer than two rows.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`.
    """
    return _mean_cosine(directions(embeddings))


def uniformity(embeddings: Tensor, *, t: float = 2.0, chunk_size: int = CHUNK) -> float:
    """`log E exp(-t |x - y|^2)` over pairs of different rows: 0 if all are one point.

    Less is more even; on a sphere of many dimensions it tends to `-2t`. Quadratic in time. Source:
    Wang and Isola, arXiv 2005.10242, section 4.1.2.

    Args:
        embeddings: `[N, D]`, floating point.
        t: Of the kernel, above 0.
        chunk_size: Rows and columns of the distances that are held at once.

    Returns:
        The measure; NaN for fewer than two rows.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`; or `t` or `chunk_size` is not positive.
    """
    return _pairwise(directions(embeddings), t, chunk_size)[0]


def alignment_distance(x: Tensor, y: Tensor) -> float:
    """`E |x - y|^2` over partners: 0 if they agree, 2 if they have nothing to do with one another.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1.1 (exponent 2).

    Args:
        x: `[N, D]`, floating point.
        y: `[N, D]`; row i belongs to row i of `x`.

    Returns:
        The measure; NaN for no rows.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`; or the shapes differ.
    """
    _check_partners(x, y)
    return _distance(directions(x, "x"), directions(y, "y"))


def modality_gap(x: Tensor, y: Tensor) -> float:
    """The distance between the means of two modalities, from 0 to 2.

    Source: Liang et al., arXiv 2203.02053, section 2.

    Args:
        x: `[N, D]`, floating point.
        y: `[M, D]`.

    Returns:
        The measure; NaN if either has no rows.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`; or the depths differ.
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x and y must have one depth, got {list(x.shape)} and {list(y.shape)}: embeddings of "
            "one space"
        )
    return _gap(directions(x, "x"), directions(y, "y"))


def effective_rank(embeddings: Tensor, *, centered: bool = True) -> float:
    """In how many directions the rows spread: `exp` of the entropy of the singular values.

    The singular values, divided by their sum, are taken as probabilities. Source: Roy and Vetterli,
    "The effective rank", EUSIPCO 2007. They come from the `[D, D]` covariance (or the `[N, N]`
    products if there are fewer rows than that), in float64 on the CPU: memory is linear in `N`.

    Args:
        embeddings: `[N, D]`, floating point.
        centered: Take the mean off first, so that what all rows share counts for nothing. Without,
            it is the rank of the rows as they are.

    Returns:
        From 1 to `min(N - 1, D)`; 0 if all rows are equal; NaN for fewer than two rows.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`.
    """
    return _effective_rank(directions(embeddings), centered=centered)


def modality_health(embeddings: Tensor, *, chunk_size: int = CHUNK) -> ModalityHealth:
    """The spread of one modality's embeddings.

    Args:
        embeddings: `[N, D]`, floating point.
        chunk_size: See `uniformity`.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions`.
    """
    return _of_units(directions(embeddings), chunk_size)


def measure_health(
    embeddings: Mapping[str, Tensor],
    *,
    presence: Tensor | Mapping[str, Tensor] | None = None,
    pairs: Sequence[Pair] | None = None,
    broken: Literal["error", "leave_out"] = "error",
    chunk_size: int = CHUNK,
) -> Health:
    """Every measure of this file, of every modality and pair.

    Args:
        embeddings: `[N, D]` for each modality; row i of all is sample i.
        presence: See `present_rows`.
        pairs: Which pairs; None: all.
        broken: Rows that are there and have no direction (zero, NaN or infinite) are an error, or
            are left out and not counted.
        chunk_size: See `uniformity`.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions` and `present_rows`; or an unknown name.
    """
    if broken not in ("error", "leave_out"):
        raise ValueError(f"broken must be 'error' or 'leave_out', got {broken!r}")
    there = present_rows(embeddings, presence)
    if broken == "leave_out":
        lost = broken_rows(embeddings, presence)
        there = {name: of & ~lost[name] for name, of in there.items()}
    units = {}
    for name, rows in embeddings.items():
        kept = rows if there[name].all() else rows[there[name].to(rows.device)]
        units[name] = directions(kept, name)
    modalities = {name: _of_units(rows, chunk_size) for name, rows in units.items()}
    wanted = tuple(combinations(embeddings, 2)) if pairs is None else tuple(pairs)
    found = {}
    for a, b in wanted:
        for name in (a, b):
            if name not in units:
                raise ValueError(f"there is no modality {name!r}: there are {', '.join(units)}")
        both = there[a] & there[b]
        # What is left of each after its absent rows were taken out.
        x, y = (units[name][both[there[name]].to(units[name].device)] for name in (a, b))
        found[pair_name((a, b))] = PairHealth(
            int(both.sum()), _distance(x, y), _gap(units[a], units[b])
        )
    return Health(modalities, found)


def present_rows(
    embeddings: Mapping[str, Tensor], presence: Tensor | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Which samples have which modality, as bool `[N]` on the CPU.

    Args:
        embeddings: `[N, D]` for each modality; row i of all is sample i.
        presence: By modality, bool `[N]`. Or bool `[N, modalities]`, whose columns are in the order
            of `embeddings`: whether that is the order they were made in cannot be checked, so give
            a mapping where the two come from different places. None: all are there.

    Raises:
        TypeError: `presence` is neither.
        ValueError: The modalities have different numbers of rows, or `presence` another shape or
            other names.
    """
    lengths = {name: len(rows) for name, rows in embeddings.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"every modality needs one row per sample, got {lengths}: give absent ones any row, "
            "and say so in presence"
        )
    count = next(iter(lengths.values()))
    if presence is None:
        return {name: torch.ones(count, dtype=torch.bool) for name in lengths}
    if isinstance(presence, Mapping):
        return _named_presence(tuple(lengths), presence, count)
    if not isinstance(presence, Tensor):
        raise TypeError(
            "presence must be a bool tensor, or a mapping from modality to one, got "
            f"{type(presence).__name__}"
        )
    if presence.dtype != torch.bool or list(presence.shape) != [count, len(lengths)]:
        raise ValueError(
            f"presence must be bool [{count}, {len(lengths)}] (samples, modalities), got "
            f"{presence.dtype} {list(presence.shape)}"
        )
    columns = presence.cpu().unbind(1)
    return dict(zip(lengths, columns, strict=True))


def broken_rows(
    embeddings: Mapping[str, Tensor], presence: Tensor | Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Which rows are there and have no direction (zero, NaN or infinite): bool `[N]` on the CPU.

    Args:
        embeddings: `[N, D]` for each modality; row i of all is sample i.
        presence: See `present_rows`.

    Raises:
        TypeError: See `directions`.
        ValueError: See `directions` and `present_rows`.
    """
    there = present_rows(embeddings, presence)
    found = {}
    for name, rows in embeddings.items():
        lengths = torch.linalg.vector_norm(directions(rows, name, may_lack=True), dim=1)
        found[name] = ~(lengths > 0).cpu() & there[name]  # which NaN is not either
    return found


def _named_presence(
    names: tuple[str, ...], presence: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    if set(presence) != set(names):
        raise ValueError(
            f"presence must name each modality, {', '.join(names)}; it names "
            f"{', '.join(map(str, presence)) or 'none'}"
        )
    for name, of in presence.items():
        is_vector = isinstance(of, Tensor) and of.dtype == torch.bool and list(of.shape) == [count]
        if not is_vector:
            given = f"{of.dtype} {list(of.shape)}" if isinstance(of, Tensor) else type(of).__name__
            raise ValueError(f"presence of {name!r} must be bool [{count}], got {given}")
    return {name: presence[name].cpu() for name in names}


def _of_units(rows: Tensor, chunk_size: int) -> ModalityHealth:
    even, ties = _pairwise(rows, 2.0, chunk_size)
    rank = _effective_rank(rows, centered=True)
    return ModalityHealth(len(rows), _mean_cosine(rows), even, rank, ties)


def _mean_cosine(rows: Tensor) -> float:
    n = len(rows)
    if n < 2:
        return math.nan
    # In float64: with rows close together the sum of squares is close to n^2.
    own = sum(float(part.square().sum()) for part in _float64_parts(rows))
    whole = float(_total(rows).square().sum())
    return (whole - own) / (n * (n - 1))


def _pairwise(rows: Tensor, t: float, chunk_size: int) -> tuple[float, float]:
    """Uniformity, and the share of pairs that are the same within rounding."""
    if not t > 0:
        raise ValueError(f"t must be above 0, got {t}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    n = len(rows)
    if n < 2:
        return math.nan, math.nan
    nearest = tie_tolerance(rows.dtype)
    logs, ties = [], []
    for tile in _tiles(rows, chunk_size):
        apart = (1.0 - tile).clamp_(min=0.0)  # half of the squared distance
        ties.append((apart <= nearest).sum())
        logs.append(torch.logsumexp((-2.0 * t * apart).flatten(), 0))
    # Read once, at the end: a device is not waited for between tiles.
    whole = torch.logsumexp(torch.stack(logs).cpu().double(), 0)
    count = n * (n - 1) / 2
    return float(whole) - math.log(count), int(torch.stack(ties).sum()) / count


def _tiles(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Cosines of the pairs of different rows, each once; the upper triangle in tiles."""
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        inner = block @ block.T
        above = torch.ones_like(inner, dtype=torch.bool).triu_(1)
        if len(block) > 1:
            yield inner[above]
        for other in range(start + size, len(rows), size):
            yield block @ rows[other : other + size].T


def _distance(x: Tensor, y: Tensor) -> float:
    if not len(x):
        return math.nan
    pairs = zip(_float64_parts(x), _float64_parts(y), strict=True)
    return sum(float((a - b).square().sum()) for a, b in pairs) / len(x)


def _gap(x: Tensor, y: Tensor) -> float:
    if not len(x) or not len(y):
        return math.nan
    return float(torch.linalg.vector_norm(_total(x) / len(x) - _total(y) / len(y)))


def _effective_rank(rows: Tensor, *, centered: bool) -> float:
    n, depth = rows.shape
    if n < 2:
        return math.nan
    mean = _total(rows) / n if centered else torch.zeros(depth, dtype=torch.float64)
    if n < depth:
        (whole,) = (part - mean for part in _float64_parts(rows, n))
        products = whole @ whole.T
    else:
        products = torch.zeros(depth, depth, dtype=torch.float64)
        for part in _float64_parts(rows):
            part = part - mean
            products.addmm_(part.T, part)
    # Unit rows have n in all: what is below the rounding of that is nothing.
    values = torch.linalg.eigvalsh(products)
    singular = values[values > n * torch.finfo(torch.float64).eps].sqrt()
    if not len(singular):
        return 0.0
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


def _total(rows: Tensor) -> Tensor:
    """The sum of the rows `[D]`, float64 on the CPU."""
    zero = torch.zeros(rows.shape[1], dtype=torch.float64)
    return sum((part.sum(0) for part in _float64_parts(rows)), zero)


def _float64_parts(rows: Tensor, size: int = 16 * CHUNK) -> Iterator[Tensor]:
    """The rows on the CPU in float64, a part at a time: not every chip has float64."""
    return (rows[at : at + size].cpu().double() for at in range(0, len(rows), size))


def _check_partners(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must be partners row by row, got {list(x.shape)} and {list(y.shape)}"
        )
