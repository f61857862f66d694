"""One function for every operator: run torch's CPU kernel on views of the device's memory.

What the schema says decides the rest: tensors become CPU views, results become device tensors, an
argument that is written stays the tensor it was, a random operator draws from the device's
generator. Operands on the wrong device raise, as they do on a chip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.simulate.operators import memory, random

Kernel = Callable[..., Any]

# What the simulated chip does not compute in; set when the operators are registered.
unsupported_dtypes: set[torch.dtype] = set()
# Arguments that may be on the CPU, on every device: indices and lengths.
_INDICES = frozenset({"indices"})
_HOST_ARGUMENTS = {
    "aten::index.Tensor": _INDICES,
    "aten::index.Tensor_out": _INDICES,
    "aten::index_put": _INDICES,
    "aten::index_put_": _INDICES,
    "aten::_index_put_impl_": _INDICES,
    "aten::_unsafe_index.Tensor": _INDICES,
    "aten::_unsafe_index_put": _INDICES,
    "aten::_pack_padded_sequence": frozenset({"lengths"}),
    "aten::_pack_padded_sequence_backward": frozenset({"batch_sizes"}),
    "aten::_pad_packed_sequence": frozenset({"batch_sizes"}),
}
# Besides pointwise operators these take a number as a tensor without dimensions on the CPU.
_TAKE_NUMBERS = ("fill", "index_put", "_foreach", "_fused_ada", "_fused_sgd", "_amp_")
# Results that stay on the CPU, by position.
_HOST_RESULTS = {
    "aten::_pack_padded_sequence": frozenset({1}),
    "npu::npu_fusion_attention_v3": frozenset({4, 5}),
}
# These draw their dropout without being tagged as random.
_RANDOM = frozenset(
    {"npu::npu_fusion_attention", "npu::npu_fusion_attention_v2", "npu::npu_fusion_attention_v3"}
)

# In place, and yet it gives a broadcast operand the size of the result.
_RESIZING = frozenset({"aten::addbmm_"})


@dataclass(frozen=True)
class Plan:
    """What a schema says of an operator.

    Attributes:
        name: With its overload, such as `aten::add.Tensor`.
        arguments: Names, in order.
        written: Names of the arguments that are written in place.
        outputs: Names of the `out=` arguments.
        returns: For each result the argument that it is, or None for a new one.
        generator: The name of the generator argument, or None.
        is_random: It draws random numbers.
        host_arguments: Names of the arguments that may be on the CPU.
        takes_numbers: An operand may be a tensor without dimensions on the CPU.
        host_results: Positions of results that stay on the CPU.
    """

    name: str
    arguments: tuple[str, ...]
    written: frozenset[str]
    outputs: frozenset[str]
    returns: tuple[str | None, ...]
    generator: str | None
    is_random: bool
    host_arguments: frozenset[str]
    takes_numbers: bool
    host_results: frozenset[int]


def plan_of(operator: Any) -> Plan:
    """Read an operator's schema."""
    schema = operator._schema
    written: set[str] = set()
    outputs: set[str] = set()
    by_alias: dict[str, str] = {}
    generator = None
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            (outputs if argument.is_out else written).add(argument.name)
            for mark in argument.alias_info.before_set:
                by_alias[mark] = argument.name
        if "Generator" in str(argument.type):
            generator = argument.name
    returns = []
    for result in schema.returns:
        marks = result.alias_info.before_set if result.alias_info is not None else ()
        returns.append(next((by_alias[mark] for mark in marks if mark in by_alias), None))
    return Plan(
        name=operator.name(),
        arguments=tuple(argument.name for argument in schema.arguments),
        written=frozenset(written),
        outputs=frozenset(outputs),
        returns=tuple(returns),
        generator=generator,
        is_random=torch.Tag.nondeterministic_seeded in operator.tags or operator.name() in _RANDOM,
        host_arguments=_HOST_ARGUMENTS.get(operator.name(), frozenset()),
        takes_numbers=torch.Tag.pointwise in operator.tags
        or any(part in operator.name() for part in _TAKE_NUMBERS),
        host_results=_HOST_RESULTS.get(operator.name(), frozenset()),
    )


