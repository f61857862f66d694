"""The precision of a training loop: autocast, scaled backward, checked step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accel.devices import current_device, find_device
from accel.errors import DeviceError
from accel.precision.loss_scale import DynamicLossScale, LossScale, NoLossScale
from accel.precision.policy import Policy

_logger = logging.getLogger("accel")


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was not taken.

    Attributes:
        step: Number of `Precision.step` calls before it.
        parameter: The first parameter whose gradient is not finite, in the model's order; `?` for
            one that is not the model's.
        value: `nan` or `inf`, whichever that gradient holds.
        loss_scale: What the loss had been multiplied by.
    """

    step: int
    parameter: str
    value: str
    loss_scale: float


class Precision:
    """Trains a model by a precision policy, with the same calls on every chip.

    Example:
        ```
        precision = accel.precision.Precision(model, "compute=bfloat16")
        with precision.autocast():
            loss = model(batch)
        precision.backward(loss)
        stepped = precision.step(optimizer, max_norm=1.0)
        ```

    Args:
        model: Its parameters' device decides where autocast acts.
        policy: A `Policy` or its text, `compute=` float32, bfloat16 or float16.
        loss_scale: None takes a dynamic one for float16, whose gradients would vanish without, and
            none for the others.

    Attributes:
        policy: The policy.
        loss_scale: The loss scale.
        last_skipped: Why the last skipped step was skipped; None if none was.

    Raises:
        ValueError: The policy's text is not understood.
        accel.DeviceError: The model's device does not compute in the policy's dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | Policy = "compute=bfloat16",
        *,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.policy = Policy.parse(policy) if isinstance(policy, str) else policy
        self._model = model
        first = next(model.parameters(), None)
        self._device = current_device() if first is None else find_device(first.device)
        support = self._device.info.dtypes.of(self.policy.compute)
        if support != "compute":
            name = str(self.policy.compute).removeprefix("torch.")
            raise DeviceError(
                f"{self._device} ({self._device.name}) does not compute in {name} ({support}); "
                "choose another policy, such as compute=float16 or compute=float32"
            )
        if loss_scale is None:
            half = self.policy.compute == torch.float16
            loss_scale = DynamicLossScale() if half else NoLossScale()
        self.loss_scale = loss_scale
        self.last_skipped: SkippedStep | None = None
        self._steps = 0
        # Adjusted at the next backward and not in step: with several optimizers, the second one's
        # gradients carry the same scale as the first one's.
        self._pending: bool | None = None
        self._stepped: set[int] = set()

    def autocast(self) -> torch.autocast:
        """The block for forward and loss; does nothing for float32."""
        enabled = self.policy.compute != torch.float32
        return torch.autocast(
            self._device.torch_type, dtype=self.policy.compute if enabled else None, enabled=enabled
        )

    def backward(self, loss: Tensor, **arguments: Any) -> None:
        """`loss.backward()`, scaled where the dtype needs it.

        Call it several times before `step` to accumulate gradients.

        Args:
            loss: A scalar.
            **arguments: Of `Tensor.backward`.
        """
        if self._pending is not None:
            self.loss_scale.adjust(finite=self._pending)
            self._pending = None
        self._stepped.clear()
        scale = self.loss_scale.value
        (loss if scale == 1.0 else loss * scale).backward(**arguments)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> bool:
        """Unscale, check, clip, and step; or skip if a gradient is not finite.

        Args:
            optimizer: Over parameters of the model.
            max_norm: Largest Euclidean norm of all its gradients together; None for no clipping.

        Returns:
            Whether the optimizer stepped. If not, `last_skipped` says why, and so does a warning;
            parameters and optimizer state are as before.

        Raises:
            ValueError: There is no gradient to step by, the same gradients were stepped by before,
                or `max_norm` is not positive.
        """
        parameters = self._with_gradients(optimizer, max_norm)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scale = self.loss_scale.value
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / scale)
        # The largest magnitude and not the Euclidean norm, which can overflow in finite gradients.
        filled = [gradient for gradient in gradients if gradient.numel()]
        largest = torch.nn.utils.get_total_norm(filled, float("inf"))
        finite = bool(torch.isfinite(largest))
        self._pending = finite and self._pending is not False
        self._stepped.add(id(optimizer))
        self._steps += 1
        if not finite:
            self._skip(parameters, scale)
            return False
        if max_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; plain values."""
        return {
            "policy": str(self.policy),
            "loss_scale": self.loss_scale.state_dict(),
            "steps": self._steps,
            "pending": self._pending,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It was saved under another policy, or is not such a state; nothing has
                changed then.
        """
        if set(state) != {"policy", "loss_scale", "steps", "pending"}:
            raise ValueError(f"this is no state of Precision: it has {sorted(state)}")
        if state["policy"] != str(self.policy):
            raise ValueError(
                f"the checkpoint was trained under the policy {state['policy']!r}, this run has "
                f"{str(self.policy)!r}; construct Precision with the checkpoint's policy, or "
                "leave its state unrestored"
            )
        self.loss_scale.load_state_dict(state["loss_scale"])
        self._steps, self._pending = int(state["steps"]), state["pending"]

    def _with_gradients(
        self, optimizer: torch.optim.Optimizer, max_norm: float | None
    ) -> list[nn.Parameter]:
        if max_norm is not None and not max_norm > 0.0:
            raise ValueError(f"max_norm must be positive, not {max_norm}; None means no clipping")
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not parameters:
            raise ValueError("no parameter of this optimizer has a gradient: call backward first")
        # Unscaling the same gradients twice would make them wrong by the scale, in silence.
        if self.loss_scale.value != 1.0 and id(optimizer) in self._stepped:
            raise ValueError(
                "step was called twice for this optimizer without Precision.backward between; its "
                "gradients have been unscaled already"
            )
        return parameters

    def _skip(self, parameters: list[nn.Parameter], scale: float) -> None:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                value = "nan" if bool(torch.isnan(gradient).any()) else "inf"
                name = names.get(id(parameter), "?")
                self.last_skipped = SkippedStep(self._steps - 1, name, value, scale)
                _logger.warning(
                    "step %d skipped: the gradient of %s holds %s (loss scale %g)",
                    self._steps - 1,
                    name,
                    value,
                    scale,
                )
                return
