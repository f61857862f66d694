"""Runs a program written for CUDA on the CPU: `python cuda_on_cpu.py train.py [argument …]`.

The reference for what a conversion must not change. It knows nothing of Accel. Whatever names a
CUDA device means the CPU, and what raises without CUDA does what it means on a device whose work is
done when the call returns. What torch answers without CUDA stays as it is: `is_available()` is
False, `device_count()` 0, autocast and gradient scaling for CUDA are disabled. No operator is
replaced, so the numbers are those of the CPU's kernels.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import time
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.overrides import TorchFunctionMode

_real_device = torch.device
_CPU = _real_device("cpu")


def place(device: Any) -> Any:
    """The CPU for an index or a name of a CUDA device; anything else as it is."""
    if isinstance(device, int) and not isinstance(device, bool):
        return _CPU
    named = isinstance(device, (str, _real_device)) and str(device).split(":")[0] == "cuda"
    return _CPU if named else device


class _DeviceType(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _real_device)

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        kind = place(arguments[0] if arguments else keywords.get("type"))
        return kind if kind is _CPU else _real_device(*arguments, **keywords)


class Device(metaclass=_DeviceType):
    """Stands for the class `torch.device`, which cannot be changed."""


class Stream:
    """A stream whose work is done when the call returns."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Event(Stream):
    """A moment."""

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


class _Tensors(TorchFunctionMode):
    """Methods of tensors and factories."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = dict(keywords or {})
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return arguments[0]
        if function is torch.Tensor.to and len(arguments) > 1:
            arguments = (arguments[0], place(arguments[1]), *arguments[2:])
        if "device" in keywords:
            keywords["device"] = place(keywords["device"])
        return function(*arguments, **keywords)


def _itself(owner: Any, *arguments: Any, **keywords: Any) -> Any:
    return owner


def _nothing() -> Any:
    """A function of its own that does nothing: torch.compile's tables hold each once."""
    return lambda *arguments, **keywords: None


def _with_places(real: Any, *names: str) -> Any:
    """A function whose devices, by position or by these names, are placed."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        named = {key: place(value) if key in names else value for key, value in keywords.items()}
        return real(*map(place, arguments), **named)

    return call


def _patch_cuda() -> None:
    cuda: Any = torch.cuda
    for name in ("synchronize", "set_device", "init", "reset_peak_memory_stats", "set_rng_state"):
        setattr(cuda, name, _nothing())
    for name in ("range_push", "range_pop"):
        setattr(cuda.nvtx, name, _nothing())
    cuda.current_device = lambda: 0
    cuda.get_device_name = lambda device=None: "the CPU"
    cuda.get_rng_state = lambda device=None: torch.empty(0, dtype=torch.uint8)
    cuda.Stream, cuda.Event = Stream, Event
    cuda.current_stream = lambda device=None: Stream()
    cuda.stream = cuda.device = cuda.device_of = contextlib.nullcontext
    for name in ("FloatTensor", "LongTensor"):
        setattr(cuda, name, getattr(torch, name))


def _patch_distributed() -> None:
    distributed, wrapper = torch.distributed, nn.parallel.DistributedDataParallel
    begin, wrap = distributed.init_process_group, wrapper.__init__

    def init_process_group(backend: str, **keywords: Any) -> None:
        begin("gloo" if backend == "nccl" else backend, **keywords)

    def without_devices(self: Any, module: Any, **keywords: Any) -> None:
        kept = {k: v for k, v in keywords.items() if k not in ("device_ids", "output_device")}
        wrap(self, module, **kept)

    distributed.init_process_group = init_process_group
    wrapper.__init__ = without_devices


def install() -> None:
    """Change torch in this process, for good."""
    _patch_cuda()
    _patch_distributed()
    torch.device = Device  # type: ignore[assignment,misc]
    nn.Module.cuda = torch.UntypedStorage.cuda = torch.TypedStorage.cuda = _itself
    torch.Tensor.record_stream = _nothing()
    fork = torch.random.fork_rng
    torch.random.fork_rng = lambda devices=None: fork(devices=())  # type: ignore[assignment]
    nn.Module.to = _with_places(nn.Module.to, "device")
    torch.load = _with_places(torch.load, "map_location")
    _Tensors().__enter__()


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
