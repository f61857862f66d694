"""The calls of a model's modules, by forward hooks; full backward hooks would change the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from accel.numerics.capture import nesting


class Listener(Protocol):
    """Who is told of the calls."""

    def module_called(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> None:
        """A call begins."""

    def module_returned(self, module: nn.Module, path: str, outputs: dict[str, Tensor]) -> None:
        """A call is over; it has no outputs if it raised."""


class OwnHook:
    """A hook of the recorder's, which says nothing in a model that was copied or saved with it.

    Args:
        told: Who is told what the hook is given; None for such a copy.
    """

    def __init__(self, told: Callable[..., None] | None = None) -> None:
        self._told = told

    def __call__(self, *given: Any) -> None:
        """What torch calls."""
        if self._told is not None:
            self._told(*given)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnHook:
        return OwnHook()

    def __reduce__(self) -> tuple[type[OwnHook], tuple[()]]:
        return OwnHook, ()


class ModuleHooks:
    """Forward hooks on every module of a tree, there only while a step is recorded.

    Args:
        names: The modules and the path of each.
        listener: Who is told.
        is_seen: Whether operators of the current thread are seen; calls in others are not told.

    Attributes:
        unseen: How many calls there were in other threads.
    """

    def __init__(
        self, names: Mapping[nn.Module, str], listener: Listener, is_seen: Callable[[], bool]
    ) -> None:
        self._names, self._listener, self._is_seen = names, listener, is_seen
        self.unseen = 0
        self._shy = _shy_modules(names)
        self._handles: list[RemovableHandle] = []
        self._open: list[nn.Module] = []
        self._is_active = False

    def attach(self) -> None:
        """Begin to watch."""
        self._is_active = True
        for module in self._names:
            if module not in self._shy:
                self._handles += [
                    module.register_forward_pre_hook(OwnHook(self._before), with_kwargs=True),
                    module.register_forward_hook(
                        OwnHook(self._after), with_kwargs=True, always_call=True
                    ),
                ]
        if self._shy:
            self._handles += [
                register_module_forward_pre_hook(OwnHook(self._before_any)),
                register_module_forward_hook(OwnHook(self._after_any), always_call=True),
            ]

    def detach(self) -> None:
        """Stop; nothing stays on the modules."""
        self._is_active = False  # torch may have begun to walk through hooks that are removed now
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()

    def begin_within(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A call that began before the hooks were attached is to be seen all the same."""
        self._tell(module, args, kwargs)

    def _before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if not self._is_active:  # torch then no longer knows that this hook takes kwargs
            return
        if not self._is_seen():
            self.unseen += 1
            return
        self._tell(module, args, kwargs or {})

    def _tell(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._listener.module_called(module, self._names[module], args, kwargs)
        self._open.append(module)  # not if it raised: then the call does not take place

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # A pre-hook of someone else may have raised before this call was seen to begin.
        if self._open and self._open[-1] is module and self._is_seen():
            self._open.pop()
            outputs = dict(nesting.tensors(output))
            self._listener.module_returned(module, self._names[module], outputs)

    def _before_any(self, module: nn.Module, args: Any) -> None:
        if module in self._shy:
            self._before(module, args, {})

    def _after_any(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._shy:
            self._after(module, args, {}, output)


def _shy_modules(modules: Iterable[nn.Module]) -> frozenset[nn.Module]:
    """Modules that compute otherwise if they see a hook on themselves or below.

    `nn.TransformerEncoderLayer` then leaves its fused inference path. It does not look at global
    hooks, so those are used there; they are not told keyword arguments.
    """
    layers = (module for module in modules if isinstance(module, nn.TransformerEncoderLayer))
    return frozenset(inner for layer in layers for inner in layer.modules())
