"""What a loss over the batch of all ranks needs of this rank's rows and columns, exactly.

One convention for every gradient: it is that of the sum of all ranks' losses
(`accel.distributed`). A loss that every rank computes alike has gradients that give, averaged over
the ranks as DDP and FSDP2 do, those of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, distributed

from accel.alignment.ranks.agreement import NUMBERS, agree
from accel.alignment.ranks.functions import Form, SigmoidFunction, SoftmaxFunction
from accel.alignment.ranks.gathered import Gathered
from accel.alignment.ranks.ring import Ring
from accel.distributed import all_gather
from accel_kernels.contrastive_loss.arguments import accumulation_dtype
from accel_kernels.contrastive_loss.pairing import Pairing
from accel_kernels.contrastive_loss.passes import Passes, SoftmaxSums

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup

GlobalForm = Literal["all_gather", "ring"]
FORMS: dict[str, type[Gathered] | type[Ring]] = {"all_gather": Gathered, "ring": Ring}


def global_softmax_sums(
    passes: Passes,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_reference: Tensor,
    y_reference: Tensor,
    pairing: Pairing | None,
    form: GlobalForm,
    process_group: ProcessGroup | None = None,
    direction: str = "both",
) -> SoftmaxSums:
    """`SoftmaxSums` of this rank's rows and columns over the batch of all ranks.

    Every rank calls it, one without rows too, and runs the backward if any does.

    Args:
        passes: A kernel.
        x: `[N, D]`, float64, float32, bfloat16 or float16; `N` may differ between ranks, and be 0.
        y: `[M, D]`, of the same dtype; likewise.
        scale: `[]`.
        x_reference: `[N]`, a constant; see `accel_kernels.contrastive_loss.passes.SoftmaxPass`.
        y_reference: `[M]`.
        pairing: Of this rank's rows and columns. Its sample numbers are those of all ranks: the
            same number on two ranks makes partners (`first_sample`). None: row i of this rank
            belongs to its row i, and to no other rank's.
        form: `all_gather`: a rank holds all columns for a while, memory `O(N_global D)`, few
            exchanges. `ring`: memory `O(N D)` whatever the number of ranks, an exchange per rank.
        process_group: None: all processes.
        direction: What the sums are for; the sums are the same, but ranks must agree on it.

    Returns:
        Of the local rows `[N]` and the local columns `[M]`, float32 (float64 for float64).
        Differentiable once in x, y and scale.

    Raises:
        ValueError: Shapes or options do not fit, here or between ranks, or scale (or bias) needs a
            gradient on some ranks only; on every rank.
        TypeError: Dtypes do not.
        RuntimeError: There is no process group.
    """
    call = _Call(x, y, (scale,), pairing, form, process_group)
    call.check_references(x_reference, y_reference)
    way, pairing, x, y = call.agreed({"the kind": "softmax", "direction": direction}, passes)
    wide = accumulation_dtype(x.dtype)
    found = SoftmaxFunction.apply(
        way, pairing, x, y, scale.to(x.device, wide), x_reference.detach().to(wide),
        y_reference.detach().to(wide),
    )  # fmt: skip
    return SoftmaxSums(*found)


def global_sigmoid_sum(
    passes: Passes,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing | None,
    form: GlobalForm,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """The sum of the pairwise losses of this rank's rows with the columns of all ranks.

    Arguments and errors are those of `global_softmax_sums`; the bias is `[]`.

    Returns:
        `[]`, float32 (float64 for float64). Differentiable once in x, y, scale and bias.
    """
    call = _Call(x, y, (scale, bias), pairing, form, process_group)
    way, pairing, x, y = call.agreed({"the kind": "sigmoid"}, passes)
    factors = (factor.to(x.device, accumulation_dtype(x.dtype)) for factor in (scale, bias))
    found: Tensor = SigmoidFunction.apply(way, pairing, x, y, *factors)
    return found


def sum_over_ranks(value: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's tensor, the same bits on every rank: added in the order of ranks.

    Args:
        value: Of one shape and dtype everywhere.
        process_group: None: all processes.

    Returns:
        Of that shape; differentiable, by the convention above.
    """
    first, *others = all_gather(value, process_group)
    for other in others:
        first = first + other
    return first


def first_sample(count: int, process_group: ProcessGroup | None = None) -> int:
    """How many samples the ranks before this one have, if this one has `count`.

    Added to the numbers of a rank's own samples, it makes them unique in the group.
    """
    rank = distributed.get_rank(process_group)
    everyone = agree({"call": "first_sample"}, [count, 0, 0, 0], None, process_group)
    return sum(numbers[0] for numbers in everyone[:rank])


