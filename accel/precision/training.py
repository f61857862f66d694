"""The precision of a training loop: autocast, scaled backward, checked step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, distributed, nn

from accel.devices import Device, current_device, find_device
from accel.errors import DeviceError
from accel.precision.flagged import step_unless, takes_flag
from accel.precision.gradients import CLEAN, SATURATED, clip, dense_values, measure, unscale
from accel.precision.loss_scale import DynamicLossScale, LossScale, NoLossScale
from accel.precision.outcome import SkippedStep, StepOutcome
from accel.precision.policy import Policy

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup


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
        group: The ranks that step together or not at all: all by default, where
            `torch.distributed` is in use; None lets each decide alone.

    Attributes:
        policy: The policy.
        loss_scale: The loss scale.
        model: The model.

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
        group: ProcessGroup | Literal["world"] | None = "world",
    ) -> None:
        self.policy = Policy.parse(policy) if isinstance(policy, str) else policy
        if not isinstance(self.policy, Policy):
            raise TypeError(f"a policy is a Policy or text like 'compute=bfloat16', not {policy!r}")
        self.model = model
        self._device_type = self._checked_device_type()
        if loss_scale is None:
            half = self.policy.compute == torch.float16
            loss_scale = DynamicLossScale() if half else NoLossScale()
        self.loss_scale = loss_scale
        self._group = group
        self._outcomes: deque[StepOutcome] = deque()
        self._last_skipped: SkippedStep | None = None
        self._steps = 0
        # Adjusted at the next backward and not in step: with several optimizers, the second one's
        # gradients carry the same scale as the first one's.
        self._pending: Tensor | None = None
        self._scaled = self._begun = False
        self._stepped: set[int] = set()

    def autocast(self) -> torch.autocast:
        """The block for forward and loss; does nothing for float32.

        Raises:
            accel.DeviceError: The model was moved to a device that does not compute in the dtype.
        """
        first = next(self.model.parameters(), None)
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
        self.begin()
        self._scaled = True
        scale = self.loss_scale.factor
        if isinstance(scale, Tensor):
            loss = loss * scale.to(loss.device)
        elif scale != 1.0:
            loss = loss * scale
        loss.backward(**arguments)

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> StepOutcome:
        """Unscale, check, clip, and step; or skip if a gradient is not finite.

        Ranks agree: if a gradient of one is not finite, none steps. The host does not wait for an
        optimizer that skips by a flag on the device (torch's with `fused=True`, from the second
        step on, and unsharded); for another it waits until the gradients have been checked.

        Args:
            optimizer: Over parameters of the model.
            max_norm: Largest Euclidean norm of all its gradients together; None for no clipping.

        Returns:
            Whether the optimizer stepped: true or false when asked, which may wait for the device.
            If it did not, `last_skipped` says why, and so does a warning; parameters and optimizer
            state are as before.

        Raises:
            ValueError: There is no gradient to step by; under a loss scale, the gradients are not
                those of `backward`, were stepped by before, or are float16 themselves; or
                `max_norm` is not positive.
        """
        parameters = self._with_gradients(optimizer, max_norm)
        if not isinstance(self.loss_scale, NoLossScale):
            self._check_scaled(optimizer, parameters)
        return self._take(optimizer, parameters, max_norm, self.loss_scale.factor, optimizer.step)

    def begin(self) -> None:
        """Take in what the last step taught; `backward` does it, and `attach` before a forward."""
        self._learn()
        if self._stepped or not self._begun:
            self._stepped.clear()
            self._begun = True
            self._device().clear_overflow()

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        step: Callable[[], Any],
    ) -> StepOutcome:
        """As `step`, of gradients that carry no loss scale any more, by a given function.

        For loops that are not one's own: `attach` calls it.
        """
        parameters = self._with_gradients(optimizer, max_norm)
        return self._take(optimizer, parameters, max_norm, 1.0, step)

    def _take(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        max_norm: float | None,
        scale: float | Tensor,
        step: Callable[[], Any],
    ) -> StepOutcome:
        names = [name for name, _ in self.model.named_parameters()]
        with torch.no_grad():
            gradients = [dense_values(parameter) for parameter in parameters]
            overflow = self._device().overflow()
            unscale(gradients, scale)
            measured = measure(gradients, self._places(parameters), max_norm is not None)
            code = self._agreed(measured.code, overflow)
            known = not (self.loss_scale.on_device and takes_flag(optimizer, parameters))
            factor = self.loss_scale.factor
            outcome = StepOutcome(self._steps, code, factor, names, known)
            if max_norm is not None and (not known or outcome):
                clip(gradients, measured, max_norm, known)
        finite = code == CLEAN
        self._pending = finite if self._pending is None else finite & self._pending
        self._stepped.add(id(optimizer))
        self._steps += 1
        self._remember(outcome)
        if not known:
            step_unless(optimizer, ~finite, step)
        elif outcome:
            step()
        return outcome

    @property
    def last_skipped(self) -> SkippedStep | None:
        """Why the last skipped step was skipped, None if none was; waits for the device."""
        while self._outcomes:
            self._last_skipped = self._outcomes.popleft().skipped or self._last_skipped
        return self._last_skipped

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; plain values."""
        return {
            "policy": str(self.policy),
            "loss_scale": self.loss_scale.state_dict(),
            "steps": self._steps,
            "pending": None if self._pending is None else bool(self._pending),
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
        self._steps = steps
        self._pending = None if pending is None else torch.tensor(pending, device="cpu")
        self._scaled = self._begun = False
        self._stepped.clear()

    def _checked_device_type(self) -> str:
        """Where the model is, which must compute in the policy's dtype."""
        first = next(self.model.parameters(), None)
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

    def _device(self) -> Device:
        first = next(self.model.parameters(), None)
        return current_device() if first is None else find_device(first.device)

    def _places(self, parameters: list[nn.Parameter]) -> list[int]:
        """Each one's place in the model; strangers come last."""
        order = {id(parameter): n for n, parameter in enumerate(self.model.parameters())}
        return [order.get(id(parameter), len(order)) for parameter in parameters]

    def _agreed(self, code: Tensor, overflow: Tensor | None) -> Tensor:
        """The least code of all ranks, and of the chip's own word."""
        if overflow is not None:
            code = torch.where(overflow.to(code.device), code.clamp(max=SATURATED), code)
        if self._group is not None and distributed.is_available() and distributed.is_initialized():
            group = None if self._group == "world" else self._group
            if distributed.get_world_size(group) > 1:
                distributed.all_reduce(code, distributed.ReduceOp.MIN, group)
        return code

    def _learn(self) -> None:
        """Adjust the scale by the steps since the last backward."""
        if self._pending is None:
            return
        finite = self._pending
        self.loss_scale.adjust(finite=finite if self.loss_scale.on_device else bool(finite))
        self._pending = None

    def _remember(self, outcome: StepOutcome) -> None:
        self._outcomes.append(outcome)
        while self._outcomes and self._outcomes[0].is_known:
            self._last_skipped = self._outcomes.popleft().skipped or self._last_skipped
