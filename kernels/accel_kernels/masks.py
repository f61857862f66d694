"""Masks as structure: which keys each query may see, in a few numbers per row instead of per pair.

Every structured mask reduces to *row intervals*: for each query, up to `m` disjoint ranges of keys
`[low, high)`. Causal masks, windows with sinks, packed documents, prefixes and key lengths are one
or two intervals a row, and so are their intersections and unions. A kernel that understands row
intervals therefore understands every mask that can be written here, tiles can be told exactly to be
full, partial or empty, and memory is `O(m * T)` (the idea of FlashMask, arXiv 2410.01359, by rows
instead of by columns).

`p(i) = i + S - T` is where query `i` of `T` stands among `S` keys when both end together (aligned
at the bottom right, as in FlashAttention); aligned at the top left, `p(i) = i`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Align = Literal["bottom_right", "top_left"]
Numbers: TypeAlias = "Sequence[int] | Tensor"
Interval: TypeAlias = "tuple[Tensor, Tensor]"
_ALIGNMENTS = ("bottom_right", "top_left")


class Sizes(NamedTuple):
    """What a mask is laid over: `batch` and `heads` matter to dense masks and lengths per entry."""

    batch: int
    heads: int
    query_length: int
    key_length: int


class Visibility(NamedTuple):
    """A mask, resolved for given sizes: what is visible fulfils all three.

    Attributes:
        intervals: int32 `[m, 2, B or 1, T]`: row `i` sees keys from `[k, 0, b, i]` up to, not
            including, `[k, 1, b, i]`, for each `k`; disjoint within a row, within `[0, S]`, empty
            where the upper is not above the lower. None: every key.
        dense: bool `[B or 1, H or 1, T or 1, S or 1]`, True where a query may see a key. None: all.
        causal: Query `i` sees key `j` only if `j <= i + S - T`. Then the other two are None.
    """

    intervals: Tensor | None
    dense: Tensor | None
    causal: bool = False


class Rows(NamedTuple):
    """Query rows and what they are counted against; numbers, or tensors that differ by row."""

    number: Tensor
    queries: Any
    keys: Any


class Mask:
    """Which keys a query may see. Combine with `&` (both allow it) and `|` (either allows it)."""

    __slots__ = ()

    def __and__(self, other: Mask | Tensor) -> Mask:
        return Both(self, as_mask(other))

    def __or__(self, other: Mask | Tensor) -> Mask:
        return Either(self, as_mask(other))

    def __rand__(self, other: Tensor) -> Mask:
        return Both(as_mask(other), self)

    def __ror__(self, other: Tensor) -> Mask:
        return Either(as_mask(other), self)

    def key(self) -> tuple[Any, ...] | None:
        """What the mask is, hashable; None if it holds a tensor, whose values may change."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Those it holds, whose values may change."""
        names: tuple[str, ...] = type(self).__slots__
        return [item for item in (getattr(self, name) for name in names) if torch.is_tensor(item)]

    def kinds(self) -> frozenset[str]:
        """The names of the masks it is made of."""
        return frozenset({type(self).__name__.lower()})

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """Resolve it for these sizes; on the CPU, values are checked."""
        index = torch.arange(sizes.query_length, device=device).unsqueeze(0)
        rows = Rows(index, sizes.query_length, sizes.key_length)
        return Visibility(_stack(self.intervals(rows, sizes.batch)), None)

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """Disjoint intervals, each a lower and an upper bound `[B or 1, T]` in int64."""
        raise NotImplementedError


class Causal(Mask):
    """See `causal`."""

    __slots__ = ("align",)

    def __init__(self, align: Align) -> None:
        _check_align(align)
        self.align = align

    def __repr__(self) -> str:
        return f"causal({self.align!r})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        return ("causal", self.align)

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """See `Mask.resolve`."""
        if self.align == "bottom_right" or sizes.query_length == sizes.key_length:
            return Visibility(None, None, causal=True)
        return super().resolve(sizes, device)

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        high = _clip(_positions(rows, self.align) + 1, rows.keys)
        return [(torch.zeros_like(high), high)]


