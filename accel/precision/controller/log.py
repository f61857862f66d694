"""The log of a controller: everything its decisions depend on, and the decisions.

JSON, one object a line. The first line is the header: configuration, ladders, and the state that
the log begins with. Then come, by step, the readings that changed a state (a tensor that passes in
its policy's format changes nothing, and is left out), each followed by its decisions; the last line
is the end. Each line carries a digest of itself and of all before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.precision.controller.config import ControllerConfig
from accel.precision.controller.decision import Controlled, Decision, Operand
from accel.precision.controller.ladder import Rung
from accel.precision.controller.state import Reading
from accel.precision.controller.statistics import OperandStatistics
from accel.report import check_writable, write_atomically

VERSION = 2
_DIGITS = 16  # of the digest, in hexadecimal: enough against accidents and careless edits


class Chain:
    """Lines that each depend on those before.

    Attributes:
        lines: How many there are.
        digest: Of the last one and so of all.
    """

    def __init__(self, lines: int = 0, digest: str = "") -> None:
        self.lines = lines
        self.digest = digest

    def add(self, content: Mapping[str, Any]) -> str:
        """The line for some content, without its newline."""
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        self.digest = hashlib.sha256(f"{self.digest}\n{text}".encode()).hexdigest()[:_DIGITS]
        self.lines += 1
        return f'{text[:-1]},"digest":"{self.digest}"}}'


class Log:
    """Writes a log, or only keeps its digest where another rank writes it.

    Args:
        path: The file; None writes nothing.

    Raises:
        OSError: It cannot be written.

    Attributes:
        chain: Its lines so far.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            check_writable(self.path)
        self.chain = Chain()
        self._flops: dict[str, int] = {}
        self._header = ""

    def begin(
        self, config: ControllerConfig, operands: Sequence[Controlled], state: Mapping[str, Any]
    ) -> None:
        """Make the header; `open` writes it, so that a run can still resume what is there."""
        self.chain, self._flops = Chain(), dict(state["flops"])
        self._header = self.chain.add(header(config, operands, state)) + "\n"

    def open(self) -> None:
        """Write the header if that is still to be done; what stood in the file is replaced."""
        if self._header and self.path is not None:
            write_atomically(self.path, self._header)
        self._header = ""

    def state_dict(self) -> dict[str, Any]:
        """Where the log is: plain values."""
        chain = self.chain
        return {"lines": chain.lines, "digest": chain.digest, "flops": dict(self._flops)}

    def record(
        self,
        step: int,
        readings: Mapping[Operand, Reading],
        flops: Mapping[str, int],
        decisions: Sequence[Decision],
    ) -> None:
        """Write a step's readings and decisions; nothing if there are none."""
        if not readings:
            return
        changed = {} if flops == self._flops else {"flops": dict(flops)}
        self._flops = dict(flops)
        contents = [reading_line(step, readings, changed)]
        contents += [{"kind": "decision", **one.to_dict()} for one in decisions]
        self._append(contents)

    def end(self, step: int) -> None:
        """Write the end; the log is complete."""
        self._append([{"kind": "end", "step": step}])

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Continue a log where it was; later lines, of steps that are run again, are removed.

        Args:
            state: What `state_dict` returned.

        Returns:
            False if there is no such log here.

        Raises:
            ValueError: There is a file, but it is not this log.
        """
        lines, digest = state["lines"], state["digest"]
        if self.path is not None:
            if not self.path.exists():
                return False
            kept = self.path.read_text(encoding="utf-8").splitlines()[:lines]
            if len(kept) < lines or _digest_of(kept[-1]) != digest:
                raise ValueError(
                    f"{self.path} is not the log that the checkpoint was made with; move it away "
                    "or give another path"
                )
            write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        self.chain, self._flops, self._header = Chain(lines, digest), dict(state["flops"]), ""
        return True

    def _append(self, contents: Sequence[Mapping[str, Any]]) -> None:
        self.open()
        lines = [self.chain.add(content) for content in contents]
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))


def header(
    config: ControllerConfig, operands: Sequence[Controlled], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of the first line."""
    return {
        "kind": "header",
        "version": VERSION,
        "config": config.to_dict(),
        "operands": [
            {
                "module": one.operand.module,
                "role": one.operand.role,
                "products": list(one.products),
                "rungs": [list(rung) for rung in one.rungs],
            }
            for one in operands
        ],
        "state": dict(state),
    }


def operands_of(content: Mapping[str, Any]) -> list[Controlled]:
    """The operands of a header."""
    return [
        Controlled(
            Operand(one["module"], one["role"]),
            tuple(Rung(name, floor, is_fp8) for name, floor, is_fp8 in one["rungs"]),
            tuple(one["products"]),
        )
        for one in content["operands"]
    ]


def reading_line(
    step: int, readings: Mapping[Operand, Reading], flops: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of a line of readings."""
    measured = [
        [*operand, {str(rung): [*map(_said, found)] for rung, found in reading.items()}]
        for operand, reading in readings.items()
    ]
    return {"kind": "reading", "step": step, **flops, "measured": measured}


def readings_of(content: Mapping[str, Any]) -> dict[Operand, dict[int, OperandStatistics]]:
    """The readings of such a line."""
    return {
        Operand(module, role): {
            int(rung): OperandStatistics(*map(float, found)) for rung, found in reading.items()
        }
        for module, role, reading in content["measured"]
    }


def _said(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity


def _digest_of(line: str) -> str | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content.get("digest") if isinstance(content, dict) else None
