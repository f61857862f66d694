"""Ranks say what they are about to do before any waits for what another never sends."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import distributed

from accel.distributed import gather_rows
from accel.errors import BackendError

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup

NUMBERS = 4
"""How many numbers every rank tells the others."""
_TOLD = "_every_rank_was_told_at"


def agree(
    terms: Mapping[str, str],
    numbers: Sequence[int],
    problem: Exception | None,
    group: ProcessGroup | None,
) -> list[list[int]]:
    """Exchange what every rank is about to do; one small collective.

    Args:
        terms: What must be the same everywhere, by name, in words.
        numbers: `NUMBERS` of them, which may differ.
        problem: Why this rank cannot take part; None if it can.
        group: None: all processes.

    Returns:
        The numbers of every rank, in the order of ranks.

    Raises:
        ValueError: Ranks differ in their terms, or another cannot take part; on every rank.
        BackendError: No kernel can do another rank's part.
        Exception: `problem`, whatever it is.
    """
    text = "\n".join(f"{name}: {term}" for name, term in terms.items())
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    halves = [int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8)]
    row = torch.tensor([[int(problem is None), *halves, *numbers]], dtype=torch.int64)
    rows = gather_rows(row.to(_exchange_device(group)), group).tolist()
    if all(other[0] for other in rows) and len({tuple(other[1:3]) for other in rows}) == 1:
        return [other[3:] for other in rows]
    said = None if problem is None else f"{type(problem).__name__}: {problem}"
    everyone: list[Any] = [None] * len(rows)
    mine = dict(terms), said, isinstance(problem, BackendError)
    distributed.all_gather_object(everyone, mine, group=group)
    error = _difference(everyone) if problem is None else problem
    setattr(error, _TOLD, time.monotonic_ns())
    raise error


def refuse(problem: Exception, group: ProcessGroup | None = None) -> NoReturn:
    """Raise `problem` here, and on every rank that is about to `agree` an error that quotes it."""
    agree({}, [0] * NUMBERS, problem, group)
    raise AssertionError("agree raises a problem that it is given")


def was_told(error: Exception, since: int) -> bool:
    """Whether every rank has heard of it, and raised: none waits to be told once more.

    Args:
        error: Any.
        since: By `time.monotonic_ns`; one object may be raised again in a later call.
    """
    return bool(getattr(error, _TOLD, -1) >= since)


def _difference(everyone: list[tuple[dict[str, str], str | None, bool]]) -> Exception:
    for rank, (_, said, is_machine) in enumerate(everyone):
        if said is not None:
            kind = BackendError if is_machine else ValueError
            return kind(f"rank {rank} cannot take part in the loss: {said}")
    first = everyone[0][0]
    for rank, (terms, _, _) in enumerate(everyone):
        for name in {**first, **terms}:
            ours, theirs = first.get(name), terms.get(name)
            if ours != theirs:
                return ValueError(
                    f"every rank must call the loss alike, but {name} is {ours} on rank 0 and "
                    f"{theirs} on rank {rank}"
                )
    return AssertionError("ranks disagree in nothing that they can name")


def _exchange_device(group: ProcessGroup | None) -> torch.device:
    """The CPU, if the group serves it, since that waits for no device."""
    kinds = [part.split(":")[0] for part in distributed.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
