"""`torch.distributed` and data parallelism with a CUDA backend or CUDA devices."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from accel.devices.distributed_functions import dist_backend
from accel.tracing.patching import Function, replace, takes_device_at
from accel.tracing.tracer import Tracer

# The backends that a program written for CUDA asks for.
_OWN = frozenset({"nccl", "rccl"})


def install_distributed(tracer: Tracer) -> None:
    """Redirect groups, meshes and DistributedDataParallel."""
    replace(torch.nn.parallel.DistributedDataParallel, "__init__", lambda it: _wrapper(tracer, it))
    replace(torch.nn.DataParallel, "__init__", lambda it: _data_parallel(tracer, it))
    replace(torch.utils.data.DataLoader, "__init__", lambda it: _loader(tracer, it))
    if not dist.is_available():
        return
    for name, place in (("init_process_group", 0), ("new_group", 2)):
        _everywhere(name, lambda it, place=place: _group(tracer, it, place))
    _everywhere("barrier", lambda it: _barrier(tracer, it))
    _everywhere("is_nccl_available", lambda it: _availability(tracer, it))
    _everywhere("get_backend", lambda it: _backend(tracer, it))
    _meshes(tracer)


def _meshes(tracer: Tracer) -> None:
    def mesh(place: int) -> Function:
        return takes_device_at(
            tracer, "torch.distributed.DeviceMesh", place, "device_type", as_text=True
        )

    home: Any = dist.device_mesh
    replace(home.DeviceMesh, "__init__", mesh(1))
    replace(home, "init_device_mesh", mesh(0))
    setattr(dist, "init_device_mesh", home.init_device_mesh)  # noqa: B010 - typed as constant


def install_fsdp(tracer: Tracer) -> None:
    """Redirect the device of the first FullyShardedDataParallel; it is imported late."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    replace(FullyShardedDataParallel, "__init__", lambda it: _sharded(tracer, it))


def _everywhere(name: str, make: Any) -> None:
    """Replace a function of torch.distributed and the same one in the module it comes from."""
    replace(distributed_c10d, name, make)
    setattr(dist, name, getattr(distributed_c10d, name))


def _group(tracer: Tracer, original: Function, place: int) -> Function:
    api = f"torch.distributed.{original.__name__}"

    def redirect(given: Any) -> Any:
        if not isinstance(given, str) or not _asks_for_cuda(given) or tracer.target == "cuda":
            return given
        chosen = dist_backend(given)
        tracer.note(api, given, chosen)
        return chosen

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if len(args) > place:
            args = (*args[:place], redirect(args[place]), *args[place + 1 :])
        elif "backend" in kwargs:
            kwargs["backend"] = redirect(kwargs["backend"])
        device = kwargs.get("device_id")
        if device is not None and tracer.target == "cpu":
            kwargs["device_id"] = None  # it must be an accelerator's
            tracer.note(f"{api}(device_id)", device, "cpu")
        return original(*args, **kwargs)

    return replacement


def _asks_for_cuda(backend: str) -> bool:
    pairs = [pair.strip().lower().rpartition(":") for pair in backend.split(",")]
    return any(device == "cuda" or name in _OWN for device, _, name in pairs)


def _availability(tracer: Tracer, original: Function) -> Function:
    api = "torch.distributed.is_nccl_available"

    def replacement() -> bool:
        if tracer.target == "cuda":
            return bool(original())
        own = dist_backend()
        usable = tracer.target != "cpu" or tracer.claims_cuda
        answer = usable and bool(dist.is_backend_available(own))
        tracer.note(api, None, own, f"answered {answer} for {own}")
        return answer

    return replacement


def _backend(tracer: Tracer, original: Function) -> Function:
    api = "torch.distributed.get_backend"

    def replacement(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if tracer.target != "cuda" and answer not in _OWN:
            tracer.note(api, None, answer, 'a comparison with "nccl" is False here')
        return answer

    return replacement


def _barrier(tracer: Tracer, original: Function) -> Function:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device_ids") is not None and tracer.target == "cpu":
            tracer.note("torch.distributed.barrier", kwargs.pop("device_ids"), "cpu")
        return original(*args, **kwargs)

    return replacement


def _wrapper(tracer: Tracer, original: Function) -> Function:
    api = "torch.nn.parallel.DistributedDataParallel"

    def replacement(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        if device_ids is not None and tracer.target == "cpu":
            asked = ", ".join(map(str, device_ids))
            tracer.note(api, asked, "cpu", "device_ids=None, as DDP wants it there")
            device_ids = output_device = None
        elif device_ids is not None:
            device_ids = [tracer.device(api, one) for one in device_ids]
            output_device = tracer.device(api, output_device)
        elif tracer.target == "cpu":
            output_device = None
        original(self, module, device_ids, output_device, *args, **kwargs)

    return replacement


def _sharded(tracer: Tracer, original: Function) -> Function:
    api = "torch.distributed.fsdp.FullyShardedDataParallel"

    def replacement(self: Any, *args: Any, **kwargs: Any) -> None:
        device = kwargs.get("device_id")
        if device is not None:
            kwargs["device_id"] = tracer.device(api, device)
        original(self, *args, **kwargs)

    return replacement


def _data_parallel(tracer: Tracer, original: Function) -> Function:
    def replacement(self: Any, *args: Any, **kwargs: Any) -> None:
        note = "on a CPU it hands on to the module" if tracer.target == "cpu" else ""
        tracer.note("torch.nn.DataParallel", None, tracer.target, note)
        original(self, *args, **kwargs)

    return replacement


def _loader(tracer: Tracer, original: Function) -> Function:
    def replacement(self: Any, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("pin_memory_device")
        place = tracer.redirected(given)
        if place is not None:
            tracer.note("torch.utils.data.DataLoader(pin_memory_device)", given, place)
            kwargs["pin_memory_device"] = "" if place.type == "cpu" else str(place)
        original(self, *args, **kwargs)

    return replacement
