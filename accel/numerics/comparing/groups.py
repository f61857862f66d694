"""Who takes part in a collective, and what each rank gave it and got from it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from accel.numerics.comparing.contents import Contents, refs
from accel.numerics.storage.entries import Operator

_GROUPS = ("process_group", "group_name")
_NAMESPACES = ("c10d", "_c10d_functional")
# Arguments that a collective reads, where it has others that it only writes to.
_INPUTS = ("input_tensor", "input_tensors", "input", "inputs")


class Part(NamedTuple):
    """One tensor of a collective on one rank: what it gave and what it got."""

    rank: int
    contents: Contents
    operator: Operator
    given: int
    result: int

    @property
    def is_alone(self) -> bool:
        """Whether both sketches are of tensors by themselves, not at a place in a whole."""
        return self.contents.is_alone(self.given) and self.contents.is_alone(self.result)


def name_of(operator: Operator) -> str | None:
    """Which collective an operator is: `allreduce`, `all_gather_into_tensor`; None for others."""
    namespace, _, bare = operator.name.partition("::")
    return bare.rstrip("_") if namespace in _NAMESPACES else None


def group_of(operator: Operator) -> tuple[int, ...] | None:
    """The ranks that take part, if the recording says."""
    for name in _GROUPS:
        text = str(getattr(operator.arguments.get(name), "text", ""))
        if text.startswith("ranks "):
            return tuple(map(int, re.findall(r"\d+", text)))
    return None


def groups_of(members: Sequence[tuple[int, Operator]]) -> Iterator[list[tuple[int, Operator]]]:
    """The ranks that run a collective, by group; all of them where no recording says.

    A group of which a rank was not recorded is left out: nobody can tell what it gave.
    """
    found: dict[tuple[int, ...] | None, list[tuple[int, Operator]]] = defaultdict(list)
    for rank, operator in members:
        found[group_of(operator)].append((rank, operator))
    for ranks, group in found.items():
        if ranks is None or set(ranks) == {rank for rank, _ in group}:
            yield group


def parts_of(
    contents: Mapping[int, Contents], group: Sequence[tuple[int, Operator]]
) -> Iterator[list[Part]]:
    """The tensors of one collective on all ranks, one list for each place of its list."""
    columns = [(_given(operator), operator.produced) for _, operator in group]
    length = min(min(len(given), len(results)) for given, results in columns)
    for index in range(length):
        parts = [
            Part(rank, contents[rank], operator, given[index], results[index])
            for (rank, operator), (given, results) in zip(group, columns, strict=True)
        ]
        if all(part.contents.value(part.result).skipped is None for part in parts):
            yield parts


def _given(operator: Operator) -> list[int]:
    named = [operator.arguments[name] for name in _INPUTS if name in operator.arguments]
    read = named or list(operator.arguments.values())
    return [value for argument in read for value in refs(argument)]
