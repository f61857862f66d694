"""The hooks of the porting report, and `--strict`. Nothing is installed unless one is asked for.

Every operator that runs on the device keeps the kernel it has and gets a second one before it, which
looks at the call and hands it on. Operators that torch_npu has no kernel for reach its fallback to
the CPU in the same way, so its own warning and `TORCH_NPU_FALLBACK_CPU_DISABLE` stay as they are.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import platform
import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from accel._version import __version__
from accel.simulate.library import DIRECTIONS, current_runtime
from accel.simulate.machine import Machine
from accel.simulate.porting import parts
from accel.simulate.porting.backward import ForwardLines
from accel.simulate.porting.collector import Collector, Environment
from accel.simulate.porting.findings import DeviceMemory
from accel.simulate.porting.locations import Location, Locator
from accel.simulate.porting.rules import DtypeRule, synchronization_rule

DEVICE_KEY = "PrivateUse1"
# torch_npu's own, which no kernel of ours replaces and which the report has to see.
_CONTROL = ("aten::_local_scalar_dense", "aten::_to_copy")
# The dispatcher takes one of these before it takes a backend's fallback.
_COMPOSITE = (
    "CompositeExplicitAutogradNonFunctional", "CompositeExplicitAutograd",
    "CompositeImplicitAutograd",
)  # fmt: skip
# Of these torch itself says that they are not operators on data.
_NO_FALLBACK = ("c10d", "fsdp", "mkldnn", "onednn", "mkl", "mkldnn_prepacked")
_COPIES = ("aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize")
_WRONG_DEVICE = "Expected all tensors to be on the same device"
_MISSING = "is not available on the simulated Ascend"

_libraries: dict[str, torch.library.Library] = {}


def begin(machine: Machine, kinds: dict[tuple[str, str], str]) -> None:
    """Observe this process, after all kernels are registered.

    Args:
        machine: The simulated machine, whose `report` or `strict` is set.
        kinds: Of the registered operators, as `registration.kinds` gives them.
    """
    collector = _start_collector(machine) if machine.report else None
    watcher = Watcher(machine, collector)
    for (name, key), kind in kinds.items():
        if key == DEVICE_KEY and (kind != "control" or name in _CONTROL):
            watcher.watch(name)
    if collector is not None:
        watcher.watch_fallbacks()
        _watch_libraries(watcher)
        _watch_explicit(watcher)


def _start_collector(machine: Machine) -> Collector:
    stem = os.environ.get(parts.VARIABLE)
    if not stem:
        # Nobody above merges: this process does, after its own part is written.
        stem = os.environ[parts.VARIABLE] = parts.new_stem(machine.report)
        report = os.path.abspath(machine.report)
        atexit.register(_merge, machine, stem, report, os.getpid())
    versions = {
        "accel": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_npu": importlib.metadata.version("torch-npu"),
    }
    return Collector(stem, Environment(current_runtime().counters, _memory, versions))


def _merge(machine: Machine, stem: str, report: str, pid: int) -> None:
    if os.getpid() == pid:
        found, notes = parts.take_parts(stem)
        parts.write_report(report, parts.merge(machine, found, notes))


def _memory() -> tuple[DeviceMemory, ...]:
    npu = torch.npu
    if not npu.is_initialized():
        return ()
    runtime = current_runtime()
    all_devices = (
        DeviceMemory(index, runtime.peak_bytes(index), npu.max_memory_allocated(index))
        for index in range(npu.device_count())
    )
    return tuple(one for one in all_devices if one.peak_bytes)


class Watcher:
    """Puts a look at each call before the kernels of operators."""

    def __init__(self, machine: Machine, collector: Collector | None) -> None:
        """Watch for `collector`; with None only for `machine.strict`."""
        self._machine = machine
        self._collector = collector
        self._locator = Locator()
        self._forward = ForwardLines(self._locator)
        self._watched: set[str] = set()
        self._inside = threading.local()  # .fallback: bytes that the running fallback copied

    # --- which operators -------------------------------------------------------------------------

    def watch(self, name: str) -> None:
        """Look at the calls of an operator that has a kernel."""
        rule = DtypeRule.of(name, self._machine.profile.generation)
        if self._collector is None and rule is None:
            return
        operator = _operator(name)
        if self._collector is None:
            look = self._strict_look(rule)
        elif name in _COPIES:
            look = self._copy_look(name)
        elif name == "aten::_to_copy":
            look = self._cast_look()
        else:
            look = self._operator_look(operator, rule)
        self._put(name, operator, look)

    def watch_fallbacks(self) -> None:
        """Look at the operators that torch_npu has no kernel for and the CPU has."""
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
            if name in self._watched or name.split("::")[0] in _NO_FALLBACK:
                continue
            if any(_has_kernel(name, key) for key in (DEVICE_KEY, *_COMPOSITE)):
                continue
            operator = _operator(name)
            if operator is not None:
                self._put(name, operator, self._fallback_look(name))

    def _put(self, name: str, operator: Any, look: Callable[..., Any]) -> None:
        namespace, _, rest = name.partition("::")
        if namespace not in _libraries:
            _libraries[namespace] = torch.library.Library(namespace, "IMPL")
        original = torch.library.get_kernel(operator, DEVICE_KEY)

        def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(original.call_boxed, keys)
            return look(call, args, kwargs)

        _libraries[namespace].impl(rest, kernel, DEVICE_KEY, with_keyset=True)
        self._watched.add(name)

    # --- what is looked at -----------------------------------------------------------------------

    def _strict_look(self, rule: DtypeRule | None) -> Callable[..., Any]:
        def look(call: Any, args: Any, kwargs: Any) -> Any:
            self._check_dtypes(rule, args, kwargs)
            return call(*args, **kwargs)

        return look

    def _operator_look(self, operator: Any, rule: DtypeRule | None) -> Callable[..., Any]:
        name = operator.name()
        waits = synchronization_rule(operator)

        def look(call: Any, args: Any, kwargs: Any) -> Any:
            if self._in_fallback():
                return call(*args, **kwargs)
            self._forward.remember()
            if rule is not None:
                self._check_dtypes(rule, args, kwargs)
            result = self._run(name, call, args, kwargs)
            if waits is not None and (what := waits(args, kwargs)):
                self.note("synchronization", what)
            return result

        return look

    def _run(self, name: str, call: Any, args: Any, kwargs: Any) -> Any:
        """Run the kernel; count it and what it raises."""
        start = perf_counter()
        try:
            return call(*args, **kwargs)
        except RuntimeError as error:
            if _WRONG_DEVICE in str(error):
                self.note("wrong_device", name, detail=_devices(args, kwargs))
            elif isinstance(error, NotImplementedError) and _MISSING in str(error):
                self.note("missing", name)
            raise
        finally:
            if self._collector is not None:
                self._collector.note_operator(name, perf_counter() - start)

    def _copy_look(self, name: str) -> Callable[..., Any]:
        target_first = name == "aten::copy_"

        def look(call: Any, args: Any, kwargs: Any) -> Any:
            target, source = (args[0], args[1]) if target_first else (args[1], args[0])
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            self._forward.remember()
            result = self._run(name, call, args, kwargs)
            self._note_copy(source, target, blocking)
            return result

        return look

    def _note_copy(self, source: Tensor, target: Tensor, blocking: bool) -> None:
        from_device, to_device = source.device.type == "npu", target.device.type == "npu"
        if from_device == to_device:
            return
        size = source.numel() * source.element_size()
        if self._in_fallback():
            self._inside.fallback += size
            return
        self.note("copy", DIRECTIONS[2 * from_device + to_device], size=size)
        if from_device and blocking:
            self.note("synchronization", "copy to the host")

    def _cast_look(self) -> Callable[..., Any]:
        def look(call: Any, args: Any, kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            asked = kwargs.get("dtype")
            if asked == torch.float64 and result.dtype == torch.float32 and not self._in_fallback():
                source = str(args[0].dtype).removeprefix("torch.")
                self.note("float64", f"{source} to float64 gives float32")
            return result

        return look

    def _fallback_look(self, name: str) -> Callable[..., Any]:
        def look(call: Any, args: Any, kwargs: Any) -> Any:
            if self._in_fallback():
                return call(*args, **kwargs)
            self._forward.remember()
            self._inside.fallback = 0
            try:
                return self._run(name, call, args, kwargs)
            finally:
                size, self._inside.fallback = self._inside.fallback, None
                self.note("cpu_fallback", name, size=size)

        return look

    def _in_fallback(self) -> bool:
        return getattr(self._inside, "fallback", None) is not None

    def _check_dtypes(self, rule: DtypeRule | None, args: Any, kwargs: Any) -> None:
        if rule is None:
            return
        if rule.remark:
            self.note("cpu_remark", rule.name, detail=rule.remark)
        for dtype in rule.unlisted(args, kwargs):
            if self._machine.strict:
                raise RuntimeError(
                    f"{rule.name} on {dtype} is not listed for the simulated "
                    f"{self._machine.profile.soc_name}: {rule.described} (strict)"
                )
            self.note("dtype", f"{rule.name} on {dtype}", detail=rule.described)

    def note(self, kind: str, what: str, *, size: int = 0, detail: str = "") -> None:
        """Count a finding of the calling thread's line."""
        if self._collector is not None:
            self._collector.note(kind, what, self._where(), size=size, detail=detail)

    def _where(self) -> Location:
        return self._forward.location()


