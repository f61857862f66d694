"""Encoders run twice, in chunks: once without gradients, once for the gradients of their outputs.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv
2101.06983, section 3.2. What is added: whatever a forward depends on is as it was the first time
(random numbers on any device, autocast, buffers, modes), and it is checked that the second run
gives what the first gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from accel.alignment.caching.input_tensors import InputWatch, tensors_of
from accel.alignment.caching.rng import Generators
from accel.alignment.caching.surroundings import (
    AutocastState,
    BufferWatch,
    Modes,
    buffers_kept,
    forget_casts,
    set_buffers,
)
from accel.alignment.inputs import slice_rows
from accel.devices.base import RngState


class Task(NamedTuple):
    """Inputs that one encoder embeds.

    Attributes:
        modality: Of the encoder.
        inputs: Its inputs, in rows.
        bounds: Where chunks begin and end, ascending from 0 to the number of rows.
        is_trained: Whether a parameter of the encoder or its head requires a gradient. Of a tower
            that is locked, no more than one chunk is run again.
    """

    modality: str
    inputs: Any
    bounds: list[int]
    is_trained: bool

    def pieces(self) -> list[tuple[slice, Any]]:
        """Rows of each chunk, and their inputs."""
        bounds = zip(self.bounds[:-1], self.bounds[1:], strict=True)
        return [(slice(a, b), slice_rows(self.inputs, a, b)) for a, b in bounds]


class Chunk(NamedTuple):
    """A chunk of a task as it was run first.

    Attributes:
        random: The generators before it.
        buffers: What buffers were before it, of those that it changed.
    """

    random: list[RngState]
    buffers: dict[str, Tensor]


class Replay:
    """Runs tasks, and runs them again.

    Args:
        model: Holds the encoders.
        encode: Embeds inputs of a modality; a method of `model`.
        tasks: What there is to embed.
        shared: Parameters that take their gradients themselves while a backward runs, as FSDP2's.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[str, Any], Tensor],
        tasks: Sequence[Task],
        shared: set[nn.Parameter],
    ) -> None:
        self.model, self.encode, self.tasks = model, encode, tasks
        self.trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter not in shared
        }
        self.shared = [parameter for parameter in shared if parameter.requires_grad]
        self._chunks: list[list[Chunk]] = []

    def run(self) -> tuple[Tensor, ...]:
        """The embeddings of every task `[P, dim]`, differentiable by running once more."""
        if not torch.is_grad_enabled():  # nothing to be had again
            return tuple(torch.cat([*self._pieces(task)]) for task in self.tasks)
        outputs: tuple[Tensor, ...] = _Replayed.apply(self, *self.trained.values(), *self.shared)
        return outputs

    def first(self) -> list[Tensor]:
        """Run without gradients, and note what that depends on."""
        self._autocast, self._modes = AutocastState.capture(), Modes(self.model)
        self._generators = Generators.of(self._tensors())
        self._inputs = InputWatch([(task.modality, task.inputs) for task in self.tasks])
        watch = BufferWatch(self.model)
        self._chunks, outputs = [], []
        for task in self.tasks:
            chunks: list[Chunk] = []
            parts: list[Tensor] = []
            random = self._generators.states()
            for part in self._pieces(task):
                chunks.append(Chunk(random, watch.changed(look=not chunks)))
                random = self._generators.states()
                parts.append(part)
            self._chunks.append(chunks)
            outputs.append(torch.cat(parts))
        forget_casts()
        return outputs

    def again(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """Run with gradients, chunk by chunk.

        Args:
            outputs: What `first` returned.
            gradients: Of each.

        Returns:
            Gradients of the parameters `trained`, in their order; None where there is none.

        Raises:
            RuntimeError: The second run gives other embeddings than the first, or would be of
                inputs that were changed in place.
        """
        self._inputs.check()
        # Aliases of the parameters, so that neither hooks nor gradients of theirs see a part: they
        # get the whole gradient, once. FSDP2's parameters cannot be replaced.
        aliases = {name: _alias(one) for name, one in self.trained.items()}
        changed = {name for chunks in self._chunks for chunk in chunks for name in chunk.buffers}
        apart: list[Tensor] = []

        def body() -> None:
            for task, chunks, output, gradient in zip(
                self.tasks, self._chunks, outputs, gradients, strict=True
            ):
                apart.append(self._again(task, chunks, output, gradient))

        with self._generators.kept(), buffers_kept(self.model, changed), self._modes.entered():
            named: dict[str, Tensor] = {f"model.{name}": one for name, one in aliases.items()}
            functional_call(_Around(self.model), named, (body,))
        self._check(apart)
        both = zip(aliases.values(), self.trained.values(), strict=True)
        return [_whole_gradient(alias, parameter) for alias, parameter in both]

    def _pieces(self, task: Task) -> Iterator[Tensor]:
        for _, inputs in task.pieces():
            yield self.encode(task.modality, inputs)

    def _again(self, task: Task, chunks: list[Chunk], output: Tensor, gradient: Tensor) -> Tensor:
        """One task; how far its embeddings are from those of the first run."""
        largest = output.new_zeros(())
        for (rows, inputs), chunk in zip(task.pieces(), chunks, strict=True):
            self._generators.restore(chunk.random)
            set_buffers(self.model, chunk.buffers)
            # Around the backward too: checkpointing computes again in it.
            with self._autocast.entered():
                with torch.enable_grad():
                    embeddings = self.encode(task.modality, inputs)
                has_graph = embeddings.requires_grad
                if not (has_graph or task.is_trained):
                    break
                largest = torch.maximum(largest, _distance(embeddings.detach(), output[rows]))
                if has_graph:  # a chunk may do without what is trained, and the next not
                    torch.autograd.backward(embeddings, gradient[rows])
        return largest

    def _check(self, apart: list[Tensor]) -> None:
        if not apart:
            return
        largest = self._tolerance(apart[0].dtype)
        distances = torch.stack([one.to(apart[0].device) for one in apart]).tolist()  # one wait
        for task, distance in zip(self.tasks, distances, strict=True):
            if distance > largest:
                raise RuntimeError(
                    f"the second run of the encoder of {task.modality!r} gave other embeddings "
                    f"than the first (relative distance {distance:.1e}), so its gradients "
                    "would be wrong: parameters or inputs were changed before the backward, or it "
                    "draws random numbers that are not from torch's default generators"
                )

    def _tolerance(self, dtype: torch.dtype) -> float:
        """Kernels that are not deterministic may differ by roundings, but not by numbers drawn."""
        computed = [dtype, *self._autocast.dtypes.values()]
        computed += [one.dtype for one in self.trained.values()]
        floating = [one for one in computed if one.is_floating_point]
        return float(max(torch.finfo(one).eps for one in floating) ** 0.5)

    def _tensors(self) -> list[Tensor]:
        tensors = [one for task in self.tasks for one in tensors_of(task.inputs)]
        return [*tensors, *self.model.parameters(), *self.model.buffers()]


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    """The same numbers with a gradient of its own, in which 16 bits do not add up many chunks."""
    alias = nn.Parameter(parameter.detach())
    if alias.is_floating_point() and alias.itemsize < torch.float32.itemsize:
        alias.grad_dtype = torch.float32
    return alias


def _whole_gradient(alias: nn.Parameter, parameter: nn.Parameter) -> Tensor | None:
    """The sum over all chunks in the dtype of the parameter's gradients; None where none was."""
    return None if alias.grad is None else alias.grad.to(parameter.grad_dtype or parameter.dtype)


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    """Relative, `[]`; 0 of nothing."""
    size = torch.linalg.vector_norm(expected)
    apart: Tensor = torch.linalg.vector_norm(found - expected)
    return apart / torch.where(size > 0, size, 1.0)


class _Around(nn.Module):
    """A model, and something to be done with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[], None]) -> None:
        """Do it."""
        body()


class _Replayed(torch.autograd.Function):
    """The outputs of a replay as functions of the parameters."""

    @staticmethod
    def forward(ctx: Any, replay: Replay, *parameters: Tensor) -> tuple[Tensor, ...]:
        outputs = replay.first()
        ctx.replay, ctx.shared = replay, len(replay.shared)
        ctx.save_for_backward(*outputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "cached embeddings have no second derivative: call backward without "
                "create_graph=True, or run the aligner without caching"
            )
        found = ctx.replay.again(ctx.saved_tensors, gradients)
        return (None, *found, *[None] * ctx.shared)
