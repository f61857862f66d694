"""What a forward depends on besides inputs and parameters, to be had again for a second one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# All that torch knows an autocast of, whether such a device is here or not, besides a plugin's.
_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "ipu", "xla", "maia", "mtia")


class AutocastState(NamedTuple):
    """What autocast does in this thread, on every type of device.

    Attributes:
        dtypes: Of the types where it is on.
        is_cached: Whether casts of weights are kept.
    """

    dtypes: dict[str, torch.dtype]
    is_cached: bool

    @classmethod
    def capture(cls) -> AutocastState:
        """As it is now."""
        types = dict.fromkeys((*_TYPES, torch._C._get_privateuse1_backend_name()))
        known = [name for name in types if torch.amp.is_autocast_available(name)]
        on = {name: torch.get_autocast_dtype(name) for name in known
              if torch.is_autocast_enabled(name)}  # fmt: skip
        return cls(on, torch.is_autocast_cache_enabled())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """A block in which it is as it was."""
        now = AutocastState.capture()
        with contextlib.ExitStack() as stack:
            for name in {**now.dtypes, **self.dtypes}:
                dtype = self.dtypes.get(name)
                stack.enter_context(
                    torch.autocast(
                        name, dtype=dtype, enabled=dtype is not None, cache_enabled=self.is_cached
                    )
                )
            yield


def forget_casts() -> None:
    """Drop the weights that autocast has cast without gradients, before it uses them with."""
    torch.clear_autocast_cache()


class Modes:
    """Which modules of a model train and which are evaluated."""

    def __init__(self, model: nn.Module) -> None:
        self._training = {module: module.training for module in model.modules()}

    def restore(self) -> None:
        """Make them what they were."""
        for module, training in self._training.items():
            module.training = training

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """A block in which they are what they were."""
        now = object.__new__(Modes)
        now._training = {module: module.training for module in self._training}
        self.restore()
        try:
            yield
        finally:
            now.restore()


class BufferWatch:
    """Notes what forwards change of a model's buffers, so that they can be run again from before.

    It costs a copy of the buffers while it watches, and keeps of what changed only.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept = {name: _Seen.of(buffer) for name, buffer in model.named_buffers()}
        self._moving: set[str] = set()

    def changed(self, *, look: bool) -> dict[str, Tensor]:
        """Of buffers that changed since the last call, what they were then.

        Args:
            look: Compare values, which waits for the device: torch's batch norm changes its running
                statistics without telling. Else those that a look has found, and those that tell.
        """
        buffers = dict(self._model.named_buffers())
        for name in buffers.keys() - self._kept.keys():  # made by the forward
            self._kept[name] = _Seen.of(buffers[name])
        moved = {name for name, buffer in buffers.items()
                 if name in self._moving or not self._kept[name].is_still(buffer)}  # fmt: skip
        if look:
            moved |= self._differing({n: b for n, b in buffers.items() if n not in moved})
            self._moving |= moved
        before = {name: self._kept[name].value for name in moved}
        self._kept |= {name: _Seen.of(buffers[name]) for name in moved}
        return before

    def _differing(self, buffers: Mapping[str, Tensor]) -> set[str]:
        names = [name for name, buffer in buffers.items() if buffer.numel()]
        if not names:
            return set()
        home = buffers[names[0]].device  # one wait for all of them
        flags = [(buffers[name] != self._kept[name].value).any().to(home) for name in names]
        return {n for n, flag in zip(names, torch.stack(flags).tolist(), strict=True) if flag}


class _Seen(NamedTuple):
    """A buffer as it was."""

    buffer: Tensor
    version: int
    value: Tensor

    @classmethod
    def of(cls, buffer: Tensor) -> _Seen:
        return cls(buffer, buffer._version, buffer.clone())

    def is_still(self, buffer: Tensor) -> bool:
        return buffer is self.buffer and buffer._version == self.version


@torch.no_grad()
def set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give buffers other values, in place."""
    if values:
        buffers = dict(model.named_buffers())
        for name, value in values.items():
            buffers[name].copy_(value)


@contextlib.contextmanager
def buffers_kept(model: nn.Module, names: set[str]) -> Iterator[None]:
    """A block after which these buffers are as before."""
    before = {name: b.clone() for name, b in model.named_buffers() if name in names}
    try:
        yield
    finally:
        set_buffers(model, before)
