"""PyTorch's own OpInfo samples on the simulated Ascend and on the CPU, and where they may differ.

A pair is one OpInfo and one dtype. For every sample, and for its non-contiguous form, both devices
get the same bytes with the same strides, and then must give the same: results of the operator, of
its `out=` and in-place forms, gradients, and, for the OpInfo's error cases, whether it raises.

The rule of equality: the same dtype and shape and equal elements, NaN equal to NaN. The operators of
`ROUNDED` take another algorithm on the device; there `torch.testing.assert_close`'s tolerances for
the dtype hold. Operators that draw random numbers, found by their tag, are held to shape and dtype.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.testing._internal.common_methods_invocations as invocations
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from accel.simulate.operators import generic
from tests.ascend.opinfo_expected import (
    FALLS_BACK,
    ROUNDED,
    STRIDED_OUT_BREAKS_TORCH,
    UNWRITTEN,
)

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float64,
)
NPU = torch.device("npu", 0)
CPU = torch.device("cpu")
_DATABASES = ("op_db", "foreach_unary_op_db", "foreach_binary_op_db", "foreach_pointwise_op_db",
              "foreach_reduce_op_db", "foreach_other_op_db")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One OpInfo and one dtype."""

    info: Any
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Such as `linalg.norm[subgradients_at_zero] float32`."""
        return f"{operator_name(self.info)} {str(self.dtype).removeprefix('torch.')}"


@dataclass
class Outcome:
    """What the comparison of a pair found.

    Attributes:
        samples: Calls compared, forms and error cases included.
        misses: Each difference in one line.
        reached: Operators that the device ran, by full name.
    """

    samples: int = 0
    misses: list[str] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)


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


class Dispatched(TorchDispatchMode):
    """Notes the operators that come out of autograd: torch_npu's own kernels too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def operator_name(info: Any) -> str:
    """The OpInfo's name and variant."""
    variant = info.variant_test_name
    return f"{info.name}[{variant}]" if variant else str(info.name)


def pairs() -> list[Pair]:
    """Every OpInfo with every dtype of `DTYPES` that it has on a CPU, in torch's order."""
    infos = [info for name in _DATABASES for info in getattr(invocations, name)]
    return [
        Pair(info, dtype)
        for info in infos
        for dtype in DTYPES
        if dtype in info.supported_dtypes("cpu")
    ]


def sampled_pairs() -> list[Pair]:
    """One pair of each OpInfo, its dtype chosen by a checksum of its name."""
    by_info: dict[int, list[Pair]] = {}
    for pair in pairs():
        by_info.setdefault(id(pair.info), []).append(pair)
    return [
        found[zlib.crc32(operator_name(found[0].info).encode()) % len(found)]
        for found in by_info.values()
    ]


def check(pair: Pair, most_samples: int | None = None) -> Outcome:
    """Compare a pair on both devices.

    Args:
        pair: What to compare.
        most_samples: Take that many of its samples, evenly spread; by default all.
    """
    outcome = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for index, (label, sample) in enumerate(_spread(list(_samples(pair)), most_samples)):
            if index == 0:
                outcome.reached |= _dispatched(pair.info, sample)
            for form, function in _forms(pair, sample):
                _compare(pair, f"{label} {form}", function, sample, outcome)
        if pair.dtype == _first_dtype(pair.info):
            _compare_errors(pair, outcome, most_samples)
    return outcome


# --- samples and forms ----------------------------------------------------------------------------

Tree = tuple[Any, tuple[Any, ...], dict[str, Any]]  # input, args, kwargs


def _first_dtype(info: Any) -> torch.dtype:
    return next(dtype for dtype in DTYPES if dtype in info.supported_dtypes("cpu"))


def _has_gradient(pair: Pair) -> bool:
    info = pair.info
    return bool(info.supports_autograd) and pair.dtype in info.supported_backward_dtypes("cpu")


def _samples(pair: Pair) -> Iterator[tuple[str, Tree]]:
    needs_grad = _has_gradient(pair)
    found = pair.info.sample_inputs("cpu", pair.dtype, requires_grad=needs_grad)
    for index, sample in enumerate(found):
        yield f"sample {index}", _tree(sample)
        with contextlib.suppress(NotImplementedError, RuntimeError):
            yield f"sample {index} non-contiguous", _tree(sample.noncontiguous())


