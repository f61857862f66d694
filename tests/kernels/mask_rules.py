"""Masks beside their rules: what a mask says of one query and one key, in plain Python.

Nothing of `accel_kernels.masks` is used but its constructors, so that a rule is an independent
statement of what each mask means.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from accel_kernels.masks import (
    Mask,
    Sizes,
    as_mask,
    causal,
    documents,
    key_lengths,
    prefix,
    window,
)

Rule = Callable[[int, int, int, int], bool]
ALIGNMENTS = ("bottom_right", "top_left")


class Ruled(NamedTuple):
    """A mask, and whether in batch entry `b` and head `h` query `i` sees key `j`."""

    mask: Mask
    rule: Rule


def table(rule: Rule, sizes: Sizes) -> Tensor:
    """`[B, H, T, S]`, one call of the rule for each element."""
    found = torch.zeros(sizes, dtype=torch.bool)
    for place in found.nonzero(as_tuple=False).new_tensor(_places(sizes)).tolist():
        found[tuple(place)] = rule(*place)
    return found


def _places(sizes: Sizes) -> list[list[int]]:
    b, h, t, s = (range(n) for n in sizes)
    return [[w, x, y, z] for w in b for x in h for y in t for z in s]


def place(align: str, i: int, queries: int, keys: int) -> int:
    return i + keys - queries if align == "bottom_right" else i


def a_causal(draw: random.Random, sizes: Sizes) -> Ruled:
    align = draw.choice(ALIGNMENTS)
    _, _, t, s = sizes
    return Ruled(causal(align), lambda b, h, i, j: j <= place(align, i, t, s))


def a_window(draw: random.Random, sizes: Sizes) -> Ruled:
    align = draw.choice(ALIGNMENTS)
    left = draw.choice([None, 0, 1, draw.randrange(20)])
    right = draw.choice([None, 0, 1, draw.randrange(20)])
    sinks = draw.choice([0, 1, draw.randrange(20)])
    _, _, t, s = sizes

    def rule(b: int, h: int, i: int, j: int) -> bool:
        distance = j - place(align, i, t, s)
        if right is not None and distance > right:
            return False
        return left is None or -distance <= left or j < sinks

    return Ruled(window(left, right, sinks, align=align), rule)


def boundaries(draw: random.Random, count: int, length: int) -> list[int]:
    """`count + 1` boundaries from 0 on, some of them equal, not always to the end."""
    return [0, *sorted(draw.randint(0, length) for _ in range(count))]


def some_documents(draw: random.Random, sizes: Sizes) -> Ruled:
    count = draw.randint(1, 4)
    bounds_q = boundaries(draw, count, sizes.query_length)
    bounds_k = boundaries(draw, count, sizes.key_length)
    if draw.random() < 0.3:
        shorter = min(sizes.query_length, sizes.key_length)
        bounds_q = bounds_k = boundaries(draw, count, shorter)
    within = draw.choice([None, a_causal, a_window])
    state = draw.getrandbits(32)

    def inner(n: int) -> Ruled:
        """The mask within document `n`, drawn alike for each: only the lengths differ."""
        assert within is not None
        queries, keys = (bounds[n + 1] - bounds[n] for bounds in (bounds_q, bounds_k))
        return within(random.Random(state), Sizes(1, 1, queries, keys))

    def rule(b: int, h: int, i: int, j: int) -> bool:
        for n in range(count):
            if bounds_q[n] <= i < bounds_q[n + 1] and bounds_k[n] <= j < bounds_k[n + 1]:
                if within is None:
                    return True
                return inner(n).rule(b, h, i - bounds_q[n], j - bounds_k[n])
        return False

    def given(bounds: list[int]) -> list[int] | Tensor:
        return torch.tensor(bounds, dtype=torch.int32) if draw.random() < 0.5 else bounds

    same = bounds_q is bounds_k
    return Ruled(
        documents(
            given(bounds_q),
            None if same else given(bounds_k),
            within=None if within is None else inner(0).mask,
        ),
        rule,
    )


def a_prefix(draw: random.Random, sizes: Sizes) -> Ruled:
    if draw.random() < 0.5:
        length = draw.randint(0, sizes.key_length + 2)
        return Ruled(prefix(length), lambda b, h, i, j: j < length)
    lengths = [draw.randint(0, sizes.key_length + 2) for _ in range(sizes.batch)]
    given = torch.tensor(lengths) if draw.random() < 0.5 else lengths
    build = draw.choice([prefix, key_lengths])
    return Ruled(build(given), lambda b, h, i, j: j < lengths[b])


def a_dense(draw: random.Random, sizes: Sizes) -> Ruled:
    shape = [draw.choice([1, n]) for n in sizes]
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(draw.getrandbits(32))) < 0.6

    def rule(*at: int) -> bool:
        return bool(allowed[tuple(0 if n == 1 else p for p, n in zip(at, shape, strict=True))])

    given = allowed[0, 0] if shape[0] == shape[1] == 1 and draw.random() < 0.5 else allowed
    return Ruled(as_mask(given), rule)


STRUCTURED = (a_causal, a_window, some_documents, a_prefix)
SIMPLE = (*STRUCTURED, a_dense)


def a_mask(draw: random.Random, sizes: Sizes, depth: int = 2, kinds: tuple = SIMPLE) -> Ruled:
    """A mask, or a combination of up to `2 ** depth`."""
    if depth == 0 or draw.random() < 0.3:
        return draw.choice(kinds)(draw, sizes)
    left, right = (a_mask(draw, sizes, depth - 1, kinds) for _ in range(2))
    if draw.random() < 0.5:
        return Ruled(left.mask & right.mask, lambda *at: left.rule(*at) and right.rule(*at))
    return Ruled(left.mask | right.mask, lambda *at: left.rule(*at) or right.rule(*at))


def some_sizes(draw: random.Random) -> Sizes:
    """Odd, unequal, and now and then nothing at all."""
    length = [0, 1, 2, 3, 5, 8, 13]
    return Sizes(draw.choice([1, 2]), draw.choice([1, 3]), draw.choice(length), draw.choice(length))
