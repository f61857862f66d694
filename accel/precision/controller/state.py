"""What is remembered of one operand between readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.decision import Controlled
from accel.precision.controller.judge import is_severe, severity
from accel.precision.controller.statistics import OperandStatistics

Reading = Mapping[int, OperandStatistics]  # by rung; a rung that was not measured is missing


@dataclass
class OperandState:
    """A state machine: counters that rise with readings, and a rung that decisions move.

    Attributes:
        rung: Number of the format it is in.
        bad: Readings in a row in which that format failed.
        severe: 1 if it failed by far in the last one, else 0.
        alarm: 1 if it is to be measured in the next step, whatever the interval, else 0.
        up: The lowest rung that passed in all of these that measured it; 0: none was measured.
        good: Readings in a row in which a lower format passed.
        down: The lowest rung that passed in all of these.
        moved: Step of the last change; -1: none yet.
        demoted: Step of the last way back; -1: none yet.
        doublings: Of the cool-down.
        blocked: No promotion above FP8 is tried again before this step.
    """

    rung: int = 0
    bad: int = 0
    severe: int = 0
    alarm: int = 0
    up: int = 0
    good: int = 0
    down: int = 0
    moved: int = -1
    demoted: int = -1
    doublings: int = 0
    blocked: int = -1

    def observe(self, one: Controlled, reading: Reading, config: ControllerConfig) -> None:
        """Count one reading; the rung stays."""
        now = reading.get(self.rung)
        if now is None or not now.is_known:
            return
        if severity(now, one.rungs[self.rung], config) > 1.0:
            self.good = self.down = 0
            self.bad += 1
            self.severe = int(is_severe(now, one.rungs[self.rung], config))
            self.up = max(self.up, self._lowest_above(one, reading, config))
            return
        self.bad = self.severe = self.up = 0
        lowest = self._lowest_below(one, reading, config)
        if lowest is None:
            self.good = self.down = 0
        else:
            self.good, self.down = self.good + 1, max(self.down, lowest)

    def wants_up(self, config: ControllerConfig) -> bool:
        """Whether it is to leave its format."""
        return (self.severe == 1 or self.bad >= config.confirm) and self.up > self.rung

    def wants_down(self, step: int, config: ControllerConfig) -> bool:
        """Whether it may come back."""
        waited = step - self.moved >= self.wait(config)
        return self.good >= config.calm and self.down < self.rung and waited

    def wait(self, config: ControllerConfig) -> int:
        """Steps between a change and a way back."""
        return int(config.cooldown * 2**self.doublings)

    def move(self, rung: int, step: int, config: ControllerConfig) -> None:
        """Go to another rung."""
        if rung > self.rung and self.demoted >= 0:
            is_flapping = step - self.demoted <= self.wait(config)
            doubled = min(self.doublings + 1, config.max_doublings)
            self.doublings = doubled if is_flapping else 0
            self.demoted = -1
        if rung < self.rung:
            self.demoted = step
        self.rung, self.moved = rung, step
        self.forget()

    def forget(self) -> None:
        """Count from the beginning."""
        self.bad = self.severe = self.up = self.good = self.down = 0

    def _lowest_above(self, one: Controlled, reading: Reading, config: ControllerConfig) -> int:
        measured = [rung for rung in reading if rung > self.rung]
        passing = [
            rung for rung in measured if severity(reading[rung], one.rungs[rung], config) <= 1.0
        ]
        return min(passing, default=max(measured, default=0))

    def _lowest_below(
        self, one: Controlled, reading: Reading, config: ControllerConfig
    ) -> int | None:
        return min(
            (
                rung
                for rung in reading
                if rung < self.rung
                and severity(reading[rung], one.rungs[rung], config, back=True) <= 1.0
            ),
            default=None,
        )

    def to_dict(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], rungs: int) -> OperandState:
        """What `to_dict` returned.

        Raises:
            ValueError: It is not that, or speaks of a rung that the ladder does not have.
        """
        known = {field.name for field in fields(cls)}
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values.values())
        if set(values) != known or not whole:
            raise ValueError(f"the state of an operand has whole numbers {sorted(known)}: {values}")
        if not all(0 <= values[name] < rungs for name in ("rung", "up", "down")):
            raise ValueError(f"a ladder of {rungs} formats has no such rung: {dict(values)}")
        return cls(**values)