def _tree(sample: Any) -> Tree:
    return sample.input, tuple(sample.args), dict(sample.kwargs)


def _spread(items: list[Any], most: int | None) -> list[Any]:
    if most is None or len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def _forms(pair: Pair, sample: Tree) -> Iterator[tuple[str, Callable[[Tree], Any]]]:
    info = pair.info
    yield "", lambda tree: info.op(tree[0], *tree[1], **tree[2])
    inplace = info.inplace_variant
    if inplace is not None and isinstance(sample[0], (Tensor, list)):
        yield "in place", lambda tree: inplace(_cloned(tree[0]), *tree[1], **tree[2])
    if getattr(info, "supports_out", False) and "out" not in sample[2]:
        yield "out", lambda tree: _with_out(info, tree)


def _with_out(info: Any, tree: Tree) -> Any:
    """Results in given tensors: an empty one, then one of the right size whose strides are odd."""
    with torch.no_grad():
        value = info.op(tree[0], *tree[1], **tree[2])
        single = isinstance(value, Tensor)
        results = [value] if single else list(value)
        found = []
        strided = operator_name(info) not in STRIDED_OUT_BREAKS_TORCH
        for prepare in (_empty, _transposed) if strided else (_empty,):
            out = [prepare(result) for result in results]
            returned = info.op(
                tree[0], *tree[1], **tree[2], out=out[0] if single else type(value)(out)
                if type(value) in (list, tuple) else tuple(out)
            )
            found.append((returned, out))
    return found


def _empty(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device=like.device)


def _transposed(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[::-1], dtype=like.dtype, device=like.device).permute(
        *range(like.dim() - 1, -1, -1)
    )


def _cloned(value: Any) -> Any:
    if isinstance(value, list):
        return [item.clone() for item in value]
    return value.clone()


def on(device: torch.device, tree: Any) -> Any:
    """A copy of a tree on a device: the same bytes, strides and sharing of memory."""
    storages: dict[int, Any] = {}

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _moved(value, device, storages)
        if isinstance(value, torch.device) and value.type == "cpu":
            return device
        return str(device) if value == "cpu" and isinstance(value, str) else value

    return pytree.tree_map(move, tree)


def _dispatched(info: Any, sample: Tree) -> set[str]:
    dispatched = Dispatched()
    tree = on(NPU, sample)
    # Whether it raises is compared elsewhere.
    with contextlib.suppress(Exception), dispatched:
        info.op(tree[0], *tree[1], **tree[2])
    return dispatched.names


def _contiguous(tree: Any) -> Any:
    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        return value.detach().contiguous().requires_grad_(value.requires_grad)

    return pytree.tree_map(copied, tree)


def _moved(tensor: Tensor, device: torch.device, storages: dict[int, Any]) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor
    if tensor.layout != torch.strided:
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)
    with torch.no_grad():
        flags = tensor.is_conj(), tensor.is_neg()
        plain = tensor.detach()
        if flags[0]:
            plain = plain.conj()
        if flags[1]:
            plain = torch._neg_view(plain)
        storage = plain.untyped_storage()
        key = storage.data_ptr()
        if key not in storages or storages[key].nbytes() < storage.nbytes():
            raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
            fresh = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
            storages[key] = fresh.copy_(raw).untyped_storage()
        result = torch.empty(0, dtype=plain.dtype, device=device).set_(
            storages[key], plain.storage_offset(), plain.size(), plain.stride()
        )
        if flags[0]:
            result = result.conj()
        if flags[1]:
            result = torch._neg_view(result)
    return result.requires_grad_(tensor.requires_grad)


# --- comparison -----------------------------------------------------------------------------------


@dataclass
class _Run:
    value: Any = None
    error: Exception | None = None
    gradients: list[Tensor | None] | None = None
    recorder: Recorder = field(default_factory=Recorder)


def _run(function: Callable[[Tree], Any], sample: Tree, device: torch.device) -> _Run:
    run = _Run()
    tree = on(device, sample)
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    # An operator that makes a tensor from numbers makes it on the default device.
    default = contextlib.nullcontext() if tensors else torch.device(device)
    try:
        with run.recorder.recording(), default:
            run.value = function(tree)
        if leaves:
            run.gradients = _gradients(run, leaves)
    # Which errors an operator raises is what is compared.
    except Exception as error:
        run.error = error
    return run


