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
from accel.precision.gradients import clip, dense_values, measure
from accel.precision.loss_scale import DynamicLossScale, LossScale, NoLossScale
from accel.precision.policy import Policy

_logger = logging.getLogger("accel")


@dataclass(frozen=True)
class SkippedStep:
    """Why a step was not taken.

    Attributes:
        step: Number of `Precision.step` calls before it.
        parameter: The first whose gradient is not finite, in the model's order; `?` for one that
            is not the model's.
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
        model: Its parameters' device decides where autocast acts, also after it was moved.
        policy: A `Policy` or its text, `compute=` float32, bfloat16 or float16.
        loss_scale: None takes a dynamic one for float16, whose gradients would vanish without, and
            none for the others.

    Attributes:
        policy: The policy.
        loss_scale: The loss scale.
        last_skipped: Why the last skipped step was skipped; None if none was.

    Raises:
        TypeError: The policy is neither a `Policy` nor text.
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
        if not isinstance(self.policy, Policy):
            raise TypeError(f"a policy is a Policy or text like 'compute=bfloat16', not {policy!r}")
        self._model = model
        self._device_type = self._checked_device_type()
        if loss_scale is None:
            half = self.policy.compute == torch.float16
            loss_scale = DynamicLossScale() if half else NoLossScale()
        self.loss_scale = loss_scale
        self.last_skipped: SkippedStep | None = None
        self._steps = 0
        # Adjusted at the next backward and not in step: with several optimizers, the second one's
        # gradients carry the same scale as the first one's.
        self._pending: bool | None = None
        self._scaled = False
        self._stepped: set[int] = set()

    def autocast(self) -> torch.autocast:
        """The block for forward and loss; does nothing for float32.

        Raises:
            accel.DeviceError: The model was moved to a device that does not compute in the dtype.
        """
        first = next(self._model.parameters(), None)
        if first is not None and first.device.type != self._device_type:
            self._device_type = self._checked_device_type()
        enabled = self.policy.compute != torch.float32
        dtype = self.policy.compute if enabled else None
        return torch.autocast(self._device_type, dtype=dtype, enabled=enabled)

    def backward(self, loss: Tensor, **arguments: Any) -> None:
        """`loss.backward()`, scaled where the dtype needs it.

        Call it several times before `step` to accumulate gradients.

        Args:
            loss: A scalar.
            **arguments: Of `Tensor.backward`.

        Raises:
            ValueError: The loss is no scalar, and no `gradient` is given.
        """
        if loss.numel() != 1 and arguments.get("gradient") is None:
            raise ValueError(
                f"backward takes a scalar loss, not one of shape {tuple(loss.shape)}: take its mean"
            )
        if self._pending is not None:
            self.loss_scale.adjust(finite=self._pending)
            self._pending = None
        self._stepped.clear()
        self._scaled = True
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
            ValueError: There is no gradient to step by; under a loss scale, the gradients are not
                those of `backward`, were stepped by before, or are float16 themselves; or
                `max_norm` is not positive.
        """
        parameters = self._with_gradients(optimizer, max_norm)
        scale = self.loss_scale.value
        with torch.no_grad():
            gradients = [dense_values(parameter) for parameter in parameters]
            if scale != 1.0:
                torch._foreach_mul_(gradients, 1.0 / scale)
            magnitude = measure(gradients)
            if magnitude.finite and max_norm is not None:
                clip(gradients, magnitude, max_norm)
        self._pending = magnitude.finite and self._pending is not False
        self._stepped.add(id(optimizer))
        self._steps += 1
        if magnitude.finite:
            optimizer.step()
        else:
            self._skip(parameters, scale)
        return magnitude.finite

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
                f"the checkpoint was trained under {state['policy']!r}, this run has "
                f"{str(self.policy)!r}: construct Precision with the checkpoint's policy"
            )
        steps, pending, scale = state["steps"], state["pending"], state["loss_scale"]
        counted = isinstance(steps, int) and steps >= 0 and pending in (None, True, False)
        if not (counted and isinstance(scale, Mapping)):
            raise ValueError(f"this state of Precision is not valid: {dict(state)}")
        self.loss_scale.load_state_dict(scale)
        self._steps, self._pending = steps, pending
        self._scaled = False
        self._stepped.clear()

    def _checked_device_type(self) -> str:
        """Where the model is, which must compute in the policy's dtype."""
        first = next(self._model.parameters(), None)
        device = current_device() if first is None else find_device(first.device)
        support = device.dtypes.of(self.policy.compute)
        if support != "compute":
            name = str(self.policy.compute).removeprefix("torch.")
            raise DeviceError(
                f"{device} ({device.name}) does not compute in {name} ({support}); choose another "
                "policy, such as compute=float16 or compute=float32"
            )
        return device.torch_type

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
        if self.loss_scale.value != 1.0:
            self._check_scaled(optimizer, parameters)
        return parameters

    def _check_scaled(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
    ) -> None:
        """Refuse gradients that unscaling would make wrong by the scale, in silence."""
        if not self._scaled:
            raise ValueError(
                "these gradients carry no loss scale: call Precision.backward(loss) instead of "
                "loss.backward()"
            )
        if id(optimizer) in self._stepped:
            raise ValueError(
                "step was called twice for this optimizer without Precision.backward between"
            )
        if any(p.grad is not None and p.grad.dtype == torch.float16 for p in parameters):
            raise ValueError(
                "gradients in float16 would vanish when unscaled: keep the parameters in float32 "
                "and let autocast() compute in float16"
            )

    def _skip(self, parameters: list[nn.Parameter], scale: float) -> None:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        order = {identity: place for place, identity in enumerate(names)}
        for parameter in sorted(parameters, key=lambda p: order.get(id(p), len(order))):
            gradient = dense_values(parameter)
            if not bool(torch.isfinite(gradient).all()):
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
