"""PyTorch's own OpInfo samples on the simulated Ascend and on the CPU.

A pair is one OpInfo and one dtype. Every sample, and its non-contiguous form, is called on both
devices: the operator, its `out=` and in-place forms, gradients, and the OpInfo's error cases.
`opinfo_compare` states what must be equal, `opinfo_expected` where it cannot be and why.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.testing._internal.common_methods_invocations as invocations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ascend.opinfo_compare import NPU, Function, Rule, Tree, compare, placed
from tests.ascend.opinfo_expected import (
    ANY_VALUES,
    DEVIATIONS,
    FALLS_BACK,
    HOST_ARGUMENTS,
    NO_OUT,
    NO_STRIDED_OUT,
    ROUNDED,
)

# Importing torch's test modules forbids setting its backends' flags for the rest of the process.
_backends = torch.backends.disable_global_flags.__globals__
_backends["__allow_nonbracketed_mutation_flag"] = True

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float64,
)
_DATABASES = (
    "op_db",
    "foreach_unary_op_db",
    "foreach_binary_op_db",
    "foreach_pointwise_op_db",
    "foreach_reduce_op_db",
    "foreach_other_op_db",
)


@dataclass(frozen=True)
class Pair:
    """One OpInfo and one dtype."""

    info: Any
    dtype: torch.dtype

    @property
    def operator(self) -> str:
        """The OpInfo's name and variant, such as `linalg.norm[subgradients_at_zero]`."""
        variant = self.info.variant_test_name
        return f"{self.info.name}[{variant}]" if variant else str(self.info.name)

    @property
    def name(self) -> str:
        """Such as `linalg.norm[subgradients_at_zero] float32`."""
        return f"{self.operator} {str(self.dtype).removeprefix('torch.')}"

    @property
    def rule(self) -> Rule:
        """How its results are held to each other."""
        name = self.operator
        return Rule(
            any_values=name in ANY_VALUES,
            factor=ROUNDED[name][0] if name in ROUNDED else 0,
            contiguous=name in FALLS_BACK,
            host_arguments=name in HOST_ARGUMENTS,
        )


@dataclass
class Outcome:
    """What the comparison of a pair found.

    Attributes:
        calls: Calls compared, forms and error cases included.
        misses: Each difference in one line.
        deviations: Those that `DEVIATIONS` explains, with the reason.
        reached: Operators that the device ran, by full name.
    """

    calls: int = 0
    misses: list[str] = field(default_factory=list)
    deviations: dict[str, str] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)


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
    by_info: dict[str, list[Pair]] = {}
    for pair in pairs():
        by_info.setdefault(pair.operator, []).append(pair)
    return [
        found[zlib.crc32(operator.encode()) % len(found)] for operator, found in by_info.items()
    ]


def recording_pairs() -> list[Pair]:
    """Of each OpInfo its first dtype, and int64: their calls show operands for other overloads."""
    return [pair for pair in pairs() if pair.dtype in (_first_dtype(pair.info), torch.int64)]


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
        for index, (label, tree) in enumerate(spread(list(samples(pair)), most_samples)):
            if index == 0:
                outcome.reached |= _dispatched(pair, tree)
            for form, function in _forms(pair, tree):
                _compare(pair, f"{label} {form}".strip(), function, tree, outcome)
        if pair.dtype == _first_dtype(pair.info) and pair.info.error_inputs_func is not None:
            for index, case in enumerate(pair.info.error_inputs("cpu")):
                tree = _tree(case.sample_input)
                _compare(pair, f"error case {index}", _called(pair), tree, outcome)
    return outcome


def samples(pair: Pair) -> Iterator[tuple[str, Tree]]:
    """The OpInfo's samples with what each is called; they ask for gradients where it has them."""
    info = pair.info
    needs_grad = bool(info.supports_autograd) and pair.dtype in info.supported_backward_dtypes(
        "cpu"
    )
    for index, sample in enumerate(info.sample_inputs("cpu", pair.dtype, requires_grad=needs_grad)):
        yield f"sample {index}", _tree(sample)
        # A sample whose form is fixed, a sparse one for instance, has no such form.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            yield f"sample {index} non-contiguous", _tree(sample.noncontiguous())


def spread(items: list[Any], most: int | None) -> list[Any]:
    """At most so many of the items, evenly spread."""
    if most is None or len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def _compare(pair: Pair, label: str, function: Function, tree: Tree, outcome: Outcome) -> None:
    miss, reached = compare(function, tree, pair.rule)
    outcome.calls += 1
    outcome.reached |= reached
    if miss is None:
        return
    text = f"{label}: {miss}"
    reason = next((item.reason for item in DEVIATIONS if item.explains(pair.operator, text)), None)
    if reason is None:
        outcome.misses.append(text)
    else:
        outcome.deviations[text] = reason


class _Dispatched(TorchDispatchMode):
    """Notes the operators that come out of autograd: those that are torch_npu's own too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def _dispatched(pair: Pair, tree: Tree) -> set[str]:
    dispatched, operands = _Dispatched(), placed(tree, NPU, pair.rule)
    # Whether it raises is compared elsewhere.
    with contextlib.suppress(Exception), dispatched:
        _called(pair)(operands)
    return dispatched.names


def _first_dtype(info: Any) -> torch.dtype:
    return next(dtype for dtype in DTYPES if dtype in info.supported_dtypes("cpu"))


def _tree(sample: Any) -> Tree:
    return sample.input, tuple(sample.args), dict(sample.kwargs)


def _called(pair: Pair) -> Function:
    return lambda tree: pair.info.op(tree[0], *tree[1], **tree[2])


def _forms(pair: Pair, tree: Tree) -> Iterator[tuple[str, Function]]:
    info = pair.info
    yield "", _called(pair)
    inplace = info.inplace_variant
    if inplace is not None and isinstance(tree[0], (Tensor, list)):
        yield "in place", lambda tree: inplace(_cloned(tree[0]), *tree[1], **tree[2])
    if getattr(info, "supports_out", False) and not ("out" in tree[2] or pair.operator in NO_OUT):
        yield "out", lambda tree: _with_out(pair, tree)


def _with_out(pair: Pair, tree: Tree) -> Any:
    """Results in given tensors: an empty one, then one of the right size with other strides."""
    prepared = (_empty,) if pair.operator in NO_STRIDED_OUT else (_empty, _transposed)
    found = []
    with torch.no_grad():
        value = _called(pair)(tree)
        for prepare in prepared:
            out = _prepared(value, prepare)
            found.append((pair.info.op(tree[0], *tree[1], **tree[2], out=out), out))
    return found


def _prepared(value: Any, prepare: Any) -> Any:
    if isinstance(value, Tensor):
        return prepare(value)
    out = [prepare(item) for item in value]
    return out if isinstance(value, list) else tuple(out)


def _empty(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device=like.device)


def _transposed(like: Tensor) -> Tensor:
    reversed_ = torch.zeros(like.shape[::-1], dtype=like.dtype, device=like.device)
    return reversed_.permute(*range(like.dim() - 1, -1, -1))


def _cloned(value: Any) -> Any:
    return [item.clone() for item in value] if isinstance(value, list) else value.clone()
