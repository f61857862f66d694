"""Every decision, from measurements alone: no torch, no clock, no chance.

What `Machine.observe` returns depends on the configuration, the ladders and the readings so far;
every rank that sees the same ones, and a log that is replayed, decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel.precision.controller.budget import Budget
from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.decision import Controlled, Decision, Kind, Operand
from accel.precision.controller.judge import complaint, is_severe, percent, severity, state_of
from accel.precision.controller.state import OperandState, Reading


class Machine:
    """The states of all operands.

    Args:
        operands: What is controlled, in a fixed order: it breaks ties.
        config: Thresholds and waiting times.

    Attributes:
        operands: As given.
        config: As given.
        states: One per operand.
        step: Of the last reading; -1: none yet.
    """

    def __init__(self, operands: Sequence[Controlled], config: ControllerConfig) -> None:
        self.operands = {one.operand: one for one in operands}
        self.config = config
        self.states = {one.operand: OperandState() for one in operands}
        self.step = -1
        self._budget = Budget(operands)
        self._flops: Mapping[str, int] = {}

    def watch(self, step: int) -> dict[Operand, tuple[int, ...]]:
        """What a step must measure: the rungs of each operand; empty for most steps.

        Every `interval` steps all operands: the policy's format where it is in use and passes, the
        whole ladder elsewhere. Between these only operands whose format failed last time and that
        the budget did not refuse, and after an alarm all, and beside them those that they might
        displace.
        """
        due = step % self.config.interval == 0
        suspicious = {
            operand
            for operand, state in self.states.items()
            if state.alarm or (state.bad and step >= state.blocked)
        }
        urgent = suspicious | (self._high() if suspicious else set())
        wanted = {}
        for operand, state in self.states.items():
            if due or operand in urgent:
                is_calm = state.rung == state.bad == state.alarm == 0
                every = range(len(self.operands[operand].rungs))
                wanted[operand] = (0,) if is_calm else tuple(every)
        return wanted

    def alarm(self) -> None:
        """Have every operand measured in the next step, in all its formats."""
        for state in self.states.values():
            state.alarm = 1

    def severe(self, step: int, readings: Mapping[Operand, Reading]) -> Operand | None:
        """The first operand for which a step must be withheld; None if it may be taken.

        One that the budget refused is what it is: training goes on with it.
        """
        for operand, reading in readings.items():
            state, rungs = self.states[operand], self.operands[operand].rungs
            now = reading.get(state.rung)
            if now is None or not now.is_known or step < state.blocked:
                continue
            if is_severe(now, rungs[state.rung], self.config):
                return operand
        return None

    def is_idle(self, operand: Operand, reading: Reading) -> bool:
        """Whether a reading would change nothing: one in the policy's format that passes."""
        state, now = self.states[operand], reading.get(self.states[operand].rung)
        if now is None or not now.is_known:
            return True
        rung = self.operands[operand].rungs[state.rung]
        return state.rung == state.bad == 0 and severity(now, rung, self.config) <= 1.0

    def observe(
        self, step: int, readings: Mapping[Operand, Reading], flops: Mapping[str, int]
    ) -> list[Decision]:
        """Count one step's readings, and decide.

        Args:
            step: Which; later than the last.
            readings: What was measured; operands that were not may be missing.
            flops: Of one product of each module.

        Returns:
            Ways back first, since they make room in the budget; then promotions, within FP8 and
            above it, of the worst operand first.
        """
        self.step, self._flops = step, flops
        for operand, state in self.states.items():
            state.alarm = 0
            if operand in readings:
                state.observe(self.operands[operand], readings[operand], self.config)
        decided = [
            self._demote(step, operand, readings[operand])
            for operand, state in self.states.items()
            if operand in readings and state.wants_down(step, self.config)
        ]
        rising = [
            operand
            for operand, state in self.states.items()
            if operand in readings and state.wants_up(self.config)
        ]
        rising.sort(key=lambda one: -self._severity(one, readings[one]))
        for operand in rising:
            if self.operands[operand].rungs[self.states[operand].up].is_fp8:
                to = self.states[operand].up
                decided.append(self._promote(step, operand, to, readings[operand]))
            else:
                decided += self._promote_above(step, operand, readings)
        return decided

    def share(self) -> float:
        """Of the FLOPs, what runs above FP8 now."""
        return self._budget.share(self._high(), self._flops)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the step, and the state of each operand by its name."""
        states = {str(operand): state.to_dict() for operand, state in self.states.items()}
        return {"step": self.step, "flops": dict(self._flops), "operands": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: It is not that, or of other operands.
        """
        if set(state) != {"step", "flops", "operands"}:
            raise ValueError(f"the state of a controller is step, flops and operands: {set(state)}")
        names = {str(operand) for operand in self.states}
        if set(state["operands"]) != names:
            wrong = sorted(set(state["operands"]) ^ names)
            raise ValueError(
                f"the checkpoint's controller has other operands than this model: {wrong[:5]}; "
                "load it into the same model with the same policy"
            )
        loaded = {
            operand: OperandState.from_dict(
                state["operands"][str(operand)], len(self.operands[operand].rungs)
            )
            for operand in self.states
        }
        self.states, self.step, self._flops = loaded, state["step"], dict(state["flops"])

    def _promote(self, step: int, operand: Operand, to: int, reading: Reading) -> Decision:
        state, rungs = self.states[operand], self.operands[operand].rungs
        said = complaint(reading[state.rung], rungs[state.rung], self.config)
        passed = [
            f"{rungs[rung].name}: {state_of(found)}"
            for rung, found in sorted(reading.items())
            if state.rung < rung <= to
        ]
        reason = "; ".join([f"{said} ({_readings(state.bad)})", *passed])
        return self._moved(step, operand, "promote", to, reason)

    def _demote(self, step: int, operand: Operand, reading: Reading) -> Decision:
        state, rungs = self.states[operand], self.operands[operand].rungs
        passed = f"{rungs[state.down].name} would have {state_of(reading[state.down])}"
        reason = f"{passed} ({_readings(state.good)}), {step - state.moved} steps after the change"
        return self._moved(step, operand, "demote", state.down, reason)

    def _promote_above(
        self, step: int, operand: Operand, readings: Mapping[Operand, Reading]
    ) -> list[Decision]:
        """Above FP8 if the budget allows it, by displacing others if need be."""
        state, rungs = self.states[operand], self.operands[operand].rungs
        if not rungs[state.rung].is_fp8:
            return [self._promote(step, operand, state.up, readings[operand])]
        if step < state.blocked:
            return []
        leaving = self._displaced(operand, readings)
        if leaving is not None:
            decided = [self._displace(step, one, operand, readings[one]) for one in leaving]
            return [*decided, self._promote(step, operand, state.up, readings[operand])]
        return [self._refuse(step, operand, readings[operand])]

    def _displaced(
        self, operand: Operand, readings: Mapping[Operand, Reading]
    ) -> list[Operand] | None:
        """Who must leave so that an operand fits; None if it cannot."""
        high, leaving = self._high() | {operand}, list[Operand]()
        own = self._severity(operand, readings[operand])
        others = [one for one in high - {operand} if one in readings]
        order = list(self.states)
        others.sort(key=lambda one: (self._severity(one, readings[one]), order.index(one)))
        while self._budget.share(high, self._flops) > self.config.budget:
            if not others:
                return None
            least = others.pop(0)
            if self._severity(least, readings[least]) * self.config.displace > own:
                return None
            high.remove(least)
            leaving.append(least)
        return leaving

    def _refuse(self, step: int, operand: Operand, reading: Reading) -> Decision:
        state, rungs = self.states[operand], self.operands[operand].rungs
        share = self._budget.share(self._high() | {operand}, self._flops)
        said = complaint(reading[state.rung], rungs[state.rung], self.config)
        reason = (
            f"{said} ({_readings(state.bad)}); {rungs[state.up].name} would put {percent(share)} "
            f"of the FLOPs above FP8, the budget is {percent(self.config.budget)}"
        )
        state.blocked = step + state.wait(self.config)
        to = self._best_fp8(operand, reading)
        return self._moved(step, operand, "refuse", to, reason)

    def _displace(self, step: int, operand: Operand, by: Operand, reading: Reading) -> Decision:
        state = self.states[operand]
        state.blocked = step + state.wait(self.config)
        reason = f"the budget is full and {by} is at least {self.config.displace:g} times as bad"
        return self._moved(step, operand, "displace", self._best_fp8(operand, reading), reason)

    def _moved(self, step: int, operand: Operand, kind: Kind, to: int, reason: str) -> Decision:
        state, rungs = self.states[operand], self.operands[operand].rungs
        before, names = state.rung, (rungs[state.rung].name, rungs[to].name)
        if to != before:
            state.move(to, step, self.config)
        else:
            state.forget()
        return Decision(step, operand, kind, before, to, names, reason, self.share())

    def _high(self) -> set[Operand]:
        return {
            operand
            for operand, state in self.states.items()
            if not self.operands[operand].rungs[state.rung].is_fp8
        }

    def _severity(self, operand: Operand, reading: Reading) -> float:
        """How bad the best eight-bit format is."""
        rungs = self.operands[operand].rungs
        return min(
            severity(found, rungs[rung], self.config)
            for rung, found in reading.items()
            if rungs[rung].is_fp8
        )

    def _best_fp8(self, operand: Operand, reading: Reading) -> int:
        """The eight-bit format that is least bad; the lowest of equals."""
        rungs = self.operands[operand].rungs
        measured = [rung for rung in sorted(reading) if rungs[rung].is_fp8]
        return min(measured, key=lambda rung: severity(reading[rung], rungs[rung], self.config))


def _readings(count: int) -> str:
    return "1 reading" if count == 1 else f"{count} readings"
