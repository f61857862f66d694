"""The contract between kernels and dispatch: what is asked for, and what a kernel can do.

A kernel declares its capability as data and answers `why_not`; it is never tried out to see whether
it fails. Everything here is plain data and plain Python, so that the path from a call to its kernel
traces under `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from accel_kernels.budgets import FACTOR

REFERENCE = "reference"


class Request(NamedTuple):
    """One call, reduced to what decides which kernel can serve it. Hashable.

    Attributes:
        op: The operation's name.
        device: torch device type of the tensors.
        dtype: Of the tensors that are multiplied.
        features: What the call uses beyond the plain case, by the operation's own names.
        sizes: Named sizes, which kernels may limit.
        needs_grad: A gradient will be wanted.
        deterministic: `torch.use_deterministic_algorithms` is on.
    """

    op: str
    device: str
    dtype: torch.dtype
    features: frozenset[str]
    sizes: tuple[tuple[str, int], ...]
    needs_grad: bool
    deterministic: bool = False


@dataclass(frozen=True)
class KernelSpec:
    """What one kernel can do.

    Attributes:
        op: The operation it implements.
        name: How users choose it: `backend="name"`.
        load: Imports and returns the kernel: a function holding a plain import statement.
        devices: torch device types it runs on; empty for any.
        dtypes: Dtypes it takes.
        priority: The automatic choice takes the highest that can serve; the reference is last.
        features: What it supports of the operation's features.
        lacks: By device type, the features and dtypes that it does not have there.
        limits: Least and greatest value of named sizes, both included.
        worth: By dtype, the least value of named sizes from which it is taken automatically:
            below, another kernel is as quick. Traced code, which serves many sizes, takes it for
            all.
        requires: Modules that must be installed.
        absent: Says why this machine cannot run it in a dtype, or None if it can; asked once, when
            nothing else speaks against it.
        differentiable: It has a backward.
        deterministic: The same inputs give the same bits.
        proven_on: Device types on whose real hardware it has been run. Elsewhere it is "not yet
            run" and only taken when named.
        is_plain: It calls torch's own operators and nothing else: like the reference, it needs no
            proof on each device.
        tolerance: It may be this many times as far from float64 as an independent implementation.
    """

    op: str
    name: str
    load: Callable[[], Callable[..., Any]]
    dtypes: frozenset[torch.dtype]
    priority: int = 0
    devices: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    lacks: Mapping[str, frozenset[Any]] = field(default_factory=dict, hash=False)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    worth: Mapping[torch.dtype, Mapping[str, int]] = field(default_factory=dict, hash=False)
    requires: tuple[str, ...] = ()
    absent: Callable[[torch.dtype], str | None] | None = None
    differentiable: bool = True
    deterministic: bool = True
    proven_on: frozenset[str] = frozenset()
    is_plain: bool = False
    tolerance: float = FACTOR
    # Looked up once, when the spec is made: a search for modules does not trace.
    missing: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        missing = tuple(m for m in self.requires if importlib.util.find_spec(m) is None)
        object.__setattr__(self, "missing", missing)
        object.__setattr__(self, "limits", MappingProxyType(dict(self.limits)))
        object.__setattr__(self, "lacks", MappingProxyType(dict(self.lacks)))
        object.__setattr__(self, "worth", MappingProxyType(dict(self.worth)))

    def why_not(self, request: Request) -> list[str]:
        """Every reason why this kernel cannot serve `request`; empty if it can."""
        reasons = []
        if self.devices and request.device not in self.devices:
            reasons.append(f"runs on {_list(self.devices)}, not on {request.device}")
        absent = self.lacks.get(request.device, frozenset())
        if request.dtype not in self.dtypes - absent:
            reasons.append(f"takes {_list(self.dtypes - absent)}, not {_name(request.dtype)}")
        lacking = request.features - (self.features - absent)
        if lacking:
            reasons.append(f"does not support {_list(lacking)}")
        for name, size in request.sizes:
            if name in self.limits:
                least, most = self.limits[name]
                if size < least or size > most:
                    reasons.append(f"needs {name} from {least} to {most}, not {size}")
        if self.missing:
            reasons.append(f"needs {', '.join(self.missing)}, not installed")
        if request.needs_grad and not self.differentiable:
            reasons.append("has no backward")
        if request.deterministic and not self.deterministic:
            reasons.append("is not deterministic")
        if not reasons and self.absent is not None and (reason := self.absent(request.dtype)):
            reasons.append(reason)
        return reasons

    def not_proven(self, request: Request) -> list[str]:
        """Why it is not taken automatically though it could serve; empty if it may be.

        The reference is plain PyTorch and always eligible.
        """
        if self.name == REFERENCE:
            return []
        reasons = []
        if not self.is_plain and request.device not in self.proven_on:
            reasons.append(f"not yet run on real {request.device} hardware")
        if torch.compiler.is_compiling():
            return reasons  # a size may be a symbol, which a comparison would tie to one side
        worth = self.worth.get(request.dtype, {})
        for name, size in request.sizes:
            if size < worth.get(name, 0):
                reasons.append(f"is worth it from {name} {worth[name]} on, not at {size}")
        return reasons


@dataclass(frozen=True)
class Operation:
    """An operation with all its kernels.

    Attributes:
        name: Its public name.
        request: Checks a call's arguments and reduces them to a `Request`.
        specs: Its kernels, in any order.
    """

    name: str
    request: Callable[..., Request]
    specs: tuple[KernelSpec, ...]


def _name(item: object) -> str:
    return str(item).removeprefix("torch.")


def _list(items: frozenset[Any]) -> str:
    return ", ".join(sorted(_name(item) for item in items))
