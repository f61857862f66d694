"""The controller's state as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from accel.precision.controller.decision import Operand
from accel.precision.controller.judge import percent, severity
from accel.precision.controller.machine import Machine
from accel.precision.controller.state import OperandState, Reading
from accel.report import text

_HEADERS = ("operand", "format", "error", "vanish", "of limit", "state")


def summary_of(machine: Machine, last: Mapping[Operand, Reading]) -> str:
    """One line per operand, and what the budget has left.

    The measurements are those of the policy's format, whatever the operand is in now: they say
    whether it could come back.
    """
    rows = []
    for operand, state in machine.states.items():
        rungs = machine.operands[operand].rungs
        found = last.get(operand, {}).get(0)
        numbers: list[object] = [None, None, None]
        if found is not None and found.is_known:
            times = severity(found, rungs[0], machine.config)
            numbers = [percent(found.error), percent(found.underflow), times]
        rows.append([str(operand), rungs[state.rung].name, *numbers, _said(state, machine)])
    table = text.table(_HEADERS, rows)
    share, budget = percent(machine.share()), percent(machine.config.budget)
    return f"{table}\n\nabove FP8: {share} of the FLOPs, budget {budget}"


def _said(state: OperandState, machine: Machine) -> str:
    if state.bad:
        return f"fails, {state.bad} of {machine.config.confirm} readings"
    if state.rung == 0:
        return "as the policy gives"
    left = state.moved + state.wait(machine.config) - machine.step
    if left > 0:
        return f"promoted at step {state.moved}, stays at least {left} more"
    return f"promoted at step {state.moved}, calm in {state.good} of {machine.config.calm} readings"
