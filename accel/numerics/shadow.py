"""The float64 shadow: the same model, parameters and inputs, computed in float64 on the CPU."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.numerics import nesting
from accel.numerics.hooks import Tap
from accel.numerics.observer import Observer

_COARSE = (torch.float32, torch.float16, torch.bfloat16)
_CPU = torch.device("cpu")


class Shadow:
    """One call of a model, repeated in float64.

    Made before the call, since the call may change parameters, buffers and inputs.

    Args:
        module: What is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        tap: The hooks that watch the call itself; the shadow's bear the same names.
        observer: Who is told the float64 values.

    Attributes:
        gradients: Whether the call was made with gradients enabled.

    Raises:
        Exception: The model or its arguments cannot be copied.
    """

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, tap: Tap, observer: Observer):
        self._cotangents: dict[str, Tensor] = {}
        self.gradients = torch.is_grad_enabled()
        self._model = _copied_model(module, tap)
        self._args, self._kwargs = nesting.copied_with((args, kwargs), _float64_input)
        names = {
            own: tap.names[original]
            for original, own in zip(module.modules(), self._model.modules(), strict=True)
        }
        parameters: dict[Tensor, tuple[str, str]] = {
            own: tap.parameters[original]
            for original, own in zip(module.parameters(), self._model.parameters(), strict=True)
            if original in tap.parameters
        }
        self._tap = Tap(names, parameters, observer, gradients=self.gradients, calls=tap.calls)
        # The watched call has been counted already.
        self._tap.calls[tap.names[module]] -= 1
        self._tap.step = tap.step
        self._outputs: dict[str, Tensor] = {}

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each module has been called, to be compared with the run's own count."""
        return self._tap.calls

    @property
    def has_graph(self) -> bool:
        """Whether a backward may follow."""
        return any(tensor.requires_grad for tensor in self._outputs.values())

    def forward(self) -> None:
        """Run the call in float64; whatever it raises comes through."""
        self._tap.attach()
        with _float64(self.gradients):
            output = self._model(*self._args, **self._kwargs)
        if self.gradients:
            self._outputs = dict(nesting.tensors(output))

    def add_cotangent(self, path: str, gradient: Tensor) -> None:
        """Take a gradient that reached an output of the run; several add up."""
        own = float64_of(gradient)
        known = self._cotangents.get(path)
        self._cotangents[path] = own if known is None else known + own

    def backward(self) -> None:
        """Run the backward from the gradients that reached the call's outputs.

        May be called again: the graph is kept until `close`.
        """
        paths = [p for p, t in self._outputs.items() if t.requires_grad and p in self._cotangents]
        if not paths:
            return
        outputs = [self._outputs[path] for path in paths]
        with _float64(True):
            torch.autograd.backward(
                outputs, [self._cotangents[path] for path in paths], retain_graph=True
            )

    def close(self) -> None:
        """Let go of the float64 model and its graph."""
        self._tap.detach()
        self._outputs.clear()
        self._cotangents.clear()


def float64_of(tensor: Tensor) -> Tensor:
    """A float64 (complex128) copy on the CPU; integers and booleans keep their dtype."""
    own = tensor.detach()
    if own.is_complex():
        return own.to(_CPU, torch.complex128, copy=True)
    return own.to(_CPU, torch.float64 if own.is_floating_point() else own.dtype, copy=True)


def _float64_input(tensor: Tensor) -> Tensor:
    return float64_of(tensor).requires_grad_(tensor.requires_grad)


def _copied_model(module: nn.Module, tap: Tap) -> nn.Module:
    # The copy's tensors are made here, in float64 and on the CPU: the chip needs no room for a
    # second model and no float64. The hooks' owner stays itself and its hooks come off the copy.
    memo: dict[int, Any] = {id(tap): tap}
    for inner in module.modules():
        for value in vars(inner).values():
            if isinstance(value, Tensor):
                memo[id(value)] = float64_of(value)
        for buffer in inner.buffers(recurse=False):
            memo[id(buffer)] = float64_of(buffer)
        for parameter in inner.parameters(recurse=False):
            memo[id(parameter)] = nn.Parameter(float64_of(parameter), parameter.requires_grad)
    own = copy.deepcopy(module, memo)
    for inner in own.modules():
        for hook in tap.hook_ids:
            inner._forward_pre_hooks.pop(hook, None)
            inner._forward_pre_hooks_with_kwargs.pop(hook, None)
            inner._forward_hooks.pop(hook, None)
            inner._forward_hooks_with_kwargs.pop(hook, None)
            inner._forward_hooks_always_called.pop(hook, None)
    return own


@contextlib.contextmanager
def _float64(gradients: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # The run has warned already.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for device_type in _autocast_devices():
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(_InFloat64())
        yield


def _autocast_devices() -> list[str]:
    here = torch.accelerator.current_accelerator()
    types = ["cpu"] + ([here.type] if here is not None else [])
    return [t for t in types if torch.amp.is_autocast_available(t) and torch.is_autocast_enabled(t)]


class _InFloat64(TorchDispatchMode):
    """Keeps casts and new tensors that a model asks for in a coarser dtype in float64, on the CPU.

    `x.float()` inside a normalisation, `torch.zeros(n)` inside a forward: exact arithmetic has no
    such roundings.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default imports torch._dynamo, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _COARSE:
            kwargs["dtype"] = torch.float64
        if kwargs.get("device") not in (None, _CPU):
            kwargs["device"] = _CPU
        made = func(*args, **kwargs)
        is_new = isinstance(made, Tensor) and not any(True for _ in nesting.tensors(args))
        return made.to(torch.float64) if is_new and made.dtype in _COARSE else made