class Window(Mask):
    """See `window`."""

    __slots__ = ("align", "left", "right", "sinks")

    def __init__(self, left: int | None, right: int | None, sinks: int, align: Align) -> None:
        _check_align(align)
        for name, number in (("left", left), ("right", right)):
            if number is not None:
                _check_count(f"window's {name}", number, "None lifts the limit")
        _check_count("window's sinks", sinks, "0 means none")
        self.left, self.right, self.sinks, self.align = left, right, sinks, align

    def __repr__(self) -> str:
        return f"window({self.left}, {self.right}, sinks={self.sinks}, align={self.align!r})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        return ("window", self.left, self.right, self.sinks, self.align)

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        return frozenset({"window", "sinks"} if self.sinks else {"window"})

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        at = _positions(rows, self.align)
        low = torch.zeros_like(at) if self.left is None else _clip(at - self.left, rows.keys)
        high = at + self.right + 1 if self.right is not None else torch.zeros_like(at) + rows.keys
        high = _clip(high, rows.keys)
        found = [(low, high)]
        if self.sinks and self.left is not None:
            found.insert(0, (torch.zeros_like(low), torch.minimum(low, high).clamp(max=self.sinks)))
        return found


class Documents(Mask):
    """See `documents`."""

    __slots__ = ("cu_seqlens", "cu_seqlens_k", "within")

    def __init__(self, cu_seqlens: Numbers, cu_seqlens_k: Numbers | None, within: Any) -> None:
        self.cu_seqlens = _boundaries("cu_seqlens", cu_seqlens)
        given = self.cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        self.cu_seqlens_k = _boundaries("cu_seqlens_k", given)
        if len(self.cu_seqlens) != len(self.cu_seqlens_k):
            raise ValueError(
                f"documents need as many boundaries of queries as of keys, but cu_seqlens has "
                f"{len(self.cu_seqlens)} and cu_seqlens_k {len(self.cu_seqlens_k)}"
            )
        if within is not None and not isinstance(within, Mask):
            raise TypeError(f"within must be a mask such as causal(), not {type(within).__name__}")
        if within is not None and not within.kinds() <= {"causal", "window", "sinks"}:
            raise ValueError(f"within a document only causal and window masks apply, not {within}")
        self.within: Mask | None = within

    def __repr__(self) -> str:
        return f"documents({len(self.cu_seqlens) - 1} documents, within={self.within})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        inner = () if self.within is None else self.within.key()
        if isinstance(self.cu_seqlens, Tensor) or isinstance(self.cu_seqlens_k, Tensor):
            return None
        return ("documents", self.cu_seqlens, self.cu_seqlens_k, inner)

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        inner = frozenset() if self.within is None else self.within.kinds()
        return frozenset({"documents"}) | inner

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        # Here and not in `resolve`, which a combination of masks does not call.
        for name, bounds, length in (
            ("cu_seqlens", self.cu_seqlens, rows.queries),
            ("cu_seqlens_k", self.cu_seqlens_k, rows.keys),
        ):
            if not isinstance(bounds, Tensor) and bounds[-1] > length:
                raise ValueError(f"{name} ends at {bounds[-1]}, beyond the length {length}")
        device = rows.number.device
        starts_q, starts_k = (_tensor(b, device) for b in (self.cu_seqlens, self.cu_seqlens_k))
        document = torch.searchsorted(starts_q, rows.number.contiguous(), right=True) - 1
        inside = (document >= 0) & (document < len(starts_q) - 1)
        at = document.clamp(0, len(starts_q) - 2)
        q0, k0 = starts_q[at], starts_k[at]
        queries, keys = starts_q[at + 1] - q0, starts_k[at + 1] - k0
        own = [(torch.zeros_like(keys), keys)]
        if self.within is not None:
            own = self.within.intervals(Rows(rows.number - q0, queries, keys), batch)
        # Clipped, since the values of a device's tensor are not checked and kernels read by them.
        return [
            (_clip(low + k0, rows.keys), _clip(torch.where(inside, high, low) + k0, rows.keys))
            for low, high in own
        ]


