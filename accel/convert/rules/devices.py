"""ACC001 to ACC019: devices by name and by number, and what moves tensors to them."""

from __future__ import annotations

from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rule import Rule
from accel.convert.rules import devices_moves, devices_numbers, devices_strings
from accel.convert.rules.devices_scripted import except_scripted
from accel.convert.rules.devices_tried import except_tried

RULES: tuple[Rule, ...] = (*devices_moves.RULES, *devices_strings.RULES, *devices_numbers.RULES)


def find(module: Module) -> Iterator[Finding]:
    """What names a CUDA device, or moves something to one."""
    for part in (devices_moves, devices_numbers, devices_strings):
        yield from except_tried(module, except_scripted(module, part.find(module)))
