"""Kernels that look at each call of an operator and hand it on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from accel.simulate.library import DIRECTIONS
from accel.simulate.machine import Machine
from accel.simulate.porting.backward import ForwardLines
from accel.simulate.porting.collector import Collector
from accel.simulate.porting.locations import Locator
from accel.simulate.porting.rules import DtypeRule, synchronization_rule

DEVICE_KEY = "PrivateUse1"
# The dispatcher takes one of these before it takes a backend's fallback.
_COMPOSITE = (
    "CompositeExplicitAutogradNonFunctional", "CompositeExplicitAutograd",
    "CompositeImplicitAutograd",
)  # fmt: skip
# Collectives, and what only the layouts of oneDNN reach: no NPU tensor gets there.
_NO_FALLBACK = ("c10d", "fsdp", "mkldnn", "onednn", "mkl", "mkldnn_prepacked")
_COPIES = ("aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize")
_WRONG_DEVICE = "Expected all tensors to be on the same device"
_MISSING = "no CPU kernel and no reference"
_SIMULATED = "the simulated Ascend"  # in every other error of the simulator's own

Kernel = Callable[..., Any]
Look = Callable[[Kernel, tuple[Any, ...], dict[str, Any]], Any]
_libraries: dict[str, torch.library.Library] = {}


class Watcher:
    """Puts a look at each call before the kernels of operators."""

    def __init__(self, machine: Machine, collector: Collector | None) -> None:
        """Watch for `collector`; with None only for `machine.strict`."""
        self._machine = machine
        self._collector = collector
        self._locator = Locator()
        self._forward = ForwardLines(self._locator)
        self._inside = threading.local()  # .fallback: bytes that the running fallback copied

    # --- which operators -------------------------------------------------------------------------

    def watch(self, name: str, kernel: Kernel) -> None:
        """Look at the calls of an operator that has a kernel of ours."""
        operator = _operator(name)
        rule = DtypeRule.of(operator, self._machine.profile.generation)
        look: Look
        if self._collector is None:
            if rule is None:
                return
            look = self._strict_look(rule)
        elif name in _COPIES:
            look = self._copy_look(name)
        else:
            look = self._operator_look(operator, rule)

        def watched(*args: Any, **kwargs: Any) -> Any:
            return look(kernel, args, kwargs)

        _library(name).impl(name.split("::")[1], watched, DEVICE_KEY)

    def watch_control(self) -> None:
        """Look at torch_npu's own kernels that read a value and cast."""
        for name, look in (
            ("aten::_local_scalar_dense", self._operator_look),
            ("aten::_to_copy", self._cast_look),
        ):
            operator = _operator(name)
            self._put(operator, look(operator, None))

    def watch_fallbacks(self) -> None:
        """Look at the operators that torch_npu has no kernel for and the CPU has."""
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
            if name.split("::")[0] in _NO_FALLBACK:
                continue
            if any(_has_kernel(name, key) for key in (DEVICE_KEY, *_COMPOSITE)):
                continue
            operator = _operator(name)
            if operator is not None:
                self._put(operator, self._fallback_look(operator))

    def _put(self, operator: Any, look: Look) -> None:
        """Look at calls of a kernel in C++, which stays the one that runs."""
        name = operator.name()
        original = torch.library.get_kernel(operator, DEVICE_KEY)

        def watched(keys: Any, *args: Any, **kwargs: Any) -> Any:
            return look(functools.partial(original.call_boxed, keys), args, kwargs)

        _library(name).impl(name.split("::")[1], watched, DEVICE_KEY, with_keyset=True)

    # --- what is looked at -----------------------------------------------------------------------

    def _strict_look(self, rule: DtypeRule) -> Look:
        def look(call: Any, args: Any, kwargs: Any) -> Any:
            self._check_dtypes(rule, args, kwargs)
            return call(*args, **kwargs)

        return look

    def _operator_look(self, operator: Any, rule: DtypeRule | None) -> Look:
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
            self._note_error(name, str(error), args, kwargs)
            raise
        finally:
            if self._collector is not None:
                self._collector.note_operator(name, perf_counter() - start)

    def _note_error(self, name: str, message: str, args: Any, kwargs: Any) -> None:
        if _WRONG_DEVICE in message:
            self.note("wrong_device", name, detail=_devices(args, kwargs))
        elif _MISSING in message:
            self.note("missing", name)
        elif _SIMULATED in message:
            self.note("refused", name, detail=message)

    def _copy_look(self, name: str) -> Look:
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

    def _cast_look(self, operator: Any, rule: DtypeRule | None) -> Look:
        def look(call: Any, args: Any, kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            asked = kwargs.get("dtype")
            if asked == torch.float64 and result.dtype == torch.float32 and not self._in_fallback():
                source = str(args[0].dtype).removeprefix("torch.")
                self.note("float64", f"{source} to float64 gives float32")
            return result

        return look

    def _fallback_look(self, operator: Any) -> Look:
        name = operator.name()
        tensors = frozenset(
            place
            for place, argument in enumerate(operator._schema.arguments)
            if isinstance(argument.type, torch.TensorType)
        )

        def look(call: Any, args: Any, kwargs: Any) -> Any:
            args = _without_numbers(args, tensors)
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

    def _check_dtypes(self, rule: DtypeRule, args: Any, kwargs: Any) -> None:
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
            where = self._forward.location()
            self._collector.note(kind, what, where, size=size, detail=detail)


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


def _without_numbers(args: tuple[Any, ...], tensors: frozenset[int]) -> tuple[Any, ...]:
    """Numbers in the place of tensors, as torch hands them to Python, as tensors again."""
    numbers = [i for i in tensors if i < len(args) and isinstance(args[i], (int, float, complex))]
    if not numbers:
        return args
    is_double = any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in args)
    made = list(args)
    for i in numbers:
        is_float = isinstance(args[i], float)
        dtype = torch.float64 if is_float and is_double else None
        made[i] = torch.tensor(args[i], dtype=dtype, device="cpu")
    return tuple(made)


def _operator(name: str) -> Any:
    """The operator of that name; None where the dispatcher knows the name without a schema."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return getattr(found, overload or "default", None)


def _library(name: str) -> torch.library.Library:
    """The registrations of this module in an operator's namespace; they last while it is kept."""
    namespace = name.split("::")[0]
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    return _libraries[namespace]


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
