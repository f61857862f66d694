"""A key/value cache in one piece or in pages: checked, appended to, and read in segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Lengths: TypeAlias = "int | Sequence[int] | Tensor"


class Cache(NamedTuple):
    """Keys and values of a batch of sequences.

    Attributes:
        key: `[B, H_kv, S, D]`, or with a table `[pages, page_size, H_kv, D]`.
        value: The same with `D_v`.
        table: int64 `[B, most pages]` on the CPU: the pages of each sequence in order. None: the
            cache is in one piece.
    """

    key: Tensor
    value: Tensor
    table: Tensor | None

    @property
    def capacity(self) -> int:
        """Keys that a sequence may have."""
        if self.table is None:
            return self.key.shape[2]
        return self.table.shape[1] * self.key.shape[1]

    @property
    def batch(self) -> int:
        """Sequences."""
        return (self.key if self.table is None else self.table).shape[0]

    @property
    def heads(self) -> int:
        """Key heads."""
        return self.key.shape[1 if self.table is None else 2]


def cache_of(key_cache: Tensor, value_cache: Tensor, block_table: Tensor | None) -> Cache:
    """Check the three tensors and put them together.

    Raises:
        TypeError: They are of the wrong type or dtype.
        ValueError: Shapes or devices do not fit.
    """
    form = "[B, H_kv, S, D]" if block_table is None else "[pages, page_size, H_kv, D]"
    for name, tensor in (("key_cache", key_cache), ("value_cache", value_cache)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be {form}, not {tuple(tensor.shape)}")
    if key_cache.shape[:3] != value_cache.shape[:3] or key_cache.device != value_cache.device:
        raise ValueError(
            f"key_cache and value_cache must agree in {form[:-4]}] and device, but are "
            f"{tuple(key_cache.shape)} on {key_cache.device} and {tuple(value_cache.shape)} on "
            f"{value_cache.device}"
        )
    if block_table is None:
        return Cache(key_cache, value_cache, None)
    if not isinstance(block_table, Tensor) or block_table.dtype not in (torch.int32, torch.int64):
        kind = block_table.dtype if isinstance(block_table, Tensor) else type(block_table).__name__
        raise TypeError(f"block_table must be an int32 tensor, not {kind}")
    if block_table.dim() != 2:
        raise ValueError(f"block_table must be [B, most pages], not {tuple(block_table.shape)}")
    if key_cache.shape[1] == 0:
        raise ValueError(f"the page size must be at least 1, but key_cache is {key_cache.shape}")
    return Cache(key_cache, value_cache, block_table.to("cpu", torch.int64))


def lengths_of(cache_seqlens: Lengths | None, cache: Cache) -> list[int]:
    """Keys of each sequence.

    Raises:
        TypeError: They are no integers.
        ValueError: None is given for pages, or there are not as many as sequences.
    """
    if cache_seqlens is None:
        if cache.table is not None:
            raise ValueError("a paged cache needs cache_seqlens: its last pages may be part full")
        return [cache.capacity] * cache.batch
    if isinstance(cache_seqlens, Tensor):
        if cache_seqlens.dtype not in (torch.int32, torch.int64) or cache_seqlens.dim() != 1:
            raise TypeError(
                f"cache_seqlens must be an int or int32 [B], not {cache_seqlens.dtype} "
                f"{tuple(cache_seqlens.shape)}"
            )
        cache_seqlens = cache_seqlens.tolist()
    found: object = [cache_seqlens] * cache.batch if _is_int(cache_seqlens) else cache_seqlens
    if not isinstance(found, (list, tuple)) or not all(map(_is_int, found)):
        raise TypeError(f"cache_seqlens must be an int or int32 [B], not {cache_seqlens!r}")
    if len(found) != cache.batch:
        raise ValueError(f"cache_seqlens has {len(found)} lengths for {cache.batch} sequences")
    return list(found)


def check_reach(cache: Cache, lengths: list[int], added: int = 0) -> None:
    """Check that each sequence's keys, with so many more, lie in the cache, and are its own.

    Raises:
        ValueError: A length or a page number is out of range, or keys would be added to a page that
            another sequence uses.
    """
    for index, length in enumerate(lengths):
        if not 0 <= length <= cache.capacity - added:
            more = f" and {added} more" if added else ""
            raise ValueError(
                f"sequence {index} has {length}{more} keys, but the cache holds {cache.capacity}"
            )
    for name, whole in (("key_cache", cache.key), ("value_cache", cache.value)):
        shared = any(
            n > 1 and step == 0 for n, step in zip(whole.shape, whole.stride(), strict=True)
        )
        if added and shared:
            raise ValueError(
                f"{name} is expanded, so that sequences share what this call would write to; "
                "give it memory of its own with .contiguous()"
            )
    if cache.table is None:
        return
    size, pages = cache.key.shape[1], cache.key.shape[0]
    used = torch.tensor([-(-(n + added) // size) for n in lengths], dtype=torch.int64)
    inside = torch.arange(cache.table.shape[1]) < used.unsqueeze(1)
    wrong = inside & ((cache.table < 0) | (cache.table >= pages))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"block_table[{row}, {column}] is {int(cache.table[row, column])}, but key_cache has "
            f"{pages} pages"
        )
    if added:
        first = torch.tensor(lengths, dtype=torch.int64) // size
        _check_own(cache.table, inside, first, pages)


def _check_own(table: Tensor, inside: Tensor, first: Tensor, pages: int) -> None:
    """No page that is written to, from each sequence's `first` on, is used by another."""
    written = inside & (torch.arange(table.shape[1]) >= first.unsqueeze(1))
    uses = torch.bincount(table[inside], minlength=max(pages, 1))
    shared = written & (uses[table.clamp(0, len(uses) - 1)] > 1)
    if shared.any():
        row, column = shared.nonzero()[0].tolist()
        raise ValueError(
            f"sequence {row} would write to page {int(table[row, column])}, which block_table "
            "names more than once; give it a copy of the page first"
        )


