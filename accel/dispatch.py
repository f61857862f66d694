"""From a request to the kernel that serves it.

The choice: the call's `backend` argument, then `with use_backend(...)`, then
`ACCEL_BACKEND=op=name,…`, then automatic: the kernel of highest priority that has no objection. A
kernel chosen by name runs or raises; it never falls back.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from accel.errors import BackendError
from accel_kernels import contrastive_loss, scaled_matmul, segmented_attention
from accel_kernels.spec import REFERENCE, KernelSpec, Operation, Request

ENTRY_POINT_GROUP = "accel.kernels"

_logger = logging.getLogger("accel")


class _Choices(threading.local):
    """What `use_backend` says in this thread."""

    choices: Mapping[str, str] = MappingProxyType({})


_local = _Choices()
_VARIABLE = "ACCEL_BACKEND"


@dataclass(frozen=True)
class Candidate:
    """One kernel's answer to a request.

    Attributes:
        name: The kernel.
        reasons: Why it cannot serve, or is not taken automatically; empty if nothing speaks
            against it.
        chosen: It is the one that runs.
    """

    name: str
    reasons: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True)
class Explanation:
    """Which kernel would serve a call, and why the others would not.

    Attributes:
        request: What was asked.
        chosen: The kernel's name; None if none can serve.
        how: By what it was chosen: `argument`, `use_backend`, `ACCEL_BACKEND` or `automatic`.
        candidates: Every kernel of the operation, by priority.
    """

    request: Request
    chosen: str | None
    how: str
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        dtype = str(self.request.dtype).removeprefix("torch.")
        head = f"{self.request.op} on {self.request.device} in {dtype}"
        lines = [f"{head}: {self.chosen or 'no kernel can serve this'} ({self.how})"]
        for candidate in self.candidates:
            verdict = "chosen" if candidate.chosen else "; ".join(candidate.reasons)
            lines.append(f"  {candidate.name:<12}{verdict or 'eligible, lower priority'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class KernelFailure:
    """A kernel plugin that could not be loaded: its entry point, error in a line, traceback."""

    name: str
    error: str
    traceback: str


_OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        segmented_attention.OPERATION,
        scaled_matmul.OPERATION,
        contrastive_loss.OPERATION,
    )
}
_failures: list[KernelFailure] = []
# Choices, by request or by call; bounded, since sequence lengths are part of either.
_memo: dict[tuple[Any, ...], Any] = {}
_MEMO_SIZE = 4096
# `os.environ` without its conversions, which take longer than all else that a memo is asked by.
_variables: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_encoded: Any = os.environ.encodekey(_VARIABLE) if _variables is not os.environ else _VARIABLE
_logged: set[tuple[str, str, str]] = set()


def backends(op: str | None = None) -> list[KernelSpec]:
    """The kernels of one operation, or of all, by priority.

    Raises:
        ValueError: No such operation.
    """
    names = [op] if op is not None else list(_OPERATIONS)
    return [spec for name in names for spec in _by_priority(_operation(name))]


def failures() -> list[KernelFailure]:
    """The kernel plugins that could not be loaded, with their tracebacks."""
    return list(_failures)


@contextlib.contextmanager
def use_backend(**choices: str) -> Iterator[None]:
    """Choose kernels by name inside the block, in this thread: `use_backend(op="name")`.

    Raises:
        ValueError: An operation or a kernel is unknown.
    """
    for op, name in choices.items():
        _spec(op, name)
    before = _local.choices
    _local.choices = {**before, **choices}
    try:
        yield
    finally:
        _local.choices = before


def explain(op: str, *args: Any, backend: str | None = None, **kwargs: Any) -> Explanation:
    """Say which kernel a call would take and why the others would not.

    Args:
        op: The operation, e.g. `segmented_attention`.
        *args: The call's own arguments; nothing is computed.
        backend: As in the call.
        **kwargs: The call's own keyword arguments.

    Raises:
        ValueError: No such operation or kernel, or arguments that the operation itself refuses.
    """
    operation = _operation(op)
    return explain_request(operation, operation.request(*args, **kwargs), backend)


def kernel_for(request: Request, backend: str | None = None) -> Callable[..., Any]:
    """The kernel that serves `request`.

    Args:
        request: What is asked.
        backend: A kernel's name, or None to let the context, the environment or the priority
            decide.

    Raises:
        ValueError: No kernel has that name.
        BackendError: The named kernel cannot serve, or none can; with the reasons of each.
    """
    return chosen_for(request, backend)[1]


def chosen_for(request: Request, backend: str | None = None) -> tuple[str, Callable[..., Any]]:
    """As `kernel_for`: the name of the kernel that serves `request`, and the kernel."""
    if torch.compiler.is_compiling():
        # The memo would be a global that the traced code writes and is guarded on.
        spec = _choose(request, backend)
        return spec.name, spec.load()
    key = (request, backend, *choice_in_force(request.op))
    found: tuple[str, Callable[..., Any]] | None = remembered(key)
    if found is None:
        spec = _choose(request, backend)
        _log_skipped(request, spec)
        found = spec.name, spec.load()
        remember(key, found)
    return found


def remembered(key: tuple[Any, ...]) -> Any:
    """The answer to a question that was asked before; None if it was not, or is forgotten."""
    return _memo.get(key)


def remember(key: tuple[Any, ...], answer: Any) -> None:
    """Keep an answer that follows from the kernels there are, for who asks the same again."""
    if len(_memo) >= _MEMO_SIZE:
        _memo.clear()
    _memo[key] = answer


def choice_in_force(op: str) -> tuple[str | None, Any]:
    """What `use_backend` says of an operation here and the environment of all, or None."""
    return _local.choices.get(op), _variables.get(_encoded)


def _choose(request: Request, backend: str | None) -> KernelSpec:
    named, how = _named(request.op, backend)
    if named is not None:
        spec = _spec(request.op, named)
        reasons = spec.why_not(request)
        if reasons:
            raise BackendError(_refusal(request, named, how, reasons))
        return spec
    for spec in _by_priority(_operation(request.op)):
        if not spec.why_not(request) and not spec.not_proven(request):
            return spec
    raise BackendError(
        f"no kernel can serve this call.\n{explain_request(_operation(request.op), request, None)}"
    )


def _refusal(request: Request, named: str, how: str, reasons: list[str]) -> str:
    able = [spec.name for spec in _by_priority(_operation(request.op)) if not spec.why_not(request)]
    instead = f"; these can: {', '.join(able)}" if able else "; no other kernel can either"
    return (
        f"{request.op}: backend {named!r} (chosen by {how}) cannot serve this call: "
        f"{'; '.join(reasons)}{instead}. Accel never replaces a named backend by another."
    )


def _named(op: str, backend: str | None) -> tuple[str | None, str]:
    if backend is not None:
        return backend, "argument"
    if op in _local.choices:
        return _local.choices[op], "use_backend"
    variable = os.environ.get(_VARIABLE)
    if variable:
        named = _parse(variable).get(op)
        if named is not None:
            return named, "ACCEL_BACKEND"
    return None, "automatic"


def _parse(variable: str) -> dict[str, str]:
    choices = {}
    for item in variable.split(","):
        op, separator, name = item.strip().partition("=")
        if not separator or not op or not name:
            raise ValueError(
                f"ACCEL_BACKEND={variable!r} is not understood: write op=name,op=name, for example "
                "ACCEL_BACKEND=segmented_attention=reference"
            )
        _spec(op, name)
        choices[op] = name
    return choices


def explain_request(operation: Operation, request: Request, backend: str | None) -> Explanation:
    """As `explain`, of a request that has been made already."""
    named, how = _named(operation.name, backend)
    if named is not None:
        _spec(operation.name, named)
    chosen: str | None = None
    answers = []
    for spec in _by_priority(operation):
        reasons = spec.why_not(request)
        if named is None:
            reasons = reasons or spec.not_proven(request)
        elif spec.name != named:
            reasons = [*reasons, f"{named} is chosen by {how}"]
        if chosen is None and not reasons:
            chosen = spec.name
        answers.append(Candidate(spec.name, tuple(reasons), chosen == spec.name))
    return Explanation(request, chosen, how, tuple(answers))


def _operation(name: str) -> Operation:
    operation = _OPERATIONS.get(name)
    if operation is None:
        raise ValueError(f"no operation is called {name!r}; there are: {', '.join(_OPERATIONS)}")
    return operation


def _spec(op: str, name: str) -> KernelSpec:
    specs = _by_priority(_operation(op))
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in specs)
    raise ValueError(f"{op} has no backend called {name!r}; there are: {known}")


def _by_priority(operation: Operation) -> list[KernelSpec]:
    # The reference is last whatever a plugin's priority is.
    return sorted(operation.specs, key=lambda spec: (spec.name == REFERENCE, -spec.priority))


def _log_skipped(request: Request, chosen: KernelSpec) -> None:
    for spec in _by_priority(_operation(request.op)):
        if spec.name == chosen.name:
            return
        reasons = "; ".join(spec.why_not(request) or spec.not_proven(request))
        if reasons and (request.op, spec.name, reasons) not in _logged:
            _logged.add((request.op, spec.name, reasons))
            _logger.info("%s: %s is skipped: %s", request.op, spec.name, reasons)


def _add_plugins() -> None:
    """Take in the kernels of other packages; one that fails is kept and breaks nothing."""
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            _add(entry_point.load())
        # Third-party code: whatever it raises must not break those who do not use it.
        except (Exception, SystemExit) as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            text = "".join(traceback.format_exception(error))
            _failures.append(KernelFailure(entry_point.name, line, text))
            _logger.warning(
                "the kernel plugin %r failed and is left out: %s; run `accel doctor`",
                entry_point.name,
                line,
            )


def _add(spec: object) -> None:
    if not isinstance(spec, KernelSpec):
        raise TypeError(f"an {ENTRY_POINT_GROUP} entry point names a KernelSpec, not {spec!r}")
    operation = _operation(spec.op)
    if any(present.name == spec.name for present in operation.specs):
        raise ValueError(f"{spec.op} already has a backend called {spec.name!r}")
    _OPERATIONS[spec.op] = Operation(operation.name, operation.request, (*operation.specs, spec))


# At import, because looking for plugins does not trace and a first call may come from a traced one.
_add_plugins()
