"""One call on a CPU and on the simulated Ascend: the same bytes in, then results and gradients.

The rule of equality: the same dtype, shape and layout, and equal elements, NaN equal to NaN. Where
a rule gives a factor, `torch.testing.assert_close`'s tolerances for the dtype times the factor
hold; so they do, with factor 1, for a result that torch_npu made float32 where the CPU has float64.
Calls in which a kernel draws random numbers are held to dtype and shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from accel.simulate.operators import generic

NPU = torch.device("npu", 0)
CPU = torch.device("cpu")
Tree = tuple[Any, tuple[Any, ...], dict[str, Any]]  # input, args, kwargs
Function = Callable[[Tree], Any]


@dataclass(frozen=True)
class Rule:
    """How results are held to each other.

    Attributes:
        any_values: Only dtype and shape count.
        factor: Of the usual tolerances; 0 for equality.
        contiguous: The CPU gets contiguous operands.
        host_arguments: What follows the input stays on the host.
        host_results: A result may be on the host.
    """

    any_values: bool = False
    factor: float = 0
    contiguous: bool = False
    host_arguments: bool = False
    host_results: bool = False


@dataclass
class Recorder:
    """Which kernels of the simulated chip ran, and whether one draws random numbers."""

    names: set[str] = field(default_factory=set)
    is_random: bool = False

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Note the kernels that run inside, those that other kernels call included."""
        recorder = self

        class Call(generic.Call):
            def __init__(self, plan: generic.Plan) -> None:
                super().__init__(plan)
                recorder.names.add(plan.name)
                recorder.is_random |= plan.is_random

        with mock.patch.object(generic, "Call", Call):
            yield


@dataclass
class _Run:
    value: Any = None
    error: Exception | None = None
    gradients: list[Tensor | None] | None = None
    recorder: Recorder = field(default_factory=Recorder)


def compare(
    function: Function, tree: Tree, rule: Rule, formula: Function | None = None
) -> tuple[str | None, set[str]]:
    """Call a function on both devices.

    Args:
        function: What is called.
        tree: Its operands, on the CPU.
        rule: How the results are held to each other.
        formula: What the CPU computes instead, where it has no kernel.

    Returns:
        How the devices differ, in one line, or None; and the kernels that ran on the chip.
    """
    expected = _run(formula or function, _contiguous(tree) if rule.contiguous else tree, CPU, rule)
    found = _run(function, tree, NPU, rule)
    return _difference(expected, found, rule), found.recorder.names


def placed(tree: Tree, device: torch.device, rule: Rule) -> Tree:
    """A copy of the operands on a device, but for arguments that stay on the host."""
    if rule.host_arguments:
        args, kwargs = on(CPU, tree[1:])
        return on(device, tree[0]), args, kwargs
    moved: Tree = on(device, tree)
    return moved


def on(device: torch.device, tree: Any) -> Any:
    """A copy of a tree on a device: the same bytes, strides and sharing of memory."""
    storages: dict[int, torch.UntypedStorage] = {}

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _moved(value, device, storages)
        if isinstance(value, torch.device) and value.type == "cpu":
            return device
        if isinstance(value, torch.Generator):
            return torch.Generator(device).manual_seed(value.initial_seed())
        return str(device) if isinstance(value, str) and value == "cpu" else value

    return pytree.tree_map(move, tree)


def gradients(value: Any, leaves: list[Tensor]) -> list[Tensor | None] | None:
    """Gradients of all results for the leaves, from the same uneven weights on every device."""
    outputs = [
        leaf
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not outputs or not leaves:
        return None
    weights = [_weight(output) for output in outputs]
    return list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True))


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _run(function: Function, tree: Tree, device: torch.device, rule: Rule) -> _Run:
    run = _Run()
    operands = placed(tree, device, rule)
    found = tensors(operands)
    # An operator that makes a tensor from numbers makes it on the default device.
    default = contextlib.nullcontext() if found else torch.device(device)
    try:
        with run.recorder.recording():
            with default:
                run.value = function(operands)
            run.gradients = gradients(run.value, [leaf for leaf in found if leaf.requires_grad])
    # Whether an operator raises, and not what, is compared.
    except Exception as error:
        run.error = error
    return run


