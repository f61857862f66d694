"""The precision of a training loop: autocast, scaled backward, checked step."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, distributed, nn

from accel.devices import Device, current_device, find_device
from accel.precision.application import Application
from accel.precision.autocast import portable_autocast, recomputation
from accel.precision.controller import Controller, ControllerConfig
from accel.precision.controller.ranks import are_several
from accel.precision.flagged import step_unless, takes_flag
from accel.precision.fp8 import LinearState, advance
from accel.precision.gradients import (
    CLEAN,
    LOSS,
    SATURATED,
    WITHHELD,
    clip,
    dense_values,
    measure,
    unscale,
)
from accel.precision.loss_scale import DynamicLossScale, LossScale, NoLossScale
from accel.precision.outcome import SkippedStep, StepOutcome
from accel.precision.policy import Policy
from accel.precision.withholding import Withholding

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

    Modules that a rule of the policy gives formats of their own change their class, and nothing
    else: parameters, names and state dict stay those of the plain model. `close` changes it back.

    Args:
        model: Its parameters' device decides where autocast acts, also after it was moved.
        policy: A `Policy`, or its text (`accel.precision.policy.notation`).
        loss_scale: None takes a dynamic one where something computes in float16, whose gradients
            would vanish without, and none elsewhere.
        controller: Moves operands between formats by what is measured of them; None keeps the
            formats of the policy.
        log: File in which the controller writes down what it decides and why.
        group: The ranks that step together or not at all, and whose measurements are joined: all
            by default, where `torch.distributed` is in use; None lets each decide alone.

    Attributes:
        policy: The policy.
        loss_scale: The loss scale.
        model: The model.
        resolution: What each module gets, and by which rule.
        controller: The controller, if there is one.

    Raises:
        TypeError: The policy is neither a `Policy` nor text, or a module cannot be changed.
        ValueError: The policy's text is not understood, a rule decides nothing, the model's
            parameters are not in the policy's dtype, or there is nothing to control.
        accel.DeviceError: The model's device lacks a format, and the policy does not accept
            emulation.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | Policy = "compute=bfloat16",
        *,
        loss_scale: LossScale | None = None,
        controller: ControllerConfig | None = None,
        log: str | os.PathLike[str] | None = None,
        group: ProcessGroup | Literal["world"] | None = "world",
    ) -> None:
        self.policy = Policy.parse(policy) if isinstance(policy, str) else policy
        if not isinstance(self.policy, Policy):
            raise TypeError(
                f"a policy is a Policy or text like 'compute=bfloat16', not {policy!r}; "
                "Policy.load reads a file"
            )
        _check_kinds(model, loss_scale, controller)
        if log is not None and controller is None:
            raise ValueError("log is where a controller writes: give controller=ControllerConfig()")
        self.model = model
        _check_parameters(model, self.policy)
        first = next(model.parameters(), None)
        self._device_type = current_device().torch_type if first is None else first.device.type
        self.resolution = self.policy.resolve(model, current_device() if first is None else None)
        if loss_scale is None:
            half = torch.float16 in self.resolution.dtypes
            loss_scale = DynamicLossScale() if half else NoLossScale()
        self.loss_scale = loss_scale
        self._group = group
        self._outcomes: deque[StepOutcome] = deque()
        self._last_skipped: SkippedStep | None = None
        self._steps = 0
        # Adjusted at the next backward and not in step: with several optimizers, the second one's
        # gradients carry the same scale as the first one's.
        self._pending: Tensor | None = None
        self._loss_code: Tensor | None = None
        self._scaled = self._begun = False
        self._stepped: set[int] = set()
        # Whose gradients were divided by the scale since the last backward.
        self._divided: dict[int, nn.Parameter] = {}
        self._application = Application(self.resolution)
        self._application.return_in(model, self.policy)
        self.controller: Controller | None = None
        if controller is not None:
            self.controller = self._controlled(controller, log)
        self._withholding = Withholding(self.controller)

    def autocast(self) -> AbstractContextManager[None]:
        """The block for forward and loss: portable autocast; does nothing for float32.

        Raises:
            accel.DeviceError: The model was moved to a device that lacks what it computes in.
        """
        first = next(self.model.parameters(), None)
        if first is not None and first.device.type != self._device_type:
            self.policy.resolve(self.model, first.device)
            self._device_type = first.device.type
        dtype = self.resolution.compute
        return portable_autocast(self._device_type, dtype, enabled=dtype != torch.float32)

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
        before = self.loss_scale.factor
        self.begin()
        self._scaled = True
        scale = self.loss_scale.factor
        self._align_kept(before, scale)
        self._note(loss.detach())
        if isinstance(scale, Tensor):
            loss = loss * scale.to(loss.device)
        elif scale != 1.0:
            loss = loss * scale
        with self.recomputation():
            loss.backward(**arguments)

    def recomputation(self) -> AbstractContextManager[None]:
        """The block in which checkpointing computes again what `autocast` treated; for `backward`.

        A loop that calls `loss.backward()` itself enters it if it checkpoints activations.
        """
        return recomputation(self.resolution.compute != torch.float32)

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
            self._loss_code = None
            self._withholding.begin()
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
            self._unscale(parameters, gradients, scale)
            measured = measure(gradients, self._places(parameters), max_norm is not None)
            code = self._withholding.doubted(self._explained(measured.code))
            code = self._agreed(code, overflow)
            known = not (self.loss_scale.on_device and takes_flag(optimizer, parameters))
            factor = self.loss_scale.factor
            outcome = StepOutcome(
                self._steps, code, factor, names, self._withholding.operands, known
            )
            if max_norm is not None and (not known or outcome):
                clip(gradients, measured, max_norm, known)
        finite, taken = code >= WITHHELD, code == CLEAN
        self._pending = finite if self._pending is None else finite & self._pending
        is_first = not self._stepped  # of several optimizers, for one backward
        self._stepped.add(id(optimizer))
        self._steps += 1
        self._remember(outcome)
        if not known:
            step_unless(optimizer, ~taken, step)
        elif outcome:
            step()
        if is_first:
            self._end_step(outcome, taken, known or code.device.type == "cpu")
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
            "layers": {name: one.state_dict() for name, one in self.layers.items()},
            "leapt": self._withholding.state(),
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It was saved under another policy, or is not such a state; nothing has
                changed then.
        """
        if not isinstance(state, Mapping) or set(state) != _STATE:
            held = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"this is no state of Precision, which has {sorted(_STATE)}, but {held}: give what "
                "its state_dict() returned"
            )
        if state["policy"] != str(self.policy):
            raise ValueError(
                f"the checkpoint was trained under {state['policy']!r}, this run has "
                f"{str(self.policy)!r}: construct Precision with the checkpoint's policy"
            )
        self._check_state(state)
        before = self.state_dict()
        try:
            self._load(state)
        except ValueError:
            self._load(before)
            raise

    @property
    def layers(self) -> dict[str, LinearState]:
        """The states of the layers in eight bits, by qualified name."""
        return self._application.layers

    def close(self) -> None:
        """Make the model's modules again what they were, and complete the controller's log."""
        self._application.remove()
        if self.controller is not None:
            self.controller.close()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        steps, pending, layers = state["steps"], state["pending"], state["layers"]
        flags = pending in (None, True, False) and isinstance(state["leapt"], bool)
        counted = isinstance(steps, int) and steps >= 0 and flags
        if not (counted and isinstance(state["loss_scale"], Mapping)):
            raise ValueError(f"this state of Precision is not valid: {dict(state)}")
        if not isinstance(layers, Mapping) or set(layers) != set(self.layers):
            raise ValueError(
                "the checkpoint's layers in eight bits are not those of this model and policy: "
                f"{sorted(set(self.layers) ^ set(layers or ()))} differ"
            )
        if (state["controller"] is None) != (self.controller is None):
            raise ValueError(
                "the checkpoint was trained "
                + ("with" if self.controller is None else "without")
                + " a controller, this run is not: construct Precision as for the checkpoint"
            )

    def _load(self, state: Mapping[str, Any]) -> None:
        self.loss_scale.load_state_dict(state["loss_scale"])
        for name, one in self.layers.items():
            one.load_state_dict(state["layers"][name])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        pending = state["pending"]
        self._steps = state["steps"]
        self._pending = None if pending is None else torch.tensor(pending, device="cpu")
        self._withholding.load(state["leapt"])
        self._scaled = self._begun = False
        self._stepped.clear()
        self._divided.clear()

    def _controlled(
        self, config: ControllerConfig, log: str | os.PathLike[str] | None
    ) -> Controller:
        try:
            if self._group is None and are_several(None):
                raise ValueError("a controller needs ranks that agree: give a group")
            return Controller(self.layers, config, log=log, group=_group(self._group))
        except BaseException:
            self._application.remove()
            raise

    def _end_step(self, outcome: StepOutcome, taken: Tensor, known: bool) -> None:
        """Close the step of the layers in eight bits, once for all optimizers."""
        if self.layers:
            advance(self.layers.values(), _group(self._group), reduce=self._group is not None)
        self._withholding.after_step(outcome, taken, known)

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
        if self._group is not None and are_several(_group(self._group)):
            distributed.all_reduce(code, distributed.ReduceOp.MIN, _group(self._group))
        return code

    def _unscale(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], scale: float | Tensor
    ) -> None:
        """Divide by the scale, once, also what two optimizers share."""
        pairs = zip(parameters, gradients, strict=True)
        unscale([gradient for p, gradient in pairs if id(p) not in self._divided], scale)
        if isinstance(scale, Tensor) or scale != 1.0:
            self._divided |= {id(p): p for p in parameters}

    @torch.no_grad()
    def _align_kept(self, before: float | Tensor, now: float | Tensor) -> None:
        """Give gradients that a new backward adds to the scale of that backward.

        They are there if a loop clears them less often than it steps, and if one of its optimizers
        accumulates over more batches than another.
        """
        kept = [p for p in self._divided.values() if p.grad is not None]
        if kept:
            unscale([dense_values(p) for p in kept], 1.0 / now)
        if now is not before:
            rest = (p for p in self.model.parameters() if id(p) not in self._divided)
            kept = [p for p in rest if p.grad is not None]
            if kept:
                unscale([dense_values(p) for p in kept], before / now)
        self._divided.clear()

    def _explained(self, code: Tensor) -> Tensor:
        """The code, or that of the loss if gradients are not finite because it is not."""
        if self._loss_code is None:
            return code
        return torch.where(
            code == CLEAN, code, torch.minimum(code, self._loss_code.to(code.device))
        )

    def _note(self, loss: Tensor) -> None:
        """Remember, where it is, whether a loss of this step was not finite: the first cause."""
        if loss.is_floating_point():
            worst = loss.sum()
            code = torch.where(worst.isfinite(), CLEAN, LOSS + worst.isnan())
            before = self._loss_code
            self._loss_code = (
                code if before is None else torch.minimum(before.to(code.device), code)
            )

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


_STATE = {"policy", "loss_scale", "steps", "pending", "layers", "leapt", "controller"}


def _check_kinds(model: object, loss_scale: object, controller: object) -> None:
    for name, value, kind in (
        ("model", model, nn.Module),
        ("loss_scale", loss_scale, LossScale),
        ("controller", controller, ControllerConfig),
    ):
        if not isinstance(value, kind) and (value is not None or name == "model"):
            raise TypeError(f"{name} is a {kind.__name__}, not {value!r}")


def _check_parameters(model: nn.Module, policy: Policy) -> None:
    """Refuse a model in other dtypes than a policy that names one says; float32 is not enforced."""
    if policy.params == torch.float32:
        return
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != policy.params:
            raise ValueError(
                f"the policy keeps parameters in {policy.params}, but {name} is {parameter.dtype}: "
                f"call model.to({policy.params}) before the optimizer is made"
            )


def _group(group: ProcessGroup | Literal["world"] | None) -> ProcessGroup | None:
    """As torch.distributed takes it, where None means all ranks."""
    return None if isinstance(group, str) else group