def _devices(args: Iterable[Any], kwargs: dict[str, Any]) -> str:
    """The devices of a call's operands, such as `npu:0, cpu`."""
    found: dict[str, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found[str(value.device)] = None
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit([*args, *kwargs.values()])
    return ", ".join(found)


def _watch_libraries(watcher: Watcher) -> None:
    """Look at operators that an extension (torchvision's, say) brings in later."""
    load = torch.ops.load_library

    @functools.wraps(load)
    def load_library(path: Any) -> None:
        load(path)
        watcher.watch_fallbacks()

    torch.ops.load_library = load_library  # type: ignore[method-assign]


def _watch_explicit(watcher: Watcher) -> None:
    """Look at the calls with which a program waits on purpose; they pass no dispatcher."""
    npu = torch.npu
    for owner, label in (
        (npu, "torch.npu.synchronize()"),
        (npu.Stream, "Stream.synchronize()"),
        (npu.Event, "Event.synchronize()"),
        (torch.accelerator, "torch.accelerator.synchronize()"),
    ):
        owner.synchronize = _noted(watcher, owner.synchronize, label)


def _noted(watcher: Watcher, function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def synchronize(*args: Any, **kwargs: Any) -> Any:
        watcher.note("explicit_synchronization", label)
        return function(*args, **kwargs)

    return synchronize


def _operator(name: str) -> Any:
    """The operator of that name; None where the dispatcher knows the name without a schema."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload or "default", None)


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
