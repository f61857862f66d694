"""Watching a module tree: what goes into and out of each module, and the gradients of both.

Only forward hooks and tensor hooks: full backward hooks put nodes of their own into the autograd
graph, which changes the order in which gradients are summed, and so changes bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from accel.numerics import nesting
from accel.numerics.encoding import tensor_digest
from accel.numerics.entries import Key, Phase
from accel.numerics.observer import (
    Context,
    Observer,
    context_of,
    is_float,
    shy_modules,
    tensors_of,
)

_GRADIENT_OF: dict[Phase, Phase] = {"input": "input_gradient", "forward": "gradient"}


@dataclass
class _Call:
    """A module call that has not returned yet."""

    module: nn.Module
    name: str
    index: int
    is_recompute: bool


class Tap:
    """The hooks on one module tree.

    Args:
        names: The modules to watch and the path of each.
        parameters: The parameters to watch, with module path and name.
        observer: Who is told.
        gradients: Whether to watch gradients.
        calls: How often each path was called before.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        parameters: Mapping[Tensor, tuple[str, str]],
        observer: Observer,
        *,
        gradients: bool,
        calls: Mapping[str, int] | None = None,
    ) -> None:
        self.names, self.parameters = names, parameters
        self._classes = {name: type(module).__name__ for module, name in names.items()}
        self.calls = dict(calls or {})
        self.step = 0
        self.unmatched = 0  # gradients of recomputed tensors whose first computation is not known
        self._observer, self._gradients = observer, gradients
        self._stack: list[_Call] = []
        self._graphless: dict[tuple[Phase, str, str, str], list[Key]] = {}
        self._handles: list[RemovableHandle] = []
        self._active = self._has_graph = False

    def attach(self) -> None:
        """Begin to watch."""
        self._active = True
        shy = shy_modules(self.names)
        for module in self.names:
            if module not in shy:
                self._handles += [
                    module.register_forward_pre_hook(self._before, with_kwargs=True),
                    module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
                ]
        if shy:
            self._attach_globally(shy)
        if self._gradients:
            for parameter, (module_name, name) in self.parameters.items():
                self._watch_parameter(parameter, module_name, name)

    def detach(self) -> None:
        """Stop watching; nothing stays on the modules, tensors that still live go unheard."""
        self._active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def next_step(self) -> None:
        """Count what follows to the next step: parameter gradients of its own."""
        self.step += 1
        self._graphless.clear()

    @property
    def hook_ids(self) -> frozenset[int]:
        """Keys of this tap's hooks in the modules' hook dictionaries."""
        return frozenset(handle.id for handle in self._handles)

    def _attach_globally(self, shy: frozenset[nn.Module]) -> None:
        def before(module: nn.Module, args: Any) -> None:
            if module in shy:
                self._before(module, args, {})

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return self._after(module, args, {}, output) if module in shy else None

        self._handles += [
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._active:
            return
        name = self.names[module]
        if torch._C._current_autograd_node() is not None:  # activation checkpointing
            self._stack.append(_Call(module, name, -1, is_recompute=True))
            self._watch_again("input", module, (args, kwargs))
            return
        call = _Call(module, name, self.calls.get(name, 0), is_recompute=False)
        self.calls[name] = call.index + 1
        self._stack.append(call)
        if len(self._stack) == 1:
            self._has_graph = self._gradients and torch.is_grad_enabled()
            self._observer.root_started(module, args, kwargs)
        self._watch("input", call, (args, kwargs))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        # A pre-hook of someone else may have raised before this call reached the stack.
        if not self._active or not self._stack or self._stack[-1].module is not module:
            return None
        call = self._stack.pop()
        if call.is_recompute:
            keys = self._watch_again("forward", module, output)
        else:
            keys = self._watch("forward", call, output)
            if not self._stack:
                self._observer.root_finished(module, output)
        return nesting.with_tensors(output, self._replacements(output, keys))

    def _replacements(self, output: Any, keys: Mapping[str, Key]) -> dict[str, Tensor]:
        found = (
            (path, self._observer.output_for(keys[path], tensor))
            for path, tensor in nesting.tensors(output)
            if path in keys
        )
        return {path: new for path, new in found if new is not None}

    def _watch(self, phase: Phase, call: _Call, value: Any) -> dict[str, Key]:
        keys: dict[str, Key] = {}
        for path, tensor in tensors_of(phase, value):
            key = Key(phase, call.name, call.index, path)
            context = context_of(call.module, tensor)
            if not self._observer.seen(key, tensor, context):
                continue
            keys[path] = key
            if self._has_graph and tensor.requires_grad:
                self._watch_gradient(tensor, key, context)
            if self._has_graph and not torch.is_grad_enabled() and is_float(tensor):
                # Reentrant checkpointing runs a first time without a graph, or with none but that
                # of its inputs.
                place = (phase, call.name, path, tensor_digest(tensor))
                self._graphless.setdefault(place, [])
                self._graphless[place] += [] if tensor.requires_grad else [key]
        return keys

    def _watch_again(self, phase: Phase, module: nn.Module, value: Any) -> dict[str, Key]:
        """Watch gradients in the graph that a reentrant checkpoint builds during backward.

        Its values are no new entries. Which call they belong to is told by their bits. The graph
        that a non-reentrant checkpoint builds is never differentiated: nothing is to be done.
        """
        keys: dict[str, Key] = {}
        if not self._graphless or not torch.is_grad_enabled():
            return keys
        for path, tensor in tensors_of(phase, value):
            if not tensor.requires_grad:
                continue
            known = self._graphless.get((phase, self.names[module], path, tensor_digest(tensor)))
            if known:
                # Backward goes through equal calls from the last to the first, and again if asked.
                known.insert(0, known.pop())
                keys[path] = known[0]
                self._watch_gradient(tensor, known[0], context_of(module, tensor))
            elif known is None:
                self.unmatched += 1
        return keys

    def _watch_gradient(self, tensor: Tensor, key: Key, context: Context) -> None:
        key = key._replace(phase=_GRADIENT_OF[key.phase])

        def hook(gradient: Tensor) -> Tensor | None:
            if not self._active:
                return None
            self._observer.seen(key, gradient, context)
            return self._observer.gradient_for(gradient)

        tensor.register_hook(hook)

    def _watch_parameter(self, parameter: Tensor, module: str, name: str) -> None:
        # A hook before accumulation: it sees what this backward adds, whatever was there before.
        context = Context(self._classes.get(module, ""), None, requires_grad=False)

        def hook(gradient: Tensor) -> None:
            if self._active:
                key = Key("parameter_gradient", module, self.step, name)
                self._observer.seen(key, gradient, context)

        if parameter.requires_grad:
            self._handles.append(parameter.register_hook(hook))
