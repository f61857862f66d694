"""Batches larger than memory: embeddings are cached, activations of one chunk live at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from accel.alignment.aligner import Aligner
from accel.alignment.caching.input_tensors import tensors_of
from accel.alignment.caching.second_pass import Replay, Task
from accel.alignment.inputs import row_count
from accel.alignment.output import AlignmentOutput
from accel.alignment.ranks.agreement import NUMBERS, agree
from accel.alignment.ranks.forms import Ranks


def cached(
    aligner: Aligner,
    batch: Mapping[str, Any],
    *,
    chunk_size: int,
    presence: Tensor | None = None,
    groups: Tensor | None = None,
    guides: Tensor | Mapping[str, Tensor] | None = None,
    negatives: Mapping[str, Any] | None = None,
) -> AlignmentOutput:
    """`aligner(batch, ...)` with the activations of `chunk_size` samples in memory, not of all.

    Encoders run twice: at once without gradients in chunks, for the embeddings of the whole batch
    and their loss; and chunk by chunk when the backward of the loss reaches the embeddings, under
    the random numbers, autocast, modes and buffers of the first time (GradCache, arXiv 2101.06983).
    Every gradient is that of the batch in one piece, those of temperatures and biases too. What
    differs is what depends on who shares a forward: batch norm in training mode normalises over a
    chunk; its running statistics are updated by the first pass, once for each chunk.

    Hooks of parameters, and gradient reduction by DDP, see a gradient once and whole. For DDP wrap
    a `CachedAligner`; for FSDP2 apply `fully_shard` to encoders and heads, not to the aligner.

    Args:
        aligner: What is trained.
        batch: As for the aligner; every part must have rows (`accel.alignment.inputs.row_count`),
            and none may require a gradient, nor be changed in place before the backward.
        chunk_size: At most so many rows go through an encoder at a time; chunks are as equal as
            can be.
        presence: As for the aligner, like the rest.
        groups: See there.
        guides: See there.
        negatives: See there; they go in chunks too.

    Returns:
        As the aligner. `loss.backward()`, or `Precision.backward`, runs the encoders again; a
        second derivative is refused, and so are inputs that were changed since.

    Raises:
        TypeError: As the aligner, or it is none.
        ValueError: As the aligner; `chunk_size` is not positive, a part of the batch has no rows or
            requires a gradient, a lazy module has not been run, or the aligner itself is sharded.
    """
    _check(aligner, chunk_size)
    ranks = Ranks(aligner.form, aligner.process_group)
    ranks.check()
    found, hard = ranks.attempt(
        lambda: _embedded(aligner, aligner.present(batch, presence), negatives or {}, chunk_size)
    )
    return aligner.loss(found, presence=presence, groups=groups, guides=guides, negatives=hard)


class CachedAligner(nn.Module):
    """An aligner whose forward is `cached`: what DDP, `Precision` and other loops wrap.

    Args:
        aligner: What is trained; save its state dict, not this one's.
        chunk_size: See `cached`.

    Attributes:
        aligner: As given.
        chunk_size: As given.
    """

    def __init__(self, aligner: Aligner, chunk_size: int) -> None:
        super().__init__()
        _check(aligner, chunk_size)
        self.aligner, self.chunk_size = aligner, chunk_size

    def forward(
        self,
        batch: Mapping[str, Any],
        *,
        presence: Tensor | None = None,
        groups: Tensor | None = None,
        guides: Tensor | Mapping[str, Tensor] | None = None,
        negatives: Mapping[str, Any] | None = None,
    ) -> AlignmentOutput:
        """See `cached`."""
        return cached(
            self.aligner, batch, chunk_size=self.chunk_size, presence=presence, groups=groups,
            guides=guides, negatives=negatives,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The size of a chunk."""
        return f"chunk_size={self.chunk_size}"


def _embedded(
    aligner: Aligner, batch: Mapping[str, Any], negatives: Mapping[str, Any], chunk_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The embeddings of both, by modality."""
    _check_not_lazy(aligner)
    given = [*batch.items(), *negatives.items()]
    rows = [_rows(name, inputs) for name, inputs in given]
    counts = [-(-count // chunk_size) for count in rows]
    shared = _sharded_parameters(aligner)
    if shared:
        counts = _most_of_all_ranks([name for name, _ in given], counts)
    tasks = [
        Task(name, inputs, _bounds(count, chunks), _is_trained(aligner, name))
        for (name, inputs), count, chunks in zip(given, rows, counts, strict=True)
    ]
    outputs = Replay(aligner, aligner.encode, tasks, shared).run()
    both = [(task.modality, output) for task, output in zip(tasks, outputs, strict=True)]
    return dict(both[: len(batch)]), dict(both[len(batch) :])


def _check(aligner: object, chunk_size: object) -> None:
    if not isinstance(aligner, Aligner):
        raise TypeError(
            f"cached takes an Aligner, not {type(aligner).__name__}: for DDP and other wrappers, "
            "wrap CachedAligner(aligner, chunk_size=...) and call that"
        )
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r}")
    if _is_sharded(aligner):
        raise ValueError(
            "fully_shard was applied to the aligner, whose forward caching does not call: apply it "
            "to the encoders and heads"
        )


def _check_not_lazy(aligner: Aligner) -> None:
    if not torch.is_grad_enabled():  # then lazy modules find their shapes as ever
        return
    both = [*aligner.named_parameters(), *aligner.named_buffers()]
    lazy = [name for name, one in both if is_lazy(one)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)}: lazy modules have no shapes before they are run, and caching "
            "needs those of all parameters: call the aligner once first, with every modality and "
            "under torch.no_grad()"
        )


def _is_trained(aligner: Aligner, modality: str) -> bool:
    """Whether its encoder or head has a parameter that requires a gradient."""
    blocks = aligner.encoders, aligner.projections
    modules = [block[modality] for block in blocks if modality in block]
    return any(one.requires_grad for module in modules for one in module.parameters())


def _rows(modality: str, inputs: Any) -> int:
    for tensor in tensors_of(inputs):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"an input of {modality!r} requires a gradient, which caching would not give it: "
                "compute it inside the encoder, or detach it"
            )
    count = row_count(inputs)
    if count is None:
        raise ValueError(
            f"the inputs of {modality!r} have no rows to be cut into chunks: give tensors with a "
            "batch dimension, or a mapping or tuple of such"
        )
    return count


def _bounds(rows: int, chunks: int) -> list[int]:
    """Of chunks as equal as can be; of no rows there is an empty one."""
    chunks = max(1, chunks)
    return [rows * chunk // chunks for chunk in range(chunks + 1)]


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was applied to it; without an import of FSDP2."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _sharded_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Those that FSDP2 gathers, and whose gradients it reduces during a backward."""
    return {
        parameter
        for module in model.modules()
        if _is_sharded(module)
        for parameter in module.parameters()
    }


def _most_of_all_ranks(names: list[str], counts: list[int]) -> list[int]:
    """Sharded encoders must run equally often everywhere: each run gathers their parameters."""
    terms = {"what the batch holds": ", ".join(names)}
    most: list[int] = []
    for start in range(0, len(counts), NUMBERS):
        part = counts[start : start + NUMBERS]
        rows = agree(terms, [*part, *[0] * (NUMBERS - len(part))], None, None)
        most += map(max, *rows) if len(rows) > 1 else rows[0]
    return most[: len(counts)]
