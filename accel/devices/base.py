"""What every chip family offers: the abstract `Device` and the values it returns."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accel.devices.batches import move as _move
from accel.devices.dtypes import DtypeSupport, probe
from accel.devices.formats import ScaledProduct, tensorwise_products
from accel.devices.streams import Event, Stream


@dataclass(frozen=True)
class MemoryInfo:
    """Memory in bytes.

    Attributes:
        used: Held by this process: tensors on an accelerator, resident set on a CPU.
        peak: Largest `used` since the process began or `Device.reset_peak_memory` was called.
        free: What could still be allocated, as the driver or the kernel tells.
        total: What the device has.
    """

    used: int
    peak: int
    free: int
    total: int


@dataclass(frozen=True)
class RngState:
    """The random state of one device and of the CPU, taken together.

    Attributes:
        cpu: State of torch's CPU generator, uint8 `[N]`.
        device: State of the device's own generator, uint8 `[M]`; None on a CPU.
        family: Of the device it was taken on; its generator is unlike another family's.
    """

    cpu: torch.Tensor
    device: torch.Tensor | None
    family: str


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is.

    Attributes:
        name: The chip, as its driver names it.
        family: The family's name: `cpu`, `cuda`, `rocm`, `npu`, `xpu`, …
        total_memory: Bytes.
        dtypes: What each dtype can do here, found by trying it (see `accel.devices.dtypes`).
        collective_backend: The `torch.distributed` backend for this device (nccl, hccl, xccl,
            gloo, …); None where torch knows none.
    """

    name: str
    family: str
    total_memory: int
    dtypes: DtypeSupport
    collective_backend: str | None


