"""The float64 references of a recording: one shadow per call of the model, run beside it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from accel.numerics.entries import Key, ReferenceFailure
from accel.numerics.generators import Generators, States
from accel.numerics.hooks import Tap
from accel.numerics.responses import response_of
from accel.numerics.shadow import Shadow
from accel.numerics.sink import Sink
from accel.numerics.watchers import ForcingWatcher, Gradients, Watcher

_log = logging.getLogger("accel")

RANDOM = (
    "it drew random numbers (dropout?) and float64 would draw others: record with model.eval() or "
    "p=0, or record with reference=False and compare with an explicit budget="
)


class _Waiting(NamedTuple):
    """A call whose backward has not come yet."""

    root: int
    shadow: Shadow
    forced: Shadow


class References:
    """Keeps the float64 side of one recording.

    A reference that fails disturbs nothing: the reason is logged and written into the recording,
    and `compare` does not pass what has no reference.

    Args:
        sink: Where truths go.
        tap: The hooks that watch the run.
        generators: What the model may draw from.
    """

    def __init__(self, sink: Sink, tap: Tap, generators: Generators) -> None:
        self._sink, self._tap, self._generators = sink, tap, generators
        self._watcher, self._forcing = Watcher(sink), ForcingWatcher(sink)
        self._shadows: tuple[Shadow, Shadow] | None = None
        self._before: States | None = None
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._is_broken = False  # a call of this step failed: sums over the step are unknown

    def before_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Take what the float64 calls need, before the call changes it."""
        self._before = self._generators.states()
        try:
            self._shadows = (
                Shadow(module, args, kwargs, self._tap, self._watcher),
                Shadow(module, args, kwargs, self._tap, self._forcing),
            )
        except Exception as error:  # any model may fail to be copied, in any way
            self._fail(self._sink.root, f"the model or its input cannot be copied: {_said(error)}")

    def after_call(self, module: nn.Module, output: Any) -> None:
        """Run the float64 forward."""
        shadows, self._shadows = self._shadows, None
        if shadows is None:
            return
        reason = self._forward(shadows, output)
        if reason is not None:
            self._fail(self._sink.root, reason)
        if reason is None and shadows[0].has_graph:
            name = self._tap.names[module]
            waiting = _Waiting(self._sink.root, *shadows)
            self._waiting[name, self._tap.calls[name] - 1] = waiting
        else:
            for shadow in shadows:
                shadow.close()

    def _forward(self, shadows: tuple[Shadow, Shadow], output: Any) -> str | None:
        """Why the float64 forward is no reference; None if it is one."""
        if output is None:
            return "the call raised, or returned nothing that a reference could start from"
        if self._before is None or self._before.differ(self._generators.states()):
            return RANDOM
        with self._generators.preserved() as before:
            try:
                for shadow in shadows if shadows[0].gradients else shadows[:1]:
                    shadow.forward()
            except Exception as error:  # a kernel without float64 may fail in any way
                return f"it does not run in float64 on the CPU: {_said(error)}"
            if before.differ(self._generators.states()):
                return RANDOM
        if shadows[0].calls != self._tap.calls:
            return "in float64 it called other modules: its control flow depends on rounding"
        return None

    def gradient_arrived(self, key: Key, gradient: Tensor) -> None:
        """Take a gradient of the run; those of a call's outputs start the float64 backward."""
        if key.phase != "gradient" or (key.module, key.call) not in self._waiting:
            return
        for shadow in self._waiting[key.module, key.call][1:]:
            shadow.add_cotangent(key.path, gradient)

    def end_step(self) -> None:
        """Run the float64 backward of every call of the step, and record its gradients."""
        exact, shaken, own = Gradients(), Gradients(), Gradients()
        reason = None
        with self._generators.preserved():
            try:
                self._backward(self._watcher, exact)
                self._backward(self._watcher, shaken, torch.Generator().manual_seed(0))
                self._backward(self._forcing, own)
            except Exception as error:  # as in the forward
                reason = f"its backward does not run in float64 on the CPU: {_said(error)}"
        if reason is None:
            self._record(exact, shaken, own)
        else:
            for waiting in self._waiting.values():
                self._fail(waiting.root, reason)
        self.drop()

    def _backward(
        self, watcher: Watcher, into: Gradients, noise: torch.Generator | None = None
    ) -> None:
        watcher.into, watcher.noise = into, noise
        for waiting in self._waiting.values():
            (waiting.forced if watcher is self._forcing else waiting.shadow).backward()
        watcher.into = Gradients()

    def _record(self, exact: Gradients, shaken: Gradients, own: Gradients) -> None:
        for key, gradient in exact.sums.items():
            if key.phase == "parameter_gradient" and self._is_broken:
                continue  # a call of the step has no reference, so its share is unknown
            run = self._sink.recorded(key)
            if run is None or key not in own.sums or key not in shaken.sums:
                continue
            response = response_of(run, gradient, shaken.sums[key], own.sums[key])
            self._sink.put_truth(key, gradient, exact.contexts[key], response)

    def drop(self) -> None:
        """Let go of all shadows."""
        for waiting in self._waiting.values():
            waiting.shadow.close()
            waiting.forced.close()
        self._waiting.clear()
        self._is_broken = False

    def _fail(self, root: int, reason: str) -> None:
        self._is_broken = True
        _log.warning("call %d of the model has no float64 reference: %s", root, reason)
        self._sink.writer.add(ReferenceFailure(root, reason))


def _said(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:300]}"