class Prefix(Mask):
    """See `prefix` and `key_lengths`."""

    __slots__ = ("lengths", "name")

    def __init__(self, lengths: int | Numbers, name: str) -> None:
        self.name = name
        if isinstance(lengths, (int, torch.SymInt)) and not isinstance(lengths, bool):
            _check_count(f"{name}'s length", lengths, "it counts keys")
            self.lengths: int | tuple[int, ...] | Tensor = lengths
        else:
            self.lengths = _integers(f"{name}'s lengths", lengths)

    def __repr__(self) -> str:
        return f"{self.name}({self.lengths})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        return None if isinstance(self.lengths, Tensor) else (self.name, self.lengths)

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        return frozenset({self.name})

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        if isinstance(self.lengths, (int, torch.SymInt)):
            high = torch.zeros_like(rows.number) + self.lengths
        else:
            if len(self.lengths) != 1 and len(self.lengths) != batch:
                raise ValueError(
                    f"{self.name} has {len(self.lengths)} lengths for a batch of {batch}"
                )
            lengths = _tensor(self.lengths, rows.number.device)
            high = lengths.unsqueeze(1) + torch.zeros_like(rows.number)
        high = _clip(high, rows.keys)
        return [(torch.zeros_like(high), high)]


class RowIntervals(Mask):
    """Row intervals as such, `[m, 2, B or 1, T]`; what every other structured mask becomes."""

    __slots__ = ("bounds",)

    def __init__(self, bounds: Tensor) -> None:
        if (
            bounds.dim() != 4
            or bounds.shape[0] == 0
            or bounds.shape[1] != 2
            or bounds.dtype != torch.int32
        ):
            raise ValueError(
                f"row intervals are int32 [m >= 1, 2, B or 1, T], not {bounds.dtype} "
                f"{tuple(bounds.shape)}"
            )
        self.bounds = bounds

    def __repr__(self) -> str:
        return f"RowIntervals({tuple(self.bounds.shape)})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        return None

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """See `Mask.resolve`."""
        self._check(sizes.query_length, sizes.batch)
        return Visibility(self.bounds.to(device), None)

    def _check(self, queries: Any, batch: int) -> None:
        entries, length = self.bounds.shape[2:]
        if length != queries or (entries != 1 and entries != batch):
            raise ValueError(f"{self} do not fit {queries} queries in a batch of {batch}")

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        self._check(rows.queries, batch)
        there = self.bounds.to(rows.number.device).long()
        return [(pair[0], pair[1]) for pair in there.unbind(0)]


class Dense(Mask):
    """A bool tensor that broadcasts to `[B, H, T, S]`, True where a query may see a key."""

    __slots__ = ("allowed",)

    def __init__(self, allowed: Tensor) -> None:
        if allowed.dtype != torch.bool:
            raise TypeError(
                f"a mask tensor is bool, True where a query may see a key, not {allowed.dtype}; "
                "what is added to the scores goes into bias="
            )
        if not 2 <= allowed.dim() <= 4:
            raise ValueError(f"a mask tensor is [T, S] to [B, H, T, S], not {tuple(allowed.shape)}")
        self.allowed = allowed

    def __repr__(self) -> str:
        return f"Dense({tuple(self.allowed.shape)})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        return None

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        return frozenset({"dense"})

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """See `Mask.resolve`."""
        shape = (1,) * (4 - self.allowed.dim()) + tuple(self.allowed.shape)
        for name, given, wanted in zip("BHTS", shape, sizes, strict=True):
            # Not `in (1, wanted)`: Dynamo compares a number and a symbol there by identity.
            if given != 1 and given != wanted:
                raise ValueError(
                    f"a mask tensor {tuple(self.allowed.shape)} does not broadcast to [B, H, T, S] "
                    f"= {list(sizes)}: {name} must be 1 or {wanted}, not {given}"
                )
        if self.allowed.device != device:
            raise ValueError(
                f"the mask tensor is on {self.allowed.device} and the query on {device}; move it"
            )
        return Visibility(None, self.allowed.view(shape))