class Device(abc.ABC):
    """One device of one chip family. Subclass it to add a chip (CONTRIBUTING, "add a chip").

    Instances are cheap: nothing touches the driver before a property or method is used. Two
    devices are equal if they name the same torch device.

    Args:
        index: Which device of the family; ignored by families with only one.

    Attributes:
        family: Name by which users choose it, e.g. `ACCEL_DEVICE=npu`.
        torch_type: The `torch.device` type its tensors have. Two families may share one: CUDA
            and ROCm are both `cuda` to torch.
    """

    family: ClassVar[str]
    torch_type: ClassVar[str]

    def __init__(self, index: int = 0) -> None:
        self.index = index

    @classmethod
    @abc.abstractmethod
    def count(cls) -> int:
        """How many usable devices of this family there are now; 0 where the chip is absent."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The chip, as its driver names it."""

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Wait until all work submitted to this device is done."""

    @abc.abstractmethod
    def memory(self) -> MemoryInfo:
        """Memory now, in bytes."""

    @abc.abstractmethod
    def reset_peak_memory(self) -> None:
        """Start `memory().peak` anew from what is used now."""

    @abc.abstractmethod
    def empty_cache(self) -> None:
        """Give memory that the allocator keeps but does not use back to the driver."""

    @abc.abstractmethod
    def activate(self) -> None:
        """Make this torch's current device of the calling thread."""

    @abc.abstractmethod
    def activated(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which this is torch's current device of the calling thread."""

    @abc.abstractmethod
    def own_rng_state(self) -> torch.Tensor | None:
        """State of this device's own generator, uint8; None on a CPU."""

    @abc.abstractmethod
    def set_own_rng_state(self, state: torch.Tensor) -> None:
        """Restore what `own_rng_state` returned."""

    @abc.abstractmethod
    def seed_own_generator(self, seed: int) -> None:
        """Seed this device's own generator; on a CPU nothing (`seed` does it)."""

    def seed_current(self, seed: int) -> None:
        """The same for the current device, which this is; it need not be started for it."""
        self.seed_own_generator(seed)

    def seed_every(self, seed: int) -> None:
        """Seed the own generators of all devices of this family; on a CPU nothing."""
        for index in range(self.count()):
            type(self)(index).seed_own_generator(seed)

    @property
    def torch_device(self) -> torch.device:
        """The `torch.device` to create tensors on."""
        return torch.device(self.torch_type, self.index)

    @property
    def info(self) -> DeviceInfo:
        """What this device is."""
        return DeviceInfo(
            name=self.name,
            family=self.family,
            total_memory=self.total_memory,
            dtypes=self.dtypes,
            collective_backend=self.collective_backend,
        )

    @property
    def total_memory(self) -> int:
        """Bytes that the device has."""
        return self.memory().total

    @property
    def dtypes(self) -> DtypeSupport:
        """What each dtype can do here; tried on first use and remembered per device."""
        return probe(self.torch_device, self.fp8_compute_dtypes())

    @property
    def collective_backend(self) -> str | None:
        """The `torch.distributed` backend for this device; None where torch knows none."""
        if not torch.distributed.is_available():
            return None
        try:
            return torch.distributed.get_default_backend_for_device(self.torch_device)
        except ValueError:  # torch's way of saying that none is registered
            return None

    @property
    def autocast_dtype(self) -> torch.dtype:
        """What `torch.autocast` computes in on this device when no dtype is given."""
        return torch.get_autocast_dtype(self.torch_type)

    def fp8_compute_dtypes(self) -> frozenset[torch.dtype]:
        """The 8-bit floating-point dtypes that this chip multiplies matrices in.

        No PyTorch operator tells it: `torch.mm` of FP8 tensors also runs where it is emulated.
        """
        return frozenset()

    def scaled_products(self) -> frozenset[ScaledProduct]:
        """The products of scaled 8-bit matrices that this chip computes itself.

        Override it for a chip that has more than one scale per matrix.
        """
        return tensorwise_products(self.fp8_compute_dtypes())

    def clear_overflow(self) -> None:  # noqa: B027 - a chip that saturates overrides it
        """Forget what `overflow` would tell; nothing where infinities and NaN tell it."""

    def overflow(self) -> torch.Tensor | None:
        """On a chip that saturates, whether a result has overflowed since `clear_overflow`.

        Returns:
            bool `[]` on the device; None on a chip whose results are infinite or NaN then.
        """
        return None

    def seed(self, seed: int) -> None:
        """Seed this device's generator and the CPU's together.

        Python's and NumPy's generators are not touched.
        """
        torch.default_generator.manual_seed(seed)
        self.seed_own_generator(seed)

    def rng_state(self) -> RngState:
        """The generators' states of this device and the CPU."""
        return RngState(torch.get_rng_state(), self.own_rng_state(), self.family)

    def set_rng_state(self, state: RngState) -> None:
        """Restore what `rng_state` returned.

        Raises:
            ValueError: The state was taken on another chip family.
        """
        if state.family != self.family:
            raise ValueError(
                f"this RNG state was taken on the family {state.family} and cannot be restored on "
                f"{self} ({self.family}): their random streams differ; seed with device.seed(...) "
                "instead"
            )
        if state.device is not None:
            self.set_own_rng_state(state.device)  # the likelier to be refused, so it comes first
        torch.set_rng_state(state.cpu)

    def stream(self) -> Stream:
        """A new stream of this device; `with device.stream():` submits to it.

        On a CPU it changes nothing: work there is done when its call returns.
        """
        return torch.Stream(self.torch_device)

    def current_stream(self) -> Stream:
        """The stream that work on this device goes to now, in this thread."""
        return torch.accelerator.current_stream(self.torch_device)

    def event(self, *, timing: bool = False) -> Event:
        """A new event, to be recorded in a stream of this device.

        Args:
            timing: Whether `elapsed_time`, in milliseconds, can be asked between two of them:

                start, end = device.event(timing=True), device.event(timing=True)
                start.record()
                ...
                end.record()
                end.synchronize()
                milliseconds = start.elapsed_time(end)
        """
        return torch.Event(self.torch_device, enable_timing=timing)

    def move(self, batch: Any, *, pin: bool = True) -> Any:
        """Move every tensor in a nested batch to this device.

        Mappings, lists, tuples, named tuples and dataclasses are rebuilt, in their own type where
        it can be copied; an object with a `.to(device)` method of its own is asked; anything else,
        a set among them, is returned as it is.

        Args:
            batch: Tensors, nested at will.
            pin: Copy pageable CPU tensors to page-locked memory first, so that the transfer
                overlaps with computing. Tensors that a DataLoader pinned are not copied again.

        Returns:
            The same structure. Host-to-device copies are asynchronous and ordered with the
            device's work; device-to-host copies have finished on return.
        """
        return _move(batch, self.torch_device, pin=pin and self.torch_type != "cpu")

    @contextlib.contextmanager
    def deterministic(self) -> Iterator[None]:
        """Use only deterministic algorithms inside the block; restores every switch after it.

        An operator that has no deterministic form raises inside the block.
        """
        from accel.devices.setting import numerics_mode, use_numerics_mode

        with use_numerics_mode(numerics_mode().as_deterministic()):
            yield

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.torch_device == self.torch_device

    def __hash__(self) -> int:
        return hash(self.torch_device)

    def __str__(self) -> str:
        return str(self.torch_device)

    def __repr__(self) -> str:
        return f"<accel {self.family} device {self.torch_device}>"
