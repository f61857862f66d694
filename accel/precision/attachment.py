"""Training by a policy in somebody else's loop: Trainer, accelerate, Lightning, or any other.

Such loops call `model(...)`, `loss.backward()`, perhaps a clipping function, and
`optimizer.step()`; each has a precision setting of its own, which stays off. What is attached sits
at the two ends that all of them share, the model's forward and the optimizer's step:

- the forward runs under the policy's autocast;
- gradients enter the model multiplied by the loss scale and leave it divided, at its parameters
  and at its inputs, so that whoever looks at a loss or at a gradient sees unscaled numbers;
- the step is skipped if a gradient is not finite, as by `Precision.step`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from accel.precision.autocast import set_recomputation
from accel.precision.loss_scale import NoLossScale
from accel.precision.training import Precision

_MARK = "_accel_attachment"


class Attachment:
    """What `attach` made of a model and its optimizers.

    Attributes:
        precision: What they are trained by.
    """

    def __init__(self, precision: Precision, max_norm: float | None) -> None:
        self.precision = precision
        self._max_norm = max_norm
        self._is_active = True
        self._undo: list[Callable[[], None]] = []

    def detach(self) -> None:
        """Make model and optimizers again what they were; twice does nothing."""
        self._is_active = False  # what others have wrapped since stays in their hands
        set_recomputation(False)
        while self._undo:
            self._undo.pop()()

    def _replace(self, item: nn.Module | torch.optim.Optimizer, name: str, function: Any) -> None:
        before = vars(item).get(name)
        setattr(function, _MARK, self)
        function.__signature__ = _with_self(getattr(item, name))  # Trainer reads it
        method = types.MethodType(function, item)  # as which torch's schedulers wrap it
        setattr(item, name, method)

        def undo() -> None:
            if vars(item).get(name) is not method:
                return
            if before is None:
                delattr(item, name)
            else:
                setattr(item, name, before)

        self._undo.append(undo)

    def _attach_model(self, model: nn.Module) -> None:
        plain: Any = model.forward
        scaled = not isinstance(self.precision.loss_scale, NoLossScale)

        @functools.wraps(plain)
        def forward(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._is_active:
                return plain(*args, **kwargs)
            if torch.is_grad_enabled():
                self.precision.begin()
                if scaled:
                    args, kwargs = self._leaving((args, kwargs))
            with self.precision.autocast():
                result = plain(*args, **kwargs)
            if not torch.is_grad_enabled():
                return result
            # Until the step: a backward comes, and checkpointing may compute again in it.
            set_recomputation(self.precision.resolution.compute != torch.float32)
            return self._entering(result) if scaled else result

        self._replace(model, "forward", forward)
        if scaled:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    _check(name, parameter)
                    hook = parameter.register_hook(self._divided)
                    self._undo.append(hook.remove)

    def _attach_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        plain: Any = optimizer.step

        @functools.wraps(plain)
        def step(_: Any, closure: Callable[[], Any] | None = None) -> Any:
            if not self._is_active:
                return plain(closure)
            loss = None
            if closure is not None:  # Lightning's runs forward and backward
                with torch.enable_grad():
                    loss = closure()
            set_recomputation(False)
            self.precision.take(optimizer, self._max_norm, plain)
            return loss

        self._replace(optimizer, "step", step)

    def _entering(self, outputs: Any) -> Any:
        """The same, with gradients that enter it multiplied; in float32, where none is lost."""

        def scale(item: Any) -> Any:
            if not _takes_gradient(item):
                return item
            # A tensor of its own, which the loop may change in place.
            wide = item.float() if item.dtype == torch.float16 else item.clone()
            wide.register_hook(self._multiplied)
            return wide

        return pytree.tree_map(scale, outputs)

    def _leaving(self, inputs: Any) -> Any:
        """The same, with gradients that leave it divided, for what was computed before."""

        def unscale(item: Any) -> Any:
            return _Leaving.apply(item, self._divided) if _takes_gradient(item) else item

        return pytree.tree_map(unscale, inputs)

    # Both take the factor of the backward: another forward may have changed that of the forward.
    def _multiplied(self, gradient: Tensor) -> Tensor:
        return gradient * self._factor(gradient)

    def _divided(self, gradient: Tensor) -> Tensor:
        return gradient * (1.0 / self._factor(gradient))

    def _factor(self, gradient: Tensor) -> float | Tensor:
        factor = self.precision.loss_scale.factor if self._is_active else 1.0
        return factor.to(gradient.device) if isinstance(factor, Tensor) else factor


class _Leaving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, divided: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.divided = divided
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.divided(gradient), None


def _takes_gradient(item: Any) -> bool:
    return isinstance(item, Tensor) and item.requires_grad and item.is_floating_point()


def attach(
    precision: Precision, *optimizers: torch.optim.Optimizer, max_norm: float | None = None
) -> Attachment:
    """Let a loop that knows nothing of `precision` train by it.

    Example:
        ```
        precision = accel.precision.Precision(model, "fp8_rowwise")
        optimizer = torch.optim.AdamW(model.parameters())
        attached = accel.precision.attach(precision, optimizer)
        transformers.Trainer(model, arguments, optimizers=(optimizer, None), ...).train()
        attached.detach()
        ```

    Under a loss scale, all that a loss takes from parameters must come from the model's forward.
    A penalty on weights beside it, or a method or module of the model that is called by itself,
    has its gradient divided by the scale: use `Precision.backward` and `Precision.step` there.
    From a training forward to the step, `torch.autocast` of the loop's own keeps to the portable
    table in this thread.

    Args:
        precision: Over the loop's model.
        *optimizers: Every optimizer of the loop, before or after the loop wraps it. A checkpoint
            that is to be resumed holds `precision.state_dict()` too.
        max_norm: Largest Euclidean norm of an optimizer's gradients; None leaves it to the loop.

    Returns:
        The way back.

    Raises:
        ValueError: There is no optimizer, one is attached already or steps by a closure only, or,
            under a loss scale, a parameter is in float16 or sharded.
    """
    if not optimizers:
        raise ValueError("attach takes the optimizers of the loop: attach(precision, optimizer)")
    items: list[nn.Module | torch.optim.Optimizer] = [precision.model, *optimizers]
    taken = [item for item in items if _is_attached(item)]
    if taken:
        raise ValueError(
            f"this {type(taken[0]).__name__} is attached already: call detach() of that attachment"
        )
    for optimizer in optimizers:
        _check_step(optimizer)
    attached = Attachment(precision, max_norm)
    try:
        attached._attach_model(precision.model)
        for optimizer in optimizers:
            attached._attach_optimizer(optimizer)
    except BaseException:
        attached.detach()
        raise
    return attached


def _with_self(method: Any) -> inspect.Signature:
    """The signature of a bound method or plain function, before it is bound."""
    signature = inspect.signature(method)
    first = inspect.Parameter("_", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[first, *signature.parameters.values()])


def _is_attached(item: nn.Module | torch.optim.Optimizer) -> bool:
    name = "forward" if isinstance(item, nn.Module) else "step"
    attachment = getattr(getattr(item, name), _MARK, None)
    return attachment is not None and attachment._is_active


def _check_step(optimizer: torch.optim.Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} calls its closure several times in a step, and gradients "
            "could be checked for one of them only: train with an optimizer that steps without a "
            "closure"
        )


def _check(name: str, parameter: nn.Parameter) -> None:
    if parameter.dtype == torch.float16:
        raise ValueError(
            f"{name} is in float16, whose gradient would vanish when unscaled: keep the parameters "
            "in float32 and let the policy compute in float16"
        )
    if hasattr(parameter, "device_mesh"):
        raise ValueError(
            f"{name} is sharded: its gradient cannot be unscaled on the way; compute in bfloat16, "
            "or write the loop with Precision.backward and Precision.step"
        )