class Both(Mask):
    """What two masks both allow."""

    __slots__ = ("left", "right")

    def tensors(self) -> list[Tensor]:
        """See `Mask.tensors`."""
        return self.left.tensors() + self.right.tensors()

    def __init__(self, left: Mask, right: Mask) -> None:
        self.left, self.right = left, right

    def __repr__(self) -> str:
        return f"({self.left} & {self.right})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        left, right = self.left.key(), self.right.key()
        return None if left is None or right is None else ("and", left, right)

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        return self.left.kinds() | self.right.kinds()

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """See `Mask.resolve`."""
        if "dense" not in self.kinds():
            return super().resolve(sizes, device)
        left, right = (_apart(m, sizes, device) for m in (self.left, self.right))
        intervals = [v.intervals for v in (left, right) if v.intervals is not None]
        dense = [v.dense for v in (left, right) if v.dense is not None]
        if len(intervals) == 2:
            both = RowIntervals(intervals[0]) & RowIntervals(intervals[1])
            intervals = [_bounds(both.resolve(sizes, device))]
        return Visibility(
            intervals[0] if intervals else None,
            dense[0] & dense[1] if len(dense) == 2 else dense[0],
        )

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        left, right = self.left.intervals(rows, batch), self.right.intervals(rows, batch)
        met = [(torch.maximum(a, c), torch.minimum(b, d)) for a, b in left for c, d in right]
        return _without_empty(met)


class Either(Mask):
    """What at least one of two masks allows."""

    __slots__ = ("left", "right")

    def tensors(self) -> list[Tensor]:
        """See `Mask.tensors`."""
        return self.left.tensors() + self.right.tensors()

    def __init__(self, left: Mask, right: Mask) -> None:
        self.left, self.right = left, right

    def __repr__(self) -> str:
        return f"({self.left} | {self.right})"

    def key(self) -> tuple[Any, ...] | None:
        """See `Mask.key`."""
        left, right = self.left.key(), self.right.key()
        return None if left is None or right is None else ("or", left, right)

    def kinds(self) -> frozenset[str]:
        """See `Mask.kinds`."""
        return self.left.kinds() | self.right.kinds()

    def resolve(self, sizes: Sizes, device: torch.device) -> Visibility:
        """See `Mask.resolve`."""
        if "dense" not in self.kinds():
            return super().resolve(sizes, device)
        left, right = (_apart(m, sizes, device) for m in (self.left, self.right))
        return Visibility(
            None, dense_visibility(left, sizes, device) | dense_visibility(right, sizes, device)
        )

    def intervals(self, rows: Rows, batch: int) -> list[Interval]:
        """See `Mask.intervals`."""
        found = self.left.intervals(rows, batch) + self.right.intervals(rows, batch)
        # An empty interval begins where it ends, so that it hides nothing of the others.
        found = [(torch.where(high > low, low, high), high) for low, high in found]
        disjoint, reached = [], torch.zeros_like(found[0][0])
        for low, high in _sorted(found):
            disjoint.append((torch.maximum(low, reached), high))
            reached = torch.maximum(reached, high)
        return _without_empty(disjoint)


def causal(align: Align = "bottom_right") -> Mask:
    """Query `i` sees key `j` if `j <= p(i)`.

    Args:
        align: `bottom_right`: the last query stands at the last key, `p(i) = i + S - T`, as in
            FlashAttention. `top_left`: `p(i) = i`, as in `scaled_dot_product_attention`.
    """
    return Causal(align)


def window(
    left: int | None,
    right: int | None = 0,
    sinks: int = 0,
    *,
    align: Align = "bottom_right",
) -> Mask:
    """Query `i` sees key `j` if `p(i) - left <= j <= p(i) + right`, or `j < sinks`.

    `window(w - 1, 0)` is a causal window of `w` keys, the query's own among them.

    Args:
        left: Keys before the query's own place; None: all.
        right: Keys after it; None: all. 0 is causal.
        sinks: The first keys, visible from however far (StreamingLLM, arXiv 2309.17453), but not
            beyond `p(i) + right`.
        align: As in `causal`.
    """
    return Window(left, right, sinks, align)


def documents(
    cu_seqlens: Numbers, cu_seqlens_k: Numbers | None = None, *, within: Mask | None = None
) -> Mask:
    """Packed documents: query and key see one another only within the same document.

    Args:
        cu_seqlens: `[N + 1]` ascending from 0: document `n` holds the queries from `cu_seqlens[n]`
            up to, not including, `cu_seqlens[n + 1]`. Rows in no document see nothing. Integers,
            or an integer tensor, whose values are not checked where reading them would wait for a
            device.
        cu_seqlens_k: The same for keys, if it differs.
        within: A causal or window mask, applied inside each document by its own lengths.
            `documents(c, within=causal())` and `documents(c) & causal()` are one where queries and
            keys have the same boundaries.
    """
    return Documents(cu_seqlens, cu_seqlens_k, within)