class _Call:
    """One rank's call, and what is wrong with it: said to the other ranks before it is raised."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        factors: tuple[Tensor, ...],
        pairing: Pairing | None,
        form: str,
        group: ProcessGroup | None,
    ) -> None:
        self.x, self.y, self.factors, self.pairing, self.form = x, y, factors, pairing, form
        self.group = group
        self.problem: Exception | None = None
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                f"form={form!r} is a loss over several processes, and there is no process group: "
                'call torch.distributed.init_process_group first, or take form="local"'
            )
        try:
            self._check()
        except Exception as error:  # raised once the other ranks have been told
            self.problem = error

    def check_references(self, x_reference: Tensor, y_reference: Tensor) -> None:
        """They are one for each row and column."""
        given = x_reference.shape, y_reference.shape
        if self.problem is None and given != (self.x.shape[:1], self.y.shape[:1]):
            self.problem = ValueError(
                f"references must be [{len(self.x)}] and [{len(self.y)}], one for each row, not "
                f"{list(given[0])} and {list(given[1])}"
            )

    def agreed(self, asked: dict[str, str], passes: Passes) -> tuple[Form, Pairing, Tensor, Tensor]:
        """Find out what the other ranks have, or that one of them differs."""
        x, y = self.x, self.y
        terms, numbers = {}, [0] * NUMBERS
        if self.problem is None:
            terms = asked | self._terms()
            numbers = [len(x), len(y), int(x.requires_grad), int(y.requires_grad)]
        everyone = agree(terms, numbers, self.problem, self.group)
        rows, columns, x_needs, y_needs = zip(*everyone, strict=True)
        rank = distributed.get_rank(self.group)
        # Where one rank's backward sends, every rank's must receive.
        x, y = _joining(x, any(x_needs)), _joining(y, any(y_needs))
        pairing = self.pairing
        if pairing is None:
            number = torch.arange(len(x), device=x.device) + sum(rows[:rank])
            pairing = Pairing(number, number)
        way: Form = FORMS[self.form](passes, self.group, rank, list(columns))
        return way, pairing, x.contiguous(), y.contiguous()

    def _check(self) -> None:
        x, y, pairing = self.x, self.y, self.pairing
        if self.form not in FORMS:
            raise ValueError(f"form is one of {', '.join(FORMS)} here, not {self.form!r}")
        if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
            raise ValueError(
                f"embeddings must be x [N, D] and y [M, D], not {list(x.shape)} and {list(y.shape)}"
            )
        if x.dtype != y.dtype:
            raise TypeError(f"x and y must have one dtype, not {x.dtype} and {y.dtype}")
        if any(factor.numel() != 1 for factor in self.factors):
            shapes = [list(factor.shape) for factor in self.factors]
            raise ValueError(f"scale and bias must be [], not {shapes}")
        if pairing is None:
            if len(x) != len(y):
                raise ValueError(
                    f"{len(x)} rows and {len(y)} columns do not belong together one by one: give "
                    "a pairing"
                )
        elif (len(pairing.x_sample), len(pairing.y_sample)) != (len(x), len(y)):
            raise ValueError(
                f"the pairing is of {len(pairing.x_sample)} rows and {len(pairing.y_sample)} "
                f"columns, the embeddings are {len(x)} and {len(y)}"
            )

    def _terms(self) -> dict[str, str]:
        x, pairing = self.x, self.pairing
        # What has a gradient is added up over ranks in the backward, which every rank must run.
        learned = [
            name
            for name, one in zip(("scale", "bias"), self.factors, strict=False)
            if one.requires_grad
        ]
        terms = {
            "form": self.form,
            "D": str(x.shape[1]),
            "the dtype": str(x.dtype),
            "the gradient mode": "on" if torch.is_grad_enabled() else "off",
            "what is learned besides embeddings": " and ".join(learned) or "nothing",
            "the pairing": "none" if pairing is None else "given",
        }
        if pairing is not None:
            guide = pairing.guide
            terms |= {
                "duplicates": pairing.duplicates,
                "hardness": str(pairing.hardness),
                "groups": "none" if pairing.x_group is None else "given",
                "the guide": "none" if guide is None else f"{guide.x.dtype} {guide.x.shape[1]}",
            }
        return terms


def _joining(tensor: Tensor, needed: bool) -> Tensor:
    """The same; in the graph if another rank's is."""
    if needed and not tensor.requires_grad and torch.is_grad_enabled():
        return tensor.detach().requires_grad_()
    return tensor
