"""The controller: reads what layers measured, decides, and sets their formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.decision import Controlled, Decision, Operand
from accel.precision.controller.ladder import Ladder, fp8_products, ladder_of
from accel.precision.controller.log import Log
from accel.precision.controller.machine import Machine
from accel.precision.controller.ranks import agreed, is_writer, largest
from accel.precision.controller.statistics import OperandStatistics, joined
from accel.precision.controller.summary import summary_of
from accel.precision.controller.tripwire import Guarded, Tripwire
from accel.precision.operand import OPERANDS, ROLES, ModulePlan, OperandFormat, Role, Slot

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Readings = dict[Operand, dict[int, OperandStatistics]]
NO_DOUBT = 2**61
"""What `Controller.doubt` holds if nothing speaks against a step."""


class Layer(Guarded, Protocol):
    """What a controlled layer shows; `accel.precision.fp8.LinearState` does.

    Attributes:
        plan: What the policy gave to it.
        formats: Format of each operand now; the controller assigns to it between steps.
        collect: Whether the next step measures; the controller assigns to it.
        probes: The formats that each role is measured in.
        statistics: Of each role float32 `[probes, 6]`, the maximum over the step's calls, negative
            where nothing was measured; columns as in `OperandStatistics`.
        flops: Of one product in the last forward.
    """

    plan: ModulePlan
    formats: dict[Slot, OperandFormat]
    collect: bool
    probes: dict[Role, tuple[OperandFormat, ...]]
    statistics: dict[Role, Tensor]

    @property
    def flops(self) -> int: ...  # noqa: D102

    def set_probes(self, role: Role, probes: tuple[OperandFormat, ...]) -> None:
        """Measure a role in these formats, whatever it is computed in; forget earlier numbers."""


class Controller:
    """Moves each operand of each FP8 layer between formats, by what was measured.

    Call `after_step` once per optimizer step, on every rank, and before the optimizer's step
    `doubt`, where steps that are spoilt are not to be taken. Decisions depend on measurements that
    are joined over the ranks, and so are the same on all.

    Example:
        ```
        controller = Controller(linear_states(model), log="precision.jsonl")
        for batch in batches:
            ...
            optimizer.step()
            for decision in controller.after_step():
                print(decision)
        controller.close()
        ```

    Args:
        layers: By qualified name, in the same order on every rank. Layers without a product that
            runs in FP8 by its policy are passed over.
        config: Thresholds, waiting times and budget.
        log: Where to write the log; only the first rank of the group writes. None: nowhere.
        group: Ranks that hold the same layers and different data; None: all.

    Attributes:
        config: As given.
        steps: Optimizer steps so far.

    Raises:
        ValueError: No layer computes in FP8, or the ranks have other layers or another
            configuration.
        OSError: The log cannot be written.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        config: ControllerConfig | None = None,
        *,
        log: str | os.PathLike[str] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.config = ControllerConfig() if config is None else config
        self.steps = 0
        self._group = group
        self._layers: dict[str, Layer] = {}
        self._ladders: dict[Operand, Ladder] = {}
        self._last: Readings = {}
        self._found: tuple[Readings, dict[str, int]] | None = None
        operands = self._controlled(layers)
        order = [one.operand for one in operands]
        self._tripwire = Tripwire(self._layers, order, self.config.leap, group)
        self._places = {operand: place for place, operand in enumerate(order)}
        self._machine = Machine(operands, self.config)
        self._log = Log(log if is_writer(group) else None)
        self._log.begin(self.config, operands, self._machine.state_dict())
        agreed(self._log.chain.digest, group)
        self._watch()

    @property
    def share(self) -> float:
        """Of the FLOPs of the controlled products, what runs above FP8 now."""
        return self._machine.share()

    def formats(self) -> dict[Operand, str]:
        """The name of each operand's format now."""
        rungs = {operand: ladder.rungs for operand, ladder in self._ladders.items()}
        states = self._machine.states
        return {operand: rungs[operand][state.rung].name for operand, state in states.items()}

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What is controlled, in the order in which `doubt` counts them."""
        return tuple(self._places)

    def doubt(self) -> Tensor:
        """Whether this step's gradients should move weights; asked after the backward.

        Waits for the device in steps that measured, which `after_step` else does.

        Returns:
            int64 `[]`: `NO_DOUBT`; or of the first operand that spoilt the step twice its place
            among `operands`, plus one if its format was measured to lose its values. Without the
            one, its magnitude has leapt: call `alarm` before `after_step`, or before that of the
            next step where the host does not wait to know.
        """
        judged = [
            operand not in self._watched and self._is_fp8(operand)
            for operand in self._tripwire.operands
        ]
        leapt = self._tripwire.leapt(judged)
        places = torch.tensor([self._places[one] for one in self._tripwire.operands])
        codes = torch.where(leapt, 2 * places.to(leapt.device), NO_DOUBT)
        code = torch.cat([codes, torch.full((1,), NO_DOUBT, device=leapt.device)]).min()
        if not self._watched:
            return code
        severe = self._machine.severe(self.steps, self._readings()[0])
        return code if severe is None else code.clamp(max=2 * self._places[severe] + 1)

    def alarm(self) -> None:
        """A magnitude has leapt: the next step measures everything."""
        self._machine.alarm()
        self._tripwire.accept()

    def after_step(
        self, *, skipped: bool | Callable[[], bool] = False, taken: Tensor | None = None
    ) -> tuple[Decision, ...]:
        """End an optimizer step: read, decide, set formats, and say what the next step measures.

        Waits for the device only in steps that measured, one in `config.interval` or fewer as long
        as nothing is wrong.

        Args:
            skipped: The step was not taken since gradients were not finite: the loss scale deals
                with that, and what was measured of gradients is left out. A function is only
                called in steps that measured, where waiting for its answer costs nothing more.
            taken: Bool `[]`, whether the step was taken, after `doubt`; None: `doubt` was not
                asked.

        Returns:
            What was decided, in order.
        """
        self._log.open()
        step, decisions = self.steps, list[Decision]()
        self.steps += 1
        if taken is not None:
            self._tripwire.learn(taken)
        if self._watched:
            readings, flops = self._readings()
            if skipped() if callable(skipped) else skipped:
                readings = {one: found for one, found in readings.items() if one.role != "gradient"}
            self._last.update(readings)
            active = {
                one: found
                for one, found in readings.items()
                if not self._machine.is_idle(one, found)
            }
            decisions = self._machine.observe(step, active, flops)
            self._log.record(step, active, flops, decisions)
            for decision in decisions:
                self._assign(decision.operand)
                self._tripwire.forget(decision.operand)
        self._watch()
        return tuple(decisions)

    def summary(self) -> str:
        """A table of the operands: format, last measurements, and what the controller waits for."""
        return summary_of(self._machine, self._last)

    def close(self) -> None:
        """Complete the log."""
        self._log.end(self.steps - 1)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; plain values, the same on every rank."""
        return {
            "steps": self.steps,
            "config": self.config.to_dict(),
            "machine": self._machine.state_dict(),
            "usual": self._tripwire.state_dict(),
            "log": self._log.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called; decisions are then those of a run without a break.

        The log goes on too: lines of later steps, which are run again, are removed. Where the file
        is not there, a new one begins with the state.

        Raises:
            ValueError: It is not a controller's state, or of another model, policy or
                configuration, or the log is another one.
        """
        if set(state) != {"steps", "config", "machine", "usual", "log"}:
            raise ValueError(f"the state of a controller is not one of {sorted(state)}")
        if state["config"] != self.config.to_dict():
            raise ValueError(
                f"the checkpoint's controller has the configuration {state['config']}, not "
                f"{self.config}; pass the same one"
            )
        self._machine.load_state_dict(state["machine"])
        self._tripwire.load_state_dict(state["usual"])
        self.steps = state["steps"]
        self._last = {}
        if not self._log.resume(state["log"]):
            operands = list(self._machine.operands.values())
            self._log.begin(self.config, operands, self._machine.state_dict())
        for operand in self._ladders:
            self._assign(operand)
        self._watch()

    def _controlled(self, layers: Mapping[str, Layer]) -> list[Controlled]:
        operands = []
        for name, layer in layers.items():
            slots = layer.plan.slots
            for role in ROLES:
                ladder = ladder_of(role, slots, layer.plan.compute)
                if ladder is None:
                    continue
                operand = Operand(name, role)
                products = [gemm for gemm in fp8_products(slots) if role in OPERANDS[gemm]]
                self._layers[name] = layer
                self._ladders[operand] = ladder
                operands.append(Controlled(operand, ladder.rungs, tuple(products)))
        if not operands:
            raise ValueError(
                "no layer has a product whose operands both have eight bits: there is nothing to "
                "control; convert the model by a policy such as fp8_tensorwise first"
            )
        return operands

    def _assign(self, operand: Operand) -> None:
        rung = self._machine.states[operand].rung
        self._layers[operand.module].formats.update(self._ladders[operand].formats[rung])

    def _watch(self) -> None:
        """Tell the layers what the next step measures."""
        self._found = None
        self._watched = self._machine.watch(self.steps)
        busy = {operand.module for operand in self._watched}
        for name, layer in self._layers.items():
            layer.collect = name in busy
        for operand, ladder in self._ladders.items():
            if operand.module in busy:
                rungs = self._watched.get(operand, ())
                probes = tuple(probe for rung in rungs for probe in ladder.probes(rung))
                self._probe(self._layers[operand.module], _role(operand), probes)

    def _probe(self, layer: Layer, role: Role, probes: tuple[OperandFormat, ...]) -> None:
        if layer.probes[role] == probes:  # the tensors stay, which captured graphs write to
            layer.statistics[role].fill_(-1.0)
        else:
            layer.set_probes(role, probes)

    def _is_fp8(self, operand: Operand) -> bool:
        return self._ladders[operand].rungs[self._machine.states[operand].rung].is_fp8

    def _readings(self) -> tuple[Readings, dict[str, int]]:
        """What the step measured and the FLOPs of its products, read once."""
        if self._found is None:
            self._found = self._read()
        return self._found

    def _read(self) -> tuple[Readings, dict[str, int]]:
        """Joined over ranks: the one wait for the device."""
        tables = [
            self._layers[operand.module].statistics[_role(operand)] for operand in self._watched
        ]
        names = list(self._layers)
        rows, flops = largest(tables, [self._layers[name].flops for name in names], self._group)
        found: Readings = {}
        for operand, rungs in self._watched.items():
            found[operand] = {}
            for rung in rungs:
                count = len(self._ladders[operand].probes(rung))
                parts = [OperandStatistics(*rows.pop(0)) for _ in range(count)]
                found[operand][rung] = joined(parts)
        return found, dict(zip(names, flops, strict=True))


def _role(operand: Operand) -> Role:
    return next(role for role in ROLES if role == operand.role)