def _gradients(run: _Run, leaves: list[Tensor]) -> list[Tensor | None] | None:
    outputs = [
        leaf
        for leaf in pytree.tree_leaves(run.value)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not outputs:
        return None
    weights = [_weight(output) for output in outputs]
    with run.recorder.recording():
        return list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True))


def _weight(output: Tensor) -> Tensor:
    """The same uneven cotangent on every device."""
    count = output.numel()
    values = (torch.arange(count, device=CPU, dtype=torch.float64) * 0.37).cos()
    return values.reshape(output.shape).to(output.dtype).to(output.device)


def _compare(
    pair: Pair, label: str, function: Callable[[Tree], Any], sample: Tree, outcome: Outcome
) -> None:
    plain = _contiguous(sample) if operator_name(pair.info) in FALLS_BACK else sample
    expected = _run(function, plain, CPU)
    found = _run(function, sample, NPU)
    outcome.samples += 1
    outcome.reached |= found.recorder.names
    miss = _difference(pair, expected, found)
    if miss:
        outcome.misses.append(f"{label}: {miss}")


def _difference(pair: Pair, expected: _Run, found: _Run) -> str | None:
    if (expected.error is None) != (found.error is None):
        return f"CPU {_outcome(expected)}, NPU {_outcome(found)}"
    if expected.error is not None:
        return None
    name = operator_name(pair.info)
    only_shape = found.recorder.is_random or name in UNWRITTEN
    close = name in ROUNDED
    miss = _difference_of(expected.value, found.value, only_shape, close)
    if miss:
        return f"result {miss}"
    miss = _difference_of(expected.gradients, found.gradients, only_shape, close)
    return f"gradient {miss}" if miss else None


def _outcome(run: _Run) -> str:
    if run.error is None:
        return "gives a result"
    return f"raises {type(run.error).__name__}: {str(run.error).splitlines()[0][:200]}"


def _difference_of(expected: Any, found: Any, only_shape: bool, close: bool) -> str | None:
    first, second = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    if len(first) != len(second):
        return f"has {len(second)} parts, not {len(first)}"
    for one, other in zip(first, second, strict=True):
        miss = _difference_of_leaf(one, other, only_shape, close)
        if miss:
            return miss
    return None


def _difference_of_leaf(one: Any, other: Any, only_shape: bool, close: bool) -> str | None:
    if not isinstance(one, Tensor):
        same = type(one) is type(other) and (only_shape or one == other or one != one)
        return None if same else f"is {other!r}, not {one!r}"
    if not isinstance(other, Tensor):
        return f"is {type(other).__name__}, not a tensor"
    if other.device.type != "npu" and one.device.type == "cpu":
        return f"is on {other.device}"
    if one.dtype == torch.float64 and other.dtype == torch.float32:
        one, close = one.to(torch.float32), True
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"is {other.dtype}{list(other.shape)}, not {one.dtype}{list(one.shape)}"
    if one.layout != other.layout:
        return f"is {other.layout}, not {one.layout}"
    if only_shape or one.device.type == "meta":
        return None
    return _difference_of_elements(one.detach(), other.detach().cpu(), close)


def _difference_of_elements(one: Tensor, other: Tensor, close: bool) -> str | None:
    if one.dtype == torch.complex32:
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    if one.is_quantized:
        one, other = one.int_repr(), other.int_repr()
    if torch.equal(one, other):
        return None
    tolerance = {} if close else {"rtol": 0, "atol": 0}
    try:
        torch.testing.assert_close(other, one, equal_nan=True, check_stride=False, **tolerance)
    except AssertionError as error:
        return "differs: " + " ".join(str(error).split())[:300]
    return None


def _compare_errors(pair: Pair, outcome: Outcome, most: int | None) -> None:
    if pair.info.error_inputs_func is None:
        return
    for index, case in enumerate(_spread(list(pair.info.error_inputs("cpu")), most)):
        sample = _tree(case.sample_input)
        _compare(
            pair,
            f"error case {index}",
            lambda tree: pair.info.op(tree[0], *tree[1], **tree[2]),
            sample,
            outcome,
        )