def prefix(length: int | Numbers) -> Mask:
    """Every query sees the first `length` keys.

    `causal() | prefix(n)` is the mask of a prefix language model.

    Args:
        length: One for all, or one for each entry of the batch.
    """
    return Prefix(length, "prefix")


def key_lengths(lengths: Numbers) -> Mask:
    """In entry `b` of the batch only the first `lengths[b]` keys are visible: the rest is padding.

    Args:
        lengths: `[B]`.
    """
    return Prefix(_integers("key_lengths", lengths), "key_lengths")


def as_mask(mask: Any) -> Mask:
    """A mask as it is; a bool tensor as a `Dense` one.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return Dense(mask)
    if mask in (causal, window, documents, prefix, key_lengths):
        raise TypeError(f"{mask.__name__} must be called: mask={mask.__name__}(...)")
    raise TypeError(
        f"a mask is one of causal, window, documents, prefix, key_lengths, a combination of them "
        f"or a bool tensor, not {type(mask).__name__}"
    )


_resolved: dict[tuple[Any, ...], Visibility] = {}
_RESOLVED_SIZE = 64


def visibility(mask: Mask | None, sizes: Sizes, device: torch.device) -> Visibility:
    """Resolve a mask; remembered for masks without tensors, since every layer asks the same."""
    if mask is None:
        return Visibility(None, None)
    if not _makes_plain_tensors() or (key := mask.key()) is None:
        return mask.resolve(sizes, device)
    place = (key, sizes, device)
    found = _resolved.get(place)
    if found is None:
        if len(_resolved) >= _RESOLVED_SIZE:
            _resolved.clear()
        # What inference mode makes could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            found = _resolved[place] = mask.resolve(sizes, device)
    return found


def _makes_plain_tensors() -> bool:
    """Not while tracing, nor under fake tensors or torch.func, whose wrappers must not stay."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def row_bounds(seen: Visibility, sizes: Sizes, device: torch.device) -> Tensor:
    """The intervals of a visibility, written out where it is causal or sees everything."""
    if seen.intervals is not None:
        return seen.intervals
    mask = Causal("bottom_right") if seen.causal else Prefix(sizes.key_length, "prefix")
    # Not `resolve`, which leaves a causal mask symbolic.
    return _bounds(Mask.resolve(mask, sizes, device))


def visible(
    seen: Visibility,
    sizes: Sizes,
    device: torch.device,
    rows: slice = slice(None),
    keys: slice = slice(None),
) -> Tensor:
    """Which keys of a tile are visible, bool `[B or 1, H or 1, rows, keys]`."""
    bounds = row_bounds(seen, sizes, device)[..., rows].unsqueeze(-1)
    at = torch.arange(sizes.key_length, dtype=torch.int32, device=device)[keys]
    inside = ((at >= bounds[:, 0]) & (at < bounds[:, 1])).any(0).unsqueeze(1)
    if seen.dense is None:
        return inside
    dense = seen.dense if seen.dense.shape[2] == 1 else seen.dense[:, :, rows]
    return inside & (dense if dense.shape[3] == 1 else dense[..., keys])


# Query rows of a tensor that are combined with intervals at once.
_ROWS_AT_ONCE = 256