class Call:
    """One call of an operator: its operands as CPU views, and the way back."""

    __slots__ = ("device", "fresh", "originals", "plan", "storages", "views")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device: torch.device | None = None
        self.originals: dict[int, Tensor] = {}  # by the address of the view's storage
        self.storages: dict[int, torch.UntypedStorage] = {}  # by address
        self.views: dict[int, Tensor] = {}  # by the id of the device tensor
        self.fresh: list[tuple[Tensor, Tensor]] = []  # out= arguments and what stands for them

    def find_device(self, values: Any) -> None:
        """Take the device of the first operand on a chip; two chips in one call are an error."""
        for value in values:
            kind = type(value)
            if kind is list or kind is tuple:
                self.find_device(value)
            elif isinstance(value, Tensor) and memory.is_device(value):
                if self.device is None:
                    self.device = value.device
                elif value.device != self.device:
                    raise wrong_device(self.plan.name, self.device, value.device)
            elif isinstance(value, torch.device) and value.type == memory.TYPE:
                self.device = self.device or value

    def lower(self, name: str, value: Any) -> Any:
        """An argument for the CPU kernel."""
        kind = type(value)
        if kind is int or kind is float or kind is bool or value is None:
            return value
        if isinstance(value, Tensor):
            return self.lower_tensor(name, value)
        if kind is list or kind is tuple:
            return [self.lower(name, item) for item in value]
        if isinstance(value, torch.device):
            return memory.CPU if value.type == memory.TYPE else value
        return value

    def lower_tensor(self, name: str, value: Tensor) -> Tensor:
        """A CPU view of a tensor argument; for an output a new tensor that may be resized."""
        if not memory.is_device(value):
            if self.may_be_elsewhere(name, value):
                return value
            raise wrong_device(self.plan.name, self.device, value.device)
        if name in self.plan.outputs:
            return self.lower_output(value)
        view = memory.host_view(value, self.storages)
        if name in self.plan.written and self.plan.name in _RESIZING:
            view = view.clone()
            self.fresh.append((value, view))
        if value.dtype in unsupported_dtypes:
            raise RuntimeError(
                f"{self.plan.name} does not support {value.dtype} on the simulated "
                f"{memory.npu().get_device_name()}: this chip does not compute in it"
            )
        self.originals[view.untyped_storage().data_ptr()] = value
        self.views[id(value)] = view
        return view

    def may_be_elsewhere(self, name: str, value: Tensor) -> bool:
        """Whether an operand that is not on a chip is legal there."""
        plan = self.plan
        if name in plan.written or name in plan.outputs:
            return False
        if value.device.type == "meta" or name in plan.host_arguments:
            return True
        if value.dim() == 0:
            return plan.takes_numbers
        # torch's way to say that an optional tensor is not given.
        return value.numel() == 0 and value.dim() == 1

    def lower_output(self, value: Tensor) -> Tensor:
        """What the CPU kernel writes for an output: a new tensor, as it may be resized.

        An output that shares memory with an input is a view, so that torch sees the overlap.
        """
        if id(value) in self.views:
            return self.views[id(value)]
        if value.numel() and self.originals:
            view = memory.host_view(value, self.storages)
            if view.untyped_storage().data_ptr() in self.originals:
                return view
        stand_in = torch.empty_strided(
            value.size(), value.stride(), dtype=value.dtype, device=memory.CPU
        )
        self.fresh.append((value, stand_in))
        return stand_in

    def lift(self, value: Any) -> Any:
        """A result of the CPU kernel as the caller shall see it."""
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                return value
            if value.layout == torch.sparse_coo:
                return self.lift_sparse(value)
            original = None
            if self.originals and value.numel():
                original = self.originals.get(value.untyped_storage().data_ptr())
            if original is not None:
                return _same_view(original, value)
            return memory.to_device(value, self.device or current_device())
        if isinstance(value, (list, tuple)):
            return [self.lift(item) for item in value]
        return value

    def lift_sparse(self, value: Tensor) -> Tensor:
        """A sparse result as torch_npu's own sparse tensor."""
        device = self.device or current_device()
        return torch.sparse_coo_tensor(
            memory.to_device(value._indices(), device),
            memory.to_device(value._values(), device),
            value.size(),
            is_coalesced=value.is_coalesced(),
            check_invariants=False,
        )


def _same_view(original: Tensor, view: Tensor) -> Tensor:
    """The part of `original` that a view of its memory shows."""
    geometry = (view.size(), view.stride(), view.storage_offset())
    lazy = (view.is_conj(), view.is_neg())
    if view.dtype == original.dtype and (*geometry, *lazy) == (
        original.size(), original.stride(), original.storage_offset(),
        original.is_conj(), original.is_neg(),
    ):  # fmt: skip
        return original
    if view.dtype != original.dtype:
        original = original.view(view.dtype)
    return memory.mark_lazy(original.as_strided(*geometry), view)


def current_device() -> torch.device:
    """The chip that torch's calling thread uses."""
    return torch.device(memory.TYPE, memory.npu().current_device())


def wrong_device(name: str, expected: torch.device | None, found: torch.device) -> RuntimeError:
    """The error for an operand that is elsewhere."""
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{expected or memory.TYPE} and {found}! ({name} on the simulated Ascend)"
    )


def make_kernel(
    operator: Any,
    compute: Kernel | None = None,
    adapt: Callable[[Plan, Kernel], Kernel] | None = None,
) -> Kernel:
    """The kernel of an operator for the simulated chip.

    Args:
        operator: A `torch._ops.OpOverload`.
        compute: What computes on CPU tensors, with the operator's arguments; by default the
            operator itself.
        adapt: Changes what computes; see `faithful.adapt`.
    """
    plan = plan_of(operator)
    run = operator if compute is None else compute
    if adapt is not None:
        run = adapt(plan, run)
    names = plan.arguments

    def kernel(*args: Any, **kwargs: Any) -> Any:
        memory.check_not_forked(plan.name)
        call = Call(plan)
        call.find_device(args)
        if kwargs:
            call.find_device(kwargs.values())
        lower = call.lower
        positional = [lower(names[i], value) for i, value in enumerate(args)]
        named = {name: lower(name, value) for name, value in kwargs.items()}
        if plan.is_random or plan.generator is not None:
            device = call.device or current_device()
            result = random.run(run, plan, device, positional, named)
        else:
            result = run(*positional, **named)
        for target, value in call.fresh:
            memory.refill(target, value)
        return _results(call, result, args, kwargs)

    kernel.__name__ = f"simulated {plan.name}"
    return kernel


def _results(call: Call, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Results in the schema's order: written arguments themselves, new ones on the device."""
    returns = call.plan.returns
    if len(returns) == 1:
        return _one(call, returns[0], result, args, kwargs)
    if not returns:
        return None
    host = call.plan.host_results
    return tuple(
        item if place in host else _one(call, name, item, args, kwargs)
        for place, (name, item) in enumerate(zip(returns, result, strict=True))
    )


def _one(
    call: Call, name: str | None, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if name is None:
        return call.lift(value)
    if name in kwargs:
        return kwargs[name]
    return args[call.plan.arguments.index(name)]
