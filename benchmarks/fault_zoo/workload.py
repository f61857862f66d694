"""One training step of a model in one precision: what is run with and without a fault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.fault_zoo import models

Precision = Literal["float32", "autocast", "bfloat16", "float64"]
PRECISIONS: tuple[Precision, ...] = ("float32", "autocast", "bfloat16")
_DTYPES = {
    "float32": torch.float32,
    "autocast": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


class Workload:
    """A trained model, its optimizer and a batch, ready for one step.

    Args:
        name: Which model.
        precision: `float32`; `autocast`, bfloat16 by torch's autocast; `bfloat16`, weights and
            optimizer too; `float64`, the truth.
        device: Where it runs.
    """

    def __init__(
        self, name: models.ModelName, precision: Precision, device: str | torch.device = "cpu"
    ) -> None:
        self.name, self.precision, self.device = name, precision, torch.device(device)
        model, state = models.trained(name)
        self.model: nn.Module = model.to(self.device, _DTYPES[precision])
        self.optimizer = models.optimizer(self.model)
        self.optimizer.load_state_dict(state)
        self.batch = self._moved(models.batch(name, -1))
        self.call: Callable[..., Tensor] = self.model  # what is called: it, or it compiled
        self._loss: Tensor | None = None

    def forward(self) -> Tensor:
        """The loss []."""
        with self._autocast():
            logits = self.call(*self.batch.inputs)
            return models.loss_of(logits.float() if self._narrow else logits, self.batch.targets)

    def step(self) -> None:
        """Forward, backward and the optimizer's step."""
        self._loss = self.forward()
        self._loss.backward()
        self.optimizer.step()

    def results(self) -> dict[str, Tensor]:
        """What the step made: loss, gradients, weights, buffers, optimizer state; by name."""
        if self._loss is None:
            raise ValueError("the workload has not run; call step() first")
        return {"loss": self._loss.detach(), **self._state()}

    @property
    def _narrow(self) -> bool:
        return self.precision in ("autocast", "bfloat16")

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        enabled = self.precision == "autocast"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            yield

    def _moved(self, batch: models.Batch) -> models.Batch:
        dtype = _DTYPES[self.precision]

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, dtype if tensor.is_floating_point() else None)

        return models.Batch(tuple(map(move, batch.inputs)), move(batch.targets))

    def _state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                found[f"{name}.grad"] = parameter.grad
            state: dict[str, Any] = self.optimizer.state[parameter]
            found |= {f"{name}.{slot}": value for slot, value in state.items()}
        return {name: value.detach().clone() for name, value in found.items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two steps made the same, NaN equal to NaN."""
    return all(equal_bits(one[name], other[name]) for name in one.keys() | other.keys())


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits (every NaN counts as one)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    signs = torch.equal(torch.signbit(one), torch.signbit(other))
    return signs and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