def _contiguous(tree: Any) -> Any:
    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        return value.detach().contiguous().requires_grad_(value.requires_grad)

    return pytree.tree_map(copied, tree)


def _moved(
    tensor: Tensor, device: torch.device, storages: dict[int, torch.UntypedStorage]
) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor
    if tensor.layout != torch.strided:
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)
    with torch.no_grad():
        # The bytes are those below the lazy conjugate and negative bits.
        is_conj, is_neg = tensor.is_conj(), tensor.is_neg()
        plain = tensor.detach()
        plain = plain.conj() if is_conj else plain
        plain = torch._neg_view(plain) if is_neg else plain
        storage = plain.untyped_storage()
        size, key = storage.nbytes(), storage.data_ptr()
        # All empty storages have one address and share nothing.
        if size == 0 or key not in storages or storages[key].nbytes() < size:
            raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
            fresh = torch.empty(size, dtype=torch.uint8, device=device)
            storages[key] = fresh.copy_(raw).untyped_storage()
        result = torch.empty(0, dtype=plain.dtype, device=device).set_(
            storages[key], plain.storage_offset(), plain.size(), plain.stride()
        )
        result = result.conj() if is_conj else result
        result = torch._neg_view(result) if is_neg else result
    return result.requires_grad_(tensor.requires_grad)


def _weight(output: Tensor) -> Tensor:
    values = (torch.arange(output.numel(), device=CPU, dtype=torch.float64) * 0.37).cos()
    return values.reshape(output.shape).to(output.dtype).to(output.device)


def _difference(expected: _Run, found: _Run, rule: Rule) -> str | None:
    if (expected.error is None) != (found.error is None):
        return f"CPU {_end(expected)}, NPU {_end(found)}"
    if expected.error is not None:
        return None
    any_values = rule.any_values or found.recorder.is_random
    for what in ("value", "gradients"):
        first = pytree.tree_leaves(getattr(expected, what))
        second = pytree.tree_leaves(getattr(found, what))
        if len(first) != len(second):
            return f"{what}: {len(second)} parts, not {len(first)}"
        for one, other in zip(first, second, strict=True):
            miss = _difference_of_leaf(one, other, any_values, rule)
            if miss:
                return f"{what}: {miss}"
    return None


def _end(run: _Run) -> str:
    if run.error is None:
        return "gives a result"
    return f"raises {type(run.error).__name__}: {' '.join(str(run.error).split())[:200]}"


def _difference_of_leaf(one: Any, other: Any, any_values: bool, rule: Rule) -> str | None:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        equal = type(one) is type(other) and (any_values or one == other or one != one)
        return None if equal else f"{other!r}, not {one!r}"
    factor = rule.factor
    if not rule.host_results and other.device.type != NPU.type and one.device.type == CPU.type:
        return f"on {other.device}"
    if one.dtype == torch.float64 and other.dtype == torch.float32:
        one, factor = one.to(torch.float32), max(factor, 1)
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return f"{_words(other)}, not {_words(one)}"
    if any_values or one.device.type == "meta":
        return None
    return _difference_of_elements(one.detach(), other.detach().cpu(), factor)


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} {tensor.layout}"


def _difference_of_elements(one: Tensor, other: Tensor, factor: float) -> str | None:
    one, other = _plain(one), _plain(other)
    if torch.equal(one, other):
        return None
    rtol, atol = torch.testing._comparison.default_tolerances(one, other)
    try:
        torch.testing.assert_close(
            other, one, rtol=factor * rtol, atol=factor * atol, equal_nan=True, check_stride=False
        )
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return None


def _plain(tensor: Tensor) -> Tensor:
    """Dense and of a dtype that torch can compare."""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.dtype == torch.complex32 else tensor
