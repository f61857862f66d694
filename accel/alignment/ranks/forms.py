"""Which batch a loss is of, and what its ranks tell one another about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from accel.alignment.options import check_choice
from accel.alignment.ranks.agreement import NUMBERS, agree, refuse, was_told
from accel.distributed import gather_rows

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup

Form = Literal["local", "all_gather", "ring"]
FORMS: tuple[Form, ...] = ("local", "all_gather", "ring")
T = TypeVar("T")


class Ranks(NamedTuple):
    """The ranks whose batches are one.

    Attributes:
        form: `local`: this process alone.
        group: Of the other forms; None: all processes.
    """

    form: Form
    group: ProcessGroup | None

    @property
    def several(self) -> bool:
        """Whether there is anyone to talk to."""
        return self.form != "local"

    def check(self) -> None:
        """Refuse a form that cannot be.

        Raises:
            ValueError: The form is unknown, or a group is given that is not used.
            RuntimeError: There is no process group.
        """
        check_choice("form", self.form, FORMS)
        if not self.several:
            if self.group is not None:
                raise ValueError(
                    "form='local' uses no process group; give form='all_gather' or 'ring'"
                )
        elif not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                f"form={self.form!r} is the loss of several ranks, but there is no process group: "
                "call torch.distributed.init_process_group first, or use form='local'"
            )

    def joined(
        self, terms: Mapping[str, str], counts: Sequence[int], size: int
    ) -> tuple[list[int], int]:
        """The counts of all ranks together, and how many samples the ranks before this one have.

        Args:
            terms: What must be the same on every rank, by name, in words.
            counts: Of this rank.
            size: How many samples this rank has.

        Raises:
            ValueError: Another rank has other terms, or cannot go on.
        """
        if not self.several:
            return list(counts), 0
        numbers = [size, *counts]
        numbers += [0] * (-len(numbers) % NUMBERS)
        rows: list[list[int]] = [[] for _ in range(distributed.get_world_size(self.group))]
        for start in range(0, len(numbers), NUMBERS):
            part = agree(terms, numbers[start : start + NUMBERS], None, self.group)
            rows = [row + more for row, more in zip(rows, part, strict=True)]
        before = sum(row[0] for row in rows[: distributed.get_rank(self.group)])
        totals = [sum(column) for column in zip(*rows, strict=True)]
        return totals[1 : 1 + len(counts)], before

    def attempt(self, call: Callable[[], T]) -> T:
        """What `call` returns; where it raises, the other ranks are told, and raise too.

        They would otherwise wait for this one: the next thing that every rank does is to agree.
        Running out of memory or an index out of range is as much a reason as a refusal.
        """
        if not self.several:
            return call()
        began = time.monotonic_ns()
        try:
            return call()
        except Exception as error:
            if was_told(error, began):  # `call` agreed by itself: every rank raises
                raise
            refuse(error, self.group)


def agreed_gradient(number: Tensor, ranks: Ranks) -> Tensor:
    """A number that every rank holds alike, whose gradient is the mean of all ranks'.

    Averaging gradients over ranks afterwards changes nothing any more. What lies before it, such as
    the clamp of a temperature, so judges by the gradient of the whole batch and not by a rank's
    part of it.

    Args:
        number: `[]`.
        ranks: Whose; one rank alone has nothing to agree on.
    """
    if not ranks.several or not number.requires_grad:
        return number
    agreed: Tensor = _Agreed.apply(number, ranks.group)
    return agreed


class _Agreed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, number: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return number.view_as(number)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows = gather_rows(grads[0].reshape(1, 1), ctx.group)
        # Added in the order of the ranks, so that all have the same bits.
        total = rows[0, 0]
        for row in rows[1:, 0]:
            total = total + row
        return total / len(rows), None
