"""Deciding again from a log alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.decision import Controlled, Decision, Operand
from accel.precision.controller.log import VERSION, Chain, operands_of, readings_of
from accel.precision.controller.machine import Machine
from accel.precision.controller.statistics import OperandStatistics

Readings = dict[Operand, dict[int, OperandStatistics]]


class Replay(NamedTuple):
    """What a log holds, decided again.

    Attributes:
        config: The controller's configuration.
        operands: What it controlled.
        start: The rung of each operand at the first line.
        readings: What was measured, by step.
        decisions: In their order.
        step: The last step that the log speaks of; -1: none.
        is_complete: Whether the log was closed.
    """

    config: ControllerConfig
    operands: tuple[Controlled, ...]
    start: dict[Operand, int]
    readings: dict[int, Readings]
    decisions: tuple[Decision, ...]
    step: int
    is_complete: bool


def replay(path: str | os.PathLike[str], *, partial: bool = False) -> Replay:
    """Read a log, decide again from its readings, and compare with what it says was decided.

    Args:
        path: The log.
        partial: Accept a log without an end: of a run that goes on or was broken off.

    Raises:
        ValueError: It is truncated, was changed, or decided otherwise; names the line.
        OSError: It cannot be read.
    """
    where = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no controller's log: it is not UTF-8") from error
    contents = list(_contents(where, text, partial))
    try:
        return _decided_again(where, contents)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{where} is no controller's log: {error!r} while reading it") from error


def _contents(where: str, text: str, partial: bool) -> Iterator[dict[str, Any]]:
    """The lines' contents, each checked against its digest."""
    if not text.endswith("\n"):
        raise ValueError(f"{where} is truncated: it ends within line {text.count(chr(10)) + 1}")
    chain, kind = Chain(), ""
    for number, line in enumerate(text.splitlines(), 1):
        if kind == "end":
            raise ValueError(f"{where}, line {number}: something follows the end of the log")
        try:
            content = json.loads(line)
            digest = content.pop("digest")
            expected = chain.add(content)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{where}, line {number}: not a line of a log: {error}") from error
        if digest != chain.digest or line != expected:
            raise ValueError(
                f"{where}, line {number}: its digest does not fit; this line or one before it was "
                "changed, removed or added"
            )
        kind = content.get("kind", "")
        yield content
    if kind != "end" and not partial:
        raise ValueError(
            f"{where} has no end: it is truncated, or the run goes on or was broken off; pass "
            "partial=True to replay what is there"
        )


def _decided_again(where: str, contents: list[dict[str, Any]]) -> Replay:
    if not contents or contents[0]["kind"] != "header" or contents[0]["version"] != VERSION:
        raise ValueError(f"{where} does not begin with the header of a log of version {VERSION}")
    config = ControllerConfig.from_dict(contents[0]["config"])
    operands = operands_of(contents[0])
    machine = Machine(operands, config)
    machine.load_state_dict(contents[0]["state"])
    start = {operand: state.rung for operand, state in machine.states.items()}
    flops: Mapping[str, int] = contents[0]["state"]["flops"]
    readings: dict[int, Readings] = {}
    decisions: list[Decision] = []
    pending: list[Decision] = []
    step = machine.step
    for number, content in enumerate(contents[1:], 2):
        if content["kind"] == "decision":
            said = {key: value for key, value in content.items() if key != "kind"}
            _same(where, number, pending.pop(0) if pending else None, Decision.from_dict(said))
            continue
        _none_left(where, number, pending)
        step = content["step"]
        if content["kind"] == "reading":
            flops = content.get("flops", flops)
            readings[step] = readings_of(content)
            pending = machine.observe(step, readings[step], flops)
            decisions += pending
            pending = list(pending)
    _none_left(where, len(contents), pending)
    complete = contents[-1]["kind"] == "end"
    return Replay(config, tuple(operands), start, readings, tuple(decisions), step, complete)


def _same(where: str, number: int, again: Decision | None, said: Decision) -> None:
    if again != said:
        raise ValueError(
            f"{where}, line {number}: the log says {said}; deciding again gives "
            f"{again or 'no change'}. It was changed, or comes from another version"
        )


def _none_left(where: str, number: int, pending: list[Decision]) -> None:
    if pending:
        raise ValueError(
            f"{where}, line {number}: deciding again gives {pending[0]}, which the log lacks"
        )