def append(cache: Cache, lengths: list[int], key: Tensor, value: Tensor) -> None:
    """Write new keys and values `[B, H_kv, n, D]` in place behind each sequence's last."""
    device = cache.key.device
    starts = torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)
    places = starts + torch.arange(key.shape[2])
    if cache.table is None:
        first, second = torch.arange(cache.batch).unsqueeze(1), places
    else:
        size = cache.key.shape[1]
        first, second = cache.table.gather(1, places // size), places % size
    at = first.to(device), second.to(device)
    for whole, new in ((cache.key, key), (cache.value, value)):
        rows = whole.transpose(1, 2) if cache.table is None else whole
        rows[at] = new.transpose(1, 2)


def room_for(cache: Cache, keys: int) -> tuple[Tensor, Tensor]:
    """Memory for `segment` to copy so many keys into, a whole number of pages."""
    pages = keys // cache.key.shape[1]
    key, value = (whole.new_empty(pages, *whole.shape[1:]) for whole in (cache.key, cache.value))
    return key, value


def segment(
    cache: Cache, rows: Tensor, start: int, stop: int, room: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Keys and values `start:stop` of some sequences, `[rows, H_kv, stop - start, D]`.

    From pages, whose size divides `start`; copied to `room`, since memory that is new each time
    takes longer to come by than to fill. Page numbers beyond a sequence's last are not looked at:
    some other page stands there, for a mask to hide.
    """
    assert cache.table is not None  # noqa: S101
    size = cache.key.shape[1]
    pages = cache.table[rows, start // size : -(-stop // size)]
    flat = pages.clamp(0, cache.key.shape[0] - 1).flatten().to(cache.key.device)
    key, value = (
        # Several times as fast as indexing with the table itself.
        torch.index_select(whole, 0, flat, out=place[: len(flat)])
        .view(len(rows), -1, *whole.shape[2:])[:, : stop - start]
        .transpose(1, 2)
        for whole, place in zip((cache.key, cache.value), room, strict=True)
    )
    return key, value


def _is_int(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
