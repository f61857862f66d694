"""Where the float64 truth of an operator comes from, by the operator's name.

In this order: what was registered; the formulas here; the references of accel_kernels, of a
vendor's operators and of its own; torch's own operators in float64 on the CPU. A library's operator
is never its own reference: what is wrong in float32 is wrong in float64 too. Of several kernels of
one operator another is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from accel.numerics.replaying.admission import admit
from accel.numerics.replaying.calls import (
    Call,
    Function,
    Given,
    Results,
    overload_of,
    results_of,
    tensors_in,
)
from accel.numerics.replaying.operators import why_nothing_to_check
from accel.numerics.replaying.refusals import CannotReplayError
from accel_kernels import references as own

# From the arguments in float64 and what the run produced (a dropout's mask): the outputs, or None
# where there is nothing to check.
Formula = Callable[[Mapping[str, Given], Results], Sequence[Tensor | None]]

_REGISTERED: dict[str, Function] = {}
_OF_TORCH = ("aten::", "prims::")  # whose float64 kernels are their reference


def register_reference(name: str, function: Function) -> None:
    """Register the float64 reference of an operator that torch's CPU does not have, or replace it.

        register_reference("npu::npu_rms_norm", my_rms_norm)

    Args:
        name: The operator's full name, with its overload unless that is the default:
            `npu::npu_rms_norm`, `mylib::scale.out`.
        function: Takes the operator's arguments by the names of its schema, floating-point tensors
            in float64 on the CPU, and returns what the operator returns; arguments that the
            operator writes to are copies and are to be written to.

    Raises:
        ValueError: `name` has no namespace.
        TypeError: `function` cannot be called.
    """
    if not all(name.partition("::")):
        raise ValueError(f"{name!r} is no operator's name; give one like npu::npu_rms_norm")
    if not callable(function):
        raise TypeError(f"the reference of {name} must be a function, not {type(function)}")
    _REGISTERED[name] = function


def replayer(call: Call, recorded: Results) -> Callable[[Mapping[str, Given]], Results]:
    """What makes a call in float64.

    Args:
        call: The call.
        recorded: What the run produced, for formulas that need its random mask.

    Raises:
        CannotReplayError: The operator has no reference, with the reason.
    """
    full = call.name if call.overload == "default" else f"{call.name}.{call.overload}"
    registered = _REGISTERED.get(full)
    if registered is not None:
        return functools.partial(results_of, registered, call)
    formula = _formulas().get(call.name)
    if formula is not None:
        return functools.partial(_by_formula, formula, call, recorded)
    reason = why_nothing_to_check(call.name, call.overload)
    if reason is not None:
        raise CannotReplayError(reason)
    packaged = _of_a_package(full)
    if packaged is None and not call.name.startswith(_OF_TORCH):
        raise CannotReplayError(
            f"no reference is registered for {full}; accel.numerics.register_reference takes one"
        )
    if packaged is None:
        admit(call, recorded)
    function = overload_of(call.name, call.overload) if packaged is None else packaged
    return functools.partial(results_of, function, call)


def spelt_out(call: Call) -> Call:
    """The call with every number that its results depend on as one that can be slightly wrong."""
    namespace, _, short = call.name.partition("::")
    if namespace != own.NAMESPACE or call.name in _REGISTERED:
        return call
    return replace(call, arguments=own.spelt_out(short, call.arguments))


def why_nothing_to_replay(name: str, overload: str) -> str | None:
    """Why an operator can have no reference; None if it has one or may be given one.

    Args:
        name: `aten::rand`.
        overload: `default`, …
    """
    full = name if overload == "default" else f"{name}.{overload}"
    if full in _REGISTERED or name in _formulas():
        return None
    return why_nothing_to_check(name, overload)


def _by_formula(
    formula: Formula, call: Call, recorded: Results, arguments: Mapping[str, Given]
) -> Results:
    def run(**given: Given) -> Sequence[Tensor | None]:
        return formula(given, recorded)

    outputs = list(results_of(run, call, arguments).outputs)
    return Results(tuple(outputs), {n: tuple(tensors_in(arguments[n])) for n in call.written})


@functools.cache
def _formulas() -> Mapping[str, Formula]:
    from accel.numerics.replaying import attentions, formulas, recurrent

    return {**formulas.FORMULAS, **attentions.FORMULAS, **recurrent.FORMULAS}


def _of_a_package(full: str) -> Function | None:
    """The reference that accel_kernels has, of a vendor's operator or one of its own."""
    namespace, _, short = full.partition("::")
    if namespace == "npu":
        from accel_kernels.vendor import npu

        return npu.REFERENCES.get(short)
    return own.reference_of(short) if namespace == own.NAMESPACE else None
