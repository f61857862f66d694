"""ACC030 to ACC039: conditions that ask whether the device is CUDA."""

from __future__ import annotations

from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rule import Rule
from accel.convert.rules import guards_available, guards_compare, guards_tensor
from accel.convert.rules.devices_scripted import except_scripted
from accel.convert.rules.guards_available import is_kept as is_kept

RULES: tuple[Rule, ...] = (*guards_available.RULES, *guards_compare.RULES, *guards_tensor.RULES)


def find(module: Module) -> Iterator[Finding]:
    """Guards: `is_available()`, comparisons of devices, `is_cuda`."""
    for part in (guards_available, guards_compare, guards_tensor):
        yield from except_scripted(module, part.find(module))