def visible_pairs(seen: Visibility, sizes: Sizes) -> int:
    """How many scores a mask lets see, over batch and heads."""
    batch, heads, queries, keys = sizes
    if seen.causal:
        width = min(queries, keys)
        return batch * heads * (width * (width + 1) // 2 + max(keys - queries, 0) * width)
    if seen.dense is not None and seen.intervals is not None:
        parts = [slice(at, at + _ROWS_AT_ONCE) for at in range(0, queries, _ROWS_AT_ONCE)]
        found = (visible(seen, sizes, seen.dense.device, part) for part in parts)
        return sum(int(part.sum()) * (batch * heads // math.prod(part.shape[:2])) for part in found)
    if seen.dense is not None:
        return int(seen.dense.sum()) * (math.prod(sizes) // max(seen.dense.numel(), 1))
    if seen.intervals is not None:
        widths = (seen.intervals[:, 1].long() - seen.intervals[:, 0]).clamp(min=0)
        return int(widths.sum()) * heads * (batch // seen.intervals.shape[2])
    return math.prod(sizes)


def dense_visibility(seen: Visibility, sizes: Sizes, device: torch.device) -> Tensor:
    """The whole of it, `[B or 1, H or 1, T, S]`: quadratic, for references and tests."""
    return visible(seen, sizes, device)


def _apart(mask: Mask, sizes: Sizes, device: torch.device) -> Visibility:
    """Resolved, with a causal mask as intervals."""
    seen = mask.resolve(sizes, device)
    return Visibility(row_bounds(seen, sizes, device), None) if seen.causal else seen


def _stack(found: list[Interval]) -> Tensor:
    flat = torch.broadcast_tensors(*(bound for pair in found for bound in pair))
    stacked: Tensor = torch.stack(flat).unflatten(0, (-1, 2)).to(torch.int32)
    return stacked


def _bounds(seen: Visibility) -> Tensor:
    assert seen.intervals is not None  # noqa: S101
    return seen.intervals


def _sorted(found: list[Interval]) -> list[Interval]:
    """By where they begin, in each row, by exchanges of neighbours: they are a handful."""
    found = list(found)
    for end in range(len(found) - 1, 0, -1):
        for at in range(end):
            (a, b), (c, d) = found[at], found[at + 1]
            swap = c < a
            found[at] = torch.where(swap, c, a), torch.where(swap, d, b)
            found[at + 1] = torch.where(swap, a, c), torch.where(swap, b, d)
    return found


def _without_empty(found: list[Interval]) -> list[Interval]:
    """Leave out what is empty in every row, where looking costs no wait."""
    if not _makes_plain_tensors() or found[0][0].device.type != "cpu":
        return found
    kept = [(low, high) for low, high in found if bool((high > low).any())]
    return kept or found[:1]


def _positions(rows: Rows, align: Align) -> Tensor:
    shifted = rows.number + (rows.keys - rows.queries)
    return shifted if align == "bottom_right" else rows.number


def _clip(bound: Tensor, upper: Any) -> Tensor:
    return bound.clamp(min=0).clamp(max=upper)


def _check_align(align: object) -> None:
    if align not in _ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(_ALIGNMENTS)}, not {align!r}")


def _check_count(what: str, number: object, remark: str) -> None:
    if not isinstance(number, (int, torch.SymInt)) or isinstance(number, bool):
        raise TypeError(f"{what} must be an integer, not {number!r}; {remark}")
    if number < 0:
        raise ValueError(f"{what} must be at least 0, not {number}; {remark}")


def _integers(what: str, numbers: Any) -> tuple[int, ...] | Tensor:
    if isinstance(numbers, Tensor):
        if numbers.dim() != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise ValueError(
                f"{what} must be a tensor of one dimension of integers, not {numbers.dtype} "
                f"{tuple(numbers.shape)}"
            )
        if numbers.device.type == "cpu" and not torch.compiler.is_compiling():
            _integers(what, numbers.tolist())
        return numbers
    if not isinstance(numbers, (list, tuple)) or not all(type(n) is int for n in numbers):
        raise TypeError(f"{what} must be integers, in a list or a tensor, not {numbers!r}")
    if any(n < 0 for n in numbers):
        raise ValueError(f"{what} must be at least 0, not {min(numbers)}")
    return tuple(numbers)


def _boundaries(what: str, numbers: Any) -> tuple[int, ...] | Tensor:
    found = _integers(what, numbers)
    if len(found) < 2:
        raise ValueError(f"{what} needs at least two boundaries, not {len(found)}")
    if not isinstance(found, Tensor) and found[0] != 0:
        raise ValueError(
            f"{what} must begin with 0, not {found[0]}: it holds boundaries, the running sum of "
            "the lengths with a 0 before it, and not the lengths themselves"
        )
    if isinstance(found, Tensor) and found.device.type == "cpu":
        if torch.compiler.is_compiling():
            return found
        return _boundaries(what, found.tolist())
    if not isinstance(found, Tensor) and any(b < a for a, b in itertools.pairwise(found)):
        raise ValueError(f"{what} must not descend, and is {found[:8]}…")
    return found


def _tensor(numbers: tuple[int, ...] | Tensor, device: torch.device) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers.to(device=device, dtype=torch.int64)
    return torch.tensor(numbers, dtype=torch.int64, device=device)
